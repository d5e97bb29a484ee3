"""
Text to ids and back. Every tokenizer is a `tiktoken.Encoding`, ours and the published ones alike.

    chars(text)             one token per distinct character of the text
    byte_level()            the 256 bytes: encodes anything, even what is not text
    words(["two", "old"])   word i has id i; a text is words between spaces (data/toy.py)
    grid(" .:#", 8)         one character per symbol, in lines of 8 (data/digits.py)
    bpe(text, vocab_size)   byte-pair encoding, trained here
    load_encoding("gpt2")   an encoding of tiktoken, or the words of BERT (data/wordpiece.py)

    ids = encode(encoding, text)
    text = decode(encoding, ids)
    encoding = from_json(to_json(encoding))

The ids of a text are 0 .. encoding.n_vocab - 1. Masks and other special symbols have ids from
n_vocab on: they belong to the method that needs them (methods/mdlm.py), not to the tokenizer.
"""
import codecs
import difflib
import hashlib
import heapq
import json
import os
import tempfile
from collections import Counter, defaultdict

import numpy as np
import regex  # comes with tiktoken; unlike re, it knows \p{L}, a letter
import tiktoken

from data import wordpiece
from data.reading import parse_json, to_utf8
from flags import UserError

ASCII = "\n" + "".join(map(chr, range(32, 127)))             # an English prompt may contain these
END_OF_TEXT = "<|endoftext|>"
ONE_CHARACTER = r"[\s\S]"
ONE_WORD = r" \S+"
# BPE never merges across the pieces of this pattern: a word with the space before it, a digit, a
# run of other signs with the line break and indent after it, a line break with its indent, a run of
# white space. On docstrings it gives 4 % fewer tokens than GPT-2's pattern. It has no look-ahead
# and every run is bounded, so a text without spaces does not stall it.
BPE_PATTERN = (r" ?\p{L}{1,32}| ?\p{N}| ?[^\s\p{L}\p{N}]{1,32}(?:\n{1,32} {0,32})?"
               r"|\n{1,32} {0,32}|\s{1,32}")
BPE_PIECES = 20_000  # BPE is trained on the most frequent pieces

HOST = "https://openaipublic.blob.core.windows.net/"
TIKTOKEN_FILES = {  # those not called encodings/NAME.tiktoken
    "gpt2": ("gpt-2/encodings/main/vocab.bpe", "gpt-2/encodings/main/encoder.json"),
    "p50k_edit": ("encodings/p50k_base.tiktoken",),
    "o200k_harmony": ("encodings/o200k_base.tiktoken",),
}


def make_encoding(name, pattern, tokens, special=()):
    """An Encoding in which the i-th of `tokens` (bytes) has id i; then come the special ones."""
    if not tokens:
        raise UserError("the text is empty, so it has no tokens: give a text that is not empty")
    ranks = {token: i for i, token in enumerate(tokens)}
    marks = {mark: len(ranks) + i for i, mark in enumerate(special)}
    return tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens=marks,
                             explicit_n_vocab=len(ranks) + len(marks))


def chars(text):
    """One token per distinct character, in code point order."""
    return make_encoding("chars", ONE_CHARACTER, [c.encode() for c in sorted(set(text))])


def byte_level():
    """The id of a byte is its value."""
    return make_encoding("bytes", ONE_CHARACTER, [bytes([i]) for i in range(256)])


def words(vocabulary):
    """Word i has id i. A token includes the space before its word; `encode` adds the first space
    of a text and `decode` removes it."""
    return make_encoding("words", ONE_WORD, [f" {word}".encode() for word in vocabulary])


def grid(symbols, width):
    """The i-th character has id i. A text is read in lines of `width`; line breaks are not
    tokens."""
    name = "pixels" if width == 8 else f"grid {width}"  # the name in checkpoints of digits
    return make_encoding(name, ONE_CHARACTER, [symbol.encode() for symbol in symbols])


def width_of(encoding):
    """The length of a line of a grid; None: texts are not in lines."""
    if encoding.name == "pixels":
        return 8
    return int(encoding.name[5:]) if encoding.name.startswith("grid ") else None


