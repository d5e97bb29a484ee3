"""D3PM and SEDD as their users meet them: every flag, exact resume, an embedding from another run, plain refusals."""
import json
import shutil

import pytest
import torch
from runs import assert_same, cache, complaint, elsewhere, fit  # noqa: F401

import claims.d3pm
import distill
import evaluate
import sample
import train
from checkpoint import load, restore

D3PM = dict(method="d3pm", diffusion_steps=6)
FLAGS = [dict(D3PM), dict(D3PM, transition="uniform"), dict(D3PM, transition="gaussian"), dict(D3PM, aux=0.0),
         dict(D3PM, transition="uniform", dtype="bfloat16", aux=1.0), dict(D3PM, diffusion_steps=1),
         dict(method="sedd"), dict(method="sedd", transition="uniform"),
         dict(method="sedd", noise_schedule="geometric"),
         dict(method="sedd", transition="uniform", noise_schedule="geometric", dtype="bfloat16", dropout=0.2)]


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A run whose embeddings others take."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "final", lambda learner: None)
        folder = tmp_path_factory.mktemp("other") / "mdlm"
        fit(folder, method="mdlm", max_iters=20, learning_rate=0.01)
    return folder


def sampled(capsys, **flags):
    """Texts with two given words in them, which survive."""
    capsys.readouterr()
    sample.main(sample.Config(prompt="the _ cat _ _", num_samples=2, json=True, device="cpu", **{"steps": 4, **flags}))
    texts = [json.loads(line)["text"].split() for line in capsys.readouterr().out.splitlines()]
    assert all(len(words) == 5 and words[0] == "the" and words[2] == "cat" and "_" not in words for words in texts)


def evaluated(capsys, **flags):
    """-> what evaluate.py says, with samples of the sampler that is asked for"""
    capsys.readouterr()
    flags = {"max_texts": 4, "num_samples": 2, "draws": 1, "steps": 4, **flags}
    evaluate.main(evaluate.Config(**flags, json=True, device="cpu"))
    result = json.loads(capsys.readouterr().out)
    assert result["nats_per_token"] > 0 and not result["exact"]
    return result


@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_two_steps_of_training_then_samples_and_a_bound_with_every_value_of_every_flag(flags, capsys):
    state = fit("out", **flags)
    assert state["step"] == 2 and all(p.isfinite().all() for p in state["ema"].values())
    sampled(capsys, out_dir="out")
    sampled(capsys, out_dir="out", temperature=0.0, steps=50)
    for sampler in ("analytic", "euler") if flags["method"] == "sedd" else ():
        sampled(capsys, out_dir="out", sampler=sampler, top_p=0.9)
    said = evaluated(capsys, out_dir="out", sampler="euler" if flags["method"] == "sedd" else "ancestral", steps=50)
    assert said["steps"] == flags.get("diffusion_steps", 50)             # d3pm has so many, and takes no more


@pytest.mark.parametrize("oracle", ["d3pm", "sedd"])
def test_both_run_through_the_oracle(oracle, capsys):
    sampled(capsys, oracle=oracle, steps=16)
    assert abs(evaluated(capsys, oracle=oracle)["gap"]) < 1
    for sampler in ("analytic", "euler") if oracle == "sedd" else ():
        sampled(capsys, oracle=oracle, sampler=sampler)


def test_nearest_neighbours_come_from_another_run_and_stay_in_the_checkpoint(other, capsys):
    """A resumed run and a restored one have them when that run has changed, or is gone."""
    flags = dict(D3PM, transition="nearest", learning_rate=0.01, lr_schedule="constant")
    whole = fit("whole", **flags, embedding=str(other), max_iters=4)
    shutil.copytree(other, "lent")
    parts = fit("parts", **flags, embedding="lent", max_iters=2)
    assert torch.equal(parts["embedding"], load(other)["ema"]["embed"][:113]) and "embedding" not in load(other)
    shutil.rmtree("lent")
    assert_same(whole, fit("parts", init_from="resume", max_iters=4))
    sampled(capsys, out_dir="parts")
    assert torch.equal(restore("parts").method.chain.Q, restore("whole").method.chain.Q)
    shutil.copytree(other, "lent")
    resume = ["--out_dir", "parts", "--init_from", "resume"]
    assert "--embedding lint does not fit the run in parts, which has lent" in complaint(
        train, *resume, "--embedding", "lint", capsys=capsys)


@pytest.mark.parametrize("name, value", [
    ("transition", "uniform"), ("diffusion_steps", 7), ("noise_schedule", "geometric")])
def test_a_resumed_run_cannot_change_its_noise(name, value, other, capsys):
    error = complaint(train, "--out_dir", other, "--init_from", "resume", f"--{name}={value}", capsys=capsys)
    assert f"--{name} {value} does not fit" in error


@pytest.mark.parametrize("flags, says", [
    (["--method", "d3pm", "--transition", "nearest"], "--transition nearest needs --embedding FOLDER"),
    (["--method", "d3pm", "--transition", "nearest", "--embedding", "nowhere"], "there is no checkpoint nowhere"),
    (["--method", "d3pm", "--transition", "nearest", "--embedding", "OTHER", "--data", "names"], "tokens than names"),
    (["--method", "d3pm", "--transition", "gaussian", "--diffusion_steps", "100000"], "fewer --diffusion_steps"),
    (["--method", "sedd", "--transition", "gaussian"], "--transition gaussian is for d3pm"),
    (["--method", "d3pm", "--diffusion_steps", "0"], "must lie between 1 and 100000"),
    (["--transition", "gausian"], "did you mean gaussian?"), (["--aux=-1"], "at least 0")])
def test_what_cannot_be_trained_is_one_line(flags, says, other, capsys):
    tiny = dict(data="toy", block_size=8, n_layer=1, n_embd=16, n_head=2, max_iters=1, device="cpu")
    flags = [str(other) if word == "OTHER" else word for word in flags]
    assert says in complaint(train, *[f"--{name}={value}" for name, value in tiny.items()], *flags, capsys=capsys)


@pytest.mark.parametrize("argv, says", [
    (["--oracle", "sedd", "--sampler", "psi"], "sedd has a walk of its own: --sampler ancestral or analytic or euler"),
    (["--oracle", "d3pm", "--sampler", "euler"], "d3pm has a walk of its own"),
    (["--oracle", "udlm", "--sampler", "euler"], "which sedd has: udlm predicts a mean"),
    (["--oracle", "d3pm", "--tail", "greedy"], "no --tail or --grid")])
def test_what_cannot_be_sampled_is_one_line(argv, says, capsys):
    assert says in complaint(sample, *argv, capsys=capsys)


def test_no_student_is_made_of_them(capsys):
    fit("teacher", method="sedd")
    assert "--method sdtt distils mdlm and pgm: teacher is sedd" in complaint(
        distill, "--teacher", "teacher", "--device", "cpu", capsys=capsys)


def test_the_table_of_steps_is_made_without_training(capsys):
    claims.d3pm.main(claims.d3pm.Config(command="steps", texts=40, most=8, length=6))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line[:5].strip().isdigit()] == ["4", "8"]
