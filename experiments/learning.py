"""
How much is learned in a fixed time.

    python -m experiments.learning train --data input.txt   nanoGPT's size for CPUs on your text,
                                                            7 minutes each
    python -m experiments.learning train --data names --seeds 3
    python -m experiments.learning toy              distance of each method to the entropy of the
                                                    toy language, 3 to 9 minutes each
    python -m experiments.learning text --minutes 10    all methods on the default text for the same
                                                    CPU time, bits per byte
    python -m experiments.learning text --data names --tokenizer chars --methods mdlm,bfn
    python -m experiments.learning oracle           no training: the error of few steps when the
                                                    denoiser is exact

`train` scores the whole held-out text, by the bound (exact for ar), in nats per character. ar is
given twice: with nothing before the text, as the diffusion methods are, and as nanoGPT counts,
where the first character is read but not scored. All models are trained here, by train.py, one
after the other, on the machine that is printed.

`+-` covers the choice of texts, the noise and, with --seeds, the training (12.4). The methods meet
the same texts, so below the table they are compared text by text, with far smaller errors.
"""
import math
import statistics
import time
from dataclasses import dataclass
from typing import NamedTuple

import torch

from data import load_data
from evaluation.errors import mean_error, mean_over_seeds, with_error
from evaluation.likelihood import nats_of
from evaluation.ngram import witten_bell
from experiments import training
from experiments.command import choose_command, run_experiment
from experiments.timing import hardware
from experiments.training import language_models, make_trainer, method_names, train_model
from flags import configure, flag, load_row
from methods import METHODS, make_method
from runtime.device import keep_memory
from samplers.generate import CallCounter, generate
from train import Config as TrainConfig
from train import train_step


@dataclass
class Config:
    command: str = flag("", "what to measure; also the first word",
                        ["train", "toy", "text", "oracle"])
    data: str = flag("", "train, text: names, python, shakespeare, text8, or a text file; empty: "
                         "names for train, python for text")
    tokenizer: str = flag("bpe", "text: bpe or chars", ["bpe", "chars"])
    methods: str = flag("", "with commas between; empty means ar,mdlm for train, otherwise all",
                        each=language_models())
    minutes: float = flag(10.0, "text: CPU minutes of training of each method", least=0.001)
    seeds: int = flag(1, "train, toy: runs of each method, with seeds 1, 2, ...", least=1)
    share: float = flag(1.0, "share of the full number of steps, for a quick look", least=0.0001,
                        most=100)
    out_dir: str = flag("out/learning", "where the checkpoints go")
    hardware: str = flag("", "the name of the machine, if it cannot be detected", text=True)


def train_named(config, method, seed, **flags):
    """Train a model in out_dir/COMMAND-METHOD-SEED. -> the model, wall and CPU minutes"""
    out_dir = f"{config.out_dir}/{config.command}-{method}-{seed}"
    return train_model(out_dir, config.share, method=method, seed=seed, **flags)


def draws_of(method):
    """Draws of noise per text: an exact likelihood needs no more than one."""
    return 1 if method.exact else 8


class Trained(NamedTuple):
    """A run, scored."""
    what: str  # a line of the table; the runs of one line differ in their seed
    nats: torch.Tensor  # (n,) nats/token of each text
    wall: float  # minutes of training
    cpu: float


def score_texts(model, x, draws, batch_size=64, frozen=None):
    """Nats/token of each of the texts x (n, L), all with the same noise. -> (n,)"""
    nats, scored = nats_of(model.method, model.denoiser, x, draws, batch_size, frozen)  # (n,) each
    return nats / scored  # (n,)


def print_means(runs, name, independent, entropy=(0.0, 0.0)):
    """Means over seeds above the entropy, with errors that hold for other seeds and texts.

    entropy: its value and its standard error. -> {line: [nats of each seed (n,)]}
    """
    print(f"\n{hardware(name=name)}")
    lines = {}
    for run in runs:
        lines.setdefault(run.what, []).append(run)
    for what, runs in lines.items():
        means, errors = zip(*(mean_error(run.nats, independent) for run in runs))
        mean, error = mean_over_seeds(means, errors)
        spread = f"{len(means)} seeds, spread {statistics.stdev(means):.3f}" if runs[1:] else ""
        print(f"{what:<52}{with_error(mean - entropy[0], math.hypot(error, entropy[1]))}, "
              f"{spread or 'one seed'}   {statistics.mean(run.wall for run in runs):.1f} min, "
              f"{statistics.mean(run.cpu for run in runs):.1f} CPU min")
    return {what: [run.nats for run in runs] for what, runs in lines.items()}


def print_differences(lines, independent):
    """Each line less the first one, text by text and seed by seed."""
    first, *others = lines
    for what in others:
        differences = [mean_error(a - b, independent) for a, b in zip(lines[what], lines[first])]
        print(f"on the same texts, {what.split(',')[0]} less {first.split(',')[0]}: "
              f"{with_error(*mean_over_seeds(*zip(*differences)), '+.3f')}")


