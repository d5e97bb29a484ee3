"""
Text to ids and back. Every tokenizer is a `tiktoken.Encoding`, ours and the famous ones alike.

    chars(text)             one token per distinct character of the text
    byte_level()            the 256 bytes: encodes anything, even what is not text
    words(["two", "old"])   word i has id i; a text is words between spaces (data/toy.py)
    pixels(" .:#")          one character per grey level; a text breaks into lines of 8 (data/digits.py)
    bpe(text, vocab_size)   byte-pair encoding, trained here: join the commonest pair of neighbours, again and again
    named("gpt2")           whatever tiktoken knows; and wordpiece.py has the words of BERT

    ids = encode(encoding, text);  text = decode(encoding, ids);  encoding = from_json(to_json(encoding))

The ids of a text are 0 .. encoding.n_vocab - 1. A mask or another special symbol is an id from n_vocab on: it belongs
to the method that needs it (masked.py) and is no part of the tokenizer.
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
import regex                                                 # comes with tiktoken; unlike re, it knows \p{L}, a letter
import tiktoken

from data import BadInput, wordpiece

ASCII = "\n" + "".join(map(chr, range(32, 127)))             # what an English prompt may hold
ONE_CHARACTER = r"[\s\S]"
ONE_WORD = r" \S+"
# BPE joins nothing across these pieces: a word with the space before it, a digit, a run of other signs with the line's
# end and indent after it, a line's end with its indent, a blank run. Against GPT-2's pattern: 4 % fewer tokens on
# docstrings; and with no look-ahead and an end to each run, a text without spaces does not stall it.
PIECE = r" ?\p{L}{1,32}| ?\p{N}| ?[^\s\p{L}\p{N}]{1,32}(?:\n{1,32} {0,32})?|\n{1,32} {0,32}|\s{1,32}"
PIECES = 20_000                                              # the commonest teach BPE: all that docstrings have

HOST = "https://openaipublic.blob.core.windows.net/"
FILES = {                                                    # where a name is not encodings/<name>.tiktoken
    "gpt2": ("gpt-2/encodings/main/vocab.bpe", "gpt-2/encodings/main/encoder.json"),
    "p50k_edit": ("encodings/p50k_base.tiktoken",),
    "o200k_harmony": ("encodings/o200k_base.tiktoken",),
}


def build(name, pattern, tokens):
    """An Encoding in which the i-th of `tokens` (bytes) has id i. It has no special tokens."""
    if not tokens:
        raise BadInput("an empty text has no tokens: give one with something in it")
    ranks = {token: i for i, token in enumerate(tokens)}
    return tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={},
                             explicit_n_vocab=len(ranks))


def chars(text):
    """One token per distinct character, in code point order."""
    return build("chars", ONE_CHARACTER, [c.encode() for c in sorted(set(text))])


def byte_level():
    """The id of a byte is its value."""
    return build("bytes", ONE_CHARACTER, [bytes([i]) for i in range(256)])


def words(vocabulary):
    """Word i has id i. Inside, each token carries the space before it; `encode` and `decode` hide the first one."""
    return build("words", ONE_WORD, [f" {word}".encode() for word in vocabulary])


def pixels(levels):
    """The i-th character is grey level i. A picture is read in lines of 8, whose ends are no tokens."""
    return build("pixels", ONE_CHARACTER, [level.encode() for level in levels])


def bpe(text, vocab_size, alphabet=ASCII):
    """At most vocab_size tokens (fewer if no pair of neighbours is left): the bytes of text and alphabet, then merges.

    Each step joins the commonest pair. The naive trainer counts all pairs anew at each step; this one recounts only
    the pieces in which the joined pair stood, and keeps the pairs in a heap: a megabyte takes two seconds.
    """
    base = sorted(set(text.encode()) | set(alphabet.encode()))
    if vocab_size < len(base):
        raise BadInput(f"a BPE of {vocab_size} tokens cannot hold the {len(base)} bytes of this text: "
                       f"use --vocab_size {len(base)} or more, or --tokenizer bytes")
    ranks = {bytes([byte]): i for i, byte in enumerate(base)}
    commonest = Counter(regex.findall(PIECE, text)).most_common(PIECES)
    spelling = [[bytes([byte]) for byte in piece.encode()] for piece, _ in commonest]        # in present tokens
    times = [n for _, n in commonest]
    count, where = Counter(), defaultdict(set)               # of each pair: how often, and in which pieces
    seen, heap, touched = {}, [], {}                         # of each pair: when first seen; (-count, seen, pair)

    def tally(i, sign):
        for pair in zip(spelling[i], spelling[i][1:]):
            count[pair] += sign * times[i]
            where[pair].add(i)
            touched[pair] = True

    for i in range(len(spelling)):
        tally(i, +1)
    while len(ranks) < vocab_size:
        for pair in touched:                                 # their older entries are stale from now on
            heapq.heappush(heap, (-count[pair], seen.setdefault(pair, len(seen)), pair))
        touched.clear()
        while heap and -heap[0][0] != count[heap[0][2]]:
            heapq.heappop(heap)
        if not heap or heap[0][0] > -2:
            break                                            # what occurs once is no habit of the language
        pair = heapq.heappop(heap)[2]                        # the first of equals: the same on every machine
        ranks.setdefault(pair[0] + pair[1], len(ranks))      # a+bc and ab+c spell one token: it keeps its first id
        for i in sorted(where[pair]):                        # some may have lost the pair to an earlier join: no harm
            tally(i, -1)
            spelling[i] = join(spelling[i], pair)
            tally(i, +1)
    return build("bpe", PIECE, ranks)


def join(tokens, pair):
    """The list of tokens with each occurrence of the pair made one, from the left."""
    out, i = [], 0
    while i < len(tokens):
        step = 2 if tuple(tokens[i:i + 2]) == pair else 1
        out.append(b"".join(tokens[i:i + step]))
        i += step
    return out


def named(name):
    """tiktoken's own encoding of that name, or the words of BERT: downloaded once, or put in place by hand."""
    if name == wordpiece.NAME:
        return wordpiece.published()
    known = [*tiktoken.list_encoding_names(), wordpiece.NAME]
    if name not in known:
        names = ["auto", "chars", "bytes", "bpe", *known]
        near = difflib.get_close_matches(name, names, n=1)
        raise BadInput(f"no tokenizer is called {name!r}{f' (did you mean {near[0]!r}?)' if near else ''}: "
                       f"there are {', '.join(names)}")
    try:
        return tiktoken.get_encoding(name)
    except (OSError, ValueError, ImportError) as error:      # offline, a bad hash, a folder not writable
        raise BadInput(missing_files(name, error)) from None


