"""
Chapter 2. D3PM (arXiv:2107.03006): finitely many steps, and any transition matrices.

Time is k = 0 .. T, and the network reads t = k / T. In step k symbol v becomes w with probability
Q_k[v, w], for any matrix Q_k whose rows sum to 1. Distributions are rows:

    forward    q(z_k | x) = x Qbar_k,   Qbar_k = Q_1 Q_2 .. Q_k                                (2.1)
    reverse    p(z_j | z_k) ~ q(z_k | z_j) * (x_theta Qbar_j),   j < k                         (2.2)
    bound      -log p(x) <= sum_k E KL( q(z_k-1 | z_k, x) || p(z_k-1 | z_k) )                  (2.3)
                            + KL( q(z_T | x) || p(z_T) )

where q(z_k-1 | z_k, x) is (2.2) with x known. At k = 1 all of it is on x, and the KL is
-log p(x | z_1), which others call the reconstruction. There are four families of matrices:

    uniform, absorbing   Qbar_k = alpha I + 1 b of diffusion.py at t = k / T. (2.2) is (0.3), no
                         matrix is stored, and as T grows (2.3) tends to the bounds of udlm and
                         mdlm: from above with the exact denoiser, from either side with others
    gaussian             for ordered symbols such as gray levels; off the diagonal             (2.4)
                         Q_k[v, w] = g(v - w) / sum_n g(n),
                         g(n) = exp( -4 n^2 / ((V - 1)^2 beta_k) )
    nearest              Q_k = exp( (a_k - a_k-1) R ), where R jumps to nearest neighbors in   (2.5)
                         an embedding, and a_k keeps a share 1 - k / T of the information in x

Is x_theta p(x | z_k), as the paper has it, or the leave-one-out distribution? (2.2) multiplies it
by q(z_k | z_j), the token's own evidence. So the leave-one-out distribution minimizes (2.3), and
p(x | z_k) in its place would count evidence twice. If the evidence is put in first, by (0.4), then
(2.2) is the mixture of q(z_j | z_k, x) over p(x | z_k): the same model in other terms. Here x_theta
is always leave-one-out, in bound, sampler and oracle. (In the public code too, but for k = 1.) The
paper adds a cross-entropy of x_theta to help training, which pulls it towards p(x | z_k). Ours is
the cross-entropy of (0.4), so both parts of the loss have the same minimum.
"""
import math
from dataclasses import dataclass
from functools import partial, reduce

import torch
import torch.nn.functional as F

from diffusion import (
    Absorbing,
    Uniform,
    ancestral,
    categorical,
    changeable,
    corrupt,
    likelihood,
    probabilities,
    reverse,
    reverse_step,
    stratified,
)
from flags import UserError, flag
from methods.base import Method

MOST_ENTRIES = 2 ** 26  # of all Q_k: half a gigabyte, and as much for Qbar_k


class ClosedChain:
    """A chain with Qbar_k = alpha I + 1 b at t = k / T, of a process: no matrix is stored."""

    def __init__(self, process, T):
        self.process, self.T, self.n_tokens, self.V = process, T, process.n_tokens, process.V
        self.corrupt, self.likelihood = partial(corrupt, process), partial(likelihood, process)
        self.step = partial(reverse_step, process)

    def reverse(self, x_theta, z, s, t):
        x_theta = F.pad(x_theta, (0, self.V - self.n_tokens))  # (..., V)
        return reverse(self.process, x_theta, z, s, t)  # (..., V)

    def changeable(self, z, frozen=None):
        """Where there is something to predict: under masks, text stays text. -> (B, L)"""
        return changeable(self.process, z, frozen)  # (B, L)

    def to(self, device):
        return self

    def prior(self, shape, device):
        zeros = torch.zeros(shape, dtype=torch.long, device=device)  # (B, L)
        return self.process.draw_noise(1.0, zeros)  # (B, L)

    def prior_kl(self, x):
        """0, since alpha is 0 at k = T."""
        return torch.zeros(x.shape, dtype=torch.float64, device=x.device)  # (B, L)


