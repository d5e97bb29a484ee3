"""
Chapter 18. Speculative decoding: a cheap draft writes gamma tokens, an AR model checks them in one
call (arXiv:2211.17192). In SpecDiff (2408.05636) the draft is a masked diffusion model, which
writes all gamma in one call too.

From left to right, with p = law(AR(. | x_<l)), and q the law that the draft's token x~ was drawn
from,

    accept x~ with probability  min(1, p(x~) / q(x~)),  so with sum_v min(p, q) over all      (18.1)
    at the first refusal draw   x ~ (p - q)+ / sum_v (p - q)+,  and stop                      (18.2)
    if all gamma stay, draw one more token from p

The text then has the law of the AR model, whatever the draft is, if each q_l depends on nothing to
the right of l that was drawn. A masked draft in one step is such, and so is one in several steps
that each open a leftmost group. Draws in any other order are not: --draft_order says by how much.

K drafts are checked in rounds (SpecDiff-2). At each place, for the drafts that begin with the
accepted tokens, in turn,

    accept x~_k with min(1, p(x~_k) / q(x~_k)), else  p := (p - q)+ / sum_v (p - q)+          (18.3)

Who drafts is in samplers/drafts.py. The n-gram draft needs no network. It counts the text so far,
c_n(v) times v after the last n tokens, n = 0, 1, 2, with q_(-1) = 1/V:

    q_n(v) = (c_n(v) + q_(n-1)(v)) / (sum_v c_n(v) + 1)                                       (18.4)

An ar with several heads drafts for itself (--draft heads): the state that wrote the last token has
predicted the next ones, too. These drafts depend on nothing to their right, so they are lossless by
(18.1). The paper keeps the longest prefix that equals the greedy text: that is (18.1) at
temperature 0, and no law at any other.

If a share b of tokens is accepted and a draft costs c calls of the AR model, a text is written

    (1 - b^(gamma + 1)) / ((1 - b) (1 + c))                                                   (18.5)

times faster. If texts have the AR model's law, then E[-log p(x_l) - H(p_l)] = 0 for every new token
(H: entropy). The mean over all texts, with its error, is reported for drafts that are not lossless.
"""
import math
import sys
from collections import Counter
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F

from diffusion import Sampler, categorical
from flags import UserError, flag
from methods.left_to_right import end_texts, new_cache, read_with_cache
from model import block_causal
from samplers.base import highest, toss
from samplers.drafts import draft_of, keep_best

# Total variation from the AR model's law in the world of tests/world.py: 27 texts of 3 tokens
NOT_LOSSLESS = {"coins": (2, 0.020), "random": (3, 0.043), "right": (2, 0.067),
                "confident": (2, 0.128)}  # order: steps, distance


def residual(p, q):
    """(18.2): (p - q)+ as probabilities; p where nothing is left of it. p, q (B, V) -> (B, V)"""
    rest = (p - q).clamp(min=0)  # (B, V)
    total = rest.sum(-1, keepdim=True)  # (B, 1)
    return torch.where(total > 0, rest / total, p)  # (B, V)


def verify(p, q, words, given, free):
    """(18.1)-(18.3) at g places after the accepted text, and one more.

    p (K, B, g + 1, V): the AR model's probabilities along each draft; q (K, B, g, V) the drafts'
    words (K, B, g): the drafts, with given tokens in place; given (B, g + 1): what stands there
    free (B, g + 1): where a token is to be drawn
    -> tokens (B, g + 1), how many of them count (B,), a draft that begins with all of these but the
       last (B,), how many tokens were drafted and kept (B,)
    """
    (K, B, g), rows = words.shape, torch.arange(words.shape[1], device=words.device)
    alive = torch.ones(K, B, dtype=torch.bool, device=words.device)  # (K, B) agree so far
    going, tokens = torch.ones_like(alive[0]), given.clone()  # (B,), (B, g + 1)
    n, kept, best = torch.zeros_like(rows), torch.zeros_like(rows), torch.zeros_like(rows)  # (B,)
    for l in range(g + 1):
        first = alive.int().argmax(0)  # (B,)
        best, rest = torch.where(going, first, best), p[first, rows, l]  # (B,), (B, V)
        open, word = going & free[:, l], given[:, l]  # (B,) each
        for k in range(K if l < g else 0):
            asked, x = open & alive[k], words[k, :, l, None]  # (B,), (B, 1)
            fits = toss(rest.gather(1, x)[:, 0] / q[k, :, l].gather(1, x)[:, 0])  # (B,) (18.1)
            word = torch.where(asked & fits, x[:, 0], word)  # (B,)
            refused = asked & ~fits  # (B,)
            rest = torch.where(refused[:, None], residual(rest, q[k, :, l]), rest)  # (B, V)
            open, kept = open & ~(asked & fits), kept + (asked & fits)  # (B,) each
        if open.any():
            word = torch.where(open, categorical(rest.nan_to_num()), word)  # (B,) nan: not open
        tokens[:, l] = torch.where(going, word, tokens[:, l])  # (B,)
        n, going = n + going, going & ~open  # (B,) each
        if not going.any():
            break
        if l < g:
            alive = alive & (words[:, :, l] == word)  # (K, B)
    return tokens, n, best, kept


