"""D3PM's walks on the world of tests/world.py: single leaps, many steps through the oracle, and what is refused."""
import pytest
import torch
import torch.nn.functional as F
import world
from test_d3pm import TRANSITIONS, each_transition, looked_up, made, oracle
from world import L, N, P, numbers, surprise

from d3pm import D3PM, gaussian
from data import BadInput
from sample import Counted


@each_transition
@pytest.mark.parametrize("steps, times", [(6, [6, 5, 4, 3, 2, 1]), (3, [6, 4, 2]), (4, [6, 4, 3, 2]), (1, [6]),
                                          (50, [6, 5, 4, 3, 2, 1])])
def test_a_walk_of_fewer_steps_leaps_and_of_more_is_of_T(transition, steps, times):
    method, told = made(transition, 6), []
    def denoiser(z, t, at):
        told.append(round(float(t[0, 0]) * 6, 4))
        return torch.zeros(int(at.sum()), method.vocab_size)
    torch.manual_seed(0)
    walk = list(method.sample(denoiser, method.prior((200, L)), torch.zeros(200, L).bool(), steps))
    assert told == times and len(walk) == len(times) and (walk[-1] < N).all()


@each_transition
@pytest.mark.parametrize("j, k", [(2, 3), (0, 4)])
def test_a_step_draws_the_reverse_law(transition, j, k):
    """100,000 draws of one leap from k to j against (27), by chi-square."""
    method, n = made(transition, 4), 100_000
    torch.manual_seed(1)
    V = method.vocab_size
    s, t = torch.tensor([[[j / 4]], [[k / 4]]], dtype=torch.float64)
    z = torch.tensor([[0, V - 1, 1]])
    x_theta = world.vandal(z, t).exp()[0]                                                               # (L, N)
    p = method.chain.reverse(x_theta, z[0], s.expand(1, L)[0], t.expand(1, L)[0])
    if transition == "absorbing":
        p = torch.where((z[0] < N)[:, None], F.one_hot(z[0], V).double(), p)
    law = torch.einsum("i,j,k->ijk", *p).flatten()
    denoiser = lambda z, time, at: world.vandal(z, time.double(), at)
    new = method.chain.step(denoiser, z.expand(n, -1), torch.zeros(n, L).bool(), s.expand(n, 1), t.expand(n, 1))
    assert surprise(numbers(new, V), law) < 4.5


@each_transition
def test_many_steps_through_the_oracle_draw_the_data_and_one_does_not(transition):
    """Total variation distance to the 27 probabilities, against that of as many exact draws; 48 steps cost 0.01."""
    torch.manual_seed(0)
    method, n = made(transition, 48), 10_000
    distance = lambda draws: (torch.bincount(draws, minlength=27) / n - P).abs().sum() / 2
    chance = torch.stack([distance(torch.multinomial(P, n, replacement=True)) for _ in range(30)])
    exact, nothing = looked_up(method, oracle(method)), torch.zeros(n, L, dtype=torch.bool)
    far, near = (distance(numbers([*method.sample(exact, method.prior((n, L)), nothing, steps)][-1], N))
                 for steps in (1, 48))
    assert far > 0.05 and near < chance.mean() + 4 * chance.std() + 0.01, (near, chance.mean(), chance.std())


def test_given_tokens_survive_and_nothing_is_asked_there():
    torch.manual_seed(0)
    for transition in TRANSITIONS:
        method, given = made(transition, 5), torch.randint(N, (30, L))
        frozen = torch.rand(30, L) < 0.5
        frozen[0] = True
        def denoiser(z, t, at):
            assert not (at & frozen).any()
            return torch.zeros(int(at.sum()), method.vocab_size)
        z = torch.where(frozen, given, method.prior(given.shape))
        for z in method.sample(denoiser, z, frozen, 5):
            assert (z[frozen] == given[frozen]).all()
        assert (z < N).all()


def test_a_guess_that_z_rules_out_is_left_out_and_not_a_division_by_zero():
    """Temperature 0 and a bell of one level: the network swears on 0 where z is 50."""
    torch.manual_seed(0)
    method = D3PM(64, transition=gaussian(64, 200)[:3])
    assert method.T == 3 and method.chain.cumulative[3, 0, 50] == 0
    sure = lambda z, t, at: F.one_hot(torch.zeros(int(at.sum()), dtype=torch.long), 64).double() * 9
    cold = lambda logits: F.one_hot(logits.argmax(-1), 64).double()
    for z in method.sample(sure, torch.full((50, 4), 50), torch.zeros(50, 4).bool(), 3, law=cold):
        assert (z > 40).all() and (z < 60).all()


# ---- what is refused

def test_matrices_that_do_not_fit_into_memory_are_refused_before_they_are_made():
    for transition in ("gaussian", "nearest"):
        with pytest.raises(BadInput, match="keeps 128 matrices of 8,192 x 8,192"):
            D3PM(8192, 128, transition, embedding=torch.zeros(8192, 2))
    with pytest.raises(BadInput, match="needs --embedding FOLDER"):
        D3PM(9, 4, "nearest")
    assert D3PM(50_257, 1000, "uniform").vocab_size == 50_257
    spy = Counted(lambda z, t, at: torch.zeros(int(at.sum()), 50_258))
    D3PM(50_257, 100_000).loss(spy, torch.zeros(2, 4, dtype=torch.long))
