"""
Chapter 24. Orders for random words: each token has a time of its own.

Under uniform noise a token at t = 1 is a random word, which says no more of its text than a mask
does, and at t = 0 it is text. So give every token the time 1 until its turn k_l, and 0 after it. In
turn k, (0.3) from t = 1 to s = 0 draws

    z_l ~ x_theta_l(. | z, t),   t_j = [k_j >= k],   for all l with k_l = k                  (24.10)

whatever stands there, from what stands at t = 0. That is a step of masked diffusion, and (24.1) is
its law: with an order of `spread`, texts that lose as little in as few calls. In steps of (0.3)
with one time for all, a word is drawn before its neighbors are known, and drawn again after.

A network has to have seen such times. --known of udlm and duo trains it on them: as in mdlm, each
word is unknown with probability t of density 2 (1 - t), and

    l = 3 sum_l [t_l = 1] -log x_theta_l(x_l | z, t)                                         (24.11)
"""
from dataclasses import dataclass

import torch

from diffusion import Uniform, probabilities, reverse_step
from flags import UserError
from samplers.orders import Spread


@dataclass(eq=False)
class Turns(Spread):
    """--sampler turns: random words become text, far apart, once the words before are known."""

    def fits(self, method):
        if not isinstance(method.process, Uniform) or method.samplers is not None:
            return (f"gives each random word a time, and {method.name} has none: try --sampler "
                    "spread, or ancestral")

    def prepare(self, model):
        """A network that has seen one time for all tokens does not know what two of them mean."""
        if isinstance(model.denoiser, torch.nn.Module) and not model.method.token_times:
            raise UserError("--sampler turns needs a network that was trained with --known 0.5")

    @torch.no_grad()
    def __call__(self, process, denoiser, z, frozen, steps, to_probs=probabilities):
        turn = self.turns(~frozen, steps)  # (B, L)
        for step in range(int(turn.max()) + 1):
            t = (turn >= step).double()  # (B, L)
            z = reverse_step(process, denoiser, z, turn != step, torch.zeros_like(t), t, to_probs)
            yield z
