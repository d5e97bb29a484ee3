"""
Chapter 13. Difformer (arXiv:2212.09412): an anchor against collapse, and more noise.

    loss       |e - x_hat|^2 / D  -  log softmax( E x_hat )[x],   labels smoothed by 0.1
    noise      z = alpha e + sigma F eps: gamma + 2 log F, up to the size of z

The anchor, in place of the rounding of (13.12), rounds the network's x_hat and not a noisy e.
With F = 1 and long rows, most times are answered by a token's own evidence, and neither context nor
source is learned there. F = 4 moves the times to where something is left to learn.

Rows are layer-normalized (norm sqrt(D)). In the public scripts that norm is applied after time and
position are added, so it does not normalize the table, and decoding has F = 1 where training had 4
and the network is told the same times. Here training and sampling have the same noise.
"""
import math
from dataclasses import dataclass

import torch.nn.functional as F

from diffusion import stratified
from flags import flag
from gaussian import VectorSpace
from methods.embedding import Embedding, free_tokens, scatter_nats
from methods.gammas import Alpha2


@dataclass(eq=False)
class Difformer(Embedding):
    """--method difformer: trained on squared errors and the anchor."""
    noise_factor: float = flag(4.0, "F; 1 is the noise of Diffusion-LM", least=0.1,
                               most=100, fixed=True)
    smoothing: float = flag(0.1, "of labels in the anchor", least=0, most=0.9)
    samplers = ("ancestral", "ddpm", "ddim")
    predicts, scores_ratios = "the row of each token from a noisy embedding", True

    def space(self):
        shift = 2 * math.log(self.noise_factor)
        schedule = Alpha2("sqrt", -4.21, 9.2 - shift, shift)
        return VectorSpace(self.random_table(), "layer norm", schedule,
                              feeds_back=self.self_condition > 0)

    def loss(self, denoiser, x, frozen=None):
        """Squared errors and the anchor, no bound. -> (B, L)"""
        at = free_tokens(x, frozen)  # (B, L)
        t = self.at_clock(stratified(len(x), x.device), at)  # (B, 1|L)
        fed_back = self.choose_fed_back(len(x), x.device)  # (B,)
        e, _, found = self.denoise(denoiser, x, t, at, frozen, fed_back)  # (N, D)
        anchor = anchor_nats(found.x_hat, self.process.rows(), x[at], self.smoothing)  # (N,)
        return scatter_nats((e - found.x_hat).square().mean(-1) + anchor, at)  # (B, L)


def anchor_nats(x_hat, table, x, smoothing):
    """The anchor. x_hat (N, D), table (V, D), x (N,) -> (N,) nats"""
    return F.cross_entropy(x_hat @ table.T, x, reduction="none", label_smoothing=smoothing)  # (N,)
