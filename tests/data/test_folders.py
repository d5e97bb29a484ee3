"""Which files of a folder are its text."""
import os
from pathlib import Path

import pytest
import torch
from test_tokenizer import message_of

from data import load_data
from data.digits import write_png
from data.folders import files_below
from viewer.html_player import PAGE


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with texts, which is the working folder."""
    (tmp_path / "texts").mkdir()
    monkeypatch.chdir(tmp_path / "texts")
    put("b.txt")
    put("a/c.txt")
    return Path(".")


def put(*paths):
    for path in map(Path, paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{path} " * 20)


def names(folder="."):
    return [path.as_posix() for path in files_below(folder)]


def test_files_count_in_the_order_of_their_names_so_a_new_name_may_make_another_text(folder):
    assert names() == ["a/c.txt", "b.txt"]
    first = load_data(".", 8, "bytes").fingerprint
    Path("b.txt").rename("z.txt")
    assert load_data(".", 8, "bytes").fingerprint == first  # the order is the same
    Path("z.txt").rename("a/b.txt")
    assert names() == ["a/b.txt", "a/c.txt"]
    assert load_data(".", 8, "bytes").fingerprint != first


def test_links_are_followed_and_nothing_is_read_twice(folder):
    put("../other/d.txt")
    for link, to in {"again.txt": "b.txt", "far": "../other", "far too": "../other", "up": "..",
                     "a/here": ".", "a/.hidden": "nowhere"}.items():
        os.symlink(to, link)
    assert sorted(path.resolve().name for path in files_below(".")) == ["b.txt", "c.txt", "d.txt"]
    assert names() == names() == ["a/c.txt", "b.txt", "far/d.txt"]


def test_a_link_that_leads_nowhere_is_an_error(folder):
    os.symlink("gone.txt", "a/link.txt")
    assert "cannot read a/link.txt (No such file or directory)" in message_of(load_data, ".", 8)


def test_what_palimpsest_wrote_is_left_out_and_what_it_did_not_write_is_not(folder):
    put("out/x/ckpt.pt", "out/x/ckpt.previous.pt", "out/x/metrics.jsonl", "out/x/evaluation.json",
        "out/x/tensorboard/events", "running/.lock", "running/metrics.jsonl")
    Path("page.html").write_text(PAGE.read_text("utf-8"), "utf-8")
    write_png("seven.png", torch.zeros(1, 64).long())
    assert names() == ["a/c.txt", "b.txt"]
    put("out/x/notes.txt", "metrics.jsonl", "config.json", "meta.json", "mine.html")
    assert names() == ["a/c.txt", "b.txt", "config.json", "meta.json", "metrics.jsonl", "mine.html",
                       "out/x/notes.txt"]
    Path("photo.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(999))
    assert "photo.png is an image: leave it out" in message_of(load_data, ".", 8, "chars")


def test_a_picture_of_curves_says_that_it_is_ours(folder):
    pytest.importorskip("matplotlib").use("Agg")
    from matplotlib import pyplot
    figure = pyplot.figure()
    figure.savefig("curves.png", metadata={"Software": "palimpsest"})
    assert names() == ["a/c.txt", "b.txt"]
