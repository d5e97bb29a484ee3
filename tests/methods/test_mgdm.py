"""MGDM: the figures of the public code, what its loss learns, and its weights of times."""
import pytest
import torch
from references import Figures, same

from methods import make_method
from methods.base import cross_entropy
from methods.mgdm import focal

figure = Figures("mgdm_reference")
NAMES = {"linear": "linear", "bound": "original", "none": "none"}


@pytest.mark.parametrize("weighting", NAMES)
@pytest.mark.parametrize("gamma", [0, 1, 2])
def test_the_loss_of_the_public_code(weighting, gamma, monkeypatch):
    """On its noise; it divides by the number of masks and multiplies by 1/4, and its outputs stand
    one place to the left."""
    x, logits, given = figure("mgdm/x"), figure("mgdm/logits_unshifted"), figure("mgdm/src_mask")
    logits = torch.cat([logits[:, :1], logits[:, :-1]], 1)  # (B, L, V) position 0 from output 0
    case = f"mgdm_loss/token{int(gamma > 0)}_gamma{gamma or 1}_time-{NAMES[weighting]}/loss"
    method = make_method("mgdm", logits.shape[-1], weighting=weighting, gamma=float(gamma))
    tape = "mgdm_loss/token0_gamma1_time-original/"
    i, z = figure(tape + "tape/000_randint")[:, None] + 1, figure(tape + "x_t")  # (B, 1), (B, L)
    at = (z == figure("mgdm/mask_id")) & (given == 0)  # (B, L)
    nats = torch.zeros(x.shape)  # (B, L)
    nats[at] = focal(logits[at], x[at], gamma)  # (N,)
    T = method.levels
    every = torch.arange(1.0, T + 1)  # (T,)
    raw = {"linear": T - every + 1, "bound": T / every, "none": every / every}[weighting]  # (T,)
    weight = method.weight_of(i)  # (B, 1)
    torch.testing.assert_close(weight / weight[0], raw[i - 1] / raw[i[0] - 1])
    scale = weight[0] / raw[i[0] - 1]  # (1,)
    ours = (weight * nats).sum() / at.sum() / scale  # (1,)
    public = 1 if gamma == 0 else 0.25
    if weighting == "bound":  # it writes 1/t for T/t
        public = public / T
    same(ours[0] * public, figure(case), 1e-5)


@pytest.mark.parametrize("gamma", [1, 2])
def test_the_focal_factor_is_not_proper(gamma):
    """(20.2): the minimum for a word that is right with probability q is p, nearer to 1/2."""
    p = torch.linspace(1e-4, 1 - 1e-4, 200_001, dtype=torch.float64)  # (n,)
    logits, word = torch.stack([p.log(), (1 - p).log()], -1), torch.zeros(len(p)).long()
    first, second = (focal(logits, word + v, gamma) for v in (0, 1))  # (n,) each
    for q, best in zip(figure("mgdm/q"), figure(f"mgdm/focal_optimum_gamma{gamma}")):
        least = p[(q * first + (1 - q) * second).argmin()]  # ()
        assert abs(least - best) < 2e-5 and abs(least - 0.5) < abs(q - 0.5) + 1e-5
    for q, best in {1: ((0.8, 0.686), (0.9, 0.774)), 2: ((0.8, 0.627), (0.99, 0.846))}[gamma]:
        assert abs(p[(q * first + (1 - q) * second).argmin()] - best) < 6e-4


def test_without_the_factor_it_is_a_proper_loss_whose_masks_weigh_two_on_average():
    logits, x = torch.randn(50, 7), torch.randint(7, (50,))
    same(focal(logits, x, 0), cross_entropy(logits, x))
    for weighting in NAMES:
        method = make_method("mgdm", 7, weighting=weighting, gamma=0.0)
        i = torch.arange(1.0, 21)[:, None]  # (T, 1)
        weight = method.weight_of(i)  # (T, 1)
        same((weight * i).sum() / i.sum(), torch.tensor(2.0), 1e-6)
        flat = lambda z, t, at: torch.zeros(int(at.sum()), 8)
        torch.manual_seed(0)
        x = torch.zeros(4000, 16).long()  # (4000, 16)
        nats = method.loss(flat, x)  # (4000, 16)
        torch.testing.assert_close(nats.mean() / torch.tensor(7.0).log(), torch.tensor(1.05),
                                   atol=0.02, rtol=0)
