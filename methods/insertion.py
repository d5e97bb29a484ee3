"""
Chapter 21. Texts of any length: what is missing in them, and one bound for all that can happen.

Noise gives each token of x times of its own at which something happens to it (it is masked, deleted
or replaced). On the way back from time t the events before t are still to come: they are pending. w
is their rate, the same for all. Each is an action of z, such as "open mask l as v" or "put a mask
into gap j". The network outputs lam(a) >= 0, how many pending events are the action a:

    -log p(x) <= E_t E_z w(t) [ sum_a lam(a) - sum_pending ( 1 + log lam(a) ) ]               (21.1)
                 + KL( q(z_1 | x) || p(z_1) )
    minimum   lam*(a) = E[ number of pending events that are a | z, t ]                       (21.2)

The chain with rates w(t) lam(a) leads back from z_1 to texts. (21.1) is tight if z shows which
events have happened, and when, to who knows x: for masks, for insertions, for both. With masks of
fixed places sum_v lam(l, v) = 1 and it is (0.2). Deletions and random words make it loose.

Time runs from 0, where all is there, to 1, where the text is empty. A token is deleted after its
time T with P(T < t) = D(t), and w = D'/D:

    linear   D = t,                        w = 1/t
    sine     D = 1 - sin( pi (1 - t)/2 ),  w = (pi/2) cot( pi t/4 )                           (21.4)

What is left of x stands in order and without gaps, so nobody sees where tokens are missing. A text
ends before the ends that fill it up (`end_id`), and its length is learned like its words. Without
such an id all texts of a data set have one length. z has a place more than x, the gap behind it.
This file is a base without a name of its own: methods/flexmdm.py, methods/ilm.py.
"""
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F

from data.tokenizer import end_of_text
from diffusion import supports
from methods.base import Method


def action_nats(log_rate, pending):
    """The bracket of (21.1) for each action: lam - k (1 + log lam), k its pending events. log_rate
    and pending have one shape. -> nats, of that shape"""
    return log_rate.exp() - torch.where(pending > 0, pending * (1 + log_rate), 0.0)  # (...)


class Insertions:
    """Masks that are inserted, and then opened. Text has the ids 0 .. n_tokens - 1, then come the
    mask and the id of places without a token. gone: how many tokens are not there yet, (21.4)"""
    text_stays, continuous = True, True
    drafts = None  # a list, where a viewer wants to see which token is which

    def __init__(self, n_tokens, gone="linear"):
        self.n_tokens, self.mask, self.fill, self.V = n_tokens, n_tokens, n_tokens + 1, n_tokens + 2
        self.gone, self.end = gone, None

    @property
    def blank(self):
        """What stands where there is no token (yet): an end, or a mask where texts do not end."""
        return self.mask if self.end is None else self.end

    def words(self, logits):
        """Logits of what a token may become. Texts end by gaps, and no token is an end. (N, V) ->
        (N, n_tokens)"""
        logits = logits[:, :self.n_tokens]  # (N, n_tokens)
        if self.end is None:
            return logits
        end = torch.arange(self.n_tokens, device=logits.device) == self.end  # (n_tokens,)
        return logits.masked_fill(end, -torch.inf)  # (N, n_tokens)

    def deleted(self, t):
        """D(t). -> shape of t"""
        return t if self.gone == "linear" else 1 - torch.sin(math.pi / 2 * (1 - t))

    def time_of(self, u):
        """D^-1(u). -> shape of u"""
        return u if self.gone == "linear" else 1 - 2 / math.pi * torch.asin(1 - u)

    def hazard(self, t):
        """w(t) = D'/D. -> shape of t"""
        return 1 / t if self.gone == "linear" else math.pi / 2 / torch.tan(math.pi / 4 * t)


# ---- what is left of a text

