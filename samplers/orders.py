"""
Chapter 24. Orders: samplers that choose which masks open before they draw any of them.

S_k are the masks that step k opens, z_k is the text before it. Each word of S_k is drawn without
knowing the others, so the probability of drawing the text x is

    log q(x) = sum_k sum_{l in S_k} log x_theta_l(x_l | z_k)                                  (24.1)

if S_k follows from z_k; if it is random too, this holds given the order. One mask at a time, every
order draws from the model. With more, each step loses, with the exact denoiser,

    KL(p || q) = sum_k E_p TC_k,   TC_k = sum_{l in S_k} H(x_l | z_k) - H(x_{S_k} | z_k)      (24.2)

the total correlation of what opens at once: words that depend on each other should not.
evaluation/parallel_cost.py measures both directions of KL.

    spread          the masks that open at once lie far apart: as many streams as words in a step,
                    each from left to right, or places in the order of the golden ratio
    entropy         the masks with the least entropy
    margin          the masks with the widest gap between their two likeliest words (2502.06768)
    entropy-budget  as many, in an order, as the bound on their total correlation allows,
                    TC_k <= sum_{l in S_k} H_l - max_{l in S_k} H_l <= budget (2505.24857)    (24.3)
    klass           the most confident masks, and besides all whose predictions have settled:
                    KL to those of the step before at most `drift`, for `patience` steps, and
                    confidence at least `certainty` (2511.05664)

`spread` scores each mask once; the others score all masks in each step. Words that are easy to
predict often are so for one and the same reason, so the least entropies are a bad choice for many
masks at once. `confidence` (unmasking.py) is no order: it draws first, and chooses among draws.
"""
from dataclasses import dataclass

import torch

from diffusion import draw_at, draw_from, probabilities
from flags import flag
from samplers.base import MaskSampler, highest, masks_to_open, scatter_at

GOLDEN = (5 ** 0.5 - 1) / 2


def golden_order(n, L, u):
    """How many masks open before the one at each rank of n, if number j of the order is the one at
    the place of frac(u + j GOLDEN). n, u (B, 1) -> (B, L)"""
    j = torch.arange(L, device=n.device)  # (L,)
    place = (u + j * GOLDEN).frac().masked_fill(j >= n, 2)  # (B, L)
    return place.argsort(-1)  # (B, L)


@dataclass(eq=False)
class Spread(MaskSampler):
    """--sampler spread: opens masks that lie far apart, each once the words before it are known."""
    order: str = flag("streams", "streams from left to right, side by side, or the golden ratio",
                      ["streams", "golden"])
    shift: bool = flag(False, "begin at a random mask of each text")
    chooses_first = draws_once = True
    words_per_step = 2  # which costs 0.001 nats/token on the toy language (docs/24-orders.md)

    def turns(self, masked, steps):
        """The step, from 0, in which each mask opens. masked (B, L) -> (B, L), -1 at text"""
        n = masked.sum(-1, keepdim=True)  # (B, 1)
        rank = masked.cumsum(-1) - 1  # (B, L) masks to the left of a mask
        u = torch.rand(n.shape, device=n.device) * self.shift  # (B, 1)
        m = n.clamp(min=1, max=steps)  # (B, 1) steps with a mask to open
        if self.order == "streams":
            rank = (rank + (u * n).long()) % n.clamp(min=1)  # (B, L)
            turn = rank % m  # (B, L)
        else:
            before = golden_order(n, masked.shape[1], u).gather(-1, rank.clamp(min=0))  # (B, L)
            turn = before * m // n.clamp(min=1)  # (B, L)
        return turn.masked_fill(~masked, -1)  # (B, L)

    @torch.no_grad()
    def __call__(self, process, denoiser, z, frozen, steps, to_probs=probabilities):
        turn = self.turns(z == process.mask, steps)  # (B, L)
        for step in range(int(turn.max()) + 1):
            t = (z == process.mask).sum(-1, keepdim=True) / z.shape[1]  # (B, 1) the share of masks
            at = turn == step  # (B, L)
            words, _ = draw_at(denoiser, z, t, at, to_probs, process.n_tokens)  # (N,)
            z = z.masked_scatter(at, words)  # (B, L)
            yield z


# ---- orders that look at the predictions

def prediction_entropy(logits):
    """(N, V) -> (N,) nats"""
    return torch.special.entr(logits.double().softmax(-1)).sum(-1)  # (N,)


def prediction_margin(logits):
    """The probability of the likeliest word less that of the second. (N, V) -> (N,)"""
    first, second = logits.double().softmax(-1).topk(2).values.unbind(-1)  # (N,) each
    return first - second  # (N,)


