"""
Texts from shards (data/shards.py): the conventions of the field, and an order in which no text comes twice.

    corpus = Sharded(name, about, encoding, splits, "framed", marks, size, block_size=1024)
    x, _, _ = corpus.turn(number, 32, seed)             # the micro-batch `number` of a run -> (32, 1024)

    plain    windows of L tokens, across documents
    framed   windows of L - 2 tokens between two marks, [begin] ... [end], all L scored (MDLM, arXiv:2406.07524)
    rows     a document each: [begin] document [end] [fill] ... up to L; noised as a whole, scored up to [end]

Text i of an epoch stands at place p(i), p a permutation that costs no memory, another one in each epoch. Which i a
micro-batch gets follows from its number over all steps and processes: so a run reads each token once in an epoch,
whether it is whole, resumed, or shared by any number of processes.
"""
import hashlib
from dataclasses import dataclass

import numpy as np
import torch

from data import BadInput
from data.shards import Shards, bounds
from data.tokenizer import decode, sizes


def permuted(i, n, key):
    """Place p(i) of each i under the permutation p of range(n) that the key names. i (k,) -> (k,) int64

    Four Feistel rounds (Luby and Rackoff 1988) on an even number of bits that holds n; what falls beyond n goes
    through them again until it does not, which keeps it a permutation.
    """
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    bits, mask = np.uint64(half), np.uint64((1 << half) - 1)

    def rounds(x):
        left, right = x >> bits, x & mask
        for turn in range(4):                                # splitmix64's finish as the round function
            h = (right + np.uint64((key + turn + 1) * 0x9E3779B97F4A7C15 % 2**64)) * np.uint64(0xBF58476D1CE4E5B9)
            h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            left, right = right, left ^ ((h ^ (h >> np.uint64(31))) & mask)
        return (left << bits) | right

    x = rounds(np.asarray(i).astype(np.uint64))                                            # (k,)
    while (beyond := x >= np.uint64(n)).any():
        x[beyond] = rounds(x[beyond])
    return x.astype(np.int64)


def key_of(*what):
    return int.from_bytes(hashlib.sha256(repr(what).encode()).digest()[:8], "big")


@dataclass
class Split:
    """A part of a stream of documents."""
    ids: Shards                                              # its tokens
    stream: Shards                                           # all tokens of the stream
    ends: Shards                                             # where the documents of the stream end
    documents: range                                         # which of them are its own


