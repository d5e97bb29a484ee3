"""What holds for methods of one kind of data, which the tables of test_methods.py cannot try: every
flag trains, given tokens are never scored, facts name what there is, other data are refused."""
from types import SimpleNamespace

import pytest
import torch

from checkpoints.build import build_network
from data import load_data
from flags import UserError, flags_of, load_row
from methods import FOR_SOME_DATA, METHODS, make_method
from networks import randomize
from samplers import SAMPLERS, samplers_for

DATA = {"tree_diffusion": load_data("arithmetic", 0), "diffuser": load_data("sort", 0)}
NETWORK = dict(n_layer=1, n_head=2, n_embd=8, cond_dim=4, dropout=0.0, qk_norm=True,
               norm_bias=False, time_input="auto")
each_method = pytest.mark.parametrize("name", FOR_SOME_DATA)


def built(name, **flags):
    """-> a tiny method, its network, texts (16, L), and which tokens are given"""
    data = DATA[name]
    method = make_method(name, data.encoding.n_vocab, **flags)
    method.on_data(data)
    torch.manual_seed(0)
    network = build_network(SimpleNamespace(**NETWORK), method)
    return method, network, *data.examples("train", 16)[:2]


def values(name, flag):
    f = flags_of(load_row(FOR_SOME_DATA, name))[flag]
    return f.metadata["choices"] or [f.default, f.default + 1 if f.type is int else f.default / 2]


@pytest.mark.parametrize("name, flag", [(name, flag) for name in FOR_SOME_DATA
                                        for flag in flags_of(load_row(FOR_SOME_DATA, name))])
def test_two_values_of_every_flag_train_two_steps(name, flag):
    for value in values(name, flag):
        method, network, x, frozen = built(name, **{flag: value})
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        before = [p.clone() for p in network.parameters()]
        for _ in range(2):
            nats = method.loss(network, x, frozen)  # (16, L)
            optimizer.zero_grad()
            nats.mean().backward()
            assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)
            optimizer.step()
        assert any((p != q).any() for p, q in zip(before, network.parameters()))


@each_method
def test_given_tokens_are_never_scored_and_every_weight_gets_a_gradient(name):
    method, network, x, frozen = built(name)
    randomize(network, std=0.2)
    for score in (method.loss, method.nelbo):
        nats = score(network, x, frozen)
        assert nats.shape == x.shape and nats.isfinite().all()
        assert (nats[frozen] == 0).all() and nats[~frozen].mean() > 0
    method.loss(network, x, frozen).mean().backward()
    for key, p in network.named_parameters():
        assert p.grad.isfinite().all() and (p.grad != 0).any(), key


@each_method
def test_facts_and_tables(name):
    method, _, x, frozen = built(name)
    assert name not in METHODS and method.name == name and method.bounded and not method.exact
    assert samplers_for(method) == [*method.samplers] and set(method.samplers) <= set(SAMPLERS)
    noise = method.prior(x.shape)
    assert noise.shape == x.shape and 0 <= noise.min() and noise.max() < method.n_tokens
    assert method.count_states(12, 5) == 5
    for other in ("planning2", "toy"):
        with pytest.raises(UserError, match="give --data"):
            method.on_data(load_data(other, 0 if other != "toy" else 8))
