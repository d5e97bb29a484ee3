"""
Chapter 13. Diffusion-LM (arXiv:2205.14217): vectors are predicted, and words are rounded.

The table is learned with rows of any norm, and the network predicts the row, x_hat. At t = 0 noise
is not 0 but sigma_0, so that neighboring rows must be told apart:

    loss       |e - x_hat|^2 / D  -  log softmax( E z_0 + b )[x]  +  alpha_1^2 |e|^2 / D     (13.12)

The first term alone shrinks the table until all words are one: the second, the rounding, keeps rows
apart. None of them is a bound. Evaluation is (13.7), whose decoder is the evidence (13.2).

The schedule is sqrt, as published: half of the times have gamma above 0.87, which long rows need
and short ones waste. gamma at t = 0 is -4.21, as in the public code (sigma_0 = .12). The paper's
formula 1 - sqrt(t + s) is divided by its value at 0 there.
"""
from dataclasses import dataclass

import torch
import torch.nn as nn

from diffusion import stratified
from flags import flag
from gaussian import LEAST, VectorSpace
from methods.base import free_tokens, scatter_nats
from methods.embedding import Embedding
from methods.gammas import Alpha2

ENDS = -4.21, 9.2  # of gamma: index 0 of 2,000, and where 10^-4 of the signal is left


@dataclass(eq=False)
class DiffusionLM(Embedding):
    """--method diffusion_lm: trained on (13.12)."""
    rounding: bool = flag(True, "the second term of (13.12); without it the table collapses",
                          fixed=True)
    samplers = ("ancestral", "ddpm", "ddim")
    predicts, scores_ratios = "the row of each token from a noisy embedding", True

    def space(self):
        space = VectorSpace(self.random_table(), "free", Alpha2("sqrt", *ENDS),
                               feeds_back=self.self_condition > 0)
        if self.rounding:
            space.bias = nn.Parameter(torch.zeros(self.n_tokens))  # (V,)
        return space

    def loss(self, denoiser, x, frozen=None):
        """(13.12), no bound. -> (B, L)"""
        space, at = self.process, free_tokens(x, frozen)  # (B, L)
        t = self.at_clock(stratified(len(x), x.device), at)  # (B, 1|L)
        fed_back = self.choose_fed_back(len(x), x.device)  # (B,)
        e, _, found = self.denoise(denoiser, x, t, at, frozen, fed_back)  # (N, D)
        end = torch.sigmoid(-space.gamma(torch.ones(1, device=x.device)))  # (1,) alpha_1^2
        loss = (e - found.x_hat).square().mean(-1) + end * e.square().mean(-1)  # (N,)
        if self.rounding:
            start = torch.full((len(x), 1), LEAST, device=x.device)  # (B, 1)
            _, first, _ = self.noisy(x, start, frozen)  # (B, L, D)
            loss = loss + rounding_nats(first[at], space.rows(), space.bias, x[at])  # (N,)
        return scatter_nats(loss, at)  # (B, L)


def rounding_nats(z, table, bias, x):
    """-log softmax(E z + b)[x]. z (N, D), table (V, D), bias (V,), x (N,) -> (N,) nats"""
    return nn.functional.cross_entropy(z @ table.T + bias, x, reduction="none")  # (N,)
