"""
Break the project in many small ways, most of which shipped in public code, and see which test notices.

    python -m tests.mutants                all of them, on both cores, some minutes
    python -m tests.mutants --only block   those of block.py
    python -m tests.mutants --jobs 1

A mutant is one line made wrong. It is killed if one of the test files beside it fails. One that survives shows a test
that is missing, or a change of no consequence, and SURVIVORS says which. Each runs in a copy of the project, in a
child of this process that has torch already, with so many seconds to answer: a sampler that never ends is killed too.
"""
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 300                                              # seconds for a mutant
SURVIVORS = {}                                           # what is wrong: why no test can see it


def copy(folder, file, right, wrong):
    """The project with one line made wrong."""
    for part in ("data", "tests", "claims"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    for path in [*ROOT.glob("*.py"), *ROOT.glob("*.md")]:
        shutil.copy(path, folder)
    target = folder / file
    target.write_text(target.read_text("utf-8").replace(right, wrong), "utf-8")


def attempt(folder, tests):
    """Run the tests of a copy; the exit code is pytest's."""
    import pytest
    signal.signal(signal.SIGINT, signal.SIG_IGN)             # Ctrl-C is for who waits
    os.chdir(folder)
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path.insert(0, str(folder))
    ours = (ROOT, *(ROOT / part for part in ("data", "tests", "claims")))        # and not what .venv has
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or "/").parent in ours:
            del sys.modules[name]                            # the copy's own files are meant
    sys.stdout = sys.stderr = open("report.txt", "w")
    files = [f"tests/{name}.py" for name in tests.split()]
    code = pytest.main(["-q", "-x", "-p", "no:cacheprovider", "--tb=no", *files])
    sys.stdout.flush()
    os._exit(int(code))


def outcome(folder):
    """The name of the test that failed, from pytest's last lines."""
    report = (folder / "report.txt").read_text("utf-8", "replace") if (folder / "report.txt").exists() else ""
    lines = [line for line in report.splitlines() if line.startswith(("FAILED", "ERROR"))]
    names = [line.split(" - ")[0].split("::")[-1] for line in lines]
    return names[0] if names else ""


def judge(mutant):
    """-> "killed", "SURVIVED" or "SLOW", what noticed, seconds"""
    file, right, wrong, tests, _ = mutant
    began = time.time()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder).resolve()
        copy(folder, file, right, wrong)
        child = multiprocessing.get_context("fork").Process(target=attempt, args=(folder, tests))
        child.start()
        child.join(LIMIT)
        if child.is_alive():
            child.kill()
            child.join()
            return "killed", "no end", time.time() - began
        state = {0: "SURVIVED", 1: "killed"}.get(child.exitcode, "killed" if child.exitcode == 2 else "BROKEN")
        return state, outcome(folder), time.time() - began


def main(argv):
    from concurrent.futures import ThreadPoolExecutor

    import torch
    torch.set_num_threads(1)
    from tests.mutant_table import MUTANTS
    only = argv[argv.index("--only") + 1] if "--only" in argv else ""
    jobs = int(argv[argv.index("--jobs") + 1]) if "--jobs" in argv else os.cpu_count() or 1
    chosen = [mutant for mutant in MUTANTS if only in mutant[0] or only in mutant[4]]
    killed = 0
    with ThreadPoolExecutor(jobs) as pool:
        for mutant, (state, what, seconds) in zip(chosen, pool.map(judge, chosen)):
            killed += state == "killed"
            print(f"{state:<9}{mutant[0]:<20}{mutant[4]:<72}{seconds:5.0f} s  {what}", flush=True)
            if state == "SURVIVED" and mutant[4] in SURVIVORS:
                print(f"         {SURVIVORS[mutant[4]]}")
    print(f"{killed} of {len(chosen)} killed, {killed / max(1, len(chosen)):.1%}")
    return 0 if killed >= 0.95 * len(chosen) else 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(130)                                        # and no word of the threads that waited for them
