"""
Chapter 13. Gaussian noise on embeddings: process, evidence, posterior, bound, reverse steps, walk.

    e      (B, L, D)  rows of a table E (V, D) at the tokens x;  e_v the row of the word v
    z      (B, L, D)  noisy rows, real numbers: `denoiser(z, t, at)` as everywhere
    gamma  -log of the signal-to-noise ratio, increases with t from gamma_0 to gamma_1;
           alpha^2 = sigmoid(-gamma),  sigma^2 = sigmoid(gamma)
    c(v)   p(x_l = v | all of z but z_l), leave-one-out;   p(v) = p(x_l = v | z)

    forward    z = alpha e + sigma eps                                                        (13.1)
    evidence   log q(z_l | x_l = v) = (alpha z_l.e_v - alpha^2 |e_v|^2/2) / sigma^2 + const  (13.2)
    posterior  p(v) ~ c(v) exp (13.2),   x_hat = sum_v p(v) e_v                               (13.3)
    step       z_s = (1 - c) (alpha_s / alpha_t) z + c alpha_s x_hat + sqrt(c) sigma_s eps,
               c = 1 - exp(gamma_s - gamma_t)                                                 (13.4)
    DDIM       z_s = alpha_s x_hat + sigma_s (z - alpha_t x_hat) / sigma_t                    (13.5)
    words      (13.4) with e_w, w ~ p drawn anew in each step, in place of x_hat              (13.6)
    bound      -log p(x) <= sum_l [ -log p(x_l | z_0) + KL( q(z_1 | x_l) || N(0, I) )         (13.7)
                                    + 1/2 int exp(-gamma) E |e_l - x_hat_l|^2 dgamma ]
    exact      E (13.7) = H(x) + TC + KL_1 with the exact denoiser,                           (13.8)
               TC = sum_l H(x_l | z_0) - H(x | z_0),   KL_1 = KL( q(z_1) || N(0, I) )
    T steps    1/2 (exp(-gamma_s) - exp(-gamma_t)) |e - x_hat(z_t)|^2 for each step           (13.9)
    path       each token may have its own gamma_l(u), for u from 0 to 1, that does not      (13.10)
               depend on x: dgamma becomes gamma_l'(u) du, and (13.8) holds as it is

(13.8) has no slack: a sampler or a loss that is right meets it. TC vanishes as gamma_0 falls, KL_1
as gamma_1 grows. What minimizes |e - x_hat|^2 is (13.3), the token's own evidence included, but the
head learns c: as in (0.4), the method adds the evidence. If all rows have one norm, the second term
of (13.2) cancels. t = 0 marks a given token, whose z is its row; other times are 1e-6 at least.

(13.10) fails for noise that depends on the word: its amount is then evidence of the word, a step's
variance tells it at once, and (13.9) grows without limit. Such noise has no bound.
"""
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F

from diffusion import Sampler, draw_from, probabilities
from flags import flag

LEAST = 1e-6  # time of a token that is not given
LARGER = {"posterior": 0, "mixed": 0.2, "large": 1}  # l of (15.7)
GIVEN = -4.0  # gamma of a given token as a network reads it, beside gamma_0


def signal(gamma):
    """alpha and sigma of (13.1). -> shape of gamma, each"""
    return torch.sigmoid(-gamma).sqrt(), torch.sigmoid(gamma).sqrt()


def add_noise(e, gamma, eps):
    """(13.1). e, eps (..., D), gamma (...) -> (..., D)"""
    alpha, sigma = (a[..., None] for a in signal(gamma))  # (..., 1) each
    return alpha * e + sigma * eps


def log_evidence(z, gamma, table):
    """(13.2) without its constant. z (..., D), gamma (...), table (V, D) -> (..., V) nats"""
    # exercise 28: what a noisy row says of each word, (13.2), 2 lines
    alpha, sigma = (a[..., None] for a in signal(gamma))  # (..., 1) each
    return alpha / sigma ** 2 * (z @ table.T - alpha / 2 * table.square().sum(-1))  # (..., V)
    # end


def word_evidence(z, gamma, table):
    """(13.2) where each word has its own gamma (..., V): then no term cancels. -> (..., V) nats"""
    alpha, sigma2 = torch.sigmoid(-gamma).sqrt(), torch.sigmoid(gamma)  # (..., V) each
    far = z.square().sum(-1, keepdim=True) - 2 * alpha * (z @ table.T)  # (..., V)
    far = far + alpha ** 2 * table.square().sum(-1)  # (..., V) |z - alpha e|^2
    return -(far / sigma2 + z.shape[-1] * sigma2.log()) / 2  # (..., V)


# ---- reverse steps, gamma_s < gamma_t

