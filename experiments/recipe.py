"""
The default recipe against the plain one: how much less CPU time for the same held-out bound?

    python -m experiments.recipe names          each change alone, then all together, one seed
    python -m experiments.recipe python --seeds 3
    python -m experiments.recipe names --share 0.25         a quick look, a quarter of the steps
    python -m experiments.recipe names --only plain,all     these rows only

Plain is the recipe of public code: AdamW, adaptive norms that read the time, times drawn one by
one, the bound's own weight 1/t, no warm-up. It gets the best of three learning rates and a cosine
to zero over its whole run, and its last bound is what the others have to reach. They get half of
its time each, with a schedule of that length, since a bound in the middle of a schedule looks worse
than it is; all changes together get less and less.

Time is steps times the CPU seconds of a step, the least of several rounds in which all recipes take
turns. Other programs on the machine can only add to the time, so this disturbs it less than timing
whole runs.
"""
import time
from dataclasses import dataclass

import torch

from data import load_data
from diffusion import stratified
from evaluation.likelihood import estimate_bound
from experiments.command import chosen_names, run_experiment
from experiments.timing import hardware
from experiments.training import NANOGPT, make_trainer
from flags import UserError, flag
from methods.mdlm import MDLM, masked_bound
from runtime.device import keep_memory
from train import train_step


@dataclass
class Config:
    data: str = flag("", "names, python, or a text file; also the first word")
    seeds: int = flag(1, "runs of each row, with seeds 1, 2, ...", least=1)
    steps: int = flag(2000, "steps of the plain recipe", least=20)
    share: float = flag(1.0, "share of these steps, for a quick look", least=0.01, most=100)
    only: str = flag("", "rows to run, with commas between; empty means all", each=str)
    target: float = flag(0.0, "the bound to reach, if it is known; 0 trains the plain recipe first",
                         least=0)
    rounds: int = flag(9, "rounds in which the steps are timed", least=1)


