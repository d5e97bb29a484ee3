"""Plaid: its numbers, its schedule and the gradient of it, and what all methods with embeddings
share: self-conditioning, given tokens, the table in the network.

embedding.npz, `plaid/*`: the code of igul222/plaid (commit e7d5cf8) with a network without blocks.
"""
import copy
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from bounds import close
from references import Figures

import world
from checkpoints.build import build_network
from diffusion import Labeled, stratified
from flags import UserError, configure
from gaussian import EmbeddingSpace, VectorSpace, log_evidence
from methods import make_method
from methods.gammas import Linear
from methods.plaid import LearnedLine, Monotone, Plaid
from runtime.optim import make_optimizers
from train import Config
from world import TEXTS, N, P

figure = Figures("embedding")
NETWORK = SimpleNamespace(n_layer=1, n_head=2, n_embd=16, cond_dim=8, dropout=0.0, qk_norm=True,
                          norm_bias=False, time_input="auto")


def published_space():
    """Plaid's table and schedule, from its weights."""
    warp = Monotone()
    for ours, theirs in (("w1", "W1"), ("bias", "b1"), ("w2", "W2")):
        getattr(warp, ours).data = figure(f"plaid/w/schedule.{theirs}").flatten()
    return EmbeddingSpace(figure("plaid/w/embedding"), "unit", LearnedLine(-3.0, 6.0), warp,
                          feeds_back=True)


def published_network(space, bias_scale=1.0):
    """Plaid's network without blocks as a denoiser of ours: log c, so without the output prior."""
    w = {key.removeprefix("plaid/w/net."): figure(key) for key in figure.keys("plaid/w/net.")}

    def denoiser(z, t, at=None):
        z, prev, gamma = z[..., :5], z[..., 5:], space.gamma(t).expand(z.shape[:2])  # (B, L)
        alpha2, sigma2 = (torch.sigmoid(a)[..., None] for a in (-gamma, gamma))  # (B, L, 1) each
        h = (z / (alpha2 / 5 + sigma2).sqrt()).float() @ w["input_linear.weight"].T
        h = h + prev.float() * math.sqrt(5) @ w["selfcond_linear.weight"].T  # (B, L, 16)
        angle = gamma[..., None].double() * torch.exp(torch.linspace(-5, 5, 32)).double()
        features = torch.cat([angle.sin(), angle.cos()], -1).float()  # (B, L, 64)
        h = h + features @ w["gamma_linear.weight"].T
        h = F.layer_norm(h.float(), (16,)) * w["output_norm.weight"]
        logits = h @ w["output_linear.weight"].T + w["output_linear.bias"]  # (B, L, 9)
        rows = space.rows().double()  # (9, 5)
        missing = (bias_scale - 1) * log_evidence(z.double(), gamma.double(), rows)  # it is added
        logits = logits + missing
        return logits if at is None else logits[at]
    return denoiser, w


def test_schedule_and_table_are_the_published_ones():
    space, t = published_space(), figure("plaid/t")
    g, slope = space.warp(t)
    close(g, figure("plaid/schedule"), 1e-6)
    close(slope, figure("plaid/schedule_dt"), 1e-5)
    close(space.gamma(g), figure("plaid/gamma_t"), 1e-5)
    close(9 * slope, figure("plaid/dgamma_dt"), 1e-4)
    close(space.rows(), figure("plaid/E"), 1e-6)


@pytest.mark.parametrize("scale", [0, 1])
def test_the_output_prior_is_the_evidence(scale):
    space = published_space()
    denoiser, _ = published_network(space, scale)
    z, prev = figure("plaid/pass_z"), figure("plaid/pass_prev")
    t = ((figure("plaid/pass_gamma") + 3) / 9)[:, None]  # (3, 1)
    at = torch.ones(z.shape[:2], dtype=torch.bool)
    found = space.predict(denoiser, z, t, at, prev)
    expected = figure(f"plaid/pass_logits_bias{scale}").log_softmax(-1).flatten(0, 1)
    close(found.log_p.float(), expected, 2e-5)
    close(found.x_hat.float(), figure(f"plaid/pass_xhat_bias{scale}").flatten(0, 1), 2e-5)


