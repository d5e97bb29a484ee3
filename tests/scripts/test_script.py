r"""How every script runs: what its streams do with what they cannot show, and when they are closed,
full or broken; and what an error says.

Most of it needs no torch, so that a process of its own takes a tenth of a second.
"""

import contextlib
import io
import os
import pty
import subprocess
import sys
from dataclasses import dataclass

import pytest

import sample
import train
from flags import UserError, flag
from runs import ROOT
from script import CONTROL, Controls, OutputLost, one_line_errors, shell_word, spell, visible

HEAD = "import sys; import script\nwith script.one_line_errors():\n"


def run(body, shell="", stdin=None, **env):
    """A process that runs these lines inside one_line_errors. shell: redirections, a pipe"""
    code = HEAD + "".join(f"    {line}\n" for line in body.splitlines())
    command = f'"{sys.executable}" -c "$CODE" {shell}'
    env = {**os.environ, "CODE": code, "PYTHONPATH": str(ROOT), **env}
    return subprocess.run(["bash", "-c", command], env=env, input=stdin, capture_output=True,
                          timeout=60)


# ---- what a stream cannot encode

@pytest.mark.parametrize("encoding, text, shown", [
    ("ascii", "größe", b"gr\\xf6\\xdfe"), ("cp1252", "half \ufffd", b"half \\ufffd"),
    ("latin-1", "€", b"\\u20ac"), ("utf-8", "größe \udce9", "größe \\udce9".encode()),
    ("ascii", "\U0001f600", b"\\U0001f600"), ("ascii:replace", "größe", b"gr??e")])
def test_what_a_stream_cannot_encode_is_escaped_unless_the_user_chose_otherwise(encoding, text,
                                                                                shown):
    body = f"print({text!r}); print({text!r}, file=sys.stderr)"
    done = run(body, PYTHONIOENCODING=encoding)
    assert done.returncode == 0 and done.stdout == shown + b"\n"
    assert done.stderr == done.stdout or ":" in encoding  # which Python heeds for stdout alone


