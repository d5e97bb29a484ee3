"""
Chapter 21. Texts that end: the law of lengths of several methods, and gaps of an unknown number of
words, on sentences of the toy language, where all of it is known exactly.

    python -m experiments.lengths law                       flexmdm, ilm, mdlm and ar, trained
    python -m experiments.lengths law --seeds 3             means over runs, errors (12.4)
    python -m experiments.lengths infill                    by the same runs, or --exact denoisers
    python -m experiments.lengths grids                     equal steps, or short ones last
    python -m experiments.lengths tau                       a public sampler's missing factor

law     how far the bound is above the exact -log p, nats a text, and samples: total variation of
        their lengths from the exact law, mean length, share of the grammar, exact -log p
infill  of a held-out sentence the first, the middle and the last word are given. The gaps have any
        number of words (flexmdm, ilm), or mdlm is told how many: as many as there were, or one more
        in each
grids   samples of the exact denoiser of flexmdm in a few steps, on both grids: all that is wrong
        with them comes from the steps
tau     the share of tokens that are still masks before the last step, if Poisson(masks/N) of them
        open in each of N steps, where (21.8) opens each with probability 1/(steps that are left)
"""
from dataclasses import dataclass, replace
from types import SimpleNamespace

import torch

from data import load_data
from evaluation.errors import mean_error, mean_over_seeds, with_error
from evaluation.likelihood import nats_of
from experiments.command import choose_command, run_experiment
from experiments.timing import hardware
from experiments.training import train_or_load
from flags import flag
from methods import make_method
from samplers import make_sampler
from samplers.generate import generate

RECIPE = dict(data="sentences", block_size=20, n_layer=3, n_embd=96, batch_size=64, max_iters=900,
              warmup_iters=100, learning_rate=0.01, muon_lr=0.01, ema=0.99)
OPEN, TOLD = ("flexmdm", "ilm"), "mdlm"
GRIDS = 8, 16, 32, 64  # steps


@dataclass
class Config:
    command: str = flag("", "law, infill, grids or tau", ["", "law", "infill", "grids", "tau"])
    methods: str = flag("flexmdm,ilm,mdlm,ar", "methods, with commas between", each=str)
    exact: bool = flag(False, "exact denoisers in place of trained networks")
    seeds: int = flag(1, "runs of each method, whose seeds are 1, 2, ..", least=1)
    share: float = flag(1.0, "of the training steps", least=0.001, most=1)
    texts: int = flag(500, "held-out texts, and samples", least=10)
    steps: int = flag(64, "steps of flexmdm", least=1)
    out_dir: str = flag("out/lengths", "folder of the runs")


def models_of(config, name, data):
    """A model for each seed, or the exact one."""
    if config.exact:
        method = make_method(name, data.encoding.n_vocab)
        method.on_data(data)
        return [SimpleNamespace(method=method, denoiser=method.oracle(data.language))]
    return [train_or_load(config, f"sentences-{name}-{seed}", method=name, seed=seed, **RECIPE)
            for seed in range(1, config.seeds + 1)]


def write(config, model, n, given=None, frozen=None, **flags):
    """n texts, or around given tokens (n, L). One mask at a time opens in mdlm. flags: of the
    sampler -> (n, L)"""
    method, L = model.method, RECIPE["block_size"]
    name = "first-hitting" if method.opens_masks else method.first_choice
    steps = config.steps if method.any_length else L
    torch.manual_seed(1)
    parts = [generate(method, model.denoiser, min(200, n - lo), L, steps,
                      make_sampler(name, method, **flags),
                      given=None if given is None else given[lo:lo + 200],
                      frozen=None if given is None else frozen[lo:lo + 200])
             for lo in range(0, n, 200)]
    return torch.cat(parts)  # (n, L)


def figures_of(data, x):
    """Of texts x (n, L): words, share of the grammar, share of a possible length, exact -log p of
    these. -> [(mean, error)]"""
    nats = -data.language.log_prob(x)  # (n,)
    possible = nats.isfinite()  # (n,)
    rows = [values for _, values in data.score(x)]  # (n,) each
    return [mean_error(a, True) for a in (*rows, possible.double(), nats[possible])]


def print_row(name, seeds):
    """A line: means over runs. seeds: for each run a list of (mean, error)"""
    cells = [with_error(*mean_over_seeds(*zip(*column)), ".3f") for column in zip(*seeds)]
    print(f"{name:<28}" + "".join(f"{cell:>18}" for cell in cells), flush=True)


