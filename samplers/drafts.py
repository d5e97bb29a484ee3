"""
Chapter 18. Who drafts for samplers/speculative.py: n-grams, a network with masks, another ar, or
the heads of the ar that checks.

    NgramDraft  (18.4), without a network
    MaskDraft   all places in one call, or leftmost groups
    ARDraft     one token after the other, with a cache of its own
    HeadsDraft  all places from the state that wrote the last token, without a call (18.14)

A draft is asked for logits at places of texts w (B, L) that are written up to there. It may keep
what it knows of the texts from call to call: `check` tells it what became of its words, `select`
which texts go on.
"""
import torch

from methods.left_to_right import new_cache, read_with_cache


def ngram_logits(x, at, V):
    """Log of (18.4) at one place of each text of x (B, L), from all before it. -> (N, V)

    at (B, L) bool: at most one place per text
    """
    x, l = x[at.any(-1)], at.nonzero()[:, 1:]  # (N, L), (N, 1)
    j = torch.arange(x.shape[1], device=x.device)  # (L,)
    q = torch.full((len(x), V), 1 / V, dtype=torch.float64, device=x.device)  # (N, V)
    match = j < l  # (N, L) where the last n tokens stand before j, too
    for n in range(3):
        if n:
            back = x.gather(1, (l - n).clamp(min=0))  # (N, 1)
            match = match & (x.roll(n, 1) == back) & (j >= n) & (l >= n)  # (N, L)
        c = torch.zeros_like(q).scatter_add(1, x.clamp(max=V - 1), match.double())  # (N, V)
        q = (c + q) / (c.sum(-1, keepdim=True) + 1)  # (N, V)
    return q.log()


def keep_best(cache, best, K, B):
    """All K rows of a text in the cache become that of its draft `best` (B,)."""
    if K > 1:
        cache.copies //= K
        cache.select((best * B + torch.arange(B, device=best.device)).repeat(K))  # (K B,)
        cache.copies *= K


class NgramDraft:
    """The text so far, counted. Other drafts inherit what they need not know."""
    one_by_one = True  # it writes one token after the other
    calls = 0  # of a network
    alike = True  # where no draft is written yet, one row of a text stands for its K drafts

    def begin(self, length, K, cached):
        """Before texts of `length` tokens, with K drafts of each."""

    def logits(self, w, at, V, known):
        """What it predicts at `at` (B, L). known: tokens that stand in all texts. -> (N, V)"""
        return ngram_logits(w, at, V)  # (N, V)

    def check(self, best, length, state):
        """A call has kept words of the drafts best (B,); texts now have length (B,) tokens.

        state (B, H - 1, V): what other heads of that call predict beyond its last word, or None
        """

    def select(self, rows):
        """These texts of the batch go on, (n,) indices."""


class MaskDraft(NgramDraft):
    """A network that opens masks. model: with .method and .denoiser"""
    one_by_one = False

    def __init__(self, model):
        self.model = model

    def logits(self, w, at, V, known):
        self.calls += 1
        t = (w == self.model.method.process.mask).sum(-1, keepdim=True) / w.shape[1]  # (B, 1)
        return self.model.denoiser(w, t, at=at)[:, :V]  # (N, V)


class ARDraft(NgramDraft):
    """Another ar. Its cache goes back to the last accepted token after each check."""
    cache = None

    def __init__(self, model):
        self.model = model

    def begin(self, length, K, cached):
        self.cache, self.K = new_cache(self.model.denoiser, length, 1) if cached else None, K
        self.alike = self.cache is None
        if self.cache:
            self.cache.copies *= K

    def logits(self, w, at, V, known):
        self.calls += 1
        denoiser, w = self.model.denoiser, self.model.method.shift(w)  # (B, L)
        if self.cache is None:
            return denoiser(w, None, at=at)[:, :V]  # (N, V)
        hi, lo = int(at.any(0).nonzero()[-1]) + 1, self.cache.read
        part = w[:, :hi], at[:, lo:hi]  # (B, hi), (B, hi - lo)
        return read_with_cache(denoiser, self.cache, *part, known + 1, None)[:, :V]  # (N, V)

    def check(self, best, length, state):
        if self.cache:
            keep_best(self.cache, best, self.K, len(best))
            self.cache.keep(min(0, int(length.min()) - self.cache.read))

    def select(self, rows):
        if self.cache:
            self.cache.select(rows)


class HeadsDraft(NgramDraft):
    """The heads of the ar that checks, (18.14): they know all but the last word of a text."""
    one_by_one = False
    state = None  # (B, H - 1, V) logits for the places from `first` (B,) on

    def begin(self, length, K, cached):
        self.state = None

    def logits(self, w, at, V, known):
        """Uniform where no head has looked: before the first call, and beyond given tokens."""
        b, place = at.nonzero().unbind(-1)  # (N,) each
        if self.state is None:
            return torch.zeros(len(b), V, device=w.device)  # (N, V)
        j, last = place - self.first[b], self.state.shape[1] - 1  # (N,)
        guess = self.state[b, j.clamp(max=last), :V]  # (N, V)
        return torch.where((j <= last)[:, None], guess, 0.0)  # (N, V)

    def check(self, best, length, state):
        self.state, self.first = state, length  # (B, H - 1, V), (B,)

    def select(self, rows):
        if self.state is not None:
            self.state, self.first = self.state[rows], self.first[rows]


def draft_of(name, model):
    """The draft of a flag --draft. model: the one beside the ar that checks, or None"""
    if model is None:
        return HeadsDraft() if name == "heads" else NgramDraft()
    return (MaskDraft if model.method.opens_masks else ARDraft)(model)
