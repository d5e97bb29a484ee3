"""
Chapter 3. Masked diffusion: MDLM (arXiv:2406.07524), and at once MD4, RADD and LLaDA (2502.09992).

Noise turns tokens into one extra symbol, the mask m. With alpha_t = 1 - t, (0.1)-(0.3) become

    (0.1) for masks    z = x with probability alpha_t, else m
    (0.2) for masks    l = [z = m] -alpha'/(1 - alpha) (-log x_theta(x)) = [z = m] (1/t) CE
    (0.3) for masks    a mask opens with probability (alpha_s - alpha_t) / (1 - alpha_t): it becomes
                       a draw from x_theta. Text stays text

with CE = -log x_theta(x), the cross-entropy. A masked token carries no information about itself, so
the output is already p(x | z), and the network needs no time: z shows which tokens are masked.
Drawing the number of masks first gives the same bound in any-order form:

    -log p(x) <= E_k E_z sum_l [z_l = m] (L/k) CE,   k ~ Uniform{1..L} masks anywhere          (3.1)

Its weights are at most L, while 1/t is unbounded and has infinite variance.

Complementary masks (PGM, arXiv:2505.18883; LaViDa, 2505.16839): train on z and on z', which hides
what z shows. A token is a mask with probability r = 1 - alpha_t in z, and 1 - r in z'. Each is
scored once, and the mean stays that of (0.2):

    l = 1/2 (-alpha'/r) CE(z) where z has a mask,  1/2 (-alpha'/(1 - r)) CE(z') elsewhere      (3.9)
"""
from dataclasses import dataclass

import torch

from diffusion import Absorbing, corrupt, stratified
from flags import flag
from methods.base import Method, cross_entropy, loss_at


def masked_weight(process, t):
    """The weight of a cross-entropy in (0.2): 1/t for the linear alpha. -> (B, 1|L)"""
    # exercise 4: the weight of a mask, (0.2), 1 line
    return -process.dalpha(t) / process.b(t, process.mask)  # (B, 1|L)
    # end


def masked_bound(process, cross_entropy, z, t):
    """(0.2) from the cross-entropy (B, L), whose values at text do not matter. -> (B, L) nats"""
    # exercise 4: the bound of masks, (0.2), 1 line
    return torch.where(z == process.mask, masked_weight(process, t) * cross_entropy, 0.0)  # (B, L)
    # end


def any_order(process, x, u, frozen=None):
    """The draw of (3.1): mask k = ceil(u n) random positions of the n that are not given.

    u (B, 1) uniform -> z (B, L), k (B, 1), n (B, 1)
    """
    given = torch.zeros_like(x, dtype=torch.bool) if frozen is None else frozen  # (B, L)
    n = (~given).sum(-1, keepdim=True)  # (B, 1)
    # exercise 5: mask k random positions, (3.1), 3 lines
    k = (u * n).ceil().clamp(min=1)  # (B, 1) of 1 .. n
    order = torch.rand(x.shape, device=x.device).masked_fill(given, 2).argsort(-1)  # (B, L)
    return torch.where((order.argsort(-1) < k) & ~given, process.mask, x), k, n
    # end


def complement(process, x, z, frozen=None):
    """z' of (3.9): masks where z shows text, and text where z has masks. -> (B, L)"""
    shown = z == process.mask if frozen is None else (z == process.mask) | frozen  # (B, L)
    return torch.where(shown, x, process.mask)  # (B, L)


