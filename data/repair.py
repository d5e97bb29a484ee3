"""
Chapter 17. Typos: sentences in which words were replaced, lost and added, and what was meant.

    python -m data.repair                            # print some

    the old dogs old a cat  ->  the old dogs see a cat

A sentence x is subject, verb, object, with number agreement: 2,592 of them, each of known
probability. Before each word, and behind the last one, a random word is added with probability
ADDED; each word is lost with probability LOST, or replaced by a random word with REPLACED. Sources
of more than ten words are drawn again. So the probability of a source y is a sum over all ways in
which x becomes y, and that of x follows by Bayes, exactly. With f_j(i) the probability that the
first j words became the first i,

    h_j(i)   = (1 - ADDED) f_j(i) + ADDED/V f_j(i-1)                                         (17.19)
    f_j+1(i) = LOST h_j(i) + (KEPT [y_i = x_j+1] + REPLACED/V) h_j(i-1),   p(y | x) = h_n(|y|)

The checker accepts a sentence if none is likelier, given the source. Held out are sources.
"""
import random
from functools import cache, cached_property
from itertools import accumulate

import numpy as np
import torch

from data.base import hash_fraction
from data.puzzles import HELD_OUT, SHARE
from data.seq2seq import Task
from data.wording import mix, phrase
from script import one_line_errors

LOST, REPLACED, ADDED = 0.08, 0.08, 0.05
KEPT = 1 - LOST - REPLACED


@cache
def all_sentences():
    """{sentence: its probability}"""
    adjective = {"": 0.5, "old": 0.25, "small": 0.25}
    one = phrase({"the": 0.5, "a": 0.5}, adjective, {"dog": 0.4, "cat": 0.4, "bird": 0.2})
    many = phrase({"the": 0.5, "two": 0.5}, adjective, {"dogs": 0.4, "cats": 0.4, "birds": 0.2})
    anyone = mix((0.5, one), (0.5, many))
    return mix((0.5, phrase(one, {"sees": 0.5, "chases": 0.5}, anyone)),
               (0.5, phrase(many, {"see": 0.5, "chase": 0.5}, anyone)))


class Repair(Task):
    """Sentences with typos."""
    name, what = "repair", "a sentence with words lost, added and replaced, as it was meant"
    vocabulary = tuple(sorted({word for text in all_sentences() for word in text.split()}))
    source, target = 10, 8

    @cached_property
    def table(self):
        """The words of all sentences, with -1 behind them, and their probabilities. -> (N, 7),
        lengths (N,), p (N,)"""
        words = [[self.vocabulary.index(word) for word in text.split()] for text in all_sentences()]
        most = max(map(len, words))
        ids = np.array([row + [-1] * (most - len(row)) for row in words])  # (N, most)
        return ids, (ids >= 0).sum(-1), np.array([*all_sentences().values()])

    def likelihood(self, source):
        """(17.19): p(source | sentence) of each sentence. -> (N,)"""
        y, (ids, lengths, _) = [self.vocabulary.index(w) for w in source.split()], self.table
        V, f = len(self.vocabulary), np.zeros((len(y) + 1, len(ids)))  # (|y| + 1, N)
        f[0], found = 1.0, np.zeros(len(ids))  # (N,)
        for j in range(ids.shape[1] + 1):
            h = (1 - ADDED) * f  # (|y| + 1, N)
            h[1:] += ADDED / V * f[:-1]
            found = np.where(lengths == j, h[-1], found)  # (N,)
            if j < ids.shape[1]:
                same = np.array(y)[:, None] == ids[:, j]  # (|y|, N)
                f = LOST * h  # (|y| + 1, N)
                f[1:] += (KEPT * same + REPLACED / V) * h[:-1]
        return found

    def right_answers(self, source):
        """All sentences, by their probability given the source."""
        joint = self.table[2] * self.likelihood(source)  # (N,)
        return dict(zip(all_sentences(), (joint / joint.sum()).tolist()))

    def corrupt(self, words, rng):
        """A sentence with typos, both lists of words."""
        said = []
        for word in [*words, None]:
            said += [rng.choice(self.vocabulary)] if rng.random() < ADDED else []
            u = rng.random()
            if word is None or u < LOST:
                continue
            said.append(rng.choice(self.vocabulary) if u < LOST + REPLACED else word)
        return said

    def draw(self, n, side, generator):
        rng = random.Random(int(torch.randint(2**62, (1,), generator=generator)))
        texts, cumulative, rows = [*all_sentences()], [*accumulate(all_sentences().values())], []
        while len(rows) < n:
            text = rng.choices(texts, cum_weights=cumulative)[0]
            source = self.corrupt(text.split(), rng)
            if len(source) > self.source:
                continue
            source = " ".join(source)
            if (hash_fraction(f"{self.name} {source}") < SHARE) == (side == HELD_OUT):
                rows.append(self.row(source, text))
        frozen = torch.arange(self.length) < self.source  # (L,)
        return torch.tensor(rows), frozen.expand(n, -1)  # (n, L) each

    def solved(self, x):
        """Whether no sentence is likelier than the answer, given the source."""
        right = []
        for row in x.tolist():
            source, target = self.source_of(row), self.target_of(row)
            fits = "?" not in source + target and row == self.row(source, target)
            chances = self.right_answers(source) if fits else {}
            right.append(chances.get(target, 0.0) > max(chances.values(), default=1.0) - 1e-9)
        return torch.tensor(right)  # (n,)


def main():
    """Some sentences with typos, and what was meant."""
    data = Repair()
    print(data.about)
    for row in data.windows("val", 8).tolist():
        print(f"{data.source_of(row)}  ->  {data.target_of(row)}")


if __name__ == "__main__":
    with one_line_errors():
        main()
