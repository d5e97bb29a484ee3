"""
Chapter 22. Searches over whole texts: the best of several, local changes, and guesses in each step.

    best-of   n texts of the walk, of which one is kept (lam = 0: the best one),
                  x = x_j  with probability  exp(r(x_j) / lam) / sum_i exp(r(x_i) / lam)   (22.12)
    path-integral
              in each step K guesses x~ ~ prod_l x_theta^l of all masks, one of which is kept by
              (22.12); the masks that open take its words (Free2Guide, 2411.17041)         (22.13)
    local     mask a share of the words again, let the walk fill them in, and keep the change (lam
              = 0: unless the text is worse; zero-order search, 2501.09732) with probability
                  min(1, exp((r(x') - r(x)) / lam))                                        (22.17)

For n -> infinity, (22.12) has the law (22.10). (22.13) has not, since the guesses are independent
words. A best text, lam = 0, is no sample of (22.10) for any lam: with n the texts become all alike.
(22.17) is Metropolis and Hastings: it keeps (22.10) where the walk draws from p(x_R | the rest),
one word at a time or in many steps.
"""
from dataclasses import dataclass
from functools import partial

import torch

from diffusion import Ancestral, categorical, probabilities
from flags import flag, load_row
from samplers import SAMPLERS
from samplers.base import highest, toss
from samplers.energy import opening
from samplers.rewards import Search

# Samplers whose next step depends on the text so far and on the number of steps left: so a text can
# be put in the place of another one, and masked words can be drawn again.
WALKS = ["ancestral", "spread", "entropy", "margin", "confidence"]
WALK = "the sampler that takes the steps"
LAM = "the temperature of the reward: p(x) exp(reward / lam)"


def open_from_texts(process, z, steps, draw):
    """Steps of (0.3) that take their words from whole texts. draw: (z (b, L), t (b, 1)) -> texts
    (b, L), called where a mask opens. Yields z (B, L)"""
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64, device=z.device)  # (n + 1,)
    for t, s in zip(times[:-1], times[1:]):
        t, s = t.expand(len(z), 1), s.expand(len(z), 1)  # (B, 1) each
        opens = opening(process, z, s, t)  # (B, L)
        rows = opens.any(-1)  # (B,)
        if rows.any():
            texts = z.index_put((rows,), draw(z[rows], t[rows].float()))  # (B, L)
            z = torch.where(opens, texts, z)  # (B, L)
        yield z


@dataclass(eq=False)
class Walker(Search):
    """A search that wraps another sampler."""
    walk: str = flag("ancestral", WALK, WALKS)

    @property
    def draws_from_model(self):
        return self.score is None and load_row(SAMPLERS, self.walk).draws_from_model

    def walker(self):
        return load_row(SAMPLERS, self.walk)()

    def step(self, process, denoiser, z, frozen, left, steps, to_probs):
        """The next state of the walk, which has `left` of its `steps` left. (B, L) -> (B, L)"""
        sampler = self.walker()
        if isinstance(sampler, Ancestral):  # it is told the time; the others see how many are left
            time = torch.full((len(z), 1), left / steps, dtype=torch.float64, device=z.device)
            before = torch.full_like(time, (left - 1) / steps)  # (B, 1)
            return sampler.step(process, denoiser, z, frozen, before, time, to_probs)  # (B, L)
        return next(sampler(process, denoiser, z, frozen, left, to_probs), z)  # (B, L)


@dataclass(eq=False)
class BestOf(Walker):
    """--sampler best-of: of several texts one is kept, by its reward."""
    texts: int = flag(4, "texts to choose from", least=1, most=10**6)
    lam: float = flag(0.0, f"{LAM}; 0: the best text, which is no sample", least=0)
    enough: float = flag(1e38, "stop at a text of this reward, as at 1 for --reward solved")

    def count_states(self, length, steps):
        return self.texts * steps + 1

    def prefers_last(self, rewards):
        """Whether the last text takes the place of the one kept before: text after text, that is
        (22.12). rewards: those of all texts so far, (B,) each -> (B,) bool"""
        *before, last = rewards
        if not before:
            return torch.ones_like(last, dtype=torch.bool)  # (B,)
        if self.lam == 0:
            return last > torch.stack(before, 1).amax(-1)  # (B,) the first of equals
        return toss((torch.stack(rewards, 1) / self.lam).softmax(-1)[:, -1])  # (B,)

    @torch.no_grad()
    def __call__(self, process, denoiser, z, frozen, steps, to_probs=probabilities):
        self.begin()
        start, kept, rewards = z, z, []  # (B, L) each
        going = torch.ones_like(z[:, 0], dtype=torch.bool)  # (B,)
        for n in range(self.texts if self.score else 1):
            z = torch.where(going[:, None], start, kept)  # (B, L) no mask where all is done
            for z in self.walker()(process, denoiser, z, frozen, steps, to_probs):
                yield z
            if not self.score:
                return
            reward = self.rate(z)  # (B,)
            rewards.append(reward)
            kept = torch.where(self.prefers_last(rewards)[:, None], z, kept)  # (B, L)
            going = going & (reward < self.enough)  # (B,)
            if not going.any():
                break
        yield kept


