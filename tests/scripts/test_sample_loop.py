"""The loop of sample.py: batches, texts numbered in order, and what stays if it is stopped."""
import json
import signal
import subprocess
import time

import pytest

import sample
from flags import configure
from forks import forked
from methods import make_method
from models import random_checkpoint
from runs import cache, elsewhere, script  # noqa: F401
from samplers import first_sampler, model_name


def lines(capsys, **flags):
    flags = {**dict(oracle="mdlm", steps=3, json=True, device="cpu"), **flags}
    sample.main(configure(sample.Config, **flags), [])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_texts_come_by_number_in_batches_and_the_last_one_may_be_smaller(capsys):
    texts = lines(capsys, num_samples=5, batch_size=2)
    assert [text["number"] for text in texts] == [1, 2, 3, 4, 5]
    assert {text["batch_size"] for text in texts} == {2}
    assert len({text["text"] for text in texts}) == 5
    assert all(text["network_calls"] <= 3 for text in texts)
    sample.main(configure(sample.Config, oracle="mdlm", steps=3, batch_size=2, device="cpu"), [])
    out, err = capsys.readouterr()
    assert out.splitlines()[::2] == [f"-------- text {n}" for n in (1, 2, 3)]
    assert "3 x 32 tokens, 2 at a time, mdlm, spread: " in err


def test_a_seed_and_a_batch_size_fix_the_texts_whatever_their_number(capsys):
    ids = lambda **flags: [text["ids"] for text in lines(capsys, **flags)]
    assert ids(num_samples=6, batch_size=2) == ids(num_samples=8, batch_size=2)[:6]
    assert ids(num_samples=3, batch_size=1)[2:] == ids(num_samples=4, batch_size=1)[2:3]
    assert ids(num_samples=2, batch_size=2) != ids(num_samples=2, batch_size=2, seed=2)


@pytest.mark.parametrize("oracle, sampler, ids", [
    ("mdlm", "ancestral", [0, 8, 27, 83, 108, 112, 11, 34]),
    ("udlm", "ancestral", [0, 17, 42, 0, 73, 65, 112, 1]),
    ("ar", "ancestral", [3, 46, 92, 110, 112, 4, 19, 27]),
    ("bd3lm", "ancestral", [3, 27, 83, 96, 0, 13, 106, 112]),
    ("sedd", "ancestral", [0, 15, 32, 69, 0, 0, 53, 112]),
    ("d3pm", "ancestral", [0, 8, 27, 83, 108, 112, 11, 34]),
    ("mdlm", "semi-ar", [0, 31, 86, 69, 0, 58, 95, 0]),
    ("gidd", "psi", [6, 19, 43, 85, 96, 1, 98, 112])])
def test_a_seed_gives_the_same_texts_as_in_earlier_versions(oracle, sampler, ids, capsys):
    """The first words of one text in 4 steps, as the code wrote it before it moved to this tree."""
    text, = lines(capsys, oracle=oracle, sampler=sampler, steps=4, num_samples=1)
    assert text["ids"][:8] == ids


def test_ctrl_c_leaves_the_texts_that_are_written(tmp_path):
    """Many to a file, stopped after the third: whole lines, numbered from 1."""
    command = script("sample", "--oracle", "mdlm", "--num_samples", 100_000, "--batch_size", 1,
                     "--steps", 2, "--json")
    path = tmp_path / "texts.jsonl"
    with open(path, "w") as file:
        process = subprocess.Popen(**forked(command), stdout=file, stderr=subprocess.PIPE)
        while path.read_text().count("\n") < 3 and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        error = process.communicate()[1]
    texts = path.read_text()
    assert process.returncode == 130 and error == "sample.py: interrupted\n"
    assert texts.endswith("\n")
    numbers = [json.loads(line)["number"] for line in texts.splitlines()]
    assert numbers == [*range(1, texts.count("\n") + 1)]


def test_matrix_products_may_be_in_bfloat16(capsys):
    flags = dict(oracle="", out_dir=str(random_checkpoint("out")), num_samples=2, steps=1)
    low, full = lines(capsys, dtype="bfloat16", **flags), lines(capsys, **flags)
    assert len(low) == len(full) == 2
    assert (low[0]["dtype"], full[0]["dtype"]) == ("bfloat16", "float32")


def test_every_line_names_its_model(capsys):
    texts = lines(capsys, num_samples=2, html="out.html", beside="udlm")
    assert [line["model"] for line in texts] == ["oracle mdlm"] * 2 + ["oracle udlm"] * 2
    random_checkpoint("out", method="udlm")
    assert {line["model"] for line in lines(capsys, oracle="", out_dir="out")} == {"out"}
    published = configure(sample.Config, init_from="s-sahoo/duo")
    assert model_name(published) == "s-sahoo/duo"


@pytest.mark.parametrize("flags, sampler, steps", [
    (dict(oracle="mdlm"), "spread", 16), (dict(oracle="mdlm", prompt="the dog"), "spread", 16),
    (dict(oracle="mdlm", steps=5), "spread", 5), (dict(oracle="udlm"), "ancestral", 128),
    (dict(oracle="mdlm", sampler="first-hitting"), "first-hitting", 128),
    (dict(oracle="bd3lm"), "ancestral", 128), (dict(oracle="pgm"), "spread", 16),
    (dict(oracle="bd3lm", sampler="spread"), "spread", 4), (dict(oracle="ar"), "ancestral", 128)])
def test_a_method_has_its_sampler_and_the_sampler_its_steps(flags, sampler, steps, capsys):
    """Under masks: the one that loses least, two words in a step. What is given stays."""
    text, = lines(capsys, **{"steps": 0, **flags}, num_samples=1)
    assert (text["sampler"], text["steps"]) == (sampler, steps)


def test_a_classifier_guides_steps_that_it_knows():
    config = configure(sample.Config, oracle="mdlm", classifier="exact", label="farm")
    assert first_sampler(config, make_method("mdlm", 5)) == "ancestral"
