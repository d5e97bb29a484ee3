"""
Chapter 18. Claims about adaptation (DiffuGPT, arXiv:2410.17891), in small: is masked diffusion that
starts from an AR network ahead of masked diffusion from scratch, and does it fill in middles?

    python -m experiments.adaptation                    names, in letters
    python -m experiments.adaptation --data python --tokenizer bpe --minutes 3

Each seed trains ar for --minutes of CPU time, then goes on for as long, in several ways, each from
the same ar network or from scratch. One more model from scratch has twice the time, as much as
both halves of an adapted one. Two figures for each, on the same held-out texts:

    text     nats/token of whole texts: exact for ar, else the bound
    middle   --gap tokens in the middle of a text are left out, and all others are given: -log p of
             those tokens (exact, or a bound), and the share that greedy decoding gets right. ar
             reads what is on the left alone: the right side would take a sum over all fillings

`+-` covers the choice of texts, the noise and the seeds (12.4). Below the table the models are
compared text by text.
"""
import time
from dataclasses import dataclass
from functools import partial

import torch

from data import load_data
from diffusion import probabilities
from evaluation.errors import mean_error, mean_over_seeds, with_error
from evaluation.likelihood import nats_of
from experiments.command import run_experiment
from experiments.learning import draws_of, print_differences, steps_in
from experiments.timing import hardware
from experiments.training import make_trainer
from flags import flag
from runtime.device import keep_memory
from samplers import make_sampler
from samplers.generate import generate
from train import train_step

AR, SCRATCH = "ar", "mdlm from scratch"
WAYS = {  # name: method, does it start from ar, its share of --minutes, flags
    SCRATCH: ("mdlm", False, 1, {}),
    AR: ("ar", False, 1, {}),
    "diffugpt from ar": ("diffugpt", True, 1, dict(anneal=0.3)),
    "diffugpt from ar at once": ("diffugpt", True, 1, dict(anneal=0.0)),
    "mdlm from scratch in twice the time": ("mdlm", False, 2, {}),
}

SIZE = dict(n_layer=2, n_embd=64, block_size=64)  # small, so that minutes are enough


@dataclass
class Config:
    data: str = flag("names", "names, python, or a text file")
    tokenizer: str = flag("chars", "of train.py: chars, bpe")
    minutes: float = flag(0.5, "CPU minutes of ar, and then of each of the others", least=0.001)
    seeds: int = flag(3, "runs of each, with seeds 1, 2, ...", least=1)
    texts: int = flag(1000, "held-out texts at most", least=2)
    gap: int = flag(4, "tokens that are left out of the middle of a text", least=1)


def middle_of(x, gap):
    """What is given: all but `gap` tokens in the middle. x (n, L) -> (n, L) bool"""
    place, first = torch.arange(x.shape[1]), (x.shape[1] - gap) // 2  # (L,)
    return ((place < first) | (place >= first + gap)).expand(x.shape)  # (n, L)


def share_right(method, denoiser, x, frozen):
    """The share of the left-out tokens that greedy decoding, one by one, gets right. -> (n,)"""
    steps = int((~frozen[0]).sum())
    sampler = make_sampler("confidence" if method.opens_masks else "ancestral", method)
    greedy, right = partial(probabilities, temperature=0.0), []
    for part, given in zip(x.split(100), frozen.split(100)):
        z = generate(method, denoiser, len(part), x.shape[1], steps, sampler, greedy,
                     given=part, frozen=given)  # (b, L)
        right.append(((z == part) & ~given).sum(-1) / (~given).sum(-1))  # (b,)
    return torch.cat(right).double()  # (n,)


def trained(config, data, name, seed, steps, ar):
    """The Trainer of a row of WAYS after as many steps as fit its time. ar: that of ar, if any"""
    method, from_ar, share, flags = WAYS[name]
    n = max(1, round(share * steps[method]))
    trainer = make_trainer(data, method=method, seed=seed, data=config.data, max_iters=n,
                           tokenizer=config.tokenizer, warmup_iters=min(100, n // 4), **SIZE,
                           **flags)
    trainer.method.on_start(None)
    if from_ar:
        theirs, fresh = ar.average.state_dict(), trainer.average.state_dict()
        trainer.start_from(trainer.method.weights_from(ar.method, theirs, fresh))
    for step in range(n):
        train_step(trainer, step)
    return trainer


@torch.no_grad()
def figures_of(trainer, x, given):
    """-> nats/token of the texts, of their middles, and the share of middles right, (n,) each"""
    method, denoiser = trainer.method, trainer.average
    draws = draws_of(method)
    per_token = [nats / scored for nats, scored in (
        nats_of(method, denoiser, x, draws), nats_of(method, denoiser, x, draws, frozen=given))]
    return (*per_token, share_right(method, denoiser, x, given))  # (n,) each


def main(config, given=()):
    print(f"{hardware()}; {config.minutes:g} CPU minutes for ar, then for each", flush=True)
    data, steps = load_data(config.data, SIZE["block_size"], config.tokenizer), {}
    for method in dict.fromkeys(method for method, *_ in WAYS.values()):
        keep_memory()
        steps[method] = steps_in(60 * config.minutes, method, data=config.data,
                                 tokenizer=config.tokenizer, **SIZE)
    x, rows = data.windows("val", config.texts), {name: [] for name in WAYS}  # (n, L)
    for seed in range(1, config.seeds + 1):
        ar = None
        for name in sorted(WAYS, key=lambda name: name != AR):  # the others start from it
            began = time.process_time()
            trainer = trained(config, data, name, seed, steps, ar)
            ar, minutes = ar or trainer, (time.process_time() - began) / 60
            rows[name].append(figures_of(trainer, x, middle_of(x, config.gap)))
            found = ", ".join(f"{values.mean():.3f}" for values in rows[name][-1])
            print(f"seed {seed}: {name}, {trainer.config.max_iters} steps, {minutes:.2f} CPU min: "
                  f"{found}", flush=True)
    print(f"{data.about}\n{'':<44}{'text, nats/token':>18}{'middle, nats/token':>20}"
          f"{'middle, right':>18}")
    for name, runs in rows.items():
        cells = []
        for values in zip(*runs):  # those of all seeds, (n,) each
            pairs = [mean_error(a, data.independent_texts) for a in values]
            cells.append(with_error(*mean_over_seeds(*zip(*pairs))))
        print(f"{name:<44}{cells[0]:>18}{cells[1]:>20}{cells[2]:>18}")
    for i, what in enumerate(("text", "middle, nats/token", "middle, right")):
        print(what)
        print_differences({name: [run[i] for run in runs] for name, runs in rows.items()},
                          data.independent_texts)


if __name__ == "__main__":
    run_experiment(Config, main)
