"""What the graders of the exercises share: comparisons that name the mistake behind a number."""
import contextlib
import functools
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed.tensor  # noqa: F401  assert_close would load it in each fork
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from exercises.student_copy import MARK, ROOT, copy_files, run_in_fork

DOUBLE = torch.float64


def fail(message):
    pytest.fail(message, pytrace=False)


def check(right, message):
    if not right:
        fail(message)


@contextlib.contextmanager
def hint(sentence):
    """What to think of if the answer raises an error here."""
    try:
        yield
    except NotImplementedError:  # still blank
        raise
    except Exception as error:
        fail(f"your code raises {type(error).__name__}: {error}. {sentence}")


def format_numbers(value):
    """The first few numbers of a tensor."""
    flat = torch.as_tensor(value).double().flatten()  # (n,)
    return ", ".join(f"{v:.4g}" for v in flat[:6].tolist()) + (", ..." if len(flat) > 6 else "")


def to_double(what, got):
    """A number of any kind, or a tensor, in float64."""
    try:
        got = got if torch.is_tensor(got) else torch.as_tensor(got)  # (...)
    except (TypeError, ValueError, RuntimeError):
        with contextlib.suppress(TypeError, ValueError):  # fractions and the like
            return torch.tensor(float(got), dtype=DOUBLE)  # ()
        fail(f"{what}: got {got!r}, which is not a number" + (": return it" * (got is None)))
    return got.detach().double()  # (...)


def check_shape(what, got, shape):
    """A tensor of this shape; or a failure that says what came out."""
    check(torch.is_tensor(got), f"{what}: got {got!r}, which is not a tensor")
    check(got.shape == torch.Size(shape), f"{what}: got the shape {tuple(got.shape)}, which must "
                                          f"be {tuple(shape)}")


def check_equal(what, got, exact, mistakes=(), tolerance=1e-6, not_finite=""):
    """A tensor of the right shape and value; or a failure that says what came out and what is
    exact. mistakes: {"what was done": its result}; not_finite: why it may not be finite"""
    check_shape(what, got, exact.shape)
    check_close(what, got, exact, tolerance, mistakes, not_finite)


def check_close(what, got, exact, tolerance, mistakes=(), not_finite=""):
    """The same for numbers that are measured: within `tolerance`."""
    got, exact = to_double(what, got), torch.as_tensor(exact).double()
    close = lambda a, b: bool(((a - b).abs() <= tolerance).all())
    if not got.isfinite().all():
        fail(f"{what}: got {format_numbers(got)}, which is not finite: "
             + (not_finite or "0/0, or a logarithm of 0?"))
    if close(got, exact):
        return
    for mistake, value in dict(mistakes).items():
        value = torch.as_tensor(value).double()
        reason = f". That is the result if {mistake}"
        if value.isfinite().all() and close(got, value):
            break
    else:
        reason = ""
    fail(f"{what}: got {format_numbers(got)}, exact is {format_numbers(exact)}{reason}")


class Draws(TorchDispatchMode):
    """Watches how a draw comes about, from whatever source.

    coarse: numbers of less than 64 bits that are not whole took part; uniform: how many uniform
    numbers each call of torch drew. forced: what all of these are
    """

    def __init__(self, forced=None):
        super().__init__()
        self.forced, self.coarse, self.uniform = forced, False, []

    def __torch_dispatch__(self, call, types, args=(), kwargs=None):
        out = call(*args, **(kwargs or {}))
        name = call._schema.name
        if name in ("aten::rand", "aten::rand_like", "aten::uniform_"):
            self.uniform.append(out.numel())
            low, high = [*args[1:3], 0.0, 1.0][:2] if name == "aten::uniform_" else (0.0, 1.0)
            if self.forced is not None:
                out.fill_(low + (high - low) * self.forced)
        for a in tree_leaves((args, out)):
            if torch.is_tensor(a) and a.is_floating_point() and a.dtype != DOUBLE:
                self.coarse |= bool((a != a.round()).any())
        return out


def check_detects(name, file, number, wrong):
    """The test `name` exists, and fails once the last solution of exercise `number` in `file` is
    replaced by the lines `wrong`, whatever the student wrote there."""
    name = str(name).strip().removeprefix("./")
    match = re.fullmatch(r"(tests/(?:\w+/)?\w+\.py)::(test_\w+)(\[.*\])?", name)
    source = ROOT / match[1] if match else ROOT / "missing"
    check(source.exists() and f"def {match[2]}(" in source.read_text("utf-8"),
          f"{name!r} is not a test: give tests/FOLDER/FILE.py::test_NAME")
    check("exercises" not in match[1] and "mutants" not in match[1],
          f"{name} reads the source: find a test of the theory")
    before, failed = run_test(ROOT, name)
    check(before or failed, f"{name} did not run")
    check(before, f"{name} fails without the fault as well: does it need a blank that is "
                  "still open?")
    passed, _ = run_test(copy_with_fault(file, number, tuple(wrong)), name)
    check(passed < before, f"{name} passes even though {file} has the fault: it tests something "
                           "else")


@functools.cache
def copy_with_fault(file, number, wrong):
    """The project with the lines `wrong` in the place of a solution, until this process ends."""
    def change(path, text):
        if path != file:
            return text
        mark = [mark for mark in MARK.finditer(text) if int(mark[2]) == number][-1]
        lines = "".join(f"{mark[1]}{line}\n" for line in wrong)
        return text[:mark.start(4)] + lines + text[mark.end(4):]
    FOLDERS.append(tempfile.TemporaryDirectory())  # whose end is its removal
    return copy_files(Path(FOLDERS[-1].name, "after"), change)


FOLDERS = []


@functools.cache
def run_test(root, name):
    """pytest on the project or a copy of it. -> tests that passed, failed"""
    words = ["--no-header", "-o", "addopts=", name]
    if hasattr(os, "fork"):
        return run_in_fork(root, words)
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words],
                          cwd=root, capture_output=True, text=True)
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed)", done.stdout)}
    return counts.get("passed", 0), counts.get("failed", 0)
