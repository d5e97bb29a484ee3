"""A run survives whatever ends it: it goes on exactly where it was, alone or shared, or it says why
it cannot."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import train
from checkpoints.load import load_model, read_state
from flags import UserError, configure
from forks import forked
from runs import (  # noqa: F401
    ROOT, TINY, assert_same, cache, elsewhere, fit, interrupt, metrics, python, script,
    tiny,
)
from runtime import progress, signals
from runtime.trainer import Trainer
from script import OutputLost, on_loss, one_line_errors


@pytest.fixture(autouse=True)
def a_terminal_that_closes_is_heard():
    """Also if the tests themselves run under nohup, which all processes inherit."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    "method, number, flags",
    [
        ("mdlm", signal.SIGTERM, dict()),
        ("ar", signal.SIGINT, dict(dropout=0.2)),
        ("udlm", signal.SIGTERM, dict(optimizer="adamw")),
        (
            "gidd",
            signal.SIGINT,
            dict(gradient_accumulation_steps=2, lr_schedule="linear", dtype="bfloat16"),
        ),
        (
            "duo",
            signal.SIGTERM,
            dict(curriculum=0.8),
        ),  # stopped on relaxed inputs; the last step is on ids
    ],
)
def test_a_run_that_is_asked_to_stop_saves_and_goes_on_bit_by_bit(
    method, number, flags, monkeypatch, capsys
):
    flags = dict(flags, method=method, max_iters=9, learning_rate=0.01, warmup_iters=3)
    flags = dict(flags, log_interval=2, eval_interval=4)
    whole = fit("whole", **flags)
    with monkeypatch.context() as patch:
        interrupt(patch, 5, number)
        stopped = fit("parts", **flags)
    assert stopped["step"] == 6
    assert (
        "step 6 is saved in parts, go on with --init_from resume --out_dir parts"
        in capsys.readouterr().out
    )
    assert_same(whole, fit("parts", init_from="resume"))
    assert metrics("parts", "val_bound").items() >= metrics("whole", "val_bound").items()
    assert (
        list(metrics("parts")) == [1, 2, 4, 6, 7, 8, 9]
        and metrics("parts")[8] != metrics("parts")[9]
    )


@pytest.mark.parametrize(
    "number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_stopped_run_has_the_exit_code_of_a_shell_and_leaves_signals_as_they_were(
    number, code, monkeypatch
):
    before = [signal.getsignal(stop) for stop in signals.STOPS]
    with monkeypatch.context() as patch:
        interrupt(patch, 1, number)
        assert exit_code("out", max_iters=4) == code and read_state("out")["step"] == 2
    assert [signal.getsignal(stop) for stop in signals.STOPS] == before
    assert exit_code("whole") == 0


def exit_code(out_dir, **flags):
    """What train.py ends with."""
    return train.main(configure(train.Config, **{**TINY, **flags}, out_dir=out_dir))