class MatrixChain:
    """A chain of any matrices Q (T, V, V); the first n_tokens symbols are text. All in float64."""

    mask, text_stays, continuous = None, False, False

    def __init__(self, Q, n_tokens=None):
        self.process, self.T, self.V = self, len(Q), Q.shape[-1]
        self.n_tokens, self.Q = n_tokens or self.V, Q.double()  # (T, V, V)
        shape = self.T + 1, self.V, self.V
        self.cumulative = torch.empty(shape, dtype=torch.float64)  # (T + 1, V, V)
        self.cumulative[0] = torch.eye(self.V)  # (V, V)
        for k in range(self.T):
            self.cumulative[k + 1] = self.cumulative[k] @ self.Q[k]  # (V, V) (2.1)
        last = self.cumulative[-1]  # (V, V)
        self.final = last[:self.n_tokens].mean(0)  # (V,) p(z_T); uniform if columns sum to 1 too
        kl = torch.special.xlogy(last, last) - torch.special.xlogy(last, self.final)  # (V, V)
        self.left = kl.sum(-1)  # (V,) nats

    def at(self, t):
        """The step of each time: t = k / T -> k."""
        return (t * self.T).round().long()

    def to(self, device):
        self.Q, self.cumulative = self.Q.to(device), self.cumulative.to(device)
        self.final, self.left = self.final.to(device), self.left.to(device)
        return self

    def corrupt(self, x, t, frozen=None):
        """Draw z ~ q(z_k | x), (2.1). -> (B, L)"""
        z = categorical(self.cumulative[self.at(t), x])  # (B, L)
        return z if frozen is None else torch.where(frozen, x, z)  # (B, L)

    def likelihood(self, z, t):
        """q(z_k | x = v) for each text symbol v. -> (..., n_tokens)"""
        return self.cumulative.mT[self.at(t), z][..., :self.n_tokens]  # (..., n_tokens)

    def reverse(self, x_theta, z, s, t):
        """(2.2). x_theta (N, n_tokens); z, s, t (N,), t - s the same for all -> (N, V), of z_j

        A prediction that z rules out is left out, and z alone decides. (Temperature 0 makes some,
        together with narrow bells of (2.4).)
        """
        j, k = self.at(s), self.at(t)  # (N,) each
        ahead = torch.empty(len(z), self.V, dtype=torch.float64, device=z.device)  # (N, V)
        back = torch.empty_like(ahead)  # (N, V)
        for first in j.unique().tolist():  # a batch has a few times: no (N, V, V) tensor
            rows = j == first  # (N,)
            ahead[rows] = x_theta[rows].double() @ self.cumulative[first, :self.n_tokens]  # (., V)
            leap = reduce(torch.matmul, self.Q[first:int(k[rows][0])])  # (V, V)
            back[rows] = leap.T[z[rows]]  # (., V)
        joint = back * ahead  # (N, V)
        joint = torch.where(joint.sum(-1, keepdim=True) > 0, joint, back)  # (N, V)
        return joint / joint.sum(-1, keepdim=True)  # (N, V)

    @torch.no_grad()
    def step(self, denoiser, z, frozen, s, t, to_probs=probabilities):
        """One draw of (2.2) at all tokens that are not given; s, t (B, 1) -> (B, L)"""
        at = ~frozen  # (B, L)
        x_theta = to_probs(denoiser(z, t.float(), at=at)[:, :self.n_tokens])  # (N, n_tokens)
        p = self.reverse(x_theta, z[at], s.expand_as(z)[at], t.expand_as(z)[at])  # (N, V)
        return z.masked_scatter(at, categorical(p))  # (B, L)

    def changeable(self, z, frozen=None):
        return changeable(self, z, frozen)  # (B, L)

    def prior(self, shape, device):
        return categorical(self.final.expand(*shape, -1))  # (B, L)

    def prior_kl(self, x):
        return self.left[x]  # (B, L)


def check_matrix_memory(name, V, T):
    if T * V * V > MOST_ENTRIES:
        raise UserError(f"--transition {name} keeps {T:,} matrices of {V:,} x {V:,}, more than "
                        f"{MOST_ENTRIES:,} numbers: take fewer symbols (--tokenizer chars), fewer "
                        "--diffusion_steps, or uniform or absorbing, which keep none")


def gaussian_matrices(V, T):
    """(2.4). What would step over the edge stays, so that columns sum to 1 too. -> (T, V, V)

    As published, beta is 0.0001 to 0.02 in 1,000 steps; it sums to 10.05 for any T. A bell narrower
    than one level moves nothing, so for few levels and many steps the noise does not reach the
    uniform distribution. The last term of (2.3) counts that.
    """
    check_matrix_memory("gaussian", V, T)
    n = torch.arange(V, dtype=torch.float64)  # (V,)
    beta = torch.linspace(1e-4, 0.02, T, dtype=torch.float64)[:, None]  # (T, 1)
    beta = beta * 10.05 / beta.sum()  # (T, 1)
    bell = torch.exp(-4 * n ** 2 / (max(1, V - 1) ** 2 * beta))  # (T, V) g(n)
    bell = bell / (2 * bell.sum(-1, keepdim=True) - 1)  # (T, V) both sides
    Q = bell[:, (n[:, None] - n).abs().long()]  # (T, V, V)
    Q.diagonal(dim1=1, dim2=2).add_(1 - Q.sum(-1))
    return Q


