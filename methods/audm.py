"""
Chapter 4. Uniform noise as masks that show a word, after AUDM (arXiv:2605.22765).

Uniform noise (4.1) tosses a coin m for each token, and then shows a word in its place. Draw that
word u once, for the whole way from noise to text, and let the network see the coin:

    forward    m_l = 1 with probability 1 - alpha_t,   u_l ~ Uniform(N)                        (4.2)
               z_l = x_l where m_l = 0, u_l where m_l = 1
    bound      -log p(x) <= E_u E_t E_m sum_l m_l -alpha'/(1 - alpha) (-log x_theta(x_l))      (4.3)
               with x_theta = p(x_l | z, m) where m_l = 1

(x, z_t) has udlm's distribution at every t. (z, m) is masked diffusion with N masks in place of
one: word w is the id w as text and N + 1 + w as noise. So text is carried over, the bound is a
cross-entropy at the noise, (4.3) is also the mean of the any-order form (3.1), no time is needed,
and every sampler of masks serves. u depends neither on x nor on m, so the exact x_theta does not
look at it: it is mdlm's, and the bound is as tight. A network has to learn that the words of noise
say nothing. What udlm's network does not see is m:

    noise?     p(m_l = 0 | z, other m) = alpha x_theta(z_l) / (alpha x_theta(z_l) + (1 - alpha)/N)
                                                                                               (4.4)
    udlm       p(x_l | z without z_l) = E[ x_theta(x_l) | z without z_l ], over the other m    (4.5)

Not equal to udlm's are distributions of two times: its words of noise jump on, ours stay. If each
were drawn again with probability 1 - alpha_t / alpha_s between s and t, (x, z_s, z_t) would be
udlm's too, with the same x_theta and the same bound.

`--told words` is the network of the paper: it sees z and all of u, and so m_l = [z_l = u_l], where
one word of text in N looks like noise. Its own word is evidence then, and (4.3) becomes

    bound      sum_l [z_l = u_l] -alpha'/(1 - alpha) (1 - p(u_l) - [x_l != u_l] (1 + log p(x_l)))
               with p(v) ~ x_theta(v) (1 - alpha + alpha [v = u_l]) = p(x_l = v | z, u)        (4.6)

It is as tight, and needs the time. A step opens noise as (0.3) does; a draw that is u stays noise.
`--sampler redraw` is another step, which draws u again (samplers/redraw.py).
"""
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from diffusion import Wrapper, ancestral, corrupt, probabilities, stratified
from flags import flag
from methods.base import Method, cross_entropy, loss_at, to_float32
from methods.mdlm import MDLM, masked_weight
from model import Transformer


