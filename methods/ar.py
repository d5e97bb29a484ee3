"""
Chapter 1. Autoregression, the baseline of all chapters: one word after the other.

    -log p(x) = sum_l -log p_theta(x_l | x_0 .. x_(l-1))                                       (1.1)

is exact: there is no noise and no bound. The input is the text, shifted by one place behind a start
symbol, [start, x_0, .., x_(L-2)], under causal attention: row l of the logits predicts x_l from all
that comes before it. L tokens take L network calls, in order. With the keys and values of earlier
tokens in a cache (model.Cache), each call reads a single token.

With --heads H one state also predicts the tokens after the next one (arXiv:1811.03115), drafts that
it then checks itself (samplers/speculative.py, --draft heads):

    p_j(x_(l+j-1) | x_<l) = softmax( W (h_l + silu(A_j h_l)) + b ),   j = 2 .. H
    loss = sum_l [ -log p_theta(x_l | x_<l) + 1/(H - 1) sum_j -log p_j(x_(l+j-1) | x_<l) ]   (18.14)
"""
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn as nn
import torch.nn.functional as F

from diffusion import Absorbing, ancestral, categorical, probabilities
from flags import flag
from methods.base import Method, cross_entropy, loss_at, skip_texts
from methods.left_to_right import end_texts, new_cache, read_with_cache
from model import Transformer, block_causal, causal, select_rows


class ManyHeads(Transformer):
    """The network of --heads. network(z, ahead=True) -> logits (N, H, V), or (B, L, H, V)"""

    def __init__(self, vocab_size, *sizes, heads, **options):
        super().__init__(vocab_size, *sizes, **options)
        D = self.embed.shape[1]
        self.more = nn.ModuleList(nn.Linear(D, D, bias=False) for _ in range(heads - 1))

    def forward(self, z, noise=None, at=None, ahead=False, **layout):
        if not ahead:
            return super().forward(z, noise, at, **layout)
        h = super().forward(z, noise, at, head=lambda h, weight, bias: h, **layout)  # (N, D)
        every = [h, *(h + F.silu(layer(h)) for layer in self.more)]  # (N, D) each
        return self.apply_head(torch.stack(every, -2))  # (N, H, V)


@dataclass(eq=False)
class AR(Method):
    """--method ar. `nelbo` is the exact negative log-likelihood, and so is `loss` for one head."""
    also_called = ("autoregressive", "gpt", "causal", "lm")
    heads: int = flag(1, "tokens that one state predicts; more than 1: it can draft for itself",
                      least=1, most=100, fixed=True)
    predicts = "the next token"  # the input is shifted, and the special id is no mask
    mask_mod = staticmethod(causal)
    bidirectional, exact, block_length, one_by_one = False, True, 1, True
    samplers = ("ancestral", "speculative")

    def __post_init__(self):
        self.start, self.vocab_size = self.n_tokens, self.n_tokens + 1
        self.network = partial(ManyHeads, heads=self.heads) if self.heads > 1 else Transformer

    def shift(self, x):
        """[start, x_0, .., x_(L-2)], the input that predicts x. -> (B, L)"""
        return F.pad(x, (1, 0), value=self.start)[:, :-1]  # (B, L)

    def nelbo(self, denoiser, x, frozen=None):
        """(1.1), token by token. Frozen tokens are read but not scored. -> (B, L) nats"""
        at = torch.ones_like(x, dtype=torch.bool) if frozen is None else ~frozen  # (B, L)
        shifted = self.shift(x)  # (B, L)
        return loss_at(denoiser, shifted, None, at, cross_entropy, (x,), self.n_tokens, 1.0, frozen)

    def loss(self, denoiser, x, frozen=None):
        """(1.1), or (18.14), a token's share of it in its place. -> (B, L) nats"""
        if self.heads == 1:
            return self.nelbo(denoiser, x, frozen)  # (B, L)
        logits = denoiser(self.shift(x), None, ahead=True)[..., :self.n_tokens]  # (B, L, H, V)
        total, L = 0.0, x.shape[1]
        for j in range(min(self.heads, L)):
            ahead = logits[:, :L - j, j].flatten(0, 1)  # (B (L - j), V)
            nats = cross_entropy(ahead, x[:, j:].flatten()).view(len(x), -1)  # (B, L - j)
            total = total + F.pad(nats, (j, 0)) / (self.heads - 1 if j else 1)  # (B, L)
        return total if frozen is None else total.masked_fill(frozen, 0.0)  # (B, L)

    @torch.no_grad()
    def sample(self, denoiser, z, frozen, steps, sampler=ancestral, to_probs=probabilities,
               window=None, end=None):
        """From left to right; yields z after each token. Given tokens further right are kept, but
        they are not read.

        window: how many tokens the network sees, for texts longer than in training
        """
        if sampler.write_in_order:
            yield from sampler.write_in_order(self, denoiser, z, frozen, to_probs, window, end)
            return
        going = torch.arange(len(z), device=z.device)  # (b,) texts that have not ended
        cache = new_cache(denoiser, z.shape[1], 1, window)
        for l in range(z.shape[1]):
            at = ~frozen[going, l]  # (b,)
            if at.any():
                logits = self.next_token(denoiser, z[going, :l + 1], at[:, None], cache)  # (N, V)
                word = categorical(to_probs(logits[:, :self.n_tokens]))  # (N,)
                z = z.index_put((going[at], torch.tensor(l, device=z.device)), word)  # (B, L)
                z, going = end_texts(z, frozen, l, l + 1, end, going, cache)  # (B, L), (b',)
                yield z

    def next_token(self, denoiser, z, at, cache):
        """Logits of the last token of z (B, n), from those before it, in the rows `at` (B, 1)."""
        shifted = self.shift(z)  # (B, n)
        if cache is None:
            return denoiser(shifted, None, at=F.pad(at, (z.shape[1] - 1, 0)))  # (N, V)
        pattern = block_causal(1, cache.reach)
        return read_with_cache(denoiser, cache, shifted, at, z.shape[1], pattern)  # (N, V)

    def oracle(self, language):
        """The exact distribution of each next token."""
        def denoiser(z, t, at=None, label=None, **layout):
            """z = [start, x_0, .., x_(L-2)]. Row l predicts x_l, and its own entry is not read."""
            x = z.roll(-1, dims=1).clamp(max=language.V - 1)  # (B, L)
            return select_rows(language.predict(x, label).log().to(z.device), at)
        return skip_texts(denoiser)

    @property
    def classifier_process(self):
        """To a classifier, the beginning of a text is a text whose rest is masked."""
        return Absorbing(self.n_tokens)
