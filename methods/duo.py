"""
Chapter 7. Duo (arXiv:2506.10892): uniform noise, learned from relaxed inputs at first.

Under uniform noise, z is the largest coordinate of a noisy one-hot vector w: (7.1) of
methods/uniform_gaussian.py. In the first part of training, the curriculum, the network gets
softmax(w / tau) in place of z. Where two coordinates nearly tie it sees both words, so hard cases
are easier, and gradients vary less. The loss is the bound of methods/udlm.py for z. At tau = 0 the
network gets z itself.

softmax(w / tau) over V words takes V Gaussians per token. At small tau only the largest few count,
and these can be drawn without the rest (arXiv:2602.21185): the largest of n independent uniforms is
U^(1/n), the next one is the largest of n - 1 below it, and so on.
"""
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from diffusion import stratified
from flags import UserError, flag
from methods.udlm import UDLM, jump_weight, weighted_bound
from methods.uniform_gaussian import GaussianUniform


def dense_relaxation(process, x, t, tau):
    """(7.1), all V coordinates. -> z (B, L), softmax(w / tau) (B, L, V); one-hot at tau = 0"""
    signal, noise = (process.gamma(t).mul(sign).sigmoid().sqrt() for sign in (-1, 1))  # (B, 1)
    a, s = signal[..., None], noise[..., None]  # (B, 1, 1) each
    eps = torch.randn(*x.shape, process.V, device=x.device)  # (B, L, V)
    w = a * F.one_hot(x, process.V) + s * eps  # (B, L, V)
    z = w.argmax(-1)  # (B, L)
    return z, (w / tau).softmax(-1) if tau else F.one_hot(z, process.V).float()


def sparse_relaxation(process, x, t, tau, k):
    """(7.1), the k largest coordinates of w. -> z (B, L), (ids, weights) (B, L, k) each

    The weights are softmax(w / tau) over all V words, so they sum to less than 1. z = x if and only
    if the clean coordinate is larger than all others. (In the public code x wins if it is among the
    k largest, which keeps up to twice as many words as alpha says.)
    """
    V, gamma = process.V, process.gamma(t).double()  # (B, 1)
    a, s = (-gamma).sigmoid().sqrt()[..., None], gamma.sigmoid().sqrt()[..., None]  # (B, 1, 1)
    u = torch.rand(*x.shape, k, dtype=torch.float64, device=x.device)  # (B, L, k)
    n = torch.arange(V - 1, V - 1 - k, -1, device=x.device)  # (k,)
    below = (u.clamp(min=1e-300).log() / n).cumsum(-1)  # (B, L, k) log of the largest uniforms
    others = -s * torch.special.ndtri(-torch.expm1(below))  # (B, L, k) largest wrong coordinates
    clean = torch.randn(*x.shape, 1, dtype=torch.float64, device=x.device)  # (B, L, 1)
    clean = a + s * clean  # (B, L, 1) coordinate of x
    ids = distinct(V - 1, k, x.shape, x.device)  # (B, L, k)
    ids = ids + (ids >= x[..., None])  # (B, L, k) any words but x
    z = torch.where(clean > others[..., :1], x[..., None], ids[..., :1])[..., 0]  # (B, L)
    if not tau:
        return z, (z[..., None], torch.ones(*z.shape, 1, device=z.device))
    among = clean > others[..., -1:]  # (B, L, 1) x takes the place of the last one
    last = torch.where(among, clean, others[..., -1:])  # (B, L, 1)
    last_id = torch.where(among, x[..., None], ids[..., -1:])  # (B, L, 1)
    top = torch.cat([others[..., :-1], last], -1)  # (B, L, k)
    ids = torch.cat([ids[..., :-1], last_id], -1)  # (B, L, k)
    return z, (ids, top_weights(top, clean, among, s, tau, V).float())


