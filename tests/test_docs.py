"""docs/: every test, file, function, equation and flag that a page names is there, and every picture is small."""
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted(path for path in (ROOT / "docs").glob("*.md") if re.match(r"\d\d-", path.name))
TESTS = {name for path in (ROOT / "tests").glob("test_*.py")
         for name in re.findall(r"^def (test_\w+)", path.read_text("utf-8"), re.M)}
CODE = {str(path.relative_to(ROOT)): path.read_text("utf-8")
        for folder in ("", "data/", "claims/") for path in ROOT.glob(folder + "*.py")}
OTHERS = [ROOT / "docs" / "README.md", ROOT / "docs" / "looking.md"]
IDS = [path.stem for path in PAGES]


def prose(path):
    return path.read_text("utf-8")


def test_there_is_a_page_for_every_chapter_and_the_contents_list_them_in_order():
    contents = prose(ROOT / "docs" / "README.md")
    assert len(PAGES) == 12 and re.findall(r"\]\((\d\d-.*?\.md)\)", contents) == [path.name for path in PAGES]
    for path, title in zip(PAGES, re.findall(r"\.md\) \| (.*?) \|", contents)):
        assert prose(path).startswith(f"# {int(path.name[:2])}. {title}\n")


@pytest.mark.parametrize("path", PAGES, ids=IDS)
def test_a_page_has_its_parts_and_is_short(path):
    text = prose(path)
    parts = ["**In the code**", "## Predict, then run", "```bash", "Measured (AMD EPYC, one thread, 2026-11-21): ",
             "## Common mistakes", "## Further reading"]
    assert [text.index(part) for part in parts] == sorted(text.index(part) for part in parts)
    lines = text.splitlines()
    assert 40 <= len(lines) <= 90 and "{{" not in text
    assert all(len(line) < 120 for line in lines if not line.startswith("|"))
    assert re.search(r"\b\d{4}\.\d{5}\b", text.split("## Further reading")[1])


@pytest.mark.parametrize("path", PAGES, ids=IDS)
def test_every_test_that_a_page_names_exists_and_every_mistake_has_one(path):
    rows = [line for line in prose(path).split("## Common mistakes")[1].splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 5
    for row in rows:
        named, = re.findall(r"`(test_\w+)` \|$", row)
        assert named in TESTS, named
    assert set(re.findall(r"`(test_\w+)`", prose(path))) <= TESTS


@pytest.mark.parametrize("path", [*PAGES, *OTHERS], ids=[*IDS, "README", "looking"])
def test_every_file_function_link_and_flag_that_a_page_names_exists(path):
    text = prose(path)
    for file, name in re.findall(r"`([\w/]+\.py)(?:: (\w+))?`", text):
        assert file in CODE, file
        assert not name or re.search(rf"^\s*(def|class) {name}\b|^{name}\b.* = ", CODE[file], re.M), (file, name)
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (path.parent / target).exists(), target
    everything = "\n".join(CODE.values())
    for flag in re.findall(r"--(\w+)", text):
        assert re.search(rf"^    {flag}: \w+ = flag\(", everything, re.M), flag
    for script in re.findall(r"python ([\w/]+\.py)", text):
        assert (ROOT / script).exists(), script
    for module, word in re.findall(r"python -m ([\w.]+) (\w+)", text):
        assert word == "NAME" or f'"{word}"' in CODE[module.replace(".", "/") + ".py"], (module, word)


@pytest.mark.parametrize("path", PAGES, ids=IDS)
def test_the_equations_of_a_page_have_the_numbers_of_the_code_and_no_page_repeats_code(path):
    text, docstrings = prose(path), "\n".join(re.findall(r'"""(.*?)"""', "\n".join(CODE.values()), re.S))
    for block in re.findall(r"(?:^    .*\n)+", text, re.M):
        for number in re.findall(r" {2,}\((\d+)\)$", block, re.M):
            assert re.search(rf"\({number}\)$", docstrings, re.M), number
    assert "```python" not in text
    bare = (re.sub(r'""".*?"""', "", code, flags=re.S) for code in CODE.values())
    lines = {line.strip() for code in bare for line in code.splitlines()}
    repeated = {line.strip() for line in text.splitlines() if len(line.strip()) > 20} & lines
    assert not repeated


def test_the_chapters_have_every_equation_of_the_code():
    docstrings = "\n".join(re.findall(r'"""(.*?)"""', "\n".join(CODE.values()), re.S))
    in_code = {int(n) for n in re.findall(r" {2,}\((\d+)\)$", docstrings, re.M)}
    spoken = set()
    for path in [*PAGES, ROOT / "docs" / "README.md"]:
        for low, high in re.findall(r"\((\d+)\)(?:-\((\d+)\))?", prose(path)):
            spoken |= set(range(int(low), int(high or low) + 1))
    assert in_code and in_code <= spoken, in_code - spoken


def test_pictures_are_small_and_each_is_shown():
    shown = "".join(prose(path) for path in (ROOT / "docs").glob("*.md")) + prose(ROOT / "README.md")
    for path in (ROOT / "docs").glob("*.png"):
        assert path.stat().st_size < 160_000 and f"{path.name})" in shown, path.name
        made = (ROOT / "docs" / "figures" / f"{path.stem}.json").exists()
        assert made or path.stem in ("steps", "guidance", "page"), path.name             # of claims/, and of page.py


def test_the_commands_of_the_pages_are_understood():
    """Each is parsed by its script; the flags of one that is not would end in one line and exit code 2."""
    import evaluate
    import sample
    from flags import parse
    for path in PAGES:
        for script, words in re.findall(r"^python (evaluate|sample)\.py (.*)$", prose(path), re.M):
            parse({"evaluate": evaluate, "sample": sample}[script].Config, words.split())
