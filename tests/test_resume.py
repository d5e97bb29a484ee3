"""A run survives whatever ends it: it goes on exactly where it was, alone or shared, or it says why it cannot."""
import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from runs import ROOT, TINY, assert_same, cache, complaint, disk_of, elsewhere, fit, interrupt, metrics  # noqa: F401
from runs import script, tiny

import checkpoint
import train
from data import BadInput
from interrupt import Stop


@pytest.mark.parametrize("method, number, flags", [
    ("mdlm", signal.SIGTERM, dict()),
    ("ar", signal.SIGINT, dict(dropout=0.2)),
    ("udlm", signal.SIGTERM, dict(optimizer="adamw")),
    ("gidd", signal.SIGINT, dict(gradient_accumulation_steps=2, lr_schedule="linear", dtype="bfloat16")),
    ("duo", signal.SIGTERM, dict(curriculum=0.8)),           # stopped on relaxed inputs; the last step is on ids
])
def test_a_run_that_is_asked_to_stop_saves_and_goes_on_bit_by_bit(method, number, flags, monkeypatch, capsys):
    flags = dict(flags, method=method, max_iters=9, learning_rate=0.01, warmup_iters=3)
    flags = dict(flags, log_interval=2, eval_interval=4)
    whole = fit("whole", **flags)
    with monkeypatch.context() as patch:
        interrupt(patch, 5, number)
        stopped = fit("parts", **flags)
    assert stopped["step"] == 6
    assert "step 6 is saved in parts, go on with --init_from resume --out_dir parts" in capsys.readouterr().out
    assert_same(whole, fit("parts", init_from="resume"))
    assert metrics("parts", "val_bound").items() >= metrics("whole", "val_bound").items()
    assert list(metrics("parts")) == [1, 2, 4, 6, 7, 8, 9] and metrics("parts")[8] != metrics("parts")[9]


