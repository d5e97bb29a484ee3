"""
Chapter 21. What inserting and opening in parallel costs: the law of the sampler of (21.8).

In N steps from t_i to t_i+1 each token of a text x has two numbers: the step i in which its mask
is inserted, with r(i) = D(t_i) - D(t_i+1), and the later one in which that mask opens, by the coins
of (21.8). With all of them x is a path of the sampler, which has the probability q(path). Draw them
from r, the coins of both being the same, and

    log r(path | x)/q(path) = sum over steps, gaps j:  lam_j - k_j log lam_j + log k_j!
                              + sum over masks that open:  -log p(x_l | z)
                              + sum over tokens:  log r(i),   lam_j = g_j (1 - D(t_i+1)/D(t_i))
    q(x) = E_r q(path)/r(path | x),     KL(p || q) <= E_p E_r log p(x) r(path | x)/q(path)  (21.16)

Many short steps make it (21.5). The bound is the KL between two laws of paths: tokens of x that
were deleted and masked at random times, none of them both in one step, and those of the sampler.
"""
import torch
import torch.nn.functional as F

from diffusion import probabilities
from methods.base import to_float32
from methods.insertion import count_words, leave, told
from samplers.base import scatter_at


def draw_path(method, x, times):
    """When the tokens of x (B, L) are inserted and when they open, with the grid times (N + 1,).
    -> inserted, opens (B, L) numbers of steps; N: in the last call"""
    N, u = len(times) - 1, torch.rand(2, *x.shape, dtype=torch.float64)  # (2, B, L)
    up = times.flip(0)  # (N + 1,) from 0 to 1
    step_of = lambda t: N - torch.searchsorted(up, t.contiguous(), right=True)  # (B, L)
    inserted = step_of(method.process.time_of(u[0])).clamp(0, N - 1)  # (B, L)
    opens = step_of(u[1] * times[inserted + 1]).clamp(max=N - 1)  # (B, L)
    return inserted, torch.where(inserted == N - 1, N, opens)  # (B, L) each


@torch.no_grad()
def path_nats(method, denoiser, x, steps, sampler, to_probs=probabilities):
    """log r(path | x)/q(path) of (21.16) for a path that is drawn for each text x (B, L). -> (B,)
    nats

    Of a text without room for another token it is an upper bound: the sampler cuts off what exceeds
    the room, which makes such texts likelier. ValueError for other laws than that of (21.8).
    """
    if method.end_id is None or not sampler.draws_from_model:
        raise ValueError("(21.16) is the law of texts that end, whose masks open in random order")
    process, n, times = method.process, count_words(x, method.end_id), sampler.times(steps)
    word = torch.arange(x.shape[1]) < n  # (B, L)
    inserted, opens = draw_path(method, x, times)  # (B, L) each
    D = process.deleted(times)  # (N + 1,)
    nats = torch.where(word, (D[:-1] - D[1:])[inserted].log(), 0.0).sum(-1)  # (B,)
    for i in range(steps + 1):
        left = leave(x, n, inserted < i, None, process.fill)
        there = torch.arange(x.shape[1] + 1) < left.m  # (B, L + 1)
        when = F.pad(opens, (0, 1)).gather(-1, left.of)  # (B, L + 1)
        z = left.z.masked_fill(there & (when >= i), process.mask)  # (B, L + 1)
        opened = there & (when == i)  # (B, L + 1)
        gaps = left.open & (left.m < x.shape[1]) & (i < steps)  # (B, L + 1)
        if not (at := opened | gaps).any():
            continue
        logits = to_float32(denoiser(z, D[i].expand(len(x), 1), at=at,
                                     **told(denoiser, left.closed))).double()  # (N, V)
        p = to_probs(process.words(logits[opened[at]]))  # (n, n_tokens)
        words = F.pad(x, (0, 1)).gather(-1, left.of)[opened]  # (n,)
        nats -= scatter_at(opened, p.gather(-1, words[:, None])[:, 0].log()).sum(-1)  # (B,)
        if i == steps:
            break
        log_lam = scatter_at(at, logits[:, process.mask]) + (1 - D[i + 1] / D[i]).log()  # (B, ..)
        gap = (inserted < i).cumsum(-1)  # (B, L) which one a token is missing in
        new = (word & (inserted == i)).long()  # (B, L)
        k = torch.zeros_like(left.z).scatter_add(-1, gap, new).double()  # (B, L + 1)
        cost = log_lam.exp() - k * log_lam + torch.lgamma(k + 1)  # (B, L + 1)
        nats += torch.where(gaps, cost, 0.0).sum(-1)  # (B,)
    return nats
