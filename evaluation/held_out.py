"""
Held-out text: which texts a model is scored on, the bound on them, and the exact entropy.
"""
import math
from dataclasses import replace
from typing import NamedTuple

import torch

from checkpoints.load import require_text
from data import load_data
from data.tokenizer import to_json
from evaluation.errors import mean_error, pooled_rate
from evaluation.likelihood import (
    bytes_per_scored,
    likelihood_figures,
    mean_nats,
    nats_of,
)
from flags import UserError
from oracle import exact_classifier
from samplers.generate import prepend_bos
from samplers.guidance import label_of

TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)  # noise levels at which a classifier is evaluated


# ---- the text

def data_of(model, name=""):
    """The data of a model in its own tokens: what it was trained on, or the data of that name."""
    saved = model.config
    if not (name or saved.data):
        raise UserError("a published model has no text of its own: give --data, what to evaluate "
                        "it on")
    if not name:
        require_text(saved.data, "this model", ", or name what to evaluate it on with --data")
    if not name and saved.tokenizer != "model":
        data = load_data(saved.data, saved.block_size, saved.tokenizer, saved.vocab_size,
                         sft=saved.sft)
        if to_json(data.encoding) == to_json(model.encoding) or model.text:
            return own_text(model, data)
    data = data_in_tokens_of(model, name or saved.data, saved.sft)
    return data if name else own_text(model, data)


def own_text(model, data):
    """The data, if they are what the model was trained on, or if it does not know that."""
    if model.text not in (None, data.fingerprint) or to_json(data.encoding) != to_json(
            model.encoding):
        raise UserError(f"{model.config.data} is not the text that this model was trained on: "
                        f"restore the text (or the Python) of then, or name what to evaluate it on "
                        f"with --data")
    return data


def data_in_tokens_of(model, name, sft=False):
    """The data of that name in the tokens of a model. UserError for data with tokens of its own."""
    data = load_data(name, model.config.block_size, model.encoding, sft=sft)
    if to_json(data.encoding) != to_json(model.encoding):
        raise UserError(f"{name} has tokens of its own, on which this model was not trained: give "
                        "other text")
    return data


class HeldOut(NamedTuple):
    """Texts to score a model on."""
    x: torch.Tensor  # (n, L)
    frozen: torch.Tensor  # (n, L) bool, True at given tokens; None: nothing is given
    label: torch.Tensor  # (1,) the class of all texts; None: of any class
    condition: torch.Tensor  # (n,) what the model is conditioned on; None: on nothing


def texts_of(model, data, config, device):
    """The texts of --split, at most --max_texts of them. With --label, those of that class only."""
    data.check_split(config.split)
    x, frozen, labels = data.example_windows(config.split, config.max_texts)  # (n, L) .. (n,)
    frozen = torch.zeros_like(x, dtype=torch.bool) if frozen is None else frozen  # (n, L)
    _, frozen = prepend_bos(model.method, x, frozen)  # (n, L)
    frozen = frozen.to(device) if frozen.any() else None  # (n, L)
    if not config.label:
        return HeldOut(x.to(device), frozen, None, None)
    if labels is None:
        raise UserError(f"--label {config.label}: {data.name} has no classes")
    label = label_of(config.label, data.classes, device)  # (1,)
    x = x[labels == label.cpu()].to(device)  # (n', L)
    if len(x) < 2:
        raise UserError(f"of {config.max_texts} held-out texts, fewer than two are {config.label}: "
                        "raise --max_texts")
    is_conditioned = model.classes and not config.classifier
    return HeldOut(x, None, label, label.expand(len(x)) if is_conditioned else None)


# ---- the bound

def bound_figures(model, data, held, config, rival=None, sampler=None):
    """The bound on held-out texts, beside the exact entropy if it is known. -> dict of numbers

    rival: who else is scored on the same texts (comparison.py), or None
    sampler: its texts may have the law of another model
    """
    x, frozen, label, condition = held
    padding, alone = data.padding(x), data.independent_texts  # (n, L)
    nats, scored = nats_of(model.method, model.denoiser, x, config.draws, config.batch_size, frozen,
                           config.seed, condition, padding)  # (n,) each
    lengths = data.lengths(x)  # (n,)
    scored = scored if lengths is None else lengths  # (n,)
    mean, error = mean_nats(nats, scored, data.unequal(x), alone)
    facts = {"method": model.config.method, "data": data.about, "split": config.split,
             "step": model.step, "draws": config.draws, "exact": model.method.exact}
    if measures := model.method.measures(model.denoiser, x, frozen, lengths):
        facts["measures"] = [(what, *mean_error(values, alone)) for what, values in measures]
    if not model.method.bounded:
        return facts | {"loss_per_token": mean, "loss_per_token_error": error, "texts": len(x),
                        "no_bound": model.method.unbounded_reason}
    figures = likelihood_figures(nats, scored, x, data, frozen, padding) | facts
    figures |= {"nats_per_token": mean, "standard_error": error}
    if size := bytes_per_scored(data):
        figures["bits_per_byte"] = mean / math.log(2) / size
    if data.answers:
        per_answer, answer_error = mean_error(nats, alone)
        figures |= {"nats_per_answer": per_answer, "nats_per_answer_error": answer_error}
    if rival:
        figures |= rival.figures(nats, scored, held, padding, config, alone)
    if sampler and sampler.follows and (law := sampler.follows(config)):
        figures |= law_figures(*law, held, config, padding, alone)
    exact, known = data.answer_nats(x), None if condition is None else label  # (n,)
    if data.language is not None and not (label is None and lengths is None):
        exact = -data.language.log_prob(x.cpu(), known)  # (n,)
    if exact is not None:  # of these very texts, so that the gap is a mean of differences
        entropy, entropy_error = pooled_rate(exact, scored.cpu(), alone)
        _, gap_error = pooled_rate(nats.cpu() - exact, scored.cpu(), alone)
    elif data.language is None:
        return figures
    else:
        entropy, entropy_error = data.language.entropy(data.block_size)
        gap_error = math.hypot(error, entropy_error)
    if lengths is not None:
        figures |= per_text(nats.cpu(), exact, alone)
    return figures | {"entropy": entropy, "entropy_error": entropy_error, "gap": mean - entropy,
                      "gap_error": gap_error}


