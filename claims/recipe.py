"""
The default recipe against the plain one: how much less CPU time for an equal bound on held-out text?

    python -m claims.recipe names               each change alone, then all together, one seed
    python -m claims.recipe python --seeds 3
    python -m claims.recipe names --share 0.25  a quick look, a quarter of the steps
    python -m claims.recipe names --only plain,all          these rows alone

Plain is what public code does: AdamW, adaptive norms that are told the time, times drawn one by one, the bound's own
weight 1/t, no warm-up. It gets the best of three learning rates and a cosine to zero over its whole run, and its last
bound is what the others are to reach. They get half of its time each, on a schedule of that length, since a bound in
the middle of a schedule flatters nobody; all changes together get less and less.

Time is counted as steps times the CPU seconds of a step, the least of rounds in which all recipes take turns: on a
machine that others use as well, which can only add to it, the seconds of a whole run would say more of them.
"""
import sys
from dataclasses import dataclass

from flags import flag, one_line_errors, parse


@dataclass
class Config:
    data: str = flag("", "names, python, or a text file; also the first word")
    seeds: int = flag(1, "runs of each row, with seeds 1, 2, ...", least=1)
    steps: int = flag(2000, "steps of the plain recipe", least=20)
    share: float = flag(1.0, "share of these steps, for a quick look", least=0.01, most=100)
    only: str = flag("", "rows to run, with commas between; empty: all")
    target: float = flag(0.0, "the bound to reach, where it is known; 0: train the plain recipe first", least=0)
    rounds: int = flag(9, "rounds in which the steps are timed", least=1)


if __name__ == "__main__":
    words = sys.argv[1:] if sys.argv[1:2] == [] or sys.argv[1].startswith("-") else ["--data", *sys.argv[1:]]
    CONFIG, GIVEN = parse(Config, words)

import time  # noqa: E402
from functools import partial

import torch

import train
from bench import SIZE, hardware
from checkpoint import keep_memory
from data import BadInput
from data.text import load
from diffusion import stratified
from bounds import estimate
from learner import Learner
from masked import MDLM, masked_bound
from methods import METHODS


