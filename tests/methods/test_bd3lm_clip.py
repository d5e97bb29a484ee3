"""Block diffusion: how noise is shared out over blocks, and the interval of --clip."""
from types import SimpleNamespace

import pytest
import torch
from networks import random_net
from references import Figures

from data.toy import ToyCorpus
from flags import UserError
from methods import make_method
from methods.bd3lm import clip_grid, least_variance


def made(n_tokens=10, diffusion_block=4, **options):
    return make_method("bd3lm", n_tokens, diffusion_block=diffusion_block, **options)


class Spy:
    """A denoiser that knows nothing, and remembers which positions it was called at."""

    def __init__(self, length):
        self.length = length

    def __call__(self, z, t, at, **layout):
        self.at = at[:, :self.length]
        return torch.zeros(int(at.sum()), 10)

    def shares(self):
        """Of blocks of four with 0 .. 4 masks. -> (5,)"""
        masks = self.at.reshape(-1, 4).sum(-1)
        return torch.bincount(masks, minlength=5) / len(masks)


def test_clipping_and_any_order_keep_blocks_of_masks_only_and_few_blocks_without_any():
    """Of 20,000 blocks of four, within 4.5 standard errors: rates of U(.45, .95) mask all in .302
    of them, none in .020."""
    spy, x = Spy(400), torch.zeros(200, 400).long()
    for clip, all_four, none in (("0.45,0.95", 0.3021, 0.0201), ("", 0.25, 0.0)):
        torch.manual_seed(0)
        method = made(clip=clip)
        method.clipped(spy, x, low_high=(0.45, 0.95)) if clip else method.loss(spy, x)
        assert abs(spy.shares()[4] - all_four) < 4.5 * (0.25 / 20_000) ** 0.5
        assert abs(spy.shares()[0] - none) < 0.005


def test_each_block_has_its_own_number_of_masks_and_its_own_rate():
    """A hundred blocks of one text: 25 each of 1, 2, 3 and 4 masks, since strata are of blocks."""
    spy, x = Spy(400), torch.zeros(1, 400).long()
    made().nelbo(spy, x)
    assert (spy.shares() * 100).round().tolist() == [0, 25, 25, 25, 25]
    _, t = made(clip="0.3,0.8").clipped(spy, x)
    assert len(t.unique()) == 100 and torch.equal(t[:, ::4], t[:, 3::4])


def test_the_grid_of_clips_is_the_papers():
    """36 intervals; theirs say .001 where ours say 0."""
    grid = Figures("block_reference")("bd3_clip/grid").tolist()
    assert set(clip_grid()) == {tuple(0.0 if v < 0.01 else round(v, 2) for v in row)
                                for row in grid}


def test_the_search_finds_the_interval_of_least_variance():
    """Draws of (0, 1) inside an interval serve for it: against direct draws from each."""
    t = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    flat = (t - 0.6).clamp(min=0)
    assert least_variance(t, flat, [(0, 1), (0.0, 0.6), (0.3, 0.8)]) == (0.0, 0.6)
    torch.manual_seed(0)
    data = ToyCorpus(block_size=16)
    method, x = made(data.encoding.n_vocab, weighting="bound"), data.windows("val", 1000)
    denoiser, variance = method.oracle(data.language), {}
    for low, high in ((0.0, 1.0), (0.3, 0.8), (0.45, 0.95)):
        nats, t = method.clipped(denoiser, x, low_high=(low, high))
        assert t.min() >= low and t.max() <= high and torch.equal(t[:, 0::4], t[:, 3::4])
        variance[low, high] = nats.view(-1, 4).mean(-1).var()
    found = method.find_clip(denoiser, x, 500)
    assert variance[0.0, 1.0] > 1.5 * variance[0.3, 0.8] > 1.5 * variance[0.45, 0.95]
    assert found[0] >= 0.4 and made(10, 1).find_clip(denoiser, x, 500) == (1.0, 1.0)


def trainer(eval_interval=4):
    """What on_step reads of a trainer."""
    config = SimpleNamespace(clip="", eval_interval=eval_interval, eval_iters=2, batch_size=8,
                             seed=1)
    windows = lambda split, most: torch.randint(10, (most, 12))
    return SimpleNamespace(config=config, data=SimpleNamespace(windows=windows), device="cpu",
                           average=random_net(cond_dim=0))


def test_a_search_runs_at_every_evaluation_and_a_checkpoint_holds_what_it_found():
    """In full precision, so that a resumed run draws the same noise. Flags stay what they were."""
    method, each = made(clip_search=True), trainer()
    assert method.extra_state() == {}
    method.on_step(4, each)
    found = method.interval
    assert found in clip_grid() and each.config.clip == method.clip == ""
    method.on_step(5, each)
    resumed = made(clip_search=True)
    resumed.load_extra_state({"step": 5, **method.extra_state()})
    assert resumed.interval == method.interval == found
    without = made(clip="0.3,0.8")
    without.load_extra_state(method.extra_state())
    without.on_step(4, each)
    assert without.interval == (0.3, 0.8) and without.extra_state() == {}


@pytest.mark.parametrize("clip", ["1", "0.5,0.4", "-1,1", "0,0", "0.5,1.5", "a,b", "nan,1"])
def test_a_clip_that_is_none_is_refused_in_words(clip):
    with pytest.raises(UserError, match="two rates between 0 and 1"):
        made(clip=clip)


def test_a_text_of_no_whole_number_of_blocks_is_refused_in_words():
    method = made()
    with pytest.raises(UserError, match="10 tokens are no whole number of blocks of 4: make it 12 "
                                        "with --length"):
        nothing = torch.zeros(1, 10, dtype=torch.bool)
        next(method.sample(random_net(cond_dim=0), method.prior((1, 10)), nothing, 4))
    with pytest.raises(UserError, match="--block_size 10 must be a multiple of --diffusion_block"):
        method.check(SimpleNamespace(block_size=10))
