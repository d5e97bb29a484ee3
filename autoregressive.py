"""
Autoregression, the baseline that every chapter is compared with: one word after the other, each given all before it.

    -log p(x) = sum_l -log p_theta(x_l | x_0 .. x_(l-1))        exactly: no noise, no bound                      (9)

The input is the text moved one place to the right behind a start symbol, [start, x_0, .., x_(L-2)], under causal
attention, so that row l of the logits predicts x_l from what stands before it. L tokens take L network calls, in
order, and nothing is ever revised.
"""
import torch
import torch.nn.functional as F

from diffusion import categorical, probabilities
from model import causal


class AR:
    """--method ar. Its `nelbo` is the exact negative log-likelihood."""

    uses_time = False
    mask_mod = staticmethod(causal)

    def __init__(self, n_tokens):
        self.n_tokens, self.start, self.vocab_size = n_tokens, n_tokens, n_tokens + 1

    def shift(self, x):
        """[start, x_0, .., x_(L-2)], what the network sees when it predicts x. -> (B, L)"""
        return F.pad(x, (1, 0), value=self.start)[:, :-1]                                           # (B, L)

    def nelbo(self, denoiser, x, frozen=None):
        """Eq. (9). Frozen tokens are read but not scored. -> (B, L) nats"""
        at = torch.ones_like(x, dtype=torch.bool) if frozen is None else ~frozen                    # (B, L)
        logits = denoiser(self.shift(x), None, at=at)[:, :self.n_tokens]                            # (N, n_tokens)
        nll = F.cross_entropy(logits if logits.dtype == torch.float64 else logits.float(), x[at], reduction="none")
        return torch.zeros(x.shape, dtype=nll.dtype, device=x.device).masked_scatter(at, nll)       # (B, L)

    loss = nelbo

    def prior(self, shape, device="cpu"):
        """Nothing is there yet; any id serves, since no token is read before it is written."""
        return torch.zeros(shape, dtype=torch.long, device=device)                                  # (B, L)

    @torch.no_grad()
    def sample(self, denoiser, z, frozen, steps, sampler=None, law=probabilities):
        """From left to right; yields z after each token. What is given on the right is kept, but not looked at."""
        for l in range(z.shape[1]):
            at = F.one_hot(torch.tensor(l), l + 1).bool().expand(len(z), -1) & ~frozen[:, l:l + 1]  # (B, l + 1)
            if at.any():
                p = law(denoiser(self.shift(z[:, :l + 1]), None, at=at)[:, :self.n_tokens])         # (N, n_tokens)
                z = z.index_put((at[:, -1].nonzero()[:, 0], torch.tensor(l)), categorical(p))       # (B, L)
                yield z
