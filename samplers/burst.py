"""
Chapter 18. Burst sampling (arXiv:2404.09562): a model that predicts any place drafts for itself.

In any order, a model can predict all places that come next from the same text, in one call: a draft
of gamma tokens, independent given the text. A second call predicts each of them from those before
it in the order. Tokens are kept by (18.1), and the first refused one is drawn anew by (18.2), so
texts have the model's own law for that order. The first draft token is always kept, and a second
token always follows, so two calls write at least two tokens.

The paper keeps tokens by (18.1), too, but leaves a refused place open: it is drafted again, from
all of its law, which favors what was refused. That is not lossless (tests/samplers/test_burst.py
has the figure), nor is its choice among several orders of the one that keeps most.
"""
from collections import Counter
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from diffusion import Sampler, categorical
from flags import flag
from methods.in_order import see_earlier
from methods.left_to_right import new_cache
from samplers.speculative import verify


@dataclass(eq=False)
class Burst(Sampler):
    """--sampler burst: two calls for at least two tokens, as many as the model itself confirms."""
    gamma: int = flag(8, "tokens that a draft has", least=1, most=1000)
    spent: Counter = field(default_factory=Counter)  # by all texts
    spent_before: Counter = field(default_factory=Counter)  # by all batches but the last

    def fits(self, method):
        if method.samplers is None:
            return f"drafts the next tokens of an order, in which {method.name} does not write"

    def costs(self, whole=False):
        """Of the last batch, or of all texts."""
        before = {} if whole else self.spent_before
        calls, tokens = (self.spent[what] - before.get(what, 0) for what in ("calls", "tokens"))
        return {"tokens_per_call": round(tokens / max(1, calls), 3)}

    @torch.no_grad()
    def write_in_order(self, method, denoiser, z, frozen, to_probs, window=None, end=None):
        """Yields z (B, L) after each pair of calls. Each text goes on at its own pace."""
        self.spent_before, L = self.spent.copy(), z.shape[1]
        order = method.draw_order(frozen, method.token_order)  # (B, L)
        words, place = z.gather(1, order), frozen.sum(-1)  # (B, L) in the order, (B,) how many
        cache, going = new_cache(denoiser, 2 * L, 1), (place < L).nonzero()[:, 0]  # (b,)
        while len(going):
            text, new = self.cycle(method, denoiser, words[going], order[going], place[going],
                                   to_probs, cache)  # (b, L), (b,)
            self.spent.update(calls=2 * len(going), tokens=int((new - place[going]).sum()))
            words, place = words.index_put((going,), text), place.index_put((going,), new)
            stay = (new < L).nonzero()[:, 0]  # (b',)
            if cache and len(stay) < len(going):
                cache.select(stay)
            going = going[stay]  # (b',)
            yield words.gather(1, order.argsort(-1))  # (B, L)

    def cycle(self, method, denoiser, words, order, place, to_probs, cache):
        """Draft and check. words, order (B, L), place (B,): how many words there are
        -> words, how many there are then"""
        (B, L), g, V = words.shape, self.gamma, method.n_tokens
        index = place[:, None] + torch.arange(g + 1, device=words.device)  # (B, g + 1)
        free, padded = index < L, F.pad(words, (0, g + 1))  # (B, g + 1), (B, L + g + 1)
        at = torch.zeros_like(padded, dtype=torch.bool).scatter(1, index, free)[:, :L]  # (B, L)
        drafted = at & (torch.arange(L, device=words.device) < index[:, -1:])  # (B, L)
        p = torch.ones(B, g + 1, V, dtype=torch.float64, device=words.device)  # (B, g + 1, V)
        q = p[:, :-1].clone()  # (B, g, V)

        tokens, positions = method.shift(words, order)  # (B, L), (B, 2, L)
        logits = self.draft(denoiser, tokens, positions, place, drafted, cache)  # (N, V)
        q[free[:, :-1]] = to_probs(logits[:, :V]).double()  # (N, V)
        guess = categorical(q.flatten(0, 1)).view(B, g)  # (B, g)

        tokens, positions = method.shift(padded.scatter(1, index[:, :-1], guess)[:, :L], order)
        rank = torch.arange(L, device=words.device).expand(B, -1)  # (B, L)
        new = torch.arange(cache.read if cache else 0, L, device=words.device)  # (W,)
        logits = read_columns(denoiser, cache, tokens, positions, rank, rank, at, new)  # (N, V)
        p[free] = to_probs(logits[:, :V]).double()  # (N, V)
        written, n, _, _ = verify(p[None], q[None], guess[None], padded.gather(1, index), free)
        place = (place + n).clamp(max=L)  # (B,)
        if cache:
            cache.keep(int(place.min()) - cache.read)
        return padded.scatter(1, index, written)[:, :L], place

    def draft(self, denoiser, tokens, positions, place, at, cache):
        """Logits of the places `at` (B, L) of the order, all from the first `place` (B,) words.

        Behind the L tokens stands the last of these words L times, once for each place.
        """
        (B, L), device = tokens.shape, tokens.device
        rank = torch.arange(L, device=device).expand(B, -1)  # (B, L)
        last = place.clamp(max=L - 1)[:, None]  # (B, 1)
        own = positions[:, 1].gather(1, last).expand(B, L)  # (B, L)
        queries = torch.stack([positions[:, 0], own], 1)  # (B, 2, L)
        ids = torch.cat([tokens, tokens.gather(1, last).expand(B, L)], 1)  # (B, 2L)
        seen = torch.cat([rank.masked_fill(rank >= last, L), torch.full_like(rank, L)], 1)
        ranks = torch.cat([rank, last.expand(B, L)], 1)  # (B, 2L)
        read = cache.read if cache else 0
        new = torch.cat([torch.arange(read, int(last.max()), device=device),
                         L + at.any(0).nonzero()[:, 0]])  # (W,)
        return read_columns(denoiser, cache, ids, torch.cat([positions, queries], 2), ranks, seen,
                            F.pad(at, (L, 0)), new)  # (N, V)


def read_columns(denoiser, cache, ids, positions, rank, seen, at, new):
    """Logits at `at` (B, n) of tokens who see earlier ranks. -> (N, V)

    With a cache, of all columns only those of `new` (W,) are read, behind what it has.
    """
    if cache is None:
        pattern = see_earlier(rank, seen)
        return denoiser(ids, None, at=at, positions=positions, mask_mod=pattern)  # (N, V)
    both = torch.cat([torch.arange(cache.read, device=new.device), new])  # (read + W,)
    return denoiser(ids[:, new], None, at=at[:, new], positions=positions[..., new], cache=cache,
                    mask_mod=see_earlier(rank[:, both], seen[:, both]))  # (N, V)