def missing_files(name, error):
    """One line: which files to put where. tiktoken calls a file by the sha1 of its address."""
    urls = [HOST + path for path in FILES.get(name, (f"encodings/{name}.tiktoken",))]
    files = " and ".join(f"{url} as {hashlib.sha1(url.encode()).hexdigest()}" for url in urls)
    folder = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
    where = folder or f"{os.path.join(tempfile.gettempdir(), 'data-gym-cache')} (or set TIKTOKEN_CACHE_DIR)"
    return f"cannot load {name} ({type(error).__name__}): save {files} in the folder {where}, or use --tokenizer bpe"


def encode(encoding, text):
    """The ids of a text, (n,) uint16, or uint32 if the vocabulary needs it. Special tokens in it are plain text.

    Raises BadInput for characters or words that the encoding does not know: they are named.
    """
    dtype = np.uint16 if encoding.n_vocab <= 1 << 16 else np.uint32
    if encoding.name == "bytes":                             # surrogateescape: bytes that are no text pass unharmed
        return np.frombuffer(text.encode("utf-8", "surrogateescape"), np.uint8).astype(dtype)
    if encoding.name == "words":
        text = "".join(f" {word}" for word in text.split())
    if encoding.name == "pixels":
        text = text.replace("\n", "")
    if unknown := unknown_symbols(encoding, text):
        kind = "word" if encoding.name == "words" else "character"
        shown = ", ".join(map(repr, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
        raise BadInput(f"the vocabulary lacks {shown}: leave out the {kind}s that it never saw")
    return encoding.encode_to_numpy(text, disallowed_special=()).astype(dtype)


def unknown_symbols(encoding, text):
    """The characters (or words) of the text that the encoding cannot spell, sorted. tiktoken itself would panic."""
    tokens = encoding._mergeable_ranks                       # tiktoken's README uses this name: there is no public one
    if encoding.name == "words":
        return sorted(word for word in set(text.split()) if f" {word}".encode("utf-8", "surrogatepass") not in tokens)
    if encoding.name == wordpiece.NAME:                      # it has a token for what it does not know
        return []
    spelled = {c: c.encode("utf-8", "surrogatepass") for c in set(text)}
    return sorted(c for c, spelling in spelled.items()
                  if spelling not in tokens and any(bytes([byte]) not in tokens for byte in spelling))


def decode(encoding, ids, gap="_"):
    """The text of a sequence of ids; an id that is no token (a mask) becomes `gap`. Broken UTF-8 becomes U+FFFD."""
    return "".join(pieces(encoding, ids, gap))


def pieces(encoding, ids, gap="_"):
    """What each id adds to the text. A character that takes several tokens belongs to the last of them."""
    space = " " if encoding.name in ("words", wordpiece.NAME) else ""
    utf8, texts = codecs.getincrementaldecoder("utf-8")("replace"), []
    for i in ids:
        try:
            part = encoding.decode_single_token_bytes(int(i))
        except (KeyError, OverflowError):                    # from n_vocab on, below 0, or a number that gpt4 skips
            part = (space + gap).encode()
        texts.append(utf8.decode(part))
    if texts:
        texts[0] = texts[0].removeprefix(space)
        texts[-1] += utf8.decode(b"", final=True)
    if encoding.name == "pixels":
        texts = [text + "\n" * (i % 8 == 7 and i + 1 < len(texts)) for i, text in enumerate(texts)]
    return texts


def sizes(encoding):
    """The bytes that each id adds to a text; 0 for special ones and for numbers that gpt4 skips. -> (n_vocab,)"""
    size = np.zeros(encoding.n_vocab, np.int64)                                                      # (n_vocab,)
    for token, i in encoding._mergeable_ranks.items():
        size[i] = len(token)
    return size


def to_json(encoding):
    """All that makes the encoding, as JSON text: a checkpoint that holds it needs no file and no network."""
    ranks = {token.decode("latin-1"): i for token, i in encoding._mergeable_ranks.items()}     # a byte as a character
    return json.dumps({"name": encoding.name, "pattern": encoding._pat_str, "ranks": ranks,
                       "special": encoding._special_tokens})


def from_json(text):
    """The encoding that `to_json` wrote. Raises BadInput if the text is anything else."""
    try:
        fields = json.loads(text)
        ranks = {token.encode("latin-1"): i for token, i in fields["ranks"].items()}
        ids = [*ranks.values(), *fields["special"].values()]
        if not ranks or len(set(ids)) < len(ids) or not all(type(i) is int and 0 <= i < 1 << 32 for i in ids):
            raise ValueError("the ids of the tokens are not distinct integers")
        if fields["name"] == wordpiece.NAME:
            return wordpiece.restored(ranks)
        return tiktoken.Encoding(str(fields["name"]), pat_str=fields["pattern"], mergeable_ranks=ranks,
                                 special_tokens=fields["special"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"this is no tokenizer of ours ({type(error).__name__}: {error}): "
                       f"it should be the text that to_json wrote") from None
