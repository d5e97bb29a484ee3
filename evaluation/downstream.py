"""
What a model makes of questions: the last word of a passage, and multiple choice.

    last word   LAMBADA (arXiv:1606.06031): all text before the word is given. The word is found if
                all of its tokens are the likeliest ones, in one pass (SDTT, arXiv:2410.21035), or
                one after the other from left to right. Also -log p(word | text before)
    choices     the choice of least -log p(choice | prompt), on the same noise for all choices; and
                the one of least nats per byte

For most methods -log p is an upper bound. How the papers differ: docs/evaluation.md.
"""
from functools import partial

import torch

from data.reading import read_json_lines, to_utf8
from data.tokenizer import encode, end_of_text
from diffusion import probabilities
from evaluation.errors import mean_error
from evaluation.likelihood import nats_of, perplexity_of
from flags import UserError
from samplers import make_sampler


def prompt_and_ending(model, prompt, ending, ends=False):
    """`ending` behind `prompt` as ids (1, L); frozen (1, L) is False at the tokens of `ending`.

    The space between them belongs to `ending`, as in most tokenizers. ends: put an end of text on
    either side. The oldest tokens are dropped if the text is longer than in training, or does not
    consist of whole blocks. UserError if `ending` itself does not fit.
    """
    before = prompt.rstrip()
    space = prompt[len(before):] or " " * (before != "" and not ending[0].isspace())
    scored = encode(model.encoding, space + ending).tolist()
    end = [end_of_text(model.encoding)] if ends else []
    ids = [*end, *encode(model.encoding, before).tolist(), *scored, *end]
    length = min(len(ids), model.config.block_size)
    length -= length % (model.method.block_length or 1)
    start, stop = length - len(end) - len(scored), length - len(end)
    if start < 0:
        raise UserError(f"{ending!r} has {len(scored)} tokens, more than a text of {length} holds")
    place = torch.arange(length)[None]  # (1, L)
    return torch.tensor([ids[len(ids) - length:]]), (place < start) | (place >= stop)  # (1, L) each


def before_and_last(passage):
    """-> the text before the last word, the word"""
    word = passage.split()[-1]
    return passage.rstrip().removesuffix(word), word


@torch.no_grad()
def fill_greedily(model, x, frozen):
    """x (1, L) with the likeliest tokens where it is not frozen. -> (1, L)

    They come from one pass, or token by token from left to right. If noise is words, a network can
    tell nothing at t = 1, where even given tokens may be wrong: then tokens are redrawn one at a
    time, given all others.
    """
    method = model.method
    if method.revises_text and method.samplers is not None:  # no sampler redraws its tokens
        raise UserError(f"--lambada fills in words greedily, which {model.config.method} does "
                        "under masks only: use --choices, where bounds decide")
    redraw = dict(corrector="gibbs", rounds=4 * int((~frozen).sum()))
    sampler = make_sampler("ancestral" if method.takes_steps else method.first_choice, method,
                           **(redraw if method.revises_text else {}))
    z = torch.where(frozen, x, method.prior(x.shape, x.device))  # (1, L)
    *_, z = method.sample(model.denoiser, z, frozen, 1, sampler,
                          partial(probabilities, temperature=0.0))  # (1, L)
    return z


def conditional_nats(model, x, frozen, draws, seed):
    """-log p of the tokens of x (1, L) that are not frozen, given the others: exact, or a bound."""
    n = 1 if model.method.exact else draws
    nats, _ = nats_of(model.method, model.denoiser, x.expand(n, -1), 1, n, frozen.expand(n, -1),
                      seed)  # (n,)
    return nats.mean().item()


def last_words(model, passages, draws, seed, device, ends=False):
    """The last word of each passage, by greedy filling and by bound. -> dict of plain numbers"""
    found, nats = [], []
    for passage in passages:
        x, frozen = (a.to(device)
                     for a in prompt_and_ending(model, *before_and_last(passage), ends))  # (1, L)
        torch.manual_seed(seed)
        found.append(torch.equal(fill_greedily(model, x, frozen), x))
        nats.append(conditional_nats(model, x, frozen, draws, seed))
    share, share_error = mean_error(torch.tensor(found, dtype=torch.float64), True)
    mean, error = mean_error(torch.tensor(nats, dtype=torch.float64), True)
    value, value_error = perplexity_of(mean, error)
    return {"passages": len(found), "draws": draws,
            "accuracy": share, "accuracy_error": share_error,
            "nats_per_word": mean, "nats_per_word_error": error,
            "perplexity": value, "perplexity_error": value_error}


def multiple_choice(model, questions, draws, seed, device, ends=False):
    """How often the right choice is the likeliest one, as it stands and per byte.

    questions: [(prompt, choices, number of the right one)] -> dict of plain numbers
    """
    right, right_per_byte, chance = [], [], []
    for prompt, choices, answer in questions:
        nats = []
        for choice in choices:
            x, frozen = prompt_and_ending(model, prompt, choice, ends)  # (1, L) each
            nats.append(conditional_nats(model, x.to(device), frozen.to(device), draws, seed))
        sizes = [len(to_utf8(choice.strip(), "surrogateescape")) for choice in choices]
        per_byte = [n / size for n, size in zip(nats, sizes)]
        right.append(min(range(len(nats)), key=nats.__getitem__) == answer)
        right_per_byte.append(min(range(len(nats)), key=per_byte.__getitem__) == answer)
        chance.append(1 / len(choices))
    shares = {}
    for name, row in (("accuracy", right), ("accuracy_per_byte", right_per_byte)):
        mean, error = mean_error(torch.tensor(row, dtype=torch.float64), True)
        shares |= {name: mean, name + "_error": error}
    return {"questions": len(right), "draws": draws, **shares, "chance": sum(chance) / len(chance)}


# ---- the files of questions

PASSAGE = '{"text": "two words or more"}'
QUESTION = '{"prompt": "...", "choices": ["...", "..."], "answer": 0}, the number of a choice'


def read_passages(path, model, ends=False):
    """The texts of LAMBADA's file; UserError names the line that is wrong. -> list of str"""

    def read(line):
        text = line.get("text") if isinstance(line, dict) else None
        if not isinstance(text, str) or len(text.split()) < 2:
            raise ValueError("there is no text of two words")
        prompt_and_ending(model, *before_and_last(text), ends)
        return text
    return at_least_two(path, read_json_lines(path, read, "a passage", PASSAGE))


def read_questions(path, model, ends=False):
    """-> [(prompt, choices, number of the right one)]. UserError names the line that is wrong."""

    def read(line):
        known = line if isinstance(line, dict) else {}
        prompt, choices, answer = (known.get(key) for key in ("prompt", "choices", "answer"))
        if not isinstance(prompt, str):
            raise ValueError("there is no prompt")
        if not isinstance(choices, list) or not all(
                isinstance(choice, str) and choice.strip() for choice in choices):
            raise ValueError("the choices are no list of texts")
        if len({choice.strip() for choice in choices}) < max(2, len(choices)):
            raise ValueError("the choices are not two or more different texts")
        if type(answer) is not int or answer not in range(len(choices)):
            raise ValueError(f"the answer is none of the numbers 0 to {len(choices) - 1}")
        for choice in choices:
            prompt_and_ending(model, prompt, choice, ends)
        return prompt, choices, answer
    return at_least_two(path, read_json_lines(path, read, "a question", QUESTION))


def at_least_two(path, rows):
    """What stands in the rows of a file."""
    if len(rows) < 2:
        raise UserError(f"{path} has fewer than two lines, and a standard error needs two")
    return [row for _, row in rows]
