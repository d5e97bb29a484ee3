"""
How far the estimators of chapter 22 are from the policy gradient, in a world of 27 texts, by sums.

    python -m experiments.policy_gradients             # the table of docs/22-rewards.md, in seconds
    python -m experiments.policy_gradients --worlds 9  # more random worlds

Three symbols, texts of three tokens, a table of logits for each of the 64 states, and a random
reward for each of the 27 texts. All sums are written out: over texts, over the orders in which
masks open (in T steps of (0.3), each token opens in any of them with the same probability; one by
one, all six orders), and over all masks that an estimator may draw. Nothing is drawn. The exact
gradient is that of sum_x q(x) r(x), through the law q of the sampler, by autograd.

    cosine   of the expected gradient of an estimator with the exact one
    norm     its length over that of the exact one

A table has no parameters that states share, so no error in one state makes up for another.
"""
import math
from dataclasses import dataclass
from itertools import combinations, combinations_with_replacement, permutations, product

import torch
import torch.nn.functional as F

from diffusion import Absorbing
from experiments.command import run_experiment
from flags import flag
from runtime.policy import (
    COUPLED_RATES,
    ELBO,
    SPG,
    AGRPO,
    Calls,
    Coupled,
    CoupledEven,
    MeanField,
    Trajectory,
    clipped_loss,
    action_log_probs,
)

N = L = 3
PROCESS = Absorbing(N)
TEXTS = torch.tensor(list(product(range(N), repeat=L)))  # (27, L)
STATES = torch.tensor(list(product(range(N + 1), repeat=L)))  # (64, L)
HIDE = torch.tensor(list(product([False, True], repeat=L)))  # (8, L)
ONE_BY_ONE = 0  # in place of a number of steps
STEPS = (1, 2, 3, ONE_BY_ONE)


@dataclass
class Config:
    worlds: int = flag(3, "random worlds", least=1, most=1000)
    sharpness: float = flag(1.0, "standard deviation of the logits", least=0, most=100)


def random_world(seed, sharpness=1.0, consistent=False):
    """consistent: the exact denoiser of a random law of texts.
    -> logits (64, L, N) that need a gradient, rewards (27,)"""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # shape
    logits, reward = sharpness * draw(4 ** L, L, N), draw(len(TEXTS))  # (64, L, N), (27,)
    if consistent:
        log_p, z = sharpness * draw(len(TEXTS)), STATES[:, None]  # (27,), (64, 1, L)
        fits = ((z == PROCESS.mask) | (z == TEXTS)).all(-1)  # (64, 27)
        p = fits.double() * log_p.exp()  # (64, 27)
        logits = (p @ F.one_hot(TEXTS, N).double().flatten(1)).view(-1, L, N)  # (64, L, N)
        logits = logits.clamp(min=1e-300).log()  # (64, L, N)
    return logits.requires_grad_(), reward


def tabular(logits):
    """The denoiser with these logits in each state."""
    def denoiser(z, t, at):
        return logits[(z * 4 ** torch.arange(L).flip(0)).sum(-1)][at]  # (N, n_tokens)
    return denoiser


def openings(steps):
    """Every order: the step, from 0, in which each token opens. All are equally likely. -> (n, L)
    """
    if steps == ONE_BY_ONE:
        return torch.tensor(list(permutations(range(L))))  # (6, L)
    return torch.tensor(list(product(range(steps), repeat=L)))  # (steps^L, L)


def trajectories(steps):
    """Every text in every order. -> x (B, L), Calls"""
    turns = openings(steps)  # (n, L)
    x = TEXTS.repeat_interleave(len(turns), 0)  # (B, L)
    turn, k = turns.repeat(len(TEXTS), 1), torch.arange(steps or L)[:, None, None]  # (B, L)
    z = torch.where(turn >= k, PROCESS.mask, x)  # (P, B, L)
    return x, Calls(z, torch.ones(len(z), len(x), 1), turn == k, x.expand_as(z))


