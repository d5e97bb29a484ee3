"""
The classroom: a copy of the project without its solutions, the graders, and each solution.

    python -m exercises.student_copy --out student           a copy in which the solutions are blank
    python -m exercises.student_copy --out student --only 4  the same with a single blank
    python -m exercises.student_copy --check           the graders and a score sheet, in either copy
    python -m exercises.student_copy --check --only 4  one exercise, with all messages of its grader
    python -m exercises.student_copy --solution 5      show a solution, in the full copy
    python -m exercises.student_copy --prove           blank each in turn: its graders must fail;
                                                       restore it: they must pass

The working source is the solution. What lies between `# exercise 4: ...` and `# end` is blank in
the copy, and raises NotImplementedError. The graders are ordinary tests in
tests/exercises/test_exercises*.py, with names such as test_exercise_04_...
"""
import gc
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as xml
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch  # noqa: F401  loaded once, for all forks of --prove

from data.files import refuse_unreadable
from flags import UserError, flag
from script import run_script

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ["checkpoints", "data", "docs", "evaluation", "exercises", "experiments",
           "kernels_triton", "methods", "runtime", "samplers", "tests", "viewer", "weights"]
MARK = re.compile(r"^( *)# exercise (\d+): ([^\n]*)\n(.*?)^\1# end\n", re.M | re.S)
UNMARKED = Path(__file__).name, "test_student_copy.py"  # they only talk about marks
SOLVED = re.compile(r"answers(_\w+)?\.py|test_graders\.py")  # what no student's copy has
BLANK = "still blank"


@dataclass
class Config:
    out: str = flag("", "folder of the student's copy: a new or empty one")
    only: int = flag(0, "one exercise alone; 0 means all", least=0)
    check: bool = flag(False, "grade this copy")
    solution: int = flag(0, "the number of the exercise to show", least=0)
    prove: bool = flag(False, "show that the graders of each exercise detect its blank")


def project_files(root=ROOT):
    """All files of the project below `root`, without runs, caches and what starts with a dot."""
    found = [path for path in root.glob("*") if path.suffix in (".py", ".md", ".txt")]
    for folder in filter(lambda name: (root / name).is_dir(), FOLDERS):  # some may be deleted
        for here, folders, files in os.walk(root / folder, onerror=refuse_unreadable):
            folders[:] = [name for name in folders
                          if name not in ("cache", "__pycache__") and not name.startswith(".")]
            found += [Path(here, name) for name in files if not name.startswith(".")]
    return sorted(path for path in found if path.is_file())  # no pipes, no links to nowhere


def exercises(root=ROOT):
    """{number: [(file, first line, title, solution)]}, in order."""
    found = {}
    for path in project_files(root):
        if path.suffix != ".py" or path.name in UNMARKED:
            continue
        text = path.read_text("utf-8")
        for mark in MARK.finditer(text):
            line = text[:mark.start()].count("\n") + 1
            part = path.relative_to(root), line, mark[3], mark[4]
            found.setdefault(int(mark[2]), []).append(part)
    return dict(sorted(found.items()))


def remove_solutions(text, only=0):
    """The source without the solutions, or without that of one exercise."""
    def empty(mark):
        indent, number, title, solution = mark.groups()
        if only and int(number) != only or "NotImplementedError" in solution:
            return mark[0]
        return (f"{indent}# exercise {number}: {title}\n"
                f"{indent}raise NotImplementedError(\"exercise {number} is {BLANK}\")\n"
                f"{indent}# end\n")
    return MARK.sub(empty, text)


def copy_files(out, change=lambda path, text: text, without=None):
    """A copy of the project, with change(path, text) of each source file, but no graders' file
    whose name `without` matches. UserError if `out` has files already, or lies in a folder of the
    project, which would then contain every file twice."""
    out = Path(os.path.realpath(out))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already: name a new folder")
    if room := next((name for name in FOLDERS if out.is_relative_to(ROOT / name)), None):
        raise UserError(f"{out} lies in {room}/, a folder of the project: name a new folder beside "
                        f"it, such as student")
    files = [path for path in project_files()
             if path.parent.name != "exercises" or not (without and without.fullmatch(path.name))]
    is_new = not out.exists()
    try:
        for path in files:
            target = out / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".py":
                text = change(path.relative_to(ROOT).as_posix(), path.read_text("utf-8"))
                target.write_text(text, "utf-8")
            else:
                shutil.copyfile(path, target)
    except OSError:  # half a copy is of no use, and would be in the way of the next one
        shutil.rmtree(out, ignore_errors=True) if is_new else None
        raise
    return out


def copy_project(out, only=0):
    """The student's copy."""
    return copy_files(out, lambda path, text: text if Path(path).name in UNMARKED else
                      remove_solutions(text, only), without=SOLVED)


# ---- grading

def grader_pattern(numbers):
    """What pytest selects by name; no numbers select all."""
    return " or ".join(f"exercise_{number:02}_" for number in numbers) or "exercise"


def grader_files(root):
    return sorted(str(path.relative_to(root))
                  for path in root.glob("tests/exercises/test_exercises*.py"))


