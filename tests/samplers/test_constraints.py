"""
Texts of a grammar: the law of draws given that they parse, by enumeration, and the toy's automaton
beside its grammar.
"""
from functools import cache
from itertools import product
from types import SimpleNamespace

import pytest
import torch

from data import load_data
from data.toy import Toy
from data.toy_grammar import TYPO
from diffusion import probabilities
from flags import UserError
from methods import make_method
from outcomes import STATES, AllOutcomes, fits, law_of_texts, opened
from samplers import constraints, make_sampler
from samplers.constraints import draw_inside
from samplers.rewards import parses
from searches import (
    MASKS,
    P,
    drawn,
    exact_denoiser,
    factorised,
    marginals,
    normalized,
    off,
    surprise,
)
from world import L, N, TEXTS, numbers

# Neither 0 after 1 nor 2 after 2; what may follow depends on the word before.
TABLE = torch.tensor([[1, 2, 3], [1, 2, 3], [-1, 2, 3], [1, 2, -1]])  # (S, V)
INSIDE = parses(TABLE, TEXTS)  # (27,)
LAW = normalized(P * INSIDE)  # (27,) a language all of whose texts parse
DENOISER, WORDS = exact_denoiser(LAW), factorised(marginals(LAW))  # (64, 27)
PARSING = normalized(WORDS * INSIDE)  # (64, 27) (22.18)


def sampler_of(table=TABLE):
    made = make_sampler("grammar", MASKS)
    made.table = table
    return made


def law_of_draw(z):
    """The law of the text that a step draws in the state z (3,). -> (27,)"""
    chance = AllOutcomes(N ** L)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constraints, "categorical", chance.categorical)
        x = sampler_of().draw(MASKS.process, DENOISER, z.expand(N ** L, -1), torch.ones(N ** L, 1),
                              probabilities)  # (B, L)
    weight = chance.weight.nan_to_num(0.0)  # (B,) nan: after a word that is never drawn
    return torch.zeros_like(P).index_add(0, numbers(x, N), weight)  # (27,)


def test_the_automaton_of_the_world_means_what_it_says():
    for x, inside in zip(TEXTS.tolist(), INSIDE.tolist()):
        assert inside == ((1, 0) not in zip(x, x[1:]) and (2, 2) not in zip(x, x[1:]))
    assert 0 < INSIDE.sum() < 27


def test_a_draw_has_the_law_of_the_words_given_that_the_text_parses():
    """In every state with masks that can be completed, exactly: that of draws which are thrown away
    until one parses."""
    able = (fits(STATES) & INSIDE).any(-1) & (STATES == N).any(-1)  # (64,)
    assert able.sum() > 20
    for i in able.nonzero()[:, 0].tolist():
        torch.testing.assert_close(law_of_draw(STATES[i]), PARSING[i], atol=1e-12, rtol=0)


def one_by_one(choice):
    """The law of texts where one mask opens at a time, any of them, with a word of a text that has
    the law choice (64, 27): the limit of many steps. -> (27,)"""
    law = torch.zeros(64).double()  # (64,)
    law[63] = 1.0
    for _ in range(L):
        new = torch.zeros_like(law)  # (64,)
        for i, l in product((law > 0).nonzero()[:, 0].tolist(), range(L)):
            masks = STATES[i] == N  # (L,)
            if masks[l]:
                at = torch.arange(L) == l  # (L,)
                new.index_add_(0, opened(STATES[i], at), law[i] * choice[i] / masks.sum())
        law = new
    return law[numbers(TEXTS, N + 1)]  # (27,)


@cache
def laws(name):
    choice = {"words": WORDS, "grammar": PARSING}[name]
    return *(law_of_texts(choice, steps) for steps in (1, 2, 4)), one_by_one(choice)


@pytest.mark.parametrize("name, far, inside", [
    ("words", (.478, .273, .145, 0), (.661, .835, .919, 1)),
    ("grammar", (.328, .203, .137, .090), (1, 1, 1, 1))])
