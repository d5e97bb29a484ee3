"""What data/tokenizer.py promises: ids that lose nothing, and errors that say what to do."""
import os
import random

import numpy as np
import pytest
import requests
import tiktoken

from data import tokenizer
from data.tokenizer import bpe, byte_level, chars, decode, encode, pieces, words
from flags import UserError

SOME_TEXT = "def f(x):\n    return 'the old dog'\n\nThe old cat, 42; the older dogs.\n" * 40
NEEDS_GPT2 = pytest.mark.skipif("TIKTOKEN_CACHE_DIR" not in os.environ,
                                reason="TIKTOKEN_CACHE_DIR (gpt2) is not set")


def any_unicode(n=400):
    """Random characters of 1 to 4 bytes, among them signs that need care."""
    draw = random.Random(0)
    ranges = [(0, 0x7F), (0x80, 0x7FF), (0x4E00, 0x9FFF), (0x1F600, 0x1F64F), (0xE000, 0xF8FF)]
    drawn = "".join(chr(draw.randint(*draw.choice(ranges))) for _ in range(n))
    return drawn + "\U0001f469\u200d\U0001f467 e\u0301 \r\n\u2028\x00 <|endoftext|>"


ENCODINGS = {
    "chars": lambda: chars(any_unicode() + SOME_TEXT),
    "bytes": lambda: byte_level(),
    "bpe": lambda: bpe(any_unicode() + SOME_TEXT, 512),
    "words": lambda: words(["two", "old", "dogs", "."]),
}


def message_of(call, *args, **kwargs):
    """The message of the UserError that the call must raise: one line that says what to do."""
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message and len(message) > 20
    return message


# ---- text to ids and back

@pytest.mark.parametrize("kind", ["chars", "bytes", "bpe"])
def test_decoding_undoes_encoding_for_any_unicode(kind):
    encoding = ENCODINGS[kind]()
    for sample in (any_unicode(), SOME_TEXT, "", "a", any_unicode(3)):
        ids = encode(encoding, sample)
        assert ids.dtype == np.uint16 and ids.max(initial=0) < encoding.n_vocab
        assert decode(encoding, ids) == sample


@pytest.mark.parametrize("kind", ENCODINGS)
def test_every_id_below_n_vocab_is_a_token(kind):
    """A mask at n_vocab must be the next free id, and every symbol below it must be one that
    occurs."""
    encoding = ENCODINGS[kind]()
    tokens = [encoding.decode_single_token_bytes(i) for i in range(encoding.n_vocab)]
    assert len(set(tokens)) == encoding.n_vocab


def test_a_word_is_its_place_in_the_list():
    encoding = ENCODINGS["words"]()
    assert encode(encoding, "two old dogs .").tolist() == [0, 1, 2, 3]
    assert decode(encoding, [0, 1, 2, 3]) == "two old dogs ."
    assert encode(encoding, "").size == 0


def test_a_mask_is_shown_as_a_gap_and_half_a_character_as_broken():
    assert decode(ENCODINGS["words"](), [0, 4, 2, 9]) == "two _ dogs _"
    assert decode(chars("abc"), [0, 3, 2, 3, 3], gap="█") == "a█c██"
    # A byte-level model writes half a character while it works.
    e_acute = list("é".encode())
    broken = [*e_acute, e_acute[0], 256, e_acute[1]]
    assert decode(byte_level(), broken) == "é\ufffd_\ufffd"


def test_what_an_encoding_lacks_is_named():
    assert "'q'" in message_of(encode, chars("abc"), "abcq")
    assert "'😀'" in message_of(encode, bpe("abc", 128), "abc😀")
    assert "'cats'" in message_of(encode, ENCODINGS["words"](), "two cats")
    assert "\\ud800" in message_of(encode, chars("abc"), "a\ud800")
    assert "not empty" in message_of(chars, "")


# ---- pieces, which --watch colors one by one

