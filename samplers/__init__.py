"""
Every sampler and corrector by name, and the flags that say how to sample.

A sampler is a dataclass whose fields are its flags (diffusion.Sampler). A row is "module:Class",
imported when it is chosen. A corrector lets a sampler write a text, and then corrects it.
"""
from dataclasses import dataclass
from functools import partial

from data import DATASETS
from diffusion import probabilities
from flags import UserError, change, flag, flags_of, load_row
from methods import METHODS

SAMPLERS = {
    "ancestral": "diffusion:Ancestral",                      # steps of (0.3), for any process
    "psi": "samplers.psi:Psi",                               # steps of (7.3), for any process
    "redraw": "samplers.redraw:Redraw",                      # steps of (4.7): noise is drawn again
    "flow": "samplers.flow:Flow",                            # steps of (14.24): jumps to x alone
    "turns": "samplers.turns:Turns",                         # a time for each token

    "first-hitting": "samplers.unmasking:FirstHitting",      # which masks open: random ones
    "spread": "samplers.orders:Spread",                      # masks that lie far apart
    "entropy": "samplers.orders:Entropy",                    # the least entropies
    "margin": "samplers.orders:Margin",                      # the widest gaps to the second word
    "entropy-budget": "samplers.orders:EntropyBudget",       # as many as (24.3) allows
    "klass": "samplers.orders:Klass",                        # predictions that have settled
    "confidence": "samplers.unmasking:Confidence",           # the most confident ones
    "semi-ar": "samplers.semi_ar:SemiAR",                    # the same, block after block
    "thoughts": "samplers.thoughts:Thoughts",                # thought after thought
    "remdm-conf": "samplers.remasking:ReMDMConf",            # doubtful words are masked again
    "top-k": "samplers.remasking:TopK",                      # the most confident words stay
    "p2": "samplers.planners:P2",                            # those that the others call right
    "edit": "samplers.planners:Edit",                        # words above a threshold change
    "proseco": "samplers.planners:ProSeCo",                  # words are corrected between steps
    "ddpd": "samplers.planners:DDPD",                        # words that are probably noise change

    "analytic": "samplers.euler:Analytic",                   # steps of (6.4): (0.3) in ratios
    "euler": "samplers.euler:Euler",                         # steps of (6.5)

    "ddpm": "gaussian:DDPM",                                 # steps of (13.4), for embeddings
    "ddim": "samplers.ddim:DDIM",                            # steps of (13.5): no noise
    "2m": "samplers.ddim:TwoM",                              # the same, of second order: (15.8)
    "word-steps": "samplers.ddim:WordSteps",                 # steps of (13.6): towards a word

    "insertion": "samplers.insertion:Insertion",             # masks are inserted, and opened
    "bfn": "samplers.evidence:WordEvidence",                 # steps of (14.8): evidence of a word
    "sde": "samplers.evidence:MeanEvidence",                 # steps of (14.9): of the mean
    "ode": "samplers.evidence:StraightEvidence",             # steps of (14.10): no noise
    "renoise": "samplers.evidence:Renoise",                  # steps of (14.11): all noise anew
    "geodesic": "methods.sphere:Geodesic",                   # steps of (14.34), on a sphere

    "arpc": "samplers.ar_informed:ARPC",                     # words are checked from left to right
    "energy": "samplers.energy:EnergySampler",               # whole texts that an AR model prefers
    "unroll": "samplers.unroll:Unroll",                      # all words again, from p(x | z)
    "speculative": "samplers.speculative:Speculative",       # drafts that an AR model checks
    "burst": "samplers.burst:Burst",                         # drafts that sigma-GPT checks itself

    "best-of": "samplers.search:BestOf",                     # the best of several texts
    "path-integral": "samplers.search:PathIntegral",         # the best of several guesses, in steps
    "local": "samplers.search:Local",                        # words again, if the text gains by it
    "smc": "samplers.particles:SMC",                         # texts side by side, with weights
    "particle-gibbs": "samplers.particles:ParticleGibbs",    # the same, beside the last one
    "grammar": "samplers.constraints:Grammar",               # words given that the text parses

    "edit-beam": "samplers.edit_beam:EditBeam",              # the likeliest edits of a text
    "tree-edits": "samplers.tree_edits:TreeEdits",           # edits of trees, one or side by side
}
CORRECTORS = {
    "draw": "samplers.base:Draw",                            # the text stays as it was drawn
    "greedy": "samplers.correctors:Greedy",                  # the likeliest words, last
    "gibbs": "samplers.correctors:Gibbs",                    # words are drawn again, anywhere
    "self-correct": "samplers.correctors:SelfCorrect",       # the most confident new words
    "informed": "samplers.correctors:Informed",              # the most doubtful word, again
    "metropolis": "samplers.ar_informed:Metropolis",         # words that fit from left to right
}


