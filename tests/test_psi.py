"""Psi-samplers on the enumerated world: one step, the marginals it keeps, when it corrects, walks, the greedy tail."""
import pytest
import torch
import torch.nn.functional as F
import world
from world import L, N, P, PROCESSES, TEXTS, numbers, psi_law, surprise

from diffusion import likelihood, posterior_x0
from masked import Absorbing
from methods import make_method, make_sampler
from psi import PLATEAU, SCHEDULES, greedy_tail, kappa, plan, psi, psi_step
from sample import Counted
from uniform import Uniform

each_process = pytest.mark.parametrize("name", PROCESSES)
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES)
NOTHING = lambda z: torch.zeros_like(z, dtype=torch.bool)


def times(s, t, n=1):
    return (torch.full((n, 1), value, dtype=torch.float64) for value in (s, t))                         # (n, 1) each


def close(ours, exact, tolerance=1e-10):
    torch.testing.assert_close(ours, exact, atol=tolerance, rtol=tolerance)


# ---- one step

@each_process
@pytest.mark.parametrize("s, t, kappa", [(0.2, 0.5, 0.0), (0.2, 0.5, 0.3), (0.2, 0.5, 1.0), (0.4, 0.4, 0.6),
                                         (0.1, 0.1, 0.0), (0.0, 0.3, 0.5)])
def test_the_lazy_psi_step_draws_exactly_the_mixture_of_its_two_lines(name, s, t, kappa):
    """40,000 draws each from three z against (10), also where time stands still, which is where `loop` corrects."""
    process, n = PROCESSES[name], 40_000
    torch.manual_seed(1)
    for z in ([0, 1, 2], [process.V - 1] * 3, [1, process.V - 1, 0]):
        z, (s_, t_) = torch.tensor([z]), times(s, t)
        law = psi_law(process, world.vandal(z, t_).exp(), z, s_, t_, kappa)[0]                          # (L, V)
        close(law.sum(-1), torch.ones(L, dtype=torch.float64))
        law = torch.einsum("i,j,k->ijk", *law).flatten()                                                # (V^3,)
        denoiser = lambda z, time, at: world.vandal(z, time.double(), at)
        z = z.expand(n, -1)                                                                             # (n, L)
        new = psi_step(process, denoiser, z, NOTHING(z), s_.expand(n, 1), t_.expand(n, 1), kappa)       # (n, L)
        assert surprise(numbers(new, process.V), law) < 4.5


@each_process
def test_in_both_lines_of_a_psi_step_given_tokens_stay_and_words_come_from_the_samplers_law(name):
    """Here a law of the word 1 alone: with no noise left at s = 0, that is what moves or opens."""
    process = PROCESSES[name]
    torch.manual_seed(0)
    z, (s, t) = torch.randint(process.V, (400, L)), times(0.3, 0.6, 400)
    frozen = torch.rand(z.shape) < 0.4
    only_one = lambda logits: F.one_hot(torch.ones(len(logits), dtype=torch.long), N).double()
    for k in (0.0, 0.5, 1.0):
        assert (psi_step(process, world.vandal, z, frozen, s, t, k) == z)[frozen].all()
        new = psi_step(process, world.vandal, z, frozen, 0 * s, t, k, only_one)
        assert (new[frozen] == z[frozen]).all()
        assert ((new == 1) | (new == z))[~frozen].all() and (new[~frozen] < N).all()
        assert (new != z)[~frozen].any()


@each_process
@pytest.mark.parametrize("s, t", [(0.2, 0.5), (0.4, 0.4), (0.7, 0.999), (0.0, 0.1)])
@pytest.mark.parametrize("k", [0.0, 0.3, 1.0])
def test_any_kappa_keeps_the_marginals(name, s, t, k):
    """sum_z q(z_t) Psi(z_s | z_t) = q(z_s), exact sums: of each clean word, with x known, and of a one-token language
    with its oracle, whose leave-one-out law is that of the language whatever z is."""
    process, (s, t) = PROCESSES[name], times(s, t)
    words = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)                                          # (N,)
    z, symbols, known = torch.arange(process.V)[:, None], torch.arange(process.V), torch.eye(N, dtype=torch.float64)
    q = lambda time, x: process.alpha(time) * F.pad(x, (0, process.V - N)) + process.b(time, symbols)   # (.., V)
    for x in [*known[:, None], words[None]]:
        kernel = psi_law(process, x.expand(process.V, 1, N), z, s, t, k)[:, 0].nan_to_num()             # (V, V)
        close(q(t, x) @ kernel, q(s, x))                 # under masks a wrong word has no law, and no probability


