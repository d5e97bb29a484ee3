"""What the graders of the exercises share: comparisons that name the mistake behind a number."""
import os
import re
import subprocess
import sys
import tempfile

import pytest
import torch

from exercises.student_copy import ROOT, copy_files, run_in_fork

DOUBLE = torch.float64


def fail(message):
    pytest.fail(message, pytrace=False)


def format_numbers(value):
    """The first few numbers of a tensor."""
    flat = torch.as_tensor(value).double().flatten()  # (n,)
    return ", ".join(f"{v:.4g}" for v in flat[:6].tolist()) + (", ..." if len(flat) > 6 else "")


def check_equal(what, got, exact, mistakes=(), tolerance=1e-6):
    """A tensor of the right shape and value; or a failure that says what came out and what is
    exact. mistakes: {"what was done": its result}"""
    if not torch.is_tensor(got):
        fail(f"{what}: got {got!r}, which is not a tensor")
    if got.shape != exact.shape:
        fail(f"{what}: got the shape {tuple(got.shape)}, which must be {tuple(exact.shape)}")
    check_close(what, got, exact, tolerance, mistakes)


def check_close(what, got, exact, tolerance, mistakes=()):
    """The same for numbers that are measured: within `tolerance`."""
    got, exact = torch.as_tensor(got).double(), torch.as_tensor(exact).double()
    close = lambda a, b: bool(((a - b).abs() <= tolerance).all())
    if not got.isfinite().all():
        fail(f"{what}: got {format_numbers(got)}, which is not finite: 0/0, or a logarithm of 0?")
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


def check_detects(name, file, right, wrong):
    """The test `name` exists, and fails once `right` in `file` is replaced by `wrong`."""
    match = re.fullmatch(r"(tests/(?:\w+/)?\w+\.py)::(test_\w+)(\[.*\])?", str(name))
    source = ROOT / match[1] if match else ROOT / "missing"
    if not source.exists() or f"def {match[2]}(" not in source.read_text("utf-8"):
        fail(f"{name!r} is not a test: give tests/FOLDER/FILE.py::test_NAME")
    if "exercises" in match[1]:
        fail(f"{name} grades an exercise: find a test of the theory")

    def change(path, text):
        if path != file:
            return text
        assert text.count(right) == 1, f"the grader is out of date: {file} has no {right!r}"
        return text.replace(right, wrong)
    with tempfile.TemporaryDirectory() as folder:
        passed, failed = run_test(copy_files(folder, change), name)
    if not passed and not failed:
        fail(f"{name} did not run")
    if not failed:
        fail(f"{name} passes even though {file} has the fault: it tests something else")


def run_test(root, name):
    """pytest on a copy of the project, up to the first failure. -> tests that passed, failed"""
    words = ["-x", "--no-header", "-o", "addopts=", name]
    if hasattr(os, "fork"):
        return run_in_fork(root, words)
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words],
                          cwd=root, capture_output=True, text=True)
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed)", done.stdout)}
    return counts.get("passed", 0), counts.get("failed", 0)