class Sharded:
    """Tokens in shards as train.py and evaluate.py want them; the same attributes as Corpus in data/text.py.

    splits    train, val, test -> Split; some have no train, some no test
    layout    plain, framed or rows, see above
    marks     the ids of begin, end and fill, which may be one; None if the layout is plain
    size      of the val text, in UTF-8 bytes; nan if nobody knows it: then there are no bits/byte
    """
    classes = ()

    def __init__(self, name, about, encoding, splits, layout, marks, size, block_size):
        self.name, self.about, self.encoding, self.layout, self.marks = name, about, encoding, layout, marks
        self.block_size, self.splits = block_size, splits
        self.span = block_size - 2 if layout == "framed" else block_size     # tokens of the stream in one text
        if layout != "plain" and block_size < 3:
            raise BadInput(f"{name} puts a mark on either side of a text: --block_size must be at least 3")
        for split, part in self.splits.items():
            if layout != "rows" and len(part.ids) < self.span:
                raise BadInput(f"{name} has {len(part.ids):,} {split} tokens, not one block of {block_size:,}: use a "
                               f"smaller --block_size")
        self.bytes_per_id = size / len(self.val)             # of the stream; of what is scored:
        self.bytes_per_token = self.size_of_token(self.split("val"), size)

    def split(self, name):
        if name not in self.splits:
            raise BadInput(f"{self.name} has no {name} split, only {' and '.join(self.splits)}"
                           + (": it is for evaluation" if name == "train" else ""))
        return self.splits[name]

    train = property(lambda self: self.split("train").ids)
    val = property(lambda self: self.split("val").ids)

    def size_of_token(self, part, size):
        """UTF-8 bytes for each token that is scored: nats per token -> bits per byte

        A row may be cut: of the bytes of the text it has the share that its tokens have. Their own bytes will not do:
        words of BERT begin with a blank wherever they stand, and one that is not known is spelled otherwise.
        """
        if self.layout != "rows":
            return self.bytes_per_id * self.span / self.block_size
        of_token, scored, kept, whole = sizes(self.encoding), 0, 0, 0
        for first in range(part.documents.start, part.documents.stop, 10_000):
            rows = np.arange(first, min(first + 10_000, part.documents.stop))
            start, stop = self.row_bounds(part, rows)                                      # (n,) without the end
            last = bounds(part.stream, part.ends, rows)[1] - 1                             # (n,) not cut either
            cut, full = (part.stream[np.concatenate(list(map(np.arange, start, to)))] for to in (stop, last))
            kept, whole = kept + int(of_token[cut].sum()), whole + int(of_token[full].sum())
            scored += len(cut) + 2 * len(rows)
        return size * kept / max(whole * scored, 1)

    # ---- texts

    def row_bounds(self, part, rows):
        """Where the words of documents stand, their own end left out, cut to what a text holds."""
        first, last = bounds(part.stream, part.ends, rows)
        return first, np.minimum(last - 1, first + self.block_size - 2)

    def rows(self, part, rows):
        """[begin] document [end] [fill] ... for each of the documents `rows` (n,) -> (n, L)"""
        begin, end, fill = self.marks
        x = np.full((len(rows), self.block_size), fill, np.int64)                          # (n, L)
        x[:, 0] = begin
        for row, first, last in zip(x, *self.row_bounds(part, rows)):
            row[1:1 + last - first] = part.stream[first:last]
            row[1 + last - first] = end
        return torch.from_numpy(x)                                                         # (n, L)

    def at(self, part, start):
        """The texts that begin at the tokens `start` (n,) -> (n, L)"""
        x = part.ids[start[:, None] + np.arange(self.span)].astype(np.int64)               # (n, span)
        if self.layout == "framed":
            x = np.pad(x, ((0, 0), (1, 1)), constant_values=((0, 0), self.marks[:2]))      # (n, L)
        return torch.from_numpy(x)                                                         # (n, L)

    def batch(self, split, n, generator=None):
        """n random texts -> (n, L) int64. The generator (a CPU one) or torch's seed decides which."""
        part = self.split(split)
        if self.layout == "rows":
            rows = torch.randint(len(part.documents), (n,), generator=generator).numpy()   # (n,)
            return self.rows(part, part.documents.start + rows)                            # (n, L)
        start = torch.randint(len(part.ids) - self.span + 1, (n,), generator=generator)    # (n,)
        return self.at(part, start.numpy())                                                # (n, L)

    def in_order(self, split, numbers, seed):
        """The texts with these numbers (n,), counted on from epoch to epoch. -> (n, L)"""
        part, texts = self.split(split), []
        m = len(part.documents) if self.layout == "rows" else max(1, len(part.ids) // self.span - 1)   # of an epoch
        for epoch in np.unique(numbers // m):
            key = key_of(seed, int(epoch))
            i = permuted(numbers[numbers // m == epoch] % m, m, key)                       # (k,)
            shift = key % (len(part.ids) - m * self.span + 1) if self.layout != "rows" else 0    # where the cuts fall
            texts.append(self.rows(part, part.documents.start + i) if self.layout == "rows" else
                         self.at(part, i * self.span + shift))
        return torch.cat(texts)                                                            # (n, L)

    def windows(self, split="val", most=None):
        """The split from its beginning, text after text; `most` of them, evenly spread -> (m, L) int64"""
        part = self.split(split)
        m = len(part.documents) if self.layout == "rows" else len(part.ids) // self.span
        i = np.linspace(0, m - 1, most).astype(int) if most and most < m else np.arange(m)     # (m,)
        return self.rows(part, part.documents.start + i) if self.layout == "rows" else self.at(part, i * self.span)

    def turn(self, number, n, seed):
        """What train.py learns from in micro-batch `number` of a run, over all steps and processes: x (n, L); None for
        given tokens, and for classes."""
        return self.in_order("train", number * n + np.arange(n), seed), None, None

    def examples(self, split, n, generator=None):
        """The same, drawn at random."""
        return self.batch(split, n, generator), None, None

    def example_windows(self, split="val", most=None):
        return self.windows(split, most), None, None

    def scored(self, x):
        """Which tokens of texts (n, L) count: in rows those up to the text's own end. -> (n, L) bool, or None: all"""
        if self.layout != "rows":
            return None
        ends = (x == self.marks[1]).long()                                                 # (n, L)
        ends[:, 0] = 0                                       # the one that it begins with
        return ends.cumsum(-1) - ends == 0                                                 # (n, L)

    def beginning(self, split, most=2_000_000):
        """The first ids of the split, for what is counted in memory; none if there is no such split. -> (n,)"""
        return self.splits[split].ids[:most] if split in self.splits else np.zeros(0, np.uint16)

    def text(self, ids):
        return decode(self.encoding, ids)
