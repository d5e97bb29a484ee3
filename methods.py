"""
Every method by name: the table of contents. A method is a plain class with

    loss(denoiser, x, frozen=None)     -> (B, L) nats; what training minimises (if a surrogate, its docstring says so)
    nelbo(denoiser, x, frozen=None)    -> (B, L) nats; one unbiased draw of an upper bound on -log p(x), exact for ar
    sample(denoiser, z, frozen, steps) -> yields (B, L) ids from noise to text; z = where(frozen, given, prior(shape))

and vocab_size (symbols of the network), uses_time, mask_mod (attention pattern). `denoiser` is anything that answers
denoiser(z, t, at=None) -> logits: a network, its average, the toy language's oracle. `frozen` (B, L) marks given
tokens: never noised, never scored, never resampled.
"""
import inspect

from autoregressive import AR
from data import BadInput
from masked import MDLM
from uniform import GIDD, UDLM

METHODS = {
    "ar": AR,                                            # left to right
    "mdlm": MDLM,                                        # masks
    "udlm": UDLM,                                        # random words
    "gidd": GIDD,                                        # both
}


def make_method(name, n_tokens, **options):
    """The method `name` for texts of n_tokens symbols, with those of the options that its class names."""
    cls = METHODS[name]
    known = inspect.signature(cls).parameters
    return cls(n_tokens, **{key: value for key, value in options.items() if key in known})


def check_sampler(sampler, name):
    """`ancestral` is eq. (3), and left to right for ar: every method has it. The others choose among masks."""
    if sampler != "ancestral" and name != "mdlm":
        raise BadInput(f"--sampler {sampler} chooses among masks: {name} has the sampler ancestral alone")