def grade(root, numbers=()):
    """Run the graders in another process. -> {number: [(name, message of a failure, or None)]}"""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        words = ["-q", "-p", "no:cacheprovider", "-k", grader_pattern(numbers),
                 f"--junitxml={report}", *grader_files(root)]
        subprocess.run([sys.executable, "-m", "pytest", *words], cwd=root,
                       stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
        if not report.exists():
            raise UserError("pytest did not run: pip install -r requirements-test.txt")
        sheet = {}
        for case in xml.parse(report).getroot().iter("testcase"):
            said = next((part.get("message", "") for part in case
                         if part.tag in ("failure", "error")), None)
            if mark := re.match(r"test_exercise_(\d+)_(.*)", case.get("name")):
                sheet.setdefault(int(mark[1]), []).append((mark[2], said))
            elif said is not None:  # the file could not even be imported
                raise UserError(f"the graders do not start: {said.strip()}")
    return dict(sorted(sheet.items()))


def grader_message(said):
    """What a grader says, or that the code under test raised an error."""
    kind, _, text = said.strip().partition(": ")
    if kind in ("Failed", "AssertionError", "NotImplementedError"):
        return text
    return f"your code raises {said.strip()}" if re.fullmatch(r"[\w.]+", kind) else said.strip()


def print_score_sheet(root, numbers=()):
    """-> how many exercises are not solved"""
    sheet, known = grade(root, numbers), exercises(root)
    solved = 0
    for number, tests in sheet.items():
        faults = [grader_message(said) for _, said in tests if said is not None]
        state = "solved" if not faults else "blank" if BLANK in faults[0] else "wrong"
        solved += state == "solved"
        file, line, title, _ = known[number][0] if number in known else ("", "", "", "")
        print(f"{number:>3}  {state:<7} {f'{file}:{line}':<28} {title}")
        for fault in faults if state == "wrong" else ():
            print("       " + fault.replace("\n", "\n       "))
    print(f"{solved} of {len(sheet)} solved")
    return len(sheet) - solved


# ---- in forks of this process, which has torch already

class TestCounter:
    """A plugin of pytest that counts the tests that pass and fail, without their fixtures."""
    __test__ = False

    def __init__(self):
        self.passed = self.failed = 0

    def pytest_runtest_logreport(self, report):
        self.failed += report.when == "call" and report.failed
        self.passed += report.when == "call" and report.passed


def is_of_project(path):
    path = Path(path).resolve()
    return path.is_relative_to(ROOT) and not {".venv", "site-packages"} & set(path.parts)


def project_modules():
    """The names of all imported modules and folders of the project, tests included."""
    def paths(module):
        facts = vars(module)
        return [*(facts.get("__path__") or []), facts.get("__file__") or "/"]
    return [name for name, module in sys.modules.items()
            if name != "__main__" and any(map(is_of_project, paths(module)))]


def forget_project():
    """Remove the project from this process, so that a copy of it can be imported."""
    for name in project_modules():
        del sys.modules[name]
    sys.path[:] = [path for path in sys.path if path and not is_of_project(path)]


def run_in_fork(root, words):
    """pytest with these words on a copy of the project. -> tests that passed, tests that failed"""
    def work():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits
        gc.freeze()  # pytest collects garbage at its end: not what was here before
        forget_project()
        os.chdir(root)
        sys.path.insert(0, str(root))
        counter = TestCounter()
        with open(os.devnull, "w", encoding="utf-8") as sys.stdout:
            pytest.main(["-q", "-p", "no:cacheprovider", *words], plugins=[counter])
        sender.send((counter.passed, counter.failed))
        os._exit(0)

    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    child = fork.Process(target=work)
    child.start()
    try:
        sender.close()
        return receiver.recv()
    except EOFError:  # it crashed
        return 0, 0
    finally:
        child.kill()
        child.join()


def prove():
    """Blank each exercise: all its graders must fail. Restore all: all must pass. -> the faults"""
    bad = []
    run = lambda root, numbers: run_in_fork(root, ["-k", grader_pattern(numbers),
                                                   *grader_files(root)])
    with tempfile.TemporaryDirectory() as folder:
        for number in exercises():
            root = copy_project(Path(folder, str(number)), number)
            passed, failed = run(root, [number])
            detected = failed and not passed
            print(f"exercise {number:>2}: " + ("its graders detect the blank" if detected else
                                               "A GRADER PASSES THE BLANK"), flush=True)
            bad += [] if detected else [number]
            shutil.rmtree(root)
    passed, failed = run(ROOT, [])
    if failed or not passed:
        bad.append("restored")
    print("restored: " + ("the graders fail on the solutions" if "restored" in bad else
                          "all graders pass"))
    return bad


def show_solution(parts):
    for file, line, title, solution in parts:
        if "NotImplementedError" in solution:
            raise UserError("this is the student's copy: the full copy has the solutions")
        print(f"{file}:{line}  {title}\n{solution}")


def main(config, given=()):
    known = exercises()
    number = config.solution or config.only
    if number and number not in known:
        raise UserError(f"there is no exercise {number}: they are 1 to {max(known)}")
    if config.solution:
        show_solution(known[number])
    elif config.check:
        sys.exit(min(print_score_sheet(ROOT, [config.only] * bool(config.only)), 1))
    elif config.prove:
        sys.exit(1 if prove() else 0)
    elif config.out:
        copy_project(config.out, config.only)
        print(f"{config.out}: {1 if config.only else len(known)} blanks. Change to that folder, "
              f"read exercises/README.md, and grade with python -m exercises.student_copy --check")
    else:
        raise UserError("say what to do: --out FOLDER, --check, --solution N or --prove; "
                        "--help lists the flags")


if __name__ == "__main__":
    run_script(Config, main)
