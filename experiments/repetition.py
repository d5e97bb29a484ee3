"""
Few texts, read many times: where the bound of mdlm falls below the likelihood of ar (chapter 25).

    python -m experiments.repetition                   ar, ar with dropout and weight decay, mdlm
    python -m experiments.repetition --num_texts 512 --epochs 1,4,16,64,256
    python -m experiments.repetition --figure repetition.png    and a picture

Where text is scarce, a network meets each text many times. ar has one task per text and soon knows
it by heart; a masked network has another task each time, since other words are masked (arXiv:
2507.15857). Here the texts are of the toy language, so the excess over the exact entropy is known,
on held-out texts that are fresh.

Every network has the same size. Its texts are the same for all lines, and others for another seed.
All epochs of a run share a trunk of constant rate, with a decay to 0 in the last fifth
(experiments/training.py: decayed_at). A crossing is looked for between the points, in the logarithm
of epochs, after the last point at which mdlm is above.
"""
import math
import statistics
from dataclasses import dataclass

import torch

from data.toy import ToyCorpus
from evaluation.errors import mean_over_seeds, with_error
from experiments.command import run_experiment
from experiments.plotting import load_pyplot, save_figure
from experiments.power_laws import crossing
from experiments.scaling import FLAGS, LENGTH, Excess, run_points, shape_of
from experiments.timing import hardware, parse_numbers
from flags import flag
from methods import make_method
from runtime.device import keep_memory

WARMUP = 6  # steps: an epoch has few
LINES = {  # what is compared: flags of train.py
    "ar": dict(method="ar"),
    "ar, regularized": dict(method="ar", dropout=0.2, weight_decay=0.5),
    "mdlm": dict(method="mdlm"),
}


@dataclass
class Config:
    num_texts: int = flag(128, "texts that are repeated", least=1)
    epochs: str = flag("2,4,8,16,32,64,128", "how often each is read, with commas between",
                       each=int, least=1)
    size: str = flag("2x32", "blocks x width")
    seeds: int = flag(3, "runs of each line, with seeds 1, 2, ... and texts of their own", least=1)
    max_texts: int = flag(2000, "held-out texts", least=2)
    out_dir: str = flag("out/repetition", "where the results of runs are kept")
    figure: str = flag("", "draw into this file")
    hardware: str = flag("", "the name of the machine, if it cannot be detected", text=True)


class FewTexts(ToyCorpus):
    """n texts of the toy language, in a new order in each epoch; a batch may end one epoch and
    begin the next."""

    def __init__(self, n, length=LENGTH):
        super().__init__(length)
        self.n, self.drawn = n, {}

    def texts(self, seed):
        """The n texts of a seed. -> (n, L)"""
        if seed not in self.drawn:
            own = torch.Generator().manual_seed(seed * 1_000_003)
            self.drawn[seed] = self.examples("train", self.n, own)[0]
        return self.drawn[seed]  # (n, L)

    def micro_batch(self, number, n, seed, generator):
        first, last = number * n // self.n, ((number + 1) * n - 1) // self.n  # epochs
        order = [torch.randperm(self.n, generator=torch.Generator().manual_seed(
            seed * 1_000_003 + epoch + 1)) for epoch in range(first, last + 1)]  # (n,) each
        place = number * n - first * self.n
        return self.texts(seed)[torch.cat(order)[place:place + n]], None, None  # (B, L)


