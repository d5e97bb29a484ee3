"""
The contract of a data set, and what all data sets share.

A data set is a class with one row in data/__init__.py. Two classmethods make it; they raise
UserError for what the user can fix:

    load(data, block_size, tokenizer, vocab_size, cache)            for pretraining
    load_answers(data, block_size, tokenizer, vocab_size, cache)    for train.py --sft

Its texts are ids x (n, L) int64 of L = block_size tokens. Two methods draw them, and both return

    x (n, L);  frozen (n, L), True at given tokens, or None;  the classes (n,) of the texts, or None
"""
import hashlib
from functools import cached_property

import numpy as np

from data.tokenizer import decode
from flags import UserError

HELD_OUT = 0.1  # share of a corpus that is not trained on


class Dataset:
    """What every data set has. An attribute is a fact that other files need to know about it."""
    name = None  # one word
    about = None  # one line to print beside every result
    encoding = None  # a tiktoken.Encoding
    block_size = None  # tokens per text
    bytes_per_token = None  # UTF-8 bytes per scored token: nats/token -> bits/byte; None: no text
    train = val = None  # the ids of each split, end to end: an array, perhaps on disk
    splits = ("train", "val")
    classes = ()  # the names of the classes, where texts have labels
    defaults = {}  # other defaults of train.py's flags

    language = None  # the language whose probabilities are known exactly (data/toy.py)
    automaton = None  # of a grammar that texts follow: (S, V) states, -1 where no word fits
    has_language = False  # its instances have one: for code that must not load the data
    is_path = False  # its name is the path of a file or folder
    is_text = True  # its tokens spell text: words can be looked up and counted
    image_size = None  # tokens per image, where texts are images, which `render` draws
    box = 0  # texts are square grids of boxes, box x box cells each, which the page draws
    prompted = False  # texts begin as questions: samples answer held-out ones, `score` rates them
    source = 0  # tokens of the question, where all texts begin with as many: see data/seq2seq.py
    trees = None  # where texts are trees: their grammar, and what a tree is worth (data/trees.py)
    thoughts = ()  # tokens of each thought at the end of a text, and last of the answer; (): none
    first_choice = None  # the sampler where none is given, if it fits; None: that of the method
    answers = False  # texts are chats: their prompts are given, their answers are scored
    independent_texts = False  # drawn one by one; windows of a stream resemble their neighbors
    pads = False  # short texts are padded, and the padding is not scored
    counts_words = True  # n-grams of its tokens are a baseline for a model of it
    counts_bytes = False  # n-grams of bytes are a baseline as well

    @classmethod
    def load(cls, data, block_size, tokenizer="auto", vocab_size=1024, cache=None):
        """The data set `data`: the name of its row, or what matches the pattern of its row."""
        raise NotImplementedError

    @classmethod
    def load_answers(cls, data, block_size, tokenizer="auto", vocab_size=1024, cache=None):
        """The same for --sft: prompts are given, answers are scored."""
        raise UserError(f"--sft learns answers to questions, and {data} has none: "
                        f"give --data chat, or a .jsonl file")

    @cached_property
    def fingerprint(self):
        """sha256 of the tokens of both splits: a text has the same wherever it lies. None where the
        code makes the text: it cannot change unnoticed."""
        digest = hashlib.sha256()
        for split in ("train", "val"):
            digest.update(split.encode())
            digest.update(np.ascontiguousarray(self.ids(split)))
        return digest.hexdigest()

    # ---- texts

    def examples(self, split, n, generator=None):
        """n random texts. The generator (a CPU one) or torch's seed decides which."""
        raise NotImplementedError

    def example_windows(self, split="val", most=None):
        """All texts of the split in order, or `most` of them, evenly spaced."""
        raise NotImplementedError

    def batch(self, split, n, generator=None):
        return self.examples(split, n, generator)[0]  # (n, L)

    def windows(self, split="val", most=None):
        return self.example_windows(split, most)[0]  # (m, L)

    def micro_batch(self, number, n, seed, generator):
        """n texts for micro-batch `number` of a run, counted over all steps and processes."""
        return self.examples("train", n, generator)

    def check_split(self, split):
        if split not in self.splits:
            raise UserError(f"{self.name} has no {split} split, only {' and '.join(self.splits)}")

    # ---- what texts mean

    def padding(self, x):
        """Where texts x (n, L) are padded. -> (n, L) bool, or None if nowhere"""
        return None

    def lengths(self, x):
        """The words of each text, where texts end by themselves: rates are per word, while all
        tokens are scored. (n, L) -> (n,), or None: all tokens count"""
        return None

    def unequal(self, x):
        """What is not None if texts have more or fewer tokens that count."""
        padding = self.padding(x)  # (n, L)
        return self.lengths(x) if padding is None else padding

    @property
    def mean_length(self):
        """The tokens of a text that count, on average: where `lengths` are known."""
        return self.block_size

    def text(self, ids):
        """The text that ids spell."""
        return decode(self.encoding, ids)

    def ids(self, split):
        """The ids of a split, end to end, or its first part: for statistics in memory. -> (m,)
        numpy"""
        self.check_split(split)
        return self.train if split == "train" else self.val  # (m,)

    @property
    def bytes_per_id(self):
        """UTF-8 bytes per id of `ids`, for n-grams."""
        return self.bytes_per_token

    def answer_of(self, x):
        """What is equal if two texts have the same answer to one question. (n, L) -> (n, a)"""
        return x[:, -self.thoughts[-1]:] if self.thoughts else x  # (n, a)

    def score(self, x, label=None):
        """Measures of samples x (n, L) that only this data set has. -> [(what it is, values
        (n,))]"""
        return []

    def score_set(self, x):
        """The same of samples as a set. -> [(what it is, value, standard error)]"""
        return []

    @classmethod
    def faults(cls, x):
        """Of grids: where texts x (n, L), complete or not, break a rule. -> (n, L) bool"""
        raise NotImplementedError

    # ---- questions with several right answers, where their probabilities are known

    def answer_nats(self, x):
        """-log p(answer | question) of texts x (n, L), exact. -> (n,), or None: it is not known"""
        return None

    def redraw(self, x, seed=0):
        """Other answers to the questions of x, from their exact distribution. -> (n, L), or None"""
        return None

    @classmethod
    def complete_prompt(cls, ids):
        """The ids of a user's question as the beginning of a text."""
        return ids

    # ---- images

    @classmethod
    def check_render(cls, length):
        """UserError unless `render` can draw texts of `length` tokens."""
        if cls.image_size is None:
            raise UserError("--png is for images, and this model writes text: leave it out")
        if length != cls.image_size:
            raise UserError(f"--png draws {cls.image_size} pixels, and this text has {length}: "
                            f"leave out --length and gaps")

    @classmethod
    def render(cls, ids, path):
        """Write texts, n lists of ids, as one image file."""
        raise NotImplementedError


# ---- splitting

def hash_fraction(text):
    """A number in [0, 1) that depends on the text alone: equal texts have equal numbers."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64

