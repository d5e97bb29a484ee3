"""
Chapter 21. Masks are inserted and opened: the sampler of texts of any length.

A step from time t to s < t, with D of (21.4) and g_j tokens expected in gap j:

    each mask opens with probability 1 - s/t                                                  (21.8)
    into gap j go Poisson( g_j (1 - D(s)/D(t)) ) masks, which open in later steps
    times    t_i = (1 - i/N)^2: short steps last, or equal ones

The first line is exact: T_mask is uniform. The second is exact in short steps. In the last step,
s = 0, all masks open and all that is missing is inserted; one more call opens those masks.

Given tokens are neither masked nor moved past each other. Nothing enters between two of them that
are neighbors in the prompt; every other gap takes any number of tokens. Where texts do not end, all
have one length, and a gap takes as many tokens as it has places.
"""
from dataclasses import dataclass, replace

import torch

from diffusion import Sampler, draw_from, probabilities
from flags import flag
from methods.insertion import Insertions, count_words, leave, told
from samplers.base import highest, scatter_at


@dataclass
class Draft:
    """Texts that are being written, with a place more for the gap behind them. All (B, M)."""
    z: torch.Tensor  # ids: m tokens, then fill
    given: torch.Tensor  # tokens of the prompt
    closed: torch.Tensor  # gaps, each before its place, into which nothing goes
    part: torch.Tensor  # which gap of the prompt this gap belongs to
    room: torch.Tensor  # how many tokens the gap number .. of the prompt can take
    number: torch.Tensor  # which token it is: it keeps its number wherever it moves

    @classmethod
    def begin(cls, process, z, frozen):
        """From the given tokens of z (B, L)."""
        n, place = count_words(z, process.end), torch.arange(z.shape[1] + 1, device=z.device)
        left = leave(z, n, frozen, frozen, process.fill)
        part, room = place.expand_as(left.z), left.missing  # (B, M) each
        if process.end is not None:  # all gaps share the room of the text
            part = torch.zeros_like(part)  # (B, M)
            room = torch.where(place == 0, z.shape[1] - left.m, 0)  # (B, M)
        return cls(left.z, place < left.m, left.closed, part, room, place.expand_as(left.z))

    def size(self, process):
        """Tokens of each text. -> (B, 1)"""
        return (self.z != process.fill).sum(-1, keepdim=True)  # (B, 1)

    def takes(self, process):
        """Gaps that take tokens. -> (B, M)"""
        place = torch.arange(self.z.shape[1], device=self.z.device)  # (M,)
        return (place <= self.size(process)) & ~self.closed & (self.room.gather(-1, self.part) > 0)

    def insert(self, process, k):
        """Put k (B, M) masks into the gaps, as far as there is room. -> Draft"""
        total, room = k.cumsum(-1), self.room.gather(-1, self.part)  # (B, M) each
        new = self.part != self.part.roll(1, -1)  # (B, M) a gap of the prompt begins
        within = total - torch.where(new, total - k, 0).cummax(-1).values  # (B, M) in that gap
        k = within.minimum(room) - (within - k).minimum(room)  # (B, M)
        place = torch.arange(k.shape[1], device=k.device).expand_as(k).contiguous()  # (B, M)
        to = place + k.cumsum(-1)  # (B, M) where each place moves
        of = torch.searchsorted(to, place).clamp(max=k.shape[1] - 1)  # (B, M) and what comes there
        old = to.gather(-1, of) == place  # (B, M)
        z = torch.where(old, self.z.gather(-1, of), process.mask)  # (B, M)
        fresh = self.number.amax(-1, keepdim=True) + (~old).cumsum(-1)  # (B, M)
        number = torch.where(old, self.number.gather(-1, of), fresh)  # (B, M)
        return Draft(z, self.given.gather(-1, of) & old, self.closed.gather(-1, of),
                     self.part.gather(-1, of), self.room.scatter_add(-1, self.part, -k), number)

    def text(self, process):
        """What there is of the texts, (B, L): with ends behind them, or where texts do not end,
        given tokens in their places. A viewer that asked for drafts has this one."""
        if process.drafts is not None:
            process.drafts.append(self)
        L, place = self.z.shape[1] - 1, torch.arange(self.z.shape[1], device=self.z.device)
        there = place < self.size(process)  # (B, M)
        if process.end is None:  # behind what is still missing to the left
            own = self.room.gather(-1, self.part)  # (B, M) missing in the gap of the prompt
            before = self.room.cumsum(-1).gather(-1, self.part) - own * ~self.given  # (B, M)
            to = torch.where(there, place + before, L)  # (B, M)
            blank = torch.full_like(self.z, process.blank)  # (B, M)
            return blank.scatter(-1, to, self.z)[:, :L]  # (B, L)
        return torch.where(there, self.z, process.end)[:, :L]  # (B, L)