def tilted(reward, lam):
    """log of exp(r / lam), lam = 0 as its limit: 0 for the best, -inf for all others. reward (B, K)
    -> (B, K)"""
    if lam > 0:
        return reward / lam  # (B, K)
    best = reward == reward.amax(-1, keepdim=True)  # (B, K)
    return torch.where(best, 0.0, -torch.inf).double()  # (B, K)


@dataclass(eq=False)
class PathIntegral(Search):
    """--sampler path-integral: in each step the best of several guesses of the text opens masks."""
    guesses: int = flag(4, "guesses of the whole text in a step, from one network call", least=1,
                        most=10**6)
    lam: float = flag(1.0, f"{LAM}; 0: the best guess", least=0)

    def choose(self, process, denoiser, z, t, to_probs):
        """One of K guesses of the masks of z (b, L), by (22.13). -> (b, L)"""
        at, guesses, rewards = z == process.mask, [], []  # (b, L)
        p = to_probs(denoiser(z, t, at=at)[:, :process.n_tokens])  # (N, n_tokens)
        for _ in range(self.guesses if self.score else 1):
            guesses.append(z.masked_scatter(at, categorical(p)))  # (b, L)
            rewards.append(self.rate(guesses[-1]) if self.score else t[:, 0].double())  # (b,)
        best = categorical(tilted(torch.stack(rewards, 1), self.lam).softmax(-1))  # (b,)
        return torch.stack(guesses, 1)[torch.arange(len(z), device=z.device), best]  # (b, L)

    @torch.no_grad()
    def __call__(self, process, denoiser, z, frozen, steps, to_probs=probabilities):
        self.begin()
        choose = partial(self.choose, process, denoiser, to_probs=to_probs)
        yield from open_from_texts(process, z, steps, choose)


@dataclass(eq=False)
class Local(Walker):
    """--sampler local: masks some words of a text again, and keeps what is no worse."""
    changes: int = flag(8, "changes that are tried", least=1)
    share: float = flag(0.25, "of the words that are not given, to mask in a change", least=0,
                        most=1)
    lam: float = flag(0.0, f"{LAM}; 0: never to a worse text", least=0)
    enough: float = flag(1e38, "stop at a text of this reward, as at 1 for --reward solved")

    def count_states(self, length, steps):
        return steps + self.changes

    @torch.no_grad()
    def __call__(self, process, denoiser, z, frozen, steps, to_probs=probabilities):
        self.begin()
        for z in self.walker()(process, denoiser, z, frozen, steps, to_probs):
            yield z
        if not self.score or frozen.all():
            return
        reward, few = self.rate(z), max(1, round(self.share * steps))  # (B,)
        for _ in range(self.changes):
            going = reward < self.enough  # (B,)
            if not going.any():
                return
            k = (self.share * (~frozen).sum(-1, keepdim=True)).round().clamp(min=1)  # (B, 1)
            order = torch.rand(z.shape, device=z.device).masked_fill(frozen, -1)  # (B, L)
            at = highest(order, k) & ~frozen & going[:, None]  # (B, L)
            x = z.masked_fill(at, process.mask)  # (B, L)
            for x in self.walker()(process, denoiser, x, ~at, few, to_probs):
                pass
            new = self.rate(x)  # (B,)
            gain = torch.where(new >= reward, torch.inf, -torch.inf) if self.lam == 0 else (
                (new - reward) / self.lam)  # (B,)
            keep = toss(gain.clamp(max=0).exp())  # (B,)
            z = torch.where(keep[:, None], x, z)  # (B, L)
            reward = torch.where(keep, new, reward)  # (B,)
            yield z
