"""Text and JSON as a user gives them: marks, line ends, files that are no text, half characters."""
import bz2
import gzip
import io
import lzma
import tarfile
import zipfile

import pytest
from test_tokenizer import ENCODINGS, message_of

import evaluate
from checkpoints import hub, tensor_layouts
from data import build_shards, corpus, download, load_data, shards, texts, tokenize_workers
from data.prompt import read_prompt
from data.reading import decode_text, parse_json, tidy
from data.tokenizer import encode, from_json
from data.wordpiece import WordPiece
from evaluation.report import save_evaluation
from flags import configure
from tree import CODE
from viewer import curves

ENGLISH = "the old mill by the sea " * 40


def zipped(archive):
    """A zip, or a tar, with one text."""
    raw = io.BytesIO()
    if archive is zipfile:
        with zipfile.ZipFile(raw, "w") as file:
            file.writestr("word/document.xml", ENGLISH)
    else:
        with tarfile.open(fileobj=raw, mode="w") as file:
            info = tarfile.TarInfo("a.txt")
            info.size = len(ENGLISH)
            file.addfile(info, io.BytesIO(ENGLISH.encode()))
    return raw.getvalue()


FILES = {  # what is said of them
    "packed by gzip: unpack it first": gzip.compress(ENGLISH.encode()),
    "packed by bzip2: unpack it first": bz2.compress(ENGLISH.encode()),
    "packed by xz: unpack it first": lzma.compress(ENGLISH.encode()),
    "a zip archive, as .docx": zipped(zipfile),
    "a tar archive: unpack it first": zipped(tarfile),
    "a PDF: save it as plain text": b"%PDF-1.4\n" + ENGLISH.encode(),
    "in rich text format": b"{\\rtf1 " + ENGLISH.encode(),
    "a parquet table": b"PAR1\x15\x04" + bytes(90),
    "in UTF-16: save it as UTF-8": ENGLISH.encode("utf-16"),
    "in UTF-32: save it as UTF-8": ENGLISH.encode("utf-32"),
    "perhaps UTF-16: save it as UTF-8": ENGLISH.encode("utf-16-le"),
    "is not UTF-8 text (byte 0): save it as UTF-8, leave it out": b"\xe9" * 99,
}


@pytest.mark.parametrize("says", FILES)
@pytest.mark.parametrize("most", [1 << 26, 10], ids=["in one go", "to shards"])
def test_a_file_that_is_no_text_is_named_with_what_to_do(says, most, tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "READ_WHOLE", most)
    monkeypatch.setattr(tokenize_workers, "count_cores", lambda: 1)
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path / "cache"))
    (tmp_path / "given.txt").write_bytes(FILES[says])
    says = says.replace(" (byte 0)", "") if most == 10 else says
    assert says in message_of(load_data, str(tmp_path / "given.txt"), 16, "chars")
    assert len(load_data(str(tmp_path / "given.txt"), 4, "bytes").train) > 30  # any bytes, if asked


def test_a_text_that_begins_like_no_file_of_others_is_a_text():
    for text in ("PART ONE", "BZh is how bzip2 begins", "{", "PK", "%", "\x1f", "a\0b and more"):
        assert decode_text(text.encode(), "a file") == text


def test_a_mark_and_windows_line_ends_go_from_prompts_typed_and_from_files(tmp_path):
    """As they go from texts for training."""
    (tmp_path / "prompt.txt").write_bytes("\ufeffthe old\r\nmill\r\n".encode())
    assert read_prompt(f"FILE:{tmp_path}/prompt.txt") == "the old\nmill\n"
    assert read_prompt("\ufeffthe old") == "the old" and tidy("a\rb\r\n") == "a\rb\n"


# ---- half characters

WORDS = WordPiece(["[UNK]", "caf", "the"])


@pytest.mark.parametrize("text, says", [("caf\udce9", "byte 0xe9 is no UTF-8"),
                                        ("caf\ud83d", "half of a character")])
@pytest.mark.parametrize("kind", [*ENCODINGS, "bert"])
def test_half_a_character_is_named_by_every_tokenizer(kind, text, says):
    """But bytes take a byte that a terminal gave: Python writes it as half a character."""
    encoding = WORDS if kind == "bert" else ENCODINGS[kind]()
    if encoding.name == "bytes" and "byte" in says:
        assert encode(encoding, text).tolist() == list(b"caf\xe9")
    else:
        assert says in message_of(encode, encoding, text)


# ---- JSON

@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000, "1e400", "[-1e400]", "NaN", "Infinity",
                                  '{"a": 1, "a": 2}', "", "{", "\ufeff1"])
def test_json_that_is_no_json_is_a_value_error(text):
    with pytest.raises(ValueError):
        parse_json(text)
    sound = '{"a": [1, 2.5, 1e-400, null, "\\ud83d"]}'
    assert parse_json(sound) == {"a": [1, 2.5, 0, None, "\ud83d"]}


DEEP = "[" * 50_000


@pytest.mark.parametrize("read, says", [
    (lambda path: hub.read_json(path), "cannot be read"),
    (lambda path: from_json(path.read_text()), "not a tokenizer"),
    (lambda path: tensor_layouts.read_safetensors(path), "no whole safetensors file"),
    (lambda path: download.read_manifest(path.parent), "delete it"),
    (lambda path: curves.read_metrics(path.parent), "none of its 1 lines can be read"),
    (lambda path: save_evaluation(configure(evaluate.Config, out_dir=str(path.parent)), 1, {}),
     "it is no JSON object"),
])
def test_a_file_of_ours_that_nests_too_deep_is_one_line(read, says, tmp_path):
    for name in ("manifest.json", "metrics.jsonl", "evaluation.json"):
        (tmp_path / name).write_text(DEEP)
    header = len(DEEP).to_bytes(8, "little") + DEEP.encode()
    file = tmp_path / "config.json"
    file.write_bytes(header if "safetensors" in says else DEEP.encode())
    assert says in message_of(read, file)


def test_damaged_records_of_the_cache_are_made_again(tmp_path):
    for name in ("meta.json", "train.json"):
        (tmp_path / name).write_text(DEEP)
    assert corpus.open_cache(tmp_path) is None and build_shards.read_meta(tmp_path) is None
    assert shards.read_progress(tmp_path, "train") == {"shards": [], "whole": False}


def test_json_is_read_in_one_place():
    """But for what was written a moment before, and experiments, which read their own files."""
    found = {file for file, path in CODE.items() if "json.load" in path.read_text("utf-8")}
    assert {file for file in found if not file.startswith("experiments")} == {
        "data/reading.py", "checkpoints/file.py", "evaluation/report.py"}
