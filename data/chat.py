"""
Chats as texts: questions and answers behind marks, to read whole or to learn to answer (LLaDA, arXiv:2502.09992).

    corpus = load("chat", 48)              # data/text.py: the village of data/village.py, or your own .jsonl file
    corpus = load("chat", 48, sft=True)    # the same for supervised fine-tuning: prompts are given, answers are learnt

    [user] Where does Ada live? [assistant] Ada lives in the mill. [end] [end] [end] ...
    <---------------- prompt: given ------><---------- answer: noised and scored ------>

Pretraining reads the chats as one stream, an [end] behind each, like any other text: nothing is given. Fine-tuning has
texts of their own, and a chat of n answers is n of them: each answer once, with all before it as its prompt. They are
filled up with [end], which belongs to the answer: so a network learns where to stop.

Marks are special tokens behind the vocabulary, [end] is <|endoftext|>; what a user types never becomes one. Each
message begins with a space, so that a word is the same token wherever it stands. Chats are split by the hash of what
their first question is about (data/village.py), in a file by the first question itself: no prompt that is held out
begins like one that is trained on.
"""
import json
from pathlib import Path

import numpy as np
import tiktoken
import torch

from data import HELD_OUT, BadInput, lot, village, wordpiece
from data.tokenizer import ASCII, bpe, byte_level, chars, decode, encode, named, sizes

MARKS = ["<|user|>", "<|assistant|>", "<|endoftext|>"]


def chats_of(data):
    """The chats of `data`, chat or the path of a .jsonl file, split. -> {"train": [(kind, messages)], "val": ...}"""
    chats = village.chats() if data == "chat" else read(data)
    lots = [lot(key) if key else 1.0 for _, key, _ in chats]
    bar = min(max(HELD_OUT, min(lots) + 1e-12), max(lots))   # a small file: at least one on either side
    order = sorted(range(len(chats)), key=lambda i: lot(" ".join(chats[i][2])))
    parts = {"train": [chats[i][::2] for i in order if lots[i] >= bar],
             "val": [chats[i][::2] for i in order if lots[i] < bar]}
    if not all(parts.values()):
        raise BadInput(f"{data} has a single first question: one to train on and one to hold out is the least")
    return parts


def load(data, tokenizer="auto", vocab_size=1024):
    """-> {"train": [(kind, messages)], "val": ...}, the encoding"""
    parts = chats_of(data)
    text = "\n".join(f" {message}" for _, messages in parts["train"] for message in messages)
    rare = {c for _, messages in parts["val"] for message in messages for c in message}
    return parts, encoding_for(tokenizer, vocab_size, text, "".join(sorted(rare)) + ASCII)


def stream(data, tokenizer, vocab_size):
    """The chats for pretraining, as data/text.py has a corpus: all but its block_size. -> dict"""
    parts, encoding = load(data, tokenizer, vocab_size)
    ids = {split: np.array([id for _, messages in chats for id in ids_of(encoding, messages) + [encoding.eot_token]])
           for split, chats in parts.items()}                                                        # (n,) each
    size = float(sizes(encoding)[ids["val"]].mean())         # the marks, which decode would spell, are no text
    about = f"{name_of(data)}: {len(parts['train']):,} train and {len(parts['val']):,} val chats; " \
            f"{len(ids['train']):,} train and {len(ids['val']):,} val tokens, {about_tokens(encoding)}"
    return dict(name=name_of(data), about=about, encoding=encoding, **ids, bytes_per_token=size)


def name_of(data):
    return data if data == "chat" else Path(data).name


def about_tokens(encoding):
    return f"{encoding.n_vocab:,} symbols ({encoding.name} and {len(MARKS)} marks)"


def encoding_for(tokenizer, vocab_size, text, alphabet):
    """The tokenizer of the text with the marks behind its tokens. An Encoding is taken as it is: it must have them."""
    if isinstance(tokenizer, tiktoken.Encoding):
        if not set(MARKS) <= tokenizer.special_tokens_set:
            raise BadInput("chats need tokens with marks of who speaks: start from a network that was trained on "
                           "--data chat, or on a .jsonl file")
        return tokenizer
    trained = lambda: bpe(text, vocab_size, alphabet)
    if tokenizer == wordpiece.NAME:
        raise BadInput(f"chats need marks of who speaks behind the tokens, where {tokenizer} takes none: use "
                       f"--tokenizer bpe, bytes, chars or gpt2")
    made = {"auto": trained, "bpe": trained, "bytes": byte_level, "chars": lambda: chars(text + alphabet)}
    plain = made[tokenizer]() if tokenizer in made else named(tokenizer)
    ranks = plain._mergeable_ranks
    special = {mark: max(ranks.values()) + 1 + i for i, mark in enumerate(MARKS)}
    return tiktoken.Encoding(plain.name, pat_str=plain._pat_str, mergeable_ranks=ranks, special_tokens=special)


def ids_of(encoding, messages):
    """[user] question [assistant] answer [user] ...; behind a last question the mark that opens its answer. -> list"""
    user, assistant, _ = (encoding.encode_single_token(mark) for mark in MARKS)
    ids = []
    for i, message in enumerate(messages):
        ids += [assistant if i % 2 else user, *encode(encoding, f" {message.strip()}").tolist()]
    return ids + [assistant] * (len(messages) % 2)


