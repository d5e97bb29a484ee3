"""What only a GPU can show: kernels, compiled steps, bfloat16, waiting, NCCL. docs/kernels.md lists
what of this has never run on one. Triton's own kernels have their tests beside this file, which run
on a GPU where there is one."""
import subprocess
import sys
import time

import pytest
import torch
import torch.nn.functional as F

import kernels
from data import load_data
from diffusion import draw_from, probabilities
from experiments import speed
from experiments.training import make_trainer
from experiments.workloads import RandomTokens, Size
from flags import configure
from methods import make_method
from methods.base import cross_entropy
from methods.bd3lm import block_diffusion_mask
from model import attention, causal, dense_mask
from runs import ROOT, TINY, metrics
from runtime.compile import CompiledDenoiser
from runtime.memory import free_memory
from samplers.generate import generate
from train import train_step
from world import surprise

DEVICE = torch.device("cuda")
N_GPUS = torch.cuda.device_count()
pytestmark = pytest.mark.skipif(N_GPUS == 0, reason="needs a GPU")
TOY = {**TINY, "max_iters": 6, "device": DEVICE.type}
SIZE = Size(2, 4, 64, n_tokens=300, length=64, batch=8, dtype="bfloat16", device="cuda")


def trainer_of(method="mdlm", size=SIZE, **flags):
    flags = dict(dtype=size.dtype, muon_dtype=size.dtype, max_iters=20, warmup_iters=2, **flags)
    return make_trainer(RandomTokens(size), method=method, device=DEVICE.type,
                        batch_size=size.batch, block_size=size.length, n_layer=size.n_layer,
                        n_head=size.n_head, n_embd=size.n_embd, **flags)


def losses(trainer, steps):
    return torch.stack([train_step(trainer, step)[0] for step in steps]).tolist()


# ---- attention

