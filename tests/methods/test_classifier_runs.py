"""A classifier in the scripts: trained, evaluated, resumed; and it guides models without labels."""
import json

import pytest
import torch
from kinds import networks, scripts_differ
from models import random_checkpoint

import evaluate
import sample
import train
from checkpoints.load import load_model
from diffusion import Absorbing, Hybrid, Uniform
from evaluation.held_out import TIMES
from flags import configure, load_row
from methods import METHODS
from methods.left_to_right import new_cache
from methods.md4 import Scheduled
from runs import cache, complaint, elsewhere, fit  # noqa: F401
from samplers.guidance import CFG


@pytest.fixture(scope="module")
def labeled(tmp_path_factory):
    """A folder with a checkpoint with labels of each method, two without, and a classifier."""
    root = tmp_path_factory.mktemp("labeled")
    for method in METHODS:
        random_checkpoint(root / method, method=method, labels=True)
    random_checkpoint(root / "judge", method="classifier", labels=True)
    for method in ("mdlm", "udlm"):
        random_checkpoint(root / f"plain-{method}", method=method)
    return root


def run(script, **flags):
    script.main(configure(script.Config, device="cpu", **flags))


@pytest.mark.parametrize("noise, process", [
    ("mdlm", Absorbing), ("md4", Scheduled), ("udlm", Uniform), ("gidd", Hybrid)])
def test_a_classifier_is_trained_evaluated_resumed_and_guides(noise, process, capsys):
    more = dict(p_uniform=0.3) if noise == "gidd" else {}
    flags = dict(method="classifier", noise_of=noise, **more)
    state = fit("judge", max_iters=3, eval_interval=2, **flags)
    printed = capsys.readouterr().out
    assert "4 classes are equally likely" in printed and "1.386" in printed
    assert "nats/text" in printed and "bits" not in printed
    assert state["classes"] == ["farm", "sea", "kitchen", "school"]
    assert state["config"]["label_dropout"] == 0
    assert isinstance(load_model("judge").method.process, process)
    run(evaluate, out_dir="judge", max_texts=40, json=True)
    rows = json.loads(capsys.readouterr().out)
    assert [row["t"] for row in rows] == list(TIMES) and rows[0]["exact_nats"] < rows[0]["nats"]
    fit("model", method=noise, **more)
    guided = dict(out_dir="model", label="sea", guidance=2.0, classifier="judge", steps=2)
    for order in ("first", "exact"):
        run(sample, **guided, classifier_order=order, num_samples=2)
    run(evaluate, **guided, max_texts=60, num_samples=2, draws=1)
    assert "exact p(class | text)" in capsys.readouterr().out
    fit("judge", init_from="resume", max_iters=5)
    assert load_model("judge").step == 5


def test_the_summary_of_a_run_compares_it_with_the_exact_posterior(tmp_path, monkeypatch, capsys):
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    fit("judge", method="classifier")
    printed = capsys.readouterr().out
    assert "exact" in printed and printed.count("+-") > 20


def test_a_classifier_is_evaluated_on_the_split_that_is_asked_for(labeled, capsys):
    nats = []
    for split in ("val", "test"):
        run(evaluate, out_dir=str(labeled / "judge"), max_texts=20, split=split, json=True)
        nats.append(json.loads(capsys.readouterr().out.splitlines()[-1])[0]["exact_nats"])
    assert nats[0] != nats[1]


@pytest.mark.parametrize("method", ["radd", "pgm", "ar"])
def test_a_classifier_of_masks_guides_what_has_masks_or_a_beginning(method, labeled, capsys):
    for extra in (dict(), dict(candidates=3)):
        run(sample, out_dir=str(labeled / method), label="2", guidance=2.0, steps=2,
            classifier=str(labeled / "judge"), **extra)
    assert len(capsys.readouterr().out) > 100


MODELS = [name for name in METHODS if not load_row(METHODS, name).classifies]


@pytest.mark.parametrize("method", scripts_differ(MODELS, by=networks))
def test_networks_with_labels_are_sampled_and_evaluated_at_every_strength(method, labeled, capsys):
    out = str(labeled / method)
    for gamma in (0.0, 2.0):
        run(sample, out_dir=out, label="kitchen", guidance=gamma, steps=2, json=True, num_samples=1)
    lines = capsys.readouterr().out.splitlines()
    found = [json.loads(line) for line in lines if line.startswith('{"text')]
    assert [line["guidance"] for line in found] == [0, 2] and found[0]["label"] == "kitchen"
    run(evaluate, out_dir=out, label="sea", guidance=2.0, max_texts=30, num_samples=2, draws=1,
        steps=2)
    printed = capsys.readouterr().out
    bounded = load_row(METHODS, method).bounded
    assert ("given the class" in printed and "the model is" in printed) == bounded


