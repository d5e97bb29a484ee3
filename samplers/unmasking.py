"""
Chapter 3. Samplers that choose which masks open: in random order, or the most confident first.

    first-hitting   one mask a step, at random, at the time at which it would open in infinitely
                    many steps of (0.3): of n masks at time tau the first opens at tau u^(1/n),
                    u ~ U(0, 1) (arXiv:2409.02908). L tokens take L network calls
    confidence      draw all masks, keep the k most confident draws, mask the others again
                    (MaskGIT; LLaDA, arXiv:2502.09992)

The confidence of a draw is the probability that the network itself gives to it, before
--temperature and --top_p sharpen the distribution: at temperature 0 all confidences would be 1.
`first-hitting` draws from the model. `confidence` does not: it prefers what is easy to predict, and
at temperature 0, or with a small model, it collapses into repetition ("the the the").
"""
from dataclasses import dataclass

import torch

from diffusion import draw_at, probabilities
from samplers.base import MaskSampler, highest, masks_to_open


@dataclass(eq=False)
class FirstHitting(MaskSampler):
    """--sampler first-hitting: opens masks at random, at their times in infinitely many steps.

    With fewer steps than masks, k open at once, at the time of the last of them. That is no longer
    exact.
    """
    chooses_first = True

    @torch.no_grad()
    def __call__(self, process, denoiser, z, frozen, steps, to_probs=probabilities):
        tau = torch.ones(len(z), 1, dtype=torch.float64, device=z.device)  # (B, 1)
        for left in range(steps, 0, -1):
            masked = z == process.mask  # (B, L)
            n = masked.sum(-1, keepdim=True).double()  # (B, 1)
            if not n.any():
                return
            k = masks_to_open(n, left)  # (B, 1)
            kth_largest = torch.distributions.Beta((n - k + 1).clamp(min=1), k.clamp(min=1))
            tau = tau * kth_largest.sample()  # (B, 1)
            order = torch.rand(z.shape, device=z.device).masked_fill(~masked, -1)  # (B, L)
            at = highest(order, k)  # (B, L)
            drawn, _ = draw_at(denoiser, z, tau.float(), at, to_probs, process.n_tokens)  # (N,)
            z = z.masked_scatter(at, drawn)  # (B, L)
            yield z


@dataclass(eq=False)
class Confidence(MaskSampler):
    """--sampler confidence: draws all masks and keeps the most confident draws."""
    also_called = ("maskgit", "low_confidence")
    draws_from_model, draws_decide = False, True

    @torch.no_grad()
    def __call__(self, process, denoiser, z, frozen, steps, to_probs=probabilities):
        for left in range(steps, 0, -1):
            masked = z == process.mask  # (B, L)
            n = masked.sum(-1, keepdim=True)  # (B, 1)
            if not n.any():
                return
            t = n / z.shape[1]  # (B, 1)
            k = masks_to_open(n, left)  # (B, 1)
            drawn, confidence = draw_at(denoiser, z, t, masked, to_probs, process.n_tokens)  # (N,)
            # exercise 14: keep the most confident draws, 2 lines
            score = confidence.new_full(z.shape, -1.0).masked_scatter(masked, confidence)  # (B, L)
            z = torch.where(highest(score, k), z.masked_scatter(masked, drawn), z)  # (B, L)
            # end
            yield z
