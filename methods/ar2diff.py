"""
Chapter 18. From an AR model to random words: AR2Diff (arXiv:2401.17181), trained as in SUNDAE.

    z = x, each word with probability t a random one,   t ~ U(0, 1)
    z' = a draw of all words from p_theta(. | z), which passes no gradient                   (18.10)
    loss  1/2 [ -log p_theta(x_l | z) - log p_theta(x_l | z') ]  at every word l

The second term trains on what the network makes of its own mistakes. It may be left out
(--no_unroll). The network is that of ar with the input [start, z_0, .., z_(L-1)], where all see
all, so it starts from the weights of an ar run: row l stands at z_(l-1) and predicts x_l.

There is no bound on -log p(x). The network reads no time, and z_l itself is part of what it reads.
So it learns p(x_l | z) with the word's own evidence, t unknown, and not the leave-one-out
distribution that (0.2) needs. Texts come from --sampler unroll, which draws all words again and
again from p_theta(. | z): that chain has no distribution that training knows of.
"""
from dataclasses import dataclass

import numpy
import torch

from diffusion import Uniform, corrupt, draw_at, probabilities, stratified, supports
from flags import flag
from methods.base import Method, cross_entropy, loss_at, skip_texts
from methods.diffugpt import ShiftedTransformer
from model import select_rows

NODES = 8  # times over which the exact denoiser integrates: exact for texts of 15 words or fewer


@dataclass(eq=False)
class AR2Diff(Method):
    """--method ar2diff: starts from an ar run (--init_from), or from scratch. `nelbo` is the loss:
    nothing is known of p(x)."""
    unroll: bool = flag(True, "train also on texts that the network itself has drawn")
    predicts = "each token in the place before it"
    adapts = ("the next token",)
    network = ShiftedTransformer
    bounded, takes_steps, samplers = False, False, ("unroll",)
    unbounded_reason = "the network predicts words from noisy texts that include them"
    classifier_process = None

    def __post_init__(self):
        self.process, self.vocab_size = Uniform(self.n_tokens), self.n_tokens + 1

    @property
    def first_choice(self):
        return "unroll"

    def loss(self, denoiser, x, frozen=None):
        """(18.10). -> (B, L) nats"""
        z = corrupt(self.process, x, stratified(len(x), x.device), frozen)  # (B, L)
        if not self.unroll:
            return self.term(denoiser, z, x, 1.0, frozen)  # (B, L)
        first = self.term(denoiser, z, x, 0.5, frozen)  # (B, L)
        return first + self.term(denoiser, self.draw(denoiser, z, frozen), x, 0.5, frozen)  # (B, L)

    nelbo = loss

    def term(self, denoiser, z, x, weight, frozen=None):
        """weight * -log p_theta(x_l | z) where nothing is given. -> (B, L) nats"""
        at = torch.ones_like(x, dtype=torch.bool) if frozen is None else ~frozen  # (B, L)
        return loss_at(denoiser, z, None, at, cross_entropy, (x,), self.n_tokens, weight, frozen)

    @torch.no_grad()
    def draw(self, denoiser, z, frozen=None):
        """z' of (18.10); given words stay. -> (B, L)"""
        at = torch.ones_like(z, dtype=torch.bool)  # (B, L)
        chosen = torch.arange(z.numel(), device=z.device) if supports(
            denoiser, "fixed_shapes") else at  # (B L,) or (B, L)
        words, _ = draw_at(denoiser, z, None, chosen, probabilities, self.n_tokens)  # (B L,)
        words = words.view(z.shape)  # (B, L)
        return words if frozen is None else torch.where(frozen, z, words)  # (B, L)

    def oracle(self, language):
        """What minimizes the first term: p(x_l | z) for t ~ U(0, 1), by Gauss's rule in t. The
        second term depends on the network that draws z', so there is no language-only optimum of
        both. -> (B, L, n_tokens)"""
        nodes, weights = numpy.polynomial.legendre.leggauss(NODES)

        def denoiser(z, t, at=None, label=None, **layout):
            n, L = z.shape
            times = torch.tensor((nodes + 1) / 2).repeat_interleave(n)[:, None]  # (NODES n, 1)
            e = self.likelihood(z.cpu().repeat(NODES, 1), times)  # (NODES n, L, n_tokens)
            topic = None if label is None else label.cpu().expand(n).repeat(NODES)  # (NODES n,)
            p = language.posterior(e, leave_one_out=False, topic=topic)  # (NODES n, L, n_tokens)
            log_z = language.log_prob(e, topic) + L * e.amax(-1)[:, 0].log()  # (NODES n,) p(z | t)
            log_w = torch.tensor(weights).log()[:, None] + log_z.view(NODES, n)  # (NODES, n)
            share = log_w.softmax(0)[..., None, None]  # (NODES, n, 1, 1)
            p = (share * p.view(NODES, n, L, -1)).sum(0)  # (n, L, n_tokens)
            return select_rows(p.log().to(z.device), at)
        return skip_texts(denoiser)
