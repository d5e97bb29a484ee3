"""
Writing files: a file is whole or not there, and nothing but an ordinary file is ever replaced.

    check_writable("page.html")                        before the work: UserError if it cannot be
    with atomic_write("page.html") as file: ...        written. After it
    write_file("results.json", text)                   the same for a text, or bytes

The bytes go to a hidden file in the same folder, under a name that nobody has, which then takes the
place of the path. If that fails, the path stays as it was. It has the permissions of the file that
it replaces, or those of any new file. A symbolic link stays, and what it leads to is replaced.
Other hard links keep the old content. Pipes, terminals and /dev/null are written to, and so is
/dev/stdout, behind what has been printed. All else is refused: folders, disks, sockets, read-only
files.
"""
import contextlib
import io
import os
import re
import secrets
import stat
import sys
from itertools import count
from pathlib import Path

from flags import UserError

REFUSED = {stat.S_IFDIR: "a folder", stat.S_IFBLK: "a disk", stat.S_IFSOCK: "a socket"}


@contextlib.contextmanager
def atomic_write(path, follow=True):
    """A file that replaces `path` once it is complete. If writing fails, `path` stays as it was.

    follow: a symbolic link is followed, not replaced
    """
    found = status_of(path)
    stream = found and standard_stream(found)
    if stream or found and not stat.S_ISREG(found.st_mode):
        content = io.BytesIO()
        yield content
        write_through(path, stream, content.getvalue())
        return
    target = Path(os.path.realpath(path) if follow else path)
    part = part_of(target)
    try:
        with open(part, "xb") as file:
            with contextlib.suppress(OSError):  # some disks have no permissions
                os.chmod(part, stat.S_IMODE(found.st_mode) & 0o777) if found else None
            yield file
        os.replace(part, target)
    except OSError as error:  # a full disk does not say which file it was
        if error.filename in (None, str(part)):
            error.filename = str(path)
        raise
    finally:
        part.unlink(missing_ok=True)


def write_file(path, content):
    """Replace the file by one with this text, or these bytes."""
    with atomic_write(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_through(path, stream, content):
    """Write bytes to what is no ordinary file, or to the stream of that number."""
    if stream and sys.stdout:
        sys.stdout.flush()
    with open(os.dup(stream) if stream else path, "wb") as file:
        file.write(content)


def part_of(target):
    """A hidden path beside the target that nobody has: the target's name may be as long as names
    can be, and is shortened."""
    return target.with_name(f".{target.name[:40]}.{secrets.token_hex(8)}.part")


def remove_parts(path):
    """Remove what killed processes have left of `path`. The caller is the only one to write it."""
    target = Path(os.path.realpath(path))
    left = re.compile(re.escape(f".{target.name[:40]}.") + r"[0-9a-f]{16}\.part")
    for each in target.parent.iterdir():
        if left.fullmatch(each.name):
            each.unlink(missing_ok=True)


def earlier_files(folder, names):
    """{path: a free path under which it can be kept} of those files of a folder that are there.

    All get the same number: a.previous.json and b.previous.txt, then a.previous-2.json ...
    """
    for n in count(1):
        mark = ".previous" + f"-{n}" * (n > 1)
        free = {folder / name: folder / (Path(name).stem + mark + Path(name).suffix)
                for name in names}
        if not any(map(os.path.lexists, free.values())):
            return {path: kept for path, kept in free.items() if os.path.lexists(path)}


# ---- what is read

def refuse_unreadable(error):
    """For OSErrors of reading, also those that os.walk leaves out in silence."""
    raise UserError(f"cannot read {error.filename} ({error.strerror}): make it readable, or take "
                    f"it away") from None


def readable_status(path):
    """os.stat; UserError for a link that leads nowhere."""
    try:
        return os.stat(path)
    except OSError as error:
        refuse_unreadable(error)


# ---- what is there

def status_of(path):
    """os.stat of what the path leads to, or None if nothing is there. UserError if no file can be
    written there."""
    name = os.fspath(path)
    if name in ("", "-"):
        raise UserError(f"{name!r} is not the name of a file: name one, or /dev/stdout")
    try:
        found = os.stat(name)
    except FileNotFoundError:
        found = None
    except OSError as error:
        raise UserError(f"cannot write to {name} ({error.strerror}): choose another name") from None
    kind = stat.S_IFMT(found.st_mode) if found else None
    if not found and name.endswith((os.sep, os.altsep or os.sep)):
        kind = stat.S_IFDIR
    if kind in REFUSED:
        raise UserError(f"cannot write to {name}, which is {REFUSED[kind]}: name a file")
    if found and not (found.st_mode & 0o222 and os.access(name, os.W_OK)):  # root may do anything
        raise UserError(f"cannot write to {name}, which is read-only: choose another name, or make "
                        f"it writable")
    folder = os.path.dirname(os.path.realpath(name) if os.path.islink(name) else name) or "."
    if not os.path.isdir(folder):
        raise UserError(f"cannot write to {name}, there is no folder {folder}: make it, or choose "
                        f"another")
    return found


def standard_stream(found):
    """1 or 2 if this is the file that stdout or stderr goes to: replacing it would lose what has
    been printed. Else None."""
    for number in (1, 2):
        with contextlib.suppress(OSError):  # it is closed
            if os.path.samestat(found, os.fstat(number)):
                return number


def check_writable(path, makes_folder=False):
    """UserError if atomic_write(path) cannot work. makes_folder: its folder may still be missing"""
    folder = os.path.dirname(path) or "."
    if makes_folder and not os.path.isdir(folder):
        return check_folder(folder)
    found = status_of(path)
    if not found or stat.S_ISREG(found.st_mode):
        probe(Path(os.path.realpath(path)), path)


def check_folder(folder):
    """UserError if no file can be written to the folder, which need not be there yet."""
    target = Path(os.path.realpath(folder))
    while not os.path.lexists(target):
        target = target.parent
    probe(target / "probe", folder)


def probe(target, path):
    """Make a file beside the target and remove it: permissions say nothing of read-only disks."""
    part = part_of(target)
    try:
        open(part, "xb").close()
    except OSError as error:
        raise UserError(f"cannot write to {path} ({error.strerror}): choose another place") \
            from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
