"""
From documents to a corpus on disk: a folder of shards (data/shards.py) and its vocabulary.

    data = load_shards(name, source, layout, key, streams, block_size, tokenizer, vocab_size, root)

streams() returns {"train": documents, ...}, each a function that starts to read. It is called, and
downloads what it needs, only if the tokens are not there yet. Until they are complete, the folder
is called NAME.unfinished, and another run continues it. Processes that want the same corpus wait
for the first.

A text begins with a mark of the vocabulary, ends with one, and is padded with one. For gpt2 all
three are <|endoftext|>; for the words of BERT they are [CLS], [SEP] and [PAD]; chars, bytes and bpe
get <|endoftext|> behind their other tokens. The vocabulary of a checkpoint is not changed: if it
has no marks, texts have none.
"""
import hashlib
import json
import math
import shutil
import sys
import tarfile
import zipfile
from dataclasses import dataclass, field
from lzma import LZMAError
from pathlib import Path
from zlib import error as ZlibError

import numpy as np
import tiktoken
from filelock import FileLock, Timeout

from data import shards, wordpiece
from data.detokenize import RULES
from data.download import make_folder
from data.files import write_file
from data.reading import parse_json
from data.shard_dataset import Sharded, Split
from data.tokenize_workers import Job
from data.tokenizer import (
    END_OF_TEXT,
    bpe,
    byte_level,
    chars,
    from_json,
    load_encoding,
    to_json,
    token_sizes,
)
from flags import UserError

RECIPE = 1                                       # raise it when the code makes other tokens
SAMPLE = 4_000_000                               # characters that BPE is trained on
RARE = [*range(0x800), *range(0x800, 0xD800, 0x800), 0xE000, *range(0xF000, 0x110000, 0x1000)]
EVERY_BYTE = "".join(map(chr, RARE))  # its UTF-8 contains each byte that UTF-8 can contain
BROKEN = (zipfile.BadZipFile, tarfile.TarError, LZMAError, ZlibError, EOFError, KeyError,
          ValueError)  # what readers raise on a damaged archive
CONVENTIONS = {  # of the layouts, in the line that describes a corpus
    "plain": "texts are windows across documents",
    "framed": "texts are windows between two ends, which are scored",
    "rows": "a text is one document, padded with marks that are noised but not scored"}


@dataclass(frozen=True)
class Source:
    """One corpus. streams(paths) -> {name: a function that returns its documents}."""
    files: tuple
    streams: object
    about: str  # splits and conventions, for the line of every result
    layout: str = "framed"  # of data/shard_dataset.py
    ends: bool = False  # an end behind each document
    detokenize: str = ""  # rules of data/detokenize.py
    tokenizer: str = "gpt2"
    tables: str = ""  # the tokens of the papers' tables, if others
    splits: dict = field(default_factory=lambda: {"train": "train", "val": "val", "test": "test"})
    held_out: int = 0  # documents at the end of the stream "all"
    weight: str = ""  # of all files, if known in round numbers only


def load_shards(name, source, layout, key, streams, block_size, tokenizer, vocab_size, root,
                workers=None):
    """-> Sharded. key: what decides the tokens, besides the tokenizer."""
    given = isinstance(tokenizer, tiktoken.Encoding)
    kind = tokenizer.name if given else tokenizer
    public = kind in tiktoken.list_encoding_names() and (not given or is_public(tokenizer))
    own = to_json(tokenizer) if given else [kind, vocab_size if kind == "bpe" else None]
    recipe = json.dumps([RECIPE, key, source.ends, source.detokenize, kind if public else own])
    digest = hashlib.sha256(recipe.encode()).hexdigest()[:12]
    folder = Path(root) / f"{key[0]}-{kind}-{digest}"
    meta = open_or_build(folder, streams, tokenizer, vocab_size, source, workers)
    return make_dataset(name, meta, folder, source, layout, block_size)


