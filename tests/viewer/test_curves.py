"""Curves of runs: what is drawn is what was logged, and what is missing is one line."""
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from flags import configure
from forks import forked
from runs import ROOT, cache, complaint, disk_of, elsewhere, fit, python  # noqa: F401
from viewer import curves

ABOUT = dict(step=0, method="mdlm", data="poem.txt", block_size=8, labels=False,
             bytes_per_token=2.0)
ROWS = [ABOUT, dict(step=1, loss=4.0, seconds=1.0), dict(step=10, loss=3.0, seconds=9.0),
        dict(step=20, loss=2.0, seconds=20.0),
        dict(step=20, train_bound=2.4, train_se=0.1, val_bound=2.5, val_se=0.2),
        dict(step=30, loss=1.0, seconds=8.0), dict(step=30, val_bound=2.0, val_se=None)]


def write(name="out", rows=ROWS, tail=""):
    Path(name).mkdir(exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    Path(name, "metrics.jsonl").write_text(lines + tail)


# ---- what is read

def test_a_line_that_is_still_being_written_is_left_out():
    write(tail='{"step": 40, "lo')
    assert curves.read_metrics("out") == ROWS
    write(tail='40\n{"loss": 3}\n[]\n')
    assert curves.read_metrics("out") == ROWS


DAMAGED = [
    '{"step": 25, "loss": "three"}', '{"step": "25", "loss": 3}', '{"step": null, "loss": 3}',
    '{"loss": 3}', '{"step": 25, "loss": [3]}', '{"step": 25, "loss": {"a": 3}}',
    '{"step": 25, "loss": NaN}', '{"step": 25, "loss": Infinity}', '{"step": 25, "loss": 1e999}',
    '{"step": -25, "loss": 3}', '{"step": 25.5, "loss": 3}', '{"step": true, "loss": 3}',
    '{"step": 1' + "0" * 400 + ', "loss": 3}', '{"step": 1' + "0" * 5000 + ', "loss": 3}',
    '{"step": 25, "loss": 1' + "0" * 400 + "}", '{"step": 25, "loss": true}',
    '{"step": 25, "loss": 3, "seconds": "9"}', '{"step": 25, "loss": 3, "seconds": null}',
    '{"step": 25, "val_bound": "low"}', '{"step": 25, "val_bound": 2, "val_se": "low"}',
    '{"step": 25, "method": "telepathy"}', '{"step": 25, "method": ["mdlm"]}',
    '{"step": 25, "method": "mdlm", "bytes_per_token": 0}',
    '{"step": 25, "method": "mdlm", "data": 3}', '{"step": 25, "method": "mdlm", "labels": 1}',
    '{"step": 25, "method": "mdlm", "block_size": "8"}',
    '{"step": 25, "loss": 3', "[" * 50_000, "25", "null", '"step"', '["step"]', "", "\x00" * 99,
    "three"]


@pytest.mark.parametrize("line", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_line_is_left_out(line):
    write(rows=ROWS[:4])
    with open("out/metrics.jsonl", "a") as file:
        file.write(line + "\n" + json.dumps(ROWS[4]) + "\n")
    assert curves.read_metrics("out") == ROWS[:5]
    first = Path("out/metrics.jsonl").read_text().splitlines()
    Path("out/metrics.jsonl").write_text("\r\n".join([line, *first]))
    assert curves.read_metrics("out") == ROWS[:5]


def test_an_editors_mark_and_bytes_that_are_no_text_cost_no_other_line():
    write()
    raw = Path("out/metrics.jsonl").read_bytes()
    Path("out/metrics.jsonl").write_bytes(b"\xef\xbb\xbf" + raw + b"\xff\xfe\n")
    assert curves.read_metrics("out") == ROWS


@pytest.mark.parametrize("raw, says", [
    (b"", "holds no step yet"), (b"\n", "none of its 1 lines can be read"),
    ("".join(json.dumps(row) + "\n" for row in ROWS).encode("utf-16"), "has been damaged"),
    (b'{"step": 0}\n', "holds no step yet"), (b'{"step": 3, "loss": null}', "holds no step yet"),
    (None, "there is no out/metrics.jsonl")], ids=["empty", "blank", "utf-16", "0", "null", "none"])
def test_a_file_without_a_step_is_told_in_one_line(raw, says, capsys):
    Path("out").mkdir()
    if raw is not None:
        Path("out/metrics.jsonl").write_bytes(raw)
    assert says in complaint(curves, "--runs", "out", capsys=capsys)


def test_the_metrics_of_an_earlier_run_are_drawn_by_their_file():
    write()
    Path("out/metrics.jsonl").rename("out/metrics.previous.jsonl")
    assert curves.read_metrics("out/metrics.previous.jsonl") == ROWS


def test_the_time_of_a_resumed_run_continues_from_where_it_was_stopped():
    """The second part starts its clock anew after 20 s, and is at 8 s."""
    seconds = curves.seconds_by_step(ROWS)
    assert seconds == {0: 0.0, 1: 1.0, 10: 9.0, 20: 20.0, 30: 28.0}
    assert [curves.time_at(seconds, step) for step in (20, 25, 99)] == [20.0, 20.0, 28.0]


def test_smoothing_keeps_a_constant_and_forgets_the_past():
    assert curves.smooth([3.0] * 4, 0.9) == pytest.approx([3.0] * 4)
    assert curves.smooth([4.0, 1.0], 0.5) == pytest.approx([4.0, (0.5 * 4 + 1) / 1.5])
    assert curves.smooth([4.0, 1.0], 0.0) == [4.0, 1.0]


def test_bits_are_those_of_the_bound_and_of_its_error():
    points, exact = curves.curves_of(ROWS, 0.0)
    losses = [(1, 4.0, None), (10, 3.0, None), (20, 2.0, None), (30, 1.0, None)]
    assert points["loss"] == points["raw"] == losses
    assert points["bound"] == [(20, 2.5, 0.2), (30, 2.0, None)]
    assert exact == {"bound": None, "bits": None}
    (_, bits, error), (_, _, none) = points["bits"]
    nats_to_bits = 1 / math.log(2) / 2
    assert bits == pytest.approx(2.5 * nats_to_bits) and none is None
    assert error == pytest.approx(0.2 * nats_to_bits)
    points, _ = curves.curves_of(ROWS[1:], 0.0)  # of a run that does not say what it is
    assert points["bits"] == [] and len(points["bound"]) == 2


def test_a_run_on_the_toy_language_has_its_exact_entropy():
    toy = dict(ABOUT, data="toy", block_size=32)
    points, exact = curves.curves_of([toy, *ROWS[1:]], 0.9)
    assert exact["bound"] == pytest.approx(2.1209, abs=0.001)
    assert exact["bits"] == pytest.approx(exact["bound"] / math.log(2) / 2)
    assert curves.exact_entropy(dict(toy, method="classifier")) is None  # its loss is of a class
    assert curves.exact_entropy(dict(toy, data="poem.txt")) is None  # and nothing is loaded


# ---- the picture

def test_the_picture_has_the_points_the_band_the_entropy_and_names_with_units():
    pytest.importorskip("matplotlib")
    runs = {"out/a": ROWS, "out/b": [dict(ABOUT, data="toy", block_size=8), *ROWS[1:]]}
    axes = curves.draw_figure(runs, 0.9).axes
    assert len(axes) == 6 and axes[-2].get_xlabel() == "steps"
    assert axes[-1].get_xlabel() == "training time, seconds"
    assert [ax.get_ylabel() for ax in axes[::2]] == list(curves.PANELS.values())
    bound, in_time = ({line.get_label(): line for line in ax.lines} for ax in axes[2:4])
    assert bound["out/a"].get_xydata().tolist() == [[20, 2.5], [30, 2.0]]
    assert in_time["out/a"].get_xdata().tolist() == [20.0, 28.0]
    entropy, = [line for name, line in bound.items() if name.startswith("exact entropy, 2.")]
    assert entropy.get_ydata()[0] == curves.curves_of(runs["out/b"], 0.9)[1]["bound"]
    band = axes[2].collections[0].get_paths()[0].get_extents()
    assert (band.y0, band.y1) == pytest.approx((2.0, 2.9))  # 2.5 + 2 x 0.2; 2.0 has no error
    assert "out/a" in [entry.get_text() for entry in axes[2].get_legend().get_texts()]


def test_two_entropies_are_told_apart_by_what_was_given_and_equal_ones_are_one_line():
    pytest.importorskip("matplotlib")
    toy = dict(ABOUT, data="toy", block_size=8)
    runs = {"a": [toy, *ROWS[1:]], "b": [dict(toy, labels=True), *ROWS[1:]], "c": [toy, *ROWS[1:]]}
    axes = curves.draw_figure(runs, 0.9).axes
    names = [line.get_label() for line in axes[2].lines if "entropy" in line.get_label()]
    plain, given = sorted(names, key=len)
    assert plain.startswith("exact entropy, ") and given.startswith("exact entropy given the class")
    assert len({line.get_linestyle() for line in axes[2].lines if line.get_label() in names}) == 2


@pytest.mark.parametrize("name", ["curves", "a.pdf"])
def test_a_picture_is_a_png_under_any_name(name):
    pytest.importorskip("matplotlib")
    write()
    curves.main(configure(curves.Config, runs="out/,out", png=name), [])
    assert Path(name).read_bytes()[:4] == b"\x89PNG"


def test_the_mean_of_runs_has_a_band_over_seeds_and_texts_at_the_steps_that_all_have():
    pytest.importorskip("matplotlib")
    other = [ABOUT, dict(step=1, loss=2.0, seconds=3.0), dict(step=10, loss=3.0, seconds=11.0),
             dict(step=20, val_bound=2.1, val_se=0.4), dict(step=40, val_bound=1.0, val_se=0.1)]
    runs = {"out/a-1": ROWS, "out/a-2": other, "out/b": ROWS}
    figure = curves.draw_figure(runs, 0.0, [["out/a-1", "out/a-2"]])
    lines = {line.get_label(): line for line in figure.axes[2].lines}
    assert set(lines) == {"mean of out/a-1, out/a-2", "out/b"}
    mean = lines["mean of out/a-1, out/a-2"].get_xydata().tolist()
    assert mean == [[20, pytest.approx(2.3)]]
    error = math.hypot(0.3, 0.2 / 2 ** 0.5 * 2 ** 0.5)  # mean error of a run; spread .28 / sqrt 2
    band = figure.axes[2].collections[-1].get_paths()[0].get_extents()
    assert (band.y0, band.y1) == pytest.approx((2.3 - 2 * error, 2.3 + 2 * error))
    in_time = {line.get_label(): line for line in figure.axes[3].lines}
    assert in_time["mean of out/a-1, out/a-2"].get_xdata().tolist() == [15.5]  # of 20 and 11
    loss = {line.get_label(): line for line in figure.axes[0].lines}
    assert loss["mean of out/a-1, out/a-2"].get_xydata().tolist() == [[1, 3.0], [10, 3.0]]


def test_a_run_of_train_py_is_drawn_to_a_png_while_it_goes_on(capsys):
    pytest.importorskip("matplotlib")
    fit("out", max_iters=4, eval_interval=2, log_interval=1)
    with open("out/metrics.jsonl", "a") as file:
        file.write('{"step": 5, "lo')
    curves.main(configure(curves.Config, runs="out", png="a.png"), [])
    picture = Path("a.png").read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n" and len(picture) > 10_000
    assert capsys.readouterr().out.endswith("a.png: out to step 4\n")


def test_the_command_takes_folders_as_its_first_words(tmp_path):
    pytest.importorskip("matplotlib")
    write("a"), write("b")
    a, b, png = (str(tmp_path / name) for name in ("a", "b", "c.png"))
    command = forked(python("-m", "viewer.curves", a, b, "--png", png))
    done = subprocess.run(**command, capture_output=True, cwd=ROOT)
    assert done.stdout == f"{png}: {a} to step 30, {b} to step 30\n" and Path(png).exists()


@pytest.mark.parametrize("argv, says", [
    ([], "give the folders of one run or more"),
    (["--mean", "out,other"], "these runs differ in more than their seed"),
    (["--mean", "out,later"], "these runs have logged no step in common"),
    (["--mean", "out,nowhere"], "there is no nowhere/metrics.jsonl"),
    (["--runs", "nowhere"], "there is no nowhere/metrics.jsonl"),
    (["--runs", "out,nowhere"], "there is no nowhere/metrics.jsonl"),
    (["--runs", "new"], "holds no step yet"), (["--runs", "out", "--smooth", "1"], "between"),
    (["--runs", "out", "--png", "no/a.png"], "there is no folder no"),
    (["--runs", "out", "--png", "out"], "which is a folder"),
    (["--runs", "out", "--png", ""], "not the name of a file")])
def test_what_cannot_be_drawn_is_one_line_and_leaves_no_picture(argv, says, capsys):
    pytest.importorskip("matplotlib")
    write()
    write("new", [ABOUT])
    write("other", [dict(ABOUT, method="udlm"), *ROWS[1:]])
    write("later", [ABOUT, dict(step=99, loss=1.0)])
    assert says in complaint(curves, *argv, capsys=capsys)
    assert not list(Path().rglob("*.png"))


def test_a_full_disk_leaves_the_old_picture_whole(capsys):
    pytest.importorskip("matplotlib")
    write()
    Path("a.png").write_bytes(b"old")
    with disk_of(1000):
        error = complaint(curves, "--runs", "out", "--png", "a.png", capsys=capsys)
    assert "File too large: a.png" in error
    assert Path("a.png").read_bytes() == b"old" and not Path("a.tmp").exists()


def test_without_matplotlib_it_says_what_to_install(monkeypatch, capsys):
    write()
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install matplotlib" in complaint(curves, "--runs", "out", capsys=capsys)
