"""Files in the formats of the publishers of corpora, put where downloads would be, for the tests of
data/."""
import csv
import dataclasses
import io
import json
import tarfile
import zipfile

from data import corpora

FILES = ("train", "valid", "test")               # as most of them call the splits
LM1B = "1-billion-word-language-modeling-benchmark-r13output"


def make_zip(members):
    """{name: text} -> bytes"""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return out.getvalue()


def make_tar(members, mode="w"):
    """{name: bytes} -> bytes"""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name, raw in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(raw)
            archive.addfile(member, io.BytesIO(raw))
    return out.getvalue()


def make_lm1b(training, heldout, **others):
    """LM1B with these lines (bytes), and other members of its archive. -> {file: bytes}"""
    parts = {"training": training, "heldout": heldout}
    files = {f"{LM1B}/{part}-monolingual.tokenized.shuffled/news.en-00001-of-00100": lines
             for part, lines in parts.items()}
    return {f"{LM1B}.tar.gz": make_tar({**files, **others}, "w:gz")}


def make_paper(body):
    sections = {"article_text": [body, "second ( x ) ."], "abstract_text": ["no"]}
    return json.dumps(sections) + "\n"


def make_csv(*rows):
    out = io.StringIO()
    csv.writer(out, quoting=csv.QUOTE_ALL).writerows(rows)
    return out.getvalue().encode()


def make_ptb(line, times):
    """PTB whose splits repeat a line, in which %s is the split. -> {file: bytes}"""
    return {f"ptb.{split}.txt": (line % split).encode() * times for split in FILES}


def put(name, root, monkeypatch, files):
    """Put small files, whose hashes nobody knows, where the download of a corpus would be."""
    folder = root / "downloads" / name
    folder.mkdir(parents=True)
    for file, raw in files.items():
        (folder / file).write_bytes(raw)
    source = corpora.CORPORA[name]
    there = tuple(dataclasses.replace(file, size=None, sha256=None) for file in source.files
                  if file.name in files)
    monkeypatch.setitem(corpora.CORPORA, name, dataclasses.replace(source, files=there))
