"""
Energies in the world of 27 texts: the law of the texts and its bound, as sums.

A batch has a row for each outcome of all draws of a choice, and its probability; steps are then a
chain over the 64 states. Reference figures: those of p_ar and x_theta in
tests/reference/energy_reference.npz, p_ar the law of the AR model, x_theta another law's marginals.
"""
import math
from functools import cache
from itertools import product
from types import SimpleNamespace

import pytest
import torch

import world
from diffusion import probabilities
from methods import make_method
from outcomes import STATES, AllOutcomes, fits, law_of_texts, opened, patterns
from references import Figures
from samplers import energy, make_sampler
from world import L, N, TEXTS, next_token, numbers

FIGURES = Figures("energy_reference")
P, DATA, X_THETA = (FIGURES(f"edlm/{name}") for name in ("p_ar", "data", "x_theta"))
AR, MASKS = make_method("ar", N), make_method("mdlm", N)
JUDGE = SimpleNamespace(method=AR, denoiser=world.by_state(next_token(P)))
T = (1, 2, 4)  # steps


def draft(z, t, at=None):
    """x_theta of the reference."""
    logits = X_THETA[numbers(z, N + 1)].log()  # (B, 3, 3)
    return logits if at is None else logits[at]


def sampler_of(K=2, judge=JUDGE, **flags):
    made = make_sampler("energy", MASKS, energy_texts=K, energy="its folder", **flags)
    made.judge = judge
    return made


def law_of_choice(sampler, z):
    """The law of the text that `choose` keeps in the state z (3,). -> (27,)"""
    m, K, of_rule = int((z == N).sum()), sampler.energy_texts, sampler.energy_rule
    B = N ** (m * K) * (K if of_rule == "softmax" else 2 ** (K - 1))
    chance, rows = AllOutcomes(B), torch.ones(B, dtype=torch.bool)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("categorical", "toss"):
            patch.setattr(energy, name, getattr(chance, name))
        x = sampler.choose(MASKS.process, world.by_state(draft), z.expand(B, -1),
                           torch.ones(B, 1), rows, probabilities)  # (B, 3)
    assert torch.isclose(chance.weight.sum(), torch.tensor(1.0).double())
    return torch.zeros_like(P).index_add(0, numbers(x, N), chance.weight)  # (27,)


@cache
def laws_of_choice(K, **flags):
    """The same in all states with masks. -> (64, 27)"""
    sampler = sampler_of(K, **flags)
    rows = [law_of_choice(sampler, z) if (z == N).any() else torch.zeros_like(P) for z in STATES]
    return torch.stack(rows)  # (64, 27)


Q = torch.stack([torch.where(STATES == N, X_THETA[numbers(STATES, N + 1)][
    :, torch.arange(L), x], 1.0).prod(-1) for x in TEXTS], 1) * fits(STATES)  # (64, 27)


def weights(**flags):
    """log w of (18.7) for all states and texts, from the code; -inf where the text does not fit."""
    z, x = STATES.repeat_interleave(27, 0), TEXTS.repeat(64, 1)  # (1728, 3) each
    keep = fits(STATES).flatten() & (z == N).any(-1)  # (1728,)
    z, x = z[keep], x[keep]
    rate = sampler_of(**flags).rate(z, torch.ones(len(z), 1), z == N, None)
    log_w = torch.full((1728,), -math.inf, dtype=torch.float64)
    log_w[keep] = rate(x) - Q.flatten()[keep].log()
    return log_w.view(64, 27)


def normalized(p):
    return p / p.sum(-1, keepdim=True).clamp(min=1e-300)


def of_two(log_w):
    """The law of the better of two draws by softmax(log_w), as a sum over pairs. -> (64, 27)"""
    first = torch.sigmoid(log_w[:, :, None] - log_w[:, None]).nan_to_num(0.0)  # (64, 27, 27)
    return 2 * Q * (first * Q[:, None]).sum(-1)  # (64, 27)


