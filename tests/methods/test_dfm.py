"""Discrete flow matching: two bounds of one posterior, in the world of 27 texts as sums.

flow_reference.npz: dfm/* are the rates and the generalized KL of flow_matching (commit 11568d3) at
nine words, where time u runs from noise to text, and the bound of one token of five words, p, by
sums apart from this code.
"""
import math
import re

import pytest
import torch
import torch.nn.functional as F
import world
from bounds import close, close_in_the_mean, exact_bound, mean_term, quadrature
from references import Figures, same
from world import TEXTS, L, N, P

from data.toy import ToyCorpus
from diffusion import Absorbing, Uniform, corrupt
from flags import UserError
from methods import make_method
from methods.dfm import WithEvidence, PowerMasks, PowerWords, flow_factor, flow_nats, flow_path
from methods.mdlm import masked_bound
from methods.udlm import UDLM
from samplers import make_sampler

DATA = ToyCorpus(block_size=8)
LANGUAGE = DATA.language
figure = Figures("flow_reference")
ENTROPY = -(P * P.log()).sum()
SOURCES = {"mask": PowerMasks, "uniform": PowerWords}
each_source = pytest.mark.parametrize("source", SOURCES)


def made(source="uniform", **flags):
    return make_method("dfm", N, source=source, **flags)


def flow_term(process):
    """(14.22) of log p (n, 27, N), x, z, t (n, 27). -> (n, 27)"""
    def term(log_p, x, z, t):
        nats = flow_nats(log_p.reshape(-1, N), x.flatten(), z.flatten()).view(x.shape)  # (n, 27)
        return flow_factor(process, t) * nats  # (n, 27)
    return term


def flow_bound(process, denoiser, nodes=24):
    """E (14.22). -> ()"""
    return P @ exact_bound(process, denoiser, nodes, flow_term(process))


def reversal_bound(process, denoiser, nodes=24):
    """E (0.2) of a denoiser of p(x_l | z). -> ()"""
    others = WithEvidence(denoiser, process, -1)
    return P @ exact_bound(process, lambda z, t: others(z, t).log_softmax(-1), nodes,
                           mean_term(process))


# ---- the bounds

@pytest.mark.parametrize("n", [1, 2])
def test_the_rates_and_the_generalized_kl_are_those_of_the_public_code(n):
    process, t = PowerWords(9, float(n)), 1 - figure("dfm/t").double()[:, None]  # (B, 1)
    x, z, logits = (figure(f"dfm/n{n}/{key}") for key in ("x1", "xt", "logits"))
    nats = flow_nats(logits.double().flatten(0, 1), x.flatten(), z.flatten()).view(x.shape)
    ours = flow_factor(process, t) * nats  # (B, L)
    same(ours.float(), figure(f"dfm/n{n}/generalized_kl"), 1e-5)
    rates = logits.double().softmax(-1) - F.one_hot(z, 9)  # (B, L, V) (14.21)
    same((flow_factor(process, t)[..., None] * rates).float(), figure(f"dfm/n{n}/velocity"), 1e-5)


@pytest.mark.parametrize("power", [1.0, 3.0])
def test_from_masks_the_flow_bound_is_that_of_mdlm_token_by_token(power):
    process, z = PowerMasks(N, power), torch.randint(N + 1, (400,))  # (n,)
    x = torch.where(z == N, torch.randint(N, z.shape), z)  # (n,)
    t, log_p = torch.rand(400, dtype=torch.float64), torch.randn(400, N).double().log_softmax(-1)
    log_p = torch.where((z < N)[:, None], F.one_hot(z.clamp(max=N - 1), N).log(), log_p)  # (n, N)
    ours = flow_factor(process, t) * flow_nats(log_p, x, z)  # (n,)
    ce = -log_p.gather(-1, x[:, None])[:, 0]  # (n,)
    close(ours, masked_bound(process, ce, z, t))


def one_token(p, power=1.0):
    """E (14.22) of a text of one token with the exact posterior. p (V,) -> ()"""
    process, (times, weights), words = PowerWords(len(p), power), quadrature(48), len(p)
    alpha = process.alpha(times)[:, None, None]  # (n, 1, 1)
    q = alpha * torch.eye(words) + (1 - alpha) / words  # (n, x, z)
    joint = p[:, None] * q  # (n, x, z)
    log_p = (joint / joint.sum(1, keepdim=True)).log().mT[:, None].expand(-1, words, -1, -1)
    x, z = torch.arange(words)[:, None], torch.arange(words)  # (V, 1), (V,)
    x, z = (a.expand(joint.shape).flatten() for a in (x, z))  # (n V V,) each
    nats = flow_nats(log_p.reshape(-1, words), x, z).view(joint.shape)  # (n, x, z)
    return ((weights * flow_factor(process, times))[:, None, None] * joint * nats).sum()


