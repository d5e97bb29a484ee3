"""
Chapter 7. Psi-samplers: predict or correct. ReMDM (arXiv:2503.00307) under masks, Duo++
(arXiv:2602.21185) under uniform noise.

Steps of (0.3) never change a word under masks, and rarely do in many small steps under other noise.
A Psi step does one of two things to each token, by a coin of probability kappa:

    predict    z_s ~ p(z_s | z_t)                               the step of (0.3)
    correct    x ~ p(x | z_t), (0.4);  z_s ~ alpha_s x + b_s    predict the clean token, then
                                                                re-noise it to time s

    Psi(z_s | z_t) = kappa p(z_s | z_t) + (1 - kappa) [ alpha_s p(x | z_t) + b_s ]             (7.3)

If z_t ~ q(z_t | x) and x_theta knows x, both lines give q(z_s | x), so any kappa keeps the
marginals. And p(x | z_t) is (0.3) with s = 0: a corrected token takes the lazy step of diffusion.py
to s = 0, and is then noised to s.

How often to correct: sigma = (1 - kappa) (1 - alpha_s) is ReMDM's probability that an open token is
masked again. It is at most 1 - alpha_s, since kappa is a probability.

    constant   kappa = 1 - eta
    cap        sigma = min(eta, (1 - alpha_s) / alpha_t)
    rescale    sigma = eta min(1, (1 - alpha_s) / alpha_t)
    loop       predict down to t = 0.1, stay there for half of all steps with sigma = eta, then
               predict to the end

ReMDM's public code multiplies by eta twice in `rescale`, and the last step of each phase of its
`loop` has no effect.
"""
from dataclasses import dataclass

import torch

from diffusion import Sampler, probabilities, reverse_step
from flags import flag

SCHEDULES = ["constant", "cap", "rescale", "loop"]
PLATEAU, DOWN, STAY = 0.1, 0.45, 0.5  # loop: the time at which it stays; shares of the steps


def kappa_of(schedule, eta, alpha_t, alpha_s):
    """kappa of (7.3), from tensors alpha_t and alpha_s of one shape. -> same shape"""
    most = (1 - alpha_s) / alpha_t  # (...) of sigma: more would mask what is not there
    sigma = {"constant": eta * (1 - alpha_s), "cap": most.clamp(max=eta),
             "rescale": eta * most.clamp(max=1), "loop": torch.full_like(most, eta)}[schedule]
    kappa = 1 - sigma / (1 - alpha_s).clamp(min=1e-300)  # (...)
    return torch.where(alpha_s < 1, kappa, 1.0).clamp(0, 1)  # (...)


def time_grid(schedule, steps):
    """The times from 1 to 0, and which steps may correct. -> (steps + 1,) float64, (steps,) bool"""
    if schedule != "loop":
        times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)  # (steps + 1,)
        return times, torch.ones(steps, dtype=torch.bool)  # (steps + 1,), (steps,)
    stay, down = round(STAY * steps), max(1, round(DOWN * steps))
    last = max(1, steps - stay - down)
    down, stay = min(down, steps - last), max(0, steps - last - down)
    phases = (1, PLATEAU, down), (PLATEAU, PLATEAU, stay), (PLATEAU, 0, last)
    parts = [torch.linspace(a, b, n + 1, dtype=torch.float64)[1:] for a, b, n in phases]  # (n,)
    times = torch.cat([torch.ones(1, dtype=torch.float64), *parts])  # (steps + 1,)
    return times, times[1:] == times[:-1]  # (steps + 1,), (steps,)


def plan(process, schedule, eta, steps):
    """All steps of a trajectory. -> t, s, kappa, each (steps,) float64"""
    times, corrects = time_grid(schedule, steps)  # (steps + 1,), (steps,)
    t, s = times[:-1], times[1:]  # (steps,) each
    kappa = kappa_of(schedule, eta, process.alpha(t), process.alpha(s))  # (steps,)
    return t, s, torch.where(corrects, kappa, 1.0)  # (steps,) each


def psi_step(process, denoiser, z, frozen, s, t, kappa, to_probs=probabilities):
    """One draw of (7.3). s, t (B, 1) -> (B, L)

    As lazy as (0.3): the network is not called at tokens that become noise whatever it outputs.
    """
    coin = lambda: torch.rand(z.shape, dtype=torch.float64, device=z.device)  # (B, L)
    corrects = coin() >= kappa  # (B, L)
    to_noise = coin() >= process.alpha(s)  # (B, L)
    noised = corrects & to_noise & ~frozen  # (B, L)
    goal = torch.where(corrects, 0.0, s)  # (B, L)
    z = reverse_step(process, denoiser, z, frozen | noised, goal, t, to_probs)  # (B, L)
    return torch.where(noised, process.draw_noise(s, z), z)  # (B, L)


@dataclass(eq=False)
class Psi(Sampler):
    """--sampler psi: steps of (7.3) from t = 1 to 0; --eta 0 makes them those of (0.3)."""
    kappa: str = flag("cap", "schedule of kappa, the probability that a token is not noised again",
                      SCHEDULES)
    eta: float = flag(0.02, "how much is noised again; 0 is ancestral", least=0, most=1)
    rewrites = True

    def __call__(self, process, denoiser, z, frozen, steps, to_probs=probabilities):
        rows = plan(process, self.kappa, self.eta, steps)  # 3 x (steps,)
        for t, s, kappa in zip(*(row.to(z.device) for row in rows)):
            s, t = s.expand(len(z), 1), t.expand(len(z), 1)  # (B, 1) each
            z = psi_step(process, denoiser, z, frozen, s, t, kappa, to_probs)  # (B, L)
            yield z
