"""
Chapter 14. Discrete flow matching: DFM (arXiv:2407.15595). Masks: also 2402.04997.

Papers on flows count time from noise to text: their time is u = 1 - t, and kappa_u is our alpha_t.
A path from a source p0, masks or random words, to the text x has at every time the distribution

    path       q(z | x) = kappa [z = x] + (1 - kappa) p0(z),   kappa = u^n                  (14.20)
    rates      u(z -> v) = kappa'/(1 - kappa) ( p(v | z) - [v = z] ),  p(v | z) = p(x_l = v | z)
                                                                                            (14.21)
    bound      l = -kappa'/(1 - kappa) ( p(z) - [z = x] + [z != x] log p(x) )               (14.22)
    exact      E (14.22) - H = 1 - 1/N - (log N)/N for one token of N equally likely words  (14.23)
               from random words, and 0 from masks

(14.20) is (0.1) with alpha_t = (1 - t)^n. (14.21) is the mean over x of the rates that make it:
a token jumps to its clean word, and nowhere else. (14.22) compares the jumps of the model with
those of a path that knows x: the generalized KL. Its minimum is the full posterior p(x_l | z), and
so is that of the cross-entropy, `ce`.

Many rates have the marginals (14.20), and each has a bound. (0.2) is that of the reversal of noise
that jumps from word to word. Under masks both are the same jumps, and (14.22) is (0.2). From random
words they differ: the path of (14.21) knows whether a token has jumped already, z does not show it,
and the model pays for what it cannot know, (14.23), even if it is exact. `--bound reversal` is
(0.2) of x_theta(v) ~ p(v) / q(z | v), what the other tokens say. Each bounds the likelihood of
texts by its own steps: (14.21), `--sampler flow`, or (0.3), `--sampler ancestral`.

The published network outputs p(x_l | z). As t -> 0 it must tell that p(z) -> 1: if it does not, by
any share, (14.22) is infinite (draws end at t = 1e-6). With `--head others` it outputs x_theta, and
p is x_theta times the evidence q(z | v), (0.4), which makes that certain.
"""
from dataclasses import dataclass

import torch

from diffusion import (
    Absorbing,
    Ancestral,
    Uniform,
    Wrapper,
    ancestral,
    changeable,
    corrupt,
    likelihood,
    probabilities,
    stratified,
)
from flags import flag
from methods.base import Method, cross_entropy, inside, loss_at, skip_texts, to_float32
from methods.mdlm import any_order
from methods.udlm import draw_bound
from model import select_rows


class PowerMasks(Absorbing):
    """(14.20) from masks: alpha = (1 - t)^n."""

    def __init__(self, n_tokens, power=1.0):
        super().__init__(n_tokens)
        self.power = power

    def alpha(self, t):
        return (1 - t) ** self.power

    def dalpha(self, t):
        return -self.power * (1 - t) ** (self.power - 1)

    def noise(self, t):
        """1 - alpha, which near t = 0 would lose digits."""
        return -torch.expm1(self.power * torch.log1p(-t))

    def b(self, t, v):
        return self.noise(t) * (v == self.mask)

    def db(self, t, v):
        return -self.dalpha(t) * (v == self.mask)


class PowerWords(Uniform):
    """(14.20) from random words."""
    alpha, dalpha, noise = PowerMasks.alpha, PowerMasks.dalpha, PowerMasks.noise

    def __init__(self, n_tokens, power=1.0):
        super().__init__(n_tokens)
        self.power = power

    def b(self, t, v):
        return self.noise(t) / self.V * torch.ones_like(v)

    def db(self, t, v):
        return -self.dalpha(t) / self.V * torch.ones_like(v)


def flow_path(n_tokens, source, power):
    """The process of (14.20). For n = 1 it is that of mdlm or udlm."""
    masks = source == "mask"
    if power == 1:
        return (Absorbing if masks else Uniform)(n_tokens)
    return (PowerMasks if masks else PowerWords)(n_tokens, power)


