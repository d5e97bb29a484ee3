"""
Curves of training runs, over steps and over time.

    python -m viewer.curves out/toy-mdlm out/toy-udlm               writes curves.png
    python -m viewer.curves out/a out/b --png bounds.png --smooth 0.95
    python -m viewer.curves --mean out/a-1,out/a-2,out/a-3          seeds of one run: their mean
    python -m viewer.curves --mean "out/a-1,out/a-2;out/b-1,out/b-2"    two means

It reads metrics.jsonl of each run, also of a run that is still going on. A mean is taken at the
steps that all of its runs have logged; its band of two standard errors is that of (12.4), which
covers the seeds, too. The panels, from the top:

    training loss     smoothed by an exponential moving average, and faint as it was. Losses of
                      different methods do not compare: `simple` weights are no bound
    held-out bound    with a band of two standard errors, and the exact entropy where it is known
    bits/byte         the same, which compares runs with different tokens
"""
import math
import statistics
import sys
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

from data import DATASETS, load_data
from data.files import atomic_write, check_writable
from data.reading import parse_json
from evaluation.errors import mean_over_seeds
from evaluation.held_out import entropy_of
from flags import UserError, flag, load_row
from methods import EVERY_METHOD
from script import run_script

PANELS = {"loss": "training loss, nats/token", "bound": "held-out bound, nats/token",
          "bits": "held-out, bits/byte"}
LARGEST = 1e15  # of steps, nats, seconds: what is larger was never logged


@dataclass
class Config:
    runs: str = flag("", "folders of runs, with commas between, or the first words without a flag",
                     each=str)
    mean: str = flag("", "runs that differ in their seed, with commas between; ; between groups")
    png: str = flag("curves.png", "the picture")
    smooth: float = flag(0.8, "share of the past in each point of the loss; 0 leaves it as it is",
                         least=0, most=0.9999)


def is_number(value, least=-LARGEST, kinds=(int, float)):
    return type(value) in kinds and least <= value <= LARGEST


READABLE = {  # what the lines of a run hold; a line with something else was damaged
    "step": lambda value: is_number(value, 0, kinds=(int,)),
    "seconds": lambda value: is_number(value, 0),
    "method": lambda value: value in EVERY_METHOD, "data": lambda value: type(value) is str,
    "block_size": lambda value: is_number(value, 1, kinds=(int,)),
    "labels": lambda value: type(value) is bool,
    "bytes_per_token": lambda value: value is None or is_number(value, 1e-9),
    **dict.fromkeys(["loss", "val_bound", "val_se"], lambda value: value is None or
                    is_number(value))}


def read_row(line):
    """A line of metrics.jsonl, bytes, as a dict; None if it is half written or damaged."""
    try:
        row = parse_json(line.decode("utf-8-sig"))
        readable = "step" in row and all(READABLE[name](row[name]) for name in READABLE
                                         if name in row)
        return row if readable else None
    except (ValueError, TypeError):
        return None


def read_metrics(out_dir):
    """The lines of metrics.jsonl, in order, without those that are half written or damaged.
    out_dir: a folder, or such a file. -> [dict]"""
    path = Path(out_dir)
    path = path if path.is_file() else path / "metrics.jsonl"
    if not path.is_file():
        raise UserError(f"there is no {path}: give the folder of a run, after its first "
                        "checkpoint")
    lines = path.read_bytes().splitlines()
    rows = [row for row in map(read_row, lines) if row is not None]
    if lines and not rows:
        raise UserError(f"{path} has been damaged: none of its {len(lines)} lines can be read")
    if not any(row.get("loss") is not None or row.get("val_bound") is not None for row in rows):
        raise UserError(f"{path} holds no step yet: wait for the first checkpoint of the run")
    return rows


def seconds_by_step(rows):
    """{step: seconds of training}. A resumed run counts from 0 again: its seconds are added."""
    seconds, before, last = {0: 0.0}, 0.0, 0.0
    for row in rows:
        if "seconds" in row:
            before += last if row["seconds"] < last else 0.0
            last = row["seconds"]
            seconds[row["step"]] = before + last
    return seconds


