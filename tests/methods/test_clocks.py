"""Clocks of tokens: when they run, what they weigh, and that the bound does not depend on them.

embedding.npz: `path/*` the clocks as continuous functions, `ardiff/*` those of AR-Diffusion's code
(microsoft/ProphetNet, commit 5cf70eb) in whole steps.
"""
import pytest
import torch
from bounds import close, mean_of_batches
from references import Figures

import world
from methods import make_method
from methods.clocks import CLOCKS, Arc, Line, when
from samplers import make_sampler
from world import TEXTS, L, N, P

figure = Figures("embedding")


def test_a_line_is_that_of_another_program():
    """Ranks 0 to 1 in order; t and dt/du at 21 clocks."""
    u, w = figure("path/u"), figure("path/w").item()  # (21,), ()
    clock, free = Line(w), torch.ones(21, 6, dtype=torch.bool)
    t, speed = clock.times(u[:, None], *clock.plan(free))  # (21, 6) each
    close(t, figure("path/REF_line_t"))
    inside = ((t > 1e-9) & (t < 1 - 1e-9))  # at kinks both slopes are right
    close(speed[inside], figure("path/REF_line_dt")[inside])


def test_the_arc_is_that_of_another_program_and_of_the_public_code():
    n, T, u = figure("path/N").item(), figure("path/T").item(), figure("path/u")
    clock, free = Arc(n / T), torch.ones(21, n, dtype=torch.bool)
    t, speed = clock.times(u[:, None], *clock.plan(free))  # (21, n) each
    close(t, figure("path/REF_ardiffusion_t"))
    inside = (t > 1e-9) & (t < 1 - 1e-9)
    close(speed[inside], figure("path/REF_ardiffusion_dt")[inside])
    rows = figure("ardiff/line_all_sentence_times")  # (n + T, n) whole steps, at i = 0 .. n + T - 1
    free = torch.ones(len(rows), n, dtype=torch.bool)
    i = torch.arange(len(rows), dtype=torch.float64)[:, None]  # (n + T, 1)
    t, _ = clock.times(i / (n + T), *clock.plan(free))
    assert ((t * T).round().clamp(max=T - 1) - rows).abs().max() <= 1  # it ends at T - 1


@pytest.mark.parametrize("name", CLOCKS)
def test_clocks_rise_from_text_to_noise_and_their_speed_is_their_slope(name):
    """Also around given tokens, which have no place on them."""
    clock = CLOCKS[name](1.3)
    free = torch.rand(4, 7) < 0.6
    free[0], free[1] = True, False
    plan = clock.plan(free)
    u = torch.linspace(0, 1, 41, dtype=torch.float64)  # (41,)
    t = torch.stack([clock.times(a.expand(4, 1), *plan)[0].expand(4, 7) for a in u])  # (41, 4, 7)
    t = t[:, free]  # (41, N)
    assert (t[0] == 0).all() and (t[-1] == 1).all() and (t.diff(dim=0) >= 0).all()
    a, h = torch.tensor([[0.437]]).double().expand(4, 1), 1e-6
    up, down = (clock.times(a + d, *plan)[0] for d in (h, -h))
    close(clock.times(a, *plan)[1].expand(4, 7)[free],
          ((up - down) / (2 * h)).expand(4, 7)[free], 1e-6)


def test_any_order_differs_from_text_to_text_and_a_line_does_not():
    free = torch.ones(50, 6, dtype=torch.bool)
    place, n = CLOCKS["any"](1.0).plan(free)
    assert (place.sort(-1).values == torch.arange(6)).all() and (n == 6).all()
    assert len({tuple(row) for row in place.tolist()}) > 30
    assert (CLOCKS["line"](1.0).plan(free)[0] == torch.arange(6)).all()


def test_the_clock_at_which_a_token_has_a_time_is_found():
    clock, free = Line(2.0), torch.ones(5, 6, dtype=torch.bool)
    plan, t = clock.plan(free), torch.rand(5, 1).double()
    chosen = torch.nn.functional.one_hot(torch.arange(5), 6).bool()
    u = when(clock, plan, chosen, t)
    close(clock.times(u, *plan)[0][chosen], t[:, 0], 1e-9)


@pytest.mark.parametrize("name, spread", [("line", 2.0), ("any", 0.5), ("any", 8.0), ("arc", 0.7)])
def test_the_bound_does_not_depend_on_the_clock(name, spread):
    """(13.10) by the draws of `nelbo`: the entropy of the world, within 4.5 standard errors."""
    method = make_method("plaid", N, dim=4, self_condition=0.0, clock=name, spread=spread)
    exact = method.oracle(world.LANGUAGE)
    torch.manual_seed(0)

    def draw():
        of = torch.multinomial(P, 1500, replacement=True)  # (n,)
        return method.nelbo(exact, TEXTS[of]).sum(-1) + P[of].log()  # (n,)
    more, error = mean_of_batches(draw, 12)
    assert error < 0.08 and abs(more) < 4.5 * error


def test_a_walk_along_a_clock_draws_from_the_language_and_tells_its_largest_jump():
    method = make_method("plaid", N, dim=4, self_condition=0.0, clock="line", spread=1.0)
    walk = make_sampler("ddpm", method)
    torch.manual_seed(0)
    nothing = torch.zeros(1000, L, dtype=torch.bool)
    *_, x = method.sample(method.oracle(world.LANGUAGE), method.prior((1000, L)), nothing, 48, walk)
    far, error = world.distance(world.numbers(x, N), P)
    assert far < 4 * error + 0.01
    assert walk.costs() == {"largest_jump": pytest.approx(2 / 47, abs=1e-3)}


def test_the_last_jump_of_the_public_sampler_takes_all_tokens_at_once():
    """AR-Diffusion's grid at T = 50, n = 6 in 7 steps: its last one goes from up to 22 of 49 to 0,
    so the phase in which the left is text and the right is not is never seen. Ours is even in u."""
    last = figure("ardiff/skip_grid_from")[-1] - figure("ardiff/skip_grid_to")[-1]  # (6,)
    assert (figure("ardiff/skip_grid_to")[-1] == 0).all() and last.max() == 22
    clock, free = Arc(6 / 50), torch.ones(1, 6, dtype=torch.bool)
    plan = clock.plan(free)
    u = torch.linspace(1, 0, 57, dtype=torch.float64)
    t = torch.cat([clock.times(a.view(1, 1), *plan)[0] for a in u])  # (57, 6)
    assert (t[:-1] - t[1:]).max() < 7 / 49
    assert ((t[:, 0] == 0) & (t[:, -1] > 0)).any()
