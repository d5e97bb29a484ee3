"""
Chapter 22. Rewards of whole texts, and what every search shares.

A reward is a function of texts, score(x (n, L)) -> (n,): larger is better. A search draws from the
law p(x) of its walk, tilted towards the reward by the temperature lam, --lam:

    p*(x) = p(x) exp(r(x) / lam) / Z,   Z = sum_x p(x) exp(r(x) / lam)                       (22.10)

To be --reward, one of

    class          log p(y | x) by --classifier, of the class --label: with lam = 1, p* is p(x | y)
    solved         whether the data set's checker accepts the answer: 1 or 0
    grammatical    whether the text follows the grammar of the data set: 1 or 0
    match:PATTERN  whether the regular expression is found in the text: 1 or 0
    log_p:MODEL    log p(x) by a run of ar, or for the toy language the oracle ar, in nats

Only this file knows what a text must be like. A reward reads complete texts: never one with masks.
"""
import re
from collections import Counter
from dataclasses import dataclass, field

import torch

from data import load_data
from data.tokenizer import decode
from flags import UserError, flag
from samplers.base import MaskSampler
from samplers.guidance import label_of
from suggest import suggest


def data_of_model(model):
    """The data set that a model was trained on."""
    return load_data(model.config.data, model.config.block_size, model.encoding)


def parses(table, x):
    """Whether texts x (n, L) follow an automaton, a table (S, V) of states that begins in state 0
    and has -1 where no word fits. -> (n,) bool"""
    state = torch.zeros(len(x), dtype=torch.long, device=x.device)  # (n,)
    for word in x.unbind(1):
        state = torch.where(state < 0, -1, table[state, word])  # (n,) -1 stays: no way leads back
    return state >= 0  # (n,)


def solved(model, _):
    data = data_of_model(model)
    nothing = torch.zeros(1, model.config.block_size, dtype=torch.long)  # (1, L)
    if not data.prompted or "solved" not in dict(data.score(nothing)):
        raise UserError(f"--reward solved is for puzzles: {model.config.data} has no answers to "
                        "check")
    return lambda x: dict(data.score(x))["solved"].to(x.device)  # (n,)


def grammatical(model, _):
    table = data_of_model(model).automaton
    if table is None:
        raise UserError(f"--reward grammatical: {model.config.data} has no grammar that is known")
    return lambda x: parses(table.to(x.device), x).double()  # (n,)


def contains(model, pattern):
    try:
        found = re.compile(pattern).search
    except re.error as error:
        raise UserError(f"--reward match:{pattern} is no regular expression: {error}") from None
    has = lambda row: bool(found(decode(model.encoding, row)))
    return lambda x: torch.tensor([has(row) for row in x.tolist()], device=x.device).double()


def log_p(model, name):
    judge = model.beside("--reward log_p:", name)
    if not judge.method.exact:
        raise UserError(f"--reward log_p:{name} is a run of {judge.method.name}, which has a bound "
                        "and no probabilities: give a run of ar")
    return lambda x: -judge.method.nelbo(judge.denoiser, x).double().sum(-1)  # (n,)


def of_class(model, _):
    def not_yet(x):
        raise UserError("--reward class is log p(class | text): give --classifier and --label, or "
                        "another --reward")
    return not_yet  # until `aim`


# name: (model, what stands after the colon) -> score(x (n, L)) -> (n,)
REWARDS = {"class": of_class, "solved": solved, "grammatical": grammatical, "match": contains,
           "log_p": log_p}
TAKES = {"match": "a regular expression", "log_p": "a run of ar"}  # what stands after the colon


def default_reward(model):
    """The reward that needs nothing but the data; UserError if there is none."""
    data = data_of_model(model)
    if data.prompted:
        return "solved"
    if data.automaton is not None:
        return "grammatical"
    raise UserError(f"say what to look for: {model.config.data} has no checker and no grammar, so "
                    "give --reward match:PATTERN or log_p:MODEL, or --classifier and --label")


def read_reward(text, model):
    """The reward that --reward names, for texts of a model; or UserError."""
    name, _, rest = text.partition(":")
    if name not in REWARDS:
        raise UserError(f"--reward {text} is not one of {', '.join(REWARDS)}"
                        f"{suggest(name, list(REWARDS))}")
    if bool(rest) != (name in TAKES):
        raise UserError(f"--reward {name} takes {TAKES[name]}, as in {name}:..." if name in TAKES
                        else f"--reward {name} takes nothing after it: leave out :{rest}")
    return REWARDS[name](model, rest)


@dataclass(eq=False)
class Search(MaskSampler):
    """A sampler that looks for texts of high reward. Without one, before `prepare`, all texts are
    alike, and it writes one by its walk."""
    reward: str = flag("", "what to look for: class, solved, grammatical, match:PATTERN or "
                       "log_p:MODEL; empty: what the data can check", text=True,
                       classifier="class")
    score: object = None  # x (n, L) -> (n,)
    judge: object = None  # (z, t) -> log p(y | z) (n,), for --reward class
    spent: Counter = field(default_factory=Counter)  # by all texts
    spent_before: Counter = field(default_factory=Counter)  # by all batches but the last

    @property
    def draws_from_model(self):
        return self.score is None

    @property
    def by_class(self):
        return self.reward == "class"

    def fits(self, method):
        if reason := super().fits(method):
            return reason
        if not method.bidirectional or method.left_to_right:
            return f"rates whole texts, and {method.name} does not write them at once"

    def prepare(self, model):
        self.reward = self.reward or default_reward(model)
        self.score = read_reward(self.reward, model)
        self.judge = lambda z, t: self.score(z)  # (n,) says what is missing, until `aim`

    def aim(self, classifier, config, device):
        """Take a class as the reward. classifier: of checkpoints.load.load_classifier, or None
        -> itself"""
        if classifier is None:
            self.score(None)  # says so
        if config.guidance != 1:
            raise UserError("--lam says here how much the class counts: leave out --guidance "
                            f"{config.guidance:g}, and divide --lam by it")
        network, classes, _ = classifier
        label = label_of(config.label, classes, device)  # (1,)
        self.judge = lambda z, t: network(z, t).double().log_softmax(-1)[:, label[0]]  # (n,)
        self.score = lambda x: self.judge(x, torch.zeros(len(x), 1, device=x.device))  # (n,)
        return self

    def rate(self, x):
        """r(x), counted. (n, L) -> (n,) float64"""
        self.spent.update(texts_rated=len(x))
        return self.score(x).double()  # (n,)

    def costs(self, whole=False):
        """Of the last batch, or of all texts."""
        before = {} if whole else self.spent_before
        return {what: n - before.get(what, 0) for what, n in self.spent.items()}

    def begin(self):
        """A new batch, for `costs`."""
        self.spent_before = self.spent.copy()

    def follows(self, config):
        return None, ("the likelihood of these texts is not known: they are chosen by "
                      f"--reward {self.reward}")
