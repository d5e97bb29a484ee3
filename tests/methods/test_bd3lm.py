"""
Block diffusion: in a world of 81 texts of 4 tokens, where expectations are sums; in the toy
language; and at both ends, where a block of one is ar and a block of all is mdlm.
"""
from itertools import combinations, product
from math import comb

import pytest
import torch
from bounds import close, close_in_the_mean
from networks import random_net
from references import Figures

import world
from data.toy import ToyCorpus
from diffusion import ancestral, probabilities
from methods import bd3lm, make_method
from methods.bd3lm import block_diffusion_mask, stratified_times
from model import dense_mask
from samplers.generate import generate
from samplers.unmasking import Confidence, FirstHitting

figure = Figures("block_reference")
N, L, M = 3, 4, 3  # words, tokens, and the mask's id
TEXTS = torch.tensor(list(product(range(N), repeat=L)))  # (81, 4)
P = world.weights(5, len(TEXTS))  # (81,)
ONE_HOT = torch.nn.functional.one_hot(TEXTS, N).double()  # (81, 4, N)
DATA = ToyCorpus(block_size=16)
LANGUAGE = DATA.language


def made(n_tokens, diffusion_block, **options):
    return make_method("bd3lm", n_tokens, diffusion_block=diffusion_block, **options)


def same(ours, theirs, tolerance=1e-5):
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance, check_dtype=False)


def exact(size):
    """The perfect denoiser for blocks of `size`, called as the network is: [noisy ; clean]."""
    def denoiser(z, t, at=None, **layout):
        length = (z.shape[1] + size) // 2
        p = torch.ones(len(z), length, N, dtype=torch.float64)  # (B, length, N)
        for lo in range(0, length, size):
            here = slice(lo, lo + size)
            if at is None or at[:, here].any():
                seen = torch.cat([z[:, length:length + lo], z[:, here]], 1)[:, None]  # (B, 1, hi)
                fits = ((seen == TEXTS[:, :lo + size]) | (seen == M)).all(-1) * P  # (B, 81)
                p[:, here] = torch.einsum("bi,iln->bln", fits, ONE_HOT[:, here])  # (B, L', N)
        log_p = (p / p.sum(-1, keepdim=True)).log()  # (B, length, N)
        clean = torch.zeros(len(z), z.shape[1] - length, N)  # (B, length - L', N)
        return torch.cat([log_p, clean], 1) if at is None else log_p[at[:, :length]]
    return denoiser