@pytest.mark.parametrize("number", signals.STOPS)
def test_a_signal_that_is_ignored_stops_no_run(number, monkeypatch):
    """nohup ignores SIGHUP; a shell lets commands in the background ignore Ctrl-C."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        interrupt(monkeypatch, 1, number)
        assert exit_code("out", max_iters=4) == 0 and read_state("out")["step"] == 4
    finally:
        signal.signal(number, before)


def test_two_sighups_of_a_terminal_that_closes_save_the_step_and_ctrl_c_before_it_is_quick(
    monkeypatch,
):
    with monkeypatch.context() as patch:
        interrupt(patch, 3, signal.SIGTERM)  # comes last
        interrupt(patch, 3, signal.SIGHUP)
        interrupt(patch, 3, signal.SIGHUP)
        try:
            code = exit_code("out", max_iters=9, eval_interval=100)
        except KeyboardInterrupt:  # which would end pytest
            code = None
    assert code == 129
    assert read_state("out")["step"] == 4
    stop = signals.GracefulStop(saved=4)
    with stop, pytest.raises(KeyboardInterrupt) as end:
        signal.raise_signal(signal.SIGTERM)  # nothing is unsaved
    assert end.value.args == (143,)


@pytest.mark.parametrize(
    "number, code, says",
    [
        (errno.EPIPE, 141, "stopped: step 2 is saved in out, go on with --init_from resume"),
        (errno.ENOSPC, 2, "cannot write to stdout: No space left on device; step 2 is saved"),
        (errno.EIO, 0, ""),
    ],
)
def test_a_run_whose_output_is_lost_saves_and_stops_but_not_for_a_terminal_that_is_gone(
    number, code, says, monkeypatch, capsys
):
    """A reader that leaves, a disk that is full; and a terminal that is closed, without a SIGHUP:
    the user wanted it to go on."""
    step_optimizers, before = Trainer.step_optimizers, len(on_loss)

    def lost(self, step):
        if step == 1:
            loss = OutputLost("stdout", OSError(number, os.strerror(number)))
            on_loss[-1](loss if number != errno.EPIPE else OutputLost("stdout", BrokenPipeError()))
        return step_optimizers(self, step)

    monkeypatch.setattr(Trainer, "step_optimizers", lost)
    with pytest.raises(SystemExit) as end, one_line_errors():
        sys.exit(exit_code("out", max_iters=4))
    out, err = capsys.readouterr()
    assert end.value.code == code and says in out + err
    assert read_state("out")["step"] == (4 if number == errno.EIO else 2)
    assert len(on_loss) == before
    assert (err != "") is (code == 2)


def test_a_reader_that_leaves_a_pipe_lets_the_run_save_and_the_hint_comes_on_stderr():
    """train.py | head -1"""
    words = script("train", *tiny(max_iters=4000, eval_interval=100_000, out_dir="out"))
    process = subprocess.Popen(**forked(words), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == "palimpsest: mdlm on toy\n"
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait() == 141
    step = read_state("out")["step"]
    assert 1 <= step < 4000
    assert err == (
        f"stopped: step {step} is saved in out, go on with --init_from resume --out_dir out\n"
    )


def test_a_second_ctrl_c_leaves_at_once_and_one_in_a_report_loses_nothing(monkeypatch, capsys):
    with monkeypatch.context() as patch:
        interrupt(patch, 3, signal.SIGINT)
        interrupt(patch, 3, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            fit("twice", max_iters=6, eval_interval=2)
    assert read_state("twice")["step"] == 2
    report = progress.print_evaluation
    monkeypatch.setattr(
        progress,
        "print_evaluation",
        lambda trainer, step, folder: (
            os.kill(os.getpid(), signal.SIGINT) if step == 4 else report(trainer, step, folder)
        ),
    )
    assert fit("report", max_iters=6, eval_interval=2)["step"] == 4
    assert "stopped: step 4 is saved" in capsys.readouterr().out


ZYGOTE = """
import json, os, random, signal, sys, time
root, first, kills = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
sys.path.insert(0, root)
import torch, train
from checkpoints.load import read_state
from flags import configure
from runtime import progress
torch.set_num_threads(1)
progress.print_evaluation = progress.print_summary = lambda *args: None
sys.stdout, out = open(os.devnull, "w"), sys.stdout
train.Run(configure(train.Config, **first, out_dir="warm"), list(first))  # slow once
sys.stdout = out
random.seed(0)
written = lambda: os.path.exists("killed/ckpt.pt") and os.stat("killed/ckpt.pt").st_mtime_ns
while True:
    there = written()
    there and read_state("killed")                                  # whole after every kill
    child = os.fork()
    if child == 0:
        sys.stdout = sys.stderr = open(os.devnull, "w")
        start = "resume" if there else "scratch"
        train.main(configure(train.Config, **first, out_dir="killed", init_from=start), list(first))
        os._exit(0)
    if kills == 0:
        break
    while written() == there and os.waitpid(child, os.WNOHANG) == (0, 0):  # until it has saved
        time.sleep(0.001)
    time.sleep(random.uniform(0, 0.05))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    kills -= 1
