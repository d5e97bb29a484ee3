"""
The English that every Python carries: the docstrings of its standard library, in printable ASCII, without repeats.
"""
import ast
import importlib
import inspect
import re
import sys
import sysconfig
import warnings
from pathlib import Path


def paragraphs():
    """-> {its words: the paragraph}, in the order of the files. Copies may be indented: they have the same words."""
    docs = [re.sub(r"[^\n -~]", "", doc) for doc in docstrings_of_sources() or docstrings_of_modules()]
    found = {}
    for doc in docs:
        for paragraph in re.split(r"\n(?: *\n)+", doc) if len(doc) > 40 else []:
            found.setdefault(" ".join(paragraph.split()), paragraph.rstrip())
    found.pop("", None)
    return found


def docstrings_of_sources():
    """Read from the .py files, tests and guests left out, without importing any. [] where Python ships no sources."""
    root = Path(sysconfig.get_path("stdlib"))
    guests = {"test", "tests", "idle_test", "site-packages", "dist-packages", "_bundled"}
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docs = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                      # old files hold escapes that newer Pythons frown upon
        for path in sorted(root.rglob("*.py")):
            if guests.isdisjoint(path.relative_to(root).parts):
                try:
                    nodes = ast.walk(ast.parse(path.read_bytes()))
                except (OSError, SyntaxError, ValueError):   # templates with a .py ending
                    continue
                docs += [ast.get_docstring(node) or "" for node in nodes if isinstance(node, documented)]
    return docs


def docstrings_of_modules():
    """The fallback where the library is a zip of compiled files (embedded Python): import, and ask the objects."""
    docs = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                      # of modules that are to go
        for name in sorted(sys.stdlib_module_names - {"antigravity", "this"}):   # these open a browser, or print
            try:
                module = importlib.import_module(name)
            except Exception:                                # a module of another system
                continue
            for thing in [module, *vars(module).values()]:
                inside = list(vars(thing).values()) if inspect.isclass(thing) else []
                docs += [inspect.getdoc(each) or "" for each in [thing, *inside] if callable(each) or each is module]
    return docs
