"""
Semi-autoregressive decoding (LLaDA, arXiv:2502.09992), and how Fast-dLLM (2505.22618) makes it cheap. For mdlm, whose
attention is full: nothing here changes what is trained, and the blocks are a way to sample, not a network (block.py).

Blocks are opened from left to right; the masks to the right of a block are there all the while, and are looked at. At
each step all masks of the block are drawn, and those draws stay that the network itself believes in most:

    schedule    ceil(masks left / steps left) of them, for `steps` over all blocks                      (LLaDA)
    threshold   all with belief >= threshold, and at least the first                                    (Fast-dLLM)
    factor      the largest n with (n + 1) (1 - belief of the n-th) < factor, and at least the first            (19)

(19) is a theorem for factor = 1: n words whose marginal probabilities are all above 1 - e, with (n + 1) e <= 1, are
together the likeliest n words. The likeliest ones may be set at once, then; a draw is another matter.

With full attention every key and value changes with every word that opens. Two caches keep the old ones nevertheless,
from the first step of a block, which reads everything, to its last:

    prefix      what stands before the block is kept; the block and all after it are read
    dual        what stands after it is kept too; the block alone is read

Exact in the first step of a block, and off from then on: `python -m claims.block cache` says by how much.
"""
import torch

from data import BadInput
from diffusion import draw_from, probabilities
from masked import highest, transfer
from model import Cache


def surer_than(belief, threshold):
    """All masks with belief >= threshold, and at least one. belief (B, L), below 0 off the masks -> (B, L) bool"""
    return (belief >= threshold) | highest(belief, 1) & (belief >= 0)                               # (B, L)


def by_factor(belief, factor):
    """Eq. (19). belief (B, L), below 0 off the masks -> (B, L) bool"""
    n = torch.arange(1, belief.shape[1] + 1, device=belief.device)                                  # (L,)
    ranked = belief.sort(-1, descending=True).values                                                # (B, L)
    allowed = ((n + 1) * (1 - ranked) < factor) & (ranked >= 0)                                     # (B, L)
    most = torch.where(allowed, n, 1).amax(-1, keepdim=True)                                        # (B, 1)
    return highest(belief, most) & (belief >= 0)                                                    # (B, L)


def put_off(belief, drawn, last):
    """No belief in the word `last` as long as another mask of the text has drawn another word: so it opens last.
    belief (B, L), below 0 off the masks; drawn (B, L) -> (B, L)"""
    late = (drawn == last) & (belief >= 0)                                                          # (B, L)
    others = ((belief >= 0) & ~late).any(-1, keepdim=True)                                          # (B, 1)
    return torch.where(late & others, 0.0, belief)                                                  # (B, L)


def look(denoiser, z, t, at, lo, hi, cache, kept):
    """Logits in the rows `at`, which lie in lo .. hi - 1, and the cache to use next time; kept: that of last time."""
    if cache == "none":
        return denoiser(z, t, at=at), None
    if kept is None:                                         # the first step of a block: read everything
        kept = Cache(z.shape[1])
        logits = denoiser(z, t, at=at, cache=kept)                                                  # (N, V)
        kept.start, kept.length = lo, z.shape[1] if cache == "dual" else 0
        return logits, kept
    part = slice(lo, hi if cache == "dual" else z.shape[1])
    return denoiser(z[:, part], t, at=at[:, part], cache=kept), kept


@torch.no_grad()
def semi_ar(process, denoiser, z, frozen, steps, law=probabilities, block=32, cache="none", threshold=0.0, factor=0.0,
            last=None):
    """Open one block of masks after the other, those first that the network is surest of; yields z after each step.

    Belief is the probability that the network gives to a draw, before `law` sharpens it: at temperature 0 it still
    tells one word from another. Not a sampler of the model's law; see `confidence` in masked.py. last: the id of a
    word that opens when no other is left to open, such as the end of an answer.
    """
    if cache != "none" and not getattr(denoiser, "caches", False):
        raise BadInput(f"the exact denoiser keeps no keys and values: --cache {cache} needs a network")
    L, place = z.shape[1], torch.arange(z.shape[1], device=z.device)
    first = int((z == process.mask).any(0).int().argmax())   # the first block begins behind the prompt
    starts = range(first, L, block)
    for lo in starts:
        hi, left, kept = min(lo + block, L), max(1, steps // len(starts)), None
        while (at := (z == process.mask) & (lo <= place) & (place < hi)).any():                     # (B, L)
            t = (z == process.mask).sum(-1, keepdim=True) / L                                       # (B, 1)
            logits, kept = look(denoiser, z, t, at, lo, hi, cache, kept)                            # (N, V)
            logits = logits[:, :process.n_tokens]                                                   # (N, n_tokens)
            drawn, sure = draw_from(law, logits)                                                    # (N,) each
            belief = torch.full(z.shape, -1.0, dtype=sure.dtype, device=z.device).masked_scatter(at, sure)   # (B, L)
            belief = belief if last is None else put_off(belief, z.masked_scatter(at, drawn), last)          # (B, L)
            stays = (surer_than(belief, threshold) if threshold else by_factor(belief, factor) if factor
                     else highest(belief, transfer(at.sum(-1, keepdim=True), left)))                # (B, L)
            z = torch.where(stays & at, z.masked_scatter(at, drawn), z)                             # (B, L)
            left = max(1, left - 1)
            yield z


def windows(sample, z, frozen, window, stride):
    """Texts longer than those of training, a window after the other: `stride` new tokens each time, written with those
    before them given (MDLM's semi-autoregression, arXiv:2406.07524). sample(z, frozen) yields the states of a window.

    What is given to the right of a window is kept, but not looked at. Yields z (B, L) after each step.
    """
    L, done = z.shape[1], 0
    for lo in [*range(0, max(0, L - window), stride), max(0, L - window)]:
        hi = min(lo + window, L)
        given = frozen[:, lo:hi] | (torch.arange(lo, hi, device=z.device) < done)                   # (B, window)
        for part in sample(z[:, lo:hi], given):
            z = torch.cat([z[:, :lo], part, z[:, hi:]], 1)                                          # (B, L)
            yield z
        done = hi
