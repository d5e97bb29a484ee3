"""
Drafts that remember what they know of a text: another ar with a cache, and heads of an ar. Their
law is that of the AR model in the world of 27 texts (test_speculative.py has the others).
"""
from types import SimpleNamespace

import pytest
import torch

import world
from diffusion import probabilities
from flags import UserError
from methods import make_method
from networks import random_net
from samplers import make_sampler, speculative
from samplers.drafts import draft_of
from world import L, N, P, numbers

HEADS = make_method("ar", N, heads=L)
EXACT = HEADS.oracle(world.LANGUAGE)
GUESS = torch.rand(L, 4, N, generator=torch.Generator().manual_seed(4)).double()  # (H, last, N)


def many_heads(z, t, at, ahead=False, **layout):
    """The exact next token, and heads that guess by the word before theirs. z is shifted"""
    logits = EXACT(z, t, at)  # (n, N)
    if not ahead:
        return logits
    heads = [GUESS[j, z[at]].log() for j in range(1, L)]  # (n, N) each
    return torch.stack([logits, *heads], -2)  # (n, H, N)


def write_by_heads(n, frozen=None, K=1, **law):
    """Texts of the world whose drafts are those of many_heads. -> (n, L), the sampler"""
    sampler = make_sampler("speculative", HEADS, draft="heads", drafts=K)
    sampler.prepare(SimpleNamespace(method=HEADS))
    assert sampler.gamma == L - 1
    torch.manual_seed(0)
    frozen = torch.zeros(n, L, dtype=torch.bool) if frozen is None else frozen.expand(n, L)
    z = torch.where(frozen, 1, HEADS.prior((n, L)))  # (n, L)
    *_, z = HEADS.sample(many_heads, z, frozen, 1, sampler, lambda a: probabilities(a, **law))
    return z, sampler


@pytest.mark.parametrize("K", [1, 2])
def test_heads_leave_the_law_of_the_ar_model_as_it_is_at_any_temperature(K):
    z, sampler = write_by_heads(20_000, K=K)
    costs = sampler.costs()
    assert world.surprise(numbers(z, N), P) < 4
    assert costs["draft_calls"] == 0 and costs["accepted_per_call"] > 0.2
    z, sampler = write_by_heads(50, K=K, temperature=0)
    greedy = lambda a: probabilities(a, temperature=0)
    *_, alone = HEADS.sample(EXACT, HEADS.prior((50, L)), z < 0, 1, to_probs=greedy)
    assert torch.equal(z, alone)


def test_heads_draft_from_the_state_before_the_last_word():
    """A call whose first text is (a, b) has read a: its heads guess by a, whatever b is."""
    sampler = make_sampler("speculative", HEADS, draft="heads", gamma=2)
    sampler.writer = draft_of("heads", None)
    logits = torch.arange(4 * L * N).view(4, L, N).double()  # (n, H, N)
    free = torch.tensor([[True, True, False], [True, True, False]])
    state = speculative.beyond(logits, free, torch.tensor([0, 0]), torch.tensor([2, 1]), 1)
    assert torch.equal(state, logits[[1, 2], 1:])
    sampler.writer.check(None, torch.tensor([2, 1]), state)
    at = torch.tensor([[False, False, True, False], [False, False, True, True]])
    rows = sampler.writer.logits(at.long(), at, N, 0)
    assert torch.equal(rows[:2], torch.stack([logits[1, 1], logits[2, 2]])) and (rows[2] == 0).all()


def test_given_tokens_between_the_heads_change_no_law():
    z, _ = write_by_heads(20_000, torch.tensor([False, True, False]))
    begins = P.view(3, 3, 3)  # (3, 3, 3)
    exact = begins.sum((1, 2))[:, None] * begins[:, 1] / begins[:, 1].sum(-1, keepdim=True)
    assert world.surprise(z[:, 0] * 3 + z[:, 2], exact.flatten()) < 4 and (z[:, 1] == 1).all()


@pytest.mark.parametrize("K", [1, 2])
def test_a_draft_with_a_cache_writes_the_same_and_reads_a_token_once(K):
    """Texts of a batch are at different places, end early, and have prompts of several lengths."""
    ar = make_method("ar", 5)
    nets = [random_net(seed, 6, cond_dim=0, mask_mod=ar.mask_mod) for seed in (0, 1)]
    frozen = torch.arange(12) < torch.tensor([0, 5, 2, 1])[:, None]  # (4, 12)
    frozen[2, 7] = True
    read, z = [], torch.where(frozen, 3, ar.prior(frozen.shape))  # (4, 12)

    def write(cached, rows=slice(None), seed=0):
        draft = lambda z, t, **layout: read.append(z.shape[1]) or nets[1](z, t, **layout)
        draft.supports_cache = cached
        sampler = make_sampler("speculative", ar, gamma=3, drafts=K, draft="another")
        sampler.model = SimpleNamespace(method=ar, denoiser=draft)
        torch.manual_seed(seed)
        *_, end = ar.sample(nets[0], z[rows], frozen[rows], 1, sampler, end=4)
        return end
    for seed in range(3):
        for rows in (slice(None), slice(2, 3)):
            assert torch.equal(write(False, rows, seed), write(True, rows, seed))
    read.clear()
    write(True, slice(0, 1))
    assert sum(read) <= 12 + len(read)  # after a refusal, one token is read again


def test_what_heads_learn_is_the_loss_of_the_chapter():
    """(18.14), and the first head is ar: its bound and its texts need no other."""
    method, x = make_method("ar", 5, heads=3), torch.arange(14).view(2, 7) * 3 % 5  # (2, 7)
    torch.manual_seed(0)
    network = method.network(6, n_layer=1, n_head=2, n_embd=8, cond_dim=0,
                             mask_mod=method.mask_mod)
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.5)
    log_p = network(method.shift(x), ahead=True)[..., :5].log_softmax(-1)  # (2, 7, H, 5)
    exact = torch.zeros(2, 7)
    for l in range(7):
        for j in range(min(3, 7 - l)):
            exact[:, l + j] -= log_p[[0, 1], l, j, x[:, l + j]] / (1, 2, 2)[j]
    torch.testing.assert_close(method.loss(network, x), exact)
    given = torch.arange(7).expand(2, 7) < 3  # (2, 7)
    torch.testing.assert_close(method.loss(network, x, given), exact.masked_fill(given, 0))
    torch.testing.assert_close(method.nelbo(network, x),
                               -log_p[:, :, 0].gather(-1, x[..., None])[..., 0])


@pytest.mark.parametrize("flags, says", [
    ({}, "--draft heads is for an ar with several: train one with --heads 4"),
    (dict(draft_groups=2), "--draft heads writes all at once: leave out --draft_groups")])
def test_heads_need_an_ar_that_has_them_and_no_order(flags, says):
    with pytest.raises(UserError, match=says):
        ar = make_method("ar", N)
        made = make_sampler("speculative", ar, draft="heads", **flags)
        made.prepare(SimpleNamespace(method=ar))
