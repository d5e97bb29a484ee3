"""
The grammar of the toy language: what its tables say, and that its texts follow it.
"""
import re

import pytest
import torch

from data.toy import Toy
from data.toy_grammar import LEXICON, NUMBERS, TYPO

TOY = Toy()
_, Q, V = TOY.emission.shape


def ids(text):
    return torch.tensor([[TOY.words.index(word) for word in text.split()]])  # (1, L)


# ---- the tables

def test_every_row_of_every_table_is_a_probability_law():
    for table in (TOY.prior, TOY.initial, TOY.transition, TOY.emission):
        assert (table >= 0).all()
        total = table.sum(-1)
        torch.testing.assert_close(total, torch.ones_like(total), atol=1e-14, rtol=1e-14)
    assert TOY.emission.min() >= TYPO / V * .999, "typos: no place is unable to say a word"


def test_every_place_of_the_grammar_can_be_reached_and_leads_on_to_every_other():
    """One endless text visits everything: no dead ends, no islands, so the entropy has one rate."""
    steps = torch.linalg.matrix_power(TOY.transition + torch.eye(Q), Q)  # (Q, Q)
    assert (steps > 0).all()


def test_a_word_means_one_thing_except_that_animals_can_also_be_subjects():
    roles = {}
    for role, homes in LEXICON.items():
        for word in " ".join(homes.values()).replace("/", " ").split():
            roles.setdefault(word, []).append(role)
    shared = {tuple(sorted(names)) for names in roles.values() if len(names) > 1}
    assert shared == {("animal", "being"), ("det", "the")}


def test_a_new_noun_is_plural_as_often_as_the_table_says_and_the_subject_keeps_its_number():
    to = dict(zip(TOY.places, TOY.transition[TOY.places.index("main sees sg")].tolist()))
    assert to["object det pl"] == pytest.approx(NUMBERS["pl"])
    to = dict(zip(TOY.places, TOY.transition[TOY.places.index("clause sees pl")].tolist()))
    assert to["clause det pl sg"] == pytest.approx(NUMBERS["sg"]) and to["clause det sg pl"] == 0


# ---- the grammar

def tags():
    """word -> one letter: its role, in capitals if plural, so that a sentence can be held against a
    pattern."""
    letters = dict(quality="q", mood="m", color="c", being="p", animal="a", thing="o", sees="v",
                   sleeps="i", near="n", place="l", today="y", that="w", stop=".", det="d")
    return {form: letter if i == 0 or "/" not in entry else letter.upper()
            for role, letter in letters.items()
            for entry in " ".join(LEXICON[role].values()).split()
            for i, form in enumerate(entry.split("/"))} | {"the": "t", "my": "t"}


SINGULAR = {"D": "[dt]", "P": "[pa]", "A": "a", "O": "o", "V": "v", "I": "i"}
PLURAL = {"D": "[Dt]", "P": "[PA]", "A": "A", "O": "O", "V": "V", "I": "I"}


def a_sentence():
    """The grammar as a regular expression, written by hand: all that stands in <> is of the
    subject's number."""
    def fill(pattern, number):
        return re.sub(r"<(\w)>", lambda match: number[match[1]], pattern)

    animal = "|".join(fill("<D>q?<A>", n) for n in (SINGULAR, PLURAL))
    thing = "|".join(fill("<D>q?c?<O>", n) for n in (SINGULAR, PLURAL))
    main = f"<V>(?:{animal}|{thing})"
    rest = f"(?:w<I>{main}|(?:w<V>(?:{animal})|ntl)?(?:{main}|<I>))(?:ntq?l|y)?"
    one, many = "<D>q?m?<P>" + rest, "(?:<D>q?m?|qm?|)<P>" + rest
    return re.compile(fill(one, SINGULAR) + "|" + fill(many, PLURAL))


def test_agreement_is_broken_no_more_often_than_typos_occur():
    tag, pattern = tags(), a_sentence()
    x = TOY.sample(3_000, 64, torch.Generator().manual_seed(0))  # (n, 64)
    letters = ["".join(tag[TOY.words[i]] for i in row) for row in x]
    sentences = [s for row in letters for s in row.split(".")[:-1]]  # the last may be cut short
    wrong = sum(pattern.fullmatch(s) is None for s in sentences)
    typos = TYPO * x.numel()
    assert len(sentences) > 15_000 and wrong < typos + 5 * typos ** .5
    for verb, right in (("sleeps", True), ("sleep", False)):
        sentence = "".join(tag[word] for word in f"the dog that sees two cats {verb}".split())
        assert bool(pattern.fullmatch(sentence)) == right


def test_the_main_verb_agrees_with_the_subject_across_the_clause():
    """The last word before the verb has the other number: a bigram model is wrong here, and the
    oracle is not."""
    singular, plural = ([i for i, word in enumerate(TOY.words) if tags()[word] in kind]
                        for kind in ("vi", "VI"))
    for text, share in (("two dogs sleep . the dog that chases two cats .", 1),
                        ("the dogs that chase one cat .", 0)):
        p = TOY.predict(ids(text))[0, -1]  # (V,) in place of the last "."
        assert abs(p[singular].sum() / p[singular + plural].sum() - share) < .01


def test_contradictory_evidence_is_explained_by_a_typo():
    """Parallel samplers do write 'two dog _ .': the oracle must answer, and answer with some verb
    all the same."""
    likelihood = torch.eye(V)[ids("two dog sleeps .")]  # (1, 4, V)
    likelihood[:, 2] = 1
    p = TOY.posterior(likelihood)[0]  # (4, V)
    verbs = [i for i, word in enumerate(TOY.words) if tags()[word] in "vViI"]
    assert (p > 0).all() and p[2, verbs].sum() > .9
