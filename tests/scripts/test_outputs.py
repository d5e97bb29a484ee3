"""Every flag that names an output: a bad place is one line before the work, and nobody's file is
lost."""
import json
import os
import socket
from pathlib import Path

import pytest

import evaluate
import sample
import train
from checkpoints.load import read_state
from evaluation import report
from experiments import command, duo, speed
from flags import UserError, configure
from models import random_checkpoint
from runs import TINY, cache, complaint, elsewhere, fit  # noqa: F401
from runtime.start import run_folder
from viewer import curves, html_player

SHORT = ["--oracle", "mdlm", "--steps", "2", "--num_samples", "1", "--device", "cpu"]
FLAGS = {"page of sample.py": (sample, [*SHORT, "--html"]), "picture": (sample, [*SHORT, "--png"]),
         "page": (html_player, [*SHORT, "--html"]), "curves": (curves, ["--runs", "run", "--png"])}


@pytest.fixture
def no_work(monkeypatch):
    """Whatever takes time fails."""
    for module in (sample, html_player, evaluate):
        monkeypatch.setattr(module, "load_chosen", lambda *args: 1 / 0)
    monkeypatch.setattr(curves, "read_metrics", lambda *args: 1 / 0)


def places():
    Path("folder").mkdir()
    Path("read-only").write_text("mine")
    os.chmod("read-only", 0o444)
    socket.socket(socket.AF_UNIX).bind("socket")


@pytest.mark.parametrize("place, says", [
    ("folder", "is a folder"), ("new/", "is a folder"), ("read-only", "is read-only"),
    ("socket", "is a socket"), ("gone/a", "no folder gone"), ("x" * 300, "too long"), ("-", "'-'")])
@pytest.mark.parametrize("flag", FLAGS)
def test_a_bad_place_is_told_before_the_work(flag, place, says, no_work, capsys):
    places()
    before = sorted(os.listdir())
    module, words = FLAGS[flag]
    assert says in complaint(module, *words, place, capsys=capsys)
    assert sorted(os.listdir()) == before and Path("read-only").read_text() == "mine"


@pytest.mark.parametrize("name", ["page.tmp", "page", "p.html", "link.html"])
def test_a_page_is_where_it_should_be_and_the_users_files_stay(name):
    for mine in ("p.tmp", "page.part"):
        Path(mine).write_text("mine")
    os.symlink("real.html", "link.html")
    sample.main(configure(sample.Config, oracle="mdlm", steps=2, num_samples=1, device="cpu",
                          html=name))
    assert "<html" in Path(name).read_text("utf-8") and os.path.islink("link.html")
    assert Path("p.tmp").read_text() == Path("page.part").read_text() == "mine"
    assert not [path for path in os.listdir() if path.startswith(".")]


def test_an_evaluation_that_cannot_be_saved_is_told_before_anything_is_measured(no_work, capsys):
    random_checkpoint("run")
    for raw in (b"[]", b"3", b"", b"\xff\xfe", b"[" * 50_000, b'"text"', b"null"):
        Path("run/evaluation.json").write_bytes(raw)
        assert "it is no JSON object: move it away" in complaint(
            evaluate, "--out_dir", "run", capsys=capsys)
        assert Path("run/evaluation.json").read_bytes() == raw
    Path("run/evaluation.json").unlink()
    Path("run/evaluation.json").mkdir()
    error = complaint(evaluate, "--out_dir", "run", capsys=capsys)
    assert "evaluation.json, which is a folder" in error and "with a link to it" in error


def test_what_is_measured_of_an_earlier_run_is_not_saved_beside_the_new_one():
    """And whatever was known about it is set aside with it."""
    fit("run", seed=1)
    settings = dict(max_texts=2, draws=1, num_samples=0, device="cpu")
    evaluate.main(configure(evaluate.Config, out_dir="run", **settings))
    first = Path("run/evaluation.json").read_bytes()
    fit("run", seed=2)
    assert not Path("run/evaluation.json").exists()
    assert Path("run/evaluation.previous.json").read_bytes() == first
    evaluate.main(configure(evaluate.Config, out_dir="run/ckpt.previous.pt", **settings))
    assert not Path("run/evaluation.json").exists()
    assert json.loads(Path("run/evaluation.previous.json").read_bytes()) == json.loads(first)
    fit("run", init_from="resume", max_iters=3)  # a run that goes on keeps what was measured,
    evaluate.main(configure(evaluate.Config, out_dir="run", **settings))
    assert [key.split(" --")[0] for key in json.loads(Path("run/evaluation.json").read_bytes())] \
        == ["step 3"]  # which says its step