def time_at(seconds, step):
    """The time of a step, or of the last step before it whose time is known."""
    return seconds[max(known for known in seconds if known <= step)]


def smooth(values, share):
    """Exponential moving average, without bias: sum_i share^(n-i) v_i / sum_i share^(n-i)."""
    out, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = share * total + value, share * weight + 1
        out.append(total / weight)
    return out


def exact_entropy(about):
    """The exact entropy of the texts of a run, nats/token, or None. about: its first row"""
    if {"data", "block_size", "labels"} - about.keys():
        return None
    if not load_row(DATASETS, about["data"]).has_language:
        return None
    method = load_row(EVERY_METHOD, about["method"])
    if method.classifies or not method.bounded:  # its loss is that of a class, or bounds nothing
        return None
    return entropy_of(load_data(about["data"], about["block_size"]), about["labels"])[0]


def curves_of(rows, share):
    """-> {panel: [(step, value, error or None)]}, {panel: exact value or None} of a run"""
    about = next((row for row in rows if "method" in row), {})
    raw = [(row["step"], row["loss"], None) for row in rows if row.get("loss") is not None]
    smoothed = smooth([value for _, value, _ in raw], share)
    bound = [(row["step"], row["val_bound"], row.get("val_se"))
             for row in rows if row.get("val_bound") is not None]
    entropy, points = exact_entropy(about), {"raw": raw, "bound": bound, "bits": []}
    points["loss"] = [(step, value, None) for (step, *_), value in zip(raw, smoothed)]
    if not about.get("bytes_per_token"):
        return points, {"bound": entropy, "bits": None}
    bits = 1 / math.log(2) / about["bytes_per_token"]  # nats/token -> bits/byte
    points["bits"] = [(step, value * bits, error and error * bits) for step, value, error in bound]
    return points, {"bound": entropy, "bits": entropy and entropy * bits}


def mean_curve(curves):
    """The mean over runs at the steps that all have. curves: [[(step, value, error or None)]]"""
    curves = [{step: figures for step, *figures in points} for points in curves]
    steps = sorted(set.intersection(*map(set, curves)))
    at = lambda step: zip(*(curve[step] for curve in curves))  # values, errors
    means = []
    for step in steps:
        values, errors = at(step)
        means.append((step, *mean_over_seeds(values, [error or 0.0 for error in errors])))
    return means


def mean_of_runs(group, rows, drawn):
    """Runs [name] that differ in their seed as one. -> their mean rows, its curves_of"""
    first_lines = [next((row for row in rows[name] if "method" in row), {}) for name in group]
    if any(line != first_lines[0] for line in first_lines):
        raise UserError(f"--mean {','.join(group)}: these runs differ in more than their seed")
    points = {panel: mean_curve([drawn[name][0][panel] for name in group])
              for panel in drawn[group[0]][0]}
    points["raw"] = [(step, value, None) for step, value, _ in points["raw"]]
    if not any(points.values()):
        raise UserError(f"--mean {','.join(group)}: these runs have logged no step in common")
    seconds = [seconds_by_step(rows[name]) for name in group]
    steps = {step for panel in points.values() for step, *_ in panel}
    clock = [dict(step=step, seconds=statistics.mean(time_at(run, step) for run in seconds))
             for step in sorted(steps)]
    return clock, (points, drawn[group[0]][1])


def draw_curve(ax, points, x_of, color, **style):
    """A curve, with a band of two standard errors if known. points: [(step, value, error)]"""
    x, y, error = ([x_of(step) for step, *_ in points], [value for _, value, _ in points],
                   [2 * (e or 0) for *_, e in points])
    ax.plot(x, y, color=color, **style)
    if any(error):
        ax.fill_between(x, [a - e for a, e in zip(y, error)], [a + e for a, e in zip(y, error)],
                        color=color, alpha=0.2, linewidth=0)