def step_law(z, x_hat, gamma_s, gamma_t):
    """(13.4). -> its mean (..., D) and its variance (...)"""
    (alpha_s, sigma_s), (alpha_t, _) = signal(gamma_s), signal(gamma_t)  # (...) each
    c = -torch.expm1(gamma_s - gamma_t)  # (...)
    mean = ((1 - c) * alpha_s / alpha_t)[..., None] * z + (c * alpha_s)[..., None] * x_hat
    return mean, c * sigma_s ** 2  # (..., D), (...)


def large_variance(gamma_s, gamma_t):
    """In place of that of (13.4): of z_t given z_s, as in Diffusion-LM's code. -> (...)"""
    return 1 - torch.sigmoid(-gamma_t) / torch.sigmoid(-gamma_s)


def ddim(z, x_hat, gamma_s, gamma_t):
    """(13.5). -> (..., D)"""
    alpha, sigma = (a[..., None] for a in signal(gamma_t))  # (..., 1) each
    return add_noise(x_hat, gamma_s, (z - alpha * x_hat) / sigma)


def sharpen(x_hat, z, gamma, temperature):
    """x_hat whose noise is divided by a temperature (Plaid's, arXiv:2305.18619). -> (..., D)"""
    alpha, sigma = (a[..., None] for a in signal(gamma))  # (..., 1) each
    eps = (z - alpha * x_hat) / sigma / temperature  # (..., D)
    return (z - sigma * eps) / alpha


# ---- the parts of the bound

def noise_nats(e, x_hat, gamma):
    """The integrand of (13.7). e, x_hat (..., D), gamma (...) -> (...) nats per unit of gamma"""
    return 0.5 * torch.exp(-gamma) * (e - x_hat).square().sum(-1)


def step_nats(e, x_hat, gamma_s, gamma_t):
    """(13.9), the KL of a step. -> (...) nats"""
    return noise_nats(e, x_hat, gamma_t) * torch.expm1(gamma_t - gamma_s)


def prior_nats(e, gamma_1):
    """KL( q(z_1 | x) || N(0, I) ) of each token. e (..., D), gamma_1 (...) -> (...) nats"""
    alpha2, sigma2 = torch.sigmoid(-gamma_1), torch.sigmoid(gamma_1)  # (...) each
    D = e.shape[-1]
    return 0.5 * (alpha2 * e.square().sum(-1) - D * (alpha2 + F.logsigmoid(gamma_1)))


# ---- a table of embeddings

ROWS = {  # what is used of the numbers that are learned
    "unit": lambda a: F.normalize(a, dim=-1),
    "layer norm": lambda a: F.layer_norm(a, a.shape[-1:]),  # of norm sqrt(D)
    "free": lambda a: a,
}


class Prediction(NamedTuple):
    """At N tokens."""
    log_p: torch.Tensor  # (N, V) log p(x_l | z), or None if the network predicts vectors
    x_hat: torch.Tensor  # (N, D)


