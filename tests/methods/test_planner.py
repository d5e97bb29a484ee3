"""The planner: its loss is least at the probability that a word is wrong, and samplers ask it."""
from math import exp, lgamma
from types import SimpleNamespace

import pytest
import torch
from bounds import close, close_in_the_mean

import world
from flags import UserError
from methods import make_method
from methods.planner import planner_nats
from samplers import make_sampler
from samplers.planners import noise_probability
from world import TEXTS, L, N, P, numbers

WORDS, DRAWS = make_method("planner", N, errors="words"), make_method("planner", N)
EXACT = {"words": WORDS.oracle(world.LANGUAGE), "draws": world.by_state(
    DRAWS.oracle(world.LANGUAGE))}
ALL = torch.cartesian_prod(*[torch.arange(3)] * L)  # (27, L)


def entropy(p):
    return torch.special.entr(p) + torch.special.entr(1 - p)  # shape of p


# ---- uniform noise: the planner is (24.8)

def test_the_head_of_the_oracle_is_the_exact_planner():
    z, t = world.states(WORDS.process), torch.tensor([[0.3]]).double()  # (27, L)
    out = EXACT["words"](z, t.expand(27, 1))  # (27, L, N + 1)
    own = out[..., :N].exp().gather(-1, z[..., None])[..., 0]  # (27, L)
    close(out[..., N].sigmoid(), noise_probability(WORDS.process, own, z, t), 1e-12)
    at = torch.rand(27, L, generator=torch.Generator().manual_seed(0)) < 0.5  # (27, L)
    close(EXACT["words"](z, t.expand(27, 1), at=at), out[at], 1e-12)
    close(EXACT["words"](z, t.expand(27, 1), at=at.flatten().nonzero()[:, 0]), out[at], 1e-12)


def planned(method, denoiser, change=lambda h: h, n=20_000, seed=0):
    """(24.9) of texts of the world, with a change of the head; the same noise for all. -> (n,)"""
    def other(z, t, at=None, **layout):
        out = denoiser(z, t, at=at)  # (.., N + 1)
        return torch.cat([out[..., :N], change(out[..., N:])], -1)  # (.., N + 1)
    torch.manual_seed(seed)
    x = TEXTS[torch.multinomial(P, n, replacement=True)]  # (n, L)
    return method.plan(other, x).sum(-1)  # (n,)


def test_the_loss_under_uniform_noise_is_the_entropy_of_what_is_noise():
    """H(noise | z), over all z by enumeration and over t by a sum, within 4.5 errors below 1 %."""
    z, least = world.states(WORDS.process), 0.0
    for t in ((torch.arange(64) + 0.5) / 64).double():
        t = t.view(1, 1)
        p_z = world.q(WORDS.process, z, t) @ P  # (27,)
        least += p_z @ entropy(EXACT["words"](z, t.expand(27, 1))[..., N].sigmoid()).sum(-1) / 64
    close_in_the_mean(lambda: planned(WORDS, EXACT["words"], n=4000,
                                      seed=int(torch.randint(10**6, ()))), least)


# ---- the network's own draws at masks: the planner by enumeration

def states_of_draws():
    """All texts, fates of their tokens, and draws, with their probability.

    The fate: 0 never a mask, 1 a draw of the network in one step from t to s, 2 a mask still. With
    a, b, c tokens of each, E[(1 - t)^a (t - s)^b s^c] is a product of two Beta functions.
    -> probabilities (M,), z (M, L), wrong (M, L)
    """
    beta = lambda a, b: exp(lgamma(a) + lgamma(b) - lgamma(a + b))
    every = torch.ones(27, L, dtype=torch.bool)  # (27, L)
    p, z, wrong = [], [], []
    for fate in ALL:
        a, b, c = (int((fate == k).sum()) for k in range(3))
        seen = torch.where(fate == 0, TEXTS, N)  # (27, L) at time t
        out = EXACT["draws"](seen, torch.ones(27, 1), at=every).view(27, L, -1)[..., :N]
        for draw in ALL[((fate == 1) | (ALL == 0)).all(-1)]:  # (L,) words that are drawn
            chance = out.exp().gather(-1, draw.expand(27, L)[..., None])[..., 0]  # (27, L)
            chance = torch.where(fate == 1, chance, 1.0).prod(-1)  # (27,)
            end = torch.where(fate == 0, TEXTS, torch.where(fate == 1, draw, N))  # (27, L)
            p.append(P * chance * beta(a + 1, b + c + 1) * beta(c + 1, b + 1))  # (27,)
            z.append(end)
            wrong.append((end != TEXTS) & (end < N))
    return torch.cat(p), torch.cat(z), torch.cat(wrong)  # (M,), (M, L), (M, L)


def test_the_loss_under_draws_is_least_at_the_planner_that_a_sum_over_all_draws_gives():
    """And the planner that x_theta gives, right for one word at a time, costs more."""
    p, z, wrong = states_of_draws()
    close(p.sum(), torch.tensor(1.0).double(), 1e-12)
    number, size = numbers(z, N + 1), (N + 1) ** L
    mass = torch.zeros(size).double().index_add(0, number, p)  # (64,)
    share = torch.zeros(size, L).double().index_add(0, number, p[:, None] * wrong)  # (64, L)
    share = share / mass[:, None].clamp(min=1e-300)  # (64, L) p(wrong | z)
    text = world.states(DRAWS.process) < N  # (64, L)
    least = (mass[:, None] * entropy(share) * text).sum()

    def best(z, t, at=None):
        head = share[numbers(z, N + 1)].logit()[..., None]  # (n, L, 1)
        every = torch.ones_like(z, dtype=torch.bool)  # (n, L)
        out = EXACT["draws"](z, t, at=every).view(*z.shape, -1)[..., :N]  # (n, L, N)
        out = torch.cat([out, head], -1)  # (n, L, N + 1)
        return out if at is None else out[at]
    close_in_the_mean(lambda: planned(DRAWS, best, n=4000, seed=int(torch.randint(10**6, ()))),
                      least)
    exact = planned(DRAWS, best)  # (n,)
    for other in (planned(DRAWS, best, lambda h: 0.5 * h), planned(DRAWS, best, lambda h: h + 0.5),
                  planned(DRAWS, EXACT["draws"])):
        more = other - exact  # (n,)
        assert more.mean() > max(5 * more.std() / len(more) ** 0.5, 0.01)


