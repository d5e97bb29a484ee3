"""MDLM: the numbers of its public code, the any-order form of its bound, and for all methods built
on it: the size of their losses, and room for their masks."""
import pytest
import torch
from references import LOG_P, X_THETA, S, T, V, X, Z, figure, same

from diffusion import Absorbing, bound, reverse
from flags import UserError, flags_of, load_row, parse
from methods import METHODS, make_method
from methods.mdlm import MDLM, any_order, masked_bound
from train import Config
from world import TEXTS, N

MASKED = [name for name in METHODS if issubclass(load_row(METHODS, name), MDLM)]
# each way to train: the values of flags that decide how a loss is drawn or weighted
CHOICES = ["weighting", "mask_schedule", "radd_objective"]
WAYS = [(name, {flag: value}) for name in MASKED for flag in CHOICES
        if (f := flags_of(load_row(METHODS, name)).get(flag)) for value in f.metadata["choices"]]
WAYS += [("bd3lm", dict(clip="0.3,0.8")), ("bd3lm", dict(clip="0.3,0.8", weighting="bound"))]
BOUNDED = [(name, flags) for name, flags in WAYS if flags in (
    dict(weighting="simple"), dict(radd_objective="k-dce"), dict(clip="0.3,0.8"))]


def carried_over(z):
    text = torch.nn.functional.one_hot(z, V).double()  # (B, L, 12)
    return torch.where((z < 11)[..., None], text, X_THETA)  # (B, L, 12)


def test_the_bound_is_that_of_the_public_code():
    process, ce = Absorbing(11), -LOG_P.gather(-1, X[..., None])[..., 0]
    same(masked_bound(process, ce, Z, T), figure("mdlm/nelbo_ct"))
    same(bound(process, carried_over(Z), X, Z, T), figure("mdlm/nelbo_ct"))


def test_the_reverse_step_is_that_of_the_public_code():
    """Its rows are not normalized, and eps = 0.001 of the signal is left at t = 1."""
    rows, masked = figure("mdlm/ddpm_q_unnorm"), Z == 11
    ours = reverse(Absorbing(11, eps=1e-3), X_THETA, Z, S, T)
    same(ours[masked], (rows / rows.sum(-1, keepdim=True))[masked])


def test_any_order_masks_each_number_of_tokens_equally_often_and_each_token_alike():
    """Of 12 free tokens, in 1,200 texts with stratified u; none that is given."""
    torch.manual_seed(0)
    process, x = Absorbing(5), torch.zeros(1200, 15, dtype=torch.long)
    frozen = torch.arange(15).expand(1200, -1) < 3
    u = (torch.arange(1200)[:, None] + 0.5) / 1200  # (1200, 1)
    z, k, n = any_order(process, x, u, frozen)
    masked = z == 5  # (1200, 15)
    assert (n == 12).all() and torch.equal(masked.sum(-1, keepdim=True), k.long())
    assert k.long().flatten().bincount().tolist() == [0] + 12 * [100]
    share = masked[:, 3:].double().mean(0)  # (12,) of the mean 13/24, by 4.5 standard errors
    assert not masked[:, :3].any() and ((share - 13 / 24).abs() < 4.5 * (0.25 / 1200) ** 0.5).all()


@pytest.mark.parametrize("weighting", ["simple", "bound"])
def test_the_expected_share_of_masks_is_that_which_the_loss_draws(weighting):
    """Within 4.5 standard errors of 40,000 tokens: it sizes the fixed selection of positions."""
    torch.manual_seed(0)
    method, seen = MDLM(N, weighting=weighting), []
    spy = lambda z, t, at: seen.append(at) or torch.zeros(int(at.sum()), N + 1)
    method.loss(spy, TEXTS[5].repeat(4000, 4)[:, :10])
    share = method.share_masked(weighting == "simple")
    assert abs(seen[0].double().mean() - share) < 4.5 * (0.25 / 40_000) ** 0.5


