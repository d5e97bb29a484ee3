"""
Chapter 15. DGLM (arXiv:2408.04220): latents of the continuation steer a decoder from left to right.

The prefix of a text is given. The encoder reads the words that are not, the denoiser reads the
prefix beside the latents, and the decoder writes the continuation:

    bound      -log p(x | prefix) <= (15.5) with everything given the prefix                 (15.12)

In training a share --prefix of the texts has a beginning of random length that is given. The
denoiser's loss and schedule are those of STAR-LDM, the public code of the same group: eps is
weighted by sigmoid(gamma) as if gamma were uniform, so the weight is divided by the density of
gamma under t; alpha / sigma is three times that of the cosine, and l = 0.2 in (15.7). --decode_at
0.38 is sigma^2 = 0.05 there. (The published latent is one vector of a frozen sentence encoder, and
its attributes come from a classifier of such vectors; here --labels serve.)
"""
import math
from dataclasses import dataclass

import torch

from flags import flag
from methods.gammas import PlainCosine
from methods.latent_prefix import PrefixLatent

SCALE = 3.0  # alpha / sigma, compared with the cosine


def density_of_gamma(gamma):
    """Of gamma = `PlainCosine(SCALE)`, t uniform in (0, 1). -> shape of gamma"""
    return 1 / (2 * math.pi * torch.cosh((gamma + 2 * math.log(SCALE)) / 2))


@dataclass(eq=False)
class DGLM(PrefixLatent):
    """--method dglm."""
    prefix: float = flag(0.5, "share of the texts in training with a beginning that is given",
                         least=0, most=1)
    decode_at: float = flag(0.38, "as of all methods of chapter 15: the noise that the decoder "
                            "reads", least=0, most=0.9, fixed=True)
    hides_given, variance = True, "mixed"

    def schedule(self):
        return PlainCosine(SCALE, 20.0)

    def loss_weight(self, gamma):
        """sigmoid(gamma) on eps, over the density of gamma: (15.4). -> shape of gamma"""
        return torch.sigmoid(-gamma) / density_of_gamma(gamma)

    def loss(self, denoiser, x, frozen=None):
        """-> (B, L)"""
        if frozen is not None:
            return super().loss(denoiser, x, frozen)  # (B, L)
        B, L = x.shape
        has_prefix = torch.rand(B, 1, device=x.device) < self.prefix  # (B, 1)
        n = torch.randint(L, (B, 1), device=x.device) * has_prefix  # (B, 1) tokens given
        frozen = torch.arange(L, device=x.device) < n  # (B, L)
        return super().loss(denoiser, x, frozen) * (L / (L - n))  # (B, L) the mean per free token
