"""
The classroom: a copy of the project without its solutions, the graders, and the solutions one by one.

    python blank.py --out student          the student's copy: everything, but what the exercises ask for is blank
    python blank.py --out student --only 4 the same with one blank, for those who come in the middle
    python blank.py --check                the graders, and a score sheet; in either copy
    python blank.py --check --only 4       one exercise, with all that its grader has to say
    python blank.py --solution 5           show one, in the full copy
    python blank.py --prove                blank each in turn: its graders fail; restore it: they pass

The working source is the solution. What lies between `# exercise 4: ...` and `# end` is blank in the copy, and raises
NotImplementedError. The graders are ordinary tests, tests/test_exercises*.py, named test_exercise_04_...
"""
from dataclasses import dataclass

from flags import flag, one_line_errors, parse


@dataclass
class Config:
    out: str = flag("", "folder of the student's copy; must not be there, or be empty")
    only: int = flag(0, "one exercise alone; 0 means all", least=0)
    check: bool = flag(False, "grade this copy")
    solution: int = flag(0, "the number of the exercise to show", least=0)
    prove: bool = flag(False, "show that each grader sees its blank")


CONFIG = parse(Config)[0] if __name__ == "__main__" else None

import multiprocessing  # noqa: E402
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as xml
from pathlib import Path

from data import BadInput

ROOT = Path(__file__).resolve().parent
KEPT = ["*.py", "*.md", "*.txt", "*.html", "data/*.py", "claims/*.py", "tests/*.py", "tests/*.npz", "docs/**/*"]
MARK = re.compile(r"^( *)# exercise (\d+): ([^\n]*)\n(.*?)^\1# end\n", re.M | re.S)


def exercises(root=ROOT):
    """{number: [(file, first line, title, solution)]}, in order."""
    found = {}
    for path in sorted([*root.glob("*.py"), *root.glob("data/*.py")]):
        text = path.read_text("utf-8")
        for mark in MARK.finditer(text) if path.name != Path(__file__).name else ():
            line = text[:mark.start()].count("\n") + 1
            found.setdefault(int(mark[2]), []).append((path.relative_to(root), line, mark[3], mark[4]))
    return dict(sorted(found.items()))


def blanked(text, only=0):
    """The source without the solutions, or without that of one exercise."""
    def empty(mark):
        indent, number, title, solution = mark.groups()
        if only and int(number) != only or "NotImplementedError" in solution:
            return mark[0]
        return (f"{indent}# exercise {number}: {title}\n"
                f"{indent}raise NotImplementedError(\"exercise {number} is still blank\")\n{indent}# end\n")
    return MARK.sub(empty, text)


def copy(out, only=0):
    """The student's copy. BadInput rather than writing over anything."""
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInput(f"{out} is there already: name a new folder")
    for pattern in KEPT:
        for path in filter(Path.is_file, ROOT.glob(pattern)):
            target = out / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".py" and path.name != Path(__file__).name:
                target.write_text(blanked(path.read_text("utf-8"), only), "utf-8")
            else:
                shutil.copyfile(path, target)
    return out


# ---- grading

def graders(number):
    """What pytest selects by name; 0 selects all."""
    return f"exercise_{number:02}_" if number else "exercise"


def grade(root, number=0):
    """Run the graders. -> {number: [(name, seconds, None or what the grader says)]}"""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        files = sorted(str(path.relative_to(root)) for path in root.glob("tests/test_exercises*.py"))
        subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", graders(number),
                        f"--junitxml={report}", *files], cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
        if not report.exists():
            raise BadInput("pytest did not run: pip install -r requirements-test.txt")
        cases, sheet = xml.parse(report).getroot().iter("testcase"), {}
        for case in cases:
            said = next((part.get("message", "") for part in case if part.tag in ("failure", "error")), None)
            if mark := re.match(r"test_exercise_(\d+)_(.*)", case.get("name")):
                sheet.setdefault(int(mark[1]), []).append((mark[2], float(case.get("time")), said))
            elif said is not None:                           # the file could not even be imported
                raise BadInput(f"the graders do not start: {said.strip()}")
    return dict(sorted(sheet.items()))