def test_from_random_words_even_the_exact_posterior_pays_for_what_z_does_not_show():
    """(14.23): 0.403 nats a token for 4 words, 0.841 for 27; and a figure of another p."""
    for V, excess in ((4, 0.403), (27, 0.841)):
        p = torch.full((V,), 1 / V, dtype=torch.float64)  # (V,)
        for power in (1.0, 3.0):
            above = one_token(p, power) - math.log(V)
            close(above, torch.tensor(1 - 1 / V - math.log(V) / V).double(), 1e-6)
            assert round(above.item(), 3) == excess
    p = figure("dfm/p")  # (5,)
    close(one_token(p), figure("dfm/REF_uniform_source_bound_with_exact_posterior"), 1e-6)
    close(torch.special.entr(p).sum(), figure("dfm/entropy"), 1e-9)


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_the_bound_of_the_reversal_is_tight_and_that_of_the_flow_is_not(power):
    """The table: from masks both are the entropy."""
    for source, above in (("mask", 0.0), ("uniform", 0.8411)):
        method = made(source, power=power)
        flow = flow_bound(method.process, method.oracle(world.LANGUAGE), 48)
        assert flow - ENTROPY == pytest.approx(above, abs=1e-4)
    close(reversal_bound(method.process, method.oracle(world.LANGUAGE), 48), ENTROPY, 1e-6)


@pytest.mark.parametrize("bound", ["gkl", "reversal"])
def test_a_head_of_what_others_say_has_the_same_bounds_and_samples(bound):
    """With its oracle, the leave-one-out distribution; and p(z) = 1 at t = 0, whatever it says."""
    x, nats = TEXTS.repeat(50, 1), []
    for head in ("posterior", "others"):
        method = made(head=head, bound=bound)
        exact = method.oracle(world.LANGUAGE)
        torch.manual_seed(0)
        nats.append(method.nelbo(exact, x).double())
        torch.manual_seed(0)
        z, nothing = method.prior(x.shape), torch.zeros_like(x).bool()  # (n, L) each
        for sampler in ("flow", "ancestral"):
            *_, text = method.sample(exact, z, nothing, 6, make_sampler(sampler, method))
            nats.append(text.double())
    for a, b in zip(nats[:3], nats[3:]):
        close(a, b, 1e-5)
    t, z = torch.full((1, 1), 1e-6), torch.randint(N, (1, L))  # (1, 1), (1, L)
    p = WithEvidence(world.vandal, method.process)(z, t).softmax(-1)  # (1, L, N)
    assert (p.gather(-1, z[..., None]) > 1 - 1e-4).all()


def test_no_denoiser_has_a_lower_flow_bound_than_the_posterior():
    """At the exact p(x_l | z) the gradient of the bound is 0, and the leave-one-out distribution,
    or any other in its place, gives more."""
    method = made()
    exact, states = method.oracle(world.LANGUAGE), {}

    def leaf(z, t):
        return states.setdefault(len(z), exact(z, t).clamp(min=-30).requires_grad_())
    least = flow_bound(method.process, lambda z, t: leaf(z, t).log_softmax(-1))
    assert torch.autograd.grad(least, states.popitem()[1])[0].abs().max() < 1e-10
    for other in (WithEvidence(exact, method.process, -1), world.vandal,
                  lambda z, t: (1.3 * exact(z, t)).log_softmax(-1)):
        assert flow_bound(method.process, lambda z, t: other(z, t).log_softmax(-1)) > least + 0.01


def test_what_others_say_is_the_posterior_less_its_own_evidence():
    """Against the leave-one-out oracle of the same noise, also at few positions."""
    method = made(power=2.0)
    own = WithEvidence(method.oracle(world.LANGUAGE), method.process, -1)
    others = UDLM.oracle(method, world.LANGUAGE)
    t = torch.tensor([[0.001], [0.4], [0.999]]).double()  # (3, 1)
    z, at = torch.randint(N, (3, L)), torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 1]]).bool()
    found = own(z, t).log_softmax(-1)  # (3, L, N)
    close(found, others(z, t), 1e-8)
    close(own(z, t, at=at).log_softmax(-1), found[at])
    net = lambda z, t, at: method.oracle(world.LANGUAGE)(z, t).flatten(0, 1)[at]
    rows = WithEvidence(net, method.process, -1)(z, t, at=torch.tensor([8, 0]))  # (2, N)
    close(rows.log_softmax(-1), found.flatten(0, 1)[[8, 0]])


@pytest.mark.parametrize("bound", ["gkl", "reversal"])
@pytest.mark.parametrize("source, power", [("mask", 2.0), ("uniform", 1.0), ("uniform", 2.0)])
def test_draws_of_each_bound_have_its_mean_for_any_denoiser(source, power, bound):
    method = made(source, power=power, bound=bound)
    enumerate_it = flow_bound if bound == "gkl" or source == "mask" else reversal_bound
    exact = method.oracle(world.LANGUAGE)

    def wrong(z, t, at=None):
        log_p = 0.7 * exact(z, t.double()).clamp(min=-30) + 0.2 * world.vandal(z, t)  # (B, L, N)
        return log_p.log_softmax(-1) if at is None else log_p[at]
    mean = enumerate_it(method.process, wrong)
    torch.manual_seed(0)

    def draw():
        return method.nelbo(wrong, TEXTS[torch.multinomial(P, 4000, True)]).sum(-1)  # (n,)
    close_in_the_mean(draw, mean)