def read(path):
    """The chats of a .jsonl file: one JSON object per line, {"messages": [{"role": "user", "content": "..."},
    {"role": "assistant", "content": "..."}, ...]}. -> [(kind, key, messages)]; BadInput with the number of a bad line
    """
    try:
        lines = Path(path).expanduser().read_text("utf-8-sig").split("\n")
    except FileNotFoundError:
        raise BadInput(f"there is no data {path!r}: give chat, or the path of a .jsonl file of chats") from None
    except UnicodeDecodeError:
        raise BadInput(f"{path} is not UTF-8 text: save it as UTF-8") from None
    chats = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            messages = checked(line, f"{path}, line {number}")
            chats.append((f"line {number}", messages[0], messages))
    if not chats:
        raise BadInput(f"{path} holds no chats: one JSON object per line, with its messages")
    return chats


def checked(line, where):
    """The messages of one line, [question, answer, ...], or BadInput."""
    try:
        messages = json.loads(line)["messages"]
        roles, contents = [m["role"] for m in messages], [m["content"] for m in messages]
    except (ValueError, TypeError, KeyError) as error:
        raise BadInput(f'{where} is no chat ({type(error).__name__}: {error}): it should be {{"messages": [{{"role": '
                       f'"user", "content": "..."}}, {{"role": "assistant", "content": "..."}}]}}') from None
    if not roles or len(roles) % 2 or roles != ["user", "assistant"] * (len(roles) // 2):
        raise BadInput(f"{where}: user and assistant should take turns, the user first and the assistant last, "
                       f"but the roles are {', '.join(map(str, roles)) or 'none'}")
    if not all(isinstance(content, str) and content.strip() for content in contents):
        raise BadInput(f"{where}: each content should be a text that is not empty")
    if halves := {c for content in contents for c in content if "\ud800" <= c <= "\udfff"}:
        raise BadInput(f"{where}: {ascii(min(halves))} is half of a character and no text: write the character whole")
    return contents


class Answers:
    """The chats for fine-tuning, as train.py and evaluate.py read a corpus: texts of which the prompts are given."""
    classes, sft = (), True

    def __init__(self, data, block_size, tokenizer="auto", vocab_size=1024):
        parts, self.encoding = load(data, tokenizer, vocab_size)
        self.name, self.block_size, self.end = name_of(data), block_size, self.encoding.eot_token
        self.chats = {split: each_answer(chats) for split, chats in parts.items()}
        rows = {split: [self.row(*chat) for chat in chats] for split, chats in self.chats.items()}
        self.texts = {split: torch.tensor([ids for ids, _ in part]) for split, part in rows.items()}           # (n, L)
        self.starts = {split: torch.tensor([start for _, start in part]) for split, part in rows.items()}      # (n,)
        if data != "chat":                                   # so far the kind was the number of a line
            self.chats = {split: [("chats", messages) for _, messages in part] for split, part in self.chats.items()}
        written = sum(len(messages[-1].encode()) + 1 for _, messages in self.chats["val"])
        scored = sum(block_size - start for _, start in rows["val"])
        self.bytes_per_token = written / scored              # of the answers, per token that is not given
        n, m = len(self.texts["train"]), len(self.texts["val"])
        self.about = f"{self.name}: {n:,} train and {m:,} val answers, their prompts given; texts of {block_size} " \
                     f"tokens, {about_tokens(self.encoding)}"

    def row(self, kind, messages):
        """-> ids (L,) filled up with [end], and where the last answer begins"""
        try:
            ids, start = ids_of(self.encoding, messages), len(ids_of(self.encoding, messages[:-1]))
        except BadInput as error:
            raise BadInput(f"{self.name}, {kind}: {error}") from None
        if len(ids) >= self.block_size:
            raise BadInput(f"{self.name}, {kind} has {len(ids) + 1} tokens with its end, more than --block_size "
                           f"{self.block_size}: raise that, or shorten the chat")
        return ids + [self.end] * (self.block_size - len(ids)), start

    def chosen(self, split, rows):
        """Texts x (n, L); frozen (n, L), True at their prompts; no labels"""
        return self.texts[split][rows], torch.arange(self.block_size) < self.starts[split][rows, None], None

    def examples(self, split, n, generator=None):
        """n random texts."""
        return self.chosen(split, torch.randint(len(self.texts[split]), (n,), generator=generator))

    def spread(self, split="val", most=None):
        """The numbers of `most` texts, evenly spread over the split; of all if not said. -> (m,)"""
        n = len(self.texts[split])
        return torch.from_numpy(np.linspace(0, n - 1, min(n, most or n)).astype(int))                # (m,)

    def example_windows(self, split="val", most=None):
        return self.chosen(split, self.spread(split, most))

    def batch(self, split, n, generator=None):
        return self.examples(split, n, generator)[0]                                                 # (n, L)

    def windows(self, split="val", most=None):
        return self.example_windows(split, most)[0]                                                  # (m, L)

    def text(self, ids):
        return decode(self.encoding, ids).replace(MARKS[-1], "")


def each_answer(chats):
    """A chat up to each of its answers; none comes twice. -> [(kind, messages)]"""
    kinds = {}
    for kind, messages in sorted(chats, key=lambda chat: len(chat[1])):
        for n in range(2, len(messages) + 1, 2):
            kinds.setdefault(tuple(messages[:n]), kind)
    return [(kinds[messages], list(messages)) for messages in sorted(kinds, key=lambda said: lot(" ".join(said)))]
