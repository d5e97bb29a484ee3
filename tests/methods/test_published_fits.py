"""What public code fits while training: SeqDiffuSeq's schedule for each place, and the gradient of
a step of Plaid.

embedding.npz, `seqdiffuseq/*`: the code of Yuanhy1997/SeqDiffuSeq (commit 0d42870) on drawn losses;
`plaid/train_*`: igul222/plaid (e7d5cf8). recipes.npz: its sampler's variance as it is.
"""
import copy

import torch
from bounds import close
from references import Figures
from test_plaid import published_method, published_network

import gaussian
from gaussian import large_variance, step_law
from methods import embedding
from methods.base import scatter_nats
from methods.clocks import refit

figure, recipe = Figures("embedding"), Figures("recipes")
T, L = (int(figure(f"seqdiffuseq/{key}")) for key in "TL")
WIDTH = int(figure("seqdiffuseq/granu"))  # levels of a bin


def mean_errors():
    """The mean error of each bin and place, from a first record that rises evenly. -> (bins, L)"""
    bins = T // WIDTH
    error = torch.linspace(0, 0.5, bins).double()[:, None].repeat(1, L)  # (bins, L)
    seen = torch.ones_like(error)  # (bins, L)
    t, loss, mask = (figure(f"seqdiffuseq/{key}").flatten(0, 1) for key in ("t", "loss", "mask"))
    error.index_add_(0, t // WIDTH, (loss * mask).double())
    seen.index_add_(0, t // WIDTH, mask.double())
    return error / seen  # (bins, L)


def test_levels_at_equal_steps_of_the_error_are_the_published_ones():
    """Our refit, in abar and with its ends: half a bin further on, and 1e-5. Place 0 keeps sqrt."""
    before, after = (figure(f"seqdiffuseq/abar_{key}") for key in ("before", "after"))  # (T, L)
    assert torch.equal(after[:, 0], before[:, 0])
    middle = before.view(-1, WIDTH, L).mean(1)  # (bins, L)
    for place in range(1, L):
        error = mean_errors()[:, place]  # (bins,)
        assert (error.diff() > 1e-5).all()
        low, high = error[0] - error[:2].diff() / 2 - 1e-5, error[-1] + error[-2:].diff() / 2
        levels = torch.cat([before[:1, place], middle[:, place], before[-1:, place]])
        ours = refit(levels, torch.cat([low, error, high]), T - 1)  # (T,)
        close(ours, after[:, place], 1e-5)
    assert (after - before)[:, 1:].abs().max() > 0.1


def test_the_variance_of_a_step_follows_the_schedule_of_its_place_and_theirs_does_not():
    gamma = -torch.logit(figure("seqdiffuseq/abar_after"))  # (T, L)
    one, zero = torch.ones(T - 1, L, 1).double(), torch.zeros(T - 1, L, 1).double()
    of_x, variance = step_law(zero, one, gamma[:-1], gamma[1:])  # (T - 1, L, 1), (T - 1, L)
    of_z, _ = step_law(one, zero, gamma[:-1], gamma[1:])  # (T - 1, L, 1)
    for key, ours in (("posterior_mean_coef1_after", of_x[..., 0]),
                      ("posterior_mean_coef2_after", of_z[..., 0]),
                      ("posterior_variance_after", variance),
                      ("REF_sampler_variance_posterior", variance),
                      ("REF_sampler_variance_beta", large_variance(gamma[:-1], gamma[1:]))):
        close(ours, figure(f"seqdiffuseq/{key}")[1:])
    theirs = recipe("seqdiffuseq/sampler_variance_as_is")[1:] / large_variance(gamma[:-1],
                                                                               gamma[1:])
    assert theirs.min() < 0.2 and theirs.max() > 2


def plaid_step(method, still, denoiser, resting):
    """The decoder's term of Plaid's step, and its loss. () each

    Of 8 texts one is for the decoder. Every fourth has a first call; neither table nor schedule
    learn from it, so for these it is the copy `still`.
    """
    x, u = figure("plaid/x"), figure("plaid/train_u")  # (8, 6), ()
    number, k = torch.arange(8), int(figure("plaid/train_reconst_bs"))  # (8,)
    twice = (number - figure("plaid/train_selfcond_offset")) % 4 == 0  # (8,)
    rec = rest = 0
    for each, call, texts in ((method, denoiser, ~twice), (still, resting, twice)):
        here, first = texts[:, None].expand(8, 6), number[:, None] < k  # (8, 6), (8, 1)
        times = each.process.warp(((number - k)[:, None] + u).clamp(min=0) / (8 - k))
        push, (low, high) = {}, each.process.schedule.ends  # () each
        for a in times:
            if a.requires_grad:
                a.register_hook(lambda gradient, push=push: gradient * push["nats"])
        t, slope = times  # (8, 1) each
        calls = twice & texts  # (8,)
        at = here & ~first  # (8, 6)
        nats = each.integrand(call, x, t, slope * (high - low), at, None, calls)  # (N,)
        nats = scatter_nats(nats, at)  # (8, 6)
        push["nats"] = 2 * nats.detach().mean(-1, keepdim=True)  # (8, 1)
        rest = rest + nats.mean(-1).sum() / (8 - k) + each.noise_left(x, here).sum() / 48
        if (here & first).any():
            rec = rec + each.decoder_nats(call, x, here & first, None, calls).mean() / k
    return rec, rec + rest


def test_the_gradient_of_a_training_step_is_plaids(monkeypatch):
    """Table, ends and head by the mean, the schedule by the variance: (13.11).

    To 2e-4 of the largest number of each: its blocks compute in mixed precision. Its clock begins
    at 0 and ours at 1e-6, which its features of gamma, exp(5) radians a unit, see.
    """
    for module in (gaussian, embedding):
        monkeypatch.setattr(module, "LEAST", 1e-12)
    method, scale = published_method(), float(figure("plaid/train_step")) / 5000
    space = method.process.double().requires_grad_(True)
    still = copy.copy(method)
    still.process = copy.deepcopy(space).requires_grad_(False)
    denoiser, weights = published_network(space, scale)
    resting, others = published_network(still.process, scale)
    head = others["output_linear.weight"] = weights["output_linear.weight"].requires_grad_()
    noise = figure("plaid/train_noise")  # (8, 6, 5)
    monkeypatch.setattr(torch, "randn", lambda *shape, **options: noise)
    rec, loss = plaid_step(method, still, denoiser, resting)
    close(rec, figure("plaid/train_reconst"), 2e-5)
    close(loss, figure("plaid/train_loss"), 2e-5)
    loss.backward()
    ends = torch.stack([figure(f"plaid/train_grad/gamma_{i}") for i in (0, 1)])  # (2,)
    pairs = [(space.schedule.ends, ends), (head, figure("plaid/train_grad/output_linear.weight")),
             (space.table, figure("plaid/train_grad/embedding"))]
    pairs += [(getattr(space.warp, ours), figure(f"plaid/train_grad/schedule.{theirs}"))
              for ours, theirs in (("w1", "W1"), ("bias", "b1"), ("w2", "W2"))]
    for p, right in pairs:
        right = right.flatten().double()
        assert (p.grad.flatten() - right).abs().max() < 2e-4 * right.abs().max()
