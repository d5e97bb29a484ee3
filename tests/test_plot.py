"""
Curves of runs, and the other logs of training: what is drawn is what was logged, and what is missing is one line.
"""
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from runs import cache, complaint, disk_of, elsewhere, fit, metrics, tiny  # noqa: F401

import plot
import train
from data import BadInput
from data.digits import png
from flags import parse

ABOUT = dict(step=0, method="mdlm", data="poem.txt", block_size=8, labels=False, bytes_per_token=2.0)
ROWS = [ABOUT, dict(step=1, loss=4.0, seconds=1.0), dict(step=10, loss=3.0, seconds=9.0), dict(step=20, loss=2.0,
        seconds=20.0), dict(step=20, train_bound=2.4, train_se=0.1, val_bound=2.5, val_se=0.2),
        dict(step=30, loss=1.0, seconds=8.0), dict(step=30, val_bound=2.0, val_se=None)]


def write(name="out", rows=ROWS, tail=""):
    Path(name).mkdir(exist_ok=True)
    Path(name, "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)


def drawn(*argv):
    plot.main(parse(plot.Config, [str(word) for word in argv])[0])


# ---- what is read

def test_a_line_that_is_still_being_written_is_left_out():
    write(tail='{"step": 40, "lo')
    assert plot.read("out") == ROWS
    write(tail='40\n{"loss": 3}\n[]\n')
    assert plot.read("out") == ROWS


def test_the_time_of_a_resumed_run_goes_on_where_it_was_stopped():
    """The second part starts its clock anew after 20 s, and is at 8 s."""
    seconds = plot.clock(ROWS)
    assert seconds == {0: 0.0, 1: 1.0, 10: 9.0, 20: 20.0, 30: 28.0}
    assert plot.at(seconds, 20) == 20.0 and plot.at(seconds, 25) == 20.0 and plot.at(seconds, 99) == 28.0


def test_smoothing_keeps_a_constant_and_forgets_the_past():
    assert plot.smoothed([3.0] * 4, 0.9) == pytest.approx([3.0] * 4)
    assert plot.smoothed([4.0, 1.0], 0.5) == pytest.approx([4.0, (0.5 * 4 + 1) / 1.5])
    assert plot.smoothed([4.0, 1.0], 0.0) == [4.0, 1.0]


def test_bits_are_those_of_the_bound_and_of_its_error():
    points, floor = plot.curves(ROWS, 0.0)
    assert points["loss"] == points["raw"] == [(1, 4.0, None), (10, 3.0, None), (20, 2.0, None), (30, 1.0, None)]
    assert points["bound"] == [(20, 2.5, 0.2), (30, 2.0, None)] and floor == {"bound": None, "bits": None}
    (_, bits, error), (_, _, none) = points["bits"]
    assert (bits, error, none) == (pytest.approx(2.5 / math.log(2) / 2), pytest.approx(0.2 / math.log(2) / 2), None)
    points, _ = plot.curves(ROWS[1:], 0.0)                   # of a run that does not say what it is
    assert points["bits"] == [] and len(points["bound"]) == 2


def test_a_run_on_the_toy_language_knows_its_entropy():
    points, floor = plot.curves([dict(ABOUT, data="toy", block_size=32), *ROWS[1:]], 0.9)
    assert floor["bound"] == pytest.approx(2.1209, abs=0.001)
    assert floor["bits"] == pytest.approx(floor["bound"] / math.log(2) / 2)
    assert plot.entropy(dict(ABOUT, data="toy", method="classifier")) is None        # its loss is that of a class


# ---- the picture

def test_the_picture_has_the_points_the_band_the_entropy_and_names_with_units():
    pytest.importorskip("matplotlib")
    runs = {"out/a": ROWS, "out/b": [dict(ABOUT, data="toy", block_size=8), *ROWS[1:]]}
    picture = plot.figure(runs, 0.9)
    axes = picture.axes
    assert len(axes) == 6 and axes[-1].get_xlabel() == "training time, seconds" and axes[-2].get_xlabel() == "steps"
    assert [ax.get_ylabel() for ax in axes[::2]] == list(plot.PANELS.values())
    bound = {line.get_label(): line for line in axes[2].lines}
    assert bound["out/a"].get_xydata().tolist() == [[20, 2.5], [30, 2.0]]
    assert {line.get_label(): line for line in axes[3].lines}["out/a"].get_xdata().tolist() == [20.0, 28.0]
    entropy, = [line for label, line in bound.items() if label.startswith("exact entropy, 2.")]
    assert entropy.get_ydata()[0] == plot.curves(runs["out/b"], 0.9)[1]["bound"]
    band = axes[2].collections[0].get_paths()[0].get_extents()
    assert (band.y0, band.y1) == pytest.approx((2.0, 2.9))   # 2.0 has no error, 2.5 is 0.2 off, twice
    assert "out/a" in [entry.get_text() for entry in axes[2].get_legend().get_texts()]


def test_a_run_of_train_py_is_drawn_to_a_png_while_it_goes_on(capsys):
    pytest.importorskip("matplotlib")
    fit("out", max_iters=4, eval_interval=2, log_interval=1)
    with open("out/metrics.jsonl", "a") as file:
        file.write('{"step": 5, "lo')
    drawn("--runs", "out", "--png", "a.png")
    assert Path("a.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and len(Path("a.png").read_bytes()) > 10_000
    assert capsys.readouterr().out.endswith("a.png: out to step 4\n")


@pytest.mark.parametrize("argv, says", [
    ([], "give the folders of one run or more"), (["--runs", "nowhere"], "there is no nowhere/metrics.jsonl"),
    (["--runs", "out,nowhere"], "there is no nowhere/metrics.jsonl"), (["--runs", "new"], "holds no step yet"),
    (["--runs", "out", "--smooth", "1"], "between"), (["--runs", "out", "--png", "no/a.png"], "No such file")])
def test_what_cannot_be_drawn_is_one_line_and_leaves_no_picture(argv, says, capsys):
    pytest.importorskip("matplotlib")
    write()
    write("new", [ABOUT])
    assert says in complaint(plot, *argv, capsys=capsys)
    assert not list(Path().rglob("*.png"))


def test_a_full_disk_leaves_the_old_picture_whole(capsys):
    pytest.importorskip("matplotlib")
    write()
    Path("a.png").write_bytes(b"old")
    with disk_of(1000):
        assert "File too large: a.png" in complaint(plot, "--runs", "out", "--png", "a.png", capsys=capsys)
    assert Path("a.png").read_bytes() == b"old" and not Path("a.tmp").exists()


def test_without_matplotlib_it_says_what_to_install(monkeypatch, capsys):
    write()
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install matplotlib" in complaint(plot, "--runs", "out", capsys=capsys)


# ---- TensorBoard

@pytest.fixture
def board(monkeypatch):
    """A SummaryWriter that remembers. -> [(folder, purge_step, {(name, step): value})]"""
    fake, writers = ModuleType("torch.utils.tensorboard"), []

    class SummaryWriter:
        def __init__(self, path, purge_step):
            self.values = {}
            writers.append((str(path), purge_step, self.values))

        def add_scalar(self, name, value, step):
            self.values[name, step] = value

        def flush(self):
            pass
    fake.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    return writers


def test_tensorboard_gets_every_number_of_the_metrics_and_a_resumed_run_hides_what_it_does_again(board):
    fit("out", tensorboard=True, max_iters=4, eval_interval=2, log_interval=1)
    fit("out", init_from="resume", max_iters=6)
    (path, purge, first), (_, again, second) = board
    assert path == "out/tensorboard" and (purge, again) == (0, 5)
    for name in ("loss", "val_bound", "val_se", "seconds"):
        logged = metrics("out", name)
        assert {step: value for (what, step), value in {**first, **second}.items() if what == name} == logged
    assert max(step for _, step in first) == 4 and min(step for _, step in second) == 4


def test_without_the_flag_nothing_is_written_for_tensorboard(board):
    fit("out")
    assert board == [] and sorted(path.name for path in Path("out").iterdir()) == [".lock", "ckpt.pt", "metrics.jsonl"]


def test_a_missing_tensorboard_is_one_line_before_the_first_step(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert "pip install tensorboard" in complaint(train, *tiny(out_dir="out"), "--tensorboard", capsys=capsys)
    assert [path.name for path in Path("out").iterdir()] == [".lock"]


# ---- a run that fails in the middle

def failing(monkeypatch, at, error):
    examples = train.Learner.step

    def fail(self, step):
        if step == at:
            raise error
        return examples(self, step)
    monkeypatch.setattr(train.Learner, "step", fail)


@pytest.mark.parametrize("at, safe", [(3, "step 2 is saved in out, go on with --init_from resume --out_dir out"),
                                      (1, "nothing was saved yet")])
def test_a_loader_that_fails_midway_is_named_with_what_is_safe(at, safe, monkeypatch, capsys):
    failing(monkeypatch, at, OSError(5, "Input/output error", "shard-7.bin"))
    error = complaint(train, *tiny(out_dir="out", max_iters=6, eval_interval=2), capsys=capsys)
    assert error.endswith(f"Input/output error: shard-7.bin; {safe}\n")
    monkeypatch.undo()


def test_a_disk_that_fills_up_between_checkpoints_leaves_whole_lines_and_says_what_is_safe(capsys):
    fit("out", max_iters=20, eval_interval=20, log_interval=1)
    folder = train.checkpoint.Folder("out", ours=True)
    size = Path("out/metrics.jsonl").stat().st_size
    with disk_of(size + 500):
        with pytest.raises(BadInput, match="cannot write to out/metrics.jsonl .File too large.* --init_from resume"):
            for step in range(21, 41):
                folder.log(step=step, loss=1.0, seconds=1.0)
    folder.lock.release()
    lines = Path("out/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines[-11:]] == list(range(21, 32))         # 42 bytes each, of 500


def test_a_line_of_metrics_says_what_the_run_is():
    fit("out", method="udlm")
    first = json.loads(Path("out/metrics.jsonl").read_text().splitlines()[0])
    assert first == dict(step=0, method="udlm", data="toy", block_size=8, labels=False,
                         bytes_per_token=pytest.approx(4.6, abs=0.3))


def test_a_full_disk_leaves_the_old_image_of_sample_py_whole():
    Path("7.png").write_bytes(b"old")
    with disk_of(10), pytest.raises(OSError) as failed:
        png("7.png", torch.zeros(4, 64, dtype=torch.long))
    assert failed.value.filename == "7.png" and Path("7.png").read_bytes() == b"old" and not Path("7.tmp").exists()
    png("7.png", torch.zeros(4, 64, dtype=torch.long))
    assert Path("7.png").read_bytes()[:4] == b"\x89PNG"
