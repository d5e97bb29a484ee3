"""Distillation runs: settings, rounds, exact resume; the student is an ordinary checkpoint."""

import json
import signal
from pathlib import Path

import pytest
import torch

import distill
import evaluate
import sample
import train
from checkpoints.file import Folder
from checkpoints.load import load_model, read_state
from distill import DCD
from flags import configure, parse
from runs import (  # noqa: F401
    assert_same,
    cache,
    complaint,
    elsewhere,
    fit,
    interrupt,
    metrics,
    trained,
)
from runtime import distributed
from runtime import run as run_module
from runtime import teacher as teacher_module
from runtime.teacher import student_flags


TINY = dict(rounds=2, iters_per_round=2, batch_size=4, first_steps=8, num_samples=4, device="cpu",
            dtype="float32", warmup_iters=1)


@pytest.fixture(autouse=True)
def short_reports(monkeypatch):
    monkeypatch.setattr(teacher_module, "REPORT_STEPS", (2,))
    monkeypatch.setattr(teacher_module, "BOUND_TEXTS", 8)


def run(teacher, out_dir, given=None, **flags):
    """A tiny distillation in this process. -> its checkpoint"""
    flags = {**TINY, **flags}
    config = configure(distill.Config, **{**flags, "teacher": str(teacher),
                                          "out_dir": str(out_dir)})
    distill.main(config, list(flags if given is None else given))
    return read_state(out_dir)


PAIRS = [("mdlm", "sdtt"), ("duo", "dcd"), ("udlm", "dcd")]


@pytest.mark.parametrize("teacher, method", PAIRS)
def test_a_student_begins_as_its_teacher(teacher, method, trained):
    state = run(trained / teacher, "out", method=method, learning_rate=0.0, muon_lr=0.0, rounds=1,
                iters_per_round=1)
    theirs = read_state(trained / teacher)["ema"]
    for part in ("model", "ema"):
        torch.testing.assert_close(state[part], theirs, rtol=0, atol=0)


SETTINGS = [
    {},
    {"divergence": "kl-fwd"},
    {"refresh": "ema"},
    {"first_steps": 1},
    {"gradient_accumulation_steps": 2},
    {"divergence": "mse"},
    {"divergence": "tvd"},
    {"rounds": 1, "iters_per_round": 1},
    {"substeps": 1},
    {"substeps": 4},
]  # dcd has no substeps, and shares what is left with sdtt


@pytest.mark.parametrize(
    "teacher, method, flags",
    [(*PAIRS[0], flags) for flags in SETTINGS] + [(*PAIRS[1], flags) for flags in SETTINGS[:5]],
    ids=str,
)
def test_every_setting_runs_and_changes_the_weights(teacher, method, flags, trained):
    before = read_state(trained / teacher)
    after = run(trained / teacher, "student", method=method, **flags)
    assert any(not torch.equal(before["ema"][key], after["model"][key]) for key in before["ema"])
    assert all(value.isfinite().all() for value in after["model"].values())


@pytest.mark.parametrize("teacher, method", PAIRS)
def test_the_student_is_an_ordinary_checkpoint(teacher, method, trained, capsys):
    run(trained / teacher, "student", method=method)
    sample.main(configure(sample.Config, out_dir="student", num_samples=1, steps=2))
    evaluate.main(
        configure(evaluate.Config, out_dir="student", draws=1, max_texts=4, num_samples=2, steps=2)
    )
    assert load_model("student").config.method == teacher
    assert "bound on held-out text" in capsys.readouterr().out
    assert set(metrics("student", "val_bound")) == {0, 2, 4}


@pytest.mark.parametrize("refresh", ["raw", "ema"])
def test_each_round_doubles_the_step_and_makes_the_student_the_teacher(
    refresh, trained, monkeypatch
):
    seen = []
    loss = DCD.loss

    def spy(self, denoiser, x, frozen=None):
        assert not self.teacher.training and not any(
            p.requires_grad for p in self.teacher.parameters()
        )
        seen.append((self.dt, self.teacher.embed.clone()))
        return loss(self, denoiser, x, frozen)

    monkeypatch.setattr(DCD, "loss", spy)
    first = run(trained / "duo", "one", method="dcd", rounds=1)[
        "ema" if refresh == "ema" else "model"
    ]["embed"]
    seen.clear()
    run(trained / "duo", "two", method="dcd", rounds=2, refresh=refresh)
    assert [dt for dt, _ in seen] == [1 / 8, 1 / 8, 1 / 4, 1 / 4]
    taught = read_state(trained / "duo")["ema"]["embed"]
    assert all(
        torch.equal(ours, due) for (_, ours), due in zip(seen, [taught, taught, first, first])
    )
    assert not torch.equal(taught, first)


