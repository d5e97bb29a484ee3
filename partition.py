"""
PGM, partition generative models (arXiv:2505.18883): masked diffusion without masks.

A masked model spends most of its work on masks, which say nothing. PGM never sees one. It splits the *clean* text in
two groups, and each is guessed from the other, as masks are from text:

    partition  g_l = 1 with probability t, else 0: group 1 is hidden at noise level t, group 0 at 1 - t            (20)
    network    logits_l = f(l, { (k, x_k) : g_k != g_l })           a token never sees its own group               (21)
    loss       1/2 sum_l w(n_l) cross-entropy_l,  n_l = t in group 1, 1 - t in group 0                             (22)

With w(n) = 1/n, (22) is the mean of two draws of masked.py's bound (2), from one pass: each token is predicted, not
only the masked ones. What makes (21) true is where attention may look:

    encoder    E = blocks(embed(x))                                 l looks at k if g_k = g_l                      (23)
    GroupSwap  h = out attention(q(norm(u + S)), kv(E))             l looks at k if g_k != g_l. Not at E_l, and    (24)
               no residual: u is learnt, S_l = [cos, sin] of the position. The one place where the groups meet
    decoder    h += gate1 * out(attention(norm(h) .., kv(norm(E)))) l looks at k if g_k != g_l; queries never look (25)
               h += gate2 * mlp(norm(h) ..)                         at each other
    logits     model.py's head, on h

To sample, encode only the tokens that exist, and decode only the positions that are drawn now: by (25) it does not
matter which others are asked. That is the call of any masked model, denoiser(z, t, at): where z has its mask id, no
token exists yet. So the process, the samplers and the bounds of masked.py serve PGM as they are. `first-hitting` opens
equally many tokens in every row (the paper's uniform sampler), `ancestral` a Binomial number.

An empty group leaves nothing to look at, and a group of one gives all attention to it, wherever it is: no query could
tell its distance. The published networks rely on a first token that is always there. Ours have two learnt states at
the places -1 and -2, in neither group: how attention divides between them tells a query its own place.

Does (22) have a mean? 1/(1 - t) has no limit as t -> 1, but the share of tokens in group 0 is 1 - t, so that the
expected weight is 1 at every t. (The public code masks with probability (1 - 0.001) t and keeps 1/(1 - t): an expected
weight of 1 + 0.001 t / (1 - t), whose integral is infinite.) Only the variance has no limit, as that of 1/t in (2).
`simple`, the default, has bounded weights, and `nelbo` is the any-order form (6), whose weights are at most L.
"""
from functools import partial
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from einops import rearrange

from diffusion import corrupt, stratified
from masked import MDLM
from model import Block, Transformer, attention, modulate, rotary_angles, rows
from positions import like


SPREAD = 64                                              # tokens by which a row may always be shorter than the longest


class View(NamedTuple):
    """What a cross-attention looks at, and cos and sin of the positions of both sides."""
    states: torch.Tensor                                     # (B, N, D) `start`, then E of (23)
    rotary_q: tuple                                          # 2 x (1|B, 1, Q, hd/2)
    rotary_k: tuple                                          # 2 x (1|B, 1, N, hd/2)

    def attend(self, q, k, v, n_head, mask_mod, qk_norm, dropout=0.0):
        """q (B, Q, D), k and v (B, N, D) -> (B, Q, D)"""
        q, k, v = (rearrange(a, "b l (h d) -> b h l d", h=n_head) for a in (q, k, v))               # (B, H, Q|N, hd)
        if qk_norm:
            q, k = F.rms_norm(q, q.shape[-1:]), F.rms_norm(k, k.shape[-1:])                         # (B, H, Q|N, hd)
        y = attention(q, k, v, mask_mod, dropout, rotary=(*self.rotary_q, *self.rotary_k))          # (B, H, Q, hd)
        return rearrange(y, "b h l d -> b l (h d)")                                                 # (B, Q, D)


class GroupSwap(nn.Module):
    """(24): from here on a position holds what the other group says about it."""

    def __init__(self, n_embd, n_head, qk_norm):
        super().__init__()
        self.n_head, self.qk_norm = n_head, qk_norm
        self.norm = nn.LayerNorm(n_embd)
        self.q, self.kv = nn.Linear(n_embd, n_embd), nn.Linear(n_embd, 2 * n_embd)
        self.out = nn.Linear(n_embd, n_embd)

    def forward(self, query, view, mask_mod):
        """query (1|B, Q, D), u + S -> (B, Q, D)"""
        q = self.q(self.norm(query)).expand(len(view.states), -1, -1)                               # (B, Q, D)
        k, v = self.kv(view.states).chunk(2, -1)                                                    # (B, N, D) each
        return self.out(view.attend(q, k, v, self.n_head, mask_mod, self.qk_norm))                  # (B, Q, D)


