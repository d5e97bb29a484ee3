"""Complementary masks, (3.9): the same mean, each token once; in blocks by their number."""
import pytest
import torch
from bounds import close, exact_bound, quadrature
from networks import random_net

import train
import world
from methods import make_method, mdlm
from runs import TINY, cache, complaint, elsewhere, fit, tiny  # noqa: F401
from train import loss_per_token
from world import TEXTS, L, N, P

BOUNDS = {"mdlm": dict(weighting="bound"), "md4": {}, "linear": dict(mask_schedule="linear"),
          "polynomial": dict(mask_schedule="polynomial", power=1.5)}


def made(name, n_tokens=N, **flags):
    name = "md4" if name in ("linear", "polynomial") else name
    return make_method(name, n_tokens, complement=True, **flags)


def timeless(z, t, at=None):
    return world.vandal(z, torch.full((len(z), 1), 0.3, dtype=torch.float64), at)


def mean_of_pairs(method, denoiser, monkeypatch, given=0, nodes=120):
    """The mean loss of each text of the world, the first `given` tokens of it given: summed over
    all masks and integrated over t. -> (27,)"""
    t, w = quadrature(nodes)  # (nodes,) each
    masks = torch.cartesian_prod(*[torch.tensor([False, True])] * L)  # (8, L)
    masks = masks[~masks[:, :given].any(-1)]  # (M, L)
    shape = nodes, len(masks), len(TEXTS)  # every draw, flattened to n rows
    x = TEXTS.expand(*shape, L).reshape(-1, L)  # (n, L)
    z = torch.where(masks[:, None], N, TEXTS).expand(*shape, L).reshape(-1, L)  # (n, L)
    times = t[:, None, None].expand(shape).reshape(-1, 1)  # (n, 1)
    alpha = method.process.alpha(times)  # (n, 1)
    q = torch.where(z == N, 1 - alpha, alpha)[:, given:].prod(-1)  # (n,)
    monkeypatch.setattr(mdlm, "stratified", lambda n, device: times)
    monkeypatch.setattr(mdlm, "corrupt", lambda process, x, t, frozen: z)
    frozen = (torch.arange(L) < given).expand(len(x), -1) if given else None  # (n, L)
    nats = method.loss(denoiser, x, frozen).sum(-1)  # (n,)
    return (q * nats).view(shape).sum(1).T @ w  # (27,)


@pytest.mark.parametrize("name", BOUNDS)
def test_the_mean_of_pairs_is_the_bound_and_tight_for_the_oracle(name, monkeypatch):
    """Text by text, for any schedule; and for a wrong denoiser it is the bound of that."""
    method = made(name, **BOUNDS[name])
    exact = method.oracle(world.LANGUAGE)
    close(mean_of_pairs(method, exact, monkeypatch), -P.log(), 1e-6)
    wrong = exact_bound(mdlm.Absorbing(N), timeless, nodes=120)  # (27,)
    close(mean_of_pairs(method, timeless, monkeypatch), wrong, 1e-6)


def test_with_a_prompt_it_is_the_bound_of_the_rest(monkeypatch):
    method = made("mdlm", weighting="bound")
    first = torch.stack([P[TEXTS[:, 0] == v].sum() for v in range(N)])[TEXTS[:, 0]]  # (27,)
    found = mean_of_pairs(method, method.oracle(world.LANGUAGE), monkeypatch, given=1)
    close(found, -(P / first).log(), 1e-6)


def test_simple_weights_have_the_mean_of_those_without_pairs(monkeypatch):
    """6 (1 - r) at a share r of masks, which is 3 at times of density 2 (1 - r)."""
    def term(log_p, x, z, t):
        return 6 * (1 - t) * -log_p.gather(-1, x[..., None])[..., 0] * (z == N)  # (n, 27)
    due = exact_bound(mdlm.Absorbing(N), timeless, nodes=120, term=term)  # (27,)
    close(mean_of_pairs(made("mdlm"), timeless, monkeypatch), due, 1e-6)


@pytest.mark.parametrize("name, flags", [
    ("mdlm", {}), ("mdlm", dict(weighting="bound")), ("md4", {}), ("bd3lm", {}),
    ("bd3lm", dict(weighting="bound")), ("bd3lm", dict(diffusion_block=1))], ids=str)
@pytest.mark.parametrize("prompts", [False, True])
def test_each_token_is_masked_in_one_of_the_two_and_scored_there(name, flags, prompts):
    """Those that are not given; and the network is told the share of masks of each text."""
    method, calls = made(name, 7, **flags), []
    x = torch.randint(7, (300, 8), generator=torch.Generator().manual_seed(0))  # (B, L)
    frozen = torch.arange(8) < torch.arange(300)[:, None] % 9  # (B, L)

    def spy(z, t, at, **layout):
        calls.append((z[:, :8], t))
        return torch.zeros(int(at.sum()), 8)
    torch.manual_seed(0)
    nats = method.loss(spy, x, frozen if prompts else None)  # (B, L)
    (first, t), (second, s) = calls
    free = ~frozen if prompts else torch.ones_like(frozen)  # (B, L)
    assert torch.equal((first == 7) ^ (second == 7), free)
    assert ((first == 7) | (first == x)).all() and ((second == 7) | (second == x)).all()
    assert (nats[free] > 0).all() and (nats[~free] == 0).all()
    if name != "bd3lm":
        torch.testing.assert_close(t + s, torch.ones(300, 1))
        for z, share in ((first, t), (second, s)):
            off = ((z == 7).double() - share)[free].sum()
            assert abs(off) < 4.5 * (share * (1 - share) * free).sum().sqrt()


@pytest.mark.parametrize("name", ["mdlm", "md4", "bd3lm"])
def test_a_fused_head_gives_the_same_gradients(name):
    """Both halves keep the promise to kernels.py, with prompts, too."""
    method, gradients = made(name, 11, **({"diffusion_block": 4} if name == "bd3lm" else {})), []
    x, frozen = torch.randint(11, (6, 8)), torch.rand(6, 8) < 0.3  # (6, 8) each
    for fused in (False, True):
        network = random_net(vocab_size=12, cond_dim=0).train()
        network.supports_fused_head = fused
        torch.manual_seed(1)
        loss_per_token(method.loss(network, x, frozen), frozen).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
    assert gradients[0].abs().max() > 1e-3
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


def test_it_trains_also_on_answers():
    for flags in (dict(method="mdlm"), dict(method="mdlm", labels=True),
                  dict(data="chat", sft=True, block_size=256, tokenizer="bytes")):
        state = fit("out", complement=True, **flags)
        assert state["config"]["complement"] and state["step"] == TINY["max_iters"]
        assert all(a.isfinite().all() for a in state["model"].values())


@pytest.mark.parametrize("method, words, says", [
    ("pgm", [], "--complement belongs to"), ("radd", [], "--complement belongs to"),
    ("udlm", [], "--complement belongs to"),
    ("bd3lm", ["--clip", "0.3,0.8"], "leave out --complement, or --clip"),
    ("bd3lm", ["--clip_search"], "leave out --complement, or --clip")])
def test_methods_without_pairs_refuse_them_in_one_line(method, words, says, capsys):
    assert says in complaint(train, *tiny(method=method, out_dir="out"), "--complement", *words,
                             capsys=capsys)
