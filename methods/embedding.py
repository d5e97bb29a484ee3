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

import numpy as np
import torch
import torch.nn as nn

from diffusion import Ancestral, ancestral, probabilities
from flags import UserError, flag
from gaussian import DDPM, LEAST, noise_nats, prior_nats
from methods.base import Method, free_tokens, scatter_nats, skip_texts
from methods.clocks import CLOCKS, when
from methods.gammas import Logistic
from model import Transformer, select_rows

SEED = 13  # of a table before it is trained
TRAINED = 0.0, 0.5  # center and scale of gammas for cross-entropies: see useful_times
FEW = 4096  # words that a network reads as probabilities: this costs about what its head does


class EmbeddingNetwork(Transformer):
    """A Transformer that reads noisy rows and gamma. The table is in `space`, and is trained,
    averaged and saved with it."""
    supports_cache = supports_fused_head = False

    def __init__(self, space, vocab_size, n_layer, n_head, n_embd, **options):
        super().__init__(vocab_size, n_layer, n_head, n_embd, **options)
        self.space = space
        width = space.D * (1 + space.feeds_back) + space.V * space.reads_words
        self.embed = nn.Parameter(torch.empty(width, n_embd))
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
    reads: str = flag("auto", "what the network reads: noisy rows, or also the words that each may "
                      "be (V more columns); auto: words, of at most 4,096",
                      ["auto", "rows", "words"], fixed=True)
    token_clock: str = flag("common", "when noise leaves a token: all at once, or one after the "
                            "other in some order; methods/clocks.py", [*CLOCKS], later=True)
    spread: float = flag(2.0, "how many times the time in which one token is noisy lie between the "
                         "first and the last; for other clocks than common", least=0.01, most=1000,
                         later=True)
    uses_time, shardable, fixed_positions, takes_steps = True, False, False, False
    samplers = ("ancestral", "ddpm", "ddim", "word-steps")
    predicts = "each token from a noisy embedding"
    unbounded_reason = ("the amount of noise depends on the word, so it tells the word; "
                        "--token_clock common has a bound")

    def __post_init__(self):
        self.vocab_size, self.process = self.n_tokens, self.space().learn(False)
        few = self.reads == "auto" and self.n_tokens <= FEW
        self.process.reads_words = self.reads == "words" or few
        self.process.clock = CLOCKS[self.token_clock](self.spread)
        self.bounded = not self.process.by_word
        self.use_counts(torch.ones(self.n_tokens))  # all as often, until there is a text

    def use_counts(self, counts):
        """How often each word occurs (V,), for clocks that depend on the word."""
        self.counts = counts.double()  # (V,)
        if self.process.by_word:
            self.process.clock.use_counts(self.counts)

    def on_data(self, data):
        counts = np.bincount(data.ids("train"), minlength=self.n_tokens)[:self.n_tokens]  # (V,)
        self.use_counts(torch.from_numpy(counts))

    def on_step(self, step, trainer):
        self.process.clock.on_step(step)

    def extra_state(self):
        return {"counts": self.counts, **self.process.clock.state()}

    def load_extra_state(self, state):
        self.use_counts(state["counts"].cpu())
        self.process.clock.load(state)

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
        other.process.clock = self.process.clock
        return other

    # ---- times and noise

    def draw_times(self, free, center=-1.75, scale=1.0):
        """Times of tokens, and their weights in (13.7). free (B, L): not given -> (B, 1|L) each

        center, scale: of the logistic density of gamma, for rows of norm 1
        """
        space, clock = self.process, self.process.clock
        center = math.log(space.mean_square() * space.D) + center
        ends = [space.gamma(torch.tensor(t, dtype=torch.float64)) for t in (0.0, 1.0)]  # () each
        logistic = Logistic(ends, center, scale)
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

    def useful_times(self, free, center, scale):
        """Times for cross-entropies. With little noise a row tells its word, and with much its
        neighbors tell nothing: the center is from the gamma with exp(-gamma) = log V. -> (B, 1|L)
        """
        center = center - math.log(math.log(max(2, self.n_tokens)))
        return self.draw_times(free, center, scale)[0]  # (B, 1|L)

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
        return self.two_calls(denoiser, z, t, at, fed_back)[-1]

    def two_calls(self, denoiser, z, t, at, fed_back=None):
        """The same with the first call. -> where that was (B, L), its x_hat (N', D), Prediction"""
        space, x_hat = self.process, z.new_zeros(0, self.process.D)  # (0, D)
        first = at if fed_back is None else at & fed_back[:, None]  # (B, L)
        if not (space.feeds_back and first.any()):
            return torch.zeros_like(at), x_hat, space.predict(denoiser, z, t, at)
        with torch.no_grad():
            x_hat = space.predict(denoiser, z, t, first).x_hat.to(z.dtype)  # (N', D)
        fed = z.masked_scatter(first[..., None], x_hat)  # (B, L, D)
        fed = torch.where(first.any(-1)[:, None, None], fed, 0.0).detach()  # (B, L, D)
        return first, x_hat, space.predict(denoiser, z, t, at, fed)

    def noisy(self, x, t, frozen=None):
        """A draw of (13.1), and what comes of it. -> e, z (B, L, D), t (B, 1|L)"""
        e = self.process.rows()[x]  # (B, L, D)
        if not self.process.by_word:
            return e, *self.process.noisy(e, t, frozen)  # (B, L, D), (B, 1|L)
        own = self.process.clock.times_of(t.expand(x.shape), x)  # (B, L) of noise
        z, times = self.process.noisy(e, own, frozen)  # (B, L, D), (B, L)
        return e, z, torch.where(times > 0, t.clamp(min=LEAST), 0)  # (B, L) as the network is told

    def denoise(self, denoiser, x, t, at, frozen=None, fed_back=None):
        """A draw of (13.1) at times t (B, 1|L), and the output at `at` (B, L). -> e (N, D), the
        times of these tokens (N,), Prediction"""
        e, z, t = self.noisy(x, t, frozen)  # (B, L, D) twice, (B, 1|L)
        found = self.predict(denoiser, z, t, at, fed_back)
        return *self.select(e, t, at, found), found

    def select(self, e, t, at, found):
        """e and t at the tokens of a Prediction; a clock that is fitted sees its error. -> (N, D),
        (N,)"""
        e, t = e[at], t.expand(at.shape)[at]  # (N, D), (N,)
        if torch.is_grad_enabled():
            self.process.clock.observe(t, (e - found.x_hat).square().sum(-1), at)
        return e, t

    # ---- the terms of (13.7) at the tokens `at` (B, L), none of them given

    def integrand(self, denoiser, x, t, weight, at, frozen=None, fed_back=None):
        """The integrand at t times `weight`, (B, 1|L) each. -> (N,) nats"""
        e, t, found = self.denoise(denoiser, x, t, at, frozen, fed_back)  # (N, D), (N,)
        weight = weight.expand(x.shape)[at]  # (N,)
        return weight * noise_nats(e, found.x_hat, self.process.gamma(t))  # (N,)

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

    def what_is_trained(self, denoiser, x, frozen=None):
        return self.loss(denoiser, x, frozen)  # (B, L)

    def nelbo(self, denoiser, x, frozen=None):
        """One draw of (13.7); the loss where there is no bound. -> (B, L) nats"""
        if not self.bounded:
            return self.what_is_trained(denoiser, x, frozen)  # (B, L)
        at = free_tokens(x, frozen)  # (B, L)
        t, weight = self.draw_times(at)  # (B, 1|L) each
        nats = self.integrand(denoiser, x, t, weight, at, frozen)  # (N,)
        nats = nats + self.decoder_nats(denoiser, x, at, frozen) + self.noise_left(x, at)  # (N,)
        return scatter_nats(nats, at)  # (B, L)

    def cross_entropies(self, denoiser, x, t, frozen=None, fed_back=None):
        """-log p(x_l | z_t) at times t (B, 1|L), of a network of words. -> (B, L) nats"""
        at = free_tokens(x, frozen)  # (B, L)
        log_p = self.denoise(denoiser, x, t, at, frozen, fed_back)[2].log_p  # (N, V)
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
        z = z[..., :space.D].double()  # (B, L, D)
        given = torch.nn.functional.one_hot(space.nearest(z), space.V)  # (B, L, V)
        e = space.evidence(z, t.double().clamp(min=LEAST).expand(z.shape[:2]))  # (B, L, V) nats
        e = (e - e.amax(-1, keepdim=True)).exp()  # (B, L, V)
        return torch.where((t < LEAST / 2)[..., None], given, e)  # (B, L, V)

    def draw_evidence(self, x, t, frozen=None):
        """What a classifier reads: a draw of (13.1) at t (B, 1|L), as (13.2) for each word, normal-
        ized. -> (B, L, V)"""
        _, z, t = self.noisy(x, t, frozen)  # (B, L, D), (B, 1|L)
        e = self.likelihood(z, t)  # (B, L, V)
        return (e / e.sum(-1, keepdim=True)).float()  # (B, L, V)

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
