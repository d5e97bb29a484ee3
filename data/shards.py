"""
Corpora of any size: tokens on disk in shards, written once, memory-mapped by any number of
processes.

    write_shards(folder, "train", documents, job)               # an iterator of texts
    ids, ends = open_stream(folder, "train", parts, dtype)      # read like one array each

A shard is complete or absent: it is written under another name, synced, renamed, and then entered
in train.json. A run that was stopped continues behind the last shard. The bytes do not depend on
how often it stopped or on the number of workers. Memory holds some megabytes of text per worker,
whatever the size of the corpus.

    train-00000.bin     ids, uint16 or uint32 by vocabulary
    train-00000.ends    uint32, where each document ends within its shard
    train.json          per shard: tokens, documents, bytes of text, crc32; whether these are all

How texts are cut from the tokens is decided when they are read (data/shard_dataset.py).
"""
import contextlib
import errno
import json
import mmap
import os
import zlib
from itertools import islice

import numpy as np
from tqdm import tqdm

from data.files import write_file
from data.reading import parse_json
from data.tokenize_workers import tokenize
from flags import UserError

SHARD_TOKENS = 100_000_000                       # 200 MB in 16 bits
BATCH_CHARACTERS = 1 << 20                       # sent to a worker at once


# ---- writing

def batch_documents(documents, size=BATCH_CHARACTERS):
    """Documents in lists of about `size` characters; -> lists of texts"""
    batch, n = [], 0
    for text in documents:
        batch.append(text)
        n += len(text)
        if n >= size or len(batch) >= 10_000:
            yield batch
            batch, n = [], 0
    if batch:
        yield batch


def write_shards(folder, stream, documents, job, workers=None, shard=SHARD_TOKENS,
                 batch=BATCH_CHARACTERS):
    """Write the tokens of the documents, an iterator of texts.

    -> [{"tokens", "documents", "bytes", "crc32"}]. Shards of an earlier run are kept. UserError if
    the disk is full; complete shards are kept then, too.
    """
    done = read_progress(folder, stream)
    if done["whole"]:
        return done["shards"]
    known = sum(part["documents"] for part in done["shards"])
    rest = islice(documents, known, None)
    results = tokenize(batch_documents(rest, batch), job, workers)
    bar = tqdm(unit=" tokens", unit_scale=True, desc=f"tokenizing {stream}", disable=None,
               leave=False, initial=sum(part["tokens"] for part in done["shards"]))
    with bar:
        try:
            number = len(done["shards"])
            while made := write_shard(folder, f"{stream}-{number:05d}", results, shard, bar):
                done["shards"].append(made)
                save_progress(folder, stream, done)
                number += 1
            done["whole"] = True
            save_progress(folder, stream, done)
        except OSError as fault:
            if fault.errno != errno.ENOSPC:
                raise
            raise UserError(f"no space left in {folder}: free some, then run again; "
                            f"{len(done['shards'])} finished shards of {stream} are kept") from None
        finally:
            results.close()  # ends the workers
    return done["shards"]


def write_shard(folder, name, results, shard, bar):
    """Write one shard from as many batches as fill it. -> its row in the json, None if none is
    left"""
    tokens = documents = size = crc = 0
    ids_part, ends_part = (folder / f"{name}.{kind}.part" for kind in ("bin", "ends"))
    with open(ids_part, "wb") as ids_out, open(ends_part, "wb") as ends_out:
        for ids, lengths, n_bytes in results:
            ids_out.write(ids)
            ends_out.write((tokens + lengths.cumsum(dtype=np.uint64)).astype(np.uint32))
            crc, size = zlib.crc32(ids, crc), size + n_bytes
            tokens, documents = tokens + len(ids), documents + len(lengths)
            bar.update(len(ids))
            if tokens >= shard:
                break
        for out in (ids_out, ends_out):
            out.flush()
            os.fsync(out.fileno())
    for part in (ids_part, ends_part):
        part.replace(part.with_suffix("")) if tokens else part.unlink()
    row = {"tokens": tokens, "documents": documents, "bytes": size, "crc32": crc}
    return row if tokens else None