def draw_panel(ax, panel, runs, drawn, over_time, share):
    """One panel: a curve for each run, and the exact values. drawn: {name: curves_of(rows)}"""
    for i, (name, (points, _)) in enumerate(drawn.items()):
        seconds, color = seconds_by_step(runs[name]), f"C{i % 10}"
        x_of = partial(time_at, seconds) if over_time else lambda step: step
        if panel == "loss" and share:
            draw_curve(ax, points["raw"], x_of, color, alpha=0.2, linewidth=0.7)
        if points.get(panel):
            marker = "" if panel == "loss" else "."
            draw_curve(ax, points[panel], x_of, color, label=name, marker=marker)
    lines = {}  # what it is, and its value as it is shown: a line that is told apart from others
    for name, (_, exact) in drawn.items():
        if exact.get(panel):
            given = " given the class" * any(row.get("labels", False) for row in runs[name])
            lines[f"exact entropy{given}, {exact[panel]:.3f}"] = exact[panel]
    for label, value in sorted(lines.items()):
        ax.axhline(value, color="black", linewidth=0.9, label=label,
                   linestyle="--" if "given" in label else ":")
    ax.grid(alpha=0.3)


def draw_figure(runs, share, groups=()):
    """A matplotlib figure: panels with data, over steps and over seconds.

    runs: {name: rows}; groups: lists of those whose mean is drawn instead of them
    """
    from matplotlib.figure import Figure  # optional; without pyplot it opens no window

    drawn = {name: curves_of(rows, share) for name, rows in runs.items()}
    means = {f"mean of {', '.join(group)}": mean_of_runs(group, runs, drawn) for group in groups}
    for name in {name for group in groups for name in group}:
        drawn.pop(name)
    drawn |= {name: curves for name, (_, curves) in means.items()}
    runs = {**runs, **{name: clock for name, (clock, _) in means.items()}}
    panels = [panel for panel in PANELS if any(points[panel] for points, _ in drawn.values())]
    figure = Figure(figsize=(11, 0.6 + 2.8 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 2, squeeze=False, sharex="col", sharey="row")
    for (row, panel), column in product(enumerate(panels), (0, 1)):
        ax = axes[row, column]
        draw_panel(ax, panel, runs, drawn, over_time=column == 1, share=share)
        ax.tick_params(labelleft=column == 0)
        if column == 0:
            ax.set_ylabel(PANELS[panel])
            ax.legend(fontsize="small")
    for ax, what in zip(axes[-1], ("steps", "training time, seconds")):
        ax.set_xlabel(what)
    return figure


def split_names(text):
    """The folders in a list with commas between, each once."""
    words = filter(None, map(str.strip, text.split(",")))
    return list(dict.fromkeys(str(Path(word)) for word in words))


def main(config, given):
    groups = [folders for part in config.mean.split(";") if (folders := split_names(part))]
    folders = dict.fromkeys(sum(groups, split_names(config.runs)))
    if not folders:
        raise UserError("give the folders of one run or more: python -m viewer.curves "
                        "out/python-mdlm")
    check_writable(config.png)
    runs = {folder: read_metrics(folder) for folder in folders}
    try:
        figure = draw_figure(runs, config.smooth, groups)
    except ModuleNotFoundError as error:
        if error.name.split(".")[0] != "matplotlib":
            raise
        raise UserError("this needs a package that is missing: pip install matplotlib") from None
    with atomic_write(config.png) as file:
        figure.savefig(file, format="png", dpi=150, metadata={"Software": "palimpsest"})
    print(f"{config.png}: " + ", ".join(f"{name} to step {rows[-1]['step']}"
                                        for name, rows in runs.items()))


if __name__ == "__main__":
    n = next((i for i, word in enumerate(sys.argv[1:]) if word.startswith("-")), len(sys.argv) - 1)
    sys.argv[1:n + 1] = ["--runs", ",".join(sys.argv[1:n + 1])] if n else []
    run_script(Config, main)