class Recipe(MDLM):
    """mdlm with the choices of this page.

    told     the network is told the time
    even     times are stratified, not drawn one by one
    simple   plain cross-entropy at times of density 2 (1 - t), not the bound's 1/t
    pairs    each text is read twice, at t and 1 - t with opposite masks; half as many texts
    """

    def __init__(self, n_tokens, told=True, even=False, simple=False, pairs=False):
        super().__init__(n_tokens)
        self.uses_time, self.even, self.simple, self.pairs = told, even, simple, pairs

    def loss(self, denoiser, x, frozen=None):
        x = x[:len(x) // 2] if self.pairs else x                                                        # (B, L)
        t = stratified(len(x), x.device) if self.even else torch.rand(len(x), 1).clamp(1e-3, 1 - 1e-3)  # (B, 1)
        u = torch.rand(x.shape, device=x.device)                                                        # (B, L)
        if self.pairs:
            x, t, u = torch.cat([x, x]), torch.cat([t, 1 - t]), torch.cat([u, 1 - u])                   # (2B, L), ..
        t = 1 - (1 - t).sqrt() if self.simple else t                                                    # (B, 1)
        z = torch.where(u < self.process.alpha(t), x, self.process.mask)                                # (B, L)
        ce = self.cross_entropy(denoiser, x, z, t)                                                      # (B, L)
        return 3 * ce if self.simple else masked_bound(self.process, ce, z, t)                          # (B, L)


RATES = 1e-3, 2e-3, 4e-3                                     # that plain may choose from
PLAIN = dict(optimizer="adamw", learning_rate=1e-3, beta2=0.999, qk_norm=False, warmup_iters=0)
MUON = dict(optimizer="muon", muon_lr=0.02, learning_rate=3e-3)
ALL = dict(optimizer="muon", muon_lr=0.01, learning_rate=0.01, qk_norm=True, warmup_iters=0.05)
BEST = dict(told=False, even=True, simple=True)
CHANGES = {                                                  # name -> flags of train.py, choices of Recipe
    "muon": (MUON, {}),
    "not told the time": ({}, dict(told=False)),
    "stratified times": ({}, dict(even=True)),
    "plain cross-entropy": ({}, dict(simple=True)),
    "opposite masks": ({}, dict(pairs=True)),
    "warm-up": (dict(warmup_iters=0.05), {}),
    "norms of q and k": (dict(qk_norm=True), {}),
    "2 layers of 184": (dict(n_layer=2, n_embd=184), {}),
    "8 layers of 88": (dict(n_layer=8, n_embd=88), {}),
    "medium precision": (dict(matmul_precision="medium"), {}),
    "bfloat16": (dict(dtype="bfloat16"), {}),
}
SAME_STEPS = {"plain's steps in medium precision": CHANGES["medium precision"],      # what rounding does to the bound
              "plain's steps in bfloat16": CHANGES["bfloat16"]}
TOGETHER = {"all": (ALL, BEST),
            "all in medium precision": ({**ALL, "matmul_precision": "medium"}, BEST),
            "all in bfloat16": ({**ALL, "dtype": "bfloat16"}, BEST),
            "all but told the time": (ALL, {**BEST, "told": True}),
            "all but weighted 1/t": (ALL, {**BEST, "simple": False}),
            "all with opposite masks": (ALL, {**BEST, "pairs": True}),
            "all in 2 layers of 184": ({**ALL, "n_layer": 2, "n_embd": 184}, BEST)}


def learner(corpus, flags, choices, steps, seed):
    METHODS["recipe"] = partial(Recipe, **choices)
    flags = {**PLAIN, **flags}
    flags["warmup_iters"] = round(flags["warmup_iters"] * steps)
    return Learner(train.Config(**{**SIZE, "method": "recipe", "batch_size": 24, "max_iters": steps, "seed": seed,
                                   "dtype": "float32", "device": "cpu", **flags}), corpus, torch.device("cpu"))


def seconds_per_step(corpus, recipes, rounds):
    """The least of rounds, all recipes in turn. -> {name: CPU seconds}"""
    learners = {name: learner(corpus, *recipe, 1000, 1) for name, recipe in recipes.items()}
    taken = {name: [] for name in recipes}
    for n in range(rounds + 1):                              # the first one touches fresh memory
        for name, each in learners.items():
            torch.set_float32_matmul_precision(each.config.matmul_precision)
            began = time.process_time()
            each.step(2 * n)
            each.step(2 * n + 1)
            taken[name].append((time.process_time() - began) / 2)
    return {name: min(values) for name, values in taken.items()}


def reached(corpus, x, recipe, steps, seed):
    """The bound after so many steps -> nats/token, standard error"""
    each = learner(corpus, *recipe, steps, seed)
    torch.set_float32_matmul_precision(each.config.matmul_precision)
    for step in range(steps):
        each.step(step)
    return estimate(each.method, each.average, x, 4)


def main(config):
    if not config.data:
        raise BadInput("say on what: python -m claims.recipe names, or python, or a text file")
    keep_memory()
    corpus = load(config.data, 64, "chars")
    x, full = corpus.windows("val", 1000), max(2, round(config.steps * config.share))                   # (n, 64)
    recipes = {"plain": ({}, {}), **CHANGES, **SAME_STEPS, **TOGETHER}
    wanted = [name for name in config.only.split(",") if name] or list(recipes)
    if unknown := set(wanted) - set(recipes):
        raise BadInput(f"--only {', '.join(unknown)} is none of: {', '.join(recipes)}")
    print(f"{hardware()}\n{corpus.about}\n{full} plain steps of 24 texts of 64 tokens, 4 layers of 128, float32\n")
    seconds = seconds_per_step(corpus, {name: recipes[name] for name in {"plain": 0, **dict.fromkeys(wanted)}},
                               config.rounds)
    print(f"{'':<40}{'ms a step':>10}{'steps':>7}{'time':>7}{'bound, nats/token':>20}{'above plain':>13}", flush=True)

    def row(name, recipe, share, seed):
        steps = max(1, round(full * share * seconds["plain"] / seconds[name]))
        bound, error = reached(corpus, x, recipe, steps, seed)
        return bound, f"{f'{name}, seed {seed}':<40}{1000 * seconds[name]:>10.1f}{steps:>7}{share:>7.3f}" \
                      f"{f'{bound:.3f} +- {error:.3f}':>20}"

    for seed in range(1, config.seeds + 1):
        tries = [(config.target, "", PLAIN["learning_rate"])] if config.target else []
        for lr in () if config.target else RATES:
            tries.append((*row("plain", (dict(learning_rate=lr), {}), 1.0, seed), lr))
            print(f"{tries[-1][1]}    learning rate {lr}", flush=True)
        target, _, lr = min(tries)
        for name in wanted:
            flags, choices = recipes[name]
            same = seconds[name] / seconds["plain"]          # the share of its time in which it takes as many steps
            for share in (1 / 2, 1 / 4) if name in TOGETHER else (same,) if name in SAME_STEPS else (1 / 2,):
                bound, line = row(name, ({"learning_rate": lr, **flags}, choices), share, seed)
                print(f"{line}{bound - target:>+13.3f}", flush=True)


if __name__ == "__main__":
    with one_line_errors():
        main(CONFIG)
