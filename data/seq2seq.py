"""
Chapter 19. Sequence to sequence: a source that is given, and a target that answers it.

    x       [source, filled up with pads to S tokens ; target, filled up with ends to T tokens]
    frozen  True at the first S tokens

    reverse, sort, date, translit, add, add-reversed   one right answer          data/rewriting.py
    paraphrase, summary, describe                      several, drawn            data/wording.py

The ends belong to the answer: they are predicted and scored, so its length is learned like its
words. Behind the first end all tokens are ends, which costs a good model nothing. So the floor of
any bound on the T tokens is exact. It is 0 where one answer is right, and else

    H(target | source) = - E_source sum_target p(target | source) log p(target | source)      (19.1)

p is known because a task lists all right answers to a source with their probabilities
(`right_answers`). The checker, the entropy and a second draw of the answer come from that list.

    slots right    |A and B| / |A or B|,  A what the source tells of, B what the answer does  (19.4)

A text is held out by a hash of what it is about (`code`), which is the same for all sources with
the same answer, and for all answers to the same source. What that is, each task states.
"""
import math
import random

import torch

from data.base import hash_fraction
from data.puzzles import HELD_OUT, SHARE, Puzzle
from data.tokenizer import END_OF_TEXT, ONE_CHARACTER, ONE_WORD, make_encoding


class Task(Puzzle):
    """What all tasks share. A subclass has name, what, vocabulary, source, target and

        question(rng)          a source, and the code that decides its side; rng is a random.Random
        right_answers(source)  {target: its probability}, all right answers to a source
        slots(text)            what a text tells of, a set; None where nothing is counted
    """
    vocabulary = ""  # a string: its characters are the tokens; a tuple: its words are
    target = 0  # tokens of the target, at least one end among them
    counts_slots = False  # `slots` is defined, so the share of right ones is a score

    def __init_subclass__(cls):
        cls.length = cls.source + cls.target
        cls.defaults = dict(dict(recipe_iters=4000, n_layer=3, n_head=4, n_embd=64, batch_size=64),
                            block_size=cls.length)

    def make_tokens(self):
        """A pad, the vocabulary and the end, which is special."""
        self.of_words, self.pad = isinstance(self.vocabulary, tuple), "|"
        self.space = " " if self.of_words else ""
        self.symbols = [self.pad, *self.vocabulary, END_OF_TEXT]
        self.id_of = {symbol: i for i, symbol in enumerate(self.symbols)}
        self.end = self.id_of[END_OF_TEXT]
        return make_encoding(
            *(("words", ONE_WORD) if self.of_words else ("chars", ONE_CHARACTER)),
            [(self.space + symbol).encode() for symbol in self.symbols[:-1]], [END_OF_TEXT])

    # ---- texts and ids

    def tokens(self, text):
        """The tokens of a source or a target, without pads and ends."""
        return text.split() if self.of_words else [*text]

    def row(self, source, target):
        """The ids of a text, a list of S + T."""
        ids = [[self.id_of[token] for token in self.tokens(text)] for text in (source, target)]
        filled = zip(ids, (self.source, self.target), (self.id_of[self.pad], self.end))
        return [i for part, width, fill in filled for i in part + [fill] * (width - len(part))]

    def spell(self, ids, stop):
        """The text of ids up to the first `stop`; an id that is no token is '?'."""
        ids = ids[:ids.index(stop)] if stop in ids else ids
        return self.space.join(self.symbols[i] if i <= self.end else "?" for i in ids)

    def source_of(self, row):
        """The source of a text. row: S + T ids"""
        return self.spell(row[:self.source], self.id_of[self.pad])

    def target_of(self, row):
        """What a text answers, up to its first end."""
        return self.spell(row[self.source:], self.end)

    def answer_words(self, row):
        """The tokens of what a text answers, a list."""
        return self.tokens(self.target_of(row))

    def text(self, ids):
        return super().text(ids).replace(END_OF_TEXT, "")

    @classmethod
    def complete_prompt(cls, ids):
        """A question of a user fills all places of a source, with pads behind it: their id is 0."""
        return ids + [0] * (cls.source - len(ids))

    def draw(self, n, side, generator):
        rng = random.Random(int(torch.randint(2**62, (1,), generator=generator)))
        rows = []
        while len(rows) < n:
            source, code = self.question(rng)
            if (hash_fraction(f"{self.name} {code}") < SHARE) == (side == HELD_OUT):
                rows.append(self.row(source, self.draw_answer(source, rng)))
        frozen = torch.arange(self.length) < self.source  # (L,)
        return torch.tensor(rows), frozen.expand(n, -1)  # (n, L) each

    def draw_answer(self, source, rng):
        targets, chances = zip(*self.right_answers(source).items())
        return rng.choices(targets, chances)[0]

    # ---- what is known of the answers

    def chance(self, row):
        """p(target | source) of a text, 0 for what is no answer, or has words behind its end."""
        source, target = self.source_of(row), self.target_of(row)
        fits = "?" not in source + target and row == self.row(source, target)
        return self.right_answers(source).get(target, 0.0) if fits else 0.0

    def answer_nats(self, x):
        """-log p(target | source), exact. (n, L) -> (n,)"""
        chances = [max(self.chance(row), 1e-300) for row in x.tolist()]
        return -torch.tensor(chances, dtype=torch.float64).log()  # (n,)

    def answer_entropy(self, x):
        """H(target | source) of each source, (19.1). (n, L) -> (n,) nats"""
        each = (self.right_answers(self.source_of(row)).values() for row in x.tolist())
        nats = [-sum(p * math.log(p) for p in chances) for chances in each]
        return torch.tensor(nats, dtype=torch.float64)  # (n,)

    def redraw(self, x, seed=0):
        """Other answers to the sources of x, drawn from their exact distribution. -> (n, L)"""
        rng, sources = random.Random(seed), map(self.source_of, x.tolist())
        rows = [self.row(source, self.draw_answer(source, rng)) for source in sources]
        return torch.tensor(rows, device=x.device)  # (n, L)

    def solved(self, x):
        return torch.tensor([self.chance(row) > 0 for row in x.tolist()])  # (n,)

    def slots_right(self, x):
        """(19.4): 1 where nothing is missing and nothing invented. (n, L) -> (n,)"""
        shares = []
        for row in x.tolist():
            wanted, found = self.wanted(self.source_of(row)), self.slots(self.target_of(row))
            shares.append(len(wanted & found) / len(wanted | found))
        return torch.tensor(shares, dtype=torch.float64)  # (n,)

    def wanted(self, source):
        """The slots that an answer to a source must have."""
        return self.slots(next(iter(self.right_answers(source))))

    def score(self, x, label=None):
        x = x.cpu()  # (n, L)
        rows = [("slots right", self.slots_right(x))] if self.counts_slots else []
        return [*super().score(x), *rows]
