"""
Chapters 13, 14, 17. Values of a method's flags, or methods, trained alike: which learns more?

    python -m experiments.variants ggm           words, or bits, (17.2), as published
    python -m experiments.variants dfm           from random words: two heads, two bounds of each
    python -m experiments.variants ggm --seeds 3 --share 0.2 --length 8
    python -m experiments.variants embeddings --seconds 24 --length 16 --texts 512 --seeds 3
    python -m experiments.variants evidence --seconds 24 --length 16 --texts 512 --seeds 3
    python -m experiments.variants embeddings --runs mdlm,plaid --seconds 100 --length 16

All train as in `python -m experiments.learning toy`, on the toy language. Printed is the distance
to the entropy: the mean of the bound less the exact -log p, text by text, which varies far less
than the bound does. Then the differences to the first row, and how many times its distance others
are away. With --seconds, all train for as many CPU seconds; their first steps say how many. With
--num_samples, last comes the exact -log p of samples in 32 network calls less the entropy; text of
few words can be below 0.
"""
from dataclasses import dataclass, replace
from types import SimpleNamespace

import torch

from data import load_data
from evaluation.errors import mean_over_seeds, pooled_rate, with_error
from experiments import training
from experiments.command import choose_command, chosen_names, run_experiment
from experiments.learning import (
    Trained,
    draws_of,
    print_differences,
    print_means,
    score_texts,
    steps_in,
)
from experiments.training import train_model
from flags import flag
from samplers.generate import generate

CALLS = 32  # for a sample
WORDS = dict(method="dfm", source="uniform")
REVERSAL = [dict(bound="reversal")]
SMALL = dict(n_layer=3, n_embd=96, warmup_iters=20)
NOISE = ["cdcd", "diffusion_lm", "difformer", "sed"]
EVIDENCE = ["mdlm", "udlm", "duo", "bfn", "tess", "ssd_lm", "rdlm"]


def small(**flags):
    """A run of SMALL size, evaluated once."""
    return dict(SMALL, **flags), []


RUNS = {  # {command: {run: its flags, and the flags that another evaluation of it has}}
    "ggm": {"words": (dict(method="ggm", objective="ce"), []),
            "bits": (dict(method="ggm", objective="bce"), [])},
    "embeddings": {
        **{name: small(method=name) for name in ["mdlm", "ar", "plaid"]},
        "one call": small(method="plaid", self_condition=0.0),
        **{name: small(method=name) for name in NOISE},
        "narrow": small(method="plaid", self_condition=0.0, trained_scale=0.3),
        "rows": small(method="plaid", reads="rows"),
        "more noise": small(method="plaid", trained_at=1.5, trained_scale=1.5),
        "both": small(method="plaid", reads="rows", trained_at=1.5, trained_scale=1.5)},
    "clocks": {
        "common": (dict(SMALL, method="plaid", self_condition=0.0),
                   [dict(token_clock=clock) for clock in ("arc", "line", "any")]),
        **{clock: small(method="plaid", self_condition=0.0, token_clock=clock)
           for clock in ("arc", "line", "adaptive")}},
    "evidence": {
        **{name: small(method=name) for name in EVIDENCE},
        "tess with (14.7)": small(method="tess", skip=True, self_condition=0.0),
        "dfm": small(method="dfm"),
        "dfm words": (dict(SMALL, **WORDS), REVERSAL),
        "dfm others": (dict(SMALL, **WORDS, head="others"), REVERSAL),
        "gkl": (dict(SMALL, **WORDS, head="others", objective="gkl"), REVERSAL)},
    "dfm": {"udlm": (dict(method="udlm"), []),
            "posterior": (WORDS, REVERSAL),
            "others": (dict(WORDS, head="others"), REVERSAL),
            "others with gkl": (dict(WORDS, head="others", objective="gkl"), REVERSAL)},
}


@dataclass
class Config:
    command: str = flag("", "whose flags; also the first word", [*RUNS])
    seeds: int = flag(1, "runs of each, with seeds 1, 2, ...", least=1)
    share: float = flag(1.0, "share of the full number of steps", least=0.0001, most=100)
    runs: str = flag("", "with commas between; empty means all")
    seconds: float = flag(0.0, "CPU seconds of training of each, in place of a share", least=0)
    length: int = flag(32, "words of a text", least=2)
    texts: int = flag(4000, "held-out texts", least=2)
    num_samples: int = flag(0, "samples of each run", least=0)
    out_dir: str = flag("out/variants", "where the checkpoints go")
    hardware: str = flag("", "the name of the machine, if it cannot be detected", text=True)


def main(config, given=()):
    runs = choose_command(config, RUNS)
    data, rows, samples = load_data("toy", config.length), [], []
    x = data.windows("val", config.texts)  # (n, L)
    exact, recipe = -data.language.log_prob(x) / config.length, dict(training.TWO_MINUTES)  # (n,)
    recipe.update(block_size=config.length)
    runs = {name: runs[name] for name in chosen_names(config, "runs", runs)}
    for seed in range(1, config.seeds + 1):
        for name, (flags, others) in runs.items():
            out_dir = f"{config.out_dir}/{config.command}-{name.replace(', ', '-')}-{seed}"
            flags, share = {"data": "toy", **recipe, **flags}, config.share
            if config.seconds:
                share, flags["max_iters"] = 1.0, steps_in(config.seconds, **flags)
                print(f"{name}: {flags['max_iters']} steps", flush=True)
            model, *minutes = train_model(out_dir, share, seed=seed, **flags)
            if config.num_samples:
                nats = sample_nats(config, model, data.language, seed)  # (n,)
                samples.append(Trained(f"samples of {name}", nats, *minutes))
            for later in ({}, *others):
                method = replace(model.method, **later)
                method.load_extra_state(model.method.extra_state())
                scored = SimpleNamespace(method=method, denoiser=model.denoiser)
                nats = score_texts(scored, x, draws_of(method), 256) - exact  # (n,)
                what = " with ".join([name, *(f"{key} {value}" for key, value in later.items())])
                rows.append(Trained(what, nats, *minutes))
    lines = print_means(rows, config.hardware, data.independent_texts)
    print_differences(lines, data.independent_texts)
    print_ratios(lines, data.independent_texts)
    if samples:
        print_means(samples, config.hardware, True)


def sample_nats(config, model, language, seed):
    """-log p of samples in 32 network calls, less the entropy. -> (n,) nats/word"""
    method, length = model.method, config.length
    steps = CALLS * (method.block_length or length) // length
    torch.manual_seed(seed)
    x = generate(method, model.denoiser, config.num_samples, length, max(1, steps))  # (n, L)
    return -language.log_prob(x) / length - language.entropy(length)[0]  # (n,)


def print_ratios(lines, independent):
    """How many times as far as the first line each one is from the entropy, seed by seed."""
    first, *others = lines
    for what in others:
        ratios = [pooled_rate(a, b, independent) for a, b in zip(lines[what], lines[first])]
        print(f"{what}: {with_error(*mean_over_seeds(*zip(*ratios)), '.2f')} times as far as "
              f"{first}")


if __name__ == "__main__":
    run_experiment(Config, main)
