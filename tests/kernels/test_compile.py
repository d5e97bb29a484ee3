"""torch.compile: one graph for all training steps, and a handful of graphs for all sampling."""
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import torch._inductor.config
from torch._dynamo.utils import counters

import sample
import train
from flags import UserError, configure, parse
from methods import make_method
from runs import ROOT
from runtime.compile import CompiledDenoiser, compile_for_sampling, compile_network
from samplers.generate import generate, writer_of
from script import one_line_errors
from train import loss_per_token


@pytest.fixture(autouse=True)
def no_graphs():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def network(method, n_layer=2):
    torch.manual_seed(2)
    net = method.network(method.vocab_size, n_layer, n_head=1, n_embd=16,
                         cond_dim=8 if method.uses_time else 0, mask_mod=method.mask_mod)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return net


def last_step(method, net, denoiser, half=False, n=3):
    """-> {"loss": of the last of n steps, name of a weight: its gradient}"""
    for step in range(n):
        torch.manual_seed(step)
        x = torch.randint(method.n_tokens, (4, 8))  # (B, L)
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = loss_per_token(method.loss(denoiser, x))  # ()
        loss.backward()
    grads = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **grads}


@pytest.mark.parametrize("name, n_layer, backend, half", [
    ("mdlm", 1, "aot_eager", False), ("mdlm", 1, "eager", True), ("bd3lm", 1, "eager", False),
    ("pgm", 2, "eager", False)])
def test_a_training_step_is_one_graph_whatever_noise_is_drawn(name, n_layer, backend, half):
    """With the loss in the place of the head; and forward and backward, by aot_eager."""
    method = make_method(name, 11, diffusion_block=4)
    net = network(method, n_layer)
    plain = last_step(method, net, net, half)
    net.fixed_shapes = True
    compiled = torch.compile(net, backend=backend, fullgraph=True)
    close = dict(rtol=0.05, atol=0.05) if half else dict(rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(last_step(method, net, compiled, half), plain, **close)
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]


def test_sampling_compiles_once_per_power_of_two_and_draws_the_same_texts():
    method = make_method("mdlm", 11)
    net, texts, sizes = network(method, n_layer=1).eval(), [], set()
    denoiser = CompiledDenoiser(net, "default")
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    denoiser.compiled = lambda z, t, at: sizes.add(len(at)) or compiled(z, t, at=at)
    for each in (net, denoiser, denoiser):
        torch.manual_seed(5)
        texts.append(generate(method, each, 4, 8, 16))  # (B, L)
    assert torch.equal(texts[0], texts[1]) and torch.equal(texts[0], texts[2])
    assert 2 <= counters["stats"]["unique_graphs"] <= 6 and 3 <= len(sizes)
    torch.manual_seed(6)
    for steps in (1, 3, 50):
        generate(method, denoiser, 4, 8, steps)
    assert counters["stats"]["unique_graphs"] <= 6 and not counters["graph_break"]
    assert sizes <= {1, 2, 4, 8, 16, 32}


def test_no_script_loads_the_compiler_before_it_is_needed():
    """torch._dynamo takes two CPU seconds to import."""
    code = "import sys, train, sample, evaluate, distill; print('torch._dynamo' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout == "False\n", run.stderr


@pytest.mark.parametrize("words, mode", [
    ([], ""), (["--compile"], "default"), (["--compile", "--seed", "3"], "default"),
    (["--compile=True"], "default"), (["--compile", "reduce-overhead"], "reduce-overhead"),
    (["--no-compile"], ""), (["--compile=False"], "")], ids=str)
def test_the_flag_stands_alone_or_names_a_mode(words, mode):
    assert parse(train.Config, words)[0].compile == mode
    assert parse(sample.Config, words)[0].compile == mode


def test_a_mode_that_does_not_exist_is_one_line(capsys):
    with pytest.raises(SystemExit):
        parse(train.Config, ["--compile", "fast"])
    said = capsys.readouterr().err
    assert "--compile 'fast' is not one of default, reduce-overhead, max-autotune" in said


def test_a_compiler_that_is_not_there_is_one_line(capsys):
    class Sine(torch.nn.Module):
        def forward(self, x):
            return x.sin() + 1  # (B, L)

    with torch._inductor.config.patch({"cpp.cxx": (None, "none")}):
        with pytest.raises(SystemExit) as end, one_line_errors(sample.Config):
            compile_network(Sine(), "default")(torch.ones(2, 3))
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1
    assert "--compile does not work here (InvalidCxxCompiler: " in said and "leave it out" in said


@pytest.mark.parametrize("name", ["ar", "pgm", "bd3lm", "oracle"])
def test_networks_whose_calls_have_no_fixed_shape_are_not_compiled(name):
    method = make_method("mdlm" if name == "oracle" else name, 5)
    denoiser = (lambda z, t, at: None) if name == "oracle" else network(method)
    model = SimpleNamespace(denoiser=denoiser, method=method, config=SimpleNamespace(method=name))
    with pytest.raises(UserError, match="--compile .*: leave it out"):
        compile_for_sampling(SimpleNamespace(compile="default"), model)
    assert compile_for_sampling(SimpleNamespace(compile=""), model) is denoiser


def test_samplers_with_a_cache_are_not_compiled():
    config = configure(sample.Config, compile="default", sampler="semi-ar", cache="dual")
    model = SimpleNamespace(method=make_method("mdlm", 5), config=SimpleNamespace(block_size=8))
    with pytest.raises(UserError, match="leave out --cache"):
        writer_of(config, model, None, torch.zeros(8, dtype=torch.bool))