def flow_factor(process, t):
    """kappa'/(1 - kappa) of (14.21). -> shape of t"""
    noise = torch.full_like(t, process.mask or 0, dtype=torch.long)  # a word, or the mask
    return -process.dalpha(t) / process.b(t, noise) / (1 if process.mask else process.V)


def flow_nats(logits, x, z):
    """(14.22) without its factor. logits (N, V), x, z (N,), z may be a mask -> (N,) nats"""
    log_p = to_float32(logits).log_softmax(-1)  # (N, V)
    at_x, at_z = (log_p.gather(-1, v.clamp(max=logits.shape[-1] - 1)[:, None])[:, 0]
                  for v in (x, z))  # (N,) each
    own = torch.where(z < logits.shape[-1], at_z.exp(), 0.0)  # (N,) p(z)
    return torch.where(z == x, 1.0, -at_x) - own  # (N,)


class FullPosterior(Wrapper):
    """A denoiser of p(x_l | z): `samplers/flow.py` needs no more."""
    predicts_posterior = True


class WithEvidence(Wrapper):
    """A denoiser of what the others say times the token's own evidence, (0.4): of p(x_l | z).

    sign -1: the other way round, from p(x_l | z) to what the others say.
    """

    def __init__(self, denoiser, process, sign=1):
        super().__init__(denoiser)
        self.process, self.sign, self.supports_fused_head = process, sign, False
        self.predicts_posterior = sign > 0

    def __call__(self, z, t, at=None, **layout):
        logits = to_float32(super().__call__(z, t, at=at, **layout))[..., :self.process.V]
        kappa = self.process.alpha(t) / self.process.b(t, torch.zeros_like(z))  # (B, L)
        own, words = (select_rows(a[..., None], at) for a in (kappa.log1p(), z))  # (N, 1) each
        return logits.scatter_add(-1, words, self.sign * own.to(logits.dtype))  # (N, V)