class CrossBlock(Block):
    """(25): a block of model.py whose queries look at the encoder's states in place of each other."""

    def __init__(self, n_embd, n_head, cond_dim, dropout, qk_norm):
        super().__init__(n_embd, n_head, cond_dim, dropout, qk_norm)
        del self.qkv
        self.norm_kv = nn.LayerNorm(n_embd, bias=False)
        self.q, self.kv = nn.Linear(n_embd, n_embd, bias=False), nn.Linear(n_embd, 2 * n_embd, bias=False)

    def attend(self, h, view, mask_mod, remember=None):
        k, v = self.kv(self.norm_kv(view.states)).chunk(2, -1)                                      # (B, N, D) each
        dropout = self.dropout if self.training else 0.0
        return self.out(view.attend(self.q(h), k, v, self.n_head, mask_mod, self.qk_norm, dropout))  # (B, Q, D)


def pack(select):
    """The places of the True in each row (B, L), in reading order, followed by others up to the longest row's number.

    -> places (B, n), n of each row (B,); n is 1 at least
    """
    n = select.sum(-1)                                                                              # (B,)
    order = select.byte().argsort(dim=-1, descending=True, stable=True)                             # (B, L)
    return order[:, :max(1, int(n.max()))], n


class Partition(Transformer):
    """(21). Called like any denoiser: model(z, noise, at), where z has the mask id where no token exists; and in
    training model(x, noise, at, group=g), on clean text, for the predictions of both groups in one pass.

    decoder_share  of the n_layer blocks decode, the others encode
    n_start        learnt states before the text, in neither group; the published networks have 0
    the mask       is the last id; its embedding is never looked at
    """

    def __init__(self, vocab_size, n_layer=4, n_head=4, n_embd=128, cond_dim=128, dropout=0.0, qk_norm=False,
                 decoder_share=0.5, n_start=2, **options):
        n_decoder = round(n_layer * decoder_share)
        super().__init__(vocab_size, n_layer - n_decoder, n_head, n_embd, cond_dim, dropout=dropout, qk_norm=qk_norm,
                         **options)
        self.mask = vocab_size - 1
        self.start = nn.Parameter(torch.randn(n_start, n_embd))
        self.query = nn.Parameter(torch.zeros(1, n_embd))                                           # u of (24)
        self.swap = GroupSwap(n_embd, n_head, qk_norm)
        self.decoder = nn.ModuleList(CrossBlock(n_embd, n_head, cond_dim, dropout, qk_norm) for _ in range(n_decoder))

    def forward(self, z, noise=None, at=None, label=None, group=None, head=None):
        """Logits (B, L, V); with a boolean `at` (B, L), the (N, V) rows of the positions it selects, in reading order.

        noise (B, 1), label (B,), head, and numbers for `at` in training: as in model.py
        """
        if group is None and at is not None:
            return self.scored(self.existing(z, noise, at, label), head)
        group = (z == self.mask if group is None else group).byte()                                 # (B, L)
        seen = F.pad(group, (len(self.start), 0), value=2)                   # (B, S + L) start is in neither group
        places = torch.arange(z.shape[1], device=z.device)[None]                                    # (1, L)
        within = lambda b, head, q, k: group[b, q] == group[b, k]
        across = lambda b, head, q, k: group[b, q] != seen[b, k]
        return self.scored(self.states(z, places, places, within, across, noise, label, at), head)      # (N|B L, V)

    def existing(self, z, noise, at, label):
        """Encode the tokens of z that exist and decode the positions `at`. -> (N, D)

        Rows that ask for nothing are left out, and rows much shorter than the longest go apart: little is padding.
        """
        n, asks = (z != self.mask).sum(-1), at.any(-1)                                              # (B,) each
        short = asks & (2 * n + SPREAD < n.masked_fill(~asks, 0).max())                             # (B,)
        parts = [rows for rows in (short, asks & ~short) if rows.any()]
        pick = lambda rows: (z[rows], *(a if a is None else a[rows] for a in (noise, at, label)))
        if len(parts) == 0:
            return self.head.weight.new_zeros(0, self.head.in_features)                             # (0, D)
        if len(parts) == 1:
            return self.packed(*pick(parts[0]))                                                     # (N, D)
        h = torch.cat([self.existing(*pick(rows)) for rows in parts])                               # (N, D)
        index = torch.arange(len(h), device=z.device)                                               # (N,)
        of = [index[rows[:, None].expand_as(at)[at]] for rows in parts]       # where each part's rows stand among all
        return h[torch.cat(of).argsort()]                                                           # (N, D)

    def packed(self, z, noise, at, label):
        """`existing`, for rows that go together."""
        (places, n), (asked, n_asked) = pack(z != self.mask), pack(at)                              # (B, N), (B, Q)
        within = across = None
        if (n < places.shape[1]).any():                      # shorter rows end in padding, at which nobody looks
            within = lambda b, head, q, k: k < n[b].clamp(min=1)
            across = lambda b, head, q, k: k < n[b] + len(self.start)
        valid = torch.arange(asked.shape[1], device=z.device) < n_asked[:, None]                    # (B, Q)
        return self.states(z.gather(1, places), places, asked, within, across, noise, label, valid)     # (N, D)

    def states(self, tokens, places, asked, within, across, noise, label, at):
        """(23)-(25) for tokens (B, N) at `places` (1|B, N), asked at places (1|B, Q): what the head reads at those of
        them that `at` says. -> (N, D), or (B, Q, D) for None"""
        h = self.embedding(tokens)                                                                  # (B, N, D)
        c = self.condition(h, noise, label)                                                         # (B, 1, C) or None
        rotary = tuple(a[:, None] for a in angles(places, self.head_size))                       # (1|B, 1, N, hd/2)
        for block in self.blocks:
            h = block(h, c, rotary, within)                                                         # (B, N, D) (23)
        view = self.view(h, places, asked)
        query = self.query + torch.cat(angles(asked, h.shape[-1]), -1)                              # (1|B, Q, D)
        h = self.swap(query.to(h.dtype), view, across)                                              # (B, Q, D) (24)
        for block in self.decoder:
            h = block(h, c, view, across)                                                           # (B, Q, D) (25)
        shift, scale = (None, None) if c is None else self.adaln(c).expand(*h.shape[:2], -1).chunk(2, -1)
        h, shift, scale = (rows(a, at) for a in (h, shift, scale))                                  # (N|B L, D) each
        return modulate(self.norm(h), shift, scale)                                                 # (N|B L, D)

    def view(self, states, places, asked):
        """What (24) and (25) look at: `start`, at the places before 0, and the encoder's states."""
        before = torch.arange(-len(self.start), 0, device=places.device).expand(len(places), -1)    # (1|B, S)
        start = self.start.to(states.dtype).expand(len(states), -1, -1)                             # (B, S, D)
        sides = asked, torch.cat([before, places], 1)                                  # (1|B, Q), (1|B, S + N)
        rotary = (tuple(a[:, None] for a in angles(side, self.head_size)) for side in sides)
        return View(torch.cat([start, states], 1), *rotary)


