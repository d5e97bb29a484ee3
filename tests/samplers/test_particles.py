"""
Particles: in a world of two symbols all outcomes of all draws, and in that of 27 texts the law of
two particles as a chain over pairs of states.
"""
from functools import cache
from itertools import product

import pytest
import torch

import world
from diffusion import Absorbing
from outcomes import STATES, AllOutcomes
from samplers import particles
from samplers.particles import Way, effective_size
from searches import (
    LAM,
    MASKS,
    REWARD,
    TILTED,
    P,
    drawn,
    factorised,
    marginals,
    normalized,
    off,
    reward_of,
    searcher,
    surprise,
)
from world import L, N, numbers

VALUES = ("guess", "class", "none")


# ---- a world of two symbols

class TwoSymbols:
    """Texts of `length` words of two symbols; the mask is 2. Steps and guesses of a sampler are the
    next digits of AllOutcomes."""
    lam = 0.7

    def __init__(self, length):
        self.texts = torch.tensor(list(product((0, 1), repeat=length)))  # (n, L)
        self.states = torch.tensor(list(product((0, 1, 2), repeat=length)))  # (S, L)
        self.p, self.r = (world.weights(seed, len(self.texts)) for seed in (1, 4))  # (n,) each
        self.of_text = self.number(self.texts)  # (n,)

    def number(self, z):
        return (z * 3 ** torch.arange(z.shape[1])).sum(-1)  # (B,)

    def given(self, z):
        """p(x | z) -> (B, n)"""
        fits = ((z[:, None] == 2) | (z[:, None] == self.texts)).all(-1)  # (B, n)
        return normalized(fits * self.p)  # (B, n)

    def kernel(self, z, left):
        """The law of the next state: each mask opens with probability 1 / left, and then takes the
        word of one text. z (B, L) -> (B, 3^L)"""
        law = torch.zeros(len(z), 3 ** z.shape[1], dtype=torch.float64)  # (B, S)
        for opens in product((0, 1), repeat=z.shape[1]):
            R = torch.tensor(opens)  # (L,)
            at = R.bool() & (z == 2)  # (B, L)
            coin = torch.tensor([1 - 1 / left, 1 / left], dtype=torch.float64)  # (2,)
            coins = torch.where(z == 2, coin[R], 1.0 - R)  # (B, L)
            for k, x in enumerate(self.texts):
                chance = coins.prod(-1) * self.given(z)[:, k]  # (B,)
                law.scatter_add_(1, self.number(torch.where(at, x, z))[:, None], chance[:, None])
        return law

    def enumerate(self, made, chance, patch):
        """Put the next digits in the place of all that `made` draws."""
        every = self.states[self.number(self.states).argsort()]  # (S, L) by their numbers
        kernels = {left: self.kernel(every, left) for left in (1, 2, 3)}  # (S, S) each

        def step(process, denoiser, z, frozen, left, steps, to_probs):
            law = kernels[left][self.number(z)]  # (B, S)
            if left == 1:
                return self.texts[chance.digit(law[:, self.of_text])]  # (B, L)
            return every[chance.digit(law)]  # (B, L)

        def draw_at(denoiser, y, t, at, to_probs, n_tokens):
            return self.texts[chance.digit(self.given(y))][at], None  # (n,)
        made.step, made.score, made.lam = step, self.reward, self.lam
        made.judge = lambda z, t: torch.sin(1.0 + self.number(z).double())  # (B,) any V^ will do
        patch.setattr(particles, "draw_at", draw_at)
        patch.setattr(particles, "categorical", chance.categorical)

    def reward(self, x):
        table = torch.zeros(3 ** x.shape[1], dtype=torch.float64).scatter(0, self.of_text, self.r)
        return table[self.number(x)]  # (n,)

    @property
    def tilted(self):
        return normalized(self.p * (self.r / self.lam).exp())  # (n,)


def run(gen):
    """The states of a generator, and what it returns."""
    states = []
    while True:
        try:
            states.append(next(gen))
        except StopIteration as end:
            return states, end.value


def outcomes(length, steps, n, value, resample, kept):
    """The law of all ways after one run of `n` particles, from the tilted law of ways if `kept`.
    -> the world, weights (B,), their Ways, and those before"""
    small, S = TwoSymbols(length), 3 ** length
    few, texts = n - bool(kept), 2 ** length
    guess = texts if value == "guess" else 1
    runs = ((S * guess) ** (steps - 1) * texts) ** (few + bool(kept))
    chance = AllOutcomes(runs * (n ** n) ** (steps - 1) * n)
    made = searcher("smc", particles=n, value=value, resample=resample)
    B, before = len(chance.left), None
    with pytest.MonkeyPatch.context() as patch:
        small.enumerate(made, chance, patch)
        z = torch.full((B, length), 2)  # (B, L)
        args = Absorbing(2), None
        if kept:
            states, values, now, old = [], [], z, None
            for left in range(steps, 0, -1):
                y = made.step(*args, now, None, left, steps, None)
                old = made.log_value(*args, now, y, old, left, steps, None)  # (B,)
                states.append(y), values.append(old)
                now = y
            before = Way(torch.stack(states), torch.stack(values))
            chance.weight *= (small.reward(now) / small.lam).exp()
            chance.weight /= chance.weight.sum()
        _, way = run(made.write(*args, z, z < 0, steps, None, before))
    assert (chance.left == 0).all() and torch.isclose(chance.weight.sum(), torch.ones(()).double())
    return small, chance.weight, way, before


