"""The house: what lies where, who may import whom, how large a file may be, and that a row is all
that a table needs."""

import ast
import re
import shutil
import subprocess
import sys
from collections import Counter
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

from data import DATASETS
from forks import forked
from methods import EVERY_METHOD as METHODS
from runs import python
from samplers import CORRECTORS, SAMPLERS
from tree import CODE, FLOOR, ROOT, TESTS

SCRIPTS = {"train.py": 150, "evaluate.py": 150, "distill.py": 150, "rl.py": 150, "chat.py": 150,
           "sample.py": 180, "micro.py": 120}
CODE_TEXT = {name: path.read_text("utf-8") for name, path in CODE.items()}
BASES = {"methods.mdlm", "methods.udlm", "methods.bd3lm", "methods.diffugpt",
         "methods.rdm"}  # other methods are built on these
TABLES = {"--method": METHODS, "--sampler": SAMPLERS, "--corrector": CORRECTORS, "--data": DATASETS}


@cache
def tree_of(file):
    return ast.parse(CODE_TEXT[file])


@cache
def nodes_of(file):
    return list(ast.walk(tree_of(file)))


@cache
def module_of(file):
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


MODULES = {module_of(name) for name in CODE}


def imported(node, file):
    """The project's modules that an import statement names."""
    names = (
        [a.name for a in node.names]
        if isinstance(node, ast.Import)
        else [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
    )
    return {name for name in names if name and name in MODULES}


@cache
def imports_of(file):
    return {
        name
        for node in nodes_of(file)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in imported(node, file)
    } - {module_of(file)}


def test_only_the_files_of_the_card_lie_on_top():
    assert {path.name for path in ROOT.glob("*.py")} <= {f"{room}.py" for room in FLOOR}
    known = {
        "README.md",
        "LICENSE",
        "requirements.txt",
        "requirements-test.txt",
        "requirements-extras.txt",
    }
    assert {
        path.name
        for path in ROOT.iterdir()
        if path.is_file() and not path.name.startswith(".") and path.suffix != ".py"
    } <= known


def test_pictures_and_pages_that_the_docs_make_are_not_of_the_project():
    """7.png, curves.png and the like land where the command was given."""
    rules = ROOT / ".gitignore"
    if not rules.exists():
        pytest.skip("a copy without git")
    code = "\n".join(CODE_TEXT.values())
    made = re.findall(r"--(?:png|html) ([\w-]+\.\w+)", pages() + code)
    made += re.findall(r'^    (?:png|html): str = flag\("([^"]+)"', code, re.M)
    assert {"7.png", "curves.png", "player.html", "out.html"} <= set(made)
    for name in made:
        assert any(fnmatch("/" + name, rule) for rule in rules.read_text().split()), name


def test_nobody_imports_from_a_floor_above():
    floor = lambda module: FLOOR[module.split(".")[0]]
    for file in CODE:
        here = floor(module_of(file))
        assert not {name for name in imports_of(file) if floor(name) > here}, file


def test_there_is_no_circle():
    arrows, done = {module_of(file): imports_of(file) for file in CODE}, set()

    def visit(module, path):
        assert module not in path, " > ".join([*path, module])
        if module not in done:
            for other in sorted(arrows[module]):
                visit(other, [*path, module])
            done.add(module)

    for module in arrows:
        visit(module, [])


def test_no_import_hides_in_a_function():
    hidden = {
        (file, name)
        for file in CODE
        for function in nodes_of(file)
        if isinstance(function, (ast.FunctionDef, ast.Lambda))
        for node in ast.walk(function)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in imported(node, file)
    }
    assert not {
        (file, name) for file, name in hidden if not name.startswith("kernels_triton")
    }  # Triton is optional


def too_long(file):
    """What of a file is longer than it may be."""
    text = CODE_TEXT.get(file) or (ROOT / file).read_text("utf-8")
    lines = text.splitlines()
    if len(lines) > SCRIPTS.get(file, 350):
        yield f"{file}: {len(lines)} lines"
    yield from (f"{file}:{i}: {len(line)} columns" for i, line in enumerate(lines, 1)
                if len(line) > 100)
    for node in nodes_of(file) if file in CODE else ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno + 1 > 47:
            yield f"{file}: {node.name}"


def test_a_file_holds_one_idea():
    """At most 350 lines of at most 100 columns, 150 lines for a script, 47 for a function."""
    found = [what for file in [*CODE, *TESTS] for what in too_long(file)]
    assert not found, found


def test_a_name_is_defined_once():
    """Top-level functions and classes, but for what each script has."""
    names = Counter(
        node.name
        for file in CODE
        for node in tree_of(file).body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not file.startswith("experiments")
    )
    assert not {
        name: n
        for name, n in names.items()
        if n > 1 and name not in ("main", "Config", "cross_entropy", "mixture_nats")
    }


# ---- contracts

NAMES = {name for table in TABLES.values() for name in table if "*" not in name} - {
    "draw",
    "psi",
    "greedy",
    "python",
}


def test_no_general_module_compares_with_the_name_of_a_row():
    """What others need to know about a method, sampler or data set is an attribute of its class."""
    found = [
        f"{file}:{node.lineno}"
        for file in CODE
        if not file.startswith(("experiments", "exercises", "data/"))
        for node in nodes_of(file)
        if isinstance(node, ast.Compare)
        for part in ast.walk(node)
        if isinstance(part, ast.Constant) and part.value in NAMES
    ]
    assert not found, found


def test_hardly_anything_is_probed():
    """getattr with a default, and hasattr: of our own objects a handful, else of foreign ones."""
    found = [
        f"{file}:{node.lineno}"
        for file in CODE
        if not file.startswith("experiments")
        for node in nodes_of(file)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and (node.func.id == "hasattr" or node.func.id == "getattr" and len(node.args) == 3)
    ]
    assert len(found) <= 16, found


def test_a_method_is_one_file_one_row_one_page_one_test_and_one_line_of_readme():
    readme, tests = (ROOT / "README.md").read_text("utf-8"), {Path(file).stem for file in TESTS}
    for name in METHODS:
        file = f"methods/{name}.py"
        assert METHODS[name].partition(":")[0] == module_of(file) and file in CODE, name
        assert f"test_{name}" in tests and f"`{file}`" in pages() and f"`{name}`" in readme, name


def test_a_sampler_is_one_row_and_stands_in_a_page():
    for name, row in {**SAMPLERS, **CORRECTORS}.items():
        assert row.partition(":")[0].replace(".", "/") + ".py" in CODE, name
        assert re.search(rf"`(--sampler |--corrector )?{name}`", pages()), name


def test_a_data_set_is_one_row_and_stands_in_a_page():
    known = pages() + (ROOT / "README.md").read_text("utf-8")
    for name, row in DATASETS.items():
        assert row.partition(":")[0].replace(".", "/") + ".py" in CODE, name
        assert "*" in name or name in known, name


@cache
def pages():
    """All pages but the table of methods, which names every file."""
    return "".join(path.read_text("utf-8") for path in (ROOT / "docs").glob("*.md")
                   if path.name != "methods.md")


def test_a_method_is_imported_by_its_row_alone():
    """So that any one can be deleted; but for those that others are built on."""
    files = {module_of(f"methods/{name}.py") for name in METHODS} - BASES
    users = {
        file: imports_of(file) & files
        for file in CODE
        if not file.startswith(("experiments", "exercises"))
    }
    assert not {file: found for file, found in users.items() if found}


@pytest.mark.parametrize("rooms", [["kernels"], ["experiments", "exercises"], ["viewer"]])
def test_what_may_be_deleted_is_imported_by_nobody_who_stays(rooms):
    allowed = {
        "kernels": {"model", "methods.base", "experiments.kernels"},
        "viewer": {"sample", "chat"},
    }
    for file in CODE:
        if module_of(file).split(".")[0] not in [*rooms, "kernels_triton"]:
            found = {name for name in imports_of(file) if name.split(".")[0] in rooms}
            assert (
                not found
                or module_of(file) in allowed.get(rooms[0], set())
                or file.startswith("experiments")
            ), file


def test_it_runs_without_what_may_be_deleted(tmp_path):
    """Without the fast forms, the viewers, experiments, exercises, most methods and most samplers.
    """
    for file in CODE:
        keep = file.startswith(("methods/", "samplers/")) and Path(file).stem in (
            "__init__",
            "base",
            "mdlm",
            "udlm",
            "recurrent",
            "generate",
            "guidance",
            "gradients",
            "sliding_window",
            "reply",
            "sides",
            "correctors",
            "unmasking",
            "orders",
        )
        gone = file.startswith(
            ("kernels", "viewer/", "experiments/", "exercises/", "methods/", "samplers/")
        )
        if keep or not gone:
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / file, tmp_path / file)
    run = lambda *words: subprocess.run(
        **forked(python(*words)), cwd=tmp_path, capture_output=True
    )
    tiny = ("--data toy --max_iters 1 --n_layer 1 --n_embd 16 --n_head 2 --batch_size 64 "
            "--eval_iters 1 --block_size 8")
    train = run(
        "train.py", *tiny.split(), "--out_dir", "run", "--device", "cpu", "--dtype", "float32"
    )
    assert train.returncode == 0, train.stderr
    sample = run("sample.py", "--out_dir", "run", "--steps", "2", "--num_samples", "1")
    assert sample.returncode == 0 and "text 1" in sample.stdout, sample.stderr
