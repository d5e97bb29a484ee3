"""
Chapter 3. Semi-autoregressive decoding (LLaDA, arXiv:2502.09992), and how Fast-dLLM (2505.22618)
makes it cheap. For masked networks that read whole texts.

Blocks of masks are opened from left to right. The network was not trained on blocks (as in
methods/bd3lm.py), and sees the masks to the right of a block too. Each step draws all masks of the
block, and keeps the draws of highest confidence, which is the network's own probability of a draw:

    schedule    ceil(masks left / steps left) of them, with --steps over all blocks          (LLaDA)
    threshold   all with confidence >= threshold, and at least one                       (Fast-dLLM)
    factor      the largest n with (n + 1) (1 - confidence of the n-th) < factor,
                and at least one                                                               (3.8)

(3.8) is a theorem for factor = 1: n words with marginal probabilities above 1 - e, where
(n + 1) e <= 1, are together the likeliest n words. It says so of the likeliest words, not of draws.

With full attention, every key and value changes whenever a word opens. Two caches keep old ones all
the same, from the first step of a block, which reads the whole text, to its last:

    prefix      keeps what stands before the block; reads the block and all after it
    dual        keeps what stands after the block too; reads the block alone

They are exact in the first step of a block only: `python -m experiments.bd3lm cache` measures how
far off the later steps are.
"""
from dataclasses import dataclass
from itertools import zip_longest

import torch

from data.tokenizer import end_of_text
from diffusion import Sampler, draw_from, probabilities, supports
from flags import UserError, flag
from model import Cache
from samplers.base import highest, masks_to_open


def above_threshold(confidence, threshold):
    """All masks of at least that confidence, and at least one. confidence (B, L), below 0 where
    there is no mask -> (B, L) bool"""
    return (confidence >= threshold) | highest(confidence, 1) & (confidence >= 0)  # (B, L)


def within_factor(confidence, factor):
    """The masks that (3.8) opens. confidence (B, L), below 0 where no mask is -> (B, L) bool"""
    n = torch.arange(1, confidence.shape[1] + 1, device=confidence.device)  # (L,)
    ranked = confidence.sort(-1, descending=True).values  # (B, L)
    allowed = ((n + 1) * (1 - ranked) < factor) & (ranked >= 0)  # (B, L)
    most = torch.where(allowed, n, 1).amax(-1, keepdim=True)  # (B, 1)
    return highest(confidence, most) & (confidence >= 0)  # (B, L)


def demote_eos(confidence, drawn, eos):
    """Confidence 0 where `eos` was drawn, as long as a mask of the text has drawn another word.

    So the end opens last. confidence (B, L), below 0 where there is no mask; drawn (B, L) -> (B, L)
    """
    late = (drawn == eos) & (confidence >= 0)  # (B, L)
    others = ((confidence >= 0) & ~late).any(-1, keepdim=True)  # (B, 1)
    return torch.where(late & others, 0.0, confidence)  # (B, L)


def forward_with_cache(denoiser, z, t, at, lo, hi, mode, cache):
    """Logits at the tokens `at` (B, L), all in the block lo .. hi - 1. -> (N, V), the next cache

    mode: none, prefix or dual; cache: from the last step, None in the first step of a block
    """
    if mode == "none":
        return denoiser(z, t, at=at), None  # (N, V)
    if cache is None:
        cache = Cache(z.shape[1])
        logits = denoiser(z, t, at=at, cache=cache)  # (N, V) reads the whole text
        cache.start, cache.length = lo, z.shape[1] if mode == "dual" else 0
        return logits, cache
    part = slice(lo, hi if mode == "dual" else z.shape[1])
    return denoiser(z[:, part], t, at=at[:, part], cache=cache), cache  # (N, V)


