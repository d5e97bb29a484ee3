"""
How well a network answers: the questions that it answers right, and the choices that it gets right.

    answer_nll   -log p(answer | prompt) <= E_k E_z sum_l [z_l = m] (n/k) cross-entropy, which is
                 (3.1) on the n tokens of the answer: the mean of some draws, whose numbers of masks
                 k are spread evenly over 1 .. n

The network is fine-tuned on answers (train.py --sft); samplers/reply.py has its replies.
"""
import torch

from data.chat import ids_of
from samplers.generate import writer_of
from samplers.reply import answer, reply


@torch.no_grad()
def answer_nll(method, denoiser, x, frozen, draws):
    """The bound on -log p(answer | prompt) of each text, from `draws` draws of noise.

    x, frozen (B, L) -> nats (B,), standard errors (B,), which are too large for stratified draws
    """
    nats = [method.nelbo(denoiser, row.expand(draws, -1), given.expand(draws, -1)).double().sum(-1)
            for row, given in zip(x, frozen)]  # B times (draws,)
    nats = torch.stack(nats)  # (B, draws)
    return nats.mean(-1), nats.std(-1) / draws ** 0.5  # (B,) each


def answers(model, denoiser, x, frozen, config):
    """The answers to the prompts of x (B, L), in batches of prompts of one length. -> B texts"""
    starts, texts = frozen.sum(-1), [None] * len(x)  # (B,)
    for start in starts.unique():
        for rows in (starts == start).nonzero()[:, 0].split(config.batch_size):  # (b,)
            writer = writer_of(config, model, denoiser, frozen[rows[0]], stride=None)
            z = reply(writer, x[rows], frozen[rows], model.encoding.eot_token)  # (b, L)
            for i, row in zip(rows.tolist(), z):
                texts[i] = answer(row, int(start), model.encoding)
    return texts


def offered_answers(chats, i, fits, n=4):
    """The right answer of chat i, then n - 1 different ones from the next chats of its kind."""
    kind, (*_, right) = chats[i]
    others = dict.fromkeys(messages[-1] for other, messages in [*chats[i + 1:], *chats[:i]]
                           if other == kind and messages[-1] != right)
    return [right, *[text for text in others if fits(text)][:n - 1]]


def likeliest_choice(model, denoiser, messages, offered, length, draws, seed, device):
    """Multiple choice by likelihood, on the same noise for all. -> number of the answer offered"""
    start, nats = len(ids_of(model.encoding, messages[:-1])), []
    frozen = (torch.arange(length, device=device) < start)[None]  # (1, L)
    for text in offered:
        ids = ids_of(model.encoding, [*messages[:-1], text])
        ids = ids + [model.encoding.eot_token] * (length - len(ids))
        x = torch.tensor([ids], device=device)  # (1, L)
        torch.manual_seed(seed)
        nats.append(answer_nll(model.method, denoiser, x, frozen, draws)[0].item())
    return min(range(len(nats)), key=nats.__getitem__)


def score_answers(model, denoiser, data, config, device):
    """--num_samples questions of each split: answered, and for held-out ones a choice among four.

    -> rows, one for each kind of question and one for all: (kind, held-out questions, share of
       answers that are right to the letter, share of right choices; training questions, share of
       right answers)
    """
    marks = {}
    for split in ("val", "train"):
        rows = data.spread(split, config.num_samples)  # (m,)
        x, frozen, _ = data.select(split, rows)  # (m, L) each
        torch.manual_seed(config.seed)
        texts = answers(model, denoiser, x.to(device), frozen.to(device), config)
        for i, text in zip(rows.tolist(), texts):
            kind, messages = data.chats[split][i]
            right = {split: text == messages[-1].strip()}
            if split == "val":
                right["choice"] = chooses_right(model, data, i, config, device)
            for name in (kind, "all"):
                row = marks.setdefault(name, {"val": [], "choice": [], "train": []})
                for what, is_right in right.items():
                    row[what].append(is_right)
    share = lambda marks: sum(marks) / len(marks) if marks else None
    kinds = sorted(marks, key=lambda kind: (kind == "all", kind))
    return [(kind, len(m["val"]), share(m["val"]), share(m["choice"]), len(m["train"]),
             share(m["train"])) for kind, m in ((kind, marks[kind]) for kind in kinds)]


def chooses_right(model, data, i, config, device):
    """Whether the right answer of held-out chat i is the likeliest of four."""
    _, messages = data.chats["val"][i]
    fits = lambda text: len(ids_of(data.encoding, [*messages[:-1], text])) < data.block_size
    offered = offered_answers(data.chats["val"], i, fits)
    return 0 == likeliest_choice(model, model.denoiser, messages, offered, data.block_size,
                                 config.draws, config.seed, device)
