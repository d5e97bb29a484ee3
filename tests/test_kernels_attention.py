"""Who computes attention: the picks, FlexAttention against the plain form, and that the files are optional."""
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

import kernels
import train
from block import doubled
from model import Transformer, attention, block_causal, causal, rotary_angles
from partition import Partition
from runs import TINY, cache, complaint, elsewhere, tiny  # noqa: F401

ROOT = Path(__file__).parent.parent
BLOCKS = doubled(64, 4)


def tensor(L, cuda, dtype, head_size=64):
    return SimpleNamespace(shape=(2, 4, L, head_size), is_cuda=cuda, dtype=dtype)


def who(mask_mod, Lq=128, Lk=128, cuda=True, dtype=torch.bfloat16, head_size=64, dropout=0.0, first=0, grad=True):
    with torch.set_grad_enabled(grad):
        return kernels.way(tensor(Lq, cuda, dtype, head_size), tensor(Lk, cuda, dtype, head_size), mask_mod, dropout,
                           first, causal)


def test_auto_leaves_full_and_causal_to_the_library_and_skips_tiles_only_in_training_on_a_gpu():
    assert who(None) == who(causal) == "sdpa"
    assert who(BLOCKS) == "flex"
    assert who(causal, 128, 256, first=128) == "flex"        # no library kernel has its first query in the middle
    assert who(BLOCKS, cuda=False) == who(BLOCKS, grad=False) == who(BLOCKS, dropout=0.1) == "sdpa"
    assert who(lambda b, h, query, key: query != key) == "sdpa"          # made anew in each call: not worth a look
    assert who(block_causal(4, 64), 4, 128, first=124) == "sdpa"         # a few new tokens have nothing to skip
    assert who(BLOCKS, head_size=16) == "flex" and who(BLOCKS, head_size=8) == "sdpa"    # flex takes no smaller ones


def test_triton_takes_what_it_can_and_leaves_the_rest_to_the_plain_form(monkeypatch):
    monkeypatch.setattr(kernels, "flash", SimpleNamespace(INTERPRET=False, HEADS=range(16, 129, 2),
                                                          DTYPES=(torch.float16, torch.float32, torch.bfloat16)))
    monkeypatch.setattr(kernels, "chosen", "triton")
    assert {who(pattern, grad=grad) for pattern in (None, causal, BLOCKS) for grad in (True, False)} == {"triton"}
    assert who(BLOCKS, cuda=False) == who(BLOCKS, dtype=torch.float64) == who(BLOCKS, head_size=256) == "sdpa"
    assert who(BLOCKS, dropout=0.1) == who(BLOCKS, Lq=1) == "sdpa"


def test_sdpa_and_flex_do_as_they_are_told(monkeypatch):
    monkeypatch.setattr(kernels, "chosen", "sdpa")
    assert who(BLOCKS) == who(causal) == "sdpa"
    monkeypatch.setattr(kernels, "chosen", "flex")
    assert who(BLOCKS) == who(causal) == who(BLOCKS, grad=False) == "flex"
    assert who(None) == who(BLOCKS, dropout=0.1) == who(BLOCKS, head_size=8) == "sdpa"


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("mask_mod, Lq, Lk, first", [
    (causal, 40, 40, 0), (doubled(20, 4), 40, 40, 0), (block_causal(4, 12), 20, 52, 32),
    (lambda b, h, query, key: (query - key).abs() <= 3 + 5 * h + 9 * b, 40, 40, 0)])
def test_flex_is_the_plain_form(mask_mod, Lq, Lk, first, monkeypatch):
    monkeypatch.setattr(kernels, "chosen", "flex")
    monkeypatch.setattr(kernels, "compiled_flex", lambda: flex_attention)
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, L, 16) for L in (Lq, Lk, Lk))
    cos, sin = rotary_angles(torch.arange(Lk), 16)
    rotary = cos[first:first + Lq], sin[first:first + Lq], cos, sin
    ours, plain = (by(q, k, v, mask_mod, 0.0, first, rotary) for by in (attention, attention.__wrapped__))
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-4)


