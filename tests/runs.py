"""
What the tests of the scripts share: tiny runs in this process or one of their own, and a terminal
to run them in. A test file takes the fixtures by importing them.
"""

import contextlib
import fcntl
import io
import json
import os
import pty
import re
import resource
import select
import struct
import subprocess
import sys
import termios
import traceback
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import pytest
import torch

import train
from checkpoints.file import Folder
from checkpoints.load import read_state
from flags import configure, parse
from forks import forked
from runtime import progress
from runtime.trainer import Trainer
from script import one_line_errors

ROOT = Path(__file__).parent.parent
METHODS = ["ar", "mdlm", "udlm", "gidd", "duo"]
TINY = dict(
    data="toy",
    block_size=8,
    n_layer=1,
    n_embd=16,
    n_head=2,
    cond_dim=8,
    batch_size=2,
    max_iters=2,
    eval_iters=1,
    warmup_iters=0,
    device="cpu",
    dtype="float32",
    muon_dtype="float32",
)


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@contextlib.contextmanager
def one_thread():
    """A second thread is no help to tiny networks; where cores are shared it costs up to twenty
    times the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def elsewhere(cache, tmp_path, monkeypatch):
    """Every test in its own empty folder, on one thread, and with short reports; and products are
    exact again after it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PALIMPSEST_CACHE", str(cache))
    shorten_reports(monkeypatch)
    with one_thread():
        yield
    torch.set_float32_matmul_precision("highest")


def shorten_reports(monkeypatch):
    """No n-grams and no entropy at the end of a run. An evaluation measures held-out text alone,
    of few texts where a method measures more, and its sample comes in one step; before the first
    step there is none."""
    report, sample_text, bound = progress.print_evaluation, progress.sample_text, Trainer.bound
    began = []

    def print_evaluation(trainer, step, folder):
        began[:] = [step > 0]
        report(trainer, step, folder)

    def of_one_split(trainer, split, texts, draws=1):
        return bound(trainer, split, texts, draws) if split != "train" else (0.0, 0.0)
    monkeypatch.setattr(progress, "print_evaluation", print_evaluation)
    monkeypatch.setattr(progress, "sample_text", lambda trainer, steps: (
        sample_text(trainer, 1) if began == [True] else ""))
    monkeypatch.setattr(Trainer, "bound", of_one_split)
    monkeypatch.setattr(progress, "MEASURED", 8)
    monkeypatch.setattr(progress, "print_summary", lambda trainer: None)


@pytest.fixture
def late_reports(monkeypatch):
    """No evaluation of networks that have learned nothing; later ones tell as much."""
    report = progress.print_evaluation
    monkeypatch.setattr(progress, "print_evaluation", lambda trainer, step, folder: (
        report(trainer, step, folder) if step else None))


@pytest.fixture
def in_memory(late_reports, monkeypatch):
    """For tests that only look at what `fit` returns: it is no file."""
    monkeypatch.setattr(Folder, "save", lambda self, state: KEPT.update({self.path: state}))
    yield
    KEPT.clear()


KEPT = {}  # a folder: the state that its run has left in_memory


def fit(out_dir, given=(), **flags):
    """A tiny run in this process; with init_from="resume", `flags` stand for the command line. ->
    its checkpoint"""
    config = configure(train.Config, **{**TINY, **flags}, out_dir=str(out_dir))
    train.main(config, [*given, *flags] if flags.get("init_from") == "resume" else list(flags))
    path = Path(out_dir, "ckpt.pt")
    if path.parent in KEPT:
        return KEPT.pop(path.parent)
    return Saved(path.read_bytes()) if path.exists() else read_state(out_dir)


class Saved(Mapping):
    """A checkpoint of ours as it is now, which is read if a test looks into it. read_state, which
    trusts no file, would take three times as long."""

    def __init__(self, content):
        self.content = content

    @cached_property
    def state(self):
        return torch.load(io.BytesIO(self.content), weights_only=False)

    def __getitem__(self, key):
        return self.state[key]

    def __iter__(self):
        return iter(self.state)

    def __len__(self):
        return len(self.state)


def interrupt(monkeypatch, at, number):
    """A signal arrives in the middle of step `at`."""
    step_optimizers = Trainer.step_optimizers

    def interrupted(self, step):
        if step == at:
            os.kill(os.getpid(), number)
        return step_optimizers(self, step)

    monkeypatch.setattr(Trainer, "step_optimizers", interrupted)


def script(name, *argv, **env):
    """The command line and environment of a script that runs in a process of its own."""
    ours = {
        key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")
    }  # pytest's, not its
    return python(ROOT / f"{name}.py", *argv, **{**ours, "TERM": "xterm", **env})


def python(*words, **env):
    """The command line of Python, and its environment: `env`, or that of this process."""
    env = {**(env or os.environ), "OMP_NUM_THREADS": "1"}
    return dict(args=[sys.executable, *map(str, words)], env=env, text=True)


def tiny(**flags):
    return [f"--{name}={value}" for name, value in {**TINY, **flags}.items()]


def commanded(module, *argv):
    """What the script makes of a command line: its flags, and the names of those that were given.
    """
    return parse(module.Config, [str(word) for word in argv])


def release(error):
    """Free what the frames of an exception hold, such as the lock of a folder."""
    while error:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


def complaint(module, *argv, capsys):
    """What the script says on a bad command line: one line on stderr, exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end, one_line_errors():
        module.main(*commanded(module, *argv))
    error = capsys.readouterr().err
    error = re.sub(r"\Apreparing .*, once ...\n", "", error)
    assert end.value.code == 2 and error.count("\n") == 1, error
    release(end.value)
    return error


def metrics(out_dir, key="loss"):
    return {
        line["step"]: line[key]
        for line in map(json.loads, open(Path(out_dir) / "metrics.jsonl"))
        if key in line
    }


def assert_same(a, b):
    """Two checkpoints, bit by bit."""
    assert a["step"] == b["step"]
    for part in ("model", "ema", "optimizers"):
        torch.testing.assert_close(a[part], b[part], rtol=0, atol=0)


@contextlib.contextmanager
def disk_of(size):
    """No file may grow beyond `size` bytes: the next best thing to a disk that is full, and it
    needs no root."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a checkpoint of each method on the toy language."""
    root = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(None), one_thread():
        patch.setattr(progress, "print_summary", lambda trainer: None)
        for method in METHODS:
            fit(root / method, method=method, learning_rate=0.01, max_iters=20)
    return root


@pytest.fixture
def terminal(tmp_path):
    """Runs a script in a terminal of 24 lines and 40 columns, in a fork of this process; -> what
    the terminal got, exit code."""

    def run(words, after=lambda seen, process: None, typed="", **env):
        master, slave = pty.openpty()
        os.write(master, typed.encode())  # it waits there until somebody reads
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
        command = {**forked(script(*words, **env)), "text": False}
        process = subprocess.Popen(**command, stdin=slave, stdout=slave, stderr=slave)
        os.close(slave)
        seen = b""
        try:
            while select.select([master], [], [], 60)[0] and (part := os.read(master, 1 << 16)):
                seen += part
                after(seen, process)
        except OSError:  # the other side is closed: the script has ended
            pass
        finally:
            os.close(master)
            process.kill()
        return seen.decode().replace("\r\n", "\n"), process.wait()

    return run