# ---- the method

def test_the_loss_is_that_of_the_language_model_and_the_planners():
    torch.manual_seed(0)
    x, frozen = torch.randint(N, (400, 8)), torch.rand(400, 8) < 0.4  # (400, 8) each
    flat = lambda z, t, at=None: torch.zeros(int(at.sum()), N + 1)
    for method in (WORDS, DRAWS):
        torch.manual_seed(1)
        parts = method.model.loss(flat, x, frozen) + method.plan(flat, x, frozen)  # (400, 8)
        torch.manual_seed(1)
        close(method.loss(flat, x, frozen), parts, 1e-6)
        assert (method.plan(flat, x, frozen)[frozen] == 0).all()
    logits = torch.tensor([[9.0, 9.0, 9.0, 0.7]])  # (1, N + 1)
    close(planner_nats(logits, torch.tensor([True])), -torch.tensor([0.7]).sigmoid().log(), 1e-6)


def test_wrong_words_are_draws_at_masks_that_opened_and_given_words_are_right():
    torch.manual_seed(0)
    x, frozen = torch.zeros(4000, 6, dtype=torch.long), torch.rand(4000, 6) < 0.3  # (4000, 6)
    one = lambda z, t, at: torch.tensor([-99.0, 0, -99, 0]).expand(int(at.sum()), -1)  # always 1
    z, s, wrong = DRAWS.wrong_words(one, x, frozen)
    assert ((z == 1) == wrong).all() and not wrong[frozen].any() and (z[frozen] == 0).all()
    free = ~frozen
    for fate, share in ((z == 0, 1 / 2), (z == 1, 1 / 4), (z == N, 1 / 4)):  # 1 - t, t - s, s
        assert abs(fate[free].double().mean() - share) < 0.015
    assert abs((z == N)[free].double().mean() - s.mean()) < 0.015
    z, t, wrong = WORDS.wrong_words(one, x, frozen)
    assert not wrong[frozen].any() and abs(wrong[free].double().mean() - 1 / 2) < 0.015
    assert ((z > 0) <= wrong).all() and ((z == 0) & wrong).any()  # noise may show the right word


# ---- samplers

def model_of(method, denoiser, beside=None):
    return SimpleNamespace(method=method, denoiser=denoiser, beside=lambda flag, name: beside)


def written(name, method, denoiser, beside=None, n=300, steps=3, **flags):
    sampler = make_sampler(name, method, **flags)
    sampler.prepare(model_of(method, denoiser, beside))
    torch.manual_seed(2)
    z = method.prior((n, L))  # (n, L)
    *_, z = method.sample(denoiser, z, torch.zeros_like(z, dtype=torch.bool), steps, sampler)
    return z


def test_ddpd_with_the_exact_head_writes_what_it_writes_by_formula():
    """Draw for draw: with the head of the model, and with that of a second one."""
    udlm = make_method("udlm", N)
    exact = udlm.oracle(world.LANGUAGE)
    formula = written("ddpd", udlm, exact)
    assert torch.equal(formula, written("ddpd", WORDS, EXACT["words"]))
    judge = model_of(WORDS, EXACT["words"])
    assert torch.equal(formula, written("ddpd", udlm, exact, judge, planner="run"))
    doubts = lambda *a, **b: EXACT["words"](*a, **b).index_fill(-1, torch.tensor([N]), -5.0)
    assert not torch.equal(formula, written("ddpd", WORDS, doubts))


def test_p2_asks_the_head_about_old_words_and_x_theta_about_new_ones():
    """Word 3 stands at place 0; x_theta finds it likely, the head says that it is wrong."""
    method = make_method("planner", 5)
    log_p = torch.full((4, 6), -3.0)  # (L, 6)
    log_p[:, 3] = 0.0
    for head, after in ((4.0, 5), (-4.0, 3)):
        log_p[:, 5] = head
        denoiser = lambda z, t, at: log_p.expand(len(z), -1, -1)[at]  # (N, 6)
        sampler = make_sampler("p2", method)
        sampler.prepare(model_of(method, denoiser))
        z = torch.tensor([[3, 5, 5, 5]])  # (1, 4)
        first, *_ = method.sample(denoiser, z, torch.zeros_like(z, dtype=torch.bool), 4, sampler)
        assert first[0, 0] == after


@pytest.mark.parametrize("sampler, model, judge, says", [
    ("p2", "mdlm", "mdlm", "a run of mdlm, which has no head"),
    ("p2", "mdlm", "words", "knows other noise than that of mdlm"),
    ("ddpd", "udlm", "draws", "knows other noise than that of udlm")])
def test_a_planner_must_have_a_head_and_the_same_noise(sampler, model, judge, says):
    judge = {"words": WORDS, "draws": DRAWS}.get(judge) or make_method(judge, N)
    made, model = make_sampler(sampler, make_method(model, N), planner="run"), make_method(model, N)
    with pytest.raises(UserError, match=says):
        made.prepare(model_of(model, None, model_of(judge, None)))
