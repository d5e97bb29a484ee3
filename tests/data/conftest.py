"""What the tests of data/ share: caches of their own, and a small standard library."""
import shutil
import sysconfig
from pathlib import Path

import pytest

from data import docstrings


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No test writes into data/cache. -> the folder that it writes into"""
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def few_modules(tmp_path_factory):
    """A folder with three packages of the standard library, and what data/docstrings.py must leave
    out. Each docstring of email occurs twice, once with two blanks for one.
    """
    root, real = tmp_path_factory.mktemp("stdlib"), Path(sysconfig.get_path("stdlib"))
    for name in ("asyncio", "email", "json"):
        shutil.copytree(real / name, root / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(docstrings.sysconfig, "get_path", lambda name: str(root / "email"))
        docs = [doc for doc in docstrings.docstrings_of_sources() if len(doc) > 40]
    copies = [doc.replace(" ", "  ") for doc in docs]
    copies = [f"def f{i}(): {doc!r}\n" for i, doc in enumerate(copies)]
    (root / "copies.py").write_text("".join(copies))
    (root / "template.py").write_text("def {{name}}(): pass")
    for guest in ("site-packages", "test", "json/tests"):
        (root / guest).mkdir(exist_ok=True)
        (root / guest / "guest.py").write_text(repr("A guest is no part of the library. " * 9))
    return root


@pytest.fixture
def small_python(few_modules, monkeypatch):
    """Python's standard library is small: preparing --data python takes no time."""
    monkeypatch.setattr(docstrings.sysconfig, "get_path", lambda name: str(few_modules))