def test_the_pieces_of_a_text_are_the_text_for_every_tokenizer():
    text = "zwei Ärzte, 東京, 🙂 and two dogs"
    for encoding in (chars(text), byte_level(), bpe(text * 9, 300, alphabet=text)):
        ids = encode(encoding, text).tolist()
        assert "".join(pieces(encoding, ids)) == text and len(pieces(encoding, ids)) == len(ids)


def test_words_keep_their_spaces_and_gaps_their_place():
    encoding = words(["two", "old", "dogs"])
    assert pieces(encoding, [0, 3, 2]) == ["two", " _", " dogs"]
    assert decode(encoding, [0, 3, 2]) == "two _ dogs"
    assert pieces(encoding, []) == [] and pieces(encoding, [2]) == ["dogs"]


def test_a_character_of_several_tokens_belongs_to_the_last_and_a_broken_one_is_marked():
    emoji = list("🙂".encode())
    assert pieces(byte_level(), emoji) == ["", "", "", "🙂"]
    assert pieces(byte_level(), [65, *emoji[:2]]) == ["A", "", "\ufffd"]
    assert pieces(byte_level(), [*emoji[:2], 65]) == ["", "", "\ufffdA"]


# ---- BPE and named encodings

def test_bpe_merges_the_most_frequent_pair_first_and_shortens_text():
    encoding = bpe("abababab abab cd", 99)
    assert [encoding.decode_single_token_bytes(i) for i in (96, 97)] == [b"ab", b"abab"]
    assert len(encode(ENCODINGS["bpe"](), SOME_TEXT)) < len(SOME_TEXT) / 3
    # It needs room for its alphabet.
    assert "--vocab_size 96" in message_of(bpe, "abc", 95)
    assert bpe("abc", 96).n_vocab == 96


def test_a_wrong_name_suggests_the_nearest():
    assert "did you mean 'gpt2'" in message_of(tokenizer.load_encoding, "gpt-2")


@NEEDS_GPT2
def test_gpt2_takes_its_special_token_for_text_and_travels_in_a_checkpoint():
    encoding = tokenizer.load_encoding("gpt2")
    again = tokenizer.from_json(tokenizer.to_json(encoding))
    assert again.n_vocab == 50257
    assert encode(again, "Hello world").tolist() == [15496, 995]
    assert decode(again, encode(again, any_unicode())) == any_unicode()
    assert tokenizer.end_of_text(again) == 50256 and tokenizer.end_of_text(byte_level()) is None


def test_offline_gpt2_says_which_files_to_put_where(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise requests.ConnectionError("no route to host")
    monkeypatch.setattr(requests, "get", offline)
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    message = message_of(tokenizer.load_encoding, "gpt2")
    for part in ("6d1cbeee0f20b3d9449abfede4726ed8212e3aee", "gpt-2/encodings/main/vocab.bpe",
                 "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6", "gpt-2/encodings/main/encoder.json",
                 str(tmp_path)):
        assert part in message


# ---- in checkpoints

@pytest.mark.parametrize("kind", ENCODINGS)
def test_an_encoding_survives_json(kind):
    encoding = ENCODINGS[kind]()
    again = tokenizer.from_json(tokenizer.to_json(encoding))
    sample = "two old dogs ." if kind == "words" else any_unicode()
    assert again.n_vocab == encoding.n_vocab and again.name == encoding.name
    assert np.array_equal(encode(again, sample), encode(encoding, sample))


@pytest.mark.parametrize("json_text", [
    "", "{}", "[]", "null",
    '{"name": "a", "pattern": "(", "ranks": {"a": 0}, "special": {}}',
    '{"name": "a", "pattern": ".", "ranks": {"a": 0, "b": 0}, "special": {}}',
    '{"name": "a", "pattern": ".", "ranks": {"a": -1}, "special": {}}',
    '{"name": "a", "pattern": ".", "ranks": {}, "special": {}}'])
def test_json_that_is_not_a_tokenizer_is_refused(json_text):
    message_of(tokenizer.from_json, json_text)
