"""
Chapter 14. What bfn, tess and ssd_lm share: the network, the bounds (14.4) and (14.5), the oracle.

`denoiser(z, t, at)` gets log-evidence, z = y (B, L, V), and an EvidenceNetwork reads probabilities
made of it (Evidence.shown), since these lie between 0 and 1 at any lam. With self-conditioning z
has V more columns, the last e_hat. A batch is B L V numbers, several times over: this family is for
vocabularies of a few thousand.

The times of the bound are lam = lam1 u^2, u uniform, whatever the times of training are: only the
ends of the path matter for its mean, and the variance of this one is low.
"""
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

from diffusion import Ancestral, ancestral, probabilities, stratified
from flags import UserError, flag
from gaussian import LEAST
from methods.base import Method, offset_positions, skip_texts
from methods.embedding import free_tokens, scatter_nats
from methods.evidence import (
    Cosine,
    Evidence,
    draw_evidence,
    receiver_nats,
    square_error,
    word_nats,
)
from model import Transformer, select_rows
from samplers.evidence import WordEvidence

RECEIVED = 10  # draws of dy for one call of the network, as in BFN's code


class EvidenceNetwork(Transformer):
    """A Transformer that reads log-evidence. Rows of probabilities are short vectors, so its table
    is larger at first than one for ids."""
    supports_cache = supports_fused_head = False

    def __init__(self, process, vocab_size, *sizes, **options):
        super().__init__(vocab_size, *sizes, **options)
        self.process = process
        nn.init.normal_(self.embed, std=0.5)

    def forward(self, z, noise=None, at=None, **options):
        """As Transformer, of z (B, L, V|2V) at times (B, 1|L). -> (B, L, V) or (N, V)"""
        return super().forward(self.process.shown(z, noise), noise, at=at, **options)


class ShiftedEvidenceNetwork(EvidenceNetwork):
    """The same on [start, z_0, .., z_(L-1)], whose row l stands at z_(l-1) and predicts x_l, as in
    ar. start is the last symbol; it is given."""

    def forward(self, z, noise=None, at=None, **options):
        (B, L), V = z.shape[:2], self.vocab_size - 1
        soft = F.pad(self.process.shown(z, noise), (0, 1, 1, 0))  # (B, L + 1, V + 1)
        soft[:, 0, V] = 1.0
        noise = F.pad(noise.expand(B, L), (1, 0))  # (B, L + 1)
        if at is None:
            return Transformer.forward(self, soft, noise, **options)[:, :-1]  # (B, L, V + 1)
        at = offset_positions(at, L, L + 1)  # (B, L + 1) or (N,)
        return Transformer.forward(self, soft, noise, at=at, **options)  # (N, V + 1)