def save_progress(folder, stream, done):
    write_file(folder / f"{stream}.json", json.dumps(done))


def read_progress(folder, stream):
    """The shards of an earlier run that are on disk undamaged. -> {"shards": [...], "whole":
    bool}"""
    try:
        done = parse_json((folder / f"{stream}.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {"shards": [], "whole": False}
    for i, part in enumerate(done["shards"]):
        try:
            ids, ends = (np.fromfile(folder / f"{stream}-{i:05d}.{kind}", np.uint8)
                         for kind in ("bin", "ends"))
            good = zlib.crc32(ids) == part["crc32"] and len(ends) == 4 * part["documents"]
        except OSError:
            good = False
        if not good:
            return {"shards": done["shards"][:i], "whole": False}
    return done


# ---- reading

class Shards:
    """Several arrays of ids, read like one: length, slices, and arrays of indices."""

    def __init__(self, arrays):
        self.arrays, self.dtype = arrays, arrays[0].dtype
        self.starts = np.cumsum([0, *map(len, arrays)])  # (shards + 1,)

    def __len__(self):
        return int(self.starts[-1])

    def __getitem__(self, where):
        """where: a slice without a step, or indices of any shape -> ids of that shape"""
        if isinstance(where, slice):
            first, last, _ = where.indices(len(self))
            parts = [array[max(first - start, 0):max(last - start, 0)]
                     for array, start in zip(self.arrays, self.starts)]
            return np.concatenate(parts)  # (last - first,)
        where = np.asarray(where)
        which = np.searchsorted(self.starts, where, "right") - 1  # the shard of each
        ids = np.empty(where.shape, self.dtype)
        for i in np.unique(which):
            ids[which == i] = self.arrays[i][where[which == i] - self.starts[i]]
        return ids

    def windows(self, start, width):
        """The `width` ids from each of `start` (n,) on, copied in whole pieces. -> (n, width)"""
        rows = np.empty((len(start), width), self.dtype)
        which = np.searchsorted(self.starts, start, "right") - 1  # (n,) the shard of each
        for row, first, i in zip(rows, start.tolist(), which.tolist()):
            at = first - int(self.starts[i])
            piece = self.arrays[i][at:at + width]  # (width,), or fewer at the end of a shard
            row[:] = piece if len(piece) == width else self[first:first + width]
        return rows

    def view(self, first, last):
        """The Shards of a slice, still memory-mapped."""
        parts = [array[max(first - start, 0):max(last - start, 0)]
                 for array, start in zip(self.arrays, self.starts.tolist())]
        return Shards([part for part in parts if len(part)] or parts[:1])


def map_file(path, dtype):
    """A file as an array, read where it is looked at. Texts lie anywhere: a system that reads ahead
    would read 128 kB for each of 2 kB."""
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with contextlib.suppress(AttributeError):  # not on Windows
        mapped.madvise(mmap.MADV_RANDOM)
    return np.frombuffer(mapped, dtype)  # (n,)


def open_stream(folder, stream, parts, dtype):
    """-> the Shards of the ids, and those of where each document ends within its shard, both
    memory- mapped. OSError or ValueError if a file is missing or has the wrong size."""
    arrays = {}
    for kind, of, count in (("bin", dtype, "tokens"), ("ends", np.uint32, "documents")):
        paths = [folder / f"{stream}-{i:05d}.{kind}" for i in range(len(parts))]
        arrays[kind] = [map_file(path, of) for path in paths]
        if [len(array) for array in arrays[kind]] != [part[count] for part in parts]:
            raise ValueError(f"{folder} is damaged")
    return Shards(arrays["bin"]), Shards(arrays["ends"])


def document_bounds(ids, ends, rows):
    """Where the documents number `rows` (n,) stand among all tokens. -> first (n,), behind the last
    (n,)
    """
    which = np.searchsorted(ends.starts, rows, "right") - 1  # (n,) the shard of each
    last = ends[rows].astype(np.int64) + ids.starts[which]  # (n,)
    before = ends[np.maximum(rows - 1, 0)].astype(np.int64) + ids.starts[which]  # (n,)
    first = np.where(rows == ends.starts[which], ids.starts[which], before)  # (n,)
    return first, last
