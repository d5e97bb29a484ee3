"""
Chapter 20. Puzzles as texts: a question that is given, an answer that a checker accepts or not.

    sudoku          4 x 4 and 9 x 9, one solution                       data/sudoku.py
    countdown       equations that lead from numbers to another one     data/countdown.py
    planning        the way through a star graph                        data/planning.py
    sat             values that make all clauses of a formula true      data/sat.py
    boolean         the value of a formula, bracket by bracket          data/boolean.py
    multiplication  of two numbers, step by step                        data/multiplication.py
    arithmetic      an expression that has a given value                data/arithmetic.py

Puzzles are made as training needs them, so no puzzle is seen twice on purpose, and nothing is
downloaded. A token is one symbol. A checker reads the question and the answer, and no stored
solution: where several answers are right, all of them count.

A puzzle is held out if it equals a held-out one up to its symmetries, which each file states.
A hash of the puzzle decides, so a puzzle is on the same side in every run.

Two formats. *In front*: the question, then the answer, which any method can learn. *In place*
(names that end in -in-place): one grid, whose clues are given where they stand. A method that
writes from left to right does not see the clues to the right then, so compare it in front.

With thoughts (names that end in -thoughts): the steps between the question and the answer are part
of the text, each as many tokens as `thoughts` says (docs/20-thoughts.md).
"""
import torch

from data.base import Dataset
from data.tokenizer import ONE_CHARACTER, grid, make_encoding
from flags import UserError

TRAIN, HELD_OUT = 0, 1  # sides of the split
SHARE = 0.2  # of the puzzles that are held out
SEEDS = {"train": 2_000_001, "val": 2_000_002, "test": 2_000_003}  # of the texts `windows` shows
MANY = 500


def hash_codes(code):
    """A number in [0, 1) for each integer: equal integers have equal numbers. (n,) -> (n,)"""
    mixed = code * -7046029254386353131  # (n,) 2^64 over the golden ratio, modulo 2^64
    mixed = (mixed ^ (mixed >> 29)) * -4658895280553007687  # (n,)
    return ((mixed >> 31) & 0xFFFFFF).double() / (1 << 24)  # (n,)


def side_of(code):
    """The side of a puzzle by a code of it, the same for all its symmetries. (n,) -> (n,)"""
    return torch.where(hash_codes(code) < SHARE, HELD_OUT, TRAIN)  # (n,)


def thought_at(length, lengths):
    """The number of the thought of each token, in texts that end in thoughts of these lengths. What
    stands before the first belongs to it. -> (length,)"""
    begins = length - torch.tensor([sum(lengths[i:]) for i in range(1, len(lengths))])  # (m - 1,)
    return (torch.arange(length)[:, None] >= begins).sum(-1)  # (length,)


class Puzzle(Dataset):
    """What all puzzles share. A subclass has symbols, name, length and

        draw(n, side, generator)   x (m, L), frozen (m, L): some puzzles of that side, solved
        solved(x)                  (m,) bool, whether the answers of texts are right; or
        right(x)                   (m, parts) bool, whether each thought is, and last the answer
    """
    splits = ("train", "val", "test")
    symbols = ""  # a character for each token
    line = None  # tokens per line; None: texts are one line
    length = None  # tokens of a text
    first_choice = "entropy"  # what is sure is written first
    is_text, independent_texts, counts_words, prompted = False, True, False, True

    def __init__(self, block_size=0):
        if block_size not in (0, self.length):
            raise UserError(f"{self.name} has texts of {self.length} tokens: leave out "
                            f"--block_size {block_size}")
        self.block_size, self.encoding = self.length, self.make_tokens()
        self.about = f"{self.name}: {self.what}"

    def make_tokens(self):
        """The encoding."""
        return grid(self.symbols, self.line) if self.line else make_encoding(
            "chars", ONE_CHARACTER, [symbol.encode() for symbol in self.symbols])

    @classmethod
    def load(cls, data, block_size=0, tokenizer="auto", vocab_size=1024, cache=None):
        return cls(block_size)

    def examples(self, split, n, generator=None):
        """n random puzzles of a split, with answers."""
        self.check_split(split)
        if generator is None:
            seed = int(torch.randint(2**62, (1,)))
            generator = torch.Generator().manual_seed(seed)
        side, parts, found = TRAIN if split == "train" else HELD_OUT, [], 0
        while found < n:
            x, frozen = self.draw(n, side, generator)  # (m, L) each
            parts.append((x, frozen))
            found += len(x)
        x, frozen = (torch.cat(part)[:n] for part in zip(*parts))  # (n, L) each
        return x, frozen, None

    def example_windows(self, split="val", most=None):
        """The same MANY puzzles every time, or `most` of them."""
        self.check_split(split)
        if split not in self.__dict__.setdefault("shown", {}):
            generator = torch.Generator().manual_seed(SEEDS[split])
            self.shown[split] = self.examples(split, MANY, generator)[:2]
        x, frozen = self.shown[split]  # (MANY, L) each
        rows = torch.linspace(0, len(x) - 1, min(most or len(x), len(x))).long()  # (m,)
        return x[rows], frozen[rows], None

    @property
    def train(self):
        return self.windows("train").flatten().numpy()  # (MANY L,)

    @property
    def val(self):
        return self.windows("val").flatten().numpy()  # (MANY L,)

    fingerprint = None  # its code makes it

    def solved(self, x):
        """The answer counts, whatever the thoughts were."""
        return self.right(x)[:, -1]  # (m,)

    def score(self, x, label=None):
        rows = [("solved", self.solved(x.cpu()).double())]
        if self.thoughts:
            right = self.right(x.cpu())[:, :-1].double()  # (n, thoughts)
            rows.append(("thoughts that are right", right.mean(-1)))
        return rows
