"""Schedules by the words of the source, in the world of 27 texts: the first word is given, the
other two are written. Sums over texts and states; a state is 16 z0 + 4 z1 + z2, with 3 for a mask.
"""
import numpy
import pytest
import torch
import world
from world import TEXTS, L, N

from diffusion import Wrapper
from methods import make_method
from samplers.generate import CallCounter

STATES = torch.cartesian_prod(*[torch.arange(N + 1)] * L)  # (64, L)
MASKS = STATES == N  # (64, L)
FITS = MASKS[:, None] | (STATES[:, None] == TEXTS)  # (64, 27, L) the text may be behind it
GIVEN = torch.arange(L) == 0  # (L,)
P0 = torch.zeros(N, dtype=torch.float64).scatter_add_(0, TEXTS[:, 0], world.P)  # (N,) p(x_0)
ENTROPY = (torch.special.entr(world.P).sum() - torch.special.entr(P0).sum()).item()  # of the rest
NODES, WEIGHTS = ((torch.from_numpy(a) + shift) / 2 for a, shift in
                  zip(numpy.polynomial.legendre.leggauss(32), (1, 0)))  # (32,) each
each_sign = pytest.mark.parametrize("spindle", [0.6, -0.6])


def made(spindle, **flags):
    return make_method("diffusionbert", N, rank_by="source", spindle=spindle, **flags)


def frozen_of(x):
    return GIVEN.expand(x.shape)  # (n, L)


def joint(method, t):
    """p(x) q(z | x) with the first word given. -> (64, 27)"""
    m = method.masked(t, TEXTS, method.known(TEXTS, frozen_of(TEXTS))).masked_fill(GIVEN, 0.0)
    return (torch.where(MASKS[:, None], m, 1 - m) * FITS).prod(-1) * world.P


def law(method, t):
    """p(x_l = v | z), where the pattern of masks is evidence. -> (64, L, N)"""
    weight = joint(method, t)  # (64, 27)
    p = torch.stack([weight @ (TEXTS == v).double() for v in range(N)], -1)  # (64, L, N)
    return p / p.sum(-1, keepdim=True).clamp(min=1e-300)


def mean_bound(method, x_theta):
    """(16.7) for x_theta(t) (64, L, N), summed over texts, noise and time. -> () nats"""
    total = 0.0
    for t, weight in zip(NODES, WEIGHTS):
        w_x = method.rate(t, TEXTS, method.known(TEXTS, frozen_of(TEXTS)))  # (27, L)
        known = method.known(STATES, frozen_of(STATES))[:, None]  # (64, 1, N)
        w = method.rate(t, torch.arange(N), known)  # (64, 1, N)
        of_all = (w * x_theta(t)).sum(-1)[:, None]  # (64, 1, L)
        of_x = torch.stack([x_theta(t)[:, l, TEXTS[:, l]] for l in range(L)], -1)  # (64, 27, L)
        nats = of_all - w_x * (of_x.clamp(min=1e-300).log() + 1)  # (64, 27, L)
        seen = MASKS[:, None] & FITS.all(-1, keepdim=True)  # (64, 27, L)
        total = total + weight * (joint(method, t)[..., None] * torch.where(seen, nats, 0.0)).sum()
    return total


def test_the_schedule_is_that_of_the_given_words_alone():
    """k is -pi lambda / 2 for a word of the source, and pi lambda / 2 for any other."""
    method, t = made(0.4), torch.tensor([[0.5]], dtype=torch.float64)
    x = torch.tensor([[2, 2, 1], [0, 2, 1]])  # (B, L)
    m = method.masked(t, x, method.known(x, frozen_of(x)))  # (B, L)
    late, early = 0.5 - 0.4 / 2, 0.5 + 0.4 / 2  # of m at t = 1/2, where sin(pi t) = 1
    assert m.flatten().tolist() == pytest.approx([early, early, late, early, late, late])
    other = torch.tensor([[2, 0, 0], [0, 1, 0]])  # the written words do not change it
    assert torch.equal(method.known(other, frozen_of(other)), method.known(x, frozen_of(x)))
    assert (method.known(x, None) == 0.5).all()  # nothing is given
    key = made(-0.4).masked(t, x, method.known(x, frozen_of(x)))  # (B, L)
    assert key[0, 1] < 0.5 < key[0, 2]  # words of the source survive longest: written first


