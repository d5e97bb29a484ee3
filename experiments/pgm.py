"""
Chapter 9. Claim: PGM samples at least 5 times as fast as MDLM (arXiv:2505.18883). Which MDLM?

    python -m experiments.pgm speed                            some minutes on one core
    python -m experiments.pgm speed --lengths 256,1024,4096 --batches 1,8,32 --rounds 5
    python -m experiments.pgm speed --device cuda --dtype bfloat16 --n_layer 12 --n_head 12 \\
        --n_embd 768 --steps 128

Three samplers of one forward process, in the same number of steps, through networks of the same
width and depth with random weights (speed does not depend on the weights):

    plain   mdlm, dense (lean in dense_reference.py): at every step the head, a float64 softmax and
            a Gumbel race at all positions
    ours    mdlm: choose first which masks open, then run head and draw there (select, then score)
    pgm     the same choice; tokens that do not exist yet are not encoded, and only the positions
            that are drawn are decoded

A step of pgm costs more as the text grows, so it is timed at a few moments, evenly spaced over the
run. Each round times all samplers at all moments in turns; ratios are taken within a round, and the
median of the rounds is printed with the least and the most. Time is CPU time (divide by threads),
or seconds on a GPU. The cost of the plain sampler is proportional to its rows, so it is timed for
few of them and multiplied (marked ~).

Whether the models are equally good is measured by
python -m experiments.learning toy --methods mdlm,pgm
"""
import statistics
import time
from dataclasses import dataclass

import torch

from diffusion import reverse_step
from experiments.command import run_experiment
from experiments.dense_reference import lean_masked_step
from experiments.timing import format_ratio, hardware, parse_numbers
from flags import UserError, flag
from methods.mdlm import MDLM
from methods.pgm import PGM
from model import Transformer
from runtime.device import device_of, keep_memory
from runtime.start import check_heads
from samplers.generate import CallCounter
from samplers.unmasking import FirstHitting

PLAIN_POSITIONS, ROWS = 2048, 512  # of the plain sampler: timed at most, and computed at a time


@dataclass
class Config:
    command: str = flag("speed", "what to measure; also the first word", ["speed"])
    lengths: str = flag("256,1024", "tokens per text, with commas between", each=int,
                        least=1)
    batches: str = flag("1,8", "texts at once, with commas between", each=int, least=1)
    steps: int = flag(32, "steps from noise to text", least=1)
    order: str = flag("first-hitting", "the same number of tokens at each step, or a Binomial one",
                      ["first-hitting", "ancestral"])
    vocab_size: int = flag(50257, "symbols, without the mask", least=2)
    n_layer: int = flag(6, "blocks", least=1)
    n_head: int = flag(6, "attention heads", least=1)
    n_embd: int = flag(384, "width of mdlm", least=2)
    pgm_embd: int = flag(0, "width of pgm, with heads of the same size; 0 means the same width",
                         least=0)
    decoder_share: float = flag(0.5, "pgm: share of the blocks that decode", least=0, most=1)
    moments: int = flag(3, "moments of the run at which a step is timed", least=1)
    rounds: int = flag(3, "rounds", least=1)
    device: str = flag("cpu", "cpu, cuda, cuda:1")
    dtype: str = flag("float32", "of matrix products", ["float32", "bfloat16"])
    seed: int = flag(1337, "of all random draws", least=0, most=10**9)


def our_step(process, network, z, i, config):
    """Step i of ours and of pgm. -> (B, L)"""
    frozen = torch.zeros_like(z, dtype=torch.bool)  # (B, L)
    if config.order == "first-hitting":
        return next(FirstHitting()(process, network, z, frozen, config.steps - i))
    s, t = (torch.full((len(z), 1), 1 - k / config.steps, dtype=torch.float64, device=z.device)
            for k in (i + 1, i))  # (B, 1) each
    return reverse_step(process, network, z, frozen, s, t)  # (B, L)


def random_networks(config, device):
    """{"mdlm", "pgm": network}, with random heads."""
    torch.manual_seed(config.seed)
    width = config.pgm_embd or config.n_embd
    common = dict(n_layer=config.n_layer, cond_dim=0, qk_norm=True)
    pgm = PGM(config.vocab_size, decoder_share=config.decoder_share)
    mdlm = Transformer(pgm.vocab_size, n_head=config.n_head, n_embd=config.n_embd, **common)
    heads = config.n_head * width // config.n_embd
    networks = {"mdlm": mdlm,
                "pgm": pgm.network(pgm.vocab_size, n_head=heads, n_embd=width, **common)}
    for network in networks.values():
        torch.nn.init.normal_(network.head.weight, std=0.02)
    return {name: network.to(device).eval() for name, network in networks.items()}


