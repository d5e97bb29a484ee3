"""The classroom: a copy without solutions, graders that see every blank, and nothing that is written over."""
import re
import subprocess

import pytest
from mutant_table import MUTANTS
from runs import ROOT, script

import blank
from data import BadInput

NUMBERS = list(range(1, 21))


def test_every_exercise_is_marked_has_a_grader_and_stands_in_the_ladder():
    graders = "".join(path.read_text("utf-8") for path in ROOT.glob("tests/test_exercises*.py"))
    assert list(blank.exercises()) == NUMBERS
    assert sorted({int(n) for n in re.findall(r"def test_exercise_(\d+)_", graders)}) == NUMBERS
    ladder = (ROOT / "exercises.md").read_text("utf-8")
    rows = re.findall(r"^\| (\d+) \| (\w+) \| .* \| `([\w.]+)(?:: (\w+))?`", ladder, re.M)
    assert [int(n) for n, *_ in rows] == NUMBERS and len(ladder.splitlines()) <= 150
    for n, kind, file, function in rows:
        parts = blank.exercises()[int(n)]
        assert kind in ("fill", "predict", "break", "extend") and {str(part[0]) for part in parts} == {file}
        assert not function or f"{function}" in (ROOT / file).read_text("utf-8")


def test_marks_open_and_close_and_a_blank_is_a_few_lines():
    for path in [*ROOT.glob("*.py"), *ROOT.glob("data/*.py")]:
        text = path.read_text("utf-8")
        if path.name != "blank.py":
            opened = len(re.findall(r"^ *# exercise \d+: ", text, re.M))
            assert opened == len(re.findall(r"^ *# end$", text, re.M)) == len(blank.MARK.findall(text)), path.name
    for parts in blank.exercises().values():
        assert sum(part[3].count("\n") for part in parts) <= 6


def test_the_copy_is_the_project_but_for_its_solutions(tmp_path):
    out = blank.copy(tmp_path / "student")
    for path in out.rglob("*.py"):
        compile(path.read_text("utf-8"), str(path), "exec")
    for n, parts in blank.exercises(out).items():
        assert all("NotImplementedError" in part[3] for part in parts)
        for _, _, _, solution in blank.exercises()[n]:
            assert solution not in (out / parts[0][0]).read_text("utf-8")
    assert (out / "page.html").read_text("utf-8") == (ROOT / "page.html").read_text("utf-8")
    assert (out / "README.md").exists() and (out / "tests" / "test_exercises.py").exists()
    changed = {path.relative_to(out) for path in out.rglob("*.py")
               if path.read_text("utf-8") != (ROOT / path.relative_to(out)).read_text("utf-8")}
    assert changed == {part[0] for parts in blank.exercises().values() for part in parts}


def test_one_blank_alone_and_a_folder_that_is_there_is_left_as_it_is(tmp_path):
    out = blank.copy(tmp_path / "student", only=4)
    assert [n for n, parts in blank.exercises(out).items() if "NotImplementedError" in parts[0][3]] == [4]
    with pytest.raises(BadInput, match="is there already"):
        blank.copy(out)


def test_the_score_sheet_tells_blank_and_wrong_apart_and_why(tmp_path, capsys):
    """A student who solved 18 but exchanged the groups, and has not begun with 19."""
    out = blank.copy(tmp_path / "student")
    source = out / "partition.py"
    text = source.read_text("utf-8")
    exchanged = "n = torch.where(group, 1 - t, t); return 6 * (1 - n) if weighting == 'simple' else 1 / n"
    source.write_text(re.sub(r"raise NotImplementedError.*", exchanged, text), "utf-8")
    assert blank.check(out, 18) == 1
    said = capsys.readouterr().out
    assert "18  wrong" in said and "the groups are exchanged" in said and "0 of 1 solved" in said
    assert blank.check(out, 19) == 1 and "19  blank" in capsys.readouterr().out


@pytest.mark.parametrize("words, message", [
    ([], "say what to do"), (["--solution", "99"], "there is no exercise 99"),
    (["--out", str(ROOT / "tests")], "is there already"), (["--solutoin", "3"], "did you mean --solution")])
def test_what_cannot_be_done_gets_one_line(words, message):
    run = subprocess.run(**script("blank", *words), capture_output=True)
    assert run.returncode == 2 and message in run.stderr and run.stderr.count("\n") == 1


def test_a_solution_is_shown_with_its_place(capsys):
    blank.main(blank.Config(solution=4))
    said = capsys.readouterr().out
    assert said.startswith("masked.py:") and "torch.where(z == process.mask" in said


def test_every_mutant_of_the_table_still_finds_its_line():
    """`python -m tests.mutants` takes minutes; that its table is not out of date takes none."""
    assert len(MUTANTS) >= 60 and len({mutant[4] for mutant in MUTANTS}) == len(MUTANTS)
    for file, right, wrong, tests, _ in MUTANTS:
        assert (ROOT / file).read_text("utf-8").count(right) == 1 and right != wrong, (file, right)
        assert all((ROOT / "tests" / f"{name}.py").exists() for name in tests.split())
