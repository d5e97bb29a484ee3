"""
Texts from shards (data/shards.py): the conventions of the field, each text once per epoch.

    data = Sharded(name, about, encoding, splits, "framed", marks, size, block_size=1024)
    x, _, _ = data.micro_batch(number, 32, seed, None)      # (32, 1024)

    plain    windows of L tokens, across documents
    framed   windows of L - 2 tokens between two marks: [begin] ... [end]; all L are scored (MDLM,
             arXiv:2406.07524)
    rows     one document per text: [begin] document [end] [fill] ... up to L tokens; all L are
             noised, and those up to [end] are scored

Text i of an epoch is the one at place p(i), where p is a permutation that needs no memory and
differs between epochs. Which i a micro-batch gets depends on its number over all steps and
processes. So a run reads each token once per epoch, whether it is run in one go, resumed, or shared
by processes.
"""
import hashlib
from dataclasses import dataclass

import numpy as np
import torch

from data.base import Dataset
from data.shards import Shards, document_bounds
from data.tokenizer import token_sizes
from flags import UserError

COUNTED_IDS = 2_000_000                          # of a split, for statistics in memory


def permute(i, n, key):
    """The place p(i) of each i under the permutation p of range(n) that the key selects.
    i (k,) -> (k,) int64

    Four Feistel rounds (Luby and Rackoff 1988) permute the numbers of an even number of bits. A
    result of n or more goes through them again until it is below n, which keeps p a permutation.
    """
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    bits, mask = np.uint64(half), np.uint64((1 << half) - 1)

    def rounds(x):
        left, right = x >> bits, x & mask
        for number in range(4):  # the round function is the end of splitmix64
            constant = np.uint64((key + number + 1) * 0x9E3779B97F4A7C15 % 2**64)
            h = (right + constant) * np.uint64(0xBF58476D1CE4E5B9)
            h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            left, right = right, left ^ ((h ^ (h >> np.uint64(31))) & mask)
        return (left << bits) | right

    x = rounds(np.asarray(i).astype(np.uint64))  # (k,)
    while (beyond := x >= np.uint64(n)).any():
        x[beyond] = rounds(x[beyond])
    return x.astype(np.int64)  # (k,)


def hash_key(*what):
    return int.from_bytes(hashlib.sha256(repr(what).encode()).digest()[:8], "big")


@dataclass
class Split:
    """A part of a stream of documents."""
    ids: Shards  # its tokens
    stream: Shards  # all tokens of the stream
    ends: Shards  # where the documents of the stream end
    documents: range  # which of them it has


