"""
The command line: one dataclass per script, one flag per field, and one line for whatever goes wrong.

    @dataclass
    class Config:
        max_iters: int = flag(2000, "training steps")
        compile: bool = flag(False, "torch.compile the network")

    config, given = parse(Config)    # --max_iters 10, --max-iters=10, --compile, --compile=False and --no-compile all work
    with one_line_errors(): ...      # BadInput, a full disk or Ctrl-C end the script with a sentence, not a traceback

Exit codes: 0 done, 2 the user can mend it, 130 interrupted.
"""
import argparse
import contextlib
import difflib
import errno
import sys
from dataclasses import field, fields

from data import BadInput


def flag(default, help, choices=None, **by_data):
    """One flag. by_data: other defaults for some values of --data, as in toy=600."""
    return field(default=default, metadata={"help": help, "choices": choices, "by_data": by_data})


def boolean(text):
    if text.lower() in ("true", "1", "yes", "on"):
        return True
    if text.lower() in ("false", "0", "no", "off"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")


def nearest(word, words):
    """' (did you mean ...?)' where one of the words is close, else nothing."""
    near = difflib.get_close_matches(word, [str(w) for w in words], n=1, cutoff=0.5)
    return f" (did you mean {near[0]}?)" if near else ""


class Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"{self.prog}: {message}; --help lists the flags\n")


def parse(cls, argv=None):
    """The command line as an instance of the dataclass, and the names of the flags that were given. A mistake ends the script
    with one line and exit code 2."""
    module = sys.modules[cls.__module__].__doc__ or ""
    parser = Parser(description=module, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
                    argument_default=argparse.SUPPRESS)
    for f in fields(cls):
        extra = dict(type=boolean, nargs="?", const=True) if f.type is bool else dict(type=f.type)
        parser.add_argument("--" + f.name, metavar=f.type.__name__, help=describe(f), **extra)
        if f.type is bool:
            parser.add_argument("--no_" + f.name, dest=f.name, action="store_false", help=argparse.SUPPRESS)
    values, unknown = parser.parse_known_args([underscored(word) for word in (sys.argv[1:] if argv is None else argv)])
    if unknown:
        known = ["--" + f.name for f in fields(cls)]
        parser.error(f"there is no flag {unknown[0]}{nearest(unknown[0].split('=')[0], known)}")
    given = vars(values)
    for f in fields(cls):
        check_choice(parser, f.name, given.get(f.name), f.metadata["choices"])
    by_data = {f.name: f.metadata["by_data"][given["data"]] for f in fields(cls) if given.get("data") in f.metadata["by_data"]}
    return cls(**{**by_data, **given}), list(given)


def describe(f):
    """One line of --help: what it is, the choices, every default."""
    choices, by_data = f.metadata["choices"], f.metadata["by_data"]
    about = f.metadata["help"] + (f": {', '.join(str(c) or '(none)' for c in choices)}" if choices else "")
    defaults = "; ".join([repr(f.default)] + [f"{value!r} for {data}" for data, value in by_data.items()])
    return f"{about} (default: {defaults})".replace("%", "%%")


def check_choice(parser, name, value, choices):
    if value is not None and choices and value not in choices:
        parser.error(f"--{name} {value!r} is not one of {', '.join(map(str, choices))}{nearest(str(value), choices)}")


def underscored(word):
    """--batch-size=4 -> --batch_size=4; values and everything else stay as they are."""
    name, equals, value = word.partition("=")
    return name.replace("-", "_").replace("__", "--", 1) + equals + value if word.startswith("--") else word


@contextlib.contextmanager
def one_line_errors():
    """Say what the user can mend in one line, exit code 2; let everything else be a traceback: that would be our fault."""
    script = sys.argv[0].rsplit("/", 1)[-1]
    try:
        yield
    except BadInput as error:
        sys.exit(complain(f"{script}: {error}"))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        sys.exit(complain(f"{script}: {error.strerror} ({error.filename}): free some space, or choose another --out_dir"))
    except KeyboardInterrupt:
        complain(f"\n{script}: interrupted")
        sys.exit(130)


def complain(line):
    print(line, file=sys.stderr, flush=True)
    return 2
