"""The command line of all scripts: every way to write a flag, and what a mistake says."""

import subprocess
import time
from dataclasses import dataclass

import pytest

import chat
import distill
import evaluate
import rl
import runs
import sample
import train
from flags import (
    OLD_FLAGS,
    UserError,
    change,
    configure,
    flag,
    flags_of,
    load_row,
    parse,
    restored,
)
from forks import forked
from methods import METHODS

SCRIPTS = [train, sample, evaluate, distill, rl, chat]


@dataclass
class Curved:
    """A row of a table, with flags, and other defaults of the script's flags."""

    bend: float = flag(0.5, "how much", least=0, most=1)
    inner: str = flag("mdlm", "a table of its own", table=METHODS)
    defaults = {"max_iters": 600}


@dataclass
class Straight:
    length: int = flag(3, "how long", least=1)


SHAPES = {
    "curved": "test_flags:Curved",
    "straight": "test_flags:Straight",
    "*.txt": "test_flags:Straight",
}


@dataclass
class Config:
    """A command line with one flag of each kind."""

    data: str = flag("python", "the text")
    shape: str = flag("straight", "a row of a table", table=SHAPES)
    max_iters: int = flag(2000, "steps", least=1, watch=700)
    top_p: float = flag(1.0, "share", least=0.001, most=1)
    method: str = flag("mdlm", "what", choices=["ar", "mdlm"])
    watch: bool = flag(False, "100 % live")


def complaint(argv, capsys, cls=Config):
    with pytest.raises(SystemExit) as end:
        parse(cls, argv)
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1 and "Traceback" not in error
    return error


@pytest.mark.parametrize(
    "argv", [["--max_iters", "7"], ["--max_iters=7"], ["--max-iters", "7"], ["--max-iters=7"]]
)
def test_a_flag_may_be_written_with_dashes_or_underscores_and_with_or_without_an_equals_sign(argv):
    config, given = parse(Config, argv)
    assert config.max_iters == 7 and given == ["max_iters"]


@pytest.mark.parametrize(
    "word, value",
    [
        ("--watch", True),
        ("--watch=True", True),
        ("--watch=yes", True),
        ("--watch=1", True),
        ("--no_watch", False),
        ("--no-watch", False),
        ("--watch=False", False),
    ],
)
def test_a_boolean_is_set_and_cleared_in_every_usual_way(word, value):
    config, given = parse(Config, [word])
    assert config.watch is value and given == ["watch"]
    assert parse(Config, ["--watch", str(value)])[0].watch is value


def test_a_value_is_taken_as_it_is_even_with_dashes_and_equals_signs_in_it():
    assert parse(Config, ["--data=a-b=c--d"])[0].data == "a-b=c--d"
    assert parse(Config, ["--data", "a-b"])[0].data == "a-b"


def test_a_default_may_depend_on_other_flags_and_a_given_value_wins():
    assert parse(Config, [])[0].max_iters == 2000
    assert parse(Config, ["--watch"])[0].max_iters == 700
    assert parse(Config, ["--shape", "curved"])[0].max_iters == 600
    assert parse(Config, ["--shape", "curved", "--max_iters", "3"])[0].max_iters == 3


# ---- flags of the row that a flag names


def test_the_flags_of_the_chosen_row_join_those_of_the_script():
    config, given = parse(Config, ["--shape", "curved", "--bend", "0.25"])
    assert config.bend == 0.25 and given == ["shape", "bend"] and not hasattr(config, "length")
    assert (
        parse(Config, ["--length=7"])[0].length == 7
        and parse(Config, ["--shape=a.txt"])[0].length == 3
    )


def test_a_row_may_name_another_row():
    config, _ = parse(Config, ["--shape", "curved", "--inner", "gidd", "--p_uniform", "0.3"])
    assert config.p_uniform == 0.3


@pytest.mark.parametrize(
    "argv, says",
    [
        (["--bend", "0.1"], "--bend belongs to --shape curved"),
        (["--shape", "curved", "--bend", "2"], "--bend 2.0 must lie between 0 and 1"),
        (
            ["--shape", "curvd"],
            "--shape 'curvd' is not one of curved, straight (did you mean curved?)",
        ),
        (["--shape", "curved", "--p_uniform", "0.3"], "there is no flag --p_uniform"),
    ],
)
def test_a_flag_of_another_row_is_refused_in_a_line_that_says_whose_it_is(argv, says, capsys):
    assert says in complaint(argv, capsys)


