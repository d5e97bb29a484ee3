"""
A text that is tokenized in one go: two splits of ids, cached on disk and memory-mapped.

    corpus = load_data("names", block_size=64)
    x = corpus.batch("train", n=32)                     # (n, block_size) ids; corpus.text(x[0])

Where the text comes from is told by subclasses: data/texts.py, data/chat.py. Text above 64 MB is
not read in one go but written to shards (data/build_shards.py). The tokens are kept in data/cache,
or in $PALIMPSEST_CACHE; you can delete that folder at any time.
"""
import errno
import hashlib
import json
import re
import shutil
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import tiktoken
import torch

from data.base import Dataset
from data.download import cache_root
from data.reading import parse_json
from data.tokenizer import (
    ASCII,
    bpe,
    byte_level,
    chars,
    encode,
    from_json,
    has_subword_bytes,
    load_encoding,
    to_json,
)
from flags import UserError

RECIPE = 1                     # part of every cache key: raise it when the code makes other tokens
BPE_SAMPLE = 4_000_000         # characters that BPE is trained on: more would change few merges


class Corpus(Dataset):
    """The ids of a text in two splits. Texts are windows of it."""

    def __init__(self, name, about, encoding, train, val, bytes_per_token, block_size):
        self.name, self.about, self.encoding = name, about, encoding
        self.train, self.val = train, val  # (n,), (m,) ids
        self.bytes_per_token, self.block_size = bytes_per_token, block_size
        self.counts_bytes = has_subword_bytes(encoding)
        for split in self.splits:
            n = len(self.ids(split))
            if n < block_size:
                raise UserError(f"{name} has {n:,} {split} tokens, fewer than one block of "
                                f"{block_size:,}: use a longer text or a smaller --block_size")

    def examples(self, split, n, generator=None):
        """n random windows."""
        ids = self.ids(split)  # (m,)
        last = len(ids) - self.block_size
        start = torch.randint(last + 1, (n, 1), generator=generator)  # (n, 1)
        window = start + torch.arange(self.block_size)  # (n, L)
        return torch.from_numpy(ids[window.numpy()].astype(np.int64)), None, None  # (n, L)

    def example_windows(self, split="val", most=None):
        """The split cut into consecutive windows. Ids that do not fill the last one are dropped."""
        ids, L = self.ids(split), self.block_size
        blocks = ids[:len(ids) // L * L].reshape(-1, L)  # (m, L)
        if most and most < len(blocks):
            blocks = blocks[np.linspace(0, len(blocks) - 1, most).astype(int)]  # (most, L)
        return torch.from_numpy(blocks.astype(np.int64)), None, None  # (m, L)


class CachedCorpus(Corpus):
    """A corpus whose tokens are kept on disk. A row of the table says where its text comes from."""
    default_tokenizer = "bpe"

    @classmethod
    def name_of(cls, data):
        """The name of the data set, one word."""
        return data

    @classmethod
    def key_of(cls, data):
        """What decides the text: a part of the cache key, so a value of JSON."""
        raise NotImplementedError

    @classmethod
    def read(cls, data, errors):
        """-> the train text, the val text, a few words about them. errors: of decoding UTF-8"""
        raise NotImplementedError

    @classmethod
    def load(cls, data, block_size, tokenizer="auto", vocab_size=1024, cache=None):
        tokenizer = cls.default_tokenizer if tokenizer == "auto" else tokenizer
        folder = cls.cache_folder(data, tokenizer, vocab_size, cache)
        fields = open_cache(folder)
        if fields is None:
            print(f"preparing {data}, once ...", file=sys.stderr, flush=True)
            corpus = cls(**cls.prepare(data, tokenizer, vocab_size), block_size=block_size)
            save_cache(folder, corpus)
            fields = open_cache(folder)
            if fields is None:  # the folder cannot be written: the corpus stays in memory
                return corpus
        return cls(**fields, block_size=block_size)

    @classmethod
    def prepare(cls, data, tokenizer, vocab_size):
        """Read the text and tokenize it. -> the arguments of __init__ but block_size"""
        kind = tokenizer.name if isinstance(tokenizer, tiktoken.Encoding) else tokenizer
        if isinstance(tokenizer, str) and tokenizer not in ("chars", "bytes", "bpe"):
            load_encoding(tokenizer)  # a wrong name should fail before the work
        train, val, about = cls.read(data, "surrogateescape" if kind == "bytes" else "strict")
        encoding = learn_vocabulary(tokenizer, vocab_size, train, val)
        train_ids, val_ids = encode_long(encoding, train), encode_long(encoding, val)
        name = cls.name_of(data)
        about = f"{name}: {about}; {len(train_ids):,} train and {len(val_ids):,} val tokens, " \
                f"{encoding.n_vocab:,} symbols ({kind})"
        size = len(val.encode("utf-8", "surrogateescape")) / max(len(val_ids), 1)
        return dict(name=name, about=about, encoding=encoding, train=train_ids, val=val_ids,
                    bytes_per_token=size)

    @classmethod
    def cache_folder(cls, data, tokenizer, vocab_size, cache=None):
        """Its name depends on everything that decides the tokens."""
        given = isinstance(tokenizer, tiktoken.Encoding)
        kind = tokenizer.name if given else tokenizer
        tokens = to_json(tokenizer) if given else [kind, vocab_size if kind == "bpe" else None]
        key = json.dumps([RECIPE, cls.key_of(data), tokens])
        digest = hashlib.sha256(key.encode()).hexdigest()[:12]
        return cache_root(cache) / f"{cls.name_of(data)}-{kind}-{digest}"


# ---- tokens

def learn_vocabulary(tokenizer, vocab_size, train, val):
    """The Encoding. The symbols of val belong to it, so that encoding val never fails; merges are
    learned from train alone."""
    symbols = set(train) | set(val)
    if isinstance(tokenizer, tiktoken.Encoding):
        return tokenizer
    if tokenizer == "chars":
        return chars(symbols)
    if tokenizer == "bpe":
        return bpe(excerpt(train), vocab_size, alphabet="".join(symbols) + ASCII)
    return byte_level() if tokenizer == "bytes" else load_encoding(tokenizer)


def excerpt(text, slices=64):
    """The text or, if it is long, evenly spaced slices of it."""
    if len(text) <= BPE_SAMPLE:
        return text
    step, size = len(text) // slices, BPE_SAMPLE // slices
    return "".join(text[i * step:i * step + size] for i in range(slices))


def encode_long(encoding, text, size=1 << 20):
    """The ids of a long text, encoded about `size` characters at a time to save memory. -> (n,)

    The text is cut before a single space where there is one. BPE starts a new piece there anyway,
    so the tokens are those of the whole text.
    """
    single_space = re.compile(r"(?<=\S) (?=\S)")
    ids, start = bytearray(), 0
    while start < len(text):
        cut = single_space.search(text, start + size, start + 2 * size)
        end = cut.start() if cut else start + size
        ids += encode(encoding, text[start:end]).tobytes()
        start = end
    return np.frombuffer(ids, encode(encoding, "").dtype)  # (n,)


# ---- the cache: one folder per corpus and tokenizer, complete or absent

def open_cache(folder):
    """The arguments of Corpus but block_size, its ids memory-mapped. None if the folder is missing,
    incomplete or damaged."""
    try:
        meta = parse_json((folder / "meta.json").read_text("utf-8"))
        fields = {key: meta[key] for key in ("name", "about", "bytes_per_token")}
        fields["encoding"] = from_json(meta["encoding"])
        for split in ("train", "val"):
            fields[split] = np.memmap(folder / f"{split}.bin", meta["dtype"], "r")  # (n,)
            if zlib.crc32(fields[split]) != meta["crc32"][split]:
                return None
        return fields
    except (OSError, ValueError, KeyError, TypeError):
        return None


def save_cache(folder, corpus):
    """Write a temporary folder, then rename it: other processes see a complete folder or none."""
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
            shutil.rmtree(folder, ignore_errors=True)  # open_cache has rejected it
            new.replace(folder)
    except OSError as error:  # everything works without a cache, but a full disk needs attention
        if error.errno == errno.ENOSPC:
            raise UserError(f"no space left for {folder}: free some, or set PALIMPSEST_CACHE to "
                            f"another folder") from None
