"""Clocks of tokens: when they run, what they weigh, and that the bound does not depend on them.

embedding.npz: `path/*` the clocks as continuous functions, `ardiff/*` those of AR-Diffusion's code
(microsoft/ProphetNet, commit 5cf70eb) in whole steps.
"""
import pytest
import torch
from bounds import close, mean_of_batches
from references import Figures

import world
from flags import UserError
from gaussian import log_evidence, step_law, word_evidence
from methods import make_method
from methods.clocks import CLOCKS, Arc, Line, refit, when
from samplers import make_sampler
from world import TEXTS, L, N, P

figure = Figures("embedding")
BY_PLACE = [name for name, make in CLOCKS.items() if not make(1.0).by_word]
BY_WORD = ["key_first", "easy_first"]


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


@pytest.mark.parametrize("name", BY_PLACE)
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


@pytest.mark.parametrize("of, name, spread", [
    ("plaid", "line", 2.0), ("plaid", "any", 8.0), ("plaid", "arc", 0.7), ("sed", "line", 0.3),
    ("plaid", "adaptive", 1.0)])
def test_the_bound_does_not_depend_on_the_clock(of, name, spread):
    """(13.10) by the draws of `nelbo`: the entropy of the world, within 4.5 standard errors. In sed
    gamma is no line in time."""
    method = make_method(of, N, dim=4, self_condition=0.0, token_clock=name, spread=spread)
    exact = method.oracle(world.LANGUAGE)
    torch.manual_seed(0)
    if name == "adaptive":
        observed(method).on_step(200)

    def draw():
        of = torch.multinomial(P, 1500, replacement=True)  # (n,)
        return method.nelbo(exact, TEXTS[of]).sum(-1) + P[of].log()  # (n,)
    more, error = mean_of_batches(draw, 12)
    assert error < 0.08 and abs(more) < 4.5 * error


def test_a_walk_along_a_clock_draws_from_the_language_and_tells_its_largest_jump():
    method = make_method("plaid", N, dim=4, self_condition=0.0, token_clock="line", spread=1.0)
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


# ---- a clock that is fitted

def test_a_refit_is_that_of_another_program():
    """Times at equal steps of the error, between its ends."""
    found = refit(figure("refit/gamma"), figure("refit/loss"), 10)
    close(found, figure("refit/REF_gamma"), 1e-6)


def observed(method, n=400):
    """What the clock sees of errors that rise at t = 0.2 at place 0, and at 0.7 at the others."""
    clock, torch_t = method.process.clock, torch.rand(n, 4)
    rises = torch.tensor([0.2, 0.7, 0.7, 0.7])
    at = torch.ones(n, 4, dtype=torch.bool)
    clock.observe(torch_t.flatten(), torch.sigmoid((torch_t - rises) / 0.02).flatten(), at)
    return clock


def test_an_adaptive_clock_spends_u_where_the_error_of_a_place_rises():
    method = make_method("plaid", 7, dim=4, token_clock="adaptive")
    clock, free = observed(method), torch.ones(1, 6, dtype=torch.bool)
    clock.on_step(clock.REFIT - 1)
    assert clock.knots is None
    clock.on_step(clock.REFIT)
    u = torch.tensor([[0.5]]).double()
    t, speed = clock.times(u, *clock.plan(free))  # (1, 6) each
    close(t[0, :4], torch.tensor([0.2, 0.7, 0.7, 0.7]).double(), 0.06)
    close(t[0, 4:], torch.tensor([0.5, 0.5]).double())  # places that were never seen
    assert (speed[0, :4] < 0.5).all() and clock.seen.sum() == 0


def test_a_checkpoint_keeps_a_fitted_clock_and_what_it_has_seen():
    method, other = (make_method("plaid", 7, dim=4, token_clock="adaptive") for _ in range(2))
    observed(method).on_step(200)
    observed(method)
    other.load_extra_state(method.extra_state())
    for clock in (method.process.clock, other.process.clock):
        clock.on_step(400)
    assert torch.equal(method.process.clock.knots, other.process.clock.knots)


def test_training_observes_and_evaluation_does_not():
    method = make_method("plaid", 7, dim=4, token_clock="adaptive")
    network, x = method.network(7, 1, 2, 16, cond_dim=8), torch.randint(7, (8, 6))
    with torch.no_grad():
        method.nelbo(network, x)
    assert method.process.clock.error is None
    method.loss(network, x)
    assert method.process.clock.seen.sum() == 48


