"""
Chapter 0. Discrete diffusion: forward process, bound, reverse step and sampler for all methods.

Notation, as in README.md and tests/: B texts of L tokens over V symbols; nats per token.

    x        (B, L)     clean ids          alpha(t)  P(a token is kept); alpha(0) = 1, alpha(1) = 0
    z        (B, L)     noisy ids          b(t, v)   P(noise puts symbol v there)
    t        (B, 1) or (B, L)  time: 0 is clean, 1 is noise; s is an earlier time, s < t
    x_theta  (B, L, V)  the network's distribution of x

    forward    q(z_t | x) = Cat( alpha_t x + b_t ),   sum_v b_t(v) = 1 - alpha_t               (0.1)
    bound      l = r_t(z)/q_z [ KL(q || p) + q_z/p_z - 1 - log(q_z/p_z) ],                     (0.2)
               -log p(x) <= E_t E_z sum_l l,   q = alpha x + b,   p = alpha x_theta + b,
               r_t = b' - (alpha'/alpha) b, the rate of jumps into z
    reverse    p(z_s | z_t) = q(z_t | z_s) p_s(z_s) / p_t(z_t),   p_t = alpha_t x_theta + b_t  (0.3)
    posterior  p(x | z) ~ x_theta * q(z | x)                                                   (0.4)

(0.2) is the bound of GIDD (arXiv:2503.04482), and at once that of MDLM, MD4, RADD, UDLM and Duo.
Each method's file has a cheaper formula for its own case; a test checks that they agree. What
minimizes (0.2) is the leave-one-out distribution p(x_l | all of z but z_l), arXiv:2605.22765.
Times the token's own evidence it is p(x_l | z), (0.4). A mask has none: there they are equal.

A process has alpha(t), b(t, v), their derivatives dalpha and db, draw_noise(t, z), and these facts:
    V, n_tokens   symbols, and how many are text: ids from n_tokens on are special
    mask          the id of the mask, or None;   text_stays: noise makes masks only, text is right
    continuous    t may be any number between 0 and 1; else it is k / T
"""
import math
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from flags import flag
from model import kernels


def supports(denoiser, what):
    """Whether a denoiser, which may be a plain function, declares an ability: see Wrapper."""
    return getattr(denoiser, what, False)


class Wrapper:
    """A denoiser that calls another one, and declares the abilities of that one.
    supports_cache       takes a Cache; a number n > 1: each text has n rows in it
    supports_fused_head  takes `head`, a function of the last hidden states
    fixed_shapes         is called at the same number of positions every time
    reads_frozen         takes `frozen` (B, L): what is given. source: see samplers/sides.py"""

    def __init__(self, denoiser):
        self.denoiser = denoiser
        for what in "supports_cache supports_fused_head fixed_shapes source reads_frozen".split():
            setattr(self, what, supports(denoiser, what))

    def __call__(self, z, t, at=None, **layout):
        return self.denoiser(z, t, at=at, **layout)


class Labeled(Wrapper):
    """A denoiser that conditions on the class of each text. label (B,) or (1,) ids of classes"""

    def __init__(self, denoiser, label):
        super().__init__(denoiser)
        self.label = label

    def __call__(self, z, t, at=None, **layout):
        n = len(z[0] if isinstance(z, tuple) else z)  # relaxed inputs are pairs (B, L, k)
        return self.denoiser(z, t, at=at, label=self.label.expand(n), **layout)


class Absorbing:
    """Masks: alpha falls linearly to eps. Text has the ids 0 .. n_tokens - 1, the mask n_tokens."""
    text_stays, continuous = True, True

    def __init__(self, n_tokens, eps=0.0):
        self.n_tokens, self.mask, self.V, self.eps = n_tokens, n_tokens, n_tokens + 1, eps

    def alpha(self, t):
        return 1 - (1 - self.eps) * t

    def dalpha(self, t):
        return torch.full_like(t, self.eps - 1)

    def b(self, t, v):
        return (1 - self.eps) * t * (v == self.mask)  # as 1 - (1 - t) it would lose digits

    def db(self, t, v):
        return -self.dalpha(t) * (v == self.mask)

    def draw_noise(self, t, z):
        return torch.full_like(z, self.mask)  # (B, L)


class Uniform:
    """Random words, (4.1): all symbols are text."""
    text_stays, continuous, mask = False, True, None

    def __init__(self, n_tokens):
        self.n_tokens = self.V = n_tokens

    def alpha(self, t):
        return 1 - t

    def dalpha(self, t):
        return -torch.ones_like(t)

    def b(self, t, v):
        return t / self.V * torch.ones_like(v)  # as 1 - (1 - t) it would lose digits

    def db(self, t, v):
        return -self.dalpha(t) / self.V * torch.ones_like(v)

    def draw_noise(self, t, z):
        return torch.randint_like(z, self.V)  # (B, L)


