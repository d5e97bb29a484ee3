"""Published models in the scripts: a tiny one of each kind is sampled from, evaluated, and trained on."""
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import TINY, cache, complaint, elsewhere, fit, metrics  # noqa: F401

import checkpoint
import evaluate
import hub
import layouts
import sample
import train
from checkpoint import method_of, network
from data import BadInput
from data.tokenizer import chars
from flags import parse

LETTERS = "\n abcdefghijklmnopqrstuvwxyz."
NAMES = {"mdlm": "kuleshov-group/mdlm-owt", "sedd": "louaaron/sedd-small", "udlm": "kuleshov-group/udlm-lm1b",
         "duo": "s-sahoo/duo", "bd3lm": "kuleshov-group/bd3lm-owt-block_size4", "radd": "JingyangOu/radd-t-dce",
         "gidd": "dvruette/gidd-small-p_unif-0.1", "pgm": "jdeschena/pgm@pgm_8_8"}


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Writes a file of random weights as the public code of a method has them, small, of letters. -> its NAME=PATH"""
    monkeypatch.setattr(hub, "encoding_of", lambda tokens, source: chars(LETTERS))
    Path("text.txt").write_text("the cat saw a dog. the dog ran.\n" * 40)

    def made(kind):
        name = NAMES[kind]
        row = hub.find(name)
        first = {"first": 0} if "first" in row.more else {}
        row = replace(row, size=(2, 2, 16), length=8, more={**row.more, "cond_dim": 8, **first})
        monkeypatch.setitem(hub.TABLE, name, row)
        config = hub.SimpleNamespace(**hub.config_of(row))
        torch.manual_seed(0)
        state = network(config, method_of(config, chars(LETTERS))).state_dict()
        with open(tmp_path / f"{kind}.safetensors", "wb") as file:
            layouts.write_safetensors(file, {f"backbone.{layouts.published(key, kind == 'pgm')}":
                                             0.3 * torch.randn(a.shape) for key, a in state.items() if len(a)})
        return f"{name}={tmp_path / kind}.safetensors"
    return made


def ran(module, capsys, *argv):
    capsys.readouterr()
    module.main(parse(module.Config, list(argv))[0])
    return capsys.readouterr()


@pytest.mark.parametrize("kind", NAMES)
def test_a_published_model_is_sampled_from_and_evaluated_by_its_name(kind, tiny, capsys):
    where = tiny(kind)
    out = ran(sample, capsys, "--init_from", where, "--steps=4", "--json", "--num_samples=2", "--device=cpu").out
    texts = [json.loads(line) for line in out.splitlines()]
    assert [len(text["ids"]) for text in texts] == [8, 8] and all(i < len(LETTERS) for t in texts for i in t["ids"])
    assert all(text["text"][0] == "\n" for text in texts) or kind not in ("bd3lm", "pgm")
    few = ("--max_texts=8", "--draws=2", "--num_samples=2", "--steps=2", "--device=cpu")
    r = json.loads(ran(evaluate, capsys, "--init_from", where, "--data=text.txt", "--json", *few).out)
    assert r["method"] == kind and r["nats_per_token"] > 0 and r["standard_error"] > 0


def test_where_the_first_token_is_never_noise_it_is_not_scored(tiny):
    model = checkpoint.restore(tiny("bd3lm"))
    corpus = evaluate.text.load("text.txt", 8, model.encoding)
    config = evaluate.Config(max_texts=8)
    x, frozen, *_ = evaluate.held_out(model, corpus, config, torch.device("cpu"))
    assert torch.equal(frozen.nonzero()[:, 1], torch.zeros(len(x), dtype=torch.long))
    assert (model.method.nelbo(model.denoiser, x, frozen)[:, 0] == 0).all()
    zero = evaluate.zero_shot(model, "text.txt", config, torch.device("cpu"))
    assert zero["tokens"] == 7 * zero["texts"]
    given, fixed = sample.begun(model.method, x, torch.arange(8).expand(len(x), -1) < 2)
    assert torch.equal(given, x) and fixed.sum() == 2 * len(x)             # a prompt begins its text itself


def test_a_published_model_has_no_text_of_its_own(tiny, capsys):
    where = tiny("mdlm")
    assert "give --data" in complaint(evaluate, "--init_from", where, "--device=cpu", capsys=capsys)
    for name in ("kuleshov-group/mdlm-own", "kuleshov-group/mdlm-own=x.ckpt"):
        said = complaint(sample, f"--init_from={name}", capsys=capsys)
        assert "did you mean" in said and "kuleshov-group/mdlm-owt?" in said


TUNE = {name: TINY[name] for name in ("batch_size", "max_iters", "eval_iters", "warmup_iters", "device", "dtype")}


def tune(where, out_dir="tuned", **flags):
    flags = {**TUNE, "data": "text.txt", "init_from": where, **flags}
    train.main(train.Config(**{"out_dir": out_dir, **flags}), list(flags))
    return checkpoint.load(out_dir)


@pytest.mark.parametrize("kind", ["mdlm", "sedd", "duo", "radd", "gidd"])
def test_fine_tuning_takes_network_tokens_method_and_length_of_the_model(kind, tiny):
    where = tiny(kind)
    before = checkpoint.load(where)
    state = tune(where, learning_rate=0.0, muon_lr=0.0, weight_decay=0.0)
    torch.testing.assert_close(state["model"], before["model"], rtol=0, atol=0)
    of = lambda config: {name: config.get(name) for name in ("method", "block_size", "cond_dim", "norm_bias", "clock")}
    assert of(state["config"]) == of(before["config"]) and state["encoding"] == before["encoding"]
    assert not state["config"]["qk_norm"] and state["config"]["tokenizer"] == "model"
    assert 0 in metrics("tuned", "val_bound")                # it knows something already: that is measured


def test_a_fine_tuned_model_is_resumed_sampled_from_and_evaluated_like_any_run(tiny, capsys):
    whole = tune(tiny("duo"), "whole", max_iters=4)
    tune(tiny("duo"), "halves", max_iters=4, eval_interval=2)
    assert checkpoint.load("halves")["step"] == 4
    state = fit("halves", init_from="resume", max_iters=6)
    assert state["step"] == 6 and whole["config"]["clock"] == state["config"]["clock"] == "sigma"
    assert any((state["model"][name] != a).any() for name, a in whole["model"].items())
    ran(sample, capsys, "--out_dir=halves", "--steps=2", "--device=cpu")
    ran(evaluate, capsys, "--out_dir=halves", "--num_samples=0", "--max_texts=4", "--device=cpu")


def test_a_masked_model_becomes_one_of_blocks_by_fine_tuning(tiny):
    where = tiny("mdlm")
    config = tune(where, method="bd3lm", diffusion_block=2, max_iters=1)["config"]
    assert (config["method"], config["clock"], config["diffusion_block"]) == ("bd3lm", "none", 2)
    assert checkpoint.restore("tuned").denoiser.noise_mlp is not None


@pytest.mark.parametrize("kind, flag, says", [
    ("mdlm", "--n_layer=3", "--n_layer 3 does not fit"), ("mdlm", "--qk_norm", "--qk_norm True does not fit"),
    ("duo", "--clock=none", "--clock none does not fit"), ("mdlm", "--tokenizer=bpe", "--tokenizer bpe does not fit"),
    ("mdlm", "--cond_dim=64", "--cond_dim 64 does not fit"), ("mdlm", "--method=udlm", "and udlm needs another"),
    ("sedd", "--norm_bias", "--norm_bias True does not fit"), ("pgm", "--seed=1", "needs a first token"),
    ("mdlm", "--data=toy", "other tokens than toy")])
def test_a_flag_that_does_not_fit_the_model_is_refused(kind, flag, says, tiny):
    argv = [f"--{name}={value}" for name, value in TUNE.items()]
    with pytest.raises(BadInput, match=says):
        train.main(*parse(train.Config, [f"--init_from={tiny(kind)}", "--data=text.txt", *argv, flag]))


def test_networks_with_a_clock_or_with_biases_in_their_norms_are_trained_from_scratch_too(capsys):
    """--clock gives a masked model layers for the time, which is what the published ones have."""
    state = fit("clock", clock="none", norm_bias=True)
    assert "noise_mlp.0.weight" in state["model"] and "blocks.0.norm1.bias" in state["model"]
    model = checkpoint.restore("clock").denoiser
    z = torch.arange(8)[None]
    assert torch.equal(model(z, torch.tensor([[0.9]])), model(z, None))
    fit("plain")
    argv = [f"--{name}={value}" for name, value in {**TINY, "clock": "none", "init_from": "plain"}.items()]
    assert "--clock auto, not none" in complaint(train, "--out_dir=other", *argv, capsys=capsys)