def vandal(size):
    """A wrong denoiser, of the place, the block and the last clean token before it."""
    def denoiser(z, t, at, **layout):
        length = (z.shape[1] + size) // 2
        noisy, clean = z[:, :length], torch.nn.functional.pad(z[:, length:], (1, size - 1))
        place = torch.arange(length).expand_as(noisy)
        before = clean.gather(1, place // size * size)  # (B, L) x_(l-1)
        total = noisy.view(len(z), -1, size).sum(-1).repeat_interleave(size, 1)  # (B, L)
        scores = torch.stack([0.7 * total, 0.4 * before + 0 * total, 0.3 * place], -1).double()
        return scores.log_softmax(-1)[at[:, :length]]
    return denoiser


def exact_bound(size, denoiser, x):
    """(8.2) of one text, summed over every set of masks of every block. -> nats"""
    method, total = made(N, size), 0.0
    for lo in range(0, L, size):
        for k in range(1, size + 1):
            for masks in combinations(range(lo, lo + size), k):
                z = x.clone()
                z[list(masks)] = M
                given = method.given_before(denoiser, x[None])
                ce = method.cross_entropy(given, x[None], z[None], None)
                total += ce.sum() / k / comb(size, k)  # (L'/k) / (L' comb(L', k))
    return total


@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_bound_of_the_oracle_is_exact_for_each_text_and_any_other_gives_more(size):
    close(torch.stack([exact_bound(size, exact(size), x) for x in TEXTS[::5]]), -P[::5].log())
    wrong = sum(P[i] * exact_bound(size, vandal(size), x) for i, x in enumerate(TEXTS))
    assert wrong > -(P * P.log()).sum() + 0.1


@pytest.mark.parametrize("size, clip, weighting", [
    (1, "", "simple"), (2, "", "simple"), (4, "", "simple"), (2, "0,1", "bound"),
    (2, "0.3,0.8", "simple")])
def test_nelbo_is_an_unbiased_draw_of_the_bound_whatever_training_clips(size, clip, weighting):
    """Each text's mean within 4.5 standard errors of the sum, and these below 1 %."""
    method = made(N, size, clip=clip, weighting=weighting)
    torch.manual_seed(0)
    for x in TEXTS[[7, 50]]:
        draw = lambda: method.nelbo(vandal(size), x.expand(500, -1)).sum(-1)
        target = exact_bound(size, vandal(size), x)
        if size == 1:
            close(draw(), target.expand(500))
        else:
            close_in_the_mean(draw, target)


def test_the_loss_is_a_bound_for_the_bound_weights_and_a_surrogate_for_the_others():
    torch.manual_seed(0)
    x, target = TEXTS[50], exact_bound(2, vandal(2), TEXTS[50])
    for clip, is_bound in (("", True), ("0,1", True), ("0.45,0.95", False)):
        method = made(N, 2, clip=clip, weighting="bound")
        draws = torch.cat([method.loss(vandal(2), x.expand(2000, -1)).sum(-1) for _ in range(20)])
        error = draws.std() / len(draws) ** 0.5
        assert (abs(draws.mean() - target) < 4.5 * error) == is_bound


@pytest.mark.parametrize("size", [1, 2, 4])
def test_complementary_masks_have_the_mean_of_the_bound_in_each_block(size):
    """Each token is scored once: k masks of a block, k in 0 .. L', and the L' - k others."""
    method = made(N, size, complement=True, weighting="bound")
    torch.manual_seed(0)
    for x in TEXTS[[7, 50]]:
        draw = lambda: method.loss(vandal(size), x.expand(500, -1)).sum(-1)
        target = exact_bound(size, vandal(size), x)
        close(draw(), target.expand(500)) if size == 1 else close_in_the_mean(draw, target)


def drawn(size, steps, sampler=ancestral, n=8_000):
    """Texts through the oracle, as numbers of the 81. -> (n,)"""
    torch.manual_seed(0)
    method, denoiser = made(N, size), world.by_state(exact(size))
    z, nothing = method.prior((n, L)), torch.zeros(n, L, dtype=torch.bool)
    *_, z = method.sample(denoiser, z, nothing, steps, sampler)
    return (z * N ** torch.arange(L).flip(0)).sum(-1)


@pytest.mark.parametrize("size, sampler, steps", [
    (1, FirstHitting(), 1), (2, FirstHitting(), 2), (4, FirstHitting(), 4), (1, ancestral, 2),
    (2, ancestral, 64), (4, ancestral, 128)])
def test_many_steps_through_the_oracle_draw_the_data(size, sampler, steps):
    """Chi-square distance within 4 standard errors. Ancestral steps may open two masks at once,
    which costs 0.001."""
    far, error = world.distance(drawn(size, steps, sampler), P)
    assert far < 4 * error + (0.001 if sampler is ancestral and size > 1 else 0)


def test_one_step_for_a_block_is_not_the_data():
    far, error = world.distance(drawn(2, 1), P)
    assert far > 0.05 + 4 * error


@pytest.mark.parametrize("size, batch", [(1, 20), (2, 100), (8, 200)])
def test_the_bound_of_the_toy_languages_oracle_is_its_entropy_for_every_block(size, batch):
    """Within four standard errors, of at most 0.5 %, of 16 batches; text by text for size 1. Blocks
    of 4 are in test_oracle.py, and one block is mdlm: below."""
    method, x = made(LANGUAGE.V, size), DATA.windows("val", 16 * batch)
    exact_nats, denoiser = -LANGUAGE.log_prob(x) / 16, method.oracle(LANGUAGE)
    torch.manual_seed(0)
    more = torch.stack([(method.nelbo(denoiser, part).mean(-1) - nats).mean()
                        for part, nats in zip(x.split(batch), exact_nats.split(batch))])  # (16,)
    error = more.std() / len(more) ** 0.5
    assert error < 0.005 * exact_nats.mean() and abs(more.mean()) < 4 * error + 1e-9


@pytest.mark.parametrize("size, sampler, steps", [
    (4, FirstHitting(), 4), (8, FirstHitting(), 8)])
def test_many_steps_through_the_toy_oracle_speak_the_language(size, sampler, steps):
    """-log p of 400 samples is the entropy within four standard errors."""
    method = made(LANGUAGE.V, size)
    torch.manual_seed(0)
    x = generate(method, method.oracle(LANGUAGE), 400, 16, steps, sampler)
    nats = -LANGUAGE.log_prob(x) / 16
    assert abs(nats.mean() - LANGUAGE.entropy(16)[0]) < 4 * nats.std() / 20


# ---- both ends

def test_a_block_of_one_is_ar():
    """The same loss and bound in every draw of noise, the same greedy text, and no weight but 1."""
    method, other = made(LANGUAGE.V, 1), make_method("ar", LANGUAGE.V)
    x, denoiser, autoregressive = DATA.windows("val", 50), *(
        each.oracle(LANGUAGE) for each in (method, other))
    for score in (method.loss, method.nelbo, made(LANGUAGE.V, 1, clip="1,1").loss,
                  made(LANGUAGE.V, 1, weighting="bound").loss):
        same(score(denoiser, x), other.nelbo(autoregressive, x), 1e-9)
        assert torch.equal(score(denoiser, x), score(denoiser, x))
    greedy = dict(to_probs=lambda logits: probabilities(logits, 0), length=16, n=3, steps=1)
    ours, theirs = generate(method, denoiser, **greedy), generate(other, autoregressive, **greedy)
    assert torch.equal(ours, theirs)


def test_a_block_of_all_is_mdlm_to_the_bit():
    net, x, other = random_net(cond_dim=0), torch.randint(10, (6, 12)), make_method("mdlm", 10)
    frozen = torch.rand(6, 12) < 0.3

    def from_seed(what, *args):
        torch.manual_seed(7)
        return what(net, *args)

    nelbo = made(10, 12).nelbo
    assert torch.equal(from_seed(nelbo, x, frozen), from_seed(other.nelbo, x, frozen))
    for weighting in ("simple", "bound"):
        loss = made(10, 12, clip="0,1", weighting=weighting).loss
        theirs = make_method("mdlm", 10, weighting=weighting).loss
        assert torch.equal(from_seed(loss, x), from_seed(theirs, x))
    for sampler in (ancestral, FirstHitting(), Confidence()):
        z = torch.where(frozen, x, 10)
        ours, theirs = (list(from_seed(m.sample, z, frozen, 5, sampler))
                        for m in (made(10, 12), other))
        assert len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


# ---- the pieces

def test_the_times_of_a_batch_are_stratified_and_not_tied_to_the_place_of_a_block():
    """One time in each of 32 intervals. In batches of one text, where unshuffled strata would tie
    the k-th block to the k-th interval, each block's mean time is 1/2 within 4.5 errors."""
    torch.manual_seed(0)
    u = stratified_times(4, 8)
    assert u.shape == (4, 8)
    assert (u.flatten() * 32).long().sort().values.tolist() == list(range(32))
    means = torch.stack([stratified_times(1, 8)[0] for _ in range(4000)]).mean(0)
    assert ((means - 0.5).abs() < 4.5 * (1 / 12 / 4000) ** 0.5).all()


def test_the_pattern_of_attention_is_the_published_one():
    for name, (length, size) in {"L6_b2": (6, 2), "L8_b4": (8, 4), "L12_b3": (12, 3),
                                 "L4_b1": (4, 1)}.items():
        half = torch.zeros(1, 1, 2 * length, 1)
        ours = dense_mask(block_diffusion_mask(length, size), half, half)[0, 0]
        assert torch.equal(ours, figure(f"bd3_mask/{name}"))
    one = figure("bd3_mask/L4_b4")  # a single block: two halves that do not see each other
    assert block_diffusion_mask(4, 4) is None and not one[:4, 4:].any() and one[:4, :4].all()


def test_given_tokens_are_neither_noised_nor_scored_in_any_loss():
    x, frozen = torch.randint(10, (40, 12)), torch.rand(40, 12) < 0.5
    frozen[0], frozen[1, :4] = True, True  # a whole text, a whole block
    net = random_net(cond_dim=0)
    for options in (dict(), dict(weighting="bound"), dict(clip="0.3,0.8"), dict(clip="1,1")):
        method = made(10, 4, **options)
        for nats in (method.loss(net, x, frozen), method.nelbo(net, x, frozen)):
            assert nats.isfinite().all() and (nats[frozen] == 0).all() and (nats[~frozen] > 0).any()
    seen = []
    spy = lambda z, t, at, **layout: seen.append(z) or net(z, t, at, **layout)
    made(10, 4, clip="1,1").loss(spy, x, frozen)
    assert torch.equal(seen[0][:, :12], torch.where(frozen, x, 10))
    assert torch.equal(seen[0][:, 12:], x[:, :8])


@pytest.mark.parametrize("case", ["train_full", "eval_full"])
def test_the_loss_is_the_published_one_given_its_chances(case, monkeypatch):
    """Their uniform numbers and logits give the same z and (1/t) CE; token 0 is given."""
    part = lambda name: figure(f"bd3_loss/{case}/{name}")
    first, second, x = part("tape/000_rand"), part("tape/001_rand"), part("x0")
    strata = (first + torch.arange(4).view(2, 2)) / 4  # (2, 2) theirs are not shuffled
    monkeypatch.setattr(bd3lm, "stratified_times", lambda B, K, device: strata)
    monkeypatch.setattr(torch, "rand", lambda *shape, **options: 1 - second)
    seen = []

    def denoiser(z, t, at, **layout):
        seen.append(z)
        return part("logits")[at[:, :8]]
    method, frozen = made(11, 4, clip="0.001,1", weighting="bound"), torch.arange(8) == 0
    nats = method.loss(denoiser, x, frozen.expand(2, -1))
    assert torch.equal(seen[0][:, :8], part("model_input_xt_x0")[:, :8])
    same(nats * part("attention_mask"), part("nlls"))


def test_a_block_of_one_has_the_published_likelihood():
    part = lambda name: figure(f"bd3_loss/nll_b1/{name}")
    denoiser = lambda z, t, at, **layout: part("logits")[at[:, :8]]
    nats = made(11, 1).nelbo(denoiser, part("x0"), torch.arange(8).expand(2, -1) == 0)
    same(nats * part("attention_mask"), part("nlls"))