class Hybrid:
    """Masks and random words, (5.1): p_uniform is the share of random words at t = 1/2."""
    text_stays, continuous = False, True

    def __init__(self, n_tokens, p_uniform):
        self.n_tokens, self.mask, self.V = n_tokens, n_tokens, n_tokens + 1
        self.scale = 2 * p_uniform / (1 - p_uniform)

    def c(self, t):
        return self.scale * (t * (1 - t)).sqrt()

    def dc(self, t):
        return self.scale * (1 - 2 * t) / (2 * (t * (1 - t)).sqrt())

    def alpha(self, t):
        return (1 - t) / (1 + self.c(t))

    def dalpha(self, t):
        return -(1 + self.c(t) + (1 - t) * self.dc(t)) / (1 + self.c(t)) ** 2

    def b(self, t, v):
        return torch.where(v == self.mask, t, self.c(t) / self.n_tokens) / (1 + self.c(t))

    def db(self, t, v):
        C = 1 + self.c(t)
        return torch.where(v == self.mask, C - t * self.dc(t), self.dc(t) / self.n_tokens) / C ** 2

    def draw_noise(self, t, z):
        to_mask = torch.rand(z.shape, device=z.device) * (t + self.c(t)) < t  # (B, L)
        return torch.where(to_mask, self.mask, torch.randint_like(z, self.n_tokens))  # (B, L)


def stratified(n, device="cpu"):
    """Times for a batch, one in each n-th of (0, 1): less variance, the same mean. -> (n, 1)

    1e-6 away from 0 and 1, where 1/t and 1/alpha are infinite: 1e-5 nats in a bound."""
    t = (torch.arange(n, device=device) + torch.rand(n, device=device)) / n  # (n,)
    return t.clamp(1e-6, 1 - 1e-6)[:, None]  # (n, 1)


def corrupt(process, x, t, frozen=None):
    """Draw z ~ q(z_t | x), (0.1). Frozen tokens are given: noise never changes them. -> (B, L)"""
    # exercise 1: noise, (0.1), 3 lines
    keep = torch.rand(x.shape, device=x.device) < process.alpha(t)  # (B, L)
    keep = keep if frozen is None else keep | frozen  # (B, L)
    return torch.where(keep, x, process.draw_noise(t, x))  # (B, L)
    # end


def jump_rate(process, z, t):
    """r_t(z), the rate of jumps into z. -> shape of z"""
    return process.db(t, z) - process.dalpha(t) / process.alpha(t) * process.b(t, z)


def changeable(process, z, frozen):
    """Where a step may change a token: under masks alone, text stays. -> (B, L) bool"""
    at = z == process.mask if process.text_stays else torch.ones_like(z, dtype=torch.bool)  # (B, L)
    return at if frozen is None else at & ~frozen  # (B, L)


def bound(process, x_theta, x, z, t):
    """(0.2) for any process; slow, and inexact in float32 near t = 0 and 1. -> (B, L) nats"""
    symbols = torch.arange(process.V, device=z.device)  # (V,)
    alpha, b = process.alpha(t)[..., None], process.b(t[..., None], symbols)  # (B, 1, 1), (B, 1, V)
    q = alpha * F.one_hot(x, process.V) + b  # (B, L, V)
    p = alpha * x_theta + b  # (B, L, V)
    q_z, p_z = (a.gather(-1, z[..., None])[..., 0] for a in (q, p))  # (B, L) each
    kl = (torch.special.xlogy(q, q) - torch.special.xlogy(q, p)).sum(-1)  # (B, L)
    rate = jump_rate(process, z, t)  # (B, L)
    nats = rate / q_z * (kl + q_z / p_z - 1 - torch.log(q_z / p_z))  # (B, L)
    return torch.where(rate > 0, nats, 0.0)  # (B, L) never 0 * inf: no jumps into text under masks