def law_of_ways(small, weight, way):
    """-> (S^steps,)"""
    key = torch.zeros_like(weight, dtype=torch.long)  # (B,)
    for z in way.states:
        key = key * 3 ** z.shape[1] + small.number(z)  # (B,)
    return torch.zeros(3 ** (z.shape[1] * len(way.states))).double().index_add(0, key, weight)


def law_of_text(small, weight, way):
    """-> (n,)"""
    law = torch.zeros(3 ** small.texts.shape[1]).double()  # (S,)
    return law.index_add(0, small.number(way.states[-1]), weight)[small.of_text]  # (n,)


@pytest.mark.parametrize("value, length, steps, n, resample", [
    ("guess", 1, 3, 2, 1.0), ("guess", 2, 2, 2, 0.9), ("none", 1, 3, 2, 0.8),
    ("class", 1, 3, 2, 1.0), ("class", 1, 2, 3, 1.0), ("class", 2, 2, 2, 1.0)])
def test_a_run_beside_the_way_of_the_last_text_leaves_the_tilted_law_as_it_is(value, length, steps,
                                                                               n, resample):
    """Of texts, and of ways, exactly, for any number of particles and any V^."""
    small, weight, after, before = outcomes(length, steps, n, value, resample, True)
    text = law_of_text(small, weight, after)  # (n,)
    torch.testing.assert_close(text, small.tilted, atol=1e-12, rtol=0)
    torch.testing.assert_close(law_of_ways(small, weight, after), law_of_ways(
        small, weight, before), atol=1e-12, rtol=0)


def test_a_run_alone_is_not_exact_and_the_more_particles_the_nearer():
    far = {}
    for value, n in product(VALUES, (1, 2, 3)):
        small, weight, way, _ = outcomes(1, 2, n, value, 1.0, False)
        far[value, n] = off(law_of_text(small, weight, way), small.tilted)
    for value in VALUES:
        assert far[value, 1] > far[value, 2] > far[value, 3] > 0.005
        assert abs(far[value, 1] - off(small.p, small.tilted)) < 1e-12


@pytest.mark.parametrize("value, steps, resample", [("none", 2, 0.0), ("guess", 1, 1.0)])
def test_without_values_or_in_one_step_it_is_the_best_of_texts(value, steps, resample):
    for n in (2, 3) if steps == 1 else (2,):
        small, weight, way, _ = outcomes(2, steps, n, value, resample, False)
        w, law = (small.r / small.lam).exp(), torch.zeros(4).double()  # (4,) each
        for texts in product(range(4), repeat=n):
            some = torch.tensor(texts)  # (n,)
            law.index_add_(0, some, small.p[some].prod() * w[some] / w[some].sum())
        torch.testing.assert_close(law_of_text(small, weight, way), law, atol=1e-12, rtol=0)


# ---- the world of 27 texts

@cache
def steps_of(left):
    """A step of (0.3) with the exact denoiser, `left` being left, as a matrix. -> (64, 64)"""
    law, words = torch.zeros(64, 64, dtype=torch.float64), factorised(marginals(P))  # (64, 27)
    for opens in product((0, 1), repeat=L):
        R = torch.tensor(opens)  # (L,)
        at = R.bool() & (STATES == N)  # (64, L)
        coin = torch.tensor([1 - 1 / left, 1 / left], dtype=torch.float64)  # (2,)
        coins = torch.where(STATES == N, coin[R], 1.0 - R).prod(-1)  # (64,)
        for k, x in enumerate(world.TEXTS):
            after = numbers(torch.where(at, x, STATES), N + 1)  # (64,)
            law[torch.arange(64), after] += coins * words[:, k]
    return law


def values_of(steps):
    """V(z) = E[exp(r / lam) | z] before each step, and at the end. -> list of (64,)"""
    V = [torch.zeros(64).double().index_put((numbers(world.TEXTS, N + 1),), (REWARD / LAM).exp())]
    for left in range(1, steps + 1):
        V.insert(0, steps_of(left) @ V[0])
    return V


def law_of_steps(steps):
    start = torch.zeros(64).double()  # (64,)
    start[63] = 1.0
    for left in range(steps, 0, -1):
        start = start @ steps_of(left)  # (64,)
    return start[numbers(world.TEXTS, N + 1)]  # (27,)


