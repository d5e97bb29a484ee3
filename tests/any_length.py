"""
Texts of any length whose probabilities are known one by one: what is missing, by enumeration.

Every way to find a noisy text in a text of the world counts by p(x) d^(tokens that are missing).
It stands in for `fill_in` and `next_word` of data/sentences.py in worlds of a few texts.
"""
import math
from functools import cache
from itertools import combinations, product

import torch
import torch.nn.functional as F

from methods import make_method


class FewTexts:
    """A language of a few texts (tuples of ids below V) with probabilities p (n,)."""
    n_topics = 1

    def __init__(self, texts, p, V):
        self.texts, self.p, self.V = texts, p, V
        self.longest = max(map(len, texts))
        self.ways = cache(self.ways)

    def ways(self, pattern):
        """All ways to find a pattern in the texts; id V is any word. -> which text (e,), tokens
        missing in each gap (e, m + 1), words at the tokens (e, m), each missing (gap, word) as
        counts (e, m + 1, V)"""
        found = []
        for i, x in enumerate(self.texts):
            for of in combinations(range(len(x)), len(pattern)):
                if all(z in (self.V, x[l]) for z, l in zip(pattern, of)):
                    gap = [sum(l > a for a in of) for l in range(len(x)) if l not in of]
                    rest = [x[l] for l in range(len(x)) if l not in of]
                    counts = torch.zeros(len(pattern) + 1, self.V, dtype=torch.double)
                    for g, v in zip(gap, rest):
                        counts[g, v] += 1
                    found.append((i, [x[l] for l in of], counts))
        numbers, words, counts = zip(*found) if found else ((), (), ())
        m = len(pattern)
        words = torch.tensor(words).long().view(len(found), m)  # (e, m)
        return (torch.tensor(numbers, dtype=torch.long), words,
                torch.stack(counts) if counts else torch.zeros(0, m + 1, self.V).double())

    def patterns(self, z, m):
        """{pattern: its rows}"""
        rows = {}
        for i, (row, n) in enumerate(zip(z.tolist(), m.tolist())):
            rows.setdefault(tuple(row[:n]), []).append(i)
        return rows

    def fill_in(self, z, m, d, closed=None, topic=None):
        words = torch.zeros(*z.shape, self.V, dtype=torch.double)  # (n, M, V)
        gaps = torch.zeros(z.shape, dtype=torch.double)  # (n, M)
        for pattern, rows in self.patterns(z, m).items():
            of, there, counts = self.ways(pattern)
            n, k = len(pattern), counts.sum(-1)  # (e, n + 1)
            w = self.p[of] * d[rows, None] ** k.sum(-1)  # (rows, e)
            if closed is not None:
                w = w * ((k == 0) | ~closed[rows, None, :n + 1]).all(-1)  # (rows, e)
            w = w / w.sum(-1, keepdim=True).clamp(min=1e-300)  # (rows, e) 0: an impossible text
            gaps[rows, :n + 1] = w @ k  # (rows, n + 1)
            at = F.one_hot(there, self.V).double()  # (e, n, V)
            words[rows, :n] = torch.einsum("re,env->rnv", w, at)
        return words, gaps

    def next_word(self, z, m, closed=None, topic=None):
        joint = torch.zeros(*z.shape, self.V, dtype=torch.double)  # (n, M, V)
        stop = torch.zeros(len(z), dtype=torch.double)  # (n,)
        for pattern, rows in self.patterns(z, m).items():
            of, _, counts = self.ways(pattern)  # (e,), .., (e, m + 1, V)
            k, n = len(pattern), torch.tensor([len(self.texts[i]) for i in of])  # (e,)
            w = self.p[of] / torch.tensor([math.comb(a, k) for a in n.tolist()])  # (e,)
            w = w.expand(len(rows), -1)  # (rows, e)
            if closed is not None:
                w = w * ((counts.sum(-1) == 0) | ~closed[rows, None, :k + 1]).all(-1)  # (rows, e)
            found = torch.einsum("re,egv->rgv", w / (n - k).clamp(min=1), counts)  # (rows, ..)
            joint[rows, :k + 1] = found / found.sum((1, 2), keepdim=True).clamp(min=1e-300)
            stop[rows] = w[:, n == k].sum(-1) / w.sum(-1)
        return joint, stop


TEXTS = [x for n in range(4) for x in product(range(2), repeat=n)]  # 15 texts over {a, b}


def any_length(name, n_tokens, end=None, **flags):
    """A method whose texts end with the id `end`."""
    method = make_method(name, n_tokens, **flags)
    method.end_id = end
    return method


def flexmdm(n_tokens, end=None, **flags):
    return any_length("flexmdm", n_tokens, end, **flags)


def fill_up(texts, L, end):
    """Texts (tuples) as rows (n, L) with ends behind them."""
    return torch.tensor([[*x, *[end] * (L - len(x))] for x in texts]).view(len(texts), L)


def numbers_of(x, end, V=2):
    """The number in TEXTS of each row (n, L), -1 for a text that is not there. -> (n,)"""
    number = {text: i for i, text in enumerate(TEXTS)}
    n = (x != end).flip(-1).long().cummax(-1).values.sum(-1)  # (n,) tokens before the last ends
    rows = (tuple(row[:length]) for row, length in zip(x.tolist(), n.tolist()))
    return torch.tensor([number.get(row, -1) for row in rows])


def once_for_each(denoiser):
    """The same denoiser, called once for equal texts: many drafts are alike."""
    def call(z, t, at=None, **layout):
        key = torch.cat([z, *(a.long() for a in layout.values())], 1)  # (B, ..) below 8
        key = (key * 8 ** torch.arange(key.shape[1])).sum(-1)  # (B,)
        some, of = key.unique(return_inverse=True)  # (k,), (B,)
        one = torch.zeros_like(some).scatter(0, of, torch.arange(len(z)))  # (k,)
        told = {name: a[one] for name, a in layout.items()}
        t = t if t is None else t[:1].expand(len(one), 1)  # (k, 1)
        out = denoiser(z[one], t, **told)  # (k, M, V)
        return out[of] if at is None else out[of[at.nonzero()[:, 0]], at.nonzero()[:, 1]]
    call.reads_frozen = True
    return call
