"""
Chapter 20. Sudoku, 4 x 4 and 9 x 9: each digit once in every row, column and box.

    python -m data.sudoku                                        # print some, with their solutions
    python train.py --data sudoku4-in-place --method mgdm        # clues stay where they stand
    python train.py --data sudoku4 --method ar                   # clues first, then the whole grid

Digit 0 is an empty cell. All puzzles have one solution.

4 x 4   5 to 9 clues of one of the 288 grids, such that no other grid has them. A fifth is held out
        by the places of the clues, up to the symmetries of the grid (rows and columns within a
        band, bands, transposition), and of the grids themselves 3 of the 12 classes that differ by
        more than the names of digits. So neither a puzzle, under any of its 3,072 symmetries, nor
        its solution, under any names, is ever on both sides.

9 x 9   One of 100 random grids under a random symmetry (there are 1.2 10^12); a fifth of the grids
        is held out. Cells are emptied one by one, each only while the other cells of its row,
        column and box show all other digits, until 36 to 45 clues are left or no cell can be
        emptied (44 are left on average). Read backwards, that is a solution in which each step
        follows from what stands there (naked singles): the puzzle is easy, and no search is
        needed to know that it has no second solution.
"""
import random
from functools import cache
from itertools import permutations, product

import torch

from data.puzzles import HELD_OUT, SHARE, Puzzle, side_of
from script import one_line_errors

GRIDS = 100  # of 9 x 9, each in 1.2 10^12 forms


# ---- rules

@cache
def units(box):
    """The rows, columns and boxes, as cells. -> (3 side, side)"""
    side = box * box
    cell = torch.arange(side * side).view(side, side)  # (side, side)
    boxes = cell.view(box, box, box, box).transpose(1, 2).reshape(side, side)  # (side, side)
    return torch.cat([cell, cell.T, boxes])  # (3 side, side)


@cache
def peers(box):
    """Whether two cells share a unit, and are not the same. -> (cells, cells) float"""
    at = torch.zeros(3 * box**2, box**4).scatter(1, units(box), 1.0)  # (3 side, cells)
    return ((at.T @ at) > 0).float().fill_diagonal_(0)  # (cells, cells)


def is_solution(cells, box):
    """Whether grids hold each digit once in every unit. cells (n, side^2) -> (n,) bool"""
    side = box * box
    digits = cells[:, units(box)].sort(-1).values  # (n, 3 side, side)
    return (digits == torch.arange(1, side + 1)).all(-1).all(-1)  # (n,)


@cache
def free_digits(side):
    """The digits that are not in a set of digits, whose bits are the index. -> lists"""
    return [[digit for digit in range(1, side + 1) if not bits >> digit & 1]
            for bits in range(2 << side)]


def solutions(clues, box, most=2, rng=None):
    """Up to `most` grids that have these clues, by search. clues: side^2 digits, 0 where empty.

    The cell with the fewest digits left comes first, its digits in random order if rng is given.
    """
    side, see = box * box, [row.nonzero()[:, 0].tolist() for row in peers(box)]
    cells, found, homes = list(map(int, clues)), [], units(box).tolist()
    if any(cells[c] and cells[c] in (cells[p] for p in see[c]) for c in range(side * side)):
        return found
    home = [[u for u, unit in enumerate(homes) if c in unit] for c in range(side * side)]
    used = [sum({1 << cells[c] for c in unit if cells[c]}) for unit in homes]  # digits, as bits
    free = free_digits(side)

    def search():
        left = {c: free[used[i] | used[j] | used[k]] for c, (i, j, k) in enumerate(home)
                if not cells[c]}
        if not left:
            found.append(list(cells))
            return
        c = min(left, key=lambda c: (len(left[c]), rng.random() if rng else c))
        digits = list(left[c])
        if rng:
            rng.shuffle(digits)
        for digit in digits:
            cells[c] = digit
            for u in home[c]:
                used[u] ^= 1 << digit
            search()
            for u in home[c]:
                used[u] ^= 1 << digit
            if len(found) >= most:
                break
        cells[c] = 0
    search()
    return found


# ---- symmetries

def line_orders(box):
    """All orders of rows that keep bands together. -> (box!^(box + 1), side)"""
    orders = []
    for bands in permutations(range(box)):
        for within in product(permutations(range(box)), repeat=box):
            orders.append([band * box + row for band, rows in zip(bands, within) for row in rows])
    return torch.tensor(orders)  # (orders, side)


