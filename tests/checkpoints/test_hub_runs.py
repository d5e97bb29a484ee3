"""
Published models in the scripts: a tiny one of each kind is sampled from, evaluated, and trained on.
"""
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import evaluate
import sample
import train
from checkpoints import hub
from checkpoints.build import build_method, build_network
from checkpoints.load import initial_weights, load_model, read_state
from checkpoints.tensor_layouts import LAYOUTS, published_name, write_safetensors
from data import load_data
from data.tokenizer import chars
from evaluation.held_out import texts_of, zero_shot_figures
from flags import UserError, configure, parse
from runs import TINY, cache, complaint, elsewhere, fit, metrics  # noqa: F401
from samplers.generate import prepend_bos

LETTERS = "\n abcdefghijklmnopqrstuvwxyz."
NAMES = {"mdlm": "kuleshov-group/mdlm-owt", "sedd": "louaaron/sedd-small",
         "udlm": "kuleshov-group/udlm-lm1b", "duo": "s-sahoo/duo",
         "bd3lm": "kuleshov-group/bd3lm-owt-block_size4", "radd": "JingyangOu/radd-t-dce",
         "gidd": "dvruette/gidd-small-p_unif-0.1", "pgm": "jdeschena/pgm@pgm_8_8"}


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Writes a small file of random weights over letters, in the layout of a method's public code.
    -> its NAME=PATH"""
    monkeypatch.setattr(hub, "encoding_of", lambda tokens, source: chars(LETTERS))
    Path("text.txt").write_text("the cat saw a dog. the dog ran.\n" * 40)

    def write(kind):
        name, path = NAMES[kind], tmp_path / f"{kind}.safetensors"
        row = hub.find_row(name)
        first = {"first": 0} if "first" in row.more else {}
        row = replace(row, size=(2, 2, 16), length=8, more={**row.more, "cond_dim": 8, **first})
        monkeypatch.setitem(hub.PUBLISHED, name, row)
        config = SimpleNamespace(**hub.config_of(row))
        torch.manual_seed(0)
        method = build_method(config, chars(LETTERS))
        layout, state = LAYOUTS[method.public_layout], build_network(config, method).state_dict()
        tensors = {f"backbone.{published_name(key, layout.rules)}": 0.3 * torch.randn(a.shape)
                   for key, a in state.items() if len(a)}
        with open(path, "wb") as file:
            write_safetensors(file, tensors)
        return f"{name}={path}"
    return write


def run(module, capsys, *argv):
    capsys.readouterr()
    module.main(*parse(module.Config, list(argv)))
    return capsys.readouterr()


@pytest.mark.parametrize("kind", NAMES)
def test_a_published_model_is_sampled_from_and_evaluated_by_its_name(kind, tiny, capsys):
    where = tiny(kind)
    argv = "--steps=4", "--json", "--num_samples=2", "--device=cpu"
    out = run(sample, capsys, "--init_from", where, *argv).out
    texts = [json.loads(line) for line in out.splitlines()]
    assert [len(text["ids"]) for text in texts] == [8, 8]
    assert all(i < len(LETTERS) for text in texts for i in text["ids"])
    assert all(text["text"][0] == "\n" for text in texts) or kind not in ("bd3lm", "pgm")
    few = "--max_texts=8", "--draws=2", "--num_samples=2", "--steps=2", "--device=cpu"
    out = run(evaluate, capsys, "--init_from", where, "--data=text.txt", "--json", *few).out
    figures = json.loads(out)
    assert figures["method"] == kind
    assert figures["nats_per_token"] > 0 and figures["standard_error"] > 0


def test_a_first_token_that_is_never_noised_is_not_scored(tiny):
    model = load_model(tiny("bd3lm"))
    data, cpu = load_data("text.txt", 8, model.encoding), torch.device("cpu")
    config = configure(evaluate.Config, max_texts=8)
    x, frozen, *_ = texts_of(model, data, config, cpu)
    assert torch.equal(frozen.nonzero()[:, 1], torch.zeros(len(x), dtype=torch.long))
    assert (model.method.nelbo(model.denoiser, x, frozen)[:, 0] == 0).all()
    figures = zero_shot_figures(model, "text.txt", config, cpu)
    assert figures["tokens"] == 7 * figures["texts"]
    prompt = torch.arange(8).expand(len(x), -1) < 2  # (n, 8)
    given, fixed = prepend_bos(model.method, x, prompt)
    assert torch.equal(given, x) and fixed.sum() == 2 * len(x)  # a prompt begins its text itself


def test_a_published_model_has_no_text_of_its_own(tiny, capsys):
    where = tiny("mdlm")
    error = complaint(evaluate, "--init_from", where, "--device=cpu", capsys=capsys)
    assert "give --data" in error
    for name in ("kuleshov-group/mdlm-own", "kuleshov-group/mdlm-own=x.ckpt"):
        error = complaint(sample, f"--init_from={name}", capsys=capsys)
        assert "did you mean" in error and "kuleshov-group/mdlm-owt?" in error


TUNE = {name: TINY[name] for name in ("batch_size", "max_iters", "eval_iters", "warmup_iters",
                                      "device", "dtype")}


def tune(where, out_dir="tuned", **flags):
    flags = {**TUNE, "data": "text.txt", "init_from": where, **flags}
    train.main(configure(train.Config, **{"out_dir": out_dir, **flags}), list(flags))
    return read_state(out_dir)


@pytest.mark.parametrize("kind", ["mdlm", "sedd", "duo", "radd", "gidd"])
def test_fine_tuning_keeps_network_tokens_method_and_length_of_the_model(kind, tiny):
    where = tiny(kind)
    before = read_state(where)
    state = tune(where, learning_rate=0.0, muon_lr=0.0, weight_decay=0.0)
    torch.testing.assert_close(state["model"], before["model"], rtol=0, atol=0)
    for name in ("method", "block_size", "cond_dim", "norm_bias", "time_input", "qk_norm"):
        assert state["config"][name] == before["config"][name]
    assert state["encoding"] == before["encoding"] and state["config"]["tokenizer"] == "model"
    assert 0 in metrics("tuned", "val_bound")  # the model knows something already: it is evaluated


def test_a_fine_tuned_model_is_resumed_sampled_from_and_evaluated_like_any_run(tiny, capsys):
    whole = tune(tiny("duo"), "whole", max_iters=4)
    tune(tiny("duo"), "halves", max_iters=4, eval_interval=2)
    assert read_state("halves")["step"] == 4
    state = fit("halves", init_from="resume", max_iters=6)
    assert state["step"] == 6
    assert whole["config"]["time_input"] == state["config"]["time_input"] == "sigma"
    assert any((state["model"][name] != a).any() for name, a in whole["model"].items())
    run(sample, capsys, "--out_dir=halves", "--steps=2", "--device=cpu")
    few = "--num_samples=0", "--max_texts=4", "--device=cpu"
    run(evaluate, capsys, "--out_dir=halves", *few)


def test_a_masked_model_becomes_one_of_blocks_by_fine_tuning(tiny):
    where = tiny("mdlm")
    config = tune(where, method="bd3lm", diffusion_block=2, max_iters=1)["config"]
    found = config["method"], config["time_input"], config["diffusion_block"]
    assert found == ("bd3lm", "none", 2)
    assert load_model("tuned").denoiser.noise_mlp is not None


@pytest.mark.parametrize("kind, flag, says", [
    ("mdlm", "--n_layer=3", "--n_layer 3 does not fit"),
    ("mdlm", "--qk_norm", "--qk_norm True does not fit"),
    ("duo", "--time_input=none", "--time_input none does not fit"),
    ("mdlm", "--tokenizer=bpe", "--tokenizer bpe does not fit"),
    ("mdlm", "--cond_dim=64", "--cond_dim 64 does not fit"),
    ("mdlm", "--method=udlm", "and udlm needs another"),
    ("sedd", "--norm_bias", "--norm_bias True does not fit"),
    ("pgm", "--seed=1", "needs a first token"), ("mdlm", "--data=toy", "other tokens than toy")])
def test_a_flag_that_does_not_fit_the_model_is_refused(kind, flag, says, tiny):
    argv = [f"--{name}={value}" for name, value in TUNE.items()]
    data = [] if flag.startswith("--data") else ["--data=text.txt"]
    argv = [f"--init_from={tiny(kind)}", *data, *argv, flag]
    with pytest.raises(UserError, match=says):
        train.main(*parse(train.Config, argv))


def test_masked_networks_with_adaptive_norms_or_with_norm_biases_are_trained_from_scratch():
    """--time_input none adds the layers for the time that the published networks have."""
    state = fit("time", time_input="none", norm_bias=True)
    assert "noise_mlp.0.weight" in state["model"] and "blocks.0.norm1.bias" in state["model"]
    model = load_model("time").denoiser
    z = torch.arange(8)[None]
    assert torch.equal(model(z, torch.tensor([[0.9]])), model(z, None))


OTHERS = [
    (dict(time_input="none"), "--time_input auto, not none"), (dict(n_head=4), "--n_head 2, not 4"),
    (dict(qk_norm=False), "--qk_norm True, not False"), (dict(n_embd=32), "--n_embd 16, not 32"),
    (dict(norm_bias=True), "--norm_bias False, not True"),
    (dict(method="udlm"), "a network of mdlm, and udlm needs another"),
    (dict(method="ar"), "predicts each token in its place, and ar predicts the next token"),
]


def test_a_run_starts_from_the_weights_of_the_same_network_alone():
    fit("plain", max_iters=1)
    encoding = load_model("plain").encoding
    for flags, says in OTHERS:
        with pytest.raises(UserError, match=says):
            initial_weights("plain", configure(train.Config, **{**TINY, **flags}), encoding)
    for flags in (dict(dropout=0.1), dict(cond_dim=4), dict(method="bd3lm")):
        weights = initial_weights("plain", configure(train.Config, **{**TINY, **flags}), encoding)
        assert all(torch.equal(a, weights[name]) for name, a in read_state("plain")["ema"].items())
    with pytest.raises(UserError, match="other tokens than toy"):
        initial_weights("plain", configure(train.Config, **TINY), chars(LETTERS))