@dataclass(eq=False)
class Speculative(Sampler):
    """--sampler speculative: a draft writes ahead, and one call of the AR model checks it."""
    draft: str = flag("ngram", "who drafts: ngram, the folder of a run with masks or of another "
                      "ar, heads for an ar with several, or for the toy language the oracle of a "
                      "method")
    gamma: int = flag(8, "tokens that a draft has", least=1, most=1000)
    drafts: int = flag(1, "drafts of the same tokens, checked in rounds of refusal", least=1,
                       most=1000)
    draft_groups: int = flag(1, "steps in which a draft with masks writes; each opens the leftmost "
                             "masks", least=1, most=1000)
    draft_order: str = flag("left", "which masks open first; all but left are not lossless",
                            ["left", *NOT_LOSSLESS])
    model: object = None  # that drafts, from `prepare`; None: n-grams, or heads
    writer: object = None  # a draft of samplers/drafts.py
    spent: Counter = field(default_factory=Counter)  # by all texts
    spent_before: Counter = field(default_factory=Counter)  # by all batches but the last

    def __post_init__(self):
        if self.draft_groups > self.gamma:
            raise UserError(f"--draft_groups {self.draft_groups} is more than the --gamma "
                            f"{self.gamma} tokens of a draft: give at most that")
        if self.draft_order != "left" and self.draft_groups == 1:
            raise UserError(f"--draft_order {self.draft_order} counts for nothing in one step: "
                            "give --draft_groups 2 or more, or leave it out")
        if self.draft in ("ngram", "heads"):
            self.check_order(self.draft)

    def check_order(self, name):
        if self.draft_groups > 1 or self.draft_order != "left":
            how = "all at once" if name == "heads" else "one token after the other"
            raise UserError(f"--draft {name} writes {how}: leave out --draft_groups and "
                            "--draft_order")

    @property
    def draws_from_model(self):
        return self.draft_order == "left"

    def fits(self, method):
        if not (method.exact and method.left_to_right):
            return f"checks drafts by exact next-token probabilities, which {method.name} has not"

    def prepare(self, model):
        if not self.draws_from_model:
            steps, off = NOT_LOSSLESS[self.draft_order]
            print(f"--draft_order {self.draft_order} is not lossless: in a world of 27 texts and "
                  f"{steps} steps the law of its texts is {off:.3f} from that of "
                  f"{model.method.name} (total variation); nats_off says it of this model's words",
                  file=sys.stderr)
        if self.draft == "ngram":
            return
        if self.draft == "heads":
            if model.method.heads == 1:
                raise UserError("--draft heads is for an ar with several: train one with --heads 4")
            self.gamma = min(self.gamma, model.method.heads - 1)
            return
        self.model = model.beside("--draft", self.draft)
        method = self.model.method
        if self.model.config.block_size < model.config.block_size:
            raise UserError(f"--draft {self.draft} knows texts of {self.model.config.block_size} "
                            f"tokens, and the model writes {model.config.block_size}: train a "
                            "draft with at least that --block_size")
        if not self.fits(method):
            self.check_order(self.draft)
        elif not (method.bidirectional and method.opens_masks) or method.samplers is not None:
            raise UserError(f"--draft {self.draft} is a run of {method.name}, which can draft "
                            "nothing: give a run of mdlm, md4, radd or ar, or ngram")

    # ---- what it costs

    def costs(self, whole=False):
        """Of the last batch, or of all texts."""
        before = {} if whole else self.spent_before
        spent = Counter({what: n - before.get(what, 0) for what, n in self.spent.items()})
        passes, tokens = max(1, spent["passes"]), max(1, spent["tokens"])
        shown = {"draft_calls": spent["draft_calls"],
                 "tokens_per_call": round(spent["tokens"] / passes, 3),
                 "accepted_per_call": round(spent["kept"] / passes, 3)}
        if not self.draws_from_model:
            shown |= {"nats_off": round(spent["off"] / tokens, 4),
                      "nats_off_error": round(math.sqrt(spent["squares"]) / tokens, 4)}
        return shown

    def note(self, p, tokens, n, best, kept, free):
        """Add a pass over B texts. p (K, B, g + 1, V), the rest as in verify."""
        place, rows = torch.arange(free.shape[1], device=n.device), torch.arange(len(n))
        drawn = free & (place < n[:, None])  # (B, g + 1)
        self.spent.update(passes=len(n), tokens=int(drawn.sum()), kept=int(kept.sum()))
        if not self.draws_from_model:
            p = p[best, rows.to(n.device)][drawn]  # (N, V)
            off = -p.gather(1, tokens[drawn][:, None])[:, 0].log()  # (N,)
            off = off + torch.special.xlogy(p, p).sum(-1)  # (N,)
            self.spent["off"] += float(off.sum())
            self.spent["squares"] += float((off ** 2).sum())

    # ---- drafts

    def opens(self, step, steps, open, chance=None):
        """Which open places of a draft are written in a step. open (B, g) -> (B, g)

        chance (B, g): the draft's probability of its own draw
        """
        g, order = open.shape[1], self.draft_order
        place = torch.arange(g, dtype=torch.float64, device=open.device).expand_as(open)  # (B, g)
        score = {"left": -place, "right": place, "confident": chance}.get(order)  # (B, g)
        if score is None:
            score = torch.rand(open.shape, dtype=torch.float64, device=open.device)  # (B, g)
        if order == "coins":
            return open & (score * (steps - step) < 1)  # (B, g)
        n = g * (step + 1) // steps - g * step // steps
        return open & highest(score.masked_fill(~open, -math.inf), n)  # (B, g)

    def write_drafts(self, z, index, free, L, V, to_probs):
        """K drafts at the places index (B, g) where they are free (B, g), of texts z (B, L + more).

        -> z (K B, L + more) with drafts, the first of each text first; q (K, B, g, V)
        """
        (B, g), K = index.shape, self.drafts
        steps = g if self.writer.one_by_one else self.draft_groups
        z, index, open = (a.repeat(K, 1) for a in (z, index, free))  # (K B, ..) each
        q = torch.zeros(K * B, g, V, dtype=torch.float64, device=z.device)  # (K B, g, V)
        nowhere = torch.zeros_like(z, dtype=torch.bool)  # (K B, L + more)
        for step in range(steps):
            confident = self.draft_order == "confident"
            at = open if confident else self.opens(step, steps, open)  # (K B, g)
            if not at.any():
                continue
            alike = step == 0 and self.draws_from_model and self.writer.alike
            n = B if alike else K * B  # at first, drafts are alike
            seen, known = nowhere.scatter(1, index, at)[:n, :L], int(index[:, step].min())  # (n, L)
            logits = self.writer.logits(z[:n, :L], seen, V, known)  # (N, V)
            law = to_probs(logits).to(q.dtype)  # (N, V)
            law = law.repeat(K * B // n, 1)  # (N', V)
            drawn = categorical(law)  # (N',)
            if confident:
                chance = law.gather(1, drawn[:, None])[:, 0]  # (N',)
                chance = q.new_zeros(at.shape).masked_scatter(at, chance)  # (K B, g)
                keeps = self.opens(step, steps, open, chance)  # (K B, g)
                law, drawn, at = law[keeps[at]], drawn[keeps[at]], keeps
            q[at], open = law, open & ~at  # (N', V), (K B, g)
            z = z.masked_scatter(nowhere.scatter(1, index, at), drawn)  # (K B, L + more)
        self.spent["draft_calls"] += self.writer.calls
        self.writer.calls = 0
        return z, q.view(K, B, g, V)

    # ---- writing

    def cycle(self, method, denoiser, z, frozen, place, to_probs, cache=None):
        """Draft and check once. z, frozen (B, L); place (B,): the first token to write, not frozen
        -> z (B, L), how long the text is then (B,)
        """
        (B, L), K, g, V = z.shape, self.drafts, self.gamma, method.n_tokens
        index = place[:, None] + torch.arange(g + 1, device=z.device)  # (B, g + 1)
        unwritten = ~frozen & (torch.arange(L, device=z.device) >= place[:, None])  # (B, L)
        z = F.pad(z.masked_fill(unwritten, method.start), (0, g + 1))  # (B, L + g + 1)
        free = F.pad(unwritten, (0, g + 1)).gather(1, index)  # (B, g + 1)
        texts, q = self.write_drafts(z, index[:, :-1], free[:, :-1], L, V, to_probs)
        logits = self.read(method, denoiser, z, texts, index, free, cache)  # (N, H, V)
        p = q.new_zeros(K * B, g + 1, V)  # (K B, g + 1, V)
        p[free.repeat(K, 1)] = to_probs(logits[:, 0]).to(p.dtype)  # (N, V)
        p, words = p.view(K, B, g + 1, V), texts.gather(1, index[:, :-1].repeat(K, 1))
        tokens, n, best, kept = verify(p, q, words.view(K, B, g), z.gather(1, index), free)
        self.note(p, tokens, n, best, kept, free)
        length = (place + n).clamp(max=L)  # (B,)
        if cache:
            keep_best(cache, best, K, B)
            cache.keep(int(length.min()) - cache.read)
        self.writer.check(best, length, beyond(logits, free, best, n, K))
        return z.scatter(1, index, tokens)[:, :L], length

    def read(self, method, denoiser, z, texts, index, free, cache):
        """The one call of the AR model: logits of all its heads where they are needed. -> (N, H, V)

        texts (K B, L + more): with drafts, at the places index (B, g + 1) of z (B, L + more)
        """
        K, L = self.drafts, z.shape[1] - index.shape[1]
        ahead = {"ahead": True} if self.draft == "heads" else {}
        at = torch.zeros_like(z, dtype=torch.bool).scatter(1, index, free).repeat(K, 1)[:, :L]
        shifted = method.shift(texts[:, :L])  # (K B, L)
        if cache is None:
            logits = denoiser(shifted, None, at=at, **ahead)  # (N, V) or (N, H, V)
        else:
            hi = min(L, int(index[:, -1].max()) + 1)
            logits = read_with_cache(partial(denoiser, **ahead), cache, shifted[:, :hi],
                                     at[:, cache.read:hi], cache.read, None)  # the same
        logits = logits if ahead else logits[:, None]  # (N, H, V)
        return logits[..., :method.n_tokens]  # (N, H, V)

    @torch.no_grad()
    def write_in_order(self, method, denoiser, z, frozen, to_probs, window=None, end=None):
        """Yields z (B, L) after each cycle, as method.sample does. Given tokens further right are
        read by drafts with masks alone."""
        L = z.shape[1]
        self.spent_before = self.spent.copy()
        going, cache = torch.arange(len(z), device=z.device), new_cache(denoiser, L, 1)
        if cache and window is not None and window < L:  # beyond it, all is read again in each call
            denoiser, cache = partial(denoiser, mask_mod=block_causal(1, window - 1)), None
        if cache:
            cache.copies *= self.drafts
        self.writer = draft_of(self.draft, self.model)
        self.writer.begin(L, self.drafts, cached=cache is not None)
        memory = Both(cache, self.writer)
        length = torch.zeros_like(going)  # (B,) of the text that is written
        places = torch.arange(L, device=z.device)  # (L,)
        while True:
            left = ~frozen & (places >= length[:, None])  # (B, L)
            place = torch.where(left.any(-1), left.int().argmax(-1), L)  # (B,)
            stay = (place[going] < L).nonzero()[:, 0]  # (b',)
            if len(stay) < len(going):
                memory.select(stay)
            going = going[stay]  # (b',)
            if not len(going):
                return
            part, longer = self.cycle(method, denoiser, z[going], frozen[going], place[going],
                                      to_probs, cache)  # (b', L), (b',)
            lo, hi = int(place[going].min()), int(longer.max())
            z = z.index_put((going,), part)  # (B, L)
            length = length.index_put((going,), longer)  # (B,)
            z, going = end_texts(z, frozen, lo, hi, end, going, memory)  # (B, L), (b'',)
            yield z


class Both:
    """What AR model and draft know of the texts of a batch: those that end leave both."""

    def __init__(self, cache, writer):
        self.parts = [part for part in (cache, writer) if part]

    def select(self, rows):
        for part in self.parts:
            part.select(rows)


def beyond(logits, free, best, n, K):
    """What further heads predict beyond the last word of each text. -> (B, H - 1, V), or None

    logits (N, H, V) at the places free (B, g + 1) of K drafts; best (B,): the draft whose first
    n (B,) places count. Zeros where the last of them was given: no head has looked there.
    """
    if logits.shape[1] == 1:
        return None
    every = logits.new_zeros(K, *free.shape, *logits.shape[1:])  # (K, B, g + 1, H, V)
    every[free.expand(K, -1, -1)] = logits
    return every[best, torch.arange(len(n), device=n.device), n - 1, 1:]  # (B, H - 1, V)
