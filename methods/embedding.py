"""
Chapter 13. What methods with Gaussian noise on embeddings share: network, times, the bound (13.7).

A method says which table it has (EmbeddingSpace), when its noise is how strong (a schedule) and
what it is trained on. Evaluation is the same for all: one draw of (13.7) has two calls, one at a
random gamma and one at gamma_0. A network that predicts vectors has no law of words, so its decoder
p(x_l | z_0) is the evidence alone: for these the second call is not needed.

Self-conditioning (arXiv:2208.04202): the network reads its last x_hat beside z. In training a share
of the texts has an x_hat of a first call, without a gradient; the others have 0. In (13.7) all have
one, so it bounds the likelihood of the two calls; a walk feeds back the x_hat of its last step.
"""
import copy
import math
from dataclasses import dataclass

import torch
import torch.nn as nn

from diffusion import Ancestral, ancestral, probabilities
from flags import UserError, flag
from gaussian import (
    DDPM,
    LEAST,
    EmbeddingSpace,
    log_evidence,
    noise_nats,
    prior_nats,
)
from methods.base import Method, skip_texts
from methods.clocks import CLOCKS, when
from model import Transformer, select_rows

SEED = 13  # of a table before it is trained


class Linear(nn.Module):
    """gamma grows linearly with t."""

    def __init__(self, gamma_0, gamma_1):
        super().__init__()
        self.ends = gamma_0, gamma_1

    def forward(self, t):
        return self.ends[0] + (self.ends[1] - self.ends[0]) * t

    def time(self, gamma):
        return (gamma - self.ends[0]) / (self.ends[1] - self.ends[0])

    def slope(self, t):
        """dgamma/dt. -> shape of t"""
        return (self.ends[1] - self.ends[0]) * torch.ones_like(t)


class Alpha2(nn.Module):
    """alpha^2 is a function of t, divided by its value at 0; `shift` is added to gamma.

    sqrt     1 - sqrt(t + 1e-4)                       Diffusion-LM
    cosine   cos^2( (t + .008) / 1.008 pi / 2 )       arXiv:2102.09672
    t runs over the part of (0, 1) whose gamma, without the shift, lies between the ends.
    """

    def __init__(self, kind, gamma_0, gamma_1, shift=0.0):
        super().__init__()
        self.kind, self.shift, self.span = kind, shift, (0.0, 1.0)
        ends = torch.tensor([gamma_0, gamma_1], dtype=torch.float64)  # (2,)
        self.span = self.time(ends + shift).tolist()

    def alpha2(self, t):
        if self.kind == "sqrt":
            return (1 - (t + 1e-4).sqrt()) / (1 - 1e-2)
        return torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2 / self.top

    top = math.cos(0.008 / 1.008 * math.pi / 2) ** 2

    def forward(self, t):
        low, high = self.span
        gamma = self.shift - torch.logit(self.alpha2(low + (high - low) * t.double()))
        return gamma.to(t.dtype)

    def time(self, gamma):
        """The inverse of `forward`."""
        alpha2, (low, high) = torch.sigmoid(self.shift - gamma.double()), self.span
        if self.kind == "sqrt":
            t = (1 - (1 - 1e-2) * alpha2) ** 2 - 1e-4
        else:
            t = torch.acos((alpha2 * self.top).sqrt()) * 2 / math.pi * 1.008 - 0.008
        return ((t - low) / (high - low)).to(gamma.dtype)

    def slope(self, t):
        """dgamma/dt. -> shape of t"""
        low, high = self.span
        inner = low + (high - low) * t.double()  # (...)
        a = self.alpha2(inner)  # (...)
        if self.kind == "sqrt":
            fall = 0.5 / (inner + 1e-4).sqrt() / (1 - 1e-2)  # (...) -da/dt
        else:
            fall = torch.sin((inner + 0.008) / 1.008 * math.pi) * math.pi / 2.016 / self.top
        return ((high - low) * fall / (a * (1 - a))).to(t.dtype)


