"""evaluate.py: errors, differences, and figures that mean something for this kind of text."""
import math
from pathlib import Path

import pytest
from models import random_checkpoint

import evaluate
from checkpoints.load import load_model
from data import load_data
from data.toy import ToyCorpus
from evaluations import results, run
from evaluation.errors import mean_error
from evaluation.held_out import data_of
from evaluation.likelihood import nats_of
from runs import cache, complaint, elsewhere  # noqa: F401

FEW = ["--max_texts", 4, "--draws", 1, "--num_samples", 0]


@pytest.fixture(autouse=True)
def roses(elsewhere):  # noqa: F811
    """Two models of one text."""
    Path("a.txt").write_text("a rose is a rose is a rose\n" * 99)
    for method in ("mdlm", "ar"):
        random_checkpoint(f"rose-{method}", method=method, data="a.txt", tokenizer="chars")


def test_another_checkpoint_is_compared_on_the_same_texts_and_noise(capsys):
    few = ["--out_dir", "rose-mdlm", "--max_texts", 30, "--num_samples", 0, "--draws", 2]
    r = results(capsys, *few, "--against", "rose-ar")
    own = results(capsys, "--out_dir", "rose-ar", *few[2:])
    row = r["against"]
    assert row["name"] == "rose-ar" and row["exact"]
    assert row["difference"] == pytest.approx(r["nats_per_token"] - own["nats_per_token"])
    assert 0 < row["difference_error"] < r["standard_error"] + own["standard_error"]
    run(*few, "--against", "ngram")
    line, = [line for line in capsys.readouterr().out.splitlines() if "same texts" in line]
    assert line.startswith("on the same texts, nats/token: ") and "-gram of tokens" in line
    run(*few, "--against", "rose-mdlm")
    same, = [line for line in capsys.readouterr().out.splitlines() if "same texts" in line]
    assert "0.0000 +- 0.0000 above rose-mdlm, not distinguishable from it (a bound, too)" in same


@pytest.mark.parametrize("other, says", [
    ("nowhere", "there is no checkpoint nowhere"), ("toy", "a model of text with the same tokens"),
    ("short", "was trained on texts of 4 tokens, and these have 8")])
def test_what_cannot_read_the_same_texts_is_refused_before_anything_is_measured(other, says,
                                                                                capsys):
    random_checkpoint("short", data="a.txt", tokenizer="chars", block_size=4)
    random_checkpoint("toy")
    error = complaint(evaluate, "--out_dir", "rose-mdlm", *FEW, "--against", other, capsys=capsys)
    assert says in error and not Path("rose-mdlm/evaluation.json").exists()


def test_a_held_out_part_of_one_window_is_scored_without_an_error_though_max_texts_1_is_refused(
        capsys):
    """That flag can be raised, a short text cannot: null in the JSON, no nan in any line."""
    Path("one.txt").write_text("a rose is " * 10)
    few = ["--out_dir", "rose-mdlm", "--data", "one.txt", "--draws", 2, "--num_samples", 2,
           "--steps", 2, "--judge", "rose-ar", "--against", "ngram", "--zero_shot", "one.txt"]
    r = results(capsys, *few)
    assert r["texts"] == 1 and r["nats_per_token"] > 0 and r["standard_error"] is None
    assert r["perplexity_error"] is r["against"]["difference_error"] is None
    run(*few)
    table = capsys.readouterr().out
    assert "nan" not in table and table.count("(no error: one text)") > 5


def test_windows_of_a_stream_have_the_error_of_neighbors_and_texts_of_a_language_that_of_texts(
        capsys):
    """A text that changes half way, so that all windows of a half resemble each other."""
    halves = "a rose is a rose " * 40 + "esor si a " * 68
    Path("halves.txt").write_text("a rose is " * 1100 + halves)  # the last tenth is held out
    few = ["--draws", 1, "--num_samples", 0]
    r = results(capsys, "--out_dir", "rose-ar", "--data", "halves.txt", *few)
    model = load_model("rose-ar")
    data = data_of(model, "halves.txt")
    nats, scored = nats_of(model.method, model.denoiser, data.windows("val"), seed=1337)
    naive, aware = (mean_error(nats / scored, flag)[1] for flag in (True, False))
    assert r["standard_error"] == pytest.approx(aware, rel=1e-4) and aware > 1.5 * naive
    assert r["perplexity_error"] == pytest.approx(aware * r["perplexity"], rel=1e-3)
    random_checkpoint("toy", method="ar")
    toy = results(capsys, "--out_dir", "toy", *FEW, "--max_texts", 50)
    model, x = load_model("toy"), ToyCorpus(8).windows("val", 50)
    nats, scored = nats_of(model.method, model.denoiser, x, seed=1337)
    expected = (nats / scored).std().item() / 50 ** 0.5
    assert toy["standard_error"] == pytest.approx(expected, rel=1e-4)


# ---- per byte, per character, and without words

def test_bits_per_byte_and_per_character_differ_by_the_bytes_of_the_characters(capsys):
    """The two are equal on ASCII alone."""
    Path("rosen.txt").write_text("süße größe, ärgert öfter Ämter\n" * 60, "utf-8")
    random_checkpoint("rosen", method="ar", data="rosen.txt", tokenizer="chars")
    r = results(capsys, "--out_dir", "rosen", "--num_samples", 0, "--max_texts", 10**6)
    text = load_data("rosen.txt", 8, "chars")
    held = text.text(text.val)
    size = len(held.encode()) / len(held)
    assert 1.1 < size < 1.4
    bits = r["nats_per_token"] / math.log(2)  # a token is a character
    assert r["bits_per_byte"] == pytest.approx(bits / size)
    assert r["bits_per_character"] == pytest.approx(bits, rel=0.01)  # of the windows alone


def test_without_spaces_characters_are_counted_and_the_reason_is_given(capsys):
    Path("protein.txt").write_text("MKTAYIAKQRQISFVKSHFSRQLEERLGLIEV" * 40)
    random_checkpoint("protein", data="protein.txt", tokenizer="chars")
    few = ["--max_texts", 8, "--draws", 1, "--num_samples", 4, "--steps", 2]
    run("--out_dir", "protein", *few)
    table = capsys.readouterr().out
    assert "distinct-1 of characters, of 4 texts" in table and "words that stand" not in table
    assert "no words are counted: this text has no spaces between words" in table
    run("--out_dir", "rose-mdlm", *few)
    table = capsys.readouterr().out
    assert "distinct-1, of 4 texts" in table and "no words are counted" not in table
