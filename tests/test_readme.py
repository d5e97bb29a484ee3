"""README points at the code: every link to a line meets the function that it names, every file of the map is there."""
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")


def test_every_link_to_a_line_meets_the_definition_that_it_names():
    links = re.findall(r"\[`(\w+)`\]\(([\w/]+\.py)#L(\d+)\)", README)
    assert len(links) >= 8
    for name, file, line in links:
        text = (ROOT / file).read_text("utf-8").splitlines()[int(line) - 1]
        assert re.match(rf"\s*(def|class) {name}\b", text), f"{file}#L{line} is {text!r}, not {name}"


def test_the_map_and_the_folder_agree():
    shown = set(re.findall(r"^(\w+\.py) ", README, re.M)) | set(re.findall(r"\b(flags\.py)\b", README))
    assert shown == {path.name for path in ROOT.glob("*.py")}


def test_no_line_is_too_long_and_no_file_hides_a_second_idea():
    for path in [*ROOT.glob("*.py"), *ROOT.glob("data/*.py"), *ROOT.glob("claims/*.py"), *ROOT.glob("tests/*.py")]:
        lines = path.read_text("utf-8").splitlines()
        assert max(map(len, lines)) < 120 and len(lines) <= 360, path.name