def top_weights(top, clean, among, s, tau, V):
    """softmax weights exp(w / tau) / Z of the coordinates `top` (B, L, k). -> (B, L, k)

    Z contains the expectation of the n coordinates that were not drawn. They are s N(0, 1) below c,
    the least of top, and E exp(y / tau) = exp(s^2 / 2 tau^2) Phi(c/s - s/tau) / Phi(c/s).
    """
    k, c = top.shape[-1], top.amin(-1, keepdim=True) / s  # (B, L, 1) in units of s
    log_n = torch.where(among, V - k, V - 1 - k).double().log()  # (B, L, 1)
    unseen = log_n + (s / tau) ** 2 / 2 + torch.special.log_ndtr(c - s / tau)  # (B, L, 1)
    unseen = unseen - torch.special.log_ndtr(c)  # (B, L, 1) log of what they add to Z
    rest = torch.where(among, -math.inf, clean / tau)  # (B, L, 1) x, if it is not in top
    log_Z = torch.cat([top / tau, unseen, rest], -1).logsumexp(-1, keepdim=True)  # (B, L, 1)
    return (top / tau - log_Z).exp()  # (B, L, k)


def distinct(n, k, shape, device):
    """k different ids below n at each position, without replacement. -> (*shape, k)"""
    ids = torch.empty(*shape, 0, dtype=torch.long, device=device)  # (*shape, 0)
    for i in range(k):
        new = torch.randint(n - i, (*shape, 1), device=device)  # (*shape, 1)
        for taken in ids.sort(-1).values.unbind(-1):
            new = new + (new >= taken[..., None])  # (*shape, 1) the new-th id that is not taken
        ids = torch.cat([ids, new], -1)  # (*shape, i + 1)
    return ids


@dataclass(eq=False)
class Duo(UDLM):
    """--method duo: udlm, with relaxed inputs in the first `curriculum` of training.

    Relaxed inputs hold all words for top_k = 0, else the top_k largest, with no (B, L, V) tensor.
    """
    curriculum: float = flag(0.5, "share of training on relaxed inputs", least=0, most=1,
                             fixed=True)
    tau: float = flag(0.001, "temperature of relaxed inputs; 0 shows the largest coordinate",
                      least=0, most=10, fixed=True)
    top_k: int = flag(2, "coordinates drawn of a relaxed input; 0 draws all of them", least=0,
                      fixed=True)
    public_layout = "duo"
    progress = 0.0  # the share of training that is done

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.top_k < self.n_tokens:
            raise UserError(f"--top_k {self.top_k} must be less than the {self.n_tokens} symbols "
                            "of the text; 0 draws them all")
        self.gaussian = GaussianUniform(self.n_tokens)

    def on_step(self, step, trainer):
        self.progress = step / trainer.config.max_iters

    def loss(self, denoiser, x, frozen=None):
        """First a surrogate, the bound from alpha = .95 to .05 on relaxed inputs; then the bound.

        -> (B, L) nats
        """
        if self.progress >= self.curriculum:
            return super().loss(denoiser, x, frozen)  # (B, L)
        t = stratified(len(x), x.device)  # (B, 1)
        z, soft = self.relax(x, t)  # (B, L), relaxed (B, L, V), or a pair (B, L, k)
        return self.relaxed_bound(denoiser, x, z, soft, t, frozen)  # (B, L)

    def relax(self, x, t):
        """-> z (B, L), and the relaxed input in its place"""
        if self.top_k:
            return sparse_relaxation(self.gaussian, x, t, self.tau, self.top_k)
        return dense_relaxation(self.gaussian, x, t, self.tau)

    def relaxed_bound(self, denoiser, x, z, soft, t, frozen=None):
        """The bound for z at the Gaussian's alpha, of a network that gets `soft`. -> (B, L) nats"""
        if frozen is not None:
            soft = show_given(soft, x, frozen)
        noise = 1 - self.gaussian.alpha(t)  # (B, 1)
        weight = jump_weight(self.gaussian, x, z, t)  # (B, L)
        return weighted_bound(self.gaussian, denoiser, soft, noise, x, z, t, weight, frozen)


def show_given(soft, x, frozen):
    """The relaxed input, where frozen tokens are shown as they are. -> as `soft`"""
    given = frozen[..., None]  # (B, L, 1)
    if isinstance(soft, tuple):
        ids, weights = soft  # (B, L, k) each
        zero = torch.zeros((), dtype=torch.long, device=x.device)  # ()
        first = F.one_hot(zero, ids.shape[-1])  # (k,)
        return torch.where(given, x[..., None], ids), torch.where(given, first, weights)
    return torch.where(given, F.one_hot(x, soft.shape[-1]).to(soft.dtype), soft)  # (B, L, V)
