"""
Puzzles solved against time: from left to right, in any order, and the surest first (chapter 20).

    python -m experiments.reasoning                           Sudoku 4 x 4: ar, mdlm and mgdm
    python -m experiments.reasoning --data sudoku4,countdown3 --minutes 2 --seeds 3
    python -m experiments.reasoning --data sudoku9-in-place --methods mgdm --sizes 3x64,4x128

Every run has the same CPU time. Held-out puzzles are solved after an eighth, a quarter, a half and
all of it, greedily (temperature 0) and with averaged weights; before its end the learning rate has
not fallen yet. At the end, methods with masks solve the same puzzles again in other ways:

    easy first      the sampler of the data set: one cell a call, the surest first
    random order    one cell a call
    4 calls, 1 call the surest first, many cells a call

The time is that of training alone, drawing puzzles included. A method that writes from left to
right does not see clues that stand further right, so it is left out where the clues stand in place.
`+-` covers the choice of puzzles and the seeds (12.4).
"""
import time
from dataclasses import dataclass
from functools import partial

import torch

from data import load_data
from diffusion import probabilities
from evaluation.errors import mean_error, mean_over_seeds, with_error
from experiments.command import run_experiment
from experiments.scaling import shape_of
from experiments.timing import hardware
from experiments.training import make_trainer, method_names, save_results
from flags import UserError, flag
from methods import make_method
from runtime.device import keep_memory
from samplers import make_sampler
from samplers.generate import generate
from train import train_step

SHARES = 1 / 8, 1 / 4, 1 / 2, 1  # of the time, at which puzzles are solved
WARM_UP, TIMED = 3, 8  # steps before the time of a step is taken, and steps that it is taken of


@dataclass
class Config:
    data: str = flag("sudoku4,sudoku4-in-place", "puzzles, with commas between", each=str)
    methods: str = flag("ar,mdlm,mgdm", "with commas between", each=str)
    sizes: str = flag("", "blocks x width, as in 3x64,4x128; empty: that of each data set")
    rotary: bool = flag(False, "rotary positions alone, where a data set has learned places")
    minutes: float = flag(2.0, "CPU minutes of each run", least=0.001)
    seeds: int = flag(1, "runs of each, with seeds 1, 2, ...", least=1)
    questions: int = flag(500, "held-out puzzles", least=2, most=500)
    out_dir: str = flag("out/reasoning", "where the results are kept")


def puzzle(name):
    """The data set; UserError if it has no questions that a checker rates."""
    data = load_data(name, 0)
    if not data.prompted:
        raise UserError(f"{name} has no questions to solve: give puzzles, such as sudoku4")
    return data


def fits(data, method):
    """Whether the method sees the question before it answers."""
    _, frozen, _ = data.example_windows("val", 2)  # (2, L)
    in_front = bool((frozen == frozen.cumprod(-1).bool()).all())
    return in_front or not make_method(method, data.encoding.n_vocab).left_to_right


