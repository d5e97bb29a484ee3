"""
Curves of training runs, over steps and over time.

    python -m viewer.curves out/toy-mdlm out/toy-udlm               writes curves.png
    python -m viewer.curves out/a out/b --png bounds.png --smooth 0.95

It reads metrics.jsonl of each run, also of a run that is still going on. The panels, from the top:

    training loss     smoothed by an exponential moving average, and faint as it was. Losses of
                      different methods do not compare: `simple` weights are no bound
    held-out bound    with a band of two standard errors, and the exact entropy where it is known
    bits/byte         the same, which compares runs with different tokens
"""
import math
import sys
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

from data import DATASETS, load_data
from data.base import atomic_write
from data.reading import parse_json
from evaluation.held_out import entropy_of
from flags import UserError, flag, load_row, run_script
from methods import METHODS

PANELS = {"loss": "training loss, nats/token", "bound": "held-out bound, nats/token",
          "bits": "held-out, bits/byte"}


@dataclass
class Config:
    runs: str = flag("", "folders of runs, with commas between, or the first words without a flag")
    png: str = flag("curves.png", "the picture")
    smooth: float = flag(0.8, "share of the past in each point of the loss; 0 leaves it as it is",
                         least=0, most=0.9999)


def read_metrics(out_dir):
    """The lines of metrics.jsonl, in order, without a last one that is half written. -> [dict]"""
    path = Path(out_dir, "metrics.jsonl")
    try:
        lines = path.read_text("utf-8", "replace").splitlines()
    except OSError:
        raise UserError(f"there is no {path}: give the folder of a run, after its first "
                        "checkpoint") from None
    rows = []
    for line in lines:
        try:
            row = parse_json(line)
            rows += [row] if isinstance(row["step"], int) else []
        except (ValueError, KeyError, TypeError):
            continue
    if not any("loss" in row or "val_bound" in row for row in rows):
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
    if "data" not in about or not load_row(DATASETS, about["data"]).has_language:
        return None
    if load_row(METHODS, about["method"]).classifies:  # its loss is that of a class
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
        if points[panel]:
            marker = "" if panel == "loss" else "."
            draw_curve(ax, points[panel], x_of, color, label=name, marker=marker)
    for value in sorted({exact[panel] for _, exact in drawn.values() if exact.get(panel)}):
        ax.axhline(value, color="black", linewidth=0.9, linestyle=":",
                   label=f"exact entropy, {value:.3f}")
    ax.grid(alpha=0.3)


def draw_figure(runs, share):
    """A matplotlib figure: panels with data, over steps and over seconds. runs: {name: rows}"""
    from matplotlib.figure import Figure  # optional; without pyplot it opens no window

    drawn = {name: curves_of(rows, share) for name, rows in runs.items()}
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


def main(config, given):
    folders = list(dict.fromkeys(filter(None, map(str.strip, config.runs.split(",")))))
    if not folders:
        raise UserError("give the folders of one run or more: python -m viewer.curves "
                        "out/python-mdlm")
    runs = {folder: read_metrics(folder) for folder in folders}
    try:
        figure = draw_figure(runs, config.smooth)
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
