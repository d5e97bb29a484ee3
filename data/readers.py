"""
Documents out of files and archives, one after the other: whatever the size of the file, one document is in memory.

Every reader is a generator of texts, and gives the same ones in the same order each time: data/shards.py goes on
behind those that it has. Archives are read as they are; nothing is unpacked to the disk.
"""
import codecs
import csv
import io
import json
import re
import tarfile
import zipfile

from data import BadInput

PIECE = 1 << 20                                              # characters of an endless text that count as a document
SPACE = re.compile(r"(?<=\S) (?=\S)")


def pieces(chunks, size=PIECE):
    """A text that comes in chunks of any size, cut anew every `size` characters or a little later: before a single
    space if one is near, where BPE starts a new piece anyway, so that the tokens are those of the whole."""
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
    cut = SPACE.search(text, size, 2 * size)
    end = cut.start() if cut else size
    return text[:end], text[end:]


def decoded(read, size, errors="strict"):
    """The text of `size` bytes of UTF-8 that read(n) gives, in chunks."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors)
    while size > 0 and (raw := read(min(PIECE, size))):
        size -= len(raw)
        yield decoder.decode(raw)
    yield decoder.decode(b"", final=True)


# ---- the user's files

def files(paths, split, held_out, errors, size=PIECE):
    """The first part of each file, or with split "val" its last `held_out`, by bytes, cut between two characters.

    Windows' line ends and byte order marks go, unless the files are bytes to begin with (errors surrogateescape).
    """
    for path in paths:
        with open(path, "rb") as file:
            total = file.seek(0, io.SEEK_END)
            cut = boundary(file, int(total * (1 - held_out)))
            first, last = (0, cut) if split == "train" else (cut, total)
            file.seek(first)
            try:
                chunks = decoded(file.read, last - first, errors)
                yield from pieces(chunks if errors != "strict" else plain(chunks, first == 0), size)
            except UnicodeDecodeError:
                raise BadInput(f"{path} is not UTF-8 text: save it as UTF-8, leave it out, or use --tokenizer bytes") \
                    from None


def boundary(file, place):
    """The first place from there on where a character begins, and no line end is cut in two."""
    file.seek(max(place - 1, 0))
    before, near = file.read(1) if place else b"", file.read(4)
    step = next((i for i, byte in enumerate(near) if byte & 0xC0 != 0x80), len(near))
    return place + step + (step == 0 and before == b"\r" and near[:1] == b"\n")


def plain(chunks, from_start):
    held = ""
    for i, chunk in enumerate(chunks):
        chunk = held + (chunk.removeprefix("\ufeff") if i == 0 and from_start else chunk)
        held = "\r" if chunk.endswith("\r") else ""          # its \n may be in the next chunk
        yield chunk.removesuffix("\r").replace("\r\n", "\n") if held else chunk.replace("\r\n", "\n")
    yield held


# ---- formats of the publishers

def lines(path):
    """A document on each line, without the space around it."""
    with open(path, encoding="utf-8") as file:
        yield from (line.strip() for line in file)


def jsonl(path, field):
    with open(path, encoding="utf-8") as file:
        yield from (json.loads(line)[field] for line in file if line.strip())


def news(path):
    """AG News: class, title, description -> title and description"""
    with open(path, encoding="utf-8", newline="") as file:
        yield from (f"{title} {description}" for _, title, description in
                    csv.reader(file, quoting=csv.QUOTE_ALL, skipinitialspace=True))


def zipped(path, member, first=0, last=None):
    """Bytes first to last of a text in a zip, in pieces."""
    with zipfile.ZipFile(path) as archive, archive.open(member) as file:
        file.seek(first)
        total = archive.getinfo(member).file_size
        yield from pieces(decoded(file.read, (last or total) - first))


def zipped_lines(path, member):
    """Each line of a text in a zip with its end; one that is blank is empty."""
    with zipfile.ZipFile(path) as archive, archive.open(member) as file:
        yield from (line if line.strip() else "" for line in io.TextIOWrapper(file, "utf-8"))


def zipped_papers(path, member):
    """JSON lines in a zip: the sentences of each article, on lines of their own."""
    with zipfile.ZipFile(path) as archive, archive.open(member) as file:
        yield from ("\n".join(json.loads(line)["article_text"]) for line in file)


def tarred_lines(path, folder):
    """A document on each line of the files of one folder in a .tar.gz."""
    with tarfile.open(path, "r|gz") as archive:
        for member in archive:
            if member.isfile() and f"/{folder}/" in member.name:
                for line in archive.extractfile(member):     # a \r ends a line too, as where files are read as text
                    yield from map(str.strip, line.decode("utf-8").rstrip("\r\n").split("\r"))


def web_pages(paths):
    """OpenWebText: tars of .xz, which are tars of .txt; in the order of the archives, which decides the split."""
    for path in paths:
        with tarfile.open(path, "r|") as outer:
            for packed in outer:
                if packed.isfile() and packed.name.endswith(".xz"):
                    with tarfile.open(fileobj=outer.extractfile(packed), mode="r|xz") as inner:
                        for page in inner:
                            if page.isfile() and page.name.endswith(".txt"):
                                text = inner.extractfile(page).read().decode("utf-8")
                                yield re.sub("\n{3,}", "\n\n", text).strip()


def parquet(paths, column="text"):
    try:
        from pyarrow.parquet import ParquetFile              # an extra
    except ImportError:
        raise BadInput("this corpus comes as parquet files: pip install pyarrow, then run again") from None
    for path in paths:
        with ParquetFile(path) as table:
            for batch in table.iter_batches(256, columns=[column]):
                yield from batch.column(0).to_pylist()
