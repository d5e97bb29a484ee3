"""
SEDD (arXiv:2310.16834): learn ratios of probabilities in place of a mean.

The score of a noisy text says how much likelier it would be, at the same noise, with another symbol at one place. With
a free network for it, and q = alpha x + b the law of one token,

    score      s(y) = p_t(z with y in its place) / p_t(z),   s(z) = 1; the network gives log s                   (31)
    loss       l = r_t(z) sum_{y != z} [ s(y) - r(y) log s(y) + r(y) (log r(y) - 1) ],   r(y) = q(y) / q(z)      (32)
    of a mean  s(y) = (alpha x_theta + b)(y) / (alpha x_theta + b)(z)                                            (33)
    analytic   p(z_s = y | z) = q(z_t = z | z_s = y) ( s(y) - c(y) sum_v s(v) ) / alpha_ts                       (34)
    Euler      p(z_s = y | z) = [y = z] + (t - s) r_t(z) ( s(y) - [y = z] sum_v s(v) )                           (35)

with alpha_ts = alpha_t / alpha_s, c = b_t - alpha_ts b_s, and r_t(z) the rate of jumping into z, of diffusion.py. The
score entropy (32) is least at the true ratios, and in the mean it bounds -log p(x) whatever the network says. With the
score of a mean it *is* the bound (2), and (34) *is* the reverse step (3): a mean is a score whose ratios fit together.
A free one need not fit. Under masks, let m(y) = s(y) (1 - alpha) / alpha, a mean but for its sum S; then

    l of (32)  =  l of masked.py for the law m / S  +  -alpha' / (1 - alpha) ( S - 1 - log S )

so that it pays for every S but 1; and (34) may give less than nothing to a symbol, where it opens more than there is.
Both samplers put zero there, and share out the rest. Under uniform noise the true score of pure noise is 1 everywhere;
a network that is off by d pays about d^2 / 2 times the rate -alpha' / alpha for as long as the noise lasts, in all
-log alpha(1) times that. At alpha(1) = 0 that is infinite, so here the noise stops before, and the bound has one term
more, KL( q(z_1 | x) || p(z_1) ), for what is left of x then.
"""
import math
from functools import partial

import torch

from data import BadInput
from diffusion import ancestral, categorical, corrupt, probabilities, stratified
from masked import Absorbing
from uniform import Uniform

GRAPHS = {"absorbing": Absorbing, "uniform": Uniform}
LAST = {"loglinear": 1e-3, "geometric": math.exp(1e-4 - 20)}         # alpha(1) under uniform noise, as published


class Clock:
    """A process on SEDD's clocks: at time t it is where `process`, of alpha = 1 - t, is at tau(t). As -log alpha,

        loglinear    -log(1 - t)             the share of noise grows evenly
        geometric    20^t / 10000^(1-t)      the noise grows by a factor: half of the times have next to none

    both counted from 0 at t = 0. (As published, the second has one token in 10,000 wrong there, and leaves that out of
    the bound.) Masks go on to alpha(1) = 0; uniform noise stops at LAST, for the reason given above.
    """

    def __init__(self, process, schedule):
        self.process, self.schedule, self.n_tokens, self.V = process, schedule, process.n_tokens, process.V
        self.mask = getattr(process, "mask", None)
        self.last = LAST[schedule] if self.mask is None else 0.0

    def tau(self, t):
        """-> tau(t), and its derivative"""
        if self.schedule == "loglinear":
            return (1 - self.last) * t, (1 - self.last) * torch.ones_like(t)
        ratio, stretch = math.log(20 / 1e-4), (1 - self.last) / (1 - LAST["geometric"])
        sigma = 1e-4 * torch.expm1(t * ratio)                            # 20^t / 10000^(1-t) less what it is at t = 0
        return -torch.expm1(-sigma) * stretch, (sigma + 1e-4) * ratio * torch.exp(-sigma) * stretch

    def times(self, v):
        """v, even in (0, 1), to times t, and dt/dv, their weight. What little noise does weighs 1/t in (32): so look
        there more often, as uniform.py does. The second clock does so by itself."""
        if self.schedule == "geometric":
            return v, torch.ones_like(v)
        t = torch.sin(math.pi / 2 * v).square().clamp(1e-6, 1 - 1e-6)                               # (B, 1)
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
        return self.process.draw_noise(t, z)

    def prior_kl(self):
        """KL( q(z_1 | x) || p(z_1) ), p(z_1) being masks, or uniform: the same for every x. -> nats, a number"""
        right, wrong = self.last + (1 - self.last) / self.V, (1 - self.last) / self.V
        kl = right * math.log(self.V * right) + (self.V - 1) * wrong * math.log1p(-self.last)
        return kl if self.mask is None else 0.0


