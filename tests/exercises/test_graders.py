"""The graders themselves: an answer that is right passes, however it is written, and one that is
wrong gets a sentence that names the slip."""
import importlib
import inspect
import textwrap
from pathlib import Path
from types import ModuleType

import pytest

from exercises.student_copy import MARK, ROOT, exercises, grader_message

FILES = sorted(Path(__file__).parent.glob("*.py"))
GRADERS, ANSWERS = ([importlib.import_module(path.stem) for path in FILES
                     if path.stem.startswith(name)] for name in ("test_exercises", "answers"))
RIGHT = {n: texts for answers in ANSWERS for n, texts in answers.RIGHT.items()}
WRONG = {n: texts for answers in ANSWERS for n, texts in answers.WRONG.items()}
BLANKS = exercises()  # reads the whole project
FORKS = 6, 12  # graders that run a test in a copy: seconds each


def with_answer(number, answer):
    """The module of an exercise with this answer in place of the solution."""
    file, blanks = BLANKS[number][0][0], iter([answer] if isinstance(answer, str) else answer)

    def fill(mark):
        text = next(blanks) if int(mark[2]) == number else None
        return mark[0] if text is None else textwrap.indent(text, mark[1]) + "\n"
    module = ModuleType(file.as_posix().removesuffix(".py").replace("/", "."))
    exec(compile(MARK.sub(fill, (ROOT / file).read_text("utf-8")), str(file), "exec"), vars(module))
    return module


def cases_of(test):
    """The arguments of a test, as its parametrization says."""
    marks = [mark for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
    return [{mark.args[0]: value} for mark in marks for value in mark.args[1]] or [{}]


def complaint(number, answer, patch):
    """What the graders of an exercise say about an answer; None if they all pass."""
    module = with_answer(number, answer)
    for grader in GRADERS:
        for name, value in [*vars(grader).items()]:
            if isinstance(value, ModuleType) and value.__name__ == module.__name__:
                patch.setattr(grader, name, module)
            elif inspect.isroutine(value) or inspect.isclass(value):
                if value.__module__ == module.__name__ and hasattr(module, name):
                    patch.setattr(grader, name, getattr(module, name))
    tests = [value for grader in GRADERS for name, value in vars(grader).items()
             if name.startswith(f"test_exercise_{number:02}_")]
    assert tests
    for test in tests:
        for case in cases_of(test):
            try:
                test(**case)
            except (pytest.fail.Exception, Exception) as error:
                return grader_message(f"{type(error).__name__}: {error}")
    return None


def named(table):
    return [pytest.param(n, answer, id=f"{n}-{i}") for n, given in sorted(table.items())
            for i, answer in enumerate(given, 1)]


@pytest.mark.parametrize("number, answer", named(RIGHT))
def test_an_answer_that_is_right_passes_however_it_is_written(number, answer, monkeypatch):
    assert complaint(number, answer, monkeypatch) is None


@pytest.mark.parametrize("number, answer", named(WRONG))
def test_an_answer_that_is_wrong_gets_a_sentence_that_names_the_slip(number, answer, monkeypatch):
    answer, words = answer
    said = complaint(number, answer, monkeypatch)
    assert said and words in said, said


def test_there_are_three_of_each_for_every_exercise():
    assert set(RIGHT) == set(WRONG) == set(BLANKS)
    for n in BLANKS:
        assert len(RIGHT[n]) >= (1 if n in FORKS else 3) and len(WRONG[n]) >= 3, n
