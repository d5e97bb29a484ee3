"""One function picks the precision of matrix products, and a run keeps what it picked."""
import ast
import os
import subprocess
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import chat
import sample
import train
from checkpoints.file import Folder
from checkpoints.load import read_state
from flags import UserError, configure, flags_of
from kinds import networks, scripts_differ
from methods import METHODS
from runs import ROOT, TINY, assert_same, cache, elsewhere, fit  # noqa: F401
from runtime import device as module
from runtime.device import GAIN, device_of, dtype_of, fastest_dtype, seconds_per_product
from tree import CODE

CPU = torch.device("cpu")
SECONDS = {"float32": {torch.float32: 1.0, torch.bfloat16: 10.0},
           "bfloat16": {torch.float32: 1.0, torch.bfloat16: 0.5}}


@pytest.fixture(autouse=True)
def fresh_cache():
    """What one test finds to be faster is forgotten in the next."""
    fastest_dtype.cache_clear()
    yield
    fastest_dtype.cache_clear()


@pytest.fixture
def faster(monkeypatch):
    """faster(dtype): from now on, this is the precision that the timing finds to be faster."""
    def set_seconds(dtype):
        monkeypatch.setattr(module, "seconds_per_product",
                            lambda asked, device: SECONDS[dtype][asked])
        fastest_dtype.cache_clear()
    return set_seconds


class Dtypes(TorchDispatchMode):
    """The types of all floating-point tensors that operations read, and of those of products."""

    def __init__(self):
        super().__init__()
        self.read, self.products = set(), set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [a for a in torch.utils._pytree.tree_leaves((args, kwargs)) if torch.is_tensor(a)]
        found = {a.dtype for a in tensors if a.is_floating_point()}
        self.read |= found
        if func.__name__.split(".")[0] in ("mm", "bmm", "addmm", "baddbmm"):
            self.products |= found
        return func(*args, **(kwargs or {}))


# ---- the choice

@pytest.mark.parametrize("share, dtype", [(0.1, "bfloat16"), (GAIN - 0.01, "bfloat16"),
                                          (GAIN + 0.01, "float32"), (1.0, "float32"),
                                          (10.0, "float32")])
def test_bfloat16_is_taken_only_where_it_saves_much_time(share, dtype, monkeypatch):
    asked = []

    def seconds(which, device):
        asked.append(which)
        return share if which == torch.bfloat16 else 1.0
    monkeypatch.setattr(module, "seconds_per_product", seconds)
    assert [fastest_dtype(CPU) for _ in range(3)] == [dtype] * 3
    assert len(asked) == 2  # each is timed once in a process
    assert dtype_of("auto", CPU) == dtype
    assert [dtype_of(name, CPU) for name in SECONDS] == [*SECONDS]


def test_the_time_of_a_product_is_measured_on_this_processor():
    times = {n: min(seconds_per_product(torch.float32, CPU, (1, n, 512)) for _ in range(3))
             for n in (16, 512)}
    assert 0 < times[16] < times[512] < 1


@pytest.mark.parametrize("capability, dtype", [((7, 5), "float32"), ((8, 0), "bfloat16"),
                                               ((9, 0), "bfloat16")])