class Left(NamedTuple):
    """What is left of texts x (B, L), in order, with a place more for the gap behind it."""
    z: torch.Tensor  # (B, L + 1) ids, first the tokens
    of: torch.Tensor  # (B, L + 1) which token of x stands there
    m: torch.Tensor  # (B, 1) tokens
    missing: torch.Tensor  # (B, L + 1) tokens that are missing in the gap before each place
    closed: torch.Tensor  # (B, L + 1) gaps where nothing can be missing

    @property
    def open(self):
        """The gaps 0 .. m where tokens may be missing. -> (B, L + 1)"""
        place = torch.arange(self.z.shape[1], device=self.z.device)  # (L + 1,)
        return (place <= self.m) & ~self.closed  # (B, L + 1)


def count_words(x, end):
    """Tokens before the ends that fill up a text. x (B, L) -> (B, 1)"""
    if end is None:
        return torch.full_like(x[:, :1], x.shape[1])  # (B, 1)
    return x.shape[1] - (x == end).flip(-1).long().cumprod(-1).sum(-1, keepdim=True)  # (B, 1)


def closed_places(frozen):
    """Between which neighbors nothing can be missing: place i is between x_i-1 and x_i, both given.
    A text begins and ends at given places. frozen (B, L) -> (B, L + 1)"""
    return F.pad(frozen, (1, 0), value=True) & F.pad(frozen, (0, 1), value=True)  # (B, L + 1)


def leave(x, n, keep, frozen, fill):
    """What `keep` (B, L) leaves of texts of n (B, 1) tokens; behind it stands `fill`. -> Left"""
    L, place = x.shape[1], torch.arange(x.shape[1] + 1, device=x.device)  # (L + 1,)
    keep = keep & (place[:L] < n)  # (B, L)
    m = keep.sum(-1, keepdim=True)  # (B, 1)
    of = (~keep).long().argsort(dim=-1, stable=True)  # (B, L)
    z = F.pad(x.gather(-1, of), (0, 1)).masked_fill(place >= m, fill)  # (B, L + 1)
    of = torch.where(place < m, F.pad(of, (0, 1)), n)  # (B, L + 1) the end, behind the text
    before = F.pad(of[:, :-1], (1, 0), value=-1)  # (B, L + 1)
    missing = (of - before - 1).masked_fill(place > m, 0)  # (B, L + 1)
    closed = closed_places(torch.zeros_like(keep) if frozen is None else frozen)  # (B, L + 1)
    closed = closed.gather(-1, of) & (place <= m)  # (B, L + 1) given tokens are never missing
    return Left(z, of, m, missing, closed)


def told(denoiser, closed):
    """What a denoiser that asks for it is told: the closed gaps (B, L + 1). -> keywords"""
    return dict(frozen=closed) if supports(denoiser, "reads_frozen") else {}


def spread_nats(nats, x, n, frozen):
    """nats (B,) of whole texts, shared out evenly among the tokens that are not given; of a text
    without one, its first free place. -> (B, L)"""
    place = torch.arange(x.shape[1], device=x.device)  # (L,)
    free = torch.ones_like(x, dtype=torch.bool) if frozen is None else ~frozen  # (B, L)
    words = free & (place < n)  # (B, L)
    first = free & (free.cumsum(-1) == 1)  # (B, L)
    words = torch.where(words.any(-1, keepdim=True), words, first)  # (B, L)
    each = nats[:, None] / words.sum(-1, keepdim=True).clamp(min=1)  # (B, 1)
    return torch.where(words, each, 0.0)  # (B, L)


@dataclass(eq=False)
class AnyLength(Method):
    """What methods that insert share. x (B, L) are texts and the ends that fill them up."""
    any_length, fixed_positions, takes_steps, classifier_process = True, False, False, None

    @property
    def end_id(self):
        """The id that fills up a text behind its end; None: texts of a data set have one length."""
        return self.process.end

    @end_id.setter
    def end_id(self, value):
        self.process.end = value

    def prior(self, shape, device="cpu"):
        """No token at all. -> (B, L)"""
        return torch.full(shape, self.process.blank, device=device)  # (B, L)

    def on_data(self, data):
        self.end_id = end_of_text(data.encoding)
