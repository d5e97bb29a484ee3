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
from block import BD3LM
from d3pm import D3PM
from data import BadInput
from decoding import semi_ar
from diffusion import ancestral
from duo import Duo
from masked import MDLM, confidence, first_hitting
from partition import PGM
from psi import greedy_tail, psi
from score import SEDD, analytic, euler
from uniform import GIDD, UDLM

METHODS = {
    "ar": AR,                                            # left to right
    "mdlm": MDLM,                                        # masks
    "pgm": PGM,                                          # masks that are never seen: two groups predict each other
    "udlm": UDLM,                                        # random words
    "gidd": GIDD,                                        # both
    "bd3lm": BD3LM,                                      # masks in blocks, from left to right
    "duo": Duo,                                          # random words, learnt from a Gaussian that is sharpened
    "sedd": SEDD,                                        # masks or random words, by ratios of probabilities
    "d3pm": D3PM,                                        # any matrix of jumps, in a fixed number of steps
}
SAMPLERS = {
    "ancestral": ancestral,                              # eq. (3), for any process; ar goes from left to right
    "psi": psi,                                          # eq. (10), for any process; ReMDM under masks
    "first-hitting": first_hitting,                      # the others choose among masks
    "confidence": confidence,
    "semi-ar": semi_ar,                                  # the surest masks, block by block; the caches of decoding.py
    "analytic": analytic,                                # these two step by ratios: eq. (34), which is (3) in ratios,
    "euler": euler,                                      # and eq. (35)
}


def make_method(name, n_tokens, **options):
    """The method `name` for texts of n_tokens symbols, with those of the options that its class names."""
    cls = METHODS[name]
    known = inspect.signature(cls).parameters
    return cls(n_tokens, **{key: value for key, value in options.items() if key in known})


def make_sampler(name, method, schedule="cap", eta=0.02, tail="draw", block=32, cache="none", threshold=0.0,
                 factor=0.0):
    """A sampler as methods take it: sampler(process, denoiser, z, frozen, steps, law); BadInput if it cannot be."""
    masks = {"first-hitting": ["mdlm", "bd3lm", "pgm"], "confidence": ["mdlm", "bd3lm", "pgm"], "semi-ar": ["mdlm"]}
    own = {"sedd": ["analytic", "euler"]}
    if method == "ar" and (name, tail) != ("ancestral", "draw"):
        raise BadInput("ar writes from left to right: it has --sampler ancestral alone, and no --tail greedy")
    if method in ("sedd", "d3pm") and (name not in ("ancestral", *own.get(method, [])) or tail == "greedy"):
        raise BadInput(f"{method} has --sampler {' and '.join(['ancestral', *own.get(method, [])])} alone, and no "
                       "--tail greedy")
    if name in own["sedd"] and method != "sedd":
        raise BadInput(f"--sampler {name} steps by ratios of probabilities, which sedd has: {method} predicts a mean")
    if method not in masks.get(name, [method]):
        raise BadInput(f"--sampler {name} chooses among the masks of {' or '.join(masks[name])}: {method} has others")
    if tail == "greedy" and method in ("mdlm", "bd3lm", "pgm"):
        raise BadInput("--tail greedy proofreads text, which masks leave alone: try --temperature 0, or --sampler psi")
    if name != "semi-ar" and (cache, threshold, factor) != ("none", 0, 0):
        raise BadInput("--cache, --threshold and --factor go with --sampler semi-ar")
    if threshold and factor:
        raise BadInput("--threshold and --factor are two rules for one choice: give one of them")
    if name == "semi-ar":
        return partial(semi_ar, block=block, cache=cache, threshold=threshold, factor=factor)
    walk = partial(psi, schedule=schedule, eta=eta) if name == "psi" else SAMPLERS[name]
    return partial(greedy_tail, walk=walk) if tail == "greedy" else walk
