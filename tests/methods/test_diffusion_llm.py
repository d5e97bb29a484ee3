"""DiffusionLLM: its pairs of noisy texts and its loss, against the figures of the public code and
as sums over the world of 27 texts.

adapt_reference.npz, rdm/: pairs and losses of the public code (reparam-discrete-diffusion, commit
26ee286; DiffusionLLM, bb6d337) at 10 levels, of which number t there is level t + 1 here.
"""
import math

import pytest
import torch
import world
from bounds import close, exact_bound, mean_of_batches
from references import Figures
from runs import elsewhere, cache, fit  # noqa: F401
from world import P, TEXTS, L, N

from checkpoints.load import load_model
from diffusion import Absorbing
from methods import make_method
from methods.diffusion_llm import coupled_levels, coupled_masks
from methods.rdm import WEIGHTS

figure = Figures("adapt_reference")
MASK, T = 11, 10


def test_pairs_are_those_of_the_public_code(monkeypatch):
    """With its random numbers: a mask of z_2 is one of z_1, and equal levels are drawn apart."""
    t = torch.stack([figure("rdm/t1"), figure("rdm/t2")]).float()[..., None] + 1  # (2, 4, 1)
    first, second = figure("rdm/u_first"), figure("rdm/u_second")  # (4, 8) each
    u = torch.stack([first, second, second])  # (3, 4, 8)
    monkeypatch.setattr(torch, "rand", lambda *shape, device=None: u)
    pair = coupled_masks(Absorbing(MASK), figure("rdm/x0"), t.amax(0), t.amin(0), T)  # 2 x (4, 8)
    assert torch.equal(torch.cat(pair), figure("rdm/PUB_coupled_x_t"))
    assert torch.equal(torch.cat([t.amax(0), t.amin(0)])[:, 0].long() - 1,
                       figure("rdm/PUB_coupled_t"))


def test_the_linear_loss_is_that_of_the_public_code(monkeypatch):
    """Times 6/T, and per text over the tokens that may be masked."""
    x, z, t = (figure(f"rdm/{key}") for key in ("x0", "PUB_coupled_x_t", "PUB_coupled_t"))
    method = make_method("diffusion_llm", 12, levels=T)
    z, logits = torch.where(z == MASK, method.process.mask, z), figure("rdm/logits").double()
    levels = (t[:, None] + 1).float().chunk(2)
    monkeypatch.setattr("methods.diffusion_llm.coupled_levels", lambda *size: levels)
    monkeypatch.setattr("methods.diffusion_llm.coupled_masks", lambda *given: z.chunk(2))
    rows = iter(logits.chunk(2))
    nats = method.loss(lambda z, t, at: next(rows)[at], x)  # (4, 8)
    found = nats.mean() * T / 6  # ()
    close(found, figure("rdm/OURS_diffusionllm_linear"), 1e-6)
    close(found.float(), figure("rdm/PUB_diffusionllm_linear"), 1e-6)


@pytest.mark.parametrize("levels", [1, 7])
def test_levels_of_a_pair_are_uniform_and_masks_follow_them(levels):
    """Within 4.5 standard errors; a mask of the second is one of the first."""
    torch.manual_seed(0)
    n, x = 20_000, torch.zeros(20_000, 6).long()  # (n, 6)
    t1, t2 = coupled_levels(n, levels)  # (n, 1) each
    both = torch.cat([t1, t2]).long().flatten()  # (2 n,)
    share = both.bincount(minlength=levels + 1)[1:] / (2 * n)  # (levels,)
    assert (t1 >= t2).all() and ((share - 1 / levels).abs() < 4.5 / (4 * n) ** 0.5).all()
    frozen = torch.arange(6).expand(n, 6) < 2  # (n, 6)
    z1, z2 = coupled_masks(Absorbing(5), x, t1, t2, levels, frozen)  # (n, 6) each
    for z, t in ((z1, t1), (z2, t2)):
        off = (z == 5).double()[:, 2:] - t / levels  # (n, 4)
        assert not (z == 5)[:, :2].any() and abs(off.mean()) < 4.5 * off.std() / n**0.5 + 1e-9
    apart = (t1 > t2) & (z2 == 5)  # (n, 6)
    assert (z1[apart] == 5).all()


