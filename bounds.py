"""
What a model says of text that it did not write: bounds, perplexities, bits; the last word; multiple choice.

    nats/token    -log p (ar), or an upper bound on it (the rest), over the tokens that are not given
    perplexity    exp(nats/token), all nats over all tokens: long texts count more, as in the papers' tables
    bits/byte     nats/token / ln 2 / (bytes per token); bits/char likewise. The only ones that do not depend on tokens
    last word     LAMBADA (arXiv:1606.06031): all before the word is given. It is found if all of its tokens are the
                  likeliest in one pass (SDTT, 2410.21035), for ar one after the other; and -log p(word | before)
    choices       the choice of least -log p(choice | prompt), on the same noise for all; and of the least per byte

The exponential of a bound's mean is a bound on the perplexity. The error of exp(m) is exp(m) times that of m. How the
papers differ: docs/evaluation.md.
"""
import json
import math
from functools import partial
from pathlib import Path

import torch

from data import BadInput
from data.ngram import witten_bell
from data.tokenizer import encode
from diffusion import probabilities
from methods import make_sampler
from model import Told
from steering import end_of_text


# ---- the bound on many texts

@torch.no_grad()
def nats_of(method, denoiser, x, draws=1, batch_size=64, frozen=None, seed=1337, label=None, counted=None):
    """The mean of method.nelbo over `draws` draws of noise for each of the texts x (n, L). -> (n,) nats/text, (n,)
    tokens of it that were scored

    A seed fixes the noise, so that two models, or one at two times, are compared on the same noise.
    counted (n, L): the tokens that count, where texts are filled up; the rest is noised, and not scored.
    """
    torch.manual_seed(seed)
    device = x.device
    scored = scored_in(x, frozen, counted)                                                              # (n, L)
    total = torch.zeros(len(x), dtype=torch.float64, device=device)                                     # (n,)
    for _ in range(draws):
        order = torch.randperm(len(x)).to(device)        # (n,) any text may meet any stratum of time
        for rows in order.split(batch_size):                                                            # (b,)
            given = None if frozen is None else frozen[rows]                                            # (b, L)
            told = denoiser if label is None else Told(denoiser, label[rows])
            nats = method.nelbo(told, x[rows], given).double().masked_fill(~scored[rows], 0)            # (b, L)
            total[rows] += nats.sum(-1) / draws                                                         # (b,)
    return total, scored.sum(-1)


def scored_in(x, frozen=None, counted=None):
    """Tokens of texts x (n, L) that are not given, and that count. -> (n, L) bool"""
    scored = torch.ones_like(x, dtype=torch.bool) if frozen is None else ~frozen                        # (n, L)
    return scored if counted is None else scored & counted


def counted_in(corpus, x):
    """Which tokens of its texts (n, L) count, if not all: what fills a text up is noised but not scored."""
    return corpus.scored(x) if hasattr(corpus, "scored") else None


def mean_error(values):
    return values.mean().item(), (values.std() / len(values) ** 0.5).item() if len(values) > 1 else math.nan


def estimate(method, denoiser, x, draws=1, batch_size=64, frozen=None, seed=1337, label=None, counted=None):
    """The mean of nats/token and its standard error, which counts texts and noise alike: see `average`."""
    return average(*nats_of(method, denoiser, x, draws, batch_size, frozen, seed, label, counted), counted)


def average(nats, scored, counted=None):
    """Of texts (n,): the mean over texts of nats/token; or over all tokens alike, where texts are filled up."""
    return mean_error(nats / scored) if counted is None else pooled(nats, scored)


def pooled(nats, scored):
    """All nats over all tokens, of texts (n,), and the standard error of that ratio (first order)."""
    nats, scored = nats.double(), scored.double()                                                       # (n,) each
    rate = nats.sum() / scored.sum()                                                                    # ()
    return rate.item(), mean_error((nats - rate * scored) / scored.mean())[1]


def perplexity(nats, error):
    """exp(nats/token), and its standard error (first order)."""
    value = math.exp(min(nats, 700))                         # beyond, a float has no room
    return value, value * error


def unit(nats, error, bytes_per_token):
    """'1.234 +- 0.005 nats/token = 2.345 bits/byte'"""
    return f"{nats:.3f} +- {error:.3f} nats/token = {nats / math.log(2) / bytes_per_token:.3f} bits/byte"