@pytest.mark.parametrize("method, sampler", [
    *[("mdlm", sampler) for sampler in ("first-hitting", "confidence", "psi", "semi-ar",
                                        "remdm-conf", "top-k")],
    ("pgm", "first-hitting"), ("bd3lm", "confidence"), ("md4", "ancestral")])
def test_every_sampler_of_masks_can_be_guided(method, sampler, labeled, capsys):
    cached = dict(cache="dual", decode_block=4) if sampler == "semi-ar" else {}
    run(sample, out_dir=str(labeled / method), label="1", guidance=3.0, sampler=sampler, steps=4,
        **cached)
    assert capsys.readouterr().out.count("text") >= 3


@pytest.mark.parametrize("method", ["ar", "bd3lm"])
@pytest.mark.parametrize("end", [None, 7])
def test_two_rows_of_a_cache_for_each_text_give_what_rereading_gives(method, end, labeled):
    """Guided samples with keys and values kept, and without; also if texts end and leave."""
    model = load_model(labeled / method)
    samples = []
    for keeps in (True, False):
        guided = CFG(model.denoiser, torch.tensor([1]), 4, 2.0)
        guided.supports_cache = guided.supports_cache * keeps
        made = new_cache(guided, 8, 1)
        assert made is None or made.copies == 2
        torch.manual_seed(0)
        z = model.method.prior((200, 8))
        nothing = torch.zeros_like(z, dtype=torch.bool)
        *_, z = model.method.sample(guided, z, nothing, 4, end=end)
        samples.append(z)
    assert torch.equal(*samples) and (end is None or (samples[0][:, -1] == end).any())


@pytest.mark.parametrize("argv, says", [
    (["--label", "farm"], "this model has no classes; train one with --labels"),
    (["--label", "frm", "--oracle", "mdlm"], "there is no class 'frm' (did you mean farm?)"),
    (["--label", "4", "--oracle", "mdlm"], "or its number, 0 to 3"),
    (["--guidance", "2", "--oracle", "mdlm"], "--guidance requires --label"),
    (["--classifier", "exact"], "needs a --label"),
    (["--guidance=-1"], "between"),
    (["--label", "farm", "--classifier", "nowhere"], "there is no checkpoint nowhere/ckpt.pt"),
    (["--label", "farm", "--classifier", "MDLM"], "must be a run of train.py --method classifier"),
    (["--label", "farm", "--classifier", "judge", "--out_dir", "UDLM"],
     "reads the noise of mdlm, which is not that"),
    (["--label", "farm", "--classifier", "exact", "--sampler", "psi"], "leave out --sampler"),
    (["--label", "farm", "--guidance", "2", "--oracle", "udlm", "--sampler", "psi"],
     "leave out --sampler and --corrector"),
    (["--label", "farm", "--guidance", "2", "--oracle", "udlm", "--corrector", "greedy"],
     "leave out --sampler and --corrector"),
    (["--label", "farm", "--classifier", "exact", "--oracle", "bd3lm"], "--labels"),
    (["--label", "farm", "--classifier", "exact", "--oracle", "genmd4"], "--labels"),
    (["--out_dir", "judge"], "judge writes no text: use it as --label"),
])
def test_what_cannot_be_guided_is_one_line(argv, says, labeled, capsys):
    known = {"judge": labeled / "judge", "MDLM": labeled / "plain-mdlm",
             "UDLM": labeled / "plain-udlm"}
    argv = [str(known.get(word, word)) for word in argv]
    for module in (sample, evaluate):
        if module is evaluate and "writes no text" in says:  # it evaluates classifiers
            continue
        model = [] if "--oracle" in argv else ["--out_dir", known["MDLM"]]
        assert says in complaint(module, *model, *argv, capsys=capsys)


def test_a_classifier_is_no_start_and_needs_classes(labeled, tmp_path, capsys):
    judge = labeled / "judge"
    small = "--data toy --n_layer 1 --n_embd 16 --n_head 2 --block_size 8 --cond_dim 8".split()
    assert "needs another" in complaint(train, *small, "--init_from", judge, capsys=capsys)
    (tmp_path / "text.txt").write_text("some text " * 1000)
    this = ["--method", "classifier"]
    error = complaint(train, *this, "--data", tmp_path / "text.txt", capsys=capsys)
    assert "has none" in error
    fit("judge", method="classifier")
    resumed = "--out_dir judge --init_from resume --noise_of udlm".split()
    assert "--noise_of udlm does not fit" in complaint(train, *this, *resumed, capsys=capsys)
