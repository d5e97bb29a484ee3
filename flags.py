"""
The command line: one dataclass per script, one flag per field, and one line for whatever goes wrong.

    @dataclass
    class Config:
        max_iters: int = flag(2000, "training steps", least=1)
        watch: bool = flag(False, "show the text")

    config, given = parse(Config)    # reads --max_iters 10, --max-iters=10, --watch, --watch=False, --no-watch
    with one_line_errors(): ...      # BadInput, a full disk or Ctrl-C end the script with a sentence, not a traceback

Exit codes: 0 done, 2 the user can mend it, 130 interrupted. Nothing here imports torch: --help and typos are answered
at once.
"""
import argparse
import contextlib
import difflib
import math
import os
import signal
import sys
from dataclasses import field, fields
from functools import partial

from data import BadInput


def flag(default, help, choices=None, least=-math.inf, most=math.inf, alone=None, **instead):
    """One flag. A number must lie between least and most. alone: what a word means that is given without a value.
    instead: other defaults for some --data, or where a flag of that name is given, as in toy=600, sft=700; the last
    one holds."""
    about = {"help": help, "choices": choices, "range": (least, most), "alone": alone, "instead": instead}
    return field(default=default, metadata=about)


def boolean(text):
    if text.lower() in ("true", "1", "yes", "on"):
        return True
    if text.lower() in ("false", "0", "no", "off"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")


def switched(alone, text):
    """The value of a flag that can stand alone, and so be said to be True or False as well."""
    return {"true": alone, "false": ""}.get(text.lower(), text)


def nearest(word, words):
    """' (did you mean ...?)' where one of the words is close, else nothing."""
    near = difflib.get_close_matches(word, [str(w) for w in words], n=1, cutoff=0.5)
    return f" (did you mean {near[0]}?)" if near else ""


class Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"{self.prog}: {message}; --help lists the flags\n")


def parse(cls, argv=None):
    """The command line as an instance of the dataclass, and the names of the flags that were given.

    A mistake ends the script with one line and exit code 2.
    """
    if argv is None:
        argv = sys.argv[1:]
        signal.signal(signal.SIGINT, signal.SIG_DFL)         # Ctrl-C while torch loads: leave, without its traceback
    parser = Parser(description=sys.modules[cls.__module__].__doc__, argument_default=argparse.SUPPRESS,
                    formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    for f in fields(cls):
        alone = f.metadata["alone"]
        extra = dict(type=boolean, nargs="?", const=True) if f.type is bool else dict(type=f.type)
        extra = extra if alone is None else dict(type=partial(switched, alone), nargs="?", const=alone)
        parser.add_argument("--" + f.name, metavar=f.type.__name__, help=describe(f), **extra)
        if f.type is bool or alone is not None:
            parser.add_argument("--no_" + f.name, dest=f.name, action="store_const", help=argparse.SUPPRESS,
                                const=False if f.type is bool else "")
    values, unknown = parser.parse_known_args([underscored(word) for word in argv])
    given = vars(values)
    if unknown:
        known = ["--" + f.name for f in fields(cls)]
        parser.error(f"there is no flag {unknown[0]}{nearest(unknown[0].split('=')[0], known)}")
    for f in fields(cls):
        if f.name in given and (fault := wrong(f, given[f.name])):
            parser.error(f"--{f.name} {given[f.name]!r} {fault}")
    return cls(**{**{f.name: default(f, given) for f in fields(cls)}, **given}), list(given)


def default(f, given):
    """The default of a flag beside the others that were given."""
    instead = f.metadata["instead"].items()
    return [f.default, *(value for name, value in instead if given.get("data") == name or given.get(name) is True)][-1]


def describe(f):
    """One line of --help: what it is, the choices, every default."""
    choices, instead = f.metadata["choices"], f.metadata["instead"]
    about = f.metadata["help"] + (f": {', '.join(filter(None, choices))}" if choices else "")
    defaults = "; ".join([repr(f.default)] + [f"{value!r} for {name}" for name, value in instead.items()])
    return f"{about} (default: {defaults})".replace("%", "%%")


def wrong(f, value):
    """What is wrong with the value of a flag, as the end of a sentence, or None."""
    choices, (least, most) = f.metadata["choices"], f.metadata["range"]
    if choices and value not in choices:
        return f"is not one of {', '.join(filter(None, choices))}{nearest(value, choices)}"
    if f.type in (int, float) and not (least <= value <= most and math.isfinite(value)):
        return f"must be at least {least}" if most == math.inf else f"must lie between {least} and {most}"


def underscored(word):
    """--batch-size=4 -> --batch_size=4; values and everything else stay as they are."""
    name, equals, value = word.partition("=")
    return name.replace("-", "_").replace("__", "--", 1) + equals + value if word.startswith("--") else word


@contextlib.contextmanager
def one_line_errors():
    """Say in one line what the user can mend, exit code 2. All else stays a traceback: that would be our fault."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
        sys.stdout.flush()
    except BadInput as error:
        complain(str(error), 2)
    except BrokenPipeError:                                  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:                                 # a disk that is full, a folder that is not ours, ...
        complain(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", 2)
    except (MemoryError, RuntimeError) as error:             # torch has no one class for it
        if not isinstance(error, MemoryError) and "allocate" not in str(error):
            raise
        complain("out of memory: lower --batch_size, --block_size or the size of the network", 2)
    except KeyboardInterrupt:
        complain("interrupted", 130)


def complain(sentence, code):
    print(f"{os.path.basename(sys.argv[0])}: {sentence}", file=sys.stderr, flush=True)
    sys.exit(code)
