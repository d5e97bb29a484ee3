"""D3PM with every transition on the enumerated world: exact denoisers, and (2.3) as a sum.

And for SEDD, a score that fits no distribution.
"""
import pytest
import torch

from methods.d3pm import D3PM, kl_term
from world import LANGUAGE, TEXTS, L, N

TRANSITIONS = ["absorbing", "uniform", "gaussian", "nearest"]
EMBEDDING = torch.randn(N, 4, generator=torch.Generator().manual_seed(0))
each_transition = pytest.mark.parametrize("transition", TRANSITIONS)


def made(transition, T, **flags):
    """The method for the world in T steps."""
    method = D3PM(N, transition, T, **flags)
    method.load_extra_state({"embedding": EMBEDDING})
    return method


def random_rows(chain, T, n=300, n_tokens=N, seed=1):
    """x_theta (n, N) and x, z, k (n,), where z can come from x."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(n_tokens, (n,), generator=g)  # (n,)
    k = torch.randint(1, T + 1, (n,), generator=g)  # (n,)
    torch.manual_seed(seed)
    z = chain.corrupt(x[:, None], (k.double() / T)[:, None])[:, 0]  # (n,)
    return torch.rand(n, n_tokens, generator=g, dtype=torch.float64) + 0.01, x, z, k


def states(method):
    """Every noisy text. -> (S, L)"""
    return torch.cartesian_prod(*[torch.arange(method.vocab_size)] * L)


def evidence(method, z, t):
    """q(z_l | x_l) for every text of the world. -> (S, 27, L)"""
    e = method.likelihood(z, t)  # (S, L, N)
    return torch.stack([e[:, l, TEXTS[:, l]] for l in range(L)], -1)


def exact(method, leave_one_out=True):
    """The exact denoiser at every time, 0 and 1 included; or p(x_l | z), which counts the token's
    own evidence."""
    def denoiser(z, t, at=None):
        p = LANGUAGE.posterior(method.likelihood(z, t.double()), leave_one_out)  # (S, L, N)
        return p.log() if at is None else p.log()[at]
    return denoiser


def enumerated(method, denoiser):
    """(2.3) of each of the 27 texts: summed over k and over z. -> (27,) nats"""
    z, T = states(method), method.chain.T  # (S, L)
    row, place = method.chain.changeable(z).nonzero().T  # (n,) each
    of = torch.arange(len(row)).repeat_interleave(N)  # (n N,)
    x = torch.arange(N).repeat(len(row))  # (n N,) a term depends on one symbol of the text
    total = method.chain.prior_kl(TEXTS).sum(-1)  # (27,)
    for k in range(1, T + 1):
        t = torch.full((len(z), 1), k / T, dtype=torch.float64)  # (S, 1)
        q, x_theta = evidence(method, z, t).prod(-1), denoiser(z, t).double().exp()  # (S, 27)
        times = t[0].expand(len(x))  # (n N,)
        here = x_theta[row, place][of], x, z[row, place][of]  # (n N, .) each
        terms = kl_term(method.chain, *here, times - 1 / T, times).view(-1, N)  # (n, N)
        terms = terms.gather(1, TEXTS[:, place].T)  # (n, 27)
        total += torch.where(q[row] > 0, q[row] * terms, 0.0).sum(0)
    return total


def step_probs(method, denoiser, z, s, t):
    """(2.2) at every token; s, t (S, 1) -> (S, L, V)"""
    x_theta = denoiser(z, t).double().exp()  # (S, L, N)
    rows = (a.expand(z.shape).flatten() for a in (z, s, t))
    p = method.chain.reverse(x_theta.flatten(0, 1), *rows).view(*z.shape, -1)  # (S, L, V)
    kept = torch.nn.functional.one_hot(z, method.vocab_size).double()  # (S, L, V)
    return torch.where(method.chain.changeable(z)[..., None], p, kept)


def end_of_chain(method, denoiser, times):
    """The distribution of the last text, as a product of matrices. times: numbers k -> (S,)"""
    z, T = states(method), method.chain.T  # (S, L)
    if method.process.mask is None:
        flat = torch.full((N,), 1 / N, dtype=torch.float64)  # (V,)
        p = (flat if method.process.continuous else method.chain.final)[z].prod(-1)  # (S,)
    else:
        p = (z == N).all(-1).double()  # (S,)
    for k, j in zip(times[:-1], times[1:]):
        s, t = (torch.full((len(z), 1), i / T, dtype=torch.float64) for i in (j, k))
        rows = step_probs(method, denoiser, z, s, t).nan_to_num()  # (S, L, V)
        p = p @ torch.einsum("ai,aj,ak->aijk", *rows.unbind(1)).flatten(1)  # (S,)
    return p


def lawless(method):
    """Log-scores that depend on all there is and belong to no distribution."""
    def denoiser(z, t, at=None):
        place = torch.arange(z.shape[1])  # (L,)
        seen = 1.3 * z + 0.7 * z.roll(1, -1) + 2 * place + 3 * t.double()  # (B, L)
        logits = torch.sin(seen[..., None] + torch.arange(method.vocab_size))  # (B, L, V)
        return logits if at is None else logits[at]
    return denoiser
