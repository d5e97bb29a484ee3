"""Orders of trained networks: one permutation at every number of steps, seeds as one row, and the
calls that ancestral sampling needs."""
import pytest
import torch

import world
from evaluation import parallel_cost as cost
from experiments import orders
from experiments.trained_orders import (
    OneByOne,
    RandomOrder,
    calls_to_match,
    format_calls,
    measure_run,
)
from flags import configure
from methods import make_method
from runs import TINY, cache, complaint, elsewhere, fit  # noqa: F401
from samplers import make_sampler
from samplers.orders import Spread

MASKED = torch.ones(4000, 6, dtype=torch.bool)  # (n, L)


def turns(steps, masked=MASKED, **options):
    torch.manual_seed(0)
    return RandomOrder(**options).turns(masked, steps)  # (n, L)


def test_masks_open_in_groups_of_one_size_or_each_at_a_time_of_its_own():
    """With coins every mask takes each of 4 turns with p = 1/4, whatever the others do."""
    grouped, free = turns(3), turns(4, coins=True)
    assert all((grouped == step).sum(-1).unique().tolist() == [2] for step in range(3))
    assert abs(torch.bincount(free.flatten()) / free.numel() - 1 / 4).max() < 0.012  # 4 errors
    both = (free[:, 0] == free[:, 1]).double().mean()
    assert abs(both - 1 / 4) < 0.028
    part = torch.tensor([[True, False, True]])  # (1, 3)
    assert turns(5, part).tolist()[0][1] == -1 and turns(5, part).max() == 1


def test_fewer_steps_join_groups_of_the_same_permutation():
    one, two, many = turns(6), turns(3), turns(10**6, coins=True)
    assert torch.equal(one // 2, two) and torch.equal(many.argsort(-1).argsort(-1), one)


def test_the_same_order_one_mask_at_a_time_takes_each_step_from_left_to_right():
    masked = torch.tensor([[True, True, False, True, True]])  # (1, 5)
    streams = Spread(order="streams")
    assert streams.turns(masked, 2).tolist() == [[0, 1, -1, 0, 1]]
    assert OneByOne(rule=streams, calls=2).turns(masked, 5).tolist() == [[0, 2, -1, 1, 3]]


@pytest.mark.parametrize("sampler, options", [
    ("first-hitting", {}), ("ancestral", dict(coins=True))])
def test_their_loss_is_that_of_the_samplers_in_the_table(sampler, options):
    """Of the exact denoiser of 27 texts in two steps, within 4 errors."""
    method, n = make_method("mdlm", world.N), 4000
    x = world.TEXTS[torch.multinomial(world.P, n, replacement=True)]  # (n, L)
    denoiser, found = world.by_state(method.oracle(world.LANGUAGE)), []
    for rule in (RandomOrder(**options), make_sampler(sampler, method)):
        torch.manual_seed(2)
        z, nothing = cost.from_nothing(method, n, world.L)
        walk = cost.follow(method, denoiser, z, nothing, 2, rule, x=x)
        found.append(walk.log_q)
    off = found[0] - found[1]  # (n,)
    assert abs(off.mean()) < 4 * off.std() / n ** 0.5


def test_the_calls_that_ancestral_needs_lie_between_two_rungs():
    ladder = [(c, torch.full((3,), nats)) for c, nats in ((16, 2.4), (24, 2.2), (32, 2.0))]
    assert calls_to_match(ladder, torch.full((3,), 2.1), True) == (pytest.approx(28), 0)
    assert calls_to_match(ladder, torch.full((3,), 1.9), True) is None
    least, error = calls_to_match(ladder, torch.full((3,), 2.5), True)
    assert least == 16 and error != error
    assert format_calls([(16, error), (18.0, 1.0)]) == "less than 17.0"
    assert format_calls([None, (18.0, 1.0)]) == "never (in 1 of 2 runs)"
    assert format_calls([(26.0, 1.0), (28.0, 1.0)]) == "27.0 +- 1.4"  # of texts and of seeds


def test_runs_that_differ_in_their_seed_are_one_table(capsys):
    for seed in (1, 2):
        fit(f"run{seed}", method="mdlm", seed=seed, **TINY)
    fit("short", method="mdlm", **{**TINY, "block_size": 4})
    capsys.readouterr()
    orders.main(configure(orders.Config, command="trained", out_dir="run1,run2,short",
                          num_samples=4, words="2,4"))
    text = capsys.readouterr().out
    assert "4 texts of 8 tokens, nats/token; runs: 2" in text
    assert "4 texts of 4 tokens, nats/token; runs: 1" in text
    rows = [line.split("  ")[0] for line in text.splitlines()]
    assert all(rows.count(name) == 2 for name in ("random", "streams (default)", "golden ratio"))
    assert text.count("\n  streams in 2 ") == 2 and text.count("\n  golden ratio in 1 ") == 1


def test_one_mask_at_a_time_is_the_last_rung_and_costs_the_most_calls():
    class Model:
        method = make_method("mdlm", world.N)
        denoiser = staticmethod(world.by_state(method.oracle(world.LANGUAGE)))
    found, ladder = measure_run(Model, world.TEXTS, [3])
    calls = [c for c, _ in ladder]
    assert calls == sorted(calls) and calls[-1] == world.L and len(found) == 6
    assert torch.equal(ladder[-1][1], found["random", 1][0])
    for name, k in found:  # one mask at a time, any order is exact
        torch.testing.assert_close(found[name, k][1], -world.P.log() / world.L)
        at_once, alone = found[name, k]  # (27,) each
        assert ((world.P * (at_once - alone)).sum() > 0.01) == (k > 1)


def test_a_run_without_masks_is_refused(capsys):
    fit("words", method="udlm", **TINY)
    capsys.readouterr()
    assert "opens no masks of a whole text" in complaint(
        orders, "--command", "trained", "--out_dir", "words", capsys=capsys)
