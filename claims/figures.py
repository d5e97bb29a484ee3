"""
The figures of docs/, each drawn from a small file of what was measured, docs/figures/NAME.json.

    python -m claims.figures forward               draws docs/forward.png: four ways in which noise covers one text
    python -m claims.figures attention             who may look at whom, asked of the networks themselves
    python -m claims.figures orders                when each place is written, by each order of decoding
    python -m claims.figures learning              the bound above the exact entropy while training
    python -m claims.figures forward --measure     measures first; `learning` trains, a minute or two a method

What is drawn is what the code does: noise comes from the processes' own alpha and b, patterns from the calls that
reach attention, orders from walks through the exact denoiser. Drawing needs matplotlib (requirements-extras.txt).
"""
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from flags import flag, one_line_errors, parse

NAMES = ["forward", "attention", "orders", "learning"]


@dataclass
class Config:
    command: str = flag("", "which figure; also the first word", NAMES)
    measure: bool = flag(False, "measure anew what is drawn")
    folder: str = flag("docs", "where the pictures go, and figures/ with what was measured")
    out_dir: str = flag("out/figures", "learning: where the runs are, or go")
    methods: str = flag("ar,bd3lm,pgm,mdlm,udlm", "learning: with commas between")
    num_samples: int = flag(256, "orders: texts", least=1)


if __name__ == "__main__":
    words = sys.argv[1:] if sys.argv[1:2] == [] or sys.argv[1].startswith("-") else ["--command", *sys.argv[1:]]
    CONFIG, GIVEN = parse(Config, words)

import torch  # noqa: E402
import torch.nn.functional as F

import bench
import model as networks
import partition
import train
from checkpoint import beside
from data import BadInput
from data.text import load
from duo import GaussianUniform
from masked import Absorbing
from methods import make_method, make_sampler
from oracle import exact
from sample import not_yet, trajectory
from uniform import Hybrid, Uniform

INK, PAPER, MASK, WORD = "#1d1c1a", "#fbfaf7", "#8d8879", "#6a2fb5"


# ---- what is measured

def forward(config, length=40, times=64):
    """One text of `length` words at `times` moments, each process on one path: what is kept stays in order. A state is
    0 for the clean word, 1 for a mask, 2 for a wrong word; with it the shares that alpha and b promise."""
    torch.manual_seed(2)
    t = ((torch.arange(times) + 0.5) / times).double()                                              # (T,)
    u, w = torch.rand(2, length, 1).double()                                                        # (L, 1) each
    result = {"t": t.tolist(), "processes": {}}
    for name, process in [("masks", Absorbing(113)), ("uniform", Uniform(113)), ("hybrid", Hybrid(113, 0.3))]:
        alpha = process.alpha(t)                                                                    # (T,)
        mask = process.b(t, torch.tensor(getattr(process, "mask", -1))) * (process.V > process.n_tokens)     # (T,)
        state = torch.where(u < alpha, 0, torch.where(w * (1 - alpha) < mask, 1, 2))                # (L, T)
        result["processes"][name] = {"alpha": alpha.tolist(), "mask": mask.tolist(), "state": state.tolist()}
    process = GaussianUniform(113)                           # (11): one eps for all times
    x, eps = torch.zeros(length, dtype=torch.long), torch.randn(length, 1, 113, dtype=torch.float64)        # (L,)
    a, s = (process.gamma(t).mul(sign).sigmoid().sqrt()[:, None] for sign in (-1, 1))               # (T, 1) each
    w = a * F.one_hot(x, 113)[:, None] + s * eps                                                    # (L, T, 113)
    state = torch.where(w.argmax(-1) == 0, 0, 2)                                                    # (L, T)
    alpha = process.alpha(t)                                                                        # (T,)
    result["processes"]["argmax of a Gaussian"] = {"alpha": alpha.tolist(), "mask": [0.0] * times,
                                                   "state": state.tolist()}
    return result


