"""
Block diffusion, one sentence a test: on a world of 81 texts of 4 tokens, where expectations are sums; on the toy
language; and at both ends, where a block of one is ar and a block of all is mdlm. Caches are in test_cache.py.
"""
from itertools import combinations, product
from math import comb
from pathlib import Path

import numpy
import pytest
import torch
from test_model import random_net

import block
import diffusion
from block import clip_grid, doubled, least_variance, strata
from data import BadInput
from data.toy import ToyCorpus
from diffusion import ancestral, probabilities
from masked import confidence, first_hitting
from methods import make_method
from model import dense
from oracle import oracle
from sample import generate

FIGURES = numpy.load(Path(__file__).parent / "block_reference.npz")
N, L, M = 3, 4, 3                                            # words, tokens, and the mask's id
TEXTS = torch.tensor(list(product(range(N), repeat=L)))                                                 # (81, 4)
P = torch.rand(len(TEXTS), generator=torch.Generator().manual_seed(5), dtype=torch.float64) ** 2        # (81,)
P = P / P.sum()
ONE_HOT = torch.nn.functional.one_hot(TEXTS, N).double()                                                # (81, 4, N)
CORPUS = ToyCorpus(block_size=16)
LANGUAGE = CORPUS.language


def bd3lm(n_tokens, diffusion_block, **options):
    return make_method("bd3lm", n_tokens, diffusion_block=diffusion_block, **options)


def figure(name):
    return torch.from_numpy(FIGURES[name])


def close(ours, theirs, tolerance=1e-10):
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance, check_dtype=False)


def exact(size):
    """The perfect denoiser of the small world for blocks of `size`, called as the network is: [noisy ; clean]."""
    def denoiser(z, t, at, **layout):
        length = (z.shape[1] + size) // 2
        law = torch.ones(len(z), length, N, dtype=torch.float64)
        for lo in range(0, length, size):
            here = slice(lo, lo + size)
            if at[:, here].any():
                seen = torch.cat([z[:, length:length + lo], z[:, here]], 1)[:, None]                    # (B, 1, hi)
                fits = ((seen == TEXTS[:, :lo + size]) | (seen == M)).all(-1) * P                       # (B, 81)
                law[:, here] = torch.einsum("bi,iln->bln", fits, ONE_HOT[:, here])                      # (B, L', N)
        return (law / law.sum(-1, keepdim=True)).log()[at[:, :length]]
    return denoiser


