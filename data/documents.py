"""
Documents out of files and archives, one after the other: only one document is in memory at a time.

Every reader is a generator of texts. It yields the same texts in the same order each time, so that
data/shards.py can continue where it stopped. Archives are read in place; nothing is unpacked to
disk.
"""
import codecs
import csv
import io
import re
import tarfile
import zipfile

from data.files import refuse_unreadable
from data.reading import parse_json, refuse_binary
from flags import UserError

PIECE = 1 << 20                                  # characters of an endless text that are a document
SPACE = re.compile(r"(?<=\S) (?=\S)")


def split_pieces(chunks, size=PIECE):
    """Cut a text, which comes in chunks of any length, every `size` characters or a little later:
    before a single space where there is one. BPE starts a new piece there anyway, so the tokens are
    those of the whole text."""
    held = ""
    for chunk in chunks:
        held += chunk
        while len(held) > 2 * size:
            piece, held = first_piece(held, size)
            yield piece
    while held:
        piece, held = first_piece(held, size)
        yield piece


def first_piece(text, size):
    """-> the first piece, the rest"""
    cut = SPACE.search(text, size, 2 * size)
    end = cut.start() if cut else size
    return text[:end], text[end:]


def decode_chunks(read, size, errors="strict"):
    """The text of the next `size` bytes of UTF-8 that read(n) returns, in chunks. EOFError if there
    are fewer."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors)
    while size > 0 and (raw := read(min(PIECE, size))):
        size -= len(raw)
        yield decoder.decode(raw)
    if size > 0:
        raise EOFError(f"{size:,} bytes are missing")
    yield decoder.decode(b"", final=True)


# ---- the user's files

def read_files(paths, split, held_out, errors, size=PIECE):
    """The first part of each file or, for the split "val", its last `held_out`. The share is
    counted in bytes, and the cut is between two characters.

    Windows' line ends and byte order marks are removed, unless errors is "surrogateescape": then
    the files may hold any bytes.
    """
    for path in paths:
        with open_readable(path) as file:
            total = file.seek(0, io.SEEK_END)
            cut = next_boundary(file, int(total * (1 - held_out)))
            first, last = (0, cut) if split == "train" else (cut, total)
            file.seek(0)
            if errors == "strict":
                refuse_binary(file.read(512), path)
            file.seek(first)
            try:
                chunks = decode_chunks(file.read, last - first, errors)
                if errors == "strict":
                    chunks = normalize_lines(chunks, first == 0)
                yield from split_pieces(chunks, size)
            except UnicodeDecodeError:
                raise UserError(f"{path} is not UTF-8 text: save it as UTF-8, leave it out, or use "
                                f"--tokenizer bytes") from None
            except EOFError:
                raise UserError(f"{path} has become shorter while it was read: run again") from None


def open_readable(path):
    try:
        return open(path, "rb")
    except OSError as error:
        refuse_unreadable(error)


def next_boundary(file, place):
    """The first place from `place` on where a character begins, but not between \\r and \\n."""
    file.seek(max(place - 1, 0))
    before, near = file.read(1) if place else b"", file.read(4)
    step = next((i for i, byte in enumerate(near) if byte & 0xC0 != 0x80), len(near))
    return place + step + (step == 0 and before == b"\r" and near[:1] == b"\n")


def normalize_lines(chunks, from_start):
    """The chunks with \\n for \\r\\n and, at the start of a file, without a byte order mark."""
    held = ""
    for i, chunk in enumerate(chunks):
        chunk = held + (chunk.removeprefix("\ufeff") if i == 0 and from_start else chunk)
        held = "\r" if chunk.endswith("\r") else ""  # its \n may be in the next chunk
        chunk = chunk.removesuffix("\r") if held else chunk
        yield chunk.replace("\r\n", "\n")
    yield held


# ---- formats of the publishers

def read_lines(path):
    """A document per line, without the white space around it."""
    with open(path, encoding="utf-8-sig") as file:
        yield from (line.strip() for line in file)


def read_jsonl(path, field):
    with open(path, encoding="utf-8-sig") as file:
        yield from (parse_json(line)[field] for line in file if line.strip())


def read_news(path):
    """AG News: the columns are class, title and description. -> title and description"""
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, quoting=csv.QUOTE_ALL, skipinitialspace=True)
        yield from (f"{title} {description}" for _, title, description in rows)


def read_zip(path, member, first=0, last=None):
    """Bytes first to last of a text in a zip, in pieces."""
    with zipfile.ZipFile(path) as archive, archive.open(member) as file:
        file.seek(first)
        total = archive.getinfo(member).file_size
        yield from split_pieces(decode_chunks(file.read, (last or total) - first))


def read_zip_lines(path, member):
    """Each line of a text in a zip with its line end. Blank lines become empty documents."""
    with zipfile.ZipFile(path) as archive, archive.open(member) as file:
        yield from (line if line.strip() else "" for line in io.TextIOWrapper(file, "utf-8"))


def read_zip_papers(path, member):
    """JSON lines in a zip: an article per document, a sentence per line."""
    with zipfile.ZipFile(path) as archive, archive.open(member) as file:
        yield from ("\n".join(parse_json(line)["article_text"]) for line in file)


def read_tar_lines(path, folder):
    """A document per line of the files of one folder in a .tar.gz."""
    with tarfile.open(path, "r|gz") as archive:
        for member in archive:
            if member.isfile() and f"/{folder}/" in member.name:
                for line in archive.extractfile(member):  # \r ends a line too, as in text mode
                    yield from map(str.strip, line.decode("utf-8").rstrip("\r\n").split("\r"))


def read_web_pages(paths):
    """OpenWebText: tars of .xz, which are tars of .txt. The order of the archives decides the
    split.
    """
    for path in paths:
        with tarfile.open(path, "r|") as outer:
            for packed in outer:
                if packed.isfile() and packed.name.endswith(".xz"):
                    yield from read_packed_pages(outer.extractfile(packed))


def read_packed_pages(file):
    with tarfile.open(fileobj=file, mode="r|xz") as inner:
        for page in inner:
            if page.isfile() and page.name.endswith(".txt"):
                text = inner.extractfile(page).read().decode("utf-8")
                yield re.sub("\n{3,}", "\n\n", text).strip()


def read_parquet(paths, column="text"):
    try:
        from pyarrow.parquet import ParquetFile  # an extra
    except ImportError:
        raise UserError("this corpus comes as parquet files: pip install pyarrow, then run again") \
            from None
    for path in paths:
        with ParquetFile(path) as table:
            for batch in table.iter_batches(256, columns=[column]):
                yield from batch.column(0).to_pylist()
