"""docs/tour.ipynb is what experiments/tour.py makes of the chapters, and its cells run."""
import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as xml

import pytest
import torch

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
    assert "/github/me/palimpsest/blob/main/docs/tour.ipynb)" in made
    assert len(NOTEBOOK["cells"]) == 12 and "12 cells" in capsys.readouterr().out
    with pytest.raises(UserError, match="OWNER/NAME"):
        tour.main(configure(tour.Config, path=str(tmp_path / "b.ipynb"), repository="palimpsest"))


GIT = """#!/bin/sh
test "$5" = https://github.com/me/palimpsest && mkdir "$6" && touch "$6/diffusion.py" "$6/flags.py"
"""


def find_code(repository, folder, tools):
    """What the first cell finds, in a fresh Python that starts in `folder`."""
    source = "".join(tour.notebook(repository)["cells"][1]["source"])
    found = source.partition("\nimport torch")[0] + "\nimport flags; print(flags.__file__)"
    env = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "PIP_NO_INDEX": "1"}
    env.pop("PYTHONPATH", None)
    return subprocess.run([sys.executable, "-c", found], cwd=folder, capture_output=True, text=True,
                          env=env)


@pytest.mark.skipif(sys.platform == "win32", reason="a stand-in for git is a shell script")
def test_the_first_cell_gets_the_code_where_there_is_none(tmp_path):
    (tmp_path / "git").write_text(GIT)
    (tmp_path / "git").chmod(0o755)
    says = find_code("", tmp_path, tmp_path)
    assert says.returncode and "--repository OWNER/NAME" in says.stderr
    there = str(ROOT / "flags.py")
    assert find_code("me/palimpsest", ROOT / "docs", tmp_path).stdout.strip() == there
    says = find_code("me/palimpsest", tmp_path, tmp_path)
    assert says.stdout.strip() == str(tmp_path / "palimpsest" / "flags.py"), says.stderr
    assert find_code("", tmp_path, tmp_path).stdout == says.stdout


def test_a_paragraph_that_is_gone_is_named():
    with pytest.raises(UserError, match="no paragraph that begins with 'Nobody'"):
        tour.paragraphs("03-masked.md", ["Nobody"])


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Of all code cells, run by a fresh kernel that does not listen on the network, in the folder
    of the notebook, as someone who opens it there. A cell has two minutes."""
    nbclient = pytest.importorskip("nbclient", reason="pip install -r requirements-test.txt")
    jupyter, nbformat = pytest.importorskip("jupyter_client"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    folder, kept = tmp_path_factory.mktemp("k"), pytest.MonkeyPatch()
    files = dict(transport="ipc", ip=str(folder / "s")) if sys.platform == "linux" else {}
    for name in ("JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        kept.setenv(name, str(folder))
    kept.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    notebook = nbformat.read(PATH, 4)
    manager = jupyter.AsyncKernelManager(kernel_name="python3", **files)
    try:
        nbclient.NotebookClient(notebook, km=manager, timeout=120, startup_timeout=120,
                                resources={"metadata": {"path": PATH.parent}}).execute()
    finally:
        kept.undo()
    return [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]


def test_the_cells_run_in_order_and_each_has_its_picture(outputs):
    first, *rest = outputs
    assert not [part for part in first if part.output_type != "stream"] and len(rest) == 5
    for parts in rest:
        picture = parts[-1]["data"]["image/svg+xml"]
        root = xml.fromstring("".join(picture))
        assert root.tag.endswith("svg") and len(root) > 10
    said = "".join(part.text for parts in outputs for part in parts
                   if part.output_type == "stream" and part.name == "stdout")
    exact, flatter = (float(found) for found in re.findall(r"bound (\S+) \+-", said))
    entropy = float(re.search(r"entropy (\d\S+)$", said, re.M)[1])
    assert abs(exact - entropy) < 0.2 < flatter - exact + 0.15
    costs = [float(found) for found in re.findall(r"8 steps cost (\S+)", said)]
    assert costs == sorted(costs) and costs[0] < 0.05  # spread, random, least entropy
    (p_q, q_p), (mode_p_q, mode_q_p) = re.findall(
        r"KL\(p \|\| q\) (\S+) nats.*?KL\(q \|\| p\) (\d\.\d+)", said)
    assert float(p_q) < float(mode_p_q) and float(mode_q_p) < float(q_p)
