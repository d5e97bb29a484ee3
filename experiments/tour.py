"""
docs/tour.ipynb, made from the chapters: twelve cells on noise, the bound, leave-one-out, orders and
distillation, a picture each. Everything is computed by the exact denoiser, so nothing is trained.

    python -m experiments.tour                              write docs/tour.ipynb
    python -m experiments.tour --repository OWNER/NAME      with a link that opens it in Colab

The words are paragraphs of the chapters, found by how they begin (TOUR), so the notebook cannot
fall behind; a test compares. The code is in experiments/tour_cells.py.
"""
import json
import re
from dataclasses import dataclass
from pathlib import Path

from data.files import write_file
from experiments.command import run_experiment
from flags import UserError, flag

DOCS = Path(__file__).parent.parent / "docs"
CELLS = Path(__file__).parent / "tour_cells.py"
PLACE = """import os
import sys

places = [".", "..", "palimpsest"]  # where this notebook may be started
there = [place for place in places if os.path.exists(os.path.join(place, "diffusion.py"))]
if not there:
MISSING
sys.path.insert(0, os.path.abspath(there[0]))
"""
CLONE = """    import subprocess
    subprocess.run(["git", "clone", "--quiet", "--depth", "1",
                    "https://github.com/{}", "palimpsest"], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "einops"], check=True)
    there = ["palimpsest"]"""
ABSENT = """    raise SystemExit("Put the project's folder beside this notebook, as palimpsest, "
                     "or make a notebook that gets it: "
                     "python -m experiments.tour --repository OWNER/NAME")"""
COLAB = "https://colab.research.google.com"
NO_LINK = ("A link that opens it in Colab names the project's place on GitHub: `python -m "
           "experiments.tour --repository OWNER/NAME` writes it, and a first cell that gets the "
           "project there.")
TOUR = [  # chapter, how its paragraphs begin, the cell of its code
    ("03-masked.md", ["Noise replaces tokens", "    (0.1) for masks", "with CE ="], "noise"),
    ("03-masked.md", ["(0.2) averages over t", "    any order", "This is the average"], "bound"),
    ("04-uniform.md", ["Noise replaces a word", "    uniform    alpha_t",
                       "What minimizes (0.2)"], "leave_one_out"),
    ("24-orders.md", ["A masked model predicts", "    log q(x)", "With the exact denoiser, one",
                      "    KL(p || q)", "So few steps"], "orders"),
    ("10-distillation.md", ["A student starts", "*SDTT* (masks)", "What can a student gain?"],
     "distillation"),
]


@dataclass
class Config:
    path: str = flag(str(DOCS / "tour.ipynb"), "the notebook to write")
    repository: str = flag("", "OWNER/NAME on GitHub, for a link to Colab", text=True)


def paragraphs(page, beginnings):
    """The title and some paragraphs of a chapter, as it has them. -> text"""
    text = (DOCS / page).read_text("utf-8")
    parts, found = text.split("\n\n"), [text.splitlines()[0].replace("# ", "## ", 1)]
    for beginning in beginnings:
        fits = [part for part in parts if part.startswith(beginning)]
        if not fits:
            raise UserError(f"docs/{page} has no paragraph that begins with {beginning!r}: change "
                            "TOUR in experiments/tour.py")
        found.append(fits[0])
    return "\n\n".join([*found, f"(From [docs/{page}]({page}), which goes on.)"])


def code_of(name):
    """A cell of experiments/tour_cells.py."""
    parts = re.split(r"^# %% (\w+)\n", CELLS.read_text("utf-8"), flags=re.M)[1:]
    return dict(zip(parts[::2], parts[1::2]))[name].strip()


def cell(kind, number, source):
    made = {"cell_type": kind, "id": f"cell-{number:02}", "metadata": {},
            "source": source.splitlines(keepends=True)}
    return made if kind == "markdown" else {**made, "execution_count": None, "outputs": []}


def notebook(repository=""):
    """The notebook as a dict."""
    link = f"{COLAB}/github/{repository}/blob/main/docs/tour.ipynb"
    where = f"[Open it in Colab]({link})." if repository else NO_LINK
    title = ("# A tour of diffusion language models\n\nThe toy language of `data/toy.py` has an "
             "exact denoiser: no network here, no training, and every figure is the truth up to "
             f"its standard error. All cells take about a minute.\n\n{where}")
    missing = CLONE.format(repository) if repository else ABSENT
    setup = PLACE.replace("MISSING", missing) + code_of("setup")
    sources = [("markdown", title), ("code", setup)]
    for page, beginnings, name in TOUR:
        sources += [("markdown", paragraphs(page, beginnings)), ("code", code_of(name))]
    cells = [cell(kind, n, source) for n, (kind, source) in enumerate(sources, 1)]
    about = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
             "language_info": {"name": "python"}}
    return {"cells": cells, "metadata": about, "nbformat": 4, "nbformat_minor": 5}


def as_json_text(made):
    return json.dumps(made, indent=1, ensure_ascii=False) + "\n"


def main(config, given=()):
    if config.repository and not re.fullmatch(r"[\w.-]+/[\w.-]+", config.repository):
        raise UserError(f"--repository is OWNER/NAME, as in me/palimpsest: {config.repository!r} "
                        "is not")
    write_file(config.path, as_json_text(notebook(config.repository)))
    print(f"{config.path}: {len(notebook()['cells'])} cells")


if __name__ == "__main__":
    run_experiment(Config, main)
