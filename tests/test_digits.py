"""Images are texts: the digits are split without a leak, read as pictures, written as PNG, trained on and judged."""
import struct
import sys
import zlib

import numpy as np
import pytest
import torch
from runs import cache, complaint, elsewhere, fit  # noqa: F401

import claims.guidance as claim
import evaluate
import sample
import train
from checkpoint import restore
from data import BadInput
from data.digits import LEVELS, png
from data.text import load
from data.tokenizer import decode, encode, from_json, to_json

pytest.importorskip("sklearn")


def test_both_splits_hold_every_digit_and_no_image_twice():
    corpus = load("digits", 64)
    (x, _, label), (held, _, held_label) = (corpus.example_windows(split) for split in ("train", "val"))
    assert len(x) + len(held) == 1797 and 0.15 < len(held) / 1797 < 0.25
    assert len(torch.cat([x, held]).unique(dim=0)) == 1797
    assert all((label == k).sum() > 100 and (held_label == k).sum() > 15 for k in range(10))
    assert x.min() == 0 and x.max() == 16 and corpus.encoding.n_vocab == 17 == len(LEVELS)
    few, _, few_labels = corpus.example_windows("val", 40)
    assert len(few) == 40 and set(few_labels.tolist()) == set(range(10))
    assert (corpus.nearest(few)[0] == few_labels).float().mean() > 0.9
    assert (corpus.nearest(x[:50])[1] < 1e-5).all()


def test_an_image_reads_as_eight_lines_and_is_found_again_in_them():
    corpus = load("digits", 64)
    x, _, label = corpus.examples("train", 5, torch.Generator().manual_seed(0))
    assert torch.equal(x, corpus.batch("train", 5, torch.Generator().manual_seed(0)))
    for image in x:
        text = corpus.text(image.tolist())
        assert [len(line) for line in text.split("\n")] == [8] * 8 and text[0] == LEVELS[image[0]]
        encoding = from_json(to_json(corpus.encoding))
        assert encode(encoding, text).tolist() == image.tolist()
        assert decode(encoding, image.tolist()[:20]).count("\n") == 2
    assert "_" in decode(corpus.encoding, [17] * 64)


def test_a_png_holds_the_pixels(tmp_path):
    """Read back by its own format: three chunks with their checks, rows without filter."""
    x = torch.randint(17, (7, 64))
    png(tmp_path / "grid.png", x, columns=3, scale=2)
    raw, chunks = (tmp_path / "grid.png").read_bytes(), {}
    assert raw[:8] == b"\x89PNG\r\n\x1a\n"
    raw = raw[8:]
    while raw:
        n, = struct.unpack(">I", raw[:4])
        chunks[raw[4:8]] = raw[8:8 + n]
        assert struct.unpack(">I", raw[8 + n:12 + n])[0] == zlib.crc32(raw[4:8 + n])
        raw = raw[12 + n:]
    width, height, depth, colour, *_ = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert (width, height, depth, colour) == (3 * 18 - 2, 3 * 18 - 2, 8, 0) and list(chunks)[-1] == b"IEND"
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, width + 1)
    assert (rows[:, 0] == 0).all()
    fifth = rows[18:34, 1 + 18:1 + 34][::2, ::2]         # second row, second column
    assert (fifth == x[4].view(8, 8).numpy() * 255 // 16).all()


@pytest.mark.parametrize("method", ["mdlm", "udlm", "d3pm", "ar"])
def test_a_model_of_images_is_trained_sampled_judged_and_drawn(method, tmp_path, capsys):
    fit("out", data="digits", block_size=64, method=method, labels=True, **claim.BANDS.get(method, {}))
    capsys.readouterr()
    sample.main(sample.Config(out_dir="out", label="7", guidance=2, num_samples=3, steps=4, png="grid.png"))
    assert (tmp_path / "grid.png").exists() and len(capsys.readouterr().out.split("\n")) == 3 * 9 + 1
    evaluate.main(evaluate.Config(out_dir="out", label="3", max_texts=40, num_samples=4, draws=1, steps=4))
    printed = capsys.readouterr().out
    for argv, length in ((["--length", 32], 32), (["--length", 128], 128), (["--prompt", "_" * 9], 9)):
        error = complaint(sample, "--out_dir", "out", "--png", "no.png", *argv, capsys=capsys)
        assert f"--png draws 64 pixels, and this text has {length}: leave out" in error
    assert "its digit is the one asked for" in printed and "nearest training image" in printed
    assert "words that stand" not in printed


def test_what_images_cannot_do_is_one_line(tmp_path, monkeypatch, capsys):
    assert "leave out --block_size 32" in complaint(train, "--data", "digits", "--block_size", 32, capsys=capsys)
    assert "--png is for images" in complaint(sample, "--oracle", "mdlm", "--png", "a.png", capsys=capsys)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert "pip install scikit-learn" in complaint(train, "--data", "digits", capsys=capsys)


def test_the_frechet_distance_of_clouds_is_that_of_gaussians():
    torch.manual_seed(0)
    a = torch.randn(4000, 3, dtype=torch.float64)
    assert abs(claim.frechet(a, a)) < 1e-9 and claim.frechet(a, a + torch.tensor([1.0, 2.0, 0.0])) == pytest.approx(5)
    assert claim.frechet(a, 3 * a) == pytest.approx(4 * 3 + 0, rel=0.1)                  # three times (3 - 1)^2


def test_the_claim_is_judged_by_both_numbers_in_the_fewest_steps():
    def rows(few, most):                                 # of mdlm: half of the digits right, Frechet distance 100
        return [[name, n, 2.0, right, 0.01, far, 1.0, 0.1] for n, other in ((8, few), (128, most))
                for name, (right, far) in (("mdlm", (0.5, 100)), ("udlm", other))]
    say = lambda few, most: list(claim.verdict(rows(few, most), 2.0))[-1]
    assert "favours udlm over masks: holds; and more in 8" in say((0.6, 50), (0.5, 100))
    assert "holds; and no more in 8" in say((0.6, 90), (0.5, 80))
    for few in ((0.51, 50), (0.6, 110)):
        assert "does not hold" in say(few, (0.5, 100))
    assert list(claim.verdict([row for row in rows((1, 1), (1, 1)) if row[0] == "udlm"], 2.0)) == []


def test_the_claim_runs_to_its_table_and_its_grids(tmp_path, monkeypatch, capsys):
    fit("out", data="digits", block_size=64, labels=True)
    monkeypatch.setattr(claim, "trained", lambda *a, **k: restore("out"))
    claim.digits(claim.Config(methods="mdlm", strengths="0,2", steps="1,2", num_samples=20, out_dir="claims"))
    printed = capsys.readouterr().out
    assert printed.count("steps, strength") == 4 and "of the digits right" in printed
    assert len(list((tmp_path / "claims").glob("digits-mdlm-*.png"))) == 4
    with pytest.raises(BadInput, match="mdml is none of"):
        claim.digits(claim.Config(methods="mdml"))
    with pytest.raises(BadInput, match="numbers with commas"):
        claim.digits(claim.Config(steps="8;9"))