def state_after(process, B, L, i, steps, device):
    """A text after i of the steps: a share of i / steps of it exists. -> (B, L)"""
    rank = torch.rand(B, L, device=device).argsort(-1)  # (B, L)
    text = torch.randint(process.n_tokens, (B, L), device=device)  # (B, L)
    return torch.where(rank < round(L * i / steps), text, process.mask)  # (B, L)


def autocast_seconds(config, device, do):
    """Seconds of do(): CPU time, or on a GPU wall time."""
    gpu = device.type == "cuda"

    def now():
        if gpu:
            torch.cuda.synchronize()
        return time.perf_counter() if gpu else time.process_time()

    began = now()
    with torch.autocast(device.type, torch.bfloat16, enabled=config.dtype == "bfloat16"):
        do()
    return now() - began


def measure_samplers(config, networks, B, L, device):
    """{sampler: [seconds of a whole run, one per round]}, {sampler: head positions per run}"""
    process, few = MDLM(config.vocab_size).process, max(1, min(B, PLAIN_POSITIONS // L))
    moments = [int((k + 0.5) * config.steps / config.moments) for k in range(config.moments)]
    states = {i: state_after(process, B, L, i, config.steps, device) for i in moments}
    counted = {"ours": CallCounter(networks["mdlm"]), "pgm": CallCounter(networks["pgm"])}

    def one_round():
        z, t = states[moments[0]][:few], 1 - moments[0] / config.steps  # (few, L)
        s = t - 1 / config.steps
        plain = lambda: lean_masked_step(process, networks["mdlm"], z, s, t, ROWS)
        seconds = {"plain": B / few * autocast_seconds(config, device, plain)}
        for name, network in counted.items():
            seconds[name] = statistics.mean(
                autocast_seconds(config, device,
                                 lambda: our_step(process, network, states[i], i, config))
                for i in moments)
        return {name: value * config.steps for name, value in seconds.items()}

    one_round()  # the first one touches fresh memory
    for network in counted.values():
        network.positions = 0
    rounds = [one_round() for _ in range(config.rounds)]
    positions = {name: network.positions / config.rounds / config.moments * config.steps
                 for name, network in counted.items()}
    seconds = {name: [r[name] for r in rounds] for name in rounds[0]}
    return seconds, {"plain": B * L * config.steps, **positions}


@torch.no_grad()
def main(config, given=()):
    keep_memory()
    device = device_of(config.device)
    lengths, batches = parse_numbers(config.lengths), parse_numbers(config.batches)
    if min(lengths) < config.steps:
        raise UserError(f"--steps {config.steps} is too many for {min(lengths)} tokens: each step "
                        f"must open at least one")
    check_heads(config.n_embd, config.n_head)
    if config.pgm_embd % (config.n_embd // config.n_head):
        raise UserError(f"--pgm_embd {config.pgm_embd} must be a multiple of the "
                        f"{config.n_embd // config.n_head} features of a head of mdlm")
    networks = random_networks(config, device)
    print(f"{hardware(device)}, {config.device}, {config.dtype}; {config.steps} steps, "
          f"{config.order}, {config.vocab_size:,} symbols")
    for name, network in networks.items():
        print(f"{name:<5} {config.n_layer} blocks, {network.embed.shape[1]} wide, "
              f"{sum(p.numel() for p in network.parameters()):,} parameters")
    print(f"\n{'tokens x texts':<16}{'sampler':<8}{'s/run':>10}{'tokens/s':>10}"
          f"{'head positions':>16}    times pgm's")
    for L in lengths:
        for B in batches:
            seconds, positions = measure_samplers(config, networks, B, L, device)
            for name, runs in seconds.items():
                run = statistics.median(runs)
                mark = "~" if name == "plain" and B * L > PLAIN_POSITIONS and B > 1 else ""
                ratio = "" if name == "pgm" else format_ratio(runs, seconds["pgm"])
                print(f"{f'{L} x {B}':<16}{name:<8}{mark + f'{run:.2f}':>10}{B * L / run:>10.0f}"
                      f"{positions[name]:>16,.0f}    {ratio}", flush=True)


if __name__ == "__main__":
    run_experiment(Config, main)
