"""
Texts of any length whose probabilities are known one by one: what is missing, by enumeration.

Every way to find a noisy text in a text of the world counts by p(x) d^(tokens that are missing).
It stands in for `fill_in` and `next_word` of data/sentences.py in worlds of a few texts.
"""
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
        return (torch.tensor(numbers, dtype=torch.long), torch.tensor(words).long().view(len(found), m),
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


TEXTS = [x for n in range(4) for x in product(range(2), repeat=n)]  # 15 texts over {a, b}


def flexmdm(n_tokens, end=None, **flags):
    """A method whose texts end with the id `end`."""
    method = make_method("flexmdm", n_tokens, **flags)
    method.end_id = end
    return method


def fill_up(texts, L, end):
    """Texts (tuples) as rows (n, L) with ends behind them."""
    return torch.tensor([[*x, *[end] * (L - len(x))] for x in texts]).view(len(texts), L)


def numbers_of(x, end, V=2):
    """The number in TEXTS of each row (n, L), -1 for a text that is not there. -> (n,)"""
    number = {text: i for i, text in enumerate(TEXTS)}
    rows = (tuple(row[:row.index(end)] if end in row else row) for row in x.tolist())
    return torch.tensor([number.get(row, -1) for row in rows])