def per_text(nats, exact, independent):
    """Nats of whole texts (n,), and their exact -log p (n,), or None. -> dict"""
    figures = dict(zip(("nats_per_text", "nats_per_text_error"), mean_error(nats, independent)))
    if exact is not None:
        names = ("entropy_per_text", "entropy_per_text_error")
        figures |= dict(zip(names, mean_error(exact, independent)))
    return figures


def law_figures(other, sentence, held, config, padding, independent):
    """What is known of the law of a sampler's texts: an exact model `other`, or None, on the same
    held-out texts, and a sentence. -> dict"""
    figures = {"says": sentence}
    if other:
        nats, scored = nats_of(other.method, other.denoiser, held.x, 1, config.batch_size,
                               held.frozen, config.seed, padding=padding)  # (n,) each
        mean, error = mean_nats(nats, scored, padding, independent)
        figures |= {"nats_per_token": mean, "nats_per_token_error": error}
    return {"law": figures}


def zero_shot_figures(model, name, config, device):
    """Perplexity and bits on other data, of which the model knows the tokens only."""
    data = data_in_tokens_of(model, name)
    x, frozen, *_ = texts_of(model, data, replace(config, label=""), device)  # (n, L) each
    padding = data.padding(x)  # (n, L)
    nats, scored = nats_of(model.method, model.denoiser, x, config.draws, config.batch_size, frozen,
                           config.seed, padding=padding)  # (n,) each
    figures = likelihood_figures(nats, scored, x, data, frozen, padding)
    return {**figures, "draws": config.draws, "split": config.split, "data": data.about}


def entropy_of(data, given_class=False):
    """The exact entropy of a known language, or that given the class. -> nats/token, error"""
    language, L = data.language, data.block_size
    entropy, error = (L / data.mean_length * a for a in language.entropy(L))
    if not given_class:
        return entropy, error
    posterior = language.topic_posterior(data.windows("val", 4000))  # (n, K)
    left, left_error = mean_error(torch.special.entr(posterior).sum(-1), True)  # H(class | text)
    prior = torch.special.entr(language.prior).sum().item()  # H(class)
    return entropy - (prior - left) / data.mean_length, math.hypot(error, left_error / L)


# ---- classifiers

@torch.no_grad()
def classifier_by_noise(noisy, classifiers, x, label, times, batch_size=64, seed=1337):
    """Several classifiers on the same noise. noisy: (x, t) -> z
    -> {time: [(nats, whether right), (n,) each]}"""
    torch.manual_seed(seed)
    results = {}
    for time in times:
        t = torch.full((len(x), 1), time, device=x.device)  # (n, 1)
        z, rows = noisy(x, t), []  # (n, L), or (n, L, V)
        for classifier in classifiers:
            parts = zip(z.split(batch_size), t.split(batch_size))
            log_p = torch.cat([classifier(*part).double().log_softmax(-1) for part in parts])
            nats = -log_p.gather(-1, label[:, None])[:, 0]  # (n,)
            rows.append((nats, log_p.argmax(-1) == label))
        results[time] = rows
    return results


@torch.no_grad()
def pairs_by_noise(method, network, x, times, batch_size=64, seed=1337):
    """The same for text and draws. -> {time: [(nats, share that is told right), (n,) each]}"""
    torch.manual_seed(seed)
    pairs = lambda t: zip(*(method.pairs_at(network, a, t.expand(len(a), 1))
                            for a in x.split(batch_size)))
    return {time: [tuple(map(torch.cat, pairs(torch.tensor([[time]], device=x.device))))]
            for time in times}


def classifier_rows(method, network, data, texts, device, batch_size=64, seed=1337, split="val"):
    """A classifier on held-out text at several noise levels, beside the exact p(y | z) if known; or
    what tells text from draws.

    -> [dict of plain numbers]
    """
    data.check_split(split)
    x, _, label = data.example_windows(split, texts)  # (n, L), (n,)
    classifiers, x = {"": network}, x.to(device)  # (n, L)
    if method.pairs_at:
        by_time = pairs_by_noise(method, network, x, TIMES, batch_size, seed)
    else:
        if data.language is not None:
            classifiers["exact_"] = exact_classifier(
                data.language, None if method.noise.draw_evidence else method.process)
        by_time = classifier_by_noise(method.noisy, classifiers.values(), x, label.to(device),
                                      TIMES, batch_size, seed)
    rows = []
    for t, results in by_time.items():
        rows.append({"t": t})
        for name, (nats, right) in zip(classifiers, results):  # (n,) each
            mean, error = mean_error(nats, data.independent_texts)
            accuracy, accuracy_error = mean_error(right.double(), data.independent_texts)
            rows[-1] |= {f"{name}nats": mean, f"{name}nats_error": error,
                         f"{name}accuracy": accuracy, f"{name}accuracy_error": accuracy_error}
    return rows
