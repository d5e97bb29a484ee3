"""The figures of docs/ show what was measured, and what was measured is what the code does."""
import json
from pathlib import Path

import pytest
import torch

import train
from data import puzzles
from data.sudoku import Sudoku4InPlace
from experiments import figures, sudoku_figure
from flags import UserError, configure
from methods import pgm
from methods.bd3lm import block_diffusion_mask
from model import attention, block_causal, causal
from runs import cache, complaint, elsewhere  # noqa: F401

DOCS = Path(__file__).parents[2] / "docs"


def saved(name):
    return json.loads((DOCS / "figures" / f"{name}.json").read_text("utf-8"))


def config_of(**flags):
    return configure(figures.Config, **flags)


@pytest.mark.parametrize("name", figures.FIGURES)
def test_every_figure_is_drawn_from_what_is_saved_and_is_small(name, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    source = DOCS / "figures" / f"{name}.json"
    assert source.stat().st_size < 60_000
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / source.name).write_bytes(source.read_bytes())
    figures.main(config_of(command=name, folder=str(tmp_path)))
    assert 5_000 < (tmp_path / f"{name}.png").stat().st_size < 150_000
    assert 5_000 < (DOCS / f"{name}.png").stat().st_size < 150_000


def test_the_share_of_each_kind_of_noise_is_that_of_alpha_and_b():
    measured = figures.measure_forward(None, length=4000, times=9)
    for name, part in measured["processes"].items():
        state = torch.tensor(part["state"])  # (L, T)
        for value, share in ((0, part["alpha"]), (1, part["mask"])):
            found, share = (state == value).double().mean(0), torch.tensor(share).double()  # (T,)
            torch.testing.assert_close(found, share, atol=0.035, rtol=0)  # 4 errors of .008
        noisier = (state[:, 1:] > 0) >= (state[:, :-1] > 0)  # (L, T - 1)
        assert noisier.all() or "Gaussian" in name  # noise is never taken back along a path
    processes = figures.measure_forward(None)["processes"]
    assert processes.keys() == saved("forward")["processes"].keys()


def test_the_patterns_that_are_drawn_are_the_predicates_of_the_code():
    measured = figures.measure_attention(None)
    rows = lambda name: torch.tensor([[int(c) for c in row] for row in measured[name]]).bool()
    index = lambda n: (torch.arange(n)[:, None], torch.arange(n))
    assert (rows("ar") == causal(0, 0, *index(12))).all() and rows("mdlm").all()
    blocks = block_diffusion_mask(12, 4)(0, 0, *index(24))  # (24, 24)
    assert (rows("bd3lm") == blocks[:20, :20]).all()
    assert (rows("bd3lm")[12:, 12:] == block_causal(4, 12)(0, 0, *index(8))).all()
    within, across = rows("pgm, within a group"), rows("pgm, across, with 2 starts")
    assert (across[:, 2:] == ~within).all() and across[:, :2].all() and within.diagonal().all()
    assert measured == saved("attention") and pgm.attention is attention


