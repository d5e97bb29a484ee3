"""
What python -m experiments.figures scaling measures and draws (chapter 25). It takes the points of
experiments.scaling from --out_dir, or trains what is missing there.
"""
import torch

from experiments import scaling
from experiments.power_laws import Law
from experiments.timing import hardware
from flags import configure


def measure_scaling(config):
    """Points of all methods, with their laws (25.1) where there are enough."""
    flags = configure(scaling.Config, out_dir=config.out_dir, seeds=config.seeds,
                      sizes=config.sizes)
    result = {"hardware": hardware(), "most_excess": flags.most_excess, "methods": {}}
    for name, points in scaling.all_points(flags).items():
        chosen = scaling.points_to_fit(points, flags)
        result["methods"][name] = {
            "points": [[*p[:4], round(p.excess, 5), round(p.error, 5)] for p in points],
            "law": scaling.describe_law(chosen) if len(chosen) > 5 else None}
    return result


def draw_scaling(measured, plot):
    """E over N at each C, for each method, and over D for each N with the law."""
    methods, limit = measured["methods"], measured["most_excess"]
    figure, panels = plot.subplots(1, 1 + len(methods), figsize=(4.2 * (1 + len(methods)), 4),
                                   sharey=True)
    curves = sorted({row[2] for part in methods.values() for row in part["points"]})
    for i, (name, part) in enumerate(methods.items()):
        for j, C in enumerate(curves):
            means = {}
            for N, _, own, _, excess, _ in part["points"]:
                if own == C:
                    means.setdefault(N, []).append(excess)
            panels[0].plot([*means], [sum(v) / len(v) for v in means.values()],
                           "so"[i == 0] + "-", color=plot.cm.plasma(j / len(curves)), markersize=4,
                           label=f"C = {C:.3g}" if i == 0 else None)
        axes, law = panels[1 + i], part["law"] and Law(*part["law"]["fit"])
        sizes = sorted({row[0] for row in part["points"]})
        for j, N in enumerate(sizes):
            color, rows = plot.cm.viridis(j / len(sizes)), [r for r in part["points"] if r[0] == N]
            D, E = zip(*((row[1], row[4]) for row in rows))
            axes.plot(D, E, "o", color=color, markersize=3, label=f"N = {N:,}")
            if law and min(E) < limit:
                low = min(d for d, e in zip(D, E) if e < limit)
                D = torch.linspace(low, max(D), 50).tolist()
                axes.plot(D, [law.excess(N, d) for d in D], color=color, linewidth=1)
        axes.axhline(limit, color="0.5", linewidth=0.8, linestyle=":")
        axes.set(title=f"{name}{', lines: (25.1)' if law else ''}", xlabel="D, words of training")
        axes.legend(fontsize=7)
    for axes in panels:
        axes.set(xscale="log", yscale="log")
        axes.xaxis.set_minor_formatter(plot.NullFormatter())
        axes.grid(alpha=0.3)
    panels[0].set(title=", ".join(f"{name}: {mark}" for name, mark in zip(methods, (
        "circles", "squares"))), xlabel="N, weights", ylabel="held-out excess, nats/word")
    panels[0].legend(fontsize=7)
    figure.tight_layout()
    return figure
