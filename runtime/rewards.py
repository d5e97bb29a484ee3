"""
Rewards of texts, for rl.py: those of samplers/rewards.py, and two more.

    ""               what the data set rates first: whether a puzzle is solved, say
    topic:farm       p(topic | text), where the data set has a language with topics
"""
import math

from flags import UserError
from samplers.rewards import read_reward


def make_reward(name, data, model):
    """The reward of that name for texts of a model and its data set; UserError if there is none.

    -> function of x (B, L) ids -> (B,) float64 on the device of x
    """
    kind, _, what = name.partition(":")
    if kind == "topic":
        return topic_reward(what, data)
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


def event_kl(rate, before):
    """The least KL of any law under which an event of probability `before` has the probability
    `rate`, (22.9). -> nats"""
    if not 0 < before < 1:
        return 0.0 if rate == before else math.inf
    parts = ((rate, before), (1 - rate, 1 - before))
    return sum(a * math.log(a / b) for a, b in parts if a)
