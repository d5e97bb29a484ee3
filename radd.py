"""
RADD (arXiv:2406.03736): the masked network needs no clock, and its bound can be written in four ways.

At a mask c_theta(x) = p(x_l | the tokens that are not masked): time does not enter. With CE = -log c_theta(x_l) at the
masks, and 0 elsewhere, -log p(x) is at most the mean of

    t-DSE        (1/t) CE,                                  t ~ U(0, 1): score entropy (31) with c_theta's score
    t-DCE        (1/t) [CE + log(t/(1-t))]                  the terms without c_theta dropped: only their mean is 0
    lambda-DCE   (1/lambda) CE,                             lambda ~ U(0, 1), each token masked with probability lambda
    k-DCE        (L/k) CE,                                  k ~ U{1..L}, exactly k masked: eq. (6), any-order AR (45)

One expectation, four variances. Under the linear schedule lambda is t, and the first and the third are the same draw.
With weights of at most L, k-DCE varies least, so it is what mdlm, md4, radd, bd3lm and pgm report.

Without a clock, x_theta stays as it is while no mask opens, and a sampler need not ask again: L tokens cost at most L
calls, however many steps are walked, and N (1 - (1 - 1/N)^L) in the mean over N equal ones. diffusion.step does so for
every process: it asks where something moves. (`python -m claims.masked calls` counts.)
"""
import torch

from diffusion import corrupt, stratified
from masked import MDLM, any_order, masked_bound, masked_weight

OBJECTIVES = ["t-dse", "t-dce", "lambda-dce", "k-dce"]


class RADD(MDLM):
    """--method radd: mdlm, trained on one of the four (--radd_objective)."""

    def __init__(self, n_tokens, radd_objective="k-dce"):
        super().__init__(n_tokens, "bound")
        self.objective = radd_objective

    def loss(self, denoiser, x, frozen=None):
        """One of (45), (B, L) nats. t-dce may be below 0."""
        u = stratified(len(x), x.device)                                                            # (B, 1)
        if self.objective == "k-dce":
            z, k, n = any_order(self.process, x, u, frozen)                                         # (B, L), (B, 1)
            return self.cross_entropy(denoiser, x, z, u, n / k, frozen, share=0.5)                  # (B, L)
        z = corrupt(self.process, x, u, frozen)                                                     # (B, L)
        weight = masked_weight(self.process, u)                                                     # (B, 1)
        nats = self.cross_entropy(denoiser, x, z, u, weight, frozen, share=0.5)                     # (B, L)
        return nats + written(self.objective, self.process, 0.0, z, u)           # (B, L) and what is not in the CE


def written(objective, process, cross_entropy, z, t):
    """The first three of (45), from the cross-entropy (B, L) at times t (B, 1). -> (B, L) nats"""
    if objective == "t-dce":
        odds = torch.log(process.b(t, process.mask) / process.alpha(t))                             # (B, 1)
        cross_entropy = cross_entropy + odds                                                        # (B, L)
    return masked_bound(process, cross_entropy, z, t)                                               # (B, L)
