"""
Chapter 22. Search at equal cost: what a reward gains, for how many texts that a network reads.

    python -m experiments.search toy         texts of one topic, by the exact denoiser of the toy
                                             language and its exact classifier
    python -m experiments.search puzzles     Sudoku by a network whose training ended early, and the
                                             checker; trains it first, in half a minute
    python -m experiments.search grammar     texts of a network that is hardly trained, and of the
                                             exact denoiser, with and without the grammar

A cost is the number of texts that a network reads for one text that is written, and the same for
the classifier. All steps are those of one walk, so one text without a search costs its steps.
"""
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import torch

from data import load_data
from diffusion import Labeled, ancestral, probabilities
from evaluation.errors import mean_error, with_error
from experiments.command import choose_command, run_experiment
from experiments.timing import hardware
from experiments.training import train_or_load
from flags import flag
from oracle import exact, exact_classifier
from samplers import make_sampler
from samplers.generate import CallCounter, generate
from samplers.guidance import classifier_step, guided_ancestral
from samplers.rewards import parses

LENGTH, STEPS, TOPIC = 32, 8, "school"
WEAK = dict(n_layer=2, n_embd=64, batch_size=32, learning_rate=0.02, muon_lr=0.006, seed=1,
            device="cpu")
SUDOKU = dict(data="sudoku4-in-place", method="mgdm", device="cpu", seed=1)


@dataclass
class Config:
    command: str = flag("", "what to measure; also the first word", ["toy", "puzzles", "grammar"])
    num_samples: int = flag(128, "texts of each kind", least=4)
    share: float = flag(1.0, "share of the training steps", least=0.001, most=100)
    out_dir: str = flag("out/search", "puzzles, grammar: where the checkpoints go")
    hardware: str = flag("", "the name of the machine, if it cannot be detected", text=True)


def write(model, sampler, n, steps, denoiser=None, **prompts):
    """n texts -> x (n, L), texts that the network read for each, and texts that were rated"""
    spy = CallCounter(denoiser or model.denoiser)
    torch.manual_seed(1)
    x = generate(model.method, spy, n, model.config.block_size, steps, sampler, **prompts)
    rated = sampler.costs(whole=True)["texts_rated"] if sampler.costs else 0
    return x, spy.texts / n, rated / n


# ---- topics

def searches():
    """(line of the table, sampler, flags) of each search for a topic."""
    yield from ((f"best-of, {n} texts", "best-of", dict(texts=n, lam=1.0)) for n in (2, 4, 8, 16))
    yield from ((f"best-of, {n} texts, the best", "best-of", dict(texts=n)) for n in (4, 16))
    for value in ("class", "guess"):
        yield from ((f"smc, {value}, {n} particles", "smc", dict(particles=n, value=value))
                    for n in (2, 4, 8, 16)[:3 if value == "guess" else 4])
    again = dict(value="class", iterations=3)
    yield "particle-gibbs, class, 4 x 4", "particle-gibbs", again
    yield from ((f"path-integral, {k} guesses", "path-integral", dict(guesses=k))
                for k in (4, 16, 64))
    yield from ((f"local, {n} changes", "local", dict(changes=n, lam=1.0)) for n in (16, 64))


def compare_topics(config):
    """How much of the topic, and how likely under it, at what cost."""
    model, data = exact("mdlm"), load_data("toy", LENGTH)
    language, topic = data.language, data.classes.index(TOPIC)
    judge = exact_classifier(language, model.method.process)
    given = SimpleNamespace(label=TOPIC, guidance=1.0)
    print(f"{hardware(name=config.hardware)}\n{config.num_samples} texts of {LENGTH} words, "
          f"{STEPS} steps, topic {TOPIC}, lam = 1\n{'':<36}{'p(topic | x)':>16}"
          f"{'-log p(x | topic)':>20}{'read':>8}{'rated':>8}")

    def line(name, x, read=0.0, rated=0.0):
        p = mean_error(language.topic_posterior(x)[:, topic], True)
        nats = mean_error(-language.log_prob(x, topic) / LENGTH, True)
        print(f"{name:<36}{with_error(*p):>16}{with_error(*nats):>20}{read:>8.1f}{rated:>8.0f}",
              flush=True)
    line("texts of the topic", language.sample(1000, LENGTH, torch.Generator().manual_seed(2),
                                               topic))
    n, label = config.num_samples, torch.tensor([topic])
    line("no search", *write(model, ancestral, n, STEPS))
    line("a network that takes labels", *write(model, ancestral, n, STEPS,
                                               Labeled(model.denoiser, label)))
    rater = CallCounter(judge)
    for order in ("first", "exact"):
        rater.texts = 0
        step = partial(classifier_step, classifier=partial(count_texts, rater), label=label,
                       gamma=1.0, order=order)
        few = n if order == "first" else min(n, 8)  # a classifier call for each word and mask
        x, read, _ = write(model, guided_ancestral(ancestral, step), few, STEPS)
        line(f"guided, {order} order", x, read, rater.texts / few)
    for name, sampler, flags in searches():
        made = make_sampler(sampler, model.method, **flags)
        made.prepare(model)
        line(name, *write(model, made.aim((judge, data.classes, LENGTH), given, "cpu"), n, STEPS))


