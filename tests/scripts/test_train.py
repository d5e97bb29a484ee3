"""train.py takes a few steps with every value of every flag: a new flag is covered by itself.

Whole runs are in test_train_runs.py, the time of a run in tests/runtime/test_start.py.
"""
import contextlib
import os
from pathlib import Path

import pytest
import torch
from kinds import first_with, scripts_differ
from models import random_checkpoint

import train
from flags import UserError, configure, flags_of, load_row
from methods import METHODS, make_method
from runs import TINY, cache, elsewhere, fit, in_memory, late_reports  # noqa: F401

pytestmark = pytest.mark.usefixtures("in_memory")
SHORT = {**TINY, "block_size": 4, "max_iters": 2, "muon_dtype": "float32"}
SLOW = pytest.mark.skipif("PALIMPSEST_SLOW" not in os.environ,
                          reason="the compiler takes a minute: set PALIMPSEST_SLOW=1")


def noises():
    """A method for each process that a classifier can read."""
    there = set()
    for name in METHODS:
        with contextlib.suppress(UserError):
            if not load_row(METHODS, name).classifies:
                process = type(make_method("classifier", 8, noise_of=name).process)
                if process not in there:
                    yield name
                there.add(process)


# The values of a flag, where its choices or its range do not give any, or give slow ones.
VALUES = dict(
    n_embd=[4, 20], n_layer=[1, 2], block_size=[1, 8], batch_size=[1, 3], max_iters=[1, 2],
    vocab_size=[100, 110],
    tokenizer=["auto", "chars", "bytes", "bpe"], device=["cpu", "auto"], attention=["auto", "sdpa"],
    grad_clip=[0.0, 0.01], diffusion_block=[1, 2, 4], clip=["", "0.45,0.95", "0,1", "1,1"],
    n_start=[1, 3], rounds=[1, 6], diffusion_steps=[1, 6, 100_000], embedding=["one", "two"],
    ar=["", "an-ar"], masked=["", "one"], noise_of=list(noises()), levels=[1, 50],
    mask_rate=[0.0, 0.5], positions=[0, 16], spindle=[0.0, 0.2], block_sizes=["", "2,4"],
    size_weights=["1,0,0", "0,0,1"], dim=[2, 5], latents=[1, 3], bins=[2, 5],
    rows_from=["", "a-run"])

# Other flags that must be given, so that a flag has an effect.
BESIDE = dict(
    tokenizer=dict(data="poem.txt", vocab_size=100), vocab_size=dict(data="poem.txt",
                                                                   tokenizer="bpe"),
    label_dropout=dict(labels=True), power=dict(mask_schedule="polynomial"),
    decoder_share=dict(n_layer=2), head=dict(source="uniform"),
    clip_search=dict(eval_interval=1, learning_rate=0.1),
    embedding=dict(transition="nearest", diffusion_steps=6),
    transition=dict(embedding="one", diffusion_steps=6),
    tau=dict(curriculum=1.0), top_k=dict(curriculum=1.0, tau=0.1),
    coupled=dict(data="multiplication-thoughts", block_size=20), scheduled=dict(max_iters=6),
    sides=dict(data="add", block_size=13),
    table=dict(data="poem.txt", tokenizer="chars"), spread=dict(token_clock="line"),
    muon_dtype=dict(max_iters=3), reinforce=dict(max_iters=3),
    slope=dict(times="path"), path=dict(times="path"), anneal=dict(max_iters=6, learning_rate=0.1),
    context_dropout=dict(max_iters=8, learning_rate=0.1, autoencoder=0.1, sentence=2))

# Flags that change nothing of what is learned, and those that may, by the machine.
SILENT = ("minutes recipe_iters eval_interval eval_iters log_interval recompute token_order "
          "n_orders context_guidance dfm-bound blockgen-diffusion_block bound_steps").split()
HARDWARE = ("device matmul_precision attention").split()

# Flags with tests of their own: which.
APART = {"data": "test_train_runs", "method": "below", "out_dir": "all", "init_from": "test_resume",
         "noise_from": "test_gradients_runs", "compile": "below",
         "shard": "test_distributed", "sft": "test_train_runs",
         "tensorboard": "test_logs"}


def values(f):
    """The values of a flag that are tried: VALUES, its choices, or the ends of its range."""
    (least, most), choices = f.metadata["range"], f.metadata["choices"]
    if f.name in VALUES or choices:
        return VALUES.get(f.name, choices)
    if f.type is bool:
        return [False, True]
    assert f.type in (int, float), f"give two values of --{f.name} in VALUES, or say where it is"
    if most < float("inf"):
        return [f.type(least), f.type(most)]
    return [f.type(least), f.type(least + 1)]


PLAIN = {}  # method: what `learn` returns where all flags have their defaults


def learn(**flags):
    """A short run, made once for the defaults. -> its flags, its steps, its weights (n,)"""
    name, plain = flags["method"], {**SHORT, "method": flags["method"]}
    if configure(train.Config, **flags) != configure(train.Config, **plain):
        name = None
    if name not in PLAIN:
        state = fit("out", **flags)
        weights = [a.double().flatten() for part in ("model", "ema") for a in state[part].values()]
        PLAIN[name] = state["config"], state["step"], torch.cat(weights)  # (n,)
    return PLAIN[name] if name else PLAIN.pop(name)


