r"""
How every script runs: its streams, its signals, its errors, its exit codes.

    run_script(Config, main)       # stands under __main__: the flags, then main(config, given)
    with one_line_errors(): ...    # UserError, a full disk, Ctrl-C: one sentence, no traceback

Text that a stream cannot encode is escaped, as in \xe9 or \ufffd: it ends no run, and a reader
still sees which character it was. In a terminal control characters are escaped as well, since a
text that was generated, or the name of a file, could hold any. Files and pipes get them unchanged.

A stream that is closed swallows what is printed. One that breaks while a script runs, since its
reader left or its disk is full, is reported once (`OutputLost`) and swallows the rest.

Exit codes: 0 done, 2 the user can mend it, 128 + n stopped by signal n: 130 Ctrl-C, 143 SIGTERM,
129 SIGHUP, 141 nobody reads the output. Nothing here imports torch.
"""
import contextlib
import io
import os
import re
import shlex
import signal
import sys
import time
import traceback
from pathlib import Path


def is_ignored(number):
    """Whether the caller wants this signal to be ignored, as nohup and shells without job control
    do."""
    return signal.getsignal(number) is signal.SIG_IGN


if (Path(getattr(sys.modules["__main__"], "__file__", None) or ".").parent == Path(__file__).parent
        and not is_ignored(signal.SIGINT)):
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a script of ours: Ctrl-C while modules load

from flags import UserError, flags_of, parse

UNREAD = 141  # what a shell reports of a program that writes to a pipe which nobody reads
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]|\r(?!\n)")
BAR = re.compile("\r|(?:\x1b\\[A)+$")  # how a write of tqdm begins
STRICT = ("strict", "surrogateescape", "surrogatepass")  # ways to encode that can fail
MEMORY_FLAGS = ("batch_size", "num_samples", "length", "block_size", "n_embd", "n_layer",
                "vocab_size", "batch", "batches", "lengths", "texts")  # what takes memory


# ---- streams

class OutputLost(BaseException):
    """A standard stream that cannot be written to any more. Like Ctrl-C it is no Exception, so that
    only who means it catches it. code: the exit code of a script that ends for it"""

    def __init__(self, name, error):
        super().__init__(f"cannot write to {name}: {error.strerror or error}")
        self.error, self.code = error, UNREAD if isinstance(error, BrokenPipeError) else 2


def end_script(loss):
    """What happens by default when a stream is lost."""
    raise loss


on_loss = [end_script]  # the last one is called with the OutputLost


class Sink(io.RawIOBase):
    """The bottom of a standard stream: the first write that fails is reported, later ones do
    nothing."""

    def __init__(self, raw, name):
        self.raw, self.label, self.lost = raw, name, False

    def writable(self):
        return True

    def isatty(self):
        return self.raw.isatty()

    def fileno(self):
        return self.raw.fileno()

    def write(self, data):
        if self.lost:
            return len(data)
        try:
            while (n := self.raw.write(data)) is None:  # somebody made it non-blocking: wait
                time.sleep(0.01)
            return n
        except OSError as error:
            self.lost = True
            on_loss[-1](OutputLost(self.label, error))
        return len(data)


class Controls(str):
    """Text whose control characters a terminal shall obey: that of --watch."""


def visible(text):
    r"""The text with control characters as escapes, \x1b: all but line breaks and tabs, and those
    of Unicode that change the direction of what follows."""
    return CONTROL.sub(lambda found: escape(ord(found[0])), text)


def escape(code):
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


class Output(io.TextIOWrapper):
    """A standard stream for text. sink: its bottom, a Sink; like: the stream that it replaces"""

    def __init__(self, sink, like):
        errors = "backslashreplace" if like.errors in STRICT else like.errors
        super().__init__(io.BufferedWriter(sink), like.encoding, errors, line_buffering=True)
        self.sink, self.shows, self.has_bars = sink, sink.isatty(), like is sys.stderr

    def write(self, text):
        if self.shows and not isinstance(text, Controls):
            bar = BAR.match(text) if self.has_bars else None
            start = bar.end() if bar else 0
            text = text[:start] + visible(text[start:])
        return super().write(text)


def output_of(stream, name):
    """The Output for a standard stream of Python; a stream of another kind stays as it is."""
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")
    buffer = stream.buffer if isinstance(stream, io.TextIOWrapper) else None
    raw = buffer.raw if isinstance(buffer, io.BufferedWriter) else buffer
    if not isinstance(raw, io.RawIOBase) or isinstance(stream, Output):
        return stream
    with contextlib.suppress(OSError):
        stream.flush()
    return Output(Sink(raw, name), stream)


