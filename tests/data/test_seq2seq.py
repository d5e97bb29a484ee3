"""Sequence-to-sequence tasks: answers by other means, probabilities by enumeration, no leaks, and
an exact denoiser whose bound is the entropy and whose answers are right."""
import math
import random
from collections import Counter
from itertools import product

import pytest
import torch
import world

from data import load_data, puzzles
from data.prompt import encode_prompt
from data.wording import (
    BEINGS,
    FIRST,
    SLOTS,
    WHENS,
    descriptions,
    most_frequent,
    surfaces,
    synonyms,
)
from evaluation.likelihood import nats_of
from flags import UserError
from methods import make_method
from samplers import make_sampler
from samplers.generate import generate

RULES = "reverse sort date translit add add-reversed".split()
DRAWN = "paraphrase summary describe".split()
TASKS = {name: load_data(name, 0) for name in [*RULES, *DRAWN]}
each_task = pytest.mark.parametrize("name", TASKS)
each_drawn = pytest.mark.parametrize("name", DRAWN)
entropy_of = lambda p: -sum(a * math.log(a) for a in p)
TWO = entropy_of([FIRST, 1 - FIRST])  # of a choice between two synonyms


@pytest.fixture(autouse=True)
def every_question(monkeypatch):
    """The figures of the page are means over all that are held out."""
    monkeypatch.setattr(puzzles, "MANY", 500)


def zero_in_the_mean(values, most):
    """Within 4 standard errors, each below `most`. values (n,)"""
    error = values.std() / len(values) ** 0.5
    assert error < most and abs(values.mean()) < 4 * error, (values.mean(), error)


def texts_of(task, pairs):
    """Texts of pairs (source, target). -> (n, L)"""
    return torch.tensor([task.row(*pair) for pair in pairs])  # (n, L)


# ---- rules

@pytest.mark.parametrize("name, source, answer", [
    ("reverse", "cabbage", "egabbac"), ("sort", "31415", "11345"),
    ("date", "3 March 2021", "2021-03-03"), ("date", "Mar 3, 2021", "2021-03-03"),
    ("date", "03/03/21", "2021-03-03"), ("date", "31/12/00", "2000-12-31"),
    ("date", "May 29, 2099", "2099-05-29"), ("date", "29 February 2000", "2000-02-29"),
    ("translit", "shocin", "Sosin"), ("translit", "cacecicho", "kasesiCo"),
    ("translit", "tothanche", "toTanCe"), ("add", "127+58", "185"), ("add", "0+0", "0"),
    ("add", "999+999", "1998"), ("add-reversed", "127+58", "581"),
])
def test_the_answer_of_a_rule_is_right_and_no_other_is(name, source, answer):
    task = TASKS[name]
    assert task.right_answers(source) == {answer: 1.0}
    wrong = [answer[:-1], answer + answer[-1], task.vocabulary[1] + answer[1:] + answer[0], ""]
    right = task.solved(texts_of(task, [(source, text) for text in (answer, *wrong)]))
    assert right.tolist() == [True] + [False] * 4


def test_rules_by_other_means():
    """Of whole batches, from their ids."""
    for name in ("reverse", "sort", "add"):
        task = TASKS[name]
        x = task.windows("val", 200).tolist()
        for row in x:
            source, target = task.source_of(row), task.target_of(row)
            ids = row[:len(source)]
            if name == "add":
                plus = source.index("+")
                number = lambda digits: sum((i - 1) * 10**k for k, i in enumerate(digits[::-1]))
                assert number(ids[:plus]) + number(ids[plus + 1:]) == int(target)
            else:
                wanted = ids[::-1] if name == "reverse" else sorted(ids)
                assert row[task.source:task.source + len(ids)] == wanted


@each_task
def test_an_answer_ends_once_and_nothing_stands_behind_its_end(name):
    task = TASKS[name]
    x = task.windows("val", 20)  # (20, L)
    assert (x[:, task.source - 1] == 0).all() and (x[:, -1] == task.end).all()  # room for both
    first = (x[:, task.source:] == task.end).int().argmax(-1) + task.source  # (20,)
    behind = x.clone()  # (20, L)
    rows = torch.arange(20)[first < task.length - 1]  # (n,)
    behind[rows, first[rows] + 1] = 1
    late, masks = x.clone(), x.clone()  # (20, L) each
    late[range(20), first] = 1
    masks[:, task.source] = task.encoding.n_vocab
    assert task.solved(x).all()
    assert not task.solved(behind)[rows].any() and not task.solved(late).any()
    assert not task.solved(masks).any() and "?" in task.target_of(masks[0].tolist())
    assert [task.answer_words(row) for row in behind.tolist()] == [
        task.tokens(task.target_of(row)) for row in x.tolist()]