def test_flex_has_tiles_of_their_own_for_texts_and_heads_that_differ():
    tiles = lambda mask_mod: kernels.flex_tiles(mask_mod, 2, 3, 256, 256, torch.device("cpu"))[1].shape[:2]
    assert tiles(causal) == (1, 1)
    assert tiles(lambda b, h, query, key: query // 128 == (key // 128 + h) % 2) == (1, 3)
    assert tiles(lambda b, h, query, key: query // 128 == (key // 128 + b) % 2) == (2, 1)


def test_a_compiled_network_takes_its_block_mask_as_a_constant(monkeypatch):
    monkeypatch.setattr(kernels, "chosen", "flex")
    net = Transformer(11, n_layer=1, n_head=1, n_embd=16, cond_dim=0).requires_grad_(False)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    z = torch.randint(11, (2, 24))
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch._dynamo.utils.counters.clear()
    for _ in range(2):
        torch.testing.assert_close(compiled(z, mask_mod=doubled(12, 4)), plainly(net, z, doubled(12, 4), monkeypatch),
                                   atol=1e-5, rtol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1       # the same pattern is the same object
    z = z[:, :16]                                                # another length is another graph
    torch.testing.assert_close(compiled(z, mask_mod=doubled(8, 4)), plainly(net, z, doubled(8, 4), monkeypatch),
                               atol=1e-5, rtol=1e-4)


def test_a_compiled_graph_holds_no_pattern_that_is_made_inside_of_it(monkeypatch):
    monkeypatch.setattr(kernels, "chosen", "flex")
    net = Partition(11, n_layer=2, n_head=1, n_embd=16, cond_dim=0).requires_grad_(False)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    z, group = torch.randint(10, (2, 24)), torch.rand(2, 24) < 0.5
    logits = torch.compile(net, backend="eager", fullgraph=True)(z, group=group)
    monkeypatch.setattr(kernels, "chosen", "sdpa")
    torch.testing.assert_close(logits, net(z, group=group), atol=1e-5, rtol=1e-4)


def plainly(net, z, mask_mod, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "chosen", "sdpa")
        return net(z, mask_mod=mask_mod)


def test_rotary_taken_in_is_rotary_before():
    torch.manual_seed(0)
    net = Transformer(11, n_layer=1, n_head=2, n_embd=32, cond_dim=0)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    z = torch.randint(11, (2, 9))
    remember = lambda k, v: (k, v)                           # as a cache, which wants its keys turned
    rotary = rotary_angles(torch.arange(9), 16)
    h = net.embedding(z)
    torch.testing.assert_close(net.blocks[0](h, None, rotary, None), net.blocks[0](h, None, rotary, None, remember))


LOSS = """
import torch, model
torch.manual_seed(0)
net = model.Transformer(11, 1, 2, 32, mask_mod=model.block_causal(4, 8))
for p in net.parameters():
    torch.nn.init.normal_(p, std=0.1)
loss = net(torch.arange(24).view(2, 12) % 11, torch.ones(2, 1)).square().mean()
loss.backward()
numbers = [loss.item(), *(p.grad.norm().item() for p in net.parameters())]
"""


def test_without_the_optional_files_the_numbers_are_the_same(tmp_path):
    for path in ROOT.glob("*.py"):
        if path.name not in ("kernels.py", "flash.py", "tiles.py", "draw.py"):
            shutil.copy(path, tmp_path)
    for folder in ("data", "claims"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("cache", "__pycache__"))
    last = "import train, bench; print(train.kernels, bench.speed.cases, numbers)"
    code = "import torch; torch.set_num_threads(1)" + LOSS + last
    said = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    here = {}
    exec(LOSS, here)
    assert said.stdout == f"None None {here['numbers']}\n", said.stderr
    assert len(here["numbers"]) == 1 + len(list(here["net"].parameters())) and here["model"].kernels


@pytest.mark.parametrize("way", ["auto", "sdpa"])
def test_a_run_trains_with_attention_by(way, monkeypatch):
    monkeypatch.setattr(kernels, "chosen", "triton")
    config = train.Config(**{**TINY, "method": "bd3lm", "attention": way}, out_dir="out/run")
    train.main(config)
    assert kernels.chosen == way


def test_a_way_that_is_not_there_is_refused_in_one_line(capsys, monkeypatch):
    assert "needs a GPU" in complaint(train, *tiny(attention="flex"), capsys=capsys)
    for there in (None, SimpleNamespace(INTERPRET=False)):   # no Triton; Triton, but the run is on a CPU
        monkeypatch.setattr(kernels, "flash", there)
        assert "pip install triton" in complaint(train, *tiny(attention="triton"), capsys=capsys)
    assert "is not one of auto, sdpa, flex, triton" in complaint(train, "--attention", "fast", capsys=capsys)
    monkeypatch.setattr(train, "kernels", None)
    assert "kernels.py" in complaint(train, *tiny(attention="flex"), capsys=capsys)
    assert not list(Path("out").glob("*/ckpt.pt"))
