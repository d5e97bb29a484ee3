"""
Chapters 3 and 16. Masks by a schedule for each symbol: what genmd4 and diffusionbert share.

Symbol v is masked at time t with probability m_v(t) = 1 - alpha_t(v). A token that is masked early
is likely a symbol whose m_v rises early, so masks are evidence here: x_theta reads the time, and is
p(x | z), not the leave-one-out distribution. At a mask, with w_v(t) = d log m_v(t)/dt,

    bound      l = w_x (-log x_theta(x) - 1) + sum_v w_v x_theta(v)                           (16.7)
    reverse    a draw x ~ x_theta opens the mask with probability 1 - m_x(s)/m_x(t)           (16.8)

If all m_v are t, (16.7) is the bound of mdlm. Schedules may also depend on what a sampler knows
from the start, the place of a token and the given tokens: (16.7) holds for each text by itself.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from diffusion import categorical, probabilities, stratified, supports
from methods.base import Method, inside, to_float32
from model import select_rows, texts_with


@dataclass(eq=False)
class SymbolSchedules(Method):
    """Masks by a schedule for each symbol. A method defines `masked` and `rate`."""
    uses_time, fixed_positions = True, False
    samplers = ("ancestral",)
    text_stays, classifier_process = True, None

    def __post_init__(self):
        self.process, self.mask, self.vocab_size = self, self.n_tokens, self.n_tokens + 1

    def known(self, z, frozen=None):
        """What schedules depend on besides symbol and time, as far as a sampler knows it: where
        each token stands in the text, from 0 to 1 (L,), or numbers for each text and symbol (B, N).
        """
        return (torch.arange(z.shape[1], device=z.device) + 0.5) / z.shape[1]  # (L,)

    def masked(self, t, v, known):
        """m_v(t), the probability that symbol v is a mask at time t; shapes are broadcast.

        v: a text (B, L), or all symbols (N,); known: as above, with a dimension in front of its
        last where v are all symbols
        """
        raise NotImplementedError

    def rate(self, t, v, known):
        """w_v(t), the derivative of log m_v(t)."""
        raise NotImplementedError

    def corrupt(self, x, t, frozen=None):
        """Mask each token by its own schedule. x (B, L), t (B, 1) -> (B, L)"""
        due = self.masked(t, x, self.known(x, frozen))  # (B, L)
        masked = torch.rand(x.shape, device=x.device) < due  # (B, L)
        return torch.where(masked if frozen is None else masked & ~frozen, self.mask, x)  # (B, L)

    def symbols(self, z):
        return torch.arange(self.n_tokens, device=z.device)  # (N,)

    def likelihood(self, z, t, frozen=None):
        """q(z_t | x = v) for each symbol: a mask is evidence too. -> (B, L, N)"""
        known = self.known(z, frozen)[:, None]  # (L, 1)|(B, 1, N)
        masked = self.masked(t[..., None], self.symbols(z), known)  # (B, 1|L, 1|N)
        kept = F.one_hot(z, self.n_tokens + 1)[..., :-1] * (1 - masked)  # (B, L, N)
        return torch.where((z == self.mask)[..., None], masked, kept)  # (B, L, N)

    def told(self, denoiser, frozen):
        """What the exact denoiser must know besides z and t. -> dict"""
        return {"frozen": frozen} if supports(denoiser, "reads_frozen") else {}

    def bound(self, denoiser, x, z, t, frozen=None):
        """(16.7) -> (B, L) nats"""
        at, known = z == self.mask, self.known(x, frozen)  # (B, L), (L,)|(B, N)
        logits = denoiser(z, t, at=at, **self.told(denoiser, frozen))[:, :self.n_tokens]  # (M, N)
        log_p = to_float32(logits).log_softmax(-1)  # (M, N)
        rows, places = at.nonzero().unbind(1)  # (M,) each
        known = known[rows] if known.ndim > 1 else known[places][:, None]  # (M, 1|N)
        t, right = (a.expand_as(x)[at][:, None] for a in (t, x))  # (M, 1) each
        w = self.rate(t, self.symbols(z), known).expand_as(log_p)  # (M, N)
        w_x, ce = w.gather(-1, right)[:, 0], -log_p.gather(-1, right)[:, 0]  # (M,) each
        nats = w_x * (ce - 1) + (w * log_p.exp()).sum(-1)  # (M,)
        zeros = torch.zeros(x.shape, dtype=nats.dtype, device=x.device)  # (B, L)
        return zeros.masked_scatter(at, nats)  # (B, L)

    def time_of(self, u, x, known):
        """When each token of x (B, L) is a mask with probability u (B, 1). -> (B, L) float64"""
        low, high = torch.zeros_like(x, dtype=torch.float64), torch.ones_like(x).double()  # (B, L)
        for _ in range(50):  # halves the interval, to the precision of float64
            middle = (low + high) / 2  # (B, L)
            early = self.masked(middle, x, known) < u  # (B, L)
            low, high = torch.where(early, middle, low), torch.where(early, high, middle)
        return high  # (B, L)

    def draw(self, x, frozen=None):
        """A time and a noisy text, with bounded weights. -> t (B, 1), weight (B, 1), z (B, L)

        Of n free tokens one is chosen, and is a mask; u ~ U(0, 1) says with which probability, and
        so at which time. Any other is a mask with its own probability then. The density of that
        is sum_masks w_l / n times that of a uniform time.
        """
        free = torch.ones_like(x, dtype=torch.bool) if frozen is None else ~frozen  # (B, L)
        n = free.sum(-1, keepdim=True)  # (B, 1)
        u1, u2 = (stratified(len(x), x.device)[torch.randperm(len(x), device=x.device)]
                  for _ in range(2))  # (B, 1) each
        chosen = free & (free.cumsum(-1) - 1 == (u1 * n).floor())  # (B, L)
        known = self.known(x, frozen)  # (L,)|(B, N)
        t = (self.time_of(u2.double(), x, known) * chosen).sum(-1, keepdim=True)  # (B, 1)
        t = torch.where(n > 0, t, 0.5)  # (B, 1)
        z = torch.where(chosen, self.mask, self.corrupt(x, t, frozen))  # (B, L)
        w = self.rate(t, x, known).expand(x.shape) * (z == self.mask)  # (B, L)
        weight = n / w.sum(-1, keepdim=True).clamp(min=1e-30)  # (B, 1)
        return t.float(), weight.float(), z

    def nelbo(self, denoiser, x, frozen=None):
        """One draw of (16.7). -> (B, L) nats"""
        t, weight, z = self.draw(x, frozen)  # (B, 1), (B, 1), (B, L)
        return weight * self.bound(denoiser, x, z, t, frozen)  # (B, L)

    def prior(self, shape, device="cpu"):
        return torch.full(shape, self.mask, device=device)  # (B, L)

    @torch.no_grad()
    def sample(self, denoiser, z, frozen, steps, sampler=None, to_probs=probabilities,
               window=None, end=None):
        """From t = 1 to 0 in equal steps of (16.8); yields z after each.

        As lazy as reverse_step. The symbol that opens with the largest probability has its coin
        tossed first. Only where it comes up is a word drawn, and it opens with what is left of its
        own probability.
        """
        words, known = self.symbols(z), self.known(z, frozen)[:, None]  # (N,), (L, 1)|(B, 1, N)
        told = self.told(denoiser, frozen)
        times = torch.linspace(1, 0, steps + 1, dtype=torch.float64, device=z.device)  # (n + 1,)
        coin = lambda n: torch.rand(n, dtype=torch.float64, device=z.device)
        for t, s in zip(times[:-1], times[1:]):
            opens = 1 - self.masked(s, words, known) / self.masked(t, words, known)  # (1|L, 1|N)
            most = opens.amax(-1).expand(z.shape)  # (B, L)
            at = (z == self.mask) & (coin(z.shape) < most)  # (B, L)
            if at.any():
                logits = denoiser(z, t.float().expand(len(z), 1), at=at, **told)  # (M, V)
                new = categorical(to_probs(logits[:, :self.n_tokens]))  # (M,)
                due = opens.expand(*z.shape, self.n_tokens)[(*at.nonzero().T, new)]  # (M,)
                closed = coin(len(new)) * most[at] >= due  # (M,)
                z = z.masked_scatter(at, new.masked_fill(closed, self.mask))  # (B, L)
            yield z

    def oracle(self, language):
        """log p(x_l | z), the evidence of l's own mask included. -> (B, L, N)"""
        def denoiser(z, t, at=None, label=None, frozen=None, **layout):
            if at is not None:
                z, t, at, label, frozen = texts_with(at, z, t, at, label, frozen)
            e = self.likelihood(z, inside(t), frozen)  # (B, L, N)
            p = language.posterior(e, leave_one_out=False, topic=label)  # (B, L, N)
            return select_rows(p.log().to(z.device), at)
        denoiser.reads_frozen = True
        return denoiser
