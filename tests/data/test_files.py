"""How files are written and read: whole or not at all, and nothing of anybody's is lost."""
import os
import re
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from data import docstrings, documents, files, texts
from data.files import atomic_write, check_folder, check_writable, remove_parts, write_file
from flags import UserError
from runs import ROOT, disk_of
from tree import CODE

NAMES = ["page.html", "page.tmp", "page", ".page", "a b.png", "größe.png", "x" * 255, "a.b.c",
         "-x"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def content(path="."):
    """{name: bytes} of all ordinary files below."""
    return {str(p): p.read_bytes() for p in sorted(Path(path).rglob("*")) if p.is_file()}


# ---- what is written

@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_any_name_is_there_and_its_neighbors_stay(name):
    """The name for the time of writing is not the user's: notes.tmp beside notes.html."""
    mine = {f"{Path(name).stem[:200]}.{end}": b"mine" for end in ("tmp", "part", "new", "bak")}
    for neighbor in mine.keys() - {name}:
        Path(neighbor).write_bytes(b"mine")
    check_writable(name)
    for text in ("old", "new"):
        write_file(name, text)
    assert content() == {**mine, name: b"new"}


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o077, 0o600)])
def test_a_new_file_has_the_permissions_of_any_new_file_and_an_old_one_keeps_its_own(umask, mode):
    before = os.umask(umask)
    try:
        write_file("a", "1")
        assert stat.S_IMODE(os.stat("a").st_mode) == mode
        os.chmod("a", 0o664)
        write_file("a", "2")
        assert stat.S_IMODE(os.stat("a").st_mode) == 0o664
    finally:
        os.umask(before)


def test_a_link_stays_and_what_it_leads_to_is_replaced():
    Path("far").mkdir()
    write_file("far/real", "old")
    os.symlink("far/real", "link")
    os.symlink("far/new", "nowhere")  # leads to nothing yet
    write_file("link", "new")
    write_file("nowhere", "made")
    assert os.readlink("link") == "far/real" and os.readlink("nowhere") == "far/new"
    assert content("far") == {"far/new": b"made", "far/real": b"new"}
    with atomic_write("link", follow=False) as file:
        file.write(b"alone")
    assert not os.path.islink("link") and Path("far/real").read_bytes() == b"new"


def test_another_hard_link_keeps_the_old_content():
    """As a backup of links expects."""
    write_file("a", "old")
    os.link("a", "backup")
    write_file("a", "new")
    assert content() == {"a": b"new", "backup": b"old"}


