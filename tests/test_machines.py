"""Several processes learn what one does, with copies and with shards of the network, and leave the same checkpoint."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import TINY, assert_same, cache, complaint, elsewhere, fit, metrics, tiny  # noqa: F401

import checkpoint
import train

METHODS = train.Config.__dataclass_fields__["method"].metadata["choices"]
FLAGS = dict(TINY, gradient_accumulation_steps=4, log_interval=1, eval_interval=1, max_iters=4, grad_clip=0.5)
SHARDED = dict(method="udlm", n_layer=2, dropout=0.1)
JOBS = {}                                                    # name -> processes, flags, given


def job(name, world, given=(), **flags):
    JOBS[name] = JOBS.get(name, []) + [(world, {**FLAGS, **flags, "out_dir": name}, list(given))]


for method in METHODS:
    job(method, 2, method=method, max_iters=2, gradient_accumulation_steps=2, eval_interval=2)
for optimizer in ("adamw", "muon"):
    job(f"1-{optimizer}", 1, **SHARDED, optimizer=optimizer)
    job(f"2-{optimizer}", 2, **SHARDED, optimizer=optimizer)
    job(f"2-shards-{optimizer}", 2, **SHARDED, optimizer=optimizer, shard=True)
    job(f"4-shards-{optimizer}", 4, **SHARDED, optimizer=optimizer, shard=True)
job("many", 4, **SHARDED, optimizer="adamw", shard=True, max_iters=1)
job("many", 2, ["max_iters", "shard"], **SHARDED, optimizer="adamw", init_from="resume", max_iters=2, shard=False)
job("many", 2, ["max_iters", "shard"], **SHARDED, optimizer="adamw", init_from="resume", max_iters=3, shard=True)
job("many", 1, ["max_iters", "shard"], **SHARDED, optimizer="adamw", init_from="resume", max_iters=4, shard=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, cache):
    """Where all jobs have run."""
    path, jobs = tmp_path_factory.mktemp("machines"), [part for parts in JOBS.values() for part in parts]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PALIMPSEST_CACHE": str(cache)}
    words = [sys.executable, Path(__file__).parent / "processes.py", json.dumps(jobs)]
    done = subprocess.run(words, cwd=path, env=env, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return path


def differences(a, b):
    """The largest distance of two checkpoints' weights, averages and memories; their keys and shapes must agree."""
    flat = lambda state: torch.utils._pytree.tree_flatten([state[part] for part in ("model", "ema", "optimizers")])
    (a, shape), (b, other) = flat(a), flat(b)
    assert shape == other
    pairs = [(x, y) for x, y in zip(a, b) if torch.is_tensor(x)]
    assert all(type(x) is type(y) is torch.Tensor and x.shape == y.shape and x.device.type == "cpu" for x, y in pairs)
    return max((x.double() - y.double()).abs().max().item() for x, y in pairs)


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_learn_each_method_as_one_does(method, folder):
    fit("one", method=method, gradient_accumulation_steps=2, log_interval=1)
    one, two = metrics("one"), metrics(folder / method)
    assert list(two) == [1, 2] and [*two.values()] == pytest.approx([*one.values()], abs=1e-5)


@pytest.mark.parametrize("name", ["2", "2-shards", "4-shards"])
def test_copies_and_shards_end_where_one_process_does(name, folder):
    one, other = (checkpoint.load(folder / f"{which}-adamw") for which in ("1", name))
    assert differences(one, other) < 1e-5
    assert [*metrics(folder / f"{name}-adamw").values()] == pytest.approx(
        [*metrics(folder / "1-adamw").values()], abs=1e-5)


def test_muon_moves_shards_as_it_moves_whole_matrices(folder):
    """In bfloat16 a gradient that differs by its last bit may round the other way: hence from the same two halves."""
    copies, shards = (checkpoint.load(folder / name) for name in ("2-muon", "2-shards-muon"))
    print(differences(copies, shards))
    assert differences(copies, shards) < 1e-5


def test_a_run_goes_on_with_any_number_of_processes_in_shards_or_copies(folder):
    assert differences(checkpoint.load(folder / "1-adamw"), checkpoint.load(folder / "many")) < 1e-5
    assert metrics(folder / "many") == pytest.approx(metrics(folder / "1-adamw"), abs=1e-5)
    restored = checkpoint.restore(folder / "4-shards-muon")
    assert restored.step == 4 and restored.denoiser(torch.zeros(1, 8, dtype=torch.long)).shape[:2] == (1, 8)
