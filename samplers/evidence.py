"""
Chapter 14. From no evidence to text: four steps of one channel, (14.1).

Each step goes from lam_t to lam_s > lam_t, with d = lam_s - lam_t and e_hat = the network's law:

    bfn        y_s = y_t + d e_w + sqrt(d) eps,   w ~ e_hat drawn anew for each token         (14.8)
    sde        y_s = y_t + d e_hat + sqrt(d) eps                                              (14.9)
    ode        y_s = lam_s e_hat + sqrt(lam_s / lam_t) (y_t - lam_t e_hat)                   (14.10)
    renoise    y_s = lam_s e_w + sqrt(lam_s) eps                                             (14.11)

The last call, at lam1, draws the words. (14.8) is the process that (14.5) bounds. In many steps the
first three have the model's own distribution. In other coordinates they are (13.6), (13.4) and
(13.5): evidence coordinates make them short, and regular at the start, where y = 0.

renoise, of SSD-LM and TESS, keeps nothing of y_t. At much evidence it is a Gibbs sampler that
redraws the doubtful words, so it never leaves the modes of a language: nearly right, and biased.
Other projections than a draw are biased in any language, and look better than it: texts that are
likelier than the language's own. In the coordinates of (14.13) `multi-hot` puts all words of a
nucleus at k, and `uneven` the likeliest, and others as far below it as their logits are.
"""
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from diffusion import Sampler, categorical, draw_from, probabilities
from flags import flag
from gaussian import LEAST
from methods.evidence import FIRST, Evidence

K = 5.0  # k of (14.13) for methods without one: that of SSD-LM and TESS
NUCLEUS = 0.9  # of multi-hot, without --top_p: that of SSD-LM's script


@dataclass(eq=False)
class EvidenceWalk(Sampler):
    """A sampler of log-evidence. It yields the likeliest words (B, L) after each step; the last
    ones are drawn."""
    last: str = flag("draw", "the words at the end: drawn, or the likeliest, as published (biased)",
                     ["draw", "argmax"])

    def fits(self, method):
        if not isinstance(method.process, Evidence):
            return f"adds up evidence, which {method.name} does not have"

    def endpoint(self, log_p, to_probs, k=K):
        """Where a step goes: one-hot, or a mean of one-hots. log_p (N, V); k of (14.13) -> (N, V)
        """
        return log_p.exp()  # (N, V)

    def move(self, y, e, lam_s, lam_t, eps):
        """y at lam_s, from y at lam_t; e: the endpoint. y, e, eps (N, V) -> (N, V)"""
        d = lam_s - lam_t  # ()
        return y + d * e + d.sqrt() * eps  # (N, V)

    @torch.no_grad()
    def __call__(self, process, denoiser, z, frozen, steps, to_probs=probabilities):
        ids, free, fed = z, ~frozen, None  # (B, L) each
        times = torch.linspace(1, 0, steps, dtype=torch.float64, device=z.device)  # (n,)
        lam = process.lam(times)  # (n,)
        y = FIRST ** 0.5 * torch.randn((*z.shape, process.V), device=z.device)  # (B, L, V)
        y = torch.where(free[..., None], y, process.given(ids))  # (B, L, V)
        for i, t in enumerate(times.clamp(min=LEAST)):
            if not free.any():  # nothing to write
                yield ids
                continue
            t = t.expand(ids.shape).masked_fill(frozen, 0)  # (B, L)
            log_p = process.log_words(denoiser, y, t, free, fed)  # (N, V) log e_hat
            if process.feeds_back:
                fed = y.masked_scatter(free[..., None], log_p.exp().to(y.dtype))  # (B, L, V)
            if i + 1 < steps:
                e = self.endpoint(log_p, to_probs, process.k or K)  # (N, V)
                eps = torch.randn(y.shape, device=y.device)[free]  # (N, V)
                moved = self.move(y[free], e, lam[i + 1], lam[i], eps)  # (N, V)
                y = y.masked_scatter(free[..., None], moved.to(y.dtype))  # (B, L, V)
            drawn = i + 1 == steps and self.last == "draw"
            words = draw_from(to_probs, log_p)[0] if drawn else log_p.argmax(-1)  # (N,)
            ids = ids.masked_scatter(free, words)  # (B, L)
            yield ids


@dataclass(eq=False)
class WordEvidence(EvidenceWalk):
    """--sampler bfn: steps of (14.8), towards a word drawn in each step."""

    def endpoint(self, log_p, to_probs, k=K):
        return F.one_hot(categorical(to_probs(log_p)), log_p.shape[-1])  # (N, V)


@dataclass(eq=False)
class MeanEvidence(EvidenceWalk):
    """--sampler sde: steps of (14.9), towards the mean of all words."""


@dataclass(eq=False)
class StraightEvidence(EvidenceWalk):
    """--sampler ode: steps of (14.10), which draw nothing between the first noise and the words."""

    def move(self, y, e, lam_s, lam_t, eps):
        return lam_s * e + (lam_s / lam_t).sqrt() * (y - lam_t * e)  # (N, V)


@dataclass(eq=False)
class Renoise(EvidenceWalk):
    """--sampler renoise: steps of (14.11), with fresh noise, as in SSD-LM and TESS."""
    projection: str = flag("draw", "what a step goes to: a draw, the likeliest word (TESS), the "
                           "mean, or all words of --top_p, else of 0.9 (SSD-LM's script), uneven: "
                           "with their distances; all but a draw are biased",
                           ["draw", "multi-hot", "uneven", "mean", "argmax"])
    draws_from_model = False

    def endpoint(self, log_p, to_probs, k=K):
        if self.projection == "mean":
            return log_p.exp()  # (N, V)
        if self.projection in ("multi-hot", "uneven"):
            if partial(to_probs).keywords.get("top_p", 1.0) == 1:
                to_probs = partial(to_probs, top_p=NUCLEUS)
            behind = log_p.amax(-1, keepdim=True) - log_p  # (N, V) the likeliest word
            height = 1 - behind / (2 * k) * (self.projection == "uneven")  # (N, V)
            return torch.where(to_probs(log_p) > 0, height.double(), 0.0)  # (N, V)
        draw = self.projection == "draw"
        words = categorical(to_probs(log_p)) if draw else log_p.argmax(-1)  # (N,)
        return F.one_hot(words, log_p.shape[-1])  # (N, V)

    def move(self, y, e, lam_s, lam_t, eps):
        return lam_s * e + lam_s.sqrt() * eps  # (N, V)
