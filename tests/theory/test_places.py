"""--learned_places: a vector for each place, where rotary positions tell distances only."""
import pytest
import torch

from checkpoints.build import build_method, build_network
from checkpoints.export import layout_name
from checkpoints.load import load_model
from data import load_data
from flags import UserError, configure
from methods import make_method
from methods.maria import sizes_of
from model import Cache, block_causal
from models import random_checkpoint
from networks import random_net, randomize
from runs import TINY, cache, elsewhere, fit  # noqa: F401
from train import Config


@pytest.mark.parametrize("places", [0, 7])
def test_a_text_of_one_word_is_the_same_everywhere_without_places_and_not_with(places):
    logits = random_net(cond_dim=0, places=places)(torch.full((1, 7), 3))[0]  # (7, V)
    assert torch.allclose(logits, logits[:1].expand_as(logits), atol=1e-5) == (not places)


def test_positions_of_queries_and_keys_add_up():
    """A token that is asked about another place is told both: with equal ones, twice the vector."""
    net, z = random_net(cond_dim=0, places=6), torch.tensor([[1, 4, 2]])  # (1, 3)
    at = torch.tensor([5, 0, 3])  # (3,)
    twice = net(z, positions=torch.stack([at, at])[None])  # (1, 3, V)
    assert torch.allclose(net(z, positions=at[None, None]), net(z, positions=at), atol=1e-5)
    net.place_embed.data *= 2
    assert torch.allclose(twice, net(z, positions=at), atol=1e-5)


def test_with_a_cache_a_token_keeps_its_place_when_earlier_ones_have_left_it():
    """A window of 4 tokens: the cache moves, places do not. One layer sees 4 tokens exactly."""
    net, z = random_net(cond_dim=0, places=12, n_layer=1), torch.arange(12)[None] % 9  # (1, 12)
    whole = net(z, mask_mod=block_causal(1, 3))  # (1, 12, V)
    cache, rows = Cache(7, 3), []
    for l in range(12):
        rows.append(net(z[:, l:l + 1], cache=cache))  # (1, 1, V)
        cache.keep(1)
    assert cache.start < cache.read
    assert torch.allclose(torch.cat(rows, 1), whole, atol=1e-4)


def test_a_longer_text_than_was_learned_is_refused():
    with pytest.raises(UserError, match="--learned_places has learned 5, and this text is longer"):
        random_net(places=6)(torch.zeros(1, 7, dtype=torch.long))


@pytest.mark.parametrize("method", ["ar", "mdlm", "bd3lm", "sigma_gpt", "diffugpt"])
def test_a_loss_reaches_the_vectors_of_all_places(method):
    config = configure(Config, **TINY, method=method, learned_places=True)
    data = load_data("toy", 8)
    ours = build_method(config, data.encoding)
    net = randomize(build_network(config, ours), std=0.1)
    torch.manual_seed(0)
    ours.loss(net, data.batch("train", 16, torch.Generator().manual_seed(0))).sum().backward()
    moved = net.place_embed.grad.abs().sum(-1) > 0  # (L + 1,)
    assert len(moved) == 9 and moved[:8].all()


def test_a_checkpoint_keeps_its_places_and_who_reads_none_refuses_it(tmp_path):
    model = load_model(random_checkpoint(tmp_path, learned_places=True))
    assert model.denoiser.place_embed.shape == (9, 16)
    assert model.denoiser.place_embed.std() > 0.1
    with pytest.raises(UserError, match="rotary positions only: train them with --no_learned_pl"):
        sizes_of(model)
    config = dict(vars(model.config), qk_norm=False)
    with pytest.raises(UserError, match="--learned_places, and the public code of"):
        layout_name(config, make_method("mdlm", 5), "it")
    assert layout_name(dict(config, learned_places=False), make_method("mdlm", 5), "it")


@pytest.mark.parametrize("flags, words", [
    (dict(method="pgm"), "pgm reads rotary positions only: give --no_learned_places"),
    (dict(method="diffugpt", positions=16), "--positions is a network with learned places: give")])
def test_networks_that_cannot_have_them_say_so(flags, words):
    with pytest.raises(UserError, match=words):
        fit("out", learned_places=True, **flags)
