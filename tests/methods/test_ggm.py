"""GGM: the bound is exact at any number of rounds, and heat-bath steps lose nothing. All by
enumeration."""

from itertools import product

import pytest
import torch

from data.toy import ToyCorpus
from evaluation.likelihood import estimate_bound
from methods import make_method
from world import TEXTS, L, N, P

ALL = torch.tensor(list(product(range(N), repeat=L)))  # (27, 3) noisy texts


def noisy(method, r, i):
    """q(X_t = z | x) before step (r, i), for every z and x. -> (27 z, 27 x)"""
    alpha = 1 - method.times(ALL[:1], torch.tensor([[r]]), torch.tensor([[i]]))  # (1, L)
    same = (ALL[:, None] == TEXTS).double()  # (27, 27, L)
    return (alpha * same + (1 - alpha) / N).prod(-1)  # (27, 27)


def exact_denoiser(method):
    """The exact leave-one-out distribution, called like a network."""

    def denoiser(z, t, at=None):
        hidden = z == method.mask  # (B, L)
        t = t.double()[:, None]  # (B, 1, L)
        e = (1 - t) * (z[:, None] == TEXTS) + t / N  # (B, 27, L)
        weight = e.masked_fill(hidden[:, None], 1.0).prod(-1) * P  # (B, 27)
        l = hidden.int().argmax(-1)  # (B,)
        p = torch.stack([(weight * (TEXTS[:, l].T == v)).sum(-1) for v in range(N)], -1)  # (B, N)
        return (p / p.sum(-1, keepdim=True)).log()[at.any(-1)]  # (n, N)

    return denoiser


def x_theta_of(method, denoiser, r, i):
    """x_theta of the token i for every noisy text before step (r, i). -> (27, N)"""
    site = torch.full((len(ALL), 1), i)  # (27, 1)
    t = method.times(ALL, torch.full_like(site, r), site)  # (27, L)
    return method.logits_at(denoiser, ALL, t, site).softmax(-1)  # (27, N)


def exact_bound(method, denoiser):
    """The mean of (17.5) for every text of the world, as a sum over steps, noisy texts and visits.
    -> (27,)"""
    total = torch.full((len(TEXTS),), L * method.prior_kl(), dtype=torch.float64)  # (27,)
    for r, i in product(range(method.rounds), range(L)):
        q, x_theta = noisy(method, r, i), x_theta_of(method, denoiser, r, i)  # (27, 27), (27, N)
        for b in range(N):
            visit = method.keep * (ALL[:, i] == b).double() + (1 - method.keep) / N  # (27,)
            for x in range(len(TEXTS)):
                clean = TEXTS[x, i].expand(len(ALL), 1)  # (27, 1)
                kl = method.step_kl(
                    x_theta, clean, torch.full_like(clean, b), torch.full_like(clean, r)
                )  # (27, 1)
                total[x] += (q[:, x] * visit * kl[:, 0]).sum()
    return total


@pytest.mark.parametrize(
    "flags", [dict(rounds=1, keep=0.5), dict(rounds=2, keep=0.3), dict(rounds=3, keep=0.55)]
)
def test_the_bound_of_the_oracle_is_the_entropy_and_what_is_left_at_the_end_at_any_number_of_rounds(
    flags,
):
    """-log p is not reached text by text, but H + KL(law of X_T || uniform) is, in the mean, to
    rounding."""
    method = make_method("ggm", N, **flags)
    last = noisy(method, method.rounds, 0) @ P  # (27,)
    rest = (last * (last * len(ALL)).log()).sum()
    found = (P * exact_bound(method, exact_denoiser(method))).sum()
    torch.testing.assert_close(found, torch.special.entr(P).sum() + rest, atol=1e-10, rtol=0)


def test_any_other_denoiser_gives_more():
    method, exact = make_method("ggm", N, rounds=2), exact_denoiser(make_method("ggm", N, rounds=2))
    least = (P * exact_bound(method, exact)).sum()
    for change in (
        lambda p: 0.9 * p,
        lambda p: p + torch.tensor([0.3, 0.0, 0.0]),
        torch.zeros_like,
    ):
        assert (
            P * exact_bound(method, lambda z, t, at: change(exact(z, t, at)))
        ).sum() > least + 1e-3


