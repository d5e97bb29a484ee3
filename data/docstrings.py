"""
The English that every Python carries: the docstrings of its standard library, in printable ASCII.
"""
import ast
import importlib
import inspect
import os
import re
import sys
import sysconfig
import warnings
from pathlib import Path

from data.files import refuse_unreadable


def docstring_paragraphs():
    """-> {the words of a paragraph: the paragraph}, in the order of the files. A repeated
    paragraph, which may be indented otherwise, has the same words."""
    docs, found = docstrings_of_sources() or docstrings_of_modules(), {}
    for doc in docs:
        doc = re.sub(r"[^\n -~]", "", doc)
        for paragraph in re.split(r"\n(?: *\n)+", doc) if len(doc) > 40 else []:
            found.setdefault(" ".join(paragraph.split()), paragraph.rstrip())
    found.pop("", None)
    return found


def docstrings_of_sources():
    """The docstrings of the .py files, read without importing any. Tests and installed packages are
    left out. [] where Python comes without sources."""
    root = Path(sysconfig.get_path("stdlib"))
    left_out = {"test", "tests", "idle_test", "site-packages", "dist-packages", "_bundled"}
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docs = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old files contain escapes that newer Pythons deprecate
        for path in sources(root, left_out):
            try:
                nodes = ast.walk(ast.parse(path.read_bytes()))
            except (SyntaxError, ValueError):  # templates with a .py ending
                continue
            except OSError as error:
                refuse_unreadable(error)
            docs += [ast.get_docstring(node) or "" for node in nodes
                     if isinstance(node, documented)]
    return docs


def sources(root, left_out):
    """The .py files below a folder, in order, but for folders and files of these names."""
    found = []
    for here, folders, names in os.walk(root, onerror=refuse_unreadable):
        folders[:] = set(folders) - left_out
        found += [Path(here, name) for name in names if name.endswith(".py")]
    return sorted(path for path in found if path.is_file())


def docstrings_of_modules():
    """The fallback where the library is a zip of compiled files (embedded Python): import each
    module and inspect its objects."""
    docs = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of deprecated modules
        skipped = {"antigravity", "this"}  # these open a browser, or print
        for name in sorted(sys.stdlib_module_names - skipped):
            try:
                module = importlib.import_module(name)
            except Exception:  # a module of another system
                continue
            for thing in [module, *vars(module).values()]:
                inside = list(vars(thing).values()) if inspect.isclass(thing) else []
                docs += [inspect.getdoc(each) or "" for each in [thing, *inside]
                         if callable(each) or each is module]
    return docs
