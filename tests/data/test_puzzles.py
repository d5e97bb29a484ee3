"""Puzzles: answers are right, wrong ones are refused, and what is held out is not learned."""
import random
from functools import lru_cache, partial
from itertools import permutations

import pytest
import torch

from data import DATASETS, load_data
from data.countdown import all_answers
from data.puzzles import HELD_OUT, TRAIN, Puzzle, side_of
from data.sudoku import (
    geometry,
    is_solution,
    random_grids,
    small_grids,
    solutions,
    units,
)
from flags import UserError, load_row

PUZZLES = [name for name in DATASETS
           if "*" not in name and issubclass(load_row(DATASETS, name), Puzzle)]
SUDOKU = [name for name in PUZZLES if name.startswith("sudoku")]
loaded = lru_cache(partial(load_data, block_size=0))  # of a name
each_puzzle = pytest.mark.parametrize("name", PUZZLES)


def some(name, n=40, split="train", seed=0):
    data = loaded(name)
    return data, *data.examples(split, n, torch.Generator().manual_seed(seed))[:2]


@each_puzzle
def test_answers_are_right_and_one_wrong_token_makes_most_of_them_wrong(name):
    """Or a thought. Countdown and sat have other answers: there a wrong number is one that does not
    follow, and a wrong value one that breaks a clause."""
    data, x, frozen = some(name)
    all_right = lambda x: torch.stack([values for _, values in data.score(x)]).amin(0)  # (n,)
    assert data.solved(x).all() and (all_right(x) == 1).all()
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        cell = torch.rand(x.shape, generator=generator).masked_fill(frozen, -1).argmax(-1)  # (n,)
        step = torch.randint(1, len(data.symbols), cell.shape, generator=generator)  # (n,)
        wrong = x.clone()  # (n, L)
        wrong[range(len(x)), cell] = (x[range(len(x)), cell] + step) % len(data.symbols)  # (n,)
        assert (all_right(wrong) == 1).double().mean() < 0.05
    assert not data.solved(torch.where(frozen, x, data.encoding.n_vocab)).any()  # masks


@each_puzzle
def test_a_question_is_given_and_an_answer_is_not(name):
    data, x, frozen = some(name)
    in_place = name.endswith("in-place")
    assert frozen.any(-1).all() and (~frozen).any(-1).all()
    assert in_place or (frozen == frozen.cumprod(-1).bool()).all()  # in front
    assert data.first_choice == "entropy" and data.prompted and not data.answers
    assert load_data(name, data.length).block_size == data.length
    with pytest.raises(UserError, match=f"texts of {data.length} tokens: leave out --block_size"):
        load_data(name, data.length + 1)


@each_puzzle
def test_splits_are_not_drawn_from_one_set(name):
    """What is learned is in no held-out set; `val` and `test` are two draws of what is held out."""
    data, x, _ = some(name, 80)
    _, held, _ = some(name, 80, "val", seed=1)
    rows = [set(map(tuple, a.tolist())) for a in (x, held)]
    assert not rows[0] & rows[1]
    shown = [set(map(tuple, data.windows(split, 80).tolist())) for split in ("val", "test")]
    assert shown[0] != shown[1] and not rows[0] & (shown[0] | shown[1])


# ---- Sudoku

@pytest.mark.parametrize("name", SUDOKU)
def test_a_sudoku_has_the_one_solution_that_stands_there(name):
    data, x, frozen = some(name, 12, "val")
    clues = x * frozen if data.in_place else x[:, :data.cells]  # (n, cells)
    for row, answer in zip(clues, x[:, -data.cells:].tolist()):
        assert solutions(row, data.box, 3) == [answer]
    low, high = {2: (5, 9), 3: (36, 60)}[data.box]
    count = (clues > 0).sum(-1)  # (n,)
    assert low <= count.min() and count.max() <= high


@pytest.mark.parametrize("name", SUDOKU)
def test_the_cells_at_fault_are_those_that_repeat_a_digit_or_contradict_a_clue(name):
    """By definition; a grid is solved if it is full and none is at fault."""
    data, x, frozen = some(name, 6, "val")
    generator = torch.Generator().manual_seed(0)
    dice = torch.rand(x.shape, generator=generator).masked_fill(frozen, 1)  # (n, L)
    digit = torch.randint(data.side + 1, x.shape, generator=generator)  # (n, L)
    noisy = torch.where(dice < 0.1, digit, torch.where(dice < 0.3, data.encoding.n_vocab, x))
    assert not data.faults(x).any() and data.faults(noisy).any()
    for z, found in zip((x.tolist() + noisy.tolist()), data.faults(torch.cat([x, noisy])).tolist()):
        answer, clues = z[-data.cells:], z[:data.cells]
        for cell, digit in enumerate(answer):
            mine = [unit for unit in units(data.box).tolist() if cell in unit]
            twice = any([answer[c] for c in unit].count(digit) > 1 for unit in mine)
            other = not data.in_place and clues[cell] not in (0, digit)
            wrong = digit == 0 or digit <= data.side and (twice or other)
            assert found[-data.cells:][cell] == wrong
        assert not any(found[:-data.cells])
        full = max(answer) <= data.side
        assert (full and not any(found)) == data.solved(torch.tensor([z])).item()


