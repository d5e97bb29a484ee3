"""The weights that come with the project: how they were made, what they give, who reads them."""
import hashlib
import json
import re
from types import SimpleNamespace

import pytest
import torch

import evaluate
import sample
import train
from checkpoints import load
from checkpoints.load import SHIPPED, find_shipped, flags_later, load_chosen
from checkpoints.tensor_layouts import read_safetensors
from data import docstrings, load_data
from evaluation.likelihood import estimate_bound
from evaluation.report import evaluation_path
from experiments import weights
from flags import UserError, configure
from runs import ROOT, cache, commanded, elsewhere, fit  # noqa: F401

NAMES = list(weights.RUNS)
README = (ROOT / "README.md").read_text("utf-8")


def about(name):
    return json.loads((SHIPPED / name / "config.json").read_text("utf-8"))


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_small_in_bfloat16_and_say_how_they_were_made(name):
    made, raw = about(name)["made"], (SHIPPED / name / "model.safetensors").read_bytes()
    assert made["sha256"] == hashlib.sha256(raw).hexdigest()
    command = made["command"].split()
    assert command[:2] == ["python", "train.py"] and "--seed" in command
    config, _ = commanded(train, *command[2:])
    assert all(getattr(config, key) == value for key, value in weights.RUNS[name].items())
    tensors = read_safetensors(SHIPPED / name / "model.safetensors")
    assert {a.dtype for a in tensors.values()} == {torch.bfloat16}
    assert not re.search(r"/tmp|/home|/root|/work", json.dumps(about(name)))


def test_all_weights_together_are_at_most_four_megabytes():
    sizes = [path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()]
    assert 0 < sum(sizes) <= 4_000_000


def figure(unit):
    """The figure of README for weights/ and its error: "2.09 +- 0.02 bits/byte"."""
    row, = re.findall(r"^.*`weights/`.*$", README, re.M)
    return map(float, re.search(rf"(\d\.\d+) \+- (\d\.\d+) {unit}", row).groups())


@pytest.mark.parametrize("name, bits", [("toy-mdlm", False), ("python-mdlm", True)])
def test_they_have_the_bound_that_readme_prints(name, bits, monkeypatch, tmp_path):
    """One draw, and the docstrings of every eighth file: within four standard errors, of these and
    of README's. Those of another Python differ by less."""
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path))  # a part is no corpus for others
    every = docstrings.sources
    monkeypatch.setattr(docstrings, "sources", lambda *places: every(*places)[::8])
    model = load.load_model(SHIPPED / name)
    data = load_data(model.config.data, model.config.block_size, model.encoding)
    x = data.windows("val", 300)  # (n, L)
    bound, error = estimate_bound(model.method, model.denoiser, x, 1, 100,
                                  independent=data.independent_texts)
    scale = 1 / torch.tensor(2.0).log().item() / data.bytes_per_token if bits else 1
    printed, its_error = figure("bits/byte" if bits else "nats/word")
    assert abs(bound * scale - printed) < 4 * (error * scale + its_error)
    assert error * scale < 0.2


def test_they_stand_in_for_a_run_that_is_not_there_and_only_then(tmp_path):
    shipped = find_shipped("out/python-mdlm")
    assert (tmp_path / shipped).resolve() == SHIPPED / "python-mdlm"
    assert not find_shipped("out/python-udlm") and not find_shipped("elsewhere/python-mdlm")
    (tmp_path / "out" / "python-mdlm").mkdir(parents=True)
    assert not find_shipped("out/python-mdlm")


def test_sampling_says_what_it_reads(capsys):
    config = configure(sample.Config, num_samples=1, device="cpu", steps=2)
    sample.main(config)
    out, err = capsys.readouterr()
    assert "text 1" in out and err.startswith("there is no run in out/python-mdlm yet, so this is ")
    assert "train.py trains your own" in err
    given, _ = commanded(sample, "--out_dir", "out/toy-mdlm", "--length", "4")
    assert load_chosen(given, torch.device("cpu")).config.data == "toy"


def test_a_run_of_your_own_comes_first_and_resuming_needs_one(tmp_path, capsys):
    fit("out/toy-mdlm")
    model = load_chosen(configure(sample.Config, out_dir="out/toy-mdlm"), torch.device("cpu"))
    assert model.step == 2 and not capsys.readouterr().err
    with pytest.raises(UserError, match="there is no checkpoint out/python-mdlm/ckpt.pt"):
        load.read_state("out/python-mdlm")


def test_figures_of_shipped_weights_do_not_land_among_them():
    folder = find_shipped("out/toy-mdlm")
    path = evaluation_path(SimpleNamespace(init_from=folder, out_dir="out/toy-mdlm"))
    assert str(path) == "out/toy-mdlm/evaluation.json"
    assert flags_later({"oracle": "", "init_from": "", "out_dir": "out/toy-mdlm"}) == {}
    assert evaluate.Config.out_dir == sample.Config.out_dir


def test_the_script_stores_what_a_run_has_learned(tmp_path, monkeypatch, capsys):
    tiny = dict(weights.RUNS["toy-mdlm"], n_layer=1, n_embd=16, n_head=2, block_size=8,
                batch_size=2, max_iters=2, warmup_iters=0, eval_iters=1)
    monkeypatch.setattr(weights, "RUNS", {"toy-mdlm": tiny})
    weights.main(configure(weights.Config, out_dir="runs", to="stored"))
    model, run = load.load_model("stored/toy-mdlm"), load.load_model("runs/toy-mdlm")
    ours, theirs = (m.denoiser.state_dict() for m in (run, model))
    assert all(torch.equal(a.bfloat16().float(), theirs[key]) for key, a in ours.items())
    made = json.loads((tmp_path / "stored/toy-mdlm/config.json").read_text("utf-8"))
    assert made["palimpsest"]["config"]["out_dir"] == "out/toy-mdlm"
    assert "stored/toy-mdlm: 0.0" in capsys.readouterr().out
