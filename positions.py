"""
Select, then score: the head and the loss only at the positions that count.

At V = 50,000 the head and the softmax behind it are most of a step. A masked model is scored at its masks alone, and
what is given is never scored; so the network returns the rows of those positions, and no (B, L, V) exists.

    exact    the positions `at` (B, L) themselves. How many there are is known when they are drawn: a GPU would wait
             for that number, and a compiled network would be compiled again for each.
    static   always the same number K of them, some of which count nothing. In a batch of B stratified times, whose
             expected share of masks is `share`, their number is below

                 K = share B L + L + 6 sqrt(B L / 6)                                                        `capacity`

             but for once in 10^9 steps: a stratum is at most L off, and then each token tosses its own coin. If more
             are drawn nevertheless, K of them are chosen by chance, and weigh more by as much: the mean is the same.

The fast forms in kernels.py, where that file is there, never hold the (N, V) of one batch either. They need a promise:
gradients to the head are made along with the loss, so how the loss will be averaged has to be known before it is. A
method that gives its `weight` promises the mean over texts of nats per token that is not frozen (learner.per_token).
A broken promise makes the gradients nan, and is not overlooked. No weight, no promise: the plain form, which serves.
"""
from functools import partial

import torch
import torch.nn.functional as F

try:
    import kernels
except ImportError:                                          # it is optional
    kernels = None


def widened(logits):
    """Losses are sums over V symbols: bf16 would be too coarse for them."""
    return logits if logits.dtype == torch.float64 else logits.float()


def cross_entropy(logits, x):
    """-log x_theta(x). logits (N, V), x (N,) -> (N,) nats"""
    return F.cross_entropy(widened(logits), x, reduction="none")                                    # (N,)


def capacity(B, L, share):
    """How many positions a static selection has room for."""
    return B * L if share >= 1 else min(B * L, int(share * B * L + L + 6 * (B * L / 6) ** 0.5))


def select(at, share):
    """The static selection from `at` (B, L). -> numbers (K,) in the flattened text, all different, worth (K,)"""
    if share >= 1:
        return torch.arange(at.numel(), device=at.device), at.flatten().float()                     # (B L,) each
    order = (at.flatten() + torch.rand(at.numel(), device=at.device)).argsort(descending=True)      # (B L,)
    numbers = order[:capacity(*at.shape, share)]                                                    # (K,)
    return numbers, at.flatten()[numbers] * (at.sum() / len(numbers)).clamp(min=1)                  # (K,), (K,)


def nats_at(denoiser, z, t, at, rule, facts, n_tokens, weight=None, frozen=None, share=1.0):
    """weight * rule(logits (N, n_tokens), *facts (N,)) at the positions `at` (B, L), and 0 elsewhere. -> (B, L) nats

    facts, weight: what can be expanded to (B, L)
    """
    static = getattr(denoiser, "static", False)
    chosen, worth = select(at, share) if static else (at, None)                                     # (K,) or (B, L)
    pick = lambda a: a.expand(at.shape).flatten()[chosen] if static else a.expand(at.shape)[at]     # (N,)
    facts = [pick(a) for a in facts]
    number = weight is not None and not torch.is_tensor(weight)          # a number that is copied waits for the GPU
    weight = torch.full((), weight, device=at.device) if number else weight                         # ()
    scale = None if weight is None else pick(weight)                                                # (N,)
    if static:                                               # what counts nothing may weigh inf or nan: 0/0 near t = 0
        scale = worth if scale is None else torch.where(worth > 0, scale * worth, 0)                # (N,)
    if fast := fast_form(denoiser, rule, promised=weight is not None):
        free = None if frozen is None else pick(1 / (~frozen).sum(-1, keepdim=True).clamp(min=1))   # (N,)
        nats = denoiser(z, t, at=chosen, head=partial(fast, n_tokens=n_tokens, scale=scale, free=free, facts=facts))
    else:
        nats = rule(denoiser(z, t, at=chosen)[:, :n_tokens], *facts)                                # (N,)
        nats = nats if scale is None else nats * scale.to(nats.dtype)                               # (N,)
    nothing = torch.zeros(at.shape, dtype=nats.dtype, device=at.device)                             # (B, L)
    return nothing.flatten().scatter(0, chosen, nats).view(at.shape) if static else nothing.masked_scatter(at, nats)


def fast_form(denoiser, rule, promised):
    """What can stand in for the head and this rule, kernels.head_loss, or None."""
    if kernels is None or not getattr(denoiser, "fuses", False) or torch.is_grad_enabled() and not promised:
        return None
    return kernels.FAST.get(rule.__name__)


def moved(at, L, width):
    """Positions of texts (B, L) as those of longer texts (B, width) that begin with them. -> as `at` came"""
    return F.pad(at, (0, width - L)) if at.dtype == torch.bool else at // L * width + at % L


def compiled(network, mode):
    """The network by torch.compile in the mode of --compile, or as it is."""
    return torch.compile(network, mode=None if mode in (True, "default") else mode) if mode else network


def like(denoiser, call):
    """`call`, a denoiser made from another one, with what that one says that it can do."""
    call.fuses, call.static = getattr(denoiser, "fuses", False), getattr(denoiser, "static", False)
    return call


class Bucketed:
    """A compiled network for samplers. They ask at any number of positions; it is asked at the next power of two, the
    last ones for nothing, so that few shapes occur, each compiled once. Less than half of the rows are wasted."""

    def __init__(self, network, mode):
        self.network, self.compiled, self.graphs = network, compiled(network, mode), mode == "reduce-overhead"

    def __call__(self, z, t, at=None, **layout):
        if at is None or layout.keys() - {"label"}:
            return self.network(z, t, at=at, **layout)
        numbers = at.flatten().nonzero()[:, 0]                                                      # (N,)
        room = min(at.numel(), 1 << max(0, len(numbers) - 1).bit_length())
        if self.graphs:
            torch.compiler.cudagraph_mark_step_begin()       # the logits of the last call are not needed any more
        return self.compiled(z, t, at=F.pad(numbers, (0, room - len(numbers))), **layout)[:len(numbers)]    # (N, V)
