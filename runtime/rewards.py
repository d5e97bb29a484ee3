"""
Rewards of texts, for rl.py: a checker of the data set, a topic of its language, or some letters.

    ""               what the data set rates first: whether a puzzle is solved, say
    topic:farm       p(topic | text), where the data set has a language with topics
    contains:whale   1 if the answer has these letters, else 0

Given tokens earn nothing: a checker compares the answer with them, and letters in them do not count.
"""
import math

import torch

from flags import UserError


def make_reward(name, data):
    """The reward of that name on texts of a data set; UserError if it has none.

    -> function of x (B, L) ids, frozen (B, L) -> (B,) float64 on the device of x
    """
    kind, _, what = name.partition(":")
    if name and (kind not in ("topic", "contains") or not what):
        raise UserError(f"--reward {name} is not topic:NAME or contains:LETTERS; leave it out for "
                        "the checker of the data set")
    if kind == "topic":
        return topic_reward(what, data)
    if kind == "contains":
        return letters_reward(what, data)
    if not data.score(data.windows("val", 2)):
        topics = f"topic:{data.classes[0]} or " if data.has_language else ""
        raise UserError(f"{data.name} has no checker: give --reward {topics}contains:LETTERS")
    return lambda x, frozen: data.score(x)[0][1].double().to(x.device)  # (B,)


def topic_reward(topic, data):
    if not data.has_language or topic not in data.classes:
        known = f"its topics are {', '.join(data.classes)}" if data.has_language else "it has none"
        raise UserError(f"--reward topic:{topic} is no topic of {data.name}: {known}")
    number = list(data.classes).index(topic)
    return lambda x, frozen: data.language.topic_posterior(x)[:, number].to(x.device)  # (B,)


def letters_reward(letters, data):
    def reward(x, frozen):
        rows = zip(x.tolist(), frozen.tolist())
        answers = [data.text([i for i, given in zip(*row) if not given]) for row in rows]
        found = [letters in answer for answer in answers]
        return torch.tensor(found, dtype=torch.float64, device=x.device)  # (B,)
    return reward


def event_kl(rate, before):
    """The least KL of any law under which an event of probability `before` has the probability
    `rate`, (22.9). -> nats"""
    if not 0 < before < 1:
        return 0.0 if rate == before else math.inf
    parts = ((rate, before), (1 - rate, 1 - before))
    return sum(a * math.log(a / b) for a, b in parts if a)
