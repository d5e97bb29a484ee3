"""Flash attention against its formula in float64, values and gradients. Triton's interpreter needs no GPU."""
import math
from types import SimpleNamespace

import pytest
import torch

from block import doubled
from model import Transformer, attention, block_causal, causal, dense, rotary_angles, rotate

with pytest.MonkeyPatch.context() as patch:                  # Triton asks while it is imported, and again as it runs
    if not torch.cuda.is_available():
        patch.setenv("TRITON_INTERPRET", "1")
    pytest.importorskip("triton", reason="flash.py needs Triton: pip install triton")
    import flash
import claims.attention
import kernels
from tiles import plan

DEVICE = "cpu" if flash.INTERPRET else "cuda"
GROUP = torch.rand(2, 150, generator=torch.Generator().manual_seed(1)) < 0.5
PATTERNS = {
    "full": None,
    "causal": causal,
    "doubled": doubled(75, 5),
    "blocks": block_causal(8, 64),
    "groups": lambda b, h, query, key: GROUP.to(query.device)[b, query] == GROUP.to(query.device)[b, key],
    "heads": lambda b, h, query, key: (query - key).abs() <= 9 + 30 * h,
    "not all": lambda b, h, query, key: (query >= key) & (query % 7 > 0),
}


@pytest.fixture(autouse=True)
def interpreter(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", str(int(flash.INTERPRET)))


def formula(q, k, v, mask_mod, first=0, rotary=None):
    """(47) as it stands; zeros where there is nothing to look at."""
    if rotary:
        q, k = rotate(q, *rotary[:2]), rotate(k, *rotary[2:])                                       # (B, H, L, d)
    s = q @ k.mT / math.sqrt(q.shape[-1])                                                           # (B, H, Lq, Lk)
    if mask_mod:
        s = s.masked_fill(~dense(mask_mod, q, k, first), -math.inf)                                 # (B, H, Lq, Lk)
    return torch.where(s.amax(-1, keepdim=True) > -math.inf, s.softmax(-1), 0.0) @ v                # (B, H, Lq, d)


def inputs(Lq, Lk, d, dtype, B=1, H=2):
    """q, k, v and the gradient of o, as a network makes them: heads lie side by side in a token."""
    torch.manual_seed(0)
    q, k, v, do = (torch.randn(B, L, H, d, dtype=dtype, device=DEVICE).transpose(1, 2) for L in (Lq, Lk, Lk, Lq))
    return *(a.requires_grad_() for a in (q, k, v)), do


def angles(Lq, Lk, first, d):
    cos, sin = rotary_angles(torch.arange(Lk, device=DEVICE), d)                                    # (Lk, d/2) each
    return cos[first:first + Lq], sin[first:first + Lq], cos, sin


def close(ours, exact, tolerance):
    for a, b in zip(ours, exact, strict=True):
        assert a.isfinite().all() and (a.double() - b).norm() <= tolerance * b.norm()


@pytest.mark.parametrize("pattern, Lq, Lk, first, d, dtype, rotary", [
    ("full", 140, 130, 0, 128, torch.float32, False),
    ("full", 70, 131, 0, 32, torch.float16, True),
    ("causal", 256, 256, 0, 32, torch.float16, True),
    ("causal", 40, 140, 100, 32, torch.float32, True),
    ("doubled", 150, 150, 0, 32, torch.float32, True),
    ("blocks", 24, 136, 112, 128, torch.float16, True),
    ("blocks", 129, 129, 0, 80, torch.float16, False),
    ("groups", 150, 150, 0, 32, torch.float32, False),
    ("heads", 140, 140, 0, 96, torch.float32, True),
    ("not all", 100, 100, 0, 16, torch.float32, False),
    ("full", 3, 5, 0, 24, torch.float32, True),
    *[(pattern, 150, 150, 0, d, torch.bfloat16, d == 64)         # the interpreter cannot
      for pattern in PATTERNS for d in (64, 128) if DEVICE == "cuda"]])
def test_values_and_gradients_are_those_of_the_formula(pattern, Lq, Lk, first, d, dtype, rotary):
    q, k, v, do = inputs(Lq, Lk, d, dtype, *((2, 1) if pattern == "groups" else (1, 2)))
    turns = angles(Lq, Lk, first, d) if rotary else None
    o = flash.flash(q, k, v, PATTERNS[pattern], first, turns)
    ours = o, *torch.autograd.grad(o, (q, k, v), do)
    exact = [a.detach().double().requires_grad_() for a in (q, k, v)]
    o = formula(*exact, PATTERNS[pattern], first, turns)
    tolerance = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    close(ours, (o, *torch.autograd.grad(o, exact, do.double())), tolerance)


def test_large_scores_neither_overflow_nor_lose_what_is_small():
    q, k, v, do = inputs(70, 150, 32, torch.float32, B=1, H=1)
    q, k = (100 * q).detach().requires_grad_(), k.detach().requires_grad_()
    o, exact = flash.flash(q, k, v), [a.detach().double().requires_grad_() for a in (q, k, v)]
    wanted = formula(*exact, None)
    wanted = wanted, *torch.autograd.grad(wanted, exact, do.double())
    close((o, *torch.autograd.grad(o, (q, k, v), do)), wanted, 2e-5)


def test_a_query_that_may_look_at_nothing_gets_zeros_and_gives_no_gradient():
    q, k, v, do = inputs(100, 100, 32, torch.float32, H=1)
    o = flash.flash(q, k, v, PATTERNS["not all"])
    dq, dk, dv = torch.autograd.grad(o, (q, k, v), do)
    assert not o[:, :, ::7].any() and not dq[:, :, ::7].any() and o[:, :, 1].any() and dq[:, :, 2].any()
    nothing = flash.flash(q, k, v, lambda b, h, query, key: query + key < 0)
    assert not nothing.any() and not any(g.any() for g in torch.autograd.grad(nothing, (q, k, v), do))


@pytest.mark.filterwarnings("ignore:All-NaN")
def test_empty_tiles_are_never_read():
    """Keys that nobody may look at are NaN: had their tile been read, 0 x NaN would be NaN."""
    blocks = flash.blocks(32, torch.float32, DEVICE)
    far = lambda b, h, query, key: key // 128 == query // 128
    q, k, v, do = inputs(200, 256, 32, torch.float32, B=1, H=1)
    with torch.no_grad():
        k[:, :, 128:], v[:, :, 128:] = math.nan, math.nan
    o = flash.flash(q, k, v, far)
    dq, dk, dv = torch.autograd.grad(o, (q, k, v), do)
    assert o[:, :, :128].isfinite().all() and o[:, :, 128:].isnan().all()
    assert all(g[:, :, :128].isfinite().all() for g in (dq, dk, dv))
    lo_hi = plan(far, 1, 1, 200, 256, 0, q.device, blocks[0][:2], blocks[2][:2]).of_queries[0][0, :, :2]
    assert (lo_hi[:, 1] - lo_hi[:, 0]).sum() * blocks[0][1] == 128 * len(lo_hi)


@pytest.mark.parametrize("memory", [232_448, 101_376])           # what a Hopper chip shares, and a smaller one
def test_forward_and_backward_follow_one_plan_on_every_chip(memory, monkeypatch):
    monkeypatch.setattr(flash, "INTERPRET", False)
    properties = SimpleNamespace(shared_memory_per_block_optin=memory)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for head_size in flash.HEADS:
            of_forward, of_queries, of_keys = flash.blocks(head_size, dtype, "cuda")
            assert of_forward[:2] == of_queries[:2] and min(of_keys) > 0


def test_what_it_cannot_do_is_refused_in_words():
    q = torch.zeros(1, 1, 4, 32)
    for wrong in (torch.zeros(1, 1, 4, 256), torch.zeros(1, 1, 4, 33), q.double(),
                  *([q.bfloat16()] if flash.INTERPRET else [])):         # which the interpreter multiplies as bits
        with pytest.raises(ValueError, match="even heads"):
            flash.flash(wrong, wrong, wrong)


def test_queries_of_another_precision_than_values_are_rounded_like_them():
    """Under autocast, normalised queries and keys come in float32."""
    q, k, v, _ = inputs(20, 20, 32, torch.float32)
    o = flash.flash(q, k, v.half())
    assert o.dtype == torch.float16 and torch.equal(o, flash.flash(q.half(), k.half(), v.half()))


@pytest.mark.parametrize("mask_mod", [causal, doubled(16, 4)])
def test_a_network_learns_the_same_whoever_computes_attention(mask_mod, monkeypatch):
    torch.manual_seed(0)
    net = Transformer(11, n_layer=2, n_head=1, n_embd=32, cond_dim=0, mask_mod=mask_mod, qk_norm=True).to(DEVICE)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1)
    z, calls = torch.randint(11, (2, 32), device=DEVICE), []
    spied = flash.flash
    monkeypatch.setattr(flash, "flash", lambda *args: calls.append(args) or spied(*args))
    monkeypatch.setattr(kernels, "flash", flash)
    results = []
    for way in ("sdpa", "triton"):
        monkeypatch.setattr(kernels, "chosen", way)
        loss = net(z).square().mean()
        results.append((loss, *torch.autograd.grad(loss, list(net.parameters()))))
    assert len(calls) == 2                                       # one a layer
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-4)


