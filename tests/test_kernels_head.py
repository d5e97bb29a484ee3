"""The head and the loss in chunks, only where they count: the plain form's values and gradients, for every method."""
import pytest
import torch

import kernels
import positions
from learner import per_token
from methods import make_method
from model import Transformer
from positions import capacity, cross_entropy, nats_at, select
from uniform import GIDD, mixture_nats, noise_of

V, D, N = 23, 8, 37
RULES = {"cross_entropy": cross_entropy, "mixture_nats": mixture_nats}
METHODS = ["ar", "mdlm", "md4", "radd", "bd3lm", "pgm", "udlm", "gidd", "duo"]


def facts_of(rule, dtype):
    """Targets; for the bound also noisy ids, masks among them, and the noise at times from almost 0 to almost 1."""
    x = torch.randint(V - 1, (N,))                                                                      # (N,)
    if rule == "cross_entropy":
        return (x,)
    process = GIDD(V - 1).process
    z = torch.where(torch.rand(N) < 0.3, x, torch.randint(V, (N,)))                                     # (N,)
    t = torch.linspace(0.002, 0.998, N).to(dtype)[:, None]                                              # (N, 1)
    u, kappa = noise_of(process, x[:, None], t)                                                         # (N, 1) each
    return x, z, kappa[:, 0].to(dtype), u[:, 0].to(dtype)


def both(rule, dtype, autocast=False, frozen=False):
    """-> of the fast form and of the plain one: nats (N,), gradients to h (N, D), weight (V, D), bias (V,)"""
    torch.manual_seed(1)
    facts, free = facts_of(rule, dtype), torch.ones(N, dtype=dtype)                                     # (N,) each
    h, weight, bias, scale, uneven = (torch.randn(*shape, dtype=torch.float64).to(dtype)
                                      for shape in ((N, D), (V, D), (V,), (N,), (N,)))
    free = uneven.exp() if frozen else free                                                             # (N,)
    results = []
    for form, its in ((kernels.FAST[rule], {}), (kernels.head_loss_plain, dict(rule=RULES[rule]))):
        inputs = [a.clone().requires_grad_() for a in (h, weight, bias)]
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            nats = form(*inputs, **its, n_tokens=V - 1, scale=scale, free=free, facts=facts)            # (N,)
        (3.7 * (free * nats).sum()).backward()
        results.append([nats.detach(), *(a.grad for a in inputs)])
    return results


