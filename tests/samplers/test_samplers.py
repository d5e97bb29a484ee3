"""Samplers draw what the theory says: single draws and steps, trajectories through an oracle."""
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import world
from diffusion import Ancestral, categorical, probabilities, reverse, reverse_step
from methods import make_method
from samplers import make_sampler
from samplers.generate import CallCounter
from world import PROCESSES, TEXTS, L, N, P, end_of_steps, from_texts, numbers, surprise

NOTHING = lambda z: torch.zeros_like(z, dtype=torch.bool)
METHOD = {"mask": "mdlm", "uniform": "udlm"}  # of a process of the world; the others are gidd's
each_process = pytest.mark.parametrize("name", PROCESSES)


def even_steps(steps):
    """t, s, kappa of equal steps of (0.3), each (steps,)."""
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)  # (steps + 1,)
    return times[:-1], times[1:], torch.ones(steps)


def rough(z, t, at=None):
    """A denoiser of 5 symbols that knows nothing, of the network's shape for any method."""
    logits = torch.randn(*z.shape, 6, generator=torch.Generator().manual_seed(0))  # (B, L, 6)
    return logits[..., :5] if at is None else logits[at]


# ---- steps and trajectories

@each_process
@pytest.mark.parametrize("s, t", [(0.2, 0.5), (0.6, 0.65), (0.0, 0.3), (0.7, 0.999)])
def test_the_lazy_step_draws_exactly_the_reverse_law(name, s, t):
    """Candidates, sources, acceptance, all of it: 40,000 draws against (0.3) from each of 3 z, so
    that probabilities that are off by 4 % in the mean are seen."""
    process, n = PROCESSES[name], 40_000
    torch.manual_seed(1)
    for z in ([0, 1, 2], [process.V - 1] * 3, [1, process.V - 1, 0]):
        z = torch.tensor([z])  # (1, L)
        t_, s_ = torch.tensor([[t]]).double(), torch.tensor([[s]]).double()  # (1, 1) each
        x_theta = world.carried_over(process, world.vandal(z, t_).exp(), z)  # (1, L, V)
        rows = reverse(process, x_theta, z, s_, t_)[0]  # (L, V)
        p = torch.einsum("i,j,k->ijk", *rows).flatten()  # (V^3,)
        z, s_, t_ = (a.expand(n, -1) for a in (z, s_, t_))  # (n, L|1)
        new = reverse_step(process, world.once(world.vandal), z, NOTHING(z), s_, t_)  # (n, L)
        assert surprise(numbers(new, process.V), p) < 4.5


