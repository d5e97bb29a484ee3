"""
Curves of training runs: what was learnt, over steps and over time.

    python plot.py out/toy-mdlm out/toy-udlm                 curves.png: loss, held-out bound, bits/byte
    python plot.py out/a out/b --png bounds.png --smooth 0.95

It reads metrics.jsonl of each run, also of one that is still being written. Above: the loss of training, smoothed (an
average that forgets), and faint as it was; what it measures is the method's own business (`simple` weights are no
bound). In the middle: the bound on held-out text, with a band of two standard errors; on the toy language the exact
entropy is a line, below which nothing can be. Below: the same in bits/byte, which compares runs of different tokens.
"""
import sys
from dataclasses import dataclass

from flags import flag, one_line_errors, parse


@dataclass
class Config:
    runs: str = flag("", "folders of runs, with commas between; also the first words")
    png: str = flag("curves.png", "the picture")
    smooth: float = flag(0.8, "of the loss: the share of the past in each point; 0 leaves it as it is", least=0,
                         most=0.9999)


if __name__ == "__main__":
    n = next((i for i, word in enumerate(sys.argv[1:]) if word.startswith("-")), len(sys.argv) - 1)
    CONFIG, GIVEN = parse(Config, ["--runs", ",".join(sys.argv[1:n + 1])] * (n > 0) + sys.argv[n + 1:])

import json  # noqa: E402
import math
from functools import partial
from itertools import product
from pathlib import Path

from data import BadInput, beside


PANELS = {"loss": "training loss, nats/token", "bound": "held-out bound, nats/token", "bits": "held-out, bits/byte"}


def read(out_dir):
    """The lines of metrics.jsonl, in order; the last may be half written, and is left out. -> [dict]"""
    path = Path(out_dir, "metrics.jsonl")
    try:
        lines = path.read_text("utf-8", "replace").splitlines()
    except OSError:
        raise BadInput(f"there is no {path}: give the folder of a run; its first checkpoint brings the file") from None
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
            rows += [row] if isinstance(row["step"], int) else []
        except (ValueError, KeyError, TypeError):
            continue
    if not any("loss" in row or "val_bound" in row for row in rows):
        raise BadInput(f"{path} holds no step yet: wait for the first checkpoint of the run")
    return rows


def clock(rows):
    """Seconds since the start by step. A resumed run counts from 0 again: its time is added. -> {step: seconds}"""
    seconds, before, last = {0: 0.0}, 0.0, 0.0
    for row in rows:
        if "seconds" in row:
            before += last if row["seconds"] < last else 0.0
            last = row["seconds"]
            seconds[row["step"]] = before + last
    return seconds


def smoothed(values, share):
    """Exponential moving average, without the pull of its start: sum_i share^(n-i) v_i / sum_i share^(n-i)."""
    out, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = share * total + value, share * weight + 1
        out.append(total / weight)
    return out


def entropy(about):
    """The exact entropy of the texts of a run on the toy language, nats/word; None for other text."""
    if about.get("data") != "toy" or about["method"] == "classifier":        # whose loss is that of a class
        return None
    from data.text import load                               # and with it torch, which no other run needs
    from evaluate import entropy_of
    return entropy_of(load("toy", about["block_size"]), about["labels"])[0]


def curves(rows, share):
    """What is drawn of one run, {panel: [(step, value, error or None)]}; and {panel: the exact value, or None}"""
    about = next((row for row in rows if "method" in row), {})
    raw = [(row["step"], row["loss"], None) for row in rows if row.get("loss") is not None]
    soft = [(step, value, None) for (step, *_), value in zip(raw, smoothed([y for _, y, _ in raw], share))]
    bound = [(row["step"], row["val_bound"], row.get("val_se")) for row in rows if row.get("val_bound") is not None]
    bits = 1 / math.log(2) / about["bytes_per_token"] if about.get("bytes_per_token") else None
    floor = entropy(about)
    return ({"raw": raw, "loss": soft, "bound": bound,
             "bits": [(step, y * bits, error and error * bits) for step, y, error in bound] if bits else []},
            {"bound": floor, "bits": floor and bits and floor * bits})


def at(seconds, step):
    """The time of a step, or of the last step before it whose time is known."""
    return seconds[max(known for known in seconds if known <= step)]


def line(ax, points, x_of, colour, **style):
    """A curve, and a band of two standard errors where they are known. points: [(step, value, error or None)]"""
    x, y, error = ([x_of(step) for step, *_ in points], [y for _, y, _ in points], [2 * (e or 0) for *_, e in points])
    ax.plot(x, y, color=colour, **style)
    if any(error):
        ax.fill_between(x, [a - e for a, e in zip(y, error)], [a + e for a, e in zip(y, error)], color=colour,
                        alpha=0.2, linewidth=0)


def figure(runs, share):
    """A matplotlib figure: a row for each panel that has data, over steps and over seconds. runs: {name: rows}"""
    from matplotlib.figure import Figure                     # without pyplot: no window, whatever the machine

    drawn = {name: curves(rows, share) for name, rows in runs.items()}
    panels = [panel for panel in PANELS if any(points[panel] for points, _ in drawn.values())]
    picture = Figure(figsize=(11, 0.6 + 2.8 * len(panels)), layout="constrained")
    axes = picture.subplots(len(panels), 2, squeeze=False, sharex="col", sharey="row")
    for (row, panel), column in product(enumerate(panels), (0, 1)):
        ax = axes[row, column]
        for i, (name, (points, _)) in enumerate(drawn.items()):
            seconds, colour = clock(runs[name]), f"C{i % 10}"
            x_of = (lambda step: step) if column == 0 else partial(at, seconds)
            if panel == "loss" and share:
                line(ax, points["raw"], x_of, colour, alpha=0.2, linewidth=0.7)
            if points[panel]:
                line(ax, points[panel], x_of, colour, label=name, marker="" if panel == "loss" else ".")
        for value in sorted({floor[panel] for _, floor in drawn.values() if floor.get(panel)}):
            ax.axhline(value, color="black", linewidth=0.9, linestyle=":", label=f"exact entropy, {value:.3f}")
        ax.grid(alpha=0.3)
        ax.tick_params(labelleft=column == 0)
        if column == 0:
            ax.set_ylabel(PANELS[panel])
            ax.legend(fontsize="small")
    for ax, what in zip(axes[-1], ("steps", "training time, seconds")):
        ax.set_xlabel(what)
    return picture


def main(config):
    folders = list(dict.fromkeys(filter(None, map(str.strip, config.runs.split(",")))))
    if not folders:
        raise BadInput("give the folders of one run or more: python plot.py out/python-mdlm")
    runs = {folder: read(folder) for folder in folders}
    try:
        picture = figure(runs, config.smooth)
    except ModuleNotFoundError as error:
        if error.name.split(".")[0] != "matplotlib":
            raise
        raise BadInput("plot.py draws with a package that is not here: pip install matplotlib") from None
    with beside(config.png) as file:
        picture.savefig(file, format="png", dpi=150)
    print(f"{config.png}: " + ", ".join(f"{name} to step {rows[-1]['step']}" for name, rows in runs.items()))


if __name__ == "__main__":
    with one_line_errors():
        main(CONFIG)
