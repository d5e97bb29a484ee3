"""
Chapter 14. RDLM (arXiv:2502.11564): words are points of a sphere, and noise walks to them.

(14.30)-(14.38) are in methods/sphere.py. The network outputs p(v), with the token's own evidence,
and is trained on -log p(x), at times whose 1/b is spread around MEDIAN, where context matters: one
draw of (14.36) takes the place of a walk. `nelbo` is (14.35), whose terms are

    integral   at a random v of (0, 1), after a walk of WALK steps (14.32) to 1/b(v):       (14.39)
               1/2 | sum_v ([v = x] - p(v)) Log_X(e_v) |^2 d(1/b)/dv
    words      - log p(x | path), after WALK more steps

A walk that is scored has one starting point. RDLM's mixture begins at (1, .., 1)/sqrt(D) and is
taken from the mask later on. No process jumps from the one to the other, so the sum of both parts
bounds nothing: with an exact network it is below the entropy (docs/14-sphere.md).

`--noise 0` is Fisher-Flow (arXiv:2405.14664): (14.37), from random points. The way to a word is
then known from a single point, and no bound: the walk of the model has no noise, either.
"""
from dataclasses import dataclass

import torch
from torch import nn

from diffusion import Ancestral, ancestral, probabilities, stratified
from flags import UserError, flag
from gaussian import LEAST
from methods.base import Method, cross_entropy, loss_at, skip_texts, to_float32
from methods.sphere import Geodesic, Sphere, log_mean
from model import Transformer, select_rows

WALK = 6  # steps to a random time, and as many again to the end


class SphereNetwork(Transformer):
    """A transformer that reads points. At first its rows are as long as those of a token's id: a
    point far from all words would hardly be seen."""
    supports_cache = supports_fused_head = False

    def __init__(self, vocab_size, *shape, **options):
        super().__init__(vocab_size, *shape, **options)
        nn.init.normal_(self.embed, std=0.5)

    def forward(self, z, noise=None, at=None, **options):
        return super().forward(z[..., :self.vocab_size], noise, at=at, **options)