def test_a_pipe_in_the_place_of_a_checkpoint_is_not_waited_for(capsys):
    Path("run").mkdir()
    os.mkfifo("run/ckpt.pt")
    assert "there is no checkpoint run/ckpt.pt" in complaint(sample, "--out_dir", "run",
                                                             capsys=capsys)


@pytest.mark.parametrize("where, name", [
    ("run", "run/evaluation.json"), ("run/ckpt.pt", "run/evaluation.json"),
    ("run/ckpt.previous-2.pt", "run/evaluation.previous-2.json"),
    ("run/best.pt", "run/evaluation.best.json"), ("s-sahoo/duo", "out/duo/evaluation.json")])
def test_each_checkpoint_has_a_file_of_its_own_for_what_was_measured(where, name):
    for file in ("ckpt.pt", "ckpt.previous-2.pt", "best.pt"):
        Path("run", file).parent.mkdir(exist_ok=True)
        Path("run", file).touch()
    config = configure(evaluate.Config, out_dir=where)
    assert report.evaluation_path(config) == Path(name)


@pytest.mark.parametrize("flags", [
    dict(), dict(labels=True), dict(sft=True), dict(method="udlm", labels=True, sft=True),
    dict(method="udlm")], ids=str)
def test_models_that_differ_in_what_is_given_have_folders_of_their_own(flags):
    names = {"labels": "-labels", "sft": "-sft"}
    end = "".join(names[name] for name in ("labels", "sft") if flags.get(name))
    assert run_folder(data="toy", **flags) == f"out/toy-{flags.get('method', 'mdlm')}{end}"
    assert run_folder(data="toy", out_dir="mine", **flags) == "mine"


def test_a_classifier_always_has_labels_and_its_folder_does_not_say_so():
    assert run_folder(data="toy", method="classifier", labels=True) == "out/toy-classifier"
    assert run_folder(data="toy", method="classifier") == "out/toy-classifier"


def test_the_order_of_the_readme_costs_no_run_and_each_resumes_in_its_folder():
    flags = dict(data="toy", method="udlm")
    train.main(configure(train.Config, **{**TINY, **flags}), list(flags))
    train.main(configure(train.Config, **{**TINY, **flags}, labels=True), [*flags, "labels"])
    for folder, labels in (("out/toy-udlm", False), ("out/toy-udlm-labels", True)):
        assert read_state(folder)["config"]["labels"] == labels
        given = {**flags, "labels": labels, "init_from": "resume", "max_iters": 3}
        train.main(configure(train.Config, **{**TINY, **given}), list(given))
        assert read_state(folder)["step"] == 3
    assert not list(Path("out").rglob("*previous*"))


# ---- experiments

@pytest.mark.parametrize("config, says", [
    (dict(out_dir="file/out"), "cannot write to file/out"), (dict(figure="folder"), "is a folder"),
    (dict(out_dir="read-only"), "cannot write to read-only"), (dict(figure="-"), "'-'")])
def test_an_experiment_looks_first_whether_it_can_save(config, says):
    places()
    Path("file").touch()
    with pytest.raises(UserError, match=says):
        command.check_places(configure(duo.Config, **config))
    command.check_places(configure(duo.Config, out_dir="new", figure="new/a.png"))
    assert not Path("new").exists()


def test_the_speed_of_before_stays_until_there_is_another():
    Path("out").mkdir()
    Path("out/cpu.json").write_text("mine")
    speed.Report(configure(speed.Config, command="cpu", out_dir="out", hardware="Acme 1"),
                 speed.device_of("cpu"))
    assert Path("out/cpu.json").read_text() == "mine"