@cache
def geometry(box):
    """The symmetries of a small grid that move cells. -> (symmetries, cells)"""
    side, orders = box * box, line_orders(box)  # (orders, side)
    moved = orders[:, None, :, None] * side + orders[None, :, None, :]  # (o, o, side, side)
    moved = torch.cat([moved, moved.transpose(-1, -2)])  # (2 o, o, side, side)
    return moved.flatten(0, 1).flatten(1)  # (2 o^2, cells)


def kinds_of_grids(grids):
    """The class of each grid: the same for grids that differ in the names of digits. (n, cells) ->
    (n,) int"""
    same = grids[:, :, None] == grids[:, None, :]  # (n, cells, cells)
    return same.flatten(1).unique(dim=0, return_inverse=True)[1]  # (n,)


def places_up_to_symmetry(given):
    """A number for the places of clues in a 4 x 4 grid, the same for all its symmetries. given
    (n, 16) bool -> (n,) int"""
    power = 2 ** torch.arange(16, dtype=torch.int32)  # (16,)
    return (given.int()[:, geometry(2)] * power).sum(-1).amin(-1)  # (n,) of (n, 128, 16)


def shuffle_grids(cells, box, generator):
    """A random symmetry of each grid. cells (n, side^2) -> (n, side^2)"""
    n, side = len(cells), box * box

    def lines():  # (n, side) an order of rows that keeps bands together
        bands = torch.rand(n, box, generator=generator).argsort(-1)  # (n, box)
        rows = torch.rand(n, box, box, generator=generator).argsort(-1)  # (n, box, box)
        return (bands[..., None] * box + rows).flatten(1)  # (n, side)
    moved = lines()[:, :, None] * side + lines()[:, None, :]  # (n, side, side)
    turned = torch.rand(n, 1, 1, generator=generator) < 0.5  # (n, 1, 1)
    moved = torch.where(turned, moved.transpose(1, 2), moved).flatten(1)  # (n, cells)
    names = torch.rand(n, side, generator=generator).argsort(-1) + 1  # (n, side)
    return names.gather(1, cells.gather(1, moved) - 1)  # (n, cells)


def empty_cells(cells, box, left, generator):
    """Empty cells until `left` (n,) clues are left, or none can be emptied whose digit its peers
    leave no choice. cells (n, side^2) -> clues (n, side^2)"""
    side, clues = box * box, cells.clone()
    for _ in range(side * side - int(left.min())):
        one_hot = torch.nn.functional.one_hot(clues, side + 1).float()  # (n, cells, side + 1)
        seen = (peers(box) @ one_hot)[..., 1:] > 0  # (n, cells, side) digits of the peers
        free = (clues > 0) & (seen.sum(-1) == side - 1)  # (n, cells)
        free &= ((clues > 0).sum(-1) > left)[:, None]  # (n, cells)
        score = torch.rand(clues.shape, generator=generator) * free  # (n, cells)
        best, cell = score.max(-1, keepdim=True)  # (n, 1) each
        clues = torch.where((best > 0), clues.scatter(1, cell, 0), clues)  # (n, cells)
    return clues


@cache
def random_grids(n=GRIDS):
    """9 x 9 grids, always the same. -> (n, 81)"""
    rng = random.Random(2_000_000)
    return torch.tensor([solutions([0] * 81, 3, 1, rng)[0] for _ in range(n)])  # (n, 81)


@cache
def small_grids():
    """All 4 x 4 grids, and whether they are held out. -> (288, 16), (288,) bool"""
    grids = torch.tensor(solutions([0] * 16, 2, most=288))  # (288, 16)
    return grids, kinds_of_grids(grids) % 4 == 1  # (288, 16), (288,)


# ---- data sets