def bytes_per_character(encoding, ids):
    """Of the text that ids spell. Special tokens spell nothing; a byte that goes on with a character begins none."""
    special = set(encoding._special_tokens.values())         # as in data/tokenizer.py: there is no public name
    ids, counts = ids.unique(return_counts=True)                                                        # (k,) each
    size, letters = 0, 0
    for i, n in zip(ids.tolist(), counts.tolist()):
        spelled = b"" if i in special else encoding.decode_single_token_bytes(i)
        size, letters = size + n * len(spelled), letters + n * sum(byte & 0xC0 != 0x80 for byte in spelled)
    return size / max(1, letters)


def figures(nats, scored, x, corpus, frozen=None, counted=None):
    """The papers' figures of texts x (n, L), from the nats and scored tokens of each (n,). -> dict of plain numbers"""
    rate, error = pooled(nats, scored)
    value, value_error = perplexity(rate, error)
    result = {"texts": len(x), "tokens": int(scored.sum()), "perplexity": value, "perplexity_error": value_error}
    if corpus.encoding.name not in ("words", "pixels"):
        ratio = bytes_per_character(corpus.encoding, x[scored_in(x, frozen, counted)])
        bits, bits_error = (a / math.log(2) / corpus.bytes_per_token for a in (rate, error))
        result |= {"bits_per_byte": bits, "bits_per_byte_error": bits_error, "bits_per_character": bits * ratio,
                   "bits_per_character_error": bits_error * ratio}
    return result


def league(corpus):
    """What counting alone reaches on the same held-out text: [(name, nats/token or None, bits/byte)]"""
    def bits(nats, bytes_per_symbol):
        return nats / math.log(2) / bytes_per_symbol

    rows = [("uniform over tokens", math.log(corpus.encoding.n_vocab))]
    if not hasattr(corpus, "sft"):                       # where questions are given, n-grams answer another one
        train, val = beginnings(corpus)
        of = ", first 2M" * (len(train) < len(corpus.train) or len(val) < len(corpus.val))
        rows += [(f"{n}-gram of tokens{of}", nats)
                 for n, nats in witten_bell(train, val, corpus.encoding.n_vocab).items()]
    rows = [(name, nats, bits(nats, getattr(corpus, "bytes_per_id", corpus.bytes_per_token))) for name, nats in rows]
    marks = corpus.encoding.special_tokens_set - {"<|endoftext|>"} or hasattr(corpus, "sft")
    if corpus.encoding.name in ("chars", "pixels", "words") or marks or hasattr(corpus, "beginning"):
        return rows                                      # tokens are the smallest part; or marks stand between them
    train, val = (corpus.text(ids).encode("utf-8", "replace") for ids in (train, val))
    train, val = (torch.frombuffer(bytearray(raw), dtype=torch.uint8).numpy() for raw in (train, val))
    return rows + [(f"{n}-gram of bytes", None, bits(nats, 1.0)) for n, nats in witten_bell(train, val, 256).items()]


def beginnings(corpus):
    """The train and held-out ids to count words in: all of them, or of a corpus in shards the first two million."""
    splits = ("train", "val")
    return [corpus.beginning(name) if hasattr(corpus, "beginning") else getattr(corpus, name) for name in splits]


# ---- the end of a text, given its beginning

def ending(model, prompt, rest, ends=False):
    """`rest` behind `prompt`: ids (1, L), frozen (1, L), False at the tokens of `rest`; BadInput if it does not fit.

    The space between them goes with `rest`, where tokens have it. ends: an end of text on either side. What is longer
    than a text of training, or does not fill blocks (bd3lm), loses its oldest tokens.
    """
    before = prompt.rstrip()
    space = prompt[len(before):] or " " * (before != "" and not rest[0].isspace())
    asked = encode(model.encoding, space + rest).tolist()
    end = [end_of_text(model.encoding)] if ends else []
    ids = [*end, *encode(model.encoding, before).tolist(), *asked, *end]
    length = min(len(ids), model.config.block_size)
    length -= length % getattr(model.method, "block", 1)
    start, stop = length - len(end) - len(asked), length - len(end)
    if start < 0:
        raise BadInput(f"{rest!r} has {len(asked)} tokens, and a text of {length} is to hold them")
    place = torch.arange(length)[None]                                                                  # (1, L)
    return torch.tensor([ids[len(ids) - length:]]), (place < start) | (place >= stop)


