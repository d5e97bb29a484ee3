"""What holds for every script, every flag and every file: numbers have an end, messages name flags
that there are, and files are read and written in an encoding that is named."""

import ast
import importlib
import math
import re
from functools import cache

import pytest

import chat
import distill
import evaluate
import rl
import sample
import train
from data import DATASETS
from flags import flags_of, load_row, parse, wrong
from methods import EVERY_METHOD
from samplers import CORRECTORS, SAMPLERS
from tree import CODE

TEXTS = {file: path.read_text("utf-8") for file, path in CODE.items()}
SCRIPTS = [file for file, text in TEXTS.items() if re.search(r"^class Config\b", text, re.M)]
ROWS = {f.name: f for table in (EVERY_METHOD, SAMPLERS, CORRECTORS) for name in table
        for f in flags_of(load_row(table, name)).values()}


@cache
def trees():
    """{file: its tree}"""
    return {file: ast.parse(text) for file, text in TEXTS.items()}


def module_of(file):
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def flags_in(file):
    """{name: field} of the flags of a script, and of every row that its tables have."""
    own = flags_of(importlib.import_module(module_of(file)).Config)
    has_rows = any(f.metadata["table"] not in (None, DATASETS) for f in own.values())
    return {**(ROWS if has_rows else {}), **own}


# ---- numbers

@pytest.mark.parametrize("file", SCRIPTS)
def test_every_number_has_an_end(file):
    for name, f in flags_in(file).items():
        if f.type in (int, float):
            least, most = f.metadata["range"]
            assert most < math.inf or wrong(f, f.type(10**39)), name
            assert wrong(f, math.nan) and wrong(f, math.inf) and wrong(f, -math.inf), name
            assert wrong(f, -10**39) and f.type is float or wrong(f, 10**10), name
        if f.metadata["each"] in (int, float):
            assert wrong(f, "8,x") and wrong(f, "8,") and wrong(f, f"8,{10**40}"), name
            assert wrong(f, "-1") and not wrong(f, "8,32"), name


@pytest.mark.parametrize("module", [train, sample, evaluate, distill, rl, chat],
                         ids=lambda module: module.__name__)
@pytest.mark.parametrize("value", ["1" + "0" * 21, "1e400", "nan", "", "-1", "0x10", "9" * 5000])
def test_a_number_without_an_end_is_one_line(module, value, capsys):
    name = "seed" if module is not chat else "steps"
    for word in [f"--{name}={value}"]:
        with pytest.raises(SystemExit) as end:
            parse(module.Config, [word])
        error = capsys.readouterr().err
        assert end.value.code == 2 and error.count("\n") == 1 and f"--{name}" in error


# ---- messages

def imports(tree):
    """The modules that a file imports, by tables too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from re.findall(r"^([\w.]+):\w+$", node.value)


def reached(file, arrows):
    """The modules that a script imports, directly or not."""
    found, waiting = set(), [module_of(file)]
    while waiting:
        module = waiting.pop()
        if module in arrows and module not in found:
            found.add(module)
            waiting += arrows[module]
    return found


def messages(tree):
    """The sentences of a file: what stands inside a raise or a print."""
    for node in ast.walk(tree):
        called = isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1]
        if isinstance(node, ast.Raise) or called in ("UserError", "print", "write"):
            yield " ".join(part.value for part in ast.walk(node) if isinstance(part, ast.Constant)
                           and isinstance(part.value, str))


def test_messages_name_flags_of_a_script_that_can_say_so():
    """Those of train.py as well, where they say how to train."""
    known = {file: {*flags_in(file)} | {"help"} for file in SCRIPTS}
    arrows = {module_of(file): {*imports(tree)} for file, tree in trees().items()}
    reach, faults = {file: reached(file, arrows) for file in SCRIPTS}, []
    for file, tree in trees().items():
        own = [known[script] for script in SCRIPTS if module_of(file) in reach[script]]
        for said in messages(tree):
            known_here = set().union(*own, known["train.py"] if "train" in said else ())
            named = {name.removeprefix("no_")
                     for name in re.findall(r"(?<![\w-])--([a-z]\w+)", said)}
            faults += [(file, name) for name in named - known_here if own]
    assert not faults


# ---- files

def test_every_file_of_text_is_opened_in_an_encoding_that_is_named():
    faults = []
    for file, tree in trees().items():
        for node in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            name, given = ast.unparse(node.func), {k.arg for k in node.keywords}
            texts = {part.value for a in node.args for part in ast.walk(a)
                     if isinstance(part, ast.Constant) and isinstance(part.value, str)}
            named = "encoding" in given or texts & {"utf-8", "utf-8-sig"} or \
                any(text.startswith("/proc/") for text in texts)  # ASCII
            binary = any(re.fullmatch(r"[rwxa]\+?b\+?", text) for text in texts)
            if not named and (name == "open" and not binary
                              or re.search(r"\.(read_text|write_text)$", name)):
                faults.append((file, node.lineno))
    assert not faults
