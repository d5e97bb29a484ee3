"""The command line of all scripts: every way to write a flag, and what a mistake says."""
import subprocess
import sys
import time
from dataclasses import dataclass, fields
from pathlib import Path

import pytest

import evaluate
import sample
import train
from flags import flag, one_line_errors, parse

ROOT = Path(__file__).parent.parent
SCRIPTS = [train, sample, evaluate]


@dataclass
class Config:
    """A command line with one flag of each kind."""
    data: str = flag("python", "the text")
    max_iters: int = flag(2000, "steps", least=1, toy=600)
    top_p: float = flag(1.0, "share", least=0.001, most=1)
    method: str = flag("mdlm", "what", choices=["ar", "mdlm"])
    watch: bool = flag(False, "100 % live")


def complaint(argv, capsys, cls=Config):
    with pytest.raises(SystemExit) as end:
        parse(cls, argv)
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1 and "Traceback" not in error
    return error


@pytest.mark.parametrize("argv", [["--max_iters", "7"], ["--max_iters=7"], ["--max-iters", "7"], ["--max-iters=7"]])
def test_a_flag_may_be_written_with_dashes_or_underscores_and_with_or_without_an_equals_sign(argv):
    config, given = parse(Config, argv)
    assert config.max_iters == 7 and given == ["max_iters"]


@pytest.mark.parametrize("word, value", [
    ("--watch", True), ("--watch=True", True), ("--watch=yes", True), ("--watch=1", True),
    ("--no_watch", False), ("--no-watch", False), ("--watch=False", False)])
def test_a_boolean_is_set_and_cleared_in_every_usual_way(word, value):
    config, given = parse(Config, [word])
    assert config.watch is value and given == ["watch"]
    assert parse(Config, ["--watch", str(value)])[0].watch is value


def test_a_value_is_taken_as_it_is_even_with_dashes_and_equals_signs_in_it():
    assert parse(Config, ["--data=a-b=c--d"])[0].data == "a-b=c--d"
    assert parse(Config, ["--data", "a-b"])[0].data == "a-b"


def test_a_default_may_depend_on_the_data_and_a_given_value_wins():
    assert parse(Config, [])[0].max_iters == 2000
    assert parse(Config, ["--data", "toy"])[0].max_iters == 600
    assert parse(Config, ["--data", "toy", "--max_iters", "3"])[0].max_iters == 3


@pytest.mark.parametrize("argv, says", [
    (["--max_itres", "3"], "did you mean --max_iters?"),
    (["--max", "3"], "there is no flag --max"),                      # no silent prefixes
    (["config/gpt2.py"], "there is no flag config/gpt2.py"),
    (["--method", "mdml"], "did you mean mdlm?"),
    (["--method="], "is not one of ar, mdlm"),
    (["--max_iters=1.5"], "'1.5'"),
    (["--max_iters", "many"], "'many'"),
    (["--max_iters", "0"], "must be at least 1"),
    (["--max_iters=-3"], "must be at least 1"),
    (["--top_p", "1.1"], "must lie between 0.001 and 1"),
    (["--top_p", "nan"], "must lie between 0.001 and 1"),
    (["--watch=perhaps"], "neither True nor False"),
    (["--max_iters"], "expected one argument"),
])
def test_a_mistake_is_one_line_that_helps_and_exit_code_2(argv, says, capsys):
    assert says in complaint(argv, capsys)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_help_comes_within_two_seconds_and_shows_every_flag_with_its_default(script):
    began = time.time()
    done = subprocess.run([sys.executable, ROOT / f"{script.__name__}.py", "--help"], capture_output=True, text=True)
    assert time.time() - began < 2 and done.returncode == 0 and done.stderr == ""
    words = " ".join(done.stdout.split())
    assert " ".join(script.__doc__.split())[:200] in words
    for f in fields(script.Config):
        assert f"--{f.name}" in words and f"(default: {f.default!r}" in words


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_every_default_would_be_accepted_if_it_were_given(script):
    for f in fields(script.Config):
        assert getattr(parse(script.Config, [f"--{f.name}={f.default}"])[0], f.name) == f.default


@pytest.mark.parametrize("error, code, says", [
    (OSError(28, "No space left on device"), 2, "No space left on device"),
    (PermissionError(13, "Permission denied", "/x/y"), 2, "Permission denied: /x/y"),
    (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), 2, "lower --batch_size"),
    (KeyboardInterrupt(), 130, "interrupted"),
])
def test_what_the_user_can_mend_is_one_line_too(error, code, says, capsys):
    with pytest.raises(SystemExit) as end, one_line_errors():
        raise error
    text = capsys.readouterr().err
    assert end.value.code == code and says in text and text.count("\n") == 1


def test_our_own_faults_keep_their_traceback():
    with pytest.raises(ZeroDivisionError), one_line_errors():
        1 / 0
    with pytest.raises(RuntimeError, match="shape"), one_line_errors():
        raise RuntimeError("shape '[2]' is invalid")


def test_a_reader_that_has_seen_enough_is_no_error():
    """python sample.py | head -1"""
    code = "import flags, sys\nwith flags.one_line_errors():\n    for i in range(100000): print(i)"
    command = f"{sys.executable} -c '{code}' | head -1"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "0\n" and done.stderr == ""