def test_there_are_288_grids_of_4_x_4_in_twelve_classes_of_which_three_are_held_out():
    grids, held = small_grids()  # (288, 16), (288,)
    assert len(grids.unique(dim=0)) == 288 and is_solution(grids, 2).all() and held.sum() == 72
    assert len(geometry(2).unique(dim=0)) == 128
    for names in permutations(range(1, 5)):  # renaming digits does not change the side
        renamed = torch.tensor([0, *names])[grids]  # (288, 16)
        same = (renamed[:, None] == grids).all(-1)  # (288, 288)
        assert torch.equal(held[same.int().argmax(-1)], held)


def first_seen(row):
    """A row with its digits in the order in which they occur."""
    order = {0: 0}
    return tuple(order.setdefault(digit, len(order)) for digit in row)


def test_no_symmetry_makes_a_held_out_sudoku_of_4_x_4_one_that_is_learned():
    """By brute force: all 128 moves of the cells, and all names of digits."""
    def clues(split, n, seed):
        _, x, frozen = some("sudoku4-in-place", n, split, seed)
        return x * frozen, x  # (n, 16) each
    (learned, solved), (held, held_solved) = clues("train", 1500, 0), clues("val", 60, 1)
    learned = {first_seen(row) for row in learned.tolist()}
    for row in held:
        assert not learned & {first_seen(moved) for moved in row[geometry(2)].tolist()}
    one = next(iter(learned))  # the comparison finds what is the same
    turned = torch.tensor(one)[geometry(2)[77]]  # (16,)
    assert one in {first_seen(moved) for moved in turned[geometry(2)].tolist()}
    names = [{first_seen(row) for row in a.tolist()} for a in (solved, held_solved)]
    assert not names[0] & names[1]


def shape_of(grid):
    """A number that no symmetry of a 9 x 9 grid changes: for pairs of lines in a band, the lengths
    of the cycles of the permutation between them. grid: 81 digits"""
    side = torch.tensor(grid).view(9, 9)
    both = []
    for lines in (side, side.T):
        lines, bands = lines.tolist(), []
        for band in range(3):
            cycles = []
            for a, b in ((0, 1), (0, 2), (1, 2)):
                to = dict(zip(lines[3 * band + a], lines[3 * band + b]))
                sizes = []
                while to:
                    size, digit = 0, next(iter(to))
                    while digit in to:
                        digit, size = to.pop(digit), size + 1
                    sizes.append(size)
                cycles.append(tuple(sorted(sizes)))
            bands.append(tuple(sorted(cycles)))
        both.append(tuple(sorted(bands)))
    return tuple(sorted(both))


def test_no_symmetry_makes_a_held_out_grid_of_9_x_9_one_that_is_learned():
    data = loaded("sudoku9-in-place")
    shapes = [shape_of(grid) for grid in random_grids().tolist()]
    held = int(0.2 * len(shapes))
    assert not set(shapes[:held]) & set(shapes[held:])
    for split, kinds in (("val", shapes[:held]), ("train", shapes[held:])):
        x = data.examples(split, 20, torch.Generator().manual_seed(3))[0]  # (20, 81)
        assert {shape_of(grid) for grid in x.tolist()} <= set(kinds)


def test_search_finds_all_solutions_and_none_of_a_contradiction():
    assert len(solutions([0] * 16, 2, 1000)) == 288
    assert len(solutions([1, 2, 3, 4, 3, 4, 1, 2] + [0] * 8, 2, 1000)) == 4
    assert solutions([1, 1] + [0] * 14, 2) == []
    assert len(solutions([0] * 81, 3, 2, random.Random(0))) == 2
    assert units(3).shape == (27, 9) and (units(3).flatten().bincount() == 3).all()


# ---- Countdown

def as_text(data, text):
    return torch.tensor([[data.symbols.index(symbol) for symbol in text]])  # (1, L)


def test_all_answers_of_countdown_count_and_nothing_else_does():
    data, question = load_data("countdown3", 0), "02030615"
    right = all_answers([2, 3, 6], 15)
    assert "03*061818-0315" not in right and "02*061212+0315" in right and "03+021515" not in right
    assert all(data.solved(as_text(data, question + text)) for text in right)
    for wrong in ("03*051515/0115", "02+030506+0915", "06+060912+0315", "02*061202*0612",
                  "02*061213+0215", "03*030906+0915", "02/030006+0915", "02*0612+120315"):
        assert not data.solved(as_text(data, question + wrong)), wrong
    rng, found = random.Random(0), 0
    for text in sorted(right):
        for _ in range(20):
            i = rng.randrange(14)
            other = text[:i] + rng.choice(data.symbols) + text[i + 1:]
            assert bool(data.solved(as_text(data, question + other))) == (other in right)
            found += other not in right
    assert found > 60


def test_the_order_of_numbers_does_not_change_the_side_of_countdown():
    _, x, _ = some("countdown3", 300)
    _, held, _ = some("countdown3", 300, "val")

    def keys(x):
        return {(*sorted((10 * row[:6:2] + row[1:6:2]).tolist()), *row[6:8].tolist()) for row in x}
    assert not keys(x) & keys(held)


def test_a_fifth_of_all_codes_is_held_out():
    side = side_of(torch.arange(20_000))  # (20000,)
    assert set(side.unique().tolist()) == {TRAIN, HELD_OUT}
    assert abs(side.double().mean() - 0.2) < 0.015