def score_of_mean(process, x_theta, z, t):
    """Eq. (33). x_theta (..., n_tokens), z and t (...) -> s (..., V)"""
    symbols = torch.arange(process.V, device=z.device)                                              # (V,)
    p = process.b(t[..., None], symbols)                                                            # (..., V)
    p[..., :process.n_tokens] += process.alpha(t)[..., None] * x_theta                              # (..., n_tokens)
    return p / p.gather(-1, z[..., None])                                                           # (..., V)


def jump_rate(process, z, t):
    """r_t(z), how fast tokens jump into z. -> (N,)"""
    return process.db(t, z) - process.dalpha(t) / process.alpha(t) * process.b(t, z)                # (N,)


def score_entropy(process, log_s, x, z, t):
    """Eq. (32) for masks or uniform noise, where r(y) is one number for all y but x. z is nowhere clean under masks.

    log_s (N, V); x, z, t (N,), t in float64 -> (N,) nats. As r (e^d - 1 - d), d = log s - log r: a small difference of
    large numbers is never taken.
    """
    alpha, noise = process.alpha(t), process.b(t, torch.zeros_like(z))                              # (N,)
    q_z = alpha * (z == x) + process.b(t, z)                                                        # (N,)
    low, high, rate = (a.to(log_s.dtype)[:, None] for a in
                       (noise / q_z, (alpha + noise) / q_z, jump_rate(process, z, t)))              # (N, 1) each

    def entropy(log_s, r):
        d = log_s - torch.where(r > 0, r, 1.0).log()                     # r is 0 for all but x where noise is masks
        return torch.where(r > 0, r * (d.expm1() - d), log_s.exp())

    at_x = entropy(log_s.gather(-1, x[:, None]), high)                                              # (N, 1) 0 at x = z
    terms = entropy(log_s, low).scatter(-1, z[:, None], 0.0).scatter(-1, x[:, None], at_x)          # (N, V)
    return rate[:, 0] * terms.sum(-1)                                                               # (N,)


def analytic_law(process, s, z, earlier, t):
    """Eq. (34). s (N, V) float64, z (N,), times () -> (N, V): rows sum to 1, and may dip below 0"""
    symbols = torch.arange(process.V, device=z.device)                                              # (V,)
    alpha_ts = process.alpha(t) / process.alpha(earlier)                                            # ()
    c = process.b(t, symbols) - alpha_ts * process.b(earlier, symbols)                              # (V,)
    back = (symbols == z[:, None]) * alpha_ts + c[z][:, None]                                       # (N, V)
    return back * (s - c * s.sum(-1, keepdim=True)) / alpha_ts                                      # (N, V)


def euler_law(process, s, z, earlier, t):
    """Eq. (35). As above."""
    stay = torch.arange(process.V, device=z.device) == z[:, None]                                   # (N, V)
    return stay + (t - earlier) * jump_rate(process, z, t)[:, None] * (s - stay * s.sum(-1, keepdim=True))   # (N, V)


def draw(p, z, law):
    """What becomes of z (N,) under p (N, V), what is below 0 left out. First whether it jumps, then where to: so that
    `law`, with its temperature, chooses among the symbols, and not how many tokens move. -> (N,)"""
    p = p.clamp(min=0)                                                                              # (N, V)
    u = torch.rand(len(p), dtype=torch.float64, device=p.device) * p.sum(-1)                        # (N,)
    jumps = u >= p.gather(-1, z[:, None])[:, 0]                                                     # (N,)
    to = p[jumps].scatter(-1, z[jumps][:, None], 0.0)                                               # (n, V)
    return z.masked_scatter(jumps, categorical(law(to.log())))                                      # (N,)


