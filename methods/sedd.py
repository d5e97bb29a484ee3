"""
Chapter 6. SEDD (arXiv:2310.16834): learn ratios of probabilities in place of a mean.

The score of a noisy text says how much likelier it would be, at the same noise, with another symbol
at one position. The network outputs log s. With q = alpha x + b, the distribution of one token,

    score      s(y) = p_t(z with y in its place) / p_t(z),   s(z) = 1                          (6.1)
    loss       l = r_t(z) sum_{y != z} [ s(y) - r(y) log s(y) + r(y) (log r(y) - 1) ],         (6.2)
               r(y) = q(y) / q(z),   r_t(z) the rate of jumps into z (diffusion.py)
    of a mean  s(y) = (alpha x_theta + b)(y) / (alpha x_theta + b)(z)                          (6.3)

The score entropy (6.2) is least at the true ratios, and its mean bounds -log p(x) for any network.
For the score of a mean, (6.3), it is the bound (0.2), and the analytic step of samplers/euler.py is
the reverse step (0.3): a mean is a score whose ratios fit together. The ratios of a network need
not fit. Under masks let m(y) = s(y) (1 - alpha) / alpha, a mean but for its sum S. Then

    l of (6.2)  =  the bound of mdlm for m / S  +  -alpha' / (1 - alpha) ( S - 1 - log S )

penalizes any S but 1, and (6.4) may give negative probabilities where it opens more than there is.
The samplers set them to zero and normalize the rest.

Under uniform noise the true score of pure noise is 1. A network that is off by d pays about d^2 / 2
times -log alpha(1) for the end of the noise, which is infinite for alpha(1) = 0. So the noise stops
before, and the bound has another term, KL( q(z_1 | x) || p(z_1) ), for what is left of x.
"""
import math
from dataclasses import dataclass
from functools import partial

import torch

from diffusion import (
    Absorbing,
    Ancestral,
    Uniform,
    ancestral,
    changeable,
    corrupt,
    jump_rate,
    probabilities,
    stratified,
)
from flags import flag, load_row
from methods.base import Method, skip_texts, to_float32
from model import select_rows

GRAPHS = {"absorbing": Absorbing, "uniform": Uniform}
LAST = {"loglinear": 1e-3, "geometric": math.exp(1e-4 - 20)}  # alpha(1) of uniform noise
REVERSE = {"ancestral": "samplers.euler:Analytic"}  # (0.3) in ratios; imported when it is used


class SEDDSchedule:
    """A process on SEDD's schedules: `process`, whose alpha is 1 - t, at the time tau(t).

        loglinear    -log alpha = -log(1 - t): the share of noise grows linearly
        geometric    -log alpha = 20^t / 10000^(1-t), less its value at t = 0: almost no noise for
                     half of all t

    (As published, geometric has one wrong token in 10,000 at t = 0, which the bound leaves out.)
    Masks end at alpha(1) = 0, uniform noise at LAST, for the reason given above.
    """

    def __init__(self, process, schedule):
        self.process, self.schedule = process, schedule
        self.n_tokens, self.V, self.mask = process.n_tokens, process.V, process.mask
        self.text_stays, self.continuous = process.text_stays, True
        self.last = LAST[schedule] if self.mask is None else 0.0

    def tau(self, t):
        """-> tau(t) and its derivative, same shape as t"""
        if self.schedule == "loglinear":
            return (1 - self.last) * t, (1 - self.last) * torch.ones_like(t)
        ratio, stretch = math.log(20 / 1e-4), (1 - self.last) / (1 - LAST["geometric"])
        sigma = 1e-4 * torch.expm1(t * ratio)  # 20^t / 10000^(1-t) less its value at t = 0
        return -torch.expm1(-sigma) * stretch, (sigma + 1e-4) * ratio * torch.exp(-sigma) * stretch

    def times(self, v):
        """Uniform v to times t, and dt/dv, their weight.

        Little noise weighs 1/t in (6.2), so small t are drawn more often, as in draw_bound of
        methods/udlm.py. The geometric schedule does so by itself.
        """
        if self.schedule == "geometric":
            return v, torch.ones_like(v)
        t = torch.sin(math.pi / 2 * v).square().clamp(1e-6, 1 - 1e-6)  # (B, 1)
        return t, math.pi * (t * (1 - t)).sqrt()

    def alpha(self, t):
        return self.process.alpha(self.tau(t)[0])

    def dalpha(self, t):
        tau, speed = self.tau(t)
        return self.process.dalpha(tau) * speed

    def b(self, t, v):
        return self.process.b(self.tau(t)[0], v)

    def db(self, t, v):
        tau, speed = self.tau(t)
        return self.process.db(tau, v) * speed

    def draw_noise(self, t, z):
        return self.process.draw_noise(t, z)  # (B, L)

    def prior_kl(self):
        """KL( q(z_1 | x) || p(z_1) ), the same for every x. -> nats, a number"""
        if self.mask is not None:
            return 0.0
        right, wrong = self.last + (1 - self.last) / self.V, (1 - self.last) / self.V
        return right * math.log(self.V * right) + (self.V - 1) * wrong * math.log1p(-self.last)