def test_nelbo_draws_the_terms_of_the_bound():
    """Its mean over draws is the exact sum, within four standard errors of at most 1.5 %."""
    method, n = make_method("ggm", N, rounds=2, keep=0.4), 60_000
    wrong = lambda z, t, at: exact_denoiser(method)(z, t, at) * 0.7
    torch.manual_seed(0)
    x = TEXTS[torch.multinomial(P, n, replacement=True)]  # (n, L)
    nats = method.nelbo(wrong, x).sum(-1)  # (n,)
    error = nats.std() / n**0.5
    exact = (P * exact_bound(method, wrong)).sum()
    assert error < 0.015 * exact and abs(nats.mean() - exact) < 4 * error


def test_heat_bath_steps_bring_the_law_of_the_noise_back_to_the_data_exactly():
    """(17.3) maps the law of X_t+1 to that of X_t: from the true X_T, one round after the other,
    nothing is lost."""
    method = make_method("ggm", N, rounds=2, keep=0.3)
    denoiser, law = exact_denoiser(method), noisy(method, 2, 0) @ P  # (27,)
    for r, i in reversed([*product(range(method.rounds), range(L))]):
        p = method.given_rest(x_theta_of(method, denoiser, r, i), method.keep**r)  # (27, N)
        new = torch.zeros_like(law)  # (27,)
        for v in range(N):
            to = ALL.clone()  # (27, L)
            to[:, i] = v
            new.index_add_(0, (to * N ** torch.arange(L).flip(0)).sum(-1), law * p[:, v])
        law = new
        torch.testing.assert_close(law, noisy(method, r, i) @ P, atol=1e-14, rtol=0)


def test_samples_of_the_oracle_have_the_law_of_the_data():
    """Total variation from 27 probabilities below three times what 10,000 exact draws have, and
    given tokens stay."""
    method, n = make_method("ggm", N, rounds=6, keep=0.55), 10_000
    torch.manual_seed(1)
    *_, z = method.sample(
        exact_denoiser(method), method.prior((n, L)), torch.zeros(n, L, dtype=torch.bool), 6
    )
    seen = torch.bincount((z * N ** torch.arange(L).flip(0)).sum(-1), minlength=27) / n  # (27,)
    assert (seen - P).abs().sum() / 2 < 3 * (P * (1 - P) / n).sqrt().sum() / 2
    frozen = torch.tensor([[True, False, True]]).expand(64, -1)  # (64, L)
    given = TEXTS[torch.arange(64) % 27]  # (64, L)
    *_, z = method.sample(
        exact_denoiser(method), torch.where(frozen, given, method.prior((64, L))), frozen, 6
    )
    assert (z == given)[frozen].all()


def test_the_bit_and_the_word_have_one_minimizer():
    """Both losses are least at the exact distribution, among scaled ones."""
    torch.manual_seed(2)
    x = TEXTS[torch.multinomial(P, 40_000, replacement=True)]  # (n, L)
    for objective in ("ce", "bce"):
        method = make_method("ggm", N, rounds=2, keep=0.4, objective=objective)
        values = []
        for scale in (0.5, 1.0, 1.6):
            torch.manual_seed(3)  # the same noise for all
            values.append(
                method.loss(lambda z, t, at: scale * exact_denoiser(method)(z, t, at), x).mean()
            )
        assert values[1] < min(values[0], values[2])


def test_the_toy_oracle_is_tight_within_four_standard_errors():
    data = ToyCorpus(block_size=8)
    method = make_method("ggm", data.encoding.n_vocab, rounds=3, keep=0.3)
    x = data.windows("val", 4000)  # (n, 8)
    oracle = method.oracle(data.language)
    bound, error = estimate_bound(method, oracle, x, draws=4, batch_size=1000)
    entropy, _ = data.language.entropy(8)
    assert error < 0.03 and -4 * error < bound - entropy < 4 * error + 8 * 0.03