@torch.no_grad()
def walk(step_law, process, log_score, z, frozen, steps, law=probabilities):
    """From t = 1 to 0 in equal steps; yields z after each. Any token may jump, and how fast has no limit that were
    known before, so all are asked but those given (under masks: the masks). The last step is (34) among text alone."""
    start = 1.0 if process.mask is None else 0.999       # masks: at 1 all scores are 0; at 0.999 they say as much
    times = torch.linspace(start, 0, steps + 1, dtype=torch.float64, device=z.device)               # (steps + 1,)
    for i, (t, s) in enumerate(zip(times[:-1], times[1:])):
        at = open_to_change(process, z, frozen)                                                     # (B, L)
        if at.any():
            score = log_score(z, t.expand(len(z), 1), at).double().exp()                            # (N, V)
            p = (step_law if i + 1 < steps else analytic_law)(process, score, z[at], s, t)          # (N, V)
            if i + 1 == steps:
                p[:, process.n_tokens:] = 0
            z = z.masked_scatter(at, draw(p, z[at], law))                                           # (B, L)
        yield z


analytic, euler = partial(walk, analytic_law), partial(walk, euler_law)


def open_to_change(process, z, frozen):
    """Where the network is asked: at the masks, or anywhere. -> (B, L)"""
    at = z == process.mask if process.mask is not None else torch.ones_like(z, dtype=torch.bool)   # (B, L)
    return at if frozen is None else at & ~frozen                                                   # (B, L)


class SEDD:
    """--method sedd. Trains on the bound itself. Under masks the network gives log s + log( n (1 - alpha) / alpha ),
    as published: what is left is m of the docstring, of size 1/n at every time."""

    uses_time = True
    mask_mod = None

    def __init__(self, n_tokens, transition="absorbing", noise_schedule="loglinear"):
        if transition not in GRAPHS:
            raise BadInput(f"--transition {transition} is for d3pm: sedd has absorbing and uniform")
        self.process = Clock(GRAPHS[transition](n_tokens), noise_schedule)
        self.n_tokens, self.vocab_size = n_tokens, self.process.V

    def scale(self, t):
        """What the network leaves out of log s. -> shape of t"""
        if self.vocab_size == self.n_tokens:
            return torch.zeros_like(t)
        alpha = self.process.alpha(t)
        return (alpha / (1 - alpha) / self.n_tokens).log()

    def log_score(self, denoiser, z, t, at):
        """log of (31) at the tokens `at`, t (B, 1) float64. -> (N, V)"""
        logits = denoiser(z, t.float(), at=at)                                                      # (N, V)
        logits = logits if logits.dtype == torch.float64 else logits.float()                        # (N, V)
        log_s = logits + self.scale(t).expand(z.shape)[at][:, None].to(logits.dtype)                # (N, V)
        return log_s.scatter(-1, z[at][:, None], 0.0)                                               # (N, V)

    def logits_of(self, x_theta, z, t):
        """What a network must give to have the score (33) of a mean: the oracle's. (..., n_tokens) -> (..., V)"""
        t = t.double().expand(z.shape).clamp(max=1 - 1e-9)                                          # (...)
        return score_of_mean(self.process, x_theta, z, t).log() - self.scale(t)[..., None]          # (..., V)

    def nelbo(self, denoiser, x, frozen=None):
        """One draw of (32), and the term for what is left of x at t = 1. -> (B, L) nats"""
        t, weight = self.process.times(stratified(len(x), x.device).double())                       # (B, 1) each
        z = corrupt(self.process, x, t, frozen)                                                     # (B, L)
        at = open_to_change(self.process, z, frozen)                                                # (B, L)
        log_s = self.log_score(denoiser, z, t, at)                                                  # (N, V)
        nats = score_entropy(self.process, log_s, x[at], z[at], t.expand(x.shape)[at])              # (N,)
        nats = nats * weight.to(nats.dtype).expand(x.shape)[at] + self.process.prior_kl()           # (N,)
        return torch.zeros(x.shape, dtype=nats.dtype, device=x.device).masked_scatter(at, nats)     # (B, L)

    loss = nelbo

    def prior(self, shape, device="cpu"):
        return self.process.draw_noise(1.0, torch.zeros(shape, dtype=torch.long, device=device))    # (B, L)

    def sample(self, denoiser, z, frozen, steps, sampler=ancestral, law=probabilities):
        """From noise to text; yields z after each step. The ancestral step of other methods is (34) here."""
        sampler = analytic if sampler is ancestral else sampler
        return sampler(self.process, partial(self.log_score, denoiser), z, frozen, steps, law)
