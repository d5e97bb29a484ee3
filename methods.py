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
from classifier import Classifier
from correction import ROUNDS, gibbs, remdm_conf, self_correct, top_k
from d3pm import D3PM
from data import BadInput
from decoding import semi_ar
from diffusion import ancestral
from duo import Duo
from masked import MDLM, confidence, first_hitting
from md4 import MD4, GenMD4
from partition import PGM
from psi import greedy_tail, psi
from radd import RADD
from score import SEDD, analytic, euler
from uniform import GIDD, UDLM

METHODS = {
    "ar": AR,                                            # left to right
    "mdlm": MDLM,                                        # masks
    "md4": MD4,                                          # masks by a schedule
    "genmd4": GenMD4,                                    # masks by a schedule for each symbol, which is learnt
    "radd": RADD,                                        # masks: one bound in four ways
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
    "remdm-conf": remdm_conf,                            # doubtful words are masked again
    "top-k": top_k,                                      # the surest of all words stay
    "analytic": analytic,                                # these two step by ratios: eq. (34), which is (3) in ratios,
    "euler": euler,                                      # and eq. (35)
}
TAILS = {"draw": None, "greedy": greedy_tail, "gibbs": gibbs, "self-correct": self_correct}
OWN = {"ar": ["ancestral"], "genmd4": ["ancestral"], "d3pm": ["ancestral"], "sedd": ["ancestral", "analytic", "euler"]}
MASKED = ["mdlm", "md4", "radd", "bd3lm", "pgm"]         # one process, many ways to train


def make_method(name, n_tokens, **options):
    """The method `name` for texts of n_tokens symbols, with those of the options that its class names. `classifier`
    is no language model: it reads the noise of another method."""
    if name == "classifier":
        return Classifier(make_method(options.pop("noise_of", "mdlm"), n_tokens, **options).process)
    cls = METHODS[name]
    known = inspect.signature(cls).parameters
    return cls(n_tokens, **{key: value for key, value in options.items() if key in known})


def make_sampler(name, method, kappa="cap", eta=0.02, tail="draw", decode_block=32, cache="none", threshold=0.0,
                 factor=0.0, grid="uniform", rounds=0, last=None):
    """A sampler as methods take it: sampler(process, denoiser, z, frozen, steps, law); BadInput if it cannot be.
    rounds: of a tail that redraws, 0 for its own number; last: the id of a word that semi-ar opens last"""
    if method in OWN and (name not in OWN[method] or (tail, grid) != ("draw", "uniform")):
        raise BadInput(f"{method} has a walk of its own: --sampler {' or '.join(OWN[method])}, no --tail or --grid")
    if name in ("analytic", "euler") and method != "sedd":
        raise BadInput(f"--sampler {name} steps by ratios of probabilities, which sedd has: {method} predicts a mean")
    fits = MASKED[:3] if name == "semi-ar" else [method] if name in ("ancestral", "psi", *OWN["sedd"]) else MASKED
    if method not in fits:
        raise BadInput(f"--sampler {name} chooses among the masks of {' or '.join(fits)}: {method} has others")
    if tail in ("greedy", "self-correct") and method in MASKED:
        raise BadInput(f"--tail {tail} proofreads text, which masks leave alone: try --tail gibbs, or --sampler psi")
    if name != "semi-ar" and (cache, threshold, factor) != ("none", 0, 0):
        raise BadInput("--cache, --threshold and --factor go with --sampler semi-ar")
    if threshold and factor:
        raise BadInput("--threshold and --factor are two rules for one choice: give one of them")
    if name != "ancestral" and grid != "uniform":
        raise BadInput("--grid goes with --sampler ancestral")
    options = {"ancestral": dict(grid=grid), "psi": dict(schedule=kappa, eta=eta),
               "semi-ar": dict(block=decode_block, cache=cache, threshold=threshold, factor=factor, last=last)}
    name = "analytic" if (name, method) == ("ancestral", "sedd") else name       # (3), in the words of scores
    walk = partial(SAMPLERS[name], **options.get(name, {}))
    more = dict(rounds=rounds or ROUNDS[tail]) if tail in ROUNDS else {}
    return partial(TAILS[tail], walk=walk, **more) if TAILS[tail] else walk