class EmbeddingSpace(nn.Module):
    """The process of embeddings: table, schedule, and what a network's output means.

    It is a part of the network, so it is trained, averaged and saved with it.
    schedule  t -> gamma(t);   warp: u -> t, dt/du, for which times u are uniform; None: no such u
    fixed: the table is not trained
    feeds_back: z has 2 D columns, and the last D are the last x_hat, or 0 (self-conditioning)
    """
    text_stays, continuous, mask = True, True, None  # given text is right
    clock = None  # (13.10): of methods/clocks.py, set by the method; None: the common one
    vectors = False  # the network outputs x_hat (N, D), and not log c (N, V)
    refuses = staticmethod(lambda walk: None)  # why a walk does not fit, as `fits` says it
    reads_words = False  # it also reads which words a row may be: (13.2) as probabilities

    def __init__(self, table, rule, schedule, warp=None, feeds_back=False, fixed=False):
        super().__init__()
        (self.n_tokens, self.D), self.V = table.shape, len(table)
        self.table = nn.Parameter(table.clone())  # (V, D)
        self.rule, self.schedule, self.warp = rule, schedule, warp
        self.feeds_back, self.fixed = feeds_back, fixed

    def learn(self, on=True):
        """Whether gradients reach the parts that are trained: not where there is no network."""
        self.requires_grad_(on)
        self.table.requires_grad_(on and not self.fixed)
        return self

    @property
    def by_word(self):
        """Whether the noise of a token depends on its word, and (13.10) does not hold."""
        return self.clock is not None and self.clock.by_word

    def rows(self):
        return ROWS[self.rule](self.table)  # (V, D)

    def gamma(self, t):
        return self.schedule(t)

    def spaced(self, u):
        """The times of a walk, from equal steps u in [0, 1]. -> shape of u"""
        return u if self.warp is None else self.warp(u)[0]

    def gamma_of(self, t, words=None):
        """gamma of tokens at the times t (N,), with clocks that depend on the word of those words
        (N,). -> (N,)"""
        own = t if words is None else self.clock.times_of(t, words)  # (N,)
        return self.gamma(own.clamp(min=LEAST))

    def evidence(self, z, t):
        """(13.2) at the times t (...), of the dtype of z (..., D). -> (..., V) nats"""
        table = self.rows().to(z.dtype)  # (V, D)
        if not self.by_word:
            return log_evidence(z, self.gamma(t).to(z.dtype), table)  # (..., V)
        times = self.clock.word_times(t).clamp(min=LEAST)  # (..., V)
        return word_evidence(z, self.gamma(times).to(z.dtype), table)  # (..., V)

    def mean_square(self):
        return self.rows().detach().square().mean()  # ()

    def scaled(self, z, t):
        """What a network reads: z of unit variance, and gamma, GIVEN less at given tokens.

        z (B, L, D|2D), t (B, 1|L) -> (B, L, D|2D, and V more if it reads words), (B, 1|L)
        """
        gamma, size = self.gamma(t), self.mean_square()  # (B, 1|L), ()
        scale = (torch.sigmoid(-gamma) * size + torch.sigmoid(gamma)).rsqrt()[..., None]
        parts = [z[..., :self.D] * scale, *([z[..., self.D:] / size.sqrt()] * self.feeds_back)]
        if self.reads_words:
            parts.append(self.evidence(z[..., :self.D], t.clamp(min=LEAST)).softmax(-1))
        return torch.cat(parts, -1), torch.where(t > 0, gamma, gamma + GIVEN)

    def noisy(self, e, t, frozen=None):
        """A draw of (13.1) at times t (B, 1|L), 0 at given tokens. -> z (B, L, D), t (B, 1|L)"""
        t = t.clamp(min=LEAST)  # (B, 1|L)
        z = add_noise(e, self.gamma(t), torch.randn(e.shape, device=e.device))  # (B, L, D)
        if frozen is None:
            return z, t
        return torch.where(frozen[..., None], e, z), t.expand(frozen.shape).masked_fill(frozen, 0)

    def output(self, denoiser, z, t, at, fed=None):
        """The denoiser's output at `at` (B, L). The network reads float32 times, as in training.

        fed (B, L, D): the last x_hat, None for 0 -> (N, V|D)
        """
        if self.feeds_back:
            z = torch.cat([z, torch.zeros_like(z) if fed is None else fed.to(z.dtype)], -1)
        out = denoiser(z, t.float(), at=at)  # (N, V|D)
        return out if out.dtype == torch.float64 else out.float()  # (N, V|D)

    def predict(self, denoiser, z, t, at, fed=None):
        """(13.3) at the tokens `at` (B, L). -> Prediction"""
        out = self.output(denoiser, z, t, at, fed)  # (N, V)
        evidence = self.evidence(z[at].to(out.dtype), t.expand(at.shape)[at])  # (N, V)
        log_p = (out[:, :self.V] + evidence).log_softmax(-1)  # (N, V)
        return Prediction(log_p, log_p.exp() @ self.rows().to(out.dtype))

    def log_words(self, found, z, t, at):
        """The decoder p(x_l | z_0) of (13.7). found: the Prediction there -> (N, V) nats"""
        return found.log_p  # (N, V)

    def nearest(self, x_hat):
        """The word whose row is nearest. (N, D) -> (N,)"""
        table = self.rows().to(x_hat.dtype)  # (V, D)
        return (x_hat @ table.T - table.square().sum(-1) / 2).argmax(-1)  # (N,)


class VectorSpace(EmbeddingSpace):
    """The same where a network outputs x_hat. The decoder is the evidence alone."""
    vectors = True

    def predict(self, denoiser, z, t, at, fed=None):
        return Prediction(None, self.output(denoiser, z, t, at, fed)[:, :self.D])

    def log_words(self, found, z, t, at):
        return self.evidence(z[at], t.expand(at.shape)[at]).log_softmax(-1)  # (N, V)


# ---- the walk from noise to text

