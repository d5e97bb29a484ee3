"""The tables of mutants are up to date: a run takes long, but that its lines exist is quick."""
from pathlib import Path

from tests.mutants.table import MUTANTS, find_tests

ROOT = Path(__file__).parents[2]


def test_every_mutant_finds_its_line_exactly_once():
    wrong = [(file, right) for file, right, *_ in MUTANTS
             if (ROOT / file).read_text("utf-8").count(right) != 1]
    assert not wrong, "\n".join(f"{file}: {right!r}" for file, right in wrong)


def test_every_mutant_is_a_change_with_tests_and_a_name_of_its_own():
    assert len(MUTANTS) >= 131 and len({mutant[4] for mutant in MUTANTS}) == len(MUTANTS)
    for file, right, wrong, tests, what in MUTANTS:
        assert right != wrong and find_tests(tests) and what
        source = (ROOT / file).read_text("utf-8").replace(right, wrong)
        compile(source, file, "exec")  # the tests, not the parser, must see it