@pytest.mark.parametrize("fail", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(fail):
    write_file("a", "old")
    with pytest.raises(type(fail)) as error, atomic_write("a") as file:
        file.write(b"half")
        raise fail
    assert content() == {"a": b"old"}
    assert isinstance(fail, KeyboardInterrupt) or error.value.filename == "a"


def test_a_full_disk_says_which_file_it_was():
    write_file("a", "old")
    with disk_of(10), pytest.raises(OSError) as error:
        write_file("a", "x" * 20)
    assert error.value.filename == "a" and content() == {"a": b"old"}


def test_what_killed_runs_have_left_is_hidden_no_text_and_goes_when_its_owner_asks():
    write_file("a.txt", "text")
    lost, other = (files.part_of(Path(name)) for name in ("a.txt", "b.txt"))
    for part in (lost, other, Path(".a.txt.old.part")):
        part.write_bytes(b"half")
    assert texts.find_files(".") == [Path("a.txt")]
    remove_parts("a.txt")
    assert not lost.exists() and other.exists() and Path(".a.txt.old.part").exists()


# ---- what is no ordinary file

def test_a_pipe_gets_the_bytes_and_stays_a_pipe():
    os.mkfifo("pipe")
    check_writable("pipe")  # does not wait for a reader
    reader = subprocess.Popen([sys.executable, "-c", "print(open('pipe').read(), end='')"],
                              stdout=subprocess.PIPE)
    with atomic_write("pipe") as file:
        file.write(b"page")
        file.seek(0)  # as pictures do
        file.write(b"P")
    assert reader.communicate()[0] == b"Page" and stat.S_ISFIFO(os.stat("pipe").st_mode)


def test_dev_null_stays_a_device():
    check_writable("/dev/null")
    write_file("/dev/null", "page")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


@pytest.mark.parametrize("name", ["/dev/stdout", "out.txt"])
def test_what_goes_to_stdout_stands_behind_what_was_printed(name):
    """Also where stdout is that file: replacing it would lose the printed text."""
    code = ("import sys; sys.path.insert(0, sys.argv[1]); from data.files import write_file; "
            "print('text'); write_file(sys.argv[2], 'page\\n'); print('end')")
    with open("out.txt", "w") as out:
        subprocess.run([sys.executable, "-c", code, str(ROOT), name], stdout=out, check=True)
    assert Path("out.txt").read_text() == "text\npage\nend\n"


def unusual(kind):
    """The name of something where no file can be written."""
    Path("folder").mkdir()
    write_file("file", "mine")
    if kind == "socket":
        socket.socket(socket.AF_UNIX).bind("socket")
    elif kind == "read-only":
        os.chmod("file", 0o444)
    elif kind == "loop":
        os.symlink("loop", "loop")
    elif kind == "link to a folder":
        os.symlink("folder", "linked")
    elif kind == "link to nowhere":
        os.symlink("gone/file", "lost")
    return {"read-only": "file", "link to a folder": "linked", "link to nowhere": "lost",
            "empty": "", "long": "x" * 300, "long end": "x" * 300 + ".png",
            "below a file": "file/a", "missing folder": "no/where/a", "new folder": "new/",
            "folder with a slash": "folder/", "here": ".", "above": "..", "top": "/",
            "proc": "/proc/a"}.get(kind, kind)


@pytest.mark.parametrize("kind, says", [
    ("folder", "a folder: name a file"), ("folder with a slash", "a folder: name a file"),
    ("link to a folder", "a folder"), ("here", "a folder"), ("above", "a folder"),
    ("top", "a folder"), ("new folder", "a folder"), ("socket", "a socket"),
    ("read-only", "which is read-only"), ("loop", "symbolic links"), ("empty", "not the name of a"),
    ("-", "name one, or /dev/stdout"), ("long", "too long"), ("long end", "too long"),
    ("below a file", "Not a directory"), ("missing folder", "there is no folder no/where"),
    ("link to nowhere", "there is no folder"), ("proc", "cannot write to /proc/a")])
def test_where_no_file_can_be_is_one_line_before_the_work(kind, says):
    name = unusual(kind)
    before, links = content(), sorted(os.listdir())
    with pytest.raises(UserError, match=says) as refused:
        check_writable(name)
    assert "\n" not in str(refused.value)
    with pytest.raises((UserError, OSError)):
        write_file(name, "page")
    assert content() == before and sorted(os.listdir()) == links


def test_a_disk_is_not_written_to(monkeypatch):
    monkeypatch.setattr(stat, "S_IFMT", lambda mode: stat.S_IFBLK)
    write = Path("disk")
    write.write_bytes(b"mine")
    with pytest.raises(UserError, match="which is a disk"):
        check_writable(write)


def test_a_folder_that_is_read_only_is_told_before_the_work(monkeypatch):
    """As root it can only be simulated."""
    def refuse(path, *args, **kwargs):
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(files, "open", refuse, raising=False)
    for check in (lambda: check_writable("a"), lambda: check_folder("out/new"),
                  lambda: check_writable("out/new/a", makes_folder=True)):
        with pytest.raises(UserError, match="cannot write to .*Read-only file system"):
            check()
    assert not os.listdir()


def test_a_folder_that_will_be_made_is_not_made_by_looking():
    check_folder("out/new")
    check_writable("out/new/a", makes_folder=True)
    assert not os.listdir()
    write_file("file", "mine")
    with pytest.raises(UserError, match="cannot write to file/out .Not a directory"):
        check_folder("file/out")


def test_nothing_in_the_project_writes_a_file_but_by_these_functions():
    """What is written into new folders of ours, and what goes on where it was, stands here."""
    allowed = {
        "checkpoints/file.py": 1,  # a line of metrics is appended
        "data/corpus.py": 3, "data/shards.py": 1,  # into a folder that is renamed when it is whole
        "data/download.py": 2,  # a download that goes on
        "exercises/student_copy.py": 3,  # a new folder, and /dev/null
        "experiments/peers.py": 4,  # into the folder of another's run, for it to read
        "script.py": 1,  # /dev/null
        "data/files.py": 3}
    writes = r"""open\([^()]*(\([^()]*\))?[^()]*"[rwax]\+?b?\+?"|\.write_(text|bytes)\(|""" \
        r"""copyfile\(|np\.save|json\.dump\(|to_csv"""
    hits = {name: sum(bool(re.search(writes, line) and not re.search(r'"rb?"', line))
                      for line in path.read_text("utf-8").splitlines())
            for name, path in CODE.items()}
    assert {name: n for name, n in hits.items() if n} == allowed


# ---- what is read

def folder_of_text():
    for name in ("a.txt", "sub/b.txt", "sub/deep/c.txt", ".hidden/d.txt", "sub/.e.txt"):
        Path("text", name).parent.mkdir(parents=True, exist_ok=True)
        Path("text", name).write_text(name)
    return Path("text")


def found(root="text"):
    return [path.relative_to(root).as_posix() for path in texts.find_files(str(root))]


def test_a_folder_is_read_in_order_through_links_each_file_once_and_without_pipes():
    root = folder_of_text()
    Path("far").mkdir()
    Path("far/f.txt").write_text("f")
    os.symlink("../far", root / "linked")
    os.symlink("..", root / "sub/up")  # a loop
    os.symlink("sub", root / "again")
    os.symlink("a.txt", root / "z.txt")
    os.mkfifo(root / "pipe")
    socket.socket(socket.AF_UNIX).bind("text/socket")
    assert found() == ["a.txt", "linked/f.txt", "sub/b.txt", "sub/deep/c.txt"]


@pytest.mark.parametrize("target", ["gone.txt", "broken"])
def test_a_link_to_nowhere_or_to_itself_is_an_error_since_text_is_missing(target):
    os.symlink(target, folder_of_text() / "sub/broken")
    with pytest.raises(UserError, match="cannot read text/sub/broken"):
        texts.find_files("text")


@pytest.mark.parametrize("closed", ["text", "text/sub", "text/sub/deep"])
def test_a_folder_that_cannot_be_read_is_an_error_not_half_of_a_text(closed, monkeypatch):
    folder_of_text()
    scandir = os.scandir

    def refuse(path):
        if os.fspath(path) == closed:
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=f"cannot read {closed} .Permission denied"):
        texts.find_files("text")
    with pytest.raises(UserError, match=f"cannot read {closed} .Permission denied"):
        docstrings.sources(Path("text"), set())


