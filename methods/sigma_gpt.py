"""
Chapter 18. Any-order autoregression: sigma-GPT (arXiv:2404.09562).

A causal transformer reads a text in any order s, behind a start symbol, [start, x_s(0), ..,
x_s(L-2)], and row i of its output predicts x_s(i), the token that comes next in the order:

    -log p_s(x) = sum_i -log p_theta(x_s(i) | s, x_s(0) .. x_s(i-1))                         (18.16)
    -log E_s p_s(x) <= E[ -log (1/n) sum_j p_sj(x) ] <= E_s[ -log p_s(x) ],  s_j ~ s         (18.17)

(18.16) is exact for the order s, in one pass of L tokens. A text that is drawn in a random order
has the probability E_s p_s(x), the mixture on the left of (18.17). The mean of (18.16) over orders,
on the right, bounds it. The log of the mean of n orders is tighter, and falls with n. All three are
equal if the orders agree about x, as they do for the exact law.

Each token has two places: its own, s(i-1), and the one that it predicts, s(i). Positions are rotary
(model.py): the query of a token turns by the place that it predicts, and its key by its own. So
what a token sees lies at a distance from the gap that it fills. (The paper adds an embedding of
both places to the token.) In the order of reading, both places are one apart, and this is ar.

Given tokens come first in the order, so any gaps are filled with all that is given in sight.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from diffusion import ancestral, categorical, probabilities
from flags import flag
from methods.base import Method, copy_capabilities, cross_entropy, loss_at
from methods.in_order import oracle_in_order
from methods.left_to_right import new_cache
from model import causal


def log_mean_exp(nats, free):
    """-log of the mean probability of n orders, as nats of each token. nats (n, B, L) -> (B, L)

    With w_j = p_j / sum p it is sum_j w_j (-log p_j) + sum_j w_j log(n w_j), whose second part is
    spread over the tokens that are `free` (B, L).
    """
    w = (-nats.double().sum(-1)).softmax(0)  # (n, B)
    apart = torch.special.xlogy(w, len(w) * w).sum(0)  # (B,)
    share = free.double() / free.sum(-1, keepdim=True).clamp(min=1)  # (B, L)
    return (w[..., None] * nats).sum(0) + apart[:, None] * share  # (B, L)


@dataclass(eq=False)
class SigmaGPT(Method):
    """--method sigma_gpt. Training takes a random order for each text."""
    token_order: str = flag("random", "of the bound and of samples: a random one for each text, or "
                            "from left to right, where the likelihood is exact", ["random", "left"])
    n_orders: int = flag(1, "orders for each draw of the bound: the log of their mean probability "
                         "is tighter than the mean of their logs", least=1)
    predicts = "the next token of an order"
    mask_mod = staticmethod(causal)
    bidirectional, classifier_process, samplers = False, None, ("ancestral", "burst")
    one_by_one = True

    def __post_init__(self):
        self.start, self.vocab_size = self.n_tokens, self.n_tokens + 1
        self.exact = self.token_order == "left"  # one order is the model; a random one is not

    # ---- orders

    def draw_order(self, frozen, order):
        """Places in the order in which they are read, given ones first. frozen (B, L) -> (B, L)"""
        key = torch.arange(frozen.shape[1], device=frozen.device) / frozen.shape[1]  # (L,)
        if order == "random":
            key = torch.rand(frozen.shape, device=frozen.device)  # (B, L)
        return (key - frozen.float()).argsort(-1)  # (B, L)

    def shift(self, words, order):
        """[start, x_s(0), .., x_s(L-2)] (B, L) from words in the order, and for each token the
        place that it predicts and its own, (B, 2, L)"""
        tokens = F.pad(words, (1, 0), value=self.start)[:, :-1]  # (B, L)
        own = F.pad(order, (1, 0), value=-1)[:, :-1]  # (B, L)
        return tokens, torch.stack([order, own], 1)

    # ---- losses

    def score(self, denoiser, x, frozen, order):
        """(18.16) for one order of each text. -> (B, L) nats"""
        given = torch.zeros_like(x, dtype=torch.bool) if frozen is None else frozen  # (B, L)
        order = self.draw_order(given, order)  # (B, L)
        words, given = x.gather(1, order), given.gather(1, order)  # (B, L) each, in the order
        tokens, positions = self.shift(words, order)  # (B, L), (B, 2, L)

        def ordered(z, t, at, **head):
            if at.dtype == torch.bool:  # texts without selected positions would be left out
                at = at.flatten().nonzero()[:, 0]  # (N,)
            return denoiser(z, None, at=at, positions=positions, **head)  # (N, V)
        denoise = copy_capabilities(denoiser, ordered)
        nats = loss_at(denoise, tokens, None, ~given, cross_entropy, (words,), self.n_tokens, 1.0,
                       None if frozen is None else given)  # (B, L) in the order
        return nats.gather(1, order.argsort(-1))  # (B, L)

    def loss(self, denoiser, x, frozen=None):
        return self.score(denoiser, x, frozen, "random")  # (B, L)

    def nelbo(self, denoiser, x, frozen=None):
        """One draw of (18.17): its right, or its middle with --n_orders. -> (B, L) nats"""
        if self.exact or self.n_orders == 1:
            return self.score(denoiser, x, frozen, self.token_order)  # (B, L)
        nats = torch.stack([self.score(denoiser, x, frozen, "random")
                            for _ in range(self.n_orders)])  # (n, B, L)
        return log_mean_exp(nats, torch.ones_like(x) if frozen is None else ~frozen)  # (B, L)

    # ---- samples

    @torch.no_grad()
    def sample(self, denoiser, z, frozen, steps, sampler=ancestral, to_probs=probabilities,
               window=None, end=None):
        """One token after the other, in an order of its own for each text; yields z after each."""
        if sampler.write_in_order:
            yield from sampler.write_in_order(self, denoiser, z, frozen, to_probs)
            return
        order = self.draw_order(frozen, self.token_order)  # (B, L)
        free, cache = ~frozen.gather(1, order), new_cache(denoiser, z.shape[1], 1)
        for i in range(z.shape[1]):
            rows = free[:, i].nonzero()[:, 0]  # (b,)
            if len(rows):
                logits = self.next_token(denoiser, z, order, rows, i, cache)  # (b, V)
                word = categorical(to_probs(logits[:, :self.n_tokens]))  # (b,)
                z = z.index_put((rows, order[rows, i]), word)  # (B, L)
                yield z

    def next_token(self, denoiser, z, order, rows, i, cache):
        """Logits of token i of the order in some texts, from those before it. -> (b, V)

        Keys and values of all earlier tokens stay in the cache, since no later one changes them.
        """
        tokens, positions = self.shift(z.gather(1, order), order)  # (B, L), (B, 2, L)
        at = torch.zeros_like(z, dtype=torch.bool)  # (B, L)
        at[rows, i], read = True, slice(cache.read if cache else 0, i + 1)
        if cache is None:
            tokens, positions, at = tokens[rows], positions[rows], at[rows]  # (b, ..) each
        parts = dict(at=at[:, read], positions=positions[..., read])
        if cache is None:
            return denoiser(tokens[:, read], None, **parts)  # (b, V)
        logits = denoiser(tokens[:, read], None, cache=cache, **parts)  # (b, V)
        cache.keep(i + 1 - cache.read)
        return logits

    def oracle(self, language):
        """The exact distribution of the next token of any order."""
        return oracle_in_order(language, self.n_tokens)
