"""Accuracy against time: runs of one length for all, points along them, and ways to answer."""
import json

import pytest
import torch

from data import load_data
from experiments import reasoning
from experiments.reasoning import Config, fits, main, run_of, table_rows, ways_of
from flags import configure
from methods import make_method
from runs import cache, complaint, elsewhere  # noqa: F401


def test_a_method_that_writes_in_order_needs_the_question_in_front():
    for name, method, right in (("sudoku4", "ar", True), ("sudoku4-in-place", "ar", False),
                                ("sudoku4-in-place", "mgdm", True), ("countdown3", "bd3lm", True)):
        assert fits(load_data(name, 0), method) == right, (name, method)


def test_masks_open_the_surest_first_at_random_and_many_at_once():
    data = load_data("planning2", 0)
    of = lambda name, calls: ways_of(data, make_method(name, 12), calls)
    assert of("ar", 5) == {"left to right": ("ancestral", 5)}
    assert of("mdlm", 5) == {"easy first": ("entropy", 5), "random order": ("first-hitting", 5),
                             "4 calls": ("entropy", 4), "1 call": ("entropy", 1)}
    assert of("mdlm", 3)["4 calls"] == ("entropy", 3)


@pytest.fixture
def quick(monkeypatch):
    """Runs of 8 steps, whatever the clock says."""
    monkeypatch.setattr(reasoning, "steps_in", lambda seconds, make: 8)
    return Config(questions=6, minutes=0.001)


def test_puzzles_are_solved_along_a_run_and_in_all_ways_at_its_end(quick, monkeypatch):
    data, steps, seen, solve = load_data("sudoku4-in-place", 0), [], [], reasoning.solved_by

    def solved_by(*given):
        seen.append(len(steps))
        return solve(*given)
    monkeypatch.setattr(reasoning, "train_step", lambda trainer, step: steps.append(step))
    monkeypatch.setattr(reasoning, "solved_by", solved_by)
    points, weights = run_of(quick, "sudoku4-in-place", data, "mgdm", "1x16", seed=1)
    fewer = reasoning.trainer_of("sudoku4-in-place", data, "mgdm", "1x16", 1, 8, rotary=True)
    assert sum(p.numel() for p in fewer.model.parameters()) == 1e6 * weights - 17 * 16
    assert steps == list(range(8)) and 0 < weights < 0.01
    assert seen == [1, 2, 4, 8, 8, 8, 8]
    assert [len(points[way]) for way in points] == [4, 1, 1, 1]
    minutes = [minute for minute, _ in points["easy first"]]
    assert minutes == sorted(minutes) and points["1 call"][0][0] == minutes[-1]
    assert all(solved.shape == (6,) for _, solved in points["easy first"])


def test_the_checker_of_the_data_set_counts_what_is_solved(monkeypatch):
    data = load_data("sudoku4-in-place", 0)
    x, frozen, _ = data.example_windows("val", 6)  # (6, 16) each
    right = x.clone()  # (6, 16)
    right[4:] = right[4:].roll(1, 1)  # two are wrong
    texts = iter(right.split(3))
    monkeypatch.setattr(reasoning, "generate", lambda *_, given, frozen: next(texts))
    trainer = reasoning.trainer_of("sudoku4-in-place", data, "mdlm", "1x16", 1, 8)
    parts = [reasoning.solved_by(trainer, a, b, "entropy", 4)
             for a, b in zip(x.split(3), frozen.split(3))]
    assert torch.cat(parts).tolist() == [1, 1, 1, 1, 0, 0]


def test_a_row_is_the_mean_of_the_seeds_with_the_error_of_both():
    one, two = torch.tensor([1.0, 1, 0, 0]), torch.ones(4)  # (n,) each
    rows = table_rows([{"easy first": [(1.0, one)]}, {"easy first": [(2.0, two)]}])
    (way, minutes, mean, error), = rows
    assert (way, minutes, mean) == ("easy first", 1.5, 0.75)
    assert error == pytest.approx(((0.5 * one.std() / 2) ** 2 + 0.125 / 2) ** 0.5)


def test_the_table_is_printed_and_kept(quick, capsys):
    for key, value in dict(data="sudoku4,sudoku4-in-place", methods="ar", sizes="1x16").items():
        setattr(quick, key, value)
    main(quick)
    printed = capsys.readouterr().out
    assert printed.count("left to right") == 4 and "in-place" not in printed.split("saved")[0]
    rows = json.load(open("out/reasoning/reasoning.json"))["rows"]
    assert len(rows) == 4 and rows[0]["data"] == "sudoku4" and 0 <= rows[-1]["solved"] <= 1


@pytest.mark.parametrize("argv, words", [
    (["toy"], "toy has no questions to solve: give puzzles, such as sudoku4"),
    (["sudoku4", "--sizes", "big"], "'big' is no size"),
    (["sudoku4", "--methods", "mdml"], "mdml")])
def test_bad_input_is_one_line(argv, words, capsys):
    argv = ["--data", *argv]
    assert words in complaint(reasoning, *argv, capsys=capsys)


def test_the_steps_fit_the_time_of_the_first_ones(monkeypatch):
    """Steps of 0.5 s, after 3 to warm up: 10 s are 20 steps."""
    clock, steps = [0.0], []

    def step(trainer, number):
        steps.append(number)
        clock[0] += 0.5 if number >= reasoning.WARM_UP else 9.0
    monkeypatch.setattr(reasoning, "train_step", step)
    monkeypatch.setattr(reasoning.time, "process_time", lambda: clock[0])
    assert reasoning.steps_in(10, lambda steps: None) == 20
    assert steps == list(range(reasoning.WARM_UP + reasoning.TIMED))
    assert configure(Config).minutes == 2