def bound(choice, steps):
    """(18.6) for a sampler whose choice has the law choice (64, 27), in T steps. -> (27,) nats"""
    total = torch.zeros_like(P)  # (27,)
    for left in range(steps, 0, -1):
        t, rho = left / steps, 1 / left
        for hidden in product((False, True), repeat=L):
            M = torch.tensor(hidden)  # (3,)
            z = torch.where(M, N, TEXTS)  # (27, 3)
            mass = t ** int(M.sum()) * (1 - t) ** int((~M).sum())
            joint = choice[numbers(z, N + 1)]  # (27, 27)
            for R in patterns(z[0]) if mass and M.any() else ():
                coins = rho ** int(R.sum()) * (1 - rho) ** int((M & ~R).sum())
                agrees = (TEXTS[:, None, R] == TEXTS[None, :, R]).all(-1)  # (27, 27)
                total -= mass * coins * (joint * agrees).sum(-1).log() if coins and R.any() else 0
    return total


def off(a, b=P):
    return float((a - b).abs().sum() / 2)


FULL, CARRY = weights(), weights(carry=True)  # (64, 27) each
CHOICE = {"factorised": Q, "full": normalized(Q * FULL.exp()),
          "carry": normalized(Q * CARRY.exp())}  # (64, 27) each, for K -> infinity
PRINTED = {  # docs/18-energy.md: total variation in 1, 2, 4 steps, and (18.6), nats
    "factorised": ((.342, .218, .208), (3.236, 3.095, 3.015)),
    "full": ((0, 0, 0), (2.940, 2.940, 2.940)),
    "carry": ((0, .098, .144), (2.940, 3.024, 3.064)),
    "full_K2": ((.201, .144, .137), (3.016, 2.969, 2.941))}


def choice_of(name):
    return CHOICE[name] if name in CHOICE else laws_of_choice(2)


# ---- the laws, and their bound

def test_weights_of_both_energies_are_those_of_the_reference():
    for name, ours in (("full", FULL), ("carry", CARRY)):
        theirs, rows = FIGURES(f"edlm/log_w_{name}"), (STATES == N).any(-1)  # (64, 27), (64,)
        assert torch.equal(ours.isfinite()[rows], theirs.isfinite()[rows])
        torch.testing.assert_close(ours[rows], theirs[rows], atol=1e-9, rtol=0)
        torch.testing.assert_close(CHOICE[name][rows], FIGURES(f"edlm/target_{name}")[rows],
                                   atol=1e-10, rtol=0)


@pytest.mark.parametrize("K", [1, 2])
def test_the_chosen_text_has_the_law_of_the_reference(K):
    for z, law in zip(torch.tensor([[3, 3, 3], [3, 1, 3], [3, 3, 2], [0, 3, 3]]),
                      FIGURES(f"edlm/select_full_K{K}")):
        assert off(law_of_choice(sampler_of(K), z), law) < 1e-10


@pytest.mark.parametrize("name", PRINTED)
def test_texts_and_their_bound_are_those_of_the_reference_and_of_the_page(name):
    """An exact energy samples exactly in one step, and in two and four; carry-over in one only; its
    bound is the AR likelihood at every number of steps. Two draws are not enough."""
    choice = choice_of(name)
    for steps, far, nats in zip(T, *PRINTED[name]):
        law, of_text = law_of_texts(choice, steps), bound(choice, steps)  # (27,) each
        assert off(law, FIGURES(f"edlm/law_{name}_T{steps}")) < 1e-10
        torch.testing.assert_close(of_text, FIGURES(f"edlm/nelbo_{name}_T{steps}"), atol=1e-9,
                                   rtol=0)
        assert abs(off(law) - far) < 6e-4 and abs(float(DATA @ of_text) - nats) < 6e-4
        assert name != "full" or off(law) < 1e-12
        assert (DATA @ of_text >= DATA @ -law.log() - 1e-12)  # it is a bound


def test_more_draws_come_closer_to_the_law_of_the_energy():
    """And the chosen text is likelier than a random one: the sign of the energy."""
    far = [off(law_of_choice(sampler_of(K), STATES[63])) for K in (1, 2, 3)]
    assert far[0] > far[1] + .1 > far[2] + .14 and abs(far[2] - .147) < 6e-4
    assert laws_of_choice(2)[63] @ P.log() > Q[63] @ P.log() + .2


