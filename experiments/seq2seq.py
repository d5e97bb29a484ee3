"""
Chapter 19. Methods on sequence-to-sequence tasks in equal CPU time, and the best of ten answers
against one (MBR).

    python -m experiments.seq2seq                            all tasks, mdlm and ar
    python -m experiments.seq2seq --tasks reverse,describe --methods mdlm,difformer,ar --seeds 3
    python -m experiments.seq2seq --tasks reverse --methods "difformer,difformer --noise_factor 1"
    python -m experiments.seq2seq --methods mdlm --sides encoder       a source that is read once
    python -m experiments.seq2seq sides                      what that saves, in random networks

Each method, with flags of its own if they are given, is trained for --minutes of CPU time on each
task, and answers held-out questions: greedily where one answer is right (temperature 0), else by
draws. Masks open one by one, where the entropy is least, and far apart in a few steps (--few);
edits are drawn, or the likeliest ones are searched. Printed are

    above H     the bound (exact for ar) less the exact -log p of the same answers, nats an answer
    solved      answers that the checker accepts;  slots: (19.4)
    BLEU-4      of tasks with several right answers, and MBR of 10 answers, by BLEU; below them what
                answers from the exact distribution reach

`+-` is over texts and, with --seeds, over training, (12.4).
"""
import copy
import math
import statistics
from dataclasses import dataclass
from functools import partial

import torch

from data import load_data
from diffusion import probabilities
from evaluation.chosen_answers import answer_rows
from evaluation.errors import mean_error, mean_over_seeds, with_error
from evaluation.likelihood import nats_of
from evaluation.sample_quality import questions_asked
from experiments.command import run_experiment
from experiments.learning import draws_of, steps_in
from experiments.timing import format_ratio, hardware, time_in_turns
from experiments.training import make_trainer
from flags import flag, parse
from methods import make_method
from model import Transformer
from runtime.device import keep_memory
from samplers import make_sampler
from samplers.generate import CallCounter, generate
from samplers.sides import CachedSource, divide
from train import Config as TrainConfig
from train import train_step

TASKS = "reverse,sort,date,translit,add,add-reversed,paraphrase,summary,describe"
NETWORK = dict(n_layer=3, n_head=4, n_embd=64)
SIZE = dict(NETWORK, batch_size=64)
CANDIDATES = 10


@dataclass
class Config:
    command: str = flag("answers", "answers, or sides", ["answers", "sides"])
    tasks: str = flag(TASKS, "tasks, with commas between", each=str)
    methods: str = flag("mdlm,ar", "methods, with commas between, each with its flags behind it",
                        each=str)
    minutes: float = flag(0.5, "CPU minutes of training", least=0.001)
    questions: int = flag(300, "held-out questions", least=2)
    sides: str = flag("joined", "of train.py: joined, encoder", ["joined", "encoder"])
    few: int = flag(4, "steps of the second way to open masks", least=1)
    seeds: int = flag(1, "runs of each, with seeds 1, 2, ...", least=1)


def ways(method, few, length):
    """How a method answers. -> {name: (sampler, steps)}"""
    if "edit-beam" in (method.samplers or ()):
        return {"": (make_sampler(method.first_choice, method), length),
                "edit-beam": (make_sampler("edit-beam", method), length)}
    if not method.opens_masks or method.samplers or method.left_to_right:
        return {"": (make_sampler(method.first_choice, method), length)}
    return {"entropy": (make_sampler("entropy", method), length),
            f"spread, {few} steps": (make_sampler("spread", method), few)}


def flags_behind(method):
    """The flags of train.py in "difformer --noise_factor 1". -> dict"""
    config, given = parse(TrainConfig, ["--method", *method.split()])
    return {name: getattr(config, name) for name in given}


