"""
Chapter 1. Witten-Bell n-grams: the baseline that needs no network.

    python -m evaluation.ngram names         # or toy, python, a path
    python -m evaluation.ngram python bpe    # in the tokens of a tokenizer

An n-gram model predicts a symbol w from the history h of the n - 1 symbols before it. It mixes its
counts with the prediction of the model whose history h' is one symbol shorter:

    p_n(w | h) = ( c(h w) + k(h) p_{n-1}(w | h') ) / ( c(h) + k(h) ),   p_0(w) = 1 / V       (1.4)

    c(h w)   how often w followed h in the train text;   c(h) = sum_w c(h w)
    k(h)     how many different symbols followed h; many of them make a new one more likely

(method C of Witten and Bell, IEEE Trans. Information Theory 37, 1991). For a history that never
occurred, p_n = p_{n-1}. (1.4) sums to 1 over w and gives no symbol probability 0. A network is only
worth its cost if it is below the best order.
"""
import math
from dataclasses import dataclass

import numpy as np

from data import DATASETS, load_data
from evaluation.likelihood import bytes_per_scored
from flags import flag
from script import run_script


ORDERS = 2, 3, 4, 5, 6


@dataclass
class Config:
    data: str = flag("names", "a name, or the path of a text; also the first word", table=DATASETS)
    tokenizer: str = flag("auto", "auto, chars, bytes, bpe, gpt2, ...; also the second word")
    vocab_size: int = flag(1024, "symbols of a bpe trained on the data", least=1)


class Ngrams:
    """The counts of (1.4) in the ids `train` (N,), up to `order`. Needs N >= order."""

    def __init__(self, train, vocab_size, order):
        self.vocab_size, self.base, self.counts = vocab_size, vocab_size + 1, []
        x = np.asarray(train).astype(np.int64)  # (N,)
        history, H = np.zeros(len(x), np.int64), 1  # (N,) the empty history
        for n in range(1, order + 1):
            # history[i] numbers the n - 1 symbols before x[n-1+i]. The number of an n-gram is the
            # rank of its pair (history, symbol) among all pairs: it has no collisions, as hashes
            # would, and fits into 64 bits at any order. A 0 behind all counts is that of unseen
            # ones, whose number is -1.
            followed = history * self.base + x[n - 1:]  # (N-n+1,)
            pairs, gram, c_hw = np.unique(followed, return_inverse=True, return_counts=True)
            c_h = np.bincount(history, minlength=H + 1)  # (H + 1,)
            k_h = np.bincount(pairs // self.base, minlength=H + 1)  # (H + 1,)
            self.counts.append((pairs, np.append(c_hw, 0), c_h, k_h))
            history, H = gram[:-1], len(pairs)  # (N-n,) ends at i, precedes i + 1

    def nats(self, x):
        """-log p_n of each of x (m,), with nothing before them. The id vocab_size separates texts:
        what follows it has a history that never occurred. -> {n: (m,)}"""
        x, nats = np.asarray(x).astype(np.int64), {}  # (m,)
        p, h = np.full(len(x), 1 / self.vocab_size), np.zeros(len(x), np.int64)  # (m,) each, p_0
        for n, (pairs, c_hw, c_h, k_h) in enumerate(self.counts, 1):
            followed = h * self.base + x  # (m,) below 0 where h is unseen
            at = np.searchsorted(pairs, followed).clip(max=len(pairs) - 1)  # (m,)
            hw = np.where(pairs[at] == followed, at, -1)  # (m,)
            mixed = (c_hw[hw] + k_h[h] * p) / np.maximum(c_h[h] + k_h[h], 1)  # (m,) (1.4)
            p = np.where(c_h[h] > 0, mixed, p)  # (m,)
            nats[n], h = -np.log(p), np.append(-1, hw[:-1])  # (m,) each
        return nats

    def text_nats(self, x):
        """The same for texts x (n, L) with nothing before them. -> {n: nats/token of each (n,)}"""
        apart = np.full((len(x), 1), self.vocab_size)  # (n, 1)
        texts = np.concatenate([apart, x], 1)  # (n, 1 + L)
        return {n: nats.reshape(texts.shape)[:, 1:].mean(-1)  # (n,)
                for n, nats in self.nats(texts.ravel()).items()}


def symbol_nats(train, val, vocab_size, orders=ORDERS):
    """Eq. (1.4) of each order, estimated on the ids `train`. -> {order: nats of each of `val` (m,)}

    val is read as the continuation of train, so that its first symbols have a history too.
    """
    before = min(max(orders) - 1, len(train))
    text = np.concatenate([train[len(train) - before:], val])  # (before + m,)
    nats = Ngrams(train, vocab_size, max(orders)).nats(text)
    return {n: nats[n][before:] for n in orders}  # (m,) each


def witten_bell(train, val, vocab_size, orders=ORDERS):
    """The means of symbol_nats. -> {order: nats per symbol of `val`}"""
    nats = symbol_nats(train, val, vocab_size, orders)
    return {n: float(nats[n].mean()) for n in orders}


def text_nats(train, x, vocab_size, orders=ORDERS):
    """Ngrams.text_nats of some orders. -> {order: nats/token of each (n,)}"""
    nats = Ngrams(train, vocab_size, max(orders)).text_nats(x)
    return {n: nats[n] for n in orders}  # (n,) each


def ngram_baselines(data):
    """What n-grams reach on the held-out text: [(name, nats/token or None, bits/byte or None)]"""
    rows = [("uniform over tokens", math.log(data.encoding.n_vocab))]
    if data.counts_words:
        train, val = data.ids("train"), data.ids("val")
        cut = ", first 2M" * (len(train) < len(data.train) or len(val) < len(data.val))
        rows += [(f"{n}-gram of tokens{cut}", nats)
                 for n, nats in witten_bell(train, val, data.encoding.n_vocab).items()]
    size = bytes_per_scored(data) and data.bytes_per_id
    rows = [(name, nats, nats / math.log(2) / size if size else None) for name, nats in rows]
    if size and data.counts_words and data.counts_bytes:
        train, val = (np.frombuffer(data.text(ids).encode("utf-8", "replace"), np.uint8)
                      for ids in (train, val))  # (m,) each
        rows += [(f"{n}-gram of bytes", None, nats / math.log(2))
                 for n, nats in witten_bell(train, val, 256).items()]
    return rows


def main(config, given=()):
    data = load_data(config.data, 32, config.tokenizer, config.vocab_size)
    whole = len(data.train), len(data.val)  # UserError where there is nothing to count
    train, val = data.ids("train"), data.ids("val")
    cut = whole != (len(train), len(val))
    first = f"; of the first {len(train):,} and {len(val):,} tokens" * cut
    size = bytes_per_scored(data) and data.bytes_per_id
    print(data.about)
    print("order  nats/symbol" + "  bits/byte" * bool(size) + "   held-out, Witten-Bell"
          + (f"; {size:.3f} bytes/symbol" if size else "") + first)
    for n, nats in witten_bell(train, val, data.encoding.n_vocab, range(1, 7)).items():
        print(f"{n:5d}  {nats:11.4f}" + (f"  {nats / math.log(2) / size:9.4f}" if size else ""))


if __name__ == "__main__":
    run_script(Config, main, ["data", "tokenizer"])