class Logistic:
    """gammas of a logistic density between two ends.

    The integrand of (13.7) peaks where neighbors become distinguishable, about -2 for rows of norm
    1. With this density (13.7) varies half as much as with a uniform one (measured).
    """

    def __init__(self, ends, center, scale):
        self.center, self.scale = center, scale
        self.low, self.high = (self.rank(torch.as_tensor(a, dtype=torch.float64)) for a in ends)

    def rank(self, gamma):
        return torch.sigmoid((gamma - self.center) / self.scale)

    def density(self, gamma):
        """-> shape of gamma, float64"""
        q = self.rank(gamma.double())  # (...)
        return q * (1 - q) / self.scale / (self.high - self.low)

    def draw(self, n, device="cpu"):
        """gamma, one in each n-th of the density, and 1 / density. -> (n, 1) each, float64"""
        u = (torch.arange(n, device=device) + torch.rand(n, device=device).double()) / n  # (n,)
        q = (self.low + (self.high - self.low) * u)[:, None].clamp(1e-12, 1 - 1e-12)  # (n, 1)
        gamma = self.center + self.scale * torch.logit(q)  # (n, 1)
        return gamma, 1 / self.density(gamma)


class EmbeddingNetwork(Transformer):
    """A Transformer that reads noisy rows and gamma. The table is in `space`, and is trained,
    averaged and saved with it."""
    supports_cache = supports_fused_head = False

    def __init__(self, space, vocab_size, n_layer, n_head, n_embd, **options):
        super().__init__(vocab_size, n_layer, n_head, n_embd, **options)
        self.space = space
        self.embed = nn.Parameter(torch.empty(space.D * (1 + space.feeds_back), n_embd))
        nn.init.kaiming_uniform_(self.embed, a=math.sqrt(5))
        if space.vectors:
            self.head = nn.Linear(n_embd, space.D)
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def forward(self, z, noise=None, at=None, **options):
        """As Transformer, of z (B, L, D|2D) at times (B, 1|L). -> (B, L, V|D) or (N, V|D)"""
        seen, clock = self.space.scaled(z, noise)  # (B, L, D|2D), (B, 1|L)
        return super().forward(seen, clock, at=at, **options)


