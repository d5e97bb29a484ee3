"""What data/corpus.py and data/texts.py promise: corpora that leak nothing, a cache that cannot
lie."""
import errno
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from test_tokenizer import ENCODINGS, SOME_TEXT, message_of

from data import corpus, docstrings, load_data, texts, tokenizer


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A cache for the tests that only read, so that the long corpus is prepared once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def story(tmp_path):
    path = tmp_path / "story.txt"
    path.write_text(SOME_TEXT, encoding="utf-8")
    return path


# ---- what every Python carries

def test_names_are_the_same_bytes_on_every_python(kept):
    data = load_data("names", 64, cache=kept)
    assert "12,886 names" in data.about and "sha256 03ce3aea0397" in data.about
    assert data.encoding.n_vocab == 39 and data.bytes_per_token == 1
    assert len(data.train) + len(data.val) == 354_743 + 1  # each name has its line end
    train, val = (set(data.encoding.decode(ids.tolist()).split("\n")[:-1])
                  for ids in (data.train, data.val))
    assert len(train) + len(val) == 12_886 and not train & val
    assert .095 < len(val) / 12_886 < .105


def test_no_paragraph_of_the_docstrings_is_in_both_splits(small_python):
    """Nor one whose copy has other blanks: each paragraph occurs once."""
    data = load_data("python", 64, "chars")
    assert data.encoding.n_vocab <= 96
    whole = [data.encoding.decode(ids.tolist()) for ids in (data.train, data.val)]
    paragraphs = [[" ".join(part.split()) for part in re.split(r"\n\n+", text)] for text in whole]
    train, val = (set(part) - {""} for part in paragraphs)
    assert len(train) > 1000 and len(val) > 100 and not train & val
    assert len(paragraphs[0]) + len(paragraphs[1]) - 2 == len(train) + len(val)
    assert .07 < len(data.val) / (len(data.train) + len(data.val)) < .13
    assert not any("A guest" in paragraph for paragraph in train | val)


def test_where_python_has_no_sources_its_objects_are_inspected(monkeypatch):
    monkeypatch.setattr(docstrings, "docstrings_of_sources", lambda: [])
    train, val, _ = texts.Docstrings.read("python", "strict")
    assert len(train) > 500_000 and len(val) > 50_000


# ---- texts

def test_batches_are_a_pure_function_of_the_seed(kept):
    data = load_data("names", 64, cache=kept)
    one, two = (data.batch("train", 5, torch.Generator().manual_seed(1)) for _ in range(2))
    assert one.shape == (5, 64) and one.dtype == torch.int64 and torch.equal(one, two)
    torch.manual_seed(1)
    assert torch.equal(data.batch("train", 5), one)
    whole = data.encoding.decode(data.train.tolist())
    assert all(data.text(row) in whole for row in one)


