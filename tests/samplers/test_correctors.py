"""Correctors: what keeps the model's distribution, what climbs, and what the greedy one repairs."""
import pytest
import torch
import torch.nn.functional as F

import world
from diffusion import Absorbing, Sampler, Uniform, likelihood, posterior_x0
from methods import make_method
from samplers import make_sampler
from samplers.correctors import Gibbs, Greedy, SelfCorrect, logits_given_others
from samplers.generate import CallCounter
from world import PROCESSES, TEXTS, L, N, P, numbers, surprise

NOTHING = lambda z: torch.zeros_like(z, dtype=torch.bool)


class Still(Sampler):
    """A sampler that yields the text as it is."""

    def __call__(self, process, denoiser, z, frozen, steps, to_probs):
        yield z


def exact_texts(n):
    return TEXTS[torch.multinomial(P, n, replacement=True)]  # (n, L)


# ---- gibbs

@pytest.mark.parametrize("name", PROCESSES)
def test_gibbs_leaves_the_exact_law_alone_and_from_anywhere_finds_it(name):
    """8,000 exact texts, 8 words of each drawn again: still exact. And texts of one word repeated
    become so."""
    process, n = PROCESSES[name], 8_000
    exact = world.by_state(world.oracle(process))
    clean = lambda z, t, at: exact(z, t.clamp(min=1e-7), at)
    torch.manual_seed(0)
    same = torch.zeros(n, L, dtype=torch.long)  # (n, L)
    for start, rounds in ((exact_texts(n), 8), (same, 30)):
        *_, z = Gibbs(Still(), rounds)(process, clean, start, NOTHING(start), 1)
        assert (z != start).any() and surprise(numbers(z, N), P) < 4.5


@pytest.mark.parametrize("name", ["mask", "hybrid .1"])
def test_the_network_does_not_see_the_word_that_is_drawn_again(name):
    process, z = PROCESSES[name], torch.tensor([[0, 1, 2], [2, 1, 2]])  # (2, L)
    at = torch.tensor([[True, False, False], [True, False, False]])  # (2, L)

    def seen(z, t, at):
        # a masked network would copy what it can see
        assert (z[at] == process.mask).all() and (z[~at] < N).all()
        return world.oracle(process)(z, t + 1e-7, at)
    first, second = logits_given_others(process, seen, z, at)  # (N,) each
    torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)


def test_a_sampler_may_end_before_its_corrector_begins():
    z, process = torch.full((4, L), N), Absorbing(N)
    corrected = make_sampler("first-hitting", make_method("mdlm", N), "gibbs", rounds=2)
    states = list(corrected(process, world.oracle(process), z, NOTHING(z), 30))
    assert (states[-1] < N).all() and len(states) == L + 2


@pytest.mark.parametrize("method, corrector", [
    ("mdlm", "gibbs"), ("bd3lm", "gibbs"), ("pgm", "gibbs"), ("udlm", "gibbs"),
    ("udlm", "self-correct"), ("gidd", "self-correct"), ("duo", "gibbs")])
def test_correctors_draw_as_many_words_again_as_asked_one_a_round(method, corrector):
    m = make_method(method, 5)
    torch.manual_seed(0)
    given, frozen = torch.randint(5, (6, 8)), torch.rand(6, 8) < 0.3  # (6, 8) each

    def rough(z, t, at=None, **layout):
        logits = torch.randn(*z.shape, 6)  # (B, L, 6)
        return logits if at is None else logits[at]
    z = torch.where(frozen, given, m.prior(given.shape))  # (6, 8)
    corrected = make_sampler("ancestral", m, corrector, rounds=5)
    states = list(m.sample(rough, z, frozen, 4, corrected))
    assert len(states) in (9, 18)  # bd3lm: in each of its two blocks
    assert all((a != b).sum(-1).max() <= 1 for a, b in zip(states[-5:], states[-4:]))


@pytest.mark.parametrize("corrector, rounds", [("gibbs", 32), ("self-correct", 128)])
def test_each_corrector_has_its_own_number_of_rounds(corrector, rounds):
    sampler = make_sampler("ancestral", make_method("udlm", 5), corrector)
    assert sampler.rounds == rounds and sampler.count_states(8, 4) == 4 + rounds