@dataclass(eq=False)
class ScoredOrder(MaskSampler):
    """A sampler that scores all masks, opens those of the highest scores, and then draws them."""
    chooses_first = True

    def score(self, logits):
        """What the predictions (N, V) say for opening a mask. -> (N,)"""
        raise NotImplementedError

    def opens(self, score, left):
        """The masks that open. score (B, L), -inf at text -> (B, L) bool"""
        n = (score > -torch.inf).sum(-1, keepdim=True)  # (B, 1)
        return highest(score, masks_to_open(n, left))  # (B, L)

    @torch.no_grad()
    def __call__(self, process, denoiser, z, frozen, steps, to_probs=probabilities):
        for left in range(self.count_states(z.shape[1], steps), 0, -1):
            masked = z == process.mask  # (B, L)
            if not masked.any():
                return
            t = masked.sum(-1, keepdim=True) / z.shape[1]  # (B, 1)
            logits = denoiser(z, t, at=masked)[:, :process.n_tokens]  # (N, V)
            scores = self.score(logits)  # (N,)
            score = scatter_at(masked, scores, -torch.inf)  # (B, L)
            at = self.opens(score, left)  # (B, L)
            words, _ = draw_from(to_probs, logits[at[masked]])  # (n,)
            z = z.masked_scatter(at, words)  # (B, L)
            yield z


@dataclass(eq=False)
class Entropy(ScoredOrder):
    """--sampler entropy: the masks with the least entropy open first."""

    def score(self, logits):
        return -prediction_entropy(logits)  # (N,)


@dataclass(eq=False)
class Margin(ScoredOrder):
    """--sampler margin: the masks with the widest gap between their two likeliest words open first.
    """

    def score(self, logits):
        return prediction_margin(logits)  # (N,)


def within_budget(entropy, rank, budget):
    """The longest prefix of an order that keeps (24.3), and at least one mask.

    entropy (B, L) and rank (B, L), the place in the order, both inf at text -> (B, L) bool
    """
    order = rank.argsort(-1)  # (B, L)
    ranked = entropy.gather(-1, order)  # (B, L)
    bound = ranked.cumsum(-1) - ranked.cummax(-1).values  # (B, L) never falls; nan from inf on
    allowed = bound <= budget  # (B, L)
    allowed[:, 0] = ranked[:, 0] < torch.inf  # rounding may say that one mask has a bound above 0
    return torch.zeros_like(allowed).scatter(-1, order, allowed)  # (B, L)


@dataclass(eq=False)
class EntropyBudget(ScoredOrder):
    """--sampler entropy-budget: opens as many masks as a bound on their total correlation allows.
    """
    budget: float = flag(1.0, "nats that a step may lose at most, whatever --steps says; 0 opens "
                         "one mask at a time", least=0)
    first: str = flag("golden", "the order: the golden ratio, left to right, or least entropy",
                      ["golden", "left", "least"])

    @property
    def draws_from_model(self):
        return self.budget == 0

    def count_states(self, length, steps):
        return length

    def score(self, logits):
        return -prediction_entropy(logits)  # (N,)

    def opens(self, score, left):
        masked, L = score > -torch.inf, score.shape[1]  # (B, L)
        place = torch.arange(L, device=score.device).expand_as(score)  # (B, L)
        if self.first == "golden":
            all_of_them = torch.full_like(score[:, :1], L)  # (B, 1)
            place = golden_order(all_of_them, L, torch.zeros_like(all_of_them))  # (B, L)
        rank = -score if self.first == "least" else place.to(score)  # (B, L)
        return within_budget(-score, rank.masked_fill(~masked, torch.inf), self.budget)  # (B, L)


@dataclass(eq=False)
class Klass(MaskSampler):
    """--sampler klass: opens the most confident masks, and all whose predictions have settled."""
    drift: float = flag(0.01, "KL to the predictions of the step before, at most", least=0)
    certainty: float = flag(0.9, "confidence of a prediction that has settled", least=0, most=1)
    patience: int = flag(2, "steps in a row with so little drift", least=1)
    chooses_first, draws_from_model = True, False

    @torch.no_grad()
    def __call__(self, process, denoiser, z, frozen, steps, to_probs=probabilities):
        shape = *z.shape, process.n_tokens
        before = torch.zeros(shape, dtype=torch.float64, device=z.device)  # (B, L, V) predictions
        calm = torch.zeros_like(z)  # (B, L) steps in a row without drift
        for left in range(steps, 0, -1):
            masked = z == process.mask  # (B, L)
            if not masked.any():
                return
            n = masked.sum(-1, keepdim=True)  # (B, 1)
            logits = denoiser(z, n / z.shape[1], at=masked)[:, :process.n_tokens]  # (N, V)
            p, old = logits.double().softmax(-1), before[masked]  # (N, V) each
            drift = (torch.special.xlogy(p, p) - torch.special.xlogy(p, old)).sum(-1)  # (N,)
            calm[masked] = torch.where(drift <= self.drift, calm[masked] + 1, 0)  # (N,)
            before[masked] = p  # (N, V)
            score = scatter_at(masked, p.amax(-1), -1.0)  # (B, L)
            settled = (calm >= self.patience) & (score >= self.certainty)  # (B, L)
            at = masked & (settled | highest(score, masks_to_open(n, left)))  # (B, L)
            words, _ = draw_from(to_probs, logits[at[masked]])  # (n,)
            z = z.masked_scatter(at, words)  # (B, L)
            yield z
