"""
Chapter 15. LCM (arXiv:2412.08821): sentence after sentence, each from the vectors of those before.

A text is cut into sentences of --sentence tokens. Each is encoded and decoded by itself, and the
denoiser of sentence i reads the latents of the sentences before it, without noise:

    bound      -log p(x) <= sum_i [ (15.5) of sentence i given x_1 .. x_(i-1) ]              (15.13)

The network has two towers: one reads the past in order, so output i knows sentences 1 .. i - 1, and
the other one sees the noisy latents of sentence i and outputs 1 .. i, but no other noisy sentence.
While sampling, what has been written is encoded again. A share of the texts in training has no
past, and --context_guidance w moves samples away from what is likely without it, as published:

    guidance   e_w = e_0 + w (e_c - e_0),   eps' = e_w (phi std(e_c) / std(e_w) + 1 - phi)   (15.14)

with eps' of the context (c) and without (0), and phi = 0.7 to keep its size. At noise alone eps' is
z, and guidance is left out. The public sampler makes 50 steps of 40, since it rounds their distance
down. The network outputs h', and the loss is |h - h'|^2; the schedule is the cosine of 2102.09672.
"""
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

from diffusion import ancestral, probabilities
from flags import flag
from gaussian import signal
from methods.gammas import Alpha2
from methods.latent import Latent
from methods.latent_network import LatentText, VectorTransformer, of_blocks, only_seen
from methods.latent_space import one_hot
from model import causal

NOISE_ALONE = 10.0  # gamma above which there is nothing to guide
PHI = 0.7  # of (15.14)


class SentenceNetwork(LatentText):
    """The network: K latents for each of n sentences of c tokens, (B, n K, d) in one row."""

    def __init__(self, c, vocab_size, n_layer, n_head, n_embd, latents, dim, *parts, **options):
        super().__init__(vocab_size, n_layer, n_head, n_embd, latents, dim, *parts, **options)
        self.c, self.read_past = c, nn.Linear(latents * dim, n_embd)
        self.past = VectorTransformer(n_embd, n_layer, n_head, n_embd, cond_dim=0,
                                      **of_blocks(options))
        self.past.head.reset_parameters()

    def forward(self, z, noise=None, at=None, label=None, words=None, alone=None):
        """As LatentText. alone (B, 1) bool: texts whose past is hidden, None for no text"""
        if noise is None:
            return super().forward(z, None, at, label, words)
        at = torch.ones_like(words, dtype=torch.bool) if at is None else at  # (B, L)
        return self.denoise_in_order(z, noise, words, at, label, alone)  # (B, n K, d)

    def cut(self, a, fill):
        """Sentences as rows; the last one is filled up. (B, L) -> (B n, c)"""
        return F.pad(a, (0, -a.shape[1] % self.c), value=fill).reshape(-1, self.c)  # (B n, c)

    def encode(self, x, at):
        h = super().encode(self.cut(x, self.blank), self.cut(at, False))  # (B n, K, d)
        return h.reshape(len(x), -1, h.shape[-1])  # (B, n K, d)

    def decode(self, z, words, at):
        rows = z.reshape(-1, self.K, z.shape[-1])  # (B n, K, d)
        return super().decode(rows, self.cut(words, self.blank), self.cut(at, False))  # (N, V)

    def read_context(self, words):
        """What is known of the past of each sentence. (B, L) -> (B, n, D)"""
        with torch.no_grad():
            h = self.normalize(self.encode(words, torch.ones_like(words, dtype=torch.bool)))
        h = self.read_past(h.reshape(len(h), -1, self.K * h.shape[-1]))  # (B, n, D)
        h = F.pad(h[:, :-1], (0, 0, 1, 0))  # (B, n, D) nothing before the first one
        return self.past(h, mask_mod=causal)  # (B, n, D)

    def denoise_in_order(self, z, gamma, words, at, label, alone):
        past, at = self.read_context(words), self.cut(at, False)  # (B, n, D), (B n, c)
        n, B = past.shape[1], len(past)
        each = lambda a: None if a is None else a.repeat_interleave(n, 0)  # (B, ..) -> (B n, ..)
        z = z.reshape(B * n, self.K, -1).to(past.dtype)  # (B n, K, d|2d)
        h = self.read_noisy(z) + self.places  # (B n, K, D)
        seen = torch.ones(n, n, dtype=torch.bool, device=z.device).tril().repeat(B, 1)  # (B n, n)
        if alone is not None:  # the first output knows of no sentence
            seen = seen & ~(each(alone) & (torch.arange(n, device=z.device) > 0))  # (B n, n)
        parts = [h, each(past), self.embed.detach()[self.cut(words, self.blank)]]  # (B n, .., D)
        seen = self.beside_latents(torch.cat([seen, ~at & (self.cut(words, self.blank)
                                                           < self.blank)], 1))  # (B n, K + n + c)
        out = self.denoiser(torch.cat(parts, 1), each(gamma), label=each(label),
                            mask_mod=only_seen(seen))[:, :self.K]  # (B n, K, d)
        return out.reshape(B, n * self.K, -1)  # (B, n K, d)