def short(said):
    """What a grader says, without the class of the exception."""
    return re.sub(r"^[\w.]*(Failed|Error|Exception): ", "", said.strip())


def check(root, number=0):
    """Print the score sheet. -> how many exercises are not solved"""
    sheet, known = grade(root, number), exercises(root)
    solved = 0
    for n, tests in sheet.items():
        faults = [short(said) for _, _, said in tests if said is not None]
        state = "solved" if not faults else "blank" if "still blank" in faults[0] else "wrong"
        solved += state == "solved"
        file, line, title, _ = known[n][0] if n in known else ("", "", "", "")
        print(f"{n:>3}  {state:<7} {f'{file}:{line}':<20} {title}")
        for fault in faults if state == "wrong" else ():
            print("       " + fault.replace("\n", "\n       "))
    print(f"{solved} of {len(sheet)} solved")
    return len(sheet) - solved


def attempt(root, number):
    """Grade in a child of this process, which has torch already. Its exit code: 0 all passed, 1 some failed, 2 all
    failed, 3 nothing ran."""
    import pytest
    signal.signal(signal.SIGINT, signal.SIG_IGN)             # Ctrl-C is for who waits
    os.chdir(root)
    sys.path.insert(0, str(root))
    ours = (ROOT, ROOT / "data", ROOT / "tests")             # and not what .venv has, which is below it too
    for name in [name for name, module in sys.modules.items()
                 if Path(getattr(module, "__file__", None) or "/").parent in ours]:
        del sys.modules[name]                                # the copy's own files are meant
    sys.stdout = open(os.devnull, "w")
    files = [str(path) for path in root.glob("tests/test_exercises*.py")]
    result = Counter()
    pytest.main(["-q", "-p", "no:cacheprovider", "-k", graders(number), *files], plugins=[result])
    os._exit((0 if result.passed else 3) if not result.failed else 1 if result.passed else 2)


class Counter:
    """A plugin of pytest that counts what the tests themselves said."""

    def __init__(self):
        self.passed = self.failed = 0

    def pytest_runtest_logreport(self, report):
        self.failed += report.when == "call" and report.failed
        self.passed += report.when == "call" and report.passed


def prove():
    """Each blank in turn: do all its graders fail? Then the whole: do all pass? -> the numbers that do not"""
    import torch                                             # noqa: F401  once, for all children
    fork, bad = multiprocessing.get_context("fork"), []

    def outcome(root, number):
        child = fork.Process(target=attempt, args=(root, number))
        child.start()
        try:
            child.join()
        finally:
            child.kill()
        return child.exitcode

    with tempfile.TemporaryDirectory() as folder:
        for number in exercises():
            root = copy(Path(folder, str(number)).resolve(), number)
            fails = outcome(root, number) == 2
            print(f"exercise {number:>2}: {'its graders see the blank' if fails else 'A GRADER PASSES THE BLANK'}",
                  flush=True)
            bad += [] if fails else [number]
            shutil.rmtree(root)
    if outcome(ROOT, 0) != 0:
        bad.append("restored")
    print("restored: " + ("the graders fail on the solutions" if "restored" in bad else "all graders pass"))
    return bad


def main(config):
    known = exercises()
    if config.solution or config.only:
        number = config.solution or config.only
        if number not in known:
            raise BadInput(f"there is no exercise {number}: they are 1 to {max(known)}")
    if config.solution:
        for file, line, title, solution in known[config.solution]:
            if "NotImplementedError" in solution:
                raise BadInput("this is the student's copy: the full one has the solutions")
            print(f"{file}:{line}  {title}\n{solution}")
    elif config.check:
        sys.exit(min(check(ROOT, config.only), 1))
    elif config.prove:
        sys.exit(1 if prove() else 0)
    elif config.out:
        copy(config.out, config.only)
        print(f"{config.out}: {1 if config.only else len(known)} blanks; cd there, read exercises.md, and grade with "
              f"python blank.py --check")
    else:
        raise BadInput("say what to do: --out FOLDER, --check, --solution N or --prove; --help tells more")


if __name__ == "__main__":
    with one_line_errors():
        main(CONFIG)
