"""
Files from the network: named with their size before they start, resumed where they broke off, checked by hash.

    path = fetch(File("text8.zip", 31344016, "a6640522...", ("http://mattmahoney.net/dc/text8.zip",)), folder)

What arrives goes to NAME.part, and becomes NAME when it is whole and its sha256 is right: a file that has its name is
good. A broken connection is tried again from where it broke, and so is a run that was stopped (Range and If-Range,
RFC 9110), unless nothing would tell that the file has changed since: no hash, no strong tag. Where a publisher tells
the sha256 of a file (in the table of data/corpora.py, or the Hugging Face hub in the header X-Linked-Etag) it is held
against that. Of the others the hash of the first download is kept beside them, in manifest.json, and from then on the
file must have that one. Offline, one line says what to put where by hand.
"""
import errno
import hashlib
import json
import os
import re
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import requests                                              # comes with tiktoken
from filelock import FileLock
from tqdm import tqdm

from data import BadInput

PIECE = 1 << 16                                              # bytes: what a broken connection may lose
TRIES = 5                                                    # in a row without a new byte
SILENCE = 30                                                 # seconds without one
PATIENCE = 60                                                # seconds that a server may ask us to wait (Retry-After)


@dataclass(frozen=True)
class File:
    """A file to download. size (bytes) and sha256 are None where its publisher does not tell them."""
    name: str
    size: int | None
    sha256: str | None
    urls: tuple                                              # places of the same file: the first that has it


class Refused(Exception):
    """This address will not give the file."""


def fetch(file, folder, pause=1.0):
    """The path of the file in the folder, downloaded unless it is there. BadInput, one line, where that fails.

    pause: seconds before the second try, doubled for each further one.
    """
    path = Path(folder) / file.name
    if not path.exists():
        make_folder(folder)
        with FileLock(path.with_name(".lock")):              # other processes wait for the first
            return checked(path, file) if path.exists() else downloaded(path, file, pause)
    return checked(path, file)


def checked(path, file):
    """The path of a file that is there, if it is what it should be; one that was put there by hand may come first."""
    digest, expected = sha256_of(path), known(path, file)
    if digest != (expected or digest):
        raise BadInput(f"{path} has changed or is broken (its sha256 begins {digest[:12]}, it should begin "
                       f"{expected[:12]}): delete it, then run again to download it anew")
    return record(path, digest)


def downloaded(path, file, pause):
    part, faults = path.with_name(file.name + ".part"), []
    for url in file.urls:
        try:
            told = transfer(url, part, file, pause)
        except Refused as fault:
            faults.append(f"{url}: {fault}")
            continue
        digest, expected = sha256_of(part), known(path, file) or told
        if digest == (expected or digest):
            os.replace(part, path)
            note(part).unlink(missing_ok=True)
            return record(path, digest)
        drop(part)
        faults.append(f"{url}: the sha256 of what came begins {digest[:12]}, it should begin {expected[:12]}: thrown "
                      f"away")
    kept = f", {have:,} bytes are kept" if (have := begun(part, file)) else ""
    raise BadInput(f"cannot download {file.name} ({'; '.join(faults)}){kept}: run again to go on, or save the file by "
                   f"hand as {path}")


def transfer(url, part, file, pause):
    """All of url into the file `part`, in as many attempts as it takes while each brings something. -> its sha256 if
    the hub tells it, or None. Refused, if it cannot be had."""
    tries = 0
    while True:
        have = begun(part, file)
        try:
            return attempt(url, part, file)
        except requests.RequestException as fault:
            tries = 1 if begun(part, file) > have else tries + 1
            if tries >= TRIES:
                raise Refused(reason(fault)) from None
            time.sleep(max(pause * 2 ** (tries - 1), asked_for(fault)))


def attempt(url, part, file):
    """One request, from where `part` ends. RequestException if it may go better next time."""
    have, seen = begun(part, file), note(part).read_text() if note(part).exists() else None
    headers = {"Accept-Encoding": "identity"}                # a range of what is compressed on the way is no range
    if have:
        headers |= {"Range": f"bytes={have}-"} | ({"If-Range": seen} if seen else {})
    with requests.get(url, headers=headers, stream=True, timeout=SILENCE) as answer:
        whole = total(answer)
        if answer.status_code == 416 and have == whole:      # it was all there
            return hub_hash(answer)
        if answer.status_code == 416:                        # another file stands there now
            drop(part)
            raise requests.ConnectionError("the file has changed since its download began")
        if answer.status_code >= 500 or answer.status_code == 429:       # 429: too many requests
            raise requests.HTTPError(f"{answer.status_code} {answer.reason}", response=answer)
        if answer.status_code >= 400:
            raise Refused(f"{answer.status_code} {answer.reason}")
        have = have if answer.status_code == 206 else 0      # 200: it sends all of it
        if file.size and whole and whole != file.size:
            raise Refused(f"it has {whole:,} bytes there, and should have {file.size:,}")
        if not have:
            drop(part)                                       # no bytes of one version beside the tag of another
        room(part, whole, have)
        tag = answer.headers.get("ETag", "")
        if not have and tag and not tag.startswith("W/"):    # a weak tag is no promise of the same bytes
            note(part).write_text(tag)
        receive(answer, part, have, whole)
        if whole and size_of(part) != whole:
            raise requests.ConnectionError(f"the connection ended after {size_of(part):,} of {whole:,} bytes")
        return hub_hash(answer)