def test_the_question_of_a_user_fills_the_places_of_a_source():
    task = TASKS["reverse"]
    x, frozen = encode_prompt("abc", "_", task.encoding, 0, task.length, "reverse")  # (L,) each
    assert task.source_of(x.tolist()) == "abc" and frozen.sum() == task.source == 9
    assert frozen[:9].all() and len(x) == task.length
    assert task.text(task.row("abc", "cba")) == "abc||||||cba"
    with pytest.raises(UserError, match="lacks 'x', 'y', 'z'"):
        encode_prompt("xyz", "_", task.encoding, 0, task.length, "reverse")
    puzzle = load_data("countdown3", 0)
    x, frozen = encode_prompt("02030615", "_", puzzle.encoding, 0, puzzle.length, "countdown3")
    assert frozen.sum() == 8


# ---- what is held out

def fact_of(name, source, target):
    """What a text is about, told by the text alone."""
    if name == "paraphrase":
        return TASKS[name].meaning_of(source)
    if name == "summary":
        words = source.split()
        return tuple(sorted(zip(words[::2], words[1::2])))
    return {"reverse": frozenset([source, target]), "sort": target, "date": target,
            "translit": target, "describe": source}.get(name, frozenset(source.split("+")))


@each_task
def test_nothing_that_is_held_out_is_learned_in_another_form(name):
    task = TASKS[name]
    facts = [{fact_of(name, task.source_of(row), task.target_of(row)) for row in
              task.batch(split, 250, torch.Generator().manual_seed(0)).tolist()}
             for split in ("train", "val")]
    assert min(map(len, facts)) > 30 and not facts[0] & facts[1]


# ---- probabilities of drawn answers

@each_drawn
def test_the_answers_of_every_question_fit_and_have_probabilities_that_sum_to_one(name):
    task, rng = TASKS[name], random.Random(0)
    for source, _ in (task.question(rng) for _ in range(60)):
        answers = task.right_answers(source)
        assert sum(answers.values()) == pytest.approx(1, abs=1e-12) and source not in answers
        assert min(answers.values()) > 0 and len(task.tokens(source)) < task.source
        assert max(len(task.tokens(text)) for text in answers) < task.target
        x = texts_of(task, [(source, text) for text in answers])  # (n, L)
        assert task.solved(x).all() and (task.slots_right(x) == 1).all()
        assert (-task.answer_nats(x)).exp().tolist() == pytest.approx([*answers.values()])


@each_drawn
def test_answers_are_drawn_with_the_probabilities_that_are_stated(name):
    """Both by `redraw` and by `examples`, whose answers are those of the entropy (19.1)."""
    task = TASKS[name]
    x = task.windows("val", 1).expand(800, -1)  # (n, L)
    answers = task.right_answers(task.source_of(x[0].tolist()))
    number = {text: i for i, text in enumerate(answers)}
    draws = torch.tensor([number[task.target_of(row)] for row in task.redraw(x, 1).tolist()])
    p = torch.tensor([*answers.values()], dtype=torch.float64)  # (answers,)
    assert len(p) > 1 and world.surprise(draws, p) < 4
    shown = task.examples("val", 500, torch.Generator().manual_seed(1))[0]  # (n, L)
    zero_in_the_mean(task.answer_nats(shown) - task.answer_entropy(shown), 0.05)


def test_the_entropy_of_paraphrases_by_enumeration():
    """(19.1) of a source s from that of all surfaces q: (H(q) + q(s) ln q(s)) / (1 - q(s))
    + ln(1 - q(s)), and H(q) from the choices, which no two surfaces share."""
    task = TASKS["paraphrase"]
    for meaning in [("cat,kitty", "helped,aided", "farmer", "at noon,at midday"),
                    ("sailor", "stopped", "farmer", ""), ("sailor", "stopped", "sailor", "today")]:
        q = surfaces(meaning)
        H = entropy_of([0.6, 0.4]) * (1 + (meaning[3] != "")) + TWO * sum("," in m for m in meaning)
        assert entropy_of(q.values()) == pytest.approx(H)
        assert len(q) == 2 ** sum([1, meaning[3] != "", *("," in m for m in meaning)])
        for source in [*q][:4]:
            left = (H + q[source] * math.log(q[source])) / (1 - q[source]) + math.log1p(-q[source])
            found, = task.answer_entropy(texts_of(task, [(source, "")]))
            assert found == pytest.approx(left)
            assert task.meaning_of(source) == meaning


