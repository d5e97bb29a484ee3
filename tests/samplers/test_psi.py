"""Psi-samplers in the enumerated world: one step, its marginals, when it corrects, trajectories."""
import pytest
import torch
import torch.nn.functional as F

import world
from diffusion import Absorbing
from methods import make_method
from samplers import make_sampler
from samplers.generate import CallCounter
from samplers.psi import PLATEAU, SCHEDULES, Psi, kappa_of, plan, psi_step
from world import PROCESSES, L, N, end_of_steps, from_texts, numbers, psi_law, surprise

each_process = pytest.mark.parametrize("name", PROCESSES)
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES)
METHOD = {"mask": "mdlm", "uniform": "udlm"}  # of a process of the world; the others are gidd's
NOTHING = lambda z: torch.zeros_like(z, dtype=torch.bool)


def times(s, t, n=1):
    return (torch.full((n, 1), value, dtype=torch.float64) for value in (s, t))  # (n, 1) each


def close(ours, exact, tolerance=1e-10):
    torch.testing.assert_close(ours, exact, atol=tolerance, rtol=tolerance)


# ---- one step

@each_process
@pytest.mark.parametrize("s, t, kappa", [(0.2, 0.5, 0.0), (0.2, 0.5, 0.3), (0.2, 0.5, 1.0),
                                         (0.4, 0.4, 0.6), (0.1, 0.1, 0.0), (0.0, 0.3, 0.5)])
def test_the_lazy_psi_step_draws_exactly_the_mixture_of_its_two_lines(name, s, t, kappa):
    """40,000 draws each from three z against (7.3), also at s = t, where `loop` corrects."""
    process, n = PROCESSES[name], 40_000
    torch.manual_seed(1)
    for z in ([0, 1, 2], [process.V - 1] * 3, [1, process.V - 1, 0]):
        z, (s_, t_) = torch.tensor([z]), times(s, t)  # (1, L), (1, 1) each
        rows = psi_law(process, world.vandal(z, t_).exp(), z, s_, t_, kappa)[0]  # (L, V)
        close(rows.sum(-1), torch.ones(L, dtype=torch.float64))
        p = torch.einsum("i,j,k->ijk", *rows).flatten()  # (V^3,)
        z, s_, t_ = (a.expand(n, -1) for a in (z, s_, t_))  # (n, L|1)
        new = psi_step(process, world.once(world.vandal), z, NOTHING(z), s_, t_, kappa)  # (n, L)
        assert surprise(numbers(new, process.V), p) < 4.5


@each_process
def test_in_both_lines_of_a_psi_step_given_tokens_stay_and_words_are_drawn_by_to_probs(name):
    """Here from the word 1 alone: at s = 0 no noise is left, so that is what moves or opens."""
    process = PROCESSES[name]
    torch.manual_seed(0)
    z, (s, t) = torch.randint(process.V, (400, L)), times(0.3, 0.6, 400)  # (400, L), (400, 1) each
    frozen = torch.rand(z.shape) < 0.4  # (400, L)
    only_one = lambda logits: F.one_hot(torch.ones(len(logits), dtype=torch.long), N).double()
    for k in (0.0, 0.5, 1.0):
        assert (psi_step(process, world.vandal, z, frozen, s, t, k) == z)[frozen].all()
        new = psi_step(process, world.vandal, z, frozen, 0 * s, t, k, only_one)  # (400, L)
        assert (new[frozen] == z[frozen]).all()
        assert ((new == 1) | (new == z))[~frozen].all() and (new[~frozen] < N).all()
        assert (new != z)[~frozen].any()


@each_process
@pytest.mark.parametrize("s, t", [(0.2, 0.5), (0.4, 0.4), (0.7, 0.999), (0.0, 0.1)])
@pytest.mark.parametrize("k", [0.0, 0.3, 1.0])
def test_any_kappa_keeps_the_marginals(name, s, t, k):
    """sum_z q(z_t) Psi(z_s | z_t) = q(z_s), in exact sums.

    For each clean word, with x known, and for a language of one token with its oracle, whose
    leave-one-out distribution is that of the language whatever z is.
    """
    process, (s, t) = PROCESSES[name], times(s, t)
    words = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)  # (N,)
    z, symbols = torch.arange(process.V)[:, None], torch.arange(process.V)  # (V, 1), (V,)
    q = lambda time, x: (process.alpha(time) * F.pad(x, (0, process.V - N))
                         + process.b(time, symbols))  # (.., V)
    for x in [*torch.eye(N).double()[:, None], words[None]]:  # (1, N) each
        kernel = psi_law(process, x.expand(process.V, 1, N), z, s, t, k)[:, 0]  # (V, V)
        # under masks a wrong word has no distribution (nan), and probability 0
        close(q(t, x) @ kernel.nan_to_num(), q(s, x))


