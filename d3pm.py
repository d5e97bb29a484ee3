"""
D3PM (arXiv:2107.03006): finitely many steps, and any matrix of jumps. The slow chapter, which checks the others.

Time is k = 0 .. T; the network is told t = k / T. In step k symbol v becomes w with probability Q_k[v, w], and nothing
more is asked of Q_k. Laws are rows, so that

    forward    q(z_k | x) = x Qbar_k,   Qbar_k = Q_1 Q_2 .. Q_k                                                  (26)
    reverse    p(z_j | z_k) ~ q(z_k | z_j) * (x_theta Qbar_j),   j < k                                           (27)
    bound      -log p(x) <= sum_k E KL( q(z_k-1 | z_k, x) || p(z_k-1 | z_k) ) + KL( q(z_T | x) || p(z_T) )       (28)

where q(z_k-1 | z_k, x) is (27) with x known. At k = 1 it is all on x, and the KL is -log p(x | z_1): what others call
the reconstruction. Four families of matrices come with it:

    uniform, absorbing   Qbar_k = alpha I + 1 b of uniform.py and masked.py at t = k / T; (27) is (3), no matrix is
                         kept, and as T grows (28) falls to the bounds of udlm and mdlm
    gaussian             for symbols in an order, such as grey levels: off the diagonal                          (29)
                         Q_k[v, w] = g(v - w) / sum_n g(n),   g(n) = exp( -4 n^2 / ((V - 1)^2 beta_k) )
    nearest              Q_k = exp( (a_k - a_k-1) R ), where R jumps to the nearest neighbours in an embedding,  (30)
                         and a_k leaves a share 1 - k / T of the information in x

Does x_theta guess p(x | z_k), as the paper writes it, or the leave-one-out law? (27) multiplies it by q(z_k | z_j),
the token's own evidence. So the leave-one-out law minimises (28), and p(x | z_k) in its place would count evidence
twice. Put the evidence in first, by (4), and (27) is the mixture of q(z_j | z_k, x) over p(x | z_k): one model, in two
ways of writing. Here x_theta is leave-one-out in all: bound, sampler, oracle. (So it is in the public code, except at
k = 1, where it is p(x | z_1) itself.) To help training the paper adds lambda times a cross-entropy, which for x_theta
would pull towards p(x | z_k); ours is that of (4), so that both parts of the loss have one minimiser.
"""
import math
from functools import partial, reduce

import torch
import torch.nn.functional as F

from data import BadInput
from diffusion import categorical, corrupt, likelihood, probabilities, reverse, step, stratified
from masked import Absorbing
from uniform import Uniform

MOST = 2 ** 26                                           # entries of all Q_k: half a gigabyte, and as much for Qbar_k


class Closed:
    """A chain whose Qbar_k is alpha I + 1 b at t = k / T, for a process of the other chapters: nothing is stored."""

    def __init__(self, process):
        self.process, self.n_tokens, self.V = process, process.n_tokens, process.V
        self.corrupt, self.likelihood, self.step = (partial(f, process) for f in (corrupt, likelihood, step))

    def reverse(self, x_theta, z, s, t):
        return reverse(self.process, F.pad(x_theta, (0, self.V - self.n_tokens)), z, s, t)          # (..., V)

    def open(self, z):
        """Where there is something to guess. Under masks text stays text: (27) leaves no choice, whatever x_theta."""
        return z == self.process.mask if self.V > self.n_tokens else torch.ones_like(z, dtype=torch.bool)   # (B, L)

    def to(self, device):
        return self

    def prior(self, shape, device):
        return self.process.draw_noise(1.0, torch.zeros(shape, dtype=torch.long, device=device))    # (B, L)

    def prior_kl(self, x):
        """alpha is 0 at k = T: nothing of x is left."""
        return torch.zeros(x.shape, dtype=torch.float64, device=x.device)                           # (B, L)


