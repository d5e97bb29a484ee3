"""
Two models on the same texts: the mean of the differences, text by text, with its own error.

    python evaluate.py --against out/python-ar     another checkpoint, on the same noise
    python evaluate.py --against ngram             the best n-gram of the train text (1.4)

A hard text is hard for both, so the difference has a far smaller error than either figure. n-grams
read each text with nothing before it, as the model does.
"""
import torch

from checkpoints.load import load_model
from data.tokenizer import to_json
from evaluation.errors import with_error
from evaluation.likelihood import mean_nats, nats_of, require_bound
from evaluation.ngram import ORDERS, text_nats
from flags import UserError

NGRAM = "ngram"


def load_rival(name, model, data, device):
    """What --against names, or None if it names nothing. UserError if it cannot read the texts."""
    if not name:
        return None
    require_bound(model, "--against")
    return NgramRival(data) if name == NGRAM else ModelRival(name, model, data, device)


class Rival:
    """Another model of the same texts."""
    name = None
    exact = True  # its nats are no bound

    def nats(self, held, config, padding):
        """Nats of each of the held-out texts. -> (n,)"""
        raise NotImplementedError

    def figures(self, nats, scored, held, padding, config, independent):
        """nats, scored (n,): of the model that is evaluated. -> dict of plain numbers"""
        theirs = self.nats(held, config, padding)  # (n,)
        mean, error = mean_nats(nats - theirs, scored, padding, independent)
        return {"against": {"name": self.name, "exact": self.exact, "difference": mean,
                            "difference_error": error}}


class ModelRival(Rival):
    def __init__(self, name, model, data, device):
        self.name, self.model = name, load_model(name, device)
        if self.model.method.classifies or to_json(self.model.encoding) != to_json(model.encoding):
            raise UserError(f"--against {name} must be a model of text with the same tokens")
        if self.model.config.block_size != data.block_size:
            raise UserError(f"--against {name} was trained on texts of "
                            f"{self.model.config.block_size} tokens, and these have "
                            f"{data.block_size}")
        require_bound(self.model, f"--against {name}")
        self.exact = self.model.method.exact

    def nats(self, held, config, padding):
        label = held.label if held.label is None else held.label.expand(len(held.x))  # (n,)
        return nats_of(self.model.method, self.model.denoiser, held.x, config.draws,
                       config.batch_size, held.frozen, config.seed,
                       label if self.model.classes else None, padding)[0]  # (n,)


class NgramRival(Rival):
    def __init__(self, data):
        self.train, self.V = data.ids("train"), data.encoding.n_vocab
        if not data.counts_words or data.pads or len(self.train) < max(ORDERS):
            raise UserError(f"--against {NGRAM}: {data.name} has no n-gram baseline; compare it "
                            "with another checkpoint")

    def nats(self, held, config, padding):
        found = text_nats(self.train, held.x.cpu().numpy(), self.V)  # {n: (n,)}
        best = min(found, key=lambda n: found[n].mean())
        self.name = f"the {best}-gram of tokens"
        return torch.from_numpy(found[best]).to(held.x.device) * held.x.shape[1]  # (n,)


def describe_difference(mean, error, what):
    """'0.0533 +- 0.0498 above WHAT', and whether two standard errors tell it from zero."""
    side = "above" if mean >= 0 else "below"
    unclear = ", not distinguishable from it" if abs(mean) <= 2 * error else ""
    return f"{with_error(abs(mean), error, '.4f')} {side} {what}{unclear}"
