"""
Chapter 16. Masks in the order of information: DiffusionBERT's spindle (arXiv:2211.15029).

What is masked early is written late. Let n_v be how often symbol v stands in the training text:

    schedule   m_v(t) = t (1 - k_v sinc t),   sinc t = sin(pi t)/(pi t),                      (16.6)
               k_v = pi lambda c_v,   c_v = f_v - sum_u n_u f_u / sum_u n_u,
               f_v = log(1 + n_v) / max_u log(1 + n_u)

is P(v is a mask at t), so alpha_t(v) = 1 - t + lambda c_v sin(pi t). With lambda > 0 frequent words
survive longest, so they are written first, and rare ones last: easy first. With lambda < 0 key
words are written first, as in InfoDiffusion (2310.11976) and semantic-aware noising (2407.10998).
m_v rises from 0 to 1 if |k_v| <= 1, that is |lambda c_v| <= 1/pi; beyond that it is no process.

Its bound is (16.7), exact if x_theta counts the pattern of masks as evidence. So is that of a
schedule by place (`--rank_by place`): c_l = 1/2 - (l + 1/2)/L at place l of L, the left first. And
so is that of a schedule by the given tokens, of a prompt or a text to summarize (`--rank_by
source`):

    source     c_v = 1/2 - [v is among the given tokens]                                     (16.10)

since a sampler knows them from the start: with lambda < 0 words of the source are written first.
Without given tokens all words have one schedule, and the law is that of mdlm.

The public code subtracts the mean of f over the *text*, and semantic-aware noising ranks the words
of a text (`--rank_by text`). Then the schedule of a token changes with the other tokens, which the
sampler does not know. That process has no bound of this form. What is left is a loss at masks,

    weighted   l = w_x (-log x_theta(x))                                                      (16.9)

It is least at x_theta(v) ~ w_v p(v | z), and there below the entropy.
"""
import math
from dataclasses import dataclass

import numpy as np
import torch

from diffusion import draw_at, probabilities
from flags import UserError, flag
from methods.base import cross_entropy, loss_at
from methods.symbol_schedules import SymbolSchedules

LARGEST = 1 - 1e-4  # of |k|: at 1 the rate of (16.6) is 0/0 near t = 0


def centered_information(counts):
    """c of (16.6) from n (N,), for words; a word that was never seen counts as the rarest. ->
    (N,)"""
    f = (1 + counts).log() / (1 + counts).log().max()  # (N,)
    return f - (counts * f).sum() / counts.sum()  # (N,)


