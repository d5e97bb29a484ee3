"""Flash attention against its formula in float64, values and gradients, by Triton's interpreter."""
import math
from types import SimpleNamespace

import pytest
import torch

import kernels
from experiments import attention as benchmark
from kernels_triton.block_mask import plan_tiles
from methods.bd3lm import block_diffusion_mask
from model import Transformer, attention, block_causal, causal, dense_mask, rotary_angles, rotate

with pytest.MonkeyPatch.context() as patch:  # Triton reads it at its import, and at each launch
    if not torch.cuda.is_available():
        patch.setenv("TRITON_INTERPRET", "1")
    pytest.importorskip("triton", reason="flash_attention.py needs Triton: pip install triton")
    from kernels_triton import flash_attention as flash

DEVICE = "cpu" if flash.INTERPRET else "cuda"
GROUP = torch.rand(2, 150, generator=torch.Generator().manual_seed(1)) < 0.5


def same_group(b, h, query, key):
    group = GROUP.to(query.device)  # (2, 150)
    return group[b, query] == group[b, key]


PATTERNS = {
    "full": None,
    "causal": causal,
    "block diffusion": block_diffusion_mask(75, 5),
    "blocks": block_causal(8, 64),
    "groups": same_group,
    "heads": lambda b, h, query, key: (query - key).abs() <= 9 + 30 * h,
    "not all": lambda b, h, query, key: (query >= key) & (query % 7 > 0),
}


@pytest.fixture(autouse=True)
def interpreter(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", str(int(flash.INTERPRET)))


def formula(q, k, v, mask_mod, first=0, rotary=None):
    """(23.1) as written; zeros for a query that may see no key."""
    if rotary:
        q, k = rotate(q, *rotary[:2]), rotate(k, *rotary[2:])  # (B, H, L, d)
    s = q @ k.mT / math.sqrt(q.shape[-1])  # (B, H, Lq, Lk)
    if mask_mod:
        s = s.masked_fill(~dense_mask(mask_mod, q, k, first), -math.inf)  # (B, H, Lq, Lk)
    p = torch.where(s.amax(-1, keepdim=True) > -math.inf, s.softmax(-1), 0.0)  # (B, H, Lq, Lk)
    return p @ v  # (B, H, Lq, d)


def inputs(Lq, Lk, d, dtype, B=1, H=2):
    """q, k, v and the gradient of o, stored as in a network: the heads of a token are adjacent."""
    torch.manual_seed(0)
    q, k, v, do = (torch.randn(B, L, H, d, dtype=dtype, device=DEVICE).transpose(1, 2)
                   for L in (Lq, Lk, Lk, Lq))  # (B, H, L, d) each
    return *(a.requires_grad_() for a in (q, k, v)), do


def angles(Lq, Lk, first, d):
    cos, sin = rotary_angles(torch.arange(Lk, device=DEVICE), d)  # (Lk, d/2) each
    return cos[first:first + Lq], sin[first:first + Lq], cos, sin


def check(q, k, v, do, tolerance, mask_mod=None, first=0, rotary=None):
    """Values and gradients are those of the formula in float64."""
    o = flash.flash_attention(q, k, v, mask_mod, first, rotary)
    ours = o, *torch.autograd.grad(o, (q, k, v), do)
    exact = [a.detach().double().requires_grad_() for a in (q, k, v)]
    o = formula(*exact, mask_mod, first, rotary)
    for a, b in zip(ours, (o, *torch.autograd.grad(o, exact, do.double())), strict=True):
        assert a.isfinite().all() and (a.double() - b).norm() <= tolerance * b.norm()


@pytest.mark.parametrize("pattern, Lq, Lk, first, d, dtype, rotary", [
    ("full", 140, 130, 0, 128, torch.float32, False),
    ("full", 70, 131, 0, 32, torch.float16, True),
    ("causal", 256, 256, 0, 32, torch.float16, True),
    ("causal", 40, 140, 100, 32, torch.float32, True),
    ("block diffusion", 150, 150, 0, 32, torch.float32, True),
    ("blocks", 24, 136, 112, 128, torch.float16, True),
    ("blocks", 129, 129, 0, 80, torch.float16, False),
    ("groups", 150, 150, 0, 32, torch.float32, False),
    ("heads", 140, 140, 0, 96, torch.float32, True),
    ("not all", 100, 100, 0, 16, torch.float32, False),
    ("full", 3, 5, 0, 24, torch.float32, True),
    *[(pattern, 150, 150, 0, d, torch.bfloat16, d == 64)  # the interpreter has no bfloat16
      for pattern in PATTERNS for d in (64, 128) if DEVICE == "cuda"]])
def test_values_and_gradients_are_those_of_the_formula(pattern, Lq, Lk, first, d, dtype, rotary):
    B, H = (2, 1) if pattern == "groups" else (1, 2)
    tolerance = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    check(*inputs(Lq, Lk, d, dtype, B, H), tolerance, PATTERNS[pattern], first,
          angles(Lq, Lk, first, d) if rotary else None)


def test_large_scores_neither_overflow_nor_lose_small_ones():
    q, k, v, do = inputs(70, 150, 32, torch.float32, B=1, H=1)
    q, k = (100 * q).detach().requires_grad_(), k.detach().requires_grad_()
    check(q, k, v, do, 2e-5)


def test_a_query_that_may_see_no_key_gets_zeros_and_gives_no_gradient():
    q, k, v, do = inputs(100, 100, 32, torch.float32, H=1)
    o = flash.flash_attention(q, k, v, PATTERNS["not all"])
    dq, dk, dv = torch.autograd.grad(o, (q, k, v), do)
    assert not o[:, :, ::7].any() and not dq[:, :, ::7].any()
    assert o[:, :, 1].any() and dq[:, :, 2].any()
    nothing = flash.flash_attention(q, k, v, lambda b, h, query, key: query + key < 0)
    assert not nothing.any()
    assert not any(g.any() for g in torch.autograd.grad(nothing, (q, k, v), do))


@pytest.mark.filterwarnings("ignore:All-NaN")
def test_empty_tiles_are_never_read():
    """Keys that no query may see are NaN: if their tile were read, 0 x NaN would be NaN."""
    size, _, size_kv = flash.tile_sizes(32, torch.float32, DEVICE)
    far = lambda b, h, query, key: key // 128 == query // 128
    q, k, v, do = inputs(200, 256, 32, torch.float32, B=1, H=1)
    with torch.no_grad():
        k[:, :, 128:], v[:, :, 128:] = math.nan, math.nan
    o = flash.flash_attention(q, k, v, far)
    dq, dk, dv = torch.autograd.grad(o, (q, k, v), do)
    assert o[:, :, :128].isfinite().all() and o[:, :, 128:].isnan().all()
    assert all(g[:, :, :128].isfinite().all() for g in (dq, dk, dv))
    plan = plan_tiles(far, 1, 1, 200, 256, 0, q.device, size[:2], size_kv[:2])
    lo, hi = plan.of_queries[0][0, :, :2].T
    assert (hi - lo).sum() * size[1] == 128 * len(lo)


@pytest.mark.parametrize("memory", [232_448, 101_376])  # of a Hopper chip, and of a smaller one
def test_forward_and_backward_follow_one_plan_on_every_chip(memory, monkeypatch):
    monkeypatch.setattr(flash, "INTERPRET", False)
    properties = SimpleNamespace(shared_memory_per_block_optin=memory)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for head_size in flash.HEAD_SIZES:
            forward, backward_q, backward_kv = flash.tile_sizes(head_size, dtype, "cuda")
            assert forward[:2] == backward_q[:2] and min(backward_kv) > 0


def test_unsupported_head_sizes_and_types_raise_an_error():
    q = torch.zeros(1, 1, 4, 32)
    wrong = [torch.zeros(1, 1, 4, 256), torch.zeros(1, 1, 4, 33), q.double()]
    for q in wrong + [q.bfloat16()] * flash.INTERPRET:
        with pytest.raises(ValueError, match="even head sizes"):
            flash.flash_attention(q, q, q)


def test_queries_and_keys_are_rounded_to_the_type_of_the_values():
    """Under autocast, normalized queries and keys come in float32."""
    q, k, v, _ = inputs(20, 20, 32, torch.float32)
    o = flash.flash_attention(q, k, v.half())
    assert o.dtype == torch.float16
    assert torch.equal(o, flash.flash_attention(q.half(), k.half(), v.half()))


def network(n_layer, mask_mod, **flags):
    torch.manual_seed(0)
    net = Transformer(11, n_layer, n_head=1, n_embd=32, cond_dim=0, mask_mod=mask_mod, **flags)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return net.to(DEVICE), torch.randint(11, (2, 32), device=DEVICE)


def loss_and_gradients(run, net, z):
    loss = run(z).square().mean()
    return loss, *torch.autograd.grad(loss, list(net.parameters()))


@pytest.mark.parametrize("mask_mod", [causal, block_diffusion_mask(16, 4)])
def test_a_network_learns_the_same_by_every_backend(mask_mod, monkeypatch):
    net, z = network(2, mask_mod, qk_norm=True)
    calls, spied = [], flash.flash_attention
    monkeypatch.setattr(flash, "flash_attention", lambda *args: calls.append(1) or spied(*args))
    monkeypatch.setattr(kernels, "flash_attention", flash)
    results = []
    for backend in ("sdpa", "triton"):
        monkeypatch.setattr(kernels, "attention_backend", backend)
        results.append(loss_and_gradients(net, net, z))
    assert len(calls) == 2  # one per layer
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-4)


