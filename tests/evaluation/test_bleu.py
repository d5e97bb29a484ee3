"""BLEU against public code, MBR by brute force, and the rows of answers to tasks.

mbr_reference.npz: six candidates, and what NLTK (smoothing 4), AR-Diffusion (microsoft/ProphetNet
5cf70eb) and sacreBLEU (as Difformer c1ec0e3 calls it) say of each pair, with their choices.
"""
import math
import random

import pytest
import torch
from references import Figures

from data import load_data
from evaluation.chosen_answers import (
    answer_figures,
    answer_rows,
    bleu,
    bleu_of_set,
    choose,
    equality,
    shared_ngrams,
)
from evaluation.sample_quality import distinct_ngrams

figure = Figures("mbr_reference")
CANDIDATES = [tuple(i for i in row if i >= 0) for row in figure("mbr/candidates").tolist()]
TASK = load_data("describe", 0)


@pytest.mark.parametrize("smoothing, key, rows_are_answers, scale", [
    ("chen 4", "bleu_smoothing4_hyp_row_ref_column", True, 1),
    ("add one", "ardiff_bleu_smooth1_ref_row_hyp_column", False, 1),
    ("exponential", "difformer_sacrebleu_ref_row_hyp_column", False, 100)])
def test_bleu_is_that_of_public_code_in_three_smoothings(smoothing, key, rows_are_answers, scale):
    theirs = figure(f"mbr/{key}")  # (6, 6)
    for i, row in enumerate(CANDIDATES):
        for j, column in enumerate(CANDIDATES):
            pair = (row, column) if rows_are_answers else (column, row)
            if i != j:
                assert scale * bleu(*pair, smoothing) == pytest.approx(theirs[i, j].item())
    assert not torch.allclose(theirs, theirs.T)  # so the side matters


def test_choices_are_those_of_public_code():
    for smoothing, key in (("chen 4", "diffuseq_choice"), ("add one", "ardiff_choice"),
                           ("exponential", "difformer_choice")):
        chosen = choose(CANDIDATES, lambda y, other: bleu(y, other, smoothing))
        assert chosen == figure(f"mbr/{key}")
    words = [[*map(str, row)] for row in CANDIDATES]
    assert distinct_ngrams(words, 4) == pytest.approx(figure("mbr/distinct4_of_set").item())


def test_bleu_by_hand():
    answer, reference = "a b c d e".split(), "a b c d f g".split()
    short = math.exp(1 - 6 / 5)
    assert shared_ngrams(answer, reference) == [4, 5, 3, 4, 2, 3, 1, 2, 5, 6]
    assert bleu(answer, reference) == pytest.approx(
        short * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** (1 / 4))
    assert bleu(answer, answer) == 1 and bleu(["a"], ["a"]) == 1 and bleu([], ["a"]) == 0
    assert bleu(["a", "x"], ["a", "b"]) == pytest.approx((1 / 2 * 1 / 2) ** (1 / 2))
    assert bleu("a b c d".split(), "e f g h".split()) == pytest.approx(
        (1 / 8 * 1 / 12 * 1 / 16 * 1 / 16) ** (1 / 4))
    pairs = [(answer, reference), ("a b".split(), "a b".split())]  # sums of counts, no smoothing
    assert bleu_of_set(pairs) == pytest.approx(
        math.exp(1 - 8 / 7) * (6 / 7 * 4 / 5 * 2 / 3 * 1 / 2) ** (1 / 4))
    assert bleu_of_set([("a b".split(), "b a".split())]) == 0


def any_utility(y, other):
    """One in which texts differ in how far they agree with themselves."""
    return (31 * sum(map(ord, y)) + 17 * sum(map(ord, other))) % 13


