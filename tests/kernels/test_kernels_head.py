"""The head and the loss in chunks, where they count: values and gradients of the plain form."""
import pytest
import torch

import kernels
from flags import load_row
from methods import METHODS, base, make_method
from methods.base import capacity, cross_entropy, fast_form, loss_at, select_fixed
from methods.gidd import GIDD
from methods.udlm import mixture_nats, noise_and_kappa
from train import loss_per_token

V, D, N = 23, 8, 37
RULES = {"cross_entropy": cross_entropy, "mixture_nats": mixture_nats}
CLASSES = {name: load_row(METHODS, name) for name in METHODS}
FUSED = [name for name, cls in CLASSES.items() if cls.fixed_positions and not cls.classifies]


def facts_of(rule, dtype):
    """Targets; for the bound also noisy ids, masks included, and the noise at times from 0 to 1."""
    x = torch.randint(V - 1, (N,))  # (N,)
    if rule == "cross_entropy":
        return (x,)
    process = GIDD(V - 1).process
    z = torch.where(torch.rand(N) < 0.3, x, torch.randint(V, (N,)))  # (N,)
    t = torch.linspace(0.002, 0.998, N).to(dtype)[:, None]  # (N, 1)
    u, kappa = noise_and_kappa(process, x[:, None], t)  # (N, 1) each
    return x, z, kappa[:, 0].to(dtype), u[:, 0].to(dtype)


