"""
The pages of docs/, and README: what they name is there, and every command is understood.

Files, functions, links, equations, flags, tests and pictures are looked up in the project. The
examples of docs/adding.md run.
"""
import importlib
import re
import shlex
import sys
from functools import cache
from types import ModuleType

import pytest
import torch

import flags
import tree
from checkpoints import load
from data import DATASETS, load_data
from evaluation.likelihood import estimate_bound
from methods import METHODS, make_method
from samplers import SAMPLERS, make_sampler
from samplers.generate import generate
from tree import ROOT

TEXT = {file: path.read_text("utf-8") for file, path in {**tree.CODE, **tree.TESTS}.items()}
CODE = {file: TEXT[file] for file in tree.CODE}
TESTS = {name for file, text in TEXT.items() if file.startswith("tests/")
         for name in re.findall(r"^def (test_\w+)", text, re.M)}
EQUATION = r"(?:^| {2})\((\d+\.\d+)\)$"
DOCSTRINGS = "\n".join(re.findall(r'"""(.*?)"""', "\n".join(CODE.values()), re.S))
NUMBERED = set(re.findall(EQUATION, DOCSTRINGS, re.M))
README = ROOT / "README.md"
ALL = [README, *sorted((ROOT / "docs").glob("*.md"))]
CHAPTERS = [path for path in ALL if re.match(r"\d\d-", path.name)]
each_page = pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
each_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
LATER = {key: (f, f.default) for name in METHODS
         for key, f in flags.flags_of(flags.load_row(METHODS, name)).items() if f.metadata["later"]}
NO_MODULES = ("pytest", "venv", "experiments.NAME", "experiments.X")


def text_of(path):
    return path.read_text("utf-8")


def prose_of(path):
    """The page without blocks of code and without what stands in backticks."""
    return re.sub(r"`[^`]*`", "`", re.sub(r"^```.*?^```", "", text_of(path), flags=re.M | re.S))


# ---- the chapters

def test_the_contents_list_the_chapters_in_order():
    contents = text_of(ROOT / "docs" / "README.md")
    assert re.findall(r"\]\((\d\d-.*?\.md)\)", contents) == [path.name for path in CHAPTERS]
    for path, title in zip(CHAPTERS, re.findall(r"\.md\) \| (.*?) \|", contents)):
        assert text_of(path).startswith(f"# {int(path.name[:2])}. {title}\n")
    assert {path.name for path in ALL[1:]} - {"README.md"} <= set(
        re.findall(r"\]\(([\w-]+\.md)\)", contents))


@each_chapter
def test_a_chapter_has_its_parts_and_is_short(path):
    text = text_of(path)
    parts = ["**In the code**", "## Predict, then run", "```bash", "Measured (",
             "## Common mistakes", "## Further reading"]
    assert [text.index(part) for part in parts] == sorted(text.index(part) for part in parts)
    assert re.search(r"\nMeasured \((AMD EPYC|Intel Xeon)[\w ,-]*, one thread, 20\d\d-\d\d-\d\d\):"
                     r"\s", text)
    assert 40 <= len(text.splitlines()) <= 100
    assert re.search(r"\b\d{4}\.\d{5}\b", text.split("## Further reading")[1])


