"""PGM in the scripts: every flag, exact resume, prompts and gaps, its student, and the claim on its speed."""
import json
import re

import pytest
import torch
from runs import assert_same, cache, elsewhere, fit  # noqa: F401

import claims.partition as claim
import distill
import evaluate
import sample
import train
from checkpoint import restore
from data import BadInput
from methods import make_method, make_sampler
from optim import make_optimizers
from partition import Partition


@pytest.mark.parametrize("flags", [
    dict(decoder_share=0.0), dict(decoder_share=1.0), dict(n_layer=3, decoder_share=0.3), dict(weighting="bound"),
    dict(weighting="simple", optimizer="adamw", qk_norm=False), dict(n_layer=2, dtype="bfloat16", dropout=0.3),
    dict(n_layer=2, gradient_accumulation_steps=2, batch_size=1)], ids=str)
def test_training_takes_two_steps_with_every_flag(flags, tmp_path):
    state = fit(tmp_path / "out", method="pgm", **flags)
    assert state["step"] == 2 and all(p.isfinite().all() for p in state["ema"].values())
    share, n_layer = flags.get("decoder_share", 0.5), flags.get("n_layer", 1)
    assert len({name.split(".")[1] for name in state["ema"] if name.startswith("decoder.")}) == round(share * n_layer)


def test_both_optimizers_have_their_share_and_every_weight_but_the_masks_learns(tmp_path):
    """Muon has the matrices of all three parts. Nothing is told apart by the mask's embedding or its logit."""
    fit(tmp_path / "out", method="pgm", n_layer=2, max_iters=8, batch_size=8, learning_rate=0.01, weight_decay=0.0)
    after, config = restore(tmp_path / "out"), train.Config(n_layer=2, n_head=2, n_embd=16)
    torch.manual_seed(1337)
    before = after.method.network(after.method.vocab_size, 2, 2, 16, cond_dim=0, qk_norm=True)
    learnt = after.denoiser.state_dict()
    assert not any(torch.equal(p, learnt[name]) for name, p in before.named_parameters())
    assert torch.equal(before.embed[-1], after.denoiser.embed[-1]) and (after.denoiser.head.weight[-1] == 0).all()
    adamw, muon = make_optimizers(before, config)
    names = {id(p): name for name, p in before.named_parameters()}
    found = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    assert found == {name for name, p in before.named_parameters()
                     if name.endswith("weight") and p.ndim == 2 and name != "head.weight"}


def test_a_resumed_run_is_the_run_that_was_never_stopped(tmp_path):
    flags = dict(method="pgm", n_layer=3, decoder_share=0.67, lr_schedule="constant", dropout=0.1)
    whole = fit(tmp_path / "whole", **flags, max_iters=4)
    fit(tmp_path / "parts", **flags, max_iters=2)
    assert_same(whole, fit(tmp_path / "parts", init_from="resume", max_iters=4))
    net = restore(tmp_path / "parts").denoiser
    assert isinstance(net, Partition) and (len(net.blocks), len(net.decoder)) == (1, 2)
    with pytest.raises(BadInput, match="decoder_share 0.5 does not fit"):
        fit(tmp_path / "parts", init_from="resume", decoder_share=0.5)


def test_a_checkpoint_that_has_never_heard_of_pgm_still_opens(tmp_path):
    state = fit(tmp_path / "out")
    del state["config"]["decoder_share"]
    torch.save(state, tmp_path / "out" / "ckpt.pt")
    assert type(restore(tmp_path / "out").denoiser).__name__ == "Transformer"


@pytest.mark.parametrize("flags", [
    dict(), dict(sampler="first-hitting"), dict(sampler="confidence"), dict(sampler="psi"), dict(temperature=0.0),
    dict(top_p=0.9), dict(steps=1)], ids=str)
def test_prompts_and_gaps_are_filled_from_a_checkpoint_and_through_the_oracle(flags, tmp_path, capsys):
    fit(tmp_path / "out", method="pgm", n_layer=2)
    for source in (dict(out_dir=str(tmp_path / "out")), dict(oracle="pgm")):
        capsys.readouterr()
        sample.main(sample.Config(**source, json=True, num_samples=3, device="cpu", prompt="_ the cat _ _ every red _",
                                  **{"steps": 4, **flags}))
        for line in capsys.readouterr().out.splitlines():
            assert re.fullmatch(r"\S+ the cat \S+ \S+ every red \S+", json.loads(line)["text"])
        sample.main(sample.Config(**source, num_samples=1, watch=True, length=6, **{"steps": 4, **flags}))
        assert "_" in capsys.readouterr().out.splitlines()[0]            # what does not exist yet is shown as a gap


