"""
A prompt with or without gaps, from the command line or a file, as the beginning of a text.

    "Return the"                     is continued
    "Return ____ of the ____."       is filled in: each _ is one token
    "FILE:notes.txt"                 is read from a file
    "the ... dog ... ."              where a method writes texts of any length: ... is any number
                                     of words, and so is each run of _

Models of puzzles answer a held-out question if there is no prompt.
"""
import torch

from data import DATASETS, load_data
from data.reading import read_text, tidy
from data.tokenizer import encode
from flags import UserError, load_row


def read_prompt(prompt):
    """The text of a prompt, which FILE:path reads from a file."""
    if not prompt.startswith("FILE:"):
        return tidy(prompt)
    return read_text(prompt.removeprefix("FILE:"), "the prompt ")


def held_out_question(data, block_size, number=0):
    """A held-out question of a data set that asks questions. -> ids (L,), frozen (L,) bool"""
    x, frozen, _ = load_data(data, block_size).example_windows("val")  # (n, L) each
    return x[number % len(x)], frozen[number % len(x)]  # (L,), (L,)


def encode_prompt(prompt, gap, encoding, length, block_size, data="", number=0, end=None):
    """A prompt as the ids of a text, and where they are given: not in gaps, nor after the prompt.

    length: of the text; 0 is that of a prompt with gaps, else block_size
    data, number: which held-out question it is, where data has questions and there is no prompt
    end: where gaps take any number of words, the id of what stands behind a text
    -> (L,), (L,) bool
    """
    if not prompt and data and load_row(DATASETS, data).prompted:
        return held_out_question(data, block_size, number)
    if len(gap) != 1:
        raise UserError(f"--gap must be one character (got {gap!r})")
    ids, frozen, prompt = [], [], prompt if end is None else prompt.replace("...", gap)
    if end is not None and length not in (0, block_size):
        raise UserError(f"--length {length}: these texts end by themselves, and have room for "
                        f"{block_size} tokens, as in training: leave it out")
    for i, part in enumerate(prompt.split(gap)):
        part = encode(encoding, part).tolist()
        ids += [0] * (i > 0) + part
        frozen += [False] * (i > 0) + [True] * len(part)
    if data and prompt:
        ids = load_row(DATASETS, data).complete_prompt(ids)
        frozen += [True] * (len(ids) - len(frozen))
    length = length or (len(ids) if gap in prompt and end is None else block_size)
    if len(ids) > length:
        raise UserError(f"the prompt has {len(ids)} tokens, more than the text's {length}: "
                        "shorten it or raise --length")
    rest = length - len(ids)
    closed = gap in prompt and end is not None  # so the text is given to its end
    return (torch.tensor(ids + [end if closed else 0] * rest),
            torch.tensor(frozen + [closed] * rest))  # (L,), (L,)