@pytest.fixture(autouse=True)
def in_small_chunks(monkeypatch):
    monkeypatch.setattr(kernels, "parts", lambda n, V, *_: [slice(i, i + 10) for i in range(0, max(1, n), 10)])


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_values_and_gradients_are_those_of_the_plain_form(rule, frozen):
    for fast, plain in zip(*both(rule, torch.float64, frozen=frozen)):
        torch.testing.assert_close(fast, plain, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("rule", RULES)
def test_under_bf16_autocast_the_error_is_that_of_bf16(rule):
    """Against float64, the fast form is as near as the plain one."""
    exact = both(rule, torch.float64)[1]
    for fast, plain, true in zip(*both(rule, torch.float32, autocast=True), exact):
        error = [(a.double() - true).norm() / true.norm() for a in (fast, plain)]
        assert fast.dtype == plain.dtype and error[0] < 1.5 * error[1] + 1e-6 and error[0] < 0.03


def test_where_the_bound_is_a_small_difference_float32_keeps_its_digits():
    """Near t = 1: of terms of the size of kappa = 1/100, kappa^2 is left."""
    torch.manual_seed(1)
    logits, x, z, one = torch.randn(N, V), torch.randint(V, (N,)), torch.randint(V, (N,)), torch.ones(N)
    nats, slope = kernels.mixture_nats(logits.clone(), one, x, z, one / 100, one / V)                   # (N,), (N, V)
    true, true_slope = kernels.mixture_nats(logits.double(), *(a.double() if a.is_floating_point() else a for a in
                                                               (one, x, z, one / 100, one / V)))
    assert true.max() < 1e-3 and ((nats - true) / true).abs().max() < 1e-3
    assert ((slope - true_slope).norm(dim=-1) / true_slope.norm(dim=-1)).max() < 1e-3


def test_a_broken_promise_about_the_mean_is_seen():
    h, weight, bias = torch.randn(N, D), torch.randn(V, D, requires_grad=True), torch.zeros(V)
    nats = kernels.FAST["cross_entropy"](h, weight, bias, n_tokens=V, facts=(torch.zeros(N, dtype=torch.long),))
    (nats * torch.linspace(1, 2, N)).sum().backward()
    assert weight.grad.isnan().all()


@pytest.fixture
def exactly():
    """Times, too, in float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def network(method):
    torch.manual_seed(2)
    make = getattr(method, "network", Transformer)
    net = make(method.vocab_size, n_layer=2, n_head=2, n_embd=16, cond_dim=8 if method.uses_time else 0,
               mask_mod=method.mask_mod)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return net


def test_without_a_promise_any_use_may_be_made_of_the_loss(exactly):
    method, grads = make_method("mdlm", 11), []
    net, x, odd = network(method), torch.randint(11, (4, 8)), torch.rand(4, 8)                          # (B, L) each
    z = torch.where(torch.rand(4, 8) < 0.5, 11, x)                                                      # (B, L)
    for net.fuses in (True, False):
        net.zero_grad()
        (method.cross_entropy(net, x, z, None) * odd).sum().backward()
        grads.append(net.head.weight.grad.clone())
    assert grads[0].isfinite().all() and torch.equal(*grads)


def trained(method, net, frozen, fuses=True, static=False, share=None):
    """-> the loss of a batch, and the gradients of all weights"""
    net.fuses, net.static = fuses, static
    torch.manual_seed(3)
    x = torch.randint(method.n_tokens, (4, 8))                                                          # (B, L)
    loss = per_token(method.loss(net, x, frozen), frozen)                                               # ()
    net.zero_grad()
    loss.backward()
    grads = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **grads}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_alike_in_chunks_and_at_a_static_number_of_positions(name, monkeypatch, exactly):
    method = make_method(name, 11, diffusion_block=4)
    net, used = network(method), []
    fast = positions.fast_form
    monkeypatch.setattr(positions, "fast_form", lambda *a, **b: used.append(fast(*a, **b)) or used[-1])
    for frozen in (None, torch.arange(8).expand(4, 8) < torch.tensor([0, 1, 3, 5])[:, None]):
        plain = trained(method, net, frozen, fuses=False)
        assert not any(used) and plain["loss"] > 0
        torch.testing.assert_close(trained(method, net, frozen), plain, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(trained(method, net, frozen, static=True), plain, rtol=1e-9, atol=1e-9)
        assert all(used[1:]) and len(used) == 3
        torch.testing.assert_close(trained(method, net, frozen, fuses=False, static=True), plain, rtol=1e-9, atol=1e-9)
        used.clear()


@pytest.mark.parametrize("name", ["mdlm", "udlm"])
def test_without_kernels_py_everything_works(name, monkeypatch, exactly):
    method = make_method(name, 11)
    net = network(method)
    fast = trained(method, net, None)
    monkeypatch.setattr(positions, "kernels", None)
    torch.testing.assert_close(trained(method, net, None), fast, rtol=1e-9, atol=1e-9)


def test_the_bound_is_the_same_without_gradients_and_no_promise_is_needed_for_it(exactly):
    for name in ("mdlm", "udlm", "gidd"):
        method = make_method(name, 11)
        net, x, nats = network(method), torch.randint(11, (4, 8)), []
        for net.fuses in (True, False):
            torch.manual_seed(4)
            with torch.no_grad():
                nats.append(method.nelbo(net, x))                                                       # (B, L)
        torch.testing.assert_close(*nats, rtol=1e-10, atol=1e-10)


def test_a_static_selection_has_room_for_what_is_drawn():
    """32 texts of 256 tokens, the weights of `simple` and of the bound, 300 draws: none is over."""
    for simple in (True, False):
        method = make_method("mdlm", 5, weighting="simple" if simple else "bound")
        room, n = capacity(32, 256, method.share_masked(simple)), []
        counted = lambda z, t, at: n.append(int(at.sum())) or torch.zeros(n[-1], 6)
        for _ in range(300):
            method.loss(counted, torch.zeros(32, 256, dtype=torch.long))
        assert max(n) < room < 1.25 * max(n), (max(n), room)


def test_where_more_is_drawn_than_there_is_room_for_the_mean_stays_what_it_was(monkeypatch):
    """Room for 13 of some 26: chance says which, and they weigh more."""
    monkeypatch.setattr(positions, "capacity", lambda B, L, share: 13)
    torch.manual_seed(5)
    at = torch.rand(4, 8) < 0.8                                                                         # (B, L)
    x, z = torch.arange(32).view(4, 8), torch.zeros(4, 8)                                               # (B, L)
    value = lambda logits, x: (x + 1.0) ** 2
    scores = lambda z, t, at: torch.zeros(len(at), 2)
    scores.static = True
    draws = torch.stack([nats_at(scores, z, None, at, value, (x,), 2, share=0.5) for _ in range(4000)])  # (n, B, L)
    assert (draws[0] > 0).sum() == 13 < at.sum()
    true, error = torch.where(at, (x + 1.0) ** 2, 0.0), draws.std(0) / 4000 ** 0.5
    assert ((draws.mean(0) - true).abs() <= 4.5 * error).all()


def test_the_positions_are_all_different_and_those_asked_for_come_first():
    at = torch.rand(6, 32) < 0.2                                                                        # (B, L)
    numbers, worth = select(at, 0.25)
    assert len(numbers.unique()) == len(numbers) == capacity(6, 32, 0.25)
    assert worth.sum() == at.sum() and at.flatten()[numbers][worth > 0].all()