def law(config):
    data = load_data("sentences", RECIPE["block_size"])
    x = data.windows("val", config.texts)  # (n, L)
    exact = -data.language.log_prob(x)  # (n,)
    heads = "above -log p|lengths off by|words|in grammar|possible|-log p of these".split("|")
    print(f"{'':<28}" + "".join(f"{head:>18}" for head in heads))
    for name in config.methods.split(","):
        rows = []
        for model in models_of(config, name, data):
            draws = 1 if model.method.exact else 8
            nats, _ = nats_of(model.method, model.denoiser, x, draws)  # (n,)
            drawn = write(config, model, config.texts)  # (n, L)
            (_, far, error), = data.score_set(drawn)
            rows.append([mean_error(nats - exact, True), (far, error), *figures_of(data, drawn)])
        print_row(name, rows)
    (_, far, error), = data.score_set(x)
    print_row("held-out sentences", [[(0.0, 0.0), (far, error), *figures_of(data, x)]])


def prompts_of(data, x, more=0):
    """The first, the middle and the last word of sentences x (n, L), with gaps between them that
    are `more` words longer than in x. -> given, frozen (n, L)"""
    given = torch.full_like(x, data.end)  # (n, L)
    frozen = torch.ones_like(x, dtype=torch.bool)  # (n, L)
    for row, n, ids, fixed in zip(x, data.lengths(x).tolist(), given, frozen):
        places = [0, n // 2 + more, n - 1 + 2 * more]
        ids[places] = row[[0, n // 2, n - 1]]
        fixed[:places[-1]] = False
        fixed[places] = True
    return given, frozen


def open_gaps(data, x):
    """The same with a single place in each gap: as many words as fit. -> given, frozen (n, L)"""
    n, place = data.lengths(x)[:, None], torch.arange(x.shape[1])  # (n, 1), (L,)
    kept = x.gather(1, torch.cat([torch.zeros_like(n), n // 2, n - 1], 1))  # (n, 3)
    given = torch.full_like(x, data.end)  # (n, L)
    given[:, 0:5:2] = kept
    frozen = ((place != 1) & (place != 3)).expand_as(x)  # (n, L)
    return given, frozen


def infill(config):
    data = load_data("sentences", RECIPE["block_size"])
    x = data.windows("val", config.texts)  # (n, L)
    x = x[data.lengths(x) <= RECIPE["block_size"] - 2]  # (n', L) with room for two words more
    heads = "words|in grammar|possible|-log p of these".split("|")
    print(f"{'':<28}" + "".join(f"{head:>18}" for head in heads))
    ways = {name: [(name, open_gaps(data, x))] for name in OPEN}
    ways[TOLD] = [(f"{TOLD}, told how many", prompts_of(data, x)),
                  (f"{TOLD}, told one more each", prompts_of(data, x, 1))]
    for name in (name for name in config.methods.split(",") if name in ways):
        models = models_of(config, name, data)
        for what, prompt in ways[name]:
            print_row(what, [figures_of(data, write(config, model, len(x), *prompt))
                             for model in models])
    print_row("the sentences themselves", [figures_of(data, x)])


def grids(config):
    data = load_data("sentences", RECIPE["block_size"])
    model, = models_of(replace(config, exact=True), "flexmdm", data)
    heads = "lengths off by|words|in grammar|possible|-log p of these".split("|")
    print(f"{'':<28}" + "".join(f"{head:>18}" for head in heads))
    for steps in GRIDS:
        for spacing in ("equal", "quadratic"):
            x = write(replace(config, steps=steps), model, config.texts, spacing=spacing)  # (n, L)
            (_, far, error), = data.score_set(x)
            print_row(f"{steps} steps, {spacing}", [[(far, error), *figures_of(data, x)]])


def left_masked(steps, with_factor):
    """The share of tokens that are masks before the last of N steps, exactly: each is inserted in
    one of the steps, all equally likely, and may open in later ones."""
    total = 0.0
    for inserted in range(1, steps):
        stays = 1.0
        for i in range(inserted, steps - 1):
            stays *= 1 - (1 / (steps - i) if with_factor else 1 / steps)
        total += stays / (steps - 1)
    return total


def tau(config):
    print(f"{'steps':>6}{'Poisson(masks/N)':>20}{'(21.8)':>10}")
    for steps in (64, 256, 1024):
        print(f"{steps:>6}{left_masked(steps, False):>20.3f}{left_masked(steps, True):>10.3f}")


def main(config, given=()):
    print(hardware())
    commands = {"law": law, "infill": infill, "grids": grids, "tau": tau}
    choose_command(config, commands)(config)


if __name__ == "__main__":
    run_experiment(Config, main)
