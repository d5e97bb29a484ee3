"""
Chapter 15. PLANNER (arXiv:2306.02531): vectors of a paragraph plan it, and a decoder from left to
right writes it.

The network outputs h', and stage two minimizes P2's weight of the error in eps, which is

    alpha^2 |h - h'|^2                                                                       (15.11)

Steps are those of (13.4), l = 0. The encoder of stage one reads a text some of whose words are
wrong, --noisy_words, and the decoder writes the right ones, so texts that differ little have
latents that differ little. The published autoencoder is variational: its noise on the vectors is
that of --decode_at here, which (15.5) counts, and there is no other KL. (Theirs is summed over the
batch, so its weight grows with the batch.) The sampler of the public code clamps h' and keeps the
eps' of the h' before: the two disagree. Nothing is clamped here.
"""
from dataclasses import dataclass

import torch

from flags import flag
from methods.latent_prefix import PrefixLatent


@dataclass(eq=False)
class LatentPlanner(PrefixLatent):
    """--method latent_planner. (`planner` is another method, which plans the order of words.)"""
    noisy_words: float = flag(0.1, "share of the words that are wrong for the encoder in training",
                              least=0, most=0.9)
    outputs_h = True

    def loss_weight(self, gamma):
        """(15.11). -> shape of gamma"""
        return torch.sigmoid(-gamma)

    def shown_to_encoder(self, x, at):
        """Some of the words are random ones. -> (B, L)"""
        wrong = torch.rand(x.shape, device=x.device) < self.noisy_words  # (B, L)
        return torch.where(wrong & at, torch.randint_like(x, self.n_tokens), x)  # (B, L)