class Sharded(Dataset):
    """Tokens in shards.

    parts     {split: Split} for train, val, test; some corpora lack one of them
    layout    plain, framed or rows, see above
    marks     the ids of begin, end and fill, which may be the same; None if the layout is plain
    size      of the val text in UTF-8 bytes; nan if it is unknown: then there are no bits/byte
    """

    def __init__(self, name, about, encoding, parts, layout, marks, size, block_size):
        self.name, self.about, self.encoding = name, about, encoding
        self.parts, self.splits = parts, tuple(parts)
        self.layout, self.marks, self.block_size = layout, marks, block_size
        self.pads = layout == "rows"
        self.span = block_size - 2 if layout == "framed" else block_size  # tokens of the stream
        if layout != "plain" and block_size < 3:
            raise UserError(f"{name} puts a mark on either side of a text: --block_size must be at "
                            f"least 3")
        for split, part in parts.items():
            if not self.pads and len(part.ids) < self.span:
                raise UserError(f"{name} has {len(part.ids):,} {split} tokens, fewer than one "
                                f"block of {block_size:,}: use a smaller --block_size")
        self.val_size = size
        self.bytes_per_token = self.size_of_scored(self.part("val"))

    def part(self, split):
        if split == "train" and split not in self.parts:
            raise UserError(f"{self.name} has no train split, only {' and '.join(self.splits)}: "
                            f"it is for evaluation")
        self.check_split(split)
        return self.parts[split]

    train = property(lambda self: self.part("train").ids)
    val = property(lambda self: self.part("val").ids)
    bytes_per_id = property(lambda self: self.val_size / len(self.val))

    def size_of_scored(self, part):
        """UTF-8 bytes of the val text per scored token.

        A row may be cut off. The text that is left is as large as the share of the bytes of its
        tokens in those of all tokens. Their bytes alone are not the answer: BERT's words begin with
        a space wherever they stand, and unknown words are spelled [UNK].
        """
        if not self.pads:
            return self.bytes_per_id * self.span / self.block_size
        size, scored, kept, whole = token_sizes(self.encoding), 0, 0, 0
        for first in range(part.documents.start, part.documents.stop, 10_000):
            rows = np.arange(first, min(first + 10_000, part.documents.stop))  # (n,)
            start, stop = self.row_bounds(part, rows)  # (n,), (n,) without the end
            last = document_bounds(part.stream, part.ends, rows)[1] - 1  # (n,) not cut off
            cut, full = (part.stream[np.concatenate(list(map(np.arange, start, to)))]
                         for to in (stop, last))
            kept, whole = kept + int(size[cut].sum()), whole + int(size[full].sum())
            scored += len(cut) + 2 * len(rows)
        return self.val_size * kept / max(whole * scored, 1)

    # ---- texts

    def row_bounds(self, part, rows):
        """Where the words of documents stand, without their end, cut off to what a text holds."""
        first, last = document_bounds(part.stream, part.ends, rows)
        return first, np.minimum(last - 1, first + self.block_size - 2)

    def make_rows(self, part, rows):
        """[begin] document [end] [fill] ... for each of the documents `rows` (n,) -> (n, L)"""
        begin, end, fill = self.marks
        x = np.full((len(rows), self.block_size), fill, np.int64)  # (n, L)
        x[:, 0] = begin
        for row, first, last in zip(x, *self.row_bounds(part, rows)):
            row[1:1 + last - first] = part.stream[first:last]
            row[1 + last - first] = end
        return torch.from_numpy(x)  # (n, L)

    def make_windows(self, part, start):
        """The texts that begin at the tokens `start` (n,) -> (n, L)"""
        x = part.ids.windows(start, self.span).astype(np.int64)  # (n, span)
        if self.layout == "framed":
            x = np.pad(x, ((0, 0), (1, 1)), constant_values=((0, 0), self.marks[:2]))  # (n, L)
        return torch.from_numpy(x)  # (n, L)

    def make_texts(self, part, i, shift=0):
        """The texts number i (n,) of a split whose first window begins at `shift`. -> (n, L)"""
        if self.pads:
            return self.make_rows(part, part.documents.start + i)  # (n, L)
        return self.make_windows(part, i * self.span + shift)  # (n, L)

    def examples(self, split, n, generator=None):
        """n random texts. Windows may begin at any token."""
        part = self.part(split)
        last = len(part.documents) if self.pads else len(part.ids) - self.span + 1
        i = torch.randint(last, (n,), generator=generator).numpy()  # (n,)
        x = self.make_texts(part, i) if self.pads else self.make_windows(part, i)  # (n, L)
        return x, None, None

    def example_windows(self, split="val", most=None):
        part = self.part(split)
        m = len(part.documents) if self.pads else len(part.ids) // self.span
        spaced = most and most < m
        i = np.linspace(0, m - 1, most).astype(int) if spaced else np.arange(m)  # (m,)
        return self.make_texts(part, i), None, None

    def micro_batch(self, number, n, seed, generator):
        """The next n texts of the run. The generator is not used: see `in_order`."""
        return self.in_order("train", number * n + np.arange(n), seed), None, None

    def in_order(self, split, numbers, seed):
        """The texts with these numbers (n,), which count on from epoch to epoch. -> (n, L)"""
        part, texts = self.part(split), []
        windows = max(1, len(part.ids) // self.span - 1)
        m = len(part.documents) if self.pads else windows  # texts per epoch
        for epoch in np.unique(numbers // m):
            key = hash_key(seed, int(epoch))
            i = permute(numbers[numbers // m == epoch] % m, m, key)  # (k,)
            shift = 0 if self.pads else key % (len(part.ids) - m * self.span + 1)
            texts.append(self.make_texts(part, i, shift))
        return torch.cat(texts)  # (n, L)

    # ---- what texts mean

    def padding(self, x):
        """In rows, everything behind a text's own end. x (n, L) -> (n, L) bool, or None"""
        if not self.pads:
            return None
        ends = (x == self.marks[1]).long()  # (n, L)
        ends[:, 0] = 0  # the text begins with this one
        return ends.cumsum(-1) - ends > 0  # (n, L)

    def ids(self, split):
        """The first ids of the split; none if the corpus lacks it. -> (m,)"""
        if split not in self.parts:
            return np.zeros(0, np.uint16)  # (0,)
        return self.parts[split].ids[:COUNTED_IDS]  # (m,)
