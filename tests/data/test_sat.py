"""Satisfiability: solutions are counted exactly, all of them count, and copies under other names
are on one side of the split. Everything by brute force, in plain Python."""
import random
from itertools import combinations, permutations, product
from math import comb

import pytest
import torch

from data import load_data
from data.sat import all_clauses, code_of

NAMES = ("sat5", "sat5-unique", "sat7", "sat9")


def formulas(name, n, split="val", seed=0):
    data = load_data(name, 0)
    return data, data.examples(split, n, torch.Generator().manual_seed(seed))[0]


def clauses_of(data, row):
    """The clauses of a text as pairs (variable, whether it is negated)."""
    text = data.text(row.tolist())[:data.prompt]
    literals = [(symbol.lower(), symbol.isupper()) for symbol in text]
    return [literals[i:i + 3] for i in range(0, len(literals), 3)]


def satisfies(values, clauses):
    return all(any(values[v] != negated for v, negated in clause) for clause in clauses)


def solutions_of(data, row):
    names, clauses = "abcdefghi"[:data.n], clauses_of(data, row)
    return [values for values in product((False, True), repeat=data.n)
            if satisfies(dict(zip(names, values)), clauses)]


@pytest.mark.parametrize("name", NAMES)
def test_solutions_are_counted_and_each_of_them_and_nothing_else_is_accepted(name):
    data, x = formulas(name, 4)
    for row, count in zip(x, data.count_solutions(x)):
        solutions = solutions_of(data, row)
        assert len(solutions) == count >= 1 and (data.most is None or count == 1)
        values = torch.tensor(list(product((0, 1), repeat=data.n))) + 2 * data.n  # (2^n, n)
        texts = torch.cat([row[:data.prompt].expand(len(values), -1), values], 1)  # (2^n, L)
        accepted = {tuple(v) for v in (values[data.solved(texts)] == 2 * data.n + 1).tolist()}
        assert accepted == set(solutions)
        clauses = [frozenset(clause) for clause in clauses_of(data, row)]
        assert len({v for clause in clauses for v, _ in clause}) <= data.n
        assert len(set(clauses)) == data.m and all(len({v for v, _ in c}) == 3 for c in clauses)


def test_every_solution_is_the_answer_as_often_as_another():
    """Of one formula with three, drawn 3,000 times: each 1,000 times, within 4 standard errors."""
    data, x = formulas("sat5", 300)
    assert set(data.count_solutions(x).tolist()) > {1, 2, 3}
    count = torch.ones(3000, 32, dtype=torch.int8)  # (k, 2^n)
    count[:, [5, 19, 30]] = 0
    clauses = data.clauses_of(x[:1]).expand(3000, -1, -1)  # (k, m, 3)
    data.formulas = lambda k, generator: (clauses, count)
    both = [data.draw(1, side, torch.Generator().manual_seed(1))[0] for side in (0, 1)]
    drawn, = [x for x in both if len(x)]  # (k, L) a formula has one side
    number = (drawn[:, data.prompt:] - 10) @ 2 ** torch.arange(5).flip(0)  # (k,)
    seen = number.bincount(minlength=32)  # (32,)
    assert seen.nonzero()[:, 0].tolist() == [5, 19, 30]
    assert (seen[[5, 19, 30]] - 1000).abs().max() < 4 * (3000 * 2 / 9) ** 0.5


@pytest.mark.parametrize("name", ["sat5", "sat7"])
def test_random_formulas_have_as_many_solutions_as_the_formula_says(name):
    """2^n C(7 C(n, 3), m) / C(8 C(n, 3), m), in the mean within 4 standard errors."""
    data, n = load_data(name, 0), 4000
    clauses, count = data.formulas(n, torch.Generator().manual_seed(0))  # (k, m, 3), (k, 2^n)
    solutions = (count == 0).sum(-1).double()  # (k,)
    c = comb(data.n, 3)
    expected = 2**data.n * comb(7 * c, data.m) / comb(8 * c, data.m)
    assert abs(solutions.mean() - expected) < 4 * solutions.std() / n**0.5
    assert len(all_clauses(data.n)) == 8 * c == len({frozenset(a) for a in
                                                    all_clauses(data.n).tolist()})
    assert set(combinations(range(data.n), 3)) == {tuple(a) for a in
                                                   (all_clauses(data.n) % data.n).tolist()}
    padded = torch.nn.functional.pad(clauses[:50].flatten(1), (0, data.n))  # (50, L)
    assert torch.equal(data.count_solutions(padded), solutions[:50].long())


def renamed(clauses, order, flips):
    """A formula under other names, where some variables change places with their negations."""
    return frozenset(frozenset((order[v], negated != flips[v]) for v, negated in clause)
                     for clause in clauses)


def test_no_copy_under_other_names_of_a_held_out_formula_is_learned():
    """By all 3,840 ways to rename and to negate five variables, and in any order of clauses."""
    data, held = formulas("sat5-unique", 8)
    _, train = formulas("sat5-unique", 1000, "train")
    learned = {renamed(clauses_of(data, row), {v: v for v in "abcde"}, dict.fromkeys("abcde"))
               for row in train}
    copies = [(dict(zip("abcde", order)), dict(zip("abcde", flips)))
              for order in permutations("abcde") for flips in product((False, True), repeat=5)]
    assert len(copies) == 3840
    for row in held[:1]:
        clauses = clauses_of(data, row)
        assert not learned & {renamed(clauses, *copy) for copy in copies}
    rng = random.Random(0)  # and the side itself does not change, for more formulas than fit
    for row in (*held, *train[:8]):
        order, flips = rng.choice(copies)
        clauses = [[(order[v], negated != flips[v]) for v, negated in clause]
                   for clause in clauses_of(data, row)]
        rng.shuffle(clauses)
        codes = []
        for formula in (clauses_of(data, row), clauses):
            values = [dict(zip("abcde", v)) for v in product((False, True), repeat=5)]
            count = [sum(not satisfies(v, [clause]) for clause in formula) for v in values]
            codes.append(code_of(torch.tensor([count])))
        assert torch.equal(*codes)
