"""
The plain reference: what research code does, in our words. The yardstick of speed.py, and a check of the fast paths.

Not how to train or to sample. Everything here is dense, (B, L, V) from end to end, pass for pass as in the public code
of MDLM and Duo (2025; SEDD's is alike); loss, gradient and law are those of the chapters (tests/test_speed.py), only
the work differs:

    training    logits of every position in float32; (2) by substitution on all of them: minus a million at the mask,
                one-hot where the text is clean; a search for NaN; then autograd, AdamW weight by weight, and
                ema -= (1 - d) (ema - p)
    sampling    at each step the network and its head at every position, the law of z_s in float64 over (B, L, V), in
                which clean rows are set aside and put back, and a float64 Gumbel race between all of its entries; of
                the results most are thrown away
    ar          no cache: the whole prefix is read, and scored, for each new token
    lean        sampling once more, as dense, without the detours: no more than the formula needs. Who is told one
                ratio should know the other
"""
import torch
import torch.nn.functional as F

from diffusion import corrupt, reverse, stratified
from masked import masked_bound


NEVER = -1e6                                             # the logarithm of what cannot be


def race(p):
    """One draw from each row of p (..., V): the first to arrive of V exponential clocks, Gumbel's trick. -> (...)"""
    arrival = 1e-10 - (torch.rand_like(p) + 1e-10).log()                                            # (..., V)
    return (p / arrival).argmax(-1)                                                                 # (...)


# ---- training

def substituted(network, process, z, t):
    """log x_theta under masks: text is carried over, a mask is never predicted. -> (B, L, V) float32"""
    logits, clean = network(z, t).float(), z != process.mask                                        # (B, L, V), (B, L)
    logits[..., process.mask] += NEVER
    log_x_theta = logits - logits.logsumexp(-1, keepdim=True)                                       # (B, L, V)
    log_x_theta[clean] = NEVER
    log_x_theta[clean, z[clean]] = 0
    return log_x_theta                                                                              # (B, L, V)


def loss(network, process, x):
    """Eq. (2) of masked.py at stratified times. -> ()"""
    t = stratified(len(x), x.device)                                                                # (B, 1)
    z = corrupt(process, x, t)                                                                      # (B, L)
    log_x_theta = substituted(network, process, z, t)                                               # (B, L, V)
    if log_x_theta.isnan().any():
        raise FloatingPointError("the network says NaN")
    nll = -log_x_theta.gather(-1, x[..., None])[..., 0]                                             # (B, L)
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

def times(z, t):
    return torch.full((len(z), 1), t, device=z.device)                                              # (B, 1)


@torch.no_grad()
def masked_step(process, network, z, s, t):
    """(3) of masked.py at every position, masked or not; s, t numbers. (B, L) -> (B, L)"""
    p = substituted(network, process, z, times(z, t)).double().exp()                                # (B, L, V)
    clean = (z != process.mask)[..., None].expand_as(p)                                             # (B, L, V)
    carried = p[clean]                                                                              # (clean rows x V,)
    law = (t - s) / t * p                                                                           # (B, L, V)
    law[..., process.mask] = s / t
    law[clean] = carried
    return race(law)                                                                                # (B, L)


@torch.no_grad()
def uniform_step(process, network, z, s, t):
    """(3), the posterior of Duo (arXiv:2506.10892), at every position; s, t numbers. (B, L) -> (B, L)"""
    V, alpha_s, alpha_t = process.V, 1 - s, 1 - t
    x_theta = network(z, times(z, t)).float().log_softmax(-1).exp().double()                        # (B, L, V)
    here = F.one_hot(z, V).float()                                                                  # (B, L, V)
    law = (alpha_t * V * x_theta * here + (alpha_t / alpha_s - alpha_t) * here + (alpha_s - alpha_t) * x_theta
           + (1 - alpha_t / alpha_s) * (1 - alpha_s) / V)                                           # (B, L, V)
    law = law / (alpha_t * V * x_theta.gather(-1, z[..., None]) + 1 - alpha_t)                      # (B, L, V)
    return race(law)                                                                                # (B, L)


def lean_race(p):
    return (p / -torch.rand_like(p).log()).argmax(-1)                                               # (...)


@torch.no_grad()
def lean_masked_step(process, network, z, s, t, rows=None):
    """The same law in fewer passes. rows: so many positions at a time, which bounds its memory. (B, L) -> (B, L)"""
    log_x_theta = substituted(network, process, z, times(z, t))                                     # (B, L, V)
    drawn = []
    for part in log_x_theta.flatten(0, 1).split(rows or z.numel()):
        p = part.double().exp() * ((t - s) / t)                                                     # (rows, V)
        p[:, process.mask] = s / t
        drawn.append(lean_race(p))                                                                  # (rows,)
    return torch.where(z == process.mask, torch.cat(drawn).view_as(z), z)                           # (B, L)


@torch.no_grad()
def lean_uniform_step(process, network, z, s, t):
    """The same law in fewer passes. (B, L) -> (B, L)"""
    x_theta = network(z, times(z, t)).double().softmax(-1)                                          # (B, L, V)
    return lean_race(reverse(process, x_theta, z, times(z, s).double(), times(z, t).double()))      # (B, L)


def walk(step, process, network, z, steps):
    """From noise to text in equal steps of one of these. -> (B, L)"""
    for i in range(steps, 0, -1):
        z = step(process, network, z, (i - 1) / steps, i / steps)                                   # (B, L)
    return z


@torch.no_grad()
def next_token(network, seen, n_tokens):
    """The token after `seen` (B, n), which is read from its beginning, and scored all along. -> (B,)"""
    logits = network(seen, None)[:, -1, :n_tokens]                                                  # (B, n_tokens)
    return race(logits.double().softmax(-1))                                                        # (B,)
