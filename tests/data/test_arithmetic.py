"""Expressions: values, targets, what is held out, and trees of the data set."""
import pytest
import torch

from data import load_data
from data.arithmetic import signed, value_of
from data.puzzles import HELD_OUT, side_of

DATA = load_data("arithmetic", 0)


def ids(text):
    return [DATA.symbols.index(c) for c in text]


@pytest.mark.parametrize("text, value", [("7", 7), ("-39", -6), ("+*37+12", 24), ("-*239", -3),
                                         ("*-29-83", -35), ("****99999", 59049)])
def test_values_are_those_of_python(text, value):
    """An operator takes its left part first: -39 is 3 - 9."""
    assert value_of(tuple(ids(text))) == value


def test_outcomes_have_a_sign_and_three_digits_and_end_at_999():
    shown = lambda value: "".join(DATA.symbols[i] for i in signed(value, 3))
    assert [shown(v) for v in (0, -7, 123, 59049, -2000)] == ["+000", "-007", "+123", "+999",
                                                              "-999"]


@pytest.mark.parametrize("text, right", [
    ("+24=+*37+12..", True), ("+24=*38......", True), ("+24=+*37+13..", False),
    ("-06=-39......", True), ("+06=-39......", False), ("-00=-11......", False),
    ("+24=*38.....1", False), ("+24=*38..*38.", False), ("+24=*380.....", False),
    ("+24=*3.......", False), ("+24=.........", False), ("+99=****99999", False)])
def test_the_checker_accepts_whole_expressions_with_the_value_and_nothing_else(text, right):
    x = torch.tensor([ids(text)])
    assert DATA.solved(x).item() == right
    prompt, tree = DATA.trees.split(x[0].tolist())
    assert tree is None or DATA.trees.join(prompt, tree) == x[0].tolist()


def test_a_fifth_of_the_targets_is_held_out():
    targets = torch.arange(-99, 100)
    held = set(targets[side_of(targets) == HELD_OUT].tolist())
    assert 25 <= len(held) <= 55
    for split in ("train", "val"):
        x = DATA.windows(split)
        values = [value_of(DATA.trees.split(row)[1]) for row in x.tolist()]
        assert all((value in held) == (split == "val") for value in values)
        assert max(map(values.count, values)) <= 1 + 500 // 16  # small targets are frequent