def test_every_sentence_of_a_meaning_has_that_meaning_and_no_other_sentence_is_one():
    task, rng = TASKS["paraphrase"], random.Random(1)
    seen = {}
    for _ in range(40):
        meaning = task.meaning_of(task.question(rng)[0])
        for sentence in surfaces(meaning):
            assert seen.setdefault(sentence, meaning) == meaning == task.meaning_of(sentence)
    source = "the cat chased the dog today"
    for target, right in (("today the dog was pursued by the kitty", True), (source, False),
                          ("today the dog chased the cat", False),
                          ("the cat was chased by the dog today", False),
                          ("the cat chased the hound", False),
                          ("the hound was today chased by the cat", False)):
        assert bool(task.solved(texts_of(task, [(source, target)]))) == right, target
    words = [word for entry in [*BEINGS, *WHENS] for word in synonyms(entry)]
    assert len(words) == len({*words})


def test_the_entropies_of_summaries_and_descriptions_by_enumeration():
    task = TASKS["summary"]
    source = "ann sang bob read ann sang"
    ways = [.4 * a * b for a, b in product((.6, .4), repeat=2)] + [.3, .2, .1]
    assert sorted(task.right_answers(source).values()) == pytest.approx(sorted(ways))
    assert task.answer_entropy(texts_of(task, [(source, "")])).item() == pytest.approx(
        entropy_of(ways))
    assert task.wanted(source) == {"ann", "sang"}
    assert most_frequent(["ann", "bob"]) is None and most_frequent(["ann"]) == "ann"
    for text, _ in (task.question(random.Random(seed)) for seed in range(40)):
        for words in (text.split()[::2], text.split()[1::2]):
            assert sum(words.count(word) == words.count(most_frequent(words))
                       for word in {*words}) == 1
    choices = {"food": [.6, .4], "area": [.5, .5], "price": [.8, .2]}
    for slots in (["food"], ["food", "price"], ["food", "area", "price"]):
        table = " ".join(["name alto", *(f"{slot} {SLOTS[slot][0]}" for slot in slots)])
        H = math.log(math.factorial(len(slots))) + sum(entropy_of(choices[s]) for s in slots)
        assert entropy_of(descriptions(table).values()) == pytest.approx(H)
    assert "the alto is cheap , serves thai food and is near the river" in descriptions(table)


def test_slots_count_what_is_missing_and_what_is_invented():
    task, source = TASKS["describe"], "name alto food thai price low"
    for target, share in (("the alto serves thai food and is cheap", 1), ("the alto", 1 / 3),
                          ("the alto serves thai food and is dear", 2 / 4), ("", 0),
                          ("the alto serves greek food and is near the river", 1 / 5),
                          ("cheap thai alto", 1)):
        x = texts_of(task, [(source, target)])  # (1, L)
        assert task.slots_right(x).item() == pytest.approx(share), target
        assert dict(task.score(x))["slots right"] == task.slots_right(x)
    assert not task.solved(x)  # all slots, but no sentence
    assert [what for what, _ in TASKS["add"].score(TASKS["add"].windows("val", 2))] == ["solved"]


# ---- what a perfect network would reach

