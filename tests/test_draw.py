"""Draws that never hold all logits: the law of the plain form, tails included, and the sampler through them."""
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from world import surprise

import kernels
from diffusion import draw_from, probabilities, step
from masked import MDLM
from model import Transformer
from uniform import UDLM

ROOT, N = Path(__file__).parent.parent, 5
DRAWS = {"in chunks": kernels.draw, "plain": kernels.draw_plain}


def in_chunks(monkeypatch, outer, inner):
    """Rows through the head, and of those fewer through the law, float64."""
    def parts(n, V, device, on_cpu=None):
        size = inner if on_cpu else outer
        return [slice(i, i + size) for i in range(0, max(1, n), size)]
    monkeypatch.setattr(kernels, "parts", parts)


@pytest.mark.parametrize("form", DRAWS)
@pytest.mark.parametrize("law", [probabilities, partial(probabilities, temperature=0.5),
                                 partial(probabilities, top_p=0.8)], ids=["softmax", "sharp", "nucleus"])
def test_the_draw_has_the_law(form, law, monkeypatch):
    """40,000 draws in two rows, in chunks of 1,000 and 300; the last symbol, a mask, is never drawn."""
    in_chunks(monkeypatch, 1000, 300)
    torch.manual_seed(1)
    rows, weight, bias = torch.randn(2, 3), torch.randn(N + 1, 3), torch.randn(N + 1)
    h = rows.repeat_interleave(20_000, 0)                                                               # (n, 3)
    ids, p = DRAWS[form](h, weight, bias, law, draw_from, N)
    logits = (rows @ weight.T + bias)[:, :N]                                                            # (2, N)
    for part, belief, true, own in zip(ids.chunk(2), p.chunk(2), laws := law(logits), probabilities(logits)):
        assert surprise(part, true) < 4.5
        torch.testing.assert_close(belief, own[part], rtol=1e-5, atol=1e-9)                  # not the sharpened one
    asked = torch.randint(N, (4000,))                                                                   # (n,)
    _, p = DRAWS[form](h[-4000:], weight, bias, law, draw_from, N, asked)
    torch.testing.assert_close(p, laws[1, asked], rtol=1e-5, atol=1e-9)


def test_a_walk_in_chunks_draws_the_same_texts(monkeypatch):
    in_chunks(monkeypatch, 50, 7)
    for method in (MDLM(N), UDLM(N)):
        torch.manual_seed(2)
        net = Transformer(method.vocab_size, n_layer=1, n_head=1, n_embd=8, cond_dim=4)
        torch.nn.init.normal_(net.head.weight, std=2.0)
        t, s = (torch.full((64, 1), value, dtype=torch.float64) for value in (0.9, 0.2))
        z, nothing, texts = method.prior((64, 8)), torch.zeros(64, 8, dtype=torch.bool), []
        for net.fuses in (True, False):
            torch.manual_seed(3)
            texts.append(step(method.process, net, z, nothing, s, t))
        assert torch.equal(*texts) and not torch.equal(texts[0], z)


INTERPRETED = """
import sys, torch
sys.path[:0] = {path!r}
from world import surprise
from draw import draw
torch.set_num_threads(1); torch.manual_seed(0)
def law_of(rows, weight, bias, temperature):
    return ((rows.double() @ weight.double().T + bias.double()) / temperature).softmax(-1)
# three tiles and a bit, a width that is no power of two, fp32 and fp16, temperatures
for dtype, temperature, D, n in ((torch.float32, 0.7, 20, 200), (torch.float16, 1.0, 32, 20)):
    rows, weight, bias = torch.randn(2, D).to(dtype), torch.randn(300, D).to(dtype), torch.randn(300)
    ids, p = draw(rows.repeat_interleave(n, 0), weight, bias, temperature)
    own = law_of(rows, weight, bias, 1)
    for part, belief, true, plain in zip(ids.chunk(2), p.chunk(2), law_of(rows, weight, bias, temperature), own):
        groups = torch.arange(300) % 7                       # both the tile and the symbol in it are in each group
        for group in (groups, torch.arange(300) // 128):
            assert surprise(group[part], torch.zeros(int(group.max()) + 1).double().index_add(0, group, true)) < 4.5
        assert ((belief / plain[part] - 1).abs() < (1e-4 if dtype == torch.float32 else 1e-2)).all()
    last, close = torch.tensor([299, 0]), 1e-4 if dtype == torch.float32 else 1e-2
    p = draw(rows, weight, bias, temperature, of=last)[1]
    assert (p / law_of(rows, weight, bias, temperature)[[0, 1], last] - 1).abs().max() < close
assert draw(rows[:0], weight, bias)[0].shape == (0,)
# tails: 1e-9 in another tile and 1e-9 in the same one; forced uniforms fall on either side of both
weight, h = torch.zeros(130, 16), torch.zeros(4, 16)
bias = torch.full((130,), -float("inf")); bias[3], bias[5], bias[129] = 0.0, -20.7232658, -20.7232658
real = torch.rand
torch.rand = lambda *shape, **kind: torch.tensor([[0.5, 1 - 0.5e-9, 0.5, 1 - 3e-9], [0.5, 0.5, 1 - 0.5e-9, 1 - 3e-9]]
                                                 , dtype=torch.float64)[..., None]
ids, p = draw(h, weight, bias)
assert ids.tolist() == [3, 129, 5, 3], ids
assert (p - torch.tensor([1, 1e-9, 1e-9, 1]).double()).abs().max() < 1e-8
torch.rand = real
print("exact")
"""


def test_where_triton_builds_no_kernel_draws_go_without_it_and_say_so_once(monkeypatch, capsys):
    pytest.importorskip("triton")
    import draw
    kernels.draw_in_tiles.cache_clear()
    monkeypatch.setattr(draw, "draw", lambda *a: (_ for _ in ()).throw(RuntimeError("Failed to find C compiler")))
    assert kernels.draw_in_tiles(torch.device("cpu")) is None and kernels.draw_in_tiles(torch.device("cpu")) is None
    assert capsys.readouterr().err.count("Failed to find C compiler") == 1
    monkeypatch.undo()
    kernels.draw_in_tiles.cache_clear()
    torch.manual_seed(0)
    assert kernels.draw_in_tiles(torch.device("cpu")) is draw.draw
    assert torch.rand(()) == torch.rand((), generator=torch.Generator().manual_seed(0))      # and nothing is drawn
    kernels.draw_in_tiles.cache_clear()


def test_the_triton_kernels_draw_the_law_and_see_its_tails():
    """Interpreted, in a process of its own: Triton asks for that when it is imported."""
    pytest.importorskip("triton")
    run = subprocess.run([sys.executable, "-c", INTERPRETED.format(path=[str(ROOT), str(ROOT / "tests")])],
                         env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert run.stdout == "exact\n", run.stderr[-2000:]