def attention(config, L=12, block=4):
    """What each network's own calls let look at what, as rows of 0 and 1, queries downwards."""
    seen, true = [], networks.attention

    def spied(q, k, v, mask_mod=None, *args, **more):
        seen.append(networks.dense(mask_mod or (lambda b, h, query, key: (query >= 0) & (key >= 0)), q, k)[0, 0])
        return true(q, k, v, mask_mod, *args, **more)

    result = {}
    for name in ("ar", "mdlm", "bd3lm", "pgm"):
        torch.manual_seed(5)
        method, seen[:] = make_method(name, 9, diffusion_block=block), []
        make = getattr(method, "network", networks.Transformer)
        net = make(method.vocab_size, n_layer=2, n_head=1, n_embd=8, cond_dim=0, mask_mod=method.mask_mod)
        networks.attention = partition.attention = spied
        try:
            method.loss(net, torch.randint(9, (1, L)))
        finally:
            networks.attention = partition.attention = true
        patterns = {"": seen[0]} if name != "pgm" else {"within a group": seen[0], "across, with 2 starts": seen[-1]}
        for what, mask in patterns.items():
            result[f"{name}, {what}" if what else name] = ["".join(map(str, row)) for row in mask.int().tolist()]
    return result


ORDERS = {                                                   # name: method, sampler and its options
    "ar": ("ar", "ancestral", {}),
    "mdlm, ancestral": ("mdlm", "ancestral", {}),
    "mdlm, confidence": ("mdlm", "confidence", {}),
    "mdlm, semi-ar, blocks of 8": ("mdlm", "semi-ar", dict(decode_block=8)),
    "bd3lm, blocks of 4": ("bd3lm", "ancestral", {}),
    "udlm, last change": ("udlm", "ancestral", {}),
}