def receive(answer, part, have, whole):
    """The body of the answer, to the end of what is there or in place of it."""
    shown = part.name.removesuffix(".part")
    print(f"downloading {shown}{f', {human(whole)}' if whole else ''}{f', from {human(have)} on' if have else ''}, to "
          f"{part.parent}", file=sys.stderr, flush=True)
    bar = tqdm(total=whole, initial=have, unit="B", unit_scale=True, desc=shown, disable=None, leave=False)
    try:
        with bar, open(part, "r+b" if have else "wb") as out:
            out.seek(have)
            for piece in answer.iter_content(PIECE):
                out.write(piece)
                bar.update(len(piece))
            out.flush()
            os.fsync(out.fileno())
    except OSError as fault:                                 # of closing too. RequestException goes its own way
        if fault.errno != errno.ENOSPC:
            raise
        raise BadInput(f"no space left for {part}: free some, then run again; what has come is kept") from None


def room(part, whole, have):
    free = shutil.disk_usage(part.parent).free
    if whole and whole - have > free:
        raise BadInput(f"{part.name.removesuffix('.part')} needs {human(whole - have)} more in {part.parent}, where "
                       f"{human(free)} are free: free some, or point PALIMPSEST_CACHE elsewhere")


def total(answer):
    """The size of the whole file in bytes, or None if the server does not tell."""
    if answer.status_code in (206, 416):
        found = re.search(r"/(\d+)$", answer.headers.get("Content-Range", ""))
        return int(found[1]) if found else None
    length = answer.headers.get("Content-Length")
    return int(length) if length and "Content-Encoding" not in answer.headers else None


def asked_for(fault):
    """The seconds that the server asks us to wait, if it does and they are few."""
    told = fault.response.headers.get("Retry-After", "") if fault.response is not None else ""
    return int(told) if told.isdecimal() and int(told) <= PATIENCE else 0


def hub_hash(answer):
    """The hub tells the sha256 of a large file where it sends one on to its storage."""
    tags = (step.headers.get("X-Linked-Etag", "").strip('"') for step in [*answer.history, answer])
    return next((tag for tag in tags if re.fullmatch(r"[0-9a-f]{64}", tag)), None)


def reason(fault):
    """What went wrong on the way, in a few words."""
    if isinstance(fault, requests.Timeout):
        return f"no answer for {SILENCE} seconds"
    if isinstance(fault, requests.ConnectionError) and fault.args and not isinstance(fault.args[0], str):
        return "no connection: offline?"
    return str(fault)[:200]


# ---- files on the disk

def note(part):
    """Beside the part: the tag of the file that it is part of."""
    return part.with_name(part.name + ".tag")


def drop(part):
    part.unlink(missing_ok=True)
    note(part).unlink(missing_ok=True)


def known(path, file):
    """The sha256 that the file must have, as its publisher tells it, or as it was when it first came; or None."""
    return file.sha256 or manifest(path.parent).get(file.name)


def begun(part, file):
    """The bytes that a download can go on from: none if the rest might be of another version and nobody could tell."""
    return size_of(part) if note(part).exists() or known(part, file) else 0


def size_of(path):
    return path.stat().st_size if path.exists() else 0


def sha256_of(path):
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def human(n):
    """Bytes as people say them: 31.3 MB"""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if n < 1000 or unit == "TB":
            return f"{n:.1f} {unit}" if unit != "bytes" else f"{n} bytes"
        n /= 1000


def manifest(folder):
    """name -> sha256 of what was downloaded into the folder."""
    path = Path(folder) / "manifest.json"
    try:
        return json.loads(path.read_text("utf-8")) if path.exists() else {}
    except ValueError:
        raise BadInput(f"{path} cannot be read: delete it, and the hashes of the files that are there now count") \
            from None


def record(path, digest):
    """Keep the hash of the file. -> the path"""
    known = manifest(path.parent)
    if known.get(path.name) != digest:
        write_atomic(path.parent / "manifest.json", json.dumps(known | {path.name: digest}, indent=1))
    return path


def write_atomic(path, text):
    """The whole text, or what was there before."""
    new = path.with_name(path.name + ".new")
    new.write_text(text, "utf-8")
    os.replace(new, path)


def make_folder(folder):
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise BadInput(f"cannot write to {folder} ({fault.strerror}): point PALIMPSEST_CACHE elsewhere") from None
