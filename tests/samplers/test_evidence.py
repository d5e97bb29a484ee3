"""
Steps of evidence: bfn, sde and ode have the law of the model in many steps, renoise nearly, and
other projections look better than the language. The exact denoiser, in worlds of few texts.
"""
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
import world
from world import N, P

from diffusion import probabilities
from methods import make_method
from samplers import make_sampler

ENTROPY = -(P * P.log()).sum()


def written(sampler, steps, n=1500, top_p=1.0, **flags):
    """Texts of the world. -> their -log p, its error; KL(texts || world) without the mean of chance

    Chance moves the latter by 0.0024.
    """
    method = make_method("bfn", N)
    torch.manual_seed(0)
    z = method.prior((n, 3))
    to_probs = partial(probabilities, top_p=top_p)
    *_, z = method.sample(method.oracle(world.LANGUAGE), z, z != z, steps,
                          make_sampler(sampler, method, **flags), to_probs)
    nats = -P[world.numbers(z, N)].log()
    q = torch.bincount(world.numbers(z, N), minlength=27).double() / n
    kl = nats.mean() + torch.special.xlogy(q, q).sum() - 26 / (2 * n)
    return nats.mean(), nats.std() / n ** 0.5, kl


@pytest.mark.parametrize("sampler, few", [
    ("bfn", 0.102), ("sde", 0.025), ("ode", 0.029), ("renoise", 0.107)])
def test_few_steps_of_evidence_cost_and_many_do_not(sampler, few):
    """The table of docs/14-evidence.md, in 4 steps and in 16."""
    assert written(sampler, 4)[2].item() == pytest.approx(few, rel=0.2, abs=0.01)
    mean, error, kl = written(sampler, 16)
    assert kl < 0.022 and abs(mean - ENTROPY) < 4 * error + 0.05


@pytest.mark.parametrize("flags, top_p", [
    (dict(projection="mean"), 1.0), (dict(projection="multi-hot"), 1.0),
    (dict(projection="uneven"), 1.0), (dict(projection="argmax"), 1.0)])
def test_projections_that_are_no_draw_are_biased(flags, top_p):
    """In 16 steps their texts are likelier than those of the language, by 4 errors."""
    mean, error, kl = written("renoise", 16, top_p=top_p, **flags)
    assert mean < ENTROPY - 4 * error and kl > 0.015


def test_renoising_never_leaves_a_mode():
    """Of a language of copies, aaaa, bbbb and cccc, it writes the likeliest too often, however many
    steps it takes; bfn does not."""
    p = torch.tensor([0.5, 0.3, 0.2]).double()
    hot = F.one_hot(torch.arange(3)[:, None].expand(3, 4), 3).double().flatten(1)  # (3, 12)

    def exact(z, t, at):
        texts = (p.log() + z.double().flatten(1) @ hot.T).softmax(-1)  # (B, 3)
        return (texts @ hot).view(z.shape).clamp(min=1e-300).log()[at]  # (N, 3)
    method, found = make_method("bfn", 3, skip=False), {}
    for name in ("bfn", "renoise"):
        torch.manual_seed(0)
        z = method.prior((2500, 4))
        *_, z = method.sample(exact, z, z != z, 48, make_sampler(name, method))
        found[name] = world.distance(z[:, 0], p)
    far, error = found["bfn"]
    assert far < 4 * error + 0.001
    far, error = found["renoise"]
    assert far > 5 * error


def test_the_likeliest_word_at_the_end_is_one_symbol():
    """A uniform token: drawn, all symbols come; by --last argmax one alone."""
    method, flat = make_method("bfn", 5, skip=False), lambda z, t, at: torch.zeros(int(at.sum()), 5)
    z = method.prior((200, 4))
    for last, n in (("draw", 5), ("argmax", 1)):
        *_, ids = method.sample(flat, z, z != z, 3, make_sampler("bfn", method, last=last))
        assert len(ids.unique()) == n


def test_increments_of_evidence_are_independent_of_what_there_is():
    """(14.2) along a walk towards known words: mean d, variance d, and no correlation with y. Fresh
    noise, as of renoise, is no path."""
    method, found = make_method("bfn", 3, lam1=9.0), {}
    certain = lambda z, t, at: torch.tensor([50.0, 0.0, 0.0]).expand(int(at.sum()), 3) - z[at]
    for name in ("bfn", "renoise"):
        calls = []

        def spy(z, t, at):
            calls.append(z)
            return certain(z, t, at)
        torch.manual_seed(0)
        z = method.prior((2000, 4))
        list(method.sample(spy, z, z != z, 4, make_sampler(name, method)))
        lam = method.process.lam(torch.linspace(1, 0, 4).double())  # (4,)
        dy, d = calls[3] - calls[2], float(lam[3] - lam[2])  # (2000, 4, 3)
        pair = torch.stack([dy[..., 1].flatten(), calls[2][..., 1].flatten()])  # (2, 8000)
        found[name] = torch.corrcoef(pair)  # (2, 2)
        if name == "bfn":
            assert dy[..., 0].mean().item() == pytest.approx(d, abs=0.15)
            assert dy[..., 1].var().item() == pytest.approx(d, rel=0.1)
    assert abs(found["bfn"][0, 1]) < 0.06 and found["renoise"][0, 1] < -0.3


def test_each_call_is_told_the_evidence_that_there_is_and_the_last_is_at_lam1():
    method, calls = make_method("tess", 3, lam1=9.0, self_condition=0.0), []

    def spy(z, t, at):
        calls.append((method.process.lam(t.double())[0, 0], z[..., 2].var()))
        return torch.tensor([50.0, 0.0, 0.0]).expand(int(at.sum()), 3)
    z = method.prior((2000, 4))
    for name in ("bfn", "renoise"):
        calls.clear()
        list(method.sample(spy, z, z != z, 4, make_sampler(name, method)))
        assert calls[3][0].item() == pytest.approx(9.0, rel=1e-3)
        for lam, variance in calls[1:]:
            assert variance.item() == pytest.approx(lam.item(), rel=0.1)


def test_multi_hot_goes_to_the_words_of_a_nucleus_of_top_p_or_else_of_nine_tenths():
    log_p = torch.tensor([[0.6, 0.25, 0.1, 0.05]]).log()
    walk = make_sampler("renoise", make_method("bfn", 4), projection="multi-hot")
    for top_p, n in ((1.0, 3), (0.5, 1), (0.8, 2), (0.96, 4)):
        e = walk.endpoint(log_p, partial(probabilities, top_p=top_p))
        assert e.tolist() == [[1.0] * n + [0.0] * (4 - n)]


def test_uneven_keeps_the_distances_of_logits_in_units_of_2_k():
    log_p = torch.tensor([[0.6, 0.3, 0.1]]).log()  # all of the nucleus but the last one
    told = []

    class Spy(type(make_sampler("renoise", make_method("bfn", 3)))):
        def endpoint(self, *args):
            told.append(args[2])
            return super().endpoint(*args)
    e = Spy(projection="uneven").endpoint(log_p, probabilities, 0.7)[0]
    assert e.tolist() == pytest.approx([1.0, 1 - math.log(0.6 / 0.3) / 1.4, 0.0])
    method = make_method("tess", 3, k=7.0, self_condition=0.0)
    z = method.prior((2, 3))
    list(method.sample(method.oracle(world.LANGUAGE), z, z != z, 3, Spy(projection="uneven")))
    assert told == [0.7, 7.0, 7.0]