def test_a_locale_without_umlauts_ends_no_script():
    body = "print('gr\\xf6\\xdfe \\udcff'); raise script.UserError('gr\\xf6\\xdfe')"
    done = run(body, LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0")
    assert done.returncode == 2 and b"gr\\xf6\\xdfe" in done.stdout and b"Trace" not in done.stderr


def test_bytes_of_the_input_that_are_no_text_arrive_as_they_are():
    body = "print(ascii(sys.stdin.readline()))"
    assert run(body, stdin=b"caf\xe9\n").stdout == b"'caf\\udce9\\n'\n"
    assert run(body, stdin=b"\x81\n", PYTHONIOENCODING="cp1252").stdout == b"'\\udc81\\n'\n"


# ---- control characters

HOSTILE = "a\x1b[31m\x07\x08\x7f\x9b2J\r\u202e\u2066\x00 b\tc\r\nd\n"


def in_terminal(body, **env):
    """What a terminal gets from these lines."""
    code = HEAD + "".join(f"    {line}\n" for line in body.splitlines())
    parent, child = pty.openpty()
    env = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    process = subprocess.Popen([sys.executable, "-c", code], env=env, stdin=child, stdout=child,
                               stderr=child)
    os.close(child)
    seen = b""
    with contextlib.suppress(OSError):  # the script has ended
        while part := os.read(parent, 1 << 16):
            seen += part
    os.close(parent)
    process.wait()
    return seen.decode().replace("\r\n", "\n")


def test_a_terminal_shows_control_characters_and_does_not_obey_them():
    seen = in_terminal(f"print({HOSTILE!r}, end='')\nprint({HOSTILE!r}, end='', file=sys.stderr)")
    shown = "a\\x1b[31m\\x07\\x08\\x7f\\x9b2J\\x0d\\u202e\\u2066\\x00 b\tc\r\nd\n"
    assert seen == 2 * shown and not CONTROL.search(seen)


def test_a_terminal_obeys_a_bar_and_what_is_written_to_be_obeyed():
    seen = in_terminal("from tqdm import tqdm\n"
                       "for _ in tqdm(range(3), desc='a\\x07', ncols=40, nrows=9): pass\n"
                       "sys.stdout.write(script.Controls('\\x1b[1mbold'))")
    assert "\r" in seen and "\\x0d" not in seen and "a\\x07: 100%" in seen
    assert seen.endswith("\x1b[1mbold")


def test_a_pipe_gets_control_characters_as_they_are():
    assert run(f"print({HOSTILE!r}, end='')").stdout == HOSTILE.encode()


def test_what_is_visible_stays_as_it_is():
    text = "".join(map(chr, [9, 10, *range(32, 127), *range(160, 0x2028), 0x202f, 0x1f600]))
    assert visible(text) == text and isinstance(Controls("a"), str)


# ---- streams that are closed, full or broken

@pytest.mark.parametrize("shell", [">&-", "2>&-", "<&-", ">&- 2>&-", ">&- 2>&- <&-"])
def test_a_script_runs_with_closed_streams_and_no_file_takes_their_place(shell, tmp_path):
    body = (f"file = open({str(tmp_path / 'file')!r}, 'w')\nassert file.fileno() > 2\n"
            "print('out'); print('err', file=sys.stderr)\nassert sys.stdin.read() == ''\n"
            "import os; os.write(1, b'library')")
    done = run(body, shell, stdin=b"")
    assert done.returncode == 0 and b"Traceback" not in done.stderr
    assert (tmp_path / "file").read_bytes() == b""
    assert (b"out" in done.stdout) is (">&-" not in shell.replace("2>&-", ""))


def test_a_disk_that_is_full_is_one_line_and_no_more_is_written():
    done = run("for i in range(9): print(i)\nprint('never', file=sys.stderr)", "> /dev/full")
    assert done.returncode == 2 and done.stderr.count(b"\n") == 1
    assert b"cannot write to the standard output: No space left on device" in done.stderr
    assert run("print('e', file=sys.stderr)", "2> /dev/full").returncode == 2


def test_a_reader_that_has_seen_enough_ends_a_script_quietly_with_the_code_of_a_shell():
    """python sample.py | head -1"""
    done = run("for i in range(100000): print(i)", "| head -1; echo ${PIPESTATUS[0]}")
    assert done.stdout == b"0\n141\n" and done.stderr == b""


def test_what_is_printed_behind_a_loss_that_was_taken_care_of_goes_nowhere():
    body = ("losses = []; script.on_loss.append(losses.append)\n"
            "for i in range(9): print(i, flush=True)\n"
            "script.tell('told')\nassert len(losses) == 1, losses\nsys.exit(losses[0].code)")
    done = run(body, "> /dev/full")
    assert done.returncode == 2 and done.stderr == b"told\n"


def test_a_stream_that_somebody_made_non_blocking_loses_nothing():
    body = ("import fcntl, os\nfcntl.fcntl(1, fcntl.F_SETFL, os.O_NONBLOCK)\n"
            "print('x' * 500_000)")
    assert len(run(body, "| (sleep 0.3; cat)").stdout) == 500_001


def test_streams_of_another_kind_stay_and_all_are_those_of_before_afterwards(monkeypatch):
    ours = io.StringIO()
    monkeypatch.setattr(sys, "stdout", ours)
    before = sys.stdin, sys.stdout, sys.stderr
    with one_line_errors():
        assert sys.stdout is ours
        print("a")
    assert (sys.stdin, sys.stdout, sys.stderr) == before and ours.getvalue() == "a\n"


# ---- signals

def test_signals_that_are_ignored_stay_so():
    body = "import signal\nassert script.is_ignored(signal.SIGINT)\nsignal.raise_signal(2)"
    assert run("import os, subprocess\n" "pass").returncode == 0
    code = HEAD + "".join(f"    {line}\n" for line in body.splitlines())
    done = subprocess.run(["bash", "-c", f'trap "" INT; "{sys.executable}" -c "$CODE"'],
                          env={**os.environ, "CODE": code, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0


# ---- errors

@dataclass
class Config:
    batch_size: int = flag(2, "texts")
    length: int = flag(2, "tokens")


def said(error, capsys, cls=None):
    """-> exit code, the line on stderr"""
    with pytest.raises(SystemExit) as end, one_line_errors(cls):
        raise error
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    return end.value.code, text


@pytest.mark.parametrize("error, code, says", [
    (OSError(28, "No space left on device"), 2, "No space left on device"),
    (PermissionError(13, "Permission denied", "/x/y"), 2, "Permission denied: /x/y"),
    (UserError("first line\nsecond"), 2, "first line\\nsecond"),
    (OutputLost("a file", OSError(5, "Input/output error")), 2, "cannot write to a file: Input"),
    (RecursionError("maximum recursion depth exceeded while decoding a JSON array"), 2, "too deep"),
    (MemoryError(), 2, "out of memory: lower --batch_size or --length"),
    (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), 2, "lower --batch_size"),
    (RuntimeError("Storage size calculation overflowed with sizes=[1, 2]"), 2, "out of memory"),
    (KeyboardInterrupt(), 130, "interrupted"), (KeyboardInterrupt(143), 143, "interrupted")])
def test_what_the_user_can_mend_is_one_line_too(error, code, says, capsys):
    found, text = said(error, capsys, Config)
    assert found == code and says in text


@pytest.mark.parametrize("module, names", [
    (train, "lower --batch_size, --block_size, --n_embd, --n_layer or --vocab_size"),
    (sample, "lower --batch_size, --num_samples or --length"), (None, "do less at once")])
def test_what_takes_memory_is_named_by_flags_that_the_script_has(module, names, capsys):
    assert names in said(MemoryError(), capsys, module and module.Config)[1]


class InductorError(RuntimeError):
    """As torch.compile raises it."""

    __module__ = "torch._inductor.exc"


def test_a_compiler_that_is_missing_is_one_line_that_says_to_leave_it_out(capsys):
    error = InductorError("C++ compile error\n\nOutput:\nx.cpp:1: fatal error: Python.h: not there")
    found, text = said(error, capsys)
    assert found == 2 and "--compile does not work here (x.cpp:1: fatal error: Python.h" in text
    assert "leave it out" in text
    try:
        exec(compile("open('/nowhere/x')", os.path.join("torch", "_inductor", "cache.py"), "exec"))
    except OSError as cannot:
        assert "--compile does not work here" in said(cannot, capsys)[1]
    assert "--compile" not in said(FileNotFoundError(2, "No such file"), capsys)[1]


@pytest.mark.parametrize("error", [ZeroDivisionError(), RuntimeError("shape '[2]' is invalid"),
                                   RecursionError("maximum recursion depth exceeded")], ids=repr)
def test_our_own_faults_keep_their_traceback(error):
    with pytest.raises(type(error)), one_line_errors():
        raise error


# ---- commands to copy

@pytest.mark.parametrize("value", [
    "a b", "it's", "$HOME", "a;b", "-x", "größe", "a\nb", "c\udce9", "\x1b]0;t\x07", "\\", "'\n'",
    "plain/path.txt", ""])
def test_a_command_that_is_shown_can_be_copied(value):
    words = spell({"out_dir": value, "watch": False, "chat": True, "steps": 8})
    assert "\n" not in words and words.endswith(" --no_watch --chat --steps 8")
    echo = subprocess.run(["bash", "-c", f"printf '%s\\0' {words}"], capture_output=True)
    first, *rest = echo.stdout.split(b"\0")
    given = first.partition(b"=")[2] if b"=" in first else rest[0]
    assert os.fsdecode(given) == value
    assert value.startswith("-") is (b"=" in first)


def test_plain_words_need_no_quotes():
    assert spell({"out_dir": "out/a-mdlm"}) == "--out_dir out/a-mdlm" and shell_word("a") == "a"


def test_a_command_that_the_stream_cannot_show_is_written_by_its_bytes(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    assert shell_word("größe") == r"$'gr\xc3\xb6\xc3\x9fe'"
