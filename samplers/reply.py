"""
The reply of a network that was fine-tuned on answers (train.py --sft); data/chat.py has the texts.

    prompt    [user] question [assistant] answer [user] question [assistant]   given; then masks
    answer    the text up to the first [end]; in training, answers were filled up with [end]

EOS bias: most tokens of an answer are [end], and a network is most confident of the last ones. If
the most confident masks open first and all masks are candidates at once, the ends open first, and
the words have to fit in before them. --decode_block limits the candidates to the next few masks;
--eos_last opens an [end] only when no other word is left to open. Figures: docs/talking.md.
"""
import torch

from data.chat import MARKS, ids_of
from data.tokenizer import decode
from flags import UserError, change, flags_of
from samplers import SamplingFlags, first_sampler, samplers_for


def chat_template(messages, encoding, length):
    """The messages, the last one a question, as the start of a text: given (L,), frozen (L,) bool.

    A quarter of the text is kept free for the answer: the oldest questions are dropped, with their
    answers, until there is enough room.
    """
    most = length - max(1, length // 4)
    while len(ids := ids_of(encoding, messages)) > most and len(messages) > 1:
        messages = messages[2:]
    if len(ids) > most:
        raise UserError(f"the question has {len(ids)} tokens with its marks, and {most} leave room "
                        "for an answer: shorten it")
    given = torch.tensor(ids + [0] * (length - len(ids)))  # (L,)
    return given, torch.arange(length) < len(ids)  # (L,) each


def answer(row, start, encoding):
    """The words of the answer that begins at `start`, up to the first mark. row (L,) ids -> text"""
    marks = {encoding.encode_single_token(mark) for mark in MARKS}
    ids = row.tolist()[start:]
    stop = next((i for i, id in enumerate(ids) if id in marks), len(ids))
    return decode(encoding, ids[:stop]).strip()


def finished(z, frozen, mask, end):
    """Texts without a mask before their first [end] that was not given. z, frozen (B, L) -> (B,)"""
    before = ((z == end) & ~frozen).cumsum(-1) == 0  # (B, L)
    return ~((z >= mask) & before).any(-1)  # (B,)


def reply(writer, given, frozen, end, show=None):
    """Replies to a batch of prompts, given (B, L) where frozen (B, L). -> (B, L) ids

    writer: see samplers/generate.py; end: the id of [end]; show(step, z): called after each step
    """
    method = writer.method
    # An [end] is final if words that were written stay; else the last step may still remove it.
    final = method.opens_masks and not writer.sampler.rewrites
    for step, z in enumerate(writer.trajectory(given, frozen)):  # (B, L) step 0 is noise
        if show and step:
            show(step, z)
        if final and step and finished(z, frozen, method.process.mask, end).all():
            break
    return z  # (B, L)


def default_sampler(config, method):
    """The flags of a chat, with the default sampler of texts if that of chats does not fit."""
    sampler = flags_of(SamplingFlags)["sampler"]
    of_chats = sampler.metadata["instead"]["chat"]
    if config.sampler == of_chats and of_chats not in samplers_for(method):
        return change(config, sampler=first_sampler(config, method))
    return config
