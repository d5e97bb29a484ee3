"""
Chapter 3. RADD (arXiv:2406.03736): masked networks need no time, and four forms of their bound.

At a mask x_theta(x) = p(x_l | the tokens that are not masked), which does not depend on the time.
With CE = -log x_theta(x) at masks and 0 elsewhere, -log p(x) is at most the mean of

    t-DSE        (1/t) CE,                    t ~ U(0, 1): score entropy (6.2) of x_theta
    t-DCE        (1/t) [CE + log(t/(1-t))]    without the terms whose mean is 0                (3.6)
    lambda-DCE   (1/lambda) CE,               lambda ~ U(0, 1), each token masked with it
    k-DCE        (L/k) CE,                    (3.1): k masks exactly, k ~ U{1..L}

Their expectation is the same, their variance is not. Under the linear schedule lambda is t, so that
t-DSE and lambda-DCE are the same draw. The weights of k-DCE are at most L, so it varies least; that
is why `nelbo` of all masked methods is k-DCE.

x_theta stays the same while no mask opens, so a sampler need not call it again: L tokens take at
most L calls in any number of steps, and N (1 - (1 - 1/N)^L) on average in N equal steps. For that,
reverse_step in diffusion.py calls the network only where a token moves, and
`python -m experiments.mdlm calls` counts its calls.
"""
from dataclasses import dataclass

import torch

from diffusion import corrupt, stratified
from flags import flag
from methods.mdlm import MDLM, any_order, masked_bound, masked_weight

OBJECTIVES = ["t-dse", "t-dce", "lambda-dce", "k-dce"]


@dataclass(eq=False)
class RADD(MDLM):
    """--method radd: mdlm, trained on one of the four forms."""
    weighting: str = "bound"  # no flag here
    complement: bool = False  # no flag here: the four forms are about single draws
    radd_objective: str = flag("k-dce", "form of the bound", OBJECTIVES)
    distilled_by = ()

    def loss(self, denoiser, x, frozen=None):
        """A form of (3.6). t-dce may be below 0. -> (B, L) nats"""
        u = stratified(len(x), x.device)  # (B, 1)
        if self.radd_objective == "k-dce":
            z, k, n = any_order(self.process, x, u, frozen)  # (B, L), (B, 1), (B, 1)
            share = (x.shape[1] + 1) / (2 * x.shape[1])  # k is uniform in 1 .. L
            return self.cross_entropy(denoiser, x, z, u, n / k, frozen, share)  # (B, L)
        z = corrupt(self.process, x, u, frozen)  # (B, L)
        weight = masked_weight(self.process, u)  # (B, 1)
        nats = self.cross_entropy(denoiser, x, z, u, weight, frozen, share=0.5)  # (B, L)
        return nats + objective_nats(self.radd_objective, self.process, 0.0, z, u)  # (B, L)


def objective_nats(objective, process, cross_entropy, z, t):
    """The first three forms of (3.6), from the cross-entropy (B, L), t (B, 1). -> (B, L) nats"""
    if objective == "t-dce":
        odds = torch.log(process.b(t, process.mask) / process.alpha(t))  # (B, 1)
        cross_entropy = cross_entropy + odds  # (B, L)
    return masked_bound(process, cross_entropy, z, t)  # (B, L)
