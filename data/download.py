"""
Files from the network: resumed where the connection broke, checked by hash.

    file = File("text8.zip", 31344016, "a6640522...", ("http://mattmahoney.net/dc/text8.zip",))
    path = fetch(file, folder)

A file is written to NAME.part and renamed to NAME when it is complete and its sha256 is right, so a
file that has its name is good. A broken connection or a stopped run continues where it was (Range
and If-Range, RFC 9110), unless the file may have changed since and nothing would show it: no hash
and no strong ETag. Most publishers state a sha256 (in data/corpora.py, or the Hugging Face hub in
the header X-Linked-Etag). For the others, the hash of the first download is kept in manifest.json,
and later downloads must have the same hash. Offline, the message says which file to put where.
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

import requests  # comes with tiktoken
from filelock import FileLock
from tqdm import tqdm

from data.files import write_file
from data.reading import parse_json
from flags import UserError

CHUNK = 1 << 16                              # bytes: at most so much is lost with a connection
TRIES = 5                                    # in a row without a new byte
TIMEOUT = 30                                 # seconds without a byte
MAX_WAIT = 60  # seconds that a server may ask us to wait (Retry-After)


@dataclass(frozen=True)
class File:
    """A file to download. size (bytes) and sha256 are None if the publisher does not state them."""
    name: str
    size: int | None
    sha256: str | None
    urls: tuple  # of the same file, in order of preference


class Refused(Exception):
    """This URL does not provide the file."""


def cache_root(cache=None):
    """The folder of prepared and downloaded files: data/cache, or $PALIMPSEST_CACHE."""
    default = Path(__file__).parent / "cache"
    return Path(cache or os.environ.get("PALIMPSEST_CACHE") or default).expanduser()


def fetch_all(name, files, folder, weight=""):
    """-> the paths of the files. weight: the size of all, if it is known in round numbers only"""
    missing = [file for file in files if not (folder / file.name).exists()]
    if missing:
        known = all(file.size for file in missing)
        size = f" of {format_bytes(sum(file.size for file in missing))}" if known else \
            f", {weight} in total," * bool(weight)
        count = f"{len(missing)} file{'s' * (len(missing) > 1)}"
        print(f"{name}: {count}{size} to download to {folder}", file=sys.stderr, flush=True)
    return [fetch(file, folder) for file in files]


def fetch(file, folder, pause=1.0):
    """The path of the file in the folder, downloaded unless it is there. UserError if that fails.

    pause: seconds before the second try, doubled for each further one.
    """
    path = Path(folder) / file.name
    if not path.exists():
        make_folder(folder)
        with FileLock(path.with_name(".lock")):  # other processes wait for the first
            return check_file(path, file) if path.exists() else download(path, file, pause)
    return check_file(path, file)


def check_file(path, file):
    """The path, if the file there has the right hash: somebody may have put another one there."""
    digest, expected = sha256_of(path), expected_hash(path, file)
    if digest != (expected or digest):
        raise UserError(f"{path} has changed or is damaged (its sha256 begins {digest[:12]}, it "
                        f"should begin {expected[:12]}): delete it, then run again to download it")
    return record_hash(path, digest)


def download(path, file, pause):
    """Try each URL in turn. -> the path"""
    part, faults = path.with_name(file.name + ".part"), []
    for url in file.urls:
        try:
            stated = transfer(url, part, file, pause)
        except Refused as fault:
            faults.append(f"{url}: {fault}")
            continue
        digest, expected = sha256_of(part), expected_hash(path, file) or stated
        if digest == (expected or digest):
            os.replace(part, path)
            tag_path(part).unlink(missing_ok=True)
            return record_hash(path, digest)
        discard(part)
        faults.append(f"{url}: the sha256 of the download begins {digest[:12]}, it should begin "
                      f"{expected[:12]}: deleted")
    kept = f", {have:,} bytes are kept" if (have := resumable_bytes(part, file)) else ""
    raise UserError(f"cannot download {file.name} ({'; '.join(faults)}){kept}: run again to "
                    f"continue, or save the file by hand as {path}")


def transfer(url, part, file, pause):
    """Download url to the file `part`, in as many requests as it takes while each brings something.

    -> its sha256 if the hub states it, or None. Refused if the file is not available.
    """
    tries = 0
    while True:
        have = resumable_bytes(part, file)
        try:
            return request_rest(url, part, file)
        except requests.RequestException as fault:
            tries = 1 if resumable_bytes(part, file) > have else tries + 1
            if tries >= TRIES:
                raise Refused(explain(fault)) from None
            time.sleep(max(pause * 2 ** (tries - 1), retry_after(fault)))


def request_rest(url, part, file):
    """One request for what `part` lacks. RequestException if another try may succeed."""
    have = resumable_bytes(part, file)
    tag = tag_path(part).read_text("utf-8") if tag_path(part).exists() else None
    headers = {"Accept-Encoding": "identity"}  # a range of a compressed file would be no range
    if have:
        headers |= {"Range": f"bytes={have}-"} | ({"If-Range": tag} if tag else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        whole = total_size(answer)
        if answer.status_code == 416 and have == whole:  # everything was there
            return hub_hash(answer)
        check_status(answer, part)
        have = have if answer.status_code == 206 else 0  # 200: the server sends the whole file
        if file.size and whole and whole != file.size:
            raise Refused(f"the file there has {whole:,} bytes and should have {file.size:,}")
        if not have:
            discard(part)  # never bytes of one version with the tag of another
        check_space(part, whole, have)
        tag = answer.headers.get("ETag", "")
        if not have and tag and not tag.startswith("W/"):  # a weak tag does not promise equal bytes
            tag_path(part).write_text(tag, "utf-8")
        receive(answer, part, have, whole)
        if whole and file_size(part) != whole:
            raise requests.ConnectionError(
                f"the connection ended after {file_size(part):,} of {whole:,} bytes")
        return hub_hash(answer)


def check_status(answer, part):
    """RequestException if another try may succeed, Refused if not."""
    if answer.status_code == 416:  # the file at this URL is another one now
        discard(part)
        raise requests.ConnectionError("the file has changed since its download began")
    if answer.status_code >= 500 or answer.status_code == 429:  # 429: too many requests
        raise requests.HTTPError(f"{answer.status_code} {answer.reason}", response=answer)
    if answer.status_code >= 400:
        raise Refused(f"{answer.status_code} {answer.reason}")


def receive(answer, part, have, whole):
    """Write the body of the answer behind the first `have` bytes of `part`."""
    name = part.name.removesuffix(".part")
    size = f", {format_bytes(whole)}" if whole else ""
    start = f", from {format_bytes(have)} on" if have else ""
    print(f"downloading {name}{size}{start}, to {part.parent}", file=sys.stderr, flush=True)
    bar = tqdm(total=whole, initial=have, unit="B", unit_scale=True, desc=name, disable=None,
               leave=False)
    try:
        with bar, open(part, "r+b" if have else "wb") as out:
            out.seek(have)
            for piece in answer.iter_content(CHUNK):
                out.write(piece)
                bar.update(len(piece))
            out.flush()
            os.fsync(out.fileno())
    except OSError as fault:  # RequestException, too, is an OSError: it has no errno
        if fault.errno != errno.ENOSPC:
            raise
        raise UserError(f"no space left for {part}: free some, then run again; what has been "
                        f"downloaded is kept") from None


def check_space(part, whole, have):
    free = shutil.disk_usage(part.parent).free
    if whole and whole - have > free:
        name = part.name.removesuffix(".part")
        raise UserError(f"{name} needs {format_bytes(whole - have)} more in {part.parent}, where "
                        f"{format_bytes(free)} are free: free some, or set PALIMPSEST_CACHE to "
                        f"another folder")


# ---- what a server says

def total_size(answer):
    """The size of the whole file in bytes, or None if the server does not state it."""
    if answer.status_code in (206, 416):
        found = re.search(r"/(\d+)$", answer.headers.get("Content-Range", ""))
        return int(found[1]) if found else None
    length = answer.headers.get("Content-Length")
    return int(length) if length and "Content-Encoding" not in answer.headers else None


def retry_after(fault):
    """The seconds that the server asks us to wait; 0 if it does not, or asks for too many."""
    value = "" if fault.response is None else fault.response.headers.get("Retry-After", "")
    return int(value) if value.isdecimal() and int(value) <= MAX_WAIT else 0


def hub_hash(answer):
    """The hub states the sha256 of a large file where it redirects to its storage."""
    steps = [*answer.history, answer]
    tags = (step.headers.get("X-Linked-Etag", "").strip('"') for step in steps)
    return next((tag for tag in tags if re.fullmatch(r"[0-9a-f]{64}", tag)), None)


def explain(fault):
    """What went wrong, in a few words."""
    if isinstance(fault, requests.Timeout):
        return f"no answer for {TIMEOUT} seconds"
    if isinstance(fault, requests.ConnectionError) and fault.args \
            and not isinstance(fault.args[0], str):
        return "no connection: offline?"
    return str(fault)[:200]


# ---- files on the disk

def tag_path(part):
    """The file beside the part with the ETag of the version that it is a part of."""
    return part.with_name(part.name + ".tag")


def discard(part):
    part.unlink(missing_ok=True)
    tag_path(part).unlink(missing_ok=True)


def expected_hash(path, file):
    """The sha256 that the file must have: as its publisher states it, or that of its first
    download. None if neither is known."""
    return file.sha256 or read_manifest(path.parent).get(file.name)


def resumable_bytes(part, file):
    """The bytes from which a download can continue: 0 if nothing would show that the file has
    changed.
    """
    return file_size(part) if tag_path(part).exists() or expected_hash(part, file) else 0


def file_size(path):
    return path.stat().st_size if path.exists() else 0


def sha256_of(path):
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def format_bytes(n):
    """Bytes for readers: 31.3 MB"""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if n < 1000 or unit == "TB":
            return f"{n:.1f} {unit}" if unit != "bytes" else f"{n} bytes"
        n /= 1000


def read_manifest(folder):
    """name -> sha256 of the files that were downloaded to the folder."""
    path = Path(folder) / "manifest.json"
    try:
        return parse_json(path.read_text("utf-8")) if path.exists() else {}
    except ValueError:
        raise UserError(f"{path} cannot be read: delete it, then run again to record the hashes of "
                        f"the files beside it") from None


def record_hash(path, digest):
    """Keep the hash of the file in the manifest. -> the path"""
    known = read_manifest(path.parent)
    if known.get(path.name) != digest:
        hashes = json.dumps(known | {path.name: digest}, indent=1)
        write_file(path.parent / "manifest.json", hashes)
    return path


def make_folder(folder):
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise UserError(f"cannot write to {folder} ({fault.strerror}): set PALIMPSEST_CACHE to "
                        f"another folder") from None