class NoNaN(TorchDispatchMode):
    """Fails as soon as a number is nan."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if torch.is_tensor(result) and result.is_floating_point():
            assert not result.isnan().any(), func
        return result


@each_process
def test_from_noise_to_noise_nothing_moves_and_no_ratio_of_zeros_decides_it(name):
    """s = t = 1, where alpha_t / alpha_s is 0 / 0."""
    z = world.states(PROCESSES[name])  # (V^3, L)
    one = torch.ones(len(z), 1, dtype=torch.float64)  # (V^3, 1)
    with NoNaN():
        new = reverse_step(PROCESSES[name], None, z, NOTHING(z), one, one)  # (V^3, L)
    assert torch.equal(new, z)


@each_process
@pytest.mark.parametrize("grid", ["uniform", "cosine"])
def test_ancestral_trajectories_have_the_distribution_of_their_matrices(name, grid):
    """Five steps through a wrong denoiser that depends on the time, 20,000 texts."""
    t, s, kappa = even_steps(5)
    if grid == "cosine":
        t, s = (torch.sin(torch.pi / 2 * a) for a in (t, s))  # (steps,) each
    process = PROCESSES[name]
    p = end_of_steps(process, world.vandal, t, s, kappa)  # (V^3,)
    torch.manual_seed(0)
    denoiser = lambda z, t, at: world.vandal(z, t.double(), at)
    z = make_method(METHOD.get(name, "gidd"), N).prior((20_000, L))  # (n, L)
    *_, z = Ancestral(grid=grid)(process, denoiser, z, NOTHING(z), 5)
    assert surprise(numbers(z, process.V), p) < 4.5


@pytest.mark.parametrize("name", ["mask", "uniform", "hybrid .1"])
def test_many_steps_through_the_oracle_draw_the_data(name):
    """Exactly, without a draw: in 128 steps within 0.006 of the 27 probabilities.

    The error is that positions which change in one step are drawn apart. It halves with twice as
    many steps; in one step it is large.
    """
    process, far = PROCESSES[name], {}
    for steps in (1, 64, 128):
        p = end_of_steps(process, world.oracle(process), *even_steps(steps))  # (V^3,)
        far[steps] = from_texts(p, process.V)
    assert far[128] < 0.006 and far[128] < 0.6 * far[64] and far[1] > 0.05


def test_first_hitting_draws_the_data_in_as_many_steps_as_masks():
    torch.manual_seed(0)
    m = make_method("mdlm", N)
    z = m.prior((20_000, L))  # (n, L)
    *_, z = m.sample(world.oracle(m.process), z, NOTHING(z), L, make_sampler("first-hitting", m))
    assert surprise(numbers(z, N), P) < 4.5


def test_left_to_right_through_the_oracle_draws_the_data():
    def predict(z, t, at):
        x, l = z[:, 1:], z.shape[1] - 1
        match = (TEXTS[None, :, :l] == x[:, None]).all(-1) * P  # (B, 27)
        p = torch.stack([match[:, TEXTS[:, l] == v].sum(-1) for v in range(N)], -1)  # (B, N)
        return p[at[:, -1]].log()  # (n, N)
    torch.manual_seed(0)
    m = make_method("ar", N)
    z = m.prior((40_000, L))  # (n, L)
    *_, z = m.sample(predict, z, NOTHING(z), 1)
    assert surprise(numbers(z, N), P) < 4.5


# ---- where and when the network is called

def test_the_masked_sampler_asks_only_where_a_mask_opens_and_not_at_all_when_none_does():
    """512 tokens are scored once each, whatever the steps; 16 tokens in 1,000 steps make at most
    16 calls."""
    m = make_method("mdlm", 5)
    for name in ("ancestral", "first-hitting"):
        sampler = make_sampler(name, m)
        spy, z = CallCounter(rough), m.prior((8, 64))
        list(m.sample(spy, z, NOTHING(z), 20, sampler))
        assert spy.positions == 8 * 64
        spy, z = CallCounter(rough), m.prior((1, 16))
        list(m.sample(spy, z, NOTHING(z), 1000, sampler))
        assert spy.calls <= 16


def test_the_uniform_sampler_asks_at_few_positions():
    """Thinning: in 128 steps a position is a candidate about 9.8 times, not 128.

    At t = 1 a word says nothing of what it was: the network is called only at those that become
    text, one in 128. Within 4.5 standard errors.
    """
    torch.manual_seed(0)
    m, spy = make_method("udlm", 50), CallCounter(lambda z, t, at: torch.zeros(int(at.sum()), 50))
    z = m.prior((16, 64))  # (16, 64)
    list(m.sample(spy, z, NOTHING(z), 128))
    t = torch.arange(1, 129) / 128  # (128,)
    moves = (1 / 128) / (t * (1 - t + 1 / 128))  # (128,) beta / b_t = (t - s) / (t (1 - s))
    moves[-1] = 1 / 128
    error = ((moves * (1 - moves)).sum() / z.numel()) ** 0.5
    assert abs(spy.positions / z.numel() - moves.sum()) < 4.5 * error


def test_the_model_is_told_the_true_noise_level():
    """While sampling, the share of masks is the time that goes with it, as it was in training.

    In the mean of 300 texts, which strays by up to 0.005; a time that is one step late would be
    0.024 off, or 0.1. first-hitting passes the time at which the next of n masks opens: n/41 in the
    mean, the n-th smallest of 40 uniform times.
    """
    torch.manual_seed(0)
    m = make_method("mdlm", 5)

    def spy(z, t, at):
        due = (z == 5).double().mean() * (40 / 41 if name == "first-hitting" else 1)
        assert abs(due - t.double().mean()) < 0.02
        return rough(z, t, at)
    for name, steps in (("ancestral", 10), ("first-hitting", 40), ("confidence", 10)):
        z = m.prior((300, 40))  # (300, 40)
        list(m.sample(spy, z, NOTHING(z), steps, make_sampler(name, m)))


# ---- single draws

def test_rare_symbols_own_exactly_their_slice(monkeypatch):
    """V = 50,000, all but one of 1e-8: the inverse CDF gives each symbol the u's of its own slice,
    up to its ends."""
    V = 50_000
    p = torch.full((V,), 1e-8, dtype=torch.float64)  # (V,)
    p[17] = 1 - (V - 1) * 1e-8
    cdf, rare = p.cumsum(-1), torch.cat([torch.arange(18, 18 + 60), torch.arange(V - 60, V)])
    for inside in (0.01, 0.5, 0.99):
        u = ((cdf[rare] - (1 - inside) * p[rare]) / cdf[-1])[:, None]  # (120, 1)
        # float32 would miss the slice
        monkeypatch.setattr(torch, "rand", lambda shape, dtype, device: u.to(dtype))
        assert torch.equal(categorical(p.expand(len(rare), -1)), rare)
    last = torch.tensor([[1 - 2.0 ** -53]], dtype=torch.float64)  # (1, 1)
    monkeypatch.setattr(torch, "rand", lambda *a, **k: last)
    dead_end = torch.tensor([[0.3, 0.7, 0.0]], dtype=torch.float64) / 3  # (1, 3)
    assert categorical(dead_end).item() == 1  # never a symbol of probability 0, even by rounding


def test_rare_events_happen_as_often_as_they_should():
    """50,000 symbols of 2e-6 each beside a big one get a tenth of 1,200 draws, within 4.5 standard
    errors. (A race in float32 gave them a fifth of that, which is 9 standard errors less.)"""
    torch.manual_seed(0)
    V, n, rounds = 50_000, 400, 3
    p = torch.full((V,), 2e-6, dtype=torch.float64)  # (V,)
    p[0] = 1 - (V - 1) * 2e-6
    hits = sum(int((categorical(p.expand(n, -1)) != 0).sum()) for _ in range(rounds))
    expected = n * rounds * (V - 1) * 2e-6
    assert abs(hits - expected) < 4.5 * (expected * 0.9) ** 0.5


def test_temperature_and_nucleus_are_what_their_names_say():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])  # (4,)
    p = logits.double().softmax(-1)  # (4,)
    torch.testing.assert_close(probabilities(logits).float(), p.float())
    torch.testing.assert_close(probabilities(logits, 0.5).float(), (2 * logits).softmax(-1))
    assert probabilities(logits, 0).tolist() == [1, 0, 0, 0]
    nucleus = probabilities(logits, top_p=0.7)  # (4,) .64 + .24: the token that crosses .7 is in it
    exact = torch.tensor([p[0], p[1], 0, 0]) / (p[0] + p[1])  # (4,)
    torch.testing.assert_close(nucleus.float(), exact.float())
    assert probabilities(logits.flip(0), top_p=0.1).tolist() == [0, 0, 0, 1]
    # widened before the softmax
    assert torch.equal(probabilities(logits.bfloat16()), probabilities(logits))