def vandal(size):
    """A wrong denoiser that depends on place, neighbours in the block and the last clean token before it."""
    def denoiser(z, t, at, **layout):
        length = (z.shape[1] + size) // 2
        noisy, clean = z[:, :length], torch.nn.functional.pad(z[:, length:], (1, size - 1))              # x_(l-1)
        place = torch.arange(length).expand_as(noisy)
        before = clean.gather(1, place // size * size)                                                  # (B, L)
        total = noisy.view(len(z), -1, size).sum(-1).repeat_interleave(size, 1)                         # (B, L)
        scores = torch.stack([0.7 * total, 0.4 * before + 0 * total, 0.3 * place], -1).double()         # (B, L, N)
        return scores.log_softmax(-1)[at[:, :length]]
    return denoiser


def exact_bound(size, denoiser, x):
    """(16) of one text, summed over every set of masks of every block. -> nats"""
    method, total = bd3lm(N, size), 0.0
    for lo in range(0, L, size):
        for k in range(1, size + 1):
            for masks in combinations(range(lo, lo + size), k):
                z = x.clone()
                z[list(masks)] = M
                ce = method.cross_entropy(method.given_before(denoiser, x[None]), x[None], z[None], None)
                total += ce.sum() / k / comb(size, k)        # (L'/k) / (L' comb(L', k))
    return total


@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_bound_of_the_oracle_is_the_exact_log_probability_of_each_text_and_any_other_gives_more(size):
    close(torch.stack([exact_bound(size, exact(size), x) for x in TEXTS[::5]]), -P[::5].log())
    wrong = sum(P[i] * exact_bound(size, vandal(size), x) for i, x in enumerate(TEXTS))
    assert wrong > -(P * P.log()).sum() + 0.1


@pytest.mark.parametrize("size, clip, weighting", [(1, "", "simple"), (2, "", "simple"), (4, "", "simple"),
                                                   (2, "0,1", "bound"), (2, "0.3,0.8", "simple")])
def test_nelbo_is_an_unbiased_draw_of_the_bound_whatever_training_clips(size, clip, weighting):
    """Each text's mean of 2,000 x 20 draws within 4.5 standard errors of the sum, and these below 1 %."""
    method = bd3lm(N, size, clip=clip, weighting=weighting)
    torch.manual_seed(0)
    for x in TEXTS[[7, 50]]:
        draws = torch.cat([method.nelbo(vandal(size), x.expand(2000, -1)).sum(-1) for _ in range(20)])
        target, error = exact_bound(size, vandal(size), x), draws.std() / len(draws) ** 0.5
        assert error < 0.01 * target and abs(draws.mean() - target) < 4.5 * error + 1e-9


def test_the_loss_is_a_bound_for_the_bound_weights_and_a_surrogate_for_the_others():
    torch.manual_seed(0)
    x, target = TEXTS[50], exact_bound(2, vandal(2), TEXTS[50])
    for clip, bound in (("", True), ("0,1", True), ("0.45,0.95", False)):
        method = bd3lm(N, 2, clip=clip, weighting="bound")
        draws = torch.cat([method.loss(vandal(2), x.expand(2000, -1)).sum(-1) for _ in range(20)])
        error = draws.std() / len(draws) ** 0.5
        assert (abs(draws.mean() - target) < 4.5 * error) == bound


@pytest.mark.parametrize("size, sampler, steps", [
    (1, first_hitting, 1), (2, first_hitting, 2), (4, first_hitting, 4), (1, ancestral, 2), (2, ancestral, 64),
    (4, ancestral, 128)])
def test_many_steps_through_the_oracle_draw_the_data(size, sampler, steps):
    """Total variation from the 81 probabilities, against that of as many exact draws; ancestral steps may open two
    masks of a block at once, which is worth 0.006 at most."""
    torch.manual_seed(0)
    n, method = 8_000, bd3lm(N, size)
    distance = lambda draws: (torch.bincount(draws, minlength=81) / n - P).abs().sum() / 2
    chance = torch.stack([distance(torch.multinomial(P, n, replacement=True)) for _ in range(30)])
    *_, z = method.sample(exact(size), method.prior((n, L)), torch.zeros(n, L, dtype=torch.bool), steps, sampler)
    far = distance((z * N ** torch.arange(L).flip(0)).sum(-1))
    assert far < chance.mean() + 4 * chance.std() + (0.006 if sampler is ancestral else 0)


def test_one_step_for_a_block_is_not_the_data():
    torch.manual_seed(0)
    method = bd3lm(N, 2)
    *_, z = method.sample(exact(2), method.prior((8_000, L)), torch.zeros(8_000, L, dtype=torch.bool), 1)
    assert (torch.bincount((z * N ** torch.arange(L).flip(0)).sum(-1), minlength=81) / 8_000 - P).abs().sum() > 0.1


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16])
def test_the_bound_of_the_toy_languages_oracle_is_its_entropy_for_every_block(size):
    """Within four standard errors of at most 0.5 %; for a block of one, text by text and to 1e-9."""
    method, x = bd3lm(CORPUS.encoding.n_vocab, size), CORPUS.windows("val", 1000)
    nats, denoiser = -LANGUAGE.log_prob(x).mean() / 16, oracle(LANGUAGE, method)
    torch.manual_seed(0)
    draws = torch.zeros(len(x), dtype=torch.float64)
    for _ in range(size):
        order = torch.randperm(len(x))                       # any text may meet any stratum
        draws[order] += method.nelbo(denoiser, x[order]).mean(-1) / size                                # (1000,)
    error = (draws + LANGUAGE.log_prob(x) / 16).std() / len(x) ** 0.5
    assert error < 0.005 * nats and abs(draws.mean() - nats) < 4 * error + 1e-9


@pytest.mark.parametrize("size, sampler, steps", [(1, ancestral, 1), (4, first_hitting, 4), (8, first_hitting, 8)])
def test_many_steps_through_the_toy_oracle_speak_the_language(size, sampler, steps):
    """-log p of 400 samples is the entropy within four standard errors."""
    method = bd3lm(CORPUS.encoding.n_vocab, size)
    torch.manual_seed(0)
    nats = -LANGUAGE.log_prob(generate(method, oracle(LANGUAGE, method), 400, 16, steps, sampler)) / 16
    assert abs(nats.mean() - LANGUAGE.entropy(16)[0]) < 4 * nats.std() / 20


# ---- both ends

def test_a_block_of_one_is_ar():
    """The same loss and bound, in every draw of noise; the same greedy text; and no weight but 1."""
    method, other = bd3lm(CORPUS.encoding.n_vocab, 1), make_method("ar", CORPUS.encoding.n_vocab)
    x, denoiser, autoregressive = CORPUS.windows("val", 50), oracle(LANGUAGE, method), oracle(LANGUAGE, other)
    for score in (method.loss, method.nelbo, bd3lm(CORPUS.encoding.n_vocab, 1, clip="1,1").loss,
                  bd3lm(CORPUS.encoding.n_vocab, 1, weighting="bound").loss):
        close(score(denoiser, x), other.nelbo(autoregressive, x), 1e-9)
        assert torch.equal(score(denoiser, x), score(denoiser, x))
    greedy = dict(law=lambda logits: probabilities(logits, 0), length=16, n=3)
    ours, theirs = generate(method, denoiser, steps=1, **greedy), generate(other, autoregressive, steps=1, **greedy)
    assert torch.equal(ours, theirs)