def tilted_steps(steps):
    return normalized(law_of_steps(steps) * (REWARD / LAM).exp())  # (27,)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_steps_times_the_exact_value_sample_the_tilted_law_in_any_number_of_steps(steps):
    """(22.11), of the law that the steps without it have."""
    V, law = values_of(steps), torch.zeros(64).double()  # (64,)
    law[63] = 1.0
    for i, left in enumerate(range(steps, 0, -1)):
        guided = steps_of(left) * V[i + 1] / V[i].clamp(min=1e-300)[:, None]  # (64, 64)
        assert ((guided.sum(-1) - 1).abs() < 1e-12)[law > 0].all()
        law = law @ guided  # (64,)
    assert off(law[numbers(world.TEXTS, N + 1)], tilted_steps(steps)) < 1e-12


def law_of_pairs(steps, V):
    """Two particles, weighted by V (a list of (64,)) and drawn anew in each step: the law of the
    one that is kept, as a chain over pairs. -> (27,)"""
    pairs = torch.zeros(64, 64).double()  # (64, 64)
    pairs[63, 63] = 1.0
    for i, left in enumerate(range(steps, 0, -1)):
        K = steps_of(left)  # (64, 64)
        a, c = (K * (pairs.sum(1) > 0)[:, None]).nonzero().unbind(-1)  # (m,) parents, children
        w = (V[i + 1][c] / V[i][a])  # (m,)
        share = w[:, None] / (w[:, None] + w)  # (m, m) of the first
        mass = pairs[a][:, a] * K[a, c][:, None] * K[a, c]  # (m, m)
        one, cell = (mass * share), lambda at: torch.zeros(64, len(c)).double().index_add(0, c, at)
        first, second = cell(one), cell((mass - one).T)  # (64, m) the child that is chosen
        last = first.sum(1) + second.sum(1)  # (64,)
        both = lambda q: torch.zeros(64, 64).double().index_put((c[:, None].expand(q.shape),
                                                                 c.expand(q.shape)), q, True)
        same = lambda q: torch.diag(torch.zeros(64).double().index_add(0, c, q))  # (64, 64)
        pairs = (same((mass * share ** 2).sum(1)) + same((mass * (1 - share) ** 2).sum(0))
                 + both(mass * share * (1 - share)) + both(mass * share * (1 - share)).T)
    return last[numbers(world.TEXTS, N + 1)]  # (27,)


def smc_of(n, steps=4, power=0.7, **flags):
    """The sampler with V^ = V^power for the exact V."""
    made, V = searcher("smc", particles=n, lam=LAM, value="class", **flags), values_of(steps)

    def judge(z, t):
        i = steps - int((t[0] * steps).round())  # how many steps are done
        return LAM * power * V[i][numbers(z, N + 1)].log()  # (B,)
    made.judge = judge
    return made


def test_two_particles_have_the_law_of_the_page_and_many_come_closer():
    """One is kept; V^ = V^0.7, four steps, in total variation of the tilted law of the steps."""
    V = [v ** (0.7 if i < 4 else 1.0) for i, v in enumerate(values_of(4))]
    two = law_of_pairs(4, V)  # (27,)
    assert abs(float(two.sum()) - 1) < 1e-12 and abs(off(law_of_steps(4), tilted_steps(4)) - .446
                                                     ) < 6e-4
    assert abs(off(two, tilted_steps(4)) - .288) < 6e-4
    z = drawn(smc_of(2, resample=1.0), 4, 10_000)
    assert surprise(z, two) < 4 < surprise(z, tilted_steps(4))
    far = off(torch.bincount(numbers(drawn(smc_of(16, resample=1.0), 4, 2_000), N), minlength=27)
              / 2_000, tilted_steps(4))
    assert far < .06


def test_few_particles_are_drawn_anew_only_where_few_of_them_count():
    log_w = torch.tensor([[0.0, 0.0, 0.0, 0.0], [5.0, 0.0, 0.0, 0.0]]).double()  # (2, 4)
    assert effective_size(log_w)[0] == 4 and 1 < effective_size(log_w)[1] < 1.1
    parent, left = smc_of(4, resample=0.5).parents(log_w, None)
    assert parent[0].tolist() == [0, 1, 2, 3] and (left == 0).all()
    assert (parent[1] == 0).sum() >= 3
    _, left = smc_of(4, resample=0.0).parents(log_w, None)
    assert torch.equal(left, log_w)


def test_more_runs_reach_the_tilted_law_with_two_particles():
    made = searcher("particle-gibbs", particles=2, lam=LAM, iterations=12)
    assert surprise(drawn(made, 2, 2_500), tilted_steps(2)) < 4
    once = searcher("smc", particles=2, lam=LAM)
    assert surprise(drawn(once, 2, 2_500), tilted_steps(2)) > 20