# ---- when to correct

def test_under_masks_a_psi_step_is_that_of_remdm():
    """As published (arXiv:2503.00307), with sigma = (1 - kappa) (1 - alpha_s): a word is masked
    again with probability sigma, a mask opens with (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t).
    """
    process, z = Absorbing(N), torch.tensor([[1, N, N]])  # (1, L)
    for s, t in ((0.2, 0.5), (0.4, 0.4), (0.85, 0.9)):
        alpha_s, alpha_t, (s, t) = 1 - s, 1 - t, times(s, t)
        x_theta = world.vandal(z, t).exp()  # (1, L, N)
        for k in (0.0, 0.1, 0.7, 1.0):
            sigma, p = (1 - k) * (1 - alpha_s), psi_law(process, x_theta, z, s, t, k)[0]  # (L, V)
            close(p[0], torch.tensor([0, 1 - sigma, 0, sigma], dtype=torch.float64))
            opens = (alpha_s - (1 - sigma) * alpha_t) / (1 - alpha_t)
            close(p[1:, :N], opens * x_theta[0, 1:])
            close(p[1:, N], torch.full((2,), 1 - opens, dtype=torch.float64))


def test_more_than_remdms_bound_would_mask_what_is_not_there():
    """At sigma = (1 - alpha_s) / alpha_t no mask stays one; beyond it, their probability would be
    negative. Psi stops before, at sigma = 1 - alpha_s: kappa is 0, and all tokens are corrected."""
    process, z, (s, t) = Absorbing(N), torch.full((1, L), N), times(0.3, 0.5)
    x_theta = world.vandal(z, t).exp()  # (1, L, N)
    stays = lambda sigma: psi_law(process, x_theta, z, s, t, 1 - sigma / 0.3)[0, 0, N].item()
    assert stays(0.3 / 0.5) == pytest.approx(0, abs=1e-12)
    assert stays(0.3 / 0.5 + 0.01) < 0 < stays(0.3)
    alpha = torch.tensor(0.7, dtype=torch.float64)  # ()
    for schedule in ("cap", "loop"):
        assert kappa_of(schedule, 0.3, alpha, alpha).item() == pytest.approx(0, abs=1e-12)
        assert 0 < kappa_of(schedule, 0.29, alpha, alpha) < 0.04
        assert kappa_of(schedule, 0.5, alpha, alpha) == 0


@each_schedule
@pytest.mark.parametrize("eta", [0.0, 0.01, 0.3, 1.0])
def test_kappa_is_a_probability_and_gives_the_sigma_of_its_schedule(schedule, eta):
    """On a grid of alpha_t <= alpha_s with both ends: (1 - kappa) (1 - alpha_s) is sigma, or all
    there is to mask."""
    grid = torch.linspace(0, 1, 41, dtype=torch.float64)  # (41,)
    alpha_t, alpha_s = torch.cartesian_prod(grid, grid).unbind(-1)  # (n,) each
    alpha_t, alpha_s = alpha_t[alpha_t <= alpha_s], alpha_s[alpha_t <= alpha_s]  # (n',) each
    share = ((1 - alpha_s) / alpha_t.clamp(min=1e-300)).clamp(max=1)  # (n',)
    sigma = {"constant": eta * (1 - alpha_s), "cap": torch.full_like(share, eta),
             "rescale": eta * share, "loop": torch.full_like(share, eta)}[schedule]  # (n',)
    k = kappa_of(schedule, eta, alpha_t, alpha_s)  # (n',)
    assert (k >= 0).all() and (k <= 1).all() and (eta > 0 or (k == 1).all())
    close((1 - k) * (1 - alpha_s), sigma.minimum(1 - alpha_s))
    assert (k[alpha_s == 1] == 1).all()  # at the end there is nothing left to noise


@each_schedule
@pytest.mark.parametrize("name", ["mask", "uniform"])
def test_a_plan_goes_from_noise_to_text_in_just_as_many_steps_as_are_asked_for(schedule, name):
    """1 to 40 steps. `loop` stays at its plateau for half of them, up to rounding, and corrects
    nowhere else."""
    for steps in range(1, 41):
        t, s, k = plan(PROCESSES[name], schedule, 0.05, steps)  # (steps,) each
        assert len(t) == len(s) == len(k) == steps and t[0] == 1 and s[-1] == 0
        assert torch.equal(t[1:], s[:-1]) and (s <= t).all() and (k >= 0).all() and (k <= 1).all()
        stays = t == s  # (steps,)
        if schedule == "loop":
            assert abs(int(stays.sum()) - steps / 2) <= 1 and torch.equal(k < 1, stays)
            close(t[stays], torch.full_like(t[stays], PLATEAU), 1e-12)
            close(k[stays], torch.full_like(k[stays], 0.5), 1e-12)
        else:
            close(t - s, torch.full((steps,), 1 / steps, dtype=torch.float64))


