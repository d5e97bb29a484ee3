"""Formulas and products: one answer each, right thoughts, and no copy of what is held out."""
import random
from itertools import product

import pytest
import torch

from data import load_data
from data.boolean import read_formula


def some(name, n, split="val", seed=0):
    data = load_data(name, 0)
    return data, data.examples(split, n, torch.Generator().manual_seed(seed))[0]


# ---- Boolean formulas

def as_python(formula):
    return int(eval(formula))


def test_the_values_of_brackets_are_those_of_python_in_the_order_in_which_they_close():
    data, x = some("boolean-thoughts", 60)
    shapes = set()
    for row in x.tolist():
        text = data.text(row)
        formula, values = text[:29], [int(symbol) for symbol in text[30:]]
        assert text[29] == "=" and len(values) == 7 and values[-1] == as_python(formula)
        opens, closed = [], []
        for i, symbol in enumerate(formula):
            if symbol == "(":
                opens.append(i)
            elif symbol == ")":
                closed.append(as_python(formula[opens.pop():i + 1]))
        assert closed == values == read_formula(formula)[0]
        shapes.add("".join(symbol for symbol in formula if symbol in "()"))
    assert len(shapes) > 20
    assert 0.3 < (x[:, -1] == 1).double().mean() < 0.7


@pytest.mark.parametrize("name", ["boolean", "boolean-thoughts"])
def test_one_answer_of_all_is_right(name):
    """Of both values, or of all 2^7 chains of thoughts."""
    data, x = some(name, 5)
    for row in x:
        answers = torch.tensor(list(product((0, 1), repeat=data.length - data.prompt)))  # (m, a)
        texts = torch.cat([row[:data.prompt].expand(len(answers), -1), answers], 1)  # (m, L)
        right = data.right(texts)  # (m, a)
        assert right.all(-1).sum() == 1 and torch.equal(texts[right.all(-1)][0], row)
        assert data.solved(texts).sum() == len(answers) / 2  # whatever the thoughts were
    if data.thoughts:
        assert [what for what, _ in data.score(x)] == ["solved", "thoughts that are right"]
        x[:, data.prompt] = 1 - x[:, data.prompt]
        solved, thoughts = (values for _, values in data.score(x))
        assert (solved == 1).all() and (thoughts - 5 / 6).abs().max() < 1e-12


def swapped(formula, rng):
    """A formula in which the sides of some operators have changed places."""
    if len(formula) == 1:
        return formula
    depth, i = 0, 1
    while depth or formula[i] not in "&|^":
        depth += (formula[i] == "(") - (formula[i] == ")")
        i += 1
    a, b = swapped(formula[1:i], rng), swapped(formula[i + 1:-1], rng)
    return f"({b}{formula[i]}{a})" if rng.random() < 0.5 else f"({a}{formula[i]}{b})"


def test_a_formula_whose_sides_change_places_is_on_the_same_side_of_the_split():
    rng, data = random.Random(0), load_data("boolean", 0)
    codes, others = [], 0
    for split in ("val", "train"):
        _, x = some("boolean", 40, split)
        texts = [data.text(row)[:29] for row in x.tolist()]
        for text in texts:
            other = swapped(text, rng)
            others += other != text
            assert read_formula(other)[1] == read_formula(text)[1]
        codes.append({read_formula(text)[1] for text in texts})
    assert others > 60 and not codes[0] & codes[1] and len(codes[0] | codes[1]) > 78
    assert read_formula("(0&(1|1))")[1] != read_formula("((0&1)|1)")[1]  # another order of brackets
    assert read_formula("(0&1)")[1] != read_formula("(0|1)")[1]


# ---- multiplication

def test_a_product_is_worked_out_with_its_last_digit_first():
    data, x = some("multiplication-thoughts", 50, "train")
    for row in x.tolist():
        a, b, first, second, answer = data.text(row).replace("=", "*").replace("+", "*").split("*")
        number = lambda text: int(text[::-1])
        assert number(first) == int(a) * int(b[1]) and number(second) == int(a) * int(b[0]) * 10
        assert number(answer) == int(a) * int(b) == number(first) + number(second)
    text = [data.symbols.index(symbol) for symbol in "37*24=8410+0470=8880"]
    x = torch.tensor([text])
    assert data.right(x).all() and data.thoughts == (5, 5, 4)
    for place, wrong in ((6, [False, True, True]), (10, [False, True, True]),
                         (11, [True, False, True]), (19, [True, True, False])):
        other = x.clone()
        other[0, place] += 1
        assert data.right(other)[0].tolist() == wrong, place
    short = load_data("multiplication", 0)
    assert short.solved(torch.cat([x[:, :6], x[:, -4:]], 1)).all()


def test_one_answer_of_ten_thousand_is_right():
    data, x = some("multiplication", 2)
    answers = torch.cartesian_prod(*[torch.arange(10)] * 4)  # (10000, 4)
    for row in x:
        texts = torch.cat([row[:6].expand(len(answers), -1), answers], 1)  # (10000, L)
        assert data.solved(texts).sum() == 1 and torch.equal(texts[data.solved(texts)][0], row)


def test_neither_a_held_out_product_nor_its_copy_with_the_numbers_exchanged_is_learned():
    def pairs(split, n):
        _, x = some("multiplication", n, split)
        numbers = torch.stack([10 * x[:, 0] + x[:, 1], 10 * x[:, 3] + x[:, 4]], 1)  # (n, 2)
        return set(map(tuple, numbers.sort(-1).values.unique(dim=0).tolist()))
    learned, held = pairs("train", 16_000), pairs("val", 4000)
    assert not learned & held
    assert len(learned) + len(held) > 3900 and 0.15 < len(held) / 4095 < 0.25  # of all 4,095
