"""The length of an answer, drawn before its words: exact in a world with ends, and on chats.

Of the 27 texts of three symbols those are left in which 2, the end, is followed by ends only. The
first token is the prompt, which may be anything.
"""
import json
from pathlib import Path

import pytest
import torch
import world
from bounds import mean_of_batches
from runs import cache, complaint, elsewhere, fit  # noqa: F401
from world import TEXTS, L, N

import evaluate
from checkpoints.load import load_model
from data import load_data
from methods import make_method
from samplers import make_sampler
from samplers.generate import generate

END = 2
WHOLE = (TEXTS[:, 1] != END) | (TEXTS[:, 2] == END)  # (27,)
Q = world.P * WHOLE / (world.P * WHOLE).sum()  # (27,)
PROMPT = torch.stack([Q[TEXTS[:, 0] == v].sum() for v in range(N)])[TEXTS[:, 0]]  # (27,) Q(x_0)
ENTROPY = -torch.special.xlogy(Q, Q / PROMPT).sum()  # () of the answer
each_longest = pytest.mark.parametrize("longest", [1, 5])


def made(longest, **flags):
    method = make_method("diffusion_llm", N, longest=longest, **flags)
    method.end = END
    return method


def frozen_of(x):
    return (torch.arange(L) == 0).expand(x.shape)  # (n, L)


def exact(method):
    """The law of each word given z and the length, and at the first free token also log p(n | x_0).
    No word before the end is an end; if N is 1, one of two free words may be."""
    of_text = method.lengths(TEXTS, frozen_of(TEXTS))[0][:, 0]  # (27,)

    def denoiser(z, t, at=None):
        fits = ((z[:, None] == N) | (z[:, None] == TEXTS)).all(-1)  # (n, 27)
        ended = (z[:, None] == N) & (TEXTS == END) & (torch.arange(L) <= method.longest)
        weight = Q * fits * ~ended.any(-1)  # (n, 27)
        words = torch.stack([weight @ (TEXTS == v).double() for v in range(N)], -1)  # (n, L, N)
        lengths = torch.stack([(Q * fits)[:, of_text == k].sum(-1)
                               for k in range(method.longest + 1)], -1)  # (n, N + 1)
        rows = torch.cat([words, torch.zeros_like(words[..., :1]),
                          lengths[:, None].expand(-1, L, -1)], -1)  # (n, L, V)
        return (rows if at is None else rows[at]).clamp(min=1e-300).log()
    return denoiser


def draw_texts(n):
    return TEXTS[Q.multinomial(n, replacement=True)]  # (n, L)


@each_longest
def test_the_bound_given_the_length_and_that_of_the_length_are_tight_together(longest):
    method = made(longest)
    torch.manual_seed(0)

    def draw():
        x = draw_texts(1500)  # (n, L)
        nats = method.nelbo(exact(method), x, frozen_of(x))  # (n, L)
        assert (nats[:, 0] == 0).all() and nats.shape == x.shape
        return nats.sum(-1)  # (n,)
    mean, error = mean_of_batches(draw)
    assert error < 0.03 and abs(mean - ENTROPY) < 4.5 * error + 1e-9, (mean, ENTROPY, error)


def test_any_other_lengths_or_words_cost_more():
    method = made(2)
    truth = exact(method)
    torch.manual_seed(1)
    x = draw_texts(6000)  # (n, L)
    for row in (1, N + 1):  # a word, a length
        def wrong(z, t, at=None):
            logits = truth(z, t, at).clone()
            logits[..., row] += 1.5
            return logits
        nats = []
        for denoiser in (truth, wrong):
            torch.manual_seed(3)  # the same masks
            nats.append(method.nelbo(denoiser, x, frozen_of(x)).sum(-1))  # (n,)
        more = nats[1] - nats[0]  # (n,)
        assert more.mean() > 4 * more.std() / len(x) ** 0.5


@each_longest
def test_texts_have_the_law_of_the_answers(longest):
    method, n = made(longest), 10_000
    torch.manual_seed(2)
    x = draw_texts(n)  # (n, L)
    z = torch.where(frozen_of(x), x, method.process.mask)  # (n, L)
    sampler = make_sampler("first-hitting", method)
    *_, out = method.sample(exact(method), z, frozen_of(x), L, sampler)
    assert torch.equal(out[:, 0], x[:, 0])
    assert abs(world.surprise(world.numbers(out, N), Q)) < 4.5