def test_in_few_steps_the_grammar_helps_and_in_many_it_is_not_exact(name, far, inside):
    """For the exact denoiser of a language whose texts all parse: of words drawn one by one."""
    for law, off_by, share in zip(laws(name), far, inside):
        assert abs(off(law, LAW) - off_by) < 6e-4 and abs(float(law @ INSIDE.double()) - share
                                                          ) < 6e-4


def test_its_steps_are_those_whose_law_is_known_and_given_words_stay():
    z = drawn(sampler_of(), 2, 6000, DENOISER)
    assert surprise(z, laws("grammar")[1]) < 4
    prompt = torch.tensor([N, 1, N]).repeat(300, 1)  # (300, L)
    x = drawn(sampler_of(), 3, 300, DENOISER, prompt)
    assert (x[:, 1] == 1).all() and parses(TABLE, x).all() and (x[:, 2] != 0).all()


def test_without_a_grammar_all_texts_parse():
    z = drawn(sampler_of(None), 2, 4000, DENOISER)
    assert surprise(z, laws("words")[1]) < 4


def test_given_words_that_do_not_fit_are_refused_in_one_line():
    with pytest.raises(UserError, match="no text of the grammar has the given tokens") as refused:
        drawn(sampler_of(), 2, 4, DENOISER, torch.tensor([[1, 0, N]] * 4))
    assert "\n" not in str(refused.value)


def test_long_texts_do_not_underflow():
    """300 words of probability 1e-9 each inside the grammar, beside others that are likely."""
    q = torch.tensor([1e-9, 0.0, 1.0]).double().expand(2, 300, -1)  # (2, L, V)
    x = draw_inside(q, torch.tensor([[0, -1, -1]]))  # (2, L)
    assert (x == 0).all()


# ---- the toy language

@cache
def toy():
    return load_data("toy", 12)


def test_the_automaton_of_the_toy_language_reads_what_its_grammar_writes_and_nothing_else():
    """Texts of the language without typos, and the same with one word changed."""
    language, table = Toy(), toy().automaton
    language.emission = language.emission - TYPO / language.V  # (K, Q, V)
    language.emission[language.emission < 1e-12] = 0.0
    language.by_word = language.emission.permute(2, 0, 1).contiguous()
    torch.manual_seed(0)
    x = toy().language.sample(300, 12, torch.Generator().manual_seed(3))  # (300, 12)
    changed = x.scatter(1, torch.randint(12, (300, 1)), torch.randint(language.V, (300, 1)))
    x = torch.cat([x, changed])  # (600, 12)
    possible = (language.log_evidence(x) > -torch.inf).any(-1)  # (600,) nan: impossible before
    assert torch.equal(parses(table, x), possible)
    assert 300 < possible.sum() < 400


def test_every_text_parses_whatever_the_network_is():
    model = SimpleNamespace(config=SimpleNamespace(data="toy", block_size=12),
                            encoding=toy().encoding)
    method = make_method("mdlm", toy().language.V)
    made = make_sampler("grammar", method)
    made.prepare(model)
    generator = torch.Generator().manual_seed(0)

    def rough(z, t, at):
        return torch.randn(int(at.sum()), toy().language.V, generator=generator)  # (N, V)
    torch.manual_seed(0)
    z = method.prior((20, 12))  # (20, 12)
    *_, x = made(method.process, rough, z, torch.zeros_like(z).bool(), 3)
    assert parses(toy().automaton, x).all() and len(x.unique()) > 40


def test_data_without_a_grammar_are_refused():
    model = SimpleNamespace(config=SimpleNamespace(data="sudoku4", block_size=32), encoding=None)
    with pytest.raises(UserError, match="sudoku4 has no grammar that is known"):
        make_sampler("grammar", MASKS).prepare(model)