def reverse(process, x_theta, z, s, t):
    """(0.3) for any process. -> (B, L, V) probabilities of z_s given z_t; rows sum to 1"""
    symbols = torch.arange(process.V, device=z.device)  # (V,)
    alpha_s, b_s = process.alpha(s)[..., None], process.b(s[..., None], symbols)  # (B, 1, 1|V)
    # exercise 7: one step back, (0.3), 4 lines
    alpha_ts = (process.alpha(t) / process.alpha(s))[..., None]  # (B, 1, 1)
    into_z = process.b(t, z)[..., None] - alpha_ts * process.b(s, z)[..., None]  # (B, L, 1)
    step = alpha_ts * F.one_hot(z, process.V) + into_z  # (B, L, V)
    joint = step * (alpha_s * x_theta + b_s)  # (B, L, V)
    # end
    return joint / joint.sum(-1, keepdim=True)  # (B, L, V)


def likelihood(process, z, t):
    """q(z_t | x = v) for each text symbol v: the evidence of a noisy token. -> (B, L, n_tokens)"""
    clean = F.one_hot(z, process.V)[..., :process.n_tokens]  # (B, L, n_tokens)
    return process.alpha(t)[..., None] * clean + process.b(t, z)[..., None]  # (B, L, n_tokens)


def posterior_x0(process, x_theta, z, t):
    """(0.4): p(x | z) from the leave-one-out distribution x_theta. -> (B, L, n_tokens)"""
    # exercise 8: a token's own evidence, (0.4), 2 lines
    joint = x_theta[..., :process.n_tokens] * likelihood(process, z, t)  # (B, L, n_tokens)
    return joint / joint.sum(-1, keepdim=True)  # (B, L, n_tokens)
    # end


def probabilities(logits, temperature=1.0, top_p=1.0):
    """Sampling distribution: softmax(logits / temperature), then top-p. -> (..., V) float64

    temperature 0 puts all on the likeliest symbol. top_p keeps the smallest set of symbols with
    that much mass (nucleus, arXiv:1904.09751). The softmax of bf16 logits would be coarse."""
    logits = logits if logits.dtype == torch.float64 else logits.float()  # (..., V)
    if temperature == 0:
        return F.one_hot(logits.argmax(-1), logits.shape[-1]).double()  # (..., V)
    p = (logits if temperature == 1 else logits / temperature).softmax(-1).double()  # (..., V)
    if top_p == 1:
        return p
    ranked, order = p.sort(-1, descending=True)  # (..., V) each
    beyond = ranked.cumsum(-1) - ranked >= top_p  # (..., V)
    p = p.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), 0.0)  # (..., V)
    return p / p.sum(-1, keepdim=True)  # (..., V)


def softmax_temperature(to_probs):
    """T if to_probs is softmax(logits / T) alone, from which a kernel can draw; else None."""
    call = partial(to_probs)  # with .func and .keywords, if to_probs is a partial or not
    T, top_p = (call.keywords.get(name, 1.0) for name in ("temperature", "top_p"))
    return T if call.func is probabilities and not call.args and T > 0 and top_p == 1 else None


def categorical(p):
    """One draw per row of p (..., V) float64, by inverse CDF. Rows need not sum to 1. -> (...) ids

    Gumbel-max in float32 never draws events rarer than 6e-8: with 50,000 symbols and 1,000 steps it
    loses rare words and opens too few masks, which flatters samples (arXiv:2409.02908)."""
    # exercise 2: draw from rows of probabilities, 4 lines
    cdf = p.cumsum(-1)  # (..., V)
    u = torch.rand(cdf.shape[:-1] + (1,), dtype=torch.float64, device=cdf.device) * cdf[..., -1:]
    last = torch.searchsorted(cdf, cdf[..., -1:].contiguous())  # (..., 1) u may round up to the sum
    return torch.searchsorted(cdf, u, right=True).minimum(last)[..., 0]  # (...)
    # end


def draw_from(to_probs, logits, of=None):
    """One draw from to_probs(logits) for each row of logits (N, n_tokens). -> ids (N,), p (N,)

    p: the probability of `of` (N,) under that distribution, or for None the confidence: the
    network's own probability of the draw. (At temperature 0 all would tie at 1.)"""
    p = to_probs(logits)  # (N, n_tokens)
    ids = categorical(p)  # (N,)
    if of is None:
        of = ids
        p = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1)  # (N, n_tokens)
    return ids, p.gather(-1, of[:, None])[:, 0].double()  # (N,), (N,)


def draw_at(denoiser, z, t, at, to_probs, n_tokens, of=None):
    """`draw_from` at each position `at` (B, L). -> ids (N,), p (N,)"""
    if kernels and supports(denoiser, "supports_fused_head"):  # no (N, V) float64 in memory
        head = partial(kernels.sample_head, to_probs=to_probs, draw_from=draw_from, of=of,
                       n_tokens=n_tokens, temperature=softmax_temperature(to_probs))
        return denoiser(z, t, at=at, head=head)
    return draw_from(to_probs, denoiser(z, t, at=at)[:, :n_tokens], of)  # (N,), (N,)


