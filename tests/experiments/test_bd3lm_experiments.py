"""Every command of experiments/bd3lm.py prints its table, for tiny networks."""
import pytest

from experiments import bd3lm, training
from flags import configure
from runs import TINY, cache, elsewhere  # noqa: F401


@pytest.fixture(autouse=True)
def small(monkeypatch):
    tiny = {key: value for key, value in TINY.items() if key != "data"}
    monkeypatch.setattr(training, "TWO_MINUTES", dict(tiny, block_size=32, batch_size=8))


def run(command, **flags):
    bd3lm.main(configure(bd3lm.Config, command=command, texts=32, out_dir="out", **flags))


@pytest.mark.parametrize("command, flags, rows", [
    ("shrink", {}, ["mdlm", "bd3lm, blocks of 16", "bd3lm, blocks of 1", "ar"]),
    ("clip", {}, list(bd3lm.SCHEDULES)),
    ("speed", dict(length=16, vocab_size=16, n_layer=1, n_embd=8, n_head=1, seconds=0.01),
     ["ar, cache", "bd3lm, blocks of 16, cache, 4 tokens a call", "pgm, 2 steps"])])
def test_every_command_prints_its_table(command, flags, rows, capsys):
    run(command, **flags)
    shown = capsys.readouterr().out
    assert all(f"\n{row} " in shown for row in rows)


def test_caches_are_compared_with_none_which_makes_no_difference(capsys):
    run("cache")
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.startswith(tuple(bd3lm.RULES))]
    assert len(rows) == 3 * len(bd3lm.RULES)
    assert all(" 0.000 +- 0.000 " in row for row in rows if " none " in row)
