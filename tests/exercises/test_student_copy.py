"""The classroom: a copy without solutions, graders that detect every blank, no overwritten file."""
import os
import re
import subprocess

import pytest

from exercises import student_copy
from flags import UserError, configure
from forks import forked
from runs import ROOT, complaint, python

NUMBERS = [*range(1, 33)]


def test_every_exercise_is_marked_has_a_grader_and_is_in_the_ladder():
    graders = "".join((ROOT / file).read_text("utf-8") for file in student_copy.grader_files(ROOT))
    known = student_copy.exercises()
    assert list(known) == NUMBERS
    assert sorted({int(n) for n in re.findall(r"def test_exercise_(\d+)_", graders)}) == NUMBERS
    ladder = (ROOT / "exercises" / "README.md").read_text("utf-8")
    row = re.compile(r"^\| (\d+) \| (\w+) \| .* \| `([\w./]+)(?:: (\w+))?`", re.M)
    rows = row.findall(ladder)
    assert [int(n) for n, *_ in rows] == NUMBERS and len(ladder.splitlines()) <= 150
    for n, kind, file, name in rows:
        assert kind in ("fill", "predict", "break", "extend")
        assert {part[0].as_posix() for part in known[int(n)]} == {file}
        assert not name or re.search(rf"^(def|class) {name}\b", (ROOT / file).read_text("utf-8"),
                                     re.M)


def test_marks_open_and_close_and_a_blank_is_a_few_lines():
    for path in student_copy.project_files():
        if path.suffix == ".py" and path.name not in student_copy.UNMARKED:
            text = path.read_text("utf-8")
            opened = len(re.findall(r"^ *# exercise \d+: ", text, re.M))
            closed = len(re.findall(r"^ *# end$", text, re.M))
            assert opened == closed == len(student_copy.MARK.findall(text)), path.name
    for parts in student_copy.exercises().values():
        assert sum(part[3].count("\n") for part in parts) <= 6


def test_the_copy_is_the_project_without_its_solutions(tmp_path):
    out, known = student_copy.copy_project(tmp_path / "student"), student_copy.exercises()
    for n, parts in student_copy.exercises(out).items():
        assert all("NotImplementedError" in part[3] for part in parts)
        for _, _, _, solution in known[n]:
            assert solution not in (out / parts[0][0]).read_text("utf-8")
    changed = set()
    for path in student_copy.project_files():
        file = path.relative_to(ROOT)
        if student_copy.SOLVED.fullmatch(path.name):
            assert not (out / file).exists(), "it has the answers"
            continue
        if (out / file).read_bytes() != path.read_bytes():
            changed.add(file)
            compile((out / file).read_text("utf-8"), str(file), "exec")
    assert changed == {part[0] for parts in known.values() for part in parts}
    assert (out / "viewer" / "player.html").exists() and (out / "README.md").exists()
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout
    kept = {path.relative_to(ROOT).as_posix() for path in student_copy.project_files()}
    missing = [file for file in tracked.split("\n") if file and not file.startswith(".")
               and file not in kept and (ROOT / file).exists()]
    assert missing in ([], ["LICENSE"])


def test_a_copy_inside_the_project_contains_neither_itself_nor_runs_nor_other_copies(
        tmp_path, monkeypatch):
    root = student_copy.copy_files(tmp_path / "project")
    monkeypatch.setattr(student_copy, "ROOT", root)
    monkeypatch.setattr(student_copy.project_files, "__defaults__", (root,))
    for file in ("out/run/ckpt.pt", "data/cache/text.bin", ".git/config", ".venv/lib/a.py",
                 "methods/__pycache__/a.pyc", "earlier/train.py"):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text("")
    os.mkfifo(root / "docs" / "pipe")
    os.symlink("nowhere", root / "docs" / "lost")
    for out in (root / "student", root / "out" / "student"):
        copy = student_copy.copy_project(out)
        files = {path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file()}
        assert {"train.py", "methods/mdlm.py", "tests/exercises/test_exercises.py"} <= files
        assert not [file for file in files if re.search(
            r"^(out|student|earlier|\.git|\.venv)/|(^|/)(cache|__pycache__)/|/student/", file)]


