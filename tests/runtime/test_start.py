"""--minutes: how many steps fit the time, and that a planned run is a run like any other."""
import contextlib
import json
import os
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import distill
import train
from checkpoints.load import read_state
from flags import UserError, configure
from forks import forked
from kinds import scripts_differ, seen
from methods import METHODS
from runs import (  # noqa: F401
    ROOT,
    TINY,
    assert_same,
    cache,
    elsewhere,
    fit,
    interrupt,
    metrics,
    python,
)
from runtime import progress, start, teacher
from runtime import run as run_module
from runtime.trainer import Trainer

PLANNED = dict(max_iters=0, minutes=5.0, eval_interval=50, log_interval=1, warmup_iters=2)


@pytest.fixture
def costs(monkeypatch):
    """costs(step, evaluation, summary): the seconds that are found, after measuring indeed."""
    measure = start.measure_costs

    def set_costs(*seconds):
        monkeypatch.setattr(start, "measure_costs", lambda *args: (
            measure(*args, most=0.0), seconds)[1])
    return set_costs


def refuse(*args):
    raise AssertionError("nothing should be timed")


# ---- a run on a clock that stands still but for what is counted here

@pytest.fixture
def clock(monkeypatch):
    """clock(step, text, call): the seconds of a training step, of a text in a bound, and of a call
    of the network in a sample. -> an object whose `now` is the time"""
    now = SimpleNamespace(now=1000.0)
    fake = SimpleNamespace(time=lambda: now.now)

    def tick(seconds, result=None):
        now.now += seconds
        return result

    def set_clock(step, text, call):
        for module in (start, run_module):
            monkeypatch.setattr(module, "time", fake)
        monkeypatch.setattr(train.train, "__defaults__", (
            lambda trainer, n: tick(step, torch.ones(2)),))
        monkeypatch.setattr(Trainer, "bound", lambda self, split, texts, draws=1: tick(
            text * texts * draws, (1.0, 0.1)))
        for module in (start, progress):
            monkeypatch.setattr(module, "sample_text", lambda trainer, steps: tick(
                call * steps, "text"))
        monkeypatch.setattr(progress, "print_summary", lambda trainer: trainer.bound(
            "val", progress.SUMMARY_TEXTS, progress.SUMMARY_DRAWS))
        return now
    return set_clock


@pytest.mark.parametrize("minutes, step, text, call, flags", [
    (5, 1.0, 0.001, 0.1, {}), (5, 0.1, 0.01, 0.1, {}), (5, 0.3, 0.02, 0.01, {}),
    (1, 0.05, 0.002, 0.05, {}), (0.5, 0.01, 0.0001, 0.001, {}),
    (5, 0.1, 0.02, 0.01, dict(eval_iters=40, eval_interval=10)),
    (5, 0.1, 0.001, 0.5, dict(eval_interval=20, block_size=32))])
def test_a_run_ends_within_its_time_and_uses_it(minutes, step, text, call, flags, clock, capsys):
    """Its evaluations and its summary included, and the seconds before the clock begins."""
    now = clock(step, text, call)
    flags = {"eval_interval": 50, **flags}
    state = fit("out", minutes=minutes, recipe_iters=10**6, max_iters=0, **flags)
    used = now.now - 1000 + start.STARTUP
    assert 0.8 * 60 * minutes < used < 60 * minutes
    n = state["step"]
    line, = [line for line in capsys.readouterr().out.splitlines() if " s a step" in line]
    assert line == (f"{step:.3f} s a step: {n:,} steps in --minutes {minutes:g}; the full recipe "
                    f"is --max_iters 1000000, {10**6 * step / 60:.1f} min")


def test_a_fast_machine_takes_the_full_recipe_and_no_more(clock, capsys):
    now = clock(0.1, 0.0001, 0.001)
    state = fit("out", minutes=5, recipe_iters=40, max_iters=0, warmup_iters=7)
    assert (state["step"], state["config"]["max_iters"]) == (40, 40)
    assert state["config"]["warmup_iters"] == 7 and now.now - 1000 < 60
    assert "0.100 s a step: 40 steps in --minutes 5; the full recipe is --max_iters 40, 0.1 min\n" \
        in capsys.readouterr().out


@pytest.mark.parametrize("step, n, warmup", [(1000.0, 1, 0), (20.0, 13, 3), (0.5, 16, 4)])
def test_a_slow_machine_takes_at_least_one_step_and_warms_up_for_a_quarter(step, n, warmup, costs):
    costs(step, 0.0, 0.0)
    config = fit("out", **{**PLANNED, "warmup_iters": 100, "recipe_iters": 16})["config"]
    assert (config["max_iters"], config["warmup_iters"]) == (n, warmup)


def test_measuring_takes_a_few_steps_and_at_most_a_few_seconds(clock):
    for step, expected in ((0.001, 20), (0.5, 6), (60.0, 3)):
        now, taken = clock(step, 0.0, 0.0), []
        with train.Run(configure(train.Config, **TINY, out_dir="out")) as run:
            step_of = train.train.__defaults__[0]
            counted = lambda trainer, n: taken.append(n) or step_of(trainer, n)
            seconds = start.measure_costs(run.trainer, counted, start.report_seconds)
        assert len(taken) == expected and seconds[0] == pytest.approx(step)
        assert now.now > 1000


# ---- what is not timed

@pytest.mark.parametrize("flags, n", [(dict(max_iters=3), 3), (dict(minutes=0.0), 6),
                                      (dict(minutes=0.0, max_iters=3), 3)], ids=str)
