"""--recurrent: blocks with a GRU from either side in the place of attention."""
import json
import signal

import pytest
import torch
from evaluations import results
from models import random_checkpoint
from networks import randomize
from runs import TINY, assert_same, cache, elsewhere, fit, interrupt  # noqa: F401

import sample
from checkpoints.build import build_method, build_network
from checkpoints.export import layout_name
from checkpoints.load import load_model
from data import load_data
from flags import UserError, configure
from methods import EVERY_METHOD, make_method
from methods.recurrent import RecurrentBlock
from runtime.optim import make_optimizers
from train import Config

REFUSE = ("ar pgm bd3lm blockgen maria diffusion_forcing sigma_gpt eso_lm audm ld4lg "
          "latent_planner lcm dglm energy diffugpt ar2diff classifier tree_diffusion").split()
DATA = {"tree_diffusion": dict(data="arithmetic", block_size=13),
        "diffuser": dict(data="repair", block_size=16),
        "flexmdm": dict(data="sentences", block_size=20),
        "ilm": dict(data="sentences", block_size=20)}


def built(name="mdlm", recurrent=1, **flags):
    """-> flags, data, method and network of --recurrent"""
    config = configure(Config, **{**TINY, "n_layer": 2, **DATA.get(name, {}), **flags},
                       method=name, recurrent=recurrent)
    data = load_data(config.data, config.block_size)
    method = build_method(config, data.encoding)
    method.on_data(data)
    return config, data, method, build_network(config, method)


def sweep(gru, h, suffix):
    """(3.14) word by word from the left. h (L, D) -> (L, D)"""
    A, B = (getattr(gru, f"weight_{part}_l0{suffix}") for part in ("ih", "hh"))  # (3 D, D) each
    a, b = (getattr(gru, f"bias_{part}_l0{suffix}") for part in ("ih", "hh"))  # (3 D,) each
    f, found = torch.zeros_like(h[0]), []  # (D,)
    for x in h:
        (r1, u1, n1), (r2, u2, n2) = (A @ x + a).chunk(3), (B @ f + b).chunk(3)  # (D,) each
        r, u = torch.sigmoid(r1 + r2), torch.sigmoid(u1 + u2)  # (D,) each
        f = (1 - u) * torch.tanh(n1 + r * n2) + u * f  # (D,)
        found.append(f)
    return torch.stack(found)


def test_a_block_is_the_two_sweeps_of_the_equations():
    block = randomize(RecurrentBlock(8, 2, 0, 0.0, True)).double()
    h = torch.randn(2, 5, 8, dtype=torch.double)  # (B, L, D)
    for text, found in zip(h, block.attend(h, None, None, None)):
        left, right = sweep(block.gru, text, ""), sweep(block.gru, text.flip(0), "_reverse").flip(0)
        torch.testing.assert_close(found, torch.cat([left, right], -1) @ block.out.weight.T)


def test_each_word_reads_all_others_and_selected_rows_are_those_of_all():
    *_, network = built(n_layer=1)
    randomize(network)
    z, at = torch.arange(8)[None].repeat(8, 1), torch.rand(8, 8) < 0.4  # (B, L) each
    z += 20 * torch.eye(8, dtype=torch.long)  # text l has another word at l
    there = network(torch.arange(8)[None])  # (1, L, V)
    logits = network(z)  # (B, L, V)
    assert ((logits - there).abs().amax(-1) > 1e-4).all()
    torch.testing.assert_close(network(z, at=at), logits[at])


def test_fresh_blocks_are_the_identity_and_only_the_last_ones_are_recurrent():
    *_, network = built(n_layer=3, recurrent=2)
    assert [isinstance(block, RecurrentBlock) for block in network.blocks] == [False, True, True]
    h = torch.randn(2, 5, 16)
    assert torch.equal(network.blocks[2](h, None, None, None), h)
    assert not network.supports_cache


@pytest.mark.parametrize("name", EVERY_METHOD)
def test_every_method_trains_both_sweeps_or_says_that_it_cannot(name):
    if name in REFUSE:
        with pytest.raises(UserError, match=f"--recurrent .*{name} has a pattern or a network of"):
            built(name)
        return
    _, data, method, network = built(name)
    randomize(network, std=0.1)
    torch.manual_seed(0)
    x, frozen, _ = data.examples("train", 8, torch.Generator().manual_seed(0))
    method.loss(network.train(), x, frozen).sum().backward()
    moved = [p.grad.abs().sum() > 0 for p in network.blocks[1].gru.parameters()]
    assert len(moved) == 8 and all(moved)


def test_muon_moves_the_matrices_of_the_sweeps():
    config, *_, network = built()
    adamw, muon = make_optimizers(network, config)
    shapes = [p.shape for group in muon.param_groups for p in group["params"]]
    assert sum(shape == (48, 16) for shape in shapes) == 5  # four of the GRU, one qkv


@pytest.mark.parametrize("method", ["mdlm", "udlm"])
def test_a_run_goes_on_bit_by_bit_is_sampled_and_evaluated(method, monkeypatch, capsys):
    flags = dict(method=method, recurrent=1, n_layer=2, max_iters=4, eval_interval=2, dropout=0.1,
                 recompute=True)
    whole = fit("whole", **flags)
    with monkeypatch.context() as patch:
        interrupt(patch, 2, signal.SIGTERM)
        assert fit("parts", **flags)["step"] == 3
    assert_same(whole, fit("parts", init_from="resume"))
    assert isinstance(load_model("parts").denoiser.blocks[1], RecurrentBlock)
    capsys.readouterr()
    sample.main(configure(sample.Config, out_dir="parts", device="cpu", num_samples=2, steps=2,
                          prompt="the _ cat", json=True), [])
    texts = [json.loads(line)["text"].split() for line in capsys.readouterr().out.splitlines()]
    assert len(texts) == 2 and all(words[0] == "the" and words[2] == "cat" for words in texts)
    found = results(capsys, "--out_dir", "parts", "--max_texts", 8, "--draws", 1, "--device", "cpu",
                    "--num_samples", 2, "--steps", 2)
    assert found["nats_per_token"] > 0


def test_what_does_not_fit_is_refused_in_one_line(tmp_path):
    sides = dict(sides="encoder", data="reverse", block_size=18)
    for flags, words in [(dict(n_layer=1, recurrent=2), "--recurrent 2 is more than --n_layer 1"),
                         (sides, "alike: leave out --sides")]:
        with pytest.raises(UserError, match=words):
            built(**flags)
    block = RecurrentBlock(8, 2, 0, 0.0, True)
    for pattern, remember in [(lambda *where: True, None), (None, lambda k, v: (k, v))]:
        with pytest.raises(UserError, match="--recurrent reads whole texts"):
            block.attend(torch.zeros(1, 3, 8), None, pattern, remember)
    model = load_model(random_checkpoint(tmp_path, recurrent=1))
    config = dict(vars(model.config), qk_norm=False)
    with pytest.raises(UserError, match="--recurrent 1, and the public code of"):
        layout_name(config, make_method("mdlm", 5), "it")