@dataclass(eq=False)
class Embedding(Method):
    """The base of plaid, cdcd, diffusion_lm, difformer and sed."""
    dim: int = flag(16, "width of the embeddings", least=2, most=10_000, fixed=True)
    self_condition: float = flag(0.5, "share of texts that are trained on the network's own first "
                                      "x_hat; 0: the network has no such input", least=0, most=1,
                                 fixed=True)
    clock: str = flag("common", "when noise leaves a token: all at once, or one after the other in "
                      "some order; methods/clocks.py", [*CLOCKS], later=True)
    spread: float = flag(2.0, "how many times the time in which one token is noisy lie between the "
                         "first and the last; for other clocks than common", least=0.01, most=1000,
                         later=True)
    uses_time, shardable, fixed_positions, takes_steps = True, False, False, False
    samplers, classifier_process = ("ddpm", "ddim", "word-steps"), None
    first_choice = "ddpm"
    predicts = "each token from a noisy embedding"

    def __post_init__(self):
        self.vocab_size, self.process = self.n_tokens, self.space().learn(False)
        self.process.clock = CLOCKS[self.clock](self.spread)

    # ---- what a method says

    def space(self):
        """Its table, its schedule and what its network predicts. -> EmbeddingSpace"""
        raise NotImplementedError

    def random_table(self):
        """Rows of about norm sqrt(D), the same for all runs. -> (V, D)"""
        generator = torch.Generator().manual_seed(SEED)
        return torch.randn(self.n_tokens, self.dim, generator=generator)  # (V, D)

    def check(self, config):
        if config.time_input != "auto":
            raise UserError(f"--time_input {config.time_input}: a network of {self.name} reads the "
                            "noise as gamma: leave it out")

    def network(self, vocab_size, *shape, **options):
        """The network, which carries the table of this method."""
        return EmbeddingNetwork(self.process.learn(), vocab_size, *shape, **options)

    def with_network(self, network):
        """This method with the table that another network carries."""
        other = copy.copy(self)
        other.process = network.space
        return other

    # ---- times and noise

    def draw_times(self, free):
        """Times of tokens, and their weights in (13.7). free (B, L): not given -> (B, 1|L) each"""
        space, clock = self.process, self.process.clock
        center = math.log(space.mean_square() * space.D) - 2.0
        ends = [space.gamma(torch.tensor(t, dtype=torch.float64)) for t in (0.0, 1.0)]  # () each
        logistic = Logistic(ends, center, 1.3)
        gamma, weight = logistic.draw(len(free), free.device)  # (B, 1) each
        t, plan = space.schedule.time(gamma), clock.plan(free)  # (B, 1)
        if not plan:
            return t.float(), weight.float()  # (B, 1) each
        first = torch.rand(free.shape, device=free.device).masked_fill(~free, -1)  # (B, L)
        chosen = first == first.amax(-1, keepdim=True)  # (B, L) one token of a text
        t, speed = clock.times(when(clock, plan, chosen, t), *plan)  # (B, L) each
        rate = space.schedule.slope(t) * speed  # (B, L) dgamma/du
        share = (logistic.density(space.gamma(t)) * rate).masked_fill(~free, 0)  # (B, L)
        mean = share.sum(-1, keepdim=True) / free.sum(-1, keepdim=True).clamp(min=1)  # (B, 1)
        return t.float(), (rate / mean.clamp(min=1e-300)).float()  # (B, L) each

    def at_clock(self, u, free):
        """The times of tokens at u (B, 1) on the clock of the text. -> (B, 1|L)"""
        clock = self.process.clock
        return clock.times(u, *clock.plan(free))[0].to(u.dtype)  # (B, 1|L)

    def choose_fed_back(self, n, device):
        """Which texts of a training batch have a first call. -> (n,) bool"""
        return torch.rand(n, device=device) < self.self_condition  # (n,)

    def predict(self, denoiser, z, t, at, fed_back=None):
        """The output at `at` (B, L), after a first call for the texts `fed_back` (B,); None: all.
        -> Prediction"""
        space = self.process
        first = at if fed_back is None else at & fed_back[:, None]  # (B, L)
        if not (space.feeds_back and first.any()):
            return space.predict(denoiser, z, t, at)
        with torch.no_grad():
            x_hat = space.predict(denoiser, z, t, first).x_hat.to(z.dtype)  # (N, D)
        fed = z.masked_scatter(first[..., None], x_hat)  # (B, L, D)
        fed = torch.where(first.any(-1)[:, None, None], fed, 0.0).detach()  # (B, L, D)
        return space.predict(denoiser, z, t, at, fed)

    def noisy(self, x, t, frozen=None):
        """A draw of (13.1), and what comes of it. -> e, z (B, L, D), t (B, 1|L)"""
        e = self.process.rows()[x]  # (B, L, D)
        return e, *self.process.noisy(e, t, frozen)  # (B, L, D), (B, 1|L)

    # ---- the terms of (13.7) at the tokens `at` (B, L), none of them given

    def integrand(self, denoiser, x, t, weight, at, frozen=None, fed_back=None):
        """The integrand at t times `weight`, (B, 1|L) each. -> (N,) nats"""
        e, z, t = self.noisy(x, t, frozen)  # (B, L, D) twice, (B, 1|L)
        x_hat = self.predict(denoiser, z, t, at, fed_back).x_hat  # (N, D)
        gamma, weight = (a.expand(x.shape)[at] for a in (self.process.gamma(t), weight))  # (N,)
        return weight * noise_nats(e[at], x_hat, gamma)  # (N,)

    def decoder_nats(self, denoiser, x, at, frozen=None, fed_back=None):
        """-log p(x_l | z_0). -> (N,) nats"""
        start = torch.full((len(x), 1), LEAST, device=x.device)  # (B, 1)
        _, z, t = self.noisy(x, start, frozen)  # (B, L, D), (B, 1|L)
        found = None if self.process.vectors else self.predict(denoiser, z, t, at, fed_back)
        log_p = self.process.log_words(found, z, t, at)  # (N, V)
        return -log_p.gather(-1, x[at][:, None])[:, 0]  # (N,)

    def noise_left(self, x, at):
        """The last term, without noise. -> (N,) nats"""
        gamma_1 = self.process.gamma(torch.ones(1, device=x.device))  # (1,)
        return prior_nats(self.process.rows()[x[at]], gamma_1)  # (N,)

    def nelbo(self, denoiser, x, frozen=None):
        """One draw of (13.7). -> (B, L) nats"""
        at = free_tokens(x, frozen)  # (B, L)
        t, weight = self.draw_times(at)  # (B, 1|L) each
        nats = self.integrand(denoiser, x, t, weight, at, frozen)  # (N,)
        nats = nats + self.decoder_nats(denoiser, x, at, frozen) + self.noise_left(x, at)  # (N,)
        return scatter_nats(nats, at)  # (B, L)

    def cross_entropies(self, denoiser, x, t, frozen=None, fed_back=None):
        """-log p(x_l | z_t) at times t (B, 1|L), of a network of words. -> (B, L) nats"""
        at = free_tokens(x, frozen)  # (B, L)
        _, z, t = self.noisy(x, t, frozen)  # (B, L, D), (B, 1|L)
        log_p = self.predict(denoiser, z, t, at, fed_back).log_p  # (N, V)
        return scatter_nats(-log_p.gather(-1, x[at][:, None])[:, 0], at)  # (B, L)

    # ---- samples and the exact denoiser

    def prior(self, shape, device="cpu"):
        """The ids of a text before its first step; its noise is drawn in `sample`. -> (B, L)"""
        return torch.zeros(shape, dtype=torch.long, device=device)  # (B, L)

    def sample(self, denoiser, z, frozen, steps, sampler=ancestral, to_probs=probabilities,
               window=None, end=None):
        """From noise to text; yields the likeliest words (B, L) after each step."""
        walk = DDPM() if isinstance(sampler, Ancestral) else sampler
        return walk(self.process, denoiser, z, frozen, steps, to_probs)

    def likelihood(self, z, t):
        """exp of (13.2), 1 at most; one-hot at given tokens. z (B, L, D|2D) -> (B, L, V)"""
        space = self.process
        z, table = z[..., :space.D].double(), space.rows().detach().double()  # (B, L, D), (V, D)
        given = torch.nn.functional.one_hot(space.nearest(z), space.V)  # (B, L, V)
        e = log_evidence(z, space.gamma(t.double().clamp(min=LEAST)), table)  # (B, L, V) nats
        e = (e - e.amax(-1, keepdim=True)).exp()  # (B, L, V)
        return torch.where((t < LEAST / 2)[..., None], given, e)  # (B, L, V)

    def oracle(self, language):
        """The leave-one-out distribution, or x_hat where the network predicts vectors."""
        if not self.process.vectors:
            return super().oracle(language)
        table = self.process.rows().detach().double()  # (V, D)

        def denoiser(z, t, at=None, label=None, **layout):
            e = self.likelihood(z, t)  # (B, L, V)
            p = language.posterior(e, leave_one_out=False, topic=label)  # (B, L, V)
            return select_rows((p @ table.to(p.device)).to(z.device), at)
        return skip_texts(denoiser)


def free_tokens(x, frozen):
    """Where tokens are not given. -> (B, L) bool"""
    return torch.ones_like(x, dtype=torch.bool) if frozen is None else ~frozen  # (B, L)


def scatter_nats(nats, at):
    """nats (N,) at the tokens `at` (B, L), 0 elsewhere. -> (B, L)"""
    zeros = torch.zeros(at.shape, dtype=nats.dtype, device=at.device)  # (B, L)
    return zeros.masked_scatter(at, nats)  # (B, L)
