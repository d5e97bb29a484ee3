"""Attention can be read without a change of the network or of what it outputs."""
import pytest
import torch

import model
from experiments.attention_maps import attention_maps, attention_weights
from methods import make_method, pgm


@pytest.mark.parametrize("name", ["ar", "mdlm", "bd3lm", "pgm"])
def test_the_maps_are_those_of_every_call_and_change_nothing(name):
    torch.manual_seed(0)
    method = make_method(name, 9, diffusion_block=4)
    net = method.network(method.vocab_size, n_layer=2, n_head=2, n_embd=16, cond_dim=0,
                         mask_mod=method.mask_mod)
    x = torch.randint(9, (3, 8))  # (B, L)
    torch.manual_seed(1)
    plain = method.loss(net, x)  # (B, L)
    torch.manual_seed(1)
    with attention_maps() as maps:
        watched = method.loss(net, x)  # (B, L)
    assert torch.equal(plain, watched) and len(maps) >= 2
    for weights in maps:
        assert weights.shape[0] <= 3 and weights.shape[1] == 2  # texts without masks are skipped
        assert not weights.requires_grad
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    if name == "ar":
        assert (maps[0].triu(1) == 0).all()
    assert model.attention is pgm.attention and "maps" not in model.attention.__code__.co_freevars


@pytest.mark.parametrize("mask_mod", [None, model.causal])
def test_the_weights_times_the_values_are_the_attention(mask_mod):
    q, k, v = torch.randn(3, 2, 2, 6, 8).unbind()  # (B, H, L, hd) each
    torch.testing.assert_close(attention_weights(q, k, mask_mod) @ v,
                               model.attention(q, k, v, mask_mod), atol=1e-5, rtol=1e-5)
