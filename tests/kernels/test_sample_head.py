"""Draws without all logits in memory: the distribution of the plain form, its tails included."""
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

import kernels
from diffusion import draw_from, probabilities, reverse_step, softmax_temperature
from methods.mdlm import MDLM
from methods.udlm import UDLM
from model import Transformer
from world import surprise

ROOT, N = Path(__file__).parents[2], 5
FORMS = {"in chunks": kernels.sample_head, "plain": kernels.sample_head_plain}


def set_chunks(monkeypatch, outer, inner):
    """`outer` rows at a time through the head, `inner` of those through the float64 softmax."""
    def chunks(n, V, device, on_cpu=None):
        size = inner if on_cpu else outer
        return [slice(i, i + size) for i in range(0, max(1, n), size)]
    monkeypatch.setattr(kernels, "row_chunks", chunks)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("to_probs", [
    probabilities, partial(probabilities, temperature=0.5), partial(probabilities, top_p=0.8)],
    ids=["softmax", "sharp", "nucleus"])
def test_draws_have_the_distribution(form, to_probs, monkeypatch):
    """40,000 draws in two rows, in chunks of 1,000 and 300; the last symbol, a mask, never occurs.
    """
    set_chunks(monkeypatch, 1000, 300)
    torch.manual_seed(1)
    rows, weight, bias = torch.randn(2, 3), torch.randn(N + 1, 3), torch.randn(N + 1)
    h = rows.repeat_interleave(20_000, 0)  # (n, 3)
    ids, p = FORMS[form](h, weight, bias, to_probs, draw_from, N)
    logits = (rows @ weight.T + bias)[:, :N]  # (2, N)
    expected, own = to_probs(logits), probabilities(logits)  # (2, N) each
    for row in range(2):
        drawn = ids.chunk(2)[row]  # (n/2,)
        assert surprise(drawn, expected[row]) < 4.5
        torch.testing.assert_close(p.chunk(2)[row], own[row, drawn], rtol=1e-5, atol=1e-9)
    of = torch.randint(N, (4000,))  # (n,)
    _, p = FORMS[form](h[-4000:], weight, bias, to_probs, draw_from, N, of)
    torch.testing.assert_close(p, expected[1, of], rtol=1e-5, atol=1e-9)


def test_a_step_in_chunks_draws_the_same_texts(monkeypatch):
    set_chunks(monkeypatch, 50, 7)
    for method in (MDLM(N), UDLM(N)):
        torch.manual_seed(2)
        net = Transformer(method.vocab_size, n_layer=1, n_head=1, n_embd=8, cond_dim=4)
        torch.nn.init.normal_(net.head.weight, std=2.0)
        t, s = (torch.full((64, 1), value, dtype=torch.float64) for value in (0.9, 0.2))  # (B, 1)
        z, frozen = method.prior((64, 8)), torch.zeros(64, 8, dtype=torch.bool)  # (B, L) each
        texts = []
        for net.supports_fused_head in (True, False):
            torch.manual_seed(3)
            texts.append(reverse_step(method.process, net, z, frozen, s, t))
        assert torch.equal(*texts) and not torch.equal(texts[0], z)


def test_only_a_plain_softmax_has_a_temperature_that_a_kernel_can_draw_at():
    assert softmax_temperature(probabilities) == 1
    assert softmax_temperature(partial(probabilities, temperature=0.5)) == 0.5
    assert softmax_temperature(partial(probabilities, temperature=0.5, top_p=1.0)) == 0.5
    for to_probs in (partial(probabilities, temperature=0), partial(probabilities, top_p=0.9),
                     partial(probabilities, 0.5), lambda logits: probabilities(logits)):
        assert softmax_temperature(to_probs) is None


INTERPRETED = """
import sys, torch
sys.path[:0] = {path!r}
from world import surprise
from kernels_triton.sample_head import sample_head_triton as sample
torch.set_num_threads(1); torch.manual_seed(0)
def softmax(rows, weight, bias, temperature):
    return ((rows.double() @ weight.double().T + bias.double()) / temperature).softmax(-1)
# three tiles and a bit, a width that is no power of two, fp32 and fp16, temperatures
for dtype, temperature, D, n in ((torch.float32, 0.7, 20, 200), (torch.float16, 1.0, 32, 20)):
    rows, weight = torch.randn(2, D).to(dtype), torch.randn(300, D).to(dtype)
    bias, close = torch.randn(300), 1e-4 if dtype == torch.float32 else 1e-2
    ids, p = sample(rows.repeat_interleave(n, 0), weight, bias, temperature)
    own, expected = softmax(rows, weight, bias, 1), softmax(rows, weight, bias, temperature)
    for row in range(2):
        drawn = ids.chunk(2)[row]
        # groups that check the symbol within its tile, and the tile
        for group in (torch.arange(300) % 7, torch.arange(300) // 128):
            probs = torch.zeros(int(group.max()) + 1).double().index_add(0, group, expected[row])
            assert surprise(group[drawn], probs) < 4.5
        assert ((p.chunk(2)[row] / own[row, drawn] - 1).abs() < close).all()
    of = torch.tensor([299, 0])
    p = sample(rows, weight, bias, temperature, of=of)[1]
    assert (p / expected[[0, 1], of] - 1).abs().max() < close
assert sample(rows[:0], weight, bias)[0].shape == (0,)
# tails: 1e-9 in another tile and 1e-9 in the same one; fixed uniforms fall on either side of both
weight, h, bias = torch.zeros(130, 16), torch.zeros(4, 16), torch.full((130,), -float("inf"))
bias[3], bias[5], bias[129] = 0.0, -20.7232658, -20.7232658
real = torch.rand
uniforms = torch.tensor([[0.5, 1 - 0.5e-9, 0.5, 1 - 3e-9], [0.5, 0.5, 1 - 0.5e-9, 1 - 3e-9]],
                        dtype=torch.float64)
torch.rand = lambda *shape, **kind: uniforms[..., None]
ids, p = sample(h, weight, bias)
assert ids.tolist() == [3, 129, 5, 3], ids
assert (p - torch.tensor([1, 1e-9, 1e-9, 1]).double()).abs().max() < 1e-8
torch.rand = real
print("exact")
"""


def test_without_a_c_compiler_sampling_goes_on_without_triton_and_says_so_once(monkeypatch, capsys):
    pytest.importorskip("triton")
    from kernels_triton import sample_head

    def fail(*args):
        raise RuntimeError("Failed to find C compiler")
    kernels.triton_sampler.cache_clear()
    monkeypatch.setattr(sample_head, "sample_head_triton", fail)
    assert [kernels.triton_sampler(torch.device("cpu")) for _ in range(2)] == [None, None]
    assert capsys.readouterr().err.count("Failed to find C compiler") == 1
    monkeypatch.undo()
    kernels.triton_sampler.cache_clear()
    torch.manual_seed(0)
    assert kernels.triton_sampler(torch.device("cpu")) is sample_head.sample_head_triton
    expected = torch.rand((), generator=torch.Generator().manual_seed(0))
    assert torch.rand(()) == expected  # the trial uses no random numbers
    kernels.triton_sampler.cache_clear()


def test_the_triton_kernels_draw_from_the_distribution_and_reach_its_tails():
    """By the interpreter, in another process: Triton reads the variable at its import."""
    pytest.importorskip("triton")
    code = INTERPRETED.format(path=[str(ROOT), str(ROOT / "tests")])
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                         env={**os.environ, "TRITON_INTERPRET": "1"})
    assert run.stdout == "exact\n", run.stderr[-2000:]
