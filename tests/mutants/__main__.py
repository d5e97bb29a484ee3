"""
Break the project in small ways, most of which shipped in public code, and see which test fails.

    python -m tests.mutants                all of them, on all cores
    python -m tests.mutants --only bd3lm   those whose file or description contains a word
    python -m tests.mutants --first 40 --last 60    these numbers, from 0 on
    python -m tests.mutants --jobs 1
    python -m tests.mutants --baseline     the same tests on a copy without a fault: all must pass

A mutant is one line made wrong. It is killed if one of its test files fails. One that survives
shows that a test is missing, or that the change has no consequence, and SURVIVORS explains which.
Each runs in a copy of the project, in a fork of this process that has torch already, for LIMIT
seconds at most: a sampler that never ends is killed too.
"""
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch._dynamo  # noqa: F401  both would be loaded in each fork
import torch.distributed.tensor  # noqa: F401

from exercises.student_copy import copy_files, forget_project
from flags import flag
from script import run_script
from tests.mutants.table import MUTANTS, find_tests

LIMIT = 300  # seconds for a mutant
SURVIVORS = {}  # what is wrong: why no test can detect it


@dataclass
class Config:
    only: str = flag("", "a word of the file or of the description; empty means all")
    first: int = flag(0, "the number of the first mutant", least=0)
    last: int = flag(10**6, "the number of the last one", least=0)
    jobs: int = flag(os.cpu_count() or 1, "mutants at a time", least=1)
    baseline: bool = flag(False, "run the tests of the mutants without any fault")


def copy_mutant(folder, file, right, wrong):
    """The project with one line made wrong."""
    return copy_files(folder, lambda path, text: text.replace(right, wrong) if path == file
                      else text)


def run_tests(folder, words):
    """Run the tests of a copy; pytest's exit code becomes that of this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits
    forget_project()
    os.chdir(folder)
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path.insert(0, str(folder))
    sys.stdout = sys.stderr = open("report.txt", "w")
    code = pytest.main(["-q", "-p", "no:cacheprovider", "--tb=no", *words])
    sys.stdout.flush()
    os._exit(int(code))


def failed_tests(folder):
    """The names of the tests that failed, from pytest's last lines."""
    report = folder / "report.txt"
    lines = report.read_text("utf-8", "replace").splitlines() if report.exists() else []
    return [line.split(" - ")[0].split("::")[-1] for line in lines
            if line.startswith(("FAILED", "ERROR"))]


def run_in_copy(folder, words, limit):
    """-> exit code, or None after `limit` seconds; the tests that failed"""
    work = multiprocessing.get_context("fork").Process(target=run_tests, args=(folder, words))
    work.start()
    work.join(limit)
    if work.is_alive():
        work.kill()
        work.join()
        return None, []
    return work.exitcode, failed_tests(folder)


def judge(mutant):
    """-> "killed", "SURVIVED" or "BROKEN", the test that failed, seconds"""
    file, right, wrong, tests, _ = mutant
    began = time.time()
    with tempfile.TemporaryDirectory() as folder:
        folder = copy_mutant(Path(folder).resolve(), file, right, wrong)
        code, failed = run_in_copy(folder, ["-x", *find_tests(tests)], LIMIT)
    state = "SURVIVED" if code == 0 else "killed" if failed or code is None else "BROKEN"
    return state, "no end" if code is None else "".join(failed[:1]), time.time() - began


def run_baseline(mutants):
    """The tests of all these mutants without a fault. -> the tests that fail"""
    files = find_tests(" ".join(dict.fromkeys(" ".join(mutant[3] for mutant in mutants).split())))
    with tempfile.TemporaryDirectory() as folder:
        code, failed = run_in_copy(copy_files(Path(folder).resolve()), files, None)
    print(f"{len(files)} test files without a fault, exit code {code}", *failed, sep="\n")
    return failed


def main(config, given=()):
    torch.set_num_threads(1)
    chosen = [mutant for i, mutant in enumerate(MUTANTS) if config.first <= i <= config.last
              and (config.only in mutant[0] or config.only in mutant[4])]
    if config.baseline:
        sys.exit(1 if run_baseline(chosen) else 0)
    killed = 0
    with ThreadPoolExecutor(config.jobs) as pool:
        for mutant, (state, what, seconds) in zip(chosen, pool.map(judge, chosen)):
            killed += state == "killed"
            print(f"{state:<9}{MUTANTS.index(mutant):>4} {mutant[0]:<28}{mutant[4]:<60}"
                  f"{seconds:5.0f} s  {what}", flush=True)
            if state == "SURVIVED" and mutant[4] in SURVIVORS:
                print(f"         {SURVIVORS[mutant[4]]}")
    print(f"{killed} of {len(chosen)} killed, {killed / max(1, len(chosen)):.1%}")
    sys.exit(0 if killed == len(chosen) else 1)


if __name__ == "__main__":
    try:
        run_script(Config, main)
    finally:
        for child in multiprocessing.active_children():
            child.kill()