# ---- trajectories

@each_process
@pytest.mark.parametrize("schedule, eta", [("constant", 0.5), ("cap", 0.3), ("rescale", 0.7),
                                           ("loop", 0.05), ("cap", 0.0)])
def test_a_trajectory_has_the_distribution_of_its_matrices(name, schedule, eta):
    """Five steps through a wrong denoiser that depends on the time, 20,000 texts. With eta = 0 they
    are steps of (0.3)."""
    process, method = PROCESSES[name], make_method(METHOD.get(name, "gidd"), N)
    p = end_of_steps(process, world.vandal, *plan(process, schedule, eta, 5))  # (V^3,)
    if eta == 0:
        even = torch.linspace(1, 0, 6, dtype=torch.float64)  # (6,)
        close(p, end_of_steps(process, world.vandal, even[:-1], even[1:], torch.ones(5)))
    torch.manual_seed(0)
    denoiser = lambda z, t, at: world.vandal(z, t.double(), at)
    z = method.prior((20_000, L))  # (n, L)
    *_, z = Psi(schedule, eta)(process, denoiser, z, NOTHING(z), 5)
    assert surprise(numbers(z, process.V), p) < 4.5


@pytest.mark.parametrize("name, eta", [("mask", 0.1), ("uniform", 0.1), ("hybrid .1", 0.1),
                                       ("uniform", 0.3)])
def test_many_psi_steps_through_the_oracle_speak_the_language(name, eta):
    """Exactly, without a draw: within 0.01 of the 27 probabilities in 256 steps, and nearer than in
    64. Through an oracle correction can only cost, here 0.003; it repairs what a network gets
    wrong."""
    process, far = PROCESSES[name], {}
    for steps in (64, 256):
        rows = plan(process, "constant", eta, steps)  # 3 x (steps,)
        p = end_of_steps(process, world.oracle(process), *rows)  # (V^3,)
        far[steps] = from_texts(p, process.V)
    assert far[256] < 0.01 and far[256] < 0.6 * far[64]


@pytest.mark.parametrize("name", ["mask", "uniform"])
def test_correction_mends_what_went_wrong_early(name):
    """A denoiser that knows nothing until t = 0.5, and all from there on: exactly, after 32
    steps."""
    process, far = PROCESSES[name], {}
    exact, flat = world.oracle(process), torch.full((N,), 1 / N).double().log()  # (N,)
    late = lambda z, t: torch.where(t[..., None] > 0.5, flat, exact(z, t))
    for eta in (0.0, 0.05):
        p = end_of_steps(process, late, *plan(process, "loop", eta, 32))  # (V^3,)
        far[eta] = from_texts(p, process.V)
    assert far[0.05] < 0.5 * far[0.0]  # masks: 0.18, then 0.09; uniform noise: 0.06, then 0.02


@pytest.mark.parametrize("schedule, eta", [("cap", 0.02), ("constant", 0.3), ("loop", 0.05)])
def test_a_step_calls_the_network_at_most_once_and_at_few_positions(schedule, eta):
    """As often as tokens may move, within 4.5 standard errors: a share (t - s) / (t (1 - s)) of
    those that predict; of those that correct, the alpha_s that are not noised in any case; at
    t = 1, the alpha_s that become text."""
    torch.manual_seed(0)
    method, steps, n = make_method("udlm", 50), 64, 32 * 64
    spy = CallCounter(lambda z, t, at: torch.zeros(int(at.sum()), 50))
    z = method.prior((32, 64))  # (32, 64)
    sampler = make_sampler("psi", method, kappa=schedule, eta=eta)
    assert len(list(method.sample(spy, z, NOTHING(z), steps, sampler))) == steps >= spy.calls
    t, s, k = plan(method.process, schedule, eta, steps)  # (steps,) each
    moves = (t - s) / (t * (1 - s)).clamp(min=1e-9)  # (steps,)
    asks = k * moves + (1 - k) * (1 - s)  # (steps,)
    asks[0] = 1 - s[0]
    error = (asks * (1 - asks)).sum().sqrt() * n ** 0.5
    assert abs(spy.positions - n * asks.sum()) < 4.5 * error and spy.positions < 0.7 * n * steps