def score_of_mean(process, x_theta, z, t):
    """(6.3). x_theta (..., n_tokens), z and t (...) -> s (..., V)"""
    symbols = torch.arange(process.V, device=z.device)  # (V,)
    p = process.b(t[..., None], symbols)  # (..., V)
    p[..., :process.n_tokens] += process.alpha(t)[..., None] * x_theta  # (..., n_tokens)
    return p / p.gather(-1, z[..., None])  # (..., V)


def score_entropy(process, log_s, x, z, t):
    """(6.2) for masks or uniform noise, where r(y) is the same for all y but x. -> (N,) nats

    log_s (N, V); x, z, t (N,), t in float64; under masks z is a mask. Written as r (e^d - 1 - d)
    with d = log s - log r, which is never a small difference of large numbers.
    """
    alpha, noise = process.alpha(t), process.b(t, torch.zeros_like(z))  # (N,) each
    q_z = alpha * (z == x) + process.b(t, z)  # (N,)
    ratios = noise / q_z, (alpha + noise) / q_z, jump_rate(process, z, t)  # (N,) each
    low, high, rate = (a.to(log_s.dtype)[:, None] for a in ratios)  # (N, 1) each

    def entropy(log_s, r):
        d = log_s - torch.where(r > 0, r, 1.0).log()  # under masks r is 0 for all y but x
        return torch.where(r > 0, r * (d.expm1() - d), log_s.exp())

    at_x = entropy(log_s.gather(-1, x[:, None]), high)  # (N, 1) 0 if x = z
    terms = entropy(log_s, low).scatter(-1, z[:, None], 0.0)  # (N, V)
    return rate[:, 0] * terms.scatter(-1, x[:, None], at_x).sum(-1)  # (N,)


@dataclass(eq=False)
class SEDD(Method):
    """--method sedd: trained on the bound itself. Under masks the network outputs, as published,
    log s + log( n (1 - alpha) / alpha ) = log(n m), which has the same size at every time."""
    also_called = ("score", "ratio")
    transition: str = flag("absorbing", "what noise does", [*GRAPHS], fixed=True)
    noise_schedule: str = flag("loglinear", "how fast the noise grows", [*LAST], fixed=True)
    predicts = "ratios of probabilities"
    uses_time, scores_ratios, fixed_positions = True, True, False
    samplers, classifier_process = ("ancestral", "analytic", "euler"), None
    public_layout = "sedd"
    public_flags = {"transition": "absorbing", "noise_schedule": "loglinear", "time_input": "sigma"}

    def __post_init__(self):
        self.process = SEDDSchedule(GRAPHS[self.transition](self.n_tokens), self.noise_schedule)
        self.vocab_size = self.process.V

    def scale(self, t):
        """log s less what the network outputs. -> shape of t"""
        if self.vocab_size == self.n_tokens:
            return torch.zeros_like(t)
        alpha = self.process.alpha(t)
        return (alpha / (1 - alpha) / self.n_tokens).log()

    def log_score(self, denoiser, z, t, at):
        """log of (6.1) at the tokens `at` (B, L); t (B, 1) float64 -> (N, V)"""
        logits = to_float32(denoiser(z, t.float(), at=at))  # (N, V)
        log_s = logits + self.scale(t).expand(z.shape)[at][:, None].to(logits.dtype)  # (N, V)
        return log_s.scatter(-1, z[at][:, None], 0.0)  # (N, V)

    def logits_of(self, x_theta, z, t):
        """The logits of a network with the score (6.3). x_theta (..., n_tokens) -> (..., V)"""
        t = t.double().expand(z.shape).clamp(max=1 - 1e-9)  # (...)
        return score_of_mean(self.process, x_theta, z, t).log() - self.scale(t)[..., None]

    def nelbo(self, denoiser, x, frozen=None):
        """One draw of (6.2), and the term for what is left of x at t = 1. -> (B, L) nats"""
        t, weight = self.process.times(stratified(len(x), x.device).double())  # (B, 1) each
        z = corrupt(self.process, x, t, frozen)  # (B, L)
        at = changeable(self.process, z, frozen)  # (B, L)
        log_s = self.log_score(denoiser, z, t, at)  # (N, V)
        nats = score_entropy(self.process, log_s, x[at], z[at], t.expand(x.shape)[at])  # (N,)
        weight = weight.to(nats.dtype).expand(x.shape)[at]  # (N,)
        nats = nats * weight + self.process.prior_kl()  # (N,)
        zeros = torch.zeros(x.shape, dtype=nats.dtype, device=x.device)  # (B, L)
        return zeros.masked_scatter(at, nats)  # (B, L)

    loss = nelbo

    def sample(self, denoiser, z, frozen, steps, sampler=ancestral, to_probs=probabilities,
               window=None, end=None):
        """From noise to text; yields z after each step. The ancestral step is the analytic one."""
        if isinstance(sampler, Ancestral):
            sampler = load_row(REVERSE, "ancestral")()
        score = partial(self.log_score, denoiser)
        return sampler(self.process, score, z, frozen, steps, to_probs)

    def oracle(self, language):
        """The leave-one-out distribution, as the logits of a network with its score."""
        mean = super().oracle(language)

        def denoiser(z, t, at=None, label=None, **layout):
            x_theta = mean(z, t, None, label).exp()  # (B, L, n_tokens)
            return select_rows(self.logits_of(x_theta, z, t), at)
        return skip_texts(denoiser)
