"""experiments/adaptation.py prints its table for tiny networks, and its middles are middles."""
import pytest
import torch

from experiments import adaptation
from flags import configure
from methods import make_method
from runs import TINY, cache, elsewhere  # noqa: F401


def test_the_table_has_a_row_for_every_way_and_all_are_compared(monkeypatch, capsys):
    small = {key: TINY[key] for key in ("n_layer", "n_embd", "n_head", "batch_size", "device")}
    monkeypatch.setattr(adaptation, "SIZE", dict(small, block_size=8))
    monkeypatch.setattr(adaptation, "steps_in", lambda seconds, method, **flags: 3)
    adaptation.main(configure(adaptation.Config, data="names", texts=6, seeds=2, gap=2))
    shown = capsys.readouterr().out
    assert all(f"\n{name} " in shown for name in adaptation.WAYS) and "6 steps" in shown
    assert shown.count("less mdlm from scratch") == 3 * (len(adaptation.WAYS) - 1)
    assert [line for line in shown.splitlines() if line.startswith("seed 2: ")][0].startswith(
        "seed 2: ar, 3 steps")  # the others start from it


@pytest.mark.parametrize("method", ["ar", "mdlm"])
def test_the_share_right_is_that_of_the_middle_alone(method):
    """A denoiser that always says 1 is right where the middle is 1."""
    made, x = make_method(method, 4), torch.zeros(3, 10).long()  # (3, 10)
    x[0, 3:7], x[1, 3:5] = 1, 1
    given = adaptation.middle_of(x, 4)  # (3, 10)
    assert given[0].tolist() == [True] * 3 + [False] * 4 + [True] * 3
    says = torch.tensor([0.0, 9, 0, 0, 0])  # (V,)
    one = lambda z, t, at: says.expand(int(at.sum()), -1)
    assert adaptation.share_right(made, one, x, given).tolist() == [1, 0.5, 0]
