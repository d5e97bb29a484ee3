"""What sample.py and chat.py say around the texts: names first, what calls there were and why, and
letters as they are where the stream can show them."""
import io
import json
import struct
from types import SimpleNamespace

import pytest
import torch

import chat
import sample
from checkpoints.file import as_json
from data.digits import write_png
from data.tokenizer import chars, encode
from flags import UserError, configure, load_row
from methods import METHODS, make_method
from runs import cache, elsewhere  # noqa: F401
from viewer.html_player import meaning_of

FEW = dict(num_samples=2, device="cpu", length=8)


def said(capsys, **flags):
    """The output and the last line of sample.py."""
    sample.main(configure(sample.Config, **{**FEW, **flags}), [])
    seen = capsys.readouterr()
    return seen.out, seen.err


@pytest.mark.parametrize("oracle, ends", [
    ("mdlm", "(8 tokens in 16 steps; no call where no mask opens)"),
    ("udlm", "(8 tokens in 16 steps; no call where no word changes)"), ("ar", "positions scored")])
def test_the_last_line_says_why_there_are_fewer_calls_than_steps(oracle, ends, capsys):
    _, err = said(capsys, oracle=oracle, steps=16)
    assert f"network calls, {err.split('calls, ')[1].split(' pos')[0]} positions scored" in err
    assert ends in err and "texts read" not in err and ("tokens in" in err) == (oracle != "ar")


def test_of_several_models_each_name_comes_before_its_texts(capsys):
    out, err = said(capsys, oracle="mdlm", beside="udlm", html="o.html", steps=4)
    names = [line for line in out.splitlines() if line.startswith("========")]
    assert names == ["======== oracle mdlm", "======== oracle udlm"] and out.startswith(names[0])
    assert "the same texts" not in err
    out, err = said(capsys, oracle="mdlm", beside="pgm", html="o.html", steps=4)
    assert "mdlm and pgm wrote the same texts, and should: they take the same steps" in err
    assert "====" not in said(capsys, oracle="mdlm", steps=4)[0]


@pytest.mark.parametrize("name", METHODS)
def test_the_page_says_what_the_name_of_every_method_stands_for(name):
    method = make_method(name, 8)
    words = meaning_of(method)
    assert 10 < len(words) < 90 and "Chapter" not in words and "arXiv" not in words
    if name == "bd3lm":
        assert "Block diffusion" in words


def test_the_steps_of_a_method_that_writes_blocks_are_those_of_each_block(monkeypatch, capsys):
    said(capsys, oracle="bd3lm", html="o.html", steps=3)
    page = open("o.html").read()
    assert "3 steps for each block" in page


def test_json_shows_letters_where_the_stream_has_them_and_is_valid_json_where_not():
    values = {"text": "größe 東", "mean": float("nan")}
    for encoding, shown in (("utf-8", "größe 東"), (None, "größe 東"), ("ascii", "gr\\u00f6"),
                            ("cp1252", "gr\\u00f6"), ("latin-1", "gr\\u00f6")):
        line = as_json(values, SimpleNamespace(encoding=encoding))
        assert shown in line and json.loads(line) == {"text": "größe 東", "mean": None}
    assert "größe" in as_json({"text": "größe"}, SimpleNamespace(encoding="cp1252"))
    assert as_json(values).isascii()  # files


def test_an_answer_without_words_is_said_to_be_none(monkeypatch, capsys):
    model = SimpleNamespace(method=load_row(METHODS, "mdlm")(8), encoding=None, denoiser=None,
                            config=SimpleNamespace(block_size=8, method="mdlm"))
    monkeypatch.setattr(chat, "compile_for_sampling", lambda config, model: None)
    given = torch.zeros(8).long()  # (L,)
    monkeypatch.setattr(chat, "chat_template", lambda *args: (given, given.bool()))
    monkeypatch.setattr(chat, "words_of_reply", lambda *args: "")
    monkeypatch.setattr(chat.sys, "stdin", io.StringIO("Hello?\n"))
    chat.talk(configure(chat.Config), model, "", torch.device("cpu"))
    assert capsys.readouterr().out == "> Hello?\n(no answer)\n"


def test_a_character_that_the_vocabulary_lacks_comes_with_what_would_have_it():
    with pytest.raises(UserError, match="lacks 'ß': leave out these characters, or train with "
                                        "--tokenizer bytes"):
        encode(chars("abc"), "abß")


def test_three_digits_are_a_picture_of_half_a_thousand_pixels(tmp_path):
    write_png(tmp_path / "7.png", torch.zeros(3, 64).long())
    width, height = struct.unpack(">II", (tmp_path / "7.png").read_bytes()[16:24])
    assert (width, height) == (520, 160)
