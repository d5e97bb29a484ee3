"""
Chapter 6. Steps by ratios of probabilities, for methods that learn them (methods/sedd.py).

    analytic   p(z_s = y | z) = q(z_t = z | z_s = y) ( s(y) - c(y) sum_v s(v) ) / alpha_ts     (6.4)
    Euler      p(z_s = y | z) = [y = z] + (t - s) r_t(z) ( s(y) - [y = z] sum_v s(v) )         (6.5)

with the score s(y) of (6.1), alpha_ts = alpha_t / alpha_s, c = b_t - alpha_ts b_s, and r_t(z) the
rate of jumps into z in (0.2). For the score of a mean, (6.4) is the reverse step (0.3). The ratios
of a network need not fit together, so either may give a symbol less than 0: that counts as 0, and
the rest is normalized.
"""
from dataclasses import dataclass

import torch

from diffusion import Sampler, categorical, changeable, jump_rate, probabilities


def analytic_probs(process, score, z, s, t):
    """(6.4). score (N, V) float64, z (N,), times () -> (N, V), which sum to 1 and may be below 0"""
    symbols = torch.arange(process.V, device=z.device)  # (V,)
    alpha_ts = process.alpha(t) / process.alpha(s)  # ()
    c = process.b(t, symbols) - alpha_ts * process.b(s, symbols)  # (V,)
    back = (symbols == z[:, None]) * alpha_ts + c[z][:, None]  # (N, V) q(z_t = z | z_s = y)
    return back * (score - c * score.sum(-1, keepdim=True)) / alpha_ts  # (N, V)


def euler_probs(process, score, z, s, t):
    """(6.5), as above."""
    stay = torch.arange(process.V, device=z.device) == z[:, None]  # (N, V)
    rate = jump_rate(process, z, t)[:, None]  # (N, 1)
    return stay + (t - s) * rate * (score - stay * score.sum(-1, keepdim=True))  # (N, V)


def draw_jumps(p, z, to_probs):
    """One draw from p (N, V) for tokens z (N,), with 0 where p is below 0. -> (N,)

    A token first jumps or stays, and then a symbol is drawn, so that to_probs, with its
    temperature, changes which symbols are chosen, and not how many tokens jump.
    """
    p = p.clamp(min=0)  # (N, V)
    u = torch.rand(len(p), dtype=torch.float64, device=p.device) * p.sum(-1)  # (N,)
    jumps = u >= p.gather(-1, z[:, None])[:, 0]  # (N,)
    to = p[jumps].scatter(-1, z[jumps][:, None], 0.0)  # (n, V)
    return z.masked_scatter(jumps, categorical(to_probs(to.log())))  # (N,)


@dataclass(eq=False)
class Euler(Sampler):
    """--sampler euler: steps of (6.5).

    No bound on the rates is known in advance, so the network is called at all tokens that can
    change. The last step is (6.4) among text symbols.
    """
    step_probs = staticmethod(euler_probs)

    def fits(self, method):
        if not method.scores_ratios:
            return f"steps by ratios of probabilities, which {method.name} does not predict"

    @torch.no_grad()
    def __call__(self, process, log_score, z, frozen, steps, to_probs=probabilities):
        start = 1.0 if process.mask is None else 0.999  # at 1, all scores of masks are 0
        times = torch.linspace(start, 0, steps + 1, dtype=torch.float64,
                               device=z.device)  # (steps + 1,)
        for i, (t, s) in enumerate(zip(times[:-1], times[1:])):
            at, last = changeable(process, z, frozen), i + 1 == steps  # (B, L)
            if at.any():
                score = log_score(z, t.expand(len(z), 1), at).double().exp()  # (N, V)
                p = (analytic_probs if last else self.step_probs)(process, score, z[at], s, t)
                if last:
                    p[:, process.n_tokens:] = 0
                z = z.masked_scatter(at, draw_jumps(p, z[at], to_probs))  # (B, L)
            yield z


@dataclass(eq=False)
class Analytic(Euler):
    """--sampler analytic: steps of (6.4), which are (0.3) for the score of a mean."""
    step_probs = staticmethod(analytic_probs)
