"""
Chats as texts: questions and answers behind marks, to read whole or to learn to answer (LLaDA,
arXiv:2502.09992).

    data = load_data("chat", 48)                # made-up chats, or those of your own .jsonl file
    data = load_data("chat", 48, sft=True)      # for fine-tuning: prompts are given, answers scored

    [user] Where does Ada live? [assistant] Ada lives in the mill. [end] [end] [end] ...
    <---------------- prompt: given ------><---------- answer: noised and scored ------>

Pretraining reads the chats as one stream, with an [end] behind each, like any other text.
Fine-tuning makes n texts of a chat with n answers: each answer once, with everything before it as
its prompt. The texts are filled up with [end], which belongs to the answer, so that a network
learns where to stop.

The marks are special tokens behind the vocabulary; [end] is <|endoftext|>. What a user types never
becomes a mark. Each message begins with a space, so that a word is the same token wherever it
stands; the white space around a message is dropped. The chats are split by the hash of what their
first question is about (data/synthetic_chats.py), those of a file by the first question itself,
whatever its answer and the system message: no held-out prompt begins like one that is trained on.

Of a file, a system message is put in front of the first question. Chats without an answer at their
end are read up to their last answer, and for fine-tuning answers that are too long for --block_size
are left out; how many is told. A file most of whose answers are too long is refused.
"""
import hashlib
import json
from itertools import compress
from pathlib import Path

import numpy as np
import tiktoken
import torch

from data import wordpiece
from data.base import HELD_OUT, Dataset, hash_fraction
from data.corpus import Corpus
from data.reading import read_json_lines, tidy, to_utf8
from data.synthetic_chats import make_chats
from data.tokenizer import (
    ASCII,
    END_OF_TEXT,
    bpe,
    byte_level,
    chars,
    decode,
    encode,
    load_encoding,
    token_sizes,
)
from flags import UserError

MARKS = ["<|user|>", "<|assistant|>", END_OF_TEXT]
FORM = '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}'
LEFT_OUT = 0.5  # share of the answers of a file, at most, that may be too long


class Chat(Corpus):
    """Made-up chats about a village, as one stream."""
    defaults = dict(recipe_iters=1400, block_size=48, n_layer=4, batch_size=32, learning_rate=0.01,
                    muon_lr=0.01)

    @classmethod
    def name_of(cls, data):
        return data

    @classmethod
    def chats_of(cls, data):
        """All chats. -> [(kind, key, messages)]; the key decides the split, "" is never held out.
        And a remark about them, or "" """
        return make_chats(), ""

    @classmethod
    def load(cls, data, block_size, tokenizer="auto", vocab_size=1024, cache=None):
        parts, encoding, remark = cls.split_and_encode(data, tokenizer, vocab_size)
        ids = {split: np.array([i for _, messages in chats
                                for i in [*ids_of(encoding, messages), encoding.eot_token]])
               for split, chats in parts.items()}  # (n,) each
        size = float(token_sizes(encoding)[ids["val"]].mean())  # the marks are not text: 0 bytes
        n, m = len(parts["train"]), len(parts["val"])
        about = f"{cls.name_of(data)}: {n:,} train and {m:,} val chats; {len(ids['train']):,} " \
                f"train and {len(ids['val']):,} val tokens, {about_tokens(encoding)}" \
                f"{remark}"
        return cls(cls.name_of(data), about, encoding, **ids, bytes_per_token=size,
                   block_size=block_size)

    @classmethod
    def load_answers(cls, data, block_size, tokenizer="auto", vocab_size=1024, cache=None):
        parts, encoding, remark = cls.split_and_encode(data, tokenizer, vocab_size)
        return Answers(cls.name_of(data), parts, encoding, block_size, remark)

    @classmethod
    def split_and_encode(cls, data, tokenizer, vocab_size):
        """-> {"train": [(kind, messages)], "val": ...}, the encoding, a remark"""
        chats, remark = cls.chats_of(data)
        parts = split_chats(chats, data)
        text = "\n".join(f" {message}" for _, messages in parts["train"] for message in messages)
        rare = {c for _, messages in parts["val"] for message in messages for c in message}
        alphabet = "".join(sorted(rare)) + ASCII
        return parts, encoding_for(tokenizer, vocab_size, text, alphabet), remark


class ChatFile(Chat):
    """The chats of a .jsonl file, as one stream."""
    defaults, is_path = {}, True

    @classmethod
    def name_of(cls, data):
        return Path(data).name

    @classmethod
    def chats_of(cls, data):
        return read_chats(data)

    @classmethod
    def load_answers(cls, data, block_size, tokenizer="auto", vocab_size=1024, cache=None):
        answers = super().load_answers(data, block_size, tokenizer, vocab_size, cache)
        answers.chats = {split: [("chats", messages) for _, messages in part]  # kinds were lines
                         for split, part in answers.chats.items()}
        return answers


