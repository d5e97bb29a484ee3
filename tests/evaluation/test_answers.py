"""
What answers are worth: their likelihood, and the choice among several.

chat_reference.npz was made with the public code of LLaDA (ML-GSAI/LLaDA, commit b7e6c35) on stub
networks: its Monte Carlo likelihood, with the draws that it made.
"""
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from references import Figures

import methods.mdlm as mdlm
import world
from data import load_data
from data.chat import ids_of
from diffusion import Absorbing
from evaluation.chat import answer_nll, answers, likeliest_choice, offered_answers
from flags import configure
from methods.mdlm import MDLM, any_order
from samplers import SamplingFlags
from world import TEXTS, N, P

figure = Figures("chat_reference")


@pytest.fixture(scope="module")
def data():
    return load_data("chat", 48, vocab_size=8192, sft=True)


# ---- the likelihood of an answer

def test_the_nll_of_an_answer_is_exact_in_the_mean_and_least_for_the_truth():
    """-log p(x_1, x_2 | x_0) on the enumerated world, within 4.5 standard errors."""
    method, exact = MDLM(N), world.oracle(Absorbing(N))
    x = TEXTS[[0, 5, 13, 26]]  # (4, 3)
    frozen = torch.tensor([True, False, False]).expand(4, -1)  # (4, 3)
    torch.manual_seed(0)
    nats, error = answer_nll(method, exact, x, frozen, 4000)
    for row, ours, se in zip(x, nats, error):
        same = TEXTS[:, 0] == row[0]
        truth = -(P[(TEXTS == row).all(-1)] / P[same].sum()).log().item()
        assert abs(ours - truth) < 4.5 * se and se < 0.01 * truth
    every, p = TEXTS[:9], P[:9] / P[:9].sum()  # all texts that begin with 0
    loss = lambda denoiser: (p * answer_nll(method, denoiser, every, frozen[:1].expand(9, -1),
                                            400)[0]).sum()
    assert loss(world.vandal) > loss(exact) + 0.05


def tape(case, *numbers):
    return [figure(f"llada_likelihood/{case}/tape/{n:03d}_randperm") for n in numbers]


def mask_by_tape(monkeypatch, orders, counts, prompt):
    """The random draws of (3.1), replaced by the published ones: k, and the order of the tokens."""
    n = len(orders[0])
    ranks = F.pad(torch.stack(orders).double(), (prompt, 0)) / n  # (B, L)
    times = (torch.tensor(counts)[:, None].double() - 0.5) / n  # (B, 1)
    monkeypatch.setattr(mdlm, "stratified", lambda *a: times)
    monkeypatch.setattr(mdlm.torch, "rand", lambda *a, **k: ranks)


def test_as_many_tokens_of_the_answer_are_masked_as_lladas_noise_masks(monkeypatch):
    """Spread evenly from k = 3 by 8/4, wrapped into 1 .. 8: they are 3, 5, 7, 1."""
    x, prompt = (figure(f"llada_likelihood/noising/{name}") for name in ("seq", "prompt_index"))
    mask_by_tape(monkeypatch, tape("noising", 1, 2, 3, 4), [3, 5, 7, 1], 4)
    z, k, n = any_order(SimpleNamespace(mask=99), x, mdlm.stratified(), prompt.expand(4, -1))
    assert torch.equal(z, figure("llada_likelihood/noising/noisy"))
    assert torch.equal((k / n).float(), figure("llada_likelihood/noising/mask_ratio")[:, :1])


def stub():
    """The network of the traces: W[position] + the mean of E over all tokens; 13 is the mask."""
    W, E = figure("llada_generate/W").double(), figure("llada_generate/E").double()

    def network(z, t, at=None):
        logits = W[:z.shape[1]] + E[z].mean(1, keepdim=True)  # (B, L, 14)
        return logits if at is None else logits[at]  # (N, 14)
    return network


