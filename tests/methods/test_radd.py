"""RADD: four forms of one bound, with the numbers of its public code (60b772d)."""
import pytest
import torch
from bounds import close, close_in_the_mean, exact_bound
from references import X_THETA, Figures, T, X, Z, same

import world
from diffusion import Absorbing, reverse
from methods import radd
from methods.radd import OBJECTIVES, RADD, objective_nats
from world import TEXTS, N

figure = Figures("masked_reference")


def timeless(z, t, at=None):
    """A wrong denoiser that does not depend on the time."""
    return world.vandal(z, torch.full_like(t, 0.3, dtype=torch.float64), at)


@pytest.mark.parametrize("objective", OBJECTIVES[:3])
def test_the_objectives_are_those_of_the_public_code(objective):
    """With eps = 1e-3 of the signal left at t = 1, as there. The network's row holds the mask's
    logit, unused."""
    output = figure("radd/model_out")  # (B, L, 12)
    ce = -output.gather(-1, X[..., None])[..., 0]  # (B, L)
    name = {"t-dse": "t_DSE", "t-dce": "t_DCE", "lambda-dce": "lambda_DCE"}[objective]
    ours = objective_nats(objective, Absorbing(11, eps=1e-3), ce, Z, T)  # (B, L)
    same(ours.sum(-1), figure(f"radd/{name}"), 1e-6)


def test_the_any_order_objective_is_that_of_the_public_code(monkeypatch):
    """Training on k-dce, with their numbers of masks at their places."""
    k = (Z == 11).sum(-1, keepdim=True)  # (B, 1)
    monkeypatch.setattr(radd, "stratified", lambda n, device: (k - 0.5) / 8)
    monkeypatch.setattr(torch, "rand", lambda shape, device: torch.where(Z == 11, 0.2, 0.7))
    output = figure("radd/model_out")[..., :11]  # (B, L, 11) log-probabilities, the mask left out
    left = output.logsumexp(-1)  # (B, L) 0, but for what it gave to the mask
    nats = RADD(11).loss(lambda z, t, at: output[at], X)  # (B, L)
    same((nats - 8 / k * left * (Z == 11)).sum(-1), figure("radd/k_DCE"), 1e-6)


def test_the_rate_at_which_masks_open_is_that_of_the_public_code():
    s = T - 1 / 16 * (1 - 1e-5)  # (B, 1)
    p = reverse(Absorbing(11, eps=1e-3), X_THETA, Z, s, T)  # (B, L, 12)
    opens = torch.stack([1 - p[i][Z[i] == 11][0, 11] for i in range(4)])  # (B,)
    same(opens, figure("radd/update_rate_tweedie_16steps"), 1e-3)


# ---- one mean

@pytest.mark.parametrize("objective", OBJECTIVES[:3])
def test_forms_at_a_random_time_have_the_mean_of_the_bound(objective):
    """Summed over z and integrated over t, for a wrong denoiser on each of the 27 texts."""
    process = Absorbing(N)

    def term(log_p, x, z, t):
        ce = -log_p.gather(-1, x[..., None])[..., 0]  # (n, 27)
        return objective_nats(objective, process, ce, z, t)  # (n, 27)
    ours = exact_bound(process, timeless, nodes=400, term=term)  # (27,)
    close(ours, exact_bound(process, timeless, nodes=400), 1e-4)


def test_the_form_with_a_random_number_of_masks_has_the_mean_of_the_bound():
    """It has a variance: 100,000 draws on two texts, within 4.5 standard errors."""
    torch.manual_seed(0)
    exact = exact_bound(Absorbing(N), timeless, nodes=60)  # (27,)
    for i in (1, 14):
        x = TEXTS[i].expand(5000, -1)  # (n, L)
        close_in_the_mean(lambda: RADD(N).loss(timeless, x).sum(-1), exact[i])


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("prompts", [False, True])
def test_each_draw_of_training_is_its_form_at_its_noise_and_no_prompt_is_noised(objective, prompts):
    """(3.6) from the z and t that the network got; k-dce counts the tokens that are not given."""
    torch.manual_seed(0)
    B, length, V = 64, 50, 7
    x, calls = torch.randint(V, (B, length)), []
    frozen = torch.arange(length) < torch.arange(B)[:, None] % 40  # (B, L)
    logits = torch.randn(B, length, V, dtype=torch.float64)  # (B, L, V)

    def denoiser(z, t, at):
        calls.append((z, t))
        return logits[at]
    method = RADD(V, radd_objective=objective)
    nats = method.loss(denoiser, x, frozen if prompts else None)  # (B, L)
    (z, t), = calls
    free = ~frozen if prompts else torch.ones_like(frozen)  # (B, L)
    masks, n = (z == V), free.sum(-1, keepdim=True)  # (B, L), (B, 1)
    k = masks.sum(-1, keepdim=True)  # (B, 1)
    ce = -logits.log_softmax(-1).gather(-1, x[..., None])[..., 0]  # (B, L)
    rates = {"t-dse": ce / t, "lambda-dce": ce / t, "t-dce": (ce + (t / (1 - t)).log()) / t,
             "k-dce": ce * n / k}  # (B, L) each
    close(nats.double(), torch.where(masks, rates[objective], 0.0), 1e-4)
    assert torch.equal(z[~masks], x[~masks]) and not masks[~free].any()
    assert ((t[:, 0] * B).long() == torch.arange(B)).all()  # one time in each stratum
    if objective == "k-dce":
        assert torch.equal(k, (t * n).ceil().long())
    else:  # each token by its own coin
        due = (t * free)[free]  # (N,)
        off = (masks[free].double() - due).sum()  # ()
        assert abs(off) < 4.5 * (due * (1 - due)).sum().sqrt()


def test_any_order_varies_least():
    torch.manual_seed(0)
    x = TEXTS[14].expand(50_000, -1)
    spread = {name: RADD(N, radd_objective=name).loss(timeless, x).sum(-1).std()
              for name in OBJECTIVES}
    assert min(spread, key=spread.get) == "k-dce" and max(spread, key=spread.get) == "t-dce"
