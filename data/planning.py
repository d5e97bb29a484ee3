"""
Chapter 20. Planning: find the way through a star graph (Bachmann and Nagarajan, 2403.06963).

    python -m data.planning                                      # print some

    abcdefghijk
    dj.bgchaike   c to f  ->  h g e k f      that f comes from k is what stands below f

`arms` ways of `steps` edges lead from the start to as many ends, one of which is the goal. The
question is a table: below each letter the letter from which an edge leads to it, or '.', if there
is none; then the start, the goal, and the answer is the way.

The first step is the only choice, and only the whole way behind it tells which is right: a model
that writes from left to right and has not learned to look ahead is right once in `arms` times. When
it learns, the letters that it has written already tell the next one (which letter comes from this
one?), so all but the first are learned without the goal. Read from the goal backwards, every letter
follows from the next one.

While training, some ways are left out, so that there are 1 to `arms` of them, equally often: to
find a letter in a table is learned in minutes if few letters stand there, and not if all do. Held
out puzzles have all ways. All graphs of one shape are the same up to the names of nodes, so puzzles
are held out by a hash of the text, and what is tested is whether any names will do.
"""
import torch

from data.puzzles import TRAIN, Puzzle, side_of
from script import one_line_errors

LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Planning(Puzzle):
    """What the data sets share: a star, whose nodes are letters."""
    arms, steps = 2, 5

    def __init_subclass__(cls):
        cls.nodes = cls.nothing = cls.arms * cls.steps + 1  # nothing: the id of '.'
        cls.symbols, cls.prompt = LETTERS[:cls.nodes] + ".", cls.nodes + 2
        cls.length = cls.prompt + cls.steps
        cls.name = f"planning{cls.arms}"
        cls.what = f"{cls.arms} ways of {cls.steps} steps, one of which leads to the goal"
        cls.defaults = dict(recipe_iters=1500, minutes=10.0, n_layer=3, n_head=2, n_embd=64,
                            batch_size=64, learned_places=True, block_size=cls.length)

    def draw(self, n, side, generator):
        names = torch.rand(2 * n, self.nodes, generator=generator).argsort(-1)  # (m, nodes)
        start, ways = names[:, :1], names[:, 1:].view(-1, self.arms, self.steps)  # (m, 1), (m,a,s)
        first = start[:, None].expand(-1, self.arms, 1)  # (m, a, 1)
        sources = torch.cat([first, ways[..., :-1]], -1)  # (m, a, s)
        if side == TRAIN:
            count = torch.randint(1, self.arms + 1, (2 * n, 1, 1), generator=generator)  # (m, 1, 1)
            there = torch.arange(self.arms)[:, None] < count  # (m, a, 1)
            sources = torch.where(there, sources, self.nothing)  # (m, a, s)
        table = torch.full_like(names, self.nothing)  # (m, nodes)
        table = table.scatter(1, ways.flatten(1), sources.flatten(1))  # (m, nodes)
        way = ways[:, 0]  # (m, s) names are random, so the first may be the right one
        x = torch.cat([table, start, way[:, -1:], way], 1)  # (m, L)
        x = x[side_of(x @ 31 ** torch.arange(self.length)) == side]  # (m', L) modulo 2^64
        frozen = torch.arange(self.length) < self.prompt  # (L,)
        return x, frozen.expand(len(x), -1)  # (m', L) each

    def solved(self, x):
        """Each letter comes from the one before it, and the last one is the goal."""
        way = x[:, self.prompt:]  # (n, s)
        before = torch.cat([x[:, self.nodes:self.nodes + 1], way[:, :-1]], 1)  # (n, s)
        source = x.gather(1, way.clamp(max=self.nodes - 1))  # (n, s)
        is_edge = (source == before) & (way < self.nodes)  # (n, s)
        return is_edge.all(-1) & (way[:, -1] == x[:, self.prompt - 1])  # (n,)


class Planning2(Planning):
    """Two ways of five steps."""


class Planning5(Planning):
    """Five ways of five steps."""
    arms = 5


def main():
    """Some graphs, with the way to the goal."""
    data = Planning2()
    print(data.about)
    for row in data.windows("val", 5):
        text = data.text(row.tolist())
        start, goal = text[data.nodes:data.prompt]
        print(f"\n{data.symbols[:data.nodes]}\n{text[:data.nodes]}   {start} to {goal}  ->  "
              f"{' '.join(text[data.prompt:])}")


if __name__ == "__main__":
    with one_line_errors():
        main()