# ---- when to correct

def test_under_masks_a_psi_step_is_that_of_remdm():
    """Its sampler as published (arXiv:2503.00307): an open token is masked again with probability sigma, and a mask
    opens with (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t); here sigma = (1 - kappa) (1 - alpha_s)."""
    process, z = Absorbing(N), torch.tensor([[1, N, N]])
    for s, t in ((0.2, 0.5), (0.4, 0.4), (0.85, 0.9)):
        alpha_s, alpha_t, (s, t) = 1 - s, 1 - t, times(s, t)
        x_theta = world.vandal(z, t).exp()                                                              # (1, L, N)
        for k in (0.0, 0.1, 0.7, 1.0):
            sigma, law = (1 - k) * (1 - alpha_s), psi_law(process, x_theta, z, s, t, k)[0]              # (L, V)
            close(law[0], torch.tensor([0, 1 - sigma, 0, sigma], dtype=torch.float64))
            opens = (alpha_s - (1 - sigma) * alpha_t) / (1 - alpha_t)
            close(law[1:], torch.cat([opens * x_theta[0, 1:], torch.full((2, 1), 1 - opens, dtype=torch.float64)], -1))


def test_more_than_remdms_bound_would_mask_what_is_not_there():
    """At sigma = (1 - alpha_s) / alpha_t no mask stays one, beyond it their probability would be negative. Psi stops
    before, at sigma = 1 - alpha_s, where kappa is 0 and every token is corrected."""
    process, z, (s, t) = Absorbing(N), torch.full((1, L), N), times(0.3, 0.5)
    stays = lambda sigma: psi_law(process, world.vandal(z, t).exp(), z, s, t, 1 - sigma / 0.3)[0, 0, N].item()
    assert stays(0.3 / 0.5) == pytest.approx(0, abs=1e-12) and stays(0.3 / 0.5 + 0.01) < 0 < stays(0.3)
    alpha = torch.tensor(0.7, dtype=torch.float64)
    for schedule in ("cap", "loop"):
        assert kappa(schedule, 0.3, alpha, alpha).item() == pytest.approx(0, abs=1e-12)
        assert 0 < kappa(schedule, 0.29, alpha, alpha) < 0.04 and kappa(schedule, 0.5, alpha, alpha) == 0


@each_schedule
@pytest.mark.parametrize("eta", [0.0, 0.01, 0.3, 1.0])
def test_kappa_is_a_probability_and_gives_the_sigma_of_its_schedule(schedule, eta):
    """On a grid of alpha_t <= alpha_s with both ends: (1 - kappa) (1 - alpha_s) is sigma, or all there is to mask."""
    grid = torch.linspace(0, 1, 41, dtype=torch.float64)
    alpha_t, alpha_s = torch.cartesian_prod(grid, grid).unbind(-1)                                      # (n,) each
    alpha_t, alpha_s = alpha_t[alpha_t <= alpha_s], alpha_s[alpha_t <= alpha_s]
    share = torch.minimum(torch.ones_like(alpha_s), (1 - alpha_s) / alpha_t.clamp(min=1e-300))
    sigma = {"constant": eta * (1 - alpha_s), "cap": torch.full_like(share, eta), "rescale": eta * share,
             "loop": torch.full_like(share, eta)}[schedule].minimum(1 - alpha_s)
    k = kappa(schedule, eta, alpha_t, alpha_s)
    assert (k >= 0).all() and (k <= 1).all() and (eta > 0 or (k == 1).all())
    close((1 - k) * (1 - alpha_s), sigma)
    assert (k[alpha_s == 1] == 1).all()                  # at the end there is nothing left to noise


