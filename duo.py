"""
Duo (arXiv:2506.10892): the Gaussian under uniform noise, and the curriculum that it makes possible.

Write a token as a one-hot vector, add Gaussian noise, and read off the largest coordinate:

    w = a onehot(x) + s eps,   z = argmax(w),   a^2 = sigmoid(-gamma),   s^2 = sigmoid(gamma)                    (11)

Then z has the law of uniform noise, Cat(alpha x + (1 - alpha) / V): by symmetry all wrong words are equally likely.
How much of x is kept is the Diffusion Transformation Operator of gamma (minus the log of signal to noise):

    alpha = T(gamma) = (V p - 1) / (V - 1),   p = P(z = x) = int phi(u - mu) Phi(u)^(V-1) du,   mu = a / s      (12)

Curriculum: in the first part of training show the network softmax(w / tau) instead of z. Wherever two coordinates
nearly tie, both words shine through, so that hard cases are easier at first, and their gradients vary less; the loss
is the bound (2) of uniform.py for the hard z. At tau = 0 the input is z, and the loss is that of udlm on these draws.

softmax(w / tau) over V words needs V Gaussians a token. But at small tau only the largest few count, and those can be
drawn without the rest (2602.21185): of n independent uniforms the largest is U^(1/n), and the next ones go on like
that below it.
"""
import math

import torch
import torch.nn.functional as F

from data import BadInput
from diffusion import stratified
from uniform import UDLM, jump_weight, weighted_bound


class Operator:
    """T of (12), its derivative and its inverse for V words, in float64; its error is below 1e-12.

    The integrand is smooth and vanishes at both ends, where the trapezoid rule converges faster than any power of the
    spacing: some 500 nodes, with Phi(u)^(V-1) computed once, stand for every gamma.
    """
    LEAST, MOST = -7.0, 80.0                                 # T is 1, or 0, to 1e-16 outside, for V from 3 to 128,256

    def __init__(self, V):
        self.V, self.nodes = V, torch.arange(-10, 43, 1 / 16, dtype=torch.float64)                  # (n,)
        log_rest = (V - 1) * torch.special.log_ndtr(self.nodes)                                     # (n,) Phi^(V-1)
        self.rest = log_rest.exp() / 16 / math.sqrt(2 * math.pi)                                    # (n,) phi's factor
        self.on = {}                                         # device -> both there: a copy waits for the GPU

    def alpha(self, gamma):
        """T(gamma), in float64. -> same shape"""
        return self.integrals(gamma)[0]

    def dalpha(self, gamma):
        """dT / dgamma, in float64. -> same shape"""
        return self.integrals(gamma)[1]

    def integrals(self, gamma):
        mu = (-gamma.double().clamp(self.LEAST, self.MOST) / 2).exp()[..., None]                    # (..., 1)
        if mu.device not in self.on:
            self.on[mu.device] = self.nodes.to(mu.device), self.rest.to(mu.device)
        nodes, rest = self.on[mu.device]                                                            # (n,) each
        density = (-0.5 * (nodes - mu) ** 2).exp() * rest                                           # (..., n)
        p, dp = density.sum(-1), ((nodes - mu) * density).sum(-1)                                   # (...)
        return (self.V * p - 1) / (self.V - 1), self.V / (self.V - 1) * dp * -mu[..., 0] / 2        # (...)

    def gamma(self, alpha):
        """The inverse of T, by halving an interval 60 times. alpha (...) in (0, 1) -> same shape, float64"""
        alpha = torch.as_tensor(alpha, dtype=torch.float64)                                         # (...)
        low, high = torch.full_like(alpha, self.LEAST), torch.full_like(alpha, self.MOST)           # (...)
        for _ in range(60):
            middle = (low + high) / 2
            above = self.alpha(middle) > alpha               # T falls: go right
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        return (low + high) / 2


