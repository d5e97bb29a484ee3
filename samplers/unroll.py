"""
Chapter 18. All words again and again from p(x | z), and the likeliest of several texts.

That is how AR2Diff (arXiv:2401.17181) and SUNDAE write: a text begins as random words, and each
step replaces every word by a draw from the network's prediction. Few steps are enough, since the
network was trained on its own draws. The score of a text is the mean of log p_theta over the words
of its last step, each given the text before that step. It ranks texts; it is no likelihood.

A text costs best_of times --steps network calls. The candidates are written one after the other, so
that memory does not grow with their number.
"""
from dataclasses import dataclass

import torch

from diffusion import Sampler, draw_at, probabilities
from flags import flag
from samplers.base import scatter_at


@dataclass(eq=False)
class Unroll(Sampler):
    """--sampler unroll: draws all words again in every step, and keeps the likeliest of its texts.
    """
    best_of: int = flag(4, "texts that are written for each one that is kept", least=1)
    draws_from_model, rewrites, words_per_step = False, True, 4

    def fits(self, method):
        if method.bounded or not method.revises_text:
            return ("draws from p(x | z) at all words, the noisy ones included, which "
                    f"{method.name} does not predict")

    def count_states(self, length, steps):
        return self.best_of * steps + 1

    @torch.no_grad()
    def __call__(self, process, denoiser, z, frozen, steps, to_probs=probabilities):
        if frozen.all():
            yield z
            return
        best, most, first = z, torch.full(z.shape[:1], -torch.inf, dtype=torch.float64), z
        most = most.to(z.device)  # (B,)
        for candidate in range(self.best_of):
            if candidate:
                first = torch.where(frozen, z, process.draw_noise(1.0, z))  # (B, L)
            text = first  # (B, L)
            for _ in range(steps):
                words, p = draw_at(denoiser, text, None, ~frozen, to_probs, process.n_tokens)
                text = text.masked_scatter(~frozen, words)  # (B, L)
                yield text
            score = scatter_at(~frozen, p.clamp(min=1e-300).log()).sum(-1)  # (B,)
            better = score > most  # (B,)
            best = torch.where(better[:, None], text, best)  # (B, L)
            most = torch.where(better, score, most)  # (B,)
        yield best
