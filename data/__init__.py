"""
Where tokens come from. Nothing in this folder knows of models, losses or samplers.

    toy.py        a small English whose entropy is known exactly
    digits.py     8 x 8 pixels, which are tokens too, from scikit-learn
    text.py       real text: the two corpora that every Python carries (docstrings.py), your own, or what follows
    corpora.py    the corpora of the papers' tables, by name: where they are, how they are split, what one text is
    download.py   files from the network, resumed and checked;  readers.py  documents out of archives
    prepare.py    from documents to tokens on the disk: detokenize.py, workers.py (all cores), shards.py
    sharded.py    texts from shards, each once in an epoch, for any number of processes
    tokenizer.py  text to ids and back: characters, bytes, words, a trained BPE, or a named one such as gpt2
    wordpiece.py  the words of BERT, for published models that were trained on them
    ngram.py      Witten-Bell n-grams: how far counting alone gets, the first number that a network should beat
    chat.py       questions and answers to learn from: those of village.py, which are made up, or your own file
"""
import contextlib
import hashlib
import os
from pathlib import Path


class BadInput(ValueError):
    """A fault of the user's, told in one line that says what to do; scripts print it and exit with code 2."""


HELD_OUT = 0.1                                               # the share of a corpus that is never trained on


def lot(text):
    """A number in [0, 1) that the text itself draws: the same on every machine, alike for equal texts."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def cache_root(cache=None):
    """The folder of what is prepared or downloaded once: data/cache, or $PALIMPSEST_CACHE."""
    return Path(cache or os.environ.get("PALIMPSEST_CACHE") or Path(__file__).parent / "cache").expanduser()


@contextlib.contextmanager
def beside(path):
    """A file that takes the place of `path` once it is written; if that fails, `path` stays as it is."""
    temporary = Path(path).with_suffix(".tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
        os.replace(temporary, path)
    except OSError as error:                                 # a disk that is full does not say whose
        error.filename = error.filename or str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)
