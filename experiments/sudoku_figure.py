"""
What python -m experiments.figures sudoku measures and draws (chapter 20): one held-out puzzle that
a network fills easiest first and, the same network, in random order. It takes the run in --out_dir,
or trains it there, which takes two CPU minutes.
"""
from pathlib import Path

import torch

import train
from checkpoints.load import load_model
from data import load_data
from diffusion import probabilities
from experiments.timing import hardware
from experiments.training import run_to_end
from flags import UserError, configure
from samplers import make_sampler
from samplers.generate import trajectory

DATA, BOARDS = "sudoku4-in-place", 4
ORDERS = {"easiest first": "entropy", "random order": "first-hitting"}


def measure_sudoku(config):
    """The first held-out puzzle that is solved easiest first, and not in random order.

    For each order: [[cell, digit], ..] as they are written, the cells that break a rule at the end,
    and how many of all held-out puzzles come out right.
    """
    folder = Path(config.out_dir) / f"{DATA}-mgdm"
    if not (folder / "ckpt.pt").exists():
        run_to_end(train, configure(train.Config, data=DATA, method="mgdm", max_iters=2000,
                                    device="cpu", out_dir=str(folder)))
    model, data = load_model(str(folder)), load_data(DATA, 0)
    x, frozen, _ = data.example_windows("val")  # (n, L) each
    states = {}
    for name, sampler in ORDERS.items():
        torch.manual_seed(1)
        states[name] = list(trajectory(
            model.method, model.denoiser, x, frozen, data.block_size,
            make_sampler(sampler, model.method), lambda p: probabilities(p, temperature=0)))
    solved = {name: data.solved(z[-1]) for name, z in states.items()}  # (n,) each
    easy, random = (solved[name] for name in ORDERS)
    found = (easy & ~random).nonzero()[:, 0].tolist()
    if not found:
        raise UserError(f"{folder} solves no puzzle that random order fails: train it longer")
    n = found[0]
    rows = {name: {"written": order_of([z[n] for z in z]), "solved": int(solved[name].sum()),
                   "wrong": (data.faults(z[-1][n:n + 1])[0] & ~frozen[n]).nonzero()[:, 0].tolist()}
            for name, z in states.items()}
    return {"hardware": hardware(), "puzzle": n, "puzzles": len(x),
            "clues": (x[n] * frozen[n]).tolist(), "orders": rows}


def order_of(states):
    """[[cell, digit], ..] in the order of writing. states: ids (L,) after each step"""
    return [[int(cell), int(new[cell])] for old, new in zip(states, states[1:])
            for cell in (old != new).nonzero()[:, 0]]


def draw_sudoku(measured, plot):
    """A row of boards for each order: the color of a cell says when it was written."""
    clues, orders = measured["clues"], measured["orders"]
    figure, panels = plot.subplots(len(orders), BOARDS, figsize=(7.6, 4.3))
    for (name, row), boards in zip(orders.items(), panels):
        n = len(row["written"])
        for k, axes in enumerate(boards):
            done = round(n * k / (BOARDS - 1))
            last = k == BOARDS - 1
            draw_board(axes, clues, row["written"][:done], n, row["wrong"] if last else [], plot)
            axes.set_title(f"{done} of {n} cells", fontsize=9)
        boards[0].set_ylabel(name, fontsize=10)
        what = "wrong" if row["wrong"] else "solved"
        boards[-1].set_xlabel(f"{what}; of all: {row['solved']} of {measured['puzzles']}",
                              fontsize=9)
    figure.tight_layout(h_pad=1.2)
    return figure


def draw_board(axes, clues, written, n, wrong, plot):
    side = round(len(clues) ** 0.5)
    box = round(side**0.5)
    digits = {cell: (digit, None) for cell, digit in enumerate(clues) if digit}
    digits |= {cell: (digit, k / max(1, n - 1)) for k, (cell, digit) in enumerate(written)}
    for cell in range(side * side):
        row, column = divmod(cell, side)
        digit, when = digits.get(cell, ("", None))
        shade = ("#ecebe7" if digit else "white") if when is None else plot.cm.plasma(
            0.25 + 0.7 * when, alpha=0.55)
        axes.add_patch(plot.Rectangle((column, row), 1, 1, facecolor=shade, edgecolor="#b9b4a8",
                                      linewidth=0.6))
        if cell in wrong:
            axes.add_patch(plot.Rectangle((column + 0.07, row + 0.07), 0.86, 0.86, fill=False,
                                          edgecolor="#b3261e", linewidth=2))
        axes.text(column + 0.5, row + 0.53, str(digit), ha="center", va="center", fontsize=11,
                  weight="bold" if when is None else "normal")
    for at in range(0, side + 1, box):
        axes.plot([at, at], [0, side], [0, side], [at, at], color="#1d1c1a", linewidth=1.4)
    axes.set(xlim=(-0.03, side + 0.03), ylim=(side + 0.03, -0.03), aspect="equal", xticks=[],
             yticks=[])
    axes.spines[:].set_visible(False)
