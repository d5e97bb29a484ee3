"""
Guidance by the prompt, and EOS bias.

chat_reference.npz was made with the public code of LLaDA (ML-GSAI/LLaDA, commit b7e6c35) on stub
networks: every input that its decoding gave to the network, and what came out.
"""
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from references import Figures

import world
from data import load_data
from diffusion import Absorbing, probabilities
from flags import configure
from methods import make_method
from samplers import SamplingFlags, sampler_of
from samplers.guidance import PromptGuided
from samplers.semi_ar import SemiAR, demote_eos
from samplers.unmasking import FirstHitting
from world import TEXTS, N, P

figure = Figures("chat_reference")
GREEDY = partial(probabilities, temperature=0)


@pytest.mark.parametrize("case, steps, block, gamma", [
    ("pure_12steps", 12, 12, 1), ("pure_5", 5, 12, 1), ("blocks4_6steps", 6, 4, 1),
    ("cfg1_blocks4", 6, 4, 2)])
def test_decoding_and_guidance_call_the_network_as_llada_does(case, steps, block, gamma):
    """Every input, step by step. cfg_scale 1 is gamma 2, with a second call without the prompt."""
    inputs = []
    W, E = figure("llada_generate/W").double(), figure("llada_generate/E").double()

    def network(z, t, at):
        """W[position] + the mean of E over all tokens; 13 is the mask, and one of 14 words."""
        inputs.append(z)
        return (W[:z.shape[1]] + E[z].mean(1, keepdim=True))[at]  # (N, 14)
    z = F.pad(figure("llada_generate/prompt"), (0, 12), value=13)  # (1, 16)
    frozen = (torch.arange(16) < 4)[None]  # (1, 16)
    denoiser = network if gamma == 1 else PromptGuided(network, frozen, 13, gamma)
    sampler = SemiAR(decode_block=block)
    *_, z = sampler(SimpleNamespace(mask=13, n_tokens=14), denoiser, z, frozen, steps, GREEDY)
    assert torch.equal(z, figure(f"llada_generate/{case}/x"))
    theirs = figure(f"llada_generate/{case}/net_inputs").flatten(0, 1)
    assert torch.equal(torch.cat(inputs), theirs)


@pytest.mark.parametrize("gamma", [1.0, 0.0, 2.5])
def test_guidance_samples_the_distribution_that_it_says(gamma):
    """With one free token that is p(x | prompt)^gamma p(x)^(1 - gamma), normalized; with two, its
    product over both orders of opening."""
    process, exact = Absorbing(N), world.oracle(Absorbing(N))
    x0, n = 1, 20_000
    z = torch.tensor([[x0, N, N]]).expand(n, -1)  # (n, 3)
    frozen = z < N  # (n, 3)
    torch.manual_seed(0)
    *_, x = FirstHitting()(process, PromptGuided(exact, frozen, N, gamma), z, frozen, 2)

    def p(l, v, given):
        """p(x_l = v | given), from the table of all texts."""
        fits = torch.ones(27, dtype=torch.bool)
        for k, w in given.items():
            fits = fits & (TEXTS[:, k] == w)
        return (P[fits & (TEXTS[:, l] == v)].sum() / P[fits].sum()).item()

    def guided(l, given):
        rows = [p(l, v, {0: x0, **given}) ** gamma * p(l, v, given) ** (1 - gamma)
                for v in range(N)]
        return [row / sum(rows) for row in rows]
    exactly = torch.tensor([0.5 * guided(1, {})[a] * guided(2, {1: a})[b]
                            + 0.5 * guided(2, {})[b] * guided(1, {2: b})[a]
                            for a in range(N) for b in range(N)], dtype=torch.float64)
    assert abs(world.surprise(x[:, 1] * N + x[:, 2], exactly)) < 4.5
    if gamma == 1:
        torch.testing.assert_close(exactly, P[9:18] / P[9:18].sum())


def test_the_end_opens_last_if_asked_and_first_if_not():
    """A network that is surest of the ends (9), of which many follow: they open first in one block
    of masks, and last in two blocks."""
    sure = torch.tensor([2.0, 2.1, 2.2, 6.0, 6.1, 6.2])  # (6,)

    def network(z, t, at):
        logits = torch.zeros(*z.shape, 11)  # (B, L, 11)
        logits[..., 3] = sure * (torch.arange(6) < 3)
        logits[..., 9] = sure * (torch.arange(6) >= 3)
        return logits[at]  # (N, 11)
    z = torch.full((2, 6), 10)  # (2, 6)

    def order(eos=None, **options):
        sampler = SemiAR(**options)
        sampler.eos = eos
        walk = [z, *sampler(Absorbing(10), network, z, z < 10, 6, GREEDY)]
        assert walk[-1].tolist() == [[3, 3, 3, 9, 9, 9]] * 2
        return [(after[0] != before[0]).nonzero()[:, 0].tolist()
                for before, after in zip(walk, walk[1:])]
    assert order(decode_block=6) == [[5], [4], [3], [2], [1], [0]]
    last = [[2], [1], [0], [5], [4], [3]]
    assert order(decode_block=3) == last == order(decode_block=6, eos=9)
    assert order(decode_block=6, eos=9, threshold=0.9) == [[2], [1], [0], [3, 4, 5]]
    assert order(decode_block=6, threshold=0.9)[0] == [3, 4, 5]


def test_an_end_has_no_confidence_while_another_mask_has_a_word():
    confidence = torch.tensor([[0.9, 0.2, -1.0, 0.5], [0.9, 0.8, -1.0, -1.0]])
    drawn = torch.tensor([[9, 3, 4, 9], [9, 9, 4, 4]])
    demoted = demote_eos(confidence, drawn, 9).tolist()
    assert demoted == [[0.0, confidence[0, 1].item(), -1.0, 0.0], confidence[1].tolist()]


def test_the_end_opens_last_before_a_corrector_too():
    encoding = load_data("chat", 256, "bytes", sft=True).encoding
    config = configure(SamplingFlags, sampler="semi-ar", eos_last=True, corrector="gibbs", rounds=2)
    model = SimpleNamespace(method=make_method("mdlm", encoding.n_vocab), encoding=encoding)
    V, end = encoding.n_vocab, encoding.eot_token
    logits = F.one_hot(torch.tensor(end), V + 1).float() * 3  # (V + 1,)
    flat = lambda z, t, at: logits.expand(int(at.sum()), -1)  # (N, V + 1)
    z = torch.full((2, 6), V)  # (2, 6)
    assert len([*sampler_of(config, model)(Absorbing(V), flat, z, z < V, 6, GREEDY)]) == 8
