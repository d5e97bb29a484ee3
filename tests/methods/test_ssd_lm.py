"""
SSD-LM: the bound of tess block by block, and a network that reads a clean context and one block.
Its coordinates and projections: test_tess.py. Its samplers: samplers/test_evidence.py.
"""
import pytest
import torch
import torch.nn.functional as F
import world
from bounds import mean_of_batches
from world import TEXTS, N, P

from flags import UserError, configure
from methods import make_method
from train import Config

ENTROPY = -(P * P.log()).sum()


def spied(method, calls, V=7):
    """A denoiser that shows what a network reads."""
    def denoiser(z, t, at):
        calls.append((method.process.shown(z, t), t.expand(z.shape[:2]), at))
        return torch.zeros(int(at.sum()), V)
    return denoiser


def test_a_call_reads_clean_text_and_one_noisy_block_and_nothing_behind_it():
    """In training, in the bound and while sampling; a block is clean context once it is written."""
    method, calls, x = make_method("ssd_lm", 7, diffusion_block=4), [], torch.randint(7, (5, 12))
    nothing = torch.zeros(5, 12, dtype=torch.bool)
    torch.manual_seed(0)
    for _ in range(8):
        method.loss(spied(method, calls), x)
    assert {theta.shape[1] for theta, _, _ in calls} == {4, 8, 12}
    method.nelbo(spied(method, calls), x)
    states = list(method.sample(spied(method, calls), method.prior(x.shape), nothing, 2))
    for number, (theta, t, at) in enumerate(calls):
        lo = theta.shape[1] - 4
        assert not at[:, :lo].any() and at[:, lo:].all()
        assert (t[:, :lo] == 0).all() and (t[:, lo:] > 0).all()
        past = states[-1] if number >= 14 else x
        assert torch.equal(theta[:, :lo], F.one_hot(past[:, :lo], 7).float())
        assert (theta[:, lo:].amax(-1) < 1).any()
    assert [theta.shape[1] for theta, _, _ in calls[14:]] == [4, 4, 8, 8, 12, 12]
    assert [theta.shape[1] for theta, _, _ in calls[8:14]] == [4, 4, 8, 8, 12, 12]


def test_the_loss_of_a_block_counts_for_all_of_them():
    """The mean over which block is drawn: that of tess for one block of the whole text."""
    torch.manual_seed(0)
    x, flat = torch.randint(7, (6, 12)), lambda z, t, at: torch.arange(7.0).expand(int(at.sum()), 7)
    parts = make_method("ssd_lm", 7, diffusion_block=4)
    losses = torch.stack([parts.loss(flat, x) for _ in range(600)])  # (n, 6, 12)
    whole = make_method("ssd_lm", 7, diffusion_block=12).loss(flat, x)
    assert ((losses > 0).sum(-1) == 4).all()
    assert losses.mean().item() == pytest.approx(whole.mean().item(), abs=0.05)


@pytest.mark.parametrize("block", [1, 3])
def test_the_chain_of_blocks_is_the_likelihood(block):
    """(14.15) is the entropy for any size of blocks, within 4.5 errors of 1 %."""
    method = world.make_world_method("ssd_lm", N, diffusion_block=block)
    exact = method.oracle(world.LANGUAGE)
    torch.manual_seed(0)

    def draw():
        of = torch.multinomial(P, 2500, replacement=True)
        return method.nelbo(exact, TEXTS[of]).sum(-1) + P[of].log()
    more, error = mean_of_batches(draw)
    assert error < 0.01 * ENTROPY and abs(more) < 4.5 * error


def test_a_window_is_what_a_block_sees():
    method, calls = make_method("ssd_lm", 7, diffusion_block=2), []
    z = method.prior((3, 8))
    list(method.sample(spied(method, calls), z, z != z, 1, window=4))
    assert [theta.shape[1] for theta, _, _ in calls] == [2, 4, 4, 4]


def test_texts_are_whole_blocks():
    method = make_method("ssd_lm", 7, diffusion_block=5)
    with pytest.raises(UserError, match="8 tokens are not whole blocks of 5: change --diffusion"):
        method.check(configure(Config, method="ssd_lm", block_size=8))