def compare_on_text(config):
    """nanoGPT's size for CPUs on one text, beside n-grams."""
    text = config.data or "names"
    data = load_data(text, 64, "chars")
    x = data.windows("val")  # (n, 64)
    longer = load_data(text, 65, "chars").windows("val")  # (n, 65)
    first = torch.arange(65).expand(len(longer), -1) == 0  # (n, 65)
    rows, others = [], []
    for seed in range(1, config.seeds + 1):
        for name in method_names(config, ["ar", "mdlm"]):
            model, *minutes = train_named(config, name, seed, data=text, **training.NANOGPT,
                                          **training.FIVE_MINUTES)
            method, kind = model.method, "exact" if model.method.exact else "bound"
            nats = score_texts(model, x, draws_of(method))  # (n,)
            rows.append(Trained(f"{name}, {kind}, nats/char", nats, *minutes))
            if method.exact:
                nats = score_texts(model, longer, 1, frozen=first)  # (m,)
                others.append(Trained(f"{name} as nanoGPT counts, nats/char", nats, *minutes))
    lines = print_means(rows + others, config.hardware, data.independent_texts)
    print_differences({run.what: lines[run.what] for run in rows}, data.independent_texts)
    ngrams = witten_bell(data.ids("train"), data.ids("val"), data.encoding.n_vocab)
    for n, nats in ngrams.items():
        print(f"{f'{n}-gram':<44}{nats:.3f}")
    print(f"{'uniform':<44}{math.log(data.encoding.n_vocab):.3f}\n{data.about}")


def compare_with_entropy(config):
    """The bound of each method on the toy language, above its exact entropy."""
    data, rows = load_data("toy", 32), []
    x = data.windows("val", 4000)  # (n, 32)
    entropy = data.language.entropy(32)
    for seed in range(1, config.seeds + 1):
        for name in method_names(config, language_models()):
            model, *minutes = train_named(config, name, seed, data="toy", **training.TWO_MINUTES)
            nats = score_texts(model, x, draws_of(model.method), 256)  # (n,)
            rows.append(Trained(f"{name}, above the entropy, nats/token", nats, *minutes))
    lines = print_means(rows, config.hardware, data.independent_texts, entropy)
    print(f"{'exact entropy, nats/token':<52}{with_error(*entropy, '.4f')}")
    print_differences(lines, data.independent_texts)


def steps_in(seconds, method, **flags):
    """How many training steps of a method, of the default size, take so many CPU seconds here."""
    config = configure(TrainConfig, method=method, **flags)
    data = load_data(config.data, config.block_size, config.tokenizer, config.vocab_size)
    trainer = make_trainer(data, **{"method": method, "max_iters": config.recipe_iters, **flags})
    for step in range(5):  # the first ones touch fresh memory
        train_step(trainer, step)
    began = time.process_time()
    for step in range(5, 25):
        train_step(trainer, step)
    return max(1, round(seconds / (time.process_time() - began) * 20))


def compare_in_equal_time(config):
    """A text for the same time: held-out bound, and the calls for 64 tokens."""
    source = dict(data=config.data or "python", tokenizer=config.tokenizer)
    print(f"{hardware(name=config.hardware)}; {config.minutes:g} CPU minutes of training each\n"
          f"{'':<12}{'steps':>7}{'held-out bound, bits/byte':>28}"
          f"{'network calls for 64 tokens':>30}", flush=True)
    lines = {}
    for name in method_names(config, language_models()):
        keep_memory()
        steps = steps_in(60 * config.minutes, name, **source)
        model, _, cpu = train_named(config, name, 1, max_iters=steps, **source)
        data = load_data(source["data"], 64, config.tokenizer, model.config.vocab_size)
        x, draws = data.windows("val", 2000), min(4, draws_of(model.method))  # (n, 64)
        spy, bits = CallCounter(model.denoiser), 1 / math.log(2) / data.bytes_per_token
        lines[name] = [score_texts(model, x, draws) * bits]  # one seed: [(n,)]
        figure = with_error(*mean_error(lines[name][0], data.independent_texts))
        for _ in range(8):
            generate(model.method, spy, 1, 64, 128)
        calls = f"{spy.calls / 8:.0f}" + " in 128 steps" * (not model.method.exact)
        print(f"{name:<12}{model.step:>7}{figure:>28}{calls:>30}   {cpu:.1f} CPU min with the "
              "reports", flush=True)
    print_differences(lines, data.independent_texts)


def compare_few_steps(config, n=256, length=32):
    """-log p of samples above the entropy, through the exact denoiser: the error of few steps."""
    data = load_data("toy", length)
    entropy, _ = data.language.entropy(length)
    default = [name for name in language_models() if not load_row(METHODS, name).exact]
    names = method_names(config, default)
    print(f"-log p of {n} samples above the entropy of {entropy:.3f}, nats/token\nsteps  "
          + "".join(f"{name:>18}" for name in names))
    for steps in (2 ** k for k in range(8)):
        cells = []
        for name in names:
            method = make_method(name, data.encoding.n_vocab)
            torch.manual_seed(1)
            x = generate(method, method.oracle(data.language), n, length, steps)  # (n, L)
            mean, error = mean_error(-data.language.log_prob(x) / length, independent=True)
            cells.append(with_error(mean - entropy, error))
        print(f"{steps:>5}  " + "".join(f"{cell:>18}" for cell in cells), flush=True)


COMMANDS = {"train": compare_on_text, "toy": compare_with_entropy, "text": compare_in_equal_time,
            "oracle": compare_few_steps}


def main(config, given=()):
    command = choose_command(config, COMMANDS)
    hardware(name=config.hardware)  # UserError before hours of work, not after
    command(config)


if __name__ == "__main__":
    run_experiment(Config, main)
