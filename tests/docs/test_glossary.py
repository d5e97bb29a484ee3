"""docs/glossary.md: each term once, and in the code."""
import re

import tree

CODE = "\n".join(path.read_text("utf-8") for path in tree.CODE.values())
ROWS = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in
        (tree.ROOT / "docs" / "glossary.md").read_text("utf-8").splitlines()
        if line.startswith("| ")][1:]
TERMS = [row[0].strip("`").removeprefix("| ") for row in ROWS]


def test_every_term_has_one_line_of_three_cells():
    assert len(TERMS) == len(set(TERMS)) > 50
    assert all(len(row) == 3 and all(row) for row in ROWS)


def test_every_term_occurs_in_the_code():
    assert not [term for term in TERMS
                if not re.search(rf"(?<![\w-]){re.escape(term)}(?![\w-])", CODE)]
