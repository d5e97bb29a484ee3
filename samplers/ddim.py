"""
Chapter 13. Other steps of embeddings: DDIM without noise, (13.5), and steps of words, (13.6); for
latents also DDIM of second order, (15.8).

All of them, with (13.4), have the model's own distribution in many steps. DDIM draws nothing
between the first noise and the last words (arXiv:2010.02502). Where noise depends on the word, only
steps of words have it: the word that is drawn takes a step of its own noise. The others guess. Each
call is at the gamma that the last step went to. (DiffuSeq's public code goes to the level just
below, and names a time further on.)
"""
from dataclasses import dataclass

import torch

from diffusion import categorical
from gaussian import DDPM, EmbeddingWalk, ddim, step_law


@dataclass(eq=False)
class DDIM(DDPM):
    """--sampler ddim: steps of (13.5), which draw nothing."""
    variance: object = None  # no flag here

    def move(self, process, z, found, s, t, eps):
        return ddim(z, *self.estimate(process, z, found, s, t))  # (N, D)


@dataclass(eq=False)
class TwoM(DDIM):
    """--sampler 2m: steps of (15.8), which extrapolate h' from the last two calls.

    DPM-Solver++ (arXiv:2211.01095). The first step of a walk is that of DDIM."""
    past = None  # h' of the step before, its H, and the gamma that it went to

    def move(self, process, z, found, s, t, eps):
        h, gamma_s, gamma_t = self.estimate(process, z, found, s, t)  # (..., D), (...) twice
        half = (gamma_t - gamma_s) / 2  # (...) H
        ahead = h  # (..., D)
        if self.past and torch.equal(self.past[2], gamma_t):  # else another walk begins
            before, other, _ = self.past
            ahead = h + (half / (2 * other))[..., None] * (h - before)  # (..., D)
        self.past = h, half, gamma_s
        return ddim(z, ahead, gamma_s, gamma_t)  # (..., D)


@dataclass(eq=False)
class WordSteps(EmbeddingWalk):
    """--sampler word-steps: steps of (13.6), towards the row of a word drawn in each step."""

    def move(self, process, z, found, s, t, eps):
        words = categorical(found.log_p.double().exp())  # (N,)
        own = words if process.by_word else None  # (N,)
        gammas = [process.gamma_of(a, own) for a in (s, t)]  # (N,) each
        mean, variance = step_law(z, process.rows()[words], *gammas)  # (N, D), (N,)
        return mean + variance.sqrt()[:, None] * eps  # (N, D)
