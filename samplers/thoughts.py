"""
Chapter 20. Thought by thought (Diffusion of Thoughts, arXiv:2402.07754, its multi-pass form).

The masks of the first thought open, then those of the second, and so on to the answer. Within a
thought, those with the least entropy come first, as in `entropy`. The data set says how many tokens
each thought has; what stands before the first one belongs to it, if it is not given. While a
thought is written, the later ones are masks. `dot --passes multi` is trained on such texts alone;
any other masked method has learned them among others.

--steps is the number of all steps. A thought gets a share of them by its length, and one at least.
Texts without thoughts are one thought.
"""
from dataclasses import dataclass

import torch

from data import DATASETS
from data.puzzles import thought_at
from diffusion import Sampler, draw_from, probabilities
from flags import load_row
from samplers.base import highest, masks_to_open, scatter_at
from samplers.orders import prediction_entropy


@dataclass(eq=False)
class Thoughts(Sampler):
    """--sampler thoughts: one thought after the other, in each the surest tokens first."""
    lengths: tuple = ()  # tokens of the thoughts, from `prepare`
    chooses_first = True

    def fits(self, method):
        if not (method.bidirectional and method.opens_masks):
            return f"chooses among the masks of a whole text, which {method.name} does not read"

    def prepare(self, model):
        data = model.config.data
        self.lengths = load_row(DATASETS, data).thoughts if data else ()

    def shares(self, steps):
        """The steps of each thought."""
        total = sum(self.lengths)
        return [max(1, -(-steps * n // total)) for n in self.lengths] or [steps]

    def count_states(self, length, steps):
        return sum(self.shares(steps))

    @torch.no_grad()
    def __call__(self, process, denoiser, z, frozen, steps, to_probs=probabilities):
        thought = thought_at(z.shape[1], self.lengths).to(z.device)  # (L,)
        for number, share in enumerate(self.shares(steps)):
            for left in range(share, 0, -1):
                masked = z == process.mask  # (B, L)
                at = masked & (thought == number)  # (B, L)
                if not at.any():
                    break
                t = masked.sum(-1, keepdim=True) / z.shape[1]  # (B, 1)
                logits = denoiser(z, t, at=at)[:, :process.n_tokens]  # (N, V)
                score = scatter_at(at, -prediction_entropy(logits), -torch.inf)  # (B, L)
                opens = highest(score, masks_to_open(at.sum(-1, keepdim=True), left))  # (B, L)
                words, _ = draw_from(to_probs, logits[opens[at]])  # (n,)
                z = z.masked_scatter(opens, words)  # (B, L)
                yield z