def trainer_of(name, data, method, size, seed, steps, rotary=False):
    """A Trainer with the flags of the data set. rotary: without learned places"""
    flags = {key: value for key, value in data.defaults.items()
             if key not in ("recipe_iters", "minutes")}
    flags |= {"learned_places": False} if rotary else {}
    warm_up = min(100, max(1, steps // 4))
    return make_trainer(data, **{**flags, **(shape_of(size) if size else {}), "data": name,
                                 "method": method, "seed": seed, "max_iters": steps,
                                 "warmup_iters": warm_up})


def steps_in(seconds, make):
    """How many steps of the trainer make(steps) fit into so many CPU seconds. -> at least 4"""
    trainer = make(100)
    for step in range(WARM_UP):
        train_step(trainer, step)
    began = time.process_time()
    for step in range(WARM_UP, WARM_UP + TIMED):
        train_step(trainer, step)
    return max(4, round(seconds * TIMED / (time.process_time() - began)))


def ways_of(data, method, calls):
    """How a method can answer: {what it is called: (sampler, calls)}. calls: one for each token"""
    if not method.opens_masks:
        return {"left to right": ("ancestral", calls)}
    first = data.first_choice
    return {"easy first": (first, calls), "random order": ("first-hitting", calls),
            "4 calls": (first, min(4, calls)), "1 call": (first, 1)}


@torch.no_grad()
def solved_by(trainer, x, frozen, sampler, calls):
    """Which puzzles are solved, greedily. -> (n,) 0 or 1"""
    method, greedy, right = trainer.method, partial(probabilities, temperature=0.0), []
    for part, given in zip(x.split(100), frozen.split(100)):
        z = generate(method, trainer.average, len(part), x.shape[1], calls,
                     make_sampler(sampler, method), greedy, given=part, frozen=given)  # (b, L)
        right.append(trainer.data.solved(z))
    return torch.cat(right).double()  # (n,)


def run_of(config, name, data, method, size, seed):
    """Train once. -> {way: [(minutes, solved (n,))]} and the millions of weights"""
    make = partial(trainer_of, name, data, method, size, seed, rotary=config.rotary)
    steps = steps_in(60 * config.minutes, make)
    trainer, step, minutes, points = make(steps), 0, 0.0, {}
    x, frozen, _ = data.example_windows("val", config.questions)  # (n, L) each
    ways = ways_of(data, trainer.method, int((~frozen).sum(-1).max()))
    trainer.method.on_start(None)
    for share in SHARES:
        began = time.process_time()
        for step in range(step, max(step + 1, round(share * steps))):
            train_step(trainer, step)
        step, minutes = step + 1, minutes + (time.process_time() - began) / 60
        for way in ways if share == 1 else [*ways][:1]:
            points.setdefault(way, []).append((minutes, solved_by(trainer, x, frozen, *ways[way])))
    return points, sum(p.numel() for p in trainer.model.parameters()) / 1e6


def table_rows(runs):
    """What the runs of all seeds found. runs [{way: [(minutes, solved)]}] -> [(way, minutes, mean,
    error)]"""
    rows = []
    for way, first in runs[0].items():
        for i in range(len(first)):
            minutes, solved = zip(*(run[way][i] for run in runs))
            pairs = [mean_error(a, True) for a in solved]
            rows.append((way, sum(minutes) / len(minutes), *mean_over_seeds(*zip(*pairs))))
    return rows


def main(config, given=()):
    names = [name for name in config.data.split(",") if name]
    sizes = [size for size in config.sizes.split(",") if size] or [""]
    puzzles, methods = {name: puzzle(name) for name in names}, method_names(config, [])
    for size in filter(None, sizes):
        shape_of(size)  # or UserError, before anything is trained
    print(f"{hardware()}; {config.minutes:g} CPU minutes for each run, {config.seeds} seeds, "
          f"{config.questions} held-out puzzles, greedy\n{'puzzle':<20}{'method':<8}{'weights':>9}"
          f"{'CPU min':>9}  {'way':<14}{'solved':>18}", flush=True)
    results = []
    for name, data in puzzles.items():
        for method in [method for method in methods if fits(data, method)]:
            for size in sizes:
                keep_memory()
                runs, weights = zip(*(run_of(config, name, data, method, size, seed)
                                      for seed in range(1, config.seeds + 1)))
                for way, minutes, mean, error in table_rows(runs):
                    print(f"{name:<20}{method:<8}{weights[0]:>8.2f}M{minutes:>9.2f}  {way:<14}"
                          f"{with_error(mean, error):>18}", flush=True)
                    results.append(dict(data=name, method=method, weights=weights[0], way=way,
                                        minutes=minutes, solved=mean, error=error))
    save_results(config, "reasoning", results)


if __name__ == "__main__":
    run_experiment(Config, main, first="data")