@torch.no_grad()
def reverse_step(process, denoiser, z, frozen, s, t, to_probs=probabilities):
    """One draw of (0.3), z_t to z_s, for any process; s, t (B, 1) or (B, L) float64. -> (B, L)

    Exact and lazy. Let beta = q(z_t | z_s) for any z_s but z_t. Then (0.3) is a mixture of
        nothing            with weight  alpha_t x_theta(z) + alpha_ts b_s(z)
        noise replaced it  with weight  beta, and then z_s ~ alpha_s x_theta + b_s, whatever z is
    whose weights sum to   alpha_t x_theta(z) + b_t(z) >= b_t(z).                              (0.5)
    So a token moves with probability beta / b_t(z) at most, and a mask with exactly that, since
    x_theta has no mass there. That coin is tossed first; the network is called where it matters.
    """
    coin = lambda: torch.rand(z.shape, dtype=torch.float64, device=z.device)  # (B, L)
    alpha_t, alpha_s, b_z = process.alpha(t), process.alpha(s), process.b(t, z)  # (B, 1|L) each
    beta = (alpha_s > 0) * (b_z - alpha_t / alpha_s.clamp(min=1e-300) * process.b(s, z))  # (B, L)
    moves = (coin() * b_z < beta) & ~frozen  # (B, L)
    to_text = coin() < alpha_s  # (B, L)
    new = torch.where(to_text, z, process.draw_noise(s, z))  # (B, L)
    at = moves & (to_text | (z < process.n_tokens) & (alpha_t > 0))  # (B, L)
    if at.any():
        of = z[at].clamp(max=process.n_tokens - 1)  # (N,)
        word, own = draw_at(denoiser, z, t.float(), at, to_probs, process.n_tokens, of)  # (N,) each
        new[at] = torch.where(to_text[at], word, new[at])  # (N,)
        # exercise 9: the second coin, (0.5), 2 lines
        own = torch.where(z[at] < process.n_tokens, own, 0.0) * alpha_t.expand_as(z)[at]  # (N,)
        moves[at] = coin()[at] * (own + b_z[at]) < b_z[at]  # (N,)
        # end
    return torch.where(moves, new, z)  # (B, L)


@dataclass(eq=False)
class Sampler:
    """sampler(process, denoiser, z, frozen, steps, to_probs) yields z (B, L) after each step, and
    goes on from there. Its fields are its flags. It has a row in samplers/__init__.py."""
    draws_from_model = True  # in many steps, texts follow the model's own distribution
    chooses_first = draws_once = False  # before it draws: (24.1) is its law under masks, any noise
    words_per_step, also_called = None, ()  # None: without --steps, 128; names known elsewhere
    rewrites = uses_cache = draws_decide = False  # changes text; has a KV cache; all draws decide
    write_in_order = None  # for ar: (method, denoiser, z, frozen, ..) yields z
    costs = None  # (whole) -> {what a batch or all texts took besides network calls: number}
    follows = None  # (flags) -> whose law texts have if not the model's, or None; a sentence

    def fits(self, method):
        """Why this sampler cannot serve a method, as the end of a sentence; None if it can."""

    def prepare(self, model):
        """Called before the first text of a model. Raises UserError where a flag does not fit."""

    def count_states(self, length, steps):
        """How many states it yields at most, for texts of `length` tokens."""
        return steps


@dataclass(eq=False)
class Ancestral(Sampler):
    """--sampler ancestral: from t = 1 to 0 in steps of (0.3), or of `step`, for any process."""
    grid: str = flag("uniform", "steps of equal length, or short ones first (arXiv:2406.04329)",
                     ["uniform", "cosine"])
    step: object = reverse_step  # guidance has its own
    chooses_first = True

    def fits(self, method):
        if self.grid != "uniform" and method.samplers is not None:
            return f"has no grid with {method.name}, which takes its own steps: leave out --grid"

    def __call__(self, process, denoiser, z, frozen, steps, to_probs=probabilities):
        times = torch.linspace(1, 0, steps + 1, dtype=torch.float64, device=z.device)  # (n + 1,)
        times = torch.sin(math.pi / 2 * times) if self.grid == "cosine" else times  # (n + 1,)
        for t, s in zip(times[:-1], times[1:]):
            s, t = s.expand(len(z), 1), t.expand(len(z), 1)  # (B, 1) each
            z = self.step(process, denoiser, z, frozen, s, t, to_probs)  # (B, L)
            yield z


ancestral = Ancestral()
