"""
Chapter 3. Masking schedules: when does a token become a mask? MD4 (arXiv:2406.04329).

    share of masks at time t    linear  t,   polynomial  t^K,   cosine  sin(pi t / 2)          (3.2)

The bound (0.2) does not depend on the schedule: substitute 1 - alpha for the time. The schedule
decides how much its draws vary, which amounts of noise training sees, and how many masks a sampling
step opens. The cosine opens few masks in the first steps, which know least. The sampler's flag
`--grid cosine` does the same for any masked model.
"""
import math
from dataclasses import dataclass

import torch

from diffusion import Absorbing
from flags import UserError, flag
from methods.mdlm import MDLM


class Scheduled(Absorbing):
    """Masks by a schedule of (3.2). eps > 0 stays away from both ends, as the public code does."""

    def __init__(self, n_tokens, schedule="cosine", power=2.0, eps=0.0):
        super().__init__(n_tokens)
        self.schedule, self.power, self.eps = schedule, power, eps

    def masks(self, t):
        """(3.2)"""
        # exercise 13: three schedules, (3.2)
        return {"linear": lambda: t, "polynomial": lambda: t ** self.power,
                "cosine": lambda: torch.sin(math.pi / 2 * t)}[self.schedule]()
        # end

    def dmasks(self, t):
        # exercise 13: their slopes
        return {"linear": lambda: torch.ones_like(t),
                "polynomial": lambda: self.power * t ** (self.power - 1),
                "cosine": lambda: math.pi / 2 * torch.cos(math.pi / 2 * t)}[self.schedule]()
        # end

    def alpha(self, t):
        return 1 - self.eps - (1 - 2 * self.eps) * self.masks(t)

    def dalpha(self, t):
        return -(1 - 2 * self.eps) * self.dmasks(t)

    def b(self, t, v):
        return (self.eps + (1 - 2 * self.eps) * self.masks(t)) * (v == self.mask)


@dataclass(eq=False)
class MD4(MDLM):
    """--method md4: mdlm with a schedule, trained on the bound at uniform times.

    `nelbo` is mdlm's, the draw of least variance for any schedule. The paper's network reads the
    time, which a masked network does not need (radd.py), and ours does not.
    """
    weighting: str = "bound"  # no flag here
    mask_schedule: str = flag("cosine", "share of masks over time",
                              ["linear", "polynomial", "cosine"])
    power: float = flag(2.0, "of the polynomial", least=0.1, most=100)
    distilled_by = ()

    def __post_init__(self):
        super().__post_init__()
        self.process = Scheduled(self.n_tokens, self.mask_schedule, self.power)

    def check(self, config):
        if config.time_input == "sigma" and self.mask_schedule != "linear":
            raise UserError("--time_input sigma is -log(1 - t), and 1 - t is not the share of text "
                            f"under --mask_schedule {self.mask_schedule}: leave it out, since no "
                            "mask needs the time")
