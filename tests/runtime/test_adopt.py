"""A run that starts from another one of ours has its network, method and length without being told
again; and what a run says about its time, and when it was finished before."""
import pytest
import torch

import train
from checkpoints.load import read_state
from flags import configure
from runs import (  # noqa: F401
    TINY,
    cache,
    commanded,
    complaint,
    elsewhere,
    fit,
)
from runtime import progress, run
from runtime.run import Run, slow_steps, time_left

FEW = {name: TINY[name] for name in ("data", "batch_size", "max_iters", "eval_iters",
                                     "warmup_iters", "device", "dtype", "muon_dtype")}


def start(where, out_dir, *words, **flags):
    """train.py with the flags of a run that says nothing of the network."""
    few = [f"--{name}={value}" for name, value in {**FEW, **flags}.items()]
    config, given = commanded(train, *few, f"--init_from={where}", f"--out_dir={out_dir}", *words)
    train.main(config, given)
    return read_state(out_dir)["config"]


@pytest.mark.parametrize("method, flags", [
    ("mdlm", {}), ("udlm", {}), ("gidd", dict(p_uniform=0.3)), ("bd3lm", dict(diffusion_block=4)),
    ("mdlm", dict(labels=True))])
def test_network_method_and_length_of_a_run_need_not_be_given_again(method, flags):
    first = fit("first", method=method, n_layer=3, **flags)["config"]
    second = start("first", "second")
    for name in ("n_layer", "n_head", "n_embd", "cond_dim", "block_size", "method", "time_input",
                 *flags):
        assert second[name] == first[name], name


def test_another_method_that_has_the_same_network_may_be_given_and_keeps_its_sizes():
    fit("first", n_embd=32)
    second = start("first", "second", "--method=bd3lm", "--diffusion_block=2", "--block_size=4")
    assert (second["method"], second["n_embd"], second["block_size"]) == ("bd3lm", 32, 4)
    assert second["diffusion_block"] == 2


@pytest.mark.parametrize("word, says", [
    ("--n_layer=2", "it has --n_layer 1, not 2"), ("--n_embd=32", "it has --n_embd 16, not 32"),
    ("--method=udlm", "a network of mdlm, and udlm needs another")])
def test_what_is_given_and_contradicts_the_run_is_refused(word, says, capsys):
    fit("first")
    few = [f"--{name}={value}" for name, value in FEW.items()]
    assert says in complaint(train, *few, "--init_from=first", "--out_dir=o", word, capsys=capsys)


def test_a_run_on_the_same_text_keeps_its_tokens_and_one_on_another_is_told_how(tmp_path, capsys):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(f"the old dog sees a cat . {name} " * 60)
    fit("first", data="a.txt", tokenizer="chars")
    assert start("first", "second", data="a.txt")["tokenizer"] == "chars"
    few = [f"--{name}={value}" for name, value in {**FEW, "data": "b.txt"}.items()]
    error = complaint(train, *few, "--init_from=first", "--out_dir=o", capsys=capsys)
    assert "--tokenizer model keeps its own" in error


# ---- what a run says about its time

def test_a_run_that_was_finished_says_so_and_measures_nothing_again(monkeypatch, capsys):
    fit("out", max_iters=3)
    monkeypatch.setattr(run.progress, "print_evaluation", lambda *args: pytest.fail("measured"))
    capsys.readouterr()
    fit("out", init_from="resume")
    assert capsys.readouterr().out.endswith("finished at step 3; --max_iters N goes on\n")


def test_where_no_bar_is_shown_lines_say_how_much_time_is_left(monkeypatch, capsys):
    clock = iter(range(0, 10**6, 100))
    monkeypatch.setattr(run.time, "time", lambda: float(next(clock)))
    fit("out", max_iters=4, log_interval=1)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")
             and "loss" in line]
    assert len(lines) == 4 and all("min left" in line for line in lines[1:-1]), lines
    assert "left" not in lines[0] + lines[-1]  # the first step warms up


@pytest.mark.parametrize("seconds, done, left, words", [
    (60.0, 10, 270, ", about 27 min left"), (10.0, 10, 30, ", about 30 s left"), (9.0, 3, 0, ""),
    (3.0, 1, 9, "")])
def test_the_time_left_is_that_of_the_steps_so_far(seconds, done, left, words):
    assert time_left(seconds, done, left) == words


def test_slow_steps_on_a_cpu_point_to_the_threads_once():
    assert slow_steps(1.0, 10) == "" and slow_steps(60.0, 2) == ""
    assert f"a step takes 5.0 s on {torch.get_num_threads()} thread" in slow_steps(50.0, 10)
    assert "OMP_NUM_THREADS=1" in slow_steps(50.0, 10)


def test_the_commands_at_the_end_of_a_run_stand_on_lines_of_their_own(tmp_path, monkeypatch,
                                                                      capsys):
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(progress, "SUMMARY_TEXTS", 10)
    monkeypatch.setattr(progress, "ngram_baselines", lambda data: [])
    config = configure(train.Config, **TINY, out_dir="out")
    with Run(config, list(TINY)) as one:
        train.train(one)
    assert capsys.readouterr().out.endswith("\npython sample.py --out_dir out\n"
                                            "python evaluate.py --out_dir out\n")