def bpe(text, vocab_size, alphabet=ASCII):
    """At most vocab_size tokens: the bytes of text and alphabet, then merges. There are fewer
    tokens if no pair of neighbors occurs twice.

    Each step merges the most frequent pair. The naive trainer recounts all pairs at each step; this
    one recounts only the pieces that contain the merged pair, and keeps the pairs in a heap. It
    trains on a megabyte in two seconds.
    """
    base = sorted(set(text.encode()) | set(alphabet.encode()))
    if vocab_size < len(base):
        raise UserError(f"a BPE of {vocab_size} tokens cannot hold the {len(base)} bytes of this "
                        f"text: use --vocab_size {len(base)} or more, or --tokenizer bytes")
    ranks = {bytes([byte]): i for i, byte in enumerate(base)}
    frequent = Counter(regex.findall(BPE_PATTERN, text)).most_common(BPE_PIECES)
    spelling = [[bytes([byte]) for byte in piece.encode()] for piece, _ in frequent]  # as tokens
    times = [n for _, n in frequent]
    count, where = Counter(), defaultdict(set)  # of each pair: how often, in which pieces
    seen, heap, touched = {}, [], {}  # first seen; (-count, seen, pair)

    def tally(i, sign):
        for pair in zip(spelling[i], spelling[i][1:]):
            count[pair] += sign * times[i]
            where[pair].add(i)
            touched[pair] = True

    for i in range(len(spelling)):
        tally(i, +1)
    while len(ranks) < vocab_size:
        for pair in touched:  # their older entries are stale now
            heapq.heappush(heap, (-count[pair], seen.setdefault(pair, len(seen)), pair))
        touched.clear()
        while heap and -heap[0][0] != count[heap[0][2]]:
            heapq.heappop(heap)
        if not heap or heap[0][0] > -2:  # every pair that is left occurs once
            break
        pair = heapq.heappop(heap)[2]  # ties go to the pair that was seen first
        ranks.setdefault(pair[0] + pair[1], len(ranks))  # a+bc and ab+c are one token: its first id
        for i in sorted(where[pair]):  # some no longer contain it: that is harmless
            tally(i, -1)
            spelling[i] = join_pair(spelling[i], pair)
            tally(i, +1)
    return make_encoding("bpe", BPE_PATTERN, ranks)


def join_pair(tokens, pair):
    """The list of tokens with each occurrence of the pair merged, from the left."""
    out, i = [], 0
    while i < len(tokens):
        step = 2 if tuple(tokens[i:i + 2]) == pair else 1
        out.append(b"".join(tokens[i:i + step]))
        i += step
    return out


def load_encoding(name):
    """The encoding of that name: one of tiktoken, or the words of BERT. Its files are downloaded
    once."""
    if name == wordpiece.NAME:
        return wordpiece.load_published()
    known = [*tiktoken.list_encoding_names(), wordpiece.NAME]
    if name not in known:
        names = ["auto", "chars", "bytes", "bpe", *known]
        near = difflib.get_close_matches(name, names, n=1)
        meant = f" (did you mean {near[0]!r}?)" if near else ""
        raise UserError(f"there is no tokenizer {name!r}{meant}: choose from {', '.join(names)}")
    try:
        return tiktoken.get_encoding(name)
    except (OSError, ValueError, ImportError) as error:  # offline, bad hash, read-only folder
        raise UserError(missing_files(name, error)) from None


def missing_files(name, error):
    """The message that says which files to put where. tiktoken calls a file by the sha1 of its
    URL."""
    urls = [HOST + path for path in TIKTOKEN_FILES.get(name, (f"encodings/{name}.tiktoken",))]
    files = " and ".join(f"{url} as {hashlib.sha1(url.encode()).hexdigest()}" for url in urls)
    folder = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
    temporary = os.path.join(tempfile.gettempdir(), "data-gym-cache")
    where = folder or f"{temporary} (or set TIKTOKEN_CACHE_DIR)"
    return (f"cannot load {name} ({type(error).__name__}): save {files} in the folder {where}, "
            f"or use --tokenizer bpe")


# ---- text to ids and back

