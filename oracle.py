"""
The exact denoiser of the toy language, or of its sentences where texts may have any length, in the
place of a trained network.

Through it a bound must equal the entropy of the language, and a sampler with many steps must draw
from the language. Any gap is an error of the loss or of the sampler, since there is no network.

The likelihood of each noisy token is its evidence, and the language's forward-backward recursion
(data/toy.py) turns the evidence of all other tokens into the leave-one-out distribution. Each
method builds its oracle from these two: Method.oracle in methods/base.py.
"""
from types import SimpleNamespace

import torch

from data.sentences import SentenceCorpus
from data.toy import ToyCorpus
from diffusion import likelihood
from flags import UserError, load_row
from methods import METHODS, make_method
from methods.base import inside


def exact(method_name, **options):
    """The oracle in the form of load_model: .config .encoding .method .denoiser .step .classes"""
    any_length = load_row(METHODS, method_name).any_length
    data = SentenceCorpus() if any_length else ToyCorpus(block_size=32)
    method = make_method(method_name, data.encoding.n_vocab, **options)
    method.on_data(data)
    if method.classifies:
        raise UserError(f"--oracle {method_name} writes no text: name a language model")
    config = SimpleNamespace(data=data.name, tokenizer="model", sft=False, method=method_name,
                             block_size=data.block_size)
    return SimpleNamespace(config=config, encoding=data.encoding, method=method, step=0, text=None,
                           classes=list(data.classes), denoiser=method.oracle(data.language))


def exact_classifier(language, process):
    """The exact p(y | z_t) of the classes of a language, called like a trained classifier.

    classifier(z, t) -> log p (B, K). z: ids (B, L), or weights over symbols (B, L, V) at t (B, 1),
    through which gradients flow. process None: z is the evidence itself, p(z_l | x_l = v) up to a
    factor, or clean soft text (B, L, V).
    """
    def log_posterior(z, t):
        if process is None:
            e = z  # (B, L, n_tokens)
        elif z.is_floating_point():
            symbols = torch.arange(process.V, device=z.device).expand(len(z), -1)  # (B, V)
            e = z @ likelihood(process, symbols, inside(t))  # (B, L, n_tokens)
        else:
            e = likelihood(process, z, inside(t))  # (B, L, n_tokens)
        p = language.topic_posterior(e)  # (B, K)
        return p.clamp(min=1e-300).log().to(z.device)  # (B, K)
    return log_posterior