def fast_and_plain(rule, dtype, autocast=False, frozen=False):
    """For each form: nats (N,), and the gradients of h (N, D), weight (V, D) and bias (V,)."""
    torch.manual_seed(1)
    facts, free = facts_of(rule, dtype), torch.ones(N, dtype=dtype)  # (N,) each
    shapes = (N, D), (V, D), (V,), (N,), (N,)
    h, weight, bias, scale, uneven = (torch.randn(*shape, dtype=torch.float64).to(dtype)
                                      for shape in shapes)
    free = uneven.exp() if frozen else free  # (N,)
    results = []
    for form, its in ((kernels.FAST[rule], {}),
                      (kernels.head_loss_plain, dict(rule=RULES[rule]))):
        inputs = [a.clone().requires_grad_() for a in (h, weight, bias)]
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            nats = form(*inputs, **its, n_tokens=V - 1, scale=scale, free=free, facts=facts)  # (N,)
        (3.7 * (free * nats).sum()).backward()
        results.append([nats.detach(), *(a.grad for a in inputs)])
    return results


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    chunks = lambda n, V, *_: [slice(i, i + 10) for i in range(0, max(1, n), 10)]
    monkeypatch.setattr(kernels, "row_chunks", chunks)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_values_and_gradients_are_those_of_the_plain_form(rule, frozen):
    for fast, plain in zip(*fast_and_plain(rule, torch.float64, frozen=frozen)):
        torch.testing.assert_close(fast, plain, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("rule", RULES)
def test_under_bf16_autocast_the_error_is_that_of_bf16(rule):
    """Compared with float64, the fast form is as close as the plain one."""
    exact = fast_and_plain(rule, torch.float64)[1]
    for fast, plain, true in zip(*fast_and_plain(rule, torch.float32, autocast=True), exact):
        error = [(a.double() - true).norm() / true.norm() for a in (fast, plain)]
        assert fast.dtype == plain.dtype
        assert error[0] < 1.5 * error[1] + 1e-6 and error[0] < 0.03


def test_where_the_bound_is_a_small_difference_float32_keeps_its_digits():
    """Near t = 1, terms of size kappa = 1/100 cancel to kappa^2."""
    torch.manual_seed(1)
    logits, one = torch.randn(N, V), torch.ones(N)  # (N, V), (N,)
    x, z = torch.randint(V, (N,)), torch.randint(V, (N,))  # (N,) each
    facts = one, x, z, one / 100, one / V
    nats, slope = kernels.mixture_nats(logits.clone(), *facts)  # (N,), (N, V)
    facts = (a.double() if a.is_floating_point() else a for a in facts)
    true, true_slope = kernels.mixture_nats(logits.double(), *facts)  # (N,), (N, V)
    assert true.max() < 1e-3 and ((nats - true) / true).abs().max() < 1e-3
    assert ((slope - true_slope).norm(dim=-1) / true_slope.norm(dim=-1)).max() < 1e-3


def test_a_broken_promise_about_the_mean_turns_the_gradients_into_nan():
    h, weight, bias = torch.randn(N, D), torch.randn(V, D, requires_grad=True), torch.zeros(V)
    facts = (torch.zeros(N, dtype=torch.long),)
    nats = kernels.FAST["cross_entropy"](h, weight, bias, n_tokens=V, facts=facts)  # (N,)
    (nats * torch.linspace(1, 2, N)).sum().backward()
    assert weight.grad.isnan().all()


@pytest.fixture
def float64():
    """Times, too, are drawn in float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def network(method):
    torch.manual_seed(2)
    net = method.network(method.vocab_size, n_layer=2, n_head=2, n_embd=16,
                         cond_dim=8 if method.uses_time else 0, mask_mod=method.mask_mod)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return net


def test_without_a_promise_the_loss_may_be_used_in_any_way(float64):
    method, grads = make_method("mdlm", 11), []
    net, x, odd = network(method), torch.randint(11, (4, 8)), torch.rand(4, 8)  # (B, L) each
    z = torch.where(torch.rand(4, 8) < 0.5, 11, x)  # (B, L)
    for net.supports_fused_head in (True, False):
        net.zero_grad()
        (method.cross_entropy(net, x, z, None) * odd).sum().backward()
        grads.append(net.head.weight.grad.clone())
    assert grads[0].isfinite().all() and torch.equal(*grads)


def train_once(method, net, frozen=None, fused=True, fixed_shapes=False):
    """-> {"loss": of a batch, name of a weight: its gradient}"""
    net.supports_fused_head, net.fixed_shapes = fused, fixed_shapes
    torch.manual_seed(3)
    x = torch.randint(method.n_tokens, (4, 8))  # (B, L)
    loss = loss_per_token(method.loss(net, x, frozen), frozen)  # ()
    net.zero_grad()
    loss.backward()
    grads = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **grads}


@pytest.mark.parametrize("name", FUSED)
def test_every_method_trains_alike_in_chunks_and_at_a_fixed_number_of_positions(
        name, monkeypatch, float64):
    method = make_method(name, 11, diffusion_block=4, gamma=0.0)  # a focal loss has no fast form
    net, used, fast = network(method), [], fast_form
    spy = lambda *args, **options: used.append(fast(*args, **options)) or used[-1]
    monkeypatch.setattr(base, "fast_form", spy)
    some = torch.arange(8).expand(4, 8) < torch.tensor([0, 1, 3, 5])[:, None]  # (B, L)
    for frozen in (None, some):
        plain = train_once(method, net, frozen, fused=False)
        assert not any(used) and plain["loss"] > 0
        for options in ({}, dict(fixed_shapes=True), dict(fused=False, fixed_shapes=True)):
            result = train_once(method, net, frozen, **options)
            torch.testing.assert_close(result, plain, rtol=1e-9, atol=1e-9)
        runs = torch.tensor([bool(form) for form in used]).view(4, -1)  # (4, calls in a loss)
        assert torch.equal(runs, torch.tensor([[False], [True], [True], [False]]).expand_as(runs))
        used.clear()


@pytest.mark.parametrize("name", ["mdlm", "udlm"])
def test_without_kernels_py_everything_works(name, monkeypatch, float64):
    method = make_method(name, 11)
    net = network(method)
    fast = train_once(method, net)
    monkeypatch.setattr(base, "kernels", None)
    torch.testing.assert_close(train_once(method, net), fast, rtol=1e-9, atol=1e-9)


def test_the_bound_is_the_same_without_gradients_where_no_promise_is_needed(float64):
    for name in ("mdlm", "udlm", "gidd"):
        method = make_method(name, 11)
        net, x, nats = network(method), torch.randint(11, (4, 8)), []
        for net.supports_fused_head in (True, False):
            torch.manual_seed(4)
            with torch.no_grad():
                nats.append(method.nelbo(net, x))  # (B, L)
        torch.testing.assert_close(*nats, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("weighting", ["simple", "bound"])
def test_a_fixed_selection_has_room_for_all_positions_that_are_drawn(weighting):
    """In 300 batches of 32 texts of 256 tokens the room is never exceeded."""
    method = make_method("mdlm", 5, weighting=weighting)
    room, n = capacity(32, 256, method.share_masked(weighting == "simple")), []
    counted = lambda z, t, at: n.append(int(at.sum())) or torch.zeros(n[-1], 6)
    for _ in range(300):
        method.loss(counted, torch.zeros(32, 256, dtype=torch.long))
    assert max(n) < room < 1.25 * max(n), (max(n), room)


def test_if_more_positions_are_drawn_than_there_is_room_for_the_mean_stays_the_same(monkeypatch):
    """Room for 13 of about 26: they are chosen at random, with a higher weight."""
    monkeypatch.setattr(base, "capacity", lambda B, L, share: 13)
    torch.manual_seed(5)
    at = torch.rand(4, 8) < 0.8  # (B, L)
    x, z = torch.arange(32).view(4, 8), torch.zeros(4, 8)  # (B, L)
    value = lambda logits, x: (x + 1.0) ** 2
    scores = lambda z, t, at: torch.zeros(len(at), 2)
    scores.fixed_shapes = True
    draws = torch.stack([loss_at(scores, z, None, at, value, (x,), 2, share=0.5)
                         for _ in range(4000)])  # (n, B, L)
    assert (draws[0] > 0).sum() == 13 < at.sum()
    true, error = torch.where(at, (x + 1.0) ** 2, 0.0), draws.std(0) / 4000 ** 0.5  # (B, L)
    assert ((draws.mean(0) - true).abs() <= 4.5 * error).all()


def test_the_selected_positions_are_distinct_and_those_asked_for_come_first():
    at = torch.rand(6, 32) < 0.2  # (B, L)
    numbers, weights = select_fixed(at, 0.25)  # (K,) each
    assert len(numbers.unique()) == len(numbers) == capacity(6, 32, 0.25)
    assert weights.sum() == at.sum() and at.flatten()[numbers][weights > 0].all()


# ---- the MLP

def test_gelu_is_computed_again_for_the_same_gradient_and_not_kept():
    """Kept are the input and what the first layer makes: not GELU of it, four times as wide. 300
    rows are more than are computed at once."""
    torch.manual_seed(0)
    plain = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.GELU("tanh"),
                                torch.nn.Linear(32, 8)).double()
    x, kept, found = 3 * torch.randn(3, 100, 8, dtype=torch.float64), [], []  # (B, L, D)
    ours = kernels.MLP(*plain)
    for mlp in (plain, ours):
        sizes, h = {}, x.clone().requires_grad_()  # (N, D)

        def pack(a):
            sizes[a.untyped_storage().data_ptr()] = a.numel()
            return a
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda a: a):
            y = mlp(h)  # (N, D)
        kept.append(sum(sizes.values()))
        found.append([y, *torch.autograd.grad(y.square().sum(), [h, *plain.parameters()])])
    for right, a in zip(*found):
        torch.testing.assert_close(a, right, rtol=1e-9, atol=1e-9)
    assert kept[0] - kept[1] >= 300 * 32
    with torch.no_grad():
        assert torch.equal(ours(x), plain(x))
