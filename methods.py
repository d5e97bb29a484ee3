"""
Every method by name: the table of contents. A method is a plain class with

    loss(denoiser, x, frozen=None)     -> (B, L) nats; what training minimises (if a surrogate, its docstring says so)
    nelbo(denoiser, x, frozen=None)    -> (B, L) nats; one unbiased draw of an upper bound on -log p(x), exact for ar
    sample(denoiser, z, frozen, steps) -> yields (B, L) ids from noise to text; z = where(frozen, given, prior(shape))

and vocab_size (symbols of the network), uses_time, mask_mod (attention pattern), and `network` where it has its own.
`denoiser` is anything that answers denoiser(z, t, at=None) -> logits: a network, its average, the toy language's
oracle. `frozen` (B, L) marks given tokens: never noised, never scored, never resampled.
"""
import inspect
from functools import partial

from autoregressive import AR
from data import BadInput
from diffusion import ancestral
from duo import Duo
from masked import MDLM, confidence, first_hitting
from partition import PGM
from psi import greedy_tail, psi
from uniform import GIDD, UDLM

METHODS = {
    "ar": AR,                                            # left to right
    "mdlm": MDLM,                                        # masks
    "pgm": PGM,                                          # masks that are never seen: two groups predict each other
    "udlm": UDLM,                                        # random words
    "gidd": GIDD,                                        # both
    "duo": Duo,                                          # random words, learnt from a Gaussian that is sharpened
}
SAMPLERS = {
    "ancestral": ancestral,                              # eq. (3), for any process; ar goes from left to right
    "psi": psi,                                          # eq. (10), for any process; ReMDM under masks
    "first-hitting": first_hitting,                      # the others choose among masks
    "confidence": confidence,
}


def make_method(name, n_tokens, **options):
    """The method `name` for texts of n_tokens symbols, with those of the options that its class names."""
    cls = METHODS[name]
    known = inspect.signature(cls).parameters
    return cls(n_tokens, **{key: value for key, value in options.items() if key in known})


def make_sampler(name, method, schedule="cap", eta=0.02, tail="draw"):
    """A sampler as methods take it: sampler(process, denoiser, z, frozen, steps, law). BadInput if it cannot be."""
    if method == "ar" and (name, tail) != ("ancestral", "draw"):
        raise BadInput("ar writes from left to right: it has --sampler ancestral alone, and no --tail greedy")
    if name in ("first-hitting", "confidence") and method not in ("mdlm", "pgm"):
        raise BadInput(f"--sampler {name} chooses among masks: {method} has ancestral and psi")
    if tail == "greedy" and method in ("mdlm", "pgm"):
        raise BadInput("--tail greedy proofreads text, which masks leave alone: try --temperature 0, or --sampler psi")
    walk = partial(psi, schedule=schedule, eta=eta) if name == "psi" else SAMPLERS[name]
    return partial(greedy_tail, walk=walk) if tail == "greedy" else walk