@each_sign
def test_it_is_tight_given_the_source_when_the_pattern_counts_as_evidence(spindle):
    """Through the oracle of the method, which is told what is given."""
    method = made(spindle)
    exact = method.oracle(world.LANGUAGE)
    law_of = lambda t: exact(STATES, t.expand(64, 1), frozen=frozen_of(STATES)).exp()
    assert mean_bound(method, law_of).item() == pytest.approx(ENTROPY, abs=1e-8)
    reached = MASKS & ~GIVEN & ~MASKS[:, :1]  # (64, L)
    t = torch.tensor(0.3, dtype=torch.float64)
    torch.testing.assert_close(law_of(t)[reached], law(method, t)[reached])


def test_a_law_that_ignores_the_pattern_or_the_source_pays_and_none_gives_less():
    method, plain = made(-0.6), made(0.0)
    blind = mean_bound(method, lambda t: law(plain, t)).item()
    oracle = method.oracle(world.LANGUAGE)
    untold = mean_bound(method, lambda t: oracle(STATES, t.expand(64, 1)).exp()).item()
    assert blind > ENTROPY + 0.003 and untold > ENTROPY + 0.003, (blind - ENTROPY, untold - ENTROPY)
    logits = torch.stack([law(method, t).clamp(min=1e-12).log() for t in NODES]).requires_grad_()
    at = lambda x: (lambda t: x[(NODES == t).nonzero()[0, 0]].softmax(-1))
    slopes = torch.autograd.grad(mean_bound(method, at(logits)), logits)[0]  # (32, 64, L, N)
    assert slopes.abs().max() < 1e-9
    torch.manual_seed(0)
    assert mean_bound(method, at(logits.detach() + 0.1 * torch.randn_like(logits))) > ENTROPY + 1e-4


@each_sign
def test_draws_have_the_mean_of_the_sum_and_never_score_the_source(spindle):
    method, n = made(spindle), 8_000
    torch.manual_seed(0)
    x = TEXTS[world.P.multinomial(n, replacement=True)]  # (n, L)
    nats = method.nelbo(method.oracle(world.LANGUAGE), x, frozen_of(x))  # (n, L)
    assert (nats[:, 0] == 0).all()
    mean, error = nats.sum(-1).mean(), nats.sum(-1).std() / n ** 0.5
    assert abs(mean - ENTROPY) < 4 * error and error < 0.03


def test_samples_have_the_distribution_of_the_texts_given_the_source():
    """In 24 steps nearly: total variation as the sums of (16.8) have it, 4 steps are worse."""
    method, n = made(-0.6), 8_000
    torch.manual_seed(1)
    x = TEXTS[world.P.multinomial(n, replacement=True)]  # (n, L)
    frozen = frozen_of(x)
    z = torch.where(frozen, x, method.prior(x.shape))  # (n, L)
    far = []
    for steps in (1, 24):
        *_, out = method.sample(method.oracle(world.LANGUAGE), z, frozen, steps)
        assert torch.equal(out[:, 0], x[:, 0]) and (out < N).all()
        shares = torch.bincount(world.numbers(out, N), minlength=27) / n  # (27,)
        far.append((shares - world.P).abs().sum().item() / 2)
    assert far[1] < 0.04 < 0.06 < far[0], far


def test_wrappers_tell_the_oracle_what_is_given():
    method = made(0.3)
    oracle = method.oracle(world.LANGUAGE)
    counted = CallCounter(Wrapper(oracle))
    assert counted.reads_frozen and method.told(counted, GIVEN) == {"frozen": GIVEN}
    assert method.told(lambda z, t, at: None, GIVEN) == {}  # a network
    z, t = STATES[:8], torch.full((8, 1), 0.4)  # (8, L), (8, 1)
    at = (z == N) & (z[:, :1] == 0)  # (8, L) the first text has none
    found = counted(z, t, at=at, frozen=frozen_of(z))  # (M, N)
    assert not at.any(-1).all()
    torch.testing.assert_close(found, oracle(z, t, frozen=frozen_of(z))[at])


def test_lambda_stays_within_the_process_of_half_a_unit():
    with pytest.raises(ValueError, match="is 0.320: -0.636 to 0.636"):
        made(0.64).check_schedule()
    made(0.63).check_schedule()
    assert made(0.63).bounded and made(0.63).uses_time
