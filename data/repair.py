"""
Chapter 17. A typo: sentences in which a word is wrong, lost or too many, and what was meant.

    python -m data.repair                            # print some

    the old dogs old a cat  ->  the old dogs see a cat

A sentence x is subject, verb, object, with number agreement: 2,592 of them, each of known
probability. With probability 1/3 each, a random word is replaced by a random one, or lost, or a
random one is added anywhere. So the source y is, with V words in all and n in x,

    p(y | x) = 1/3 ( #replacements that make y of x / (n V), or #losses / n,                 (17.19)
                     or #additions / ((n + 1) V) )

and p(x | y) follows by Bayes, exactly. An answer is right if it is a sentence of which a typo may
have made the source: there may be several. Held out are sources.
"""
import random
from functools import cache
from itertools import accumulate

import torch

from data.base import hash_fraction
from data.puzzles import HELD_OUT, SHARE
from data.seq2seq import Task
from data.wording import mix, phrase
from script import one_line_errors


@cache
def all_sentences():
    """{sentence, a tuple of words: its probability}"""
    adjective = {"": 0.5, "old": 0.25, "small": 0.25}
    one = phrase({"the": 0.5, "a": 0.5}, adjective, {"dog": 0.4, "cat": 0.4, "bird": 0.2})
    many = phrase({"the": 0.5, "two": 0.5}, adjective, {"dogs": 0.4, "cats": 0.4, "birds": 0.2})
    anyone = mix((0.5, one), (0.5, many))
    table = mix((0.5, phrase(one, {"sees": 0.5, "chases": 0.5}, anyone)),
                (0.5, phrase(many, {"see": 0.5, "chase": 0.5}, anyone)))
    return {tuple(text.split()): p for text, p in table.items()}


WORDS = tuple(sorted({word for text in all_sentences() for word in text}))


def typo_chance(x, y):
    """(17.19): p(y | x), of tuples of words."""
    n, V = len(x), len(WORDS)
    if len(y) == n:
        wrong = sum(a != b for a, b in zip(x, y))
        return (1 / V if wrong == 0 else 1 / (n * V) if wrong == 1 else 0.0) / 3
    if len(y) == n - 1:
        return sum(x[:i] + x[i + 1:] == y for i in range(n)) / n / 3
    if len(y) == n + 1:
        return sum(y[:i] + y[i + 1:] == x for i in range(n + 1)) / ((n + 1) * V) / 3
    return 0.0


def neighbors(y):
    """All texts that one typo makes of y, or of which one makes y. -> set of tuples"""
    n = len(y)
    lost = {y[:i] + y[i + 1:] for i in range(n)}
    more = {y[:i] + (word,) + y[i + k:] for k in (0, 1) for i in range(n + 1 - k) for word in WORDS}
    return lost | more


class Repair(Task):
    """Sentences with a typo."""
    name, what, vocabulary = "repair", "a sentence with a typo, as it was meant", WORDS
    source, target = 8, 8

    def right_answers(self, source):
        """All sentences of which a typo makes the source, by their probability."""
        y, table = tuple(source.split()), all_sentences()
        joint = {x: table[x] * typo_chance(x, y) for x in sorted(neighbors(y) & table.keys())}
        total = sum(joint.values())
        return {" ".join(x): p / total for x, p in joint.items()}

    def add_typo(self, words, rng):
        """One typo, in a tuple of words."""
        kind, i = rng.choice(("replaced", "lost", "added")), rng.randrange(len(words))
        if kind == "added":
            i = rng.randrange(len(words) + 1)
        new = () if kind == "lost" else (rng.choice(WORDS),)
        return words[:i] + new + words[i + (kind != "added"):]

    def draw(self, n, side, generator):
        rng = random.Random(int(torch.randint(2**62, (1,), generator=generator)))
        texts, cumulative, rows = [*all_sentences()], [*accumulate(all_sentences().values())], []
        while len(rows) < n:
            x, = rng.choices(texts, cum_weights=cumulative)
            source = " ".join(self.add_typo(x, rng))
            if (hash_fraction(f"{self.name} {source}") < SHARE) == (side == HELD_OUT):
                rows.append(self.row(source, " ".join(x)))
        frozen = torch.arange(self.length) < self.source  # (L,)
        return torch.tensor(rows), frozen.expand(n, -1)  # (n, L) each


def main():
    """Some sentences with a typo, what was meant, and how many answers are right."""
    data = Repair()
    print(data.about)
    for row in data.windows("val", 8).tolist():
        source = data.source_of(row)
        print(f"{source}  ->  {data.target_of(row)}, one of {len(data.right_answers(source))}")


if __name__ == "__main__":
    with one_line_errors():
        main()
