"""Masking schedules in runs: every schedule and objective, and one that is learned."""
import pytest
import torch

import evaluate
import sample
from checkpoints.load import load_model
from evaluation.likelihood import estimate_bound
from flags import configure
from methods.radd import OBJECTIVES
from runs import cache, elsewhere, fit  # noqa: F401
from runtime import progress
from runtime.trainer import Trainer


@pytest.mark.parametrize("method, flags", [
    *[("md4", dict(mask_schedule=name)) for name in ("linear", "cosine")],
    ("md4", dict(mask_schedule="polynomial", power=3.0)), ("genmd4", {}),
    ("genmd4", dict(labels=True)),
    *[("radd", dict(radd_objective=name)) for name in OBJECTIVES]], ids=str)
def test_two_steps_of_training_samples_and_a_bound_with_every_flag(method, flags, capsys):
    state = fit("out", method=method, **flags)
    assert state["step"] == 2 and all(p.isfinite().all() for p in state["ema"].values())
    where = dict(out_dir="out", steps=3, device="cpu")
    sample.main(configure(sample.Config, **where, length=20, num_samples=2), ())
    evaluate.main(configure(evaluate.Config, **where, max_texts=8, draws=2, num_samples=2), ())
    assert f"{method}, step 2: bound" in capsys.readouterr().out


def test_a_learned_schedule_is_saved_and_averaged():
    state = fit("out", method="genmd4", max_iters=6, learning_rate=0.1)
    assert state["model"]["w_raw"].shape == (113,) and state["model"]["w_raw"].std() > 0
    model = load_model("out")
    assert torch.equal(model.method.w_raw, model.denoiser.w_raw)
    assert model.denoiser.w_raw.std() > 0
    assert torch.equal(model.denoiser.w_raw.detach(), state["ema"]["w_raw"])


def test_a_run_prints_what_the_checkpoint_gives(monkeypatch):
    """The network of a report is the average, and so is the schedule, in its bound and sample."""
    bounds, texts, schedules = [], [], []
    bound = Trainer.bound

    def seen(self, split, n, draws=1):
        texts.append(self.data.example_windows("val", 16)[0])  # (16, L)
        bounds.append(bound(self, "val", 16))
        return bound(self, split, n, draws)

    def generate(method, *args, **options):
        schedules.append(method.w_raw)
        return [torch.zeros(3, dtype=torch.long)]
    monkeypatch.setattr(Trainer, "bound", seen)
    monkeypatch.setattr(progress, "generate", generate)
    fit("out", method="genmd4", max_iters=6, learning_rate=0.1)
    model = load_model("out")
    found = estimate_bound(model.method, model.denoiser, texts[-1], batch_size=2, independent=True)
    assert bounds[-1] == found
    assert torch.equal(schedules[-1], model.method.w_raw)
