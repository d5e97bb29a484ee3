"""
Chapter 17. Arithmetic: an expression whose value is given.

    python -m data.arithmetic                                    # print some

    +24=  ->  +*37+12..     3 * 7 + (1 + 2)

An expression stands in prefix notation, an operator before what it joins: at most five digits from
1 to 9, and + - *. The target is a sign and two digits. Behind the expression the text is filled up
with dots. In training a target is the value of a random expression: a random number of digits, a
random operator, and so on down; of the texts of a batch a sixteenth or so may have one target,
since small ones are frequent. Any expression with the right value counts. A fifth of the 199
targets is held out, so an expression that was learned for a target is of no use there.
"""
from collections import Counter

import torch

from data.puzzles import Puzzle, side_of
from data.trees import TreeTask, python_random
from script import one_line_errors

LEAVES, MOST = 5, 99  # digits of an expression; the largest target
PLUS, MINUS, TIMES, EQUALS, FILL = 10, 11, 12, 13, 14  # ids: 0 .. 9 are digits
OPERATIONS = {PLUS: int.__add__, MINUS: int.__sub__, TIMES: int.__mul__}


def value_of(tree):
    """The value of an expression: from right to left, an operator takes the last two values."""
    values = []
    for symbol in reversed(tree):
        operation = OPERATIONS.get(symbol)
        values.append(operation(values.pop(), values.pop()) if operation else symbol)
    return values[0]


def signed(value, digits):
    """A sign and digits, the largest number that they can spell at most. -> list of ids"""
    size = min(abs(value), 10**digits - 1)
    return [MINUS if value < 0 else PLUS, *map(int, f"{size:0{digits}}")]


class Expressions(TreeTask):
    """Expressions, and what they are worth: a sign and three digits, 999 for all beyond."""
    prompt, fill, width, worth = 4, FILL, 2 * LEAVES - 1, 4

    def __init__(self):
        super().__init__({**dict.fromkeys(range(1, 10), 0), **dict.fromkeys(OPERATIONS, 2)}, LEAVES)

    def outcome(self, prompt, tree):
        return signed(value_of(tree), 3)

    def solves(self, prompt, tree):
        value = value_of(tree)
        return abs(value) <= MOST and (*signed(value, 2), EQUALS) == tuple(prompt)


class Arithmetic(Puzzle):
    """Expressions that hit a target."""
    name, symbols, length = "arithmetic", "0123456789+-*=.", 4 + 2 * LEAVES - 1
    what = f"a target up to {MOST}, and an expression of up to {LEAVES} digits that has this value"
    trees = Expressions()
    defaults = dict(recipe_iters=6000, n_layer=3, n_head=4, n_embd=64, batch_size=64,
                    block_size=length)

    def draw(self, n, side, generator):
        rng = python_random(generator)
        sides = side_of(torch.arange(-MOST, MOST + 1))  # (2 MOST + 1,)
        allowed = {value - MOST for value in (sides == side).nonzero()[:, 0].tolist()}
        found, times = [], Counter()
        while len(found) < n:
            tree = self.trees.draw_any(rng)
            value = value_of(tree)
            if value in allowed and times[value] <= n // 16:
                times[value] += 1
                found.append(self.trees.join([*signed(value, 2), EQUALS], tree))
        frozen = torch.arange(self.length) < self.trees.prompt  # (L,)
        return torch.tensor(found), frozen.expand(n, -1)  # (n, L) each

    def solved(self, x):
        pairs = map(self.trees.split, x.tolist())
        return torch.tensor([tree is not None and self.trees.solves(prompt, tree)
                             for prompt, tree in pairs])  # (n,)


def main():
    """Some targets, with an expression for each."""
    data = Arithmetic()
    print(data.about)
    for row in data.windows("val", 5):
        print(data.text(row.tolist()))


if __name__ == "__main__":
    with one_line_errors():
        main()