def test_evaluation_is_mdlms_bound_with_its_error(tmp_path, capsys):
    fit(tmp_path / "out", method="pgm", n_layer=2)
    evaluate.main(evaluate.Config(out_dir=str(tmp_path / "out"), max_texts=8, draws=2, num_samples=2, steps=2,
                                  sampler="first-hitting", device="cpu"))
    assert "pgm, step 2: bound on held-out text" in capsys.readouterr().out


def test_samplers_that_choose_among_masks_are_pgms_too():
    for name in ("ancestral", "first-hitting", "confidence", "psi"):
        assert callable(make_sampler(name, "pgm"))
    with pytest.raises(BadInput, match="proofreads"):
        make_sampler("ancestral", "pgm", tail="greedy")


def test_a_pgm_teacher_is_distilled_by_sdtt(tmp_path, monkeypatch):
    """Two rounds; and from an equal teacher that takes one step there is nothing to learn, from another at masks."""
    teacher = fit(tmp_path / "teacher", method="pgm", n_layer=2, max_iters=30, learning_rate=0.01)
    monkeypatch.setattr(train.Learner, "bound", lambda self, split, texts: (0.0, 0.0))
    common = dict(teacher=str(tmp_path / "teacher"), rounds=2, iters_per_round=2, batch_size=4, num_samples=2,
                  device="cpu", first_steps=4, warmup_iters=0, dtype="float32")
    distill.main(distill.Config(**common, out_dir=str(tmp_path / "student")))
    student = restore(tmp_path / "student")
    assert student.step == 4 and isinstance(student.denoiser, Partition)
    assert any(not torch.equal(p, teacher["ema"][name]) for name, p in student.denoiser.state_dict().items())
    with pytest.raises(BadInput, match="dcd distils udlm and duo"):
        distill.main(distill.Config(**common, method="dcd"))

    class Settings:
        substeps, divergence = 1, "kl-fwd"
    objective = distill.SDTT(student.method, student.denoiser, Settings)
    objective.dt = 0.25
    x = torch.randint(student.method.n_tokens, (8, 8))
    seen = []
    spy = lambda z, t, at: seen.append((z, at)) or student.denoiser(z, t, at=at)
    loss = objective.loss(spy, x)
    assert loss.abs().max() < 1e-6 and torch.equal(seen[0][0] == student.method.process.mask, seen[0][1])
    objective.teacher = lambda z, t, at: torch.zeros(int(at.sum()), student.method.vocab_size)
    loss = objective.loss(spy, x)
    assert (loss[seen[1][1]] > 0).all() and (loss[~seen[1][1]] == 0).all()


# ---- the claim

def test_the_plain_sampler_of_the_claim_is_a_sampler_too():
    """It takes (3) of masked.py at t = 0.8, s = 0.3: masks open with probability 5/8; within 5 standard errors."""
    torch.manual_seed(0)
    process, law = make_method("mdlm", 4).process, torch.tensor([0.1, 0.2, 0.3, 0.4])
    logits = torch.cat([law.log(), torch.tensor([3.0])])
    z = torch.tensor([[4, 1]]).expand(20_000, -1)
    new = claim.plain_step(process, lambda z, t: logits.expand(*z.shape, 5).clone(), z, 0.3, 0.8)
    seen = torch.bincount(new[:, 0], minlength=5) / len(new)
    due = torch.cat([law * 5 / 8, torch.tensor([3 / 8])])
    assert ((seen - due).abs() < 5 * (due * (1 - due) / len(new)).sqrt()).all() and (new[:, 1] == 1).all()


@pytest.mark.parametrize("order", ["first-hitting", "ancestral"])
def test_the_claims_table_counts_and_compares(order, capsys, monkeypatch):
    monkeypatch.setattr(claim, "PLAIN_POSITIONS", 16)
    claim.speed(claim.Config(lengths="8,16", batches="1,3", steps=4, order=order, vocab_size=50, n_layer=2,
                             n_head=2, n_embd=16, moments=4, rounds=2))
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line[:1].isdigit()]
    assert len(rows) == 12
    for row in rows:
        length, batch, sampler, seconds = int(row[0]), int(row[2]), row[3], row[4]
        positions = int(row[6].replace(",", ""))
        assert seconds.startswith("~") == (sampler == "plain" and length * batch > 16)
        if sampler == "plain":
            assert positions == length * batch * 4
        elif order == "first-hitting":
            assert positions == length * batch           # every token is scored once
        assert len(row) == (7 if sampler == "pgm" else 11)


@pytest.mark.parametrize("flags, says", [(dict(lengths="many"), "whole numbers"), (dict(batches="0"), "whole numbers"),
                                         (dict(lengths="8", steps=32), "open one at least")])
def test_a_claim_that_cannot_be_measured_is_one_line(flags, says):
    with pytest.raises(BadInput, match=says):
        claim.speed(claim.Config(**flags))
