"""What data/documents.py promises: large files give the tokens that reading them whole gives."""
import re

import pytest

from data import build_shards, documents, load_data, shards, texts, tokenize_workers
from data.shard_dataset import Sharded
from data.tokenizer import bpe
from flags import UserError


def test_a_large_folder_is_streamed_to_the_tokens_of_reading_it_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenize_workers, "count_cores", lambda: 1)
    monkeypatch.setattr(shards.write_shards, "__defaults__", (None, 5000, 2000))
    folder = tmp_path / "mine"
    folder.mkdir()
    for i in range(3):
        lines = b"".join(b"the old dog %d sees\r\n\r\nit ." % j for j in range(300))
        (folder / f"{i}.txt").write_bytes(b"\xef\xbb\xbf" * i + lines)
    monkeypatch.setattr(documents.read_files, "__defaults__", (700,))  # characters per piece
    monkeypatch.setattr(documents, "PIECE", 100)  # bytes at once
    whole = {kind: load_data(str(folder), 16, kind, 300) for kind in ("chars", "bytes")}
    monkeypatch.setattr(texts, "READ_WHOLE", 1000)
    for kind, small in whole.items():
        large = load_data(str(folder), 16, kind, 300)
        assert isinstance(large, Sharded) and len(large.part("train").ids.arrays) > 1
        streamed, read = ([data.encoding.decode_bytes(ids[:].tolist()) for ids in
                           (data.train, data.val)] for data in (large, small))
        assert abs(len(streamed[1]) - len(read[1])) < 100
        assert sorted(b"".join(streamed)) == sorted(b"".join(read))
    assert "3 files" in large.about
    (folder / "3.txt").write_bytes(b"\xff" * 2000)
    with pytest.raises(UserError, match="--tokenizer bytes"):
        load_data(str(folder), 16, "chars")


def test_cutting_a_text_in_pieces_changes_no_token():
    long = "the old dog sees  two cats\n" * 200 + "é" * 3000 + " end"
    chunks = (long[i:i + 77] for i in range(0, len(long), 77))
    cut = list(documents.split_pieces(chunks, 500))
    assert "".join(cut) == long and max(map(len, cut)) <= 1000 and len(cut) > 10
    encoding = bpe(long, 300, build_shards.EVERY_BYTE)
    whole = encoding.encode_ordinary(long[:5400])
    parts = [i for piece in documents.split_pieces([long[:5400]], 500)
             for i in encoding.encode_ordinary(piece)]
    assert parts == whole and re.search(r"\S$", cut[0]) and cut[1].startswith(" ")


@pytest.mark.parametrize("place", range(12))
def test_a_file_is_cut_between_two_characters(place, tmp_path):
    raw = "aé日\r\n😀".encode()
    (tmp_path / "f").write_bytes(raw)
    with open(tmp_path / "f", "rb") as file:
        cut = documents.next_boundary(file, min(place, len(raw)))
    assert place <= cut <= place + 3 or cut == len(raw)
    assert raw[:cut].decode() + raw[cut:].decode() == raw.decode() and not raw[:cut].endswith(b"\r")