@contextlib.contextmanager
def standard_streams():
    """Streams that can be read and written whatever they are, in place of Python's.

    In the order of their numbers: each that is closed opens the null device, which gets the lowest
    free number. Otherwise the next file would become the standard output of libraries.
    """
    before = sys.stdin, sys.stdout, sys.stderr
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")
    elif isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # bytes tokenizers can keep them
    sys.stdout = output_of(sys.stdout, "the standard output")
    sys.stderr = output_of(sys.stderr, "the standard error output")
    try:
        yield
    finally:
        with contextlib.suppress(OutputLost):
            sys.stdout.flush()
        sys.stdin, sys.stdout, sys.stderr = before


def tell(sentence):
    """Print it where somebody reads it: on stdout, or else on stderr."""
    with contextlib.suppress(OutputLost):
        if not (isinstance(sys.stdout, Output) and sys.stdout.sink.lost):
            return print(sentence, flush=True)
    print(sentence, file=sys.stderr, flush=True)


# ---- commands to copy

def spell(values):
    """Flags as words that a shell reads back: --out_dir 'a b' --no_watch. values {name: value}"""
    def word(name, value):
        if type(value) is bool:
            return f"--{'' if value else 'no_'}{name}"
        between = "=" if str(value).startswith("-") else " "
        return f"--{name}{between}{shell_word(str(value))}"
    return " ".join(word(name, value) for name, value in values.items())


def shell_word(text):
    """One word for a shell, on one line: in quotes if it needs them, by bytes if it cannot be
    printed."""
    with contextlib.suppress(UnicodeEncodeError):
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
        if text.isprintable():
            return shlex.quote(text)
    plain = lambda byte: 32 <= byte < 127 and chr(byte) not in "'\\"
    raw = os.fsencode(text)
    return "$'" + "".join(chr(b) if plain(b) else f"\\x{b:02x}" for b in raw) + "'"


# ---- errors

@contextlib.contextmanager
def one_line_errors(cls=None):
    """Say in one line what the user can mend, exit code 2. All else stays a traceback: that would
    be our fault. cls: the flags of the script, for advice"""
    if not is_ignored(signal.SIGINT):
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with standard_streams():
        try:
            yield
            sys.stdout.flush()
        except UserError as error:
            exit_with_error(str(error), 2)
        except OutputLost as loss:
            if loss.code != UNREAD:
                exit_with_error(str(loss), loss.code)
            sys.exit(UNREAD)
        except (OSError, MemoryError, RuntimeError) as error:  # torch has no class for memory
            if not (sentence := advice_on(error, cls)):
                raise
            exit_with_error(sentence, 2)
        except KeyboardInterrupt as error:
            exit_with_error("interrupted", *(error.args or [128 + signal.SIGINT]))


def advice_on(error, cls=None):
    """What the user can do about an OSError, MemoryError or RuntimeError, or None if it is our
    fault."""
    said = str(error)
    if comes_from_compiler(error):
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        reason = next((line for line in lines if "error: " in line), [*lines, "?"][0])
        return f"--compile does not work here ({reason}): leave it out, or mend that"
    if isinstance(error, OSError):  # a disk that is full, a folder that is not ours, ...
        return (error.strerror or said) + (f": {error.filename}" if error.filename else "")
    if isinstance(error, RecursionError):
        return "a file of JSON nests too deep: correct it" if "JSON" in said else None
    if isinstance(error, MemoryError) or re.search("allocate|(calculation|multiplication) overflow",
                                                   said):
        have = [f"--{name}" for name in MEMORY_FLAGS if cls and name in flags_of(cls)]
        first = ", ".join(have[:-1]) + " or " * (len(have) > 1)
        return f"out of memory: lower {first}{have[-1]}" if have else \
            "out of memory: close other programs, or do less at once"
    return None


def comes_from_compiler(error):
    """Whether torch.compile raises it: no C++ compiler, no Python headers, no folder to write.
    """
    frames = traceback.extract_tb(error.__traceback__) if isinstance(error, OSError) else ()
    return type(error).__module__.startswith(("torch._inductor", "torch._dynamo")) or any(
        os.path.join("torch", "_inductor") in frame.filename for frame in frames)


def exit_with_error(sentence, code):
    """End the script with one line on stderr."""
    with contextlib.suppress(OutputLost):
        sys.stdout.flush()  # what waits there, such as a prompt, was said before
    with contextlib.suppress(OutputLost):
        line = sentence.replace("\n", "\\n")
        print(f"{os.path.basename(sys.argv[0])}: {line}", file=sys.stderr, flush=True)
    sys.exit(code)


def run_script(cls, main, first=()):
    """What stands under __main__ in every script: the flags, then main(config, given), which may
    return an exit code. first: the flags that the first words stand for, if they are not flags"""
    argv = sys.argv[1:]
    n = next((i for i, word in enumerate(argv) if word.startswith("-")), len(argv))
    named = [f"--{name}={word}" for name, word in zip(first, argv[:n])]
    with one_line_errors(cls):
        code = main(*parse(cls, [*named, *argv[len(named):]]))
    sys.exit(code)
