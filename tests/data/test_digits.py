"""Images are texts: the digits are split without a leak, read as pictures, judged, drawn as PNG."""
import struct
import sys
import zlib

import numpy as np
import pytest
import torch

from data import load_data
from data.digits import LEVELS, Digits, write_png
from data.tokenizer import decode, encode, from_json, to_json
from data.toy import ToyCorpus
from flags import UserError

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def digits():
    return load_data("digits", 64)


def test_both_splits_contain_every_digit_and_no_image_twice(digits):
    (x, _, label), (held, _, held_label) = map(digits.example_windows, ("train", "val"))
    assert len(x) + len(held) == 1797 and 0.15 < len(held) / 1797 < 0.25
    assert len(torch.cat([x, held]).unique(dim=0)) == 1797
    assert all((label == k).sum() > 100 and (held_label == k).sum() > 15 for k in range(10))
    assert x.min() == 0 and x.max() == 16 and digits.encoding.n_vocab == 17 == len(LEVELS)
    few, _, few_labels = digits.example_windows("val", 40)
    assert len(few) == 40 and set(few_labels.tolist()) == set(range(10))


def test_the_judge_is_the_nearest_training_image(digits):
    (x, _, label), (held, _, held_label) = map(digits.example_windows, ("train", "val"))
    assert (digits.nearest(held)[0] == held_label).float().mean() > 0.9
    assert (digits.nearest(x[:50])[1] < 1e-5).all()
    (_, distance), (_, right) = digits.score(x[:50], label[:1])
    assert torch.equal(right, (label[:50] == label[0]).double()) and (distance < 1e-5).all()
    assert [what for what, _ in digits.score(held)] == [
        "distance to the nearest training image, levels"]


def test_an_image_reads_as_eight_lines_and_is_found_again_in_them(digits):
    x, _, label = digits.examples("train", 5, torch.Generator().manual_seed(0))
    assert torch.equal(x, digits.batch("train", 5, torch.Generator().manual_seed(0)))
    encoding = from_json(to_json(digits.encoding))
    for image in x:
        text = digits.text(image.tolist())
        assert [len(line) for line in text.split("\n")] == [8] * 8 and text[0] == LEVELS[image[0]]
        assert encode(encoding, text).tolist() == image.tolist()
        assert decode(encoding, image.tolist()[:20]).count("\n") == 2
    assert "_" in decode(digits.encoding, [17] * 64)


def read_png(path):
    """A gray PNG without filters, read by its own format. -> (H, W)"""
    raw, chunks = path.read_bytes(), {}
    assert raw[:8] == b"\x89PNG\r\n\x1a\n"
    raw = raw[8:]
    while raw:
        n, = struct.unpack(">I", raw[:4])
        kind, data, check = raw[4:8], raw[8:8 + n], raw[8 + n:12 + n]
        assert struct.unpack(">I", check)[0] == zlib.crc32(kind + data)
        chunks[kind], raw = data, raw[12 + n:]
    width, height, depth, color, *_ = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert (depth, color) == (8, 0) and list(chunks)[-1] == b"IEND"
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, width + 1)
    assert (lines[:, 0] == 0).all()
    return lines[:, 1:]


def test_a_png_contains_the_pixels(tmp_path):
    x = torch.randint(17, (7, 64), generator=torch.Generator().manual_seed(0))
    write_png(tmp_path / "grid.png", x, columns=3, scale=2)
    grid = read_png(tmp_path / "grid.png")
    assert grid.shape == (3 * 18 - 2, 3 * 18 - 2)
    fifth = grid[18:34, 18:34][::2, ::2]  # second row, second column
    assert (fifth == x[4].view(8, 8).numpy() * 255 // 16).all()


def test_a_data_set_of_images_renders_them_and_others_say_that_they_cannot(tmp_path):
    Digits.check_render(64)
    Digits.render([[0, 16] * 32] * 2, tmp_path / "two.png")
    assert set(read_png(tmp_path / "two.png").flatten().tolist()) == {0, 96, 255}
    with pytest.raises(UserError, match="--png draws 64 pixels, and this text has 9: leave out"):
        Digits.check_render(9)
    with pytest.raises(UserError, match="--png is for images"):
        ToyCorpus.check_render(64)


def test_what_images_cannot_be_is_one_line(monkeypatch):
    with pytest.raises(UserError, match="leave out --block_size 32"):
        load_data("digits", 32)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match="pip install scikit-learn"):
        load_data("digits", 64)