@dataclass(eq=False)
class DFM(Method):
    """--method dfm: from masks or random words to text. `nelbo` is (14.22), or (0.2)."""
    source: str = flag("mask", "where the way begins", ["mask", "uniform"], fixed=True)
    power: float = flag(1.0, "n of kappa = u^n", least=1, most=4, fixed=True)
    head: str = flag("posterior", "what the network outputs: p(x_l given z), as published, or what "
                     "the other tokens say, times which its own evidence is p", ["posterior",
                                                                                 "others"],
                     fixed=True)
    objective: str = flag("ce", "train on cross-entropies of p(x_l given z), or on (14.22)",
                          ["ce", "gkl"])
    bound: str = flag("gkl", "whose steps it bounds: those of --sampler flow, (14.22), or of "
                      "ancestral, (0.2); from masks they are the same", ["gkl", "reversal"],
                      later=True)

    def __post_init__(self):
        masks = self.source == "mask"
        self.process = flow_path(self.n_tokens, self.source, self.power)
        self.vocab_size, self.opens_masks, self.uses_time = self.process.V, masks, not masks
        if not masks:
            self.samplers, self.takes_steps = ("ancestral", "flow"), False

    @property
    def first_choice(self):
        return super().first_choice if self.opens_masks else "flow"

    @property
    def classifier_process(self):
        return self.process if self.opens_masks else None

    def loss(self, denoiser, x, frozen=None):
        """`ce`: -log p(x_l | z) where noise may have been; `gkl`: (14.22). -> (B, L) nats"""
        if self.objective == "gkl":
            return self.flow_bound(denoiser, x, frozen)  # (B, L)
        t = stratified(len(x), x.device)  # (B, 1)
        z, share = corrupt(self.process, x, t, frozen), self.share_changed()  # (B, L)
        return self.score(denoiser, z, t, cross_entropy, (x,), 1.0, frozen, share)  # (B, L)

    def nelbo(self, denoiser, x, frozen=None):
        """One draw of the bound; from masks that of mdlm, (3.1), which varies less. -> (B, L)"""
        if self.opens_masks:
            u = stratified(len(x), x.device)  # (B, 1)
            z, k, n = any_order(self.process, x, u, frozen)  # (B, L), (B, 1), (B, 1)
            masks = torch.distributions.Beta(k, (n - k + 1).clamp(min=1)).sample()  # (B, 1)
            t = 1 - (1 - masks.clamp(1e-6, 1)) ** (1 / self.power)  # (B, 1)
            return self.score(denoiser, z, t, cross_entropy, (x,), n / k, frozen)  # (B, L)
        if self.bound == "gkl":
            return self.flow_bound(denoiser, x, frozen)  # (B, L)
        return draw_bound(self.process, self.of_others(denoiser), x, frozen)  # (B, L)

    def of_others(self, denoiser):
        """x_theta of (0.2) and (0.3) from random words."""
        known = self.head == "others" or self.opens_masks
        return denoiser if known else WithEvidence(denoiser, self.process, -1)

    def posterior(self, denoiser):
        """p(x_l | z) of (14.21)."""
        if self.opens_masks:
            return denoiser
        given = self.head == "posterior"
        return FullPosterior(denoiser) if given else WithEvidence(denoiser, self.process)

    def flow_bound(self, denoiser, x, frozen=None):
        """One draw of (14.22), at times t = v^2 for uniform v: 1/t, its factor at t -> 0, has
        infinite variance at uniform times. -> (B, L) nats"""
        v = stratified(len(x), x.device)  # (B, 1)
        t = v.square().clamp(min=1e-6)  # (B, 1)
        z, weight = corrupt(self.process, x, t, frozen), 2 * v * flow_factor(self.process, t)
        share = self.share_changed(squared=True)
        return self.score(denoiser, z, t, flow_nats, (x, z), weight, frozen, share)  # (B, L)

    def share_changed(self, squared=False):
        """The share of tokens to score, at most: 1 - alpha in the mean over t, or over t = v^2."""
        t = (torch.arange(1000) + 0.5) / 1000  # (1000,)
        t = t.square() if squared else t  # (1000,)
        return (1 - self.process.alpha(t)).mean().item() if self.opens_masks else 1.0

    def score(self, denoiser, z, t, rule, facts, weight, frozen=None, share=1.0):
        """weight * rule where noise may have been. -> (B, L) nats"""
        at, denoiser = changeable(self.process, z, frozen), self.posterior(denoiser)  # (B, L)
        return loss_at(denoiser, z, t, at, rule, facts, self.n_tokens, weight, frozen, share)

    # ---- samples and the exact denoiser

    def sample(self, denoiser, z, frozen, steps, sampler=ancestral, to_probs=probabilities,
               window=None, end=None):
        """From noise to text; steps of (0.3) get x_theta. Yields z (B, L) after each step."""
        reversal = isinstance(sampler, Ancestral)
        denoiser = self.of_others(denoiser) if reversal else self.posterior(denoiser)
        return sampler(self.process, denoiser, z, frozen, steps, to_probs)

    def likelihood(self, z, t):
        """q(z_t | x = v), under masks at t = 1/2: z shows where they are. -> (B, L, n_tokens)"""
        t = torch.full_like(t, 0.5) if self.opens_masks else t  # (B, 1|L)
        return likelihood(self.process, z, t)

    def oracle(self, language):
        """log p(x_l | z), or what the others say. -> (B, L, n_tokens)"""
        others = self.head == "others"

        def denoiser(z, t, at=None, label=None, **layout):
            e = self.likelihood(z, inside(t))  # (B, L, n_tokens)
            p = language.posterior(e, leave_one_out=others, topic=label)  # (B, L, n_tokens)
            return select_rows(p.log().to(z.device), at)
        return skip_texts(denoiser)
