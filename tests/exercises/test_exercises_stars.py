"""The grader of exercise 24: why a model that writes in order stops at 1/a."""
from functools import lru_cache

import torch
import torch.nn.functional as F

from data.planning import Planning
from exercises import predictions
from graders import check, check_close, hint
from methods import make_method
from samplers import make_sampler
from samplers.generate import generate


def reader(data, hops, shifted):
    """A denoiser that follows at most `hops` edges from letters that it sees.

    shifted: its input is [start, x_0, ..], as that of ar
    """
    def denoiser(z, t=None, at=None):
        hidden = torch.full((len(z), data.length - z.shape[1] + shifted), data.nodes + 1)
        x = torch.cat([z[:, shifted:], hidden], 1)  # (B, L)
        rows, places = at.nonzero().T  # (N,) each
        x, place = x[rows], places - data.prompt + 1  # (N, L), (N,)
        table = F.pad(x[:, :data.nodes], (0, 2), value=data.nothing)  # (N, nodes + 2)
        start, goal, way = x[:, data.nodes:].split([1, 1, data.steps], 1)
        way = torch.cat([start, way[:, :-1], goal], 1)  # (N, steps + 1)
        likely = torch.zeros(len(x), data.nodes + 2, dtype=torch.bool)  # (N, V)
        for d in [*range(1, hops + 1), *range(-1, -hops - 1, -1)]:  # back from the right, then on
            other = place + d  # (N,)
            seen = way.gather(1, other.clamp(0, data.steps)[:, None])  # (N, 1)
            found = F.one_hot(seen[:, 0], data.nodes + 2).bool()  # (N, V)
            for _ in range(abs(d)):
                back = F.one_hot(table.gather(1, found.int().argmax(-1, keepdim=True))[:, 0],
                                 data.nodes + 2).bool()  # (N, V)
                found = back if d > 0 else found.gather(1, table)  # (N, V)
            found[:, data.nodes:] = False
            fits = (other >= 0) & (other <= data.steps) & (seen[:, 0] < data.nodes)  # (N,)
            fits &= ~likely.any(-1)  # (N,)
            likely |= fits[:, None] & found  # (N, V)
        nothing = ~likely.any(-1, keepdim=True)  # (N, 1)
        return torch.where(likely | nothing, 0.0, -50.0)  # (N, V)
    return denoiser


@lru_cache
def measured(arms, steps, hops, n=2000):
    """The shares of n stars that are solved from left to right, and the surest first."""
    data = type(f"Star{arms}{steps}", (Planning,), dict(arms=arms, steps=steps))()
    x, frozen, _ = data.examples("val", n, torch.Generator().manual_seed(arms + steps))
    shares = []
    torch.manual_seed(hops)
    for name, sampler in (("ar", "ancestral"), ("mdlm", "entropy")):
        method = make_method(name, len(data.symbols))
        z = generate(method, reader(data, hops, name == "ar"), n, data.length, steps,
                     make_sampler(sampler, method), given=x, frozen=frozen)
        shares.append(data.solved(z).double().mean().item())
    return shares


def test_exercise_24_from_left_to_right_the_first_step_is_a_guess():
    for arms, steps, hops in ((3, 4, 1), (4, 4, 2), (3, 3, 2)):
        exact = measured(arms, steps, hops)
        with hint("return two numbers, the share from left to right first"):
            ours = predictions.solved_stars(arms, steps, hops)
            check(ours is not None, "it returns None: return two numbers")
            left, first = ours
        case = f"of {arms} ways of {steps} steps, {hops} edges a call: the share solved "
        check_close(case + "from left to right", left, exact[0], 0.03, {
            "all letters were equally likely at first: those next to the start are":
                1 / (arms * steps + 1),
            "every letter were a guess: of what comes after the first one there is one letter":
                arms ** -float(steps),
            f"it saw the goal from the first letter: that is {steps - 1} edges away, and it "
            f"follows {hops}": 1.0, "it guessed also where the goal is in reach": 1 / arms,
            "a step were as likely as a way": 1 / steps})
        check_close(case + "the surest first", first, exact[1], 0.03, {
            "it began at the start: it is sure of the letter before the goal": 1 / arms})
