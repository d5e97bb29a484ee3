"""Guidance by gradients in the scripts, by exact and by trained classifiers."""
import json

import pytest
import torch
from models import random_checkpoint

import evaluate
import sample
import train
from checkpoints.load import load_model
from diffusion import ancestral
from evaluation.held_out import TIMES
from flags import configure
from methods import make_method
from runs import cache, complaint, elsewhere, fit  # noqa: F401
from samplers.gradients import guide_by_gradients

ORACLE = "--oracle plaid --dim 4 --steps 2 --label sea --classifier exact".split()


def run(script, **flags):
    script.main(configure(script.Config, device="cpu", **flags))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Checkpoints of random weights, one with a table of its own, and two classifiers."""
    root = tmp_path_factory.mktemp("gradients")
    for name in ("plaid", "diffusion_lm", "sed"):
        random_checkpoint(root / name, method=name, dim=4)
    random_checkpoint(root / "of-sed", method="classifier", noise_of="sed", dim=4, labels=True)
    random_checkpoint(root / "bfn", method="bfn")
    random_checkpoint(root / "of-bfn", method="classifier", noise_of="bfn", labels=True)
    random_checkpoint(root / "of-masks", method="classifier", labels=True)
    return root


def test_a_classifier_is_trained_on_the_table_of_a_run_and_guides_it(folder, capsys):
    state = fit("judge", method="classifier", noise_of="plaid", max_iters=3, eval_interval=2, dim=4,
                noise_from=str(folder / "plaid"))
    judge, model = load_model("judge"), load_model(folder / "plaid")
    assert torch.equal(judge.method.process.rows(), model.method.process.rows())
    assert state["classes"] and judge.method.process is judge.method.noise.process
    assert "4 classes are equally likely" in capsys.readouterr().out
    run(evaluate, out_dir="judge", max_texts=40, json=True)
    rows = json.loads(capsys.readouterr().out)
    assert [row["t"] for row in rows] == list(TIMES)
    assert rows[0]["exact_nats"] < rows[4]["exact_nats"]
    guided = dict(out_dir=str(folder / "plaid"), label="sea", guidance=2.0, steps=2, num_samples=2)
    for gradient in ("noisy", "clean", "control"):
        run(sample, **guided, classifier="judge", gradient=gradient, gradient_steps=2)
    run(evaluate, **guided, classifier=str(folder / "of-masks"), gradient="clean", max_texts=60,
        draws=1)
    assert "exact p(class | text)" in capsys.readouterr().out
    fit("judge", init_from="resume", max_iters=5)
    assert load_model("judge").step == 5
    assert torch.equal(load_model("judge").method.process.rows(), model.method.process.rows())


def test_other_noise_than_that_of_the_model_is_one_line(folder, capsys):
    at = ["--label", "sea", "--classifier", folder / "of-sed", "--out_dir"]
    run(sample, out_dir=str(folder / "diffusion_lm"), label="sea", classifier="exact", steps=2,
        num_samples=1)
    error = complaint(sample, *at, folder / "plaid", capsys=capsys)
    assert "reads the noise of sed" in error and "and --noise_from its run" in error
    assert "reads the noise of sed" in complaint(sample, *at, folder / "sed", capsys=capsys)
    toy = ["--data", "toy", "--block_size", 8, "--method", "classifier", "--noise_from"]
    error = complaint(train, *toy, folder / "sed", capsys=capsys)
    assert "mdlm learns no noise" in error
    error = complaint(train, *toy, folder / "sed", "--noise_of", "plaid", capsys=capsys)
    assert "is a run of sed, and not of --noise_of plaid" in error


def test_a_classifier_of_evidence_guides_with_the_schedule_that_it_was_trained_on(folder, capsys):
    guided = dict(label="sea", guidance=2.0, steps=3, num_samples=2, out_dir=str(folder / "bfn"))
    run(sample, **guided, classifier=str(folder / "of-bfn"))
    run(sample, **guided, classifier=str(folder / "of-masks"), gradient="clean", sampler="ode")
    random_checkpoint(folder / "more", method="bfn", lam1=9.0)
    error = complaint(sample, "--label", "sea", "--classifier", folder / "of-bfn", "--out_dir",
                      folder / "more", capsys=capsys)
    assert "reads the noise of bfn, which is not that of bfn" in error


@pytest.mark.parametrize("argv, says", [
    (["--oracle", "mdlm", "--label", "sea", "--classifier", "exact", "--gradient", "clean"],
     "--gradient clean is for noise of real numbers, and mdlm has symbols"),
    ([*ORACLE, "--gradient", "control", "--sampler", "ddim"], "take --sampler ddpm"),
    (["--oracle", "plaid", "--gradient", "clean"],
     "--gradient counts for nothing without --classifier"),
    (["--oracle", "difformer", "--label", "sea", "--classifier", "exact", "--gradient", "clean"],
     "difformer predicts rows"),
])
def test_what_has_no_gradient_is_one_line(argv, says, capsys):
    assert says in complaint(sample, *argv, capsys=capsys)


def test_every_flag_reaches_the_guided_process():
    process = lambda **flags: guide_by_gradients(configure(
        sample.Config, oracle="plaid", classifier="exact", label="sea", **flags),
        make_method("plaid", 8), ancestral, torch.tensor([1]), None)
    assert process(guidance=2.0).method.process.strength == 2.0
    clean = process(gradient="clean", gradient_steps=3).method.process
    assert clean.clean and clean.steps == 3
    assert process(gradient="control", gradient_steps=4).guide.steps == 4
