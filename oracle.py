"""
The exact denoiser of the toy language, called like a network: oracle(language, method)(z, t, at) -> log x_theta.

What a network could at best learn, known without training. With it, a bound must equal the entropy, and a sampler in
many steps must speak the language itself; whatever is missing is the fault of the loss or the sampler, since nothing
else is left. The process says what each noisy token tells about its clean self (diffusion.py), and the language's
forward-backward recursion (data/toy.py) what all *other* tokens together tell: the leave-one-out law. sedd is given
its score, (33).
"""
from types import SimpleNamespace

import torch

from data.toy import ToyCorpus
from diffusion import likelihood
from methods import make_method


def rows(log_p, at):
    return log_p if at is None else log_p[at]


def inside(t):
    """At t = 1 a given word would be impossible, not just unlikely."""
    return t.double().clamp(1e-9, 1 - 1e-9)


def evidence(process, z, t):
    """What noisy tokens tell of clean ones. -> (B, L, N)"""
    return likelihood(process, z, inside(t))                                                        # (B, L, N)


def oracle(language, method):
    """A denoiser that is never wrong. For a process its leave-one-out law, for ar its next-token law, and for blocks
    the law given what is clean before the block, and its own masks: evidence is flat after a block. label (B,) tells
    it the topics; n_topics stands for none."""
    def autoregressive(z, t, at=None, label=None):
        """z = [start, x_0, .., x_(L-2)]; row l predicts x_l, and does not look at the x_l that is filled in here."""
        x = z.roll(-1, dims=1).clamp(max=language.V - 1)                                            # (B, L)
        return language.predict(x, label)                                                           # (B, L, V)

    def diffusion(z, t, at=None, label=None):
        e = (method.likelihood(z, inside(t)) if hasattr(method, "likelihood") else
             evidence(method.process, z, t))                                                        # (B, L, V)
        return language.posterior(e, topic=label)                                                   # (B, L, V)

    def own_schedules(z, t, at=None, label=None):
        """genmd4, whose masks are evidence: p(x_l | z)."""
        return language.posterior(method.likelihood(z, inside(t)), leave_one_out=False, topic=label)

    def partition(z, t, group, label=None):
        """Both groups of pgm in one pass: the evidence is flat on a token's own group."""
        own = [diffusion(z.masked_fill(g, method.process.mask), t, None, label) for g in (group, ~group)]
        return torch.where(group[..., None], *own)                                                  # (B, L, V)

    def blocks(z, t, at=None, label=None):
        """z = [noisy ; clean without the last block]; the law of the noisy half, and zeros for the clean one."""
        L = (z.shape[1] + method.block) // 2
        e = likelihood(method.process, z, torch.full((1, 1), 0.5, dtype=torch.float64, device=z.device))  # (B, ., V)
        law = torch.zeros_like(e, device="cpu")
        for lo in range(0, L, method.block):
            hi = lo + method.block
            if at is None or at[:, lo:hi].any():             # a sampler asks for one block
                seen = torch.cat([e[:, L:L + lo], e[:, lo:hi]], 1)                                  # (B, hi, V)
                law[:, lo:hi] = language.posterior(seen, topic=label)[:, lo:]
        return law                                                                                  # (B, 2L - L', V)

    def denoiser(z, t, at=None, group=None, label=None, **layout):
        law = (blocks if hasattr(method, "block") else own_schedules if hasattr(method, "w_raw") else
               diffusion if hasattr(method, "process") else autoregressive)
        p = law(z, t, at, label) if group is None else partition(z, t, group, label)                # (B, L, V)
        p = p.to(z.device)                                                                          # (B, L, V)
        return rows(method.logits_of(p, z, t) if hasattr(method, "logits_of") else p.log(), at)

    return denoiser


def classifier(language, process):
    """The exact p(y | z_t) of topics under the noise of a process, called like a trained classifier: classifier(z, t)
    -> log p (B, K). z: ids (B, L), or weights over symbols (B, L, V) at t (B, 1), through which gradients flow."""
    def log_posterior(z, t):
        if z.is_floating_point():
            symbols = torch.arange(process.V, device=z.device).expand(len(z), -1)                   # (B, V)
            e = z @ evidence(process, symbols, t)                                                   # (B, L, N)
        else:
            e = evidence(process, z, t)                                                             # (B, L, N)
        return language.topic_posterior(e).clamp(min=1e-300).log().to(z.device)                     # (B, K)
    return log_posterior


def exact(method_name):
    """The oracle in the shape of checkpoint.restore: .config, .encoding, .method, .denoiser, .step, .classes"""
    corpus = ToyCorpus(block_size=32)
    method = make_method(method_name, corpus.encoding.n_vocab)
    config = SimpleNamespace(data="toy", method=method_name, block_size=corpus.block_size)
    return SimpleNamespace(config=config, encoding=corpus.encoding, method=method, step=0,
                           classes=list(corpus.classes), denoiser=oracle(corpus.language, method))