def try_values(f, method, tried):
    """Short runs, each with another value. -> what they learned, as bytes"""
    Path("poem.txt").write_text("".join(f"{n} green bottles on the wall.\n" for n in range(200)))
    known = flags_of(configure(train.Config, method=method)).keys()
    others = dict(one=dict(n_embd=16), two=dict(n_embd=8), **{"an-ar": dict(method="ar"),
                  "a-run": dict(n_embd=16)})
    for name, flags in others.items() if {"embedding", "masked", "rows_from"} & known else ():
        random_checkpoint(name, **flags)
    beside = {name: value for name, value in BESIDE.get(f.name, {}).items() if name in known}
    for value in tried:
        config, step, weights = learn(**{**SHORT, "method": method, **beside, f.name: value})
        kept = config[f.name]
        assert kept == value or value == "auto" and "dtype" in f.name, (value, kept)
        assert step == config["max_iters"], value
        assert weights.isfinite().all(), value
        yield weights.numpy().tobytes()


@pytest.mark.parametrize("name", [name for name in flags_of(train.Config) if name not in APART])
def test_every_value_of_every_flag_trains_and_the_flag_reaches_the_run(name):
    """By a method that reads the time, so that all parts of the network are there."""
    f = flags_of(train.Config)[name]
    learned = set(try_values(f, "udlm", values(f)))
    if name not in HARDWARE:
        assert (len(learned) == 1) == (name in SILENT)


@pytest.mark.parametrize("method, name", [
    (method, name) for method in METHODS for name in flags_of(load_row(METHODS, method))
    if name not in APART and first_with(method, name) == method])
def test_every_value_of_every_flag_of_every_method_trains_and_matters(method, name):
    """By the first method that has it. Two values of those that a method inherits are trained in
    tests/theory/test_methods.py."""
    f = flags_of(load_row(METHODS, method))[name]
    learned = set(try_values(f, method, values(f)))
    assert (len(learned) == 1) == bool({name, f"{method}-{name}"} & {*SILENT})


def test_what_is_said_about_flags_is_about_flags_that_there_are():
    known = {*flags_of(train.Config)}.union(*(flags_of(load_row(METHODS, m)) for m in METHODS))
    silent = {name.rpartition("-")[2] for name in SILENT}
    assert known >= {*VALUES, *BESIDE, *silent, *HARDWARE, *APART}


# ---- together

@pytest.mark.parametrize("method", scripts_differ(METHODS, also=["pgm"]))
@pytest.mark.parametrize("flags", [
    dict(optimizer="adamw", dtype="bfloat16", qk_norm=False, norm_bias=True, n_layer=2),
    dict(dropout=0.5, grad_clip=0.0, gradient_accumulation_steps=3, ema=0.0, min_lr=0.1,
         weight_decay=0.0, labels=True, batch_size=1)], ids=["choices", "numbers"])
def test_every_method_trains_under_other_flags_of_the_script(method, flags):
    state = fit("out", method=method, **flags)
    assert state["step"] == 2 and all(a.isfinite().all() for a in state["ema"].values())


TOGETHER = [("mdlm", dict(weighting="bound", optimizer="adamw", dtype="bfloat16")),
            ("gidd", dict(weighting="bound", optimizer="adamw", dtype="bfloat16")),
            ("duo", dict(curriculum=1.0, tau=0.0, top_k=0)),
            ("duo", dict(curriculum=1.0, top_k=1, dtype="bfloat16")),
            ("duo", dict(curriculum=1.0, top_k=3, dtype="bfloat16")),
            ("duo", dict(curriculum=1.0, top_k=0, dtype="bfloat16")),
            ("bd3lm", dict(clip="0,1", weighting="bound")),
            ("bd3lm", dict(clip_search=True, diffusion_block=1, weighting="bound")),
            ("bd3lm", dict(clip_search=True, eval_interval=1, dtype="bfloat16", dropout=0.2)),
            ("d3pm", dict(transition="uniform", dtype="bfloat16", aux=1.0, diffusion_steps=6)),
            ("d3pm", dict(transition="gaussian", aux=0.0, diffusion_steps=1)),
            ("sedd", dict(transition="uniform", noise_schedule="geometric", dtype="bfloat16",
                          dropout=0.2)),
            ("pgm", dict(weighting="simple", optimizer="adamw", qk_norm=False)),
            ("pgm", dict(n_layer=3, decoder_share=0.3, dtype="bfloat16", dropout=0.3)),
            ("pgm", dict(n_layer=2, gradient_accumulation_steps=2, batch_size=1)),
            ("classifier", dict(noise_of="gidd", p_uniform=0.3))]


@pytest.mark.parametrize("method, flags", TOGETHER, ids=str)
def test_flags_of_methods_train_together(method, flags):
    state = fit("out", method=method, **flags)
    assert state["step"] == 2 and all(a.isfinite().all() for a in state["ema"].values())
    assert flags.items() <= state["config"].items()


@SLOW
@pytest.mark.parametrize("method", METHODS)
def test_a_compiled_run_is_the_same_but_for_rounding(method):
    compiled, plain = fit("a", method=method, compile="default"), fit("b", method=method)
    torch.testing.assert_close(compiled["model"], plain["model"], rtol=1e-3, atol=1e-4)
