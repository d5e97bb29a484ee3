"""
Chapters 14 and 17. One method with several values of its flags, trained alike: which learns more?

    python -m experiments.variants ggm           words, or bits, (17.2), as published
    python -m experiments.variants dfm           from random words: two heads, two bounds of each
    python -m experiments.variants ggm --seeds 3 --share 0.2 --length 8

All train as in `python -m experiments.learning toy`, on the toy language; printed is how far their
bound is above its entropy, and the differences to the first row, text by text.
"""
from dataclasses import dataclass, replace
from types import SimpleNamespace

from data import load_data
from experiments import training
from experiments.command import choose_command, run_experiment
from experiments.learning import Trained, draws_of, print_differences, print_means, score_texts
from experiments.training import train_model
from flags import flag

WORDS = dict(method="dfm", source="uniform")
RUNS = {  # {command: {run: its flags, and the flags that another evaluation of it has}}
    "ggm": {"words": (dict(method="ggm", objective="ce"), []),
            "bits": (dict(method="ggm", objective="bce"), [])},
    "dfm": {"udlm": (dict(method="udlm"), []),
            "posterior": (WORDS, [dict(bound="reversal")]),
            "others": (dict(WORDS, head="others"), [dict(bound="reversal")]),
            "others, gkl": (dict(WORDS, head="others", objective="gkl"), [dict(bound="reversal")])},
}


@dataclass
class Config:
    command: str = flag("", "whose flags; also the first word", [*RUNS])
    seeds: int = flag(1, "runs of each, with seeds 1, 2, ...", least=1)
    share: float = flag(1.0, "share of the full number of steps", least=0.0001, most=100)
    length: int = flag(32, "words of a text", least=2)
    texts: int = flag(4000, "held-out texts", least=2)
    out_dir: str = flag("out/variants", "where the checkpoints go")
    hardware: str = flag("", "the name of the machine, if it cannot be detected", text=True)


def main(config, given=()):
    runs = choose_command(config, RUNS)
    data, rows = load_data("toy", config.length), []
    x = data.windows("val", config.texts)  # (n, L)
    entropy, recipe = data.language.entropy(config.length), dict(training.TWO_MINUTES)
    recipe.update(block_size=config.length)
    for seed in range(1, config.seeds + 1):
        for name, (flags, others) in runs.items():
            out_dir = f"{config.out_dir}/{config.command}-{name.replace(', ', '-')}-{seed}"
            model, *minutes = train_model(out_dir, config.share, seed=seed, data="toy", **flags,
                                          **recipe)
            for later in ({}, *others):
                method = replace(model.method, **later)
                method.load_extra_state(model.method.extra_state())
                scored = SimpleNamespace(method=method, denoiser=model.denoiser)
                nats = score_texts(scored, x, draws_of(method), 256)  # (n,)
                what = ", ".join([name, *(f"{key} {value}" for key, value in later.items())])
                rows.append(Trained(what, nats, *minutes))
    lines = print_means(rows, config.hardware, data.independent_texts, entropy)
    print_differences(lines, data.independent_texts)


if __name__ == "__main__":
    run_experiment(Config, main)