@dataclass(eq=False)
class RDLM(Method):
    """--method rdlm: a walk with noise from one point, or without from random ones."""
    noise: float = flag(0.2, "beta at the end of the walk; 0: Fisher-Flow", least=0, most=1,
                        fixed=True)
    start: str = flag("mask", "where walks with noise begin; a mixture of both would have no bound",
                      ["mask", "uniform"], fixed=True)
    end: float = flag(0.15, "the time at which words are drawn", least=0.001, most=0.9, fixed=True)
    network, uses_time = SphereNetwork, True
    takes_steps, samplers = False, ("ancestral", "geodesic")
    predicts = "each token from a point of a sphere"
    unbounded_reason = "a walk without noise has no density, so --noise 0 has no bound"

    def __post_init__(self):
        if self.n_tokens < 2:
            raise UserError("a sphere needs two words, and the text has one")
        self.process = Sphere(self.n_tokens, self.noise, self.start, self.end)
        self.vocab_size, self.bounded = self.process.D, self.noise > 0

    @property
    def classifier_process(self):
        return Sphere(self.n_tokens, self.noise, self.start, self.end)

    def loss(self, denoiser, x, frozen=None):
        """-log p(x_l | X_t). -> (B, L) nats"""
        v, process = stratified(len(x), x.device), self.process  # (B, 1)
        if self.noise:
            z, t = process.draw(x, v), process.time(1 / process.grown(v)[0])  # (B, L, D), (B, 1)
        else:
            t = process.end + (1 - process.end) * v  # (B, 1)
            z = self.straight(x, t)  # (B, L, D)
        z, t, at = self.show_given(z, x, t, frozen)  # (B, L, D), (B, 1|L), (B, L)
        return loss_at(denoiser, z, t, at, cross_entropy, (x,), self.n_tokens, 1.0, frozen)

    def straight(self, x, t):
        """A draw of (14.37) at times t (B, 1). -> (B, L, D)"""
        word = nn.functional.one_hot(x, self.n_tokens)  # (B, L, V)
        return self.process.advance(self.process.begin(x), word, t, torch.ones_like(t))

    def show_given(self, z, x, t, frozen=None):
        """Given tokens are words at t = 0. -> z, t (B, 1|L), where tokens are not given (B, L)"""
        if frozen is None:
            return z, t, torch.ones_like(x, dtype=torch.bool)  # (B, L)
        given = nn.functional.pad(self.process.words(x), (0, z.shape[-1] - self.process.D))
        z = torch.where(frozen[..., None], given.to(z.dtype), z)  # (B, L, D|D + V)
        return z, t.expand(x.shape).masked_fill(frozen, 0.0), ~frozen

    def walk(self, x, z, first, last):
        """WALK steps (14.32) towards x; first, last (B, 1) of 1/b. -> as z (B, L, D + V)"""
        word = nn.functional.one_hot(x, self.n_tokens)  # (B, L, V)
        times = [self.process.time(1 / (first + (last - first) * i / WALK))
                 for i in range(WALK + 1)]  # (B, 1) each
        for t, s in zip(times, times[1:]):
            z = self.process.advance(z, word, s, t)  # (B, L, D + V)
        return z

    def nelbo(self, denoiser, x, frozen=None):
        """One draw of (14.35) by (14.39); without noise the loss. -> (B, L) nats"""
        if not self.noise:
            return self.loss(denoiser, x, frozen)  # (B, L)
        process, v = self.process, stratified(len(x), x.device).double()  # (B, 1)
        (now, slope), last = process.grown(v), process.grown(torch.ones_like(v))[0]  # (B, 1) each
        z = nn.functional.pad(process.begin(x), (0, process.V))  # (B, L, D + V)
        z = self.walk(x, z, torch.full_like(v, process.first), now)  # (B, L, D + V)
        nats = slope * self.integrand(denoiser, z, x, now, frozen)  # (B, L)
        z = self.walk(x, z, now, last)  # (B, L, D + V)
        nats = nats - self.log_p(denoiser, z, x, last, frozen).gather(-1, x[..., None])[..., 0]
        return nats if frozen is None else nats.masked_fill(frozen, 0.0)  # (B, L)

    def integrand(self, denoiser, z, x, grown, frozen=None):
        """That of (14.35). z (B, L, D + V), grown (B, 1) -> (B, L) nats per unit of 1/b"""
        p = self.log_p(denoiser, z, x, grown, frozen).exp()  # (B, L, V)
        miss, X = nn.functional.one_hot(x, self.n_tokens) - p, z[..., :self.process.D]
        return log_mean(X.to(p.dtype), miss).square().sum(-1) / 2  # (B, L)

    def log_p(self, denoiser, z, x, grown, frozen=None):
        """log p(v) at the time of 1/b = grown (B, 1), 0 at given tokens. -> (B, L, V)"""
        z, t, at = self.show_given(z, x, self.process.time(1 / grown), frozen)
        rows = to_float32(denoiser(z, t.float(), at=at))[:, :self.n_tokens]  # (N, V)
        rows = rows.log_softmax(-1)  # (N, V)
        return rows.new_zeros(*x.shape, self.n_tokens).masked_scatter(at[..., None], rows)

    def draw_evidence(self, x, t, frozen=None):
        """What a classifier reads: the evidence of a walk up to times t (B, 1). -> (B, L, V)"""
        if self.noise:
            z = nn.functional.pad(self.process.begin(x), (0, self.process.V))  # (B, L, D + V)
            now = 1 / self.process.remaining(t.double().clamp(min=LEAST))  # (B, 1)
            z = self.walk(x, z, torch.full_like(now, self.process.first), now)  # (B, L, D + V)
        else:
            z = self.straight(x, t)  # (B, L, D)
        z, t, _ = self.show_given(z, x, t, frozen)
        return self.likelihood(z, t)  # (B, L, V)

    # ---- samples and the exact denoiser

    def prior(self, shape, device="cpu"):
        """The ids of a text before its first step. -> (B, L)"""
        return torch.zeros(shape, dtype=torch.long, device=device)  # (B, L)

    def sample(self, denoiser, z, frozen, steps, sampler=ancestral, to_probs=probabilities,
               window=None, end=None):
        """From noise to text; yields the likeliest words (B, L) after each step."""
        walk = Geodesic() if isinstance(sampler, Ancestral) else sampler
        return walk(self.process, denoiser, z, frozen, steps, to_probs)

    def likelihood(self, z, t):
        """exp of (14.33) or (14.38), 1 at most; one-hot at given tokens. -> (B, L, V)"""
        given = nn.functional.one_hot(z[..., :self.n_tokens].argmax(-1), self.n_tokens)  # (B, L, V)
        t = t.double().expand(z.shape[:2])  # (B, L)
        e = self.process.evidence(z.double(), t.clamp(min=1e-9))  # (B, L, V)
        e = (e - e.amax(-1, keepdim=True)).exp().clamp(min=1e-30)  # (B, L, V)
        return torch.where((t == 0)[..., None], given, e)  # (B, L, V)

    def oracle(self, language):
        """log p(x_l | paths). -> (B, L, V)"""
        def denoiser(z, t, at=None, label=None, **layout):
            e = self.likelihood(z, t)  # (B, L, V)
            p = language.posterior(e, leave_one_out=False, topic=label)  # (B, L, V)
            return select_rows(p.log().to(z.device), at)
        return skip_texts(denoiser)