def test_windows_are_the_split_from_its_start_without_gaps(kept, story):
    data = load_data("names", 64, cache=kept)
    val = data.val[:len(data.val) // 64 * 64]
    assert np.array_equal(data.windows("val").flatten(), val)
    held_out = len(SOME_TEXT) - int(.9 * len(SOME_TEXT))
    whole = load_data(str(story), held_out, "chars")  # one window, which can be drawn
    assert whole.batch("val", 2).tolist() == [whole.val.tolist()] * 2


# ---- your own files

@pytest.mark.parametrize("kind", ["auto", "chars", "bytes", "bpe"])
def test_a_file_is_cut_at_nine_tenths_and_read_back_whole(story, kind):
    whole = SOME_TEXT + "ü"  # a character of the val split alone can be encoded, too
    story.write_text(whole, encoding="utf-8")
    data = load_data(str(story), 16, kind, vocab_size=128)
    train, val = data.text(data.train), data.text(data.val)
    assert train + val == whole and len(train) == int(.9 * len(whole))
    assert data.bytes_per_token == len(val.encode()) / len(data.val)
    assert data.about.startswith("story.txt:") and "\n" not in data.about


def test_windows_line_ends_are_line_ends_and_bytes_are_left_alone(story):
    story.write_bytes(b"\xef\xbb\xbf" + SOME_TEXT.replace("\n", "\r\n").encode())
    assert load_data(str(story), 16, "chars").encoding.n_vocab == len(set(SOME_TEXT))
    raw = load_data(str(story), 16, "bytes")
    assert bytes([*raw.train, *raw.val]) == story.read_bytes()


def test_a_folder_gives_each_of_its_files_to_both_splits(tmp_path):
    files = {"b.txt": "b", "sub/a.txt": "a", ".git/c.txt": "c", "empty.txt": ""}
    for path, letter in files.items():
        path = tmp_path / "texts" / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(letter * 100)
    data = load_data(str(tmp_path / "texts"), 4, "chars")
    assert data.text(data.train) == "b" * 90 + "a" * 90
    assert data.text(data.val) == "b" * 10 + "a" * 10


def test_a_long_text_in_pieces_gives_the_tokens_of_the_whole():
    encoding = ENCODINGS["bpe"]()
    whole = tokenizer.encode(encoding, SOME_TEXT)
    assert np.array_equal(corpus.encode_long(encoding, SOME_TEXT, size=100), whole)
    no_spaces = corpus.encode_long(encoding, "a" * 999, size=10)
    assert tokenizer.decode(encoding, no_spaces) == "a" * 999


def test_a_changed_file_is_prepared_again(story):
    before = load_data(str(story), 16)
    story.write_text(SOME_TEXT + "More.", encoding="utf-8")
    assert len(load_data(str(story), 16).val) > len(before.val)


# ---- errors

def test_texts_too_short_for_a_block_are_refused(story, tmp_path, own_cache):
    assert "--block_size" in message_of(load_data, str(story), 10_000)
    assert "val" in message_of(load_data, str(story), len(SOME_TEXT) // 2, "chars")
    (tmp_path / "tiny").write_text("a")
    message_of(load_data, str(tmp_path / "tiny"), 1)
    assert not own_cache.exists()  # nothing is kept of a text that cannot be used


def test_empty_files_empty_folders_and_devices_are_refused(tmp_path):
    (tmp_path / "empty.txt").touch()
    (tmp_path / "nothing").mkdir()
    (tmp_path / "only a mark.txt").write_bytes(b"\xef\xbb\xbf")
    for path in (tmp_path / "empty.txt", tmp_path / "nothing", Path(os.devnull),
                 tmp_path / "only a mark.txt"):
        for kind in ("chars", "bpe"):
            message_of(load_data, str(path), 64, kind)


def test_what_is_not_utf8_is_refused_but_bytes_take_it(story):
    story.write_bytes(bytes(range(256)) * 20)
    assert "--tokenizer bytes" in message_of(load_data, str(story), 64)
    data = load_data(str(story), 64, "bytes")
    assert bytes([*data.train, *data.val]) == story.read_bytes() and data.bytes_per_token == 1


def test_a_misspelled_name_suggests_the_nearest_before_the_work(monkeypatch):
    assert "'python'" in message_of(load_data, "pyton", 64)
    for name in ("", "long" * 9999, "pyton-plain", "no/such/folder"):
        assert "names, python, shakespeare, sudoku4" in message_of(load_data, name, 64)
    monkeypatch.setattr(texts.Docstrings, "read", lambda *a: pytest.fail("read the library first"))
    assert "'bytes'" in message_of(load_data, "python", 64, "byte")


# ---- the cache

def test_a_second_load_takes_no_time_and_the_same_tokens(kept, capsys):
    first = load_data("names", 64, cache=kept)
    capsys.readouterr()
    start = time.perf_counter()
    second = load_data("names", 128, cache=kept)
    assert time.perf_counter() - start < 1 and "preparing" not in capsys.readouterr().err
    assert np.array_equal(first.train, second.train) and isinstance(second.train, np.memmap)


@pytest.mark.parametrize("name", ["train.bin", "val.bin", "meta.json"])
@pytest.mark.parametrize("damage", [lambda raw: raw[:-2], lambda raw: b"~" + raw[1:],
                                    lambda raw: b"{}", None])
def test_a_damaged_cache_is_made_again(story, own_cache, name, damage):
    sound = load_data(str(story), 16).train.tolist()
    [path] = own_cache.glob(f"*/{name}")
    path.write_bytes(damage(path.read_bytes())) if damage else path.unlink()
    again = load_data(str(story), 16)
    assert again.train.tolist() == sound and isinstance(again.train, np.memmap)
    assert len(list(own_cache.iterdir())) == 1  # no temporary folder is left


def test_without_a_writable_cache_everything_else_works(story):
    data = load_data(str(story), 16, cache=story / "not a folder")
    assert data.batch("train", 2).shape == (2, 16)
    assert data.text(data.train) + data.text(data.val) == SOME_TEXT


def test_a_full_disk_is_reported_in_one_line(story, monkeypatch, own_cache):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(Path, "write_bytes", full)
    assert "PALIMPSEST_CACHE" in message_of(load_data, str(story), 16)
    assert not list(own_cache.iterdir())


def test_many_may_prepare_the_same_corpus_at_once(story):
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: load_data(str(story), 16), range(8)))
    assert all(np.array_equal(data.train, made[0].train) for data in made)