@each_schedule
@pytest.mark.parametrize("name", ["mask", "uniform"])
def test_a_plan_goes_from_noise_to_text_in_just_as_many_steps_as_are_asked_for(schedule, name):
    """1 to 40 steps. `loop` stays at its plateau for half of them, up to rounding, and corrects nowhere else."""
    for steps in range(1, 41):
        t, s, k = plan(PROCESSES[name], schedule, 0.05, steps)
        assert len(t) == len(s) == len(k) == steps and t[0] == 1 and s[-1] == 0
        assert torch.equal(t[1:], s[:-1]) and (s <= t).all() and (k >= 0).all() and (k <= 1).all()
        stays = t == s                                                                                  # (steps,)
        if schedule == "loop":
            assert abs(int(stays.sum()) - steps / 2) <= 1 and torch.equal(k < 1, stays)
            assert ((t[stays] - PLATEAU).abs() < 1e-12).all() and ((k[stays] - 0.5).abs() < 1e-12).all()
        else:
            close(t - s, torch.full((steps,), 1 / steps, dtype=torch.float64))


# ---- walks

def walked(process, denoiser, rows):
    """The law of the end of a walk, by multiplying matrices over all V^3 texts. rows: t, s, kappa of its steps"""
    z = world.states(process)                                                                           # (V^3, L)
    law = (z == process.V - 1).all(-1).double()                                                         # (V^3,)
    law = torch.full_like(law, 1 / len(law)) if isinstance(process, Uniform) else law
    for t, s, k in zip(*rows):
        t, s = t.expand(len(z), 1), s.expand(len(z), 1)                                                 # (V^3, 1)
        p = psi_law(process, denoiser(z, t).exp(), z, s, t, k).nan_to_num()                             # (V^3, L, V)
        law = law @ torch.einsum("ai,aj,ak->aijk", *p.unbind(1)).flatten(1)                             # (V^3,)
    return law


def from_language(law, V):
    """Total variation distance between a law of texts and the 27 probabilities of the world."""
    exact = torch.zeros_like(law).index_put((numbers(TEXTS, V),), P)                                    # (V^3,)
    return float((law - exact).abs().sum() / 2)


@each_process
@pytest.mark.parametrize("schedule, eta", [("constant", 0.5), ("cap", 0.3), ("rescale", 0.7), ("loop", 0.05),
                                           ("cap", 0.0)])
def test_a_walk_draws_the_law_of_its_matrices(name, schedule, eta):
    """Five steps through a wrong denoiser that watches the clock, 20,000 texts; eta = 0 is the walk of (3)."""
    process, method = PROCESSES[name], {"mask": "mdlm", "uniform": "udlm"}.get(name, "gidd")
    law = walked(process, world.vandal, plan(process, schedule, eta, 5))                                # (V^3,)
    if eta == 0:
        times = torch.linspace(1, 0, 6, dtype=torch.float64)
        close(law, walked(process, world.vandal, (times[:-1], times[1:], torch.ones(5))))
    torch.manual_seed(0)
    denoiser = lambda z, t, at: world.vandal(z, t.double(), at)
    z = make_method(method, N).prior((20_000, L))                                                       # (n, L)
    *_, z = psi(process, denoiser, z, NOTHING(z), 5, schedule=schedule, eta=eta)
    assert surprise(numbers(z, process.V), law) < 4.5


@pytest.mark.parametrize("name, eta", [("mask", 0.1), ("uniform", 0.1), ("hybrid .1", 0.1), ("uniform", 0.3)])
def test_many_psi_steps_through_the_oracle_speak_the_language(name, eta):
    """Exactly, without a draw: within 0.01 of the 27 probabilities in 256 steps, and nearer than in 64.

    Through an oracle correction can but cost, here 0.003; it is there to mend what a network gets wrong.
    """
    process = PROCESSES[name]
    plans = [plan(process, "constant", eta, steps) for steps in (64, 256)]
    far = [from_language(walked(process, world.oracle(process), rows), process.V) for rows in plans]
    assert far[1] < 0.01 and far[1] < 0.6 * far[0]


@pytest.mark.parametrize("name", ["mask", "uniform"])
def test_correction_mends_what_went_wrong_early(name):
    """A denoiser that knows nothing until t = 0.5, and all from there on: exact laws after 32 steps."""
    process = PROCESSES[name]
    exact = world.oracle(process)
    late = lambda z, t: torch.where(t[..., None] > 0.5, torch.full((N,), 1 / N).double().log(), exact(z, t))
    far = [from_language(walked(process, late, plan(process, "loop", eta, 32)), process.V) for eta in (0.0, 0.05)]
    assert far[1] < 0.5 * far[0]                         # 0.18 to 0.09 under masks, 0.06 to 0.02 under uniform noise


