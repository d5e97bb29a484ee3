"""The tables of mutants are up to date: a run takes long, but that its lines exist is quick."""
import ast
from functools import cache
from pathlib import Path

from tests.mutants.table import MUTANTS

ROOT = Path(__file__).parents[2]


@cache
def source(file):
    return (ROOT / file).read_text("utf-8")


@cache
def statements(file):
    """The first and the last line of each statement of a file that stands in no other one."""
    decorated = lambda node: [node, *getattr(node, "decorator_list", [])]
    return [(min(part.lineno for part in decorated(node)), node.end_lineno)
            for node in ast.parse(source(file)).body]


def test_every_mutant_finds_its_line_exactly_once():
    wrong = [(file, right) for file, right, *_ in MUTANTS if source(file).count(right) != 1]
    assert not wrong, "\n".join(f"{file}: {right!r}" for file, right in wrong)


def test_every_mutant_is_a_change_with_tests_and_a_name_of_its_own():
    assert len(MUTANTS) >= 131 and len({mutant[4] for mutant in MUTANTS}) == len(MUTANTS)
    names = {path.stem for path in Path(ROOT, "tests").rglob("test_*.py")}
    for file, right, wrong, tests, what in MUTANTS:
        assert right != wrong and tests and names.issuperset(tests.split()) and what
        begins = source(file)[:source(file).index(right)].count("\n") + 1
        ends = begins + right.count("\n")
        changed = [lines for lines in statements(file) if lines[0] <= ends and lines[1] >= begins]
        lines = source(file).splitlines()[changed[0][0] - 1:changed[-1][1]]
        text = "\n".join(lines).replace(right, wrong)
        ast.parse(text)  # the tests, not the parser, must see it
