"""A run knows its text by its content: resumed, evaluated and distilled on it, wherever it lies."""
import os
import shutil
from pathlib import Path

import pytest
import torch

import distill
import evaluate
import train
from checkpoints.export import write_export
from checkpoints.load import assemble, load_model
from data import load_data
from evaluation.held_out import data_of
from runs import assert_same, cache, commanded, complaint, elsewhere, fit  # noqa: F401

POEM, OTHER = "a rose is a rose is a rose\n" * 99, "a rose so rose is a sore\n" * 107
AGAIN = ["--out_dir", "out", "--init_from", "resume"]
FEW = ["--max_texts", "4", "--num_samples", "0", "--draws", "2", "--device", "cpu"]


@pytest.fixture
def poem():
    Path("poem.txt").write_text(POEM)
    return Path("poem.txt")


def run_on(poem, **flags):
    return fit("out", data=str(poem), **{"tokenizer": "bytes", **flags})


def without_fingerprint():
    """The checkpoint as it was before runs knew their text."""
    state = torch.load("out/ckpt.pt", weights_only=True)
    torch.save({key: value for key, value in state.items() if key != "text"}, "out/ckpt.pt")


@pytest.mark.parametrize("size", ["small", "large"])
def test_another_text_in_the_place_of_the_first_is_refused_whatever_its_size_and_time(
        size, poem, capsys, monkeypatch):
    """Its letters are the same, and so are its size and time: cp -p, rsync -t, git checkout."""
    monkeypatch.setattr("data.texts.READ_WHOLE", 10 if size == "large" else 1 << 26)
    monkeypatch.setattr("data.tokenize_workers.count_cores", lambda: 1)
    run_on(poem, tokenizer="chars")
    before = poem.stat()
    poem.write_text((OTHER * 2)[:len(POEM)])
    os.utime(poem, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert poem.stat().st_size == before.st_size and set(poem.read_text()) == set(POEM)
    error = complaint(train, *AGAIN, capsys=capsys)
    assert "poem.txt is not the text that out was trained on: restore the text" in error
    assert "name it with --data, or start anew with another --out_dir" in error
    error = complaint(evaluate, "--out_dir", "out", *FEW, capsys=capsys)
    assert "poem.txt is not the text that this model was trained on" in error and "--data" in error
    on_purpose = ["--out_dir", "out", *FEW, "--data", "poem.txt"]
    evaluate.main(*commanded(evaluate, *on_purpose))
    assert "poem.txt: " in capsys.readouterr().out


def test_the_same_text_elsewhere_is_the_same_text(poem, capsys):
    run_on(poem)
    shutil.copytree("out", "half")
    whole = fit("out", init_from="resume", max_iters=4)
    poem.rename("moved.txt")
    missing = complaint(train, "--out_dir", "half", "--init_from", "resume", capsys=capsys)
    assert "the text of half is not at poem.txt: restore it there, or name it with --d" in missing
    error = complaint(evaluate, "--out_dir", "half", *FEW, capsys=capsys)
    assert "is not at poem.txt: restore it there, or name what to evaluate it on with" in error
    assert "is not at typo.txt" in complaint(train, "--data", "typo.txt", *AGAIN, capsys=capsys)
    state = fit("half", init_from="resume", data="moved.txt", max_iters=4)
    assert state["config"]["data"] == "moved.txt"
    assert_same(state, whole)
    Path("moved.txt").write_text(OTHER)
    other = complaint(train, "--data", "moved.txt", *AGAIN, capsys=capsys)
    assert "moved.txt is not the text that out was trained on" in other


@pytest.mark.parametrize("out_dir", ["out/poem", "ABSOLUTE"])
def test_a_run_is_resumed_from_any_working_folder_and_after_its_project_has_moved(
        out_dir, tmp_path, monkeypatch):
    out_dir = str(tmp_path / "p/out/poem") if out_dir == "ABSOLUTE" else out_dir
    for folder in ("p", "elsewhere"):
        Path(folder).mkdir()
    Path("p/poem.txt").write_text(POEM)
    Path("elsewhere/poem.txt").write_text(OTHER)  # of the same name
    monkeypatch.chdir(tmp_path / "p")
    fit(out_dir, data="poem.txt", tokenizer="bytes", max_iters=1)
    monkeypatch.chdir(tmp_path / "elsewhere")
    fit("../p/out/poem", init_from="resume", max_iters=2)
    data_of(load_model("../p/out/poem"))
    if out_dir == "out/poem":
        (tmp_path / "p").rename(tmp_path / "q")
        assert fit("../q/out/poem", init_from="resume", max_iters=3)["step"] == 3


def test_a_run_of_before_goes_on_but_only_where_its_text_was(poem, capsys):
    run_on(poem)
    without_fingerprint()
    shutil.copy(poem, "copy.txt")
    assert "--data copy.txt does not fit the run" in complaint(
        train, "--data", "copy.txt", *AGAIN, capsys=capsys)
    data_of(load_model("out"))
    assert fit("out", init_from="resume", max_iters=3)["text"]


def test_a_named_data_set_is_never_taken_for_another(poem, capsys):
    run_on(poem)
    assert "--data names does not fit the run in out, which has poem.txt" in complaint(
        train, "--data", "names", *AGAIN, capsys=capsys)


def test_a_student_learns_on_the_text_of_its_teacher(poem, capsys):
    run_on(poem, method="duo")
    poem.write_text(OTHER)
    error = complaint(distill, "--teacher", "out", "--method", "dcd", "--device", "cpu",
                      capsys=capsys)
    assert "poem.txt is not the text that out was trained on" in error and "--data" not in error


def test_an_exported_model_knows_its_text_too(poem, capsys):
    state = run_on(poem, qk_norm=False)
    write_export(state, assemble(state, "out").method, Path("exported"), "out")
    assert load_model("exported").text == state["text"]


# ---- a folder

def test_a_folder_of_texts_is_what_it_was_after_a_run_has_written_into_it(poem, capsys,
                                                                          monkeypatch):
    """Whatever palimpsest writes: runs, results, pages, pictures, exported models, its cache."""
    monkeypatch.setenv("PALIMPSEST_CACHE", "cache")
    text = load_data(".", 8, "chars").fingerprint
    state = fit("out/here-mdlm", data=".", tokenizer="chars", qk_norm=False)
    fit("out/here-mdlm", data=".", tokenizer="chars", qk_norm=False, seed=2)  # and set aside
    evaluate.main(*commanded(evaluate, "--out_dir", "out/here-mdlm", *FEW))
    write_export(state, assemble(state, "out").method, Path("model"), "out")
    shutil.copytree("cache", "older cache")
    capsys.readouterr()
    assert load_data(".", 8, "chars").fingerprint == text == state["text"]
    assert fit("out/here-mdlm", init_from="resume", max_iters=3)["step"] == 3


def test_a_run_does_not_replace_the_model_that_it_starts_from(poem, capsys):
    run_on(poem, method="duo")
    before = Path("out/ckpt.pt").read_bytes()
    os.symlink("out", "link")
    start = ["--data", "poem.txt", "--tokenizer", "bytes", "--method", "d3pm"]
    for words in (["--init_from", "out", "--out_dir", "./out/"],
                  ["--init_from", "link", "--out_dir", "out"],
                  ["--init_from", "out/ckpt.pt", "--out_dir", "link"],
                  ["--transition", "nearest", "--embedding", "out", "--out_dir", "link"]):
        error = complaint(train, *start, "--block_size", "8", *words, capsys=capsys)
        assert "which the run would replace: give another --out_dir" in error, error
    os.chdir("out")
    for words in (["--teacher", "../out"], ["--teacher", "ckpt.pt"], ["--teacher", "."]):
        error = complaint(distill, *words, "--method", "dcd", "--out_dir", ".", capsys=capsys)
        assert "holds the model of --teacher" in error
    assert Path("ckpt.pt").read_bytes() == before
