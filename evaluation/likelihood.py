"""
How likely a model finds text that it did not write: bounds, perplexities, bits.

    nats/token    -log p, or an upper bound on it, over the tokens that are not given
    perplexity    exp(nats/token), all nats over all tokens, so that long texts count more, as in
                  the tables of the papers
    bits/byte     nats/token / ln 2 / (bytes per token); bits/character likewise. These are the only
                  figures that do not depend on the tokenizer

The exponential of the mean of a bound is a bound on the perplexity. The standard error of exp(m) is
exp(m) times that of m; that of m is in errors.py. How the papers differ from each other:
docs/evaluation.md.
"""
import math

import torch

from diffusion import Labeled
from evaluation.errors import mean_error, pooled_rate, with_error
from flags import UserError


@torch.no_grad()
def nats_of(method, denoiser, x, draws=1, batch_size=64, frozen=None, seed=1337, label=None,
            padding=None):
    """The mean of method.nelbo over `draws` draws of noise, for each of the texts x (n, L).

    -> nats per text (n,), and how many of its tokens were scored (n,)

    A seed fixes the noise, so that two models, or one model at two steps, meet the same noise.
    padding (n, L) is True where texts are filled up: these tokens are noised, but not scored.
    """
    torch.manual_seed(seed)
    device = x.device
    scored = scored_positions(x, frozen, padding)  # (n, L)
    total = torch.zeros(len(x), dtype=torch.float64, device=device)  # (n,)
    for _ in range(draws):
        order = torch.randperm(len(x)).to(device)  # (n,) any text may meet any stratum of time
        for rows in order.split(batch_size):  # (b,)
            given = None if frozen is None else frozen[rows]  # (b, L)
            conditioned = denoiser if label is None else Labeled(denoiser, label[rows])
            nats = method.nelbo(conditioned, x[rows], given).double()  # (b, L)
            total[rows] += nats.masked_fill(~scored[rows], 0).sum(-1) / draws  # (b,)
    return total, scored.sum(-1)


def scored_positions(x, frozen=None, padding=None):
    """The tokens of texts x (n, L) that are neither given nor padding. -> (n, L) bool"""
    scored = torch.ones_like(x, dtype=torch.bool) if frozen is None else ~frozen  # (n, L)
    return scored if padding is None else scored & ~padding  # (n, L)


def estimate_bound(method, denoiser, x, draws=1, batch_size=64, frozen=None, seed=1337,
                   label=None, padding=None, independent=False):
    """The mean of nats/token (see mean_nats) and its standard error over texts and noise.

    independent: whether the texts are; False for windows of a stream, in their order
    """
    nats, scored = nats_of(method, denoiser, x, draws, batch_size, frozen, seed, label, padding)
    return mean_nats(nats, scored, padding, independent)


def mean_nats(nats, scored, padding=None, independent=False):
    """The mean over texts (n,) of nats/token; where texts are padded, the mean over all tokens."""
    if padding is None:
        return mean_error(nats / scored, independent)
    return pooled_rate(nats, scored, independent)


def perplexity_of(nats, error):
    """exp(nats/token), and its standard error (first order)."""
    value = math.exp(min(nats, 700))  # larger values overflow a float
    return value, value * error


def bytes_per_scored(data):
    """UTF-8 bytes per scored token, which turns nats/token into bits/byte; None if there is no such
    figure: answers are scored with the ends that fill them up, some corpora hide their size, and
    puzzles are no text."""
    size = data.bytes_per_token
    return size if size and size > 0 and not data.answers else None  # unknown is nan


def format_nats(nats, error, size):
    """'1.234 +- 0.005 nats/token = 2.345 bits/byte'. size: see bytes_per_scored"""
    bits = f" = {nats / math.log(2) / size:.3f} bits/byte" if size else ""
    return f"{with_error(nats, error)} nats/token{bits}"


def bytes_per_character(encoding, ids):
    """UTF-8 bytes per character of the text that ids (n,) spell. Special tokens spell nothing."""
    special = set(encoding._special_tokens.values())  # tiktoken has no public name for them
    ids, counts = ids.unique(return_counts=True)  # (k,) each
    size, characters = 0, 0
    for i, n in zip(ids.tolist(), counts.tolist()):
        token = b"" if i in special else encoding.decode_single_token_bytes(i)
        size += n * len(token)
        characters += n * sum(byte & 0xC0 != 0x80 for byte in token)  # not continuation bytes
    return size / max(1, characters)


def likelihood_figures(nats, scored, x, data, frozen=None, padding=None):
    """Perplexity and bits of texts x (n, L), from the nats and the scored tokens of each (n,).

    -> dict of plain numbers
    """
    rate, error = pooled_rate(nats, scored, data.independent_texts)
    value, value_error = perplexity_of(rate, error)
    figures = {"texts": len(x), "tokens": int(scored.sum()),
               "perplexity": value, "perplexity_error": value_error}
    size = bytes_per_scored(data)
    if size and data.is_text and data.language is None:  # pixels and toy words spell no bytes
        ratio = bytes_per_character(data.encoding, x[scored_positions(x, frozen, padding)])
        bits, bits_error = (a / math.log(2) / size for a in (rate, error))
        figures |= {
            "bits_per_byte": bits, "bits_per_byte_error": bits_error,
            "bits_per_character": bits * ratio, "bits_per_character_error": bits_error * ratio}
    return figures
