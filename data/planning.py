"""
Chapter 20. Planning: find the way through a star graph (Bachmann and Nagarajan, 2403.06963).

    python -m data.planning                                      # print some

    ab ea bd ...  e d  ->  a b d        the edges in any order, the start, the goal, then the way

`arms` ways of `steps` edges lead from the start to as many ends, one of which is the goal. The
first step is the only choice, and only the whole way behind it tells which is right: a model that
writes from left to right and has not learned to look ahead is right once in `arms` times. Read from
the goal backwards, every step follows from one edge.

All graphs of one shape are the same up to the names of nodes and the order of edges, so puzzles are
held out by a hash of the text, and what is tested is whether any names in any order will do.
"""
import torch

from data.puzzles import Puzzle, side_of
from script import one_line_errors


class Planning(Puzzle):
    """What the data sets share: a star, whose nodes are letters."""
    arms, steps = 2, 3
    symbols = "abcdefghijklmnopqrstuvwxyz"

    def __init_subclass__(cls):
        cls.edges, cls.nodes = cls.arms * cls.steps, cls.arms * cls.steps + 1
        cls.prompt = 2 * cls.edges + 2
        cls.length = cls.prompt + cls.steps
        cls.name = f"planning{cls.arms}"
        cls.what = f"{cls.arms} ways of {cls.steps} steps, one of which leads to the goal"
        cls.defaults = dict(recipe_iters=10000, n_layer=3, n_head=4, n_embd=64, batch_size=64,
                            block_size=cls.length)

    def draw(self, n, side, generator):
        rand = lambda *shape: torch.rand(*shape, generator=generator)
        names = rand(2 * n, len(self.symbols)).argsort(-1)[:, :self.nodes]  # (m, nodes)
        start, ways = names[:, :1], names[:, 1:].view(-1, self.arms, self.steps)  # (m, 1), (m,a,s)
        first = start[:, None].expand(-1, self.arms, 1)  # (m, a, 1)
        pairs = torch.stack([torch.cat([first, ways[..., :-1]], -1), ways], -1)  # (m, a, s, 2)
        order = rand(2 * n, self.edges, 1).argsort(1).expand(-1, -1, 2)  # (m, edges, 2)
        edges = pairs.flatten(1, 2).gather(1, order).flatten(1)  # (m, 2 edges)
        way = ways[:, 0]  # (m, s) names are random, so the first may be the right one
        x = torch.cat([edges, start, way[:, -1:], way], 1)  # (m, L)
        x = x[side_of(x @ 31 ** torch.arange(self.length)) == side]  # (m', L) modulo 2^64
        frozen = torch.arange(self.length) < self.prompt  # (L,)
        return x, frozen.expand(len(x), -1)  # (m', L) each

    def solved(self, x):
        """Each step is an edge, and the last one ends at the goal."""
        pairs = x[:, :2 * self.edges].view(-1, self.edges, 2)  # (n, edges, 2)
        way = torch.cat([x[:, self.prompt - 2:self.prompt - 1], x[:, self.prompt:]], 1)  # (n, s+1)
        steps = torch.stack([way[:, :-1], way[:, 1:]], -1)  # (n, s, 2)
        is_edge = (steps[:, :, None] == pairs[:, None]).all(-1).any(-1)  # (n, s)
        return is_edge.all(-1) & (way[:, -1] == x[:, self.prompt - 1])  # (n,)


class Planning2(Planning):
    """Two ways of three steps."""


class Planning5(Planning):
    """Five ways of three steps."""
    arms = 5


def main():
    """Some graphs, with the way to the goal."""
    data = Planning2()
    print(data.about)
    for row in data.windows("val", 5):
        text = data.text(row.tolist())
        edges = " ".join(text[2 * i:2 * i + 2] for i in range(data.edges))
        print(f"{edges}   {text[data.prompt - 2]} to {text[data.prompt - 1]}: "
              f"{' '.join(text[data.prompt:])}")


if __name__ == "__main__":
    with one_line_errors():
        main()
