"""
Answers: what they are worth, guidance by the prompt, and where an answer ends.

chat_reference.npz was made with the public code of LLaDA (ML-GSAI/LLaDA, commit b7e6c35) on stub networks: what its
decoding asks of the network, and its Monte Carlo likelihood with the draws that it made.
"""
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import torch
import torch.nn.functional as F
import world
from test_chat import corpus  # noqa: F401
from world import N, P, TEXTS

import chat
import masked
from data import BadInput
from data.chat import ids_of
from decoding import put_off, semi_ar
from diffusion import probabilities
from masked import MDLM, Absorbing, first_hitting
from sampling import Sampling
from steering import sampler_of

FIGURES = numpy.load(Path(__file__).parent / "chat_reference.npz")
GREEDY = partial(probabilities, temperature=0)


def figure(name):
    return torch.from_numpy(FIGURES[name])


# ---- the worth of an answer

def test_the_worth_of_an_answer_is_exact_in_the_mean_and_less_only_for_the_truth():
    """-log p(x_1, x_2 | x_0) on the enumerated world, within 4.5 standard errors."""
    method, exact = MDLM(N), world.oracle(Absorbing(N))
    x = TEXTS[[0, 5, 13, 26]]                                                                           # (4, 3)
    frozen = torch.tensor([True, False, False]).expand(4, -1)
    torch.manual_seed(0)
    nats, error = chat.worth(method, exact, x, frozen, 4000)
    for row, ours, se in zip(x, nats, error):
        same = TEXTS[:, 0] == row[0]
        truth = -(P[(TEXTS == row).all(-1)] / P[same].sum()).log().item()
        assert abs(ours - truth) < 4.5 * se and se < 0.01 * truth
    every = TEXTS[:9]                                                                   # all texts that begin with 0
    law = P[:9] / P[:9].sum()
    loss = lambda denoiser: (law * chat.worth(method, denoiser, every, frozen[:1].expand(9, -1), 400)[0]).sum()
    assert loss(world.vandal) > loss(exact) + 0.05


def tape(case, *numbers):
    return [figure(f"llada_likelihood/{case}/tape/{n:03d}_randperm") for n in numbers]


def masked_by_tape(monkeypatch, orders, counts, prompt):
    """The chance of masked.py, replaced by the published draws: k, and which tokens of the answer come first."""
    n = len(orders[0])
    ranks = F.pad(torch.stack(orders).double(), (prompt, 0)) / n                      # (B, L)
    monkeypatch.setattr(masked, "stratified", lambda *a: (torch.tensor(counts)[:, None].double() - 0.5) / n)
    monkeypatch.setattr(masked.torch, "rand", lambda *a, **k: ranks)


def test_as_many_tokens_of_the_answer_are_masked_as_lladas_noise_masks(monkeypatch):
    """Spread evenly from k = 3 by 8/4, wrapped into 1 .. 8: they are 3, 5, 7, 1."""
    x, prompt = figure("llada_likelihood/noising/seq"), figure("llada_likelihood/noising/prompt_index")
    masked_by_tape(monkeypatch, tape("noising", 1, 2, 3, 4), [3, 5, 7, 1], 4)
    z, k, n = masked.any_order(SimpleNamespace(mask=99), x, masked.stratified(), prompt.expand(4, -1))
    assert torch.equal(z, figure("llada_likelihood/noising/noisy"))
    assert torch.equal((k / n).float(), figure("llada_likelihood/noising/mask_ratio")[:, :1])


def stub():
    """The network of the traces: W[position] + the mean of E over all tokens. The mask is one of 14 words."""
    W, E = figure("llada_generate/W").double(), figure("llada_generate/E").double()

    def network(z, t, at=None):
        logits = W[:z.shape[1]] + E[z].mean(1, keepdim=True)                                            # (B, L, 14)
        return logits if at is None else logits[at]
    return network


def test_the_likelihood_by_monte_carlo_is_lladas(monkeypatch):
    """Prompt 1 2 3, answer 5 .. 9, two batches of four draws. Their softmax counts the mask as a word: so here too."""
    masked_by_tape(monkeypatch, tape("estimate", 1, 2, 3, 4, 6, 7, 8, 9), [4, 5, 1, 3] * 2, 3)
    method = MDLM(13)
    method.n_tokens = 14
    monkeypatch.setattr(torch.distributions.Beta, "sample", lambda self: torch.ones(8, 1))
    x = torch.tensor([[1, 2, 3, 5, 6, 7, 8, 9]])
    nats, _ = chat.worth(method, stub(), x, torch.arange(8)[None] < 3, 8)
    torch.testing.assert_close(-nats[0], figure("llada_likelihood/estimate/value"), rtol=2e-7, atol=0)   # float32


