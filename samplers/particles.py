"""
Chapter 22. Particles: texts that are written side by side, and put in the place of each other.

The law (22.10) has steps of its own. With V(z) = E[exp(r(x) / lam) | z] over the walk's texts,

    p*(z_s | z_t) = p(z_s | z_t) V(z_s) / V(z_t)                                           (22.11)

is exact in any number of steps. It needs V at all z_s; N particles need it at N states only:

    smc             take N steps z^i of the walk, and weight them by any positive V^, which is
                    exp(r / lam) at complete texts:
                        w^i *= V^(z_s^i) / V^(z_t^i)                                       (22.14)
                    If ESS = (sum w)^2 / sum w^2 < N --resample, draw N of them by w, and w = 1. At
                    the end one is kept by w. For N -> infinity it has the law (22.10), its error
                    falls as 1/N. (Sequential Monte Carlo; for diffusion 2306.17775, 2501.06848)
    particle-gibbs  smc again and again, the first particle being the way on which the text of last
                    time was written, V^ included, which is always its own parent. Then the law
                    (22.10) stays as it is for any N (Andrieu and others, 2010):
                        way' ~ smc( . | the first particle is the way)  (22.16)

    V^  guess       exp(r(x~) / lam) of one guess x~ ~ prod_l x_theta^l of the masks, which takes a
                    network call                                                          (22.15)
        class       p(y | z)^(1 / lam), for --reward class: with the exact one and lam = 1 it is V
        none        1, so that the reward counts at the end only
"""
from dataclasses import dataclass

import torch

from diffusion import categorical, draw_at, probabilities
from flags import UserError, flag
from samplers.search import LAM, Walker


@dataclass
class Way:
    """How a text was written: its states (steps, B, L), and log V^ there (steps, B)."""
    states: torch.Tensor
    values: torch.Tensor


def effective_size(log_w):
    """(sum w)^2 / sum w^2. log_w (B, N) -> (B,)"""
    w = log_w.softmax(-1)  # (B, N)
    return 1 / w.square().sum(-1)  # (B,)


def pick(a, k):
    """a (B, N, ..) at the particles k (B,) -> (B, ..)"""
    return a[torch.arange(len(a), device=a.device), k]