@pytest.mark.parametrize("schedule, eta", [("cap", 0.02), ("constant", 0.3), ("loop", 0.05)])
def test_a_walk_asks_at_most_once_a_step_and_at_few_positions(schedule, eta):
    """As often as tokens may move: a share (t - s) / (t (1 - s)) of those that predict, and of those that correct the
    alpha_s that are not noised in any case; at t = 1 the alpha_s that become text. Within 4.5 standard errors."""
    torch.manual_seed(0)
    method, steps, n = make_method("udlm", 50), 64, 32 * 64
    spy, z = Counted(lambda z, t, at: torch.zeros(int(at.sum()), 50)), method.prior((32, 64))
    walk = make_sampler("psi", "udlm", schedule, eta)
    assert len(list(method.sample(spy, z, NOTHING(z), steps, walk))) == steps >= spy.calls
    t, s, k = plan(method.process, schedule, eta, steps)
    asks = k * (t - s) / (t * (1 - s)).clamp(min=1e-9) + (1 - k) * (1 - s)                              # (steps,)
    asks[0] = 1 - s[0]
    error = (asks * (1 - asks)).sum().sqrt() * n ** 0.5
    assert abs(spy.positions - n * asks.sum()) < 4.5 * error and spy.positions < 0.7 * n * steps


def test_a_walk_is_the_same_again_from_one_seed():
    method = make_method("gidd", N)
    def walk(seed):
        torch.manual_seed(seed)
        z = method.prior((50, L))                                                                       # (50, L)
        *_, z = psi(method.process, world.vandal, z, NOTHING(z), 9, eta=0.3)
        return z
    assert torch.equal(walk(1), walk(1)) and not torch.equal(walk(1), walk(2))


# ---- the greedy tail

def chorus(process):
    """The oracle of a language whose words are all alike, 00000, 11111, 22222: what the others say, by majority."""
    def denoiser(z, t, at):
        log_q = likelihood(process, z, t.double().clamp(1e-6, 1 - 1e-6)).log()                          # (B, L, N)
        return (log_q.sum(1, keepdim=True) - log_q).log_softmax(-1)[at]                                 # (n, N)
    return denoiser


def test_the_greedy_tail_repairs_the_word_that_all_others_contradict_and_the_posterior_would_keep_it():
    """After a walk that changes nothing. The posterior is that of a network that is 99.9 % sure, at t = 1e-5, where a
    word's own evidence has odds of V / t = 3e5: only an oracle could be surer than that."""
    process, walk = Uniform(N), lambda process, denoiser, z, frozen, steps, law: iter([z])
    z, right = torch.tensor([[2, 2, 0, 2, 2], [1, 1, 1, 1, 0]]), torch.tensor([[2] * 5, [1] * 5])
    *_, mended = greedy_tail(process, chorus(process), z, NOTHING(z), 2, walk=walk)
    assert torch.equal(mended, right)
    *_, kept = greedy_tail(process, chorus(process), z, z != right, 2, walk=walk)
    assert torch.equal(kept, z)                          # what is given stays, wrong or not
    everywhere, t = torch.ones_like(z, dtype=torch.bool), torch.full((2, 1), 1e-5, dtype=torch.float64)
    x_theta = chorus(process)(z, t, everywhere).view(2, 5, N).exp() * 0.999 + 0.001 / N                 # (2, 5, N)
    assert torch.equal(x_theta.argmax(-1), right)
    assert torch.equal(posterior_x0(process, x_theta, z, t).argmax(-1), z)


@pytest.mark.parametrize("name", ["ancestral", "psi"])
def test_the_greedy_tail_is_the_last_of_the_steps(name):
    """As many network calls as steps, and as many texts to watch; what is given stays."""
    torch.manual_seed(0)
    method, z = make_method("udlm", N), torch.randint(N, (300, 5))
    for steps in (1, 2, 5):
        spy = Counted(chorus(method.process))
        shown = list(method.sample(spy, z, NOTHING(z), steps, make_sampler(name, "udlm", tail="greedy")))
        assert len(shown) == spy.calls == steps
    frozen = NOTHING(z)
    frozen[:, :2] = True
    *_, last = method.sample(chorus(method.process), z, frozen, 5, make_sampler(name, "udlm", tail="greedy"))
    assert torch.equal(last[:, :2], z[:, :2])
