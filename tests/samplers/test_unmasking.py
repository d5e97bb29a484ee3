"""Which masks open, and how many: LLaDA's schedule, random orders, the most confident first."""
from functools import partial
from pathlib import Path

import numpy
import pytest
import torch

import world
from diffusion import Absorbing, probabilities
from methods import make_method
from samplers import make_sampler
from samplers.base import highest, masks_to_open
from world import L, N, surprise

REFERENCE = Path(__file__).parents[1] / "reference/block_reference.npz"  # LLaDA
FIGURES = numpy.load(REFERENCE)
GREEDY = partial(probabilities, temperature=0)
MDLM = make_method("mdlm", 5)


def rough(z, t, at):
    """A denoiser of 5 symbols that knows nothing."""
    return torch.randn(*z.shape, 6, generator=torch.Generator().manual_seed(0))[at]  # (N, 6)


def states(name, denoiser, z, steps, to_probs=probabilities):
    """The states of texts from nothing."""
    sampler, nothing = make_sampler(name, MDLM), torch.zeros_like(z, dtype=torch.bool)
    return sampler(Absorbing(5), denoiser, z, nothing, steps, to_probs)


@pytest.mark.parametrize("name", ["n10_steps4", "n7_steps7", "n3_steps5", "n32_steps8",
                                  "n13_steps1", "n0_steps3", "batched_n9_n6_steps4"])
def test_the_share_of_the_masks_that_a_step_opens_is_lladas_schedule(name):
    theirs = torch.from_numpy(FIGURES[f"llada_transfer/{name}"])  # (B, steps)
    left = theirs.sum(-1)  # (B,)
    for step in range(theirs.shape[1]):
        opens = masks_to_open(left, theirs.shape[1] - step)  # (B,)
        assert torch.equal(opens.long(), theirs[:, step])
        left = left - opens  # (B,)


def test_highest_ranks_each_text_by_itself():
    score = torch.tensor([[0.1, 0.9, 0.5], [0.3, 0.2, 0.1]])  # (2, 3)
    ours = highest(score, torch.tensor([[2], [1]]))  # (2, 3)
    assert ours.tolist() == [[False, True, True], [True, False, False]]


@pytest.mark.parametrize("name", ["first-hitting", "confidence"])
def test_orders_open_the_same_number_at_each_step(name):
    walk = states(name, rough, torch.full((6, 20), 5), 5)
    opened = torch.stack([(z < 5).sum(-1) for z in walk], -1)  # (6, 5)
    assert opened.tolist() == [[4, 8, 12, 16, 20]] * 6


def test_confidence_opens_what_the_network_believes_in_most():
    """The network is confident at position 2, and nowhere else."""
    def confident_at_two(z, t, at):
        logits = torch.zeros(*z.shape, 6)  # (B, L, 6)
        logits[:, 2, 3] = 20.
        return logits[at]
    first = next(states("confidence", confident_at_two, torch.full((30, 6), 5), 6))
    assert (first[:, 2] == 3).all() and ((first < 5).sum(-1) == 1).all()


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("to_probs", [GREEDY, partial(probabilities, top_p=0.2)],
                         ids=["greedy", "nucleus"])
@pytest.mark.parametrize("name", ["semi-ar", "confidence", "top-k"])
def test_confidence_is_the_networks_own_and_not_the_sharpened_one(name, to_probs, fused):
    """At temperature 0 every draw has probability 1 in the sharpened distribution; the most
    confident masks still open first."""
    logit = torch.tensor([3.0, 5.0, 1.0, 6.0, 2.0, 4.0])  # (6,) of symbol 1; 0 of the others
    order, weight = logit.argsort(descending=True), torch.eye(7)[:, 1:2]  # (6,), (7, 1)

    def denoiser(z, t, at, head=None):
        h = logit.expand(len(z), 6)[at][:, None]  # (N, 1)
        return head(h, weight, torch.zeros(7)) if head else h @ weight.T
    denoiser.supports_fused_head = fused
    method, z = make_method("mdlm", 6), torch.full((3, 6), 6)  # (3, 6)
    sampler, nothing = make_sampler(name, method), torch.zeros_like(z, dtype=torch.bool)
    for n, z in enumerate(sampler(method.process, denoiser, z, nothing, 6, to_probs), 1):
        opened = torch.zeros(6, dtype=torch.bool).scatter(0, order[:n], True)  # (6,)
        assert ((z == 1) == opened).all()


def test_confidence_prefers_likely_words_by_the_chance_that_all_other_draws_are_less_likely():
    """The law of its first step in the world: so its texts are likelier than the language's."""
    method = make_method("mdlm", N)
    z, nothing = torch.full((40_000, L), N), torch.zeros(40_000, L, dtype=torch.bool)  # (n, L) each
    exact = world.by_state(method.oracle(world.LANGUAGE))
    p = exact(z[:1], torch.ones(1, 1))[0].exp()  # (L, N)
    less = (p[None, :, :] < p.flatten()[:, None, None]).double() * p  # (L N, L, N)
    others = less.sum(-1).view(L, N, L).masked_fill(torch.eye(L).bool()[:, None], 1)  # (L, N, L)
    law = p * others.prod(-1)  # (L, N)
    torch.testing.assert_close(law.sum(), torch.tensor(1.0).double())
    torch.manual_seed(0)
    first = next(make_sampler("confidence", method)(method.process, exact, z, nothing, L))
    place = (first < N).int().argmax(-1)  # (n,)
    drawn = place * N + first.gather(-1, place[:, None])[:, 0]  # (n,)
    assert surprise(drawn, law.flatten()) < 4.5
    words = law / law.sum(-1, keepdim=True)  # (L, N) given which mask opens
    assert ((words * p).sum(-1) > (p * p).sum(-1)).all()