def test_gpus_that_only_emulate_bfloat16_take_float32(capability, dtype, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert dtype_of("auto", torch.device("cuda:1")) == dtype
    assert dtype_of("auto", torch.device("mps")) == "float32"


def test_no_other_file_looks_at_what_the_hardware_can_multiply():
    looks = {"get_device_capability", "is_bf16_supported", "get_cpu_capability",
             "seconds_per_product", "fastest_dtype"}
    found = set()
    for file, path in CODE.items():
        text = path.read_text("utf-8")
        if not file.startswith(("experiments/", "exercises/")) and any(map(text.count, looks)):
            names = {node.attr if isinstance(node, ast.Attribute) else node.id
                     for node in ast.walk(ast.parse(text))
                     if isinstance(node, (ast.Attribute, ast.Name))}
            found |= {file} if names & looks else set()
    assert found == {"runtime/device.py"}


def test_threads_that_wait_soon_sleep_unless_the_user_says_otherwise():
    """OpenMP reads both variables when torch loads."""
    code = "import flags, os, sys; print(*map(os.environ.get, ['OMP_WAIT_POLICY', " \
        "'GOMP_SPINCOUNT']), 'torch' in sys.modules)"
    ours = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    for given, spins in (({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7")):
        run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={**ours, **given},
                             capture_output=True, text=True)
        assert run.stdout == f"PASSIVE {spins} False\n", run.stderr


# ---- runs

def start(**flags):
    flags = {**TINY, "dtype": "auto", "muon_dtype": "auto", "out_dir": "out", **flags}
    return train.Run(configure(train.Config, **flags))


@pytest.mark.parametrize("method", scripts_differ(METHODS, by=networks))
def test_where_float32_is_faster_a_step_never_reads_a_bfloat16_number(method, faster):
    faster("float32")
    assert configure(train.Config).optimizer == "muon"
    with start(method=method) as run, Dtypes() as seen:
        train.train_step(run.trainer, 0)
    assert torch.bfloat16 not in seen.read and torch.float32 in seen.products


def test_where_float32_is_faster_a_whole_run_never_reads_a_bfloat16_number(faster):
    """Evaluation and samples included."""
    faster("float32")
    with Dtypes() as seen:
        fit("out", dtype="auto", muon_dtype="auto")
    assert torch.bfloat16 not in seen.read and torch.float32 in seen.products


@pytest.mark.parametrize("flags, network, muon", [
    (dict(), True, True), (dict(dtype="float32"), False, True),
    (dict(muon_dtype="float32"), True, False)], ids=str)
def test_where_bfloat16_is_faster_the_network_and_muon_multiply_in_it(flags, network, muon, faster):
    faster("bfloat16")
    with start(**flags) as run:
        trainer, (x, *_) = run.trainer, run.trainer.batch(0)  # x (B, L)
        with Dtypes() as seen, trainer.autocast():
            loss = trainer.objective.loss(trainer.denoiser, x)  # (B, L)
        assert (torch.bfloat16 in seen.products) == network
        loss.mean().backward()
        with Dtypes() as seen:
            trainer.step_optimizers(0)
        assert seen.products == {torch.bfloat16 if muon else torch.float32}


@pytest.mark.parametrize("script", [sample, chat], ids=["sample", "chat"])
def test_scripts_that_write_text_round_only_if_asked(script):
    f = flags_of(script.Config)["dtype"]
    assert f.default == "float32" and "auto" in f.metadata["choices"]


def test_sampling_with_auto_takes_the_faster_precision(faster):
    fit("out")
    for dtype in SECONDS:
        faster(dtype)
        with Dtypes() as seen:
            sample.main(configure(sample.Config, out_dir="out", steps=2, device="cpu",
                                  dtype="auto"), [])
        assert (torch.bfloat16 in seen.products) == (dtype == "bfloat16")


@pytest.mark.parametrize("dtype, other", [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_a_resumed_run_has_the_precision_of_its_beginning(dtype, other, faster):
    """Bit by bit, whatever the timing finds then; what is given on the command line wins."""
    flags = dict(dtype="auto", muon_dtype="auto", lr_schedule="constant")
    faster(dtype)
    whole = fit("whole", **flags, max_iters=4)
    fit("parts", **flags)
    faster(other)
    parts = fit("parts", init_from="resume", max_iters=4)
    for state in (whole, parts):
        assert (state["config"]["dtype"], state["config"]["muon_dtype"]) == (dtype, dtype)
    assert_same(whole, parts)
    config = fit("parts", init_from="resume", max_iters=5, dtype="auto")["config"]
    assert (config["dtype"], config["muon_dtype"]) == (other, dtype)


def test_an_older_run_goes_on_in_the_precision_that_muon_had_then(faster):
    """It was always bfloat16, and there was no flag."""
    faster("float32")
    state = fit("out")
    del state["config"]["muon_dtype"]
    Folder("out", ours=True).save(state)
    assert read_state("out")["config"]["muon_dtype"] == "bfloat16"
    assert fit("out", init_from="resume", max_iters=3)["config"]["muon_dtype"] == "bfloat16"


# ---- the device

def test_a_device_without_float64_is_refused_and_auto_never_takes_one(monkeypatch):
    zeros = torch.zeros

    def on_apples(*shape, dtype=None, device=None):
        if device == "mps" and dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return zeros(*shape, dtype=dtype)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "zeros", on_apples)
        patch.setattr(torch.backends.mps, "is_available", lambda: True)
        patch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(UserError, match="mps has no float64, which exact draws need: --device"):
            device_of("mps")
        assert device_of("auto").type == "cpu"
