"""Schedules of masks: MD4, GenMD4 and RADD against public figures, on the enumerated world, and in the scripts."""
import math
from pathlib import Path

import numpy
import pytest
import torch
import torch.nn.functional as F
import world
from numpy.polynomial.legendre import leggauss
from runs import cache, elsewhere, fit  # noqa: F401
from test_reference import LOG_P, T, X, Z
from world import L, N, P, TEXTS, numbers, surprise

import evaluate
import report
import sample
import train
from bounds import estimate
from checkpoint import restore
from diffusion import ancestral, reverse
from masked import MDLM, Absorbing, masked_bound
from md4 import MD4, GenMD4, Scheduled
from radd import OBJECTIVES, RADD, written

FIGURES = numpy.load(Path(__file__).parent / "masked_reference.npz")     # MD4 b9fbf29, RADD 60b772d, ReMDM f830d65
CE = -LOG_P.gather(-1, X[..., None])[..., 0]                                                            # (B, L)
SCHEDULES = {"linear": ("linear", 1.0), "cosine": ("cosine", 1.0), "poly3": ("polynomial", 3.0)}


def figure(name):
    return torch.from_numpy(FIGURES[name])


def close(ours, exact, tolerance=1e-9):
    torch.testing.assert_close(ours, exact, atol=tolerance, rtol=tolerance)


def close_in_the_mean(draws, target):
    assert abs(draws.mean() - target) < 4.5 * draws.std() / len(draws) ** 0.5


# ---- schedules

