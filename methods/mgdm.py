"""
Chapter 20. Masks that learn what is hard: MGDM (arXiv:2410.14157).

MGDM weights the cross-entropy CE of a mask by its time and by how wrong the network is:

    loss   1/n sum_l [z_l = m] w_i (1 - x_theta(x))^gamma CE,   i ~ U{1..T},  t = i/T         (20.1)
    w_i    T - i + 1 (linear), T/i (that of the bound), or 1 (none)

n is the number of tokens that are not given (the published code divides by the number of masks of
the batch), and the gradient goes through the focal factor (1 - x_theta(x))^gamma.

What is learned. A weight of time changes no optimum, since z shows which tokens are masked, and so
the network knows the share of masks. The focal factor does: (20.1) is not proper. Where the
language says q of two words, its minimum over p solves

    q f'(p) = (1 - q) f'(1 - p),   f(p) = -(1 - p)^gamma log p                                (20.2)

which for q = .8 is p = .686 at gamma = 1 and .627 at gamma = 2. The likeliest word stays the
likeliest, so a puzzle with one solution does not notice. The bound of such a network, its
temperature, and thresholds on its confidence are off: evaluate.py still prints the bound, which is
one for any network, but not a tight one.

In the published decoder each step draws all words again, also those that stand, and masks the
least probable ones: `--sampler top-k --rescore`. The network is never trained on words that it
sees, so `confidence`, which keeps them, needs no such training.
"""
from dataclasses import dataclass
from functools import partial

import torch

from diffusion import corrupt
from flags import flag
from methods.base import cross_entropy, loss_at
from methods.mdlm import MDLM
from methods.rdm import WEIGHTS


def focal(logits, x, gamma):
    """(1 - x_theta(x))^gamma CE. logits (N, V), x (N,) -> (N,)"""
    nats = cross_entropy(logits, x)  # (N,)
    return (-torch.expm1(-nats)).clamp(min=0) ** gamma * nats  # (N,)


@dataclass(eq=False)
class MGDM(MDLM):
    """--method mgdm. `loss` is (20.1), up to a factor; `nelbo` is the bound of mdlm, (3.1)."""
    weighting: str = flag("linear", "of times: most where few words are masked, that of the bound, "
                                    "or none", ["linear", "bound", "none"])
    gamma: float = flag(1.0, "how much the network's errors count more; 0: a proper loss", least=0,
                        most=10)
    levels: int = flag(20, "T, the number of noise levels", least=1)
    complement: bool = False  # no flag here
    distilled_by, public_layout = (), None

    def weight_of(self, i):
        """w_i of (20.1), scaled: its mean over masks is 2, as that of the bound. i (B, 1) -> (B, 1)
        """
        every = torch.arange(1.0, self.levels + 1, device=i.device)  # (T,) shares of masks, times T
        name = "reciprocal" if self.weighting == "bound" else self.weighting
        w = partial(WEIGHTS[name], T=self.levels)
        return 2 * w(i) * every.sum() / (w(every) * every).sum()  # (B, 1)

    def loss(self, denoiser, x, frozen=None):
        """(20.1), a surrogate. -> (B, L) nats"""
        i = torch.randint(1, self.levels + 1, (len(x), 1), device=x.device)  # (B, 1)
        z = corrupt(self.process, x, i / self.levels, frozen)  # (B, L)
        at, share = z == self.process.mask, (self.levels + 1) / (2 * self.levels)  # (B, L)
        rule = partial(focal, gamma=self.gamma) if self.gamma else cross_entropy
        return loss_at(denoiser, z, None, at, rule, (x,), self.n_tokens, self.weight_of(i), frozen,
                       share)
