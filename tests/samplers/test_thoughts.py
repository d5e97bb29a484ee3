"""Thought by thought: the order in which masks open, the law of the texts, and what it costs."""
from types import SimpleNamespace

import pytest
import torch

import world
from data.puzzles import thought_at
from flags import UserError
from methods import make_method
from samplers import make_sampler
from samplers.generate import CallCounter
from world import L, N, P, distance, numbers

MDLM, DOT = make_method("mdlm", N), world.make_world_method("dot", N)


def thoughts(*lengths):
    sampler = make_sampler("thoughts", MDLM)
    sampler.lengths = lengths
    return sampler


def test_the_number_of_a_thought_is_counted_from_the_end_of_a_text():
    assert thought_at(9, (2, 3)).tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 1]
    assert thought_at(4, (1, 1, 2)).tolist() == [0, 1, 2, 2]
    assert thought_at(2, ()).tolist() == [0, 0]


@pytest.mark.parametrize("steps, shares", [(9, [5, 4, 2]), (1, [1, 1, 1]), (80, [40, 30, 10])])
def test_a_thought_is_written_when_those_before_it_are(steps, shares):
    """In its share of the steps, and in no more states than announced; given words stay."""
    sampler, lengths = thoughts(4, 3, 1), (4, 3, 1)
    assert sampler.shares(steps) == shares and sampler.count_states(10, steps) == sum(shares)
    torch.manual_seed(0)
    z, frozen = torch.full((30, 10), N), torch.rand(30, 10) < 0.2  # (B, L) each
    z[frozen] = 1
    number, calls = thought_at(10, lengths), []

    def rough(z, t, at):
        calls.append((z, at))
        torch.testing.assert_close(t[:, 0], (z == N).double().mean(-1).float())
        return torch.randn(int(at.sum()), N)
    states = [z, *sampler(MDLM.process, rough, z, frozen, steps)]
    for (before, at), after in zip(calls, states[1:]):
        now = number.expand_as(at)[at].unique()
        assert len(now) == 1 and (before[:, number < now] != N).all()
        assert torch.equal(at, (before == N) & (number == now))
        assert not ((before != after) & ~at).any() and (before != after).any()
    assert len(calls) == len(states) - 1 <= sum(shares) and (states[-1] != N).all()
    if steps == 80:
        assert ((states[1] != z).sum(-1) <= 1).all()  # a word at a time


def test_the_surest_word_of_a_thought_comes_first():
    flat, sure = torch.zeros(N), torch.tensor([9.0, 0, 0])
    denoiser = lambda z, t, at: torch.stack([flat, flat, sure, sure])[:, None].expand(
        4, 1, N).permute(1, 0, 2).expand(*z.shape, N)[at]
    noise = torch.full((1, 4), N)  # (1, L)
    *_, z = states = list(thoughts(2, 2)(MDLM.process, denoiser, noise, None, 4))
    opened = [int((a != b).nonzero()[0, 1]) for a, b in zip([noise, *states], states)]
    assert opened[:2] == [0, 1] and set(opened[2:]) == {2, 3} and (z[0, 2:] == 0).all()
    mixed = lambda z, t, at: torch.stack([flat, sure, flat, sure]).expand(*z.shape, N)[at]
    first = next(thoughts(2, 2)(MDLM.process, mixed, noise, None, 4))
    assert (first != N).nonzero()[0, 1] == 1


@pytest.mark.parametrize("method", [MDLM, DOT])
@pytest.mark.parametrize("steps", [3, 1])
def test_texts_have_the_law_of_the_model_a_word_at_a_time_and_else_that_of_thoughts_at_once(
        method, steps):
    """One step for each thought: words of a thought do not know of each other, and it is written
    from p(x_1) p(x_2 | x_1) p(x_3 | x_1)."""
    sampler, n = thoughts(1, 2), 8000
    exact = CallCounter(world.by_state(method.oracle(world.LANGUAGE)))
    torch.manual_seed(0)
    z = method.prior((n, L))  # (n, L)
    *_, z = method.sample(exact, z, z != z, steps, sampler)
    q = P  # (27,)
    if steps == 1:
        joint = P.view(N, N, N)
        first = joint.sum((1, 2))  # (N,)
        q = (joint.sum(2)[:, :, None] * joint.sum(1)[:, None] / first[:, None, None]).flatten()
        assert (q - P).abs().sum() / 2 > 0.05
    far, error = distance(numbers(z, N), q)
    assert far < 4 * error and exact.calls == {3: 3, 1: 2}[steps]


def test_it_asks_the_data_for_thoughts_and_is_for_whole_texts():
    sampler = make_sampler("thoughts", MDLM)
    model = lambda data: SimpleNamespace(config=SimpleNamespace(data=data))
    sampler.prepare(model("multiplication-thoughts"))
    assert sampler.lengths == (5, 5, 4)
    sampler.prepare(model("toy"))  # a text is one thought
    assert sampler.lengths == () and sampler.shares(7) == [7]
    with pytest.raises(UserError, match="which bd3lm does not read"):
        make_sampler("thoughts", make_method("bd3lm", N))
