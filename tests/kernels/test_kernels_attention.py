"""Backends of attention: which call goes where, FlexAttention, and that the files are optional."""
import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

import kernels
import train
from exercises.student_copy import project_modules
from flags import configure
from methods.bd3lm import block_diffusion_mask
from methods.pgm import Partition
from model import Transformer, attention, block_causal, causal, rotary_angles
from runs import TINY, cache, complaint, elsewhere, tiny  # noqa: F401

BLOCKS = block_diffusion_mask(64, 4)
CPU = torch.device("cpu")


def backend_of(mask_mod, Lq=128, Lk=128, cuda=True, dtype=torch.bfloat16, head_size=64, dropout=0.0,
               first=0, grad=True):
    q, v = (SimpleNamespace(shape=(2, 4, L, head_size), is_cuda=cuda, dtype=dtype)
            for L in (Lq, Lk))
    with torch.set_grad_enabled(grad):
        return kernels.choose_attention(q, v, mask_mod, dropout, first, causal)


def test_auto_uses_flex_only_for_training_on_a_gpu_with_a_pattern_that_sdpa_lacks():
    assert backend_of(None) == backend_of(causal) == "sdpa"
    assert backend_of(BLOCKS) == "flex"
    assert backend_of(causal, 128, 256, first=128) == "flex"  # sdpa has no such offset
    assert backend_of(BLOCKS, cuda=False) == backend_of(BLOCKS, grad=False) == "sdpa"
    assert backend_of(BLOCKS, dropout=0.1) == "sdpa"
    assert backend_of(lambda b, h, query, key: query != key) == "sdpa"  # new in each call
    assert backend_of(block_causal(4, 64), 4, 128, first=124) == "sdpa"  # too few new tokens
    assert backend_of(BLOCKS, head_size=16) == "flex"
    assert backend_of(BLOCKS, head_size=8) == "sdpa"  # too small for flex


def test_triton_serves_what_it_supports_and_sdpa_the_rest(monkeypatch):
    dtypes = torch.float16, torch.float32, torch.bfloat16
    flash = SimpleNamespace(INTERPRET=False, HEAD_SIZES=range(16, 129, 2), DTYPES=dtypes)
    monkeypatch.setattr(kernels, "flash_attention", flash)
    monkeypatch.setattr(kernels, "attention_backend", "triton")
    for mask_mod in (None, causal, BLOCKS):
        assert backend_of(mask_mod, grad=True) == backend_of(mask_mod, grad=False) == "triton"
    for why in (dict(cuda=False), dict(dtype=torch.float64), dict(head_size=256),
                dict(dropout=0.1), dict(Lq=1)):
        assert backend_of(BLOCKS, **why) == "sdpa", why


def test_sdpa_and_flex_are_used_where_they_are_set(monkeypatch):
    monkeypatch.setattr(kernels, "attention_backend", "sdpa")
    assert backend_of(BLOCKS) == backend_of(causal) == "sdpa"
    monkeypatch.setattr(kernels, "attention_backend", "flex")
    assert backend_of(BLOCKS) == backend_of(causal) == backend_of(BLOCKS, grad=False) == "flex"
    assert backend_of(None) == backend_of(BLOCKS, dropout=0.1) == "sdpa"
    assert backend_of(BLOCKS, head_size=8) == "sdpa"


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("mask_mod, Lq, Lk, first", [
    (causal, 40, 40, 0), (block_diffusion_mask(20, 4), 40, 40, 0),
    (block_causal(4, 12), 20, 52, 32),
    (lambda b, h, query, key: (query - key).abs() <= 3 + 5 * h + 9 * b, 40, 40, 0)])
def test_flex_is_the_plain_form(mask_mod, Lq, Lk, first, monkeypatch):
    monkeypatch.setattr(kernels, "attention_backend", "flex")
    monkeypatch.setattr(kernels, "compiled_flex", lambda: flex_attention)
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, L, 16) for L in (Lq, Lk, Lk))  # (B, H, L, hd) each
    cos, sin = rotary_angles(torch.arange(Lk), 16)  # (Lk, hd/2) each
    rotary = cos[first:first + Lq], sin[first:first + Lq], cos, sin
    ours, plain = (by(q, k, v, mask_mod, 0.0, first, rotary)
                   for by in (attention, attention.__wrapped__))
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-4)


