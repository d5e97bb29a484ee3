"""
How far the estimators of chapter 22 are from the policy gradient, in a world that can be enumerated.

    python -m experiments.policy_gradients             # the table of docs/22-rewards.md, in seconds
    python -m experiments.policy_gradients --worlds 9  # more random worlds

Three symbols, texts of three tokens, a table of logits for each of the 64 states, and a random
reward for each of the 27 texts. All sums are written out: over texts, over the orders in which
masks open (in T steps of (0.3), each token opens in any of them with the same probability; one by
one, all six orders), and over all masks that an estimator may draw. Nothing is drawn. The exact
gradient is that of sum_x q(x) r(x), through the law q of the sampler, by autograd.

    cosine   of the expected gradient of an estimator with the exact one
    norm     its length over that of the exact one
"""
from dataclasses import dataclass
from itertools import combinations, permutations, product

import torch

from diffusion import Absorbing
from experiments.command import run_experiment
from flags import flag
from runtime.policy import (
    ELBO,
    SPG,
    AGRPO,
    Calls,
    Coupled,
    CoupledEven,
    MeanField,
    Trajectory,
    clipped_loss,
    log_probs,
)

N = L = 3
PROCESS = Absorbing(N)
TEXTS = torch.tensor(list(product(range(N), repeat=L)))  # (27, L)
HIDE = torch.tensor(list(product([False, True], repeat=L)))  # (8, L)
ONE_BY_ONE = 0  # in place of a number of steps
STEPS = (1, 2, 3, ONE_BY_ONE)


@dataclass
class Config:
    worlds: int = flag(3, "random worlds", least=1, most=1000)
    sharpness: float = flag(1.0, "standard deviation of the logits", least=0, most=100)


def random_world(seed, sharpness=1.0):
    """-> logits (64, L, N) that need a gradient, rewards (27,)"""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(4 ** L, L, N, generator=generator, dtype=torch.float64)  # (64, L, N)
    reward = torch.rand(len(TEXTS), generator=generator, dtype=torch.float64)  # (27,)
    return (sharpness * logits).requires_grad_(), reward


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
    log_q = log_probs(tabular(logits), calls, N).sum((0, 2))  # (B,)
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
    log_p = log_probs(tabular(logits), calls, N)  # (P, B, L)
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


def from_texts(logits, reward, steps, estimator, calls_of, draws):
    """The expected gradient of an estimator that sees the text alone. -> (64, L, N)

    draws: [(probability, what calls_of(x, frozen, ..) needs besides)] of all masks
    """
    q = text_law(logits.detach(), steps)  # (27,)
    frozen, total = torch.zeros_like(TEXTS, dtype=torch.bool), 0.0  # (27, L)
    for probability, *more in draws:
        calls = calls_of(TEXTS, frozen, *more)
        total = total + probability * ascent(logits, estimator, calls, reward - q @ reward, q)
    return total  # (64, L, N)


# ---- every draw of masks

def any_mask():
    """Masks of (3.1) with their probabilities. -> [(number, (L,))]"""
    return [(1 / (L * len(list(combinations(range(L), int(hide.sum()))))), hide)
            for hide in HIDE if hide.any()]


def pairs_of_masks():
    return [(p * q, [a, b]) for p, a in any_mask() for q, b in any_mask()]


def coupled_masks(low=0.2, high=0.8):
    """Masks of (22.5): with the time t, by a quadrature that is exact for polynomials in t."""
    nodes = torch.tensor([-(0.6 ** 0.5), 0.0, 0.6 ** 0.5], dtype=torch.float64)  # (3,) Gauss
    for node, share in zip(nodes, (5 / 18, 8 / 18, 5 / 18)):
        t = (low + high) / 2 + (high - low) / 2 * node  # ()
        for hide in HIDE:
            k = int(hide.sum())
            yield share * t ** k * (1 - t) ** (L - k), hide, t


class ExactSPG(SPG):
    """(22.7) with the expectation over masks inside the logarithm, as of infinitely many draws."""

    def units(self, log_p, calls, advantage):
        share = torch.tensor([p for p, _ in any_mask()])[:, None, None]  # (7, 1, 1)
        lower = (share * calls.weight * log_p).sum((0, 2))  # (B,)
        mixed = self.mix * self.upper(log_p, calls, share) + (1 - self.mix) * lower  # (B,)
        return torch.where(advantage >= 0, lower, mixed)[:, None]  # (B, 1)


def masked(estimator):
    """calls_of for masks (L,) that are the same in all texts."""
    return lambda x, frozen, hide: estimator.hidden(
        PROCESS, x, frozen, [h.expand_as(x) for h in (hide if isinstance(hide, list) else [hide])])


def rows():
    """{name: (logits, reward, steps) -> expected gradient}"""
    every = [(1.0, [hide for _, hide in any_mask()])]

    def coupled(estimator):
        pair = lambda x, frozen, hide, t: estimator.pair(
            PROCESS, x, frozen, hide.expand_as(x), t.expand(len(x), 1))
        return lambda *world: from_texts(*world, estimator, pair, list(coupled_masks()))

    def spg(beta, mix, released=False):
        made = (SPG if released else ExactSPG)(beta=beta, mix=mix)
        return lambda *world: from_texts(*world, made, masked(made),
                                         pairs_of_masks() if released else every)
    mean_field, elbo = MeanField(prompt_mask=0.0), ELBO()
    return {
        "ddpo": along,
        "ddpo, one step of them": lambda *world: along(*world, Trajectory(subset=1)),
        "agrpo, one step of them": lambda *world: along(*world, AGRPO(subset=1)),
        "d1": lambda *world: from_texts(
            *world, mean_field, lambda x, frozen: mean_field.calls(PROCESS, x, frozen, None),
            [(1.0,)]),
        "coupled": coupled(Coupled()),
        "coupled-even": coupled(CoupledEven()),
        "elbo": lambda *world: from_texts(*world, elbo, masked(elbo), any_mask()),
        "spg, beta 1.5, mix 1": spg(1.5, 1.0),
        "spg, beta 1.5, mix .5": spg(1.5, 0.5),
        "spg, beta 1, mix .5": spg(1.0, 0.5),
        "spg, beta 1.5, mix .5, 2 draws": spg(1.5, 0.5, released=True),
    }


def compare(estimate, exact):
    """-> cosine, ratio of norms"""
    a, b = estimate.flatten(), exact.flatten()  # (n,) each
    return (a @ b / (a.norm() * b.norm())).item(), (a.norm() / b.norm()).item()


def main(config, given=()):
    worlds = [random_world(seed, config.sharpness) for seed in range(config.worlds)]
    title = lambda steps: f"T = {steps}" if steps else "one by one"
    print(f"{'cosine (norm), means of worlds':32}" + "".join(f"{title(s):>24}" for s in STEPS))
    for name, expected in rows().items():
        cells = []
        for steps in STEPS:
            found = torch.tensor([compare(expected(*world, steps), exact_gradient(*world, steps))
                                  for world in worlds])  # (worlds, 2)
            low, high = found[:, 0].amin(), found[:, 0].amax()  # () each
            cells.append(f"{found[:, 0].mean():.3f} [{low:.2f} {high:.2f}] ({found[:, 1].mean():.2f})")
        print(f"{name:32}" + "".join(f"{cell:>24}" for cell in cells))


if __name__ == "__main__":
    run_experiment(Config, main, first=None)