def test_the_orders_are_those_of_the_samplers():
    measured = figures.measure_orders(config_of(num_samples=12))
    assert measured.keys() == saved("orders").keys()
    for rows in (*measured.values(), *saved("orders").values()):
        assert len(rows) == 32 and all(sum(row) == pytest.approx(1, abs=0.01) for row in rows)
    for rows in (measured["ar"], saved("orders")["ar"]):
        assert all(row[i // 2] == 1 for i, row in enumerate(rows))  # two positions in each part
    for i, row in enumerate(saved("orders")["bd3lm, blocks of 4"]):
        assert sum(row[i // 4 * 2:i // 4 * 2 + 2]) == pytest.approx(1, abs=0.01)
    uniform = torch.tensor(saved("orders")["mdlm, ancestral"])  # (32, 16)
    torch.testing.assert_close(uniform, torch.full_like(uniform, 1 / 16), atol=0.08, rtol=0)


def test_learning_reads_the_logs_of_runs_and_trains_those_that_are_missing(tmp_path, monkeypatch):
    tiny = dict(n_layer=1, n_embd=16, n_head=2, cond_dim=8, max_iters=2, eval_interval=1,
                eval_iters=1, batch_size=2)
    monkeypatch.setattr(figures, "configure", lambda cls, **flags: configure(cls, **flags | tiny))
    config = config_of(methods="mdlm", out_dir=str(tmp_path))
    measured = figures.measure_learning(config)
    assert [point[0] for point in measured["methods"]["mdlm"]] in ([1, 2], [0, 1, 2])
    assert measured["entropy"] == pytest.approx(2.121, abs=0.001)
    monkeypatch.setattr(train, "main", None)  # not again
    assert figures.measure_learning(config) == measured


def test_what_parallelism_costs_is_measured_on_the_exact_denoisers_and_on_a_run(
        tmp_path, monkeypatch):
    """At 4.5 standard errors: nothing where all of z is seen, and less the larger the slope."""
    monkeypatch.setattr(figures, "SLOPES", (0.0, 1.0))
    tiny = configure(train.Config, data="toy", method="diffusion_forcing", n_layer=1, n_embd=16,
                     n_head=2, max_iters=1, batch_size=2, eval_iters=1, block_size=32,
                     device="cpu", out_dir=str(tmp_path / "toy-diffusion_forcing"))
    train.main(tiny)
    lines = figures.measure_parallel(config_of(out_dir=str(tmp_path), max_texts=40))["lines"]
    for above, error in (*lines["exact, sees all of z"], lines["exact, sees z_<=l"][1]):
        assert abs(above) < 4.5 * error and error < 0.15
    assert lines["exact, sees z_<=l"][0][0] > 0.3
    assert min(above for above, _ in lines["trained, sees z_<=l"]) > 1  # after one step


def test_what_parallelism_costs_as_it_was_measured():
    kept = saved("parallel")
    causal, full = (kept["lines"][f"exact, sees {what}"] for what in ("z_<=l", "all of z"))
    assert all(abs(above) < 4 * error for above, error in (*full, causal[-1]))
    assert all(a[0] > b[0] for a, b in zip(causal, causal[1:])) and causal[0][0] > 0.6


def test_bounds_stay_above_the_entropy_by_what_was_measured():
    kept = saved("learning")
    for points in kept["methods"].values():
        assert all(bound - kept["entropy"] > -4 * error for _, bound, error in points)
        assert points[-1][1] < points[0][1]
    assert "EPYC" in kept["hardware"]


def test_the_puzzle_of_the_figure_is_solved_in_one_order_and_not_in_the_other(monkeypatch):
    monkeypatch.setattr(puzzles, "MANY", 500)
    kept, data = saved("sudoku"), Sudoku4InPlace()
    x, frozen, _ = (a if a is None else a[kept["puzzle"]] for a in data.example_windows("val"))
    assert kept["clues"] == (x * frozen).tolist() and kept["puzzles"] == 500
    for row, solved in zip(kept["orders"].values(), (True, False)):
        cells, digits = torch.tensor(row["written"]).T  # (n,) each
        assert sorted(cells.tolist()) == (~frozen).nonzero()[:, 0].tolist()
        z = torch.tensor(kept["clues"]).scatter(0, cells, digits)  # (16,)
        assert data.solved(z[None]).item() == solved == (row["wrong"] == [])
        assert row["wrong"] == (data.faults(z[None])[0] & ~frozen).nonzero()[:, 0].tolist()


def test_the_puzzle_needs_a_network_that_solves_some(monkeypatch):
    """And it takes the run that is there, or trains it."""
    tiny = dict(n_layer=1, n_embd=16, n_head=2, max_iters=1, batch_size=2, eval_iters=1)
    monkeypatch.setattr(sudoku_figure, "configure",
                        lambda cls, **flags: configure(cls, **{**flags, **tiny}))
    for main in (train.main, None):
        monkeypatch.setattr(train, "main", main)
        with pytest.raises(UserError, match="solves no puzzle that random order fails"):
            sudoku_figure.measure_sudoku(config_of(out_dir="out"))
    states = torch.tensor([[1, 5, 5], [1, 5, 2], [1, 3, 2]])  # (3, L)
    assert sudoku_figure.order_of(states) == [[2, 2], [1, 3]]


@pytest.mark.parametrize("argv, says", [
    ([], "say what to measure: forward, attention"),
    (["--command", "orders", "--folder", "no"], "run with --measure")])
def test_what_cannot_be_drawn_is_one_line(argv, says, capsys):
    assert says in complaint(figures, *argv, capsys=capsys)
