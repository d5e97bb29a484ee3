"""
Searches over whole texts, in the world of 27 texts: their laws as sums over all outcomes.

Reference figures: those of a law and a reward in tests/reference/search_reference.npz.
"""
from functools import cache

import pytest
import torch

import world
from diffusion import ancestral, probabilities
from outcomes import STATES, AllOutcomes, law_of_texts
from own_chance import OwnChance, knows_its_own_text
from samplers import make_sampler, search
from samplers.generate import CallCounter
from searches import (
    DENOISER,
    FIGURES,
    LAM,
    MASKS,
    REWARD,
    TILTED,
    P,
    drawn,
    factorised,
    marginals,
    off,
    reward_of,
    searcher,
    surprise,
)
from world import L, N, TEXTS, numbers

Q = factorised(marginals(P))  # (64, 27)
SEARCHES = {"best-of": dict(lam=0.5), "path-integral": {}, "local": dict(lam=0.5, changes=3),
            "smc": dict(resample=1.0), "particle-gibbs": dict(iterations=2)}


class ExactTexts:
    """A walk whose texts have the law P: the next digit of each row of AllOutcomes."""

    def __init__(self, chance):
        self.chance = chance

    def __call__(self, process, denoiser, z, frozen, steps, to_probs):
        yield TEXTS[self.chance.digit(P.expand(len(z), -1))]  # (B, L)


def law_of_best(K, lam):
    """The law of the text that best-of keeps, if its walk is exact. -> (27,)"""
    chance = AllOutcomes(27 ** K * (2 ** (K - 1) if lam else 1))
    made = searcher("best-of", texts=K, lam=lam)
    made.walker = lambda: ExactTexts(chance)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "toss", chance.toss)
        z = torch.full((len(chance.left), L), N)  # (B, L)
        *_, x = made(MASKS.process, None, z, z != N, 1)
    x = x.clamp(max=N - 1)  # (B, L) masks have no weight
    return torch.zeros_like(P).index_add(0, numbers(x, N), chance.weight)  # (27,)


# ---- best-of

@pytest.mark.parametrize("K, lam, far", [(1, LAM, .430), (2, LAM, .301), (3, LAM, .224),
                                         (2, 0, .248), (3, 0, .119)])
def test_the_best_of_several_texts_has_the_law_of_the_reference_and_of_the_page(K, lam, far):
    law = law_of_best(K, lam)
    name = "sample" if lam else "max"
    assert off(law, FIGURES(f"smc/bestof_{name}_K{K}")) < 1e-12
    assert abs(off(law) - far) < 6e-4


def test_argmax_is_not_a_sampler_it_overshoots():
    """With enough texts the best one has far more reward than the tilted law."""
    low = (P * (REWARD < REWARD[:, None])).sum(-1)  # (27,) P(the reward is lower)
    high = (P * (REWARD <= REWARD[:, None])).sum(-1)  # (27,)
    for K, far in ((2, .248), (4, .155), (8, .219), (32, .488)):
        best = P * (high ** K - low ** K) / (high - low)  # (27,)
        assert abs(float(best.sum()) - 1) < 1e-9 and abs(off(best) - far) < 6e-4
    assert best @ REWARD - TILTED @ REWARD > .1 > 0 > P @ REWARD - TILTED @ REWARD


def test_it_stops_where_the_reward_is_enough_and_calls_are_those_of_its_texts():
    for enough, calls in ((-1.0, 1), (float("inf"), 5)):
        spy, made = CallCounter(DENOISER), searcher("best-of", texts=5, enough=enough)
        drawn(made, 1, 40, spy)
        assert spy.texts == 40 * calls and made.costs()["texts_rated"] == 40 * calls
    texts = drawn(searcher("best-of", texts=50, enough=1.0), 1, 200)
    assert (reward_of(texts) >= 1).all()


# ---- path

def law_of_choice(K, lam=LAM):
    """The law of the guess that `path` keeps in each state. -> (64, 27)"""
    made, rows = searcher("path-integral", guesses=K, lam=lam), []
    for z in STATES:
        m = int((z == N).sum())
        chance = AllOutcomes(N ** (m * K) * K)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(search, "categorical", chance.categorical)
            every = z.expand(len(chance.left), -1)  # (B, L)
            x = every if m == 0 else made.choose(MASKS.process, DENOISER, every, torch.ones(
                len(every), 1), probabilities)  # (B, L)
        rows.append(torch.zeros_like(P).index_add(0, numbers(x.clamp(max=N - 1), N), chance.weight))
    return torch.stack(rows)  # (64, 27)


choices = cache(law_of_choice)


@pytest.mark.parametrize("K, far", [(1, (.526, .463, .426)), (2, (.434, .350, .321))])
def test_texts_of_guesses_have_the_law_of_the_reference_and_of_the_page(K, far):
    for steps, printed in zip((1, 2, 4), far):
        law = law_of_texts(choices(K), steps)  # (27,)
        assert off(law, FIGURES(f"smc/perstep_K{K}_T{steps}")) < 1e-12
        assert abs(off(law) - printed) < 6e-4


