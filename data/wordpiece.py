"""
The words of BERT (arXiv:1810.04805), for models that were trained on bert-base-uncased.

    encoding = WordPiece(lines of vocab.txt)        # ids = encode(encoding, text), see tokenizer.py

The text is normalized (lower case, no accents, no control characters) and split at white space and
at punctuation. Each word is encoded greedily: the longest piece of the vocabulary that the word
starts with, then the longest piece that continues it, which vocab.txt writes as ##piece. A word
that cannot be encoded becomes [UNK]. `decode` cannot restore what normalization removed: it puts
one space before each word and each sign.
"""
import unicodedata

import numpy as np
import tiktoken

from data.download import File, cache_root, fetch
from flags import UserError

NAME = "bert-base-uncased"
VOCABULARY = File("vocab.txt", 231508,
                  "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
                  ("https://huggingface.co/google-bert/bert-base-uncased/resolve/main/vocab.txt",))
MAX_LETTERS = 100                                            # a longer word is [UNK]
MAX_KNOWN = 500_000                                          # words whose ids are cached
CJK = ((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F),
       (0x2B740, 0x2B81F), (0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F))  # a word each


class WordPiece(tiktoken.Encoding):
    """The i-th of `pieces` has id i. The token of a piece that begins a word starts with a space,
    and the token of one that continues a word does not, so that tokens concatenate to the text."""

    def __init__(self, pieces):
        ranks = {spell_token(piece): i for i, piece in enumerate(pieces)}
        if len(ranks) < len(pieces) or b" [UNK]" not in ranks:
            raise UserError("this is not a vocabulary of BERT: it repeats a piece, or lacks [UNK]")
        super().__init__(NAME, pat_str=r"[\s\S]", mergeable_ranks=ranks, special_tokens={})
        self.ranks, self.unknown, self.known = ranks, ranks[b" [UNK]"], {}

    def encode_to_numpy(self, text, **options):
        """-> (n,) uint32. tiktoken's options are ignored: no text is special."""
        ids = []
        for word in split_words(text):
            if len(self.known) > MAX_KNOWN:
                self.known.clear()
            if word not in self.known:
                self.known[word] = self.encode_word(word)
            ids += self.known[word]
        return np.array(ids, np.uint32)  # (n,)

    def encode_word(self, word):
        """The ids of a word, or the id of [UNK]. -> list"""
        ids, start = [], 0
        while start < len(word) <= MAX_LETTERS:
            ends = range(len(word), start, -1)
            piece = lambda end: (" " * (start == 0) + word[start:end]).encode()
            end = next((end for end in ends if piece(end) in self.ranks), None)
            if end is None:
                return [self.unknown]
            ids.append(self.ranks[piece(end)])
            start = end
        return ids or [self.unknown]


def load_published():
    """The words of bert-base-uncased, downloaded once."""
    path = fetch(VOCABULARY, cache_root() / "downloads" / NAME)
    text = path.read_text("utf-8").removesuffix("\n")
    return WordPiece(text.split("\n"))  # not splitlines: some pieces are other line breaks


def spell_token(piece):
    """The token of a piece as vocab.txt writes it."""
    continues = piece.startswith("##") and len(piece) > 2
    return (piece[2:] if continues else " " + piece).encode()


def from_ranks(ranks):
    """The encoding whose tokens have these ids."""
    pieces = {i: token.decode() for token, i in ranks.items()}
    in_order = [pieces[i] for i in range(len(pieces))]
    return WordPiece([piece[1:] if piece.startswith(" ") else "##" + piece for piece in in_order])


def split_words(text):
    """The normalized words and signs of a text."""
    plain = []
    for c in text:
        kind = unicodedata.category(c)
        if c in "\t\n\r" or kind == "Zs":
            plain.append(" ")
        elif not kind.startswith("C") and c != "\ufffd":
            plain.append(f" {c} " if any(low <= ord(c) <= high for low, high in CJK) else c)
    for word in "".join(plain).split():
        letters = unicodedata.normalize("NFD", word.lower())
        bare = "".join(c for c in letters if unicodedata.category(c) != "Mn")
        yield from "".join(f" {c} " if is_sign(c) else c for c in bare).split()


def is_sign(c):
    """Is it punctuation: to Unicode, or an ASCII character other than a letter, a digit or a
    space?"""
    ascii_sign = c.isascii() and c.isprintable() and not c.isalnum() and c != " "
    return ascii_sign or unicodedata.category(c).startswith("P")
