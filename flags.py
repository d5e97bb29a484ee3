"""
The command line: one dataclass per script, one flag per field.

    @dataclass
    class Config:
        method: str = flag("mdlm", "what to train", table=METHODS)
        max_iters: int = flag(2000, "training steps", least=1)

    config, given = parse(Config)      # reads --max_iters 10, --max-iters=10, --watch, --no-watch

A flag with a table names a row of it, "methods.bd3lm:BD3LM". The fields of that class are flags of
the script as well: --help lists them in a group of their own, and config has them. A class may
bring other defaults for the script's flags (`defaults`). A flag that belongs to another row is
refused.

A mistake is a UserError, which script.py tells in one line. Nothing here imports torch.
"""
import argparse
import importlib
import math
import os
import sys
from fnmatch import fnmatchcase
from dataclasses import field, fields, is_dataclass, make_dataclass
from functools import cache, partial

from suggest import suggest


os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch loads: see runtime/device.py
os.environ.setdefault("GOMP_SPINCOUNT", "10000")


class UserError(ValueError):
    """What the user can mend, in one line that says what to do."""


OLD_FLAGS = {"clock": "time_input", "tail": "corrector"}  # in command lines and checkpoints
LARGEST = {int: 10**9, float: 1e38}  # of numbers without a limit of their own; float32 ends there


def flag(default, help, choices=None, least=-math.inf, most=math.inf, alone=None, table=None,
         fixed=False, later=False, unless=(), each=None, once=None, text=False, needs=(), idle=(),
         **instead):
    """One flag.

    least, most  the range of a number
    each         a list with commas between: of int, float, str, or of these names
    once         what to do in place of giving it twice with two values, where a user may believe
                 that both count; otherwise the last one counts, as a wrapper script expects
    text         it is no path: a ~ at its start is not the home folder
    alone        the value of a flag that is given without one
    table        {name: "module:Class"}: it names a row, whose flags join; a * makes a pattern
    fixed        part of what is trained: it cannot change when a run is resumed
    later        of a method: no part of what is trained, so that scripts which use a trained model
                 take it, too, in place of the value of the run
    instead      other defaults where a flag of that name is given, as in sft=700
    unless       flags that keep the first default where they are given
    needs        flags without all of which this one counts for nothing: to set it is refused then
    idle         flags with any of which it counts for nothing
    """
    once = once or each and "give all in one, with commas between"
    about = {"help": help, "choices": choices, "range": (least, most), "alone": alone,
             "table": table, "fixed": fixed, "later": later, "instead": instead,
             "unless": unless, "each": each, "once": once, "text": text, "needs": needs,
             "idle": idle}
    return field(default=default, metadata=about)


def flags_of(cls):
    """{name: field} of the flags of a dataclass; {} for a class without any."""
    return {f.name: f for f in fields(cls) if "help" in f.metadata} if is_dataclass(cls) else {}


# ---- tables

def load_row(table, name):
    """The class in the row `name` of a table, imported now; or UserError."""
    patterns = (key for key in table if "*" in key and fnmatchcase(name, key))
    row = table.get(name) or table.get(next(patterns, None))
    if row is None:
        known = [key for key in table if "*" not in key]
        also = lambda key: vars(load_row(table, key)).get("also_called", ())  # not inherited
        raise UserError(f"{name!r} is not one of {', '.join(known)}{suggest(name, known, also)}")
    module, _, cls = row.partition(":")
    return getattr(importlib.import_module(module), cls)


def extend(cls, values, more=None):
    """The dataclass `cls` with the flags of every row that its tables name under `values`, and
    those of their tables. more: other flags {name: (field, its default here)}

    -> the dataclass; {title of a group of flags: their names}
    """
    known, groups, defaults, more = flags_of(cls), {}, {}, more or {}
    added, waiting = {}, [f for f in known.values() if f.metadata["table"]]
    while waiting:
        f = waiting.pop(0)
        name = values.get(f.name, f.default)
        if not name and "" not in f.metadata["table"]:       # an optional row that nobody asks for
            continue
        try:
            row = load_row(f.metadata["table"], name)
        except UserError as error:
            raise UserError(f"--{f.name} {error}") from None
        own = {key: g for key, g in flags_of(row).items() if key not in known and key not in added}
        if own:
            groups[f"--{f.name} {name} ({row.__module__.replace('.', '/')}.py)"] = list(own)
        added |= own
        defaults |= getattr(row, "defaults", {})
        waiting += [g for g in own.values() if g.metadata["table"]]
    for key, (f, value) in more.items():
        if key not in known and key not in added:
            groups.setdefault("Method of the trained model", []).append(key)
            added[key], defaults[key] = f, value
    rows = tuple((key, f, defaults.get(key, f.default)) for key, f in {**known, **added}.items()
                 if key in added or key in defaults)
    return subclass(cls, rows, tuple(more.items())), groups