class Answers(Dataset):
    """The chats for fine-tuning: texts whose prompts are given.

    chats    {split: [(kind, messages)]}, the last message is the answer
    texts    {split: (n, L) ids}
    starts   {split: (n,)}, where the answers begin
    """
    answers, counts_words = True, False
    independent_texts = True

    def __init__(self, name, parts, encoding, block_size, remark=""):
        self.name, self.encoding, self.block_size = name, encoding, block_size
        self.end = encoding.eot_token
        chats = {split: each_answer(part) for split, part in parts.items()}
        rows = {split: [self.row(*chat) for chat in part] for split, part in chats.items()}
        remark += self.about_long(chats, rows)
        fits = {split: [len(ids) == block_size for ids, _ in part] for split, part in rows.items()}
        self.chats = {split: list(compress(chats[split], fits[split])) for split in self.splits}
        rows = {split: list(compress(rows[split], fits[split])) for split in self.splits}
        self.texts = {split: torch.tensor([ids for ids, _ in part]) for split, part in rows.items()}
        self.starts = {split: torch.tensor([i for _, i in part]) for split, part in rows.items()}
        written = sum(len(messages[-1].encode()) + 1 for _, messages in self.chats["val"])
        scored = sum(block_size - start for _, start in rows["val"])
        self.bytes_per_token = written / scored  # of the answers, per token that is not given
        n, m = len(self.texts["train"]), len(self.texts["val"])
        self.about = f"{name}: {n:,} train and {m:,} val answers, their prompts given; texts of " \
                     f"{block_size} tokens, {about_tokens(encoding)}{remark}"

    train = property(lambda self: self.texts["train"].flatten().numpy())  # (n L,)
    val = property(lambda self: self.texts["val"].flatten().numpy())  # (m L,)

    @property
    def fingerprint(self):
        """Texts may have the same tokens and other answers, as in `starts`."""
        texts = [[messages for _, messages in self.chats[split]] for split in self.splits]
        return hashlib.sha256(json.dumps(texts).encode()).hexdigest()

    def row(self, kind, messages):
        """-> ids (L,) filled up with [end], or more of them; where the last answer begins"""
        try:
            ids = ids_of(self.encoding, messages)
            start = len(ids_of(self.encoding, messages[:-1]))
        except UserError as error:
            raise UserError(f"{self.name}, {kind}: {error}") from None
        return ids + [self.end] * max(1, self.block_size - len(ids)), start

    def about_long(self, chats, rows):
        """A remark about chats that are too long, counted up to each of their answers. UserError if
        they are too many."""
        every = [(len(ids), kind) for split in self.splits
                 for (ids, _), (kind, _) in zip(rows[split], chats[split])]
        long = [pair for pair in every if pair[0] > self.block_size]
        if not long:
            return ""
        size, kind = max(long)
        what = f"{len(long):,} of {len(every):,} chats are longer than --block_size " \
               f"{self.block_size}"
        fit = all(any(len(ids) == self.block_size for ids, _ in part) for part in rows.values())
        if not fit or len(long) > LEFT_OUT * len(every):
            raise UserError(f"{self.name}: {what} ({kind} has {size:,} tokens with its end): raise "
                            f"that, or shorten the chats")
        return f"; {what}: left out"

    def select(self, split, rows):
        """The texts number `rows` (n,): x (n, L); frozen (n, L), True at their prompts; no
        labels"""
        start = self.starts[split][rows, None]  # (n, 1)
        return self.texts[split][rows], torch.arange(self.block_size) < start, None  # (n, L)

    def spread(self, split="val", most=None):
        """The numbers of `most` texts, evenly spread over the split, or of all. -> (m,)"""
        n = len(self.texts[split])
        return torch.from_numpy(np.linspace(0, n - 1, min(n, most or n)).astype(int))  # (m,)

    def examples(self, split, n, generator=None):
        rows = torch.randint(len(self.texts[split]), (n,), generator=generator)  # (n,)
        return self.select(split, rows)

    def example_windows(self, split="val", most=None):
        self.check_split(split)
        return self.select(split, self.spread(split, most))

    def text(self, ids):
        """The text that ids spell, without its ends."""
        return decode(self.encoding, ids).replace(END_OF_TEXT, "")


# ---- chats as ids

def about_tokens(encoding):
    return f"{encoding.n_vocab:,} symbols ({encoding.name} and {len(MARKS)} special tokens)"