def test_the_wrong_sign_and_probabilities_for_their_logarithms_are_worse_than_no_energy():
    """As in released code (faults 1 and 2): softmax(+E), and E from x_theta in place of its log."""
    for wrong, name, far in ((-FULL, "full_K2_wrong_sign", (.498, .300, .278)),
                             (FIGURES("edlm/log_w_released"), "released_K2", (.496, .299, .242))):
        for steps, printed in zip(T, far):
            law = law_of_texts(of_two(wrong), steps)  # (27,)
            assert off(law, FIGURES(f"edlm/law_{name}_T{steps}")) < 1e-10
            assert abs(off(law) - printed) < 6e-4
            assert off(law) > PRINTED["factorised"][0][T.index(steps)]
    torch.testing.assert_close(of_two(FULL)[63], laws_of_choice(2)[63])  # so is the right one


def test_the_perplexity_of_carry_over_is_that_of_the_ar_model_by_algebra():
    """(1/t) sum_M -log p(x_l | x_<l) in the mean over masks (fault 4): x_theta cancels. Its texts
    do not have that likelihood, see the bound above."""
    log_p, total = (CARRY + Q.log()), torch.zeros_like(P)  # (64, 27), (27,)
    for hidden in product((False, True), repeat=L):
        M, k = torch.tensor(hidden), sum(hidden)
        if k:  # k masks, and so weight L/k: (3.1)
            at = numbers(torch.where(M, N, TEXTS), N + 1)  # (27,)
            total -= log_p[at, torch.arange(27)] / k / math.comb(L, k)  # (27,)
    torch.testing.assert_close(total, -P.log(), atol=1e-10, rtol=0)
    torch.testing.assert_close(total, FIGURES("edlm/carry_nll"), atol=1e-10, rtol=0)


def test_joint_terms_over_t_are_no_bound():
    """int (1/t) E[-log p(x_M | x_U)] dt of the exact law (fault 5): below the entropy, and 1/3 of
    that of a bit and two copies of it."""
    def of(p):
        total = 0.0
        for hidden in product((False, True), repeat=L):
            M, k = torch.tensor(hidden), sum(hidden)
            agrees = (TEXTS[:, None, ~M] == TEXTS[None, :, ~M]).all(-1)  # (27, 27)
            if k:  # int t^(k-1) (1-t)^(L-k) dt
                weight = 1 / k / math.comb(L, k)
                total = total + weight * ((agrees * p).sum(-1) / p).log().nan_to_num(0, 0, 0)
        return total  # (27,)
    torch.testing.assert_close(of(DATA), FIGURES("edlm/joint_nll_exact"), atol=1e-9, rtol=0)
    entropy = float(torch.special.entr(DATA).sum())
    assert abs(float(DATA @ of(DATA)) - 2.646) < 6e-4 and abs(entropy - 2.859) < 6e-4
    copies = ((TEXTS == TEXTS[:, :1]).all(-1) & (TEXTS[:, 0] < 2)) / 2  # (27,)
    assert abs(float(copies.double() @ of(copies.double())) - math.log(2) / 3) < 1e-12


def test_no_estimate_of_the_sum_from_few_draws_is_larger_on_average():
    """E log Z_n <= log Z = 0 at all masks (fault 6): subtracted from -log p it flatters."""
    q, w, last = Q[63], FULL[63].exp(), -math.inf  # (27,) each
    assert abs(float(q @ w) - 1) < 1e-12
    for n, printed in ((1, -.512), (2, -.245), (3, -.159)):
        mean, mass = torch.zeros(()), torch.ones(())
        for _ in range(n):  # all n-tuples of texts
            mean, mass = mean[..., None] + w / n, mass[..., None] * q  # (27,) * n each
        expected = float((mass * mean.log()).sum())
        assert abs(expected - float(FIGURES(f"edlm/E_log_Z_K{n}"))) < 1e-10
        assert abs(expected - printed) < 6e-4 and last < expected < 0
        last = expected


