"""ReAUDM: if z and u are noise of the text, so are they after a step; and the law of many steps."""
import pytest
import torch

import world
from diffusion import Absorbing, probabilities
from flags import UserError
from methods import make_method
from methods.audm import OwnEvidence, add_evidence
from samplers import make_sampler
from samplers.redraw import between, redraw_step
from world import TEXTS, L, N, P, numbers, surprise

PROCESS = Absorbing(N)
TOLD = make_method("audm", N, told="words")
EXACT = TOLD.oracle(world.LANGUAGE)
WORDS = torch.arange(N)


def at(time, n):
    return torch.full((n, 1), time).double()  # (n, 1)


@pytest.mark.parametrize("t, s", [(1.0, 0.6), (0.7, 0.3), (0.4, 0.38)])
def test_noise_of_a_known_text_stays_noise_of_it(t, s):
    """Of a network that knows the text, z_s and the new u have the joint law of time s."""
    torch.manual_seed(0)
    x, u = torch.tensor([0, 2, 1]).expand(20_000, -1), torch.randint(N, (20_000, L))  # (n, L)
    z = torch.where(torch.rand(x.shape) < t, u, x)  # (n, L)
    knows = OwnEvidence(lambda z, t, at: 99.0 * torch.nn.functional.one_hot(x[at], N), PROCESS, u)
    masked, nothing = torch.where(z == u, N, z), torch.zeros_like(z, dtype=torch.bool)
    z = redraw_step(PROCESS, knows, masked, nothing, at(s, len(z)), at(t, len(z)), probabilities)
    for l in range(L):
        z_, u_ = torch.arange(N * N) // N, torch.arange(N * N) % N  # (N N,) each
        p = ((1 - s) * (z_ == x[0, l]) + s * (z_ == u_)) / N  # (N N,)
        assert surprise(z[:, l] * N + knows.words[:, l], p.double()) < 4.5


def test_the_words_between_are_those_of_bayes_rule():
    s, t, n = 0.3, 0.7, 30_000
    torch.manual_seed(0)
    for x, z in ((1, 1), (1, 2)):
        drawn = between(PROCESS, torch.full((n, 1), x), torch.full((n, 1), z), at(s, n), at(t, n))
        p = bridge(torch.tensor(s), torch.tensor(t))[x, z]  # (N,)
        assert surprise(drawn[:, 0], p.double()) < 4.5


def bridge(s, t):
    """q(z_s | x, z_t), of x, z_t, z_s. -> (N, N, N)"""
    kept, same = (1 - t) / (1 - s), WORDS[:, None] == WORDS  # (N, N)
    q = (kept * same + (1 - kept) / N) * ((1 - s) * same[:, None] + s / N)  # (N, N, N)
    return q / q.sum(-1, keepdim=True)  # (N, N, N)


def law_of(steps):
    """The probabilities of the 27 texts, as a product of matrices over all pairs z, u. -> (27,)"""
    z, u = TEXTS.repeat(27, 1), TEXTS.repeat_interleave(27, 0)  # (729, L) each
    p = ((z == u).all(-1) / 27).double()  # (729,)
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)  # (steps + 1,)
    for t, s in zip(times[:-1], times[1:]):
        closed = z == u  # (729, L)
        log_p = EXACT(torch.where(closed, N + 1 + u, z), t.expand(729, 1))  # (729, L, N)
        log_p = add_evidence(log_p.flatten(0, 1), u.flatten(), ((1 - t) / t).expand(729 * L))
        x = log_p.softmax(-1).view(729, L, N)  # (729, L, N)
        x = torch.where(closed[..., None], x, (WORDS == z[..., None]).double())  # (729, L, N)
        same = WORDS[:, None] == WORDS  # (N, N) x, z_s or u
        again = (same + (1 - s) * ~same) / (1 + (N - 1) * (1 - s))  # (N, N)
        new = torch.where(same[..., None], again, same.double())  # (x, z_s, u)
        step = torch.einsum("blx,xblz,xzu->blzu", x, bridge(s, t)[:, z], new)  # (729, L, N, N)
        step = torch.einsum("aij,akl,amn->aikmjln", *step.unbind(1)).reshape(729, 27, 27)
        p = torch.einsum("a,azu->uz", p, step).flatten()  # (729,)
    return p.view(27, 27).sum(0)  # (27,)


def test_its_samples_have_the_law_of_the_chain_and_that_is_not_quite_the_models():
    torch.manual_seed(0)
    z = TOLD.prior((20_000, L))  # (n, L)
    nothing, denoiser = torch.zeros_like(z, dtype=torch.bool), world.by_state(EXACT)
    *_, z = TOLD.sample(denoiser, z, nothing, 4, make_sampler("redraw", TOLD))
    assert surprise(numbers(z, N), law_of(4)) < 4.5 and surprise(numbers(z, N), P) > 10
    off = [float((law_of(steps) - P).abs().sum() / 2) for steps in (16, 64)]  # total variation
    assert off == pytest.approx([0.0302, 0.0085], abs=1e-4)


def test_given_words_stay_and_words_of_noise_change_during_the_walk():
    torch.manual_seed(0)
    given, frozen = TEXTS[torch.arange(60) % 27], torch.rand(60, L) < 0.4  # (60, L) each
    z = torch.where(frozen, given, TOLD.prior((60, L)))  # (60, L)
    states = list(TOLD.sample(world.by_state(EXACT), z, frozen, 8, make_sampler("redraw", TOLD)))
    assert all((state == given)[frozen].all() for state in states) and (states[-1] < N).all()
    opened = [state < N for state in states]
    assert any((a & ~b).any() for a, b in zip(opened, opened[1:]))  # text looks like noise again


@pytest.mark.parametrize("method", [make_method("audm", N), make_method("udlm", N)])
def test_it_needs_a_network_that_is_told_the_words(method):
    with pytest.raises(UserError, match="it is for audm with --told words"):
        make_sampler("redraw", method)
