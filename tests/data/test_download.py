"""What a download promises: a file that has its name is complete and right; what broke off
continues."""
import concurrent.futures
import errno
import hashlib
import http.server
import io
import json
import socket
import threading
from types import SimpleNamespace

import pytest

from data import download
from data.download import File, fetch
from flags import UserError

BODY = bytes(range(256)) * 4096                              # 1 MiB
SHA = hashlib.sha256(BODY).hexdigest()


class Server(http.server.BaseHTTPRequestHandler):
    """A file server that can be told to misbehave; each test has its own."""
    protocol_version = "HTTP/1.0"

    def do_GET(self):
        server, asked = self.server, self.headers.get("Range")
        server.asked.append((self.path, asked))
        if self.path == "/moved":  # as the hub does: the hash comes with the redirection
            self.send_response(302)
            self.send_header("Location", "/file")
            self.send_header("X-Linked-Etag", f'"{server.linked}"')
            return self.end_headers()
        if server.status:
            status = server.status.pop(0) if len(server.status) > 1 else server.status[0]
            if status != 200:
                self.send_response(status)
                self.send_header("Retry-After", server.wait)
                return self.end_headers()
        body, tag = server.body[::-1 if self.path == "/wrong" else 1], server.tag
        same = server.ranges and self.headers.get("If-Range", tag) == tag
        first = int(asked[6:-1]) if asked and same else 0
        if first and first >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            return self.end_headers()
        self.send_response(206 if first else 200)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - first))
        self.send_header("ETag", tag)
        self.end_headers()
        self.wfile.write(body[first:][:server.cuts.pop(0) if server.cuts else None])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        server.body, server.tag, server.ranges, server.linked = BODY, '"1"', True, SHA
        server.wait, server.status, server.cuts = "", [], []
        server.handle_error = lambda *args: None  # we hang up
        server.asked, server.url = [], f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def file(server, size=len(BODY), sha256=SHA, path="/file"):
    return File("corpus.txt", size, sha256, (server.url + path,))


def fault(wanted, folder):
    """The one line that the download ends with."""
    with pytest.raises(UserError) as caught:
        fetch(wanted, folder, pause=0)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_file_comes_once_and_its_size_is_printed_before_it_starts(server, tmp_path, capsys):
    path = fetch(file(server), tmp_path / "new" / "folder", pause=0)
    assert path.read_bytes() == BODY
    assert "corpus.txt, 1.0 MB" in capsys.readouterr().err
    assert fetch(file(server), tmp_path / "new" / "folder") == path and len(server.asked) == 1
    assert sorted(p.name for p in path.parent.glob("[!.]*")) == ["corpus.txt", "manifest.json"]


def test_a_connection_that_dies_is_resumed_where_it_died(server, tmp_path):
    server.cuts = [300_000, 200_000]
    assert fetch(file(server), tmp_path, pause=0).read_bytes() == BODY
    n = 300_000 // download.CHUNK
    kept = [n * download.CHUNK, (n + 3) * download.CHUNK]
    assert [asked for _, asked in server.asked] == [None, *(f"bytes={n}-" for n in kept)]


def test_one_that_dies_again_and_again_continues_while_each_try_brings_bytes(server, tmp_path):
    server.cuts = [download.CHUNK] * (2 * download.TRIES)
    assert fetch(file(server), tmp_path, pause=0).read_bytes() == BODY
    (tmp_path / "corpus.txt").unlink()
    server.cuts = [download.CHUNK] * 3 + [1] * 99  # one byte is no progress: less than is kept
    assert "196,608 bytes are kept" in fault(file(server), tmp_path)


def test_several_that_want_the_same_file_download_it_once(server, tmp_path):
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        paths = list(threads.map(lambda _: fetch(file(server), tmp_path), range(4)))
    assert len(server.asked) == 1 and paths[3].read_bytes() == BODY


def test_a_stopped_run_continues_and_a_complete_file_is_only_renamed(server, tmp_path):
    (tmp_path / "corpus.txt.part").write_bytes(BODY[:1000])
    assert fetch(file(server), tmp_path).read_bytes() == BODY
    assert server.asked[-1][1] == "bytes=1000-"
    (tmp_path / "corpus.txt").rename(tmp_path / "corpus.txt.part")
    assert fetch(file(server), tmp_path).read_bytes() == BODY and len(server.asked) == 2


def test_a_server_without_ranges_sends_all_of_it_again(server, tmp_path):
    server.ranges, server.cuts = False, [300_000]
    assert fetch(file(server), tmp_path, pause=0).read_bytes() == BODY