def test_the_choice_by_brute_force():
    """Of every candidate, the mean over all others with their places, and the first of equals."""
    rng = random.Random(0)
    for _ in range(60):
        texts = [tuple(rng.choices("abc", k=rng.randint(1, 6))) for _ in range(6)]
        texts[rng.randrange(6)] = texts[0]
        for utility in (bleu, equality, any_utility):
            means = [sum(utility(y, texts[j]) for j in range(6) if j != i) / 5
                     for i, y in enumerate(texts)]
            best = max(means)
            first = next(i for i, mean in enumerate(means) if mean > best - 1e-12)
            assert texts[choose(texts, utility)] == texts[first] or abs(
                means[choose(texts, utility)] - best) < 1e-12
            assert choose(texts, utility) == texts.index(texts[choose(texts, utility)])


def test_the_candidate_is_the_answer_and_the_others_are_references():
    texts = [tuple("abcdab"), tuple("abcd"), tuple("abcdcd"), tuple("abcddd")]
    assert choose(texts) == 1 and choose(texts, lambda y, other: bleu(other, y)) == 2
    assert choose([("a",), ("b",), ("b",)], equality) == 1
    assert choose([("a",), ("b",)], equality) == 0
    alone = [("a", "b"), ("x",), ("x",), ("a", "c")]
    assert choose(alone, equality) == 1  # itself does not count: x twice agrees with one other


# ---- rows of a task

def rows_of(x, reference):
    return {what: pair for what, *pair in answer_rows(x, reference, TASK)}


def test_right_answers_of_the_reference_are_one_in_all_figures():
    x = TASK.windows("val", 12)  # (n, L)
    rows = rows_of(x[:, None], x)
    for what in ("exact match with the reference", "BLEU-4 with the reference",
                 "tokens as in the reference"):
        assert rows[what] == [1, 0]
    words = [TASK.answer_words(row) for row in x.tolist()]
    assert rows["distinct-2 of 12 answers"][0] == distinct_ngrams(words, 2)
    assert not any("MBR" in what for what in rows)


def test_figures_of_several_answers_count_questions_and_not_answers():
    x = TASK.windows("val", 16)  # (n, L)
    wrong = x.clone()  # (n, L)
    wrong[:8, TASK.source] = 1
    one, many = rows_of(wrong[:, None], x), rows_of(wrong[:, None].expand(-1, 5, -1), x)
    for what, pair in one.items():
        assert many[what] == pytest.approx(pair), what
    error = math.sqrt(0.25 / 15)
    for what in ("mean of 5: solved", "any of 5: solved", "MBR-5 by bleu: solved"):
        assert many[what] == pytest.approx([0.5, error])
    assert many["self-BLEU of 5 answers to a question"] == pytest.approx([1, 0])


def test_several_answers_are_chosen_from():
    """Two right ones and one wrong one for each question, in different places."""
    x = TASK.windows("val", 9)  # (n, L)
    wrong, answers = x.clone(), []  # (n, L)
    wrong[:, TASK.source:] = TASK.end
    for i in range(9):
        three = [x[i], x[i]]
        three.insert(i % 3, wrong[i])
        answers.append(torch.stack(three))  # (3, L)
    rows = rows_of(torch.stack(answers), x)
    assert rows["any of 3: solved"][0] == rows["MBR-3 by equality: solved"][0] == 1
    assert rows["MBR-3 by bleu: exact match with the reference"][0] == 1
    assert rows["mean of 3: solved"][0] == pytest.approx(2 / 3)
    assert rows["exact match with the reference"][0] == pytest.approx(2 / 3)  # of the first


def test_answers_stand_beside_those_of_the_exact_distribution():
    x = TASK.windows("val", 40)  # (n, L)
    config = type("Config", (), dict(answers=2, mauve=False, batch_size=8, permutations=0))
    first = x[torch.linspace(0, 39, 10).round().long()]  # (10, L) as draw_samples asks
    found = answer_figures(first.repeat_interleave(2, 0), x, TASK, None, None, config)
    ours, exact = ({what: value for what, value, _ in found[column]}
                   for column in ("samples", "held_out"))
    assert ours.keys() == exact.keys() and found["num_samples"] == 10
    assert ours["exact match with the reference"] == 1 > exact["exact match with the reference"]
    assert ours["slots right"] == exact["slots right"] == exact["any of 2: solved"] == 1
    assert exact["self-BLEU of 2 answers to a question"] < 1
