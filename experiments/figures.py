"""
The figures of docs/, each drawn from a small file of what was measured, docs/figures/NAME.json.

    python -m experiments.figures forward            docs/forward.png: four ways of noising a text
    python -m experiments.figures attention          which token may see which, in each network
    python -m experiments.figures orders             when each position is written, by each sampler
    python -m experiments.figures frontier           KL of samplers in two terms, over temperatures
    python -m experiments.figures learning           the bound above the exact entropy in training
    python -m experiments.figures parallel           what parallelism costs a causal network
    python -m experiments.figures scaling            laws of parameters, data and compute
    python -m experiments.figures sudoku             one puzzle, easiest first and in random order
    python -m experiments.figures forward --measure  measures first; `learning` trains, a minute or
                                                     two per method

The figures show what the code does: noise comes from the processes' own alpha and b, patterns from
the calls of attention, orders from samples of the exact denoiser. Drawing needs matplotlib
(requirements-extras.txt).
"""
import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

import train
from checkpoints.load import load_model
from data import load_data
from data.files import write_file
from diffusion import Absorbing, Hybrid, Uniform
from evaluation.errors import mean_error
from evaluation.likelihood import nats_of
from experiments.attention_maps import attention_maps
from experiments.command import choose_command, run_experiment
from experiments.orders import draw_frontier, measure_frontier
from experiments.plotting import load_pyplot, save_figure
from experiments.scaling import SIZES
from experiments.scaling_figures import draw_scaling, measure_scaling
from experiments.sudoku_figure import draw_sudoku, measure_sudoku
from experiments.timing import hardware
from experiments.training import language_models, method_names, run_to_end
from flags import UserError, configure, flag
from methods import make_method
from methods.uniform_gaussian import GaussianUniform
from oracle import exact
from samplers import make_sampler
from samplers.generate import trajectory

INK, PAPER, CLEAN, MASK, WORD = "#1d1c1a", "#fbfaf7", "#f0d9a6", "#8d8879", "#6a2fb5"


@dataclass
class Config:
    command: str = flag("", "which figure; also the first word",
                        ["forward", "attention", "orders", "frontier", "learning", "parallel",
                         "scaling", "sudoku"])
    measure: bool = flag(False, "measure again what is drawn")
    folder: str = flag("docs", "where the pictures go, and figures/ with what was measured")
    out_dir: str = flag("out/figures", "learning, parallel, scaling, sudoku: where the "
                         "runs are, or go")
    methods: str = flag("ar,bd3lm,pgm,mdlm,udlm", "learning: with commas between",
                        each=language_models())
    seeds: int = flag(3, "scaling: runs of each size", least=1)
    sizes: str = flag(",".join(SIZES), "scaling: blocks x width, with commas between", each=str)
    num_samples: int = flag(256, "orders, frontier: texts", least=1)
    max_texts: int = flag(2000, "parallel: held-out texts", least=2)


# ---- what is measured

def measure_forward(config, length=40, times=64):
    """One text of `length` words at `times` moments, one path per process: kept tokens stay in
    order. A state is 0 for the clean word, 1 for a mask, 2 for a wrong word; beside it the shares
    by alpha and b."""
    torch.manual_seed(2)
    t = ((torch.arange(times) + 0.5) / times).double()  # (T,)
    u, w = torch.rand(2, length, 1).double()  # (L, 1) each
    result = {"t": t.tolist(), "processes": {}}
    for name, process in [("masks", Absorbing(113)), ("uniform", Uniform(113)),
                          ("hybrid", Hybrid(113, 0.3))]:
        alpha, mask = process.alpha(t), torch.zeros(times).double()  # (T,) each
        if process.mask is not None:
            mask = process.b(t, torch.tensor(process.mask))  # (T,)
        state = torch.where(u < alpha, 0, torch.where(w * (1 - alpha) < mask, 1, 2))  # (L, T)
        result["processes"][name] = {"alpha": alpha.tolist(), "mask": mask.tolist(),
                                     "state": state.tolist()}
    process = GaussianUniform(113)  # (7.1), with one eps for all times
    x = torch.zeros(length, dtype=torch.long)  # (L,)
    eps = torch.randn(length, 1, 113, dtype=torch.float64)  # (L, 1, 113)
    a, s = (process.gamma(t).mul(sign).sigmoid().sqrt()[:, None] for sign in (-1, 1))  # (T, 1)
    w = a * F.one_hot(x, 113)[:, None] + s * eps  # (L, T, 113)
    state = torch.where(w.argmax(-1) == 0, 0, 2)  # (L, T)
    result["processes"]["argmax of a Gaussian"] = {
        "alpha": process.alpha(t).tolist(), "mask": [0.0] * times, "state": state.tolist()}
    return result