def encode(encoding, text):
    """The ids of a text, (n,) uint16, or uint32 if the vocabulary needs it. Special tokens in the
    text are encoded as plain text. A UserError names half a character, or the characters or words
    that are not in the vocabulary.
    """
    dtype = np.uint16 if encoding.n_vocab <= 1 << 16 else np.uint32
    if encoding.name == "bytes":  # surrogateescape keeps bytes that are not text
        raw = to_utf8(text, "surrogateescape")
        return np.frombuffer(raw, np.uint8).astype(dtype)  # (n,)
    to_utf8(text)  # tiktoken stops at half a character
    if encoding.name == "words":
        text = "".join(f" {word}" for word in text.split())
    if width_of(encoding):
        text = text.replace("\n", "")
    if unknown := unknown_symbols(encoding, text):
        kind = "word" if encoding.name == "words" else "character"
        shown = ", ".join(map(repr, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
        tip = "" if kind == "word" else ", or train with --tokenizer bytes, which has all"
        raise UserError(f"the vocabulary lacks {shown}: leave out these {kind}s{tip}")
    return encoding.encode_to_numpy(text, disallowed_special=()).astype(dtype)  # (n,)


def unknown_symbols(encoding, text):
    """The characters (or words) of the text that the encoding cannot spell, sorted: tiktoken panics
    on them."""
    tokens = encoding._mergeable_ranks  # as in tiktoken's README: no public name
    if encoding.name == "words":
        return sorted(word for word in set(text.split())
                      if f" {word}".encode() not in tokens)
    if encoding.name == wordpiece.NAME:  # it has a token for unknown words
        return []
    spelled = {c: c.encode() for c in set(text)}
    known = lambda spelling: spelling in tokens or all(bytes([byte]) in tokens for byte in spelling)
    return sorted(c for c, spelling in spelled.items() if not known(spelling))


def decode(encoding, ids, gap="_"):
    """The text of a sequence of ids. An id that is not a token (a mask) becomes `gap`, and broken
    UTF-8 becomes U+FFFD."""
    if width_of(encoding):
        return "".join(pieces(encoding, ids, gap))
    parts, space = spell_ids(encoding, ids, gap)
    return b"".join(parts).decode("utf-8", "replace").removeprefix(space)  # at once: much faster


def spell_ids(encoding, ids, gap="_"):
    """The bytes of each id, and what stands before a word. -> [bytes], str"""
    space = " " if encoding.name in ("words", wordpiece.NAME) else ""
    ids, known = list(map(int, ids)), {}
    for i in set(ids):
        try:
            known[i] = encoding.decode_single_token_bytes(i)
        except (KeyError, OverflowError):  # not a token: a mask, or a gap in gpt4's ids
            known[i] = (space + gap).encode()
    return [known[i] for i in ids], space


def pieces(encoding, ids, gap="_"):
    """The text that each id adds. A character of several tokens is added by the last of them."""
    parts, space = spell_ids(encoding, ids, gap)
    utf8 = codecs.getincrementaldecoder("utf-8")("replace")
    texts = [utf8.decode(part) for part in parts]
    if texts:
        texts[0] = texts[0].removeprefix(space)
        texts[-1] += utf8.decode(b"", final=True)
    if width := width_of(encoding):
        texts = [text + "\n" * ((i + 1) % width == 0 and i + 1 < len(texts))
                 for i, text in enumerate(texts)]
    return texts


# ---- facts about an encoding

def token_sizes(encoding):
    """The bytes that each id adds to a text; 0 for special tokens and unused ids. -> (n_vocab,)"""
    size = np.zeros(encoding.n_vocab, np.int64)  # (n_vocab,)
    for token, i in encoding._mergeable_ranks.items():
        size[i] = len(token)
    return size


def end_of_text(encoding):
    """The id that ends a text, for encodings that have one (gpt2, chats), else None."""
    return encoding.eot_token if END_OF_TEXT in encoding.special_tokens_set else None


def has_subword_bytes(encoding):
    """Do n-grams of bytes say more than n-grams of tokens? They do not where tokens are characters,
    words or a grid, nor where special tokens other than the end stand between the words."""
    marks = encoding.special_tokens_set - {END_OF_TEXT}
    one = encoding.name in ("chars", "words") or width_of(encoding)
    return not one and not marks


# ---- in checkpoints

def to_json(encoding):
    """The whole encoding as JSON text: a checkpoint that contains it needs no file and no
    network."""
    ranks = {token.decode("latin-1"): i for token, i in encoding._mergeable_ranks.items()}
    return json.dumps({"name": encoding.name, "pattern": encoding._pat_str, "ranks": ranks,
                       "special": encoding._special_tokens})


def from_json(text):
    """The encoding that `to_json` wrote. Raises UserError if the text is anything else."""
    try:
        fields = parse_json(text)
        ranks = {token.encode("latin-1"): i for token, i in fields["ranks"].items()}
        ids = [*ranks.values(), *fields["special"].values()]
        if not ranks or len(set(ids)) < len(ids) or \
                not all(type(i) is int and 0 <= i < 1 << 32 for i in ids):
            raise ValueError("the ids of the tokens are not distinct integers")
        if fields["name"] == wordpiece.NAME:
            return wordpiece.from_ranks(ranks)
        return tiktoken.Encoding(str(fields["name"]), pat_str=fields["pattern"],
                                 mergeable_ranks=ranks, special_tokens=fields["special"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"this is not a tokenizer of palimpsest ({type(error).__name__}: {error}): "
                        f"give the text that to_json wrote") from None