def trained(task, own, steps, seed):
    """The Trainer of a method after so many steps."""
    trainer = make_trainer(task, seed=seed, max_iters=steps, warmup_iters=min(100, steps // 4),
                           **own)
    for step in range(steps):
        train_step(trainer, step)
    return trainer


@torch.no_grad()
def answers_of(trainer, x, frozen, sampler, steps, k):
    """k answers to each question. -> (n, k, L), network calls for each text"""
    method, task, counter = trainer.method, trainer.data, CallCounter(trainer.average)
    greedy = partial(probabilities, temperature=0.0 if not task.counts_slots else 1.0)
    given, fixed = x.repeat_interleave(k, 0), frozen.repeat_interleave(k, 0)  # (n k, L) each
    parts = [generate(method, counter, len(part), x.shape[1], steps, sampler, greedy,
                      given=part, frozen=still)
             for part, still in zip(given.split(500), fixed.split(500))]
    return torch.cat(parts).view(len(x), k, -1), counter.texts / len(given)


def figures_of(found, reference, task):
    """What is printed of answers (n, k, L). -> [(mean, error), ...], a column each"""
    solved = task.solved(found[:, 0]).double()  # (n,)
    figures = [mean_error(solved, True)]
    if task.counts_slots:
        rows = {what: pair for what, *pair in answer_rows(found, reference, task)}
        best = f"MBR-{found.shape[1]} by bleu: "
        figures.append(mean_error(task.slots_right(found[:, 0]), True))
        figures += [rows.get(what, (math.nan, math.nan)) for what in (
            "BLEU-4 with the reference", f"{best}solved", f"{best}BLEU-4 with the reference")]
    return figures


def print_answers(way, calls, seeds):
    """One line. seeds: the figures of each run"""
    cells = [with_error(*mean_over_seeds(*zip(*pairs))) for pairs in zip(*seeds)]
    print(f"    {way:<18}{calls:>6}  " + "".join(f"{cell:>17}" for cell in cells), flush=True)


def compare(config, name, task, method, x, frozen, k):
    """The lines of a method on the task `name`: its bound, and its answers in each way."""
    keep_memory()
    own = {**dict(data=name, block_size=task.length, sides=config.sides, **SIZE),
           **flags_behind(method)}
    steps = steps_in(60 * config.minutes, **own)
    above, ways_found = [], {}
    for seed in range(1, config.seeds + 1):
        trainer = trained(task, own, steps, seed)
        nats, _ = nats_of(trainer.method, trainer.average, x, draws_of(trainer.method),
                          frozen=frozen)  # (n,)
        above.append(mean_error(nats - task.answer_nats(x), True))
        for way, (sampler, n) in ways(trainer.method, config.few, task.target).items():
            torch.manual_seed(seed)
            found, calls = answers_of(trainer, x, frozen, sampler, n, k)  # (n, k, L)
            ways_found.setdefault(way, []).append((calls, figures_of(found, x, task)))
    far = with_error(*mean_over_seeds(*zip(*above)))
    print(f"  {method}: {steps} steps, above H {far} nats an answer")
    for way, runs in ways_found.items():
        calls, figures = zip(*runs)
        print_answers(way, f"{statistics.mean(calls):.1f}", figures)


@torch.no_grad()
def time_sides(config):
    """Milliseconds for an answer, one token in a call: all tokens in each call, or the source once.
    """
    print(f"{hardware()}; mdlm, 64 answers at a time\n{'':<14}{'source':>7}{'target':>7}"
          f"{'joined':>9}{'encoder':>9}{'joined / encoder':>26}")
    for name in config.tasks.split(","):
        task = load_data(name, 0)
        method = make_method("mdlm", task.encoding.n_vocab)
        x, frozen, _ = task.example_windows("val", 64)  # (64, L) each
        joined = Transformer(method.vocab_size, cond_dim=0, qk_norm=True, **NETWORK).eval()
        cached = CachedSource(divide(copy.deepcopy(joined), method, task.source), task.source)
        sampler = make_sampler("entropy", method)
        write = partial(generate, method, n=64, length=task.length, steps=task.target,
                        sampler=sampler, given=x, frozen=frozen)
        found = time_in_turns({"joined": (lambda: write(joined), 1000 / 64),
                               "encoder": (lambda: write(cached), 1000 / 64)}, 9, x.device)
        cells = "".join(f"{statistics.median(times):>9.2f}" for times in found.values())
        print(f"{name:<14}{task.source:>7}{task.target:>7}{cells}"
              f"{format_ratio(*found.values()):>26}", flush=True)


def main(config, given=()):
    if config.command == "sides":
        return time_sides(config)
    print(f"{hardware()}; {config.minutes:g} CPU minutes of training, {config.questions} "
          f"questions, {config.seeds} seed{'s' * (config.seeds > 1)}")
    print(f"    {'':<18}{'calls':>6}  " + "".join(f"{c:>17}" for c in (
        "solved", "slots right", "BLEU-4", f"MBR-{CANDIDATES} solved", "MBR BLEU-4")))
    for name in config.tasks.split(","):
        task = load_data(name, 0)
        x, frozen, _ = task.example_windows("val")  # (m, L) each
        rows = questions_asked(x, config.questions)  # (n,)
        x, frozen, k = x[rows], frozen[rows], CANDIDATES if task.counts_slots else 1  # (n, L) each
        print(f"{task.about}; H {task.answer_entropy(x).mean():.3f} nats an answer")
        for method in config.methods.split(","):
            compare(config, name, task, method, x, frozen, k)
        if k > 1:
            exact = torch.stack([task.redraw(x, seed) for seed in range(k)], 1)  # (n, k, L)
            print_answers("exact", "", [figures_of(exact, x, task)])


if __name__ == "__main__":
    run_experiment(Config, main)