class Sudoku(Puzzle):
    """What the four data sets share: cells in front of their solution, or in place."""
    box, in_place, clue_counts = 2, False, (5, 9)

    def __init_subclass__(cls):
        cls.side = cls.box**2
        cls.cells = cls.side**2
        cls.length = cls.cells if cls.in_place else 2 * cls.cells
        cls.symbols, cls.line = "_123456789"[:cls.side + 1], cls.side
        cls.defaults = dict(cls.defaults, learned_places=True, block_size=cls.length)

    def as_text(self, clues, solution):
        """-> x, frozen (n, L)"""
        if self.in_place:
            return solution, clues > 0  # (n, cells) each
        frozen = torch.arange(self.length) < self.cells  # (L,)
        return torch.cat([clues, solution], 1), frozen.expand(len(clues), -1)  # (n, L) each

    def solved(self, x):
        """In place, given cells cannot change; in front, the answer must repeat them."""
        answer = x[:, -self.cells:].clamp(max=self.side)  # (n, cells)
        right = is_solution(answer, self.box) & (x[:, -self.cells:] <= self.side).all(-1)  # (n,)
        clues = x[:, :self.cells]  # (n, cells)
        return right & (self.in_place | ((clues == 0) | (clues == answer)).all(-1))  # (n,)


    @classmethod
    def faults(cls, x):
        """Cells with the digit of another one in their unit, with none, or, in front, with another
        digit than the clue says. x (n, L) with ids beyond the digits where nothing is written yet
        -> (n, L) bool"""
        answer, clues = x[:, -cls.cells:], x[:, :cls.cells]  # (n, cells) each
        digit = (answer > 0) & (answer <= cls.side)  # (n, cells)
        same = answer[:, :, None] == answer[:, None, :]  # (n, cells, cells)
        wrong = (same & (peers(cls.box) > 0)).any(-1) & digit | (answer == 0)  # (n, cells)
        if not cls.in_place:
            wrong |= digit & (clues > 0) & (clues != answer)  # (n, cells)
        return torch.nn.functional.pad(wrong, (cls.length - cls.cells, 0))  # (n, L)


class Sudoku4(Sudoku):
    """4 x 4, clues in front."""
    name, what = "sudoku4", "4 x 4, 5 to 9 clues, one solution"
    defaults = dict(recipe_iters=4000, n_layer=3, n_head=4, n_embd=64, batch_size=64)

    def draw(self, n, side, generator):
        grids, held = small_grids()  # (288, 16), (288,)
        ours = grids[held == (side == HELD_OUT)]  # (m, 16)
        solution = ours[torch.randint(len(ours), (4 * n,), generator=generator)]  # (4 n, 16)
        low, high = self.clue_counts
        count = torch.randint(low, high + 1, (4 * n, 1), generator=generator)  # (4 n, 1)
        given = torch.rand(solution.shape, generator=generator).argsort(-1) < count  # (4 n, 16)
        kept = side_of(places_up_to_symmetry(given)) == side  # (4 n,)
        clues, solution = (solution * given)[kept], solution[kept]  # (k, 16) each
        small = clues.to(torch.int8)[:, None]  # (k, 1, 16)
        fits = ((small == 0) | (small == grids.to(torch.int8))).all(-1).sum(-1)  # (k,) of 288
        return self.as_text(clues[fits == 1], solution[fits == 1])


class Sudoku4InPlace(Sudoku4):
    """4 x 4, clues in place."""
    name, in_place = "sudoku4-in-place", True


class Sudoku9(Sudoku):
    """9 x 9, clues in front."""
    name, what = "sudoku9", "9 x 9, about 44 clues, solved by naked singles"
    box, clue_counts = 3, (36, 45)
    defaults = dict(recipe_iters=1000, minutes=10.0, n_layer=3, n_head=4, n_embd=64, batch_size=32)

    def draw(self, n, side, generator):
        held = int(SHARE * GRIDS)
        low, high = (0, held) if side == HELD_OUT else (held, GRIDS)
        number = torch.randint(low, high, (n,), generator=generator)  # (n,)
        solution = shuffle_grids(random_grids()[number], 3, generator)  # (n, 81)
        low, high = self.clue_counts
        count = torch.randint(low, high + 1, (n,), generator=generator)  # (n,)
        return self.as_text(empty_cells(solution, 3, count, generator), solution)


class Sudoku9InPlace(Sudoku9):
    """9 x 9, clues in place."""
    name, in_place = "sudoku9-in-place", True


def main():
    """Some puzzles of each size, their solutions, and the numbers of solutions."""
    for data in (Sudoku4InPlace(), Sudoku9InPlace()):
        x, frozen, _ = data.example_windows("val", 3)  # (3, L) each
        for cells, given in zip(x, frozen):
            pair = (data.text(row.tolist()).split("\n") for row in (cells * given, cells))
            print(*("   ".join(lines) for lines in zip(*pair)), sep="\n")
            print(f"{len(solutions(cells * given, data.box, 10))} solution\n")
        print(data.about)


if __name__ == "__main__":
    with one_line_errors():
        main()
