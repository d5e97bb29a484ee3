"""
The numbers of the toy language in docs/live/index.html, which computes with them in a browser.

    python -m experiments.live_page        after a change of data/toy_grammar.py

The page has its own copy of (1.2) and (1.3), in JavaScript. This script writes the tables between
its two marks, each number with all its digits; tests/docs/test_live.py compares page and tables.
"""
import json
import re
from dataclasses import dataclass
from pathlib import Path

from data.files import write_file
from data.toy import toy_language
from experiments.command import run_experiment
from flags import flag

PAGE = Path(__file__).parent.parent / "docs" / "live" / "index.html"
MARKS = re.compile(r'(<script type="application/json" id="language">\n).*?(\n</script>)', re.S)


@dataclass
class Config:
    page: str = flag(str(PAGE), "the page to write the numbers into")


def tables(language):
    """What JavaScript reads: places that write alike, in any topic, share a row of probabilities.
    """
    floor = language.emission.min().item()  # of a word that does not fit: a typo
    rows, row_of = {}, []
    for table in language.emission.unbind(1):  # (K, V) of a place
        words = (table > floor).any(0).nonzero()[:, 0]  # (n,)
        key = json.dumps({"words": words.tolist(), "p": table[:, words].tolist()})
        row_of.append(rows.setdefault(key, len(rows)))
    following = [[[int(to), float(row[to])] for to in row.nonzero()[:, 0]]
                 for row in language.transition]
    return {"words": language.words, "topics": language.topics, "prior": language.prior.tolist(),
            "initial": language.initial.tolist(), "next": following, "floor": floor,
            "row_of": row_of, "rows": [json.loads(key) for key in rows]}


def as_block(language):
    """The tables as lines of JSON, one table a line."""
    lines = (f"{json.dumps(name)}: {json.dumps(table)}" for name, table in tables(language).items())
    return "{" + ",\n".join(lines) + "}"


def main(config, given=()):
    path = Path(config.page)
    text = MARKS.sub(lambda found: found[1] + as_block(toy_language()) + found[2],
                     path.read_text("utf-8"))
    write_file(path, text.encode())
    print(f"{path}: {len(toy_language().words)} words")


if __name__ == "__main__":
    run_experiment(Config, main)
