"""The figures of docs/: what is drawn is what was measured, and what was measured is what the code does."""
import json
from pathlib import Path

import pytest
import torch
from runs import cache, complaint, elsewhere  # noqa: F401

import partition
import train
from block import doubled
from claims import figures
from model import block_causal, causal

DOCS = Path(__file__).parent.parent / "docs"


def measured(name):
    return json.loads((DOCS / "figures" / f"{name}.json").read_text("utf-8"))


@pytest.mark.parametrize("name", figures.NAMES)
def test_every_figure_is_drawn_from_what_is_kept_and_is_small(name, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    source = DOCS / "figures" / f"{name}.json"
    assert source.stat().st_size < 60_000
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / source.name).write_bytes(source.read_bytes())
    figures.main(figures.Config(command=name, folder=str(tmp_path)))
    assert 5_000 < (tmp_path / f"{name}.png").stat().st_size < 150_000
    assert 5_000 < (DOCS / f"{name}.png").stat().st_size < 150_000


def test_of_the_noise_that_is_drawn_as_much_is_there_as_alpha_and_b_say():
    kept = figures.forward(None, length=4000, times=9)
    for name, part in kept["processes"].items():
        state = torch.tensor(part["state"])                                                         # (L, T)
        for value, share in ((0, part["alpha"]), (1, part["mask"])):
            found = (state == value).double().mean(0)                                               # (T,)
            torch.testing.assert_close(found, torch.tensor(share).double(), atol=0.035, rtol=0)     # 4 errors of .008
        worse = (state[:, 1:] > 0) >= (state[:, :-1] > 0)                                           # (L, T - 1)
        assert worse.all() or "Gaussian" in name             # a path does not come back to the word
    assert figures.forward(None)["processes"].keys() == measured("forward")["processes"].keys()


def test_the_patterns_that_are_drawn_are_the_predicates_of_the_code():
    kept = figures.attention(None)
    rows = lambda name: torch.tensor([[int(c) for c in row] for row in kept[name]]).bool()
    index = lambda n: (torch.arange(n)[:, None], torch.arange(n))
    assert (rows("ar") == causal(0, 0, *index(12))).all() and rows("mdlm").all()
    assert (rows("bd3lm") == doubled(12, 4)(0, 0, *index(24))[:20, :20]).all()
    assert (rows("bd3lm")[12:, 12:] == block_causal(4, 12)(0, 0, *index(8))).all()
    within, across = rows("pgm, within a group"), rows("pgm, across, with 2 starts")
    assert (across[:, 2:] == ~within).all() and across[:, :2].all() and within.diagonal().all()
    assert kept == measured("attention") and partition.attention is figures.networks.attention


def test_the_orders_are_those_of_the_walks():
    few = figures.Config(num_samples=12)
    kept = figures.orders(few)
    assert kept.keys() == measured("orders").keys()
    for rows in (*kept.values(), *measured("orders").values()):
        assert len(rows) == 32 and all(sum(row) == pytest.approx(1, abs=0.01) for row in rows)
    for rows in (kept["ar"], measured("orders")["ar"]):
        assert all(row[place // 2] == 1 for place, row in enumerate(rows))       # two places in each part of the walk
    for place, row in enumerate(measured("orders")["bd3lm, blocks of 4"]):
        assert sum(row[place // 4 * 2:place // 4 * 2 + 2]) == pytest.approx(1, abs=0.01)
    anywhere = torch.tensor(measured("orders")["mdlm, ancestral"])                                  # (32, 16)
    torch.testing.assert_close(anywhere, torch.full_like(anywhere, 1 / 16), atol=0.08, rtol=0)      # 256 texts


def test_learning_reads_what_the_runs_have_written_and_trains_those_that_are_missing(tmp_path, monkeypatch, capsys):
    flags = dict(n_layer=1, n_embd=16, n_head=2, cond_dim=8)
    monkeypatch.setattr(figures.train, "Config", lambda **given: train_config(**{
        **given, **flags, "max_iters": 2, "eval_interval": 1, "eval_iters": 1, "batch_size": 2}))
    config = figures.Config(methods="mdlm", out_dir=str(tmp_path))
    kept = figures.learning(config)
    assert [point[0] for point in kept["methods"]["mdlm"]] == [1, 2]
    assert kept["entropy"] == pytest.approx(2.121, abs=0.001)
    monkeypatch.setattr(figures.train, "main", None)         # not again
    assert figures.learning(config) == kept


train_config = train.Config


def test_bounds_stay_above_the_entropy_by_what_was_measured():
    kept = measured("learning")
    for points in kept["methods"].values():
        assert all(bound - kept["entropy"] > -4 * error for _, bound, error in points) and points[-1][1] < points[0][1]
    assert "EPYC" in kept["hardware"]


@pytest.mark.parametrize("argv, says", [
    ([], "say which figure"), (["--command", "orders", "--folder", "no"], "measure it with --measure")])
def test_what_cannot_be_drawn_is_one_line(argv, says, capsys):
    assert says in complaint(figures, *argv, capsys=capsys)
