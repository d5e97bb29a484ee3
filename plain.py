"""
The plain reference: what research code does, in our words. The yardstick of speed.py, and a check of the fast paths.

Not how to train or to sample. Everything here is dense, (B, L, V) from end to end, as in the public code of SEDD, MDLM
and Duo; loss, gradient and law are those of the chapters (tests/test_speed.py), only the work differs:

    training    logits of every position in float32; (2) by substitution on all of them: minus infinity at the mask,
                one-hot where the text is clean; then autograd, AdamW weight by weight, ema -= (1 - d) (ema - p)
    sampling    at each step the network and its head at every position, the law of z_s in float64 over (B, L, V), and
                a float64 Gumbel race between all of its entries; of the results most are thrown away
    ar          no cache: the whole prefix is read, and scored, for each new token

What costs public code more still, such as searching the logits for NaN, is left out, in its favour.
"""
import math

import torch

from diffusion import corrupt, reverse, stratified
from masked import masked_bound


def race(p):
    """One draw from each row of p (..., V): the first to arrive of V exponential clocks, Gumbel's trick. -> (...)"""
    return (p / -torch.rand_like(p).log()).argmax(-1)                                               # (...)


# ---- training

def substituted(network, process, z, t):
    """log x_theta under masks: text is carried over, a mask is never predicted. -> (B, L, V) float32"""
    logits, clean = network(z, t).float(), z != process.mask                                        # (B, L, V), (B, L)
    logits[..., process.mask] = -math.inf
    log_x_theta = logits - logits.logsumexp(-1, keepdim=True)                                       # (B, L, V)
    log_x_theta[clean] = -math.inf
    log_x_theta[clean, z[clean]] = 0
    return log_x_theta                                                                              # (B, L, V)


def loss(network, process, x):
    """Eq. (2) of masked.py at stratified times. -> ()"""
    t = stratified(len(x), x.device)                                                                # (B, 1)
    z = corrupt(process, x, t)                                                                      # (B, L)
    nll = -substituted(network, process, z, t).gather(-1, x[..., None])[..., 0]                     # (B, L)
    return masked_bound(process, nll, z, t).mean()                                                  # ()


class Trainer:
    """A training step: AdamW as torch has it by default, and an average of the weights, tensor after tensor.
    forward: the network, or what torch.compile made of it; half: matrix products in bfloat16"""

    def __init__(self, network, process, learning_rate=3e-4, ema=0.9999, forward=None, half=False):
        self.network, self.process, self.decay = network, process, ema
        self.forward, self.half = forward or network, half
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate)
        self.ema = [p.detach().clone() for p in network.parameters()]

    def step(self, x):
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.half):
            nats = loss(self.forward, self.process, x)                                              # ()
        self.optimizer.zero_grad()
        nats.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            for average, p in zip(self.ema, self.network.parameters()):
                average -= (1 - self.decay) * (average - p)
        return nats.detach()                                                                        # ()


# ---- sampling

@torch.no_grad()
def masked_step(process, network, z, s, t, rows=None):
    """(3) of masked.py at every position, masked or not; s, t numbers. rows: so many positions at a time go through
    the float64 part, which bounds its memory. (B, L) -> (B, L)"""
    log_x_theta = substituted(network, process, z, torch.full((len(z), 1), t, device=z.device))     # (B, L, V)
    drawn = []
    for part in log_x_theta.flatten(0, 1).split(rows or z.numel()):
        p = part.double().exp() * ((t - s) / t)                                                     # (rows, V)
        p[:, process.mask] = s / t
        drawn.append(race(p))                                                                       # (rows,)
    return torch.where(z == process.mask, torch.cat(drawn).view_as(z), z)                           # (B, L)


@torch.no_grad()
def uniform_step(process, network, z, s, t):
    """(3), the dense posterior, at every position; s, t numbers. (B, L) -> (B, L)"""
    s, t = (torch.full((len(z), 1), u, dtype=torch.float64, device=z.device) for u in (s, t))       # (B, 1)
    x_theta = network(z, t.float()).double().softmax(-1)                                            # (B, L, V)
    return race(reverse(process, x_theta, z, s, t))                                                 # (B, L)


def walk(step, process, network, z, steps):
    """From noise to text in equal steps of one of these two. -> (B, L)"""
    for i in range(steps, 0, -1):
        z = step(process, network, z, (i - 1) / steps, i / steps)                                   # (B, L)
    return z


@torch.no_grad()
def next_token(network, seen, n_tokens):
    """The token after `seen` (B, n), which is read from its beginning, and scored all along. -> (B,)"""
    logits = network(seen, None)[:, -1, :n_tokens]                                                  # (B, n_tokens)
    return race(logits.double().softmax(-1))                                                        # (B,)
