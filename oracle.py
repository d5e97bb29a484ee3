"""
The exact denoiser of the toy language, called like a network: oracle(language, method)(z, t, at) -> log x_theta.

What a network could at best learn, known without training. With it, a bound must equal the entropy, and a sampler in
many steps must speak the language itself; whatever is missing is the fault of the loss or the sampler, since nothing
else is left. The process says what each noisy token tells about its clean self (diffusion.py), and the language's
forward-backward recursion (data/toy.py) what all *other* tokens together tell: the leave-one-out law.
"""
from functools import partial
from types import SimpleNamespace

import torch

from data.toy import ToyCorpus
from diffusion import likelihood
from methods import make_method


def rows(log_p, at):
    return log_p if at is None else log_p[at]


def oracle(language, method):
    """A denoiser that is never wrong. For a process its leave-one-out law, for ar its next-token law, and for blocks
    the law given what is clean before the block, and its own masks: evidence is flat after a block."""
    def autoregressive(z, t, at=None):
        """z = [start, x_0, .., x_(L-2)]; row l predicts x_l, and does not look at the x_l that is filled in here."""
        x = z.roll(-1, dims=1).clamp(max=language.V - 1)                                            # (B, L)
        return language.predict(x)                                                                  # (B, L, V)

    def diffusion(z, t, at=None):
        t = t.double().clamp(1e-9, 1 - 1e-9)             # at t = 1 a given word would be impossible, not just unlikely
        evidence = getattr(method, "likelihood", partial(likelihood, method.process))
        return language.posterior(evidence(z, t))                                                   # (B, L, V)

    def own_schedules(z, t, at=None):
        """genmd4, whose masks are evidence: p(x_l | z)."""
        t = t.double().clamp(1e-9, 1 - 1e-9)                                                        # (B, 1)
        return language.posterior(method.likelihood(z, t), leave_one_out=False)                     # (B, L, V)

    def partition(z, t, group):
        """Both groups of pgm in one pass: the evidence is flat on a token's own group."""
        own = [diffusion(z.masked_fill(g, method.process.mask), t) for g in (group, ~group)]        # 2 x (B, L, V)
        return torch.where(group[..., None], *own)                                                  # (B, L, V)

    def blocks(z, t, at=None):
        """z = [noisy ; clean without the last block]; the law of the noisy half, and zeros for the clean one."""
        L = (z.shape[1] + method.block) // 2
        e = likelihood(method.process, z, torch.full((1, 1), 0.5, dtype=torch.float64, device=z.device))  # (B, ., V)
        law = torch.zeros_like(e, device="cpu")
        for lo in range(0, L, method.block):
            hi = lo + method.block
            if at is None or at[:, lo:hi].any():             # a sampler asks for one block
                law[:, lo:hi] = language.posterior(torch.cat([e[:, L:L + lo], e[:, lo:hi]], 1))[:, lo:]
        return law                                                                                  # (B, 2L - L', V)

    def denoiser(z, t, at=None, group=None, **layout):
        law = (blocks if hasattr(method, "block") else own_schedules if hasattr(method, "w_raw") else
               diffusion if hasattr(method, "process") else autoregressive)
        x_theta = (law(z, t, at) if group is None else partition(z, t, group)).to(z.device)         # (B, L, V)
        return rows(method.logits_of(x_theta, z, t) if hasattr(method, "logits_of") else x_theta.log(), at)

    return denoiser


def exact(method_name):
    """The oracle in the shape of checkpoint.restore: .config, .encoding, .method, .denoiser, .step"""
    corpus = ToyCorpus(block_size=32)
    method = make_method(method_name, corpus.encoding.n_vocab)
    config = SimpleNamespace(data="toy", method=method_name, block_size=corpus.block_size)
    return SimpleNamespace(config=config, encoding=corpus.encoding, method=method, step=0,
                           denoiser=oracle(corpus.language, method))