def test_many_guesses_are_not_exact_since_they_are_words_drawn_one_by_one():
    """For K -> infinity a guess has the law Q exp(r / lam): its limit in 1, 2 and 4 steps."""
    limit = Q * (REWARD / LAM).exp()  # (64, 27)
    limit = limit / limit.sum(-1, keepdim=True)  # (64, 27)
    for steps, printed in ((1, .394), (2, .221), (4, .145)):
        assert abs(off(law_of_texts(limit, steps)) - printed) < 6e-4


def test_its_steps_are_those_whose_law_is_known():
    z = drawn(searcher("path-integral", guesses=2, lam=LAM), 2, 6000)
    assert surprise(z, FIGURES("smc/perstep_K2_T2")) < 4
    z = drawn(searcher("path-integral", None), 2, 6000)
    assert surprise(z, law_of_texts(Q, 2)) < 4  # no reward: one guess


# ---- local

def test_a_change_leaves_the_tilted_law_as_it_is_and_many_reach_it():
    """One word at a time, drawn from the exact p(x_l | the rest)."""
    texts = TEXTS[torch.multinomial(TILTED, 8000, True, generator=torch.Generator().manual_seed(1))]
    made = searcher("local", share=0.3, lam=LAM, changes=1)
    made.walker = (lambda own=made.walker: OnlyWords(texts, own()))
    assert surprise(drawn(made, 1, 8000), TILTED) < 4
    far = [off(torch.bincount(numbers(drawn(searcher(
        "local", share=0.3, lam=LAM, changes=n), 3, 4000), N), minlength=27) / 4000)
        for n in (1, 20)]
    assert far[1] < .06 < .3 < far[0]


class OnlyWords:
    """A walk that begins with these texts, and changes them as another one does."""

    def __init__(self, texts, walk):
        self.texts, self.walk = texts, walk

    def __call__(self, process, denoiser, z, frozen, steps, to_probs):
        if (z == N).all():
            yield self.texts
        else:
            yield from self.walk(process, denoiser, z, frozen, steps, to_probs)


def test_a_local_search_never_loses_reward_and_stops_where_it_is_enough():
    made, spy = searcher("local", changes=6, enough=1.4), CallCounter(DENOISER)
    torch.manual_seed(0)
    z = MASKS.prior((300, L))  # (300, L)
    states = list(made(MASKS.process, spy, z, z != N, 2))[1:]
    rewards = torch.stack([reward_of(x) for x in states])  # (7, 300)
    assert (rewards.diff(dim=0) >= 0).all() and rewards[-1].mean() > rewards[0].mean() + .3
    done = rewards[:-1] >= 1.4  # (6, 300)
    assert all(torch.equal(a[d], b[d]) for a, b, d in zip(states, states[1:], done))
    assert spy.texts <= 2 * 300 + int((~done).sum())


# ---- all of them

@pytest.mark.parametrize("name", SEARCHES)
def test_given_words_stay_and_a_text_is_the_same_alone_and_in_a_batch(name):
    """Of five symbols, with a reward; given: nothing, all, a prompt, a gap."""
    frozen = torch.tensor([[0] * 6, [1] * 6, [1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 1]]).bool()
    given, method = torch.arange(24).view(4, 6) * 3 % 5, world.make_world_method("mdlm", 5)

    def write(rows, steps):
        made = make_sampler(name, method, **SEARCHES[name])
        made.score = lambda x: (x * torch.arange(6)).sum(-1) % 7 / 3  # (n,)
        with OwnChance(3, rows.start) as chance:
            z = torch.where(frozen[rows], given[rows], 5)  # (b, 6)
            states = list(made(method.process, knows_its_own_text, z, frozen[rows], steps))
            assert len(states) <= made.count_states(6, steps)
            assert all((state == given[rows])[frozen[rows]].all() for state in states)
            return chance.last(states)  # (b, 6)
    for steps in (1, 4):
        together = write(slice(0, 4), steps)  # (4, 6)
        assert (together < 5).all()
        for rows in (slice(0, 1), slice(2, 4)):
            assert torch.equal(write(rows, steps), together[rows])


@pytest.mark.parametrize("walk", search.WALKS)
def test_a_walk_step_by_step_is_the_walk(walk):
    """Where texts can be exchanged between its steps: bit for bit, if it draws nothing before."""
    made = searcher("smc", walk=walk)
    z = MASKS.prior((200, L))  # (200, L)
    torch.manual_seed(3)
    states = list(made.walker()(MASKS.process, DENOISER, z, z != N, 3))
    torch.manual_seed(3)
    ours, spy = z, CallCounter(DENOISER)
    for left in (3, 2, 1):
        ours = made.step(MASKS.process, spy, ours, z != N, left, 3, probabilities)
        if walk != "spread":  # it draws its order anew
            assert torch.equal(ours, states[3 - left])
    assert (ours < N).all() and spy.calls <= 3


def test_without_a_reward_all_texts_are_alike_and_one_is_written():
    for name, flags in SEARCHES.items():
        made, spy = searcher(name, None, **flags), CallCounter(DENOISER)
        torch.manual_seed(5)
        z = MASKS.prior((30, L))  # (30, L)
        *_, x = made(MASKS.process, spy, z, z != N, 2)
        calls = spy.calls
        torch.manual_seed(5)
        *_, y = ancestral(MASKS.process, DENOISER, z, z != N, 2)
        assert calls <= 2 and (name == "path-integral" or torch.equal(x, y)), name