def neighbor_rates(embedding, k=10):
    """R of (2.5): A = (G + G') / 2k for the graph G of the k nearest. embedding (V, D) -> (V, V)

    So columns sum to what rows do. One jump in 100 goes anywhere, since a graph may have islands.
    """
    V, k, points = len(embedding), min(k, len(embedding) - 1), embedding.double()  # (V, D)
    distance = torch.cdist(points, points).fill_diagonal_(math.inf)  # (V, V)
    nearest = distance.topk(k, largest=False).indices  # (V, k)
    G = torch.zeros_like(distance).scatter_(1, nearest, 1)  # (V, V)
    R = 0.99 * (G + G.T) / (2 * k) + 0.01 / V  # (V, V)
    return R - torch.diag(R.sum(-1))  # (V, V)


def nearest_matrices(embedding, T):
    """(2.5). Each step takes an equal share of log V, the information of z_0 in x. -> (T, V, V)

    The last step takes what is left: it goes anywhere. a_k is interpolated among 64 values, from
    about 256 rows. embedding (V, D)
    """
    V = len(embedding)
    check_matrix_memory("nearest", V, T)
    rate, U = torch.linalg.eigh(neighbor_rates(embedding))  # (V,), (V, V)
    after = lambda a, rows=U: ((rows * (a * rate).exp()) @ U.T).clamp(min=0)  # (., V) exp(a R)
    information = lambda p: 1 - torch.special.entr(p).sum(-1).mean() / math.log(V)  # () of log V
    log_a = torch.linspace(-9, math.log(30 / -rate[-2]), 64, dtype=torch.float64)  # (64,)
    some = U[::max(1, V // 256)]  # (., V)
    left = torch.stack([information(after(a, some)) for a in log_a.exp()])  # (64,) falls
    wanted = 1 - torch.arange(1, T, dtype=torch.float64) / T  # (T - 1,)
    i = torch.searchsorted(-left, -wanted).clamp(1, 63)  # (T - 1,)
    share = (left[i - 1] - wanted) / (left[i - 1] - left[i])  # (T - 1,)
    a = F.pad((log_a[i - 1] + share * (log_a[i] - log_a[i - 1])).exp(), (1, 0))  # (T,) a_0 .. a_T-1
    anywhere = torch.full((1, V, V), 1 / V, dtype=torch.float64)  # (1, V, V)
    return torch.cat([*(after(d)[None] for d in a.diff()), anywhere])  # (T, V, V)


def kl_term(chain, x_theta, x, z, s, t):
    """The k-th term of (2.3), t = k / T and s one step before. x_theta (N, n_tokens) -> (N,) nats

    In float64: T of these make up the bound, each a difference of order 1/T^2 between logarithms of
    order 1. Where q is zero, as off x at k = 1, p may be zero too. Then the term is 0 log(0/0) = 0,
    and so is its gradient.
    """
    q = chain.reverse(F.one_hot(x, chain.n_tokens).double(), z, s, t)  # (N, V)
    p = chain.reverse(x_theta.double(), z, s, t)  # (N, V)
    return (torch.special.xlogy(q, q) - q * p.masked_fill(q == 0, 1.0).log()).sum(-1)  # (N,)


@dataclass(eq=False)
class D3PM(Method):
    """--method d3pm. `matrices` (T, V, V), given in code, are a chain of any other kind."""
    also_called = ("d3pm_absorbing", "d3pm_uniform", "d3pm_gaussian", "d3pm_nearest")
    transition: str = flag("absorbing", "what noise does",
                           ["absorbing", "uniform", "gaussian", "nearest"], fixed=True)
    diffusion_steps: int = flag(128, "steps between text and noise", least=1, most=100_000,
                                fixed=True)
    embedding: str = flag("", "nearest: the folder of a checkpoint whose input embeddings say what "
                          "is near", fixed=True)
    aux: float = flag(0.01, "weight of a cross-entropy that is added to the bound", least=0)
    matrices: object = None
    uses_time, fixed_positions = True, False
    samplers = ("ancestral",)
    near = None  # (V, D) the embedding, when it has been read

    def __post_init__(self):
        T, processes = self.diffusion_steps, {"absorbing": Absorbing, "uniform": Uniform}
        if self.matrices is not None:
            self.use(MatrixChain(self.matrices, self.n_tokens))
        elif self.transition in processes:
            self.use(ClosedChain(processes[self.transition](self.n_tokens), T))
        elif self.transition == "gaussian":
            self.use(MatrixChain(gaussian_matrices(self.n_tokens, T)))
        else:  # the matrices of nearest need the embedding
            self.vocab_size, self.max_steps = self.n_tokens, T

    def use(self, chain):
        self.chain, self.process, self.max_steps = chain, chain.process, chain.T
        self.vocab_size, self.uses_time = chain.V, chain.V == self.n_tokens  # masks show the time

    # ---- the embedding of nearest

    def on_start(self, read_model):
        if self.transition != "nearest":
            return
        if not self.embedding:
            raise UserError("--transition nearest needs --embedding FOLDER, a checkpoint on the "
                            "same text: its input embeddings say which symbols are near each other")
        embed = read_model("--embedding", self.embedding).denoiser.embed.detach()  # (V, D)
        self.load_extra_state({"embedding": embed[:self.n_tokens]})

    def extra_state(self):
        return {} if self.near is None else {"embedding": self.near}

    def load_extra_state(self, state):
        if self.transition == "nearest":
            self.near = state["embedding"].cpu()  # (V, D)
            self.use(MatrixChain(nearest_matrices(self.near, self.diffusion_steps)))

    # ---- the method

    def likelihood(self, z, t):
        return self.chain.likelihood(z, t)  # (..., n_tokens)

    @property
    def classifier_process(self):
        return self.process if self.process.continuous else None

    def draw(self, denoiser, x, frozen):
        """One k for each text, stratified in 1 .. T. -> (B, L) nats each: T times the k-th term of
        (2.3), and the cross-entropy of (0.4)"""
        chain, T = self.chain, self.chain.T
        k = (stratified(len(x), x.device).double() * T).ceil().clamp(1, T)  # (B, 1)
        s, t = (k - 1) / T, k / T  # (B, 1) each
        z = chain.corrupt(x, t, frozen)  # (B, L)
        at = chain.changeable(z, frozen)  # (B, L)
        logits = denoiser(z, t.float(), at=at)[:, :self.n_tokens]  # (N, n_tokens)
        x_theta = logits.double().softmax(-1)  # (N, n_tokens)
        x_at, z_at, s, t = x[at], z[at], s.expand_as(z)[at], t.expand_as(z)[at]  # (N,) each
        p = x_theta * chain.likelihood(z_at, t)  # (N, n_tokens) (0.4)
        ce = p.sum(-1).log() - p.gather(-1, x_at[:, None])[:, 0].log()  # (N,)
        terms = T * kl_term(chain, x_theta, x_at, z_at, s, t)  # (N,)
        zeros = torch.zeros(x.shape, dtype=torch.float64, device=x.device)  # (B, L)
        return zeros.masked_scatter(at, terms), zeros.masked_scatter(at, ce)  # (B, L) each

    def bound_and_ce(self, denoiser, x, frozen):
        """One draw of (2.3), its last term in full, and the cross-entropy. -> (B, L) nats each"""
        self.chain.to(x.device)
        terms, ce = self.draw(denoiser, x, frozen)  # (B, L) each
        prior = self.chain.prior_kl(x)  # (B, L)
        return terms + (prior if frozen is None else prior.masked_fill(frozen, 0.0)), ce

    def nelbo(self, denoiser, x, frozen=None):
        return self.bound_and_ce(denoiser, x, frozen)[0]  # (B, L) nats

    def loss(self, denoiser, x, frozen=None):
        """The bound, plus aux times the cross-entropy, a surrogate for aux > 0. -> (B, L) nats"""
        bound, ce = self.bound_and_ce(denoiser, x, frozen)  # (B, L) each
        return bound + self.aux * ce  # (B, L)

    def prior(self, shape, device="cpu"):
        return self.chain.to(device).prior(shape, device)  # (B, L)

    def sample(self, denoiser, z, frozen, steps, sampler=ancestral, to_probs=probabilities,
               window=None, end=None):
        """From noise to text; yields z after each step.

        Fewer steps than T leap over some: they end at the multiples of 1/T next to equal steps, so
        leaps differ by one where `steps` does not divide T. More steps than T are T.
        """
        chain, n = self.chain.to(z.device), min(steps, self.max_steps)
        guided = sampler.step is not reverse_step
        step = partial(sampler.step, self.process) if guided else chain.step
        times = torch.linspace(chain.T, 0, n + 1, dtype=torch.float64, device=z.device)  # (n + 1,)
        times = times.round() / chain.T  # (n + 1,)
        for t, s in zip(times[:-1], times[1:]):
            s, t = s.expand(len(z), 1), t.expand(len(z), 1)  # (B, 1) each
            z = step(denoiser, z, frozen, s, t, to_probs)  # (B, L)
            yield z