def test_from_random_words_the_toy_language_has_both_bounds():
    """(0.2) is its entropy within four standard errors, (14.22) is far above it."""
    above = {}
    for bound in ("gkl", "reversal"):
        method = make_method("dfm", LANGUAGE.V, source="uniform", bound=bound)
        exact = method.oracle(LANGUAGE)
        torch.manual_seed(0)
        means = torch.stack([(method.nelbo(exact, x).mean(-1) + LANGUAGE.log_prob(x) / 8).mean()
                             for x in DATA.windows("val", 2000).split(200)])  # (10,)
        above[bound] = means.mean(), means.std() / len(means) ** 0.5
    more, error = above["reversal"]
    assert error < 0.03 and abs(more) < 4 * error
    assert 0.3 < above["gkl"][0] < 0.7


# ---- training

def test_the_generalized_kl_trains_on_the_bound_and_cross_entropies_on_the_posterior():
    x = TEXTS.repeat(300, 1)  # (n, L)
    for source in SOURCES:
        process = SOURCES[source](N, 2.0)
        trains = made(source, objective="gkl", power=2.0)
        torch.manual_seed(3)
        nats = torch.cat([trains.loss(world.vandal, x).sum(-1) for _ in range(10)])  # (m,)
        mean = exact_bound(process, world.vandal, 24, flow_term(process)).mean()
        assert abs(nats.mean() - mean) < 4.5 * nats.std() / len(nats) ** 0.5
        torch.manual_seed(3)
        ours = made(source, power=2.0).loss(world.vandal, x)  # (n, L)
        torch.manual_seed(3)
        t = (torch.arange(len(x)) + torch.rand(len(x)))[:, None] / len(x)  # (n, 1)
        z = corrupt(process, x, t)  # (n, L)
        ce = -world.vandal(z, t).gather(-1, x[..., None])[..., 0]  # (n, L)
        close(ours, torch.where(z == process.mask, ce, 0.0) if source == "mask" else ce, 1e-5)


def test_draws_in_any_order_tell_a_network_the_time_of_as_many_masks():
    """Of 1 - alpha = k/n masks in the mean: with kappa = u^3, for a network that reads the time."""
    method, seen = made("mask", power=3.0), []

    def spy(z, t, at):
        seen.append((1 - method.process.alpha(t), (z == N).float().mean(-1, keepdim=True)))
        return world.vandal(z, t, at)
    torch.manual_seed(0)
    method.nelbo(spy, TEXTS.repeat(400, 1))
    noise, masks = seen[0]  # (n, 1) each
    assert abs(noise.mean() - 0.5) < 0.01
    for k in (1, 2, 3):
        here = noise[(masks * L).round() == k]
        assert abs(here.mean() - k / (L + 1)) < 4.5 * here.std() / len(here) ** 0.5


# ---- which samplers, which words

def test_random_words_have_the_two_samplers_whose_bounds_are_known_and_masks_have_all():
    words, masks = made(), made("mask")
    assert words.first_choice == "flow" and words.samplers == ("ancestral", "flow")
    assert masks.first_choice == "spread" and masks.samplers is None and masks.opens_masks
    assert words.uses_time and not masks.uses_time and words.vocab_size == N == masks.process.mask
    for source, process in (("mask", Absorbing), ("uniform", Uniform)):  # kappa = u: nothing new
        kinds = [type(flow_path(N, source, power)) for power in (1.0, 2.0)]
        assert kinds[0] is process and kinds[1] is not process
    for sampler, flags, says in (
            ("psi", {}, "--sampler psi does not work with dfm, which takes steps of its own: take "
                        "ancestral or flow"),
            ("flow", dict(corrector="greedy"), "--corrector greedy does not work with dfm")):
        with pytest.raises(UserError, match=re.escape(says)):
            make_sampler(sampler, words, **flags)


@pytest.mark.parametrize("sampler", ["ancestral", "flow"])
def test_random_words_become_the_language_by_either_step(sampler):
    """In 128 steps, by the draws' own distance from the 27 probabilities."""
    method, n = made(power=2.0), 2000
    torch.manual_seed(0)
    z, nothing = method.prior((n, L)), torch.zeros(n, L, dtype=torch.bool)  # (n, L) each
    exact = world.by_state(method.oracle(world.LANGUAGE))
    *_, z = method.sample(exact, z, nothing, 128, make_sampler(sampler, method))
    far, error = world.distance(world.numbers(z, N), P)
    assert far < 0.003 + 4 * error
