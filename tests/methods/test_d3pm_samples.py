"""D3PM's sampling on the world of tests/world.py: one leap, fewer steps than T, and many steps."""
import pytest
import torch
from chains import TRANSITIONS, each_transition, end_of_chain, made, step_probs

import world
from world import LANGUAGE, L, N, from_texts, numbers, surprise


def nothing(n):
    return torch.zeros(n, L, dtype=torch.bool)  # (n, L)


@each_transition
@pytest.mark.parametrize("steps, times", [
    (6, [6, 5, 4, 3, 2, 1]), (3, [6, 4, 2]), (4, [6, 4, 3, 2]), (1, [6]),
    (50, [6, 5, 4, 3, 2, 1])])
def test_fewer_steps_than_T_leap_and_more_are_T(transition, steps, times):
    method, seen = made(transition, 6), []

    def denoiser(z, t, at):
        seen.append(round(float(t[0, 0]) * 6, 4))
        return torch.zeros(int(at.sum()), method.vocab_size)  # (n, V)
    torch.manual_seed(0)
    texts = list(method.sample(denoiser, method.prior((200, L)), nothing(200), steps))
    assert seen == times and len(texts) == len(times) and (texts[-1] < N).all()


@each_transition
@pytest.mark.parametrize("j, k", [(2, 3), (0, 4)])
def test_a_step_draws_the_reverse_distribution(transition, j, k):
    """100,000 draws of one leap from k to j against (2.2), by chi-square."""
    method, n = made(transition, 4), 100_000
    torch.manual_seed(1)
    V = method.vocab_size
    s, t = torch.tensor([[[j / 4]], [[k / 4]]], dtype=torch.float64)  # (1, 1) each
    z = torch.tensor([[0, V - 1, 1]])  # (1, L)
    p = torch.einsum("i,j,k->ijk", *step_probs(method, world.vandal, z, s, t)[0])  # (V, V, V)
    denoiser = lambda z, time, at: world.vandal(z, time.double(), at)
    s, t = s.expand(n, 1), t.expand(n, 1)  # (n, 1) each
    new = method.chain.step(denoiser, z.expand(n, -1), nothing(n), s, t)  # (n, L)
    assert surprise(numbers(new, V), p.flatten()) < 4.5


@each_transition
def test_samples_are_draws_from_the_product_of_all_steps(transition):
    """From the noise at k = 6 over 4 and 2 to text, through a wrong denoiser that reads the time:
    20,000 texts by chi-square."""
    method, n = made(transition, 6), 20_000
    p = end_of_chain(method, world.vandal, [6, 4, 2, 0])  # (S,)
    torch.manual_seed(0)
    denoiser = lambda z, t, at: world.vandal(z, t.double(), at)
    *_, z = method.sample(denoiser, method.prior((n, L)), nothing(n), 3)
    assert surprise(numbers(z, method.vocab_size), p) < 4.5


@each_transition
def test_many_steps_through_the_oracle_give_the_data_and_one_does_not(transition):
    """The exact total variation distance to the 27 probabilities, which is halved by twice as many
    steps, unless bells become too narrow."""
    def distance(T, steps):
        method = made(transition, T)
        times = torch.linspace(T, 0, steps + 1).int().tolist()
        end = end_of_chain(method, method.oracle(LANGUAGE), times)  # (S,)
        return from_texts(end, method.vocab_size)
    few, many = distance(24, 24), distance(48, 48)
    assert distance(48, 1) > 0.05 > 0.021 > many
    if transition != "gaussian":
        assert many < 0.012 and 0.48 < many / few < 0.52


def test_given_tokens_survive_and_the_network_is_not_called_there():
    torch.manual_seed(0)
    for transition in TRANSITIONS:
        method, given = made(transition, 5), torch.randint(N, (30, L))  # (30, L)
        frozen = torch.rand(30, L) < 0.5  # (30, L)
        frozen[0] = True

        def denoiser(z, t, at):
            assert not (at & frozen).any()
            return torch.zeros(int(at.sum()), method.vocab_size)  # (n, V)
        z = torch.where(frozen, given, method.prior(given.shape))  # (30, L)
        for z in method.sample(denoiser, z, frozen, 5):
            assert (z[frozen] == given[frozen]).all()
        assert (z < N).all()
