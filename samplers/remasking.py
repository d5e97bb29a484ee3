"""
Chapter 3. Samplers that mask words again: the ones of which the network is least confident.

psi.py masks words again at random. Here c_l decides, the confidence of word l: the probability that
the network gave to it when it was drawn, before --temperature and --top_p (arXiv:2503.00307).

    remdm-conf   while masks open, word l is masked again with probability, over the words so far,
                 sigma_l = min(1, (1 - alpha_s) / alpha_t) softmax_l(-c_l)                     (3.7)
    top-k        draw all masks in each step; of all words, new and old, the k with the largest c_l
                 stay (after RDM, arXiv:2302.05737)

Neither draws from the model. Both prefer what is easy to predict: texts look better, and vary less.

RDM does not remember c_l: `--rescore`. Step i of n draws a word at all places, also where a word
stands, and c_l is the probability of that draw. Then

    routing    the floor(rate L) places with the least log c_l + a rate G_l become masks,     (3.12)
               G_l ~ Gumbel; the other masks open; a word that stands stays as it is.
               rate = 1 - (i + 1)/n, linear,   or cos(pi/2 (i + 1)/n), cosine

That is reparam-uncond-deterministic-linear of its code for a = 0; `--stochastic` is a. With
`--conditional` (reparam-cond) a word becomes a mask only if it is also drawn again, with a lower
c_l than it was written with. A masked network gets no loss at words that it sees, so what it says
there is untrained. (In MGDM, arXiv:2410.14157, the draw also replaces the word.)
"""
import math
from dataclasses import dataclass

import torch

from diffusion import draw_at, probabilities
from flags import flag
from samplers.base import MaskSampler, highest


def fill_from_model(denoiser, process, z, t, at, to_probs):
    """Draw the tokens `at` (B, L) from x_theta. -> z (B, L), confidence (N,)"""
    drawn, confidence = draw_at(denoiser, z, t, at, to_probs, process.n_tokens)  # (N,), (N,)
    return z.masked_scatter(at, drawn), confidence  # (B, L), (N,)


def remask_probability(process, confidence, z, s, t):
    """sigma_l of (3.7), 0 at masks. confidence (B, L), s and t (B, 1) -> (B, L)"""
    is_word = z != process.mask  # (B, L)
    share = (-confidence).masked_fill(~is_word, -torch.inf).softmax(-1).nan_to_num()  # (B, L)
    return ((1 - process.alpha(s)) / process.alpha(t)).clamp(max=1) * share  # (B, L)


@dataclass(eq=False)
class ReMDMConf(MaskSampler):
    """--sampler remdm-conf: opens masks as (0.3) does, and masks doubtful words again."""
    also_called = ("remdm", "remask")
    draws_from_model, rewrites = False, True

    @torch.no_grad()
    def __call__(self, process, denoiser, z, frozen, steps, to_probs=probabilities):
        coin = lambda: torch.rand(z.shape, dtype=torch.float64, device=z.device)  # (B, L)
        times = torch.linspace(1, 0, steps + 1, dtype=torch.float64,
                               device=z.device)  # (steps + 1,)
        confidence = torch.full_like(z, torch.inf, dtype=torch.float64)  # (B, L) inf: given
        for t, s in zip(times[:-1], times[1:]):
            t, s = t.expand(len(z), 1), s.expand(len(z), 1)  # (B, 1) each
            alpha_t, alpha_s, masked = process.alpha(t), process.alpha(s), z == process.mask
            opens = masked & (coin() < (alpha_s - alpha_t) / (1 - alpha_t))  # (B, L)
            closes = ~masked & (coin() < remask_probability(process, confidence, z, s, t))  # (B, L)
            if opens.any():
                z, new = fill_from_model(denoiser, process, z, t.float(), opens, to_probs)
                confidence = confidence.masked_scatter(opens, new)  # (B, L)
            z = z.masked_fill(closes, process.mask)  # (B, L)
            yield z


@dataclass(eq=False)
class TopK(MaskSampler):
    """--sampler top-k: draws all masks, and keeps the most confident of all words so far.

    A word keeps the confidence that it was drawn with. That is not RDM's rule: see `rescore`.
    """
    rescore: bool = flag(False, "as in RDM: each step scores all places anew by what the network "
                                "draws there now; else a word keeps its confidence")
    conditional: bool = flag(False, "a word is taken back only if it is drawn again, and less "
                                    "surely than when it was written", needs=["rescore"])
    stochastic: float = flag(0.0, "Gumbel noise on the log of the confidence; it fades as masks "
                                  "do", least=0, most=100)
    rate: str = flag("linear", "share of masks after each step: equal steps, or small ones first",
                     ["linear", "cosine"])
    draws_from_model, rewrites = False, True

    @torch.no_grad()
    def __call__(self, process, denoiser, z, frozen, steps, to_probs=probabilities):
        L, n = z.shape[1], (z == process.mask).sum(-1, keepdim=True)  # (B, 1)
        written = torch.full_like(z, torch.inf, dtype=torch.float64)  # (B, L) inf: given
        for left in range(steps - 1, -1, -1):
            masked = z == process.mask  # (B, L)
            if not masked.any() and (frozen.all() or not self.conditional):
                return
            t = masked.sum(-1, keepdim=True) / L  # (B, 1)
            at = ~frozen if self.rescore else masked  # (B, L)
            drawn, new = fill_from_model(denoiser, process, z, t, at, to_probs)  # (B, L), (N,)
            now = written.masked_scatter(at, new)  # (B, L)
            rate = left / steps if self.rate == "linear" else math.sin(math.pi / 2 * left / steps)
            back = (n * rate + 1e-9).long()  # (B, 1) the floor; n rate may be a bit below a number
            score = now  # (B, L)
            if self.stochastic:
                score = now.log() + self.stochastic * rate * gumbel(now)  # (B, L)
            closes = ~highest(score, L - back)  # (B, L)
            if self.conditional:
                closes &= masked | (drawn == z) & (now < written)  # (B, L)
            written = torch.where(masked, now, written) if self.conditional else now  # (B, L)
            z = torch.where(masked, drawn, z).masked_fill(closes, process.mask)  # (B, L)
            yield z


def gumbel(like):
    """Draws of the Gumbel distribution, of the shape of `like`."""
    return -torch.empty_like(like).exponential_().log()
