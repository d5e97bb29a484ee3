"""
Masked diffusion: MDLM (arXiv:2406.07524) = MD4 (2406.04329) = RADD (2406.03736) = LLaDA (2502.09992).

Noise turns tokens into one extra symbol, the mask m, and into nothing else. With alpha_t = 1 - t, (1)-(3) of
diffusion.py become

    forward    z = x with probability alpha_t, else m                                                            (1)
    bound      l = [z = m] -alpha'/(1 - alpha) (-log x_theta(x)) = [z = m] (1/t) cross-entropy                   (2)
    reverse    a mask opens with probability (alpha_s - alpha_t) / (1 - alpha_t), to a draw from x_theta;        (3)
               text stays text

A mask says nothing about its own position, so here the leave-one-out law and p(x | z) are the same, and the network
needs no clock: which tokens are masked tells all there is to know (RADD).

    any order  -log p(x) <= E_k E_z sum_l [z_l = m] (L/k) cross-entropy,  k ~ Uniform{1..L} masks anywhere       (6)

is (2) with the number of masks drawn first: the same mean, but weights of at most L, where 1/t has no limit and the
variance is infinite.
"""
import torch

from diffusion import ancestral, corrupt, draw_at, probabilities, stratified
from positions import cross_entropy, nats_at


class Absorbing:
    """The process of (1). Text has the ids 0 .. n_tokens - 1, the mask is n_tokens. alpha falls linearly, to eps."""

    def __init__(self, n_tokens, eps=0.0):
        self.n_tokens, self.mask, self.V, self.eps = n_tokens, n_tokens, n_tokens + 1, eps

    def alpha(self, t):
        return 1 - (1 - self.eps) * t

    def dalpha(self, t):
        return torch.full_like(t, self.eps - 1)

    def b(self, t, v):
        return (1 - self.eps) * t * (v == self.mask)     # 1 - alpha, without the digits that 1 - (1 - t) would lose

    def db(self, t, v):
        return -self.dalpha(t) * (v == self.mask)

    def draw_noise(self, t, z):
        return torch.full_like(z, self.mask)                                                        # (B, L)


def masked_weight(process, t):
    """What a cross-entropy counts in (2): 1/t for the linear alpha. -> (B, 1|L)"""
    # exercise 4: the weight of a mask, eq. (2), 1 line
    return -process.dalpha(t) / process.b(t, process.mask)                                          # (B, 1|L)
    # end


def masked_bound(process, cross_entropy, z, t):
    """Eq. (2) from -log x_theta(x), (B, L) nats, whatever it holds where nothing is masked. -> (B, L) nats"""
    # exercise 4: the bound of masks, eq. (2), 1 line
    return torch.where(z == process.mask, masked_weight(process, t) * cross_entropy, 0.0)           # (B, L)
    # end


def any_order(process, x, u, frozen=None):
    """The draw in eq. (6): of the n tokens that are not given, k = ceil(u n) anywhere become masks; u (B, 1) uniform.
    -> z (B, L), k (B, 1), n (B, 1)"""
    given = torch.zeros_like(x, dtype=torch.bool) if frozen is None else frozen                     # (B, L)
    n = (~given).sum(-1, keepdim=True)                                                              # (B, 1) to mask
    # exercise 5: so many masks anywhere, eq. (6), 3 lines
    k = (u * n).ceil().clamp(min=1)                                                                 # (B, 1) of 1 .. n
    rank = torch.rand(x.shape, device=x.device).masked_fill(given, 2).argsort(-1).argsort(-1)       # (B, L)
    return torch.where((rank < k) & ~given, process.mask, x), k, n
    # end