def test_help_has_a_group_for_the_script_and_one_for_the_row(capsys):
    with pytest.raises(SystemExit) as end:
        parse(Config, ["--shape", "curved", "--help"])
    shown = capsys.readouterr().out
    assert end.value.code == 0
    shown = shown[shown.index("General:") :]  # behind the usage
    assert shown.index("--top_p") < shown.index("--shape curved (") < shown.index("--bend")
    assert "--length" not in shown and "--inner mdlm (methods/mdlm.py)" in shown


def test_code_makes_the_same_flags_and_changes_them():
    config = configure(Config, shape="curved")
    assert (config.max_iters, config.bend) == (600, 0.5) and vars(config) == vars(
        parse(Config, ["--shape=curved"])[0]
    )
    other = change(config, shape="straight", top_p=0.5)
    assert (other.length, other.top_p, other.max_iters) == (3, 0.5, 600) and not hasattr(
        other, "bend"
    )


def test_what_a_checkpoint_remembers_comes_back_and_what_it_does_not_know_has_its_default():
    saved = {"shape": "curved", "bend": 0.75, "max_iters": 5, "gone": 1}
    config = restored(Config, saved, top_p=0.5)
    assert (config.bend, config.max_iters, config.top_p, config.watch) == (0.75, 5, 0.5, False)


def test_old_names_go_on_working_on_the_command_line_and_in_code():
    for old, new in OLD_FLAGS.items():
        script = next(script for script in SCRIPTS if new in flags_of(script.Config))
        f = flags_of(script.Config)[new]
        value = [*(f.metadata["choices"] or f.metadata["table"])][-1]
        assert getattr(parse(script.Config, [f"--{old}={value}"])[0], new) == value
        assert getattr(configure(script.Config, **{old: value}), new) == value


def test_a_row_that_is_not_there_is_a_user_error():
    with pytest.raises(UserError, match="did you mean mdlm"):
        load_row(METHODS, "mdml")


@pytest.mark.parametrize(
    "argv, says",
    [
        (["--max_itres", "3"], "did you mean --max_iters?"),
        (["--max", "3"], "there is no flag --max"),  # no silent prefixes
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
    ],
)
def test_a_mistake_is_one_line_that_helps_and_exit_code_2(argv, says, capsys):
    assert says in complaint(argv, capsys)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_help_comes_as_soon_as_torch_is_there_and_shows_every_flag_with_its_default(script):
    began = time.time()
    command = runs.script(script.__name__, "--help")
    done = subprocess.run(**forked(command), capture_output=True)
    assert time.time() - began < 30 and done.returncode == 0 and done.stderr == ""
    words = " ".join(done.stdout.split())
    assert " ".join(script.__doc__.split())[:200] in words
    for f in flags_of(script.Config).values():
        assert f"--{f.name}" in words and f"(default: {f.default!r}" in words


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_every_default_would_be_accepted_if_it_were_given(script):
    config, _ = parse(script.Config, [])
    for name, value in vars(config).items():
        assert getattr(parse(script.Config, [f"--{name}={value}"])[0], name) == value


# ---- numbers, lists, paths, and what is given twice


@dataclass
class Listed:
    """A command line of lists and paths."""

    data: str = flag("python", "a path", once="name a folder of both")
    sizes: str = flag("8", "numbers", each=int, least=1)
    rates: str = flag("", "numbers", each=float, least=0, most=1)
    names: str = flag("", "names", each=["ar", "mdlm"])
    runs: str = flag("", "paths", each=str)
    out_dir: str = flag("", "a path")
    prompt: str = flag("", "a text", text=True)
    steps: int = flag(3, "a number", least=1)
    lr: float = flag(0.1, "a number")
    watch: bool = flag(False, "whether")


