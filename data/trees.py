"""
Chapter 17. Grammars, and trees in prefix notation.

A tree is a tuple of symbols, each node before its children: + 1 * 2 3 is 1 + 2 * 3. A node is known
by where it begins, and ends where as many subtrees are complete as its symbol asks for (in infix
notation several nodes would begin at one symbol). The size of a tree is the number of its leaves.

    TreeGrammar    how many children each symbol has, and the most leaves of a tree
    TreeTask   of a data set whose texts are a prompt, a tree and a fill: what a tree is worth
"""
import random
from math import comb, prod

import torch


def python_random(generator=None):
    """Python's random numbers, seeded by torch's, or by a generator of torch."""
    return random.Random(int(torch.randint(2**62, (1,), generator=generator)))


class TreeGrammar:
    """children: {symbol: how many}; limit: the most leaves of a tree. Random numbers are those of a
    random.Random."""

    def __init__(self, children, limit):
        self.children, self.limit = children, limit
        self.leaves = [symbol for symbol, n in children.items() if n == 0]
        self.operators = [symbol for symbol, n in children.items() if n >= 2]

    def end(self, tree, i=0):
        """Where the subtree that begins at i ends; None if it is not complete."""
        open = 1
        while open:
            if i == len(tree) or tree[i] not in self.children:
                return None
            open, i = open + self.children[tree[i]] - 1, i + 1
        return i

    def ends(self, tree):
        """`end` of every node."""
        ends, waiting = [0] * len(tree), []
        for i in range(len(tree) - 1, -1, -1):
            last = i + 1
            for _ in range(self.children[tree[i]]):
                last = waiting.pop()
            waiting.append(last)
            ends[i] = last
        return ends

    def parses(self, tree):
        """Whether it is one whole tree of at most `limit` leaves."""
        return self.end(tree) == len(tree) and self.size(tree) <= self.limit

    def size(self, tree):
        """The number of leaves."""
        return sum(not self.children[symbol] for symbol in tree)

    def parts(self, tree, i=0):
        """Where the children of the node at i begin."""
        starts, at = [], i + 1
        for _ in range(self.children[tree[i]]):
            starts.append(at)
            at = self.end(tree, at)
        return starts

    def draw(self, n, rng):
        """A random tree of n leaves: any operator with at most as many children, whose sizes are
        any that add up to n."""
        if n == 1:
            return (rng.choice(self.leaves),)
        symbol = rng.choice([s for s in self.operators if self.children[s] <= n])
        cuts = sorted(rng.sample(range(1, n), self.children[symbol] - 1))
        sizes = [b - a for a, b in zip([0, *cuts], [*cuts, n])]
        return (symbol, *(s for size in sizes for s in self.draw(size, rng)))

    def chance(self, tree):
        """The probability of a tree among those of its size, under `draw`."""
        n, fit = self.size(tree), [s for s in self.operators if self.children[s] <= self.size(tree)]
        if n == 1:
            return 1 / len(self.leaves)
        starts = self.parts(tree)
        parts = [tree[a:b] for a, b in zip(starts, [*starts[1:], len(tree)])]
        return prod(map(self.chance, parts)) / len(fit) / comb(n - 1, len(parts) - 1)

    def draw_any(self, rng):
        """A random tree of a random size."""
        return self.draw(rng.randint(1, self.limit), rng)


class TreeTask(TreeGrammar):
    """A text is a prompt of `prompt` tokens, a tree, and `fill` up to `width` tokens of both. A
    subclass says what a tree is worth:

        outcome(prompt, tree)   `worth` tokens that a network is shown
        solves(prompt, tree)    whether the tree is what the prompt asks for
    """
    prompt = fill = width = worth = None

    def split(self, row):
        """A text as a prompt and a tree, which is None if it does not parse."""
        row = tuple(row)
        prompt, rest = row[:self.prompt], row[self.prompt:]
        tree = rest[:rest.index(self.fill)] if self.fill in rest else rest
        fits = self.parses(tree) and set(rest[len(tree):]) <= {self.fill}
        return prompt, tree if fits else None

    def join(self, prompt, tree):
        """The text of a prompt and a tree, a list."""
        return [*prompt, *tree, *[self.fill] * (self.width - len(tree))]
