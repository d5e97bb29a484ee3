"""
The words of BERT (arXiv:1810.04805), for the models that were trained on them: bert-base-uncased.

    encoding = WordPiece(lines of vocab.txt);  ids = encode(encoding, text), as any encoding of tokenizer.py

Text is made plain (lower case, no accents, no control characters), cut at blanks and at every sign, and each word is
read greedily: the longest piece of the vocabulary that it starts with, then the longest that goes on from there, which
the vocabulary writes ##so. A word that cannot be read so is [UNK]. What is lost by then does not come back: `decode`
puts one blank before each word and each sign.
"""
import unicodedata

import numpy as np
import tiktoken

from data import BadInput, cache_root
from data.download import File, fetch

NAME = "bert-base-uncased"
VOCABULARY = File("vocab.txt", 231508, "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
                  ("https://huggingface.co/google-bert/bert-base-uncased/resolve/main/vocab.txt",))
LONGEST = 100                                                # characters of a word; a longer one is [UNK]
MOST = 500_000                                           # words whose ids are kept
CJK = ((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F),
       (0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F))     # read sign by sign


class WordPiece(tiktoken.Encoding):
    """The i-th of `pieces` has id i. Inside, a piece that begins a word carries a blank, and one that goes on none:
    the bytes of the tokens, one after the other, are the text."""

    def __init__(self, pieces):
        ranks = {spelled(piece): i for i, piece in enumerate(pieces)}
        if len(ranks) < len(pieces) or b" [UNK]" not in ranks:
            raise BadInput("this is no vocabulary of BERT: it has a piece twice, or no [UNK]")
        super().__init__(NAME, pat_str=r"[\s\S]", mergeable_ranks=ranks, special_tokens={})
        self.ranks, self.unknown, self.known = ranks, ranks[b" [UNK]"], {}

    def encode_to_numpy(self, text, **options):
        """-> (n,) uint32. The options of tiktoken's own have no meaning here: nothing in a text is special."""
        ids = []
        for word in words(text):
            if len(self.known) > MOST:                       # of a large corpus: begin anew
                self.known.clear()
            if word not in self.known:                       # each word is read once
                self.known[word] = self.read(word)
            ids += self.known[word]
        return np.array(ids, np.uint32)                                                              # (n,)

    def read(self, word):
        """The ids of a word, or that of [UNK]."""
        ids, start = [], 0
        while start < len(word) <= LONGEST:
            ends = range(len(word), start, -1)
            piece = lambda end: (" " * (start == 0) + word[start:end]).encode()
            end = next((end for end in ends if piece(end) in self.ranks), None)
            if end is None:
                return [self.unknown]
            ids.append(self.ranks[piece(end)])
            start = end
        return ids or [self.unknown]


def published():
    """The words of bert-base-uncased, downloaded once."""
    path = fetch(VOCABULARY, cache_root() / "downloads" / NAME)
    return WordPiece(path.read_text("utf-8").removesuffix("\n").split("\n"))      # a piece may be a break of lines


def spelled(piece):
    return (piece[2:] if piece.startswith("##") and len(piece) > 2 else " " + piece).encode()


def restored(ranks):
    """The encoding whose pieces have these bytes and ids."""
    pieces = {i: token.decode() for token, i in ranks.items()}
    return WordPiece([pieces[i][1:] if pieces[i].startswith(" ") else "##" + pieces[i] for i in range(len(pieces))])


def words(text):
    """The words and signs of a text, made plain."""
    plain = []
    for c in text:
        kind = unicodedata.category(c)
        if c in "\t\n\r" or kind == "Zs":
            plain.append(" ")
        elif not kind.startswith("C") and c != "\ufffd":
            plain.append(f" {c} " if any(low <= ord(c) <= high for low, high in CJK) else c)
    for word in "".join(plain).split():
        bare = "".join(c for c in unicodedata.normalize("NFD", word.lower()) if unicodedata.category(c) != "Mn")
        yield from "".join(f" {c} " if sign(c) else c for c in bare).split()


def sign(c):
    """Punctuation: what Unicode calls so, and what ASCII has besides letters, digits and blanks."""
    return c.isascii() and c.isprintable() and not c.isalnum() and c != " " or unicodedata.category(c).startswith("P")