# ---- noise that depends on the word

def ranked(name="key_first", **flags):
    """Plaid in the world, whose three words are ranked 0, 1/2 and 1."""
    flags = dict(dim=4, self_condition=0.0, token_clock=name, spread=2.0, **flags)
    method = make_method("plaid", N, **flags)
    method.use_counts(torch.tensor([5, 1, 3]))
    return method


def test_ranks_are_those_of_another_program():
    clock = CLOCKS["key_first"](1.5)
    clock.use_counts(figure("path/counts"))
    close(clock.rank, figure("path/REF_key_rank"))
    easy = CLOCKS["easy_first"](1.5)
    easy.use_counts(figure("path/counts"))
    close(easy.rank, 1 - clock.rank)


def test_evidence_of_words_with_noise_of_their_own_is_the_density():
    z, gamma = torch.randn(5, 2).double(), torch.randn(5, N).double()
    table = torch.randn(N, 2).double()
    alpha, sigma = torch.sigmoid(-gamma).sqrt(), torch.sigmoid(gamma).sqrt()  # (5, N) each
    law = torch.distributions.Normal(alpha[..., None] * table, sigma[..., None])
    density = law.log_prob(z[:, None]).sum(-1)  # (5, N)
    close(word_evidence(z, gamma, table).softmax(-1), density.softmax(-1))
    same = gamma[:, :1].expand(-1, N)  # with one noise for all words it is (13.2)
    close(word_evidence(z, same, table).softmax(-1),
          log_evidence(z, gamma[:, 0], table).softmax(-1))


def test_steps_of_drawn_words_are_exact_and_those_of_a_guess_are_not():
    far = {}
    for sampler in ("word-steps", "ddpm"):
        method = ranked()
        torch.manual_seed(0)
        nothing = torch.zeros(700, L, dtype=torch.bool)
        *_, x = method.sample(method.oracle(world.LANGUAGE), method.prior((700, L)), nothing, 64,
                              make_sampler(sampler, method))
        far[sampler], error = world.distance(world.numbers(x, N), P)
    assert far["word-steps"] < 4 * error + 0.03 and far["ddpm"] > far["word-steps"] + 10 * error


def test_noise_that_depends_on_the_word_has_no_bound_and_says_why():
    for name in CLOCKS:
        assert make_method("plaid", N, token_clock=name).bounded == (name not in BY_WORD)
    method = ranked()
    assert "so it tells the word; --token_clock common has a bound" in method.unbounded_reason
    with pytest.raises(UserError, match="--weighting bound: --token_clock key_first has none"):
        make_method("plaid", N, token_clock="key_first", weighting="bound")
    torch.manual_seed(0)
    loss = method.loss(method.oracle(world.LANGUAGE), TEXTS)
    torch.manual_seed(0)
    assert torch.equal(method.nelbo(method.oracle(world.LANGUAGE), TEXTS), loss)


def test_a_plug_in_gaussian_costs_without_limit_as_steps_get_shorter():
    """The KL of steps with the noise of another word, over a walk: it doubles with their number."""
    def walk(T):
        u = torch.linspace(1, 0, T + 1, dtype=torch.float64)  # (T + 1,)
        of = {w: -4 + 10 * (u + 2 * (u - 1 + d)).clamp(0, 1) for w, d in (("x", 0.4), ("w", 0.6))}
        laws = {w: step_law(torch.ones(T, 1).double(), torch.ones(1).double(), g[1:], g[:-1])
                for w, g in of.items()}
        (m, v), (mean, variance) = laws["x"], laws["w"]  # of the word, of the guess
        inside = [(g > -4) & (g < 6) for g in of.values()]  # (T + 1,) each
        both = torch.stack([a[1:] & a[:-1] for a in inside]).all(0)  # (T,) both move
        kl = ((variance / v).log() + (v + (m - mean)[:, 0] ** 2) / variance - 1) / 2  # (T,)
        return kl[both].sum().item()
    nats = [walk(T) for T in (50, 100, 200, 400)]
    assert nats[0] > 1 and all(1.8 < b / a < 2.2 for a, b in zip(nats, nats[1:])), nats


def test_the_network_is_told_the_clock_of_the_text_and_not_the_noise_of_the_word():
    method, told = ranked(), []
    method.loss(lambda z, t, at: (told.append(t), torch.zeros(int(at.sum()), N))[1], TEXTS)
    assert all((t == t[:, :1]).all() for t in told)
