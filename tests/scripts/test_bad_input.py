"""Whatever a user can get wrong is told in one line on stderr that says what to do, exit code 2.

What is wrong for sampling and evaluation alone is in test_sample.py and test_evaluate.py.
"""
import os
import sys
from pathlib import Path

import pytest
import torch
from kinds import first_with
from models import random_checkpoint

import chat
import distill
import evaluate
import rl
import sample
import train
from checkpoints.file import Folder
from checkpoints.load import read_state
from data.tokenizer import byte_level, to_json
from flags import configure, flags_of, load_row
from methods import METHODS
from runs import TINY, cache, complaint, elsewhere, fit, tiny  # noqa: F401

SCRIPTS = [train, sample, evaluate, distill, rl, chat]


@pytest.fixture(scope="module")
def random_runs(tmp_path_factory):
    """folder(method): a run of the method on the toy language, with random weights."""
    root = tmp_path_factory.mktemp("runs")
    return lambda name: (root / name if (root / name).exists() else
                         random_checkpoint(root / name, method=name))


@pytest.fixture(scope="module")
def short_runs(tmp_path_factory):
    """folder(method): a run after a step, as far as what refuses to go on reads of one."""
    root = tmp_path_factory.mktemp("short")

    def run_once(method):
        if not (root / method).exists():
            state = read_state(random_checkpoint(root / method, 1, **{**TINY, "method": method}))
            torch.save({**state, "optimizers": [{}]}, root / method / "ckpt.pt")
            (root / method / "metrics.jsonl").write_text('{"step": 1, "loss": 4.0}\n')
        return root / method
    return run_once


# ---- checkpoints