@cache
def subclass(cls, rows, more):
    """The dataclass `cls` with more flags, or other defaults: rows of (name, field, default)."""
    made = [(key, f.type, field(default=default, metadata=f.metadata)) for key, f, default in rows]
    own = {"script": cls, "__module__": cls.__module__, "more": dict(more)}
    return make_dataclass(cls.__name__, made, bases=(cls,), namespace=own)


def configure(cls, **given):
    """The flags of a script as code gives them, or their defaults. -> a `cls`, extended"""
    cls = getattr(cls, "script", cls)
    given = {OLD_FLAGS.get(name, name): value for name, value in given.items()}
    made, _ = extend(cls, {**tables_by_default(cls, given), **given})
    return made(**{**{name: default_of(f, given) for name, f in flags_of(made).items()}, **given})


def tables_by_default(cls, given):
    """The rows that hold where the flag of a table is not given."""
    return {f.name: default_of(f, given) for f in flags_of(cls).values() if f.metadata["table"]}


def change(config, **values):
    """`config` with other values; flags of another row that a value names have their defaults."""
    made, _ = extend(config.script, {**vars(config), **values}, config.more)
    known = flags_of(made)
    values = {**vars(config), **values}
    return made(**{name: value for name, value in values.items() if name in known})


def restored(cls, saved, **values):
    """The flags in a checkpoint, a dict, as an instance of `cls`; missing ones have defaults."""
    saved = {OLD_FLAGS.get(name, name): value for name, value in saved.items()} | values
    made, _ = extend(cls, {**tables_by_default(cls, saved), **saved})
    known = flags_of(made)
    return configure(cls, **{name: value for name, value in saved.items() if name in known})


def owner_of(cls, name):
    """The rows that have the flag `name`, as words; "" if none has."""
    owners = {}
    for f in flags_of(cls).values():
        for row in f.metadata["table"] or {}:
            if "*" not in row and name in flags_of(load_row(f.metadata["table"], row)):
                owners.setdefault(f.name, []).append(row)
    return "; ".join(f"--{table} {', '.join(rows)}" for table, rows in owners.items())


# ---- reading the command line

