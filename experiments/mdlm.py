"""
Chapter 3. Masks: what caching saves, what it costs or gains to mask words again, and whether
complementary masks vary less.

    python -m experiments.mdlm calls     network calls of the ancestral steps under masks, counted;
                                         no network is needed
    python -m experiments.mdlm samplers  all samplers on one mdlm and one gidd of the toy language:
                                         exact -log p of their samples, and the entropy of the words
                                         within a text
    python -m experiments.mdlm complement    variance of the loss and of its gradient with (3.9) and
                                         with other uses of as many network calls, through the exact
                                         denoiser and a network of the toy language

calls: RADD (arXiv:2406.03736) keeps the network's output while no mask opens, and counts
N (1 - (1 - 1/N)^(B L)) calls for B texts of L tokens in N equal steps. diffusion.reverse_step calls
the network only where something moves, so it makes as many calls. A text of the batch in which
nothing moves is not read (model.py), so that each text costs what it would cost alone.
"""
from dataclasses import dataclass

import torch

from data import load_data
from evaluation.sample_quality import unigram_entropy
from experiments.command import choose_command, run_experiment
from experiments.timing import hardware, parse_numbers
from experiments.training import TOY, train_model
from flags import flag
from methods import make_method
from samplers import make_sampler
from samplers.generate import CallCounter, generate


@dataclass
class Config:
    command: str = flag("", "what to measure; also the first word", ["calls", "samplers",
                                                                         "complement"])
    length: int = flag(64, "calls: tokens per text", least=1)
    steps: str = flag("", "with commas between; empty means 16,64,256,1024,4096 for calls, "
                      "8,16,32,128 for samplers", each=int, least=1)
    num_samples: int = flag(256, "samplers: texts", least=2)
    batches: int = flag(400, "complement: batches that a variance is measured from", least=2)
    share: float = flag(1.0, "samplers, complement: share of the full number of training steps",
                        least=0.0001, most=100)
    out_dir: str = flag("out/experiments-mdlm", "where the checkpoints go")


def count_calls(config):
    """With constant logits: what the network outputs does not change how often it is called."""
    method, L = make_method("radd", 5), config.length
    flat = lambda z, t, at: torch.zeros(int(at.sum()), 6)
    columns = "".join(f"{f'batch {B}: calls':>18}{'formula':>10}{'read':>8}" for B in (1, 16))
    print(f"texts of {L} tokens: network calls, their expected number, and texts read per text of "
          f"the batch\n{'steps':>6}{columns}")
    for N in parse_numbers(config.steps or "16,64,256,1024,4096"):
        cells = []
        for B in (1, 16):
            torch.manual_seed(0)
            spy, runs = CallCounter(flat), 8
            for _ in range(runs):
                generate(method, spy, B, L, N)
            expected = N * (1 - (1 - 1 / N) ** (B * L))
            cells.append(f"{spy.calls / runs:>18.1f}{expected:>10.1f}{spy.texts / runs / B:>8.1f}")
        print(f"{N:>6}" + "".join(cells), flush=True)


SAMPLERS = {  # method -> name -> options of make_sampler
    "mdlm": {"ancestral": {}, "ancestral, cosine grid": dict(grid="cosine"),
             "first-hitting": dict(name="first-hitting"), "confidence": dict(name="confidence"),
             "top-k": dict(name="top-k"),
             "semi-ar, blocks of 8": dict(name="semi-ar", decode_block=8),
             "ReMDM cap": dict(name="psi"),
             "ReMDM rescale": dict(name="psi", kappa="rescale", eta=0.015),
             "ReMDM conf": dict(name="remdm-conf"), "ReMDM loop": dict(name="psi", kappa="loop"),
             "ancestral, then gibbs": dict(corrector="gibbs")},
    "gidd": {"ancestral": {}, "psi cap": dict(name="psi"),
             "ancestral, then self-correct": dict(corrector="self-correct"),
             "ancestral, then greedy": dict(corrector="greedy"),
             "ancestral, then gibbs": dict(corrector="gibbs")},
}