def measure_attention(config, L=12, block=4):
    """Which key each query sees, by each network's own calls, as rows of 0 and 1 per query."""
    result = {}
    for name in ("ar", "mdlm", "bd3lm", "pgm"):
        torch.manual_seed(5)
        method = make_method(name, 9, diffusion_block=block)
        net = method.network(method.vocab_size, n_layer=2, n_head=1, n_embd=8, cond_dim=0,
                             mask_mod=method.mask_mod)
        with attention_maps() as maps:
            method.loss(net, torch.randint(9, (1, L)))
        masks = [weights[0, 0] > 0 for weights in maps]  # (Lq, Lk) each
        patterns = {name: masks[0]}
        if name == "pgm":
            patterns = {"pgm, within a group": masks[0], "pgm, across, with 2 starts": masks[-1]}
        for what, mask in patterns.items():
            result[what] = ["".join(map(str, row)) for row in mask.int().tolist()]
    return result


ORDERS = {  # name: method, sampler and its flags
    "ar": ("ar", "ancestral", {}),
    "mdlm, ancestral": ("mdlm", "ancestral", {}),
    "mdlm, confidence": ("mdlm", "confidence", {}),
    "mdlm, semi-ar, blocks of 8": ("mdlm", "semi-ar", dict(decode_block=8)),
    "bd3lm, blocks of 4": ("bd3lm", "ancestral", {}),
    "udlm, last change": ("udlm", "ancestral", {}),
}