def test_text_is_never_scored_and_the_mask_is_never_predicted():
    x = torch.randint(10, (8, 20), generator=torch.Generator().manual_seed(0))
    seen = []

    def denoiser(z, t, at):
        seen.append((z, at))
        logits = torch.zeros(int(at.sum()), 11)
        logits[:, 10] = 1e9  # of the mask
        return logits
    nats = MDLM(10).nelbo(denoiser, x)
    z, at = seen[0]
    assert torch.equal(at, z == 10) and (nats[~at] == 0).all() and nats.isfinite().all()
    torch.testing.assert_close(nats[at] * at.sum(-1, keepdim=True).expand_as(z)[at] / 20,
                               torch.full((int(at.sum()),), 10.0).log())


WEIGHTED = [name for name in METHODS if "weighting" in flags_of(load_row(METHODS, name))]


@pytest.mark.parametrize("name", WEIGHTED)
def test_each_weighting_of_a_method_is_another_loss(name):
    """On the same noise: none is another one under a new name."""
    method = load_row(METHODS, name)
    choices, losses = flags_of(method)["weighting"].metadata["choices"], []
    for weighting in choices:
        torch.manual_seed(0)
        flat = lambda z, t, at, **layout: torch.zeros(int(at.sum()), 8)
        made = make_method(name, 7, weighting=weighting)
        losses.append(made.loss(flat, torch.zeros(9, 12).long()))
    assert len({loss.sum().item() for loss in losses}) == len(choices) >= 2


@pytest.mark.parametrize("name", [name for name in WEIGHTED if name != "mdlm"])
def test_a_weighting_that_mdlm_learns_is_refused_by_methods_that_do_not_know_it(name, capsys):
    """Each class declares its own: a new row of mdlm's would else train the bound in silence."""
    choices = flags_of(MDLM)["weighting"].metadata["choices"]
    theirs = flags_of(load_row(METHODS, name)).get("weighting")
    known = ", ".join(theirs.metadata["choices"] if theirs else choices)
    choices.append("root")
    try:
        assert parse(Config, ["--method=mdlm", "--weighting=root"])[0].weighting == "root"
        with pytest.raises(SystemExit):
            parse(Config, [f"--method={name}", "--weighting=root"])
        assert f"--weighting 'root' is not one of {known}" in capsys.readouterr().err
        with pytest.raises(UserError, match=f"--weighting root is not one of {known}"):
            make_method(name, 7, weighting="root")
    finally:
        choices.remove("root")


@pytest.mark.parametrize("B, length", [(512, 8), (64, 32), (40, 4)])
@pytest.mark.parametrize("name, flags", WAYS, ids=str)
def test_a_fixed_selection_has_room_for_all_masks(name, flags, B, length):
    """Of clean texts and of some with prompts, in each of 5 draws: RADD's k-dce has a share of
    (L + 1) / 2L of masks in every draw, and not of 1/2."""
    method, x, rooms = make_method(name, 7, **flags), torch.zeros(B, length).long(), []
    frozen = torch.arange(length) < torch.arange(B)[:, None] % length  # (B, L)

    def spy(z, t, at, group=None, **layout):
        masks = z == 7 if group is None else torch.ones_like(z)
        rooms.append(len(at) - int(masks[:, :length].sum()))
        return torch.zeros(len(at), 8)
    spy.fixed_shapes = True
    for seed in range(5):
        torch.manual_seed(seed)
        method.loss(spy, x)
        method.loss(spy, x, frozen)
    assert min(rooms) >= 0


@pytest.mark.parametrize("name, flags", BOUNDED, ids=str)
@pytest.mark.parametrize("given", [False, True])
def test_losses_with_bounded_weights_are_about_as_large_as_the_bound(name, flags, given):
    """Where the cross-entropy is the same everywhere, they are in the mean that cross-entropy: per
    token that is not given, within 4.5 standard errors of at most 1 %."""
    method, x = make_method(name, 7, **flags), torch.zeros(12_000, 12).long()  # (B, L)
    frozen = torch.arange(12).expand(12_000, -1) < 6 if given else None  # (B, L)
    flat = lambda z, t, at, **layout: torch.zeros(int(at.sum()), 8)
    torch.manual_seed(0)
    nats = method.loss(flat, x, frozen).sum(-1) / (6 if given else 12)  # (B,)
    error = nats.std() / 12_000**0.5
    assert error < 0.01 * nats.mean() and abs(nats.mean() / torch.tensor(7.0).log() - 1) < 4.5 * (
        error / nats.mean()) + 1e-6
