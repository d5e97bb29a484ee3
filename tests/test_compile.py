"""Through torch.compile: one graph a training step, whatever the noise draws, and a handful for all sampling."""
from types import SimpleNamespace

import pytest
import torch
from torch._dynamo.utils import counters

import sample
import train
from data import BadInput
from flags import parse
from learner import per_token
from methods import make_method
from model import Transformer
from positions import Bucketed
from sample import generate
from steering import compiled_by


@pytest.fixture(autouse=True)
def from_nothing():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def network(method):
    torch.manual_seed(2)
    make, n_layer = getattr(method, "network", Transformer), 2 if hasattr(method, "network") else 1
    net = make(method.vocab_size, n_layer, n_head=1, n_embd=16, cond_dim=8 if method.uses_time else 0,
               mask_mod=method.mask_mod)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return net


def steps(method, net, denoiser, half=False, n=3):
    """-> the loss and the gradients of the last of n steps on different texts"""
    for step in range(n):
        torch.manual_seed(step)
        x = torch.randint(method.n_tokens, (4, 8))                                                      # (B, L)
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = per_token(method.loss(denoiser, x), None)                                            # ()
        loss.backward()
    grads = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **grads}


@pytest.mark.parametrize("name, backend, half", [
    ("mdlm", "aot_eager", False), ("mdlm", "eager", True), ("bd3lm", "eager", False), ("pgm", "eager", False)])
def test_a_training_step_is_one_graph_and_stays_that_whatever_is_drawn(name, backend, half):
    """The network, the loss in the place of its head; and forward and backward with aot_eager."""
    method = make_method(name, 11, diffusion_block=4)
    net = network(method)
    plain = steps(method, net, net, half)
    net.static = True
    compiled = torch.compile(net, backend=backend, fullgraph=True)
    close = dict(rtol=0.05, atol=0.05) if half else dict(rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(steps(method, net, compiled, half), plain, **close)
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]


def test_sampling_compiles_once_for_each_power_of_two_and_draws_the_same_texts():
    method = make_method("mdlm", 11)
    net, texts = network(method).eval(), []
    bucketed = Bucketed(net, "default")
    through, sizes = torch.compile(net, backend="eager", fullgraph=True), set()
    bucketed.compiled = lambda z, t, at: sizes.add(len(at)) or through(z, t, at=at)
    for denoiser in (net, bucketed, bucketed):
        torch.manual_seed(5)
        texts.append(generate(method, denoiser, 4, 8, 16))                                              # (B, L)
        shapes = counters["stats"]["unique_graphs"]
    assert torch.equal(texts[0], texts[1]) and torch.equal(texts[0], texts[2])
    assert 2 <= shapes <= 6 and 3 <= len(sizes)
    torch.manual_seed(6)
    for steps in (1, 3, 50):
        generate(method, bucketed, 4, 8, steps)
    assert counters["stats"]["unique_graphs"] <= 6 and not counters["graph_break"] and sizes <= {1, 2, 4, 8, 16, 32}


@pytest.mark.parametrize("words, mode", [
    ([], ""), (["--compile"], "default"), (["--compile", "--seed", "3"], "default"), (["--compile=True"], "default"),
    (["--compile", "reduce-overhead"], "reduce-overhead"), (["--no-compile"], ""), (["--compile=False"], "")], ids=str)
def test_the_flag_stands_alone_or_names_a_mode(words, mode):
    assert parse(train.Config, words)[0].compile == parse(sample.Config, words)[0].compile == mode


def test_a_mode_that_does_not_exist_is_one_line(capsys):
    with pytest.raises(SystemExit):
        parse(train.Config, ["--compile", "fast"])
    assert "--compile 'fast' is not one of default, reduce-overhead, max-autotune" in capsys.readouterr().err


@pytest.mark.parametrize("method, cache", [("ar", "none"), ("pgm", "none"), ("bd3lm", "none"), ("mdlm", "dual")])
def test_networks_whose_calls_have_no_fixed_shape_are_not_compiled(method, cache):
    model = SimpleNamespace(denoiser=network(make_method("mdlm", 5)), config=SimpleNamespace(method=method))
    with pytest.raises(BadInput, match="--compile is for networks that read whole texts"):
        compiled_by(SimpleNamespace(compile="default", cache=cache), model)
    assert compiled_by(SimpleNamespace(compile="", cache=cache), model) is model.denoiser