class Recipe(MDLM):
    """mdlm with the choices of this page.

    timed    the network reads the time
    even     times are stratified, not drawn one by one
    simple   plain cross-entropy at times of density 2 (1 - t) in place of the bound's 1/t
    pairs    each text is read twice, at t and 1 - t with opposite masks; half as many texts
    """

    def __init__(self, n_tokens, timed=True, even=False, simple=False, pairs=False):
        super().__init__(n_tokens)
        self.uses_time, self.even, self.simple, self.pairs = timed, even, simple, pairs

    def loss(self, denoiser, x, frozen=None):
        x = x[:len(x) // 2] if self.pairs else x  # (B, L)
        if self.even:
            t = stratified(len(x), x.device)  # (B, 1)
        else:
            t = torch.rand(len(x), 1).clamp(1e-3, 1 - 1e-3)  # (B, 1)
        u = torch.rand(x.shape, device=x.device)  # (B, L)
        if self.pairs:
            x, t, u = torch.cat([x, x]), torch.cat([t, 1 - t]), torch.cat([u, 1 - u])  # (2B, L), ..
        t = 1 - (1 - t).sqrt() if self.simple else t  # (B, 1)
        z = torch.where(u < self.process.alpha(t), x, self.process.mask)  # (B, L)
        ce = self.cross_entropy(denoiser, x, z, t)  # (B, L)
        return 3 * ce if self.simple else masked_bound(self.process, ce, z, t)  # (B, L)


RATES = 1e-3, 2e-3, 4e-3  # learning rates that plain may choose from
PLAIN = dict(optimizer="adamw", learning_rate=1e-3, beta2=0.999, qk_norm=False, warmup_iters=0)
MUON = dict(optimizer="muon", muon_lr=0.02, learning_rate=3e-3)
ALL = dict(optimizer="muon", muon_lr=0.01, learning_rate=0.01, qk_norm=True, warmup_iters=0.05)
BEST = dict(timed=False, even=True, simple=True)
CHANGES = {  # name -> flags of train.py, choices of Recipe
    "muon": (MUON, {}),
    "without the time": ({}, dict(timed=False)),
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
SAME_STEPS = {  # the effect of rounding on the bound
    "plain's steps in medium precision": CHANGES["medium precision"],
    "plain's steps in bfloat16": CHANGES["bfloat16"],
}
TOGETHER = {
    "all": (ALL, BEST),
    "all in medium precision": ({**ALL, "matmul_precision": "medium"}, BEST),
    "all in bfloat16": ({**ALL, "dtype": "bfloat16"}, BEST),
    "all but with the time": (ALL, {**BEST, "timed": True}),
    "all but weighted 1/t": (ALL, {**BEST, "simple": False}),
    "all with opposite masks": (ALL, {**BEST, "pairs": True}),
    "all in 2 layers of 184": ({**ALL, "n_layer": 2, "n_embd": 184}, BEST),
}
RECIPES = {"plain": ({}, {}), **CHANGES, **SAME_STEPS, **TOGETHER}


def recipe_trainer(data, flags, choices, steps, seed):
    """A Trainer that follows a recipe."""
    flags = {**NANOGPT, "batch_size": 24, "dtype": "float32", "device": "cpu", **PLAIN, **flags}
    flags["warmup_iters"] = round(flags["warmup_iters"] * steps)
    method = Recipe(data.encoding.n_vocab, **choices)
    return make_trainer(data, method, max_iters=steps, seed=seed, **flags)


def seconds_per_step(data, recipes, rounds):
    """The least of the rounds, all recipes in turns. -> {name: CPU seconds}"""
    trainers = {name: recipe_trainer(data, *recipe, 1000, 1) for name, recipe in recipes.items()}
    taken = {name: [] for name in recipes}
    for n in range(rounds + 1):  # the first one touches fresh memory
        for name, trainer in trainers.items():
            torch.set_float32_matmul_precision(trainer.config.matmul_precision)
            began = time.process_time()
            train_step(trainer, 2 * n)
            train_step(trainer, 2 * n + 1)
            taken[name].append((time.process_time() - began) / 2)
    return {name: min(values) for name, values in taken.items()}


def bound_after(data, x, recipe, steps, seed):
    """The bound after so many steps. -> nats/token, standard error"""
    trainer = recipe_trainer(data, *recipe, steps, seed)
    torch.set_float32_matmul_precision(trainer.config.matmul_precision)
    for step in range(steps):
        train_step(trainer, step)
    return estimate_bound(trainer.method, trainer.average, x, 4,
                          independent=data.independent_texts)


def main(config, given=()):
    if not config.data:
        raise UserError("give a text: python -m experiments.recipe names, or python, or a file")
    wanted = chosen_names(config, "only", RECIPES)
    keep_memory()
    data = load_data(config.data, 64, "chars")
    x, full = data.windows("val", 1000), max(2, round(config.steps * config.share))  # (n, 64)
    print(f"{hardware()}\n{data.about}\n{full} plain steps of 24 texts of 64 tokens, 4 layers of "
          f"128, float32\n")
    seconds = seconds_per_step(data, {name: RECIPES[name] for name in ["plain", *wanted]},
                               config.rounds)
    print(f"{'':<40}{'ms a step':>10}{'steps':>7}{'time':>7}{'bound, nats/token':>20}"
          f"{'above plain':>13}", flush=True)

    def run(name, recipe, share, seed):
        steps = max(1, round(full * share * seconds["plain"] / seconds[name]))
        bound, error = bound_after(data, x, recipe, steps, seed)
        return bound, (f"{f'{name}, seed {seed}':<40}{1000 * seconds[name]:>10.1f}{steps:>7}"
                       f"{share:>7.3f}{f'{bound:.3f} +- {error:.3f}':>20}")

    for seed in range(1, config.seeds + 1):
        tries = [(config.target, "", PLAIN["learning_rate"])] if config.target else []
        for lr in () if config.target else RATES:
            tries.append((*run("plain", (dict(learning_rate=lr), {}), 1.0, seed), lr))
            print(f"{tries[-1][1]}    learning rate {lr}", flush=True)
        target, _, lr = min(tries)
        for name in wanted:
            flags, choices = RECIPES[name]
            same = seconds[name] / seconds["plain"]  # the share of time for the same steps
            shares = (0.5, 0.25) if name in TOGETHER else (same if name in SAME_STEPS else 0.5,)
            for share in shares:
                bound, line = run(name, ({"learning_rate": lr, **flags}, choices), share, seed)
                print(f"{line}{bound - target:>+13.3f}", flush=True)


if __name__ == "__main__":
    run_experiment(Config, main, first="data")