@dataclass(eq=False)
class EmbeddingWalk(Sampler):
    """A sampler of embeddings: z goes from noise to gamma_0, and each word is drawn there.

    It yields the likeliest words (B, L) after each step; the last ones are drawn.
    """
    last: str = flag("draw", "the words: drawn, or the likeliest, as Plaid has it (biased: too "
                             "likely texts)", ["draw", "argmax"])
    jump = None  # the most time that a token lost in a step

    def costs(self, whole=False):
        """The largest step of a token: where it is near 1, tokens are written at once."""
        return {"largest_jump": round(self.jump, 3)} if self.jump else {}

    def fits(self, method):
        if not isinstance(method.process, EmbeddingSpace):
            return f"takes steps of embeddings, which {method.name} does not have"
        return method.process.refuses(self)

    def move(self, process, z, found, s, t, eps):
        """z_s from z_t, at the tokens that are not given. z, eps (N, D); s, t (N,) -> (N, D)"""
        raise NotImplementedError

    @torch.no_grad()
    def __call__(self, process, denoiser, z, frozen, steps, to_probs=probabilities):
        ids, free = z, ~frozen  # (B, L) each
        e, fed = process.rows()[ids], None  # (B, L, D)
        z = torch.where(free[..., None], torch.randn(e.shape, device=e.device), e)  # (B, L, D)
        times = self.times(process, frozen, steps + process.vectors)  # n of (B, 1|L)
        for i in range(steps):
            if not free.any():  # nothing to write
                yield ids
                continue
            found = process.predict(denoiser, z, times[i], free, fed)
            fed = z.masked_scatter(free[..., None], found.x_hat.to(z.dtype))  # (B, L, D)
            if i + 1 < len(times):
                s, t = (times[j].expand(ids.shape)[free] for j in (i + 1, i))  # (N,) each
                eps = torch.randn(e.shape, device=e.device)[free]  # (N, D)
                moved = self.move(process, z[free], found, s, t, eps)  # (N, D)
                z = z.masked_scatter(free[..., None], moved.to(z.dtype))  # (B, L, D)
            words = self.words(process, found, z, times[-1], free, to_probs, i + 1 == steps)
            ids = ids.masked_scatter(free, words)  # (B, L)
            yield ids

    def times(self, process, frozen, n):
        """n times of a walk, 0 at given tokens. -> n of (B, 1|L)"""
        clock = torch.linspace(1, 0, n, dtype=torch.float64, device=frozen.device)  # (n,)
        plan = process.clock.plan(~frozen)
        times = [process.clock.times(u.expand(len(frozen), 1), *plan)[0] for u in clock]
        times = [process.spaced(t).clamp(min=LEAST) for t in times]  # n of (B, 1|L)
        self.jump = max([float((t - s).max()) for t, s in zip(times, times[1:])], default=1.0)
        own = lambda t: t.expand(frozen.shape).masked_fill(frozen, 0)  # (B, L)
        return [own(t) for t in times] if frozen.any() else times

    def words(self, process, found, z, t, free, to_probs, over):
        """The words at the tokens that are not given: the likeliest until the walk is over. -> (N,)
        """
        if not over and process.vectors:
            return process.nearest(found.x_hat)  # (N,)
        log_p = process.log_words(found, z, t, free)  # (N, V)
        if not over or self.last == "argmax":
            return log_p.argmax(-1)  # (N,)
        return draw_from(to_probs, log_p)[0]  # (N,)


@dataclass(eq=False)
class DDPM(EmbeddingWalk):
    """--sampler ddpm: steps of (13.4) on embeddings."""
    variance: str = flag("posterior", "of a step: (13.4), the larger one of Diffusion-LM, or one "
                         "between them, (15.7)", [*LARGER])
    clamp: bool = flag(False, "move x_hat to the nearest row in each step, as Diffusion-LM does "
                              "(biased: too likely texts)")
    score_temperature: float = flag(1.0, "below 1 sharpens x_hat, as Plaid does", least=0.01,
                                    most=100)

    def estimate(self, process, z, found, s, t):
        """x_hat of a step, as the flags say, and gamma_s, gamma_t. -> (N, D), (N,) twice

        Where gamma depends on the word, that is the nearest one: a guess.
        """
        x_hat = found.x_hat  # (N, D)
        words = process.nearest(x_hat) if self.clamp or process.by_word else None  # (N,)
        x_hat = process.rows()[words] if self.clamp else x_hat  # (N, D)
        words = words if process.by_word else None  # (N,)
        gamma_s, gamma_t = (process.gamma_of(a, words) for a in (s, t))  # (N,) each
        if self.score_temperature != 1 and not self.clamp:
            x_hat = sharpen(x_hat, z, gamma_t, self.score_temperature)  # (N, D)
        return x_hat, gamma_s, gamma_t

    def move(self, process, z, found, s, t, eps):
        x_hat, gamma_s, gamma_t = self.estimate(process, z, found, s, t)  # (N, D), (N,) twice
        mean, variance = step_law(z, x_hat, gamma_s, gamma_t)  # (N, D), (N,)
        l = LARGER[self.variance]
        variance = large_variance(gamma_s, gamma_t) ** l * variance ** (1 - l)  # (N,) (15.7)
        return mean + variance.sqrt()[:, None] * eps  # (N, D)
