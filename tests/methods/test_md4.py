"""MD4: three schedules of masks, and one bound, with the numbers of its public code (b9fbf29)."""
import math

import pytest
import torch
from references import LOG_P, Figures, T, X, Z, same

import world
from diffusion import Absorbing, Ancestral
from flags import flags_of
from methods.md4 import MD4, Scheduled
from methods.mdlm import MDLM, masked_bound
from world import TEXTS, N

figure = Figures("masked_reference")
CE = -LOG_P.gather(-1, X[..., None])[..., 0]  # (B, L)
PUBLISHED = {"linear": ("linear", 1.0), "cosine": ("cosine", 1.0), "poly3": ("polynomial", 3.0)}
SCHEDULES = flags_of(MD4)["mask_schedule"].metadata["choices"]  # a new one is tested by its row
each_schedule = pytest.mark.parametrize("name", SCHEDULES)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_schedules_and_their_bounds_are_those_of_the_public_code(name):
    """That code stays eps = 1e-4 away from both ends, and its weight is negative."""
    process = Scheduled(11, *PUBLISHED[name], eps=1e-4)
    alpha, dalpha, b = process.alpha(T), process.dalpha(T), process.b(T, 11)  # (B, 1) each
    same(alpha[:, 0], figure(f"md4/{name}_alpha"))
    same(dalpha[:, 0], figure(f"md4/{name}_dalpha"))
    same((dalpha / b)[:, 0], figure(f"md4/{name}_weight"))
    same((alpha / b).log()[:, 0], figure(f"md4/{name}_logsnr"))
    same(masked_bound(process, CE, Z, T).sum(-1), figure(f"md4/{name}_ct_loss_seq"))


@each_schedule
def test_the_derivative_of_a_schedule_is_that_which_autograd_finds(name):
    process = Scheduled(5, name, power=3.0)
    t = torch.rand(50, 1, dtype=torch.float64, requires_grad=True)  # (50, 1)
    grad, = torch.autograd.grad(process.alpha(t).sum(), t)  # (50, 1)
    same(process.dalpha(t).detach(), grad)
    assert (grad < 0).all()  # the share of masks grows
    ends = torch.tensor([[0.0], [1.0]], dtype=torch.float64)  # (2, 1)
    same(process.alpha(ends), 1 - ends, 1e-12)


@each_schedule
def test_every_schedule_has_the_same_bound(name):
    """Draws at uniform times, weighted by the schedule, have the mean of mdlm's bound, for a wrong
    denoiser, on every text: within 4.5 standard errors of 100,000."""
    method = MD4(N, mask_schedule=name, power=3.0)
    torch.manual_seed(0)
    timeless = lambda z, t, at: world.vandal(z, torch.full_like(t, 0.3, dtype=torch.float64), at)
    for i in (1, 14):
        x = TEXTS[i].expand(100_000, -1)  # (n, L)
        difference = method.loss(timeless, x) - MDLM(N).nelbo(timeless, x)  # (n, L)
        difference = difference.sum(-1)  # (n,)
        assert abs(difference.mean()) < 4.5 * difference.std() / len(difference) ** 0.5


def test_the_cosine_schedule_at_equal_times_is_the_linear_one_on_the_cosine_grid():
    times = torch.linspace(1, 0, 17, dtype=torch.float64)[:, None]  # (17, 1)
    sines = torch.sin(math.pi / 2 * times)  # (17, 1)
    same(Scheduled(5, "cosine").alpha(times), Absorbing(5).alpha(sines))
    grid = figure("md4/grid_cosine")  # (16, 2) s, t
    same(sines[:-1, 0], grid[:, 1].sort(descending=True).values)
    seen = []
    spy = lambda z, t, at: seen.append(t[0].item()) or torch.zeros(int(at.sum()), 6)
    z = torch.full((64, 64), 5)  # (64, 64)
    list(Ancestral(grid="cosine")(Absorbing(5), spy, z, z < 5, 16))
    same(torch.tensor(seen), sines[:-1, 0].float(), 1e-6)


def test_a_steep_schedule_trains_at_a_fixed_number_of_positions():
    """t^20 is 0 in float32 near t = 0, and a weight 0/0 there belongs to no mask and counts
    nothing."""
    method, losses = MD4(5, mask_schedule="polynomial", power=20.0), []
    x = torch.randint(5, (400, 8))  # (400, 8)
    for fixed_shapes in (False, True):
        scores = torch.zeros(6, requires_grad=True)  # (6,)
        denoiser = lambda z, t, at: scores.expand(
            len(at) if fixed_shapes else int(at.sum()), -1)  # (N, 6)
        denoiser.fixed_shapes = fixed_shapes
        torch.manual_seed(0)
        losses.append(method.loss(denoiser, x))  # (400, 8)
        losses[-1].mean().backward()
        assert scores.grad.isfinite().all()
    same(losses[1], losses[0].detach(), 1e-5)
