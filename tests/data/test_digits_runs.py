"""Runs on images: a model of digits is trained, sampled, judged and drawn."""
import sys

import pytest

import evaluate
import sample
import train
from experiments.guidance import BANDS
from flags import configure
from runs import cache, complaint, elsewhere, fit  # noqa: F401

pytest.importorskip("sklearn")


@pytest.mark.parametrize("method", ["mdlm", "udlm", "d3pm", "ar"])
def test_a_model_of_images_is_trained_sampled_judged_and_drawn(method, tmp_path, capsys):
    fit("out", data="digits", block_size=64, method=method, labels=True, **BANDS.get(method, {}))
    capsys.readouterr()
    sample.main(configure(sample.Config, out_dir="out", label="7", guidance=2, num_samples=3,
                          steps=4, png="grid.png"), ())
    assert (tmp_path / "grid.png").exists()
    assert len(capsys.readouterr().out.split("\n")) == 3 * 9 + 1
    evaluate.main(configure(evaluate.Config, out_dir="out", label="3", max_texts=40, num_samples=4,
                            draws=1, steps=4), ())
    printed = capsys.readouterr().out
    for argv, length in ((["--length", 32], 32), (["--length", 128], 128),
                         (["--prompt", "_" * 9], 9)):
        error = complaint(sample, "--out_dir", "out", "--png", "no.png", *argv, capsys=capsys)
        assert f"--png draws 64 pixels, and this text has {length}: leave out" in error
    assert "its digit is the one asked for" in printed and "nearest training image" in printed
    assert "words that stand" not in printed


def test_what_images_cannot_do_is_one_line(monkeypatch, capsys):
    error = complaint(train, "--data", "digits", "--block_size", 32, capsys=capsys)
    assert "leave out --block_size 32" in error
    error = complaint(sample, "--oracle", "mdlm", "--png", "a.png", capsys=capsys)
    assert "--png is for images" in error
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    error = complaint(train, "--data", "digits", capsys=capsys)
    assert "pip install scikit-learn" in error
