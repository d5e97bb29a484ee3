"""
Texts that are tokenized in one go: what every Python carries, tiny Shakespeare, your own files.

    names        the names of the characters of Unicode 3.2: the same bytes on every Python
    python       the docstrings of your Python's standard library: English, about 1.6 MB
    shakespeare  1 MB, downloaded once, cut like a file: nanoGPT's split
    a file       your UTF-8 text: the first 90 % of its characters train, the rest is held out
    a folder     each file in it is cut in the same way. Which files count: data/folders.py. Their
                 order is that of their names, so a file with another name may make another text

names and python are split by a hash of the name or paragraph, without repeats, so nothing that is
held out is trained on.
"""
import difflib
import hashlib
import os
import sys
import sysconfig
import unicodedata
from functools import partial
from itertools import chain
from pathlib import Path

from data import DATASETS, build_shards, documents
from data.base import HELD_OUT, hash_fraction
from data.corpus import CachedCorpus
from data.docstrings import docstring_paragraphs
from data.download import File, cache_root, fetch_all, format_bytes, sha256_of
from data.folders import files_below
from data.reading import decode_text
from flags import UserError

READ_WHOLE = 1 << 26  # bytes; larger text is written to shards
TINY_SHAKESPEARE = File(
    "input.txt", 1_115_394, "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ("https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",))


def fingerprint(lines):
    raw = "\n".join(lines).encode()
    return f"{len(raw):,} bytes, sha256 {hashlib.sha256(raw).hexdigest()[:12]}"


class Names(CachedCorpus):
    """The names of Unicode 3.2, except ideographs and Hangul syllables, whose names only count."""
    default_tokenizer = "chars"

    @classmethod
    def key_of(cls, data):
        return "Unicode 3.2"

    @classmethod
    def read(cls, data, errors):
        """In the order of their hashes: the neighbors of a name say nothing about it."""
        counted = ("CJK UNIFIED IDEOGRAPH", "CJK COMPATIBILITY IDEOGRAPH", "HANGUL SYLLABLE")
        planes = chain(range(0x30000), range(0xE0000, 0xF0000))  # the others have no names
        names = [unicodedata.ucd_3_2_0.name(chr(i), "") for i in planes]
        names = [name for name in names if name and not name.startswith(counted)]
        lots = sorted((hash_fraction(name), name) for name in names)
        train = "".join(name + "\n" for lot, name in lots if lot >= HELD_OUT)
        val = "".join(name + "\n" for lot, name in lots if lot < HELD_OUT)
        about = f"{len(names):,} names of Unicode 3.2, {fingerprint(names)}"
        return train, val, about + ", split by hash of the name"


class Docstrings(CachedCorpus):
    """The docstrings of the standard library. They are split by paragraph, not by file, since files
    repeat each other's paragraphs."""

    @classmethod
    def key_of(cls, data):
        return [sys.version, sysconfig.get_path("stdlib")]

    @classmethod
    def read(cls, data, errors):
        paragraphs = docstring_paragraphs()  # {its words: the paragraph}
        train, val = [], []
        for words, paragraph in paragraphs.items():
            (val if hash_fraction(words) < HELD_OUT else train).append(paragraph + "\n\n")
        about = f"docstrings of Python {sys.version.split()[0]}, {fingerprint(paragraphs.values())}"
        return "".join(train), "".join(val), about + ", split by hash of the paragraph"


class Shakespeare(CachedCorpus):
    """A million characters of the plays, as Karpathy selected them for char-rnn and nanoGPT."""
    default_tokenizer = "chars"

    @classmethod
    def key_of(cls, data):
        return TINY_SHAKESPEARE.sha256

    @classmethod
    def read(cls, data, errors):
        folder = cache_root() / "downloads" / "shakespeare"
        return read_and_split(fetch_all("shakespeare", [TINY_SHAKESPEARE], folder), "strict")


class Files(CachedCorpus):
    """Your own text: a file, or all files of a folder."""
    is_path = True

    @classmethod
    def load(cls, data, block_size, tokenizer="auto", vocab_size=1024, cache=None):
        if sum(path.stat().st_size for path in find_files(data)) <= READ_WHOLE:
            return super().load(data, block_size, tokenizer, vocab_size, cache)
        tokenizer = cls.default_tokenizer if tokenizer == "auto" else tokenizer
        return load_large(cls.name_of(data), find_files(data), cls.key_of(data), block_size,
                          tokenizer, vocab_size, cache_root(cache))

    @classmethod
    def name_of(cls, data):
        return Path(data).expanduser().resolve().name

    @classmethod
    def key_of(cls, data):
        """What the files hold: another file may have the same path, size and time (cp -p, rsync).
        It costs half a second per GB."""
        return [sha256_of(path) for path in find_files(data)]

    @classmethod
    def read(cls, data, errors):
        return read_and_split(find_files(data), errors)


def find_files(data):
    """The file, or the files below the folder in order of name. -> paths"""
    root = Path(data).expanduser()
    if not data or not os.path.exists(root):  # unlike root.exists(), it never raises
        names = [name for name in DATASETS if "*" not in name]
        near = difflib.get_close_matches(data, names, n=1)
        meant = f" (did you mean {near[0]!r}?)" if near else ""
        raise UserError(f"there is no data {data!r}{meant}: give {', '.join(names)}, "
                        f"or the path of a text file or folder")
    paths = [root] if root.is_file() else files_below(root) if root.is_dir() else []
    found = [path for path in paths if path.stat().st_size]
    if not found:
        raise UserError(f"{data} holds no text: give a text file that is not empty, or a folder "
                        f"with such a file in it")
    return found


def read_and_split(paths, errors):
    """Text files, each cut at nine tenths of its characters. -> train, val, about

    errors: "strict", or "surrogateescape", which preserves bytes that are not UTF-8.
    """
    train, val, digest, size = [], [], hashlib.sha256(), 0
    for path in paths:
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from None
        cure = "save it as UTF-8, leave it out, or use --tokenizer bytes"
        text = decode_text(raw, path, cure) if errors == "strict" else raw.decode("utf-8", errors)
        cut = int(len(text) * (1 - HELD_OUT))
        train.append(text[:cut])
        val.append(text[cut:])
        digest.update(raw)
        size += len(raw)
    about = f"{size:,} bytes, sha256 {digest.hexdigest()[:12]}, split by position"
    return "".join(train), "".join(val), about


def load_large(name, paths, key, block_size, tokenizer, vocab_size, root, workers=None):
    """Files that are too large to be read whole: the last part of each is val. -> Sharded"""
    kind = tokenizer if isinstance(tokenizer, str) else tokenizer.name
    errors = "surrogateescape" if kind == "bytes" else "strict"
    size = format_bytes(sum(path.stat().st_size for path in paths))
    about = f"{size} in {len(paths):,} file{'s' * (len(paths) > 1)}, split by position"
    source = build_shards.Source((), None, about, "plain", splits={"train": "train", "val": "val"})
    streams = lambda: {split: partial(documents.read_files, paths, split, HELD_OUT, errors)
                       for split in source.splits}
    return build_shards.load_shards(name, source, "plain", [name, key], streams, block_size,
                                    tokenizer, vocab_size, root, workers)
