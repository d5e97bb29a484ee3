"""
Discrete diffusion: what all methods share. Forward process, one bound, one reverse step, one sampler.

Notation, the same in README.md and tests/. B texts of L tokens over V symbols, special ones included; nats per token.

    x        (B, L)      clean ids               alpha(t)  P(a token was kept); alpha(0) = 1, alpha(1) = 0
    z        (B, L)      noisy ids               b(t, v)   P(noise put symbol v there): the rest of alpha
    t        (B, 1) or (B, L)  time: 0 = clean, 1 = noise; always s < t
    x_theta  (B, L, V)   the network's guess at x, probabilities

    forward    q(z_t | x) = Cat( alpha_t x + b_t ),   sum_v b_t(v) = 1 - alpha_t                                 (1)
    bound      l = r_t(z)/q_z [ KL(q || p) + q_z/p_z - 1 - log(q_z/p_z) ],  -log p(x) <= E_t E_z sum_l l,        (2)
               q = alpha x + b,  p = alpha x_theta + b,  r_t = b' - (alpha'/alpha) b, the rate of jumping into z
    reverse    p(z_s | z_t) = q(z_t | z_s) * (alpha_s x_theta + b_s) / (alpha_t x_theta + b_t)[z_t]              (3)
    posterior  p(x | z) ~ x_theta * q(z | x)                                                                     (4)

(2) is GIDD's bound (arXiv:2503.04482) and at once that of MDLM, MD4, RADD, UDLM and Duo: each method file holds the
closed form of its own case, and a test says that the two agree. The most missed fact of the field: what minimises (2)
is the *leave-one-out* law p(x_l | all of z but z_l), not p(x_l | z). They are the same only where z_l tells nothing,
at a mask; (4) puts the difference back.

A process is any object with alpha(t), dalpha(t), b(t, v), db(t, v), draw_noise(t, z), V, and n_tokens, the number of
text symbols: ids from there on are special.
"""
import math
from functools import partial

import torch
import torch.nn.functional as F

from positions import kernels


def stratified(n, device="cpu"):
    """Times for a batch, one in each n-th of (0, 1): less variance than independent ones, same mean. -> (n, 1)

    Never exactly 0 or 1, where weights such as 1/t and 1/alpha have no value: 1e-6 away moves a bound by 1e-5 nats.
    """
    t = (torch.arange(n, device=device) + torch.rand(n, device=device)) / n                         # (n,)
    return t.clamp(1e-6, 1 - 1e-6)[:, None]                                                         # (n, 1)


def corrupt(process, x, t, frozen=None):
    """Draw z ~ q(z_t | x), eq. (1). Frozen tokens are given: noise never touches them. -> (B, L)"""
    # exercise 1: noise, eq. (1), 3 lines
    keep = torch.rand(x.shape, device=x.device) < process.alpha(t)                                  # (B, L)
    keep = keep if frozen is None else keep | frozen
    return torch.where(keep, x, process.draw_noise(t, x))                                           # (B, L)
    # end


def bound(process, x_theta, x, z, t):
    """Eq. (2) for any process, as it stands; slow, and in float32 inexact near t = 0 and 1. -> (B, L) nats"""
    symbols = torch.arange(process.V, device=z.device)                                              # (V,)
    alpha, b = process.alpha(t)[..., None], process.b(t[..., None], symbols)                        # (B, 1, V)
    q = alpha * F.one_hot(x, process.V) + b                                                         # (B, L, V)
    p = alpha * x_theta + b                                                                         # (B, L, V)
    q_z, p_z = (law.gather(-1, z[..., None])[..., 0] for law in (q, p))                             # (B, L)
    kl = (torch.special.xlogy(q, q) - torch.special.xlogy(q, p)).sum(-1)                            # (B, L)
    rate = process.db(t, z) - process.dalpha(t) / process.alpha(t) * process.b(t, z)                # (B, L)
    term = rate / q_z * (kl + q_z / p_z - 1 - torch.log(q_z / p_z))                                 # (B, L)
    return torch.where(rate > 0, term, 0.0)            # nothing jumps into a clean token under masking: never 0 * inf