def test_metropolis_is_a_chain_that_leaves_the_law_of_the_energy_alone():
    """After two draws it is nearer than a softmax. Its kernel, from the code's own weights, keeps
    the exact law."""
    for i in (63, 60, 15):  # m m m, m m 0, 0 m m
        w = (FULL[i].exp()[None] / FULL[i].exp()[:, None]).nan_to_num(0, 0, 0).clamp(max=1)
        kernel = Q[i] * w  # (27, 27)
        kernel = kernel + torch.diag(1 - kernel.sum(-1))  # (27, 27)
        law = law_of_choice(sampler_of(2, energy_rule="metropolis"), STATES[i])
        torch.testing.assert_close(law, Q[i] @ kernel)
        torch.testing.assert_close(CHOICE["full"][i] @ kernel, CHOICE["full"][i])
    for steps, printed in zip(T, (.180, .129, .118)):
        far = off(law_of_texts(laws_of_choice(2, energy_rule="metropolis"), steps))
        assert abs(far - printed) < 6e-4 and far < PRINTED["full_K2"][0][T.index(steps)]


# ---- the sampler itself, by draws

def drawn(sampler, steps, n=10_000, denoiser=draft, z=None, **law):
    torch.manual_seed(0)
    z = MASKS.prior((n, L)) if z is None else z  # (n, L)
    to_probs = lambda logits: probabilities(logits, **law)
    *_, z = sampler(MASKS.process, world.by_state(denoiser), z, z != N, steps, to_probs)
    return z


def test_its_steps_are_those_whose_law_is_known():
    z = drawn(sampler_of(), 2)
    assert world.surprise(numbers(z, N), FIGURES("edlm/law_full_K2_T2")) < 4
    z = drawn(sampler_of(energy_rule="metropolis"), 2)
    law = law_of_texts(laws_of_choice(2, energy_rule="metropolis"), 2)  # (27,)
    assert world.surprise(numbers(z, N), law) < 4
    z = drawn(sampler_of(energy_window=0.5), 2)  # two draws, then none
    half = torch.zeros_like(Q[:, 0])  # (64,) after the first step
    for R in patterns(STATES[63]):
        half = half.index_add(0, opened(STATES[63], R), laws_of_choice(2)[63] / 2 ** L)
    assert world.surprise(numbers(z, N), half @ Q) < 4 < world.surprise(
        numbers(z, N), FIGURES("edlm/law_full_K2_T2"))


@pytest.mark.parametrize("rule", energy.RULES)
@pytest.mark.parametrize("law", [dict(temperature=0.5), dict(top_p=0.8), dict(temperature=2.0)])
def test_proposals_and_their_probabilities_come_from_one_law(rule, law, monkeypatch):
    """A judge that knows the draft's own law gives all texts one weight; a judge of its own, with
    many draws, corrects the temperature."""
    seen, sampler = [], sampler_of(3, judge=None, energy_rule=rule)
    monkeypatch.setitem(energy.RULES, rule, lambda log_w: seen.append(log_w) or log_w.argmax(-1))
    drawn(sampler, 3, 50, **law)
    assert all((log_w == 0).all() for log_w in seen) and len(seen) == 3
    monkeypatch.undo()
    if law == dict(temperature=0.5) and rule == "metropolis":
        z = drawn(sampler_of(60, energy_rule=rule), 1, 8000, **law)
        assert off(torch.bincount(numbers(z, N), minlength=27) / len(z)) < .04


def test_texts_of_a_batch_keep_their_own_prompts_and_are_rated_for_themselves():
    """Candidates in the order of the batch (fault 3): each is rated with its own visible tokens."""
    z, seen = STATES[[63, 7, 52, 27]].repeat(3000, 1), []  # (12000, 3): mmm, 0 1 m, m 1 0, 1 2 m
    judge = SimpleNamespace(method=AR, denoiser=lambda s, t, at: seen.append(s) or JUDGE.denoiser(
        s, t, at))
    x = drawn(sampler_of(3, judge=judge), 1, z=z)
    assert ((x == z) | (z == N)).all()
    assert all(((s[:, 1:] == z[:, :2]) | (z[:, :2] == N)).all() for s in seen) and len(seen) == 3
    for i in range(4):
        law = law_of_choice(sampler_of(3), z[i])
        assert world.surprise(numbers(x[i::4], N), law) < 4
    order = FIGURES("edlm_pub/PUB_order")  # whose texts were in the rows of a batch of four
    assert not torch.equal(order, FIGURES("edlm_pub/OURS_order"))
    assert torch.equal(FIGURES("edlm_pub/OURS_order"), torch.arange(4)[:, None].expand(4, 3))