def published_method():
    method = Plaid(9, dim=5, weighting="bound", self_condition=1.0)
    clock, method.process = method.process.clock, published_space()
    method.process.clock = clock
    return method


def test_the_bound_on_fixed_noise_is_the_published_one(monkeypatch):
    """One text for the decoder, seven at stratified times; each with two calls."""
    method, noise = published_method(), figure("plaid/eval_noise")  # (8, 6, 5)
    monkeypatch.setattr(torch, "randn", lambda *shape, **options: noise)
    denoiser, _ = published_network(method.process)
    x, u = figure("plaid/x"), figure("plaid/eval_u")  # (8, 6), ()
    first = torch.arange(8)[:, None] < 1  # (8, 1)
    at = torch.ones_like(x, dtype=torch.bool)  # (8, 6)
    t, slope = method.process.warp((torch.arange(-1, 7)[:, None] + u) / 7)  # (8, 1) each
    rec = method.decoder_nats(denoiser, x, at & first).mean()
    rest = method.integrand(denoiser, x, t, 9 * slope, at & ~first).mean()
    prior = method.noise_left(x, at).mean()
    close(rec.double(), figure("plaid/eval_reconst"), 2e-5)
    close(prior.double(), figure("plaid/eval_prior"), 2e-6)
    close((rec + rest + prior).double(), figure("plaid/eval_loss"), 2e-5)


# ---- the learned schedule

def trained_parts(seed=0, **flags):
    """-> a method, its network with random weights, texts (24, 12)"""
    method = make_method("plaid", 7, **{"dim": 4, "self_condition": 0.0, **flags})
    network = build_network(NETWORK, method)
    torch.manual_seed(seed)
    for name, p in network.named_parameters():
        if not name.startswith("space."):
            torch.nn.init.normal_(p, std=0.3)
    return method, network, torch.randint(7, (24, 12))


def test_the_schedule_descends_the_variance_and_nothing_else_does():
    """(13.11): the gradient of g is that of the mean square of the nats of texts; those of table
    and ends are of the mean."""
    method, network, x = trained_parts(weighting="bound")
    at, warp = torch.ones_like(x, dtype=torch.bool), network.space.warp
    torch.manual_seed(1)
    method.integral(network, x, at, None, None).mean(-1).sum().backward()
    found = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    torch.manual_seed(1)
    t, slope = warp(stratified(len(x)))  # (24, 1) each
    t, weight = t.float(), slope.float() * network.space.schedule.ends.diff()
    nats = method.integrand(network, x, t, weight, at).view(x.shape).mean(-1)  # (24,)
    inside = torch.autograd.grad(nats.square().sum(), [*warp.parameters()], retain_graph=True)
    for (name, _), gradient in zip(warp.named_parameters(), inside):
        close(found[f"space.warp.{name}"], gradient, 1e-5)
    others = {name: p for name, p in network.named_parameters() if name in found
              and "warp" not in name}
    assert {"space.table", "space.schedule.ends", "head.weight"} <= set(others)
    for name, gradient in zip(others, torch.autograd.grad(nats.sum(), [*others.values()])):
        close(found[name], gradient, 1e-5)


def test_the_split_batch_has_the_mean_of_the_bound():
    method, network, x = trained_parts(weighting="bound")
    torch.manual_seed(0)
    with torch.no_grad():
        split = torch.stack([method.split_bound(network, x, None, torch.zeros(24).bool()).mean()
                             for _ in range(50)])  # (50,)
        whole = torch.stack([method.nelbo(network, x).mean() for _ in range(50)])  # (50,)
    error = (split.var() / 50 + whole.var() / 50) ** 0.5
    assert abs(split.mean() - whole.mean()) < 4 * error < 0.4 * whole.mean()


# ---- what all methods with embeddings share