@pytest.mark.parametrize("name", SCHEDULES)
def test_the_schedules_and_the_bounds_of_md4s_public_code(name):
    """That code keeps eps = 1e-4 from both ends, and its weight is negative."""
    process = Scheduled(11, *SCHEDULES[name], eps=1e-4)
    close(process.alpha(T)[:, 0], figure(f"md4/{name}_alpha"))
    close(process.dalpha(T)[:, 0], figure(f"md4/{name}_dalpha"))
    close((process.dalpha(T) / process.b(T, 11))[:, 0], figure(f"md4/{name}_weight"))
    close((process.alpha(T) / process.b(T, 11)).log()[:, 0], figure(f"md4/{name}_logsnr"))
    close(masked_bound(process, CE, Z, T).sum(-1), figure(f"md4/{name}_ct_loss_seq"))


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_derivative_of_a_schedule_is_that_which_autograd_finds(name):
    process, t = Scheduled(5, *SCHEDULES[name]), torch.rand(50, 1, dtype=torch.float64, requires_grad=True)
    grad, = torch.autograd.grad(process.alpha(t).sum(), t)
    close(process.dalpha(t).detach(), grad)
    ends = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    close(process.alpha(ends), 1 - ends, 1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_has_the_same_bound(name):
    """Draws at uniform times, weighted by the schedule, in the mean: mdlm's, of a wrong denoiser, on every text."""
    method = MD4(N, *SCHEDULES[name])
    torch.manual_seed(0)
    flat = lambda z, t, at: world.vandal(z, torch.full_like(t, 0.3, dtype=torch.float64), at)
    for i in (1, 14):
        x = TEXTS[i].expand(100_000, -1)
        difference = method.loss(flat, x).sum(-1) - MDLM(N).nelbo(flat, x).sum(-1)
        close_in_the_mean(difference, 0.0)


def test_the_cosine_schedule_at_equal_times_is_the_linear_one_on_the_cosine_grid():
    times = torch.linspace(1, 0, 17, dtype=torch.float64)[:, None]
    close(Scheduled(5, "cosine").alpha(times), Absorbing(5).alpha(torch.sin(math.pi / 2 * times)))
    grid = figure("md4/grid_cosine")                                                                    # (16, 2) s, t
    close(torch.sin(math.pi / 2 * times[:-1, 0]), grid[:, 1].sort(descending=True).values)
    seen = []
    spy = lambda z, t, at: seen.append(t[0].item()) or torch.zeros(int(at.sum()), 6)
    z = torch.full((64, 64), 5)
    list(ancestral(Absorbing(5), spy, z, z < 5, 16, grid="cosine"))
    close(torch.tensor(seen), times[:-1, 0].mul(math.pi / 2).sin().float(), 1e-6)


def test_a_steep_schedule_trains_at_a_static_number_of_positions():
    """Near t = 0 float32 has no t^20: what weighs 0/0 there is no mask, and counts nothing."""
    method, x = MD4(5, "polynomial", 20.0), torch.randint(5, (400, 8))
    losses = []
    for static in (False, True):
        scores = torch.zeros(6, requires_grad=True)
        denoiser = lambda z, t, at: scores.expand(len(at) if static else int(at.sum()), -1)             # (N, 6)
        denoiser.static = static
        torch.manual_seed(0)
        losses.append(method.loss(denoiser, x))                                                         # (400, 8)
        losses[-1].mean().backward()
        assert scores.grad.isfinite().all()
    close(losses[1], losses[0].detach(), 1e-5)


# ---- a schedule for each symbol

def uneven(n=N):
    method = GenMD4(n)
    method.w_raw = torch.linspace(0.5, 2.0, n, dtype=torch.float64)
    return method


def gen_oracle(method):
    """p(x_l | z), masks taken as the evidence they are."""
    def denoiser(z, t, at=None):
        e = torch.stack([method.likelihood(z, t.double())[:, l, TEXTS[:, l]] for l in range(L)], -1).prod(-1) * P
        law = torch.stack([torch.stack([e[:, TEXTS[:, l] == v].sum(-1) for v in range(N)], -1) for l in range(L)], 1)
        log_p = (law / law.sum(-1, keepdim=True)).clamp(min=1e-300).log()                               # (B, L, N)
        return log_p if at is None else log_p[at]
    return denoiser


def test_genmd4s_bound_and_gradient_are_those_of_its_public_code():
    method = GenMD4(11)
    method.w_raw = figure("genmd4/w_raw").requires_grad_()
    close(method.w("cpu").detach(), figure("genmd4/power"))
    known = lambda z, t, at: LOG_P[at]
    nats = method.bound(known, X, Z, T).sum(-1)                                                         # (B,)
    close(nats.detach(), figure("genmd4/loss_seq"))
    other = torch.where(Z == 11, X, 11)                  # the figure's second draw masks what the first does not

    def log_ratio(eps):                                  # that code keeps eps in the draw
        share = (1 - eps) * T ** method.w("cpu")[X]
        return torch.where(Z == 11, share.log() - (1 - share).log(), (1 - share).log() - share.log()).sum(-1).detach()
    close((nats / 4).detach() * log_ratio(1e-4), figure("genmd4/rloo_seq"))
    close((method.log_q(Z, X, T) - method.log_q(other, X, T)).sum(-1).detach(), log_ratio(0.0))


def test_with_equal_exponents_it_is_masked_diffusion():
    method = GenMD4(11)
    method.w_raw = method.w_raw.double()
    close(method.bound(lambda z, t, at: LOG_P[at], X, Z, T).sum(-1), (CE / T * (Z == 11)).sum(-1), 1e-6)


def mean_bound(method, denoiser, x, nodes, w_raw=None):
    """E_t E_z of (42) for one text, by quadrature over v and sums over all noisy texts. -> () nats"""
    z, total = world.states(Absorbing(N)), 0.0                                                          # (64, 3)
    for v, weight in zip(*((a + 1) / 2 if i == 0 else a / 2 for i, a in enumerate(leggauss(nodes)))):
        t = torch.full((len(z), 1), v ** 2, dtype=torch.float64)
        q = method.likelihood(z, t).gather(-1, x.expand(len(z), L)[..., None])[..., 0].prod(-1)         # (64,)
        at = q > 0
        nats = method.bound(denoiser, x.expand(int(at.sum()), -1), z[at], t[at]).sum(-1)
        total = total + weight * 2 * v * (q[at] * nats).sum()
    return total


def test_the_bound_of_the_exact_denoiser_is_tight_and_of_others_is_not():
    """The others: without a clock, and without what the masks tell."""
    method, entropy = uneven(), -(P * P.log()).sum()
    mean = lambda denoiser, nodes: sum(p * mean_bound(method, denoiser, x, nodes) for p, x in zip(P, TEXTS))
    assert abs(mean(gen_oracle(method), 40) - entropy) < 1e-4
    for wrong in (lambda z, t, at: gen_oracle(method)(z, torch.full_like(t, 0.5), at), world.oracle(Absorbing(N))):
        assert mean(wrong, 12) > entropy + 2e-3


def test_the_two_draws_give_the_gradient_of_the_mean():
    """(44) against differences of exact means: how the bound of a wrong denoiser changes with each exponent."""
    x, flat = TEXTS[5], lambda z, t, at: world.vandal(z, t.double(), at)
    method, turned = uneven(), lambda w_raw: setattr(other := uneven(), "w_raw", w_raw) or other
    method.w_raw.requires_grad_()
    torch.manual_seed(0)
    draws = [torch.autograd.grad(method.loss(flat, x.expand(4000, -1)).sum(-1).mean(), method.w_raw)[0]
             for _ in range(60)]
    ours, error = torch.stack(draws).mean(0), torch.stack(draws).std(0) / len(draws) ** 0.5             # (N,) each
    exact = torch.stack([mean_bound(turned(uneven().w_raw + d), flat, x, 60) - mean_bound(
        turned(uneven().w_raw - d), flat, x, 60) for d in 1e-4 * torch.eye(N, dtype=torch.float64)]) / 2e-4
    assert ((ours - exact).abs() < 4.5 * error).all() and (exact.abs() > 10 * error).all()


def test_its_sampler_draws_the_data():
    method = uneven()
    torch.manual_seed(0)
    n = 10_000
    nothing = torch.zeros(n, L, dtype=torch.bool)
    *_, z = method.sample(gen_oracle(method), method.prior((n, L)), nothing, 64)
    distance = lambda draws: (torch.bincount(draws, minlength=27) / n - P).abs().sum() / 2
    chance = torch.stack([distance(torch.multinomial(P, n, replacement=True)) for _ in range(30)])
    assert distance(numbers(z, N)) < chance.mean() + 4 * chance.std() + 0.008


def test_one_lazy_step_of_it_is_the_reverse_law():
    method, n = uneven(), 100_000
    torch.manual_seed(1)
    z = torch.full((n, 1), N)
    law = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    one = lambda z, t, at: law.log().expand(int(at.sum()), -1)
    z = next(method.sample(one, z, z < N, 3))            # from 1 to 2/3
    opens = 1 - (2 / 3) ** method.w("cpu")
    exact = torch.cat([law * opens, (law * (1 - opens)).sum(0, keepdim=True)])
    assert surprise(z[:, 0], exact) < 4.5


def test_what_is_learnt_is_saved_averaged_and_resumed(tmp_path):
    state = fit(tmp_path / "out", method="genmd4", max_iters=6, learning_rate=0.1)
    assert state["model"]["w_raw"].shape == (113,) and state["model"]["w_raw"].std() > 0
    model = restore(tmp_path / "out")
    assert torch.equal(model.method.w_raw, model.denoiser.w_raw) and model.denoiser.w_raw.std() > 0
    torch.testing.assert_close(model.denoiser.w_raw.detach(), state["ema"]["w_raw"], rtol=0, atol=0)


def test_what_is_told_on_the_way_is_what_the_checkpoint_gives(tmp_path, monkeypatch):
    """The network of a report is the average: so is the schedule, in its bound and in its sample."""
    told, made = [], []
    monkeypatch.setattr(report, "generate", lambda method, *args, **named: made.append(method.w_raw) or [TEXTS[0]])
    monkeypatch.setattr(train, "report", lambda learner, step, folder: (
        report.report(learner, step, folder), told.append(learner.bound("val", 16)), texts.append(learner.corpus)))
    texts = []
    fit(tmp_path / "out", method="genmd4", max_iters=6, learning_rate=0.1)
    model = restore(tmp_path / "out")
    x = texts[-1].example_windows("val", 16)[0]                                                         # (16, L)
    assert told[-1] == estimate(model.method, model.denoiser, x, batch_size=2)
    assert torch.equal(made[-1], model.method.w_raw)


# ---- RADD

@pytest.mark.parametrize("objective", OBJECTIVES[:3])
def test_radds_objectives_are_those_of_its_public_code(objective):
    """With eps = 1e-3 of the signal left at t = 1, as there. The network's row holds the mask's logit, unused."""
    output = figure("radd/model_out")                                                                   # (B, L, 12)
    ce = -output.gather(-1, X[..., None])[..., 0]                                                       # (B, L)
    name = {"t-dse": "t_DSE", "t-dce": "t_DCE", "lambda-dce": "lambda_DCE"}[objective]
    close(written(objective, Absorbing(11, eps=1e-3), ce, Z, T).sum(-1), figure(f"radd/{name}"), 1e-6)


def test_radds_any_order_objective_is_that_of_its_public_code():
    k = (Z == 11).sum(-1)                                                                               # (B,)
    ce = -figure("radd/model_out").gather(-1, X[..., None])[..., 0] * (Z == 11)                         # (B, L)
    close(8 / k * ce.sum(-1), figure("radd/k_DCE"), 1e-6)


def test_the_rate_at_which_masks_open_is_radds_tweedie():
    law = reverse(Absorbing(11, eps=1e-3), F.pad(LOG_P.exp(), (0, 1)), Z, T - 1 / 16 * (1 - 1e-5), T)   # (B, L, 12)
    opens = torch.stack([1 - law[i][Z[i] == 11][0, 11] for i in range(4)])
    close(opens, figure("radd/update_rate_tweedie_16steps"), 1e-3)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_four_have_one_mean(objective):
    """Of a wrong denoiser without a clock, on one text: mdlm's bound."""
    clockless = lambda z, t, at: world.vandal(z, torch.full_like(t, 0.3, dtype=torch.float64), at)
    torch.manual_seed(0)
    x = TEXTS[14].expand(200_000, -1)
    difference = RADD(N, objective).loss(clockless, x).sum(-1) - MDLM(N).nelbo(clockless, x).sum(-1)
    difference = difference[difference.abs() < 1e4]      # 1/t has no variance: the few draws near t = 0 are left out
    assert abs(difference.mean()) < 5 * difference.std() / len(difference) ** 0.5 + 1e-3


def test_any_order_varies_least():
    clockless = lambda z, t, at: world.vandal(z, torch.full_like(t, 0.3, dtype=torch.float64), at)
    torch.manual_seed(0)
    x = TEXTS[14].expand(50_000, -1)
    spread = {name: RADD(N, name).loss(clockless, x).sum(-1).std() for name in OBJECTIVES}
    assert min(spread, key=spread.get) == "k-dce" and max(spread, key=spread.get) == "t-dce"


# ---- in the scripts

@pytest.mark.parametrize("method, flags", [
    *[("md4", dict(mask_schedule=name)) for name in ("linear", "cosine")],
    ("md4", dict(mask_schedule="polynomial", power=3.0)), ("genmd4", {}), ("genmd4", dict(labels=True)),
    *[("radd", dict(radd_objective=name)) for name in OBJECTIVES]], ids=str)
def test_two_steps_of_training_samples_and_a_bound_with_every_flag(method, flags, tmp_path, capsys):
    state = fit(tmp_path / "out", method=method, **flags)
    assert state["step"] == 2 and all(p.isfinite().all() for p in state["ema"].values())
    where = dict(out_dir=str(tmp_path / "out"), steps=3, device="cpu")
    sample.main(sample.Config(**where, length=20, num_samples=2))
    evaluate.main(evaluate.Config(**where, max_texts=8, draws=2, num_samples=2))
    assert f"{method}, step 2: bound" in capsys.readouterr().out
