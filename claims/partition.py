"""
Claim: PGM samples at least 5 times as fast as MDLM (arXiv:2505.18883). As fast as which MDLM?

    python -m claims.partition speed                                          some minutes on one core
    python -m claims.partition speed --lengths 256,1024,4096 --batches 1,8,32 --rounds 5
    python -m claims.partition speed --device cuda --dtype bfloat16 --n_layer 12 --n_head 12 --n_embd 768 --steps 128

Three samplers of the same forward process, in equally many steps, through networks of the same width and depth with
random weights (speed does not depend on what they say):

    plain   mdlm, dense (lean in plain.py): at every step head, float64 softmax and Gumbel race at all positions
    ours    mdlm of masked.py: first choose which masks open, then run head and draw there ("select, then score")
    pgm     partition.py: the same choice; tokens that do not exist are not encoded, positions not drawn not decoded

A step of pgm gets dearer while the text grows, so it is timed at a few moments spread evenly over the run. One round
times all samplers at all moments in turn; ratios are taken within a round, and the median of the rounds is printed
with the smallest and the largest. Times are CPU time (divide by threads), or seconds on a GPU. The plain sampler's
cost is that of its rows: it is timed on few, and multiplied (marked ~).

That the models are equally good is another question: python bench.py toy --methods mdlm,pgm
"""
import sys
from dataclasses import dataclass

from flags import flag, one_line_errors, parse


@dataclass
class Config:
    command: str = flag("speed", "what to measure; also the first word of the command line", ["speed"])
    lengths: str = flag("256,1024", "tokens per text, with commas between")
    batches: str = flag("1,8", "texts at once, with commas between")
    steps: int = flag(32, "steps from nothing to text", least=1)
    order: str = flag("first-hitting", "equally many tokens at each step, or a Binomial number",
                      choices=["first-hitting", "ancestral"])
    vocab_size: int = flag(50257, "symbols, without the mask", least=2)
    n_layer: int = flag(6, "blocks", least=1)
    n_head: int = flag(6, "attention heads", least=1)
    n_embd: int = flag(384, "width of mdlm", least=2)
    pgm_embd: int = flag(0, "width of pgm, with heads of the same size; 0 means the same width", least=0)
    decoder_share: float = flag(0.5, "pgm: share of the blocks that decode", least=0, most=1)
    moments: int = flag(3, "moments of the run at which a step is timed", least=1)
    rounds: int = flag(3, "rounds", least=1)
    device: str = flag("cpu", "cpu, cuda, cuda:1")
    dtype: str = flag("float32", "of matrix products", choices=["float32", "bfloat16"])
    seed: int = flag(1337, "of all draws", least=0, most=10**9)


if __name__ == "__main__":
    words = sys.argv[1:] if sys.argv[1:2] == [] or sys.argv[1].startswith("-") else ["--command", *sys.argv[1:]]
    CONFIG, GIVEN = parse(Config, words)

import statistics  # noqa: E402
import time

import torch

from checkpoint import device_of, keep_memory
from data import BadInput
from diffusion import step
from masked import MDLM, first_hitting
from measure import hardware, numbers
from model import Transformer
from partition import PGM
from plain import lean_masked_step as plain_step
from sample import Counted

PLAIN_POSITIONS, ROWS = 2048, 512                        # of the plain sampler: timed at most, and at once


def our_step(process, network, z, i, config):
    """Step i of ours and of pgm: the samplers of the chapters, stopped after one. -> (B, L)"""
    nothing = torch.zeros_like(z, dtype=torch.bool)                                                 # (B, L)
    if config.order == "first-hitting":
        return next(first_hitting(process, network, z, nothing, config.steps - i))
    s, t = (torch.full((len(z), 1), 1 - k / config.steps, dtype=torch.float64, device=z.device) for k in (i + 1, i))
    return step(process, network, z, nothing, s, t)                                                 # (B, L)


