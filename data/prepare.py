"""
From documents to a corpus on the disk: a folder of shards (data/shards.py) beside its vocabulary, whole or absent.

    corpus = load(name, source, layout, key, streams, block_size, tokenizer, vocab_size, root)

streams() gives {"train": documents, ...}, each of them a function that begins to read. It is called, and whatever it
downloads is downloaded, only if the tokens are not there yet. Until all of them are, the folder is called
NAME.unfinished, and another run goes on with it. Processes that want the same corpus wait for the first.

A text begins and ends with marks of the vocabulary, and is filled up with one: with gpt2 all three are <|endoftext|>,
with the words of BERT [CLS], [SEP] and [PAD]; chars, bytes and bpe are given <|endoftext|> behind the rest. A
vocabulary that is there already (a checkpoint's) stays as it is, and goes without if it has none.
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

from data import BadInput, shards, wordpiece
from data.detokenize import RULES
from data.download import make_folder, write_atomic
from data.sharded import Sharded, Split
from data.tokenizer import bpe, byte_level, chars, from_json, named, sizes, to_json
from data.workers import Job

RECIPE = 1                                                   # raise it when the code makes other tokens
SAMPLE = 4_000_000                                           # characters from which a BPE is learnt
END = "<|endoftext|>"
RARE = map(chr, [*range(0x800), *range(0x800, 0xD800, 0x800), 0xE000, *range(0xF000, 0x110000, 0x1000)])
EVERY_BYTE = "".join(RARE)                                   # its UTF-8 has each byte that UTF-8 can have
BROKEN = (zipfile.BadZipFile, tarfile.TarError, LZMAError, ZlibError, EOFError, KeyError, ValueError)


@dataclass(frozen=True)
class Source:
    """One corpus. streams(paths) -> {name: a function that gives its documents}."""
    files: tuple
    streams: object
    about: str                                               # splits and conventions, in the line of every result
    layout: str = "framed"                                   # of data/sharded.py
    ends: bool = False                                       # an end behind each document
    detokenize: str = ""
    tokenizer: str = "gpt2"
    tables: str = ""                                         # the tokens of the papers' tables, if they are others
    splits: dict = field(default_factory=lambda: {"train": "train", "val": "val", "test": "test"})   # -> stream
    held_out: int = 0                                        # documents at the end of the stream "all"
    weight: str = ""                                         # of all files, where it is known in round numbers only


def load(name, source, layout, key, streams, block_size, tokenizer, vocab_size, root, workers=None):
    """-> Sharded. key: what else than the tokenizer decides the tokens. BadInput for what the user can mend."""
    given = isinstance(tokenizer, tiktoken.Encoding)
    kind = tokenizer.name if given else tokenizer
    public = kind in tiktoken.list_encoding_names() and (not given or is_named(tokenizer))
    tokens = kind if public else to_json(tokenizer) if given else [kind, vocab_size if kind == "bpe" else None]
    decides = json.dumps([RECIPE, key, source.ends, source.detokenize, tokens])
    folder = Path(root) / f"{key[0]}-{kind}-{hashlib.sha256(decides.encode()).hexdigest()[:12]}"
    meta = opened(folder, streams, tokenizer, vocab_size, source, workers)
    return assemble(name, meta, folder, source, layout, block_size)


def is_named(encoding):
    """Is it tiktoken's own of that name? Then one folder serves both: a checkpoint's gpt2 is gpt2, but with a [PAD]
    behind it, it is not."""
    try:
        return to_json(named(encoding.name)) == to_json(encoding)
    except BadInput:                                         # its files are not here
        return False


def opened(folder, streams, tokenizer, vocab_size, source, workers):
    """What is known of the tokens in the folder, which are made if they are not there. Processes that want the same
    wait for the first. -> meta"""
    meta = whole(folder)
    if meta:
        return meta
    make_folder(folder.parent)
    lock = FileLock(f"{folder}.lock")
    try:
        held = lock.acquire(timeout=1)
    except Timeout:
        print(f"another process prepares {folder.name}: waiting for it", file=sys.stderr, flush=True)
        held = lock.acquire()
    with held:
        return whole(folder) or prepare(folder, streams, tokenizer, vocab_size, source, workers)


def whole(folder):
    """meta.json, if the folder has all that it tells of."""
    try:
        meta = json.loads((folder / "meta.json").read_text("utf-8"))
        for stream, parts in meta["streams"].items():
            shards.open_stream(folder, stream, parts, meta["dtype"])
        return {key: meta[key] for key in ("encoding", "dtype", "marks", "streams", "bytes")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def prepare(folder, streams, tokenizer, vocab_size, source, workers):
    """Download, tokenise, and name the folder when it is whole. -> meta"""
    print(f"preparing {folder.name}, once ...", file=sys.stderr, flush=True)
    unfinished = folder.with_name(folder.name + ".unfinished")
    if isinstance(tokenizer, str) and tokenizer not in ("chars", "bytes", "bpe"):
        named(tokenizer)                                     # a wrong name should fail before the work, not after
    streams = streams()
    make_folder(unfinished)
    encoding = vocabulary(unfinished, streams, tokenizer, vocab_size, source)
    marks = marks_of(encoding)
    job = Job(to_json(encoding), source.detokenize, marks[1] if marks and source.ends else None)
    meta = {"encoding": job.encoding, "dtype": "uint16" if encoding.n_vocab <= 1 << 16 else "uint32", "marks": marks,
            "streams": {stream: shards.write(unfinished, stream, documents(), job, workers)
                        for stream, documents in streams.items()}}
    for stream, parts in meta["streams"].items():
        if not parts:
            raise BadInput(f"{folder.name}: there is no text to {'train on' if stream == 'train' else 'hold out'}")
    meta["bytes"] = {split: bytes_of(unfinished, meta, source, split) for split in source.splits}
    write_atomic(unfinished / "meta.json", json.dumps(meta))
    shutil.rmtree(folder, ignore_errors=True)                # what `whole` refused
    unfinished.replace(folder)
    return meta


def bytes_of(folder, meta, source, split):
    """The size of a split's text in UTF-8 bytes; of the part of a stream, that of its tokens (of BERT's: no size)."""
    if not source.held_out:
        return sum(part["bytes"] for part in meta["streams"][source.splits[split]])
    size = sizes(from_json(meta["encoding"]))                                              # (n_vocab,)
    ids = cut(folder, meta, source, split).ids
    return sum(int(size[ids[i:i + (1 << 20)]].sum()) for i in range(0, len(ids), 1 << 20))


def cut(folder, meta, source, split):
    """-> Split, mapped from the disk"""
    stream = "all" if source.held_out else source.splits[split]
    ids, ends = shards.open_stream(folder, stream, meta["streams"][stream], meta["dtype"])
    first, last = 0, len(ends)
    if source.held_out:
        middle = max(last - source.held_out, last // 2)
        first, last = (first, middle) if split == "train" else (middle, last)
    places = shards.bounds(ids, ends, np.array([first, last - 1]))                         # (2,), (2,)
    return Split(ids.cut(int(places[0][0]), int(places[1][1])), ids, ends, range(first, last))


def vocabulary(folder, streams, tokenizer, vocab_size, source):
    """The Encoding; one that is learnt from the text is kept, so that a run that goes on has the same."""
    if isinstance(tokenizer, tiktoken.Encoding):
        return tokenizer
    if tokenizer not in ("chars", "bpe"):
        return with_end(byte_level(), source) if tokenizer == "bytes" else named(tokenizer)
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
        parts, n = [], 0
        for text in next(iter(streams.values()))():          # the beginning of each document, until it is enough
            parts.append(tidy(text)[:1 << 16])
            n += len(parts[-1])
            if n > SAMPLE:
                break
        encoding = bpe("".join(parts), vocab_size, alphabet=EVERY_BYTE)
    encoding = with_end(encoding, source)
    write_atomic(path, to_json(encoding))
    return encoding


def with_end(encoding, source):
    """The vocabulary with an end behind it, for corpora that have ends."""
    if source.layout == "plain":
        return encoding
    return tiktoken.Encoding(encoding.name, pat_str=encoding._pat_str, mergeable_ranks=encoding._mergeable_ranks,
                             special_tokens={END: encoding.n_vocab})


def marks_of(encoding):
    """-> [begin, end, fill]: the ids that stand before, behind and after the end of a text; None if it has none."""
    if END in encoding._special_tokens:
        return [encoding._special_tokens[END]] * 3
    marks = [encoding._mergeable_ranks.get(mark) for mark in (b" [CLS]", b" [SEP]", b" [PAD]")]
    return None if None in marks else marks


def assemble(name, meta, folder, source, layout, block_size):
    """The corpus, from what is on the disk, and the line that says what it is."""
    encoding, marks = from_json(meta["encoding"]), meta["marks"]
    splits = {split: cut(folder, meta, source, split) for split in source.splits}
    without = marks is None and source.layout != "plain"
    layout = "plain" if without else layout
    how = {"plain": "texts are windows across documents",
           "framed": "texts are windows between two ends, which are scored",
           "rows": "a text is one document, filled up with marks that are noised but not scored"}[layout]
    how += "; no ends, this vocabulary has none" if without else "; an end behind each document" * source.ends
    tables = source.tables or source.tokenizer
    foreign = f"; the tables have {tables}: figures in other tokens are not to be compared with them"
    sizes = " and ".join(f"{len(part.ids):,} {split}" for split, part in splits.items())
    about = f"{name}: {source.about}; {how}; {sizes} tokens, {encoding.n_vocab:,} symbols ({encoding.name})"
    about += foreign * (not encoding.name.startswith(tables) and source.files != ())
    size = meta["bytes"]["val"]
    if source.held_out and encoding.name == wordpiece.NAME:
        size = math.nan                                      # nor do its tokens tell: each word begins with a blank
    return Sharded(name, about, encoding, splits, layout, marks, size, block_size)


def guarded(documents, paths):
    """The documents; an archive that cannot be read is the user's to replace."""
    try:
        yield from documents()
    except BROKEN as fault:
        if isinstance(fault, BadInput):
            raise
        names = f"{paths[0]}{f' or one of the {len(paths) - 1} files beside it' if len(paths) > 1 else ''}"
        raise BadInput(f"{names} cannot be read ({type(fault).__name__}: {fault}): delete it, then run again to "
                       f"download it anew") from None
