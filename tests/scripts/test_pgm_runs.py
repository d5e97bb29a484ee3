"""Partition generative models in runs: their network, both optimizers, prompts, a student."""
import json
import re

import pytest
import torch

import distill
import sample
import train
from checkpoints.load import load_model
from flags import configure
from methods.pgm import Partition
from runs import cache, elsewhere, fit  # noqa: F401
from runtime.optim import make_optimizers
from runtime.trainer import Trainer


@pytest.mark.parametrize("n_layer, share, blocks, decoder", [
    (1, 0.0, 1, 0), (1, 1.0, 0, 1), (3, 0.3, 2, 1), (3, 0.67, 1, 2)])
def test_the_flags_say_how_many_blocks_decode(n_layer, share, blocks, decoder):
    fit("out", method="pgm", n_layer=n_layer, decoder_share=share)
    network = load_model("out").denoiser
    assert isinstance(network, Partition)
    assert (len(network.blocks), len(network.decoder)) == (blocks, decoder)


def test_every_weight_learns_but_those_of_the_mask_and_muon_has_the_matrices_of_all_parts():
    """No input holds a mask, and none is predicted."""
    fit("out", method="pgm", n_layer=2, max_iters=8, batch_size=8, learning_rate=0.01,
        weight_decay=0.0)
    after, config = load_model("out"), configure(train.Config, n_layer=2, n_head=2, n_embd=16,
                                                 muon_dtype="float32")
    torch.manual_seed(1337)
    before = after.method.network(after.method.vocab_size, 2, 2, 16, cond_dim=0, qk_norm=True)
    learned = after.denoiser.state_dict()
    assert not any(torch.equal(p, learned[name]) for name, p in before.named_parameters())
    assert torch.equal(before.embed[-1], after.denoiser.embed[-1])
    assert (after.denoiser.head.weight[-1] == 0).all()
    adamw, muon = make_optimizers(before, config)
    names = {id(p): name for name, p in before.named_parameters()}
    found = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    assert found == {name for name, p in before.named_parameters()
                     if name.endswith("weight") and p.ndim == 2 and name != "head.weight"}


@pytest.mark.parametrize("source", [dict(out_dir="out"), dict(oracle="pgm")], ids=str)
@pytest.mark.parametrize("flags", [
    dict(), dict(sampler="first-hitting"), dict(sampler="confidence"), dict(sampler="psi"),
    dict(temperature=0.0), dict(top_p=0.9), dict(steps=1)], ids=str)
def test_gaps_are_filled_and_a_viewer_shows_tokens_that_do_not_exist_yet_as_gaps(flags, source,
                                                                                capsys):
    if "out_dir" in source:
        fit("out", method="pgm", n_layer=2)
    capsys.readouterr()
    flags = {"steps": 4, "device": "cpu", **source, **flags}
    sample.main(configure(sample.Config, json=True, num_samples=3,
                          prompt="_ the cat _ _ every red _", **flags), [])
    for line in capsys.readouterr().out.splitlines():
        assert re.fullmatch(r"\S+ the cat \S+ \S+ every red \S+", json.loads(line)["text"])
    sample.main(configure(sample.Config, num_samples=1, watch=True, length=6, **flags), [])
    assert "_" in capsys.readouterr().out.splitlines()[0]


def test_a_pgm_is_distilled_by_sdtt(monkeypatch):
    """Two rounds. A student that equals its teacher learns nothing in one step; another one learns
    at masks alone."""
    teacher = fit("teacher", method="pgm", n_layer=2, max_iters=30, learning_rate=0.01)
    monkeypatch.setattr(Trainer, "bound", lambda self, split, texts: (0.0, 0.0))
    flags = dict(teacher="teacher", out_dir="student", rounds=2, iters_per_round=2, batch_size=4,
                 num_samples=2, device="cpu", first_steps=4, warmup_iters=0, dtype="float32")
    distill.main(configure(distill.Config, **flags), [*flags])
    student = load_model("student")
    assert student.step == 4 and isinstance(student.denoiser, Partition)
    assert any(not torch.equal(p, teacher["ema"][name])
               for name, p in student.denoiser.state_dict().items())

    settings = configure(distill.Config, substeps=1, divergence="kl-fwd")
    objective, seen = distill.SDTT(student.method, student.denoiser, settings), []
    objective.dt, x = 0.25, torch.randint(student.method.n_tokens, (8, 8))  # x (8, 8)
    spy = lambda z, t, at: seen.append((z, at)) or student.denoiser(z, t, at=at)
    assert objective.loss(spy, x).abs().max() < 1e-6
    assert torch.equal(seen[0][0] == student.method.process.mask, seen[0][1])
    objective.teacher = lambda z, t, at: torch.zeros(int(at.sum()), student.method.vocab_size)
    loss = objective.loss(spy, x)  # (8, 8)
    assert (loss[seen[1][1]] > 0).all() and (loss[~seen[1][1]] == 0).all()
