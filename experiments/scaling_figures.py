"""
The figures of chapter 25: what python -m experiments.figures scaling and repetition measure and
draw. Both take the results of experiments.scaling and experiments.repetition from --out_dir, or
measure what is missing there with the default flags.
"""
import torch

from experiments import repetition, scaling
from experiments.power_laws import Law
from experiments.timing import hardware
from flags import configure


def measure_scaling(config):
    """Points of all methods with their laws (25.1), the lines (25.2) and the gap (25.3)."""
    flags = configure(scaling.Config, out_dir=config.out_dir)
    result = {"hardware": hardware(), "most_excess": flags.most_excess, "methods": {}, "gaps": {}}
    chosen = {}
    for name, points in scaling.all_points(flags).items():
        chosen[name] = scaling.points_to_fit(points, flags)
        line = scaling.describe_frontier(chosen[name])
        line["minima"] = [[C, *best] for C, best in line["minima"].items()]
        result["methods"][name] = {
            "points": [[*p[:4], round(p.excess, 5), round(p.error, 5)] for p in points],
            "law": scaling.describe_law(chosen[name]), "line": line}
    first, *others = chosen
    for name in others:
        result["gaps"][name] = scaling.describe_gap(chosen[first], chosen[name])
    return result


def measure_repetition(config):
    """Held-out excess over epochs: mean and error of each line, and the crossings."""
    flags = configure(repetition.Config, out_dir=config.out_dir)
    found = repetition.measure(flags)
    lines = {name: [[n, *(round(a, 5) for a in value)]
                    for n, value in repetition.mean_line(seeds).items()]
             for name, seeds in found.items()}
    crossings = {name: repetition.mean_crossing(found[name], found["mdlm"])
                 for name in found if name != "mdlm"}
    return {"hardware": hardware(), "texts": flags.num_texts, "size": flags.size,
            "seeds": flags.seeds, "lines": lines, "crossings": crossings}


def draw_scaling(measured, plot):
    """E over D for each size and method, with the law; and over C, with the least E of the law."""
    methods = measured["methods"]
    figure, panels = plot.subplots(1, len(methods) + 1, figsize=(4.2 * (len(methods) + 1), 4),
                                   sharey=True)
    for i, (name, part) in enumerate(methods.items()):
        law, axes = Law(*part["law"]["fit"]), panels[i]
        sizes = sorted({row[0] for row in part["points"]})
        for j, N in enumerate(sizes):
            color = plot.cm.viridis(j / len(sizes))
            rows = [row for row in part["points"] if row[0] == N]
            axes.plot([row[1] for row in rows], [row[4] for row in rows], "o", color=color,
                      markersize=3, label=f"N = {N:,}")
            D = [row[1] for row in rows if row[4] < measured["most_excess"]]
            if D:
                D = torch.linspace(min(D), max(D), 50).tolist()
                axes.plot(D, [law.excess(N, d) for d in D], color=color, linewidth=1)
        axes.set(title=f"{name}: points of all seeds, lines (25.1)", xlabel="D, tokens of training")
        axes.legend(fontsize=7)
        points = [row for row in part["points"] if row[4] < measured["most_excess"]]
        panels[-1].plot([row[2] for row in points], [row[4] for row in points], "o", markersize=3,
                        color=plot.cm.tab10(i), alpha=0.5)
        E = torch.logspace(*torch.tensor([min(row[4] for row in points), 1.0]).log10(), 50).tolist()
        panels[-1].plot([law.compute_for(e) for e in E], E, color=plot.cm.tab10(i), label=name)
    for axes in panels:
        axes.set(xscale="log", yscale="log")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("held-out excess over the entropy, nats/word")
    panels[-1].set(title="lines: the least compute for E, (25.3)", xlabel="C = 6 N D, operations")
    panels[-1].legend()
    figure.tight_layout()
    return figure


def draw_repetition(measured, plot):
    """Held-out excess over epochs."""
    figure, axes = plot.subplots(figsize=(6.5, 4))
    for i, (name, rows) in enumerate(measured["lines"].items()):
        epochs, excess, error = zip(*rows)
        axes.errorbar(epochs, excess, error, label=name, marker="o", markersize=3,
                      color=plot.cm.tab10(i))
    axes.set(xscale="log", xlabel=f"epochs: how often the same {measured['texts']} texts are read",
             ylabel="held-out excess over the entropy, nats/word")
    axes.set_xticks(epochs, [f"{n}" for n in epochs])
    axes.minorticks_off()
    axes.set_ylim(0, None)
    axes.grid(alpha=0.3)
    axes.legend(title=f"{measured['seeds']} seeds; bars: 1 standard error")
    figure.tight_layout()
    return figure