def encoding_for(tokenizer, vocab_size, text, alphabet):
    """The tokenizer of the text, with the marks behind its tokens. An Encoding is taken as it
    is."""
    if isinstance(tokenizer, tiktoken.Encoding):
        if not set(MARKS) <= tokenizer.special_tokens_set:
            raise UserError("chats need tokens with marks of who speaks: start from a network that "
                            "was trained on --data chat, or on a .jsonl file")
        return tokenizer
    if tokenizer == wordpiece.NAME:
        raise UserError(f"chats need marks of who speaks behind the tokens, and {tokenizer} takes "
                        f"none: use --tokenizer bpe, bytes, chars or gpt2")
    if tokenizer in ("auto", "bpe"):
        plain = bpe(text, vocab_size, alphabet)
    elif tokenizer == "chars":
        plain = chars(text + alphabet)
    else:
        plain = byte_level() if tokenizer == "bytes" else load_encoding(tokenizer)
    ranks = plain._mergeable_ranks
    special = {mark: max(ranks.values()) + 1 + i for i, mark in enumerate(MARKS)}
    return tiktoken.Encoding(plain.name, pat_str=plain._pat_str, mergeable_ranks=ranks,
                             special_tokens=special)


def ids_of(encoding, messages):
    """[user] question [assistant] answer [user] ... A last question is followed by the mark that
    opens its answer. -> list"""
    user, assistant, _ = (encoding.encode_single_token(mark) for mark in MARKS)
    ids = []
    for i, message in enumerate(messages):
        said = encode(encoding, f" {message.strip()}").tolist()  # as `parse_chat` reads it
        ids += [assistant if i % 2 else user, *said]
    return ids + [assistant] * (len(messages) % 2)


# ---- chats in two splits

def split_chats(chats, data):
    """[(kind, key, messages)] in two splits. -> {"train": [(kind, messages)], "val": ...}"""
    lots = [hash_fraction(key) if key else 1.0 for _, key, _ in chats]
    bar = min(max(HELD_OUT, min(lots) + 1e-12), max(lots))  # both splits get one chat or more
    order = sorted(range(len(chats)), key=lambda i: hash_fraction(" ".join(chats[i][2])))
    parts = {"train": [chats[i][::2] for i in order if lots[i] >= bar],
             "val": [chats[i][::2] for i in order if lots[i] < bar]}
    if not all(parts.values()):
        raise UserError(f"{data} has a single first question: give at least two, one to train on "
                        f"and one to hold out")
    return parts


def each_answer(chats):
    """A chat up to each of its answers, without repeats. -> [(kind, messages)]"""
    kinds = {}
    for kind, messages in sorted(chats, key=lambda chat: len(chat[1])):
        for n in range(2, len(messages) + 1, 2):
            kinds.setdefault(tuple(messages[:n]), kind)
    order = sorted(kinds, key=lambda messages: hash_fraction(" ".join(messages)))
    return [(kinds[messages], list(messages)) for messages in order]


# ---- chats in a file

def read_chats(path):
    """The chats of a .jsonl file: one JSON object per line,

        {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}

    -> [(kind, key, messages)], and a remark. UserError names the line that is wrong.
    """
    if not Path(path).expanduser().exists():
        raise UserError(f"there is no data {path!r}: give chat, or the path of a .jsonl file of "
                        f"chats")
    rows = read_json_lines(path, parse_chat, "a chat", FORM)
    chats = [(f"line {number}", key, messages) for number, (key, messages, _) in rows if messages]
    if not chats:
        raise UserError(f"{path} holds no chats: write one JSON object per line, with its messages")
    n = sum(not whole for _, (_, _, whole) in rows)
    remark = f"; {n:,} of {len(rows):,} chats have no answer at their end: read up to their last " \
             f"one" if n else ""
    return chats, remark


def parse_chat(line):
    """One line of the file, or ValueError. -> its first question; the messages [question, answer,
    ...] up to the last answer, the first one behind the system message; whether these are all"""
    try:
        roles, contents = ([m[key] for m in line["messages"]] for key in ("role", "content"))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None
    if not all(isinstance(content, str) for content in contents):
        raise ValueError("each content should be a text")
    contents = [tidy(content).strip() for content in contents]  # what reads alike is alike
    for content in contents:
        to_utf8(content)
    system = contents.pop(0) if roles[:1] == ["system"] else ""
    roles = roles[len(roles) - len(contents):]
    if not roles or roles != (["user", "assistant"] * len(roles))[:len(roles)]:
        raise ValueError(f"user and assistant should take turns, the user first, but the roles are "
                         f"{', '.join(map(str, roles)) or 'none'}")
    n = next((i for i, content in enumerate(contents) if not content), len(contents)) // 2 * 2
    question, messages = contents[0], contents[:n]
    if messages and system:
        messages[0] = f"{system}\n\n{question}"
    return question, messages, n == len(contents)
