"""
Rewards of texts, for rl.py: those of samplers/rewards.py, and three more.

    ""               what the data set rates first: whether a puzzle is solved, say
    topic:farm       p(topic | text), where the data set has a language with topics
    ngram, ngram:2   log p(text) by n-grams of the train text, in nats/token (1.4); n = 3, or 1 to 6
"""
import math

import torch

from evaluation.ngram import Ngrams
from flags import UserError
from samplers.rewards import read_reward

ORDERS = "1", "2", "3", "4", "5", "6"  # of n-grams


def make_reward(name, data, model):
    """The reward of that name for texts of a model and its data set; UserError if there is none.

    -> function of x (B, L) ids -> (B,) float64 on the device of x
    """
    kind, _, what = name.partition(":")
    if kind == "topic":
        return topic_reward(what, data)
    if kind == "ngram":
        return ngram_reward(what, data)
    if kind == "class":
        raise UserError("--reward class is for a search: give --reward topic:NAME, or leave it out")
    if name:
        score = read_reward(name, model)
        return lambda x: score(x).double()  # (B,)
    if not data.score(data.windows("val", 2)):
        topics = f"topic:{data.classes[0]} or " if data.has_language else ""
        raise UserError(f"{data.name} has no checker: give --reward {topics}match:PATTERN")
    return lambda x: data.score(x)[0][1].double().to(x.device)  # (B,)


def topic_reward(topic, data):
    if not data.has_language or topic not in data.classes:
        known = f"its topics are {', '.join(data.classes)}" if data.has_language else "it has none"
        raise UserError(f"--reward topic:{topic} is no topic of {data.name}: {known}")
    number = list(data.classes).index(topic)
    return lambda x: data.language.topic_posterior(x)[:, number].to(x.device)  # (B,)


def ngram_reward(order, data):
    """What no checker knows, counts do: whether words stand where they stand in the train text."""
    if not data.counts_words:
        raise UserError(f"--reward ngram counts words, and {data.name} has none that stand in a "
                        "text: leave out --reward")
    if (order or "3") not in ORDERS:
        raise UserError(f"--reward ngram:{order} is not ngram:1 .. ngram:6")
    n = int(order or 3)
    counts = Ngrams(data.ids("train"), data.encoding.n_vocab, n)
    nats = lambda x: torch.from_numpy(counts.text_nats(x.cpu().numpy())[n])  # (B,)
    return lambda x: -nats(x).to(x.device)  # (B,)


def event_kl(rate, before):
    """The least KL of any law under which an event of probability `before` has the probability
    `rate`, (22.9). -> nats"""
    if not 0 < before < 1:
        return 0.0 if rate == before else math.inf
    parts = ((rate, before), (1 - rate, 1 - before))
    return sum(a * math.log(a / b) for a, b in parts if a)
