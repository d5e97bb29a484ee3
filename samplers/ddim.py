"""
Chapter 13. Other steps of embeddings: DDIM without noise, (13.5), and steps of words, (13.6).

All three, with (13.4), have the model's own distribution in many steps. DDIM draws nothing between
the first noise and the last words (arXiv:2010.02502). Where noise depends on the word, only steps
of words have it: the word that is drawn takes a step of its own noise. The others guess. Each call
is at the gamma that the last step went to. (DiffuSeq's public code goes to the level just below,
and names a time further on.)
"""
from dataclasses import dataclass

from diffusion import categorical
from gaussian import DDPM, EmbeddingWalk, ddim, step_law


@dataclass(eq=False)
class DDIM(DDPM):
    """--sampler ddim: steps of (13.5), which draw nothing."""
    variance: object = None  # no flag here

    def move(self, process, z, found, s, t, eps):
        return ddim(z, *self.estimate(process, z, found, s, t))  # (N, D)


@dataclass(eq=False)
class WordSteps(EmbeddingWalk):
    """--sampler word-steps: steps of (13.6), towards the row of a word drawn in each step."""

    def move(self, process, z, found, s, t, eps):
        words = categorical(found.log_p.double().exp())  # (N,)
        own = words if process.by_word else None  # (N,)
        gammas = [process.gamma_of(a, own) for a in (s, t)]  # (N,) each
        mean, variance = step_law(z, process.rows()[words], *gammas)  # (N, D), (N,)
        return mean + variance.sqrt()[:, None] * eps  # (N, D)