def measure_orders(config, L=32, bins=16):
    """When each position got its last word, in `bins` parts of the steps: shares of the texts."""
    result = {}
    for name, (method, sampler, options) in ORDERS.items():
        torch.manual_seed(1)
        oracle, none = exact(method), torch.zeros(config.num_samples, L, dtype=torch.bool)  # (B, L)
        sampler, steps = make_sampler(sampler, oracle.method, **options), 32
        if method == "bd3lm":
            steps = 8
        states = list(trajectory(oracle.method, oracle.denoiser, none.long(), none, steps, sampler))
        changed = torch.stack([a != b for a, b in zip(states, states[1:])]).int()  # (S, B, L)
        last = len(changed) - changed.flip(0).argmax(0)  # (B, L) of 1 .. S
        part = ((last - 1) * bins // len(changed)).clamp(0, bins - 1)  # (B, L)
        share = F.one_hot(part, bins).double().mean(0)  # (L, bins)
        result[name] = [[round(value, 3) for value in row] for row in share.tolist()]
    return result


def measure_learning(config):
    """The bound on held-out text at each evaluation of short runs, and the exact entropy."""
    entropy, error = load_data("toy", 32).language.entropy(32)
    result = {"entropy": entropy, "error": error, "hardware": hardware(), "methods": {}}
    for name in method_names(config, []):
        folder = Path(config.out_dir) / f"toy-{name}"
        if not (folder / "ckpt.pt").exists():
            run_to_end(train, configure(
                train.Config, data="toy", method=name, max_iters=400, batch_size=64, block_size=32,
                n_layer=4, eval_interval=40, eval_iters=16, learning_rate=0.01, muon_lr=0.01,
                device="cpu", out_dir=str(folder)))
        lines = map(json.loads, open(folder / "metrics.jsonl", encoding="utf-8"))
        result["methods"][name] = [
            [line["step"], round(line["val_bound"], 4), round(line["val_se"], 4)]
            for line in lines if "val_bound" in line]
    return result


SLOPES = (0.0, 0.1, 0.25, 0.5, 1.0)


def measure_parallel(config):
    """The bound (16.3) above the exact -log p of the same texts, for each slope of the path: with
    the exact denoisers, and of a causal network if --out_dir has a run of one."""
    data, name = load_data("toy", 32), "diffusion_forcing"
    folder = Path(config.out_dir) / f"toy-{name}"
    lines = {"exact, sees z_<=l": ("causal", None), "exact, sees all of z": ("full", None)}
    if (folder / "ckpt.pt").exists():
        lines["trained, sees z_<=l"] = "causal", load_model(str(folder)).denoiser
    x = data.windows("val", config.max_texts)  # (n, 32)
    exact = -data.language.log_prob(x)  # (n,)
    result = {"hardware": hardware(), "slopes": SLOPES, "lines": {}}
    for line, (context, net) in lines.items():
        rows = result["lines"][line] = []
        for slope in SLOPES:
            method = make_method(name, data.encoding.n_vocab, context=context, slope=slope)
            denoiser = net or method.oracle(data.language)
            nats, n = nats_of(method, denoiser, x, 4, 200)  # (n,) each
            rows.append([round(a, 4) for a in mean_error((nats - exact) / n, independent=True)])
    return result


# ---- what is drawn

def draw_forward(measured, plot):
    figure, panels = plot.subplots(2, 4, figsize=(10, 4.4), sharex=True, height_ratios=[2.2, 1])
    shades = plot.matplotlib.colors.ListedColormap([CLEAN, MASK, WORD])
    for (name, part), (above, below) in zip(measured["processes"].items(), panels.T):
        above.imshow(part["state"], cmap=shades, vmin=0, vmax=2, aspect="auto",
                     extent=(0, 1, 0, len(part["state"])), interpolation="nearest")
        above.set(title=name, yticks=[])
        kept, mask = part["alpha"], part["mask"]
        wrong = [1 - a - b for a, b in zip(kept, mask)]
        below.stackplot(measured["t"], kept, mask, wrong, colors=shades.colors)
        below.set(xlim=(0, 1), ylim=(0, 1), xlabel="t", yticks=[0, 1])
    panels[0, 0].set_ylabel("words of one text")
    panels[1, 0].set_ylabel("shares")
    patches = [plot.Rectangle((0, 0), 1, 1, color=color) for color in shades.colors]
    figure.legend(patches, ["the word itself", "mask", "a wrong word"], loc="lower center", ncol=3,
                  frameon=False)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    return figure


def draw_attention(measured, plot):
    figure, panels = plot.subplots(1, len(measured), figsize=(12, 3.1))
    for (name, rows), axes in zip(measured.items(), panels):
        axes.imshow([[int(c) for c in row] for row in rows], cmap="Purples", vmin=0, vmax=1.3,
                    interpolation="nearest")
        keys, queries = f"{len(rows[0])} keys", f"{len(rows)} queries"
        if len(rows) > 12:  # [z ; x]: its last block of x is not read
            keys, queries = "keys: 12 noisy, 8 clean", "queries: 12 noisy, 8 clean"
            axes.axhline(11.5, color=INK, linewidth=0.8)
            axes.axvline(11.5, color=INK, linewidth=0.8)
        axes.set(title=name, xticks=[], yticks=[], xlabel=keys, ylabel=queries)
        axes.title.set_fontsize(9)
    shades = [plot.cm.Purples(share / 1.3) for share in (1, 0)]
    patches = [plot.Rectangle((0, 0), 1, 1, facecolor=shade, edgecolor=INK, linewidth=0.5)
               for shade in shades]
    figure.legend(patches, ["the query (row) sees the key (column)", "it does not"],
                  loc="lower center", ncol=2, frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    return figure


def draw_orders(measured, plot):
    figure, panels = plot.subplots(2, 3, figsize=(10, 4.8), sharex=True, sharey=True)
    for (name, rows), axes in zip(measured.items(), panels.flat):
        image = list(zip(*rows))  # time upwards, positions to the right
        shown = axes.imshow(image, origin="lower", cmap="magma", aspect="auto",
                            interpolation="nearest", extent=(0, len(rows), 0, 1),
                            norm=plot.matplotlib.colors.PowerNorm(0.5, 0, 1))
        axes.set_title(name, fontsize=10)
    for axes in panels[:, 0]:
        axes.set_ylabel("time: 0 first step, 1 last")
    for axes in panels[-1]:
        axes.set_xlabel("position in the text")
    figure.tight_layout(rect=(0, 0, 0.91, 1))
    bar = figure.colorbar(shown, cax=figure.add_axes((0.925, 0.12, 0.015, 0.8)))
    bar.set_label("share of the texts whose position got its last word then")
    return figure


def draw_learning(measured, plot):
    figure, axes = plot.subplots(figsize=(7.5, 4.2))
    for i, (name, points) in enumerate(measured["methods"].items()):
        step, bound, error = zip(*points)
        above = [value - measured["entropy"] for value in bound]
        axes.errorbar(step, above, error, label=name, marker="o", markersize=3,
                      color=plot.cm.tab10(i))
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.text(step[-1], -0.02, "exact entropy", ha="right", va="top", fontsize=9)
    axes.set(xlabel="steps of 64 texts of 32 words",
             ylabel="held-out bound above the entropy, nats/word")
    axes.set_ylim(-0.12, 2)
    axes.grid(alpha=0.3)
    axes.legend(ncol=2, title="one seed each; bars: 1 standard error")
    figure.tight_layout()
    return figure


def draw_parallel(measured, plot):
    figure, axes = plot.subplots(figsize=(6.5, 4))
    for i, (name, rows) in enumerate(measured["lines"].items()):
        above, error = zip(*rows)
        axes.errorbar(measured["slopes"], above, error, label=name, marker="o", markersize=3,
                      color=plot.cm.tab10(i))
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set(xlabel="slope: 0 all tokens at once, 1 one after the other",
             ylabel="bound above the entropy, nats/word", title="what parallelism costs")
    axes.grid(alpha=0.3)
    axes.legend(title="32 words; bars: 1 standard error")
    figure.tight_layout()
    return figure


FIGURES = {"forward": (measure_forward, draw_forward),
           "attention": (measure_attention, draw_attention),
           "orders": (measure_orders, draw_orders),
           "frontier": (measure_frontier, draw_frontier),
           "learning": (measure_learning, draw_learning),
           "parallel": (measure_parallel, draw_parallel),
           "scaling": (measure_scaling, draw_scaling),
           "sudoku": (measure_sudoku, draw_sudoku)}


def main(config, given=()):
    measure, draw = choose_command(config, FIGURES)
    source = Path(config.folder) / "figures" / f"{config.command}.json"
    if not (config.measure or source.exists()):
        raise UserError(f"there is no {source} to draw from: run with --measure")
    pyplot = load_pyplot()  # or UserError, before anything is measured
    if config.measure:
        source.parent.mkdir(parents=True, exist_ok=True)
        write_file(source, json.dumps(measure(config), separators=(",", ":")) + "\n")
    figure = draw(json.loads(source.read_text("utf-8")), pyplot)
    save_figure(figure, Path(config.folder) / f"{config.command}.png", dpi=100, facecolor=PAPER)
    pyplot.close(figure)


if __name__ == "__main__":
    run_experiment(Config, main)
