"""What data/ promises: tokens that lose nothing, corpora that leak nothing, and faults that are told in one line."""
import errno
import os
import random
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import requests
import tiktoken
import torch

from data import BadInput, docstrings, text, tokenizer
from data.ngram import witten_bell
from data.text import load

SOME_TEXT = "def f(x):\n    return 'the old dog'\n\nThe old cat, 42; the older dogs.\n" * 40


def any_unicode(n=400):
    """Random characters of 1 to 4 bytes, among them signs that need care."""
    draw = random.Random(0)
    ranges = [(0, 0x7F), (0x80, 0x7FF), (0x4E00, 0x9FFF), (0x1F600, 0x1F64F), (0xE000, 0xF8FF)]
    drawn = "".join(chr(draw.randint(*draw.choice(ranges))) for _ in range(n))
    return drawn + "\U0001f469\u200d\U0001f467 e\u0301 \r\n\u2028\x00 <|endoftext|>"


ENCODINGS = {
    "chars": lambda: tokenizer.chars(any_unicode() + SOME_TEXT),
    "bytes": lambda: tokenizer.byte_level(),
    "bpe": lambda: tokenizer.bpe(any_unicode() + SOME_TEXT, 512),
    "words": lambda: tokenizer.words(["two", "old", "dogs", "."]),
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A cache for the tests that only read, so that the long corpus is prepared once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No test writes into data/cache."""
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def story(tmp_path):
    path = tmp_path / "story.txt"
    path.write_text(SOME_TEXT, encoding="utf-8")
    return path


def fault(call, *args, **kwargs):
    """The message of the BadInput that the call must raise: one line, with something to do in it."""
    with pytest.raises(BadInput) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message and len(message) > 20
    return message


# ---- tokenizers

@pytest.mark.parametrize("kind", ["chars", "bytes", "bpe"])
def test_decoding_undoes_encoding_for_any_unicode(kind):
    encoding = ENCODINGS[kind]()
    for sample in (any_unicode(), SOME_TEXT, "", "a", any_unicode(3)):
        ids = tokenizer.encode(encoding, sample)
        assert ids.dtype == np.uint16 and ids.max(initial=0) < encoding.n_vocab
        assert tokenizer.decode(encoding, ids) == sample


@pytest.mark.parametrize("kind", ENCODINGS)
def test_every_id_below_n_vocab_is_a_token(kind):
    """A mask that is put at n_vocab must be the next free id, and every symbol below it must be one that can come."""
    encoding = ENCODINGS[kind]()
    tokens = [encoding.decode_single_token_bytes(i) for i in range(encoding.n_vocab)]
    assert len(set(tokens)) == encoding.n_vocab


def test_a_word_is_its_place_in_the_list():
    encoding = ENCODINGS["words"]()
    assert tokenizer.encode(encoding, "two old dogs .").tolist() == [0, 1, 2, 3]
    assert tokenizer.decode(encoding, [0, 1, 2, 3]) == "two old dogs ."
    assert tokenizer.encode(encoding, "").size == 0


def test_a_mask_is_shown_as_a_gap_and_half_a_character_as_broken():
    assert tokenizer.decode(ENCODINGS["words"](), [0, 4, 2, 9]) == "two _ dogs _"
    assert tokenizer.decode(tokenizer.chars("abc"), [0, 3, 2, 3, 3], gap="█") == "a█c██"
    # Half a character is shown too: a byte-level model in the middle of its work emits broken UTF-8.
    e_acute = list("é".encode())
    assert tokenizer.decode(tokenizer.byte_level(), [*e_acute, e_acute[0], 256, e_acute[1]]) == "é\ufffd_\ufffd"


def test_what_an_encoding_never_saw_is_named():
    assert "'q'" in fault(tokenizer.encode, tokenizer.chars("abc"), "abcq")
    assert "'😀'" in fault(tokenizer.encode, tokenizer.bpe("abc", 128), "abc😀")
    assert "'cats'" in fault(tokenizer.encode, ENCODINGS["words"](), "two cats")
    assert "\\ud800" in fault(tokenizer.encode, tokenizer.chars("abc"), "a\ud800")


def test_bpe_joins_the_commonest_pair_first_and_shortens_text():
    encoding = tokenizer.bpe("abababab abab cd", 99)
    assert encoding.decode_single_token_bytes(96) == b"ab" and encoding.decode_single_token_bytes(97) == b"abab"
    assert len(tokenizer.encode(ENCODINGS["bpe"](), SOME_TEXT)) < len(SOME_TEXT) / 3
    # It needs room for its alphabet.
    assert "--vocab_size 96" in fault(tokenizer.bpe, "abc", 95)
    assert tokenizer.bpe("abc", 96).n_vocab == 96


@pytest.mark.parametrize("kind", ENCODINGS)
def test_an_encoding_survives_json(kind):
    encoding = ENCODINGS[kind]()
    again = tokenizer.from_json(tokenizer.to_json(encoding))
    sample = "two old dogs ." if kind == "words" else any_unicode()
    assert again.n_vocab == encoding.n_vocab and again.name == encoding.name
    assert np.array_equal(tokenizer.encode(again, sample), tokenizer.encode(encoding, sample))


@pytest.mark.parametrize("json_text", ["", "{}", "[]", "null",
                                       '{"name": "a", "pattern": "(", "ranks": {"a": 0}, "special": {}}',
                                       '{"name": "a", "pattern": ".", "ranks": {"a": 0, "b": 0}, "special": {}}',
                                       '{"name": "a", "pattern": ".", "ranks": {"a": -1}, "special": {}}',
                                       '{"name": "a", "pattern": ".", "ranks": {}, "special": {}}'])
def test_json_that_is_no_tokenizer_is_refused(json_text):
    fault(tokenizer.from_json, json_text)


@pytest.mark.skipif("TIKTOKEN_CACHE_DIR" not in os.environ, reason="TIKTOKEN_CACHE_DIR (gpt2) is not set")
def test_gpt2_takes_its_special_token_for_text_and_travels_in_a_checkpoint():
    encoding = tokenizer.named("gpt2")
    again = tokenizer.from_json(tokenizer.to_json(encoding))
    assert again.n_vocab == 50257
    assert tokenizer.encode(again, "Hello world").tolist() == [15496, 995]
    assert tokenizer.decode(again, tokenizer.encode(again, any_unicode())) == any_unicode()


def test_offline_gpt2_says_which_files_to_put_where(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise requests.ConnectionError("no route to host")
    monkeypatch.setattr(requests, "get", offline)
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    message = fault(tokenizer.named, "gpt2")
    for part in ("6d1cbeee0f20b3d9449abfede4726ed8212e3aee", "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6",
                 "gpt-2/encodings/main/vocab.bpe", "gpt-2/encodings/main/encoder.json", str(tmp_path)):
        assert part in message


# ---- corpora

def test_names_are_the_same_bytes_on_every_python(kept):
    corpus = load("names", 64, cache=kept)
    assert "12,886 names" in corpus.about and "sha256 03ce3aea0397" in corpus.about
    assert corpus.encoding.n_vocab == 39 and corpus.bytes_per_token == 1
    assert len(corpus.train) + len(corpus.val) == 354_743 + 1                # each name has its line's end
    train, val = (set(corpus.text(ids).split("\n")[:-1]) for ids in (corpus.train, corpus.val))
    assert len(train) + len(val) == 12_886 and not train & val


def test_no_paragraph_of_the_docstrings_is_in_both_splits(kept):
    corpus = load("python", 64, "chars", cache=kept)
    assert corpus.encoding.n_vocab <= 96
    train, val = ({" ".join(paragraph.split()) for paragraph in re.split(r"\n\n+", corpus.text(ids))} - {""}
                  for ids in (corpus.train, corpus.val))
    assert not train & val                                   # nor is one that is only indented otherwise
    assert .07 < len(corpus.val) / (len(corpus.train) + len(corpus.val)) < .13


def test_a_second_load_takes_no_time_and_the_same_tokens(kept, capsys):
    first = load("names", 64, cache=kept)
    capsys.readouterr()
    start = time.perf_counter()
    second = load("names", 128, cache=kept)
    assert time.perf_counter() - start < 1 and "preparing" not in capsys.readouterr().err
    assert np.array_equal(first.train, second.train) and isinstance(second.train, np.memmap)


def test_where_python_has_no_sources_its_objects_are_asked(monkeypatch):
    monkeypatch.setattr(docstrings, "docstrings_of_sources", lambda: [])
    train, val, about = text.python()
    assert len(train) > 500_000 and len(val) > 50_000


def test_batches_are_a_pure_function_of_the_seed(kept):
    corpus = load("names", 64, cache=kept)
    one, two = (corpus.batch("train", 5, torch.Generator().manual_seed(1)) for _ in range(2))
    assert one.shape == (5, 64) and one.dtype == torch.int64 and torch.equal(one, two)
    torch.manual_seed(1)
    assert torch.equal(corpus.batch("train", 5), one)
    assert all(corpus.text(row) in corpus.text(corpus.train) for row in one)


def test_windows_are_the_split_from_its_start_without_gaps(kept, story):
    corpus = load("names", 64, cache=kept)
    assert np.array_equal(corpus.windows("val").flatten(), corpus.val[:len(corpus.val) // 64 * 64])
    whole = load(str(story), len(SOME_TEXT) - int(.9 * len(SOME_TEXT)), "chars")     # one window, which can be drawn
    assert whole.batch("val", 2).tolist() == [whole.val.tolist()] * 2


@pytest.mark.parametrize("kind", ["auto", "chars", "bytes", "bpe"])
def test_a_file_is_cut_at_nine_tenths_and_read_back_whole(story, kind):
    whole = SOME_TEXT + "ü"                                  # a character of the val split alone can be encoded too
    story.write_text(whole, encoding="utf-8")
    corpus = load(str(story), 16, kind, vocab_size=128)
    train, val = corpus.text(corpus.train), corpus.text(corpus.val)
    assert train + val == whole and len(train) == int(.9 * len(whole))
    assert corpus.bytes_per_token == len(val.encode()) / len(corpus.val)
    assert corpus.about.startswith("story.txt:") and "\n" not in corpus.about


def test_windows_line_ends_are_line_ends_and_bytes_are_left_alone(story):
    story.write_bytes(b"\xef\xbb\xbf" + SOME_TEXT.replace("\n", "\r\n").encode())
    assert load(str(story), 16, "chars").encoding.n_vocab == len(set(SOME_TEXT))
    raw = load(str(story), 16, "bytes")
    assert bytes([*raw.train, *raw.val]) == story.read_bytes()


def test_a_folder_gives_each_of_its_files_to_both_splits(tmp_path):
    for path, letter in {"b.txt": "b", "sub/a.txt": "a", ".git/c.txt": "c", "empty.txt": ""}.items():
        path = tmp_path / "texts" / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(letter * 100)
    corpus = load(str(tmp_path / "texts"), 4, "chars")
    assert corpus.text(corpus.train) == "b" * 90 + "a" * 90 and corpus.text(corpus.val) == "b" * 10 + "a" * 10


def test_a_long_text_in_pieces_gives_the_tokens_of_the_whole():
    encoding = ENCODINGS["bpe"]()
    whole = tokenizer.encode(encoding, SOME_TEXT)
    assert np.array_equal(text.encode_all(encoding, SOME_TEXT, size=100), whole)
    assert tokenizer.decode(encoding, text.encode_all(encoding, "a" * 999, size=10)) == "a" * 999


def test_a_changed_file_is_prepared_anew(story):
    before = load(str(story), 16)
    story.write_text(SOME_TEXT + "More.", encoding="utf-8")
    assert len(load(str(story), 16).val) > len(before.val)


def test_the_toy_language_is_loaded_by_the_same_call():
    assert load("toy", 16).batch("train", 2).shape == (2, 16)


# ---- faults

def test_texts_too_short_for_a_block_are_refused(story, tmp_path):
    assert "--block_size" in fault(load, str(story), 10_000)
    assert "val" in fault(load, str(story), len(SOME_TEXT) // 2, "chars")
    (tmp_path / "tiny").write_text("a")
    fault(load, str(tmp_path / "tiny"), 1)


def test_empty_files_empty_folders_and_devices_are_refused(tmp_path):
    (tmp_path / "empty.txt").touch()
    (tmp_path / "nothing").mkdir()
    (tmp_path / "only a mark.txt").write_bytes(b"\xef\xbb\xbf")
    for path in (tmp_path / "empty.txt", tmp_path / "nothing", Path(os.devnull), tmp_path / "only a mark.txt"):
        for kind in ("chars", "bpe"):
            fault(load, str(path), 64, kind)


def test_what_is_no_utf8_is_refused_but_bytes_take_it(story):
    story.write_bytes(bytes(range(256)) * 20)
    assert "--tokenizer bytes" in fault(load, str(story), 64)
    corpus = load(str(story), 64, "bytes")
    assert bytes([*corpus.train, *corpus.val]) == story.read_bytes() and corpus.bytes_per_token == 1


def test_a_misspelt_name_suggests_the_nearest_before_the_work(monkeypatch):
    assert "'python'" in fault(load, "pyton", 64)
    assert "python" in fault(load, "", 64) and "python" in fault(load, "long" * 9999, 64)
    monkeypatch.setitem(text.SOURCES, "python", lambda: pytest.fail("read the library first"))
    assert "'bytes'" in fault(load, "python", 64, "byte")


# ---- the cache

@pytest.mark.parametrize("name", ["train.bin", "val.bin", "meta.json"])
@pytest.mark.parametrize("damage", [lambda raw: raw[:-2], lambda raw: b"~" + raw[1:], lambda raw: b"{}", None])
def test_a_damaged_cache_is_made_anew(story, tmp_path, name, damage):
    sound = load(str(story), 16).train.tolist()
    [path] = (tmp_path / "cache").glob(f"*/{name}")
    path.write_bytes(damage(path.read_bytes())) if damage else path.unlink()
    again = load(str(story), 16)
    assert again.train.tolist() == sound and isinstance(again.train, np.memmap)
    assert len(list((tmp_path / "cache").iterdir())) == 1                    # no temporary folder is left


def test_without_a_writable_cache_all_else_works(story):
    corpus = load(str(story), 16, cache=story / "not a folder")
    assert corpus.batch("train", 2).shape == (2, 16)
    assert corpus.text(corpus.train) + corpus.text(corpus.val) == SOME_TEXT


def test_a_full_disk_is_told_in_one_line(story, monkeypatch, tmp_path):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(Path, "write_bytes", full)
    assert "PALIMPSEST_CACHE" in fault(load, str(story), 16)
    assert not list((tmp_path / "cache").iterdir())


def test_many_may_prepare_the_same_corpus_at_once(story):
    with ThreadPoolExecutor(8) as pool:
        corpora = list(pool.map(lambda _: load(str(story), 16), range(8)))
    assert all(np.array_equal(corpus.train, corpora[0].train) for corpus in corpora)


# ---- n-grams

def brute_force(x, i, n, t, V):
    """Eq. (1) of data/ngram.py for the symbol x[i], word by word: counts over x[:t] and a recursion."""
    if n == 0:
        return 1 / V
    h = x[i - n + 1:i]
    after = [x[j] for j in range(n - 1, t) if x[j - n + 1:j] == h]
    shorter = brute_force(x, i, n - 1, t, V)
    return (after.count(x[i]) + len(set(after)) * shorter) / (len(after) + len(set(after))) if after else shorter


def test_the_ngram_agrees_with_counting_by_hand():
    draw = random.Random(0)
    V, train = 4, [draw.choice([0, 0, 0, 1, 1, 2]) for _ in range(80)]       # symbol 3 is never seen
    val = [draw.randrange(V) for _ in range(20)]
    nats = witten_bell(np.array(train, np.uint16), np.array(val, np.uint16), V)
    for n in (2, 3, 4, 5, 6):
        p = [brute_force(train + val, i, n, len(train), V) for i in range(80, 100)]
        assert nats[n] == pytest.approx(-np.log(p).mean(), rel=1e-12)


def test_the_ngram_is_a_law():
    """Its probabilities sum to 1 after a history that was seen often, once or never."""
    for train in ([0, 1, 2, 0, 1, 2, 0, 1], [0, 0, 0, 0, 1, 0, 0, 2]):
        by_symbol = [witten_bell(np.array(train), np.array([w]), 5) for w in range(5)]
        for n in (2, 3, 4, 5, 6):
            assert sum(np.exp(-nats[n]) for nats in by_symbol) == pytest.approx(1, abs=1e-12)