@dataclass
class SamplingFlags:
    """Sampling (samplers/)."""
    out_dir: str = flag("out/python-mdlm", "folder of the checkpoint, or the file",
                        idle=["oracle", "init_from"], chat="out/chat-mdlm-sft")
    init_from: str = flag("", "instead of --out_dir: a published model, by its name or its files",
                          idle=["oracle"])
    oracle: str = flag("", "no checkpoint: the exact denoiser of the toy language under the noise "
                       "of this method",
                       table=METHODS)
    steps: int = flag(0, "steps from noise to text, or of each block for methods with blocks; 0: "
                      "as many as the sampler needs", least=0, chat=64)
    sampler: str = flag("", "how to go from noise to text; empty: spread for masks, else ancestral",
                        table=SAMPLERS, chat="semi-ar")
    corrector: str = flag("draw", "what to draw again at the end", table=CORRECTORS)
    temperature: float = flag(1.0, "below 1 sharpens predictions; 0: the likeliest token",
                              least=0, most=100, chat=0.0)
    top_p: float = flag(1.0, "draw from the likeliest tokens that hold this much probability",
                        least=0.001, most=1)
    label: str = flag("", "the class of the texts, by name or number", text=True)
    guidance: float = flag(1.0, "towards the class, or the prompt: 0 ignores it, 1 is as in the "
                           "data, more is stronger", least=0, most=100)
    classifier: str = flag("", "folder of a classifier that guides a model without labels; exact: "
                           "that of the toy language")
    classifier_order: str = flag("first", "exact: a call for each candidate; first: a call per "
                                 "step and its gradient", ["first", "exact"], needs=["classifier"])
    gradient: str = flag("noisy", "where noise is of real numbers: a classifier reads noisy "
                         "text, or clean text that is expected, or moves z (samplers/gradients.py)",
                         ["noisy", "clean", "control"], needs=["classifier"])
    gradient_steps: int = flag(1, "of --gradient clean and control, in each step", least=1,
                               most=1000, needs=["classifier"])
    candidates: int = flag(200, "guidance from left to right: words that the classifier rates",
                           least=1, needs=["classifier"])
    compile: str = flag("", "torch.compile the network; reduce-overhead: CUDA graphs, for small "
                        "batches", ["", "default", "reduce-overhead", "max-autotune"],
                        alone="default")
    matmul_precision: str = flag("highest", "of float32 products; high, medium: TF32 on GPUs, "
                                 "TF32 or bfloat16 on CPUs", ["highest", "high", "medium"])
    device: str = flag("auto", "auto, cpu, cuda, cuda:1")
    seed: int = flag(1337, "of all random draws", least=0, most=10**9)
    later = {"flags": "checkpoints.load:flags_later"}  # of the trained model: see flags.parse


def model_name(config):
    """What the flags call the model: its folder, its published name, or the oracle."""
    return f"oracle {config.oracle}" if config.oracle else str(config.init_from or config.out_dir)


def refusal(name, sampler, method):
    """Why a sampler cannot serve a method, as the end of a sentence; None if it can."""
    if method.samplers is not None and name not in method.samplers:
        return f"does not work with {method.name}, which takes steps of its own"
    return sampler.fits(method)


def samplers_for(method):
    """The names of the samplers that can serve a method."""
    return [name for name in SAMPLERS if not refusal(name, load_row(SAMPLERS, name)(), method)]


def make_sampler(name, method, corrector="draw", **options):
    """The sampler `name` for a method, with its flags and its corrector's; or UserError."""
    corrector_class, sampler_class = load_row(CORRECTORS, corrector), load_row(SAMPLERS, name)
    own = {key: options.pop(key) for key in flags_of(corrector_class) if key in options}
    for flags in ({}, options):  # first whether it fits the method at all
        sampler = sampler_class(**flags)
        if reason := refusal(name, sampler, method):
            others = samplers_for(method)
            advice = "" if name in others else f": take {' or '.join(others)}"
            raise UserError(f"--sampler {name} {reason}{advice}")
    last = corrector_class(**own)
    if reason := last.fits(method):
        raise UserError(f"--corrector {corrector} {reason}")
    return last.wrap(sampler)


def first_sampler(config, method, data=""):
    """The sampler where none is given. A classifier guides steps of (0.3) and no others."""
    wanted = load_row(DATASETS, data).first_choice if data else None
    if config.classifier:
        return "ancestral"
    fits = wanted and not refusal(wanted, load_row(SAMPLERS, wanted)(), method)
    return wanted if fits else method.first_choice


FEW_STEPS = 16  # so few cost little: a few gaps are filled one at a time, which loses nothing


def choose_sampler(config, model, frozen=None):
    """The flags with --sampler and --steps where they are not given. frozen (L,): given tokens"""
    method, L = model.method, model.config.block_size
    first = config.sampler or first_sampler(config, method, model.config.data)
    config = change(config, sampler=first)
    n = min(method.block_length or L, L if frozen is None else int((~frozen).sum()))  # at once
    words = load_row(SAMPLERS, config.sampler).words_per_step
    enough = max(-(-n // words), min(n, FEW_STEPS), 1) if words else 128
    return change(config, steps=config.steps or enough)


def sampler_of(config, model):
    """The sampler that the flags describe, for a model; UserError if it does not fit."""
    first = config.sampler or first_sampler(config, model.method, model.config.data)
    config = change(config, sampler=first)
    rows = load_row(SAMPLERS, config.sampler), load_row(CORRECTORS, config.corrector)
    options = {key: getattr(config, key) for row in rows for key in flags_of(row)}
    sampler = make_sampler(config.sampler, model.method, config.corrector, **options)
    sampler.prepare(model)
    return sampler


def to_probs_of(config):
    """From logits to the distribution that is drawn from, as the flags say."""
    return partial(probabilities, temperature=config.temperature, top_p=config.top_p)