def test_the_likelihood_by_monte_carlo_is_lladas(monkeypatch):
    """Prompt 1 2 3, answer 5 .. 9, two batches of four draws. Their softmax counts the mask as a
    word, so here it does too."""
    orders = tape("estimate", 1, 2, 3, 4, 6, 7, 8, 9)
    mask_by_tape(monkeypatch, orders, [4, 5, 1, 3] * 2, 3)
    method = MDLM(13)
    method.n_tokens = 14
    monkeypatch.setattr(torch.distributions.Beta, "sample", lambda self: torch.ones(8, 1))
    x = torch.tensor([[1, 2, 3, 5, 6, 7, 8, 9]])  # (1, 8)
    nats, _ = answer_nll(method, stub(), x, torch.arange(8)[None] < 3, 8)
    theirs = figure("llada_likelihood/estimate/value")  # float32
    torch.testing.assert_close(-nats[0], theirs, rtol=2e-7, atol=0)


# ---- answers and choices

def knows(text, V):
    """A network that is sure of the tokens `text` (L,)."""
    return lambda z, t, at: 30.0 * F.one_hot(text, V).float().expand(len(z), -1, -1)[at]  # (N, V)


def test_answers_come_back_in_the_order_of_their_prompts_whatever_their_lengths(data):
    """By a network that knows the text of each batch of prompts of one length."""
    x, frozen, _ = data.select("val", data.spread("val", 12))  # (12, L) each
    method, V = MDLM(data.encoding.n_vocab), data.encoding.n_vocab + 1

    def network(z, t, at):
        rows = [next(row for row, given in zip(x, frozen)
                     if torch.equal(row[given], z_row[given])) for z_row in z]
        logits = 30.0 * F.one_hot(torch.stack(rows), V).float()  # (B, L, V)
        return logits[at]  # (N, V)
    model = SimpleNamespace(encoding=data.encoding, method=method,
                            config=SimpleNamespace(block_size=48, data="chat"))
    config = configure(SamplingFlags, steps=2)
    config.batch_size = 5
    texts = answers(model, network, x, frozen, config)
    rows = data.spread("val", 12).tolist()
    assert texts == [data.chats["val"][i][1][-1] for i in rows] and len(set(texts)) > 3


def test_guided_answers_mask_out_the_very_prompts(data):
    x, frozen, _ = data.select("val", data.spread("val", 6))  # (6, L) each
    mask, inputs = data.encoding.n_vocab, []

    def network(z, t, at):
        inputs.append(z)
        return torch.zeros(int(at.sum()), mask + 1)  # (N, V)
    model = SimpleNamespace(encoding=data.encoding, method=MDLM(mask),
                            config=SimpleNamespace(block_size=48, data="chat"))
    config = configure(SamplingFlags, steps=2, guidance=2.0)
    config.batch_size = 1
    answers(model, network, x, frozen, config)
    prompts = sorted(frozen.sum(-1).tolist())
    firsts = [int((z[0] != mask).sum()) for z in inputs[::4]]  # before any mask opens
    assert firsts == prompts and all((z == mask).all() for z in inputs[1::4])


def test_a_choice_is_the_likeliest_answer(data):
    """With a network that knows the answer, and one that knows a wrong one."""
    chats, encoding = data.chats["val"], data.encoding
    i = next(i for i, (kind, messages) in enumerate(chats)
             if kind == "village" and len(messages) == 2)
    offered = offered_answers(chats, i, lambda text: True)
    assert len(set(offered)) == 4 and offered[0] == chats[i][1][-1]
    assert offered_answers(chats, i, lambda text: False) == offered[:1]
    model = SimpleNamespace(encoding=encoding, method=MDLM(encoding.n_vocab))
    for truth in (0, 2):
        ids = ids_of(encoding, [*chats[i][1][:-1], offered[truth]])
        text = torch.tensor(ids + [encoding.eot_token] * (48 - len(ids)))  # (L,)
        network = knows(text, encoding.n_vocab + 1)
        choice = likeliest_choice(model, network, chats[i][1], offered, 48, 4, 0, "cpu")
        assert choice == truth
