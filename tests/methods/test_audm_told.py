"""AUDM with --told words: the paper's network, which sees z and all of u."""
import pytest
import torch
import world
from bounds import close, close_in_the_mean, quadrature
from test_audm import METHOD, PATTERNS, at_time
from world import TEXTS, L, N, P

from flags import UserError
from methods import make_method
from methods.audm import told_bound, told_cross_entropy
from samplers import make_sampler

TOLD = make_method("audm", N, told="words")
PAIRS = [a.reshape(729, L) for a in (TEXTS.repeat(27, 1), TEXTS.repeat_interleave(27, 0))]  # x, u


def pairs(t, m):
    """All 27 x 27 pairs of a text and u, with noise m (L,). -> ids, what looks like noise (729, L)
    """
    x, u = PAIRS
    closed = m | (x == u)  # (729, L)
    return torch.where(closed, N + 1 + u, x), closed


def told_bound_of(denoiser, nodes=36):
    """(4.6) for every text, summed over u and m and integrated over t. -> (27,)"""
    (x, u), total = PAIRS, torch.zeros(27, dtype=torch.float64)  # (27,)
    for t, w in zip(*quadrature(nodes)):
        for m in [torch.zeros(L, dtype=torch.bool), *PATTERNS]:
            z, closed = pairs(t, m)
            log_p = denoiser(z, at_time(float(t), 729))[closed]  # (n, N)
            kappa = torch.full((len(log_p),), float((1 - t) / t), dtype=torch.float64)  # (n,)
            nats = torch.zeros(729, L, dtype=torch.float64)  # (729, L)
            nats[closed] = told_bound(log_p, x[closed], u[closed], kappa)
            q = t ** m.sum() * (1 - t) ** (~m).sum() * w / t / 27  # ()
            total += q * nats.sum(-1).view(27, 27).sum(0)  # (27,) over u
    return total


def test_the_sum_is_that_of_the_public_code():
    """Of random predictions: 1 - p(z) - [x != u] (1 + log p(x)), with p by Bayes' rule (0.4)."""
    torch.manual_seed(0)
    logits, t = torch.randn(50, N, dtype=torch.float64), torch.rand(50, dtype=torch.float64)
    x, u = torch.randint(N, (2, 50))  # (50,) each
    p = logits.softmax(-1) * (t[:, None] + (1 - t)[:, None] * torch.eye(N)[u])  # (50, N)
    p = p / p.sum(-1, keepdim=True)  # (50, N)
    p_u, p_x = (p.gather(-1, v[:, None])[:, 0] for v in (u, x))  # (50,) each
    close(told_bound(logits, x, u, (1 - t) / t), 1 - p_u - (x != u) * (1 + p_x.log()), 1e-12)
    close(told_cross_entropy(logits, x, u, (1 - t) / t), -p_x.log(), 1e-12)


def test_the_bound_of_the_papers_network_is_exact_too():
    """Text by text, through its oracle, to 1e-5; and that of another denoiser is larger."""
    exact = TOLD.oracle(world.LANGUAGE)
    close(told_bound_of(exact), -P.log(), 1e-5)
    flat = told_bound_of(lambda z, t: (0.9 * exact(z, t).exp() + 0.1 / N).log(), nodes=12)
    assert (P * flat).sum() > -(P * P.log()).sum() + 0.005


def test_its_nelbo_draws_that_bound():
    """Of a wrong denoiser that knows the time, within 4.5 standard errors below 1 %."""
    torch.manual_seed(0)
    wrong = lambda z, t, at=None: world.vandal(z % (N + 1), t.double(), at)
    exact = told_bound_of(wrong)  # (27,)
    for i in (1, 14, 25):
        x = TEXTS[i].expand(4000, -1)
        close_in_the_mean(lambda: TOLD.nelbo(wrong, x).sum(-1), exact[i])


def test_both_of_its_losses_are_least_at_the_exact_denoiser():
    x = TEXTS[torch.multinomial(P, 20_000, replacement=True)]  # (n, L)
    exact = TOLD.oracle(world.LANGUAGE)
    for weighting in ("simple", "bound"):
        method, found = make_method("audm", N, told="words", weighting=weighting), []
        for scale in (0.6, 1.0, 1.6):
            torch.manual_seed(3)  # the same noise for all
            found.append(method.loss(lambda *a, **b: scale * exact(*a, **b), x).mean())
        assert found[1] < min(found[0], found[2])


def test_its_samples_in_many_steps_are_texts_of_the_language_and_given_tokens_stay():
    """In 96 steps, total variation below 0.025; its states are those of the loss: noise, or text
    that does not equal its u."""
    n = 20_000
    torch.manual_seed(0)
    noise, nothing = TOLD.prior((n, L)), torch.zeros(n, L, dtype=torch.bool)  # (n, L) each
    denoiser = world.by_state(TOLD.oracle(world.LANGUAGE))
    *states, x = TOLD.sample(denoiser, noise, nothing, 96)
    assert all(((z == noise) | (z <= N) & (z != noise - N - 1)).all() for z in states)
    assert (torch.bincount(world.numbers(x, N), minlength=27) / n - P).abs().sum() / 2 < 0.025
    given, frozen = TEXTS[torch.arange(64) % 27], torch.tensor([[True, False, True]]).expand(64, -1)
    for z in TOLD.sample(denoiser, torch.where(frozen, given, TOLD.prior((64, L))), frozen, 4):
        assert (z == given)[frozen].all()


def test_given_tokens_are_text_even_if_they_equal_their_u():
    torch.manual_seed(0)
    x, frozen, seen = torch.randint(N, (40, 8)), torch.rand(40, 8) < 0.5, []

    def spy(z, t, at):
        seen.append(z)
        return torch.zeros(int(at.sum()), N)
    for method in (METHOD, TOLD):
        for score in (method.loss, method.nelbo):
            nats = score(spy, x, frozen)
            assert (nats[frozen] == 0).all() and (nats[~frozen] != 0).any()
    assert len(seen) == 4 and all((z == x)[frozen].all() for z in seen)


def test_the_papers_network_reads_the_time_and_takes_its_own_steps():
    assert TOLD.uses_time and not METHOD.uses_time and "sdtt" not in TOLD.distilled_by
    with pytest.raises(UserError, match="takes steps of its own: take ancestral or redraw"):
        make_sampler("first-hitting", TOLD)
