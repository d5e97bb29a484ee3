"""Several processes learn what one does, with copies and with shards of the network, and leave the
same checkpoint."""

import json
import os
import subprocess

import pytest
import torch

from checkpoints.load import load_model, read_state
from forks import forked
from methods import METHODS
from runs import ROOT, TINY, cache, elsewhere, fit, metrics, python  # noqa: F401

EACH_METHOD = (
    [*METHODS] if "PALIMPSEST_SLOW" in os.environ else ["genmd4", "classifier"]
)
EACH = dict(TINY, gradient_accumulation_steps=2, log_interval=1, eval_interval=2)
LONG = dict(
    TINY,
    method="udlm",
    dropout=0.1,
    gradient_accumulation_steps=4,
    grad_clip=0.5,
    max_iters=4,
    log_interval=1,
    eval_interval=4,
    lr_schedule="constant",
    optimizer="adamw",
)
MUON = dict(optimizer="muon", grad_clip=0, max_iters=2)
NOW = ["max_iters", "shard"]  # given on the command line when a run goes on


def run(name, given=(), **flags):
    return {**LONG, **flags, "out_dir": name}, list(given)


def runs_on(flags, given=NOW):
    return run("many", given, **flags, init_from="resume")


GROUPS = [
    (4, [run("many", shard=True, max_iters=1)]),
    (
        2,
        [({**EACH, "method": method, "out_dir": method}, []) for method in EACH_METHOD]
        + [
            run("2"),
            run("2-shards", shard=True),
            run("2-muon", **MUON),
            run("2-shards-muon", **MUON, shard=True),
            runs_on(dict(max_iters=2, shard=False)),
            runs_on(dict(max_iters=3, shard=True)),
        ],
    ),
    (1, [run("1"), runs_on(dict(max_iters=4, shard=False))]),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, cache):
    """Where all of these have run."""
    path, env = tmp_path_factory.mktemp("machines"), {**os.environ, "PALIMPSEST_CACHE": str(cache)}
    command = python(ROOT / "tests" / "processes.py", json.dumps(GROUPS), **env)
    done = subprocess.run(**forked(command), cwd=path, capture_output=True, timeout=600)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return path


def distance(a, b):
    """Of two checkpoints: the largest of any two numbers in weights, averages and memories, whose
    names must agree."""
    flat = lambda state: torch.utils._pytree.tree_flatten(
        [
            dict(state["model"]),
            dict(state["ema"]),
            [memory["state"] for memory in state["optimizers"]],
        ]
    )
    (a, names), (b, others) = flat(a), flat(b)
    assert names == others
    assert all(
        type(x) is type(y) is torch.Tensor and x.shape == y.shape and x.device.type == "cpu"
        for x, y in zip(a, b)
    )
    return max((x.double() - y.double()).abs().max().item() for x, y in zip(a, b))


@pytest.mark.parametrize("method", EACH_METHOD)
def test_two_processes_learn_each_method_as_one_does(method, folder):
    fit("one", method=method, gradient_accumulation_steps=2, log_interval=1)
    one, two = metrics("one"), metrics(folder / method)
    assert list(two) == [1, 2] and [*two.values()] == pytest.approx([*one.values()], abs=1e-5)


@pytest.mark.parametrize("name", ["2", "2-shards"])
def test_copies_and_shards_end_where_one_process_does(name, folder):
    assert distance(read_state(folder / "1"), read_state(folder / name)) < 1e-5
    assert metrics(folder / name) == pytest.approx(metrics(folder / "1"), abs=1e-5)


def test_muon_moves_shards_as_it_moves_whole_matrices(folder):
    """Against copies in as many processes, and without clipping, whose norm is summed in another
    order: where the last bit of a gradient differs, it may round to another bfloat16, and all
    steps from there on go elsewhere."""
    assert distance(read_state(folder / "2-muon"), read_state(folder / "2-shards-muon")) < 1e-5


def test_a_run_goes_on_with_any_number_of_processes_in_shards_or_copies(folder):
    """4 in shards, 2 copies, 2 in shards, 1: one step each."""
    assert distance(read_state(folder / "1"), read_state(folder / "many")) < 1e-5
    assert metrics(folder / "many") == pytest.approx(metrics(folder / "1"), abs=1e-5)


def test_what_shards_leave_is_a_checkpoint_like_any_other(folder):
    state, other = (read_state(folder / name) for name in ("2-shards-muon", "2-muon"))
    for ours, theirs in zip(state["optimizers"], other["optimizers"]):
        assert [group["params"] for group in ours["param_groups"]] == [
            g["params"] for g in theirs["param_groups"]
        ]
    model = load_model(folder / "2-shards-muon")
    assert model.step == 2 and model.denoiser(torch.zeros(1, 8, dtype=torch.long)).shape[:2] == (
        1,
        8,
    )
