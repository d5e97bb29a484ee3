"""Walks on a sphere: the public code's figures, the bound with an exact denoiser, what mixtures of
two starts miss, and Fisher-Flow.

flow_reference.npz: rdlm/* are from RDLM (commit 67443aa) at five words, where u runs from noise to
text; REF_* are by sums apart from this code. fisher/* is (14.38) of four words, and Bayes's rule
over the 256 texts of lang/p.
"""
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import world
from bounds import mean_of_batches
from references import Figures, same
from world import TEXTS, L, N, P

from data.toy import ToyCorpus
from methods import make_method
from methods.sphere import Sphere, angles, exp_map, log_mean, path_evidence, spread_of, tangent

figure = Figures("flow_reference")
each_start = pytest.mark.parametrize("start", ["mask", "uniform"])


def made(n=N, **flags):
    return make_method("rdlm", n, **flags)


# ---- the public code

def test_noise_is_that_of_the_public_code():
    process, u = Sphere(5, 0.2, "mask", 0.15), figure("rdlm/t").double()  # (B,)
    same(process.remaining(1 - u).float(), figure("rdlm/int_beta"), 1e-6)
    same(process.time(process.remaining(1 - u)), 1 - u)
    h = 1e-5
    beta = (process.remaining(1 - u + h) - process.remaining(1 - u - h)) / (2 * h)  # (B,)
    same(beta.float(), figure("rdlm/beta"), 1e-5)
    c, variance = process.move(1 - u - h, 1 - u)  # (B,) each
    same((c / h).float(), figure("rdlm/gamma"), 1e-3)
    same((variance / h).float(), figure("rdlm/beta"), 1e-3)


@pytest.mark.parametrize("start", ["mask", "unif"])
def test_maps_drifts_steps_and_evidence_are_those_of_the_public_code(start):
    of = lambda key: figure(f"rdlm/{start}/{key}").double()
    X, word, p = of("interpolant"), F.one_hot(figure("rdlm/x"), 5), of("logits").softmax(-1)
    beta, gamma = (figure(f"rdlm/{key}").double()[:, None, None] for key in ("beta", "gamma"))
    same(log_mean(X, word), of("log_map"), 1e-5)
    same(gamma * log_mean(X, p), of("model_drift"), 1e-5)
    girsanov = gamma ** 2 / (2 * beta) * log_mean(X, word - p).square().sum(-1, keepdim=True)
    same(girsanov[..., 0], of("girsanov_integrand"), 1e-5)
    c, variance = gamma * figure(f"rdlm/{start}/step_dt"), beta * figure(f"rdlm/{start}/step_dt")
    xi = c * log_mean(X, p) + variance.sqrt() * tangent(X, of("step_z"))  # (B, L, D)
    same(exp_map(X, xi), of("step_next"), 1e-5)
    th, f = angles(X[..., :5])  # (B, L, V) each
    same(path_evidence(th, f, xi, c, variance), of("REF_log_evidence_increment"), 1e-5)


@pytest.mark.parametrize("d", [3, 27])
def test_the_spread_has_the_mean_cosine_and_that_of_the_public_code_has_not(d):
    cos = figure("rdlm/cos")  # (n,)
    rho = spread_of(cos, d)  # (n,)
    same(rho, figure(f"rdlm/REF_rho_d{d}"), 1e-6)
    public = figure(f"rdlm/rho_public_d{d}")  # exp(-rho^2/2) counts twice there
    assert (public < 0.99 * rho).all()
    torch.manual_seed(0)
    size = torch.randn(40_000, d, dtype=torch.float64).norm(dim=-1)  # (m,)
    draws = torch.cos(rho[:, None] * size)  # (n, m)
    assert ((draws.mean(-1) - cos).abs() < 4.5 * draws.std(-1) / 200).all()


def test_a_step_stays_on_the_sphere_in_the_tangent_plane_also_at_a_word():
    torch.manual_seed(0)
    X = F.normalize(torch.randn(200, 6, dtype=torch.float64), dim=-1)  # (n, D)
    X = torch.cat([X, torch.eye(6).double(), -torch.eye(6).double()])  # (n + 12, D)
    xi = log_mean(X, torch.rand(len(X), 5).double()) + tangent(X, torch.randn_like(X))  # (n, D)
    assert xi.isfinite().all() and ((xi * X).sum(-1).abs() < 1e-9).all()
    same(exp_map(X, xi).norm(dim=-1), torch.ones(len(X)).double())
    there = exp_map(X[:200], log_mean(X[:200], F.one_hot(torch.full((200,), 2), 5)))  # (n, D)
    same(there, torch.eye(6).double()[2].expand(200, -1), 1e-6)  # exp undoes Log


