"""
Chapter 3. Masked diffusion as RDM trains it (arXiv:2302.05737): times in steps, weights, couples.

Time is t in {0..T-1}, where a token is a mask with probability (t + 1)/T. The loss of a text is

    routing   l = [z_t = m] w_t CE,   w_t = 1/(t + 1), reciprocal,   or 1 - t/T, linear,      (3.10)
                                      or 1, none
    couple    t1, t2 uniform, t1 >= t2: a mask of z_t1 stays one in z_t2 with probability     (3.11)
              (t2 + 1)/(t1 + 1), and text stays text. If t1 = t2, z_t2 is drawn by itself

T times `reciprocal` is the bound of T steps, which is (0.2) for T to infinity. The others are
surrogates: like any weight of the time they keep the optimum of a network that does not read it,
and they decide what it learns from most. 1/(t + 1) weighs texts with few masks most, `linear` those
in between, since texts with more masks have more to score. A couple has the marginals of two
independent draws, so the mean of the loss is the same.

RDM's name is for a view of the reverse step: a token is routed, to the data or back to noise, and
the route is drawn before the word. Its sampler is `--sampler top-k --rescore`
(samplers/remasking.py).
"""
from dataclasses import dataclass

import torch

from diffusion import stratified
from flags import flag
from methods.mdlm import MDLM

WEIGHTS = {  # of level k = t + 1 in 1 .. T, at which a token is a mask with probability k/T
    "linear": lambda k, T: (T - k + 1) / T,
    "reciprocal": lambda k, T: 1 / k,  # T times that is the bound of T levels
    "none": lambda k, T: torch.ones_like(k),
}


def couple(share1, share2, u):
    """(3.11): where masks are, at two shares (B, 1) of masks. u (3, B, L) uniform -> (B, L) twice

    The second one is drawn inside the first, or the other way round, whichever has more masks.
    """
    high, low = torch.maximum(share1, share2), torch.minimum(share1, share2)  # (B, 1) each
    more = u[0] < high  # (B, L)
    less = torch.where(high == low, u[2] < low, more & (u[1] > 1 - low / high))  # (B, L)
    first = share1 >= share2  # (B, 1)
    return torch.where(first, more, less), torch.where(first, less, more)  # (B, L) each


@dataclass(eq=False)
class RDM(MDLM):
    """--method rdm: mdlm with RDM's times, weights and couples. `nelbo` is the bound of mdlm."""
    weighting: str = flag("linear", "of the cross-entropy over the T steps: see (3.10)", [*WEIGHTS])
    diffusion_steps: int = flag(50, "T, the times of training; samples may take any number of "
                                    "steps", least=1)
    coupled: bool = flag(True, "train on two times of a text, with the masks of one in those of "
                               "the other")
    complement: bool = False  # no flag here
    distilled_by, public_layout = (), None

    def weighted(self, denoiser, x, t, masked, frozen=None, part=1.0):
        """(3.10) times `part`. t (B, 1), masked (B, L) -> (B, L) nats"""
        z = torch.where(masked if frozen is None else masked & ~frozen, self.process.mask, x)
        T = self.diffusion_steps
        weight, share = part * WEIGHTS[self.weighting](t + 1, T), (T + 1) / (2 * T)  # (B, 1)
        return self.cross_entropy(denoiser, x, z, (t + 1) / T, weight, frozen, share)  # (B, L)

    def loss(self, denoiser, x, frozen=None):
        """What training minimizes: (3.10), the mean of a couple (3.11). -> (B, L) nats"""
        B, T = len(x), self.diffusion_steps
        t1, t2 = ((stratified(B, x.device)[torch.randperm(B, device=x.device)] * T).floor()
                  for _ in range(2))  # (B, 1) each
        u = torch.rand(3, *x.shape, device=x.device)  # (3, B, L)
        if not self.coupled:
            return self.weighted(denoiser, x, t1, u[0] < (t1 + 1) / T, frozen)  # (B, L)
        masks = couple((t1 + 1) / T, (t2 + 1) / T, u)  # (B, L) twice
        return sum(self.weighted(denoiser, x, t, masked, frozen, 0.5)
                   for t, masked in zip((t1, t2), masks))  # (B, L)
