"""
What samplers share: those that choose among masks, and the contract of a corrector.

The contract of a sampler is diffusion.Sampler. To add one is to write samplers/NAME.py and one row
in samplers/__init__.py.
"""
from dataclasses import dataclass

import torch

from diffusion import Sampler, ancestral


@dataclass(eq=False)
class MaskSampler(Sampler):
    """A sampler that chooses which masks open."""
    by_class = False  # it looks for texts of --label by itself: `aim` gives it the classifier

    def fits(self, method):
        if not method.opens_masks:
            return f"chooses among masks, which {method.name} does not have"


def masks_to_open(n, left):
    """How many of n masks the next of `left` steps opens (LLaDA's schedule). -> shape of n

    The numbers differ by at most one from step to step, and the larger ones come first.
    """
    return (n / left).ceil()


def highest(score, k):
    """The k highest scores of each row; k (B, 1) may differ between rows. (B, L) -> (B, L) bool"""
    return score.argsort(-1, descending=True).argsort(-1) < k  # (B, L)


def toss(chance):
    """Coins that fall on True with these probabilities. chance (B,) -> (B,) bool"""
    return torch.rand(chance.shape, dtype=torch.float64, device=chance.device) < chance  # (B,)


def scatter_at(at, values, fill=0.0):
    """values (N,) at the tokens `at` (B, L), `fill` elsewhere. -> (B, L)"""
    return values.new_full(at.shape, fill).masked_scatter(at, values)  # (B, L)


@dataclass(eq=False)
class Corrector(Sampler):
    """A sampler that lets another one write a text, and then corrects it."""
    sampler: Sampler = ancestral
    rewrites = True
    corrects_noise = False  # it is for words that noise made wrong, so not for masks

    def wrap(self, sampler):
        """The sampler that writes with `sampler`, and then corrects."""
        self.sampler = sampler
        return self

    def prepare(self, model):
        self.sampler.prepare(model)

    def fits(self, method):
        if method.samplers is not None:
            return f"does not work with {method.name}, which takes steps of its own: leave it out"
        if self.corrects_noise and not method.revises_text:
            return (f"corrects wrong words, and {method.name} has masks, which leave words as they "
                    "are: try --corrector gibbs, or --sampler psi")

    @property
    def draws_from_model(self):
        return self.sampler.draws_from_model

    @property
    def costs(self):
        return self.sampler.costs

    @property
    def uses_cache(self):
        return self.sampler.uses_cache


@dataclass(eq=False)
class Draw(Corrector):
    """--corrector draw: leaves the text as it was drawn."""

    def wrap(self, sampler):
        return sampler

    def fits(self, method):
        """It always does."""