# ---- guidance by the prompt, and the end of an answer

@pytest.mark.parametrize("case, steps, block, gamma", [("pure_12steps", 12, 12, 1), ("pure_5", 5, 12, 1),
                                                       ("blocks4_6steps", 6, 4, 1), ("cfg1_blocks4", 6, 4, 2)])
def test_decoding_and_guidance_ask_and_answer_as_lladas(case, steps, block, gamma):
    """Every input of the network, step by step; cfg_scale 1 is gamma 2, and asks again without the prompt."""
    asked, network = [], stub()

    def spy(z, t, at=None):
        asked.append(z)
        return network(z, t, at)
    prompt = figure("llada_generate/prompt")
    z = F.pad(prompt, (0, 12), value=13)
    frozen = (torch.arange(16) < 4)[None]
    net = spy if gamma == 1 else chat.PromptGuided(spy, frozen, 13, gamma)
    *_, z = semi_ar(SimpleNamespace(mask=13, n_tokens=14), net, z, frozen, steps, GREEDY, block)
    assert torch.equal(z, figure(f"llada_generate/{case}/x"))
    assert torch.equal(torch.cat(asked), figure(f"llada_generate/{case}/net_inputs").flatten(0, 1))


@pytest.mark.parametrize("gamma", [1.0, 0.0, 2.5])
def test_guidance_samples_the_law_that_it_says(gamma):
    """With one free token that is p(x | prompt)^gamma p(x)^(1 - gamma), normalised; with two, that of their orders."""
    process, exact = Absorbing(N), world.oracle(Absorbing(N))
    x0, n = 1, 20_000
    z = torch.tensor([[x0, N, N]]).expand(n, -1)
    frozen = z < N
    net = chat.PromptGuided(exact, frozen, N, gamma)
    torch.manual_seed(0)
    *_, x = first_hitting(process, net, z, frozen, 2)

    def p(l, v, given):
        """p(x_l = v | given), from the table of all texts."""
        fits = torch.stack([TEXTS[:, k] == w for k, w in given.items()]).all(0) if given else torch.ones(27) > 0
        return (P[fits & (TEXTS[:, l] == v)].sum() / P[fits].sum()).item()

    def law(l, given):
        rows = [p(l, v, {0: x0, **given}) ** gamma * p(l, v, given) ** (1 - gamma) for v in range(N)]
        return [row / sum(rows) for row in rows]
    exactly = torch.tensor([0.5 * law(1, {})[a] * law(2, {1: a})[b] + 0.5 * law(2, {})[b] * law(1, {2: b})[a]
                            for a in range(N) for b in range(N)], dtype=torch.float64)
    assert abs(world.surprise(x[:, 1] * N + x[:, 2], exactly)) < 4.5
    if gamma == 1:
        assert torch.allclose(exactly, P[9:18] / P[9:18].sum())


def test_an_answer_ends_at_its_first_end_and_is_done_once_no_mask_is_left_before_it(corpus):
    end = corpus.encoding.eot_token
    z = torch.tensor([[5, 6, 9, 7, 9], [5, 7, 6, 9, 6], [5, 9, 7, 7, 7], [5, 6, 6, 6, 6], [9, 7, 9, 7, 7]])
    frozen = (torch.arange(5) < 1).expand(5, -1)                         # 5 a prompt, 7 the mask, 9 the end
    assert chat.finished(z, frozen, 7, 9).tolist() == [True, False, True, True, False]
    ids = ids_of(corpus.encoding, ["Hello!", "Good morning!"])
    start = len(ids_of(corpus.encoding, ["Hello!"]))
    for rest in ([end, end, 3], [ids[0], 3, end], []):
        assert chat.answer(torch.tensor(ids + rest), start, corpus.encoding) == "Good morning!"