def test_a_block_of_all_is_mdlm_to_the_bit():
    net, x, other = random_net(cond_dim=0), torch.randint(10, (6, 12)), make_method("mdlm", 10)
    frozen = torch.rand(6, 12) < 0.3

    def from_seed(what, *args):
        torch.manual_seed(7)
        return what(net, *args)

    assert torch.equal(from_seed(bd3lm(10, 12).nelbo, x, frozen), from_seed(other.nelbo, x, frozen))
    for weighting in ("simple", "bound"):
        method = bd3lm(10, 12, clip="0,1", weighting=weighting)
        assert torch.equal(from_seed(method.loss, x), from_seed(make_method("mdlm", 10, weighting=weighting).loss, x))
    for sampler in (ancestral, first_hitting, confidence):
        z = torch.where(frozen, x, 10)
        ours, theirs = (list(from_seed(m.sample, z, frozen, 5, sampler)) for m in (bd3lm(10, 12), other))
        assert len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


# ---- the pieces

def test_the_pattern_of_attention_is_the_published_one():
    for name, (length, size) in {"L6_b2": (6, 2), "L8_b4": (8, 4), "L12_b3": (12, 3), "L4_b1": (4, 1)}.items():
        half = torch.zeros(1, 1, 2 * length, 1)
        assert torch.equal(dense(doubled(length, size), half, half)[0, 0], figure(f"bd3_mask/{name}"))
    one = figure("bd3_mask/L4_b4")                           # a single block: two halves that do not see each other
    assert doubled(4, 4) is None and not one[:4, 4:].any() and one[:4, :4].all()


def test_given_tokens_are_neither_noised_nor_scored_in_any_loss():
    x, frozen = torch.randint(10, (40, 12)), torch.rand(40, 12) < 0.5
    frozen[0], frozen[1, :4] = True, True                    # a whole text, a whole block
    net = random_net(cond_dim=0)
    for options in (dict(), dict(weighting="bound"), dict(clip="0.3,0.8"), dict(clip="1,1")):
        method = bd3lm(10, 4, **options)
        for nats in (method.loss(net, x, frozen), method.nelbo(net, x, frozen)):
            assert nats.isfinite().all() and (nats[frozen] == 0).all() and (nats[~frozen] > 0).any()
    spy = lambda z, t, at, **layout: seen.append(z) or net(z, t, at, **layout)
    seen = []
    bd3lm(10, 4, clip="1,1").loss(spy, x, frozen)
    assert torch.equal(seen[0][:, :12], torch.where(frozen, x, 10)) and torch.equal(seen[0][:, 12:], x[:, :8])


@pytest.mark.parametrize("case", ["train_full", "eval_full"])
def test_the_loss_is_the_published_one_given_its_chances(case, monkeypatch):
    """Their uniform numbers, their logits: the same noisy text, the same (1/t) cross-entropy; token 0 is given."""
    first, second = (figure(f"bd3_loss/{case}/tape/{name}") for name in ("000_rand", "001_rand"))
    x, attended = figure(f"bd3_loss/{case}/x0"), figure(f"bd3_loss/{case}/attention_mask")
    strata = (first + torch.arange(4).view(2, 2)) / 4        # (2, 2) theirs are dealt in order
    monkeypatch.setattr(block, "strata", lambda B, K, device: strata)
    monkeypatch.setattr(diffusion.torch, "rand", lambda *shape, **options: 1 - second)
    seen = []

    def denoiser(z, t, at, **layout):
        seen.append(z)
        return figure(f"bd3_loss/{case}/logits")[at[:, :8]]
    nats = bd3lm(11, 4, clip="0.001,1", weighting="bound").loss(denoiser, x, torch.arange(8).expand(2, -1) == 0)
    assert torch.equal(seen[0][:, :8], figure(f"bd3_loss/{case}/model_input_xt_x0")[:, :8])
    close(nats * attended, figure(f"bd3_loss/{case}/nlls"), 1e-5)


def test_a_block_of_one_has_the_published_likelihood():
    x, attended = figure("bd3_loss/nll_b1/x0"), figure("bd3_loss/nll_b1/attention_mask")
    denoiser = lambda z, t, at, **layout: figure("bd3_loss/nll_b1/logits")[at[:, :8]]
    nats = bd3lm(11, 1).nelbo(denoiser, x, torch.arange(8).expand(2, -1) == 0)
    close(nats * attended, figure("bd3_loss/nll_b1/nlls"), 1e-5)