def test_a_compiled_network_holds_the_operator_and_its_plan_without_a_break(monkeypatch):
    net = Transformer(11, n_layer=1, n_head=1, n_embd=32, cond_dim=0, mask_mod=doubled(16, 4)).to(DEVICE)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1)
    monkeypatch.setattr(kernels, "flash", flash)
    monkeypatch.setattr(kernels, "chosen", "triton")
    z = torch.randint(11, (2, 32), device=DEVICE)
    compiled, results = torch.compile(net, backend="aot_eager", fullgraph=True), []
    for run in (net, compiled):
        loss = run(z).square().mean()
        results.append((loss, *torch.autograd.grad(loss, list(net.parameters()))))
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-6, rtol=1e-5)


def test_the_race_of_the_kernels_names_all_rivals_and_finds_no_error(capsys, monkeypatch):
    """claims/attention.py needs a GPU for its times; all else of it runs here."""
    monkeypatch.setattr(kernels, "flash", flash)
    monkeypatch.setattr(kernels, "flex", attention)              # which has no gradient on CPUs
    q, k, v, do = inputs(32, 32, 16, torch.float32, H=1)
    clock = lambda run, calls: 1.0 + 0 * len(run())
    claims.attention.table("block diffusion", doubled(16, 4), 288, q, k, v, do, 1, 1, clock)
    said = capsys.readouterr().out
    assert "100 % (100 to 100)" in said and all(who in said for who in ("mask in memory", "FlexAttention", "turning"))
    assert all(float(line.split()[-1]) < 1e-5 for line in said.splitlines() if "(1.000 to 1.000)" in line)
