"""
Corpora of any size: tokens on disk in shards, written once, read through memory maps by any number of processes.

    write(folder, "train", documents, job)              documents, an iterator of texts -> train-00000.bin, ...
    ids, ends = open_stream(folder, "train", parts, dtype)      the shards, read like one array

A shard is whole or absent: written beside its place, synced, renamed, then entered in train.json. A run that was
stopped goes on behind the last shard. The bytes are the same however often it stopped and however many workers there
are. In memory are some megabytes of text for each worker, whatever the size of the corpus.

    train-00000.bin     ids, uint16 or uint32 by vocabulary
    train-00000.ends    uint32, where each document ends within its shard
    train.json          of each shard tokens, documents, bytes of text, and crc32; and whether these are all

How texts are cut from the tokens is decided when they are read (data/sharded.py).
"""
import errno
import json
import os
import zlib
from itertools import islice

import numpy as np
from tqdm import tqdm

from data import BadInput
from data.download import write_atomic
from data.workers import tokenised

SHARD = 100_000_000                                          # tokens: 200 MB in 16 bits
BATCH = 1 << 20                                              # characters that a worker gets at once


# ---- writing

def batches(documents, size=BATCH):
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


def write(folder, stream, documents, job, workers=None, shard=SHARD, batch=BATCH):
    """The tokens of the documents (an iterator of texts), in shards. -> [{"tokens", "documents", "bytes", "crc32"}]

    What a run before this one has finished is kept. BadInput if the disk is full: finished shards stay then too.
    """
    done = finished(folder, stream)
    if done["whole"]:
        return done["shards"]
    known = sum(part["documents"] for part in done["shards"])
    rest = islice(documents, known, None)
    results = tokenised(batches(rest, batch), job, workers)
    bar = tqdm(unit=" tokens", unit_scale=True, desc=f"tokenising {stream}", disable=None, leave=False,
               initial=sum(part["tokens"] for part in done["shards"]))
    with bar:
        try:
            while made := write_shard(folder, f"{stream}-{len(done['shards']):05d}", results, shard, bar):
                done["shards"].append(made)
                save(folder, stream, done)
            done["whole"] = True
            save(folder, stream, done)
        except OSError as fault:
            if fault.errno != errno.ENOSPC:
                raise
            raise BadInput(f"no space left in {folder}: free some, then run again; {len(done['shards'])} finished "
                           f"shards of {stream} are kept") from None
        finally:
            results.close()                                  # ends the workers, now
    return done["shards"]


def write_shard(folder, name, results, shard, bar):
    """One shard, from as many batches as fill it. -> what is known of it, or None if nothing is left"""
    tokens = documents = size = crc = 0
    with open(folder / f"{name}.bin.part", "wb") as ids_out, open(folder / f"{name}.ends.part", "wb") as ends_out:
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
    for kind in ("bin", "ends"):
        part = folder / f"{name}.{kind}.part"
        part.replace(folder / f"{name}.{kind}") if tokens else part.unlink()
    return {"tokens": tokens, "documents": documents, "bytes": size, "crc32": crc} if tokens else None


def save(folder, stream, done):
    write_atomic(folder / f"{stream}.json", json.dumps(done))


def finished(folder, stream):
    """What an earlier run finished and the disk still has, bit for bit. -> {"shards": [...], "whole": bool}"""
    try:
        done = json.loads((folder / f"{stream}.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {"shards": [], "whole": False}
    for i, part in enumerate(done["shards"]):
        try:
            ids, ends = (np.fromfile(folder / f"{stream}-{i:05d}.{kind}", np.uint8) for kind in ("bin", "ends"))
            good = zlib.crc32(ids) == part["crc32"] and len(ends) == 4 * part["documents"]
        except OSError:
            good = False
        if not good:
            return {"shards": done["shards"][:i], "whole": False}
    return done


# ---- reading

class Shards:
    """Several arrays of ids, read like one: len, slices, and arrays of places."""

    def __init__(self, arrays):
        self.arrays, self.dtype = arrays, arrays[0].dtype
        self.starts = np.cumsum([0, *map(len, arrays)])                                    # (shards + 1,)

    def __len__(self):
        return int(self.starts[-1])

    def __getitem__(self, where):
        """where: a slice without a step, or places of any shape -> ids of that shape"""
        if isinstance(where, slice):
            first, last, _ = where.indices(len(self))
            parts = [array[max(first - start, 0):max(last - start, 0)]
                     for array, start in zip(self.arrays, self.starts)]
            return np.concatenate(parts)                                                   # (last - first,)
        where = np.asarray(where)
        which = np.searchsorted(self.starts, where, "right") - 1                           # the shard of each
        ids = np.empty(where.shape, self.dtype)
        for i in np.unique(which):
            ids[which == i] = self.arrays[i][where[which == i] - self.starts[i]]
        return ids

    def cut(self, first, last):
        """The same of a part, mapped, not read."""
        bounds = [(max(first - start, 0), max(last - start, 0)) for start in self.starts[:-1].tolist()]
        parts = [array[a:b] for array, (a, b) in zip(self.arrays, bounds)]
        return Shards([part for part in parts if len(part)] or parts[:1])


def open_stream(folder, stream, parts, dtype):
    """-> Shards of the ids; Shards of where each document ends within its shard, mapped both. OSError or ValueError if
    a file is not there or has another size than it should."""
    arrays = {}
    for kind, of, count in (("bin", dtype, "tokens"), ("ends", np.uint32, "documents")):
        arrays[kind] = [np.memmap(folder / f"{stream}-{i:05d}.{kind}", of, "r") for i in range(len(parts))]
        if [len(array) for array in arrays[kind]] != [part[count] for part in parts]:
            raise ValueError(f"{folder} is damaged")
    return Shards(arrays["bin"]), Shards(arrays["ends"])


def bounds(ids, ends, rows):
    """Where the documents number `rows` (n,) stand among all tokens. -> first (n,), behind the last (n,)"""
    which = np.searchsorted(ends.starts, rows, "right") - 1                                # (n,) the shard of each
    last = ends[rows].astype(np.int64) + ids.starts[which]                                 # (n,)
    before = ends[np.maximum(rows - 1, 0)].astype(np.int64) + ids.starts[which]            # (n,) of the same shard, or
    first = np.where(rows == ends.starts[which], ids.starts[which], before)                # its first document
    return first, last
