"""
Every method by name: the table of contents. A method is a plain class with

    loss(denoiser, x, frozen=None)     -> (B, L) nats; what training minimises (may be a surrogate; then its docstring says so)
    nelbo(denoiser, x, frozen=None)    -> (B, L) nats; one unbiased draw of an upper bound on -log p(x), exact for ar
    sample(denoiser, z, frozen, steps) -> yields (B, L) ids from noise to text; z = where(frozen, given, prior(shape))

and vocab_size (symbols of the network), uses_time, mask_mod (attention pattern). `denoiser` is anything that answers
denoiser(z, t, at=None) -> logits: a network, its average, the toy language's oracle. `frozen` (B, L) marks given tokens.
"""
from functools import partial

from autoregressive import AR
from masked import MASKED_SAMPLERS, MDLM
from uniform import GIDD, UDLM

METHODS = {
    "ar": AR,                                            # left to right
    "mdlm": MDLM,                                        # masks
    "udlm": UDLM,                                        # random words
    "gidd": GIDD,                                        # both
}
