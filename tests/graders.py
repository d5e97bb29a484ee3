"""What the graders of the exercises share: to compare, and to say which slip gives what came out."""
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

DOUBLE = torch.float64
ROOT = Path(__file__).parent.parent


def shown(value):
    """A few numbers, short."""
    flat = torch.as_tensor(value).double().flatten()
    return ", ".join(f"{v:.4g}" for v in flat[:6].tolist()) + (", ..." if len(flat) > 6 else "")


def graded(what, got, exact, slips=(), tolerance=1e-6):
    """Equal, or fail in a sentence: what came out, what is exact, and the slip that gives just that.

    slips: {"what was done": what comes out then}
    """
    if not torch.is_tensor(got):
        pytest.fail(f"{what}: got {got!r}, which is no tensor", pytrace=False)
    if got.shape != exact.shape:
        pytest.fail(f"{what}: got the shape {tuple(got.shape)}, it must be {tuple(exact.shape)}", pytrace=False)
    near(what, got, exact, tolerance, slips)


def near(what, got, exact, tolerance, slips=()):
    """The same for numbers that are measured: within `tolerance`."""
    got, exact = torch.as_tensor(got).double(), torch.as_tensor(exact).double()
    if not got.isfinite().all():
        pytest.fail(f"{what}: got {shown(got)}, which is no number: 0/0, or a logarithm of 0?", pytrace=False)
    if ((got - exact).abs() <= tolerance).all():
        return
    for slip, value in dict(slips).items():
        value = torch.as_tensor(value).double()
        if value.isfinite().all() and ((got - value).abs() <= tolerance).all():
            pytest.fail(f"{what}: got {shown(got)}, exact is {shown(exact)}. That comes out if {slip}", pytrace=False)
    pytest.fail(f"{what}: got {shown(got)}, exact is {shown(exact)}", pytrace=False)


def fails_without(name, file, right, wrong):
    """The test `name` exists, passes now, and fails once `right` in `file` has become `wrong`."""
    match = re.fullmatch(r"(tests/\w+\.py)::(test_\w+)(\[.*\])?", str(name))
    if not match or not (ROOT / match[1]).exists() or f"def {match[2]}(" not in (ROOT / match[1]).read_text("utf-8"):
        pytest.fail(f"{name!r} is no test: give tests/FILE.py::test_NAME", pytrace=False)
    if "exercises" in match[1]:
        pytest.fail(f"{name} grades an exercise: find a test of the theory", pytrace=False)
    with tempfile.TemporaryDirectory() as folder:
        for part in ("data", "tests"):
            shutil.copytree(ROOT / part, Path(folder, part), ignore=shutil.ignore_patterns("__pycache__"))
        for path in ROOT.glob("*.py"):
            shutil.copy(path, folder)
        source = Path(folder, file)
        text = source.read_text("utf-8")
        assert text.count(right) == 1, f"the grader is out of date: {file} has {right!r} {text.count(right)} times"
        source.write_text(text.replace(right, wrong), "utf-8")
        run = subprocess.run([sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", name], cwd=folder,
                             env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if run.returncode == 0:
        pytest.fail(f"{name} passes though {file} has the fault: it looks at something else", pytrace=False)
    if run.returncode != 1:
        pytest.fail(f"{name} did not run: {run.stdout[-300:]}", pytrace=False)
