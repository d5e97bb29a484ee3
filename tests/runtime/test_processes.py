"""Two processes learn what one does, stop together, and do not leave each other hanging."""
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from checkpoints.file import Folder
from checkpoints.load import read_state
from flags import UserError
from forks import forked
from runs import (  # noqa: F401
    ROOT, cache, elsewhere, fit, interrupt, metrics, python, script, tiny,
)
from runtime import distributed, progress
from runtime.signals import GracefulStop


TORCHRUN = """
import subprocess
import sys

sys.path[:0] = sys.argv.pop(1), sys.argv.pop(1)
from forks import forked
from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler
from torch.distributed.run import main


def start(args, env, **options):  # [python, -u, train.py, ...]
    words = [word for word in args if word != "-u"]
    return subprocess.Popen(**forked(dict(args=words, env=env)), **options)


subprocess_handler.Popen = start
main(["--standalone", "--nproc_per_node", "2", *sys.argv[1:]])
"""


def torchrun(*argv):
    """torchrun in a fork of this process, which has torch, and whose processes are forks of it."""
    _, *words = script("train", *argv)["args"]
    launcher = python("-c", TORCHRUN, ROOT, ROOT / "tests", *words)
    return dict(forked(launcher), stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_two_processes_learn_what_one_does_and_sigterm_stops_both(monkeypatch):
    """Also the proof that a stop is agreed upon: both must leave after the same step, or the other
    would hang."""
    flags = dict(
        method="udlm",
        gradient_accumulation_steps=2,
        max_iters=100_000,
        learning_rate=1e-3,
        muon_lr=1e-3,
        log_interval=1,
        eval_interval=20,
    )
    process = subprocess.Popen(**torchrun(*tiny(**flags), "--out_dir", "two"))
    deadline = time.time() + 60
    while (
        not (Path("two/ckpt.pt").exists() and Path("two/metrics.jsonl").exists())
        and time.time() < deadline
    ):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    two = read_state("two")
    assert f"stopped: step {two['step']} is saved in two" in out, err
    interrupt(monkeypatch, two["step"] - 1, signal.SIGTERM)
    one = fit("one", **flags)
    assert one["step"] == two["step"]
    first = range(1, min(20, two["step"]) + 1)  # later, rounding has had time to grow
    assert [metrics("two")[n] for n in first] == pytest.approx(
        [metrics("one")[n] for n in first], abs=1e-5
    )
    torch.testing.assert_close(two["ema"], one["ema"], rtol=0, atol=1e-3)


def test_a_signal_that_comes_while_processes_agree_is_neither_lost_nor_acted_on_alone(monkeypatch):
    """It falls into the sum more often than not, since there a process waits."""
    stop = GracefulStop(saved=0)
    monkeypatch.setattr(distributed, "WORLD", 2)
    monkeypatch.setattr(
        torch.distributed, "all_reduce", lambda asked, op: stop.ask(signal.SIGTERM, None)
    )
    assert not stop.everywhere() and stop.everywhere() and stop.asked == 143


def test_no_two_micro_batches_are_drawn_from_one_seed(monkeypatch):
    seeds, seed = [], torch.manual_seed

    class Generator(torch.Generator):
        def manual_seed(self, n):
            seeds.append(n)
            return super().manual_seed(n)

    monkeypatch.setattr(progress, "print_evaluation", lambda *args: None)
    monkeypatch.setattr(torch, "manual_seed", lambda n: (seeds.append(n), seed(n))[1])
    monkeypatch.setattr(torch, "Generator", Generator)
    fit("out", max_iters=4, gradient_accumulation_steps=3)
    assert (
        len(set(seeds)) == len(seeds) >= 1 + 2 * 4 * 3
    )  # of the weights, of texts (one ahead) and of the rest


def test_a_process_that_fails_alone_does_not_leave_the_other_hanging():
    """Only the first process writes: an out_dir in use is its fault alone, found while the other
    waits for it."""
    held = Folder("out")
    done = subprocess.run(
        **torchrun(*tiny(gradient_accumulation_steps=2), "--out_dir", "out"), timeout=60
    )
    held.lock.release()
    assert done.returncode == 1 and done.stderr.count("another run is writing to out") == 1
    assert 'train.py", line' not in done.stderr


VARIABLES = dict(RANK="1", WORLD_SIZE="2", LOCAL_RANK="1", MASTER_ADDR="127.0.0.1",
                MASTER_PORT="29500")


@pytest.mark.parametrize("change", [
    *({name: None} for name in VARIABLES), *({name: ""} for name in VARIABLES),
    *({name: "junk"} for name in distributed.NUMBERS), dict(RANK="2"), dict(RANK="-1"),
    dict(WORLD_SIZE="0"), dict(MASTER_PORT="70000"), dict(RANK="1.0"), dict(LOCAL_RANK="²")],
    ids=str)
def test_variables_of_several_processes_count_only_if_torchrun_has_set_them_all(change):
    found = {name: value for name, value in {**VARIABLES, **change}.items() if value is not None}
    assert distributed.rank_and_world(found) == (0, 1)
    assert distributed.rank_and_world({}) == (0, 1)
    assert distributed.rank_and_world(VARIABLES) == (1, 2)


def test_processes_that_nobody_answers_are_one_line(monkeypatch):
    def refuse(backend):
        raise torch.distributed.DistNetworkError("no route to the host\nmore")

    monkeypatch.setattr(distributed, "WORLD", 2)
    monkeypatch.setattr(torch.distributed, "init_process_group", refuse)
    with pytest.raises(UserError, match=r"does not reach .*\(no route to the host\): start all"):
        distributed.init_processes(torch.device("cpu"))