def test_flex_has_block_masks_for_each_text_or_head_that_has_its_own_pattern():
    tiles = lambda mask_mod: kernels.flex_tiles(mask_mod, 2, 3, 256, 256, CPU)[1].shape[:2]
    assert tiles(causal) == (1, 1)
    assert tiles(lambda b, h, query, key: query // 128 == (key // 128 + h) % 2) == (1, 3)
    assert tiles(lambda b, h, query, key: query // 128 == (key // 128 + b) % 2) == (2, 1)


def by_sdpa(monkeypatch, net, *inputs, **options):
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "attention_backend", "sdpa")
        return net(*inputs, **options)


def test_a_compiled_network_holds_its_block_mask_as_a_constant(monkeypatch):
    monkeypatch.setattr(kernels, "attention_backend", "flex")
    net = Transformer(11, n_layer=1, n_head=1, n_embd=16, cond_dim=0).requires_grad_(False)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    z = torch.randint(11, (2, 24))  # (B, L)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch._dynamo.utils.counters.clear()
    for z, n in ((z, 12), (z, 12), (z[:, :16], 8)):  # another length is another graph
        plain = by_sdpa(monkeypatch, net, z, mask_mod=block_diffusion_mask(n, 4))
        logits = compiled(z, mask_mod=block_diffusion_mask(n, 4))
        torch.testing.assert_close(logits, plain, atol=1e-5, rtol=1e-4)
        if n == 12:  # the same pattern is the same object
            assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_a_compiled_graph_holds_no_pattern_that_is_created_inside_it(monkeypatch):
    monkeypatch.setattr(kernels, "attention_backend", "flex")
    net = Partition(11, n_layer=2, n_head=1, n_embd=16, cond_dim=0).requires_grad_(False)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    z, group = torch.randint(10, (2, 24)), torch.rand(2, 24) < 0.5  # (B, L) each
    logits = torch.compile(net, backend="eager", fullgraph=True)(z, group=group)
    plain = by_sdpa(monkeypatch, net, z, group=group)
    torch.testing.assert_close(logits, plain, atol=1e-5, rtol=1e-4)


def test_rotary_positions_inside_attention_are_those_applied_before_it():
    torch.manual_seed(0)
    net = Transformer(11, n_layer=1, n_head=2, n_embd=32, cond_dim=0)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    h, rotary = net.embedding(torch.randint(11, (2, 9))), rotary_angles(torch.arange(9), 16)
    write = lambda k, v: (k, v)  # stands for a cache, which stores rotated keys
    inside, before = (net.blocks[0](h, None, rotary, None, *args) for args in ((), (write,)))
    torch.testing.assert_close(inside, before)


def loss_and_gradients(model):
    """Of a small network, as numbers."""
    torch.manual_seed(0)
    net = model.Transformer(11, 1, 2, 32, mask_mod=model.block_causal(4, 8))
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1)
    loss = net(torch.arange(24).view(2, 12) % 11, torch.ones(2, 1)).square().mean()
    loss.backward()
    return [loss.item(), *(p.grad.norm().item() for p in net.parameters())]


def test_without_the_optional_files_the_numbers_are_the_same_up_to_rounding():
    """All modules are imported again, in this process, as if the files were not there."""
    before = {name: sys.modules.pop(name) for name in project_modules()}
    missing = dict.fromkeys(["kernels", "kernels_triton", "experiments.kernels"])
    sys.modules.update(missing)  # None: an import raises ModuleNotFoundError
    try:
        model, _, speed = map(importlib.import_module, ["model", "train", "experiments.speed"])
        assert model.kernels is None and speed.fast_forms is None
        numbers = loss_and_gradients(model)
    finally:
        for name in missing:
            del sys.modules[name]
        for name in project_modules():
            del sys.modules[name]
        sys.modules.update(before)
    model = sys.modules["model"]
    assert model.kernels is kernels
    assert loss_and_gradients(model) == pytest.approx(numbers, rel=1e-6, abs=1e-9)  # float32


@pytest.mark.parametrize("backend", ["auto", "sdpa"])
def test_a_run_trains_with_the_backend_of_its_flag(backend, monkeypatch):
    monkeypatch.setattr(kernels, "attention_backend", "triton")
    flags = dict(TINY, method="bd3lm", attention=backend, out_dir="out/run")
    train.main(configure(train.Config, **flags), [])
    assert kernels.attention_backend == backend


def test_a_backend_that_is_not_available_is_refused_in_one_line(capsys, monkeypatch):
    assert "needs a GPU" in complaint(train, *tiny(attention="flex"), capsys=capsys)
    for flash in (None, SimpleNamespace(INTERPRET=False)):  # no Triton; Triton but no GPU
        monkeypatch.setattr(kernels, "flash_attention", flash)
        assert "pip install triton" in complaint(train, *tiny(attention="triton"), capsys=capsys)
    said = complaint(train, "--attention", "fast", capsys=capsys)
    assert "is not one of auto, sdpa, flex, triton" in said
    monkeypatch.setattr(sys.modules["runtime.run"], "kernels", None)
    assert "kernels.py" in complaint(train, *tiny(attention="flex"), capsys=capsys)
    assert not list(Path("out").glob("*/ckpt.pt"))