def law(logits, steps):
    """The probability of every trajectory, order and text. -> (B,), which sums to 1"""
    x, calls = trajectories(steps)  # (B, L)
    log_q = action_log_probs(tabular(logits), calls, N).sum((0, 2))  # (B,)
    return log_q.exp() * len(TEXTS) / len(x)  # (B,)


def text_law(logits, steps):
    """The probability of every text. -> (27,)"""
    return law(logits, steps).view(len(TEXTS), -1).sum(-1)  # (27,)


def exact_gradient(logits, reward, steps):
    """-> (64, L, N)"""
    return torch.autograd.grad(text_law(logits, steps) @ reward, logits)[0]


def ascent(logits, estimator, calls, advantage, weight):
    """The gradient that an update follows, the mean over texts and draws. advantage, weight (B,)
    -> (64, L, N)"""
    log_p = action_log_probs(tabular(logits), calls, N)  # (P, B, L)
    units = estimator.units(log_p, calls, advantage)  # (B, U)
    loss = calls.scale * clipped_loss(units, units.detach(), advantage, 0.2)  # (B,)
    return -torch.autograd.grad(weight @ loss, logits)[0]


def along(logits, reward, steps, estimator=None):
    """The expected gradient of (22.1) from every trajectory. -> (64, L, N)"""
    _, path = trajectories(steps)
    q = law(logits.detach(), steps)  # (B,)
    r = reward.repeat_interleave(len(q) // len(reward))  # (B,)
    estimator, P = estimator or Trajectory(), len(path.z)
    subsets = list(combinations(range(P), estimator.subset or P))
    total = 0.0
    for rows in subsets:
        rows = torch.tensor(rows)[:, None].expand(-1, len(q))  # (K, B)
        calls = estimator.take(path, rows, P / len(rows))
        total = total + ascent(logits, estimator, calls, r - q @ r, q) / len(subsets)
    return total  # (64, L, N)


def from_texts(logits, reward, steps, estimator, draws, calls_of):
    """The expected gradient of an estimator that sees the text alone. -> (64, L, N)

    draws: [(probability, *what calls_of(x, frozen, ..) needs besides)] of all that may be drawn
    """
    q, share = text_law(logits.detach(), steps), chances(draws)  # (27,), (D,)
    x = TEXTS.repeat(len(draws), 1)  # (D 27, L)
    more = [torch.stack(part).repeat_interleave(len(TEXTS), 0) for part in list(zip(*draws))[1:]]
    calls = calls_of(x, torch.zeros_like(x, dtype=torch.bool), *more)
    advantage = (reward - q @ reward).repeat(len(draws))  # (D 27,)
    weight = (share[:, None] * q).flatten()  # (D 27,)
    return ascent(logits, estimator, calls, advantage, weight)  # (64, L, N)


# ---- every draw of masks

def chances(draws):
    return torch.tensor([p for p, *_ in draws], dtype=torch.float64)  # (D,)


def any_mask():
    """The masks of (3.1) with their probabilities. -> [(probability, (L,))]"""
    return [(1 / (L * math.comb(L, int(hide.sum()))), hide) for hide in HIDE if hide.any()]


def pairs_of_masks():
    """Two draws of them. -> [(probability, (L,), (L,))]"""
    pairs = combinations_with_replacement(any_mask(), 2)
    return [(p * q * (1 if a is b else 2), a, b) for (p, a), (q, b) in pairs]


def coupled_masks():
    """Those of (22.5) with the time t, by a quadrature that is exact for polynomials in t.
    -> [(probability, (L,), (1,))]"""
    (low, high), found = COUPLED_RATES, []
    for node, share in ((-(0.6 ** 0.5), 5 / 18), (0.0, 8 / 18), (0.6 ** 0.5, 5 / 18)):  # Gauss
        t = (low + high) / 2 + (high - low) / 2 * node
        for hide in HIDE:
            k, time = int(hide.sum()), torch.tensor([t], dtype=torch.float64)  # (1,)
            found.append((share * t ** k * (1 - t) ** (L - k), hide, time))
    return found


class ExactSPG(SPG):
    """(22.7) with the expectation over masks inside the logarithm, as of infinitely many draws."""

    def units(self, log_p, calls, advantage):
        share = chances(any_mask())[:, None, None]  # (7, 1, 1)
        lower = (share * calls.weight * log_p).sum((0, 2))  # (B,)
        mixed = self.mix * self.upper(log_p, calls, share) + (1 - self.mix) * lower  # (B,)
        return torch.where(advantage >= 0, lower, mixed)[:, None]  # (B, 1)


def every_mask(estimator, x, frozen):
    """A call for each of the masks of (3.1)."""
    return estimator.hidden(PROCESS, x, frozen, [hide.expand_as(x) for _, hide in any_mask()])


def estimators():
    """{name: (logits, reward, steps) -> expected gradient}"""
    def row(estimator, draws, calls_of):
        return lambda *world: from_texts(*world, estimator, draws, calls_of)

    def coupled(made):
        return row(made, coupled_masks(), lambda *given: made.pair(PROCESS, *given))

    def spg(beta, mix):
        made = ExactSPG(beta=beta, mix=mix)
        return row(made, [(1.0,)], lambda x, frozen: every_mask(made, x, frozen))

    def drawn(made, draws):
        return row(made, draws, lambda x, frozen, *hide: made.hidden(PROCESS, x, frozen, hide))
    field = MeanField(prompt_mask=0.0)
    return {
        "ddpo": along,
        "ddpo, 1 step": lambda *world: along(*world, Trajectory(subset=1)),
        "agrpo, 1 step": lambda *world: along(*world, AGRPO(subset=1)),
        "d1": row(field, [(1.0,)], lambda x, frozen: field.calls(PROCESS, x, frozen, None)),
        "coupled": coupled(Coupled()),
        "coupled-even": coupled(CoupledEven()),
        "elbo": drawn(ELBO(), any_mask()),
        "spg, mix 1": spg(1.5, 1.0),
        "spg, mix .5": spg(1.5, 0.5),
        "spg, mix .5, 2 draws": drawn(SPG(), pairs_of_masks()),
    }


def compare(estimate, exact):
    """-> cosine, ratio of norms"""
    a, b = estimate.flatten(), exact.flatten()  # (n,) each
    return (a @ b / (a.norm() * b.norm())).item(), (a.norm() / b.norm()).item()


def measure(worlds, names=None, steps=STEPS):
    """{(name, steps): (worlds, 2) cosines and norms}"""
    exact = {(i, T): exact_gradient(*world, T) for i, world in enumerate(worlds) for T in steps}
    rows = {name: row for name, row in estimators().items() if names is None or name in names}
    return {(name, T): torch.tensor([compare(row(*world, T), exact[i, T])
                                     for i, world in enumerate(worlds)])
            for name, row in rows.items() for T in steps}


def main(config, given=()):
    for consistent in (False, True):
        worlds = [random_world(seed, config.sharpness, consistent) for seed in range(config.worlds)]
        found = measure(worlds)
        kind = "exact denoisers of random laws" if consistent else "random logits"
        print(f"\n{kind}, {config.worlds} worlds: cosine, least and largest; norm")
        print(" " * 22 + "".join(f"{f'T = {T}' if T else 'one by one':>24}" for T in STEPS))
        for name in estimators():
            cells = []
            for T in STEPS:
                cosine, norm = found[name, T].T  # (worlds,) each
                low, high = cosine.min(), cosine.max()  # () each
                cells.append(f"{cosine.mean():.2f} ({low:.2f} {high:.2f}) {norm.mean():.2f}")
            print(f"{name:22}" + "".join(f"{cell:>24}" for cell in cells))


if __name__ == "__main__":
    run_experiment(Config, main, first=None)