class MDLM:
    """--method mdlm. `simple` trains on the plain cross-entropy of masked tokens, whose gradient varies less than
    that of (2); `bound` trains on (2). Either way `nelbo` reports the bound."""

    uses_time = False
    mask_mod = None

    def __init__(self, n_tokens, weighting="simple"):
        self.process, self.weighting = Absorbing(n_tokens), weighting
        self.n_tokens, self.vocab_size = n_tokens, n_tokens + 1

    def cross_entropy(self, denoiser, x, z, t, weight=None, frozen=None, share=1.0):
        """-log x_theta(x) at the masks, 0 elsewhere: text is carried over. A mask is never predicted. -> (B, L)

        weight: of each, from a loss that is averaged as positions.py says; share: of masks that it expects at most
        """
        at = z == self.process.mask                                                                 # (B, L)
        return nats_at(denoiser, z, t, at, cross_entropy, (x,), self.n_tokens, weight, frozen, share)   # (B, L)

    def loss(self, denoiser, x, frozen=None):
        """What training minimises, (B, L). Simple is a surrogate: cross-entropy, times 3 to be of the size of a bound,
        at times of density 2 (1 - t), since texts that keep most of their words teach most (measured)."""
        simple, t = self.weighting == "simple", stratified(len(x), x.device)                        # (B, 1)
        t = 1 - (1 - t).sqrt() if simple else t                                                     # (B, 1)
        z = corrupt(self.process, x, t, frozen)                                                     # (B, L)
        weight = 3.0 if simple else masked_weight(self.process, t)                                  # (B, 1)
        return self.cross_entropy(denoiser, x, z, t, weight, frozen, share=self.share_masked(simple))      # (B, L)

    def share_masked(self, simple):
        """The share of masks that `loss` expects: the mean of 1 - alpha over its times."""
        t = (torch.arange(1000) + 0.5) / 1000                                                       # (1000,)
        return (1 - self.process.alpha(1 - (1 - t).sqrt() if simple else t)).mean().item()

    def nelbo(self, denoiser, x, frozen=None):
        """One draw of eq. (6), with the time that goes with k masks for networks that ask for it. -> (B, L) nats"""
        z, k, n = any_order(self.process, x, stratified(len(x), x.device), frozen)                 # (B, L), 2 x (B, 1)
        t = torch.distributions.Beta(k, (n - k + 1).clamp(min=1)).sample().clamp(1e-6, 1)           # (B, 1) t given k
        return n / k * self.cross_entropy(denoiser, x, z, t)                                        # (B, L)

    def prior(self, shape, device="cpu"):
        return torch.full(shape, self.process.mask, device=device)                                  # (B, L)

    def sample(self, denoiser, z, frozen, steps, sampler=ancestral, law=probabilities):
        """From masks to text; yields z after each step. The sampler says which masks open, law what they become."""
        return sampler(self.process, denoiser, z, frozen, steps, law)


def transfer(n, left):
    """How many of n masks the next of `left` steps opens: as even as can be, the odd ones first (LLaDA's schedule)."""
    return (n / left).ceil()


def highest(score, k):
    """The k highest scores of each row as a mask; k (B, 1) may differ from row to row. (B, L) -> (B, L) bool"""
    return score.argsort(-1, descending=True).argsort(-1) < k                                       # (B, L)


@torch.no_grad()
def first_hitting(process, denoiser, z, frozen, steps, law=probabilities):
    """Open masks in random order, one a step, at the moments at which the walk of (3) in infinitely many steps would.

    The same law as that walk, in L network calls (arXiv:2409.02908): of n masks at time tau, the first to open does so
    at tau u^(1/n). With fewer steps than masks, k open at once, at the k-th of those moments: no longer exact.
    """
    tau = torch.ones(len(z), 1, dtype=torch.float64, device=z.device)                               # (B, 1)
    for left in range(steps, 0, -1):
        masked = z == process.mask                                                                  # (B, L)
        n = masked.sum(-1, keepdim=True).double()                                                   # (B, 1) masks left
        if not n.any():
            return
        k = transfer(n, left)                                                                       # (B, 1) open now
        tau = tau * torch.distributions.Beta((n - k + 1).clamp(min=1), k.clamp(min=1)).sample()     # (B, 1)
        at = highest(torch.rand(z.shape, device=z.device).masked_fill(~masked, -1), k)              # (B, L) where
        what, _ = draw_at(denoiser, z, tau.float(), at, law, process.n_tokens)                      # (N,)
        z = z.masked_scatter(at, what)                                                              # (B, L)
        yield z


@torch.no_grad()
def confidence(process, denoiser, z, frozen, steps, law=probabilities):
    """Draw all masks, keep the k draws that the network believes in most, mask the others again (MaskGIT, LLaDA).

    Belief is that of the network itself, as it is before `law` sharpens it: see draw_from.
    Not a sampler of the model's law: it favours what is easy, and with temperature 0 or on a small model it collapses
    into repetition ("the the the"). A choice for models that are sure, not a default.
    """
    for left in range(steps, 0, -1):
        masked = z == process.mask                                                                  # (B, L)
        n = masked.sum(-1, keepdim=True)                                                            # (B, 1) masks left
        if not n.any():
            return
        t = n / z.shape[1]                                                                          # (B, 1)
        drawn, belief = draw_at(denoiser, z, t, masked, law, process.n_tokens)                      # (N,) each
        # exercise 14: keep what is believed most, 2 lines
        score = torch.full(z.shape, -1.0, dtype=belief.dtype, device=z.device).masked_scatter(masked, belief)
        z = torch.where(highest(score, transfer(n, left)), z.masked_scatter(masked, drawn), z)      # (B, L)
        # end
        yield z