def exact_denoiser(task, x, in_order=False):
    """p(x_l | the tokens of z that show) of the answers to the sources of x, all (B, L) ids.

    in_order: z is the text behind a start symbol, and row l sees what comes before it only
    """
    tables = {}
    for row in x.tolist():
        answers = task.right_answers(task.source_of(row))
        rows = texts_of(task, [(task.source_of(row), text) for text in answers])  # (n, L)
        tables[tuple(row[:task.source])] = rows, torch.tensor([*answers.values()]).double()
    symbols = torch.arange(task.encoding.n_vocab)  # (V,)

    def law(z, seen):
        rows, p = tables[tuple(z[:task.source].tolist())]  # (n, L), (n,)
        weight = p * ((rows == z) | ~seen).all(-1)  # (n,)
        q = ((rows[..., None] == symbols) * weight[:, None, None]).sum(0)  # (L, V)
        return (q / q.sum(-1, keepdim=True).clamp(min=1e-300)).log()  # (L, V)

    def denoiser(z, t, at=None, **layout):
        if in_order:
            z = torch.cat([z[:, 1:], z[:, :1]], 1)  # (B, L) row l predicts z_l
            place = torch.arange(z.shape[1])  # (L,)
            logits = torch.stack([torch.stack([law(row, place < l)[l] for l in place])
                                  for row in z])  # (B, L, V)
        else:
            logits = torch.stack([law(row, row < len(symbols)) for row in z])  # (B, L, V)
        return logits if at is None else logits[at]
    return denoiser


@pytest.mark.parametrize("name, n", [("summary", 6), ("describe", 4), ("sort", 4)])
def test_the_bound_of_an_exact_denoiser_is_the_entropy_and_its_answers_are_right(name, n):
    task = TASKS[name]
    x, frozen, _ = task.example_windows("val", n)  # (n, L) each
    mdlm, ar = (make_method(method, task.encoding.n_vocab) for method in ("mdlm", "ar"))
    exact = task.answer_nats(x)  # (n,)
    nats, scored = nats_of(ar, exact_denoiser(task, x, True), x, 1, frozen=frozen)  # (n,) each
    assert torch.allclose(nats, exact, atol=1e-9) and (scored == task.target).all()
    denoiser = exact_denoiser(task, x)
    draws = 70 if task.counts_slots else 2
    many, given = task.redraw(x.repeat(draws, 1), 1), frozen.repeat(draws, 1)  # (n draws, L) each
    nats, _ = nats_of(mdlm, denoiser, many, 1, 4 * n, given)  # (n draws,)
    zero_in_the_mean(nats - task.answer_nats(many), 0.15) if task.counts_slots else None
    assert task.counts_slots or (nats.abs() < 1e-9).all()
    wrong = lambda z, t, at=None: torch.log(0.9 * denoiser(z, t, at).exp() + 0.1 / task.end)
    worse, _ = nats_of(mdlm, wrong, many, 1, 4 * n, given)  # (n draws,)
    assert (worse - nats).mean() > 0.1
    torch.manual_seed(0)
    found = generate(mdlm, denoiser, 3 * n, task.length, task.target,
                     make_sampler("entropy", mdlm), given=many[:3 * n], frozen=given[:3 * n])
    assert task.solved(found).all()


def test_texts_of_one_question_that_are_written_follow_the_law():
    """Token by token in the order of least entropy, draws are those of the language."""
    task = TASKS["summary"]
    x, frozen, _ = (a if a is None else a[:1].expand(500, -1)
                    for a in task.example_windows("val", 2))
    mdlm = make_method("mdlm", task.encoding.n_vocab)
    torch.manual_seed(0)
    found = generate(mdlm, world.by_state(exact_denoiser(task, x)), 500, task.length, task.target,
                     make_sampler("entropy", mdlm), given=x, frozen=frozen)  # (n, L)
    counts = Counter(map(task.target_of, found.tolist()))
    answers = task.right_answers(task.source_of(x[0].tolist()))
    assert {*counts} <= {*answers}
    off = sum(abs(counts[text] / 500 - p) for text, p in answers.items()) / 2
    assert off < 4 * 0.5 * math.sqrt(len(answers) / 500)


def test_what_a_perfect_model_reaches_as_the_page_has_it():
    """Means over the held-out sources: answers, H, a draw equals the reference, the mode does."""
    page = {"paraphrase": [25.0, 2.716, 0.102, 0.186], "summary": [7, 1.818, 0.183, 0.3],
            "describe": [11.9, 1.759, 0.269, 0.308]}
    for name, figures in page.items():
        task = TASKS[name]
        tables = [task.right_answers(task.source_of(row)) for row in task.windows("val").tolist()]
        mean = lambda of: sum(of([*table.values()]) for table in tables) / len(tables)
        found = [mean(len), mean(entropy_of), mean(lambda p: sum(a * a for a in p)), mean(max)]
        assert found == pytest.approx(figures, rel=0.005), (name, found)
