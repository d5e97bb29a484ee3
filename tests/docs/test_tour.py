"""docs/tour.ipynb is what experiments/tour.py makes of the chapters, and its cells run."""
import contextlib
import io
import json
import re
import xml.etree.ElementTree as xml

import pytest

from experiments import tour
from flags import UserError, configure
from tree import ROOT

PATH = ROOT / "docs" / "tour.ipynb"
NOTEBOOK = json.loads(PATH.read_text("utf-8"))
CODE = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_is_that_of_the_chapters_of_today(tmp_path, capsys):
    assert PATH.read_text("utf-8") == tour.as_json_text(tour.notebook()), \
        "python -m experiments.tour"
    tour.main(configure(tour.Config, path=str(tmp_path / "a.ipynb"), repository="me/palimpsest"))
    made = (tmp_path / "a.ipynb").read_text("utf-8")
    assert "/github/me/palimpsest/blob/main/docs/tour.ipynb)" in made and "git clone" in made
    assert len(NOTEBOOK["cells"]) == 12 and "12 cells" in capsys.readouterr().out


def test_a_paragraph_that_is_gone_is_named():
    with pytest.raises(UserError, match="no paragraph that begins with 'Nobody'"):
        tour.paragraphs("03-masked.md", ["Nobody"])


def test_the_cells_run_in_order_and_each_has_its_picture():
    """As a notebook runs them, by plain exec: the last line of a cell is its value."""
    scope, pictures, said = {}, [], io.StringIO()
    with contextlib.redirect_stdout(said):
        for source in CODE:
            head, _, last = source.rpartition("\n" + re.findall(r"^\S.*", source, re.M)[-1])
            value = source[len(head):]
            if len(pictures) or "print" not in value:
                exec(head, scope)
                pictures.append(eval(value.strip(), scope))
            else:
                exec(source, scope)
    assert len(pictures) == 5
    for picture in pictures:
        root = xml.fromstring(picture._repr_svg_())
        assert root.tag.endswith("svg") and len(root) > 10
    said = said.getvalue()
    exact, flatter = (float(found) for found in re.findall(r"bound (\S+) \+-", said))
    entropy = float(re.search(r"entropy (\d\S+)$", said, re.M)[1])
    assert abs(exact - entropy) < 0.2 < flatter - exact + 0.15
    costs = [float(found) for found in re.findall(r"8 steps cost (\S+)", said)]
    assert costs == sorted(costs) and costs[0] < 0.05  # spread, random, least entropy
    (p_q, q_p), (mode_p_q, mode_q_p) = re.findall(
        r"KL\(p \|\| q\) (\S+) nats.*?KL\(q \|\| p\) (\d\.\d+)", said)
    assert float(p_q) < float(mode_p_q) and float(mode_q_p) < float(q_p)


def test_nbclient_runs_it_where_it_is_installed(monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="pip install nbclient nbformat ipykernel")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    monkeypatch.chdir(PATH.parent)
    nbclient.NotebookClient(nbformat.read(PATH, 4), timeout=120).execute()
