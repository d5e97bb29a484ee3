"""The exact cost of opening masks in parallel, in the world of 27 texts, where it is a sum."""
import pytest
import torch

import world
from diffusion import Labeled
from evaluation.parallel_cost import (
    follow,
    forward_kl,
    from_nothing,
    least_kl,
    noise_step,
    path_costs,
    path_ratio,
    reverse_kl,
)
from flags import load_row
from methods import make_method
from samplers import SAMPLERS, make_sampler, samplers_for
from world import PROCESSES, TEXTS, L, N, P, chi_square, numbers, surprise

MDLM = make_method("mdlm", N)
EXACT = world.by_state(MDLM.oracle(world.LANGUAGE))
ORDERED = [name for name in samplers_for(MDLM) if load_row(SAMPLERS, name)().chooses_first]
RANDOM = "ancestral", "first-hitting"
FIXED = [("spread", dict(order="streams")), ("spread", dict(order="golden")), ("entropy", {}),
         ("margin", {}), ("klass", dict(certainty=0.4, drift=10.0, patience=1)),
         *(("entropy-budget", dict(budget=0.9, first=first)) for first in ("golden", "least"))]


def law(name, steps, options, denoiser=EXACT):
    """log q of the 27 texts, each led along its path. -> (27,)"""
    sampler = make_sampler(name, MDLM, **options)
    walk = follow(MDLM, denoiser, *from_nothing(MDLM, 27, L), steps, sampler, x=TEXTS)
    assert torch.equal(walk.x, TEXTS)
    return walk.log_q


def by_hand(sets):
    """q of the 27 texts for masks that open in these sets of positions, from the table P. -> (27,)
    """
    q, known = torch.ones(27, dtype=torch.float64), []
    for opened in sets:
        given = (TEXTS[:, None, known] == TEXTS[None, :, known]).all(-1) * P  # (27, 27)
        for l in opened:
            same = TEXTS[:, None, l] == TEXTS[None, :, l]  # (27, 27)
            q = q * (given * same).sum(-1) / given.sum(-1)  # (27,)
        known = known + opened
    return q


@pytest.mark.parametrize("steps, sets", [
    (1, [[0, 1, 2]]), (2, [[0, 2], [1]]), (3, [[0], [1], [2]])])