class Matrices:
    """A chain of any matrices Q (T, V, V), rows that sum to 1; the first n_tokens symbols are text. All in float64."""

    def __init__(self, Q, n_tokens=None):
        self.T, self.V = len(Q), Q.shape[-1]
        self.n_tokens, self.Q = n_tokens or self.V, Q.double()                                      # (T, V, V)
        self.cumulative = torch.empty(self.T + 1, self.V, self.V, dtype=torch.float64)              # (T + 1, V, V)
        self.cumulative[0] = torch.eye(self.V)
        for k in range(self.T):
            self.cumulative[k + 1] = self.cumulative[k] @ self.Q[k]                                 # (V, V) eq. (26)
        last = self.cumulative[-1]                                                                  # (V, V)
        self.final = last[:self.n_tokens].mean(0)        # (V,) p(z_T): uniform where rows and columns of Q_k sum to 1
        self.left = (torch.special.xlogy(last, last) - torch.special.xlogy(last, self.final)).sum(-1)  # (V,) nats

    def at(self, t):
        """The step of each time: t = k / T -> k."""
        return (t * self.T).round().long()

    def to(self, device):
        for name in ("Q", "cumulative", "final", "left"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    def corrupt(self, x, t, frozen=None):
        """Draw z ~ q(z_k | x), eq. (26). -> (B, L)"""
        z = categorical(self.cumulative[self.at(t), x])                                             # (B, L)
        return z if frozen is None else torch.where(frozen, x, z)                                   # (B, L)

    def likelihood(self, z, t):
        """q(z_k | x = v) for every text symbol v. -> (..., n_tokens)"""
        return self.cumulative.mT[self.at(t), z][..., :self.n_tokens]                               # (..., n_tokens)

    def reverse(self, x_theta, z, s, t):
        """Eq. (27). x_theta (N, n_tokens), z, s, t (N,), and t - s one number. -> (N, V) probabilities of z_j

        A guess that z rules out, as temperature 0 may make one for narrow bells, is left out: z alone decides then.
        """
        j, k, ahead = self.at(s), self.at(t), torch.empty(len(z), self.V, dtype=torch.float64, device=z.device)
        back = torch.empty_like(ahead)                                                              # (N, V)
        for first in j.unique().tolist():                    # a text has one time, a batch a few: no (N, V, V) tensor
            rows = j == first                                                                       # (N,)
            ahead[rows] = x_theta[rows].double() @ self.cumulative[first, :self.n_tokens]           # (., V)
            leap = reduce(torch.matmul, self.Q[first:int(k[rows][0])])                              # (V, V)
            back[rows] = leap.T[z[rows]]                                                            # (., V)
        joint = back * ahead                                                                        # (N, V)
        joint = torch.where(joint.sum(-1, keepdim=True) > 0, joint, back)                           # (N, V)
        return joint / joint.sum(-1, keepdim=True)                                                  # (N, V)

    @torch.no_grad()
    def step(self, denoiser, z, frozen, s, t, law=probabilities):
        """One draw of (27) at every token that is not given; s and t (B, 1) of j / T and k / T. -> (B, L)"""
        at = ~frozen                                                                                # (B, L)
        x_theta = law(denoiser(z, t.float(), at=at)[:, :self.n_tokens])                             # (N, n_tokens)
        p = self.reverse(x_theta, z[at], s.expand_as(z)[at], t.expand_as(z)[at])                    # (N, V)
        return z.masked_scatter(at, categorical(p))                                                 # (B, L)

    def open(self, z):
        return torch.ones_like(z, dtype=torch.bool)                                                 # (B, L)

    def prior(self, shape, device):
        return categorical(self.final.expand(*shape, -1))                                           # (B, L)

    def prior_kl(self, x):
        return self.left[x]                                                                         # (B, L)


def room(name, V, T):
    if T * V * V > MOST:
        raise BadInput(f"--transition {name} keeps {T:,} matrices of {V:,} x {V:,}, more than {MOST:,} numbers: take "
                       "fewer symbols (--tokenizer chars), fewer --diffusion_steps, or uniform or absorbing, which "
                       "keep none")


def gaussian(V, T):
    """Eq. (29) with beta from 0.0001 to 0.02 in 1,000 steps, as published, and 10.05 in all for any T. What would
    step over the edge stays, which makes rows and columns sum to 1. -> (T, V, V)

    A bell narrower than one level moves nothing: for few levels and many steps the noise falls short of uniform, which
    the last term of (28) counts.
    """
    room("gaussian", V, T)
    n = torch.arange(V, dtype=torch.float64)                                                        # (V,)
    beta = torch.linspace(1e-4, 0.02, T, dtype=torch.float64)[:, None]                              # (T, 1)
    beta = beta * 10.05 / beta.sum()                                                                # (T, 1)
    bell = torch.exp(-4 * n ** 2 / (max(1, V - 1) ** 2 * beta))                                     # (T, V) g(n)
    bell = bell / (2 * bell.sum(-1, keepdim=True) - 1)                                              # (T, V) both sides
    Q = bell[:, (n[:, None] - n).abs().long()]                                                      # (T, V, V)
    Q.diagonal(dim1=1, dim2=2).add_(1 - Q.sum(-1))
    return Q


def neighbors(embedding, k=10):
    """R of (30), the rates of jumping: A = (G + G') / 2k for the graph G of the k nearest, so that columns sum to what
    rows do. A hundredth of all jumps goes anywhere: a graph may fall into islands. embedding (V, D) -> (V, V)"""
    V, k = len(embedding), min(k, len(embedding) - 1)
    distance = torch.cdist(embedding.double(), embedding.double()).fill_diagonal_(math.inf)         # (V, V)
    G = torch.zeros_like(distance).scatter_(1, distance.topk(k, largest=False).indices, 1)          # (V, V)
    R = 0.99 * (G + G.T) / (2 * k) + 0.01 / V                                                       # (V, V)
    return R - torch.diag(R.sum(-1))                                                                # (V, V)


def nearest(embedding, T):
    """Eq. (30). Every step takes an equal share of the information log V that z_k has about x, the last one what is
    left: it goes anywhere. a_k is looked up among 64 values, on 256 rows or so. embedding (V, D) -> (T, V, V)"""
    V = len(embedding)
    room("nearest", V, T)
    rate, U = torch.linalg.eigh(neighbors(embedding))                                               # (V,), (V, V)
    after = lambda a, rows=U: ((rows * (a * rate).exp()) @ U.T).clamp(min=0)                        # (V, V) exp(a R)
    information = lambda p: 1 - torch.special.entr(p).sum(-1).mean() / math.log(V)                  # () of log V
    log_a = torch.linspace(-9, math.log(30 / -rate[-2]), 64, dtype=torch.float64)                   # (64,)
    left = torch.stack([information(after(a, U[::max(1, V // 256)])) for a in log_a.exp()])         # (64,)
    wanted = 1 - torch.arange(1, T, dtype=torch.float64) / T                                        # (T - 1,)
    i = torch.searchsorted(-left, -wanted).clamp(1, 63)                                             # (T - 1,) falls
    share = (left[i - 1] - wanted) / (left[i - 1] - left[i])                                        # (T - 1,)
    a = F.pad((log_a[i - 1] + share * (log_a[i] - log_a[i - 1])).exp(), (1, 0))                     # (T,) a_0 .. a_T-1
    anywhere = torch.full((1, V, V), 1 / V, dtype=torch.float64)                                    # (1, V, V)
    return torch.cat([*(after(d)[None] for d in a.diff()), anywhere])                               # (T, V, V)


def kl(chain, x_theta, x, z, s, t):
    """The k-th term of (28), t = k / T and s one step before. x_theta (N, n_tokens), the others (N,) -> (N,) nats

    In float64: T of these make up the bound, each a difference of order 1/T^2 between logarithms of order 1. Where q
    is zero, as off x at k = 1, p may be zero too: 0 log (0/0) is 0, in the gradient as well.
    """
    q = chain.reverse(F.one_hot(x, chain.n_tokens).double(), z, s, t)                               # (N, V)
    p = chain.reverse(x_theta.double(), z, s, t)                                                    # (N, V)
    return (torch.special.xlogy(q, q) - q * p.masked_fill(q == 0, 1.0).log()).sum(-1)               # (N,)


class D3PM:
    """--method d3pm. transition: a name above, or any matrices (T, V, V); embedding (V, D) for nearest."""

    mask_mod = None

    def __init__(self, n_tokens, diffusion_steps=128, transition="absorbing", aux=0.01, embedding=None):
        self.T, self.aux, self.n_tokens = diffusion_steps, aux, n_tokens
        self.kept = {}                                       # what a checkpoint must hold besides flags and weights
        if transition in ("absorbing", "uniform"):
            self.chain = Closed({"absorbing": Absorbing, "uniform": Uniform}[transition](n_tokens))
        elif transition == "gaussian":
            self.chain = Matrices(gaussian(n_tokens, self.T))
        elif transition == "nearest":
            self.chain = Matrices(nearest(self.checked(embedding), self.T))
        else:
            self.chain, self.T = Matrices(transition, n_tokens), len(transition)
        self.process = getattr(self.chain, "process", self.chain)
        self.likelihood, self.vocab_size = self.chain.likelihood, self.chain.V
        self.uses_time = self.vocab_size == n_tokens         # masks tell the time themselves

    def checked(self, embedding):
        if embedding is None:
            raise BadInput("--transition nearest needs --embedding FOLDER, a checkpoint on the same text: its input "
                           "embeddings say which symbols are near each other")
        self.kept = {"embedding": embedding.cpu()}
        return self.kept["embedding"]

    def draw(self, denoiser, x, frozen):
        """One k for each text, one in each stratum of 1 .. T. -> (B, L) nats each: T times the k-th term of (28), and
        the cross-entropy of (4)"""
        k = (stratified(len(x), x.device).double() * self.T).ceil().clamp(1, self.T)                # (B, 1)
        s, t = (k - 1) / self.T, k / self.T                                                         # (B, 1)
        z = self.chain.corrupt(x, t, frozen)                                                        # (B, L)
        at = self.chain.open(z) if frozen is None else self.chain.open(z) & ~frozen                 # (B, L)
        x_theta = denoiser(z, t.float(), at=at)[:, :self.n_tokens].double().softmax(-1)             # (N, n_tokens)
        x_at, z_at, s, t = x[at], z[at], s.expand_as(z)[at], t.expand_as(z)[at]                     # (N,) each
        guess = x_theta * self.chain.likelihood(z_at, t)                                            # (N, n) eq. (4)
        ce = guess.sum(-1).log() - guess.gather(-1, x_at[:, None])[:, 0].log()                      # (N,)
        nats = torch.zeros(x.shape, dtype=torch.float64, device=x.device)                           # (B, L)
        terms = self.T * kl(self.chain, x_theta, x_at, z_at, s, t)                                  # (N,)
        return nats.masked_scatter(at, terms), nats.masked_scatter(at, ce)

    def nelbo(self, denoiser, x, frozen=None):
        """One draw of (28), its last term in full. -> (B, L) nats"""
        return self.scored(denoiser, x, frozen)[0]

    def loss(self, denoiser, x, frozen=None):
        """(28) and aux times a cross-entropy, which is no part of the bound. -> (B, L) nats"""
        bound, ce = self.scored(denoiser, x, frozen)
        return bound + self.aux * ce                                                                # (B, L)

    def scored(self, denoiser, x, frozen):
        self.chain.to(x.device)
        terms, ce = self.draw(denoiser, x, frozen)
        prior = self.chain.prior_kl(x)                                                              # (B, L)
        return terms + (prior if frozen is None else prior.masked_fill(frozen, 0.0)), ce

    def prior(self, shape, device="cpu"):
        return self.chain.to(device).prior(shape, device)                                           # (B, L)

    def sample(self, denoiser, z, frozen, steps, sampler=None, law=probabilities):
        """From noise to text; yields z after each step. Fewer steps than T leap over some: they end at the multiples
        of 1/T next to even ones, so leaps differ by one step where `steps` does not divide T. More than T are T."""
        chain, n = self.chain.to(z.device), min(steps, self.T)
        guided = getattr(sampler, "keywords", {}).get("step")            # guidance.py has a step in place of ours
        step = partial(guided, self.process) if guided else chain.step
        times = torch.linspace(self.T, 0, n + 1, dtype=torch.float64, device=z.device).round() / self.T   # (n + 1,)
        for t, s in zip(times[:-1], times[1:]):
            z = step(denoiser, z, frozen, s.expand(len(z), 1), t.expand(len(z), 1), law)            # (B, L)
            yield z