def count_texts(counter, z, t):
    """A call of the classifier, counted."""
    counter.texts += len(z)
    return counter.denoiser(z, t)


# ---- puzzles

def compare_puzzles(config):
    """How many held-out puzzles are solved, at what cost."""
    model = train_or_load(config, "sudoku", max_iters=500, **SUDOKU)
    data = load_data(model.config.data, model.config.block_size, model.encoding)
    x, frozen, _ = data.example_windows("val", config.num_samples)  # (n, L) each
    steps = int((~frozen).sum(-1).max())
    print(f"{hardware(name=config.hardware)}\n{len(x)} held-out puzzles, {model.step} steps of "
          f"training\n{'':<44}{'solved':>16}{'read':>8}{'checked':>9}")

    def line(name, sampler, T=1.0, **flags):
        made = make_sampler(sampler, model.method, **flags)
        made.prepare(model)
        to_probs = partial(probabilities, temperature=T)
        spy = CallCounter(model.denoiser)
        torch.manual_seed(1)
        y = generate(model.method, spy, len(x), x.shape[1], steps, made, to_probs, given=x,
                     frozen=frozen)
        solved, rated = mean_error(data.solved(y).double(), True), 0
        if made.costs:
            rated = made.costs(whole=True)["texts_rated"] / len(x)
        print(f"{name:<44}{with_error(*solved):>16}{spy.texts / len(x):>8.1f}{rated:>9.1f}",
              flush=True)
    solve = dict(walk="entropy", reward="solved")
    line("easy first, temperature 0", "entropy", 0.0)
    line("easy first, temperature 1", "entropy")
    line("in random order, temperature 1", "first-hitting")
    for n in (2, 4, 16):
        line(f"best-of, easy first, {n} texts at most", "best-of", texts=n, enough=1.0, **solve)
    for n in (4, 16):
        line(f"best-of, random steps, {n} texts at most", "best-of", texts=n, enough=1.0,
             **{**solve, "walk": "ancestral"})
    for share, n in ((0.5, 4), (0.5, 16), (0.25, 16)):
        line(f"local, {share} again, {n} changes at most", "local", changes=n, share=share,
             enough=1.0, **solve)
    for n in (4, 16):
        line(f"smc, a guess, {n} particles", "smc", particles=n, lam=0.2, **solve)


# ---- a grammar

def compare_grammar(config):
    """The share of texts that parse, and how likely they are, with and without the grammar."""
    network = train_or_load(config, "toy", data="toy", method="mdlm", block_size=LENGTH,
                            max_iters=300, **WEAK)
    data = load_data("toy", LENGTH, network.encoding)
    language, table = data.language, data.automaton
    print(f"{hardware(name=config.hardware)}\n{config.num_samples} texts of {LENGTH} words; their "
          f"entropy {language.entropy(LENGTH)[0]:.3f} nats/word\n{'':<40}{'they parse':>16}"
          f"{'-log p, nats/word':>20}{'read':>8}")
    for name, model in (("exact", exact("mdlm")), (f"{network.step} steps", network)):
        for steps in (1, 2, 4, 8, 32):
            for sampler in ("ancestral", "grammar"):
                made = make_sampler(sampler, model.method)
                made.prepare(model)
                x, read, _ = write(model, made, config.num_samples, steps)
                fits = mean_error(parses(table, x).double(), True)
                nats = mean_error(-language.log_prob(x) / LENGTH, True)
                print(f"{name + ', ' + sampler + f', {steps} steps':<40}{with_error(*fits):>16}"
                      f"{with_error(*nats):>20}{read:>8.1f}", flush=True)


COMMANDS = {"toy": compare_topics, "puzzles": compare_puzzles, "grammar": compare_grammar}


def main(config, given=()):
    choose_command(config, COMMANDS)(config)


if __name__ == "__main__":
    run_experiment(Config, main)
