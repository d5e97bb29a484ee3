"""
Chapter 9. PGM, partition generative models (arXiv:2505.18883): masked diffusion without masks.

A masked model spends most of its work on masks, which hold no information. PGM splits the clean
text into two groups and predicts each from the other, as a masked model predicts masks from text:

    partition  g_l = 1 with probability t, else 0: group 1 is hidden at noise t, group 0 at    (9.1)
               noise 1 - t
    network    logits_l = f(l, { (k, x_k) : g_k != g_l }): a token never sees its own group    (9.2)
    loss       1/2 sum_l w(n_l) CE_l,   n_l = t in group 1, 1 - t in group 0                   (9.3)

For w(n) = 1/n, (9.3) is the mean of two draws of the bound (0.2) for masks, in one pass: all tokens
are predicted, not only the masked ones. (9.2) holds because of who may look at whom:

    encoder    E = blocks(embed(x)),  l looks at k if g_k = g_l                                (9.4)
    GroupSwap  h = out attention(q(norm(u + S)), kv(E)),  l looks at k if g_k != g_l.          (9.5)
               No residual, so not at E_l: u is learned, S_l is [cos, sin] of the position
    decoder    h += gate1 * out(attention(norm(h) .., kv(norm(E)))),  l looks at k if          (9.6)
               g_k != g_l, and never at another query
               h += gate2 * mlp(norm(h) ..)
    logits     the head of model.py on h

To sample, the network encodes the tokens that exist and decodes the positions that are drawn now.
By (9.6) the result does not depend on which others are decoded. The call is that of any masked
model, denoiser(z, t, at), where z has the mask id at tokens that do not exist yet. So PGM uses the
process, the bound and the samplers of masks. (The paper's uniform sampler is first-hitting.)

An empty group leaves nothing to attend to, and a group of one token gets all the attention, so that
no query could tell its distance. The published networks rely on a first token that always exists.
Ours have two learned states at positions -1 and -2, in neither group. How attention divides between
them tells a query its own position.

Does (9.3) have a mean? 1/(1 - t) is unbounded as t -> 1, but the share of tokens in group 0 is
1 - t, so the expected weight is 1 at every t. (The public code masks with probability (1 - 0.001) t
and keeps 1/(1 - t), an expected weight of 1 + 0.001 t / (1 - t), whose integral is infinite.) The
variance is infinite, as that of 1/t is. `simple`, the default, has bounded weights, and `nelbo` is
(3.1).
"""
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from einops import rearrange

from diffusion import corrupt, stratified
from flags import UserError, flag
from methods.base import copy_capabilities
from methods.in_order import pack_rows
from methods.mdlm import MDLM
from model import Block, Transformer, attention, modulate, rotary_angles, select_rows

SPREAD = 64  # rows are packed together if their lengths differ by no more than this


class View(NamedTuple):
    """What a cross-attention looks at, and cos and sin of the positions of both sides."""
    states: torch.Tensor  # (B, N, D) `start`, then E of (9.4)
    rotary_q: tuple  # 2 x (1|B, 1, Q, hd/2)
    rotary_k: tuple  # 2 x (1|B, 1, N, hd/2)

    def attend(self, q, k, v, n_head, mask_mod, qk_norm, dropout=0.0):
        """q (B, Q, D), k and v (B, N, D) -> (B, Q, D)"""
        heads = lambda a: rearrange(a, "b l (h d) -> b h l d", h=n_head)
        q, k, v = heads(q), heads(k), heads(v)  # (B, H, Q|N, hd) each
        if qk_norm:
            q, k = F.rms_norm(q, q.shape[-1:]), F.rms_norm(k, k.shape[-1:])  # (B, H, Q|N, hd) each
        rotary = (*self.rotary_q, *self.rotary_k)
        y = attention(q, k, v, mask_mod, dropout, rotary=rotary)  # (B, H, Q, hd)
        return rearrange(y, "b h l d -> b l (h d)")  # (B, Q, D)


class GroupSwap(nn.Module):
    """(9.5): from here on, a position holds what the other group says about it."""

    def __init__(self, n_embd, n_head, qk_norm):
        super().__init__()
        self.n_head, self.qk_norm = n_head, qk_norm
        self.norm = nn.LayerNorm(n_embd)
        self.q, self.kv = nn.Linear(n_embd, n_embd), nn.Linear(n_embd, 2 * n_embd)
        self.out = nn.Linear(n_embd, n_embd)

    def forward(self, query, view, mask_mod):
        """query (1|B, Q, D), u + S -> (B, Q, D)"""
        q = self.q(self.norm(query)).expand(len(view.states), -1, -1)  # (B, Q, D)
        k, v = self.kv(view.states).chunk(2, -1)  # (B, N, D) each
        return self.out(view.attend(q, k, v, self.n_head, mask_mod, self.qk_norm))  # (B, Q, D)


