"""
Text corpora: two that are on every machine that has Python, your own file or folder, and those of the papers.

    corpus = load("names", block_size=64)               # or "python", a path, or a name of data/corpora.py
    x = corpus.batch("train", n=32)                     # (n, block_size) ids;  corpus.text(x[0]) reads them

    names    the names of the characters of Unicode 3.2: frozen, so the same bytes on every Python; for benchmarks
    python   the docstrings of your Python's standard library: English, about 1.6 MB; differs from version to version
    a file   your UTF-8 text: the first 90 % of its characters train, the rest is held out
    a folder each file in it is cut in the same way, so that both splits hear every voice; hidden files are left out
    shakespeare  1 MB, downloaded once, cut as a file is (nanoGPT's split); other downloads see data/corpora.py

Above 64 MB text is not read whole but written to shards (data/shards.py), and drawn from as data/sharded.py says.
names and python are split by a hash of the name or paragraph, and repeats are dropped: nothing held out is ever
trained on. The tokens are made once and kept in data/cache (or $PALIMPSEST_CACHE), and so are downloads; delete that
whenever you like.
load("toy", ...) is data/toy.py, and digits and chat have files of their own, with the same attributes. Not here:
tokenizers, see tokenizer.py.
"""
import difflib
import errno
import hashlib
import json
import os
import re
import shutil
import sys
import sysconfig
import tempfile
import unicodedata
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tiktoken
import torch

from data import HELD_OUT, BadInput, cache_root, chat, corpora, digits, docstrings, lot, toy
from data.tokenizer import ASCII, bpe, byte_level, chars, decode, encode, from_json, named, to_json

RECIPE = 1                                   # part of every cache key: raise it when the code below makes other tokens
BPE_SAMPLE = 4_000_000                       # characters from which merges are learnt: more would change few of them
READ_WHOLE = 1 << 26                         # bytes; what is longer is written to shards


