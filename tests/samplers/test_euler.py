"""Steps by ratios: draws of jumps, and trajectories against a product of matrices."""
import torch

import world
from diffusion import probabilities
from methods import make_method
from methods.sedd import score_of_mean
from samplers.euler import Analytic, draw_jumps
from world import L, N, end_of_steps, numbers, surprise

PROCESS = make_method("sedd", N, transition="uniform").process
NOTHING = lambda z: torch.zeros_like(z, dtype=torch.bool)


def test_a_jump_is_decided_before_its_symbol_and_what_is_below_zero_is_left_out():
    """So a temperature changes which symbols are chosen, and not how many tokens jump."""
    n = 20_000
    p = torch.tensor([[0.4, 0.1, -0.2, 0.5]], dtype=torch.float64).expand(n, -1)  # (n, 4)
    z = torch.zeros(n, dtype=torch.long)  # (n,)
    torch.manual_seed(0)
    exact = torch.tensor([0.4, 0.1, 0.0, 0.5], dtype=torch.float64)  # (4,)
    assert surprise(draw_jumps(p, z, probabilities), exact) < 4.5
    cold = draw_jumps(p, z, lambda logits: probabilities(logits, 0))  # (n,)
    likeliest = torch.tensor([0.4, 0.0, 0.0, 0.6], dtype=torch.float64)  # (4,)
    assert surprise(cold, likeliest) < 4.5


def test_analytic_trajectories_by_the_score_of_a_mean_are_those_of_the_reverse_step():
    """Five steps through a wrong denoiser that depends on the time, 20,000 texts."""
    def log_score(z, t, at):
        x_theta = world.vandal(z, t).exp()  # (B, L, N)
        return score_of_mean(PROCESS, x_theta, z, t.expand(z.shape)).log()[at]  # (N, V)
    times = torch.linspace(1, 0, 6, dtype=torch.float64)  # (6,)
    p = end_of_steps(PROCESS, world.vandal, times[:-1], times[1:], torch.ones(5))  # (V^3,)
    torch.manual_seed(0)
    z = torch.randint(N, (20_000, L))  # (n, L)
    *_, z = Analytic()(PROCESS, log_score, z, NOTHING(z), 5)
    assert surprise(numbers(z, N), p) < 4.5
