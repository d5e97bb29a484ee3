"""
Chapter 5. Hybrid noise, masks and random words: GIDD (arXiv:2503.04482), with gamma = 1.

    C alpha_t = 1 - t,   C b_t(mask) = t,   C b_t(v) = c/N for each of N text symbols v,       (5.1)
    C = 1 + c,   c = 2 p/(1 - p) sqrt(t (1 - t))

where p, --p_uniform, is the share of random words at t = 1/2. At t = 1 all tokens are masks, so
sampling begins as in methods/mdlm.py. On the way words may be wrong, and may be revised. The bound
is that of methods/udlm.py, with u = b_t(v). The network learns the leave-one-out distribution and
reads the time.
"""
from dataclasses import dataclass

import torch

from diffusion import Hybrid, corrupt, stratified
from flags import flag
from methods.base import Method
from methods.udlm import draw_bound, weighted_bound


@dataclass(eq=False)
class GIDD(Method):
    """--method gidd. `simple` trains with the paper's "dynamic" weights, which is a surrogate;
    `bound` trains on the bound itself."""
    also_called = ("hybrid",)
    weighting: str = flag("simple", "train on the paper's dynamic weights or on the bound",
                          ["simple", "bound"])
    p_uniform: float = flag(0.1, "share of random text at half time, from mdlm to udlm",
                            least=0.001, most=0.999, fixed=True)
    uses_time, public_layout = True, "gidd"

    def __post_init__(self):
        self.process, self.vocab_size = Hybrid(self.n_tokens, self.p_uniform), self.n_tokens + 1

    def dynamic_weight(self, x, z, t):
        """2 at masks, 1 at wrong text, about 0 at clean tokens (section 4.4). -> (B, L)"""
        clean = self.process.scale / self.n_tokens * (t / (1 - t)).sqrt()  # (B, 1)
        text = torch.where(z == x, clean, 1.0)  # (B, L)
        return torch.where(z == self.process.mask, 2.0, text)  # (B, L)

    def loss(self, denoiser, x, frozen=None):
        """What training minimizes. -> (B, L) nats for `bound`, else of that size"""
        if self.weighting == "bound":
            return self.nelbo(denoiser, x, frozen)  # (B, L)
        t = stratified(len(x), x.device)  # (B, 1)
        z = corrupt(self.process, x, t, frozen)  # (B, L)
        weight = self.dynamic_weight(x, z, t)  # (B, L)
        return weighted_bound(self.process, denoiser, z, t, x, z, t, weight, frozen)  # (B, L)

    def nelbo(self, denoiser, x, frozen=None):
        """-> (B, L) nats, an upper bound in the mean"""
        return draw_bound(self.process, denoiser, x, frozen)  # (B, L)

    def prior(self, shape, device="cpu"):
        return torch.full(shape, self.process.mask, device=device)  # (B, L)