def angles(places, size):
    """rotary_angles at any places (B, n). -> cos, sin, each (B, n, size/2)"""
    return tuple(a.view(*places.shape, -1) for a in rotary_angles(places.flatten(), size))


def weights(group, t, weighting):
    """w(n) of (22) at each token; group (B, L), t (B, 1) -> (B, L). `bound` is 1/n; `simple` is 6 (1 - n), the 3 and
    the density 2 (1 - n) of masked.py in one: where much of the text can be seen, most is learnt."""
    # exercise 18: a weight for each group, eq. (22), 2 lines
    noise = torch.where(group, t, 1 - t)                                                            # (B, L)
    return 6 * (1 - noise) if weighting == "simple" else 1 / noise                                  # (B, L)
    # end


class PGM(MDLM):
    """--method pgm. mdlm but for its network and its loss. `simple` trains on bounded weights, a surrogate, `bound` on
    (22); either way `nelbo` is mdlm's bound."""

    def __init__(self, n_tokens, weighting="simple", decoder_share=0.5, n_start=2):
        super().__init__(n_tokens, weighting)
        self.network = partial(Partition, decoder_share=decoder_share, n_start=n_start)

    def loss(self, denoiser, x, frozen=None):
        """(22) -> (B, L). Given tokens are in group 0. What group 1 alone predicts would not see them, so that in rows
        that have some only group 1 is scored, in full."""
        t = stratified(len(x), x.device)                                                            # (B, 1)
        group = corrupt(self.process, x, t, frozen) == self.process.mask                            # (B, L) (20)
        free = torch.ones_like(group[:, :1]) if frozen is None else ~frozen.any(-1, keepdim=True)   # (B, 1)
        hidden = torch.where(group | free, self.process.mask, x)                                    # (B, L)
        both = like(denoiser, lambda z, t, at, **head: denoiser(x, t, at=at, group=group, **head))
        weight = weights(group, t, self.weighting) / (1 + free.int())                               # (B, L)
        return self.cross_entropy(both, x, hidden, t, weight, frozen)                               # (B, L)
