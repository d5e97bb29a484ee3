"""Edits of trees as a sampler: what a chain does in a step, which trees of a search stay, and what
is refused."""
import pytest
import torch
from networks import random_net

from data import load_data
from flags import UserError
from methods import make_method
from methods.tree_diffusion import apply_edit
from model import causal
from samplers import make_sampler
from samplers.generate import generate, trajectory

DATA = load_data("arithmetic", 0)


def test_a_chain_edits_one_place_a_step_and_stops_when_it_is_right():
    method = make_method("tree_diffusion", 15)
    method.on_data(DATA)
    net = random_net(3, method.vocab_size, cond_dim=0, mask_mod=causal)
    x, frozen, _ = DATA.example_windows("val", 8)  # (8, 13) each
    for flags in ({}, dict(edits="random"), dict(beam=3, tries=2, rank="value")):
        torch.manual_seed(1)
        states = list(trajectory(method, net, x, frozen, 6, make_sampler("tree-edits", method,
                                                                         **flags)))
        assert len(states) <= 7 and all((z == x)[frozen].all() for z in states)
        for z, after in zip(states, states[1:]):
            done = DATA.solved(z)  # (8,)
            assert (z == after).all(-1)[done].all()
            for a, b in zip(*(method.split(state)[1] for state in (z, after))):
                assert method.task.parses(b)
                if not flags.get("beam"):
                    assert a == b or is_one_edit(method.task, a, b)
    with pytest.raises(UserError, match="give the first 4 tokens, and no others"):
        generate(method, net, 1, 13, 2, make_sampler("tree-edits", method), given=x[:1],
                 frozen=frozen[:1].roll(1, -1))
    with pytest.raises(UserError, match="texts of 13 tokens, not 20"):
        method.prior((1, 20))


def is_one_edit(task, a, b):
    """Whether one edit of a makes b."""
    for i in range(len(a)):
        for j in range(i + 1, len(b) + 1):
            if task.end(b[i:j]) == j - i and apply_edit(task, a, (i, b[i:j])) == b:
                return True
    return False


class Told:
    """A policy that knows: from a digit it writes the next smaller one, or 9 for 1."""
    task, sigma, edits = DATA.trees, 2, "tree"

    def split(self, z):
        return zip(*map(self.task.split, z.tolist()))

    def propose(self, denoiser, prompts, trees, to_probs, device):
        down = lambda z: (max(1, z[0] - 1),)
        return [(0, down(z)) for z in trees], torch.tensor([-float(z[0]) for z in trees]), None

    def edits_left(self, denoiser, prompts, trees, device):
        return torch.tensor([abs(z[0] - 4.0) for z in trees])

    def after(self, trees, edits):
        return [apply_edit(self.task, z, edit) for z, edit in zip(trees, edits)]


@pytest.mark.parametrize("rank, kept", [("likelihood", 1), ("value", 3)])
def test_the_best_trees_stay_by_the_rank_and_none_returns(rank, kept):
    """From 1 and its like nothing new comes, so old trees stay; the sum of the places' log p
    prefers small digits here, and the guess of what is left those near 4."""
    sampler = make_sampler("tree-edits", make_method("tree_diffusion", 15), beam=1, rank=rank)
    found = sampler.children(Told(), None, [None], {0: [(0.0, (2,)), (0.0, (4,))]}, None, None,
                             "cpu")[0]
    assert max(found)[1] == (kept,) and len(found) == 2
    z = torch.tensor([DATA.trees.join((10, 7, 7, 13), (3,))])  # (1, 13)
    states = list(sampler(Told(), None, z, z < 0, 5))
    assert [int(z[0, 4]) for z in states] == [2, 1, 1, 1, 1]
    to_two = torch.tensor([DATA.trees.join((10, 0, 2, 13), (4,))])  # (1, 13)
    assert [int(z[0, 4]) for z in sampler(Told(), None, to_two, z < 0, 9)] == [3, 2]


class ToAndFro(Told):
    """A policy that swaps 3 and 4."""

    def propose(self, denoiser, prompts, trees, to_probs, device):
        return [(0, (7 - z[0],)) for z in trees], torch.zeros(len(trees)), None


def test_a_tree_that_was_there_before_does_not_return():
    sampler = make_sampler("tree-edits", make_method("tree_diffusion", 15))
    z = torch.tensor([DATA.trees.join((10, 7, 7, 13), (3,))])  # (1, 13)
    assert [int(z[0, 4]) for z in sampler(ToAndFro(), None, z, z < 0, 4)] == [4, 4, 4, 4]
