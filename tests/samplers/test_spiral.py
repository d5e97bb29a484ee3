"""Two sets of weights for source and target (DiffuSIA after its abstract), and sides for methods
with noise on embeddings."""
import pytest
import torch
from networks import random_net

from checkpoints.build import build_network
from data import load_data
from flags import configure
from methods import make_method
from samplers.sides import TwoSets, by_sides, cache_source, divide
from train import Config

S, L, B, WORDS = 4, 7, 5, 9


def spiral(name="mdlm", **options):
    method = make_method(name, WORDS)
    network = random_net(vocab_size=method.vocab_size, cond_dim=8 if method.uses_time else 0,
                         qk_norm=True, **options)
    return method, network.double()


def noisy(method):
    torch.manual_seed(0)
    return torch.randint(WORDS, (B, L)), torch.rand(B, 1).double()  # (B, L), (B, 1)


@pytest.mark.parametrize("name", ["mdlm", "udlm"])
def test_with_two_equal_sets_of_weights_it_is_the_joined_network(name):
    method, network = spiral(name)
    z, t = noisy(method)
    network.source = S  # whose time is 0
    before, at = network(z, t), torch.rand(B, L) < 0.5  # (B, L, V), (B, L)
    at[:, :S] = False
    some = network(z, t, at=at)  # (N, V)
    divide(network, method, S, "spiral")
    torch.testing.assert_close(network(z, t), before)
    torch.testing.assert_close(network(z, t, at=at), some)


def test_each_side_has_weights_of_its_own_and_sees_the_other():
    method, network = spiral()
    divide(network, method, S, "spiral")
    z, t = noisy(method)
    first = network(z, t)  # (B, L, V)
    layer = network.blocks[-1].out  # after the last attention: it moves its own side alone
    assert type(layer) is TwoSets and type(network.blocks[0].mlp) is TwoSets
    for side, mine in (("of_source", slice(0, S)), ("of_target", slice(S, None))):
        weight = getattr(layer, side).weight
        weight.data.mul_(2)
        moved = (network(z, t) - first).abs().amax(-1) > 1e-9  # (B, L)
        assert moved[:, mine].all() and moved.sum() == moved[:, mine].numel()
        weight.data.div_(2)
    other = z.clone()  # (B, L)
    other[:, S:] = 1
    assert not torch.allclose(network(other, t)[:, :S], first[:, :S])  # so nothing can be cached
    assert not network.supports_cache
    assert cache_source(network, torch.arange(L) < S, False) is network


def build(name, sides):
    task = load_data("reverse", 0)
    config = configure(Config, method=name, data="reverse", sides=sides, n_layer=2, n_embd=16,
                       n_head=2, cond_dim=8)
    method = make_method(name, task.encoding.n_vocab, dim=4)
    return task, method, build_network(config, method)


@pytest.mark.parametrize("name", ["diffusion_lm", "plaid"])
@pytest.mark.parametrize("sides", ["encoder", "spiral"])
def test_methods_with_embeddings_have_sides(name, sides):
    """The loss trains both sets; under `encoder` the source depends on nothing of the target."""
    task, method, network = build(name, sides)
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.3)
    x, frozen, _ = task.examples("train", 6, torch.Generator().manual_seed(0))
    method.loss(network, x, frozen).mean().backward()
    grads = {key: p.grad for key, p in network.named_parameters() if key.startswith("blocks")}
    assert all((gradient != 0).any() for key, gradient in grads.items() if "blocks.0" in key)
    assert None not in grads.values()
    assert any("of_source" in key for key in grads) == (sides == "spiral")
    assert (network.mask_mod is by_sides(task.source)) == (sides == "encoder")
    _, z, t = method.noisy(x, torch.rand(6, 1), frozen)  # (6, L, D), (6, L)
    z = torch.cat([z, torch.zeros_like(z)], -1)  # (6, L, 2D) nothing is fed back
    first = network(z, t)[:, :task.source]  # (6, S, V|D)
    z[:, task.source:] += 1
    same = torch.allclose(network(z, 0.5 * t)[:, :task.source], first, atol=1e-6)
    assert same == (sides == "encoder")
