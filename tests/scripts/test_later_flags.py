"""Flags of a method that may change after training: scripts that use a run take them, too."""
import json

import pytest
import torch

import evaluate
import sample
from checkpoints.build import build_network
from checkpoints.load import load_chosen
from evaluations import results
from flags import change, configure, flags_of, load_row, parse
from methods import METHODS, make_method
from models import random_checkpoint
from runs import cache, elsewhere  # noqa: F401
from train import Config as TrainConfig

LATER = [(name, key) for name in METHODS for key, f in flags_of(load_row(METHODS, name)).items()
         if f.metadata["later"]]
CASES = [("diffusion_forcing", dict(slope=0.0)), ("diffusion_forcing", dict(path="trapezoid")),
         ("blockgen", dict(diffusion_block=2))]


def words(**flags):
    return [str(word) for name, value in flags.items() for word in (f"--{name}", value)]


@pytest.mark.parametrize("name, flags", CASES)
def test_evaluate_gives_the_figures_of_a_run_that_was_trained_with_the_value(name, flags, capsys):
    """And saves them under the flag, which a value of the run itself is not."""
    random_checkpoint("a", method=name)
    random_checkpoint("b", method=name, **flags)
    short = words(max_texts=20, draws=2, num_samples=4, steps=4)
    ours = results(capsys, "--out_dir", "a", *words(**flags), *short)
    assert ours["nats_per_token"] == results(capsys, "--out_dir", "b", *short)["nats_per_token"]
    assert ours["nats_per_token"] != results(capsys, "--out_dir", "a", *short)["nats_per_token"]
    saved = json.load(open("a/evaluation.json", encoding="utf-8"))
    shown = " ".join(words(**flags))
    assert [shown in key for key in saved] == [True, False]


def test_sample_takes_the_value_and_says_so(capsys):
    """A path of slope 0 writes all words at once, in as many calls as steps."""
    random_checkpoint("out", method="diffusion_forcing")
    rows = []
    for flags in (dict(slope=0.0), {}):
        argv = words(out_dir="out", steps=2, num_samples=1, device="cpu", **flags)
        capsys.readouterr()
        sample.main(*parse(sample.Config, [*argv, "--json"]))
        rows.append(json.loads(capsys.readouterr().out))
    assert rows[0]["slope"] == 0 and "slope" not in rows[1] and rows[0]["path"] == "pyramid"
    assert rows[0]["ids"] != rows[1]["ids"]


def test_other_models_of_the_page_have_it_if_they_can():
    random_checkpoint("out", method="blockgen")
    random_checkpoint("other", method="mdlm")
    config, given = parse(sample.Config, ["--out_dir", "out", "--diffusion_block", "2"])
    assert config.diffusion_block == 2 and "diffusion_block" in given
    for folder, block in (("out", 2), ("other", None)):
        model = load_chosen(change(config, out_dir=folder), torch.device("cpu"))
        assert model.method.block_length == block
    assert load_chosen(configure(sample.Config, out_dir="out"), "cpu").method.block_length == 4


@pytest.mark.parametrize("method, argv, says", [
    ("diffusion_forcing", "--context full", "--context belongs to --oracle diffusion_forcing"),
    ("mdlm", "--slope 1", "--slope belongs to --oracle diffusion_forcing"),
    ("diffusion_forcing", "--path spiral", "--path 'spiral' is not one of pyramid, trapezoid"),
    ("diffusion_forcing", "--slope -1", "--slope -1.0 must lie between 0 and 1000"),
    ("diffusion_forcing", "--slop 1", "there is no flag --slop (did you mean --slope?)"),
    (None, "--slope 1", "--slope belongs to --oracle diffusion_forcing")])
def test_what_was_trained_and_what_others_have_is_refused_in_one_line(method, argv, says, capsys):
    if method:
        random_checkpoint("out", method=method)
    with pytest.raises(SystemExit) as end:
        parse(evaluate.Config, ["--out_dir", "out", *argv.split()])
    error = capsys.readouterr().err
    assert end.value.code == 2 and says in error and error.count("\n") == 1


def test_a_value_that_does_not_fit_the_run_is_refused():
    random_checkpoint("out", method="blockgen")
    config, _ = parse(evaluate.Config, ["--out_dir", "out", "--diffusion_block", "3"])
    with pytest.raises(ValueError, match="--block_size 8 must be a multiple of --diffusion_block"):
        load_chosen(config, torch.device("cpu"))


def test_the_help_of_a_run_shows_them(capsys):
    random_checkpoint("out", method="diffusion_forcing")
    with pytest.raises(SystemExit):
        parse(sample.Config, ["--out_dir", "out", "--slope", "0.3", "--help"])
    shown = capsys.readouterr().out
    assert "Method of the trained model:" in shown and "--path" in shown


@pytest.mark.parametrize("name, key", LATER)
def test_no_network_depends_on_such_a_flag(name, key):
    """Nor its attention, which is part of the network."""
    f = flags_of(load_row(METHODS, name))[key]
    other = f.metadata["choices"][-1] if f.metadata["choices"] else type(f.default)(0.5) or 2
    networks = []
    for value in (f.default, other):
        config = configure(TrainConfig, method=name, n_layer=1, n_embd=8, n_head=2, **{key: value})
        torch.manual_seed(0)
        networks.append(build_network(config, make_method(name, 7, **{key: value}), 0))
    a, b = (network.state_dict() for network in networks)
    assert a.keys() == b.keys() and all(torch.equal(a[part], b[part]) for part in a)
    assert networks[0].mask_mod is networks[1].mask_mod and not f.metadata["fixed"]