def test_lengths_count_free_tokens_before_the_first_end_that_is_not_given():
    method = make_method("diffusion_llm", 9, longest=3)
    method.end = 8
    x = torch.tensor([[8, 1, 2, 8, 8, 8], [1, 1, 1, 1, 8, 8], [1, 8, 8, 8, 8, 8], [1] * 6])
    frozen = torch.arange(6).expand(4, 6) < 1  # (4, 6)
    n, over = method.lengths(x, frozen)
    assert n.flatten().tolist() == [2, 3, 0, 3]
    assert over.long().sum(-1).tolist() == [3, 0, 5, 0] and over[0, 3:].all()  # N or more: none
    method.end = None
    assert method.lengths(x, frozen)[0].flatten().tolist() == [3] * 4


def test_an_answer_counts_by_its_own_tokens_and_the_length_once():
    """With one level all is masked, and flat logits make each term known."""
    method, x = made(4, levels=1, level_weight="none"), torch.tensor([[0, 1, END]])
    flat = lambda z, t, at=None: torch.zeros(int(at.sum()), method.vocab_size, dtype=torch.float64)
    nats = method.loss(flat, x, frozen_of(x))[0]  # (L,)
    words, length = 2 * torch.tensor(3.0).log(), torch.tensor(5.0).log()
    assert nats[0] == nats[2] == 0  # given; an end that follows from the length
    assert (nats.sum() / 2).item() == pytest.approx((words + length).item())
    assert torch.equal(method.loss(flat, x, torch.ones_like(x) > 0), torch.zeros(1, L))


def test_weights_of_a_masked_network_fit_and_the_lengths_are_new():
    method, mdlm = made(2), make_method("mdlm", N)
    theirs = {name: torch.ones(N + 1, 2) for name in ("embed", "head.weight", "head.bias")}
    fresh = {name: torch.zeros(N + 4, 2) for name in theirs}
    for rows in method.weights_from(mdlm, theirs, fresh).values():
        assert rows.shape == (N + 4, 2) and (rows[:N + 1] == 1).all() and (rows[N + 1:] == 0).all()
    own = method.weights_from(method, fresh, fresh)
    assert all(own[name] is fresh[name] for name in fresh)


def test_a_run_on_chats_keeps_its_end_and_writes_as_many_tokens_as_it_said():
    chats = [{"messages": [{"role": "user", "content": f"What is {i}?"},
                           {"role": "assistant", "content": "Yes." * (1 + i % 3)}]}
             for i in range(30)]
    Path("mine.jsonl").write_text("\n".join(map(json.dumps, chats)))
    shape = dict(data="mine.jsonl", tokenizer="bytes", block_size=36)
    fit("base", method="mdlm", **shape)
    state = fit("run", method="diffusion_llm", sft=True, init_from="base", longest=20, **shape)
    model, data = load_model("run"), load_data("mine.jsonl", 36, "bytes", sft=True)
    end = data.encoding.eot_token
    assert state["end"] == model.method.end == end
    x, frozen, _ = data.example_windows("val", 8)  # (n, L)
    n, over = model.method.lengths(x, frozen)
    assert torch.equal(over, ~frozen & (x == end)) and (n > 0).all()
    given = torch.where(frozen, x, 0)  # (n, L)
    seen = []

    def spy(z, t, at=None, **layout):
        logits = model.denoiser(z, t, at=at, **layout)
        logits[:, :model.method.n_tokens][:, end] = -99.0  # before its end a text has none
        seen.append(z)
        return logits
    out = generate(model.method, spy, len(x), 36, 4, given=given, frozen=frozen)  # (n, L)
    told = seen[1] == end  # (n, L) from the second call on
    assert torch.equal(out[told & ~frozen], torch.full_like(out[told & ~frozen], end))
    assert torch.equal((out == end) & ~frozen, told & ~frozen) and (told & ~frozen).any()


def test_there_is_no_exact_denoiser_of_lengths(capsys):
    line = ["--oracle", "diffusion_llm", "--longest", "3"]
    assert "--longest has no exact denoiser" in complaint(evaluate, *line, capsys=capsys)