def test_in_a_plane_two_steps_are_one():
    """Of their means and variances: 1 - c multiplies what is left of the way."""
    process, (s, r, t) = Sphere(5, 0.2, "mask", 0.15), torch.tensor([0.1, 0.5, 0.9]).double()
    (c1, v1), (c2, v2), (c, v) = (process.move(*a) for a in ((r, t), (s, r), (s, t)))
    same((1 - c1) * (1 - c2), 1 - c)
    same((1 - c2) ** 2 * v1 + v2, v)


# ---- draws, and the bound

@each_start
def test_draws_of_one_step_have_the_moments_of_walks(start):
    method, x = made(6, start=start), torch.full((3000, 1), 2)  # (n, 1)
    process = method.process
    torch.manual_seed(0)
    for at in (0.3, 0.8):
        v = torch.full((3000, 1), at, dtype=torch.float64)  # (n, 1)
        first = torch.full_like(v, process.first)  # (n, 1)
        walks = method.walk(x, process.begin(x), first, process.grown(v)[0])[:, 0]  # (n, D)
        draws = process.draw(x, v)[:, 0]  # (n, D)
        assert ((walks.mean(0) - draws.mean(0)).abs() < 0.01).all()
        assert ((walks.std(0) / draws.std(0) - 1).abs() < 0.1).all()


def one_token(method, p):
    """The exact denoiser of a text of one token. p (V,) -> denoiser"""
    def posterior(e, leave_one_out, topic):
        joint = e * p  # (B, L, V)
        return joint / joint.sum(-1, keepdim=True)  # (B, L, V)
    return method.oracle(SimpleNamespace(posterior=posterior))


@each_start
def test_the_bound_of_two_tokens_is_the_entropy(start):
    """The first two of the world, within 4.5 standard errors, from either start."""
    method, x = made(start=start), TEXTS[:, :2]  # (27, 2)
    exact = method.oracle(world.LANGUAGE)
    p = torch.stack([P[(x == a).all(-1)].sum() for a in x])  # (27,)
    torch.manual_seed(0)

    def draw():
        of = torch.multinomial(P, 2000, replacement=True)  # (n,)
        return method.nelbo(exact, x[of]).sum(-1) + p[of].log()  # (n,)
    more, error = mean_of_batches(draw, 16)
    assert error < 0.03 and abs(more) < 4.5 * error


def test_the_bound_of_five_words_is_their_entropy_and_the_last_term_is_needed():
    p = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05], dtype=torch.float64)  # (V,)
    entropy = torch.special.entr(p).sum()
    found = []
    for end in (0.15, 0.6):  # a walk that ends early leaves words open
        method = made(5, end=end)
        torch.manual_seed(0)
        draw = lambda: method.nelbo(one_token(method, p), torch.multinomial(p, 2000, True)[:, None])
        mean, error = mean_of_batches(draw, 12)
        assert error < 0.02 and abs(mean - entropy) < 4.5 * error
        v = torch.ones(2000, 1, dtype=torch.float64)  # (n, 1)
        x, last = torch.multinomial(p, 2000, True)[:, None], method.process.grown(v)[0]
        z = F.pad(method.process.begin(x), (0, 5))  # (n, 1, D + V)
        z = method.walk(x, z, torch.full_like(v, method.process.first), last)
        log_p = method.log_p(one_token(method, p), z, x, last)  # (n, 1, V)
        found.append(-log_p.gather(-1, x[..., None]).mean())
    assert found[0] < 0.005 and found[1] > 0.2


def test_the_toy_language_has_its_entropy_and_another_denoiser_gives_more():
    """Within four standard errors, over 800 texts of 8 words."""
    data = ToyCorpus(block_size=8)
    method = made(data.language.V)
    exact, above = method.oracle(data.language), []
    for change in (1.0, 0.6):
        torch.manual_seed(0)
        other = lambda z, t, at: change * exact(z, t, at)
        above.append(torch.stack([
            (method.nelbo(other, x).mean(-1) + data.language.log_prob(x) / 8).mean()
            for x in data.windows("val", 800).split(100)]))  # (8,)
    error = above[0].std() / 8 ** 0.5
    assert error < 0.08 and abs(above[0].mean()) < 4 * error
    assert (above[1] - above[0]).mean() > 0.1


