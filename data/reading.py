"""
Text and JSON that a user gives, from files and from what is typed. UserError says in one line what
is wrong with it.

A byte order mark in front is dropped, and Windows' line ends become line feeds, in every file. JSON
is read strictly: no NaN, no number without an end, no key twice, no nesting without bound.
"""
import json
import math
from pathlib import Path

from flags import UserError

UNPACK, AS_TEXT = "unpack it first", "save it as plain text in UTF-8 first"
SIGNATURES = [  # place, bytes there, what the file is, what to do with it
    (0, b"\x1f\x8b", "packed by gzip", UNPACK),
    (4, b"1AY&SY", "packed by bzip2", UNPACK),
    (0, b"\xfd7zXZ\0", "packed by xz", UNPACK),
    (0, b"(\xb5/\xfd", "packed by zstd", UNPACK),
    (0, b"7z\xbc\xaf", "a 7z archive", UNPACK),
    (0, b"PK\x03\x04", "a zip archive, as .docx, .xlsx, .epub and .pt files are",
     "unpack it, or save its text as UTF-8"),
    (257, b"ustar", "a tar archive", UNPACK),
    (0, b"%PDF-", "a PDF", AS_TEXT),
    (0, b"{\\rtf1", "in rich text format", AS_TEXT),
    (0, b"\xd0\xcf\x11\xe0", "a file of an office program", AS_TEXT),
    (0, b"PAR1\x15", "a parquet table", "write its column of text to a text file first"),
    (0, b"SQLite format 3\0", "a database", AS_TEXT),
    (0, b"\x93NUMPY", "a numpy array", AS_TEXT),
    (0, b"\x89PNG", "an image", "leave it out"),
    (0, b"\xff\xd8\xff", "an image", "leave it out"),
    (0, b"\xff\xfe\0\0", "in UTF-32", "save it as UTF-8"),
    (0, b"\0\0\xfe\xff", "in UTF-32", "save it as UTF-8"),
    (0, b"\xff\xfe", "in UTF-16", "save it as UTF-8"),
    (0, b"\xfe\xff", "in UTF-16", "save it as UTF-8"),
]


# ---- text

def refuse_binary(head, path):
    """UserError if a file is no UTF-8 text, by its first bytes. head: a few hundred of them"""
    for place, sign, what, cure in SIGNATURES:
        if head[place:place + len(sign)] == sign:
            raise UserError(f"{path} is {what}: {cure}")
    if head.count(0) > len(head) / 4:  # English in UTF-16 without a mark: every other byte
        raise UserError(f"{path} is no UTF-8 text, perhaps UTF-16: save it as UTF-8")


def decode_text(raw, path, cure="save it as UTF-8"):
    """The text in the bytes of a file, without a byte order mark and Windows' line ends."""
    refuse_binary(raw[:512], path)
    try:
        return tidy(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start:,}): {cure}") from None


def read_text(path, what=""):
    """The text of a file. what: it is, for messages, as in "the prompt " """
    path = Path(path).expanduser()
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {what}{path}: {error.strerror}") from None
    return decode_text(raw, f"{what}{path}")


def tidy(text):
    """A text as it is read: without a byte order mark in front, with line feeds at line ends."""
    return text.removeprefix("\ufeff").replace("\r\n", "\n")


def to_utf8(text, errors="strict"):
    """A text as bytes; UserError if it has half a character, a surrogate.

    errors: "surrogateescape" lets bytes pass that are no UTF-8, as a terminal gives them
    """
    try:
        return text.encode("utf-8", errors)
    except UnicodeEncodeError as error:
        half = ord(text[error.start])
    if 0xDC80 <= half <= 0xDCFF:
        raise UserError(f"the byte 0x{half - 0xDC00:02x} is no UTF-8: type or save the text as "
                        f"UTF-8")
    raise UserError(f"'\\u{half:04x}' is half of a character and no text: write the character "
                    f"whole")


# ---- JSON

def finite_number(text):
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is no number")
    return number


def distinct_keys(pairs):
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return made


def parse_json(text):
    """The value of a JSON text; ValueError, and no other error, says what is wrong with it."""
    try:
        return json.loads(text, parse_float=finite_number, parse_constant=finite_number,
                          object_pairs_hook=distinct_keys)
    except RecursionError:
        raise ValueError("it nests too deep") from None


def read_json_lines(path, read, what, form):
    """read(value) of each line of a .jsonl file; a ValueError of it is the reason of a UserError
    that names the line. Blank lines are skipped.

    what, form: what a line is and looks like, for that message. -> [(number of the line, result)]
    """
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), 1):  # and at no other separator
        if line.strip():
            try:
                rows.append((number, read(parse_json(line))))
            except UserError as error:
                raise UserError(f"{path}, line {number}: {error}") from None
            except ValueError as error:
                raise UserError(f"{path}, line {number} is not {what} ({error}): it should be "
                                f"{form}") from None
    return rows