class CrossBlock(Block):
    """(9.6): a block of model.py whose queries attend to the encoder, not to each other."""

    def __init__(self, n_embd, n_head, cond_dim, dropout, qk_norm):
        super().__init__(n_embd, n_head, cond_dim, dropout, qk_norm)
        del self.qkv
        self.norm_kv = nn.LayerNorm(n_embd, bias=False)
        self.q = nn.Linear(n_embd, n_embd, bias=False)
        self.kv = nn.Linear(n_embd, 2 * n_embd, bias=False)

    def attend(self, h, view, mask_mod, remember=None):
        k, v = self.kv(self.norm_kv(view.states)).chunk(2, -1)  # (B, N, D) each
        q, dropout = self.q(h), self.dropout if self.training else 0.0  # (B, Q, D)
        y = view.attend(q, k, v, self.n_head, mask_mod, self.qk_norm, dropout)  # (B, Q, D)
        return self.out(y)  # (B, Q, D)


class Partition(Transformer):
    """(9.2). In training model(x, t, at, group=g) on clean text, for both groups in one pass. To
    sample model(z, t, at), where z has the mask id at tokens that do not exist yet.

    decoder_share  the share of the n_layer blocks that decode; the others encode
    n_start        learned states before the text, in neither group; the published networks have 0
    the mask       is the last id; its embedding is never read
    """

    def __init__(self, vocab_size, n_layer=4, n_head=4, n_embd=128, cond_dim=128, dropout=0.0,
                 qk_norm=False, decoder_share=0.5, n_start=2, **options):
        n_decoder = round(n_layer * decoder_share)
        super().__init__(vocab_size, n_layer - n_decoder, n_head, n_embd, cond_dim, dropout=dropout,
                         qk_norm=qk_norm, **options)
        self.mask = vocab_size - 1
        self.start = nn.Parameter(torch.randn(n_start, n_embd))
        self.query = nn.Parameter(torch.zeros(1, n_embd))  # u of (9.5)
        self.swap = GroupSwap(n_embd, n_head, qk_norm)
        shape = n_embd, n_head, cond_dim, dropout, qk_norm
        self.decoder = nn.ModuleList(CrossBlock(*shape) for _ in range(n_decoder))

    def forward(self, z, noise=None, at=None, label=None, group=None, head=None):
        """Logits (B, L, V), or (N, V) at the positions that a boolean `at` (B, L) selects.

        noise (B, 1), label (B,), head, and indices `at` in training: as in model.py
        """
        if group is None and at is not None:
            return self.apply_head(self.existing(z, noise, at, label), head)  # (N, V)
        group = (z == self.mask if group is None else group).byte()  # (B, L)
        seen = F.pad(group, (len(self.start), 0), value=2)  # (B, S + L) `start` is in neither group
        places = torch.arange(z.shape[1], device=z.device)[None]  # (1, L)
        within = lambda b, head, q, k: group[b, q] == group[b, k]
        across = lambda b, head, q, k: group[b, q] != seen[b, k]
        h = self.states(z, places, places, within, across, noise, label, at)  # (N|B L, D)
        return self.apply_head(h, head)  # (N|B L, V)

    def existing(self, z, noise, at, label):
        """Encode the tokens of z that exist and decode the positions `at`. -> (N, D)

        Rows without selected positions are left out. Rows much shorter than the longest are packed
        apart, so that there is little padding.
        """
        n, some = (z != self.mask).sum(-1), at.any(-1)  # (B,) each
        short = some & (2 * n + SPREAD < n.masked_fill(~some, 0).max())  # (B,)
        parts = [rows for rows in (short, some & ~short) if rows.any()]  # (B,) each
        pick = lambda rows: (z[rows], *(a if a is None else a[rows] for a in (noise, at, label)))
        if len(parts) == 0:
            return self.head.weight.new_zeros(0, self.head.in_features)  # (0, D)
        if len(parts) == 1:
            return self.packed(*pick(parts[0]))  # (N, D)
        h = torch.cat([self.existing(*pick(rows)) for rows in parts])  # (N, D)
        index = torch.arange(len(h), device=z.device)  # (N,) reading order
        of = [index[rows[:, None].expand_as(at)[at]] for rows in parts]  # (.,) rows of each part
        return h[torch.cat(of).argsort()]  # (N, D)

    def packed(self, z, noise, at, label):
        """`existing` for rows that are packed together. -> (N, D)"""
        (places, n), (queries, n_queries) = pack_rows(z != self.mask), pack_rows(at)
        within = across = None
        if (n < places.shape[1]).any():  # nothing looks at the padding of shorter rows
            within = lambda b, head, q, k: k < n[b].clamp(min=1)
            across = lambda b, head, q, k: k < n[b] + len(self.start)
        valid = torch.arange(queries.shape[1], device=z.device) < n_queries[:, None]  # (B, Q)
        tokens = z.gather(1, places)  # (B, N)
        return self.states(tokens, places, queries, within, across, noise, label, valid)  # (N, D)

    def states(self, tokens, places, queries, within, across, noise, label, at):
        """(9.4)-(9.6): the last hidden states at those `queries` that `at` selects, or at all.

        tokens (B, N) at places (1|B, N), queries (1|B, Q), at (B, Q) -> (N, D), or (B, Q, D)
        """
        h = self.embedding(tokens)  # (B, N, D)
        c = self.condition(h, noise, label)  # (B, 1, C) or None
        rotary = tuple(a[:, None] for a in rotary_angles_at(places, self.head_size))
        for block in self.blocks:
            h = block(h, c, rotary, within)  # (B, N, D) (9.4)
        view = self.view(h, places, queries)
        query = self.query + torch.cat(rotary_angles_at(queries, h.shape[-1]), -1)  # (1|B, Q, D)
        h = self.swap(query.to(h.dtype), view, across)  # (B, Q, D) (9.5)
        for block in self.decoder:
            h = block(h, c, view, across)  # (B, Q, D) (9.6)
        shift = scale = None
        if c is not None:
            shift, scale = self.adaln(c).expand(*h.shape[:2], -1).chunk(2, -1)  # (B, Q, D) each
        h, shift, scale = (select_rows(a, at) for a in (h, shift, scale))  # (N, D) each
        return modulate(self.norm(h), shift, scale)  # (N, D)

    def view(self, states, places, queries):
        """What (9.5) and (9.6) look at: `start`, at positions below 0, and the encoder's states."""
        before = torch.arange(-len(self.start), 0, device=places.device)  # (S,)
        keys = torch.cat([before.expand(len(places), -1), places], 1)  # (1|B, S + N)
        start = self.start.to(states.dtype).expand(len(states), -1, -1)  # (B, S, D)
        rotary = (tuple(a[:, None] for a in rotary_angles_at(side, self.head_size))
                  for side in (queries, keys))
        return View(torch.cat([start, states], 1), *rotary)