def orders(config, L=32, bins=16):
    """When each place got its last word, in `bins` parts of the walk: shares of the texts, a row for each place."""
    result = {}
    for name, (method, sampler, options) in ORDERS.items():
        torch.manual_seed(1)
        oracle, none = exact(method), torch.zeros(config.num_samples, L, dtype=torch.bool)          # (B, L)
        walk, steps = make_sampler(sampler, method, **options), 8 if method == "bd3lm" else 32
        states = [not_yet(z, none, i, -1) if method == "ar" else z for i, z in
                  enumerate(trajectory(oracle.method, oracle.denoiser, none.long(), none, steps, walk))]
        changed = torch.stack([a != b for a, b in zip(states, states[1:])]).int()                   # (S, B, L)
        last = len(changed) - changed.flip(0).argmax(0)                                             # (B, L) of 1 .. S
        part = ((last - 1) * bins // len(changed)).clamp(0, bins - 1)                               # (B, L)
        share = F.one_hot(part, bins).double().mean(0)                                              # (L, bins)
        result[name] = [[round(value, 3) for value in row] for row in share.tolist()]
    return result


def learning(config):
    """The bound on held-out text at each evaluation of short runs, above the exact entropy."""
    entropy, error = load("toy", 32).language.entropy(32)
    result = {"entropy": entropy, "error": error, "hardware": bench.hardware(), "methods": {}}
    for method in bench.names_of(config, []):
        folder = Path(config.out_dir) / f"toy-{method}"
        if not (folder / "ckpt.pt").exists():
            train.main(train.Config(data="toy", method=method, max_iters=400, batch_size=64, block_size=32,
                                    eval_interval=40, eval_iters=16, device="cpu", out_dir=str(folder)))
        lines = map(json.loads, open(folder / "metrics.jsonl", encoding="utf-8"))
        result["methods"][method] = [[line["step"], round(line["val_bound"], 4), round(line["val_se"], 4)]
                                     for line in lines if "val_bound" in line]
    return result


# ---- what is drawn

def draw_forward(measured, plot):
    figure, panels = plot.subplots(2, 4, figsize=(10, 4.4), sharex=True, height_ratios=[2.2, 1])
    from matplotlib.colors import ListedColormap
    shades = ListedColormap(["#f0d9a6", MASK, WORD])
    for (name, part), (above, below) in zip(measured["processes"].items(), panels.T):
        above.imshow(part["state"], cmap=shades, vmin=0, vmax=2, aspect="auto", extent=(0, 1, 0, len(part["state"])),
                     interpolation="nearest")
        above.set(title=name, yticks=[])
        kept, mask = part["alpha"], [a + b for a, b in zip(part["alpha"], part["mask"])]
        below.stackplot(measured["t"], kept, part["mask"], [1 - b for b in mask], colors=shades.colors)
        below.set(xlim=(0, 1), ylim=(0, 1), xlabel="t", yticks=[0, 1])
    panels[0, 0].set_ylabel("words of one text")
    panels[1, 0].set_ylabel("shares")
    patches = [plot.Rectangle((0, 0), 1, 1, color=colour) for colour in shades.colors]
    figure.legend(patches, ["the word itself", "mask", "a wrong word"], loc="lower center", ncol=3, frameon=False)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    return figure


def draw_attention(measured, plot):
    figure, panels = plot.subplots(1, len(measured), figsize=(12, 3.1))
    for (name, rows), axes in zip(measured.items(), panels):
        axes.imshow([[int(c) for c in row] for row in rows], cmap="Purples", vmin=0, vmax=1.3, interpolation="nearest")
        axes.set(title=name, xticks=[], yticks=[], xlabel=f"{len(rows[0])} keys", ylabel=f"{len(rows)} queries")
        axes.title.set_fontsize(9)
    figure.tight_layout()
    return figure


def draw_orders(measured, plot):
    from matplotlib.colors import PowerNorm
    figure, panels = plot.subplots(2, 3, figsize=(10, 4.8), sharex=True, sharey=True)
    for (name, rows), axes in zip(measured.items(), panels.flat):
        image = list(zip(*rows))                             # time upwards, places to the right
        axes.imshow(image, origin="lower", cmap="magma", norm=PowerNorm(0.5, 0, 1), aspect="auto",
                    interpolation="nearest", extent=(0, len(rows), 0, 1))
        axes.set_title(name, fontsize=10)
    for axes in panels[:, 0]:
        axes.set_ylabel("share of the walk")
    for axes in panels[-1]:
        axes.set_xlabel("place in the text")
    figure.tight_layout()
    return figure


def draw_learning(measured, plot):
    figure, axes = plot.subplots(figsize=(7.5, 4.2))
    for i, (method, points) in enumerate(measured["methods"].items()):
        step, above, error = zip(*[(step, bound - measured["entropy"], se) for step, bound, se in points])
        axes.errorbar(step, above, error, label=method, marker="o", markersize=3, color=plot.cm.tab10(i))
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.text(step[-1], -0.02, "exact entropy", ha="right", va="top", fontsize=9)
    axes.set(xlabel="steps of 64 texts of 32 words", ylabel="held-out bound above the entropy, nats/word")
    axes.set_ylim(-0.12, 2)
    axes.grid(alpha=0.3)
    axes.legend(ncol=2)
    figure.tight_layout()
    return figure


def drawn(name, measured, path):
    try:
        import matplotlib
    except ImportError:
        raise BadInput("the picture needs matplotlib: pip install matplotlib, and run again") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot
    figure = globals()["draw_" + name](measured, pyplot)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, facecolor=PAPER)
    pyplot.close(figure)
    print(f"drawn in {path}, {path.stat().st_size / 1000:.0f} kB")


def main(config):
    if not config.command:
        raise BadInput(f"say which figure: python -m claims.figures {', '.join(NAMES)}; --help tells more")
    source = Path(config.folder) / "figures" / f"{config.command}.json"
    if config.measure:
        measured = globals()[config.command](config)
        source.parent.mkdir(parents=True, exist_ok=True)
        with beside(source) as file:
            file.write((json.dumps(measured, separators=(",", ":")) + "\n").encode())
    if not source.exists():
        raise BadInput(f"there is no {source} to draw from: measure it with --measure")
    drawn(config.command, json.loads(source.read_text("utf-8")), Path(config.folder) / f"{config.command}.png")


if __name__ == "__main__":
    with one_line_errors():
        main(CONFIG)