def poisson(rate, most):
    """One draw for each rate (B, M), by inverse CDF, at most `most`. -> (B, M) int64"""
    u, k = torch.rand(rate.shape, dtype=torch.float64, device=rate.device), torch.zeros_like(rate)
    p = (-rate).exp()  # (B, M) of k = 0
    cdf = p.clone()  # (B, M)
    for i in range(1, most + 1):
        more = u >= cdf  # (B, M)
        if not more.any():
            break
        k, p = k + more, p * rate / i  # (B, M) each
        cdf = cdf + p  # (B, M)
    return k.long()  # (B, M)


def share_out(draft, g):
    """As many tokens for each gap of the prompt as it has places, among its gaps in proportion to
    g (B, M). -> (B, M)"""
    ends = draft.room.cumsum(-1)  # (B, M)
    balls = torch.arange(int(ends[:, -1].max()), device=g.device).expand(len(g), -1).contiguous()
    part = torch.searchsorted(ends, balls, right=True).clamp(max=g.shape[1] - 1)  # (B, R)
    own = draft.part[:, None] == part[..., None]  # (B, R, M)
    cdf = torch.where(own, g[:, None], 0.0).cumsum(-1)  # (B, R, M)
    u = torch.rand(g.shape, dtype=torch.float64, device=g.device)[:, :part.shape[1]]  # (B, R)
    gap = (cdf <= u[..., None] * cdf[..., -1:]).sum(-1).clamp(max=g.shape[1] - 1)  # (B, R)
    real = (balls < ends[:, -1:]).long()  # (B, R)
    return torch.zeros_like(draft.part).scatter_add(-1, gap, real)  # (B, M)


@dataclass(eq=False)
class Insertion(Sampler):
    """--sampler insertion: masks open, and masks are inserted where tokens are missing."""
    spacing: str = flag("quadratic", "steps of (1 - i/N)^2, short ones last, or equal ones",
                        ["quadratic", "equal"])
    opens: str = flag("random", "which masks open: any, or as many of the most confident ones",
                      ["random", "surest"])

    def fits(self, method):
        if not isinstance(method.process, Insertions):
            return f"inserts masks, which {method.name} does not have"

    @property
    def draws_from_model(self):
        return self.opens == "random"

    def count_states(self, length, steps):
        return steps + 1  # the last call

    def times(self, steps, device="cpu"):
        """From 1 to 0. -> (N + 1,)"""
        times = torch.linspace(1, 0, steps + 1, dtype=torch.float64, device=device)  # (N + 1,)
        return times.square() if self.spacing == "quadratic" else times  # (N + 1,)

    @torch.no_grad()
    def __call__(self, process, denoiser, z, frozen, steps, to_probs=probabilities):
        draft, times = Draft.begin(process, z, frozen), self.times(steps, z.device)  # (N + 1,)
        for t, s in zip(times[:-1], times[1:]):
            draft = self.step(process, denoiser, draft, t, s, to_probs)
            yield draft.text(process)
        draft = self.open(process, denoiser, draft, times[-1], draft.z == process.mask, to_probs)
        yield draft.text(process)

    def step(self, process, denoiser, draft, t, s, to_probs):
        """(21.8), from t to s. -> Draft"""
        masks = draft.z == process.mask  # (B, M)
        coin = torch.rand(masks.shape, dtype=torch.float64, device=masks.device)  # (B, M)
        takes, opens = draft.takes(process), masks & (coin * t >= s)  # (B, M) each
        at = takes | (opens if self.opens == "random" else masks)  # (B, M)
        if not at.any():
            return draft
        logits = self.call(process, denoiser, draft, t, at)  # (N, V)
        draft = self.fill(process, draft, logits, at, masks & at, opens, to_probs)
        log_g = scatter_at(at, logits[:, process.mask].double(), -torch.inf)  # (B, M)
        g = torch.where(takes, log_g.exp(), 0.0)  # (B, M)
        if s == 0 and process.end is None:
            return draft.insert(process, share_out(draft, g + 1e-30 * takes))
        k = poisson(g * (1 - process.deleted(s) / process.deleted(t)), int(draft.room.max()))
        return draft.insert(process, k)

    def call(self, process, denoiser, draft, t, at):
        """Logits at some places of a draft at time t, a number. -> (N, V)"""
        D = process.deleted(t).expand(len(at), 1)  # (B, 1)
        return denoiser(draft.z, D, at=at, **told(denoiser, draft.closed))

    def fill(self, process, draft, logits, at, masks, opens, to_probs):
        """Write words at the masks that open. logits (N, V) at `at`, some of which are `masks`.
        -> Draft"""
        if not opens.any():
            return draft
        words, p = draw_from(to_probs, process.words(logits[masks[at]]))  # (n,) each
        if self.opens == "surest":
            opens = highest(scatter_at(masks, p, -1.0), opens.sum(-1, keepdim=True))  # (B, M)
        words = scatter_at(masks, words)  # (B, M)
        return replace(draft, z=torch.where(opens, words, draft.z))

    def open(self, process, denoiser, draft, t, masks, to_probs):
        """The last call: all masks open. -> Draft"""
        if not masks.any():
            return draft
        logits = self.call(process, denoiser, draft, t, masks)  # (n, V)
        return self.fill(process, draft, logits, masks, masks, masks, to_probs)
