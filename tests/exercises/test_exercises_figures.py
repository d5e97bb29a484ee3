"""The graders of exercises 21 to 23, about figures that others publish (exercises/README.md)."""
import math
from collections import Counter
from itertools import permutations, product
from types import SimpleNamespace

import torch

from diffusion import Absorbing
from exercises import predictions
from graders import DOUBLE, check_close, hint
from methods import make_method
from methods.mdlm import any_order
from samplers import make_sampler

# ---- 21: bits per byte

def published_record(text, vocabulary):
    """What a unigram model of a text costs, word by word, and how it was published.
    -> the record, the bits per byte of the code that it describes"""
    words = text.split(" ")
    counts = Counter(words)
    nats = [-math.log(counts[word] / len(words)) for word in words]
    size = sum(len(f"{word} ".encode()) for word in vocabulary) / len(vocabulary)
    record = {"nats_per_token": sum(nats) / len(words), "bytes_per_token": size,
              "bits_per_byte": sum(nats) / len(words) / math.log(2) / size, "tokens": len(words),
              "characters": len(text) + 1, "bytes": len(f"{text} ".encode())}
    return record, sum(nats) / math.log(2) / record["bytes"]


def test_exercise_21_bits_per_byte_are_those_of_the_code():
    text = "el niño y la niña van a la playa y el perro no va a la playa con el niño"
    for text in (text, text + " y la niña no va con el perro"):
        vocabulary = set(text.split(" ")) | {"desafortunadamente", "electroencefalografista"}
        record, exact = published_record(text, vocabulary)
        nats, n, size = (record[name] for name in ("nats_per_token", "tokens", "bytes"))
        with hint("a record is a dict of numbers"):
            ours = predictions.bits_per_byte_of(dict(record))
        check_close("the bits per byte of the record", ours, exact, 1e-6, {
            "you trust its bytes_per_token: in the text, short words are the frequent ones":
                record["bits_per_byte"], "these are nats per byte: divide by ln 2": nats * n / size,
            "you multiply by ln 2": nats * math.log(2) * n / size,
            "characters are not bytes: ñ has two": nats / math.log(2) * n / record["characters"],
            "these are bits per token": nats / math.log(2),
            "tokens and bytes are exchanged": nats / math.log(2) * size / n})


# ---- 22: a likelihood without the model

def test_exercise_22_the_prediction_is_what_the_code_reports():
    process, length = Absorbing(2), 6
    x = torch.zeros(60_000, length, dtype=torch.long)  # (n, L)
    for seed in (1, 2):
        g = torch.Generator().manual_seed(seed)
        ar, masked = 0.2 + 2 * torch.rand(2, length, generator=g, dtype=DOUBLE)  # (L,) each
        logits = torch.stack([-ar, torch.log1p(-(-ar).exp())], -1)  # (L, 2) word 0 costs ar
        judge = SimpleNamespace(method=make_method("ar", 2),
                                denoiser=lambda z, t, at: logits.expand(*z.shape, 2)[at])
        sampler = make_sampler("energy", make_method("mdlm", 2), energy="its folder", carry=True)
        sampler.judge = judge
        torch.manual_seed(seed)
        z, k, n = any_order(process, x, torch.rand(len(x), 1))  # (n, L), (n, 1), (n, 1)
        log_p = sampler.rate(z, None, z == process.mask, None)(x)  # (n,)
        measured = (n / k)[:, 0] * -log_p  # (n,)
        with hint("ar_nats and masked_nats are lists of numbers"):
            ours = predictions.report_of_carry_over(ar.tolist(), masked.tolist())
        check_close("your prediction of the report", ours, measured.mean(), 0.1, {
            "it were the bound of the masked model: where does masked_nats enter the sum?":
                masked.sum(), "1/t did not make up for the tokens that are no masks": ar.sum() / 2,
            "it were nats per token": ar.mean(), "both counted": ar.sum() + masked.sum(),
            "both counted half": (ar.sum() + masked.sum()) / 2})


# ---- 23: the bias of a policy gradient

def gradients_of_both(length):
    """The gradients of E r and of E r log q, q of masks alone, in the logits of every state.

    -> (3^length length 2,) each
    """
    x = torch.tensor(list(product(range(2), repeat=length)))  # (n, L)
    logits = torch.zeros(3 ** length, length, 2, dtype=DOUBLE, requires_grad=True)
    base = 3 ** torch.arange(length)  # (L,)
    orders = torch.tensor(list(permutations(range(length))))  # (m, L) when each word opens
    log_q = torch.zeros(len(orders), len(x), dtype=DOUBLE)  # (m, n)
    for step in range(length):
        z = torch.where(orders[:, None] < step, x, 2)  # (m, n, L)
        log_p = logits.log_softmax(-1)[(z * base).sum(-1)]  # (m, n, L, 2)
        words = log_p.gather(-1, x.expand_as(z)[..., None])[..., 0]  # (m, n, L)
        log_q = log_q + torch.where(orders[:, None] == step, words, 0.0).sum(-1)  # (m, n)
    from_masks = logits[-1].log_softmax(-1).gather(-1, x.T)  # (L, n)
    r = (x == 0).all(-1).double() - 0.5 ** length  # (n,) less its mean
    values = (log_q.exp().mean(0) @ r, 0.5 ** length * from_masks.sum(0) @ r)  # () each
    return [torch.autograd.grad(value, logits, retain_graph=True)[0].flatten() for value in values]


def test_exercise_23_the_prediction_is_the_bias_of_the_code():
    for length in (1, 2, 3, 4):
        exact, mean_field = gradients_of_both(length)
        cosine = torch.nn.functional.cosine_similarity(exact, mean_field, 0)  # ()
        with hint("length is a whole number"):
            ours = predictions.cosine_of_a_mean_field(length)
        check_close(f"your prediction for {length} words", ours, cosine, 1e-6, {
            "the mean field were the sampler: it is, in one step": 1.0,
            "you took no root of the sum of squares": cosine ** 2,
            "there were one state for each number of open words": length ** -0.5,
            "all sets of open words were as likely, so that they need no weights":
                2 ** (-(length - 1) / 2)})