class GaussianUniform:
    """Uniform noise whose alpha is T of a gamma that grows linearly in time, from T = first to T = last.

    Only the ends depend on V, and they must: with 28 letters alpha falls from .95 to .05 for gamma between -2.7 and
    1.5, with 50,257 words between -3.6 and -1.9. A network is told 1 - alpha, the time of uniform.py at equal noise.
    """

    def __init__(self, n_tokens, first=0.95, last=0.05):
        self.n_tokens = self.V = n_tokens
        self.operator = Operator(n_tokens)
        self.ends = self.operator.gamma([first, last]).tolist()

    def gamma(self, t):
        return self.ends[0] + t * (self.ends[1] - self.ends[0])

    def alpha(self, t):
        return self.operator.alpha(self.gamma(t)).to(t.dtype)

    def dalpha(self, t):
        return (self.operator.dalpha(self.gamma(t)) * (self.ends[1] - self.ends[0])).to(t.dtype)

    def b(self, t, v):
        return (1 - self.alpha(t)) / self.V * torch.ones_like(v)

    def db(self, t, v):
        return -self.dalpha(t) / self.V * torch.ones_like(v)

    def draw_noise(self, t, z):
        return torch.randint_like(z, self.V)                                                        # (B, L)


def dense_relaxation(process, x, t, tau):
    """(11) as it stands. -> z (B, L), softmax(w / tau) (B, L, V); one-hot at tau = 0"""
    a, s = (process.gamma(t).mul(sign).sigmoid().sqrt()[..., None] for sign in (-1, 1))             # (B, 1, 1)
    w = a * F.one_hot(x, process.V) + s * torch.randn(*x.shape, process.V, device=x.device)         # (B, L, V)
    z = w.argmax(-1)                                                                                # (B, L)
    return z, (w / tau).softmax(-1) if tau else F.one_hot(z, process.V).float()


def sparse_relaxation(process, x, t, tau, k):
    """(11) drawn directly: the k largest coordinates of w, and their softmax weights among all V.
    -> z (B, L), (ids (B, L, k), weights (B, L, k)); the weights sum to 1 less what the V - k others have

    z = x exactly if the clean coordinate beats the largest of the others. (The public code lets it win as soon as it
    is among the k largest, and so keeps up to twice as many words as alpha says.)
    """
    V, gamma = process.V, process.gamma(t).double()                                                 # (B, 1)
    a, s = (-gamma).sigmoid().sqrt()[..., None], gamma.sigmoid().sqrt()[..., None]                  # (B, 1, 1)
    u = torch.rand(*x.shape, k, dtype=torch.float64, device=x.device)                               # (B, L, k)
    n = torch.arange(V - 1, V - 1 - k, -1, device=x.device)                                         # (k,)
    below = (u.clamp(min=1e-300).log() / n).cumsum(-1)                                              # (B, L, k) log v
    others = -s * torch.special.ndtri(-torch.expm1(below))                                          # (B, L, k) largest
    clean = a + s * torch.randn(*x.shape, 1, dtype=torch.float64, device=x.device)                  # (B, L, 1) first
    ids = distinct(V - 1, k, x.shape, x.device)                                                     # (B, L, k)
    ids = ids + (ids >= x[..., None])                                                               # (B, L, k) not x
    z = torch.where(clean > others[..., :1], x[..., None], ids[..., :1])[..., 0]                    # (B, L)
    if not tau:
        return z, (z[..., None], torch.ones(*z.shape, 1, device=z.device))
    among = clean > others[..., -1:]                                                                # (B, L, 1)
    top = torch.cat([others[..., :-1], torch.where(among, clean, others[..., -1:])], -1)            # (B, L, k)
    ids = torch.cat([ids[..., :-1], torch.where(among, x[..., None], ids[..., -1:])], -1)           # (B, L, k)
    return z, (ids, top_weights(top, clean, among, s, tau, V).float())