@pytest.mark.parametrize("large", [False, True])
def test_a_file_that_vanishes_is_one_line(large, monkeypatch):
    paths = texts.find_files(str(folder_of_text()))
    paths[1].unlink()
    with pytest.raises(UserError, match="cannot read text/sub/b.txt.*No such file"):
        list(documents.read_files(paths, "train", 0.1, "strict")) if large else \
            texts.read_and_split(paths, "strict")


def test_a_file_that_becomes_shorter_while_it_is_read_is_one_line(monkeypatch):
    Path("a.txt").write_text("rose " * 10_000)  # more than is read ahead
    monkeypatch.setattr(documents, "PIECE", 100)
    reader = documents.read_files([Path("a.txt")], "train", 0.1, "strict", size=40)
    next(reader)
    os.truncate("a.txt", 20_000)
    with pytest.raises(UserError, match="a.txt has become shorter while it was read: run again"):
        list(reader)


def test_a_docstring_that_cannot_be_read_is_an_error_but_not_one_that_is_not_there(monkeypatch):
    Path("lib").mkdir()
    Path("lib/a.py").write_text('"""' + "A long story of a rose. " * 3 + '"""')
    os.symlink("gone.py", "lib/b.py")
    monkeypatch.setattr(docstrings.sysconfig, "get_path", lambda name: "lib")
    assert len(docstrings.docstrings_of_sources()) == 1

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(UserError, match="cannot read lib/a.py .Permission denied"):
        docstrings.docstrings_of_sources()