@each_chapter
def test_every_mistake_has_a_test(path):
    mistakes = text_of(path).split("## Common mistakes")[1]
    rows = [line for line in mistakes.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 5
    for row in rows:
        named, = re.findall(r"`(test_\w+)` \|$", row)
        assert named in TESTS, named


@cache
def bare_lines():
    """Of all code, without its docstrings."""
    bare = (re.sub(r'""".*?"""', "", code, flags=re.S) for code in CODE.values())
    return {line.strip() for code in bare for line in code.splitlines()}


@each_chapter
def test_a_chapter_has_the_equations_of_the_code_and_does_not_repeat_code(path):
    text = text_of(path)
    assert set(re.findall(EQUATION, text, re.M)) <= NUMBERED
    assert "```python" not in text
    assert not {line.strip() for line in text.splitlines() if len(line.strip()) > 20} & bare_lines()


def numbers_of(text):
    """The numbers of equations in a text; (3.1)-(3.3) stands for three."""
    found = set()
    number = r"\((\d\d?)\.(1?\d|(?<=14\.)[23]\d)\)(?:-\(\d+\.(\d+)\))?"
    for chapter, low, high in re.findall(number, text):
        found |= {(int(chapter), n) for n in range(int(low), int(high or low) + 1)}
    return found


NAMED = numbers_of(DOCSTRINGS)


def test_every_equation_of_the_code_is_in_a_page_and_in_the_list_of_equations():
    in_code = {tuple(map(int, number.split("."))) for number in NUMBERED}
    contents = text_of(ROOT / "docs" / "README.md")
    pages = "".join(text_of(path) for path in ALL if path.name != "README.md" or path == README)
    assert len(in_code) > 40 and in_code <= numbers_of(pages)
    assert in_code <= numbers_of(contents.split("## Every equation")[1])


@each_page
def test_every_equation_that_a_page_names_is_in_the_code(path):
    assert numbers_of(prose_of(path)) <= NAMED


# ---- what pages name

@each_page
def test_every_file_function_test_and_link_that_a_page_names_exists(path):
    text = text_of(path)
    examples = {"methods/plain.py", "samplers/backwards.py", "data/palindromes.py", "data/NAME.py",
                "methods/NAME.py", "samplers/NAME.py", "tests/methods/test_plain.py"}
    flat = re.sub(r"(?<=:)\n\s*(?=\w)", " ", text)
    for file, name in re.findall(r"`([\w/]+\.py)(?:: (\w+))?`", flat):
        assert file in TEXT or path.stem == "adding" and file in examples, file
        defined = rf"^\s*(def|class) {name}\b|^{name}\b.* = "
        assert not name or re.search(defined, TEXT[file], re.M), (file, name)
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("http") or (path.parent / target).exists(), target
    assert set(re.findall(r"`(test_\w+)`", text)) <= TESTS
    assert not re.search(r"\.py[#:]L?\d", text)  # pages name functions, not lines
    for module in re.findall(r"python -m ([\w.]+)", text.split("## Renamed")[0]):
        file = module.replace(".", "/")
        assert {f"{file}.py", f"{file}/__main__.py"} & {*TEXT} or module in NO_MODULES, module


FLAGS = set(re.findall(r"^    (\w+): \w+ = flag\(", "\n".join(CODE.values()), re.M))


@each_page
def test_every_flag_that_a_page_names_exists(path):
    foreign = {"help", "nproc_per_node", "standalone", "nnodes", "rdzv_backend", "rdzv_endpoint",
               "rdzv_id", "dist", "logdir", "jobs"}  # of torchrun, pytest, tensorboard, mutants
    foreign |= {"flag", "skip", "at_least", "warmth"} if path.stem == "adding" else set()
    for name in re.findall(r"(?<![-\w])--([a-z]\w*)", text_of(path).split("## Renamed")[0]):
        assert name.removeprefix("no_") in FLAGS | foreign, name


def test_pictures_are_small_and_each_is_shown():
    shown = "".join(map(text_of, ALL))
    for path in (ROOT / "docs").glob("*.png"):
        assert path.stat().st_size < 160_000 and f"{path.name})" in shown, path.name
        measured = (ROOT / "docs" / "figures" / f"{path.stem}.json").exists()
        assert measured or path.stem in ("steps", "guidance", "page"), path.name


# ---- prose

@each_page
def test_lines_are_short_and_words_are_american(path):
    """Tables, commands and what the program prints may be longer."""
    blocks = re.sub(r"^```.*?^```", "", text_of(path), flags=re.M | re.S)
    lines = [line for line in blocks.splitlines() if not line.startswith("|")]
    assert not [line for line in lines if len(line) > 100]
    british = r"colour|neighbour|behaviour|favour|\bgrey|centre|learnt|(normal|optim|token|minim|" \
              r"maxim|general|recogn|real|initial|synchron)is(e|ed|es|ing|ation)\b"
    assert not re.findall(british, prose_of(path))


@each_page
def test_nothing_is_left_to_be_filled_in(path):
    assert not re.findall(r"@[A-Z]+@|{{|TODO", text_of(path))


# ---- commands

def commands_of(path):
    """Every command of ours in a page, but those that were renamed: its words."""
    text = text_of(path).split("## Renamed")[0]
    for block in re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&", re.sub(r"\s+>\s.*", "", line)):
                words = shlex.split(part, comments=True)
                if words and re.search(r"python$|torchrun$", words[0]):
                    yield words
    for part in re.findall(r"`(python [^`]+\.py [^`]+|python -m [^`]+)`", text):
        yield shlex.split(part)


def parsed(words):
    """What the script or module makes of its words."""
    if words[0].endswith("torchrun"):
        words = ["python", *words[next(i for i, word in enumerate(words) if word[-3:] == ".py"):]]
    module, rest = words[1].removesuffix(".py"), words[2:]
    if words[1] == "-m":
        module, rest = words[2], words[3:]
    if module in (*NO_MODULES, "tests.mutants") or "NAME" in rest:
        return None
    script = importlib.import_module(module)
    if not hasattr(script, "Config"):  # data.toy, evaluation.ngram
        return None
    if module == "viewer.curves":
        return script.Config
    first = "data" if module == "experiments.recipe" else "command"
    if rest and module.startswith("experiments.") and not rest[0].startswith("-"):
        rest = [f"--{first}", *rest]
    return flags.parse(script.Config, rest)


@each_page
def test_every_command_of_a_page_is_understood(path, monkeypatch):
    """Each is parsed by its script: a flag or a value that is not known would end it."""
    if path.stem == "adding":
        add(monkeypatch, BLOCKS[0], METHODS, BLOCKS[1])
    monkeypatch.setattr(load, "flags_later", lambda values: LATER)  # the runs are not there
    for words in commands_of(path):
        try:
            if "--help" not in words:
                parsed(words)
        except SystemExit:
            pytest.fail(" ".join(words))


# ---- the examples of adding.md

BLOCKS = re.findall(r"^```python\n(.*?)^```", text_of(ROOT / "docs" / "adding.md"), re.M | re.S)


def add(monkeypatch, code, table, row):
    """What a reader does: write the file, and a row."""
    (name, where), = re.findall(r'"(\w+)": "([\w.:]+)"', row)
    module = ModuleType(where.partition(":")[0])
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(code, module.__dict__)
    monkeypatch.setitem(table, name, where)
    return name


def test_the_method_of_the_guide_is_tight_and_samples_the_language(monkeypatch):
    name = add(monkeypatch, *BLOCKS[:1], METHODS, BLOCKS[1])
    data = load_data("toy", 8)
    method = make_method(name, data.encoding.n_vocab, skip=0.2)
    exact = method.oracle(data.language)
    torch.manual_seed(0)
    bound, error = estimate_bound(method, exact, data.windows("val", 4000), 4, 1000)
    entropy, _ = data.language.entropy(8)
    assert error < 0.03 * entropy and abs(bound - entropy) < 4 * error
    x = generate(method, exact, 256, 8, 32)  # (n, 8)
    nats = -data.language.log_prob(x) / 8  # (n,)
    assert abs(nats.mean() - entropy) < 4 * nats.std() / 16 + 0.05
    config, _ = flags.parse(importlib.import_module("train").Config, ["--method", name])
    assert config.skip == 0.1


def test_the_sampler_of_the_guide_opens_the_last_masks_first(monkeypatch):
    name = add(monkeypatch, BLOCKS[2], SAMPLERS, BLOCKS[3])
    data = load_data("toy", 8)
    method = make_method("mdlm", data.encoding.n_vocab)
    sampler = make_sampler(name, method, at_least=1)
    z = method.prior((64, 8))  # (n, 8)
    states = [*method.sample(method.oracle(data.language), z, z != z, 8, sampler)]
    for step, z in enumerate(states, 1):
        assert ((z == method.process.mask).sum(-1) == 8 - step).all()
        assert (z[:, 8 - step:] != method.process.mask).all()
    nats, (entropy, _) = -data.language.log_prob(z) / 8, data.language.entropy(8)
    assert abs(nats.mean() - entropy) < 4 * nats.std() / 8 + 0.05
    with pytest.raises(flags.UserError, match="chooses among masks, which udlm does not have"):
        make_sampler(name, make_method("udlm", 9))


def test_the_data_set_of_the_guide_trains(monkeypatch):
    name = add(monkeypatch, BLOCKS[4], DATASETS, BLOCKS[5])
    data = load_data(name, 6)
    x = data.windows("val", 50)  # (n, 6)
    assert torch.equal(x, x.flip(-1)) and torch.equal(x, data.windows("val", 50))
    assert data.score(x)[0][1].mean() == 1
    train = importlib.import_module("train")
    config = flags.configure(train.Config, data=name)
    assert (config.block_size, config.recipe_iters) == (16, 500)
    with pytest.raises(flags.UserError, match="--block_size 8"):
        load_data(name, 7)
    from experiments.training import make_trainer
    trainer = make_trainer(data, data=name, block_size=6, n_layer=1, n_embd=8, n_head=2,
                           batch_size=4, max_iters=2, device="cpu", dtype="float32")
    assert train.train_step(trainer, 0).isfinite().all()


def test_the_flag_of_the_guide_is_a_flag():
    scope = {}
    exec("from dataclasses import dataclass\nfrom flags import flag\n@dataclass\nclass Config:\n"
         + BLOCKS[6], scope)
    assert flags.flags_of(scope["Config"])["warmth"].metadata["fixed"]