@dataclass(eq=False)
class MDLM(Method):
    """--method mdlm. `simple` trains on the cross-entropy of masked tokens, whose gradient varies
    less than that of (0.2); `bound` trains on (0.2). In both cases `nelbo` is the bound."""
    also_called = ("masked", "mask", "masking", "absorb", "absorbing", "mdm", "mdml", "llada")
    weighting: str = flag("simple", "train on bounded weights or on the bound itself",
                          ["simple", "bound"])
    complement: bool = flag(False, "train on complementary masks: each text twice in a step, each "
                                   "token masked once")
    opens_masks = True
    distilled_by, public_layout = ("sdtt", "streak"), "mdlm"

    def __post_init__(self):
        self.process, self.vocab_size = Absorbing(self.n_tokens), self.n_tokens + 1

    def cross_entropy(self, denoiser, x, z, t, weight=None, frozen=None, share=1.0):
        """-log x_theta(x) at the masks, 0 elsewhere: text is carried over. -> (B, L) nats

        weight, frozen: promised to loss_at; share: the expected share of masks, at most
        """
        at, n = z == self.process.mask, self.n_tokens  # (B, L)
        return loss_at(denoiser, z, t, at, cross_entropy, (x,), n, weight, frozen, share)  # (B, L)

    def loss(self, denoiser, x, frozen=None):
        """What training minimizes. -> (B, L)

        `simple` is a surrogate: 3 CE, about the size of the bound, at times of density 2 (1 - t).
        Training gains most from texts that keep most of their words (measured).
        """
        if self.complement:
            return self.complementary_loss(denoiser, x, frozen)  # (B, L)
        t, weight, share = self.draw_times(x)  # (B, 1), (B, 1) or 3, a number
        z = corrupt(self.process, x, t, frozen)  # (B, L)
        return self.cross_entropy(denoiser, x, z, t, weight, frozen, share)  # (B, L)

    def draw_times(self, x):
        """Times of `loss`, the weights of its terms, and the share of masks that it expects.
        -> (B, 1), (B, 1) or a number, a number"""
        simple, t = self.weighting == "simple", stratified(len(x), x.device)  # (B, 1)
        t = 1 - (1 - t).sqrt() if simple else t  # (B, 1)
        return t, 3.0 if simple else masked_weight(self.process, t), self.share_masked(simple)

    def complementary_loss(self, denoiser, x, frozen=None):
        """(3.9). For `simple` the weights are 6 (1 - r) and 6 r: those of `loss` times the density
        of its times. -> (B, L)"""
        t, share = stratified(len(x), x.device), self.share_masked(simple=False)  # (B, 1)
        z, r = corrupt(self.process, x, t, frozen), self.process.b(t, self.process.mask)  # (B, L)
        other, nats = complement(self.process, x, z, frozen), 0.0  # (B, L)
        for z, r, share in ((z, r, share), (other, self.process.alpha(t), 1 - share)):
            weight = 6 * (1 - r) if self.weighting == "simple" else -self.process.dalpha(t) / r
            nats = nats + self.cross_entropy(denoiser, x, z, r, weight / 2, frozen, share)  # (B, L)
        return nats

    def share_masked(self, simple):
        """The share of masks that `loss` expects: the mean of 1 - alpha over its times."""
        t = (torch.arange(1000) + 0.5) / 1000  # (1000,)
        return (1 - self.process.alpha(1 - (1 - t).sqrt() if simple else t)).mean().item()

    def nelbo(self, denoiser, x, frozen=None):
        """One draw of (3.1); t is drawn given k, for networks that read it. -> (B, L) nats"""
        u = stratified(len(x), x.device)  # (B, 1)
        z, k, n = any_order(self.process, x, u, frozen)  # (B, L), (B, 1), (B, 1)
        t = torch.distributions.Beta(k, (n - k + 1).clamp(min=1)).sample().clamp(1e-6, 1)  # (B, 1)
        return n / k * self.cross_entropy(denoiser, x, z, t)  # (B, L)

    def oracle(self, language):
        """At any time: evidence under masks does not depend on it, and at t = 1 alpha may be 0."""
        exact = super().oracle(language)

        def denoiser(z, t, at=None, label=None, **layout):
            return exact(z, torch.full((1, 1), 0.5, device=z.device), at, label)
        return denoiser