def boolean(text):
    if text.lower() in ("true", "1", "yes", "on"):
        return True
    if text.lower() in ("false", "0", "no", "off"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")


def optional(alone, text):
    """The value of a flag that can stand alone, which may also be switched by True and False."""
    return {"true": alone, "false": ""}.get(text.lower(), text)


def at_home(f, text):
    """The value of a flag with the home folder for a ~ that the shell left alone, in --flag=~/x."""
    if f.metadata["text"]:
        return text
    parts = text.split(",") if f.metadata["each"] else [text]
    return ",".join(map(os.path.expanduser, parts))


class Parser(argparse.ArgumentParser):
    color = False  # of Python 3.14: a terminal shows control characters, see script.py

    def error(self, message):
        message = message.replace("\n", "\\n")
        self.exit(2, f"{self.prog}: {message}; --help lists the flags\n")


class Once(argparse.Action):
    """A flag that must not have two values. const: what to do instead"""

    def __call__(self, parser, given, value, word=None):
        if (before := vars(given).get(self.dest, value)) != value:
            parser.error(f"--{self.dest} is given twice, as {before!r} and {value!r}: {self.const}")
        setattr(given, self.dest, value)


def parser_of(cls, groups=None, **options):
    """argparse's parser of all flags of a dataclass, in the groups of --help."""
    parser = Parser(argument_default=argparse.SUPPRESS, allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter, **options)
    sections = {name: title for title, names in (groups or {}).items() for name in names}
    title_of = {name: sections.get(name) or section_of(cls, name) for name in flags_of(cls)}
    titles = dict.fromkeys(["General", *(groups or {}), *title_of.values()])
    made = {title: parser.add_argument_group(title) for title in titles}
    for f in flags_of(cls).values():
        group, alone = made[title_of[f.name]], f.metadata["alone"]
        extra = dict(type=boolean, nargs="?", const=True) if f.type is bool else dict(type=f.type)
        if f.type is str:
            extra = dict(type=partial(at_home, f))
        if f.metadata["once"]:
            extra |= dict(action=Once, const=f.metadata["once"])
        if alone is not None:
            extra = dict(type=partial(optional, alone), nargs="?", const=alone)
        group.add_argument("--" + f.name, metavar=f.type.__name__, help=describe(f), **extra)
        if f.type is bool or alone is not None:
            group.add_argument("--no_" + f.name, dest=f.name, action="store_const",
                               help=argparse.SUPPRESS, const=False if f.type is bool else "")
    return parser


def section_of(cls, name):
    """The title of a flag's group: the first line of the docstring of the class that defines it."""
    script = getattr(cls, "script", cls)
    for owner in script.__mro__[1:]:
        if name in owner.__dict__.get("__annotations__", {}):
            return (owner.__doc__ or owner.__name__).strip().splitlines()[0].rstrip(".")
    return "General"


def parse(cls, argv=None):
    """The command line as an instance of the dataclass, and the names of the flags that were given.

    A mistake ends the script with one line and exit code 2. A script may have cls.implied(given)
    -> the rows of tables that follow from other flags, such as those of a run to resume. Where a
    flag is given that the script lacks, the row "flags" of cls.later, if it is there, is called
    with the values of all flags -> those of the model that they name, as `extend` takes them.
    """
    argv = sys.argv[1:] if argv is None else argv
    words = [underscored(word) for word in argv]
    asked = [word for word in words if word not in ("-h", "--help")]
    first, _ = parser_of(cls, add_help=False).parse_known_args(asked)
    about = sys.modules[cls.__module__].__doc__
    try:
        implied = cls.implied(vars(first)) if "implied" in vars(cls) else {}
        rows = {**tables_by_default(cls, vars(first)), **implied, **vars(first)}
        made, groups = extend(cls, rows)
        second, _ = parser_of(made, add_help=False).parse_known_args(asked)  # rows of rows
        rows = {**rows, **vars(second)}
        made, groups = extend(cls, rows)
        if "later" in dir(cls) and parser_of(made, add_help=False).parse_known_args(asked)[1]:
            values = {name: default_of(f, rows) for name, f in flags_of(made).items()} | rows
            made, groups = extend(cls, rows, load_row(cls.later, "flags")(values))
    except UserError as error:
        parser_of(cls).error(str(error))
    parser = parser_of(made, groups, description=about)
    values, unknown = parser.parse_known_args(words)
    given, known = vars(values), flags_of(made)
    if unknown:
        word = unknown[0].split("=")[0]
        owner = owner_of(cls, word.removeprefix("--").removeprefix("no_"))
        near = suggest(word, ["--" + name for name in known])
        parser.error(f"{word} belongs to {owner}" if owner and word.startswith("--") else
                     f"there is no flag {unknown[0]}{near}")
    for name, value in given.items():
        if fault := wrong(known[name], value):
            parser.error(f"--{name} {value!r} {fault}")
    defaults = {name: default_of(f, given) for name, f in known.items()}
    values = {**defaults, **implied, **given}
    for name, value in given.items():
        if value != defaults[name] and (fault := idle_beside(known[name], values)):
            parser.error(f"{fault}: leave out --{name}")
    return made(**values), list(given)


def idle_beside(f, values):
    """Why a flag that was set counts for nothing beside the values of the others, or None."""
    needs, idle = f.metadata["needs"], f.metadata["idle"]
    if needs and not any(map(values.get, needs)):
        return f"--{f.name} counts for nothing without --{' or --'.join(needs)}"
    other = next(filter(values.get, idle), None)
    return other and f"--{f.name} counts for nothing with --{other}"


def default_of(f, given):
    """The default of a flag beside the others that were given."""
    if any(name in given for name in f.metadata["unless"]):
        return f.default
    instead = f.metadata["instead"].items()
    return [f.default, *(value for name, value in instead if given.get(name))][-1]


def describe(f):
    """One line of --help: what it is, the choices, every default."""
    choices, instead = f.metadata["choices"], f.metadata["instead"]
    choices = choices or [name for name in f.metadata["table"] or () if "*" not in name]
    about = f.metadata["help"] + (f": {', '.join(filter(None, choices))}" if choices else "")
    others = [f"{value!r} with --{name}" for name, value in instead.items()]
    return f"{about} (default: {'; '.join([repr(f.default), *others])})".replace("%", "%%")


def wrong(f, value):
    """What is wrong with the value of a flag, as the end of a sentence, or None."""
    choices, each = f.metadata["choices"], f.metadata["each"]
    if choices and value not in choices:
        return f"is not one of {', '.join(filter(None, choices))}{suggest(value, choices)}"
    if f.type in (int, float):
        return out_of_range(f.type, value, *f.metadata["range"])
    for word in value.split(",") if each not in (None, str) and value != f.default else ():
        if each in (int, float):
            try:
                fault = out_of_range(each, each(word), *f.metadata["range"])
            except ValueError:
                kind = "whole numbers" if each is int else "numbers"
                return f"must be {kind} with commas between, such as 8,32"
            if fault:
                return f"has {word}, which {fault}"
        elif word and word not in each:
            return f"has {word!r}, which is not one of {', '.join(each)}{suggest(word, each)}"


def out_of_range(kind, value, least, most):
    """What is wrong with a number, as the end of a sentence, or None."""
    if most < math.inf:
        return None if least <= value <= most else f"must lie between {least} and {most}"
    least = max(least, -LARGEST[kind])
    if not value >= least:
        return f"must be at least {least}"
    return None if value <= LARGEST[kind] else f"must be at most {LARGEST[kind]}"


def underscored(word):
    """--batch-size=4 -> --batch_size=4; old names of flags -> the new ones; the rest stays."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    name = name.replace("-", "_").replace("__", "--", 1)
    no = "no_" if name.startswith("--no_") else ""
    bare = name.removeprefix("--").removeprefix(no)
    return "--" + no + OLD_FLAGS.get(bare, bare) + equals + value