@pytest.mark.parametrize("name", ["plaid", "diffusion_lm"])
def test_self_conditioning_feeds_back_the_first_x_hat_without_a_gradient(name):
    """At the texts that are chosen; at the others the network reads 0, as in its first call."""
    method = make_method(name, 7, dim=4, self_condition=0.5)
    x, calls = torch.randint(7, (4, 5)), []
    out = torch.randn(4, 5, 7 if name == "plaid" else 4).requires_grad_()

    def denoiser(z, t, at):
        calls.append(z)
        return out[at]
    chosen, at = torch.tensor([True, False, True, False]), torch.ones(4, 5, dtype=torch.bool)
    e, z, t = method.noisy(x, torch.rand(4, 1))
    found = method.predict(denoiser, z, t, at, chosen)
    first, second = calls
    assert (first[..., 4:] == 0).all() and torch.equal(second[..., :4], z)
    x_hat = found.x_hat.view(4, 5, 4)
    close(second[chosen, :, 4:], x_hat[chosen].detach())
    assert (second[~chosen, :, 4:] == 0).all() and not second.requires_grad


def test_a_walk_feeds_back_the_x_hat_of_its_last_step():
    method, calls = make_method("plaid", 7, dim=4, self_condition=0.5), []
    out = torch.randn(3, 5, 7)

    def denoiser(z, t, at):
        calls.append((z, t))
        return out[at]
    nothing = torch.zeros(3, 5, dtype=torch.bool)
    list(method.sample(denoiser, method.prior((3, 5)), nothing, 3))
    (z, t), (again, _), _ = calls
    assert (z[..., 4:] == 0).all() and (t == 1).all()
    gamma, table = method.process.gamma(t).expand(3, 5), method.process.rows()
    x_hat = (out + log_evidence(z[..., :4], gamma, table)).softmax(-1) @ table
    close(again[..., 4:], x_hat, 1e-5)


def test_the_table_does_not_decay_and_inputs_have_unit_variance_whatever_its_norm():
    method, network, x = trained_parts(weighting="bound")
    optimizer, = make_optimizers(network, configure(Config, optimizer="adamw"))
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups
              for p in group["params"]}
    for name, p in network.named_parameters():
        assert (decays[id(p)] == 0) == (p.ndim < 2 or name.startswith("space."))
    space = VectorSpace(5 * torch.randn(7, 4), "free", Linear(-4.0, 6.0))
    e, t = space.rows()[torch.randint(7, (2000, 5))], torch.rand(2000, 1)
    seen, _ = space.scaled(*space.noisy(e, t))
    assert seen.square().mean().item() == pytest.approx(1, abs=0.05)


def test_a_network_may_read_which_words_a_row_may_be():
    """Beside the rows: (13.2) as probabilities, the word itself at a given token."""
    method = make_method("plaid", 7, dim=4, self_condition=0.0, reads="words")
    space, x = method.process, torch.randint(7, (3, 5))
    frozen = torch.zeros(3, 5, dtype=torch.bool)
    frozen[:, 1] = True
    _, z, t = method.noisy(x, torch.rand(3, 1), frozen)
    seen, _ = space.scaled(z, t)  # (3, 5, 11)
    p = log_evidence(z, space.gamma(t.clamp(min=1e-6)), space.rows()).softmax(-1)
    close(seen[..., 4:], p, 1e-6)
    assert (seen[..., 4:].argmax(-1) == x)[frozen].all() and seen.shape == (3, 5, 11)
    assert method.network(7, 1, 2, 16, cond_dim=8).embed.shape == (11, 16)


def test_few_words_are_read_and_many_are_not():
    for n, few in ((4096, True), (4097, False)):
        assert make_method("plaid", n, dim=4).process.reads_words == few


def test_times_of_training_lie_where_a_row_tells_its_word():
    """The median signal-to-noise ratio is log V, for rows of norm 1."""
    for n in (7, 3000):
        method = make_method("plaid", n, dim=4, gamma_0=-8.0)
        t = method.useful_times(torch.ones(400, 1, dtype=torch.bool), 0.0, 0.5)  # (400, 1)
        gamma = method.process.gamma(t)  # (400, 1)
        assert gamma.median().exp() * math.log(n) == pytest.approx(1, abs=0.03)


def test_a_network_that_ignores_what_is_fed_back_has_the_bound_of_one_call():
    one, two = (make_method("plaid", N, dim=4, self_condition=a) for a in (0.0, 1.0))
    x, nats = TEXTS.repeat(20, 1), []
    for method in (one, two):
        torch.manual_seed(0)
        nats.append(method.nelbo(method.oracle(world.LANGUAGE), x))
    close(*nats)