@pytest.mark.parametrize(
    "words, says",
    [
        (["--steps", "1" + "0" * 21], "--steps 1" + "0" * 21 + " must be at most 1000000000"),
        (["--steps=-1"], "must be at least 1"),
        (["--lr=1e400"], "--lr inf must be at most 1e+38"),
        (["--lr=-1e39"], "must be at least -1e+38"),
        (["--lr=nan"], "--lr nan must be at least"),
        (["--lr="], "''"),
        (["--sizes=8,x"], "--sizes '8,x' must be whole numbers with commas between, such as 8,32"),
        (["--sizes="], "must be whole numbers with commas between"),
        (["--sizes=8,0"], "--sizes '8,0' has 0, which must be at least 1"),
        (["--sizes=1.5"], "must be whole numbers"),
        (["--rates=0.5,2"], "has 2, which must lie between 0 and 1"),
        (["--names=ar,mdml"], "has 'mdml', which is not one of ar, mdlm (did you mean mdlm?)"),
        (["--data=a\nb", "--what"], "there is no flag --what"),
    ],
)
def test_numbers_have_an_end_and_lists_are_checked_word_by_word(words, says, capsys):
    assert says in complaint(words, capsys, Listed)


def test_good_numbers_and_lists_are_taken_as_they_are():
    words = ["--sizes=8,32", "--rates=0.5,1", "--names=ar,mdlm", "--steps=1000000000", "--lr=1e30"]
    config, _ = parse(Listed, words)
    assert (config.sizes, config.rates, config.names) == ("8,32", "0.5,1", "ar,mdlm")
    assert config.steps == 10**9 and config.lr == 1e30
    assert vars(parse(Listed, [])[0]) == vars(Listed())


def test_a_tilde_that_the_shell_leaves_alone_is_the_home_folder_but_not_in_a_text(monkeypatch):
    """The name that is printed and saved is the one that is written to."""
    monkeypatch.setenv("HOME", "/home/ada")
    words = ["--out_dir=~/runs", "--runs=~/a,b,~/c", "--data", "~", "--prompt=~ and ~"]
    config, _ = parse(Listed, words)
    assert (config.out_dir, config.runs) == ("/home/ada/runs", "/home/ada/a,b,/home/ada/c")
    assert (config.data, config.prompt) == ("/home/ada", "~ and ~")
    assert parse(Listed, ["--out_dir=./~/a~b"])[0].out_dir == "./~/a~b"


@pytest.mark.parametrize(
    "script, name",
    [(train, "out_dir"), (train, "data"), (train, "init_from"), (sample, "html"), (sample, "png"),
     (sample, "classifier"), (evaluate, "judge"), (evaluate, "lambada"), (evaluate, "choices"),
     (distill, "teacher"), (rl, "start"), (chat, "out_dir")],
    ids=str,
)
def test_every_path_of_a_script_may_begin_with_a_tilde(script, name, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    assert getattr(parse(script.Config, [f"--{name}=~/x"])[0], name) == "/home/ada/x"


def test_of_a_flag_given_twice_the_last_one_counts_so_that_a_wrapper_can_append_its_own():
    config, given = parse(Listed, ["--steps=1", "--steps=2", "--watch", "--no_watch", "--out_dir=a",
                                   "--out_dir=b"])
    assert (config.steps, config.watch, config.out_dir) == (2, False, "b")
    assert given == ["steps", "watch", "out_dir"]


@pytest.mark.parametrize(
    "words, says",
    [
        (["--data=a", "--data=b"], "--data is given twice, as 'a' and 'b': name a folder of both"),
        (["--runs", "a", "--runs", "b"], "--runs is given twice, as 'a' and 'b': give all in one"),
        (["--sizes=8", "--sizes=9"], "give all in one, with commas between"),
    ],
)
def test_two_texts_or_two_lists_are_refused_because_a_user_may_believe_that_both_are_read(
    words, says, capsys
):
    assert says in complaint(words, capsys, Listed)
    same = [words[0]] if "=" in words[0] else words[:2]
    parse(Listed, same * 2)  # the same value twice is no mistake


def test_training_on_two_texts_says_how_to_read_both(capsys):
    error = complaint(["--data", "a.txt", "--data", "b.txt"], capsys, train.Config)
    assert "a folder of text files is read as one text" in error