@dataclass(eq=False)
class SemiAR(Sampler):
    """--sampler semi-ar: opens masks block after block, the most confident first."""
    also_called = ("llada",)
    decode_block: int = flag(32, "tokens that are opened before the next ones", least=1, chat=8)
    cache: str = flag("none", "keep old keys and values in a block", ["none", "prefix", "dual"])
    threshold: float = flag(0.0, "open all masks of at least this confidence; 0 follows --steps",
                            least=0, most=1, chat=0.9, unless=("steps", "factor"))
    factor: float = flag(0.0, "open n masks if (n + 1) (1 - confidence) is less; 0 follows --steps",
                         least=0)
    eos_last: bool = flag(False, "the end of a text opens when no other word is left to open")
    eos: int = None  # its id, from `prepare`
    draws_from_model, draws_decide = False, True

    def __post_init__(self):
        if self.threshold and self.factor:
            raise UserError("--threshold and --factor are two rules for the same choice: give one")

    def fits(self, method):
        if not (method.bidirectional and method.opens_masks):
            return f"chooses among the masks of a whole text, which {method.name} does not read"

    def prepare(self, model):
        if self.eos_last:
            self.eos = end_of_text(model.encoding)
            if self.eos is None:
                raise UserError("--eos_last needs tokens with an end of text, as --data chat has")

    def count_states(self, length, steps):
        if self.threshold or self.factor:
            return length
        return max(steps, -(-length // self.decode_block))   # each block takes at least one step

    @property
    def uses_cache(self):
        return self.cache != "none"

    def opens(self, confidence, left):
        """The masks that a step opens. confidence (B, L), below 0 off the block -> (B, L) bool"""
        if self.threshold:
            return above_threshold(confidence, self.threshold)  # (B, L)
        if self.factor:
            return within_factor(confidence, self.factor)  # (B, L)
        n = (confidence >= 0).sum(-1, keepdim=True)  # (B, 1)
        return highest(confidence, masks_to_open(n, left))  # (B, L)

    @torch.no_grad()
    def __call__(self, process, denoiser, z, frozen, steps, to_probs=probabilities):
        if self.uses_cache and not supports(denoiser, "supports_cache"):
            raise UserError(f"this denoiser keeps no keys and values: --cache {self.cache} needs "
                            "a network")
        if not self.uses_cache:
            yield from self.write(process, denoiser, z, steps, to_probs)
            return
        first = (z == process.mask).int().argmax(-1)  # (B,) a cache holds a block of all texts
        groups = [(first == lo).nonzero()[:, 0] for lo in first.unique()]  # (b,) each
        walks = [self.write(process, denoiser, z[rows], steps, to_probs) for rows in groups]
        for parts in zip_longest(*walks):
            for rows, part in zip(groups, parts):
                z = z if part is None else z.index_put((rows,), part)  # (B, L)
            yield z

    def write(self, process, denoiser, z, steps, to_probs):
        """Yields z (B, L) after each step. The blocks of a text follow its own prompt, so that a
        text does not depend on the others of the batch. Texts with prompts of one length wait for
        each other after each block.
        """
        L, size = z.shape[1], self.decode_block
        place = torch.arange(L, device=z.device)  # (L,)
        next_mask = lambda z: (z == process.mask).int().argmax(-1, keepdim=True)  # (B, 1)
        first = next_mask(z)  # (B, 1)
        budget = (steps // -((first - L) // size)).clamp(min=1)  # (B, 1) steps for each block
        block, left, cache = torch.full_like(first, -1), budget, None  # (B, 1) each
        while (masked := z == process.mask).any():  # (B, L)
            number = ((next_mask(z) - first) // size).masked_fill(~masked.any(-1, True), L)
            number = number.new_full((L,), L).scatter_reduce(
                0, first[:, 0], number[:, 0], "amin")[first]  # (B, 1) of the slowest text
            left = torch.where(number == block, (left - 1).clamp(min=1), budget)  # (B, 1)
            cache, block = cache if torch.equal(number, block) else None, number
            lo = first + number * size  # (B, 1)
            at = masked & (lo <= place) & (place < lo + size)  # (B, L)
            t = masked.sum(-1, keepdim=True) / L  # (B, 1)
            lo = int(lo.min())
            logits, cache = forward_with_cache(denoiser, z, t, at, lo, min(lo + size, L),
                                               self.cache, cache)
            drawn, c = draw_from(to_probs, logits[:, :process.n_tokens])  # (N,) each
            drawn = z.masked_scatter(at, drawn)  # (B, L)
            confidence = c.new_full(z.shape, -1.0).masked_scatter(at, c)  # (B, L)
            if self.eos is not None:
                confidence = demote_eos(confidence, drawn, self.eos)  # (B, L)
            z = torch.where(self.opens(confidence, left) & at, drawn, z)  # (B, L)
            yield z