def test_half_of_one_file_is_never_joined_to_half_of_another(server, tmp_path):
    """Nobody states the hash here: only the tag of the first half shows that the file has changed
    since."""
    server.cuts, server.status = [300_000], []
    first = file(server, None, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(download, "TRIES", 1)
        fault(first, tmp_path)
    server.body, server.tag = BODY[::-1], '"2"'
    assert fetch(first, tmp_path, pause=0).read_bytes() == BODY[::-1]


@pytest.mark.parametrize("tag", ['W/"1"', ""])
def test_without_hash_and_strong_tag_a_download_starts_again(server, tmp_path, tag):
    """Nothing would show that the file has changed since."""
    server.cuts, server.tag, server.body = [300_000], tag, b"x" * len(BODY)
    first = file(server, None, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(download, "TRIES", 1)
        assert "kept" not in fault(first, tmp_path)
    server.body = BODY
    assert fetch(first, tmp_path, pause=0).read_bytes() == BODY and server.asked[-1][1] is None
    (tmp_path / "corpus.txt").unlink()
    server.cuts = [300_000]  # now its hash is known
    assert fetch(first, tmp_path, pause=0).read_bytes() == BODY and server.asked[-1][1] is not None


def test_a_wrong_hash_deletes_the_download_and_tries_the_next_url(server, tmp_path):
    message = fault(file(server, path="/wrong"), tmp_path)
    assert SHA[:12] in message and "by hand" in message and not list(tmp_path.glob("corpus*"))
    places = server.url + "/wrong", server.url + "/file"
    assert fetch(File("corpus.txt", len(BODY), SHA, places), tmp_path, pause=0).read_bytes() == BODY


def test_another_size_than_the_published_one_is_refused_before_it_comes(server, tmp_path):
    assert "1,048,576 bytes" in fault(file(server, size=5), tmp_path)
    assert not list(tmp_path.glob("corpus*"))


def test_the_hub_states_the_hash_of_its_files(server, tmp_path):
    moved = file(server, None, None, "/moved")
    assert fetch(moved, tmp_path / "good", pause=0).read_bytes() == BODY
    server.linked = "0" * 64
    assert "0" * 12 in fault(file(server, None, None, "/moved"), tmp_path / "bad")


def test_a_hash_that_nobody_states_is_that_of_the_first_download(server, tmp_path):
    path = fetch(file(server, None, None), tmp_path, pause=0)
    assert json.loads((tmp_path / "manifest.json").read_text()) == {"corpus.txt": SHA}
    path.write_bytes(BODY + b"more")
    assert "delete it" in fault(file(server, None, None), tmp_path)
    path.unlink()
    server.body = BODY + b"more"
    assert "sha256" in fault(file(server, None, None), tmp_path) and not path.exists()


def test_a_file_put_there_by_hand_is_taken_if_its_hash_is_right(server, tmp_path):
    (tmp_path / "corpus.txt").write_bytes(BODY)
    assert fetch(file(server), tmp_path) == tmp_path / "corpus.txt" and not server.asked
    (tmp_path / "corpus.txt").write_bytes(BODY[:-1])
    assert "delete it" in fault(file(server), tmp_path)


def test_a_404_ends_it_at_once_and_a_500_is_tried_again(server, tmp_path):
    server.status = [404]
    assert "404" in fault(file(server), tmp_path) and len(server.asked) == 1
    server.status, server.asked = [503, 503, 503], []
    assert "503" in fault(file(server), tmp_path) and len(server.asked) == download.TRIES


@pytest.mark.parametrize("wait, seconds", [
    ("7", 7), ("3600", 2), ("Wed, 21 Oct 2026 07:28:00 GMT", 2), ("", 2)])
def test_we_wait_as_long_as_the_server_says_if_that_is_not_long(server, tmp_path, monkeypatch, wait,
                                                                seconds):
    slept = []
    monkeypatch.setattr(download, "time", SimpleNamespace(sleep=slept.append))
    server.status, server.wait = [429, 200], wait
    assert fetch(file(server), tmp_path, pause=2).read_bytes() == BODY and slept == [seconds]


def test_offline_one_line_says_what_to_put_where(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/corpus.txt"
    message = fault(File("corpus.txt", None, None, (url,)), tmp_path)
    assert "offline" in message and url in message
    assert str(tmp_path / "corpus.txt") in message and not list(tmp_path.glob("[!.]*"))


class Full(io.RawIOBase):
    """A file on a full disk: each write fails, and so does closing what could not be written."""
    writable = seekable = lambda self: True

    def seek(self, *where):
        return 0

    def write(self, raw):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_reported_before_and_during(server, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(download.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
        assert "1.0 kB are free" in fault(file(server), tmp_path)

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(download.os, "fsync", full)
    assert "what has been downloaded is kept" in fault(file(server), tmp_path)
    assert not (tmp_path / "corpus.txt").exists()
    with monkeypatch.context() as patch:
        patch.setattr(download, "open", lambda *args: io.BufferedWriter(Full()), raising=False)
        server.body = BODY[:1000]  # all of it waits in the buffer when the disk refuses it
        assert "downloaded is kept" in fault(file(server, 1000), tmp_path / "small")
    server.body = BODY
    monkeypatch.undo()
    assert fetch(file(server), tmp_path).read_bytes() == BODY