@dataclass(eq=False)
class Simplex(Method):
    """The base of bfn, tess and ssd_lm. A class says its schedule, and what it is trained on."""
    lam1: float = flag(25.0, "evidence at the end, where the words are drawn; enough for about 100 "
                             "symbols, 15 is for 27", least=0.1, most=1e6, fixed=True)
    skip: bool = flag(True, "add the token's own evidence to the logits, (14.7)", fixed=True)
    bound_steps: int = flag(0, "bound of that many steps, (14.5); 0: of infinitely many, (14.4)",
                            least=0, most=10_000, later=True)
    uses_time, fixed_positions, takes_steps = True, False, False
    samplers = ("ancestral", "bfn", "sde", "ode", "renoise")
    predicts = "each token from evidence"
    shifted = False  # ShiftedEvidenceNetwork

    def __post_init__(self):
        self.process, self.vocab_size = self.channel(), self.n_tokens + self.shifted

    def channel(self):
        """The process, of methods/evidence.py."""
        raise NotImplementedError

    def network(self, vocab_size, *sizes, **options):
        kind = ShiftedEvidenceNetwork if self.shifted else EvidenceNetwork
        return kind(self.process, vocab_size, *sizes, **options)

    # ---- losses

    def predict(self, denoiser, y, t, at, fed_back=None):
        """log e_hat at `at` (B, L). fed_back: see methods/tess.py. -> (N, V) nats"""
        return self.process.log_words(denoiser, y, t, at)  # (N, V)

    def cross_entropies(self, denoiser, x, t, frozen=None, fed_back=None):
        """-log e_hat_x at times t (B, 1). -> (B, L) nats"""
        at = free_tokens(x, frozen)  # (B, L)
        y, t = self.process.noisy(x, self.process.lam(t), frozen)  # (B, L, V), (B, 1|L)
        log_p = self.predict(denoiser, y, t, at, fed_back)  # (N, V)
        return scatter_nats(word_nats(log_p, x[at]), at)  # (B, L)

    def loss(self, denoiser, x, frozen=None):
        """Cross-entropies at uniform times. -> (B, L) nats"""
        return self.cross_entropies(denoiser, x, stratified(len(x), x.device), frozen)  # (B, L)

    def nelbo(self, denoiser, x, frozen=None):
        """One draw of (14.4), or of (14.5) for --bound_steps. -> (B, L) nats"""
        at = free_tokens(x, frozen)  # (B, L)
        u = stratified(len(x), x.device)  # (B, 1)
        draw = self.step_nats if self.bound_steps else self.integrand
        nats = draw(denoiser, x, u, at, frozen)  # (N,)
        return scatter_nats(nats + self.decoder_nats(denoiser, x, at, frozen), at)  # (B, L)

    def integrand(self, denoiser, x, u, at, frozen=None):
        """That of (14.4) at lam1 u^2, times dlam/du. u (B, 1) -> (N,) nats"""
        y, t = self.process.noisy(x, self.lam1 * u ** 2, frozen)  # (B, L, V), (B, 1|L)
        log_p = self.predict(denoiser, y, t, at)  # (N, V)
        weight = (self.lam1 * u).expand(x.shape)[at]  # (N,) half of dlam/du
        return weight * square_error(log_p, x[at])  # (N,)

    def step_nats(self, denoiser, x, u, at, frozen=None):
        """n times the term of step i = ceil(u n), the mean over draws of dy. u (B, 1) -> (N,) nats

        The part of a term that is linear in dy has the mean d (1 - e_hat_x), which takes its place:
        its noise would grow like the root of n.
        """
        n = self.bound_steps
        i = (u * n).ceil().clamp(min=1)  # (B, 1) of 1 .. n
        lam, d = self.lam1 * ((i - 1) / n) ** 2, self.lam1 * (2 * i - 1) / n ** 2  # (B, 1) each
        y, t = self.process.noisy(x, lam, frozen)  # (B, L, V), (B, 1|L)
        log_p = self.predict(denoiser, y, t, at).double()  # (N, V) differences of small numbers
        words, d, total = x[at], d.expand(x.shape)[at].double(), 0.0  # (N,) each
        away = F.one_hot(words, self.n_tokens) - log_p.exp()  # (N, V) e_x - e_hat
        for _ in range(RECEIVED):
            dy = draw_evidence(words, d, torch.randn(log_p.shape, device=x.device).double())
            total = total + receiver_nats(log_p, dy, words) - (away * dy).sum(-1)  # (N,)
        linear = d * away.gather(-1, words[:, None])[:, 0]  # (N,) d (1 - e_hat_x)
        return n * (total / RECEIVED + linear)  # (N,)

    def decoder_nats(self, denoiser, x, at, frozen=None):
        """The last term of (14.4). -> (N,) nats"""
        lam = torch.full((len(x), 1), float(self.lam1), device=x.device)  # (B, 1)
        y, t = self.process.noisy(x, lam, frozen)  # (B, L, V), (B, 1|L)
        return word_nats(self.predict(denoiser, y, t, at), x[at])  # (N,)

    # ---- samples and the exact denoiser

    def prior(self, shape, device="cpu"):
        """The ids of a text before its first step: there is no evidence yet. -> (B, L)"""
        return torch.zeros(shape, dtype=torch.long, device=device)  # (B, L)

    def sample(self, denoiser, z, frozen, steps, sampler=ancestral, to_probs=probabilities,
               window=None, end=None):
        """From no evidence to text; yields the likeliest words (B, L) after each step."""
        walk = WordEvidence() if isinstance(sampler, Ancestral) else sampler
        return walk(self.process, denoiser, z, frozen, steps, to_probs)

    def likelihood(self, z, t):
        """theta: evidence as it is, at any time. z (B, L, V|2V) -> (B, L, V)"""
        y = z[..., :self.n_tokens].double()  # (B, L, V)
        return (y - y.amax(-1, keepdim=True)).exp()  # (B, L, V) 1 at most

    def draw_evidence(self, x, t, frozen=None):
        """What a classifier reads: theta of a draw of (14.1) at times t (B, 1). -> (B, L, V)"""
        return self.process.noisy(x, self.process.lam(t), frozen)[0].softmax(-1)  # (B, L, V)

    def oracle(self, language):
        """p(x_l | y), or without the token's own evidence where (14.7) adds it. -> (B, L, V)"""
        def denoiser(z, t, at=None, label=None, **layout):
            p = language.posterior(self.likelihood(z, t), self.skip, label)  # (B, L, V)
            return select_rows(p.clamp(min=1e-300).log().to(z.device), at)
        return skip_texts(denoiser)


@dataclass(eq=False)
class LogitNoise(Simplex):
    """The base of tess and ssd_lm: the cosine schedule, and logits w of size k, (14.13)."""
    skip: bool = flag(False, "add the token's own evidence to the logits, (14.7)", fixed=True)
    k: float = flag(5.0, "size of the logits, as published; more for more symbols", least=0.1,
                    most=1000, fixed=True)
    feeds_back = False  # the network has the input (14.14)

    def channel(self):
        return Evidence(self.n_tokens, Cosine(self.lam1), self.skip, self.k, self.feeds_back)
