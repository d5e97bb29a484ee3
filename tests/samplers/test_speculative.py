"""
Drafts that an AR model checks: the law of the texts, exactly, in a world of 27 texts.

Every draw of a cycle is enumerated: a batch has a row for each possible outcome of all draws, and
its probability. Cycles are then steps of a chain over prefixes. Reference figures: those of the
verifier p and the draft's x_theta of tests/reference/speculative_reference.npz.
"""
from itertools import permutations, product
from types import SimpleNamespace

import pytest
import torch

import world
from diffusion import probabilities
from methods import make_method
from references import Figures
from samplers import make_sampler, speculative
from world import L, N, TEXTS, numbers

FIGURES = Figures("speculative_reference")
P, X_THETA = FIGURES("spec/p"), FIGURES("spec/x_theta")  # (27,), (64, 3, 3)
AR, MASKS = make_method("ar", N), make_method("mdlm", N)


class AllOutcomes:
    """In place of toss and categorical: row i of a batch gets the i-th of all outcomes, whose
    probability is in `weight` (B,)."""

    def __init__(self, B, drafts):
        self.left, self.drafts = torch.arange(B), drafts  # (B,)
        self.weight = torch.ones(B, dtype=torch.float64) / B  # (B,)

    def digit(self, radix):
        digit, self.left = self.left % radix, self.left // radix  # (B,) each
        self.weight = self.weight * radix  # (B,)
        return digit

    def categorical(self, p):
        B = len(self.weight)
        of_draft = len(p) != B  # else of a refusal
        rows, words = p.view(self.drafts if of_draft else 1, B, -1, N), []  # (K, B, m, N)
        for k, m in product(range(rows.shape[0]), range(rows.shape[2])):
            words.append(self.digit(N))  # (B,)
            chance = rows[k, torch.arange(B), m]  # (B, N)
            chance = torch.where(chance.sum(-1, keepdim=True) > 0, chance, 1 / N)  # (B, N)
            chance = chance / chance.sum(-1, keepdim=True)  # (B, N)
            self.weight = self.weight * chance.gather(1, words[-1][:, None])[:, 0]  # (B,)
        return torch.stack(words).view(rows.shape[0], -1, B).transpose(1, 2).flatten()  # (K B m,)

    def toss(self, chance):
        heads, chance = self.digit(2) == 0, chance.clamp(max=1).nan_to_num(0.5)  # (B,) each
        self.weight = self.weight * torch.where(heads, chance, 1 - chance)  # (B,)
        return heads


def next_token(p):
    """The exact p(x_l | x_<l) of a law p (27,), as ar calls its network."""
    def denoiser(z, t, at=None, **layout):
        x, rows = z.roll(-1, 1), []  # (B, L)
        for l in range(x.shape[1]):
            match = (TEXTS[None, :, :l] == x[:, None, :l]).all(-1) * p  # (B, 27)
            rows.append(torch.stack([match[:, TEXTS[:, l] == v].sum(-1) for v in range(N)], -1))
        logits = torch.stack(rows, 1).log()  # (B, L, N)
        return logits if at is None else logits[at]
    return denoiser


def masked_draft(z, t, at=None, **layout):
    """x_theta of the reference."""
    return X_THETA[numbers(z, N + 1)].log()[at]


MODELS = {"masks": SimpleNamespace(method=MASKS, denoiser=masked_draft),
          "ar": SimpleNamespace(method=AR, denoiser=next_token(FIGURES("spec/p_diff"))),
          "ngram": None}


def sampler_of(draft="masks", **flags):
    made = make_sampler("speculative", AR, draft=draft, **{"gamma": L, **flags})
    made.model = MODELS[draft]
    return made


def cycle(sampler, prefix, monkeypatch, scores=None):
    """All outcomes of a cycle after a prefix. -> texts (B, L), lengths, how
    many drafted tokens were kept, probabilities (B,)

    scores (g,): the random numbers by which an order chooses places, fixed here
    """
    K, g, free = sampler.drafts, sampler.gamma, min(sampler.gamma, L - len(prefix))
    again = free - free // 2 if sampler.draft_order == "confidence" else 0  # draws in step 2
    B = N ** (K * free + again + min(g + 1, L - len(prefix))) * 2 ** (K * g)
    chance, found = AllOutcomes(B, K), []
    for name in ("toss", "categorical"):
        monkeypatch.setattr(speculative, name, getattr(chance, name))
    if scores is not None:
        monkeypatch.setattr(torch, "rand", lambda shape, **how: scores.expand(shape))
    z = torch.full((B, L), AR.start)  # (B, L)
    z[:, :len(prefix)] = torch.tensor(prefix, dtype=torch.long)
    nothing, place = torch.zeros_like(z, dtype=torch.bool), torch.full((B,), len(prefix))
    monkeypatch.setattr(sampler, "note", lambda p, tokens, n, best, kept, free: found.append(kept))
    z, n = sampler.cycle(AR, next_token(P), z, nothing, place, probabilities)
    monkeypatch.undo()
    assert torch.isclose(chance.weight.sum(), torch.tensor(1.0).double())
    return z, n, found[0].double(), chance.weight


def law(sampler, monkeypatch, mixture=(None,), once=False):
    """The law of the texts (27,), and how many tokens of a first draft are kept on average.

    mixture: all equally likely scores of an order; once: after one cycle, the AR model goes on
    """
    reached, first = {(): 1.0}, 0.0
    for prefix in ((), *product(range(N)), *product(range(N), repeat=2)):
        if prefix not in reached or once and prefix:
            continue
        weight = reached.pop(prefix)
        for scores in mixture:
            z, n, kept, chance = cycle(sampler, prefix, monkeypatch, scores)
            first += 0 if prefix else float(kept @ chance) / len(mixture)
            for length in n.unique().tolist():
                at, place = n == length, N ** torch.arange(length)
                sums = torch.zeros(N ** length, dtype=P.dtype).index_add(
                    0, (z[at, :length] * place).sum(-1), chance[at])  # (N^length,)
                for number in sums.nonzero()[:, 0].tolist():
                    text = tuple(number // N ** i % N for i in range(length))
                    more = weight * float(sums[number]) / len(mixture)
                    reached[text] = reached.get(text, 0) + more
    end = torch.zeros_like(P)  # (27,)
    for prefix, weight in reached.items():
        begins = (TEXTS[:, :len(prefix)] == torch.tensor(prefix, dtype=torch.long)).all(-1)  # (27,)
        end += weight * P * begins / (P * begins).sum()  # (27,)
    return end, first


def off(a, b=P):
    return float((a - b).abs().sum() / 2)
