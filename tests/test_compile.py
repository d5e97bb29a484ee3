"""Through torch.compile: one graph a training step, whatever the noise draws, and a handful of them for all sampling."""
import pytest
import torch
from torch._dynamo.utils import counters

from learner import per_token
from methods import make_method
from model import Transformer
from positions import Bucketed
from sample import generate


@pytest.fixture(autouse=True)
def from_nothing():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def network(method):
    torch.manual_seed(2)
    net = getattr(method, "network", Transformer)(method.vocab_size, n_layer=2, n_head=2, n_embd=16,
                                                  cond_dim=8 if method.uses_time else 0, mask_mod=method.mask_mod)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return net


def steps(method, net, denoiser, n=3):
    """-> the loss and the gradients of the last of n steps on different texts"""
    for step in range(n):
        torch.manual_seed(step)
        x = torch.randint(method.n_tokens, (4, 8))                                                      # (B, L)
        net.zero_grad()
        loss = per_token(method.loss(denoiser, x), None)                                                # ()
        loss.backward()
    return {"loss": loss.detach(), **{name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}}


@pytest.mark.parametrize("name", ["ar", "mdlm", "radd", "bd3lm", "pgm", "udlm", "gidd", "duo"])
def test_a_training_step_is_one_graph_and_stays_that_whatever_is_drawn(name):
    method = make_method(name, 11, diffusion_block=4)
    net = network(method)
    plain = steps(method, net, net)
    net.static = True
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(steps(method, net, compiled), plain, rtol=1e-4, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]


@pytest.mark.parametrize("name", ["mdlm", "udlm"])
def test_sampling_compiles_once_for_each_power_of_two_and_draws_the_same_texts(name):
    method = make_method(name, 11)
    net, texts = network(method).eval(), []
    bucketed = Bucketed(net, "default")
    bucketed.compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    for denoiser in (net, bucketed, bucketed):
        torch.manual_seed(5)
        texts.append(generate(method, denoiser, 4, 8, 16))                                              # (B, L)
        shapes = counters["stats"]["unique_graphs"]
    assert torch.equal(texts[0], texts[1]) and torch.equal(texts[0], texts[2])
    assert 2 <= shapes <= 6                                  # of 1, 2, 4, 8, 16, 32 positions
    torch.manual_seed(6)
    for steps in (1, 3, 50):
        generate(method, bucketed, 4, 8, steps)
    assert counters["stats"]["unique_graphs"] <= 6 and not counters["graph_break"]