def reverse(process, x_theta, z, s, t):
    """Eq. (3), any process. -> (B, L, V) probabilities of z_s given z_t; rows sum to 1"""
    symbols = torch.arange(process.V, device=z.device)                                              # (V,)
    # exercise 7: one step back, eq. (3), 4 lines
    alpha_ts = (process.alpha(t) / process.alpha(s))[..., None]                                     # (B, 1, 1)
    into_z = process.b(t, z)[..., None] - alpha_ts * process.b(s, z)[..., None]                     # (B, L, 1)
    step = alpha_ts * F.one_hot(z, process.V) + into_z                                              # (B, L, V)
    joint = step * (process.alpha(s)[..., None] * x_theta + process.b(s[..., None], symbols))       # (B, L, V)
    # end
    return joint / joint.sum(-1, keepdim=True)                                                      # (B, L, V)


def likelihood(process, z, t):
    """q(z_t | x = v) for every text symbol v: what a noisy token says about its clean self. -> (B, L, N)"""
    clean = F.one_hot(z, process.V)[..., :process.n_tokens]                                         # (B, L, N)
    return process.alpha(t)[..., None] * clean + process.b(t, z)[..., None]                         # (B, L, N)


def posterior_x0(process, x_theta, z, t):
    """Eq. (4): p(x | z) from the leave-one-out law, by putting the token's own evidence back. -> (B, L, N)"""
    # exercise 8: a token's own evidence, eq. (4), 2 lines
    joint = x_theta[..., :process.n_tokens] * likelihood(process, z, t)                             # (B, L, N)
    return joint / joint.sum(-1, keepdim=True)                                                      # (B, L, N)
    # end


