"""
Chapter 23. The dense reference: what research code computes, for speed.py to compare with.

Not how to train or to sample. Everything here is dense, (B, L, V) from end to end, with the same
passes as the public code of MDLM and Duo (2025); that of SEDD is similar. Loss, gradient and
distribution are those of the chapters (tests/experiments/test_speed.py), only the work differs:

    training    float32 logits of every position; (0.2) for masks by substitution: -1e6 at the
                mask, one-hot at clean text; a check for NaN; then autograd, AdamW tensor by tensor,
                and ema -= (1 - d) (ema - p)
    sampling    at each step network and head at every position, the distribution of z_s in float64
                over (B, L, V), where clean rows are set aside and put back, and a float64 Gumbel
                race between all entries. Most of the results are discarded
    ar          no cache: the whole prefix is read and scored for each new token
    lean        sampling as above with no more passes than the formula needs. Whoever reports the
                ratio to one of the two should report the other as well
"""
import torch
import torch.nn.functional as F

from diffusion import corrupt, reverse, stratified
from methods.mdlm import masked_bound

NEVER = -1e6  # the logarithm of an impossible event


def gumbel_argmax(p):
    """One draw per row of p (..., V): the first of V exponential clocks (Gumbel). -> (...)"""
    arrival = 1e-10 - (torch.rand_like(p) + 1e-10).log()  # (..., V)
    return (p / arrival).argmax(-1)  # (...)


# ---- training

def log_x_theta_by_substitution(network, process, z, t):
    """log x_theta for masks: text is carried over, a mask is never predicted. -> (B, L, V) float32
    """
    logits, clean = network(z, t).float(), z != process.mask  # (B, L, V), (B, L)
    logits[..., process.mask] += NEVER
    log_x_theta = logits - logits.logsumexp(-1, keepdim=True)  # (B, L, V)
    log_x_theta[clean] = NEVER
    log_x_theta[clean, z[clean]] = 0
    return log_x_theta  # (B, L, V)


def dense_loss(network, process, x):
    """(0.2) for masks at stratified times. -> ()"""
    t = stratified(len(x), x.device)  # (B, 1)
    z = corrupt(process, x, t)  # (B, L)
    log_x_theta = log_x_theta_by_substitution(network, process, z, t)  # (B, L, V)
    if log_x_theta.isnan().any():
        raise FloatingPointError("the network outputs NaN")
    nll = -log_x_theta.gather(-1, x[..., None])[..., 0]  # (B, L)
    return masked_bound(process, nll, z, t).mean()  # ()


class DenseTrainer:
    """A training step: torch's default AdamW, and an average of the weights, tensor by tensor.

    forward: the network, or what torch.compile made of it; half: matrix products in bfloat16
    """

    def __init__(self, network, process, learning_rate=3e-4, ema=0.9999, forward=None, half=False):
        self.network, self.process, self.decay = network, process, ema
        self.forward, self.half = forward or network, half
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate)
        self.ema = [p.detach().clone() for p in network.parameters()]

    def step(self, x):
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.half):
            nats = dense_loss(self.forward, self.process, x)  # ()
        self.optimizer.zero_grad()
        nats.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            for average, p in zip(self.ema, self.network.parameters()):
                average -= (1 - self.decay) * (average - p)
        return nats.detach()  # ()


# ---- sampling

def expand_time(z, t):
    return torch.full((len(z), 1), t, device=z.device)  # (B, 1)


@torch.no_grad()
def masked_step(process, network, z, s, t):
    """(0.3) for masks at every position, masked or not; s, t numbers. (B, L) -> (B, L)"""
    log_x_theta = log_x_theta_by_substitution(network, process, z, expand_time(z, t))  # (B, L, V)
    x_theta = log_x_theta.double().exp()  # (B, L, V)
    clean = (z != process.mask)[..., None].expand_as(x_theta)  # (B, L, V)
    carried = x_theta[clean]  # (clean rows x V,)
    p = (t - s) / t * x_theta  # (B, L, V)
    p[..., process.mask] = s / t
    p[clean] = carried
    return gumbel_argmax(p)  # (B, L)


@torch.no_grad()
def uniform_step(process, network, z, s, t):
    """(0.3), the posterior of Duo (arXiv:2506.10892), everywhere; s, t numbers. (B, L) -> (B, L)"""
    V, alpha_s, alpha_t = process.V, 1 - s, 1 - t
    x_theta = network(z, expand_time(z, t)).float().log_softmax(-1).exp().double()  # (B, L, V)
    here = F.one_hot(z, V).float()  # (B, L, V)
    p = (alpha_t * V * x_theta * here + (alpha_t / alpha_s - alpha_t) * here
         + (alpha_s - alpha_t) * x_theta + (1 - alpha_t / alpha_s) * (1 - alpha_s) / V)  # (B, L, V)
    p = p / (alpha_t * V * x_theta.gather(-1, z[..., None]) + 1 - alpha_t)  # (B, L, V)
    return gumbel_argmax(p)  # (B, L)


def lean_gumbel_argmax(p):
    return (p / -torch.rand_like(p).log()).argmax(-1)  # (...)


@torch.no_grad()
def lean_masked_step(process, network, z, s, t, rows=None):
    """masked_step in fewer passes. rows: positions at a time, to bound its memory. -> (B, L)"""
    log_x_theta = log_x_theta_by_substitution(network, process, z, expand_time(z, t))  # (B, L, V)
    drawn = []
    for part in log_x_theta.flatten(0, 1).split(rows or z.numel()):
        p = part.double().exp() * ((t - s) / t)  # (rows, V)
        p[:, process.mask] = s / t
        drawn.append(lean_gumbel_argmax(p))  # (rows,)
    return torch.where(z == process.mask, torch.cat(drawn).view_as(z), z)  # (B, L)


@torch.no_grad()
def lean_uniform_step(process, network, z, s, t):
    """uniform_step in fewer passes. (B, L) -> (B, L)"""
    x_theta = network(z, expand_time(z, t)).double().softmax(-1)  # (B, L, V)
    s, t = expand_time(z, s).double(), expand_time(z, t).double()  # (B, 1) each
    return lean_gumbel_argmax(reverse(process, x_theta, z, s, t))  # (B, L)


@torch.no_grad()
def next_token(network, prefix, n_tokens):
    """The token after `prefix` (B, n), which is read and scored from its beginning. -> (B,)"""
    logits = network(prefix, None)[:, -1, :n_tokens]  # (B, n_tokens)
    return gumbel_argmax(logits.double().softmax(-1))  # (B,)