def test_a_compiled_network_holds_the_operator_and_its_plan_without_a_break(monkeypatch):
    net, z = network(1, block_diffusion_mask(16, 4))
    monkeypatch.setattr(kernels, "flash_attention", flash)
    monkeypatch.setattr(kernels, "attention_backend", "triton")
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    for ours, plain in zip(loss_and_gradients(compiled, net, z), loss_and_gradients(net, net, z),
                           strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-6, rtol=1e-5)


def test_the_benchmark_of_attention_names_all_backends_and_finds_no_error(capsys, monkeypatch):
    """experiments/attention.py needs a GPU for its times; all the rest of it runs here."""
    monkeypatch.setattr(kernels, "flash_attention", flash)
    monkeypatch.setattr(kernels, "attend_by_flex", attention)  # flex has no gradient on CPUs
    q, k, v, do = inputs(32, 32, 16, torch.float32, H=1)
    clock = lambda run, calls: 1.0 + 0 * len(run())
    benchmark.print_table("block diffusion", block_diffusion_mask(16, 4), 288, q, k, v, do, 1, 1,
                          clock)
    said = capsys.readouterr().out
    assert "100 % (100 to 100)" in said
    assert all(name in said for name in ("dense mask", "FlexAttention", "rotary inside"))
    errors = [float(line.split()[-1]) for line in said.splitlines() if "(1.000 to 1.000)" in line]
    assert len(errors) == 5 and max(errors) < 1e-5