@pytest.mark.parametrize("teacher, method", PAIRS[:2])
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_resumed_distillation_is_the_same_to_the_bit(teacher, method, stop, trained, monkeypatch):
    """Interrupted in the first round, at its end, and in the second: dt and the teacher are those
    of the round."""
    whole = run(trained / teacher, "whole", method=method)
    with monkeypatch.context() as patch:
        interrupt(patch, stop - 1, signal.SIGINT)
        assert run(trained / teacher, "parts", method=method)["step"] == stop
    resumed = run("", "parts", given=[], init_from="resume")
    assert_same(whole, resumed)
    torch.testing.assert_close(whole["teacher"], resumed["teacher"], rtol=0, atol=0)


def altered(teacher, **flags):
    """A copy of a checkpoint in teacher/, with other flags."""
    state = read_state(teacher)
    Folder("teacher").save({**state, "config": {**state["config"], **flags}})
    return "teacher"


def test_a_distillation_goes_on_in_its_usual_folder_and_in_the_dtype_of_then(trained, monkeypatch):
    """And the first line of its metrics says what it is, for viewer/curves.py."""
    chosen = iter(["float32", "float32", "bfloat16"])  # of products, and of Muon's
    monkeypatch.setattr(
        run_module, "dtype_of", lambda name, device: next(chosen) if name == "auto" else name
    )
    teacher = altered(
        trained / "duo", attention="triton"
    )  # which this CPU has not: the student takes what there is
    run(teacher, "teacher-dcd", method="dcd", rounds=1, dtype="auto")
    words = ["--init_from", "resume", "--teacher", teacher, "--method", "dcd"]
    _, config, state, _ = student_flags(*parse(distill.Config, words), train.Config)
    assert (state["step"], config.dtype, config.attention) == (2, "float32", "auto")
    first = json.loads(Path("teacher-dcd/metrics.jsonl").read_text().splitlines()[0])
    assert (first["step"], first["method"], first["data"]) == (0, "duo", "toy") and first[
        "bytes_per_token"
    ] > 1


def test_a_student_reads_with_the_tokens_of_its_teacher(trained):
    """Wherever that one got them: a run that was resumed says so in its own --init_from."""
    assert (
        run(altered(trained / "mdlm", tokenizer="model", init_from="resume"), "student", rounds=1)[
            "step"
        ]
        == 2
    )


def test_a_teacher_without_text_and_a_step_that_cannot_be_shared(trained, capsys, monkeypatch):
    assert "fine-tune it with train.py" in complaint(
        distill, "--teacher", altered(trained / "mdlm", data=""), capsys=capsys
    )
    monkeypatch.setattr(distributed, "WORLD", 2)
    assert "--gradient_accumulation_steps 3 cannot be shared by 2 processes" in complaint(
        distill,
        "--teacher",
        trained / "mdlm",
        "--gradient_accumulation_steps",
        3,
        "--out_dir",
        "student",
        capsys=capsys,
    )


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "name the model to distill"),
        (["--init_from", "resume"], "name the run to continue: --out_dir"),
        (["--teacher", "nowhere"], "there is no checkpoint"),
        (["--teacher", "MDLM", "--method", "dcd"],
         "is mdlm, which --method sdtt or streak can distill"),
        (["--teacher", "DUO", "--method", "sdtt"], "is duo, which --method dcd can distill"),
        (["--teacher", "AR"], "is ar, which no --method of distill.py can distill"),
        (["--init_from", "resume", "--out_dir", "MDLM"], "is no run of distill.py"),
        (["--divergence", "kl"], "is not one of kl-bwd"),
        (["--rounds", "0"], "must lie between 1 and 30"),
    ],
    ids=str,
)
def test_bad_settings_get_one_line(words, message, trained, capsys):
    words = [str(trained / word.lower()) if word.isupper() else word for word in words]
    assert message in complaint(distill, *words, capsys=capsys)


def test_other_tokens_and_a_resume_with_other_settings_get_one_line(trained, capsys, monkeypatch):
    run(trained / "duo", "student", method="dcd")
    assert "which has 8" in complaint(
        distill,
        "--init_from",
        "resume",
        "--out_dir",
        "student",
        "--first_steps",
        "16",
        capsys=capsys,
    )
    assert "is a run of distill.py" in complaint(
        train, "--init_from", "resume", "--out_dir", "student", capsys=capsys
    )
    Path("poem.txt").write_text("a rose is a rose is a rose\n" * 99)
    fit("poet", method="duo", data="poem.txt", tokenizer="chars")
    Path("poem.txt").write_text("a tulip is a tulip is a tulip\n" * 99)
    words = ["--teacher", "poet", "--method", "dcd"]
    assert "is not the text that poet was trained on" in complaint(distill, *words, capsys=capsys)