@dataclass(eq=False)
class DiffusionBERT(SymbolSchedules):
    """--method diffusionbert: masks come in the order of how frequent words are."""
    spindle: float = flag(0.3, "lambda: above 0 frequent words are written first, below 0 rare "
                          "ones; 0 is mdlm", least=-10, most=10, fixed=True)
    rank_by: str = flag("word", "what decides when a token is masked: its word, its place, whether "
                        "its word is in the prompt (source), or its word among those of its text, "
                        "as published (no bound)", ["word", "place", "source", "text"], fixed=True)
    unbounded_reason = "the schedule of a token depends on the other words of its text, which a " \
                       "sampler does not know"

    def __post_init__(self):
        super().__post_init__()
        self.bounded = self.rank_by != "text"
        self.uses_time = self.rank_by != "place"  # there the pattern of masks says nothing of x
        self.use_counts(torch.ones(self.n_tokens))  # all as often, until there is a text

    def use_counts(self, counts):
        self.counts = counts.double()  # (N,)
        self.c = centered_information(self.counts)  # (N,)

    def on_data(self, data):
        counts = np.bincount(data.ids("train"), minlength=self.n_tokens)[:self.n_tokens]  # (N,)
        self.use_counts(torch.from_numpy(counts))
        self.check_schedule()

    def extra_state(self):
        return {"counts": self.counts}

    def load_extra_state(self, state):
        self.use_counts(state["counts"])

    def check_schedule(self):
        """UserError if (16.6) is no process."""
        spread = (self.c.max() - self.c.min())[None]  # (1,) the most that f differs from its mean
        half = torch.tensor([0.5])  # (1,)
        far = {"word": self.c.abs(), "place": half, "source": half, "text": spread}  # (N,)|(1,)
        far, size = far[self.rank_by], abs(self.spindle)  # (N,)|(1,)
        if size * far.max() * math.pi > LARGEST:
            words = (size * far * math.pi > LARGEST).nonzero()[:, 0].tolist()
            which = f" (of words {', '.join(map(str, words[:5]))}{', ...' * (len(words) > 5)})"
            most = math.floor(1000 * LARGEST / math.pi / far.max().item()) / 1000
            raise UserError(f"--spindle {self.spindle}: |lambda c| must stay below 1/pi = 0.318, "
                            f"and is {size * far.max().item():.3f}{which * (len(far) > 1)}: "
                            f"{-most} to {most} are possible here")

    # ---- the schedule

    def known(self, z, frozen=None):
        """c of (16.10) under --rank_by source. -> (B, N), else (L,)"""
        if self.rank_by != "source":
            return super().known(z, frozen)  # (L,)
        given = torch.zeros_like(z) if frozen is None else frozen.to(z.dtype)  # (B, L)
        counts = z.new_zeros(len(z), self.n_tokens + 1).scatter_add_(1, z, given)  # (B, V)
        return 0.5 - (counts[:, :-1] > 0).double()  # (B, N)

    def k(self, t, v, known):
        """k of (16.6) for symbols v, which are whole texts (B, L) under --rank_by text."""
        if self.rank_by == "place":
            return math.pi * self.spindle * (0.5 - known)
        if self.rank_by == "source":  # known is (B, 1, N) or (M, N) where v are all symbols (N,)
            c = known if v.ndim == 1 else known.gather(-1, v)
            return math.pi * self.spindle * c.to(t.dtype)
        c = self.c.to(t.device, t.dtype)[v]
        return math.pi * self.spindle * (c - c.mean(-1, keepdim=True) if not self.bounded else c)

    def masked(self, t, v, known):
        """(16.6)"""
        return t * (1 - self.k(t, v, known) * torch.sinc(t))

    def rate(self, t, v, known):
        slope = 1 - self.k(t, v, known) * torch.cos(math.pi * t)
        return slope / self.masked(t, v, known)

    # ---- losses and samples

    def bound(self, denoiser, x, z, t, frozen=None):
        """(16.7); (16.9), which is no bound, under --rank_by text. -> (B, L) nats"""
        if self.bounded:
            return super().bound(denoiser, x, z, t, frozen)  # (B, L)
        at, w = z == self.mask, self.rate(t, x, None)  # (B, L) each
        return w * loss_at(denoiser, z, t, at, cross_entropy, (x,), self.n_tokens)  # (B, L)

    def loss(self, denoiser, x, frozen=None):
        """What training minimizes: the bound, or (16.9). -> (B, L) nats"""
        return self.nelbo(denoiser, x, frozen)  # (B, L)

    @torch.no_grad()
    def sample(self, denoiser, z, frozen, steps, sampler=None, to_probs=probabilities,
               window=None, end=None):
        """Steps of (16.8). Under --rank_by text a step draws all words first: they are the text
        by which the schedule is centered."""
        if self.bounded:
            yield from super().sample(denoiser, z, frozen, steps, sampler, to_probs)
            return
        times = torch.linspace(1, 0, steps + 1, dtype=torch.float64, device=z.device)  # (n + 1,)
        for t, s in zip(times[:-1], times[1:]):
            at, full = z == self.mask, z  # (B, L) each
            if at.any():
                now = t.float().expand(len(z), 1)  # (B, 1)
                words, _ = draw_at(denoiser, z, now, at, to_probs, self.n_tokens)  # (M,)
                full = z.masked_scatter(at, words)  # (B, L)
                opens = 1 - self.masked(s, full, None) / self.masked(t, full, None)  # (B, L)
                coin = torch.rand(z.shape, dtype=torch.float64, device=z.device)  # (B, L)
                z = torch.where(at & (coin < opens), full, z)  # (B, L)
            yield z

    def oracle(self, language):
        if not self.bounded:
            raise UserError(f"--rank_by {self.rank_by} has no exact denoiser: "
                            f"{self.unbounded_reason}")
        return super().oracle(language)
