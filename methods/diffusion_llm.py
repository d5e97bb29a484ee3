"""
Chapter 18. From a masked language model to diffusion: DiffusionLLM (arXiv:2308.12219).

A masked language model has learned one rate of masks, such as 15 % (--mask_rate 0.15 trains one).
Fine-tuning makes a diffusion model of it, by the loss of RDM (arXiv:2302.05737). With T levels of
noise, of which level t masks a token with probability t/T, each text is seen at two that are drawn
together:

    t_1 >= t_2,  both of U{1 .. T};   a mask of z_1 is a mask of z_2 with probability t_2/t_1,
    text of z_1 is text of z_2; if t_1 = t_2, z_2 is a draw of its own
    loss  1/2 sum_i w(t_i) [z_i,l = m] CE_l(z_i),   w(t) = (6/T) (T - (t - 1))               (18.11)

with CE = -log x_theta(x). The weight is linear, and a prompt is never masked: the network sees
prompt and answer in full. The published weight is T - (t - 1), without 6/T, which only makes the
loss as large as a bound, and the steps of T = 50 comparable with those of mdlm. Per text it is
divided by the number of tokens that may be masked (train.py: loss_per_token).

(18.11) is no bound; `nelbo` is that of mdlm, (3.1), for the same network. As T grows, the mean of
(18.11) becomes that of mdlm's `simple` loss. The published head for the length of an answer is left
out: answers end with [end], as data/chat.py fills them up.
"""
from dataclasses import dataclass

import torch

from diffusion import corrupt
from flags import flag
from methods.mdlm import MDLM
from methods.rdm import WEIGHTS, couple


def coupled_levels(B, T, device="cpu"):
    """t_1 >= t_2 of (18.11), B pairs of U{1 .. T}. -> (B, 1) each, float"""
    t = torch.randint(1, T + 1, (2, B, 1), device=device).float()  # (2, B, 1)
    return t.amax(0), t.amin(0)  # (B, 1) each


def coupled_masks(process, x, t1, t2, T, frozen=None):
    """z_1 and z_2 of (18.11), which is (3.11). t1, t2 (B, 1) levels of T -> (B, L) each"""
    masks = couple(t1 / T, t2 / T, torch.rand(3, *x.shape, device=x.device))  # (B, L) twice
    return tuple(torch.where(at if frozen is None else at & ~frozen, process.mask, x)
                 for at in masks)  # (B, L) each


@dataclass(eq=False)
class DiffusionLLM(MDLM):
    """--method diffusion_llm: fine-tunes a masked language model (--mask_rate trains one), or a run
    of mdlm, on answers (--sft). `nelbo` is the bound of mdlm."""
    levels: int = flag(50, "T, the levels of noise in training", least=1)
    level_weight: str = flag("linear", "w of (18.11): linear as published, reciprocal as in a "
                             "bound of T levels, or none", [*WEIGHTS])
    mask_rate: float = flag(0.0, "train a masked language model instead, at this rate of masks; 0: "
                            "diffusion", least=0, most=1)
    weighting: str = "simple"  # no flags here
    complement: bool = False
    distilled_by, public_layout = (), None

    def weight_of(self, t):
        """w of (18.11), RDM's in another scale. t (B, 1) levels of T -> (B, 1)"""
        scale = {"linear": 6.0, "reciprocal": self.levels, "none": 2.0}[self.level_weight]
        return scale * WEIGHTS[self.level_weight](t, self.levels)  # (B, 1)

    def loss(self, denoiser, x, frozen=None):
        """(18.11), or with --mask_rate the cross-entropy at that rate. -> (B, L) nats"""
        if self.mask_rate:
            t = torch.full((len(x), 1), self.mask_rate, device=x.device)  # (B, 1)
            z = corrupt(self.process, x, t, frozen)  # (B, L)
            share = self.mask_rate
            return self.cross_entropy(denoiser, x, z, t, 1 / share, frozen, share)  # (B, L)
        t1, t2 = coupled_levels(len(x), self.levels, x.device)  # (B, 1) each
        nats = 0.0
        for t, z in zip((t1, t2), coupled_masks(self.process, x, t1, t2, self.levels, frozen)):
            weight = self.weight_of(t) / 2  # (B, 1)
            nats = nats + self.cross_entropy(denoiser, x, z, t / self.levels, weight, frozen)
        return nats
