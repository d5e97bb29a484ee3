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

TREC (2402.14843) is two options, after its abstract, since no code was found:

    --noise_growth g   noise that grows with the time: F (1 + g t), so that                   (19.8)
                       gamma_t + 2 log(1 + g t). It is monotone: bound and samplers stay
    --reinforce w      the second call of self-conditioning is an action, w~ ~ softmax(E x_hat):
                       loss - w A mean_l log softmax(E x_hat_l)[w~_l],                        (19.9)
                       A = R(w~ of the second call) - R(of the first),  R the share of right words

The mean of the gradient of (19.9) is that of -w R / n, of the second call, whatever the first one
drew: it pays to be better than what is fed back, and not to repeat it.
"""
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from diffusion import categorical, stratified
from flags import UserError, flag
from gaussian import VectorSpace
from methods.base import free_tokens, scatter_nats
from methods.embedding import Embedding
from methods.gammas import Alpha2, Growing


@dataclass(eq=False)
class Difformer(Embedding):
    """--method difformer: trained on squared errors and the anchor."""
    noise_factor: float = flag(4.0, "F; 1 is the noise of Diffusion-LM", least=0.1,
                               most=100, fixed=True)
    noise_growth: float = flag(0.0, "F grows with the time by this share: TREC's (F = 3) is 0.5",
                               least=0, most=100, fixed=True)
    smoothing: float = flag(0.1, "of labels in the anchor", least=0, most=0.9)
    reinforce: float = flag(0.0, "weight of TREC's policy gradient, for --self_condition above 0",
                            least=0, most=1000)
    samplers = ("ancestral", "ddpm", "ddim")
    predicts, scores_ratios = "the row of each token from a noisy embedding", True

    def space(self):
        shift = 2 * math.log(self.noise_factor)
        schedule = Alpha2("sqrt", -4.21, 9.2 - shift, shift)
        schedule = Growing(schedule, self.noise_growth) if self.noise_growth else schedule
        return VectorSpace(self.random_table(), "layer norm", schedule,
                              feeds_back=self.self_condition > 0)

    def check(self, config):
        super().check(config)
        if self.reinforce and not self.self_condition:
            raise UserError("--reinforce compares two calls: give --self_condition above 0")

    def loss(self, denoiser, x, frozen=None):
        """Squared errors, the anchor, and (19.9): no bound. -> (B, L)"""
        at = free_tokens(x, frozen)  # (B, L)
        t = self.at_clock(stratified(len(x), x.device), at)  # (B, 1|L)
        e, z, t = self.noisy(x, t, frozen)  # (B, L, D) twice, (B, 1|L)
        fed_back = self.choose_fed_back(len(x), x.device)  # (B,)
        first, seen, found = self.two_calls(denoiser, z, t, at, fed_back)  # (B, L), (N', D)
        e, _ = self.select(e, t, at, found)  # (N, D)
        loss = anchor_nats(found.x_hat, self.process.rows(), x[at], self.smoothing)  # (N,)
        loss = loss + (e - found.x_hat).square().mean(-1)  # (N,)
        if self.reinforce and first.any():
            loss = loss + self.reinforce * self.policy_nats(x, first, seen, found, at)  # (N,)
        return scatter_nats(loss, at)  # (B, L)

    def policy_nats(self, x, first, seen, found, at):
        """-A log p(w~) of (19.9) at the tokens `at` (B, L), 0 without a first call. -> (N,)

        first (B, L), seen (N', D): where the first call was, and its x_hat
        """
        rows, again = self.process.rows(), first[at]  # (V, D), (N,)
        log_p = (found.x_hat @ rows.T).log_softmax(-1)  # (N, V)
        drawn = categorical(log_p.detach().double().exp())  # (N,)
        before = categorical((seen @ rows.T).detach().double().softmax(-1))  # (N',)
        gain = share_right(drawn[again], x, first) - share_right(before, x, first)  # (B, 1)
        gain = gain.expand(at.shape)[at].to(log_p.dtype)  # (N,) 0 where there was no first call
        return -gain * log_p.gather(-1, drawn[:, None])[:, 0]  # (N,)


def share_right(words, x, at):
    """Of the words (N,) at the tokens `at` (B, L), in each text. -> (B, 1)"""
    right = torch.zeros_like(at).masked_scatter(at, words == x[at])  # (B, L)
    return right.sum(-1, keepdim=True) / at.sum(-1, keepdim=True).clamp(min=1)  # (B, 1)


def anchor_nats(x_hat, table, x, smoothing):
    """The anchor. x_hat (N, D), table (V, D), x (N,) -> (N,) nats"""
    return F.cross_entropy(x_hat @ table.T, x, reduction="none", label_smoothing=smoothing)  # (N,)