@pytest.mark.parametrize("backend", ["flex", "triton"])
@pytest.mark.parametrize("dtype, error", [(torch.float32, 2e-3), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("pattern", ["causal", "block diffusion"])
def test_attention_of_each_backend_is_that_of_a_dense_mask(backend, dtype, error, pattern,
                                                           monkeypatch):
    """Values and gradients, against float64."""
    if backend == "triton" and kernels.flash_attention is None:
        pytest.skip("needs Triton")
    monkeypatch.setattr(kernels, "attention_backend", backend)
    torch.manual_seed(0)
    mask_mod = causal if pattern == "causal" else block_diffusion_mask(128, 16)
    inputs = [torch.randn(2, 2, 256, 64, device=DEVICE, dtype=torch.float64) for _ in range(4)]
    results = []
    for form, kind in ((lambda *qkv: attention(*qkv, mask_mod), dtype),
                       (lambda q, k, v: F.scaled_dot_product_attention(
                           q, k, v, dense_mask(mask_mod, q, k)), torch.float64)):
        q, k, v, g = (a.to(kind).requires_grad_() for a in inputs)  # (B, H, L, d) each
        y = form(q, k, v)  # (B, H, L, d)
        y.backward(g.detach())
        results.append([a.double() for a in (y.detach(), q.grad, k.grad, v.grad)])
    for ours, exact in zip(*results):
        assert (ours - exact).abs().max() < error * exact.abs().max()


# ---- head, loss and draw

@pytest.mark.parametrize("half", [False, True])
def test_head_and_loss_in_chunks_are_the_plain_ones(half, monkeypatch):
    chunks = lambda n, V, *_: [slice(i, i + 100) for i in range(0, max(1, n), 100)]
    monkeypatch.setattr(kernels, "row_chunks", chunks)
    torch.manual_seed(0)
    h, w, b = (torch.randn(*shape, device=DEVICE) / 8 for shape in ((250, 64), (999, 64), (999,)))
    x, results = torch.randint(998, (250,), device=DEVICE), []  # (N,)
    for form, its in ((kernels.FAST["cross_entropy"], {}),
                      (kernels.head_loss_plain, dict(rule=cross_entropy))):
        inputs = [a.clone().requires_grad_() for a in (h, w, b)]
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=half):
            nats = form(*inputs, **its, n_tokens=998, facts=(x,))  # (N,)
        nats.sum().backward()
        results.append([nats.detach().float(), *(a.grad for a in inputs)])
    for ours, plain in zip(*results):
        assert (ours - plain).abs().max() < (0.03 if half else 2e-3) * plain.abs().max()


def test_draws_have_the_distribution():
    """40,000 draws of 300 symbols, from the kernel where Triton can build it."""
    torch.manual_seed(0)
    row, w, b = (torch.randn(*shape, device=DEVICE) for shape in ((1, 16), (301, 16), (301,)))
    h = row.expand(40_000, -1).contiguous()  # (n, D)
    ids, p = kernels.sample_head(h, w, b, probabilities, draw_from, 300, temperature=1.0)
    expected = probabilities((row.double() @ w.double().T + b)[:, :300])[0]  # (300,)
    assert surprise(ids.cpu(), expected.cpu()) < 4.5
    torch.testing.assert_close(p, expected[ids], rtol=2e-2, atol=1e-7)


# ---- steps

@pytest.mark.parametrize("method, recurrent", [
    ("mdlm", 0), ("mdlm", 1), ("udlm", 0), ("ar", 0), ("bd3lm", 0), ("pgm", 0)])
def test_a_step_in_bfloat16_follows_float32_and_learns(method, recurrent):
    """Random words: the loss falls to log 300 at best, from what random weights make of them."""
    low = losses(trainer_of(method, recurrent=recurrent), range(20))
    single = Size(**{**vars(SIZE), "dtype": "float32"})
    full = losses(trainer_of(method, single, recurrent=recurrent), range(20))
    assert low == pytest.approx(full, rel=0.05)
    assert all(loss == loss for loss in low) and min(low[1:]) < 1.2 * low[0]


@pytest.mark.parametrize("mode", ["default", "reduce-overhead", "max-autotune"])
def test_a_compiled_step_has_the_losses_of_a_plain_one(mode):
    """With CUDA graphs, two micro-batches also test that gradients are not overwritten."""
    flags = dict(gradient_accumulation_steps=2, grad_clip=0.5)
    plain, fast = trainer_of(**flags), trainer_of(compile=mode, **flags)
    assert losses(fast, range(4)) == pytest.approx(losses(plain, range(4)), rel=0.02)


@pytest.mark.parametrize("method", ["mdlm", "ar", "bd3lm"])
def test_a_step_never_waits_for_the_gpu(method):
    trainer = trainer_of(method)
    losses(trainer, range(3))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        train_step(trainer, 3)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_run_goes_on_from_what_it_saved():
    """Sums of a GPU have no fixed order, so up to rounding."""
    whole, part, again = (make_trainer(load_data("toy", 8), **TOY) for _ in range(3))
    wanted = losses(whole, range(6))
    losses(part, range(3))
    again.load(part.state(3))
    assert losses(again, range(3, 6)) == pytest.approx(wanted[3:], rel=0.02)


def test_batches_come_through_pinned_memory_and_memory_is_known():
    trainer = trainer_of()
    x, _, _ = trainer.draw_batch(0)
    assert x.is_pinned() and trainer.batch(0)[0].is_cuda
    assert 0 < free_memory(DEVICE) <= torch.cuda.get_device_properties(0).total_memory


# ---- samples

@pytest.mark.parametrize("compiled", ["", "default", "reduce-overhead"])
@pytest.mark.parametrize("name", ["mdlm", "udlm", "ar", "bd3lm", "pgm"])
def test_samplers_keep_given_words_and_draw_words(name, compiled):
    method = make_method(name, 50, **dict(diffusion_block=8) if name == "bd3lm" else {})
    network = method.network(method.vocab_size, 2, 2, 32, mask_mod=method.mask_mod,
                             cond_dim=16 if method.uses_time else 0).to(DEVICE).eval()
    denoiser = CompiledDenoiser(network, compiled) if compiled else network
    given = torch.randint(50, (4, 32), device=DEVICE)  # (B, L)
    frozen = torch.arange(32, device=DEVICE).expand(4, -1) < 5  # (B, L)
    x = generate(method, denoiser, 4, 32, 8, device=DEVICE, given=given * frozen, frozen=frozen)
    assert torch.equal(x[frozen], given[frozen]) and x.min() >= 0 and x.max() < 50


# ---- several GPUs, and the measurements

@pytest.mark.skipif(N_GPUS < 2, reason="needs two GPUs")
@pytest.mark.parametrize("shard", [[], ["--shard"]], ids=["copies", "shards"])
def test_two_gpus_learn_as_one_does(shard, tmp_path):
    """Through NCCL, by torchrun."""
    def losses_of(n, name, *more):
        flags = {**TOY, "gradient_accumulation_steps": 2, "log_interval": 1, "out_dir": name}
        words = [word for key, value in flags.items() for word in (f"--{key}", str(value))]
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
                   "--nproc_per_node", str(n), str(ROOT / "train.py"), *words, *more]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True)
        assert done.returncode == 0, done.stderr
        return metrics(tmp_path / name)
    assert losses_of(2, "two", *shard) == pytest.approx(losses_of(1, "one"), rel=0.01)


def test_the_measurements_run_within_their_time(tmp_path, capsys):
    began = time.monotonic()
    speed.main(configure(speed.Config, command="gpu", tiny=True, rounds=1, minutes=3,
                         out_dir=str(tmp_path)))
    assert "training step" in capsys.readouterr().out and time.monotonic() - began < 300