@dataclass(eq=False)
class LCM(Latent):
    """--method lcm."""
    latents: int = flag(4, "vectors of a sentence", least=1, most=10_000, fixed=True)
    sentence: int = flag(8, "tokens of a sentence", least=1, fixed=True)
    context_dropout: float = flag(0.15, "share of the texts in training whose past is hidden",
                                  least=0, most=1)
    context_guidance: float = flag(1.0, "towards the past, (15.14): 0 ignores it, 1 is as in the "
                                   "data, more is stronger", least=0, most=100, later=True)
    outputs_h = True

    def schedule(self):
        return Alpha2("cosine", -7.37, 15.0)

    def loss_weight(self, gamma):
        return torch.ones_like(gamma)

    def network(self, vocab_size, *shape, **options):
        inputs = self.dim * (2 if self.self_condition else 1)
        return SentenceNetwork(self.sentence, vocab_size, *shape, self.latents, self.dim, inputs,
                         **options)

    def output(self, denoiser, z, t, at, x, fed=None, **layout):
        """In training some of the texts have no past."""
        if torch.is_grad_enabled() and not layout and self.context_dropout:
            layout = dict(alone=torch.rand(len(x), 1, device=x.device) < self.context_dropout)
        return super().output(denoiser, z, t, at, x, fed, **layout)  # (B, n K, d)

    # ---- samples

    def count_sentences(self, L):
        return -(-L // self.sentence)

    def count_states(self, length, steps):
        return self.count_sentences(length) * steps

    def shape(self, x):
        n = self.count_sentences(x.shape[1])
        return len(x), x.shape[1] if self.per_token else n * self.latents, self.dim

    def inside(self, x, i):
        """The tokens of sentence i. -> (L,) bool"""
        return torch.arange(x.shape[1], device=x.device) // self.sentence == i  # (L,)

    @torch.no_grad()
    def sample(self, denoiser, z, frozen, steps, sampler=ancestral, to_probs=probabilities,
               window=None, end=None):
        """Sentence after sentence; yields words (B, L) after each step."""
        x = z  # (B, L)
        for i in range(self.count_sentences(x.shape[1])):
            for x in self.walk(denoiser, x, ~frozen & self.inside(x, i), steps, sampler, to_probs):
                yield x

    def guess(self, denoiser, z, t, at, x, fed=None):
        """(15.14) in a walk. -> (B, n K, d)"""
        h = self.estimate(denoiser, z, t, at, x, fed)  # (B, n K, d)
        gamma, w = self.gamma(t), self.context_guidance  # (B, 1)
        if w == 1 or gamma.max() > NOISE_ALONE:
            return h
        alone = torch.ones(len(x), 1, dtype=torch.bool, device=x.device)  # (B, 1)
        other = self.output(denoiser, z, t, at, x, fed, alone=alone)  # (B, n K, d)
        alpha, sigma = (a[..., None].to(h.dtype) for a in signal(gamma))  # (B, 1, 1) each
        rows = lambda a: a.reshape(len(x), self.count_sentences(x.shape[1]), -1)  # (B, n, K d)
        eps, eps_0 = (rows((z - alpha * a) / sigma) for a in (h, other))  # (B, n, K d) each
        return (z - sigma * rescaled(eps, eps_0, w).reshape(z.shape)) / alpha  # (B, n K, d)

    # ---- the exact denoiser

    def posterior(self, language, evidence, words, at, label):
        """Each sentence from its own evidence and the words before it. -> (B, L, V)"""
        known, parts = one_hot(words, self.n_tokens), []  # (B, L, V)
        for i in range(self.count_sentences(words.shape[1])):
            own = self.inside(words, i)  # (L,)
            if not (own & at).any():  # nothing is asked
                parts.append(known[:, own])  # (B, c, V)
                continue
            before = own.long().argmax() > torch.arange(len(own), device=own.device)  # (L,)
            e = torch.where((own & at)[..., None], evidence, 1.0)  # (B, L, V)
            e = torch.where((before | own & ~at)[..., None], known, e)  # (B, L, V)
            p = language.posterior(e, leave_one_out=False, topic=label)  # (B, L, V)
            parts.append(p[:, own.to(p.device)].to(at.device))  # (B, c, V)
        return torch.cat(parts, 1)  # (B, L, V)


def rescaled(eps, eps_0, w, phi=PHI):
    """(15.14), deviations over the last dimension. eps, eps_0 (..., d) -> (..., d)"""
    guided = eps_0 + w * (eps - eps_0)  # (..., d)
    size = eps.std(-1, keepdim=True) / guided.std(-1, keepdim=True)  # (..., 1)
    return guided * (phi * size + 1 - phi)