def rotary_angles_at(places, size):
    """rotary_angles at any places (B, n). -> cos, sin, (B, n, size/2) each"""
    return tuple(a.view(*places.shape, -1) for a in rotary_angles(places.flatten(), size))


def group_weights(group, t, weighting):
    """w(n) of (9.3) at each token. group (B, L), t (B, 1) -> (B, L)

    `bound` is 1/n. `simple` is 6 (1 - n), which is mdlm's weight 3 times its density 2 (1 - t).
    """
    # exercise 18: a weight for each group, (9.3), 2 lines
    noise = torch.where(group, t, 1 - t)  # (B, L)
    return 6 * (1 - noise) if weighting == "simple" else 1 / noise  # (B, L)
    # end


@dataclass(eq=False)
class PGM(MDLM):
    """--method pgm: mdlm with another network and loss. `simple` trains on bounded weights, a
    surrogate, `bound` on (9.3). In both cases `nelbo` is mdlm's bound."""
    also_called = ("partition",)
    weighting: str = flag("simple", "train on bounded weights or on (9.3)", ["simple", "bound"])
    complement: bool = True  # no flag here: both groups of each draw are predicted
    decoder_share: float = flag(0.5, "share of the blocks that decode", least=0, most=1, fixed=True)
    n_start: int = flag(2, "learned states before the text; the published networks have none",
                        least=0, fixed=True)
    bidirectional, public_layout = False, "pgm"

    def __post_init__(self):
        super().__post_init__()
        self.network = partial(Partition, decoder_share=self.decoder_share, n_start=self.n_start)

    def check(self, config):
        if config.learned_places:
            raise UserError("pgm reads rotary positions only: give --no_learned_places")
        if config.time_input == "sigma":
            raise UserError("--time_input sigma is -log(1 - t), and 1 - t is not the share of text "
                            "that pgm sees: leave it out, since no mask needs the time")
        if self.n_start == 0:
            raise UserError("a pgm without learned start states needs a first token that is always "
                            "there, which train.py does not promise: sample from it and evaluate "
                            "it, or train --method pgm from scratch")

    def loss(self, denoiser, x, frozen=None):
        """(9.3) -> (B, L) nats. Given tokens are in group 0.

        Tokens of group 0 are predicted from group 1, and would not see the given tokens. So in rows
        with given tokens only group 1 is scored, with twice the weight.
        """
        t, mask = stratified(len(x), x.device), self.process.mask  # (B, 1)
        group = corrupt(self.process, x, t, frozen) == mask  # (B, L) (9.1)
        free = torch.ones_like(group[:, :1])  # (B, 1) rows without given tokens
        free = free if frozen is None else ~frozen.any(-1, keepdim=True)  # (B, 1)
        hidden = torch.where(group | free, mask, x)  # (B, L) what is scored
        both = copy_capabilities(denoiser, lambda z, t, at, **head: denoiser(
            x, t, at=at, group=group, **head))
        weight = group_weights(group, t, self.weighting) / (1 + free.int())  # (B, L)
        return self.cross_entropy(both, x, hidden, t, weight, frozen)  # (B, L)

    def oracle(self, language):
        """In training both groups in one pass: the evidence of a token's own group is flat."""
        masked, mask = super().oracle(language), self.process.mask

        def denoiser(z, t, at=None, group=None, label=None, **layout):
            if group is None:
                return masked(z, t, at, label)
            sides = [masked(z.masked_fill(g, mask), t, None, label) for g in (group, ~group)]
            return select_rows(torch.where(group[..., None], *sides), at)
        return denoiser