def test_the_times_of_a_batch_are_stratified_and_not_tied_to_the_place_of_a_block():
    """One time in each of 32 intervals; and over 4,000 batches, each block's mean time is 1/2 within 4.5 errors, and
    so it is in a batch of a single text, where strata dealt in order would tie the k-th block to the k-th interval."""
    torch.manual_seed(0)
    u = strata(4, 8)
    assert u.shape == (4, 8) and (u.flatten() * 32).long().sort().values.tolist() == list(range(32))
    means = torch.stack([strata(1, 8)[0] for _ in range(4000)]).mean(0)
    assert ((means - 0.5).abs() < 4.5 * (1 / 12 / 4000) ** 0.5).all()


def test_the_grid_of_clips_is_the_papers():
    """36 intervals; theirs say .001 where ours say 0."""
    assert set(clip_grid()) == {tuple(0.0 if v < 0.01 else round(v, 2) for v in row)
                                for row in figure("bd3_clip/grid").tolist()}


def test_the_search_finds_the_interval_of_least_variance():
    """The draws of (0, 1) inside an interval serve for it: against direct draws from each, and on a made-up loss."""
    t = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    assert least_variance(t, (t - 0.6).clamp(min=0), [(0, 1), (0.0, 0.6), (0.3, 0.8)]) == (0.0, 0.6)
    torch.manual_seed(0)
    method, x = bd3lm(CORPUS.encoding.n_vocab, 4), CORPUS.windows("val", 1000)
    denoiser, variance = oracle(LANGUAGE, method), {}
    method.weighting = "bound"
    for low, high in ((0.0, 1.0), (0.3, 0.8), (0.45, 0.95)):
        method.clip = low, high
        nats, t = method.clipped(denoiser, x)
        assert t.min() >= low and t.max() <= high and torch.equal(t[:, 0::4], t[:, 3::4])
        variance[low, high] = nats.view(-1, 4).mean(-1).var()
    found = method.search_clip(denoiser, x, 500)
    assert variance[0.0, 1.0] > 1.5 * variance[0.3, 0.8] > 1.5 * variance[0.45, 0.95] and found[0] >= 0.4
    assert bd3lm(10, 1).search_clip(denoiser, x, 500) == (1.0, 1.0)


def test_clipping_and_any_order_leave_blocks_that_are_all_masks_in_and_small_blocks_without_masks_out():
    """Shares of 20,000 blocks of four, within 4.5 standard errors: U(.45, .95) masks all in .302, none in .020."""
    seen = []
    spy = lambda z, t, at, **layout: seen.append(at[:, :400]) or torch.zeros(int(at.sum()), 10)
    share = lambda k: (seen[-1].reshape(-1, 4).sum(-1) == k).double().mean()
    for clip, all_four, none in (("0.45,0.95", 0.3021, 0.0201), ("", 0.25, 0.0)):
        torch.manual_seed(0)
        bd3lm(10, 4, clip=clip).clipped(spy, torch.zeros(200, 400).long(), low_high=(0.45, 0.95)) if clip else \
            bd3lm(10, 4).loss(spy, torch.zeros(200, 400).long())
        assert abs(share(4) - all_four) < 4.5 * (0.25 / 20_000) ** 0.5 and abs(share(0) - none) < 0.005


@pytest.mark.parametrize("clip", ["1", "0.5,0.4", "-1,1", "0,0", "0.5,1.5", "a,b", "nan,1"])
def test_a_clip_that_is_none_is_refused_in_words(clip):
    with pytest.raises(BadInput, match="two rates between 0 and 1"):
        bd3lm(10, 4, clip=clip)


def test_a_text_of_no_whole_number_of_blocks_is_refused_in_words():
    method = bd3lm(10, 4)
    with pytest.raises(BadInput, match="10 tokens are no whole number of blocks of 4: make it 12 with --length"):
        next(method.sample(random_net(cond_dim=0), method.prior((1, 10)), torch.zeros(1, 10, dtype=torch.bool), 4))


def test_each_block_has_a_number_of_masks_of_its_own_and_a_rate_of_its_own():
    """A hundred blocks of one text: as many with 1, 2, 3 and 4 masks, since strata are those of blocks; 100 rates."""
    seen = []
    spy = lambda z, t, at, **layout: seen.append(at[:, :400]) or torch.zeros(int(at.sum()), 10)
    bd3lm(10, 4).nelbo(spy, torch.zeros(1, 400).long())
    assert torch.bincount(seen[0].view(-1, 4).sum(-1)).tolist() == [0, 25, 25, 25, 25]
    _, t = bd3lm(10, 4, clip="0.3,0.8").clipped(spy, torch.zeros(1, 400).long())
    assert len(t.unique()) == 100 and torch.equal(t[:, ::4], t[:, 3::4])