def test_the_estimate_is_the_kl_of_a_fixed_order_in_both_directions(steps, sets):
    """Streams over three words; each text weighted by its probability in place of draws."""
    q, log_q = by_hand(sets), law("spread", steps, {})  # (27,) each
    kl, gain = lambda a, b: (a * (a / b).log()).sum(), log_q - P.log()  # (27,)
    torch.testing.assert_close((log_q.exp() * gain).sum(), kl(q, P), atol=1e-10, rtol=0)
    torch.testing.assert_close((P * -gain).sum(), kl(P, q), atol=1e-10, rtol=0)
    assert (kl(q, P) < 1e-12) == (steps == 3)


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("name, options", FIXED, ids=lambda a: str(a))
def test_the_law_of_an_order_sums_to_one_and_is_what_it_draws(name, options, steps):
    q = law(name, steps, options).exp()  # (27,)
    torch.testing.assert_close(q.sum(), torch.tensor(1.0, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.manual_seed(0)
    z, nothing = from_nothing(MDLM, 8_000, L)
    walk = follow(MDLM, EXACT, z, nothing, steps, make_sampler(name, MDLM, **options))
    assert surprise(numbers(walk.x, N), q) < 4.5
    torch.testing.assert_close(walk.log_q, q.log()[numbers(walk.x, N)], atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", RANDOM)
def test_a_random_order_has_an_upper_bound_of_its_kl(name):
    """q(x) is the mean over orders; the estimate conditions on the order, and is larger."""
    torch.manual_seed(0)
    sampler, x = make_sampler(name, MDLM), TEXTS.repeat_interleave(400, 0)  # (27 * 400, L)
    walk = follow(MDLM, EXACT, *from_nothing(MDLM, len(x), L), 2, sampler, x=x)
    log_q = walk.log_q.view(27, 400)  # (27, 400)
    q = log_q.exp().mean(-1)  # (27,)
    assert abs(q.sum() - 1) < 0.02
    bound, kl = (P * (P.log() - log_q.mean(-1))).sum(), (P * (P.log() - q.log())).sum()
    assert bound > kl + 0.002
    drawn = follow(MDLM, EXACT, *from_nothing(MDLM, 8_000, L), 2, sampler)
    chi, freedom = chi_square(numbers(drawn.x, N), q / q.sum())
    assert chi < freedom + 6 * (2 * freedom) ** 0.5


def test_one_mask_at_a_time_costs_nothing_in_any_order():
    one = {"entropy-budget": dict(budget=0.0), "klass": dict(certainty=1.0)}
    for name in (name for name in ORDERED if name != "ancestral"):
        torch.manual_seed(0)
        sampler = make_sampler(name, MDLM, **one.get(name, {}))
        walk = follow(MDLM, EXACT, *from_nothing(MDLM, 200, L), 128, sampler)
        assert (walk.log_q - P[numbers(walk.x, N)].log()).abs().max() < 1e-9


def test_what_is_given_is_not_scored_and_calls_are_counted_per_text():
    frozen = torch.tensor([[True, True, False]] * 3 + [[False] * 3])  # (4, L)
    z = torch.where(frozen, 1, MDLM.process.mask)  # (4, L)
    walk = follow(MDLM, EXACT, z, frozen, 3, make_sampler("spread", MDLM))
    assert (walk.calls, walk.positions) == ((3 * 1 + 3) / 4, (3 * 1 + 3) / 4)
    given = (TEXTS[:, :2] == 1).all(-1)  # (27,)
    p = P[numbers(walk.x, N)] / P[given].sum()  # (4,)
    torch.testing.assert_close(walk.log_q[:3], p[:3].log(), atol=1e-9, rtol=0)


def test_temperature_and_labels_are_part_of_the_law():
    half = lambda logits: torch.softmax(logits.double() / 0.5, -1)  # (N, V)
    sampler = make_sampler("spread", MDLM)
    walk = follow(MDLM, EXACT, *from_nothing(MDLM, 27, L), 1, sampler, half, x=TEXTS)
    marginal = torch.stack([world.LANGUAGE.predict(TEXTS)[:, 0],
                            *(torch.stack([P[TEXTS[:, l] == v].sum() for v in range(N)])
                              .expand(27, N) for l in (1, 2))], 1)  # (27, L, N)
    sharp = marginal ** 2 / (marginal ** 2).sum(-1, keepdim=True)  # (27, L, N)
    expected = sharp.gather(-1, TEXTS[..., None])[..., 0].log().sum(-1)  # (27,)
    torch.testing.assert_close(walk.log_q, expected, atol=1e-9, rtol=0)
    labeled = Labeled(MDLM.oracle(world.LANGUAGE), torch.tensor([1]))
    assert not torch.allclose(law("spread", 2, {}, labeled), law("spread", 2, {}))


@pytest.mark.parametrize("name", ["confidence", "top-k", "remdm-conf", "semi-ar"])
def test_what_draws_before_it_chooses_has_no_such_law(name):
    with pytest.raises(ValueError, match="is not"):
        follow(MDLM, EXACT, *from_nothing(MDLM, 2, L), 2, make_sampler(name, MDLM))
    for other in ("udlm", "bd3lm", "genmd4"):
        method = make_method(other, N)
        with pytest.raises(ValueError, match=f"with {other} is not"):
            follow(method, EXACT, *from_nothing(method, 2, L), 2, make_sampler("ancestral", method))


# ---- paths

@pytest.mark.parametrize("name", ["uniform", "hybrid .1"])
def test_the_kl_of_paths_bounds_that_of_texts_and_vanishes_with_many_steps(name):
    process = PROCESSES[name]
    inside = lambda z, t, at=None: world.oracle(process)(z, t.clamp(1e-7, 1 - 1e-7), at)
    exact = world.by_state(inside)
    torch.manual_seed(0)
    x = TEXTS[torch.multinomial(P, 4_000, replacement=True)]  # (4000, L)
    costs = {}
    for steps in (2, 30):
        z, ours, theirs = path_costs(process, exact, x, steps)
        log_p = lambda x: P[numbers(x, N)].log()
        costs[steps] = (ours - log_p(z)).mean(), (log_p(x) - theirs).mean()
        q = torch.bincount(numbers(z, N), minlength=27).double().clamp(min=0.5) / len(z)  # (27,)
        assert costs[steps][0] > (q * (q / P).log()).sum() - 0.01
        assert costs[steps][1] > (P * (P / q).log()).sum() - 0.01
    assert all(few > 3 * many for few, many in zip(costs[2], costs[30]))


def test_under_masks_the_kl_of_a_path_is_that_of_its_order():
    """One step of two, with x_theta carried over: the coins for opening cancel."""
    process, exact = PROCESSES["mask"], world.oracle(PROCESSES["mask"])
    t, s = torch.tensor([[0.8]]).double(), torch.tensor([[0.3]]).double()
    z_t, z_s = torch.tensor([[1, 3, 3]]), torch.tensor([[1, 3, 2]])
    x_theta = world.carried_over(process, exact(z_t, t).exp(), z_t)  # (1, L, V)
    ratio = path_ratio(process, x_theta, z_t, z_s, t, s)  # (1,)
    coins = (torch.log(process.alpha(s) / process.alpha(t))  # the word that stays
             + torch.log(s / t)  # the mask that stays
             + torch.log(process.alpha(s) / t))  # the mask that opens, but for x_theta
    torch.testing.assert_close(ratio, coins[0] + x_theta[0, 2, 2].log())


@pytest.mark.parametrize("name", PROCESSES)
def test_noise_goes_on_from_s_to_t_as_it_came_to_s(name):
    """The chain of two steps has the marginals of (0.1)."""
    process = PROCESSES[name]
    s, t = torch.tensor([[0.3]]).double(), torch.tensor([[0.7]]).double()
    every = torch.arange(process.V)[None]  # (1, V)
    step = noise_step(process, every, s, t)[0]  # (V, V)
    at = lambda t: process.alpha(t) * torch.eye(process.V)[:N] + process.b(t, every)  # (N, V)
    torch.testing.assert_close(at(s) @ step, at(t))


def test_kl_is_per_token_with_its_error():
    walk = follow(MDLM, EXACT, *from_nothing(MDLM, 27, L), 1, make_sampler("spread", MDLM), x=TEXTS)
    mean, error = reverse_kl(walk, P.log())
    each = (walk.log_q - P.log()) / L  # (27,)
    assert abs(mean - each.mean()) < 1e-12 and abs(error - each.std() / 27 ** 0.5) < 1e-12
    assert forward_kl(walk, P.log()) == (pytest.approx(-mean), pytest.approx(error))


def test_texts_that_are_too_likely_or_too_unlikely_have_a_kl_of_at_least_this():
    """q ~ p^2 and q ~ p^(1/2) reach the bound, and p itself has none."""
    torch.manual_seed(0)
    for power in (2.0, 0.5, 1.0):
        q = P ** power / (P ** power).sum()  # (27,)
        ours, theirs = (P.log()[torch.multinomial(a, 20_000, replacement=True)] for a in (q, P))
        kl = float((q * (q / P).log()).sum())
        assert abs(least_kl(ours, theirs) - kl) < 0.02
