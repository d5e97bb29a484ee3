"""README: its length, its first two commands, its tree, and its tables."""
import re
import subprocess
from pathlib import Path

import pytest

from methods import EVERY_METHOD as METHODS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
TABLE = (ROOT / "docs" / "methods.md").read_text("utf-8")
FOLDERS = {path.parent.name for path in ROOT.glob("*/*.py")
           if not path.parent.name.startswith(".") and path.parent.name != "out"}


def test_it_has_at_most_200_lines():
    assert len(README.splitlines()) <= 200


def test_the_first_two_blocks_are_the_commands_that_ci_runs():
    """.ci/run appends flags to the first, and runs the second as it is."""
    first, second = re.findall(r"^```\w*\n(.*?)\n```", README, re.M | re.S)[:2]
    assert first.startswith("python3 -m venv .venv && ") and first.endswith(" train.py")
    assert "pytest" in second and second.endswith(" tests") and "\n" not in first + second
    for command in (first, second):
        requirements, = re.findall(r"-r (\S+)", command)
        assert (ROOT / requirements).exists()
    script = ROOT / ".ci" / "run"
    if script.exists():
        block = script.read_text().split("block() {")[1].split("\n")[0]
        run = lambda n: subprocess.run(["bash", "-c", f"block() {{{block}\nblock {n}"], cwd=ROOT,
                                       capture_output=True, text=True, check=True).stdout.strip()
        assert [run(1), run(2)] == [first, second]


def test_the_tree_names_every_script_and_every_folder():
    tree = README.split("## The tree")[1].split("```")[1]
    assert set(re.findall(r"\b(\w+\.py) ", tree)) == {path.name for path in ROOT.glob("*.py")}
    assert set(re.findall(r"\b(\w+)/ ", tree)) == FOLDERS | {"docs", "weights"}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_its_line_with_file_and_chapter(name):
    row, = re.findall(rf"^\| `{name}` \|.*$", TABLE, re.M)
    assert f"`methods/{name}.py`" in row and re.search(r"\[(\d+)\]\(\d\d-", row)
    families = README.split("## The methods")[1].split("Samplers:")[0]
    assert families.count(f"`{name}`") == 1


def test_every_page_is_linked_from_here_or_from_the_contents():
    contents = (ROOT / "docs" / "README.md").read_text("utf-8")
    for path in (ROOT / "docs").glob("*.md"):
        assert f"docs/{path.name})" in README or f"({path.name})" in contents, path.name


def test_every_old_command_and_its_successor_are_named():
    """What a user typed before this release: the last section says what it is called now."""
    renamed = (ROOT / "docs" / "using.md").read_text("utf-8").split("## Renamed")[1]
    for name in ("--clock", "--tail", "plot.py", "export.py", "bench.py", "claims.", "blank.py"):
        assert name in renamed, name
    for old, new in re.findall(r"^\| (.*?) \| (.*?) \|$", renamed, re.M)[1:]:
        for module in re.findall(r"python -m ([\w.]+)", new):
            assert "NAME" in module or (ROOT / (module.replace(".", "/") + ".py")).exists(), module
