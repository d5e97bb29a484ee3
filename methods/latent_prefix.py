"""
Chapter 15. Latents in front of a decoder from left to right: what latent_planner and dglm share.

The decoder reads [K vectors ; x_1 .. x_(l-1)] and predicts x_l, so (15.6) has no TC. It is also a
language model without them: it first learns to do without, up to the entropy of the text, and only
then reads what the vectors add. --word_dropout blanks words that it reads in training, which must
then come from the vectors (arXiv:1511.06349). It repairs any latents into fluent text, so look at
what it finds again and at what its vectors save, below, not at samples.
"""
from dataclasses import dataclass

import torch

from diffusion import draw_from
from flags import flag
from methods.base import free_tokens
from methods.latent import Latent


@dataclass(eq=False)
class PrefixLatent(Latent):
    """The base of latent_planner and dglm."""
    word_dropout: float = flag(0.4, "share of the words that the decoder does not read in training",
                               least=0, most=1)
    ordered = True

    def shown_to_decoder(self, x, at):
        """Blanks in place of some of the words. -> (B, L)"""
        gone = torch.rand(x.shape, device=x.device) < self.word_dropout  # (B, L)
        return x.masked_fill(gone & at, self.n_tokens)  # (B, L)

    def write(self, denoiser, z, x, at, to_probs):
        """Each word at `at` after those to its left: a call for each place. -> (B, L)"""
        place = torch.arange(x.shape[1], device=x.device)  # (L,)
        for l in at.any(0).nonzero()[:, 0]:
            here = at & (place == l)  # (B, L)
            logits = self.decode(denoiser, z, x, here)  # (N, V)
            x = x.masked_scatter(here, draw_from(to_probs, logits)[0])  # (B, L)
        return x

    @torch.no_grad()
    def measures(self, network, x, frozen=None, lengths=None):
        """And how many nats a text costs more with the vectors of another one."""
        at = free_tokens(x, frozen)  # (B, L)
        h = self.encode(network, x, at)  # (B, K, d)
        own, other = (self.word_nats(network, a, x, at).sum(-1) for a in (h, h.roll(1, 0)))  # (B,)
        return [*super().measures(network, x, frozen, lengths),
                ("nats/text that the vectors save the decoder", other - own)]