class TwoVectors(Transformer):
    """The transformer with two vectors for each word, as text and as noise. It predicts text.

    The id N is a mask that shows no word yet: it shows a random one, another one in each call.
    """

    def __init__(self, vocab_size, *shape, **options):
        super().__init__(vocab_size // 2, *shape, **options)
        noise = torch.empty_like(self.embed)  # (N, D)
        nn.init.kaiming_uniform_(noise, a=5 ** 0.5)
        self.embed = nn.Parameter(torch.cat([self.embed.detach(), noise]))  # (2N, D)

    def embedding(self, z):
        n = self.vocab_size
        z = torch.where(z == n, n + 1 + torch.randint_like(z, n), z)  # (B, L)
        return super().embedding(z - (z > n).to(z.dtype))  # (B, L, D)


class ShowWords(Wrapper):
    """A denoiser of (z, m), called with masks in place of noise: they show the words u (B, L)."""

    def __init__(self, denoiser, mask, words):
        super().__init__(denoiser)
        self.mask, self.words = mask, words

    def show(self, z, first=0):
        """z (B, l), the tokens from `first` on, with N + 1 + u at its masks. -> (B, l)"""
        shown = self.mask + 1 + self.words[:, first:first + z.shape[1]]  # (B, l)
        return torch.where(z == self.mask, shown, z)  # (B, l)

    def __call__(self, z, t, at=None, cache=None, **layout):
        """A cache says which tokens of the text z are."""
        first = 0 if cache is None else cache.start
        layout = layout if cache is None else {**layout, "cache": cache}
        return self.denoiser(self.show(z, first), t, at=at, **layout)  # (N, V)


def add_evidence(logits, u, kappa):
    """p of (4.6) from x_theta; kappa = alpha / (1 - alpha). (N, V), u and kappa (N,) -> (N, V)"""
    logits = to_float32(logits)  # (N, V)
    return logits.scatter_add(-1, u[:, None], kappa.to(logits.dtype).log1p()[:, None])  # (N, V)


def told_cross_entropy(logits, x, u, kappa):
    """-log p(x) with p of (4.6). -> (N,) nats"""
    return cross_entropy(add_evidence(logits, u, kappa), x)  # (N,)


def told_bound(logits, x, u, kappa):
    """The sum of (4.6) without its weight. logits (N, V), the others (N,) -> (N,) nats"""
    log_p = add_evidence(logits, u, kappa).log_softmax(-1)  # (N, V)
    at_u, at_x = (log_p.gather(-1, v[:, None])[:, 0] for v in (u, x))  # (N,) each
    return -torch.expm1(at_u) - torch.where(x != u, 1 + at_x, 0.0)  # (N,)


class OwnEvidence(ShowWords):
    """For samplers: a denoiser of (z, u) whose logits at noise are those of p of (4.6)."""

    def __init__(self, denoiser, process, words):
        super().__init__(denoiser, process.mask, words)
        self.process, self.supports_fused_head = process, False

    def __call__(self, z, t, at=None, **layout):
        logits = super().__call__(z, t, at=at, **layout)[..., :self.mask]  # (N, V)
        kappa = self.process.alpha(t) / self.process.b(t, self.mask)  # (B, 1)
        return add_evidence(logits, self.words[at], kappa.expand_as(z)[at])  # (N, V)


@dataclass(eq=False)
class AUDM(MDLM):
    """--method audm: mdlm whose masks show random words; its bound is (4.3), or (4.6)."""
    told: str = flag("noise", "what the network sees beside z: which words are noise, or u of all "
                     "tokens (the paper)", ["noise", "words"], fixed=True)
    weighting: str = flag("simple", "train on bounded weights, of (4.6) the cross-entropy, or on "
                          "the bound itself", ["simple", "bound"])
    network = TwoVectors
    public_layout = None

    def __post_init__(self):
        super().__post_init__()
        self.vocab_size = 2 * self.n_tokens + 1
        if self.told == "words":
            self.uses_time, self.opens_masks = True, False
            self.samplers, self.distilled_by = ("ancestral", "redraw"), ()

    def cross_entropy(self, denoiser, x, z, t, weight=None, frozen=None, share=1.0):
        """-log x_theta(x) at the noise, whose words are drawn here, 0 elsewhere. -> (B, L) nats

        --told words: p of (4.6) in place of x_theta, and for --weighting bound the whole sum
        """
        words = torch.randint_like(x, self.n_tokens)  # (B, L)
        shown = ShowWords(denoiser, self.process.mask, words)
        if self.told == "noise":
            return super().cross_entropy(shown, x, z, t, weight, frozen, share)  # (B, L)
        rule = told_cross_entropy if self.weighting == "simple" else told_bound
        return self.score(shown, x, z, t, rule, weight, frozen, share + 1 / self.n_tokens)

    def score(self, shown, x, z, t, rule, weight, frozen=None, share=1.0):
        """weight * rule at noise, and at text that equals the word of its place. -> (B, L) nats"""
        like = x == shown.words  # (B, L)
        z = torch.where(like if frozen is None else like & ~frozen, self.process.mask, z)  # (B, L)
        at, kappa = z == self.process.mask, self.process.alpha(t) / self.process.b(t, shown.mask)
        facts, n = (x, shown.words, kappa), self.n_tokens
        return loss_at(shown, z, t, at, rule, facts, n, weight, frozen, min(1.0, share))  # (B, L)

    def nelbo(self, denoiser, x, frozen=None):
        """One draw of (4.3); or of (4.6) at times t = v^2, since 1/t varies. -> (B, L) nats"""
        if self.told == "noise":
            return super().nelbo(denoiser, x, frozen)  # (B, L)
        t = stratified(len(x), x.device).square().clamp(min=1e-6)  # (B, 1) dt/dv = 2 sqrt(t)
        z = corrupt(self.process, x, t, frozen)  # (B, L)
        shown = ShowWords(denoiser, self.process.mask, torch.randint_like(x, self.n_tokens))
        weight = 2 * t.sqrt() * masked_weight(self.process, t)  # (B, 1)
        return self.score(shown, x, z, t, told_bound, weight, frozen)  # (B, L)

    def prior(self, shape, device="cpu"):
        """Noise everywhere. -> (B, L) ids N + 1 + u"""
        return self.process.mask + 1 + torch.randint(self.n_tokens, shape, device=device)  # (B, L)

    def sample(self, denoiser, z, frozen, steps, sampler=ancestral, to_probs=probabilities,
               window=None, end=None):
        """From noise to text; yields (z, m) as ids (B, L), whose noise keeps its words."""
        mask = self.process.mask
        words = torch.where(z > mask, z, self.prior(z.shape, z.device)) - mask - 1  # (B, L)
        if self.told == "words":
            shown = OwnEvidence(denoiser, self.process, words)
            sampler = replace(sampler, step=partial(told_step, step=sampler.step))
        else:
            shown = ShowWords(denoiser, mask, words)
        for z in sampler(self.process, shown, z.clamp(max=mask), frozen, steps, to_probs):
            yield shown.show(z)  # (B, L)

    def likelihood(self, z, t):
        """Of (z, m): noise is a mask, whatever word it shows; of (z, u): see (4.6).

        -> (B, L, n_tokens)
        """
        e = super().likelihood(z.clamp(max=self.process.mask), t)  # (B, L, n_tokens)
        if self.told == "noise":
            return e
        u = z[..., None] - self.process.mask - 1 == torch.arange(self.n_tokens, device=z.device)
        return e + u * self.process.alpha(t)[..., None]  # (B, L, n_tokens)

    def oracle(self, language):
        """Of (z, u) the evidence of others depends on the time."""
        kind = Method if self.told == "words" else MDLM
        return kind.oracle(self, language)


def told_step(process, denoiser, z, frozen, s, t, to_probs, step):
    """A step of (0.3) or (4.7), after which text that equals u looks like noise. -> (B, L)"""
    z = step(process, denoiser, z, frozen, s, t, to_probs)  # (B, L)
    closed = (z == denoiser.words) & ~frozen & (s > 0)  # (B, L)
    return torch.where(closed, process.mask, z)  # (B, L)