def test_given_tokens_do_not_depend_on_noise_and_are_read_as_they_are():
    method, seen = make_method("plaid", 7, dim=4, self_condition=0.5), []
    x, frozen = torch.randint(7, (6, 5)), torch.rand(6, 5) < 0.5
    rows = method.process.rows()[x]

    def denoiser(z, t, at):
        seen.append((z[frozen], t[frozen]))
        return torch.zeros(int(at.sum()), 7)
    method.loss(denoiser, x, frozen)
    method.nelbo(denoiser, x, frozen)
    for z, t in seen:
        assert torch.equal(z[:, :4], rows[frozen]) and (t == 0).all()


def test_the_table_is_saved_averaged_and_used_with_its_network():
    method, network, x = trained_parts()
    average = copy.deepcopy(network)
    average.space.table.data += torch.randn(7, 4)
    other = method.with_network(average)
    assert other.process is average.space and method.process is network.space
    assert not torch.equal(other.process.rows(), method.process.rows())
    fresh = make_method("plaid", 7, dim=4, self_condition=0.0)
    restored = build_network(NETWORK, fresh)
    restored.load_state_dict(average.state_dict())
    assert torch.equal(fresh.process.rows(), other.process.rows())
    torch.manual_seed(0)
    nats = other.nelbo(average, x)
    torch.manual_seed(0)
    assert torch.equal(fresh.nelbo(restored, x), nats)


def test_labels_reach_both_calls():
    method = make_method("plaid", 7, dim=4, self_condition=1.0)
    network = build_network(NETWORK, method, 3)
    torch.manual_seed(0)
    nats = method.loss(Labeled(network, torch.arange(6) % 3), torch.randint(7, (6, 5)))
    assert nats.shape == (6, 5) and nats.isfinite().all()


def test_gamma_is_the_clock_of_the_network_and_nothing_else_is():
    method = make_method("plaid", 7)
    with pytest.raises(UserError, match="reads the noise as gamma: leave it out"):
        method.check(configure(Config, method="plaid", time_input="sigma"))


# ---- the exact denoiser

def exact_nats(change=lambda a, method, z, t: a, n=4000, gamma_0=-4.0):
    """The mean bound in the world of the exact denoiser, changed. -> nats above the entropy"""
    method = make_method("plaid", N, dim=4, self_condition=0.0, gamma_0=gamma_0)
    exact = method.oracle(world.LANGUAGE)
    torch.manual_seed(0)
    x = TEXTS[torch.multinomial(P, n, replacement=True)]
    other = lambda z, t, at: change(exact(z, t), method, z, t)[at]
    return (method.nelbo(other, x).sum(-1) + P[world.numbers(x, N)].log()).mean()


def test_evidence_counts_once():
    """Twice (a posterior in the place of the head's law), or never, costs more than the truth."""
    def evidence(method, z, t):
        return method.likelihood(z, t).clamp(min=1e-300).log()  # (B, L, N)
    exact = exact_nats()
    twice = exact_nats(lambda a, method, z, t: a + evidence(method, z, t))
    never = exact_nats(lambda a, method, z, t: a - evidence(method, z, t))
    assert twice > exact + 0.1 and never > exact + 1.0


def test_words_that_are_decoded_from_noise_cost_what_they_share():
    """At gamma_0 = 0 the bound is TC above the entropy; without the decoder it were far below."""
    assert 0.05 < exact_nats(gamma_0=0.0) < 0.6


def test_rows_of_different_norms_need_the_norm_in_their_evidence():
    table = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-0.5, -0.5]]).double()
    z, gamma = torch.randn(1000, 2).double(), torch.zeros(1000).double()
    density = -((z[:, None] / 0.5 ** 0.5 - table) ** 2).sum(-1) / 2  # (1000, 3)
    close(log_evidence(z, gamma, table).softmax(-1), density.softmax(-1))
    assert Linear(0.0, 1.0)(torch.tensor(0.5)) == 0.5