def test_the_end_opens_last_if_asked_and_first_if_not():
    """A network that is surest of the ends (9), and that many follow: one block falls into the trap, two do not."""
    sure = torch.tensor([2.0, 2.1, 2.2, 6.0, 6.1, 6.2])                                                 # (6,)

    def network(z, t, at):
        logits = torch.zeros(*z.shape, 11)
        logits[..., 3] = sure * (torch.arange(6) < 3)
        logits[..., 9] = sure * (torch.arange(6) >= 3)
        return logits[at]
    z = torch.full((2, 6), 10)

    def order(**options):
        walk = [z, *semi_ar(Absorbing(10), network, z, z < 10, 6, GREEDY, **options)]
        assert walk[-1].tolist() == [[3, 3, 3, 9, 9, 9]] * 2
        return [(after[0] != before[0]).nonzero()[:, 0].tolist() for before, after in zip(walk, walk[1:])]
    assert order(block=6) == [[5], [4], [3], [2], [1], [0]]
    assert order(block=3) == [[2], [1], [0], [5], [4], [3]] == order(block=6, last=9)
    assert order(block=6, last=9, threshold=0.9) == [[2], [1], [0], [3, 4, 5]]
    assert order(block=6, threshold=0.9)[0] == [3, 4, 5]


def test_an_end_has_no_belief_while_another_mask_has_a_word():
    belief = torch.tensor([[0.9, 0.2, -1.0, 0.5], [0.9, 0.8, -1.0, -1.0]])
    drawn = torch.tensor([[9, 3, 4, 9], [9, 9, 4, 4]])
    assert put_off(belief, drawn, 9).tolist() == [[0.0, belief[0, 1].item(), -1.0, 0.0], belief[1].tolist()]


def test_the_oldest_turns_are_forgotten_until_an_answer_has_room(corpus):
    said = ["Hello!", "Hello!", "What is 3 plus 4?", "3 plus 4 is 7.", "And now?"]
    parts = [ids_of(corpus.encoding, said[i:]) for i in (0, 2, 4)]
    for length in range(20, 60):
        given, frozen = chat.template(said, corpus.encoding, length)
        n = int(frozen.sum())
        assert frozen[:n].all() and len(frozen) == length
        assert given[:n].tolist() == next(ids for ids in parts if len(ids) <= length - length // 4)
    with pytest.raises(BadInput, match="shorten it"):
        chat.template(["no " * 40], corpus.encoding, 48)


def test_a_choice_is_the_likeliest_answer(corpus):
    """With a network that knows the answer, and one that knows it wrong."""
    chats, end = corpus.chats["val"], corpus.encoding.eot_token
    i = next(i for i, (kind, messages) in enumerate(chats) if kind == "village" and len(messages) == 2)
    offered = chat.choices(chats, i, lambda said: True)
    assert len(set(offered)) == 4 and offered[0] == chats[i][1][-1]
    model = SimpleNamespace(encoding=corpus.encoding, method=MDLM(corpus.encoding.n_vocab))
    for truth in (0, 2):
        ids = ids_of(corpus.encoding, [*chats[i][1][:-1], offered[truth]])
        known = torch.tensor(ids + [end] * (48 - len(ids)))

        def network(z, t, at):
            return 5.0 * F.one_hot(known, corpus.encoding.n_vocab + 1).expand(len(z), -1, -1)[at]
        assert chat.chosen(model, network, chats[i][1], offered, 48, 4, 0, "cpu") == truth


@pytest.mark.parametrize("flags, stays", [
    (dict(sampler="semi-ar"), True), (dict(sampler="confidence"), True), (dict(sampler="psi"), False),
    (dict(sampler="remdm-conf"), False), (dict(sampler="top-k"), False),
    (dict(sampler="semi-ar", tail="gibbs"), False)])
def test_an_end_ends_an_answer_only_where_no_word_is_taken_back(flags, stays):
    """The end stands after the first step, before all masks; in the second another word does."""
    model = SimpleNamespace(method=MDLM(10), encoding=SimpleNamespace(eot_token=9))
    states = [[[3, 9, 10, 10]], [[3, 4, 5, 9]]]
    given, frozen = torch.tensor([[3, 0, 0, 0]]), torch.tensor([[True, False, False, False]])
    config = Sampling(**{"tail": "draw", **flags})
    z = chat.reply(model, None, given, frozen, config, lambda *args: iter(map(torch.tensor, states)), probabilities)
    assert z.tolist() == states[0 if stays else 1]


def test_the_end_opens_last_before_a_tail_too(corpus):
    walk = sampler_of(Sampling(sampler="semi-ar", eos_last=True, tail="gibbs", rounds=2), "mdlm", corpus.encoding)
    V, end = corpus.encoding.n_vocab, corpus.encoding.eot_token
    flat = lambda z, t, at: (F.one_hot(torch.tensor(end), V + 1).float() * 3).expand(int(at.sum()), -1)
    z = torch.full((2, 6), V)
    assert len([*walk(Absorbing(V), flat, z, z < V, 6, GREEDY)]) == 8