@torch.no_grad()
def fill(model, x, frozen):
    """The likeliest tokens where x (1, L) is not frozen: all in one pass, for ar from left to right. Where noise is
    words, the network at t = 1 believes none, not even given ones: there each is redrawn, given all others. -> (1, L)
    """
    name, greedy = model.config.method, partial(probabilities, temperature=0.0)
    if name in ("sedd", "d3pm") and model.method.vocab_size == model.method.n_tokens:      # no mask
        raise BadInput(f"--lambada fills words in greedily, which {name} does under masks alone: take --choices, "
                       "where bounds decide")
    again = dict(tail="gibbs", rounds=4 * int((~frozen).sum())) if name in ("udlm", "gidd", "duo") else {}
    z = torch.where(frozen, x, model.method.prior(x.shape, x.device))                                   # (1, L)
    *_, z = model.method.sample(model.denoiser, z, frozen, 1, make_sampler("ancestral", name, **again), greedy)
    return z


def conditional(model, x, frozen, draws, seed):
    """-log p of what is not frozen given the rest, by bound, from one seed for all texts. x, frozen (1, L) -> nats"""
    n = 1 if model.config.method == "ar" else draws          # which draws nothing
    return nats_of(model.method, model.denoiser, x.expand(n, -1), 1, n, frozen.expand(n, -1), seed)[0].mean().item()


def last_words(model, passages, draws, seed, device, ends=False):
    """LAMBADA: the last word of each passage, by greedy filling and by bound. -> dict of plain numbers"""
    right, nats = [], []
    for passage in passages:
        word = passage.split()[-1]
        before = passage.rstrip().removesuffix(word)
        x, frozen = (a.to(device) for a in ending(model, before, word, ends))                           # (1, L) each
        torch.manual_seed(seed)
        right.append(torch.equal(fill(model, x, frozen), x))
        nats.append(conditional(model, x, frozen, draws, seed))
    (share, share_error), (mean, error) = (mean_error(torch.tensor(row, dtype=torch.float64)) for row in (right, nats))
    value, value_error = perplexity(mean, error)
    return {"passages": len(right), "draws": draws, "accuracy": share, "accuracy_error": share_error,
            "nats_per_word": mean, "nats_per_word_error": error, "perplexity": value, "perplexity_error": value_error}


def multiple_choice(model, questions, draws, seed, device, ends=False):
    """[(prompt, choices, number of the right one)] -> share of questions of which the right choice is the likeliest,
    as it stands and per byte; dict of plain numbers"""
    right, right_per_byte, chance = [], [], []
    for prompt, choices, answer in questions:
        nats = []
        for choice in choices:
            x, frozen = (a.to(device) for a in ending(model, prompt, choice, ends))                     # (1, L) each
            nats.append(conditional(model, x, frozen, draws, seed))
        per_byte = [n / len(choice.strip().encode()) for n, choice in zip(nats, choices)]
        right.append(min(range(len(nats)), key=nats.__getitem__) == answer)
        right_per_byte.append(min(range(len(nats)), key=per_byte.__getitem__) == answer)
        chance.append(1 / len(choices))
    shares = {}
    for name, row in (("accuracy", right), ("accuracy_per_byte", right_per_byte)):
        shares[name], shares[name + "_error"] = mean_error(torch.tensor(row, dtype=torch.float64))
    return {"questions": len(right), "draws": draws, **shares, "chance": sum(chance) / len(chance)}


# ---- their files

def lines_of(path, read, form):
    """read(object) of every line of a .jsonl file, in a list; BadInput names the line that has not the form."""
    try:
        lines = Path(path).expanduser().read_text("utf-8-sig").split("\n")
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BadInput(f"{path} is not UTF-8 text: save it as UTF-8") from None
    found = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                found.append(read(json.loads(line)))
            except (ValueError, KeyError, TypeError, AttributeError):
                raise BadInput(f"{path}, line {number}: it should be {form}") from None
    if len(found) < 2:
        raise BadInput(f"{path} has fewer than two lines, and a standard error needs two")
    return found


def passages_of(path):
    """The texts of LAMBADA's file. -> list of str"""
    def read(line):
        if len(line["text"].split()) < 2:
            raise ValueError
        return line["text"]
    return lines_of(path, read, '{"text": "two words or more"}')


def questions_of(path):
    """-> [(prompt, choices, number of the right one)]"""
    def read(line):
        prompt, choices, answer = line["prompt"], line["choices"], line["answer"]
        if not isinstance(prompt, str) or len(choices) < 2 or not all(choice.strip() for choice in choices):
            raise ValueError
        if answer not in range(len(choices)):
            raise ValueError
        return prompt, choices, answer
    return lines_of(path, read, '{"prompt": "...", "choices": ["...", "..."], "answer": 0}, the number of a choice')