def top_weights(top, clean, among, s, tau, V):
    """exp(w / tau) / Z of the coordinates `top`, (B, L, k), with the unseen ones in Z by their expectation: n of them
    are s N(0, 1) below c, the least of top, and E exp(y / tau) = exp(s^2 / 2 tau^2) Phi(c/s - s/tau) / Phi(c/s).
    -> (B, L, k)
    """
    k, c = top.shape[-1], top.amin(-1, keepdim=True) / s                                            # (B, L, 1) in s
    unseen = torch.where(among, V - k, V - 1 - k).double().log()                                    # (B, L, 1)
    tail = unseen + (s / tau) ** 2 / 2 + torch.special.log_ndtr(c - s / tau) - torch.special.log_ndtr(c)
    rest = torch.where(among, -math.inf, clean / tau)                                               # (B, L, 1)
    return (top / tau - torch.cat([top / tau, tail, rest], -1).logsumexp(-1, keepdim=True)).exp()   # (B, L, k)


def distinct(n, k, shape, device):
    """k different ids below n at each place, each drawn from those that are left. -> (*shape, k)"""
    ids = torch.empty(*shape, 0, dtype=torch.long, device=device)
    for i in range(k):
        new = torch.randint(n - i, (*shape, 1), device=device)                                      # (*shape, 1)
        for taken in ids.sort(-1).values.unbind(-1):
            new = new + (new >= taken[..., None])            # the new-th of those that are left
        ids = torch.cat([ids, new], -1)
    return ids


class Duo(UDLM):
    """--method duo. udlm, but for the first `curriculum` of training, which is on relaxed inputs of temperature tau:
    of all words for top_k = 0, else of the top_k largest, without a (B, L, V) input. train.py sets `progress`."""

    progress = 0.0                                           # share of training that is done

    def __init__(self, n_tokens, curriculum=0.5, tau=1e-3, top_k=2):
        super().__init__(n_tokens)
        if not 0 <= top_k < n_tokens:
            raise BadInput(f"--top_k {top_k} must be less than the {n_tokens} symbols of the text; 0 draws them all")
        self.curriculum, self.tau, self.top_k = curriculum, tau, top_k
        self.gaussian = GaussianUniform(n_tokens)

    def loss(self, denoiser, x, frozen=None):
        """A surrogate at first: the bound from alpha = .95 to .05 only, on soft inputs; then udlm's. -> (B, L)"""
        if self.progress >= self.curriculum:
            return self.nelbo(denoiser, x, frozen)
        t = stratified(len(x), x.device)                                                            # (B, 1)
        z, soft = self.relax(x, t)                                                                  # (B, L), soft ids
        return self.relaxed_bound(denoiser, x, z, soft, t, frozen)                                  # (B, L)

    def relax(self, x, t):
        """-> z (B, L), and what the network is shown in its place"""
        if self.top_k:
            return sparse_relaxation(self.gaussian, x, t, self.tau, self.top_k)
        return dense_relaxation(self.gaussian, x, t, self.tau)

    def relaxed_bound(self, denoiser, x, z, soft, t, frozen=None):
        """The bound (2) for z at the Gaussian's alpha, of a network that saw `soft`. -> (B, L) nats"""
        if frozen is not None:
            soft = given_clean(soft, x, frozen)                                                     # soft ids
        noise = 1 - self.gaussian.alpha(t)                                                          # (B, 1)
        weight = jump_weight(self.gaussian, x, z, t)                                                # (B, L)
        return weighted_bound(self.gaussian, denoiser, soft, noise, x, z, t, weight, frozen)        # (B, L)


def given_clean(soft, x, frozen):
    """Frozen tokens shown as they are. soft: a sparse pair, or weights (B, L, V). -> the same"""
    if isinstance(soft, tuple):
        ids, weights = soft
        first = F.one_hot(torch.zeros((), dtype=torch.long, device=x.device), ids.shape[-1])        # (k,)
        return torch.where(frozen[..., None], x[..., None], ids), torch.where(frozen[..., None], first, weights)
    return torch.where(frozen[..., None], F.one_hot(x, soft.shape[-1]).to(soft.dtype), soft)        # (B, L, V)
