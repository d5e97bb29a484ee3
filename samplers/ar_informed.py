"""
Chapter 8. Blocks that are checked from left to right by the network that wrote them.

A network that was trained on blocks of several sizes (methods/blockgen.py) predicts each word of a
block twice: x_theta(x_l | z) by diffusion, given the noisy block, and p(x_l | x_<l) in order, in
one pass over the written block. Words that are drawn at once do not know of each other. The second
view sees it.

`arpc` is the predictor and corrector of BlockGen (arXiv:2606.02241). In a step from t to s it draws
all masks of the block, x, and masks the most doubtful of all n words that are not given again:

    k = max(1, round(n (1 - alpha_s))) words of highest d_l,  d_l = -log p(x_l | x_<l)         (8.6)

The last step draws all masks. It keeps no distribution: it chooses by what it has drawn, and words
that `in order` finds unlikely are drawn again until they are likely.

`metropolis` has the same two passes in a round, and leaves p(x) = prod_l p(x_l | x_<l) as it is,
whatever the diffusion is, by Metropolis and Hastings:

    mask      R: word l with probability r_l(x), each by itself: remask, or with --choose
              doubtful  remask (1 - p(x_l | x_<l))
    draw      x'_R ~ x_theta( . | x without R), each by itself                                 (8.7)
    accept    with probability min(1, a),
              a = p(x')/p(x)  prod_(l in R) x_theta(x_l)/x_theta(x'_l)  c(R | x')/c(R | x),
              c(R | x) = prod_(l in R) r_l(x)  prod_(l not in R) (1 - r_l(x))

So it draws from the model from left to right, up to how well it has mixed. Given words inside the
block are never masked, but they count in p(x'): what stands before them comes to fit them.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from diffusion import categorical, draw_from, probabilities
from flags import flag
from samplers.base import MaskSampler, highest, scatter_at
from samplers.correctors import InRounds

SMALLEST = 1e-12  # a probability in the divergence, as in the public code


def log_in_order(denoiser, x, n_tokens, to_probs=probabilities):
    """log p(x_l | x_<l) of each word of a block x (B, L'). -> (B, L') float64"""
    everywhere = torch.ones_like(x, dtype=torch.bool)  # (B, L')
    p = to_probs(denoiser.in_order(x, everywhere)[:, :n_tokens])  # (B L', n_tokens)
    return p.gather(-1, x.reshape(-1, 1)).double().log().view(x.shape)  # (B, L')


@dataclass(eq=False)
class ARPC(MaskSampler):
    """--sampler arpc: masks open at once, and words that are doubtful in order are masked again."""
    doubt: str = flag("surprise", "which words: the least likely in order; those whose prediction "
                      "in order is far from that of diffusion; any",
                      ["surprise", "divergence", "random"])
    draws_from_model, rewrites = False, True

    def fits(self, method):
        if not method.reads_in_order:
            return f"checks words by predictions from left to right, which {method.name} has not"

    @torch.no_grad()
    def __call__(self, process, denoiser, z, frozen, steps, to_probs=probabilities):
        free = ~frozen  # (B, L')
        n = free.sum(-1, keepdim=True)  # (B, 1)
        for left in range(steps - 1, -1, -1):
            at = z == process.mask  # (B, L')
            if at.any():
                t = torch.full((len(z), 1), (left + 1) / steps, device=z.device)  # (B, 1)
                logits = denoiser(z, t, at=at)[:, :process.n_tokens]  # (N, n_tokens)
                words, _ = draw_from(to_probs, logits)  # (N,)
                z = z.masked_scatter(at, words)  # (B, L')
                if left:
                    k = (n * left / steps).round().clamp(min=1)  # (B, 1)
                    doubts = self.doubts(denoiser, z, at, logits).masked_fill(frozen, -torch.inf)
                    z = z.masked_fill(highest(doubts, k) & free, process.mask)  # (B, L')
            yield z

    def doubts(self, denoiser, x, at, logits):
        """d_l of (8.6), at the words x (B, L') of which those at `at` were drawn from logits (N,
        n_tokens). -> (B, L')"""
        if self.doubt == "random":
            return torch.rand(x.shape, dtype=torch.float64, device=x.device)  # (B, L')
        if self.doubt == "surprise":
            return -log_in_order(denoiser, x, logits.shape[-1])  # (B, L')
        everywhere = torch.ones_like(x, dtype=torch.bool)  # (B, L')
        p = probabilities(denoiser.in_order(x, everywhere)[:, :logits.shape[-1]])  # (B L', n)
        q = F.one_hot(x.flatten(), logits.shape[-1]).double()  # (B L', n) older words are certain
        q[at.flatten()] = probabilities(logits)  # (N, n)
        log = lambda a: (a + SMALLEST).log()  # (B L', n)
        return (p * (log(p) - log(q))).sum(-1).view(x.shape)  # (B, L')


def log_choice(rate, at):
    """log c(R | x) of (8.7), R where `at` (B, L'), with the rates r (B, L'). -> (B,)"""
    return torch.where(at, rate.log(), torch.log1p(-rate)).sum(-1)  # (B,)


@dataclass(eq=False)
class Metropolis(InRounds):
    """--corrector metropolis: words are drawn again, and the change is kept if it fits in order."""
    rounds: int = flag(8, "changes that are tried in each block", least=1)
    remask: float = flag(0.5, "share of the words that a change masks, at most if they are chosen "
                         "by doubt", least=0, most=1)
    choose: str = flag("random", "which words: any, or rather those that are unlikely in order",
                       ["random", "doubtful"])

    def fits(self, method):
        if not method.reads_in_order:
            return (f"checks words by predictions from left to right, which {method.name} has not: "
                    "leave it out")
        return super().fits(method)

    def rates(self, log_p, free):
        """r of (8.7). log_p (B, L') in order; free (B, L') bool -> (B, L')"""
        rate = -torch.expm1(log_p) if self.choose == "doubtful" else torch.ones_like(log_p)
        return (self.remask * rate).masked_fill(~free, 0.0)  # (B, L')

    def correct(self, process, denoiser, z, frozen, to_probs):
        log_p = log_in_order(denoiser, z, process.n_tokens, to_probs)  # (B, L')
        for _ in range(self.rounds):
            z, log_p = self.change(process, denoiser, z, frozen, to_probs, log_p)
            yield z

    def change(self, process, denoiser, z, frozen, to_probs, log_p):
        """One round of (8.7). log_p (B, L'): of z in order -> z, log_p"""
        rate = self.rates(log_p, ~frozen)  # (B, L')
        at = torch.rand(z.shape, dtype=torch.float64, device=z.device) < rate  # (B, L')
        if not at.any():
            return z, log_p
        t = torch.zeros(len(z), 1, device=z.device)  # (B, 1)
        hidden = z.masked_fill(at, process.mask)  # (B, L')
        q = to_probs(denoiser(hidden, t, at=at)[:, :process.n_tokens]).double()  # (N, n_tokens)
        words = categorical(q)  # (N,)
        x = z.masked_scatter(at, words)  # (B, L')
        new = log_in_order(denoiser, x, process.n_tokens, to_probs)  # (B, L')
        log_q = lambda words: scatter_at(at, q.gather(-1, words[:, None])[:, 0].log())  # (B, L')
        gain = (new - log_p + log_q(z[at]) - log_q(words)).sum(-1)  # (B,)
        gain = gain + log_choice(self.rates(new, ~frozen), at) - log_choice(rate, at)  # (B,)
        toss = torch.rand((len(z), 1), dtype=torch.float64, device=z.device)  # (B, 1)
        accept = toss.log() < gain[:, None]  # (B, 1) false where gain is undefined
        return torch.where(accept, x, z), torch.where(accept, new, log_p)  # (B, L') each