def networks(config, device):
    """mdlm's and pgm's, with random weights. -> {name: network}, whose heads are not at zero"""
    torch.manual_seed(config.seed)
    width = config.pgm_embd or config.n_embd
    common = dict(n_layer=config.n_layer, cond_dim=0, qk_norm=True)
    pgm = PGM(config.vocab_size, decoder_share=config.decoder_share)
    made = {"mdlm": Transformer(pgm.vocab_size, n_head=config.n_head, n_embd=config.n_embd, **common),
            "pgm": pgm.network(pgm.vocab_size, n_head=config.n_head * width // config.n_embd, n_embd=width, **common)}
    for network in made.values():
        torch.nn.init.normal_(network.head.weight, std=0.02)
    return {name: network.to(device).eval() for name, network in made.items()}


def state(process, B, L, i, steps, device):
    """The text after i of the steps: a share of i / steps of it exists. -> (B, L)"""
    rank = torch.rand(B, L, device=device).argsort(-1)                                              # (B, L)
    text = torch.randint(process.n_tokens, (B, L), device=device)                                   # (B, L)
    return torch.where(rank < round(L * i / steps), text, process.mask)                             # (B, L)


def timed(config, device, do):
    """Seconds that do() takes: CPU time, or on a GPU time on the clock."""
    gpu = device.type == "cuda"

    def now():
        if gpu:
            torch.cuda.synchronize()
        return time.perf_counter() if gpu else time.process_time()

    began = now()
    with torch.autocast(device.type, torch.bfloat16, enabled=config.dtype == "bfloat16"):
        do()
    return now() - began


def measure(config, made, B, L, device):
    """Seconds of a whole run in every round, {sampler: [seconds]}; head positions per run, {sampler: number}."""
    process, few = MDLM(config.vocab_size).process, max(1, min(B, PLAIN_POSITIONS // L))
    moments = [int((k + 0.5) * config.steps / config.moments) for k in range(config.moments)]
    states = {i: state(process, B, L, i, config.steps, device) for i in moments}
    counted = {"ours": Counted(made["mdlm"]), "pgm": Counted(made["pgm"])}

    def once():
        z, t = states[moments[0]][:few], 1 - moments[0] / config.steps                              # (few, L)
        plain = lambda: plain_step(process, made["mdlm"], z, t - 1 / config.steps, t, ROWS)
        run = {"plain": B / few * timed(config, device, plain)}
        for name, network in counted.items():
            run[name] = statistics.mean(timed(config, device, lambda: our_step(process, network, states[i], i, config))
                                        for i in moments)
        return {name: seconds * config.steps for name, seconds in run.items()}

    once()                                               # warm: the first touches fresh memory
    for network in counted.values():
        network.positions = 0
    rounds = [once() for _ in range(config.rounds)]
    scored = {name: network.positions / config.rounds / config.moments * config.steps
              for name, network in counted.items()}
    return {name: [r[name] for r in rounds] for name in rounds[0]}, {"plain": B * L * config.steps, **scored}


def ratio(slow, fast):
    """Paired, 'median (least to most)'."""
    pairs = sorted(a / b for a, b in zip(slow, fast))
    return f"{statistics.median(pairs):.2f} ({pairs[0]:.2f} to {pairs[-1]:.2f})"


@torch.no_grad()
def speed(config):
    device = device_of(config.device)
    lengths, batches = (numbers(name, getattr(config, name)) for name in ("lengths", "batches"))
    if min(lengths) < config.steps:
        raise BadInput(f"--steps {config.steps} for {min(lengths)} tokens: a step must open one at least")
    made = networks(config, device)
    print(f"{hardware(device)}, {config.device}, {config.dtype}; {config.steps} steps, {config.order}, "
          f"{config.vocab_size:,} symbols")
    for name, network in made.items():
        print(f"{name:<5} {config.n_layer} blocks, {network.embed.shape[1]} wide, "
              f"{sum(p.numel() for p in network.parameters()):,} parameters")
    print(f"\n{'tokens x texts':<16}{'sampler':<8}{'s/run':>10}{'tokens/s':>10}{'head positions':>16}    times pgm's")
    for L in lengths:
        for B in batches:
            seconds, positions = measure(config, made, B, L, device)
            for name, runs in seconds.items():
                run = statistics.median(runs)
                mark = "~" if name == "plain" and B * L > PLAIN_POSITIONS and B > 1 else ""
                gain = "" if name == "pgm" else ratio(runs, seconds["pgm"])
                print(f"{f'{L} x {B}':<16}{name:<8}{mark + f'{run:.2f}':>10}{B * L / run:>10.0f}"
                      f"{positions[name]:>16,.0f}    {gain}", flush=True)


if __name__ == "__main__":
    with one_line_errors():
        keep_memory()
        speed(CONFIG)