def test_after_a_stop_the_handlers_of_the_signals_are_those_of_before(monkeypatch):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    interrupt(monkeypatch, 1, signal.SIGTERM)
    fit("out")
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_second_ctrl_c_leaves_at_once_and_one_in_a_report_loses_nothing(monkeypatch, capsys):
    with monkeypatch.context() as patch:
        interrupt(patch, 3, signal.SIGINT)
        interrupt(patch, 3, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            fit("twice", max_iters=6, eval_interval=2)
    assert checkpoint.load("twice")["step"] == 2
    report = train.report
    monkeypatch.setattr(train, "report", lambda learner, step, folder:
                        os.kill(os.getpid(), signal.SIGINT) if step == 4 else report(learner, step, folder))
    assert fit("report", max_iters=6, eval_interval=2)["step"] == 4
    assert "stopped: step 4 is saved" in capsys.readouterr().out


ZYGOTE = """
import json, os, random, signal, sys, time
root, first, kills = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
sys.path.insert(0, root)
import torch, train, checkpoint
torch.set_num_threads(1)
train.report = train.final = lambda *args: None
train.Learner(train.Config(**first), train.text.load("toy", 8), torch.device("cpu"))     # slow once: before forking
random.seed(0)
written = lambda: os.path.exists("killed/ckpt.pt") and os.stat("killed/ckpt.pt").st_mtime_ns
while True:
    there = written()
    there and checkpoint.load("killed")                                  # whole after every kill
    child = os.fork()
    if child == 0:
        sys.stdout = sys.stderr = open(os.devnull, "w")
        train.main(train.Config(**first, out_dir="killed", init_from="resume" if there else "scratch"), list(first))
        os._exit(0)
    if kills == 0:
        break
    while written() == there and os.waitpid(child, os.WNOHANG) == (0, 0):        # until it has saved once
        time.sleep(0.001)
    time.sleep(random.uniform(0, 0.05))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    kills -= 1
sys.exit(os.waitpid(child, 0)[1])
"""


def test_a_run_that_is_killed_at_any_moment_goes_on_bit_by_bit(tmp_path):
    """It saves after every step, so that kills fall into saving too. The killed are forks of one that has torch."""
    flags = dict(TINY, max_iters=150, eval_interval=1, log_interval=1, learning_rate=0.01)
    whole = fit("whole", **dict(flags, eval_interval=50))
    argv, env = [sys.executable, "-c", ZYGOTE, ROOT, json.dumps(flags), "20"], {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(argv, env=env, text=True, capture_output=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert_same(whole, checkpoint.load("killed"))
    assert metrics("killed") == metrics("whole")             # same text and noise: no step is lost or comes twice
    assert len(open("killed/metrics.jsonl").readlines()) == 150
    assert sorted(os.listdir("killed")) == [".lock", "ckpt.pt", "metrics.jsonl"]


def test_a_second_run_from_scratch_keeps_the_first_result_once_it_saves_itself(monkeypatch, capsys):
    first = fit("out", max_iters=4)
    rows = metrics("out")
    with monkeypatch.context() as patch:                     # one that fails before it has saved leaves all as it is
        patch.setattr(train.Learner, "step", lambda self, step: torch.full((2,), torch.nan))
        with pytest.raises(BadInput):
            fit("out", seed=2)
    assert_same(first, checkpoint.load("out"))
    assert metrics("out") == rows and not Path("out/ckpt.previous.pt").exists()
    capsys.readouterr()
    second = fit("out", seed=2)
    assert_same(first, checkpoint.load("out/ckpt.previous.pt"))
    assert_same(second, checkpoint.load("out"))
    assert list(metrics("out")) == [1, 2] and open("out/metrics.previous.jsonl").read().count('"loss"') == len(rows)
    assert "ckpt.pt was there from an earlier run: kept as ckpt.previous.pt\n" in capsys.readouterr().out


def test_a_finished_run_just_reports_when_resumed_and_goes_on_with_more_steps(capsys):
    flags = dict(lr_schedule="constant", log_interval=1)
    finished = fit("out", max_iters=3, **flags)
    capsys.readouterr()
    assert_same(finished, fit("out", init_from="resume"))
    assert "step     3  bound" in capsys.readouterr().out
    assert_same(finished, fit("out", init_from="resume", max_iters=2))       # fewer: nothing to do, nothing undone
    assert_same(fit("long", max_iters=7, **flags), fit("out", init_from="resume", max_iters=7))
    assert metrics("out") == metrics("long") and list(metrics("out", "val_bound")) == [3, 7]


def test_flags_given_with_resume_hold_from_there_on_and_the_others_are_remembered():
    fit("out", learning_rate=0.01, lr_schedule="constant", weight_decay=0.3, max_iters=3)
    state = fit("out", init_from="resume", learning_rate=0.5, max_iters=4)
    assert state["config"]["learning_rate"] == 0.5 and state["config"]["weight_decay"] == 0.3
    assert state["optimizers"][0]["param_groups"][0]["lr"] == 0.5 and metrics("out", "lr")[4] == 0.5
    Path("out").rename("moved")
    fit("moved", init_from="resume", max_iters=5)
    assert checkpoint.load("moved")["step"] == 5 and not Path("out").exists()


def test_the_network_that_is_restored_is_the_average_of_the_weights(tmp_path):
    state = fit("out", max_iters=3, learning_rate=0.1)
    model = checkpoint.restore("out")
    for name, weight in model.denoiser.state_dict().items():
        torch.testing.assert_close(weight, state["ema"][name], rtol=0, atol=0)
    assert not model.denoiser.training
    assert any((state["ema"][name] != state["model"][name]).any() for name in state["ema"])


# ---- as processes: the first line, progress, Ctrl-C

def test_a_run_without_a_terminal_shows_progress_at_once_and_ctrl_c_saves_it():
    began = time.time()
    process = subprocess.Popen(**script("train", *tiny(max_iters=100_000, out_dir="out")), stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    assert process.stdout.readline() == "palimpsest: mdlm on toy\n" and time.time() - began < 2
    while "step     1 of 100000  loss" not in (line := process.stdout.readline()):
        assert line                                          # else it has ended
    assert time.time() - began < 15
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    step = checkpoint.load("out")["step"]
    assert process.returncode == 0 and err == ""
    assert f"stopped: step {step} is saved in out, go on with --init_from resume --out_dir out\n" in out


def test_ctrl_c_while_torch_loads_leaves_without_a_traceback():
    process = subprocess.Popen(**script("train", *tiny(out_dir="out")), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30) == ("", "") and process.returncode == -signal.SIGINT


# ---- several processes

def torchrun(*argv):
    words = script("train", *argv)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    words["args"] = [sys.executable, *launcher, *words["args"][1:]]
    return dict(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_two_processes_learn_what_one_does_and_sigterm_stops_both(monkeypatch):
    """Also the proof that a stop is agreed upon: both must leave after the same step, or the other would hang."""
    flags = dict(method="udlm", gradient_accumulation_steps=2, max_iters=100_000, learning_rate=1e-3, muon_lr=1e-3,
                 log_interval=1, eval_interval=20)
    process = subprocess.Popen(**torchrun(*tiny(**flags), "--out_dir", "two"))
    deadline = time.time() + 60
    while not (Path("two/ckpt.pt").exists() and Path("two/metrics.jsonl").exists()) and time.time() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    two = checkpoint.load("two")
    assert f"stopped: step {two['step']} is saved in two" in out, err
    interrupt(monkeypatch, two["step"] - 1, signal.SIGTERM)
    one = fit("one", **flags)
    assert one["step"] == two["step"]
    first = range(1, min(20, two["step"]) + 1)               # later, rounding has had time to grow
    assert [metrics("two")[n] for n in first] == pytest.approx([metrics("one")[n] for n in first], abs=1e-5)
    torch.testing.assert_close(two["ema"], one["ema"], rtol=0, atol=1e-3)


def test_a_signal_that_comes_while_processes_agree_is_neither_lost_nor_acted_on_alone(monkeypatch):
    """It falls into the sum more often than not, since there a process waits."""
    stop = Stop(saved=0)
    monkeypatch.setattr("parallel.WORLD", 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda asked: stop.ask(signal.SIGTERM, None))
    assert not stop.everywhere() and stop.everywhere()


def test_no_two_micro_batches_are_drawn_from_one_seed(monkeypatch):
    seeds, seed = [], torch.manual_seed

    class Generator(torch.Generator):
        def manual_seed(self, n):
            seeds.append(n)
            return super().manual_seed(n)
    monkeypatch.setattr(train, "report", lambda *args: None)
    monkeypatch.setattr(torch, "manual_seed", lambda n: (seeds.append(n), seed(n))[1])
    monkeypatch.setattr(torch, "Generator", Generator)
    fit("out", max_iters=4, gradient_accumulation_steps=3)
    assert len(set(seeds)) == len(seeds) >= 1 + 2 * 4 * 3    # of the weights, of texts (one ahead) and of the rest


def test_a_process_that_fails_alone_does_not_leave_the_other_hanging():
    """Only the first process writes: an out_dir in use is its fault alone, found while the other waits for it."""
    held = checkpoint.Folder("out")
    done = subprocess.run(**torchrun(*tiny(gradient_accumulation_steps=2), "--out_dir", "out"), timeout=60)
    held.lock.release()
    assert done.returncode == 1 and done.stderr.count("another run is writing to out") == 1
    assert 'train.py", line' not in done.stderr


# ---- a run that cannot go on

def test_an_infinite_loss_stops_the_run_and_leaves_the_last_good_checkpoint(monkeypatch):
    step = train.Learner.step

    def explode(self, n):
        scale = torch.tensor([torch.inf, 1.0]) if n == 5 else 1.0
        return step(self, n) * scale
    monkeypatch.setattr(train.Learner, "step", explode)
    with pytest.raises(BadInput, match=r"not finite at step 6 \(seed 7\): the checkpoint of step 4 is whole; try"):
        fit("out", max_iters=9, eval_interval=4, log_interval=100, seed=7)
    assert checkpoint.load("out")["step"] == 4


def test_a_gradient_that_is_not_finite_stops_it_too_before_it_is_saved(monkeypatch):
    """The loss of the step that ruins the weights may still be a number."""
    def square_root_at_zero(self, denoiser, x, frozen=None):
        loss = denoiser(x, None)
        return loss + (loss * 0).sqrt()                      # 0, but its slope is infinite
    monkeypatch.setattr(train.checkpoint.make_method("mdlm", 2).__class__, "loss", square_root_at_zero)
    with pytest.raises(BadInput, match="not finite at step 1 .*: nothing was saved yet"):
        fit("out", eval_interval=1)
    assert not Path("out/ckpt.pt").exists()


def test_a_learning_rate_out_of_all_bounds_is_one_line_and_exit_code_2(capsys):
    error = complaint(train, *tiny(learning_rate=1e30, max_iters=20, out_dir="out"), capsys=capsys)
    assert re.search(r"not finite at step \d+ \(seed 1337\)", error)


@pytest.mark.parametrize("size", [0, 100, 5_000, 50_000])
def test_a_disk_that_takes_only_part_of_a_checkpoint_is_one_line_and_costs_nothing(size, capsys):
    whole = fit("out", eval_interval=2)
    with disk_of(size):
        error = complaint(train, "--out_dir", "out", "--init_from", "resume", "--max_iters", 3, capsys=capsys)
    assert "out/" in error or "File too large" in error
    assert_same(whole, checkpoint.load("out"))
    assert not list(Path("out").glob("*.tmp"))
    fit("out", init_from="resume", max_iters=3)
    assert list(metrics("out")) == [1, 2, 3]


def test_no_space_left_is_told_with_what_to_do(monkeypatch, capsys):
    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    error = complaint(train, *tiny(out_dir="out"), capsys=capsys)
    assert "cannot save to out/ckpt.pt (No space left on device): free some space" in error
    assert os.listdir("out") == [".lock"]
