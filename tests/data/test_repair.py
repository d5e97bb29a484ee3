"""Sentences with a typo: their probabilities, and which answers are right."""
import random
from collections import Counter

import pytest
import torch

from data import load_data
from data.repair import WORDS, all_sentences, neighbors, typo_chance

DATA = load_data("repair", 0)
SENTENCE = tuple("the dog sees two cats".split())


def test_sentences_agree_in_number_and_their_probabilities_sum_to_one():
    assert len(all_sentences()) == 2592 and sum(all_sentences().values()) == pytest.approx(1)
    assert SENTENCE in all_sentences() and len(WORDS) == 15
    for wrong in ("the dogs sees two cats", "a dogs see a cat", "the dog sees two cat"):
        assert tuple(wrong.split()) not in all_sentences()


def test_the_chance_of_a_typo_is_that_of_its_draws():
    rng, n = random.Random(0), 4000
    assert sum(typo_chance(SENTENCE, m) for m in neighbors(SENTENCE)) == pytest.approx(1)
    seen = Counter(DATA.add_typo(SENTENCE, rng) for _ in range(n))
    assert seen.keys() <= neighbors(SENTENCE)
    for m in (SENTENCE, SENTENCE[1:], ("two",) + SENTENCE, SENTENCE[:-1] + ("dog",),
              ("the",) + SENTENCE):
        p = typo_chance(SENTENCE, m)
        assert abs(seen[m] / n - p) < 4.5 * (p / n) ** 0.5
    assert typo_chance(SENTENCE, ("the",) + SENTENCE) == 2 * typo_chance(SENTENCE, ("two",)
                                                                         + SENTENCE)


def test_answers_have_their_probability_given_the_source():
    """By all sentences, from the definition."""
    y = tuple("the dog sees two dog".split())
    joint = {" ".join(x): p * typo_chance(x, y) for x, p in all_sentences().items()}
    found = DATA.right_answers(" ".join(y))
    assert found == pytest.approx({x: p / sum(joint.values()) for x, p in joint.items() if p})
    assert max(found, key=found.get) in ("the dog sees two dogs", "the dog sees the dog",
                                         "the dog sees a dog")


def test_the_checker_accepts_what_a_typo_may_have_made_and_nothing_else():
    text = lambda source, target: torch.tensor([DATA.row(source, target)])
    source = "the dog sees two dog"
    for target, right in (("the dog sees two dogs", True), ("the dog sees a dog", True),
                          ("the dog sees two dog", False), ("the dog sees two cats", True),
                          ("two dogs see two dogs", False)):
        assert DATA.solved(text(source, target)).item() == right, target
    rows = DATA.windows("val", 100)
    assert DATA.solved(rows).all() and (DATA.answer_nats(rows) < 9).all()
    again = DATA.redraw(rows)
    assert DATA.solved(again).all() and (again[:, :8] == rows[:, :8]).all()
