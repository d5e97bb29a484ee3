"""
The flags that say how to sample, the same in sample.py and evaluate.py: which walk, how sure, and towards what.

No torch here: --help answers at once.
"""
from dataclasses import dataclass, replace

from flags import flag, parse


@dataclass
class Sampling:
    out_dir: str = flag("out/python-mdlm", "folder of the checkpoint, or the file", chat="out/chat-mdlm-sft")
    init_from: str = flag("", "in place of --out_dir: a published model by its name, or a file or folder of one")
    oracle: str = flag("", "no checkpoint but the toy language's exact denoiser", [
        "", "ar", "mdlm", "md4", "genmd4", "radd", "bd3lm", "pgm", "udlm", "gidd", "duo", "sedd", "d3pm"])
    steps: int = flag(128, "steps from noise to text; bd3lm: per block; ar: one a token; d3pm: up to its own", least=1,
                      chat=64)
    sampler: str = flag("ancestral", "ancestral draws from the model, psi also corrects; others: masks, or sedd", [
        "ancestral", "psi", "first-hitting", "confidence", "semi-ar", "remdm-conf", "top-k", "analytic", "euler"],
        chat="semi-ar")
    decode_block: int = flag(32, "semi-ar: tokens that are opened before the next ones", least=1, chat=8)
    cache: str = flag("none", "semi-ar: old keys and values to go on with", choices=["none", "prefix", "dual"])
    threshold: float = flag(0.0, "semi-ar: open all that is believed this much; 0 follows --steps, and so does a "
                            "chat that is given them", least=0, most=1, chat=0.9)
    factor: float = flag(0.0, "semi-ar: open n if (n + 1) (1 - belief) is less; 0 follows --steps", least=0)
    eos_last: bool = flag(False, "semi-ar: the end of a text opens when no word is left to open")
    kappa: str = flag("cap", "psi: when to correct", choices=["constant", "cap", "rescale", "loop"])
    eta: float = flag(0.02, "psi: how much is noised again; 0 is ancestral", least=0, most=1)
    grid: str = flag("uniform", "ancestral: steps of equal length, or short ones first", ["uniform", "cosine"])
    tail: str = flag("draw", "greedy: the likeliest words last; gibbs, self-correct: redraw words of the whole text",
                     ["draw", "greedy", "gibbs", "self-correct"])
    rounds: int = flag(0, "gibbs, self-correct: words to redraw at most; 0: 32, self-correct 128", least=0)
    temperature: float = flag(1.0, "below 1 sharpens every prediction, 0 takes the likeliest token", least=0, most=100,
                              chat=0.0)
    top_p: float = flag(1.0, "draw from the likeliest tokens that hold this much probability", least=0.001, most=1)
    label: str = flag("", "the class to ask for, by name or number")
    guidance: float = flag(1.0, "towards the class, or the prompt: 0 not at all, 1 as in the data, more stronger",
                           least=0, most=100)
    classifier: str = flag("", "folder of a classifier that guides a model without labels; toy: exact is exact")
    classifier_order: str = flag("first", "ask it once a step, or for each change", choices=["first", "exact"])
    candidates: int = flag(200, "ar with a classifier: words that it rates at each place", least=1)
    compile: str = flag("", "torch.compile the network; reduce-overhead: CUDA graphs, for small batches", [
        "", "default", "reduce-overhead", "max-autotune"], alone="default")
    matmul_precision: str = flag("highest", "of float32 products; high, medium: TF32 on GPUs, TF32, bfloat16 on CPUs",
                                 choices=["highest", "high", "medium"])
    device: str = flag("auto", "auto, cpu, cuda, cuda:1")
    seed: int = flag(1337, "of all draws", least=0, most=10**9)


def parsed(cls, argv=None):
    """flags.parse, for flags that stand beside these. Where a chat is told another way to choose among masks, the
    threshold that is the default of chats gives way to it."""
    config, given = parse(cls, argv)
    other = config.sampler != "semi-ar" or {"steps", "factor"} & set(given)
    return replace(config, threshold=0.0) if config.chat and other and "threshold" not in given else config, given


def named(config):
    """The model that the flags name, in one word or two: its folder, its published name, or the oracle."""
    return f"oracle {config.oracle}" if config.oracle else str(config.init_from or config.out_dir)
