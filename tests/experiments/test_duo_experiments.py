"""Every command of experiments/duo.py prints its table; runs of the same flags are used again."""
from types import SimpleNamespace

import pytest
import torch

import train
from experiments import duo
from experiments.training import distill_or_load
from flags import configure
from runs import TINY, cache, elsewhere  # noqa: F401


@pytest.fixture(autouse=True)
def small(monkeypatch):
    toy = dict(TINY, block_size=32, batch_size=8, max_iters=4)
    monkeypatch.setattr(duo, "TOY", {key: toy[key] for key in toy if key != "eval_iters"})
    monkeypatch.setattr(duo, "LOOKS", dict(eval_interval=1, eval_iters=1))


def run(**flags):
    duo.main(configure(duo.Config, out_dir="out", **flags))


def test_variances_and_learning_curves_are_printed_and_runs_are_used_again(capsys, monkeypatch):
    monkeypatch.setattr(duo, "estimate_bound", lambda *args, **flags: (3.0, 0.1))
    run(command="learn", seeds=1)
    shown = capsys.readouterr().out
    assert all(f"\n{name} " in shown for name in ("mdlm", "duo", "udlm", "ar"))
    assert "duo less udlm: +0.0000" in shown
    monkeypatch.setattr(duo, "variances", lambda model, loss, batches: loss(
        model.method, model.denoiser, batches[0][:2]).mean(0)[:3].tolist())
    run(command="variance")
    shown = capsys.readouterr().out
    assert all(shown.count(f"\n  {name} ") == 2 for name in duo.LOSSES)
    monkeypatch.setattr(train, "main", None)
    run(command="variance")


def test_the_variances_are_those_of_the_losses_and_of_the_gradients():
    """Of 100 weights that are 1, and losses that are c times their sum, c = 1, 2, .. 200."""
    net = torch.nn.Linear(100, 1, bias=False)
    torch.nn.init.ones_(net.weight)
    batches = [torch.full((1, 2), float(c)) for c in range(1, 201)]  # n x (B, L)
    model = SimpleNamespace(method=None, denoiser=net)
    loss = lambda method, denoiser, x: x * denoiser.weight.sum()  # (B, L)
    of_loss, of_gradient, most = duo.variances(model, loss, batches)
    exact = torch.arange(1, 201).double().var().item()
    assert of_loss == pytest.approx(100 ** 2 * exact, rel=1e-4)
    assert of_gradient == pytest.approx(100 * exact) and most == pytest.approx(exact)


def test_quality_against_steps_is_printed_and_drawn(capsys, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    few = dict(num_samples=2, first_steps=2, rounds=1)
    monkeypatch.setattr(duo, "distill_or_load", lambda config, name, **flags: distill_or_load(
        config, name, **flags, **few))
    run(command="steps", share=0.005, num_samples=2, most_steps=2, figure="steps.png")
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("duo + dcd") for line in lines)
    assert any(line.startswith("mdlm + sdtt") for line in lines)
    greedy = {line.split("greedy")[0].strip() for line in lines if " greedy " in line}
    assert greedy == {"duo", "duo + dcd"}  # masks leave no words to correct
    assert (tmp_path / "steps.png").stat().st_size > 10_000


def test_the_steps_to_a_bound_are_interpolated():
    other = [(0, 3.0), (100, 2.0), (200, 1.0)]
    assert duo.steps_ratio([(0, 3.0), (100, 1.5), (200, 0.5)], other, 1.0) == pytest.approx(0.75)
    assert duo.steps_ratio([(100, 1.9), (200, 1.5)], other, 0.5) == 1
    assert duo.steps_ratio([(0, 3.0), (200, 1.5)], other, 1.0) == float("inf")