# ---- self-correct

@pytest.mark.parametrize("name", ["uniform", "hybrid .1", "hybrid .7"])
def test_self_correction_climbs_and_so_does_not_keep_the_law(name):
    process, n = PROCESSES[name], 4000
    torch.manual_seed(0)
    x, given = exact_texts(n), torch.rand(n, L) < 0.2  # (n, L) each
    exact = world.by_state(world.oracle(process))
    *_, z = SelfCorrect(Still(), 40)(process, exact, x, given, 1)
    score = lambda z: P[numbers(z, N)].log()
    assert (z == x)[given].all() and score(z).mean() > score(x).mean() + 0.1
    assert surprise(numbers(z, N), P) > 10


def test_self_correction_changes_one_word_a_round_and_stops_when_nothing_gets_better():
    process, right = PROCESSES["uniform"], torch.tensor([0, 1, 2, 0, 1, 2])  # (6,)
    sure = lambda z, t, at: (50.0 * F.one_hot(right, N)).expand(len(z), -1, -1)[at]
    z = torch.tensor([[0, 1, 2, 0, 1, 2], [1, 2, 0, 0, 1, 2]])  # (2, 6)
    spy = CallCounter(sure)
    states = list(SelfCorrect(Still(), 128)(process, spy, z, NOTHING(z), 1))
    changes = torch.stack([(a != b).sum(-1) for a, b in zip(states, states[1:])])  # (rounds, 2)
    assert changes.max() == 1 and changes[:, 0].sum() == 0 and changes[:, 1].sum() == 3
    assert (states[-1] == right).all() and spy.calls < 40


# ---- greedy

def chorus(process):
    """The oracle of a language of texts 00000, 11111, 22222: the majority of the other words."""
    def denoiser(z, t, at):
        log_q = likelihood(process, z, t.double().clamp(1e-6, 1 - 1e-6)).log()  # (B, L, N)
        return (log_q.sum(1, keepdim=True) - log_q).log_softmax(-1)[at]  # (n, N)
    return denoiser


def test_greedy_repairs_the_word_that_all_others_contradict_and_the_posterior_would_keep_it():
    """The posterior is that of a network that is 99.9 % sure, at t = 1e-5, where a word's own
    evidence has odds of V / t = 3e5: only an oracle could be surer than that."""
    process = Uniform(N)
    z = torch.tensor([[2, 2, 0, 2, 2], [1, 1, 1, 1, 0]])  # (2, 5)
    right = torch.tensor([[2] * 5, [1] * 5])  # (2, 5)
    *_, mended = Greedy(Still())(process, chorus(process), z, NOTHING(z), 2)
    assert torch.equal(mended, right)
    *_, kept = Greedy(Still())(process, chorus(process), z, z != right, 2)
    assert torch.equal(kept, z)  # what is given stays, wrong or not
    every, t = ~NOTHING(z), torch.full((2, 1), 1e-5, dtype=torch.float64)  # (2, 5), (2, 1)
    x_theta = chorus(process)(z, t, every).view(2, 5, N).exp() * 0.999 + 0.001 / N  # (2, 5, N)
    assert torch.equal(x_theta.argmax(-1), right)
    assert torch.equal(posterior_x0(process, x_theta, z, t).argmax(-1), z)


@pytest.mark.parametrize("name", ["ancestral", "psi"])
def test_greedy_is_the_last_of_the_steps(name):
    """As many network calls as steps, and as many states. The network is told that what it reads
    is clean; a single step begins with noise, and is told so."""
    torch.manual_seed(0)
    method, z, times = make_method("udlm", N), torch.randint(N, (300, 5)), []  # (300, 5)

    def told(z, t, at):
        times.append(t)
        return chorus(method.process)(z, t, at)
    for steps in (1, 2, 5):
        spy, sampler = CallCounter(told), make_sampler(name, method, "greedy")
        states = list(method.sample(spy, z, NOTHING(z), steps, sampler))
        assert len(states) == spy.calls == steps
        assert (times[-1] == (1 if steps == 1 else 0)).all()