sys.exit(os.waitpid(child, 0)[1])
"""


def test_a_run_that_is_killed_at_any_moment_goes_on_bit_by_bit(tmp_path):
    """It saves after every step, so that kills fall into saving too. The killed are forks of one
    that has torch."""
    flags = dict(TINY, max_iters=70, eval_interval=1, log_interval=1, learning_rate=0.01)
    whole = fit("whole", **dict(flags, eval_interval=50))
    command = python("-c", ZYGOTE, ROOT, json.dumps(flags), "12")
    done = subprocess.run(**forked(command), capture_output=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert_same(whole, read_state("killed"))
    assert metrics("killed") == metrics(
        "whole"
    )  # same text and noise: no step is lost or comes twice
    assert len(open("killed/metrics.jsonl").readlines()) == 70
    assert sorted(os.listdir("killed")) == [".lock", "ckpt.pt", "metrics.jsonl"]


def test_a_second_run_from_scratch_keeps_the_first_result_once_it_saves_itself(monkeypatch, capsys):
    first = fit("out", max_iters=4)
    rows = metrics("out")
    with monkeypatch.context() as patch:  # one that fails before it has saved leaves all as it is
        patch.setattr(
            train.train, "__defaults__", (lambda trainer, step: torch.full((2,), torch.nan),)
        )
        with pytest.raises(UserError):
            fit("out", seed=2)
    assert_same(first, read_state("out"))
    assert metrics("out") == rows and not Path("out/ckpt.previous.pt").exists()
    with monkeypatch.context() as patch:  # it is said before the first step
        patch.setattr(train.train, "__defaults__", (lambda trainer, step: 1 / 0,))
        with pytest.raises(ZeroDivisionError):
            fit("out", seed=2)
    says = "out holds an earlier run: ckpt.pt will be kept as ckpt.previous.pt, and likewise"
    assert says in capsys.readouterr().out
    second = fit("out", seed=2)
    assert_same(first, read_state("out/ckpt.previous.pt"))
    assert_same(second, read_state("out"))
    assert list(metrics("out")) == [1, 2] and open("out/metrics.previous.jsonl").read().count(
        '"loss"'
    ) == len(rows)
    fit("out", seed=3)
    assert_same(first, read_state("out/ckpt.previous.pt"))
    assert_same(second, read_state("out/ckpt.previous-2.pt"))


def test_a_finished_run_says_so_when_resumed_and_goes_on_with_more_steps(capsys):
    flags = dict(lr_schedule="constant", log_interval=1)
    finished = fit("out", max_iters=3, **flags)
    capsys.readouterr()
    assert_same(finished, fit("out", init_from="resume"))
    assert "finished at step 3; --max_iters N goes on" in capsys.readouterr().out
    assert_same(
        finished, fit("out", init_from="resume", max_iters=2)
    )  # fewer: nothing to do, nothing undone
    assert_same(fit("long", max_iters=7, **flags), fit("out", init_from="resume", max_iters=7))
    assert metrics("out") == metrics("long") and list(metrics("out", "val_bound")) == [3, 7]


def test_flags_given_with_resume_hold_from_there_on_and_the_others_are_remembered():
    fit("out", learning_rate=0.01, lr_schedule="constant", weight_decay=0.3, max_iters=3)
    state = fit("out", init_from="resume", learning_rate=0.5, max_iters=4)
    assert state["config"]["learning_rate"] == 0.5 and state["config"]["weight_decay"] == 0.3
    assert state["optimizers"][0]["param_groups"][0]["lr"] == 0.5 and metrics("out", "lr")[4] == 0.5
    Path("out").rename("moved")
    fit("moved", init_from="resume", max_iters=5)
    assert read_state("moved")["step"] == 5 and not Path("out").exists()


def test_the_network_that_is_restored_is_the_average_of_the_weights(tmp_path):
    state = fit("out", max_iters=3, learning_rate=0.1)
    model = load_model("out")
    for name, weight in model.denoiser.state_dict().items():
        torch.testing.assert_close(weight, state["ema"][name], rtol=0, atol=0)
    assert not model.denoiser.training
    assert any((state["ema"][name] != state["model"][name]).any() for name in state["ema"])


# ---- as processes: the first line, progress, Ctrl-C


def test_a_run_without_a_terminal_shows_progress_at_once_and_ctrl_c_saves_it():
    began = time.time()
    process = subprocess.Popen(
        **forked(script("train", *tiny(max_iters=100_000, out_dir="out"))),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout.readline() == "palimpsest: mdlm on toy\n" and time.time() - began < 6
    while "step     1 of 100000  loss" not in (line := process.stdout.readline()):
        assert line  # else it has ended
    assert time.time() - began < 15
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    step = read_state("out")["step"]
    assert process.returncode == 130 and err == ""
    assert (
        f"stopped: step {step} is saved in out, go on with --init_from resume --out_dir out\n"
        in out
    )


def test_ctrl_c_while_torch_loads_leaves_without_a_traceback():
    process = subprocess.Popen(
        **script("train", *tiny(out_dir="out")), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    time.sleep(0.4)  # Python has started, and torch takes more than a second
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30) == ("", "") and process.returncode == -signal.SIGINT