def compare_samplers(config):
    data = load_data("toy", 32)
    entropy, _ = data.language.entropy(32)
    varied = unigram_entropy(data.windows("val", 4000)).mean()  # ()
    print(f"{hardware()}\n-log p of {config.num_samples} texts above the entropy of "
          f"{entropy:.3f}, nats/token (errors .02 to .06); entropy of the words within a text "
          f"(held-out text: {varied:.3f}); network calls")
    all_steps = parse_numbers(config.steps or "8,16,32,128")
    for name, rows in SAMPLERS.items():
        model, *_ = train_model(f"{config.out_dir}/{name}", config.share, method=name, **TOY)
        print(f"{name:<30}" + "".join(f"{f'{steps} steps':>24}" for steps in all_steps))
        for what, options in rows.items():
            sampler = make_sampler(**{"name": "ancestral", "method": model.method, **options})
            cells = []
            for steps in all_steps:
                torch.manual_seed(1)
                spy = CallCounter(model.denoiser)
                x = generate(model.method, spy, config.num_samples, 32, steps, sampler)  # (n, 32)
                above = (-data.language.log_prob(x) / 32).mean() - entropy
                figures = f"{above:.2f}  {unigram_entropy(x).mean():.2f}  {spy.calls:>4}"
                cells.append(f"{figures:>24}")
            print(f"  {what:<28}" + "".join(cells), flush=True)


# ---- complementary masks

CALLS = 64  # texts that the network reads in a batch
PAIRS = {"64 texts, one draw each": None, "32 texts, two draws": "independent",
         "32 texts, two draws at times t and 1 - t": "antithetic",
         "32 texts, complementary masks": "complementary"}
LOSSES = {"simple": ("mdlm", {}), "bound, any order": ("bd3lm", dict(weighting="bound"))}


def batch_loss(pair, single, paired, denoiser, x):
    """The mean loss of a batch of as many network calls as x (CALLS, L) has texts. -> ()

    Times of a batch are stratified in its order, which so decides how those of a text differ.
    """
    half = x[:len(x) // 2][torch.randperm(len(x) // 2)]  # (CALLS / 2, L)
    if pair == "complementary":
        return paired.loss(denoiser, half).mean()
    rows = {None: x, "independent": torch.cat([half, half]),
            "antithetic": torch.cat([half, half.flip(0)])}[pair]  # (CALLS, L)
    rows = rows if pair == "antithetic" else rows[torch.randperm(len(rows))]  # (CALLS, L)
    return single.loss(denoiser, rows).mean()


def variances(draw, batches, parameters):
    """The variance of draw() -> (), the loss of a batch; then that of its gradient, summed over the
    parameters, if there are any. -> a list of one or two numbers"""
    losses, total, squares = [], 0.0, 0.0
    for _ in range(batches):
        loss = draw()
        losses.append(loss.detach().double())
        if parameters:
            gradient = torch.autograd.grad(loss, parameters)
            gradient = torch.cat([g.flatten() for g in gradient]).double()  # (P,)
            total, squares = total + gradient, squares + gradient.square()  # (P,) each
    of_losses = torch.stack(losses).var().item()
    if not parameters:
        return [of_losses]
    spread = squares / batches - (total / batches).square()  # (P,)
    return [of_losses, spread.sum().item() * batches / (batches - 1)]


def compare_pairs(config):
    data, L = load_data("toy", 32), 32
    model, *_ = train_model(f"{config.out_dir}/complement", config.share, method="mdlm", **TOY)
    weights = [p.requires_grad_() for p in model.denoiser.parameters()]
    fixed = data.examples("train", CALLS, torch.Generator().manual_seed(1))[0]  # (CALLS, L)
    batch = {"same": lambda: fixed, "any": lambda: data.examples("train", CALLS)[0]}
    print(f"{hardware()}\nvariance of the loss of a batch, and of its gradient, relative to the "
          f"first row: {CALLS} texts read by the network.\nFrom {config.batches} batches each, so "
          f"a ratio of losses is off by {2 / config.batches**0.5:.0%}, one standard error\n"
          f"{'':<44}{'exact denoiser':>22}{'network':>22}{'its gradient':>22}\n{'':<44}"
          + f"{'same texts':>11}{'any texts':>11}" * 3)
    for loss, (name, flags) in LOSSES.items():
        single, paired = (make_method(name, data.encoding.n_vocab, diffusion_block=L,
                                      complement=both, **flags) for both in (False, True))
        exact, first = single.oracle(data.language), None
        print(loss)
        for what, pair in PAIRS.items():
            row = []
            for denoiser, parameters in ((exact, []), (model.denoiser, weights)):
                torch.manual_seed(0)
                draws = (lambda: batch_loss(pair, single, paired, denoiser, batch["same"]()),
                         lambda: batch_loss(pair, single, paired, denoiser, batch["any"]()))
                found = [variances(draw, config.batches, parameters) for draw in draws]
                row += [variance for of in zip(*found) for variance in of]
            first = first or row
            print(f"  {what:<42}" + "".join(f"{a / b:>11.2f}" for a, b in zip(row, first)),
                  flush=True)


def main(config, given=()):
    choose_command(config, {"calls": count_calls, "samplers": compare_samplers,
                            "complement": compare_pairs})(config)


if __name__ == "__main__":
    run_experiment(Config, main)
