"""
Curves of training runs: what was learnt, over steps and over time.

    python plot.py out/toy-mdlm out/toy-udlm                 curves.png: loss, held-out bound, bits/byte
    python plot.py out/a out/b --png bounds.png --smooth 0.98

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
    smooth: float = flag(0.9, "of the loss: the share of the past in each point; 0 leaves it as it is", least=0,
                         most=0.9999)


if __name__ == "__main__":
    n = next((i for i, word in enumerate(sys.argv[1:]) if word.startswith("-")), len(sys.argv) - 1)
    CONFIG, GIVEN = parse(Config, ["--runs", ",".join(sys.argv[1:n + 1])] * (n > 0) + sys.argv[n + 1:])

import json  # noqa: E402
import math
from pathlib import Path

from data import BadInput, beside


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
    if about.get("data") != "toy":
        return None
    from data.text import load                               # and with it torch, which no other run needs
    from evaluate import entropy_of
    return entropy_of(load("toy", about["block_size"]), about["labels"])[0]


def curves(rows, share):
    """What is drawn of one run: {panel: [(step, value, error or None)]}, and the line of what is known exactly"""
    about = next((row for row in rows if "method" in row), {})
    losses = [(row["step"], row["loss"]) for row in rows if row.get("loss") is not None]
    bounds = [(row["step"], row["val_bound"], row.get("val_se")) for row in rows if row.get("val_bound") is not None]
    soft = [(step, value, None) for (step, _), value in zip(losses, smoothed([y for _, y in losses], share))]
    drawn = {"loss": soft, "raw": [(step, value, None) for step, value in losses], "bound": bounds, "bits": []}
    floor = {"bound": entropy(about)}
    if about.get("bytes_per_token"):
        bits = 1 / math.log(2) / about["bytes_per_token"]
        drawn["bits"] = [(step, value * bits, error and error * bits) for step, value, error in bounds]
        floor["bits"] = floor["bound"] and floor["bound"] * bits
    return drawn, floor


PANELS = {"loss": "training loss, nats/token", "bound": "held-out, nats/token", "bits": "held-out, bits/byte"}


def figure(runs, share):
    """A matplotlib figure. runs: {name: rows}"""
    import matplotlib
    matplotlib.use("Agg")                                    # to a file: no window
    from matplotlib import pyplot

    drawn = {name: curves(rows, share) for name, rows in runs.items()}
    panels = [panel for panel in PANELS if any(points[panel] for points, _ in drawn.values())]
    picture, axes = pyplot.subplots(len(panels), 2, figsize=(11, 0.6 + 3 * len(panels)), squeeze=False, sharex="col",
                                    sharey="row", layout="constrained")
    for column in (0, 1):
        for panel, ax in zip(panels, axes[:, column]):
            for i, (name, (points, floor)) in enumerate(drawn.items()):
                seconds, colour = clock(runs[name]), f"C{i % 10}"
                style = dict(color=colour, linestyle=["-", "--", ":", "-."][i // 10 % 4])
                place = lambda step: step if column == 0 else at(seconds, step)
                line(ax, points[panel], place, style, label=name, marker="o" if panel != "loss" else None)
                if panel == "loss" and share:
                    ax.plot([place(step) for step, *_ in points["raw"]], [y for _, y, _ in points["raw"]],
                            color=colour, alpha=0.2, linewidth=0.7)
                if floor.get(panel):
                    ax.axhline(floor[panel], color=colour, linewidth=0.8, linestyle=(0, (1, 2)))
            ax.grid(alpha=0.3)
        axes[-1, column].set_xlabel(["steps", "seconds of training"][column])
    for panel, ax in zip(panels, axes[:, 0]):
        ax.set_ylabel(PANELS[panel])
    if any(floor.get("bound") for _, floor in drawn.values()):
        axes[panels.index("bound"), 0].plot([], [], color="grey", linewidth=0.8, linestyle=(0, (1, 2)),
                                            label="exact entropy") if "bound" in panels else None
    axes[min(1, len(panels) - 1), 0].legend(fontsize="small")
    return picture


def at(seconds, step):
    """The time of a step, or of the last step before it whose time is known."""
    return seconds[max(known for known in seconds if known <= step)]


def line(ax, points, place, style, **more):
    """A curve, and a band of two standard errors where they are known."""
    if points:
        x, y = [place(step) for step, *_ in points], [value for _, value, _ in points]
        ax.plot(x, y, markersize=3, linewidth=1.4, **style, **more)
        errors = [2 * (error or 0.0) for *_, error in points]
        if any(errors):
            ax.fill_between(x, [a - e for a, e in zip(y, errors)], [a + e for a, e in zip(y, errors)],
                            color=style["color"], alpha=0.2, linewidth=0)


def main(config):
    folders = list(dict.fromkeys(filter(None, map(str.strip, config.runs.split(",")))))
    if not folders:
        raise BadInput("give the folders of one run or more: python plot.py out/python-mdlm")
    runs = {folder: read(folder) for folder in folders}
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise BadInput("plot.py draws with a package that is not here: pip install matplotlib") from None
    picture = figure(runs, config.smooth)
    with beside(config.png) as file:
        picture.savefig(file, format="png", dpi=150)
    print(f"{config.png}: " + ", ".join(f"{name} to step {rows[-1]['step']}" for name, rows in runs.items()))


if __name__ == "__main__":
    with one_line_errors():
        main(CONFIG)
