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
stands. The chats are split by the hash of what their first question is about
(data/synthetic_chats.py), those of a file by the first question itself: no held-out prompt begins
like one that is trained on.
"""
import json
from pathlib import Path

import numpy as np
import tiktoken
import torch

from data import wordpiece
from data.base import HELD_OUT, Dataset, hash_fraction
from data.corpus import Corpus
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


class Chat(Corpus):
    """Made-up chats about a village, as one stream."""
    defaults = dict(recipe_iters=1400, block_size=48, n_layer=4, batch_size=32, learning_rate=0.01,
                    muon_lr=0.01)

    @classmethod
    def name_of(cls, data):
        return data

    @classmethod
    def chats_of(cls, data):
        """All chats. -> [(kind, key, messages)]; the key decides the split, "" is never held out"""
        return make_chats()

    @classmethod
    def load(cls, data, block_size, tokenizer="auto", vocab_size=1024, cache=None):
        parts, encoding = cls.split_and_encode(data, tokenizer, vocab_size)
        ids = {split: np.array([i for _, messages in chats
                                for i in [*ids_of(encoding, messages), encoding.eot_token]])
               for split, chats in parts.items()}  # (n,) each
        size = float(token_sizes(encoding)[ids["val"]].mean())  # the marks are not text: 0 bytes
        n, m = len(parts["train"]), len(parts["val"])
        about = f"{cls.name_of(data)}: {n:,} train and {m:,} val chats; {len(ids['train']):,} " \
                f"train and {len(ids['val']):,} val tokens, {about_tokens(encoding)}"
        return cls(cls.name_of(data), about, encoding, **ids, bytes_per_token=size,
                   block_size=block_size)

    @classmethod
    def load_answers(cls, data, block_size, tokenizer="auto", vocab_size=1024, cache=None):
        parts, encoding = cls.split_and_encode(data, tokenizer, vocab_size)
        return Answers(cls.name_of(data), parts, encoding, block_size)

    @classmethod
    def split_and_encode(cls, data, tokenizer, vocab_size):
        """-> {"train": [(kind, messages)], "val": ...}, the encoding"""
        parts = split_chats(cls.chats_of(data), data)
        text = "\n".join(f" {message}" for _, messages in parts["train"] for message in messages)
        rare = {c for _, messages in parts["val"] for message in messages for c in message}
        alphabet = "".join(sorted(rare)) + ASCII
        return parts, encoding_for(tokenizer, vocab_size, text, alphabet)


class ChatFile(Chat):
    """The chats of a .jsonl file, as one stream."""
    defaults = {}

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

    def __init__(self, name, parts, encoding, block_size):
        self.name, self.encoding, self.block_size = name, encoding, block_size
        self.end = encoding.eot_token
        self.chats = {split: each_answer(chats) for split, chats in parts.items()}
        rows = {split: [self.row(*chat) for chat in chats] for split, chats in self.chats.items()}
        self.texts = {split: torch.tensor([ids for ids, _ in part]) for split, part in rows.items()}
        self.starts = {split: torch.tensor([i for _, i in part]) for split, part in rows.items()}
        written = sum(len(messages[-1].encode()) + 1 for _, messages in self.chats["val"])
        scored = sum(block_size - start for _, start in rows["val"])
        self.bytes_per_token = written / scored  # of the answers, per token that is not given
        n, m = len(self.texts["train"]), len(self.texts["val"])
        self.about = f"{name}: {n:,} train and {m:,} val answers, their prompts given; texts of " \
                     f"{block_size} tokens, {about_tokens(encoding)}"

    train = property(lambda self: self.texts["train"].flatten().numpy())  # (n L,)
    val = property(lambda self: self.texts["val"].flatten().numpy())  # (m L,)

    def row(self, kind, messages):
        """-> ids (L,) filled up with [end], where the last answer begins"""
        try:
            ids = ids_of(self.encoding, messages)
            start = len(ids_of(self.encoding, messages[:-1]))
        except UserError as error:
            raise UserError(f"{self.name}, {kind}: {error}") from None
        if len(ids) >= self.block_size:
            raise UserError(f"{self.name}, {kind} has {len(ids) + 1} tokens with its end, more "
                            f"than --block_size {self.block_size}: raise that, or shorten the chat")
        return ids + [self.end] * (self.block_size - len(ids)), start

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
        said = encode(encoding, f" {message.strip()}").tolist()
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

    -> [(kind, key, messages)]. UserError names the line that is wrong.
    """
    try:
        lines = Path(path).expanduser().read_text("utf-8-sig").split("\n")
    except FileNotFoundError:
        raise UserError(f"there is no data {path!r}: give chat, or the path of a .jsonl file of "
                        f"chats") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text: save it as UTF-8") from None
    chats = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            messages = parse_chat(line, f"{path}, line {number}")
            chats.append((f"line {number}", messages[0], messages))
    if not chats:
        raise UserError(f"{path} holds no chats: write one JSON object per line, with its messages")
    return chats


def parse_chat(line, where):
    """The messages of one line, [question, answer, ...], or UserError."""
    try:
        messages = json.loads(line)["messages"]
        roles, contents = [m["role"] for m in messages], [m["content"] for m in messages]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f'{where} is not a chat ({type(error).__name__}: {error}): it should be '
                        f'{{"messages": [{{"role": "user", "content": "..."}}, '
                        f'{{"role": "assistant", "content": "..."}}]}}') from None
    if not roles or len(roles) % 2 or roles != ["user", "assistant"] * (len(roles) // 2):
        raise UserError(f"{where}: user and assistant should take turns, the user first and the "
                        f"assistant last, but the roles are {', '.join(map(str, roles)) or 'none'}")
    if not all(isinstance(content, str) and content.strip() for content in contents):
        raise UserError(f"{where}: each content should be a text that is not empty")
    if halves := {c for content in contents for c in content if "\ud800" <= c <= "\udfff"}:
        raise UserError(f"{where}: {ascii(min(halves))} is half of a character and no text: write "
                        f"the character whole")
    return contents