@dataclass(eq=False)
class SMC(Walker):
    """--sampler smc: particles are weighted by what their text is going to be worth."""
    particles: int = flag(4, "texts that are written side by side, for each text", least=1,
                          most=10**6)
    lam: float = flag(1.0, LAM, least=1e-3)
    value: str = flag("guess", "what a noisy text is worth: the reward of one guess of it, what "
                      "--classifier makes of it, or nothing before the end",
                      ["guess", "class", "none"])
    resample: float = flag(0.5, "draw particles anew if their effective number is below this "
                           "share; 1: in each step", least=0, most=1)

    def prepare(self, model):
        super().prepare(model)
        if self.value == "class" and not self.by_class:
            raise UserError(f"--value class is for --reward class, not for {self.reward}: "
                            "leave it out")

    def log_value(self, process, denoiser, z, y, old, left, steps, to_probs):
        """log V^ of the states y (B, L) that came from z, of which it was `old` (B,), or None at
        the start. -> (B,)"""
        if left == 1:
            return self.rate(y) / self.lam  # (B,)
        if self.value == "none":
            return torch.zeros(len(y), dtype=torch.float64, device=y.device)  # (B,)
        t = torch.full((len(y), 1), (left - 1) / steps, device=y.device)  # (B, 1)
        if self.value == "class":
            self.spent.update(texts_rated=len(y))
            return self.judge(y, t) / self.lam  # (B,)
        other = torch.ones_like(y[:, 0], dtype=torch.bool) if old is None else (y != z).any(-1)
        at = (y == process.mask) & other[:, None]  # (B, L)
        if at.any():
            words, _ = draw_at(denoiser, y, t, at, to_probs, process.n_tokens)  # (n,)
            y = y.masked_scatter(at, words)  # (B, L)
        if not other.any():
            return old
        reward = torch.zeros(len(y), dtype=torch.float64, device=y.device)  # (B,)
        reward[other] = self.rate(y[other]) / self.lam  # (b,)
        return reward if old is None else torch.where(other, reward, old)  # (B,)

    def parents(self, log_w, kept):
        """Whom the particles go on from: by w where (22.14) says so. log_w (B, N) -> (B, N), and
        the weights that are left (B, N)"""
        B, N = log_w.shape
        themselves = torch.arange(N, device=log_w.device).expand(B, N)  # (B, N)
        anew = effective_size(log_w) < self.resample * N if self.resample < 1 else (
            torch.ones(B, dtype=torch.bool, device=log_w.device))  # (B,)
        w = log_w.softmax(-1)  # (B, N)
        drawn = torch.stack([categorical(w) for _ in range(N)], 1)  # (B, N)
        if kept:
            drawn = torch.where(themselves == 0, 0, drawn)  # (B, N)
        return torch.where(anew[:, None], drawn, themselves), log_w.masked_fill(anew[:, None], 0.0)

    def write(self, process, denoiser, z, frozen, steps, to_probs, kept=None):
        """One run of (22.14), with the Way of (22.16) if it is given. Yields a state after each
        step, the last one being the text; returns its Way."""
        N, states, values, parents = self.particles, [], [], []
        now, old = z[:, None].expand(-1, N, -1), None  # (B, N, L)
        log_w = torch.zeros(len(z), N, dtype=torch.float64, device=z.device)  # (B, N)
        for i, left in enumerate(range(steps, 0, -1)):
            after, worth = [], []
            for k in range(N):
                if kept and k == 0:
                    y, v = kept.states[i], kept.values[i]  # (B, L), (B,)
                else:
                    y = self.step(process, denoiser, now[:, k], frozen, left, steps, to_probs)
                    before = None if old is None else old[:, k]  # (B,)
                    v = self.log_value(process, denoiser, now[:, k], y, before, left, steps,
                                       to_probs)  # (B,)
                after.append(y)
                worth.append(v)
            now, value = torch.stack(after, 1), torch.stack(worth, 1)  # (B, N, L), (B, N)
            log_w = log_w + value - (0.0 if old is None else old)  # (B, N) (22.14)
            states.append(now)
            values.append(value)
            if left > 1:
                parent, log_w = self.parents(log_w, kept)  # (B, N) each
                parents.append(parent)
                now = now.gather(1, parent[..., None].expand_as(now))  # (B, N, L)
                old = value.gather(1, parent)  # (B, N)
                yield pick(now, log_w.argmax(-1))  # (B, L)
        chosen = categorical(log_w.softmax(-1))  # (B,)
        way = self.trace(states, values, parents, chosen)
        yield way.states[-1]  # (B, L)
        return way

    def trace(self, states, values, parents, k):
        """The Way of the last particle k (B,), from the lists of all."""
        way = []
        for i in range(len(states) - 1, -1, -1):
            way.append((pick(states[i], k), pick(values[i], k)))  # (B, L), (B,)
            k = pick(parents[i - 1], k) if i else k  # (B,)
        return Way(*map(torch.stack, zip(*way[::-1])))

    @torch.no_grad()
    def __call__(self, process, denoiser, z, frozen, steps, to_probs=probabilities):
        self.begin()
        if self.score:
            yield from self.write(process, denoiser, z, frozen, steps, to_probs)
        else:
            yield from self.walker()(process, denoiser, z, frozen, steps, to_probs)


@dataclass(eq=False)
class ParticleGibbs(SMC):
    """--sampler particle-gibbs: smc again and again, each time beside the way of the last text."""
    iterations: int = flag(4, "runs after the first one", least=1)

    def count_states(self, length, steps):
        return steps * (1 + self.iterations)

    @torch.no_grad()
    def __call__(self, process, denoiser, z, frozen, steps, to_probs=probabilities):
        if not self.score:
            yield from super().__call__(process, denoiser, z, frozen, steps, to_probs)
            return
        self.begin()
        kept = None
        for _ in range(1 + self.iterations):
            kept = yield from self.write(process, denoiser, z, frozen, steps, to_probs, kept)
