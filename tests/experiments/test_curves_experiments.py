"""Every chapter shows the curve of its method, drawn from what its command has measured."""
import json
import re
import xml.etree.ElementTree as xml
from types import SimpleNamespace

import pytest

from experiments import curves, svg
from flags import UserError, configure
from runs import cache, elsewhere  # noqa: F401
from script import spell
from tree import ROOT

FOLDER = ROOT / "docs" / "figures"
FOUND = json.loads((FOLDER / "curves.json").read_text("utf-8"))


def test_every_chapter_has_a_curve_or_no_method_of_its_own():
    pages = {path.stem: path.read_text("utf-8") for path in (ROOT / "docs").glob("[0-9]*-*.md")}
    assert {*curves.CHAPTERS} | {*curves.NO_METHOD} == {*pages}
    assert not {*curves.CHAPTERS} & {*curves.NO_METHOD}
    for page in curves.CHAPTERS:
        assert f"](figures/{page}.svg)" in pages[page], page
    drawn = {name for names in curves.CHAPTERS.values() for name in names}
    assert drawn == {*curves.RUNS} == {*FOUND["runs"]}


def test_what_was_measured_names_its_command_and_is_a_curve():
    assert FOUND["hardware"] and FOUND["date"] and FOUND["seconds"] > 0
    for name, run in FOUND["runs"].items():
        flags = curves.flags_of(name, "out/curves")
        steps = int(re.search(r"--max_iters (\d+)", run["command"])[1])
        flags.update(max_iters=steps, out_dir=f"out/curves/{name.replace(', ', '-')}")
        assert run["command"] == f"python train.py {spell(flags)}", name
        seconds, nats, errors = zip(*run["points"])
        assert len(seconds) == curves.POINTS and list(seconds) == sorted(seconds), name
        planned = curves.seconds_of(name, SimpleNamespace(**FOUND))
        assert planned == FOUND["seconds"] * (15 if name in curves.LONG else 1)
        assert planned / 3 < seconds[-1] < planned * 3, name
        assert nats[-1] < nats[0] + 2 * errors[0] and min(errors) > 0, name
        if run["entropy"] is not None:
            assert nats[-1] > run["entropy"] - 4 * errors[-1], name


def test_the_pictures_are_those_of_what_was_measured():
    for page, names in curves.CHAPTERS.items():
        made = (FOLDER / f"{page}.svg").read_text("utf-8")
        assert made == curves.draw(page, FOUND) + "\n", "python -m experiments.curves"
        assert "python -m experiments.curves --measure" in made
        root = xml.fromstring(made)
        lines = [part for part in root if part.get("fill") == "none"]
        assert len(lines) == len(names) and all(name in made for name in names)


def test_a_run_is_measured_saved_and_drawn_and_the_others_stay(tmp_path, capsys):
    (tmp_path / "figures").mkdir()
    before = {"runs": {"ar": FOUND["runs"]["ar"]}}
    (tmp_path / "figures" / "curves.json").write_text(json.dumps(before))
    curves.main(configure(curves.Config, folder=str(tmp_path / "figures"), measure=True,
                          runs="mdlm", seconds=0.05, out_dir=str(tmp_path / "out")))
    found = json.loads((tmp_path / "figures" / "curves.json").read_text())
    assert found["runs"]["ar"] == before["runs"]["ar"] and len(found["runs"]) == 2
    times = [seconds for seconds, _, _ in found["runs"]["mdlm"]["points"]]
    assert times == sorted(times) and 0 < times[0] < times[-1] and found["seconds"] == 0.05
    assert found["runs"]["mdlm"]["entropy"] == pytest.approx(2.187, abs=2e-3)
    assert (tmp_path / "figures" / "01-autoregression.svg").exists()
    assert "02-d3pm: not drawn, d3pm is not measured" in capsys.readouterr().out
    with pytest.raises(UserError, match="--runs gpt"):
        curves.main(configure(curves.Config, measure=True, runs="gpt"))


def test_a_logarithmic_axis_has_round_numbers_around_all_values():
    assert svg.ticks(0.03, 0.6, log=True) == pytest.approx([0.05, 0.1, 0.2, 0.5])
    assert svg.ticks(0.0, 3.0, log=False) == [0.0, 1.5, 3.0]
    text = svg.chart({"a": [(1, 0.03), (3, 0.6)], "b": [(2, -1.0), (4, 0.1)]}, log=True)
    labels = re.findall(r'text-anchor="end">([\d.]+)<', text)
    assert labels == ["0.01", "0.02", "0.05", "0.1", "0.2", "0.5", "1"]
    one, two = re.findall(r'<path d="M([\d. L]+)" fill="none"', text)  # x from 1 to 4, y to 0.01
    assert one.startswith("60.0 ") and two.split("L")[1].startswith("410.0 ")
    floor = re.search(r'd="M60 ([\d.]+)H', text)[1]
    assert two.split("L")[0].split()[1] == floor  # what is below 0.01 is drawn there