@pytest.mark.parametrize("place, says", [
    *[(f"{room}/student", f"lies in {room.split('/')[0]}/, a folder of the project")
      for room in ("docs", "tests", "exercises", "data/cache", "methods/deep/er")],
    ("docs/empty", "lies in docs/"), ("link", "lies in docs/"), ("lost", "lies in docs/"),
    ("docs/../tests/student", "lies in tests/"), ("out/../docs/student", "lies in docs/"),
    (".", "exists already"), ("..", "exists already"), ("tests", "exists already"),
    ("train.py", "exists already"), ("earlier", "exists already")])
def test_a_copy_into_the_projects_own_folders_is_refused_before_anything_is_written(
        place, says, tmp_path, monkeypatch):
    root = tmp_path / "project"
    for name in ("train.py", "docs/a.md", "tests/test_a.py", "earlier/train.py", "out/a"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("")
    (root / "docs/empty").mkdir()
    os.symlink("docs/empty", root / "link")
    os.symlink("docs/new", root / "lost")
    monkeypatch.setattr(student_copy, "ROOT", root)
    monkeypatch.setattr(student_copy.project_files, "__defaults__", (root,))
    monkeypatch.chdir(root)
    before = sorted(root.rglob("*"))
    with pytest.raises(UserError, match=says):
        student_copy.copy_project(place)
    assert sorted(root.rglob("*")) == before


def test_half_a_copy_goes_away(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(student_copy.shutil, "copyfile", full)
    (tmp_path / "mine").mkdir()
    for name in ("student", "mine"):
        with pytest.raises(OSError):
            student_copy.copy_project(tmp_path / name)
    assert os.listdir(tmp_path) == ["mine"]  # it was there


def test_one_blank_alone_and_a_folder_with_files_is_left_as_it_is(tmp_path):
    out = student_copy.copy_project(tmp_path / "student", only=4)
    blank = [n for n, parts in student_copy.exercises(out).items()
             if "NotImplementedError" in parts[0][3]]
    assert blank == [4]
    with pytest.raises(UserError, match="exists already"):
        student_copy.copy_project(out)


def test_the_score_sheet_tells_blank_and_wrong_apart_and_explains(tmp_path, monkeypatch, capsys):
    """A student who solved 18 but exchanged the groups, and has not begun with 19."""
    run = subprocess.run
    monkeypatch.setattr(student_copy.subprocess, "run", lambda words, **options: run(
        **forked(dict(args=words, env=dict(os.environ))), **options))
    out = student_copy.copy_project(tmp_path / "student")
    source = out / "methods" / "pgm.py"
    exchanged = ("n = torch.where(group, 1 - t, t); "
                 "return 6 * (1 - n) if weighting == 'simple' else 1 / n")
    text = re.sub(r"raise NotImplementedError.*still blank.*", exchanged, source.read_text("utf-8"))
    source.write_text(text, "utf-8")
    assert student_copy.print_score_sheet(out, [18, 19]) == 2
    said = capsys.readouterr().out
    assert "18  wrong" in said and "the groups are exchanged" in said
    assert "19  blank" in said and "0 of 2 solved" in said


@pytest.mark.parametrize("words, message", [
    ([], "say what to do"), (["--solution", "99"], "there is no exercise 99"),
    (["--out", str(ROOT / "tests")], "exists already")])
def test_what_cannot_be_done_gets_one_line(words, message, capsys):
    assert message in complaint(student_copy, *words, capsys=capsys)


def test_the_command_runs_as_a_module():
    command = python("-m", "exercises.student_copy", "--solutoin", "3")
    run = subprocess.run(**forked(command), cwd=ROOT, capture_output=True)
    assert run.returncode == 2 and "did you mean --solution" in run.stderr
    assert run.stderr.count("\n") == 1


def test_a_solution_is_shown_with_its_place(capsys):
    student_copy.main(configure(student_copy.Config, solution=4))
    said = capsys.readouterr().out
    assert said.startswith("methods/mdlm.py:") and "torch.where(z == process.mask" in said


def test_a_fork_counts_the_tests_of_a_copy_and_a_crash_counts_none(tmp_path):
    (tmp_path / "test_one.py").write_text(
        "import os\ndef test_right(): pass\ndef test_wrong(): assert 0\n"
        "def test_crash(): os._exit(1)\n")
    run = lambda words: student_copy.run_in_fork(tmp_path, [*words, "test_one.py"])
    assert run(["-k", "not crash"]) == (1, 1) and run(["-k", "crash"]) == (0, 0)
