"""
Chapter 21. Text of any length: FlexMDM (arXiv:2509.01025). Masks are inserted, and then opened.

Noise masks each token at its time T_mask and deletes it at T_del. With D of (21.4),

    P( T_del < t ) = D(t),   T_mask given T_del is uniform in (0, T_del)                      (21.3)
    z: what has T_del < t is gone, what has T_mask < t <= T_del is a mask, the rest is text

At a mask the network outputs a distribution of words. At each gap j = 0 .. m it outputs g_j, how
many tokens it expects to be missing there: the mask's own column, which no mask predicts, holds
log g_j of the gap before that place. With k_j tokens missing in gap j, (21.1) is

    l = (1/t) sum_masks -log p(x_l | z)  +  w(t) sum_j ( g_j - k_j - k_j log g_j )            (21.5)
    -log p(x) <= E_t E_z l,   t ~ U(0, 1), nats per text

The published loss adds k_j log k_j. That changes no gradient, and is no tight bound: it exceeds one
by a number S(n) of the length alone, the entropy of which of k missing tokens comes first:

    S(0) = S(1) = 0,   S(n) = log n + (2/n) sum_{k < n} S(k),   S(n)/n -> 1.2035 nats         (21.6)

1/t has infinite variance: P(mask) is -t log t. So the bound is drawn at other times,

    t = v^2, v ~ U(0, 1):  E_t f(t) = E_v 2 v f(v^2),   2 v / t = 2 / v                       (21.7)

and training takes times of density 2 (1 - t) with the weight 3 for both sums (`simple`), as mdlm.
The network reads D(t), the share of tokens that are gone: how many are missing depends on it.
"""
import math
from dataclasses import dataclass

import torch

from diffusion import Ancestral, ancestral, probabilities, stratified
from flags import flag
from methods.base import cross_entropy, to_float32
from methods.insertion import (
    AnyLength,
    Insertions,
    action_nats,
    count_words,
    leave,
    spread_nats,
    told,
)
from model import select_rows, texts_with
from samplers.base import scatter_at
from samplers.insertion import Insertion


def slack(n):
    """S(n) of (21.6): how far the published loss of a text of n tokens is above a tight bound, with
    the exact network. -> nats"""
    # exercise 31: the entropy of which token comes first, (21.6), 4 lines
    S = [0.0, 0.0]
    for k in range(2, n + 1):
        S.append(math.log(k) + 2 / k * sum(S))
    return S[n]
    # end


@dataclass(eq=False)
class FlexMDM(AnyLength):
    """--method flexmdm: masks are inserted, and then opened, so gaps take as many words as fit."""
    weighting: str = flag("simple", "train on bounded weights or on the bound itself",
                          ["simple", "bound"])
    gone: str = flag("linear", "how the share of tokens that are gone grows with t",
                     ["linear", "sine"])
    also_called = ("flex",)
    uses_time, samplers, first_choice = True, ("insertion",), "insertion"

    def __post_init__(self):
        self.process = Insertions(self.n_tokens, self.gone)
        self.vocab_size = self.process.V

    # ---- noise

    def draw(self, x, t, frozen=None):
        """(21.3) at time t (B, 1): z and what is missing in it. -> Left, the masks (B, L + 1)"""
        u = torch.rand(2, *x.shape, dtype=torch.float64, device=x.device)  # (2, B, L)
        deleted = self.process.time_of(u[0])  # (B, L) T_del
        masked = u[1] * deleted  # (B, L) T_mask
        given = torch.zeros_like(x, dtype=torch.bool) if frozen is None else frozen  # (B, L)
        kept, hidden = (deleted >= t) | given, (masked < t) & ~given  # (B, L) each
        left = leave(x, count_words(x, self.end_id), kept, frozen, self.process.fill)
        at = torch.arange(x.shape[1] + 1, device=x.device) < left.m  # (B, L + 1)
        hidden = torch.nn.functional.pad(hidden, (0, 1)).gather(-1, left.of) & at  # (B, L + 1)
        return left._replace(z=left.z.masked_fill(hidden, self.process.mask)), hidden

    # ---- losses

    def terms(self, denoiser, x, left, masks, t):
        """Both sums of (21.5), without their weights. -> (B, L + 1) each"""
        at = left.open | masks  # (B, L + 1)
        logits = to_float32(denoiser(left.z, self.process.deleted(t), at=at,
                                     **told(denoiser, left.closed)))  # (N, V)
        words = x.gather(-1, left.of.clamp(max=x.shape[1] - 1))[masks]  # (n,)
        nats = cross_entropy(logits[masks[at], :self.n_tokens], words)  # (n,)
        log_g = scatter_at(at, logits[:, self.process.mask])  # (B, L + 1)
        gaps = torch.where(left.open, action_nats(log_g, left.missing), 0.0)  # (B, L + 1)
        return scatter_at(masks, nats), gaps  # (B, L + 1) each

    def nats_at(self, denoiser, x, frozen, t, weights):
        """(21.5) at times t (B, 1) with the weights of its sums, (B, 1) each or numbers. -> (B, L),
        each text's nats shared out among its words"""
        left, masks = self.draw(x, t, frozen)
        opened, inserted = self.terms(denoiser, x, left, masks, t)  # (B, L + 1) each
        nats = (weights[0] * opened + weights[1] * inserted).sum(-1)  # (B,)
        return spread_nats(nats, x, count_words(x, self.end_id), frozen)  # (B, L)

    def nelbo(self, denoiser, x, frozen=None):
        """One draw of (21.5) by (21.7). -> (B, L) nats"""
        v = stratified(len(x), x.device).double()  # (B, 1)
        t = v.square()  # (B, 1)
        return self.nats_at(denoiser, x, frozen, t, (2 / v, 2 * v * self.process.hazard(t)))

    def loss(self, denoiser, x, frozen=None):
        """What training minimizes; `simple` is a surrogate. -> (B, L) nats"""
        if self.weighting == "bound":
            return self.nelbo(denoiser, x, frozen).float()  # (B, L)
        t = 1 - (1 - stratified(len(x), x.device)).sqrt()  # (B, 1)
        return self.nats_at(denoiser, x, frozen, t, (3.0, 3.0))  # (B, L)

    # ---- samples

    def sample(self, denoiser, z, frozen, steps, sampler=ancestral, to_probs=probabilities,
               window=None, end=None):
        """From nothing, or around given tokens, to text; yields z (B, L) after each step."""
        steps_of = Insertion() if isinstance(sampler, Ancestral) else sampler
        return steps_of(self.process, denoiser, z, frozen, steps, to_probs)

    def count_states(self, length, steps):
        return steps + 1  # the last call

    def oracle(self, language):
        """The exact denoiser: language.fill_in says what is missing (data/sentences.py)."""
        def exact(z, t, at=None, label=None, frozen=None, **layout):
            if at is not None:
                z, t, at, label, frozen = texts_with(at, z, t, at, label, frozen)
            m = (z != self.process.fill).sum(-1)  # (B,)
            d = t.double()[:, 0].clamp(min=1e-40).expand(len(z))  # (B,)
            words, gaps = language.fill_in(z, m, d, frozen, label)  # (B, L + 1, V), (B, L + 1)
            logits = torch.cat([words, gaps[..., None]], -1).clamp(min=1e-300).log()  # (.., V + 1)
            return select_rows(logits.to(z.device), at)
        exact.reads_frozen = True  # of gaps, (B, L + 1): where nothing can be missing
        return exact
