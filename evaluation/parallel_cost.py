"""
Chapter 24. What opening masks in parallel costs, exactly: KL between model and sampler.

A sampler that chooses masks before it draws them writes x with the probability q(x) of (24.1),
along the one path on which x comes about. Follow that path, and add up the logarithms:

    KL(q || p)  =  E_q [ log q(x) - log p(x) ]     over texts that the sampler writes         (24.4)
    KL(p || q)  =  E_p [ log p(x) - log q(x) ]     over texts of p, opened in its order       (24.5)

Both are exact if what opens follows from what is open. If that is random, q(x) is conditioned on
the order, and both are upper bounds of the KL of texts, since KL is convex. On real text p is
unknown, but log q(x) of one mask at a time less that of several is the loss by opening them at
once, with one network and without an oracle.

Where noise makes wrong words, many paths lead to one text. The KL between the paths of the sampler,
in steps of (0.3), and those of the noise bounds that of the texts from above. Its terms are

    log q(path) - log p(path | x) = log prior(z_1) + sum over steps, l: log p_s(z_s)/p_t(z_t),
    p_t = alpha_t x_theta(z_t) + b_t                                                          (24.6)

and under masks those of (24.4). A sampler whose q(x) cannot be computed still has a lower bound, by
log p of its texts alone (Donsker and Varadhan):

    KL(q || p) >= max_c  c E_q log p(x) - log E_p p(x)^c                                      (24.7)
"""
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from diffusion import categorical, probabilities, reverse
from evaluation.likelihood import mean_error
from samplers.generate import CallCounter


@dataclass
class Walk:
    """Texts, the probability with which a sampler writes each, and what that took per text."""
    x: object  # (B, L) ids
    log_q: object  # (B,) nats
    calls: float  # network calls in which a text is read
    positions: float  # positions scored


class Scorer(CallCounter):
    """A denoiser that keeps the logits of its last call."""

    def __init__(self, denoiser):
        super().__init__(denoiser)
        self.supports_fused_head = False

    def __call__(self, z, t, at=None, **layout):
        self.logits, self.at = super().__call__(z, t, at=at, **layout), at  # (N, V), (B, L)
        return self.logits

    def log_p(self, x, opened, to_probs, n_tokens):
        """log of the probability of the words x (B, L) where they `opened` (B, L), else 0. -> (B,)
        """
        rows = opened[self.at]  # (N,)
        p = to_probs(self.logits[rows][:, :n_tokens]).gather(-1, x[opened][:, None])[:, 0]  # (n,)
        return p.new_zeros(x.shape).masked_scatter(opened, p.log()).sum(-1)  # (B,)


def follow(method, denoiser, z, frozen, steps, sampler, to_probs=probabilities, x=None):
    """Write texts from noise z (B, L), or draw tokens so that the text becomes x (B, L). -> Walk

    A sampler goes on from the tensor that it yields, so putting other words in there is all it
    takes to lead it to x.
    """
    noise = method.opens_masks or sampler.draws_once
    whole = noise and not method.left_to_right and method.samplers is None
    if not sampler.chooses_first or not whole:
        raise ValueError(f"the law of {type(sampler).__name__} with {method.name} is not (24.1)")
    scorer = Scorer(denoiser)
    log_q = torch.zeros(len(z), dtype=torch.float64, device=z.device)  # (B,)
    before = z
    for z in method.sample(scorer, z.clone(), frozen, steps, sampler, to_probs):
        opened = scorer.at if sampler.draws_once else (
            (before == method.process.mask) & (z != method.process.mask))  # (B, L)
        if x is not None:
            z[opened] = x[opened]
        if opened.any():
            log_q += scorer.log_p(z, opened, to_probs, method.n_tokens)  # (B,)
        before = z.clone()  # (B, L)
    return Walk(before, log_q, scorer.texts / len(z), scorer.positions / len(z))


def from_nothing(method, n, length):
    """Noise, and nothing that is given. -> z (n, length), frozen (n, length)"""
    z = method.prior((n, length))  # (n, length)
    return z, torch.zeros_like(z, dtype=torch.bool)  # (n, length)


def reverse_kl(walk, log_p):
    """(24.4), in nats per token, and its standard error. log_p (B,) of the walk's texts"""
    return mean_error((walk.log_q - log_p) / walk.x.shape[1])


def forward_kl(walk, log_p):
    """(24.5), the same for texts of p."""
    return mean_error((log_p - walk.log_q) / walk.x.shape[1])


def least_kl(ours, theirs, few=64):
    """(24.7) in nats per text, from log p of samples of q (n,) and of p (m,).

    c is such that the weights p(x)^c are those of at least `few` texts of p: a mean over fewer is
    too small, and the bound too large.
    """
    best, scale = 0.0, theirs.std().item()
    for c in torch.linspace(-3, 3, 121).tolist():
        w = c / scale * (theirs - theirs.mean())  # (m,)
        if 2 * w.logsumexp(0) - (2 * w).logsumexp(0) > math.log(few):
            gain = c / scale * (ours - theirs.mean()).mean() - (w.logsumexp(0) - math.log(len(w)))
            best = max(best, gain.item())
    return best


# ---- paths of a process whose noise makes wrong words

def noise_step(process, z, s, t):
    """q(z_t | z_s) for each symbol. z (B, L), s < t (B, 1) -> (B, L, V)"""
    symbols = torch.arange(process.V, device=z.device)  # (V,)
    alpha_ts = (process.alpha(t) / process.alpha(s))[..., None]  # (B, 1, 1)
    new = process.b(t[..., None], symbols) - alpha_ts * process.b(s[..., None], symbols)
    return alpha_ts * F.one_hot(z, process.V) + new  # (B, L, V)


def path_ratio(process, x_theta, z_t, z_s, t, s):
    """log p_s(z_s)/p_t(z_t), summed over tokens. x_theta (B, L, V); t, s (B, 1) -> (B,)"""
    log_p = lambda z, t: torch.log(process.alpha(t) * x_theta.gather(-1, z[..., None])[..., 0]
                                   + process.b(t, z))  # (B, L)
    return (log_p(z_s, s) - log_p(z_t, t)).sum(-1)  # (B,)


@torch.no_grad()
def path_costs(process, denoiser, x, steps, to_probs=probabilities):
    """(24.6) both ways: for texts that are sampled, and for the texts x (B, L).

    -> the samples (B, L), log q(path) - log p(path | text) of them (B,), and of x (B,)
    """
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)[:, None, None]  # (steps + 1, 1, 1)
    grid = [(t.expand(len(x), 1), s.expand(len(x), 1)) for t, s in zip(times[:-1], times[1:])]

    def predict(z, t):
        p = to_probs(denoiser(z, t.float())[..., :process.n_tokens])  # (B, L, n_tokens)
        return F.pad(p, (0, process.V - process.n_tokens))  # (B, L, V)
    z, noisy = process.draw_noise(times[0], x), x  # (B, L) each
    log_prior = process.b(times[0], z).log().sum(-1)  # (B,)
    ours, theirs = log_prior, log_prior
    for t, s in grid:
        x_theta = predict(z, t)  # (B, L, V)
        drawn = categorical(reverse(process, x_theta, z, s, t))  # (B, L)
        ours = ours + path_ratio(process, x_theta, z, drawn, t, s)  # (B,)
        z = drawn
    for t, s in reversed(grid):
        later = categorical(noise_step(process, noisy, s, t))  # (B, L)
        theirs = theirs + path_ratio(process, predict(later, t), later, noisy, t, s)  # (B,)
        noisy = later
    return z, ours, theirs