def test_steps_that_are_given_and_the_full_recipe_are_not_timed(flags, n, monkeypatch, capsys):
    monkeypatch.setattr(start, "measure_costs", refuse)
    state = fit("out", **{**PLANNED, "recipe_iters": 6, **flags})
    assert state["step"] == state["config"]["max_iters"] == n
    assert "s a step" not in capsys.readouterr().out


# ---- a planned run is a run like any other

STATEFUL = {"bd3lm": dict(clip_search=True, diffusion_block=2),
            "duo": dict(curriculum=0.5)}                # what steps change besides the weights


CHANGING = [name for name in METHODS if {("on_step", True), ("extra_state", True)} & seen(name)]


@pytest.mark.parametrize("method", scripts_differ(["mdlm", *CHANGING], also=STATEFUL))
def test_a_planned_run_is_the_run_with_these_steps_given_by_hand(method, costs):
    """Measuring changes neither weights, averages, optimizers, batches nor noise."""
    costs(60.0, 0.1, 5.0)
    flags = dict(method=method, dropout=0.1, gradient_accumulation_steps=2, batch_size=1,
                 **STATEFUL.get(method, {}))
    planned = fit("planned", **{**PLANNED, **flags, "recipe_iters": 9})
    n, config = planned["step"], planned["config"]
    assert n == config["max_iters"] == 4 and config["warmup_iters"] == 1
    by_hand = fit("by-hand", **{**PLANNED, **flags, "max_iters": n, "warmup_iters": 1})
    assert_same(planned, by_hand)
    assert metrics("planned") == metrics("by-hand") and len(metrics("planned")) == n
    assert metrics("planned", "val_bound") == metrics("by-hand", "val_bound")


@pytest.mark.parametrize("method", ["mdlm", "duo"])
def test_a_resumed_run_keeps_its_plan_bit_by_bit(method, costs, monkeypatch, capsys):
    """Whatever the machine is doing then: nothing is timed again."""
    costs(40.0, 0.1, 5.0)
    whole = fit("whole", method=method, **PLANNED)
    with monkeypatch.context() as patch:
        patch.setattr(start, "measure_costs", lambda *args: (40.0, 0.1, 5.0))
        interrupt(patch, 3, signal.SIGTERM)
        assert fit("parts", method=method, **PLANNED)["step"] == 4
    monkeypatch.setattr(start, "measure_costs", refuse)
    capsys.readouterr()
    resumed = fit("parts", init_from="resume")
    assert_same(whole, resumed)
    assert resumed["config"]["max_iters"] == whole["config"]["max_iters"] == 6
    assert "s a step" not in capsys.readouterr().out


def test_a_run_that_is_stopped_while_steps_are_timed_has_saved_nothing(monkeypatch, capsys):
    interrupt(monkeypatch, 2, signal.SIGINT)
    with pytest.raises(UserError, match="there is no checkpoint out"):
        fit("out", **PLANNED)
    assert "stopped before the first step: nothing to save\n" in capsys.readouterr().out
    assert not Path("out/metrics.jsonl").exists()


# ---- distill.py

@pytest.mark.parametrize("step, steps", [(9.0, 6), (0.001, 3)])
def test_the_rounds_of_a_distillation_share_the_time_equally(step, steps, costs, monkeypatch,
                                                             capsys):
    fit("teacher", method="duo")
    costs(step, 5.0, 0.0)
    monkeypatch.setattr(Trainer, "bound", lambda self, *args: (1.0, 0.1))
    monkeypatch.setattr(teacher, "REPORT_STEPS", (1, 2))
    few = dict(method="dcd", rounds=3, batch_size=2, num_samples=2, device="cpu", dtype="float32")
    settings = configure(distill.Config, teacher="teacher", out_dir="student", recipe_iters=1,
                         **few)
    if steps == 6:
        settings.recipe_iters, settings.minutes = 50, 1.5
    distill.main(settings, [*few])
    state = read_state("student")
    assert state["step"] == steps and state["distilled"]["iters_per_round"] == steps // 3
    assert list(metrics("student", "val_bound")) == [i * steps // 3 for i in range(4)]
    assert capsys.readouterr().out.count(" s a step") == 1


# ---- several processes

TWO = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
import torch
import processes, train
from flags import configure
from runtime import distributed, progress, start
torch.set_num_threads(1)
progress.print_evaluation = progress.print_summary = lambda *args: None
flags, real, children = json.loads(sys.argv[2]), start.time, []
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(processes.free_port()))
for rank in range(2):
    children.append(os.fork())
    if children[-1] == 0:
        distributed.RANK, distributed.WORLD = rank, 2
        os.environ.update(RANK=str(rank), WORLD_SIZE="2")
        class Clock:
            time = staticmethod(lambda: real.time() * (1 + 1000 * rank))
        start.time = Clock
        try:
            with train.Run(configure(train.Config, **flags)) as run:
                train.train(run)
            config = run.config  # one write: two processes share the pipe
            sys.stderr.write(f"{rank} {config.max_iters} {config.warmup_iters}\\n")
        except BaseException as error:
            print(rank, repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


def test_processes_with_different_clocks_measure_as_many_steps_and_take_as_many():
    """For the second one, everything takes a thousand times as long."""
    flags = {**TINY, **PLANNED, "gradient_accumulation_steps": 2, "recipe_iters": 5,
             "minutes": 1000.0, "out_dir": "out"}  # enough on any machine
    process = subprocess.Popen(**forked(python("-c", TWO, ROOT / "tests", json.dumps(flags))),
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               start_new_session=True)
    try:
        out, error = process.communicate(timeout=100)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # where they wait for each other
    assert process.returncode == 0 and out.count(" s a step") == 1, error
    assert sorted(error.splitlines()) == ["0 5 1", "1 5 1"]
    assert read_state("out")["step"] == 5
