"""
Chapter 15. The Gaussian of latents: what z, h, v and eps have to do with each other, and the table
of the exact autoencoder. Where latents are Gaussian themselves, h ~ N(m, C), everything is known:

    h'(z) = m + alpha C (alpha^2 C + sigma^2)^-1 (z - alpha m),                              (15.10)
    E |h - h'|^2 = tr (C^-1 + SNR)^-1
"""
import torch
import torch.nn.functional as F

from diffusion import probabilities
from gaussian import EmbeddingSpace, signal

SEED = 15  # of the table of the exact autoencoder


class LatentSpace(EmbeddingSpace):
    """The process: vectors of an encoder, so there is no table."""
    vectors = True

    def __init__(self, n_tokens, schedule):
        torch.nn.Module.__init__(self)
        self.n_tokens = self.V = n_tokens
        self.schedule = schedule

    def refuses(self, walk):
        """Why a walk does not fit: there are no rows to move to."""
        if walk.clamp:
            return "moves to rows of a table, and latents have none: leave out --clamp"
        if walk.last != "draw":
            return "has words from a decoder here, which are drawn: leave out --last"


def velocity(h, eps, gamma):
    """(15.3). h, eps (..., d), gamma (...) -> (..., d)"""
    alpha, sigma = (a[..., None] for a in signal(gamma))  # (..., 1) each
    return alpha * eps - sigma * h


def from_velocity(z, v, gamma):
    """h of (15.3). z, v (..., d), gamma (...) -> (..., d)"""
    alpha, sigma = (a[..., None] for a in signal(gamma))  # (..., 1) each
    return alpha * z - sigma * v


def to_velocity(z, h, gamma):
    """v of (15.3) from z and h. z, h (..., d), gamma (...) -> (..., d)"""
    alpha, sigma = (a[..., None] for a in signal(gamma))  # (..., 1) each
    return (alpha * z - h) / sigma


def to_float(a):
    """Losses are sums, for which bf16 is too coarse."""
    return a if a.dtype == torch.float64 else a.float()


def spread_over(nats, at):
    """nats (B,) of texts, in equal shares at their words `at` (B, L), 0 elsewhere. -> (B, L)"""
    return nats[:, None] * at / at.sum(-1, keepdim=True).clamp(min=1)  # (B, L)


def as_likelihood(evidence):
    """exp of log-evidence (B, L, V), 1 for the likeliest word."""
    return (evidence - evidence.amax(-1, keepdim=True)).exp()  # (B, L, V)


def one_hot(words, n):
    """The evidence of words that are known; blanks count as the last word. (B, L) -> (B, L, n)"""
    return F.one_hot(words.clamp(max=n - 1), n).double()  # (B, L, n)


def likeliest(logits):
    """For `draw_from`: no chance. (N, V) -> (N, V) float64"""
    return probabilities(logits, temperature=0)


def code_table(n, d):
    """A row for each of n words, of norm sqrt(d): at right angles, if n <= d. -> (n, d) float64"""
    generator = torch.Generator().manual_seed(SEED)
    rows = torch.randn(n, d, dtype=torch.float64, generator=generator)  # (n, d)
    if n <= d:
        rows = torch.linalg.qr(rows.T)[0].T  # (n, d)
    return d ** 0.5 * F.normalize(rows, dim=-1)  # (n, d)
