"""
Witten-Bell n-grams: how far counting gets, with no network.

    python -m data.ngram names         # or toy, python, a path
    python -m data.ngram python bpe    # in the tokens of a tokenizer

An n-gram model guesses a symbol w from the history h of the n - 1 symbols before it. It trusts its counts as far as
they go, and for the rest asks the model whose history h' is one symbol shorter:

    p_n(w | h) = ( c(h w) + k(h) p_{n-1}(w | h') ) / ( c(h) + k(h) ),    p_0(w) = 1 / V                            (1)

    c(h w)   how often w followed h in the train text;   c(h) = sum_w c(h w)
    k(h)     how many kinds of symbol followed h: the more kinds were seen, the likelier the next is new

(method C of Witten and Bell, IEEE Trans. Information Theory 37, 1991). After a history never seen, p_n = p_{n-1}. It
is a law: it sums to 1 over w, and no symbol is impossible. A network worth its electricity is below its best order.
"""
import sys

import numpy as np

from data import BadInput
from data.text import load


def witten_bell(train, val, vocab_size, orders=(2, 3, 4, 5, 6)):
    """Eq. (1) of each order, learnt from the ids `train`: a dict order -> mean nats per symbol of the ids `val`.

    val is read as what follows train, so its first symbols have a history too. Needs len(train) >= max(orders).
    """
    x = np.concatenate([train, val]).astype(np.int64)                                      # (N,)
    p = np.full(len(val), 1 / vocab_size)                                                  # (m,) p_0
    history = np.zeros(len(x), np.int64)                                                   # (N,) all empty so far
    nats = {}
    for n in range(1, max(orders) + 1):
        # history[i] is the number of the n - 1 symbols before x[n-1+i]. A gram's number is the rank of its (history,
        # symbol) among all such pairs: exact, where a hash might collide, and it fits 64 bits at any order.
        pairs, gram = np.unique(history * vocab_size + x[n - 1:], return_inverse=True)     # (G,), (N-n+1,)
        t = len(history) - len(val)                                                        # the first t are in train
        c_hw = np.bincount(gram[:t], minlength=len(pairs))                                 # (G,)
        c_h = np.bincount(history[:t], minlength=history.max() + 1)                        # (H,)
        k_h = np.bincount(pairs[c_hw > 0] // vocab_size, minlength=len(c_h))               # (H,)
        h, hw = history[t:], gram[t:]                                                      # (m,)
        mixed = (c_hw[hw] + k_h[h] * p) / np.maximum(c_h[h] + k_h[h], 1)                   # (m,) eq. (1)
        p = np.where(c_h[h] > 0, mixed, p)                                                 # (m,)
        nats[n] = -np.log(p).mean()
        history = gram[:-1]                                                                # ends at i, precedes i + 1
    return {n: float(nats[n]) for n in orders}


def main(argv):
    from bounds import beginnings                            # not above: that file imports this one
    corpus = load(argv[0] if argv else "names", 32, *argv[1:2])
    whole = len(corpus.train), len(corpus.val)               # BadInput where there is nothing to count in
    train, val = beginnings(corpus)
    size = getattr(corpus, "bytes_per_id", corpus.bytes_per_token)           # of a token; no mark stands between these
    print(corpus.about)
    print(f"order  nats/symbol  bits/byte   held-out, Witten-Bell; {size:.3f} bytes/symbol"
          + f"; of the first {len(train):,} and {len(val):,} tokens" * (whole != (len(train), len(val))))
    for n, nats in witten_bell(train, val, corpus.encoding.n_vocab, range(1, 7)).items():
        print(f"{n:5d}  {nats:11.4f}  {nats / np.log(2) / size:9.4f}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except BadInput as error:
        print(error, file=sys.stderr)
        sys.exit(2)