def is_public(encoding):
    """Is it tiktoken's encoding of that name? Then one folder serves both: a checkpoint's gpt2 is
    gpt2, but not with a [PAD] behind it."""
    try:
        return to_json(load_encoding(encoding.name)) == to_json(encoding)
    except UserError:  # its files are not here
        return False


# ---- building

def open_or_build(folder, streams, tokenizer, vocab_size, source, workers):
    """The meta data of the tokens in the folder, built if they are not there. -> dict"""
    meta = read_meta(folder)
    if meta:
        return meta
    make_folder(folder.parent)
    lock = FileLock(f"{folder}.lock")
    try:
        held = lock.acquire(timeout=1)
    except Timeout:
        print(f"another process prepares {folder.name}: waiting", file=sys.stderr, flush=True)
        held = lock.acquire()
    with held:
        meta = read_meta(folder)
        return meta or build(folder, streams, tokenizer, vocab_size, source, workers)


def read_meta(folder):
    """meta.json, or None if the folder lacks something that it names."""
    try:
        meta = parse_json((folder / "meta.json").read_text("utf-8"))
        for stream, parts in meta["streams"].items():
            shards.open_stream(folder, stream, parts, meta["dtype"])
        return {key: meta[key] for key in ("encoding", "dtype", "marks", "streams", "bytes")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def build(folder, streams, tokenizer, vocab_size, source, workers):
    """Download, tokenize, and rename the folder when it is complete. -> its meta data"""
    print(f"preparing {folder.name}, once ...", file=sys.stderr, flush=True)
    unfinished = folder.with_name(folder.name + ".unfinished")
    if isinstance(tokenizer, str) and tokenizer not in ("chars", "bytes", "bpe"):
        load_encoding(tokenizer)  # a wrong name should fail before the work
    streams = streams()
    make_folder(unfinished)
    encoding = load_or_learn_vocabulary(unfinished, streams, tokenizer, vocab_size, source)
    marks = find_marks(encoding)
    job = Job(to_json(encoding), source.detokenize, marks[1] if marks and source.ends else None)
    dtype = "uint16" if encoding.n_vocab <= 1 << 16 else "uint32"
    made = {stream: shards.write_shards(unfinished, stream, documents(), job, workers)
            for stream, documents in streams.items()}
    for stream, parts in made.items():
        if not parts:
            purpose = "train on" if stream == "train" else "hold out"
            raise UserError(f"{folder.name}: there is no text to {purpose}")
    meta = {"encoding": job.encoding, "dtype": dtype, "marks": marks, "streams": made}
    meta["bytes"] = {split: count_bytes(unfinished, meta, source, split) for split in source.splits}
    write_file(unfinished / "meta.json", json.dumps(meta))
    shutil.rmtree(folder, ignore_errors=True)  # read_meta has rejected it
    unfinished.replace(folder)
    return meta


def count_bytes(folder, meta, source, split):
    """The size of a split's text in UTF-8 bytes. A part of a stream is measured by its tokens."""
    if not source.held_out:
        return sum(part["bytes"] for part in meta["streams"][source.splits[split]])
    size = token_sizes(from_json(meta["encoding"]))  # (n_vocab,)
    ids, step = open_split(folder, meta, source, split).ids, 1 << 20
    return sum(int(size[ids[i:i + step]].sum()) for i in range(0, len(ids), step))


def open_split(folder, meta, source, split):
    """-> Split, memory-mapped"""
    stream = "all" if source.held_out else source.splits[split]
    ids, ends = shards.open_stream(folder, stream, meta["streams"][stream], meta["dtype"])
    first, last = 0, len(ends)
    if source.held_out:
        middle = max(last - source.held_out, last // 2)
        first, last = (first, middle) if split == "train" else (middle, last)
    begin, end = shards.document_bounds(ids, ends, np.array([first, last - 1]))  # (2,), (2,)
    return Split(ids.view(int(begin[0]), int(end[1])), ids, ends, range(first, last))


# ---- the vocabulary

def load_or_learn_vocabulary(folder, streams, tokenizer, vocab_size, source):
    """The Encoding. One that is learned from the text is saved at once, so that a run that
    continues has the same."""
    if isinstance(tokenizer, tiktoken.Encoding):
        return tokenizer
    if tokenizer not in ("chars", "bpe"):
        return add_end(byte_level(), source) if tokenizer == "bytes" else load_encoding(tokenizer)
    path = folder / "vocabulary.json"
    if path.exists():
        return from_json(path.read_text("utf-8"))
    tidy = RULES.get(source.detokenize, str)
    if tokenizer == "chars":
        symbols = set()
        for documents in streams.values():
            for text in documents():
                symbols.update(tidy(text))
        encoding = chars(symbols)
    else:
        encoding = bpe(read_sample(next(iter(streams.values()))(), tidy), vocab_size, EVERY_BYTE)
    encoding = add_end(encoding, source)
    write_file(path, to_json(encoding))
    return encoding


def read_sample(documents, tidy):
    """The beginning of each document, until they are SAMPLE characters."""
    parts, n = [], 0
    for text in documents:
        parts.append(tidy(text)[:1 << 16])
        n += len(parts[-1])
        if n > SAMPLE:
            break
    return "".join(parts)


def add_end(encoding, source):
    """The vocabulary with <|endoftext|> behind it, for corpora whose texts have marks."""
    if source.layout == "plain":
        return encoding
    return tiktoken.Encoding(encoding.name, pat_str=encoding._pat_str,
                             mergeable_ranks=encoding._mergeable_ranks,
                             special_tokens={END_OF_TEXT: encoding.n_vocab})


def find_marks(encoding):
    """-> [begin, end, fill]: the ids before, behind and after the end of a text; None if it has
    none.
    """
    if END_OF_TEXT in encoding._special_tokens:
        return [encoding._special_tokens[END_OF_TEXT]] * 3
    marks = [encoding._mergeable_ranks.get(mark) for mark in (b" [CLS]", b" [SEP]", b" [PAD]")]
    return None if None in marks else marks


# ---- the data set

def make_dataset(name, meta, folder, source, layout, block_size):
    """-> Sharded, with the line that describes it"""
    encoding, marks = from_json(meta["encoding"]), meta["marks"]
    parts = {split: open_split(folder, meta, source, split) for split in source.splits}
    lacks_marks = marks is None and source.layout != "plain"
    layout = "plain" if lacks_marks else layout
    how = CONVENTIONS[layout]
    how += "; no ends, this vocabulary has none" if lacks_marks else \
        "; an end behind each document" * source.ends
    sizes = " and ".join(f"{len(part.ids):,} {split}" for split, part in parts.items())
    about = f"{name}: {source.about}; {how}; {sizes} tokens, {encoding.n_vocab:,} symbols " \
            f"({encoding.name})"
    tables = source.tables or source.tokenizer
    if source.files and not encoding.name.startswith(tables):
        about += f"; the tables have {tables}: do not compare figures in other tokens with them"
    size = meta["bytes"]["val"]
    if source.held_out and encoding.name == wordpiece.NAME:
        size = math.nan  # BERT's words all begin with a space: their sizes do not count
    data = Sharded(name, about, encoding, parts, layout, marks, size, block_size)
    what = json.dumps([meta["streams"], source.splits, source.held_out], sort_keys=True)
    data.fingerprint = hashlib.sha256(what.encode()).hexdigest()  # of the checksums of all shards
    return data


def explain_broken(documents, paths):
    """The documents. UserError names an archive that cannot be read."""
    try:
        yield from documents()
    except BROKEN as fault:
        if isinstance(fault, UserError):
            raise
        others = f" or one of the {len(paths) - 1} files beside it" if len(paths) > 1 else ""
        raise UserError(f"{paths[0]}{others} cannot be read ({type(fault).__name__}: {fault}): "
                        f"delete it, then run again to download it") from None