@dataclass
class Corpus:
    """Tokens of one text in two splits, and how to read them back."""
    name: str
    about: str                               # one line to print beside every result
    encoding: tiktoken.Encoding
    train: np.ndarray                        # (n,) ids, memory-mapped from the cache
    val: np.ndarray                          # (m,) ids
    bytes_per_token: float                   # UTF-8 bytes of the val text per token: nats per token -> bits per byte
    block_size: int
    classes: tuple = ()                      # their names, where texts have labels

    def __post_init__(self):
        for split in ("train", "val"):
            n = len(getattr(self, split))
            if n < self.block_size:
                raise BadInput(f"{self.name} has {n:,} {split} tokens, not one block of {self.block_size:,}: "
                               f"use a longer text or a smaller --block_size")

    def batch(self, split, n, generator=None):
        """n random windows -> (n, block_size) int64. The generator (a CPU one) or torch's seed decides which."""
        ids = getattr(self, split)
        start = torch.randint(len(ids) - self.block_size + 1, (n, 1), generator=generator)           # (n, 1)
        window = start + torch.arange(self.block_size)                                               # (n, L)
        return torch.from_numpy(ids[window.numpy()].astype(np.int64))                                # (n, L)

    def windows(self, split="val", most=None):
        """The split cut into consecutive blocks, the rest dropped; `most` of them, evenly spread -> (m, L) int64."""
        if split not in ("train", "val"):
            raise BadInput(f"{self.name} has no {split} split, only train and val")
        ids = getattr(self, split)
        blocks = ids[:len(ids) // self.block_size * self.block_size].reshape(-1, self.block_size)    # (M, L)
        if most and most < len(blocks):
            blocks = blocks[np.linspace(0, len(blocks) - 1, most).astype(int)]                       # (most, L)
        return torch.from_numpy(blocks.astype(np.int64))                                             # (m, L)

    def examples(self, split, n, generator=None):
        """What train.py learns from: x (n, L); frozen (n, L), where tokens are given, or None; label (n,), or None"""
        return self.batch(split, n, generator), None, None

    def example_windows(self, split="val", most=None):
        """The same of `windows`."""
        return self.windows(split, most), None, None

    def text(self, ids):
        return decode(self.encoding, ids)


def load(data, block_size, tokenizer="auto", vocab_size=1024, cache=None, sft=False):
    """The corpus `data`: toy, digits, chat, names, python, a path, a name of data/corpora.py. Tokens: auto, chars,
    bytes, bpe, a name like gpt2, or an Encoding that is there already (a checkpoint's, to read other text with).

    vocab_size is for bpe alone; cache is the folder to use for data/cache; sft, for chats alone: questions are given.
    Raises BadInput, one line, for all that the user can mend.
    """
    if data == "chat" or data.endswith(".jsonl"):
        return chat.Answers(data, block_size, tokenizer, vocab_size) if sft else \
            Corpus(**chat.stream(data, tokenizer, vocab_size), block_size=block_size)
    if sft:
        raise BadInput(f"--sft learns answers to questions, and {data} has none: give --data chat, or a .jsonl file")
    if data in ("toy", "digits"):
        return (toy.ToyCorpus if data == "toy" else digits.Digits)(block_size)
    if corpora.known(data):
        return corpora.load(data, block_size, tokenizer, vocab_size, cache_root(cache))
    if tokenizer == "auto":
        tokenizer = "bpe" if data not in ("names", "shakespeare") else "chars"
    if data not in SOURCES and size_of(data) > READ_WHOLE:
        return corpora.load_files(name_of(data), paths_of(data), HELD_OUT, source_of(data), block_size, tokenizer,
                                  vocab_size, cache_root(cache))
    folder = cache_folder(data, tokenizer, vocab_size, cache)
    corpus = open_cache(folder, block_size)
    if corpus is None:
        print(f"preparing {data}, once ...", file=sys.stderr, flush=True)
        corpus = prepare(data, tokenizer, vocab_size, block_size)
        save_cache(folder, corpus)
        corpus = open_cache(folder, block_size) or corpus    # a folder that cannot be written: work from memory
    return corpus


def prepare(data, tokenizer, vocab_size, block_size):
    """The corpus in memory, from its source."""
    kind = getattr(tokenizer, "name", tokenizer)             # of an Encoding, or its name itself
    if isinstance(tokenizer, str) and tokenizer not in ("chars", "bytes", "bpe"):
        named(tokenizer)                                     # a wrong name should fail before the work, not after
    if data in SOURCES:
        train, val, about = SOURCES[data]()
    else:
        train, val, about = files(data, "surrogateescape" if kind == "bytes" else "strict")
    symbols = set(train) | set(val)                          # val may hold a rare one: it should not fail for that
    if tokenizer == "chars":
        encoding = chars(symbols)
    elif tokenizer == "bpe":
        encoding = bpe(excerpt(train), vocab_size, alphabet="".join(symbols) + ASCII)     # merges: of train alone
    else:
        encoding = tokenizer if isinstance(tokenizer, tiktoken.Encoding) else \
            byte_level() if tokenizer == "bytes" else named(tokenizer)
    ids = {"train": encode_all(encoding, train), "val": encode_all(encoding, val)}
    name = name_of(data)
    about = f"{name}: {about}; {len(ids['train']):,} train and {len(ids['val']):,} val tokens, " \
            f"{encoding.n_vocab:,} symbols ({kind})"
    bytes_per_token = len(val.encode("utf-8", "surrogateescape")) / max(len(ids["val"]), 1)
    return Corpus(name, about, encoding, **ids, bytes_per_token=bytes_per_token, block_size=block_size)


def excerpt(text, slices=64):
    """The text, or if it is long, even slices of it."""
    if len(text) <= BPE_SAMPLE:
        return text
    step, size = len(text) // slices, BPE_SAMPLE // slices
    return "".join(text[i * step:i * step + size] for i in range(slices))


def encode_all(encoding, text, size=1 << 20):
    """The ids of a long text, encoded about `size` characters at a time to spare memory.

    It is cut before a single space if one is near: there BPE starts a new piece anyway, so the tokens stay the same.
    """
    single_space = re.compile(r"(?<=\S) (?=\S)")
    ids, start = bytearray(), 0
    while start < len(text):
        cut = single_space.search(text, start + size, start + 2 * size)
        end = cut.start() if cut else start + size
        ids += encode(encoding, text[start:end]).tobytes()
        start = end
    return np.frombuffer(ids, encode(encoding, "").dtype)                                            # (n,)


def name_of(data):
    return data if data in SOURCES else Path(data).expanduser().resolve().name


# ---- sources: each gives the train text, the val text and a few words about them

def fingerprint(lines):
    raw = "\n".join(lines).encode()
    return f"{len(raw):,} bytes, sha256 {hashlib.sha256(raw).hexdigest()[:12]}"


def names():
    """Every name in Unicode 3.2 but those that only count: ideographs and Hangul syllables.

    In the order of their lots: the neighbour of a name tells nothing of it, so the loss is that of names alone.
    """
    counted = ("CJK UNIFIED IDEOGRAPH", "CJK COMPATIBILITY IDEOGRAPH", "HANGUL SYLLABLE")
    every = [unicodedata.ucd_3_2_0.name(chr(i), "") for i in range(sys.maxunicode + 1)]
    every = [name for name in every if name and not name.startswith(counted)]
    drawn = sorted(every, key=lot)
    train = "".join(name + "\n" for name in drawn if lot(name) >= HELD_OUT)
    val = "".join(name + "\n" for name in drawn if lot(name) < HELD_OUT)
    return train, val, f"{len(every):,} names of Unicode 3.2, {fingerprint(every)}, split by hash of the name"


def python():
    """The docstrings of the standard library, split by paragraph and not by file, since it copies paragraphs."""
    paragraphs = docstrings.paragraphs()                     # its words -> the paragraph
    train = "".join(paragraph + "\n\n" for words, paragraph in paragraphs.items() if lot(words) >= HELD_OUT)
    val = "".join(paragraph + "\n\n" for words, paragraph in paragraphs.items() if lot(words) < HELD_OUT)
    about = f"docstrings of Python {sys.version.split()[0]}, {fingerprint(paragraphs.values())}, " \
            f"split by hash of the paragraph"
    return train, val, about


def shakespeare():
    """A million characters of the plays, as Karpathy cut them for char-rnn and nanoGPT."""
    path, = corpora.download("shakespeare", [corpora.SHAKESPEARE], cache_root() / "downloads" / "shakespeare")
    return files(path, "strict")


SOURCES = {"names": names, "python": python, "shakespeare": shakespeare}


def files(data, errors):
    """A text file, or a folder of them. errors="surrogateescape" carries bytes that are no UTF-8 through unharmed."""
    train, val, digest, size = [], [], hashlib.sha256(), 0
    for path in paths_of(data):
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise BadInput(f"cannot read {path}: {error.strerror}") from None
        try:
            text = raw.decode("utf-8", errors)
        except UnicodeDecodeError as error:
            raise BadInput(f"{path} is not UTF-8 text (byte {error.start:,}): save it as UTF-8, leave it out, "
                           f"or use --tokenizer bytes") from None
        if errors == "strict":                               # text: without Windows' line ends and byte order mark
            text = text.removeprefix("\ufeff").replace("\r\n", "\n")
        cut = int(len(text) * (1 - HELD_OUT))
        train.append(text[:cut])
        val.append(text[cut:])
        digest.update(raw)
        size += len(raw)
    about = f"{size:,} bytes, sha256 {digest.hexdigest()[:12]}, split by position"
    return "".join(train), "".join(val), about


def paths_of(data):
    """The file, or the files below the folder in order of name."""
    root = Path(data).expanduser()
    if not data or not os.path.exists(root):                 # unlike root.exists(), never an error of its own
        names = ["toy", "digits", "chat", *SOURCES, *corpora.TABLE]
        near = difflib.get_close_matches(data, names, n=1)
        raise BadInput(f"there is no data {data!r}{f' (did you mean {near[0]!r}?)' if near else ''}: "
                       f"give {', '.join(names)}, or the path of a text file or folder")
    paths = [root] if root.is_file() else sorted(root.rglob("*")) if root.is_dir() else []
    shown = [path for path in paths if not any(part.startswith(".") for part in path.relative_to(root).parts)]
    found = [path for path in shown if path.is_file() and path.stat().st_size]
    if not found:
        raise BadInput(f"{data} holds no text: give a text file that is not empty, or a folder with one in it")
    return found


def size_of(data):
    return sum(path.stat().st_size for path in paths_of(data))


# ---- the cache: one folder per corpus and tokenizer, whole or absent

def cache_folder(data, tokenizer, vocab_size, cache=None):
    """Named by all that decides the tokens. For a file that is its path, size and time: no need to read it."""
    tokens = to_json(tokenizer) if isinstance(tokenizer, tiktoken.Encoding) else \
        [tokenizer, vocab_size if tokenizer == "bpe" else None]
    key = json.dumps([RECIPE, source_of(data), tokens])
    digest = hashlib.sha256(key.encode()).hexdigest()[:12]
    return cache_root(cache) / f"{name_of(data)}-{getattr(tokenizer, 'name', tokenizer)}-{digest}"


def source_of(data):
    if data == "names":
        return "Unicode 3.2"
    if data == "python":
        return [sys.version, sysconfig.get_path("stdlib")]
    if data == "shakespeare":
        return corpora.SHAKESPEARE.sha256
    return [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths_of(data)]


def open_cache(folder, block_size):
    """The corpus in the folder, its tokens memory-mapped; None if it is absent, cut short or garbled."""
    try:
        meta = json.loads((folder / "meta.json").read_text("utf-8"))
        fields = {key: meta[key] for key in ("name", "about", "bytes_per_token")}
        fields["encoding"] = from_json(meta["encoding"])
        for split in ("train", "val"):
            fields[split] = np.memmap(folder / f"{split}.bin", meta["dtype"], "r")                   # (n,)
            if zlib.crc32(fields[split]) != meta["crc32"][split]:
                return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Corpus(**fields, block_size=block_size)           # outside: a block too large is no fault of the cache


def save_cache(folder, corpus):
    """Written beside its place, then renamed: another process sees all of it or nothing, and the last one wins."""
    meta = {"name": corpus.name, "about": corpus.about, "bytes_per_token": corpus.bytes_per_token,
            "encoding": to_json(corpus.encoding), "dtype": str(corpus.train.dtype),
            "crc32": {"train": zlib.crc32(corpus.train), "val": zlib.crc32(corpus.val)}}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            new = Path(temporary) / "new"
            new.mkdir()
            (new / "train.bin").write_bytes(corpus.train)
            (new / "val.bin").write_bytes(corpus.val)
            (new / "meta.json").write_text(json.dumps(meta), "utf-8")
            shutil.rmtree(folder, ignore_errors=True)        # what open_cache refused
            new.replace(folder)
    except OSError as error:                                 # a cache is a convenience: without it, all else works
        if error.errno == errno.ENOSPC:
            raise BadInput(f"no space left for {folder}: free some, or point PALIMPSEST_CACHE elsewhere") from None
