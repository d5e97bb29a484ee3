"""Turns: random words with a time for each token, which is an order of masks in other words."""
from types import SimpleNamespace

import pytest
import torch

import world
from diffusion import Absorbing, Uniform, probabilities
from evaluation.parallel_cost import follow, from_nothing
from flags import UserError
from methods import make_method
from model import Transformer
from samplers import make_sampler
from world import TEXTS, L, N, P

UDLM, MDLM = make_method("udlm", N), make_method("mdlm", N)


def test_a_random_word_at_time_1_says_as_much_as_a_mask_and_one_at_time_0_is_text():
    torch.manual_seed(0)
    unknown = torch.rand(27, L) < 0.5  # (27, L)
    z = torch.where(unknown, torch.randint(N, (27, L)), TEXTS)  # (27, L)
    ours = world.oracle(Uniform(N))(z, unknown.double(), unknown)  # (n, N)
    masks = TEXTS.masked_fill(unknown, N)  # (27, L)
    theirs = world.oracle(Absorbing(N))(masks, torch.full((27, 1), 0.5), unknown)  # (n, N)
    assert torch.allclose(ours.exp(), theirs.exp(), atol=1e-12)


@pytest.mark.parametrize("order", ["streams", "golden"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_law_of_all_texts_is_that_of_masks_in_the_same_order(order, steps):
    def log_q(method, name):
        denoiser, sampler = method.oracle(world.LANGUAGE), make_sampler(name, method, order=order)
        walk = follow(method, denoiser, *from_nothing(method, 27, L), steps, sampler, x=TEXTS)
        assert torch.equal(walk.x, TEXTS) and walk.calls == steps and walk.positions == L
        return walk.log_q  # (27,)
    torch.manual_seed(0)
    ours = log_q(UDLM, "turns")
    assert torch.allclose(ours, log_q(MDLM, "spread"), atol=1e-5)
    assert torch.allclose(ours, P.log(), atol=1e-5) == (steps == L)


def test_given_words_are_at_time_0_from_the_start_and_never_change():
    calls, given = [], torch.tensor([[False, True, False, False], [False] * 4])  # (2, 4)

    def denoiser(z, t, at):
        calls.append((t.tolist(), at.tolist()))
        return torch.tensor([[0.0, 50.0, 0.0]]).expand(int(at.sum()), -1)  # (n, N)
    z = torch.tensor([[0, 2, 0, 0], [2, 2, 0, 0]])  # (2, 4)
    states = [z.tolist() for z in UDLM.sample(denoiser, z, given, 2, make_sampler("turns", UDLM))]
    first = [[1, 0, 1, 1], [1, 1, 1, 1]], [[True, False, False, True], [True, False, True, False]]
    later = [[0, 0, 1, 0], [0, 1, 0, 1]], [[False, False, True, False], [False, True, False, True]]
    assert calls == [first, later]
    assert states == [[[1, 2, 0, 1], [1, 2, 1, 0]], [[1, 2, 1, 1], [1, 1, 1, 1]]]


def test_one_needs_uniform_noise_and_a_network_that_has_seen_two_times():
    with pytest.raises(UserError, match="turns gives each random word a time, and mdlm has none"):
        make_sampler("turns", MDLM)
    network = Transformer(N, 1, 2, 8, cond_dim=4)
    for name in ("udlm", "duo"):
        turns = make_sampler("turns", UDLM)
        with pytest.raises(UserError, match="trained with --known 0.5"):
            turns.prepare(SimpleNamespace(denoiser=network, method=make_method(name, N)))
        turns.prepare(SimpleNamespace(denoiser=network, method=make_method(name, N, known=0.5)))
        turns.prepare(SimpleNamespace(denoiser=UDLM.oracle(world.LANGUAGE), method=UDLM))
    z, nothing = from_nothing(UDLM, 2, 5)
    *_, z = UDLM.sample(network, z, nothing, 3, make_sampler("turns", UDLM), probabilities)
    assert z.shape == (2, 5) and ((0 <= z) & (z < N)).all()