def probabilities(logits, temperature=1.0, top_p=1.0):
    """The law a sampler draws from: softmax(logits / temperature), cut to its nucleus. (..., V) -> (..., V) float64

    temperature 0 puts everything on the likeliest symbol; top_p keeps the fewest symbols that hold that much mass, the
    one that crosses it included (arXiv:1904.09751). Logits in bf16 are widened first: their softmax is coarse.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()                            # (..., V)
    if temperature == 0:
        return F.one_hot(logits.argmax(-1), logits.shape[-1]).double()                              # (..., V)
    p = (logits if temperature == 1 else logits / temperature).softmax(-1).double()                 # (..., V)
    if top_p == 1:
        return p
    ranked, order = p.sort(-1, descending=True)                                                     # (..., V)
    beyond = ranked.cumsum(-1) - ranked >= top_p                                                    # (..., V)
    p = p.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), 0.0)                     # (..., V)
    return p / p.sum(-1, keepdim=True)


def categorical(p):
    """One draw per row of p (..., V) float64, which need not be normalised, by inverse CDF. -> (...) ids

    Why float64, and no Gumbel race: a float32 race cannot see events rarer than about 6e-8. With 50,000 symbols and
    1,000 steps that drops rare words and opens too few masks, and flatters the samples (arXiv:2409.02908).
    """
    # exercise 2: draw from rows of probabilities, 4 lines
    cdf = p.cumsum(-1)                                                                              # (..., V)
    u = torch.rand(cdf.shape[:-1] + (1,), dtype=torch.float64, device=cdf.device) * cdf[..., -1:]   # (..., 1)
    last = torch.searchsorted(cdf, cdf[..., -1:].contiguous())   # u may round up to the total: stay on one with mass
    return torch.searchsorted(cdf, u, right=True).minimum(last)[..., 0]                             # (...)
    # end


def draw_from(law, logits, of=None):
    """One draw from law(logits) per row of logits (N, n_tokens), and the probability under it of the id `of` (N,); or,
    for None, belief: the probability that the network itself gives to the draw. Under a law of temperature 0 that of
    every draw would be 1, and none surer than another. -> ids (N,), p (N,)"""
    p = law(logits)                                                                                 # (N, n_tokens)
    ids = categorical(p)                                                                            # (N,)
    if of is None:
        p, of = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1), ids        # (N, n_tokens)
    return ids, p.gather(-1, of[:, None])[:, 0].double()                                            # (N,), (N,)


def draw_at(denoiser, z, t, at, law, n_tokens, of=None):
    """`draw_from` at each position `at` (B, L). -> ids (N,), p (N,)"""
    if kernels and getattr(denoiser, "fuses", False):        # in place of its head: no (N, V) float64
        head = partial(kernels.draw, law=law, draw_from=draw_from, n_tokens=n_tokens, of=of)
        return denoiser(z, t, at=at, head=head)
    return draw_from(law, denoiser(z, t, at=at)[:, :n_tokens], of)                                  # (N,), (N,)


@torch.no_grad()
def step(process, denoiser, z, frozen, s, t, law=probabilities):
    """One draw of eq. (3), from z_t to z_s, for any process; s and t (B, 1) or (B, L) float64. -> (B, L)

    Exact, and lazy. Let beta = q(z_t | z_s) for any z_s other than z_t. Then (3) is a mixture over what happened to a
    token since s:
        nothing            with weight  alpha_t x_theta(z) + alpha_ts b_s(z),
        noise replaced it  with weight  beta;  then z_s ~ alpha_s x_theta + b_s, whatever z is,
    and the weights sum to  alpha_t x_theta(z) + b_t(z) >= b_t(z).                                               (5)
    So a token moves with probability beta / b_t(z) at most, known before the network is asked: toss that coin first,
    choose between x_theta and noise, and ask only at the few tokens whose fate depends on the answer. A mask moves
    with exactly that probability (x_theta has none on it), so a masked model is asked where a mask opens, and not at
    all when none does. So does every token at t = 1, where it says nothing: only what becomes text is asked for.
    """
    coin = lambda: torch.rand(z.shape, dtype=torch.float64, device=z.device)                        # (B, L)
    alpha_t, alpha_s, b_z = process.alpha(t), process.alpha(s), process.b(t, z)                     # (B, 1|L)
    beta = b_z - alpha_t / alpha_s * process.b(s, z)                                                # (B, L)
    moves = (coin() * b_z < beta) & ~frozen                                                         # (B, L)
    to_text = coin() < alpha_s                                                                      # (B, L)
    new = torch.where(to_text, z, process.draw_noise(s, z))                                         # (B, L)
    ask = moves & (to_text | (z < process.n_tokens) & (alpha_t > 0))                                # (B, L)
    if ask.any():
        of = z[ask].clamp(max=process.n_tokens - 1)                                                 # (N,)
        word, own = draw_at(denoiser, z, t.float(), ask, law, process.n_tokens, of)                 # (N,), x_theta(z)
        new[ask] = torch.where(to_text[ask], word, new[ask])                                        # (N,)
        # exercise 9: the second coin, eq. (5), 2 lines
        own = torch.where(z[ask] < process.n_tokens, own, 0.0) * alpha_t.expand_as(z)[ask]          # (N,)
        moves[ask] = coin()[ask] * (own + b_z[ask]) < b_z[ask]                                      # (N,) eq. (5)
        # end
    return torch.where(moves, new, z)                                                               # (B, L)


def ancestral(process, denoiser, z, frozen, steps, law=probabilities, grid="uniform", step=step):
    """Walk from t = 1 to 0 in steps of eq. (3), or of another, for any process; yields z after each step.

    grid: equal steps, or times sin(pi u / 2) for equal steps of u, small ones while little is known (arXiv:2406.04329)
    """
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64, device=z.device)                   # (steps + 1,)
    times = torch.sin(math.pi / 2 * times) if grid == "cosine" else times                           # (steps + 1,)
    for t, s in zip(times[:-1], times[1:]):
        z = step(process, denoiser, z, frozen, s.expand(len(z), 1), t.expand(len(z), 1), law)       # (B, L)
        yield z