def test_a_mixture_of_two_starts_is_scored_below_the_entropy():
    """Three equal words, the way from the uniform point up to u = .38 and then that from the mask,
    as the public code adds them up: -0.167 nats."""
    p, until = torch.full((3,), 1 / 3, dtype=torch.float64), []  # (V,)
    torch.manual_seed(0)
    for start in ("uniform", "mask"):
        method, n = made(3, start=start), 12_000
        process, x = method.process, torch.randint(3, (n, 1))  # (n, 1)
        most = 1 / process.remaining(torch.tensor(0.62).double()) - process.first  # ()
        u = (torch.arange(n)[:, None] + 0.5).double() / n  # (n, 1)
        now, z = process.first + u * most, F.pad(process.begin(x), (0, 3))
        z = method.walk(x, z, torch.full_like(u, process.first), now)  # (n, 1, D + V)
        nats = most * method.integrand(one_token(method, p), z, x, now)  # (n, 1)
        until.append((nats.mean(), nats.std() / n ** 0.5))
    (uniform, a), (mask, b) = until
    assert abs(uniform - mask + 0.167) < 4.5 * math.hypot(a, b) < 0.06


# ---- Fisher-Flow

def test_without_noise_a_point_has_the_evidence_and_the_posterior_of_bayes():
    method = made(4, noise=0.0)
    z = F.pad(figure("fisher/w"), (0, 1))  # (B, L, D)
    t = torch.full((len(z), 1), 1 - figure("fisher/t").item())  # (B, 1)
    e = method.process.evidence(z, t.double())  # (B, L, V)
    known = figure("fisher/REF_log_evidence").isfinite()  # (B, L, V)
    assert torch.equal(e.isfinite(), known)
    same(e[known], figure("fisher/REF_log_evidence")[known], 1e-6)
    texts, e = torch.cartesian_prod(*[torch.arange(4)] * 4), method.likelihood(z, t)  # (256, 4)
    joint = figure("lang/p") * e[:, torch.arange(4), texts].prod(-1)  # (B, 256)
    p = torch.stack([joint @ F.one_hot(texts[:, l], 4).double() for l in range(4)], 1)  # (B, L, V)
    same(p / p.sum(-1, keepdim=True), figure("fisher/REF_posterior"), 1e-6)


def test_a_point_that_no_word_explains_counts_for_the_nearest():
    process = Sphere(4, 0.0, "mask", 0.15)
    z = F.pad(F.normalize(torch.tensor([[[0.7, 0.6, 0.5, 0.4]]]).double(), dim=-1), (0, 1))
    e = process.evidence(z, torch.full((1, 1), 0.2).double())  # (1, 1, V)
    assert e.isfinite().tolist() == [[[True, False, False, False]]]


@pytest.mark.parametrize("flags, steps", [(dict(noise=0.0), 48), (dict(start="uniform"), 24)])
def test_other_walks_end_in_the_language(flags, steps):
    """Without noise, and from the uniform point: 1,000 texts against the 27 probabilities."""
    method = made(**flags)
    torch.manual_seed(0)
    z, nothing = method.prior((1000, L)), torch.zeros(1000, L, dtype=torch.bool)  # (n, L) each
    *_, z = method.sample(method.oracle(world.LANGUAGE), z, nothing, steps)
    far, error = world.distance(world.numbers(z, N), P)
    assert far < 0.01 + 4 * error


def test_without_noise_there_is_no_bound_and_the_loss_is_printed():
    method, x = made(noise=0.0), TEXTS  # (27, L)
    assert not method.bounded and "--noise 0 has no bound" in method.unbounded_reason
    assert made().bounded
    draws = []
    for score in (method.loss, method.nelbo):
        torch.manual_seed(0)
        draws.append(score(method.oracle(world.LANGUAGE), x))
    assert torch.equal(*draws) and (draws[0] >= 0).all()


def test_given_tokens_are_words_of_time_zero_in_every_call():
    method, frozen = made(), torch.tensor([[True, False, False], [False, True, True]])
    x, exact, calls = TEXTS[[5, 19]], method.oracle(world.LANGUAGE), []  # (2, L)

    def spy(z, t, at):
        t = t.expand(x.shape)  # (B, L)
        assert (t[frozen] == 0).all() and (t[~frozen] > 0).all() and torch.equal(at, ~frozen)
        same(z[frozen][:, :N + 1], F.one_hot(x[frozen], N + 1).to(z.dtype))
        calls.append(len(z))
        logits = torch.zeros(*z.shape[:2], N + 1)  # (B, L, D)
        return logits[at] if z.shape[-1] == N + 1 else exact(z, t, at)
    for score in (method.loss, method.nelbo):
        score(spy, x, frozen)
    for state in method.sample(spy, torch.where(frozen, x, 0), frozen, 3):
        assert (state == x)[frozen].all()
    assert len(calls) == 6