def measure(config):
    """The excess over the entropy on held-out texts. -> {line: {seed: {epochs: [excess, error]}}}
    """
    keep_memory()
    shape, epochs = shape_of(config.size), sorted(set(parse_numbers(config.epochs)))
    batch = FLAGS["batch_size"]
    ends = {round(n * config.num_texts / batch): n for n in epochs}
    flags = dict(FLAGS, data="toy", warmup_iters=WARMUP, **shape)
    data, excess, found = FewTexts(config.num_texts), {}, {name: {} for name in LINES}
    for seed in range(1, config.seeds + 1):
        for line, own in LINES.items():
            name = own["method"]
            if name not in excess:
                method = make_method(name, data.encoding.n_vocab)
                excess[name] = Excess(data, method, config.max_texts)
            run = f"{line.replace(', ', '-')}-{config.size}-{config.num_texts}-{seed}"
            _, rows = run_points(config, run, data, excess[name], lambda N: ends,
                                 {**flags, **own, "seed": seed})
            found[line][seed] = {n: [e, error] for n, _, e, error in rows}
    return found


def mean_line(seeds):
    """The mean over seeds {seed: {epochs: [excess, error]}}. -> {epochs: (excess, error)}"""
    return {n: mean_over_seeds(*zip(*(points[n] for points in seeds.values())))
            for n in next(iter(seeds.values()))}


def mean_crossing(first, second):
    """The epochs at which the second line falls below the first for good, in each seed.

    -> geometric mean, its standard error as a factor, and in how many seeds there is one; (None,
    None, k) unless there is one in all
    """
    found = [crossing([*first[seed]], [e for e, _ in first[seed].values()],
                      [e for e, _ in second[seed].values()]) for seed in first]
    logs = [math.log(x) for x in found if x]
    if len(logs) < len(found):
        return None, None, len(logs)
    error = statistics.stdev(logs) / math.sqrt(len(logs)) if len(logs) > 1 else math.nan
    return math.exp(statistics.mean(logs)), math.exp(error), len(logs)


def print_crossing(name, first, second):
    epochs, factor, n = mean_crossing(first, second)
    if epochs is None:
        print(f"mdlm falls below {name} for good in {n} of {len(first)} seeds: no crossing within "
              f"{max(first[1])} epochs")
    else:
        print(f"mdlm falls below {name} for good at {epochs:.1f} epochs, times or divided by "
              f"{factor:.2f} ({n} seeds)")


def draw_lines(lines, config, plot):
    """Held-out excess over epochs."""
    figure, axes = plot.subplots(figsize=(6.5, 4))
    for i, (name, line) in enumerate(lines.items()):
        excess, error = zip(*line.values())
        axes.errorbar([*line], excess, error, label=name, marker="o", markersize=3,
                      color=plot.cm.tab10(i))
    axes.set(xscale="log", xlabel=f"epochs: how often the same {config.num_texts} texts are read",
             ylabel="held-out excess over the entropy, nats/word")
    axes.set_xticks([*line], [f"{n}" for n in line])
    axes.minorticks_off()
    axes.set_ylim(0, None)
    axes.grid(alpha=0.3)
    axes.legend(title=f"seeds: {config.seeds}; bars: 1 standard error")
    figure.tight_layout()
    return figure


def main(config, given=()):
    pyplot = load_pyplot() if config.figure else None  # or UserError, before anything is trained
    found = measure(config)
    lines = {name: mean_line(seeds) for name, seeds in found.items()}
    print(f"\n{hardware(name=config.hardware)}\n{config.num_texts} texts of {LENGTH} words, "
          f"{config.size} blocks x width, {config.seeds} seeds; held-out excess over the entropy, "
          f"nats/token\n{'epochs':<10}" + "".join(f"{name:>22}" for name in lines))
    for n in next(iter(lines.values())):
        print(f"{n:<10}" + "".join(f"{with_error(*line[n]):>22}" for line in lines.values()))
    best = {name: min(line.items(), key=lambda item: item[1][0]) for name, line in lines.items()}
    print(f"{'best':<10}" + "".join(f"{with_error(*value):>22}" for _, value in best.values()))
    for name in [name for name in lines if name != "mdlm"]:
        print_crossing(name, found[name], found["mdlm"])
    if pyplot:
        save_figure(draw_lines(lines, config, pyplot), config.figure, dpi=100)


if __name__ == "__main__":
    run_experiment(Config, main, first="num_texts")