def due(method, log_p):
    """The mean of (18.11) for each text, as a sum over levels and masks. -> (27,)"""
    total, T = torch.zeros(len(TEXTS), dtype=torch.float64), method.levels  # (27,)
    t = torch.arange(1, T + 1, dtype=torch.float64)  # (T,)
    weight = {"linear": 6 * (T - (t - 1)) / T, "reciprocal": T / t,
              "none": 2.0}[method.level_weight] / T  # (T,)|()
    for masked in torch.cartesian_prod(*[torch.tensor([False, True])] * L):  # (L,)
        k, z = int(masked.sum()), torch.where(masked, N, TEXTS)  # (27, L)
        ce = -log_p(z, None).gather(-1, TEXTS[..., None])[..., 0]  # (27, L)
        chance = (t / T) ** k * (1 - t / T) ** (L - k)  # (T,)
        total += (weight * chance).sum() * (ce * masked).sum(-1)
    return total


@pytest.mark.parametrize("weight", [*WEIGHTS])
def test_the_loss_has_the_mean_of_its_formula_for_any_denoiser(weight):
    method = make_method("diffusion_llm", N, levels=4, level_weight=weight)
    wrong = lambda z, t, at=None: world.vandal(z, torch.tensor(0.3), at)
    torch.manual_seed(0)

    def draw():
        of = torch.multinomial(P, 3000, replacement=True)  # (n,)
        return method.loss(wrong, TEXTS[of]).sum(-1)  # (n,)
    mean, error = mean_of_batches(draw)
    exact = P @ due(method, wrong)
    assert error < 0.01 * exact and abs(mean - exact) < 4.5 * error


def test_reciprocal_weights_are_a_bound_of_t_levels_which_falls_to_that_of_mdlm():
    """At the entropy for the exact denoiser. In few levels many tokens open at once, each without
    the others."""
    exact = make_method("mdlm", N).oracle(world.LANGUAGE)
    entropy, bounds = -(P * P.log()).sum(), []
    for levels in (1, 4, 16, 64):
        bounds.append((P @ due(make_method("diffusion_llm", N, levels=levels,
                                           level_weight="reciprocal"), exact)).item())
    assert all(a > b for a, b in zip(bounds, bounds[1:])) and bounds[-1] > entropy
    assert bounds[-1] - entropy < 0.02 * (bounds[0] - entropy)


def test_in_many_levels_the_linear_loss_is_the_simple_one_of_mdlm():
    """6 (1 - t) at a share t of masks: the error falls as 1 / T."""
    exact = make_method("mdlm", N).oracle(world.LANGUAGE)

    def term(log_p, x, z, t):
        return 6 * (1 - t) * -log_p.gather(-1, x[..., None])[..., 0] * (z == N)  # (n, 27)
    simple = exact_bound(Absorbing(N), exact, nodes=60, term=term)  # (27,)
    off = [(due(make_method("diffusion_llm", N, levels=n), exact) / simple - 1).abs().max().item()
           for n in (50, 100)]
    assert off[0] < 0.1 and 1.8 < off[0] / off[1] < 2.2


def test_constant_cross_entropy_costs_what_the_docs_say():
    """(T + 1)(T + 2) / T^2 times as much, for any batch: 1.06 at T = 50."""
    flat = lambda z, t: torch.full((*z.shape, N), 1 / N, dtype=torch.float64).log()
    for levels in (2, 50):
        method = make_method("diffusion_llm", N, levels=levels)
        found = due(method, flat)[0].item() / L / math.log(N)
        assert found == pytest.approx((levels + 1) * (levels + 2) / levels**2)


def test_a_masked_language_model_reads_one_rate_of_masks():
    torch.manual_seed(0)
    method, seen = make_method("diffusion_llm", N, mask_rate=0.15), []
    x = TEXTS[5].repeat(400, 10)  # (400, 30)
    spy = lambda z, t, at: seen.append(at) or torch.zeros(int(at.sum()), N + 1)
    nats = method.loss(spy, x)  # (400, 30)
    assert abs(seen[0].double().mean() - 0.15) < 4.5 * (0.15 * 0.85 / x.numel()) ** 0.5
    close(nats[seen[0]].mean(), torch.tensor(float(N)).log() / 0.15, 1e-5)


def test_a_masked_language_model_is_fine_tuned_and_has_the_bound_of_mdlm():
    fit("mlm", method="diffusion_llm", mask_rate=0.15, max_iters=2, learning_rate=0.01)
    assert fit("tuned", method="diffusion_llm", init_from="mlm")["config"]["mask_rate"] == 0
    model, bounds = load_model("tuned"), []
    for method in (model.method, make_method("mdlm", model.encoding.n_vocab)):
        torch.manual_seed(0)
        bounds.append(method.nelbo(model.denoiser, torch.randint(100, (4, 8)).clone()))
    assert torch.equal(*bounds)
