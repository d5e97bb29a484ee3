"""
Autoregression, the baseline that every chapter is compared with: one word after the other, each given all before it.

    -log p(x) = sum_l -log p_theta(x_l | x_0 .. x_(l-1))        exactly: no noise, no bound                      (9)

The input is the text moved one place to the right behind a start symbol, [start, x_0, .., x_(L-2)], under causal
attention, so that row l of the logits predicts x_l from what stands before it. L tokens take L network calls, in
order, and nothing is ever revised: so the keys and values of what was read are kept (model.Cache), and a call reads
one token.
"""
import torch
import torch.nn.functional as F

from diffusion import categorical, probabilities
from model import block_causal, causal, new_cache, read
from positions import cross_entropy, nats_at


def end_texts(z, frozen, lo, hi, stop, going, cache):
    """Texts that drew `stop` at lo .. hi - 1, and hold nothing given after it, end there: it fills them up, and they
    leave the batch and its cache. z, frozen (B, L); going (b,): the texts that have not ended. -> z, going
    """
    hit = (z == stop) & ~frozen if stop is not None else torch.zeros_like(frozen)                   # (B, L)
    if not hit[going, lo:hi].any():
        return z, going
    place = torch.arange(z.shape[1], device=z.device)                                               # (L,)
    hit = hit & (lo <= place) & (place < hi)                                                        # (B, L)
    after = place > hit.int().argmax(-1, keepdim=True)                                              # (B, L)
    over = hit.any(-1) & ~(after & frozen).any(-1)                                                  # (B,)
    stay = (~over[going]).nonzero()[:, 0]                                                           # (b',)
    if cache:
        cache.select(stay)
    return torch.where(over[:, None] & after, stop, z), going[stay]


class AR:
    """--method ar. Its `nelbo` is the exact negative log-likelihood."""

    uses_time = False
    mask_mod = staticmethod(causal)
    window = stop = None                                     # of samples, set by sample.py: memory, end-of-text id

    def __init__(self, n_tokens):
        self.n_tokens, self.start, self.vocab_size = n_tokens, n_tokens, n_tokens + 1

    def shift(self, x):
        """[start, x_0, .., x_(L-2)], what the network sees when it predicts x. -> (B, L)"""
        return F.pad(x, (1, 0), value=self.start)[:, :-1]                                           # (B, L)

    def nelbo(self, denoiser, x, frozen=None):
        """Eq. (9). Frozen tokens are read but not scored. -> (B, L) nats"""
        at = torch.ones_like(x, dtype=torch.bool) if frozen is None else ~frozen                    # (B, L)
        return nats_at(denoiser, self.shift(x), None, at, cross_entropy, (x,), self.n_tokens, 1.0, frozen)  # (B, L)

    loss = nelbo

    def prior(self, shape, device="cpu"):
        """Nothing is there yet; any id serves, since no token is read before it is written."""
        return torch.zeros(shape, dtype=torch.long, device=device)                                  # (B, L)

    @torch.no_grad()
    def sample(self, denoiser, z, frozen, steps, sampler=None, law=probabilities):
        """From left to right; yields z after each token. What is given on the right is kept, but not looked at.

        A text longer than `window` is read through a window of so many tokens, as much as was trained on, say.
        """
        cache, going = new_cache(denoiser, z.shape[1], 1, self.window), torch.arange(len(z), device=z.device)
        for l in range(z.shape[1]):
            at = ~frozen[going, l]                                                                  # (b,)
            if at.any():
                p = law(self.next_token(denoiser, z[going, :l + 1], at[:, None], cache)[:, :self.n_tokens])
                z = z.index_put((going[at], torch.tensor(l, device=z.device)), categorical(p))      # (B, L)
                z, going = end_texts(z, frozen, l, l + 1, self.stop, going, cache)
                yield z

    def next_token(self, denoiser, z, at, cache):
        """Logits of the last token of z (B, n), which is not looked at, in the rows `at` (B, 1). -> (N, V)"""
        seen = self.shift(z)                                                                        # (B, n)
        if cache is None:
            return denoiser(seen, None, at=F.pad(at, (z.shape[1] - 1, 0)))
        return read(denoiser, cache, seen, at, z.shape[1], block_causal(1, cache.reach))