class Bomb:
    """What a malicious checkpoint holds: unpickling it would run this."""
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def damage(kind, good):
    """Write out/ckpt.pt with something wrong, made from the state of a good one."""
    path, state = Path("out/ckpt.pt"), read_state(good)
    path.parent.mkdir()
    with_flags = lambda **flags: {**state, "config": {**state["config"], **flags}}
    if kind in ("truncated", "empty"):
        raw = (good / "ckpt.pt").read_bytes()
        path.write_bytes(raw[:len(raw) * 9 // 10] if kind == "truncated" else b"")
    elif kind == "text":
        path.write_text("no checkpoint at all\n")
    elif kind == "zip":
        path.write_bytes(b"PK\x05\x06" + bytes(18))  # an empty archive
    elif kind == "legacy":
        torch.save({**state, "step": Bomb()}, path, _use_new_zipfile_serialization=False)
    else:
        torch.save({
            "pickle": {**state, "step": Bomb()}, "list": [1, 2, 3],
            "foreign": {"model": state["model"], "iter_num": 7},
            "half": {name: state[name] for name in ("format", "step", "config")},
            "tokens": {**state, "encoding": to_json(byte_level())},
            "garbled tokens": {**state, "encoding": "[]"},
            "method": with_flags(method="telepathy"), "shape": with_flags(n_embd="wide"),
            "flag": with_flags(weighting="none")}[kind], path)


@pytest.mark.parametrize("kind, says", [
    ("truncated", "cut short"), ("empty", "cut short"), ("text", "not written by torch.save"),
    ("zip", "cannot be read"), ("pickle", "could run code"), ("legacy", "cannot be read"),
    ("foreign", "not a checkpoint of this code"), ("list", "not a checkpoint of this code"),
    ("half", "not a checkpoint of this code"), ("tokens", "do not fit each other"),
    ("garbled tokens", "do not fit each other"), ("method", "telepathy"),
    ("shape", "do not fit each other")])
def test_a_bad_checkpoint_is_refused_in_one_line_and_its_code_never_runs(kind, says, short_runs,
                                                                         capsys):
    """By each script: one reader serves them all, but train.py has more to ask of what it reads."""
    damage(kind, short_runs("mdlm"))
    others = SCRIPTS[2:] if kind in ("truncated", "pickle", "method", "shape") else []
    for module in (train, sample, *others):
        refuses(module, says, capsys)


def refuses(module, says, capsys):
    words = {train: ["--out_dir", "out", "--init_from=resume", "--max_iters=30"],
             distill: ["--teacher", "out"],
             rl: ["--start", "out"]}.get(module, ["--out_dir", "out"])
    error = complaint(module, *words, capsys=capsys)
    assert says in error and "out" in error
    assert not Path("exploded").exists()


# ---- flags

@pytest.mark.parametrize("words, says", [
    (["--data", "nothing.txt"], "there is no data 'nothing.txt'"),
    (["--data", "tpy"], "did you mean 'toy'"),
    (["--data", "empty.txt"], "holds no text"),
    (["--data", "short.txt", "--tokenizer", "chars"], "fewer than one block of 64"),
    (["--data", "latin1.txt"], "--tokenizer bytes"),
    (["--data", "poem.txt", "--tokenizer", "gpt-2"], "did you mean 'gpt2'"),
    (["--data", "poem.txt", "--vocab_size", "20"], "--vocab_size"),
    (["--data", "toy", "--tokenizer", "model"], "name it with --init_from"),
    (["--data", "toy", "--sft"], "--sft learns answers to questions, and toy has none"),
    (["--data", "toy", "--method", "pgm", "--clock", "sigma"], "--time_input sigma"),
    (["--data", "toy", "--method", "md4", "--time_input", "sigma"], "--time_input sigma"),
    (["--shard"], "continue with --no_shard"),
    (["--method", "sedd", "--compile", "reduce-overhead"], "holds steps of one shape"),
    (["--method", "mdml"], "did you mean mdlm?"),
    (["--batch_size=1.5"], "1.5"),
    (["--n_head", "3"], "--n_embd 128 must be --n_head 3 times an even number"),
    (["--method", "gidd", "--p_uniform", "1"], "between"),
    (["--method", "duo", "--curriculum", "1.5"], "between"),
    (["--method", "duo", "--tau=-0.1"], "between"),
    (["--method", "duo", "--top_k=-1"], "at least 0"),
    (["--data", "toy", "--method", "duo", "--top_k", "113"],
     "--top_k 113 must be less than the 113 symbols"),
    (["--data", "toy", "--method", "bd3lm", "--diffusion_block", "3"],
     "--block_size 32 must be a multiple of --diffusion_block 3"),
    (["--data", "toy", "--method", "bd3lm", "--clip", "half"], "--clip half must be two rates"),
    (["--data", "toy", "--method", "d3pm", "--transition", "nearest"],
     "--transition nearest needs --embedding FOLDER"),
    (["--data", "toy", "--method", "d3pm", "--transition", "nearest", "--embedding", "nowhere"],
     "there is no checkpoint nowhere"),
    (["--data", "names", "--method", "d3pm", "--transition", "nearest", "--embedding", "OTHER"],
     "has other tokens than names"),
    (["--data", "toy", "--method", "d3pm", "--transition", "gaussian", "--diffusion_steps",
      "100000"], "fewer --diffusion_steps"),
    (["--method", "d3pm", "--diffusion_steps", "0"], "must lie between 1 and 100000"),
    (["--method", "d3pm", "--aux=-1"], "at least 0"),
    (["--method", "d3pm", "--transition", "gausian"], "did you mean gaussian?"),
    (["--method", "sedd", "--transition", "gaussian"], "--transition 'gaussian' is not one of"),
    (["--data", "toy", "--method", "classifier", "--noise_of", "bd3lm"],
     "no classifier can guide bd3lm"),
    (["--data", "toy", "--method", "classifier", "--noise_of", "classifier"], "--noise_of"),
    (["--data", "toy", "--method", "classifier", "--no_labels"], "labels"),
    (["--data", "toy", "--method", "classifier", "--label_dropout", "0.5"], "--label_dropout"),
    (["--device", "cuda:99"], "there is no device 'cuda:99'"),
    (["--device", "gpu"], "--device cpu always works"),
    (["--init_from", "resume"], "there is no checkpoint out/python-mdlm/ckpt.pt: train one first"),
    (["--data", "toy", "--out_dir", "poem.txt"], "cannot write to poem.txt"),
    (["--data", "toy", "--out_dir", "/proc/nowhere"], "cannot write to /proc/nowhere"),
])
def test_what_cannot_be_trained_is_one_line_and_leaves_nothing(words, says, random_runs, capsys):
    Path("empty.txt").write_text("")
    Path("short.txt").write_text("To be, or not to be")
    Path("latin1.txt").write_bytes("Übermut tut selten gut. ".encode("latin-1") * 99)
    Path("poem.txt").write_text("a rose is a rose is a rose\n" * 99)
    words = [str(random_runs("mdlm")) if word == "OTHER" else word for word in words]
    assert says in complaint(train, *words, capsys=capsys)
    assert not Path("out").exists()


OWN = {name: {*flags_of(load_row(METHODS, name))} for name in METHODS}


@pytest.mark.parametrize("name", sorted(set().union(*OWN.values())))
def test_a_flag_of_another_method_is_refused_in_a_line_that_says_whose_it_is(name, capsys):
    owners = [method for method in METHODS if name in OWN[method]]
    other = next(method for method in METHODS if name not in OWN[method])
    error = complaint(train, "--method", other, f"--{name}", "1", capsys=capsys)
    assert f"--{name} belongs to --method {', '.join(owners)}" in error


# ---- a run that goes on

def other_value(f, value):
    """A value of a flag that the run does not have."""
    if f.metadata["choices"] or f.metadata["table"]:
        return next(v for v in f.metadata["choices"] or f.metadata["table"] if v and v != value)
    if f.type is bool:
        return not value
    if f.metadata["each"] is int:
        return "2,4"
    if f.type is float:
        least, _ = f.metadata["range"]
        return value / 2 if value / 2 > max(0, least) else value + 0.5
    return value + 2 if f.type is int else "another"


FIXED = [(method, name) for method in METHODS
         for name, f in flags_of(configure(train.Config, method=method)).items()
         if f.metadata["fixed"] and (name in OWN[method] and first_with(method, name) == method
                                     or method == "mdlm")]


@pytest.mark.parametrize("method, name", FIXED)
def test_a_resumed_run_cannot_change_what_is_fixed(method, name, short_runs, capsys):
    config = configure(train.Config, **{**TINY, "method": method})
    value, folder = other_value(flags_of(config)[name], getattr(config, name)), short_runs(method)
    words = ["--init_from", "resume", "--out_dir", folder, "--method", method, f"--{name}={value}"]
    before = Path(folder, "metrics.jsonl").read_bytes()
    error = complaint(train, *words, capsys=capsys)
    assert f"--{name} {value} does not fit the run in {folder}, which has" in error
    if name not in ("data", "method"):
        assert f"which has {getattr(config, name)}: leave the flag out" in error
    assert Path(folder, "metrics.jsonl").read_bytes() == before


def test_a_text_that_has_changed_since_cannot_be_resumed(monkeypatch, capsys):
    Path("poem.txt").write_text("a rose is a rose is a rose\n" * 99)
    fit("out", data="poem.txt", tokenizer="chars")
    before = Path("out/metrics.jsonl").read_bytes()
    again = ["--out_dir", "out", "--init_from", "resume"]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert "pip install tensorboard" in complaint(train, *again, "--tensorboard", capsys=capsys)
    Path("poem.txt").write_text("a tulip is a tulip\n" * 99)
    error = complaint(train, *again, capsys=capsys)
    assert "poem.txt is not the text that out was trained on" in error and "--data" in error
    assert Path("out/metrics.jsonl").read_bytes() == before  # a refused run changes nothing


def test_an_exported_model_is_a_start_but_no_run(random_runs, capsys):
    error = complaint(train, "--init_from", "resume", "--out_dir", random_runs("mdlm"),
                      capsys=capsys)
    assert "is an exported model" in error and "start from it with --init_from" in error


def test_two_runs_cannot_write_to_one_folder(capsys):
    held = Folder("out")
    error = complaint(train, *tiny(out_dir="out"), capsys=capsys)
    assert "another run is writing to out: wait for it, or choose another --out_dir" in error
    held.lock.release()
    fit("out")


# ---- distillation

@pytest.mark.parametrize("method", [name for name in METHODS
                                    if not load_row(METHODS, name).distilled_by])
def test_methods_that_cannot_be_distilled_say_so(method, random_runs, capsys):
    error = complaint(distill, "--teacher", random_runs(method), "--device", "cpu", capsys=capsys)
    assert f"is {method}, which no --method of distill.py can distill" in error


# ---- sampling, from checkpoints

@pytest.mark.parametrize("words, says", [
    (["--sampler", "confidence", "--out_dir", "AR"], "ar, which takes steps of its own"),
    (["--sampler", "psi", "--out_dir", "AR"], "ar, which takes steps of its own"),
    (["--tail", "greedy", "--out_dir", "AR"], "--corrector greedy"),
    (["--sampler", "first-hitting", "--out_dir", "UDLM"], "--sampler first-hitting"),
    (["--sampler", "confidence", "--oracle", "gidd"], "--sampler confidence"),
    (["--sampler", "semi-ar", "--out_dir", "BD3LM"], "--sampler semi-ar"),
    (["--window", "6", "--out_dir", "BD3LM"], "--window 6 must be a multiple"),
    (["--length", "10", "--out_dir", "BD3LM"], "whole number of blocks of 4: make it 12 with"),
    (["--tail", "greedy", "--out_dir", "BD3LM"], "--corrector greedy"),
    (["--tail", "greedy"], "--corrector greedy"),
    (["--oracle", "sedd", "--sampler", "psi"], "take ancestral or analytic or euler"),
    (["--oracle", "d3pm", "--sampler", "euler"], "d3pm, which takes steps of its own"),
    (["--oracle", "udlm", "--sampler", "euler"], "ratios of probabilities, which udlm does not"),
    (["--oracle", "d3pm", "--tail", "greedy"], "--corrector greedy")])
def test_a_sampler_that_does_not_fit_the_model_is_one_line(words, says, random_runs, capsys):
    words = [random_runs(w.lower()) if w in ("AR", "UDLM", "BD3LM") else w for w in words]
    model = [] if "--oracle" in words else ["--out_dir", random_runs("mdlm")]
    assert says in complaint(sample, *model, *words, capsys=capsys)
