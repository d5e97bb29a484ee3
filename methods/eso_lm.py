"""
Chapter 18. Eso-LM (arXiv:2506.01928): masked diffusion writes a share alpha_0 of the tokens, and
autoregression the rest, from left to right, around those that are there.

    diffusion    alpha_t = alpha_0 (1 - t): (0.2) for masks, with z_0 at its end where a token is
                 still a mask with probability 1 - alpha_0
    rest         sum_l [z_0 = m] -log x_theta(x_l | z_0, x_<l)

The weight alpha_0 / (1 - alpha_t) of a mask in (0.2) is the rate at which it opens. So the first
part scores each token that diffusion writes once, given those that opened before it, in an order
that is random. Let each token draw tau ~ U(0, 1). If tau >= 1 - alpha_0, diffusion writes it, and
large tau come first; the rest follows from left to right. With r_l, the place of l in that order,

    -log p(x) <= E_tau sum_l -log x_theta(x_l | { (k, x_k) : r_k < r_l })                    (18.18)

It is the sum of the two parts, and tight at the exact law, since each order is a chain rule.
alpha_0 = 0 is autoregression, where (18.18) is exact; alpha_0 = 1 is masked diffusion. One pass
scores a whole order, over [m .. m ; x], 2L tokens at positions 0..L-1, twice:

    a token sees itself, and those tokens k of x with r_k < r_l                              (18.19)

The output at a mask predicts the token in its place, and no other token sees a mask. Text sees
earlier text only, so its keys and values do not change when more is written: caches are exact in
both phases, and a call reads the tokens of the last step and the masks of this one.

The published loss (`--parts apart`) scores the two parts in passes of their own: all k masks of one
z_t, with the weight K/k for K tokens that diffusion writes, and those of z_0. (It draws t, where
this one draws the number of masks; and its masks also see the masks before them in the order, which
a sampler that opens one at a time never shows them.)
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from diffusion import Absorbing, ancestral, categorical, probabilities, stratified
from flags import flag
from methods.base import Method, copy_capabilities, cross_entropy, loss_at, offset_positions
from methods.in_order import oracle_in_order, pack_rows, see_earlier
from methods.left_to_right import new_cache


@dataclass(eq=False)
class EsoLM(Method):
    """--method eso_lm."""
    alpha_0: float = flag(0.5, "share of the tokens that diffusion writes; 0 is ar, 1 is mdlm",
                          least=0, most=1)
    parts: str = flag("together", "of the loss: each text in a whole order, or the published loss, "
                      "a pass for all masks of a moment and one for the rest",
                      ["together", "apart"])
    bidirectional, classifier_process, one_by_one, samplers = False, None, True, ("ancestral",)

    def __post_init__(self):
        self.process, self.vocab_size = Absorbing(self.n_tokens), self.n_tokens + 1
        self.exact = self.alpha_0 == 0  # then there is a single order

    # ---- orders

    def draw(self, frozen):
        """tau, which tokens diffusion writes, and the rank of each; given tokens come first. (B, L)
        each"""
        tau = torch.rand(frozen.shape, device=frozen.device)  # (B, L)
        diffused = ~frozen & (tau >= 1 - self.alpha_0)  # (B, L)
        left = -1.0 - torch.arange(frozen.shape[1], device=frozen.device)  # (L,)
        key = torch.where(diffused, tau, torch.where(frozen, tau + 1, left))  # (B, L)
        return tau, diffused, key.argsort(-1, descending=True).argsort(-1)

    def group(self, tau, diffused, rank, frozen, steps):
        """The call that writes each token, from 0 on; -1 where it is given. Diffusion takes at most
        `steps` calls, equally long in alpha, the rest one for each token. (B, L)"""
        step = (1 - tau.double()) / max(self.alpha_0, 1e-9) * steps  # (B, L)
        step = torch.where(diffused, step.long().clamp(max=steps - 1), steps + rank)  # (B, L)
        step = step.masked_fill(frozen, -1).gather(1, rank.argsort(-1))  # (B, L) in order
        begins = (step >= 0) & (step != F.pad(step, (1, 0), value=-1)[:, :-1])  # (B, L)
        return (begins.cumsum(-1) - 1).gather(1, rank)  # (B, L)

    def given_before(self, denoiser, x, rank):
        """(18.19): a denoiser of masks (B, L) that shows each the tokens of x of lower ranks, but
        for those that are not written yet. -> logits at `at` (B, L)"""
        L, nobody = x.shape[1], torch.full_like(rank, x.shape[1])  # (B, L)
        seen = torch.where(x == self.process.mask, nobody, rank)  # (B, L)
        pattern = see_earlier(torch.cat([rank, rank], 1), torch.cat([nobody, seen], 1))
        twice = torch.arange(L, device=x.device).repeat(2)  # (2L,)

        def given(z, t, at, **head):
            at = offset_positions(at, L, 2 * L)  # (B, 2L)
            if at.dtype == torch.bool and not at.any(-1).all():
                at = at.flatten().nonzero()[:, 0]  # (N,) else such texts would be left out
            return denoiser(torch.cat([z, x], 1), None, at=at, positions=twice, mask_mod=pattern,
                            **head)  # (N, V)
        return copy_capabilities(denoiser, given)

    # ---- losses

    def nelbo(self, denoiser, x, frozen=None):
        """One draw of (18.18), in one pass. -> (B, L) nats"""
        given = torch.zeros_like(x, dtype=torch.bool) if frozen is None else frozen  # (B, L)
        _, _, rank = self.draw(given)  # (B, L)
        return self.score(denoiser, x, rank, ~given, frozen)  # (B, L)

    def score(self, denoiser, x, rank, at, frozen):
        """The tokens `at` (B, L) from those of lower ranks. -> (B, L) nats"""
        z = torch.full_like(x, self.process.mask)  # (B, L)
        denoise = self.given_before(denoiser, x, rank)
        return loss_at(denoise, z, None, at, cross_entropy, (x,), self.n_tokens, 1.0, frozen)

    def loss(self, denoiser, x, frozen=None):
        """(18.18), or with --parts apart the published form of it. -> (B, L) nats"""
        if self.parts == "together":
            return self.nelbo(denoiser, x, frozen)  # (B, L)
        u = stratified(len(x), x.device)  # (B, 1)
        given = torch.zeros_like(x, dtype=torch.bool) if frozen is None else frozen  # (B, L)
        _, diffused, rank = self.draw(given)  # (B, L) each
        nats = torch.zeros(x.shape, device=x.device)  # (B, L)
        if self.alpha_0 > 0:
            nats = self.moment(denoiser, x, u, given, diffused, rank, frozen)  # (B, L)
        if self.alpha_0 < 1:
            nats = nats + self.score(denoiser, x, rank, ~given & ~diffused, frozen)  # (B, L)
        return nats

    def moment(self, denoiser, x, u, given, diffused, rank, frozen):
        """All masks of one moment of diffusion, in a pass of L tokens. u (B, 1) -> (B, L) nats"""
        n, K = ((~a).sum(-1, keepdim=True) for a in (given, ~diffused))  # (B, 1) each
        k = n - K + (u * K).ceil().clamp(min=1)  # (B, 1) masks
        at = ~given & (rank >= x.shape[1] - k)  # (B, L)
        z = x.masked_fill(at, self.process.mask)  # (B, L)
        pattern = see_earlier(rank, rank.masked_fill(at, x.shape[1]))

        def masked(z, t, at, **head):
            if at.dtype == torch.bool and not at.any(-1).all():
                at = at.flatten().nonzero()[:, 0]  # (N,)
            return denoiser(z, None, at=at, mask_mod=pattern, **head)  # (N, V)
        denoise, weight = copy_capabilities(denoiser, masked), K / k.clamp(min=1)  # (B, 1)
        return loss_at(denoise, z, None, at, cross_entropy, (x,), self.n_tokens, weight, frozen)

    # ---- samples

    @torch.no_grad()
    def sample(self, denoiser, z, frozen, steps, sampler=ancestral, to_probs=probabilities,
               window=None, end=None):
        """Diffusion in at most `steps` steps, then from left to right; yields z after each call."""
        tau, diffused, rank = self.draw(frozen)  # (B, L) each
        group = self.group(tau, diffused, rank, frozen, steps)  # (B, L)
        read = self.reader(denoiser, rank, group)
        for g in range(int(group.max()) + 1):
            words = categorical(to_probs(read(z, g)[:, :self.n_tokens]))  # (N,)
            z = z.masked_scatter(group == g, words)  # (B, L)
            yield z

    def reader(self, denoiser, rank, group):
        """read(z, g) -> logits (N, V) where group (B, L) is g, from tokens of earlier groups."""
        calls = range(-1, int(group.max()) + 1)
        width = [max(1, int((group == g).sum(-1).max())) for g in calls]  # tokens in a call
        cache = new_cache(denoiser, sum(width), 1)  # rows are padded to the longest
        known = rank[:, :0], rank[:, :0]  # (B, 0) rank and seen of what is in the cache

        def read_all(z, g):
            rows = (group == g).any(-1)  # (B,)
            masks = torch.full_like(z[rows], self.process.mask)  # (b, L)
            return self.given_before(denoiser, z[rows], rank[rows])(masks, None, (group == g)[rows])

        def read(z, g):
            nonlocal known
            (new, n), (asked, k) = pack_rows(group == g - 1), pack_rows(group == g)  # (B, W) each
            place = torch.cat([new, asked], 1)  # (B, W + W')
            ids = torch.cat([z.gather(1, new), torch.full_like(asked, self.process.mask)], 1)
            index = torch.arange(place.shape[1], device=z.device)  # (W + W',)
            text, W = index < n[:, None], new.shape[1]  # (B, W + W')
            at = (index >= W) & (index - W < k[:, None])  # (B, W + W')
            ranks = rank.gather(1, place)  # (B, W + W')
            both = ranks, ranks.masked_fill(~text | (index >= W), rank.shape[1])  # (B, W + W') each
            both = [torch.cat(pair, 1) for pair in zip(known, both)]  # (B, read + W + W') each
            logits = denoiser(ids, None, at=at, positions=place[:, None], cache=cache,
                              mask_mod=see_earlier(*both))  # (N, V)
            cache.keep(W)
            known = [a[:, :cache.read] for a in both]  # (B, read) each
            return logits
        return read if cache else read_all

    def oracle(self, language):
        """The exact distribution of each mask given the text that it sees."""
        return oracle_in_order(language, self.n_tokens)
