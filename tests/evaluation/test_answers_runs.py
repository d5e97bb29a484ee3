"""Tasks through the scripts: the bound beside the entropy, several answers, a cached source."""
import json
import re

import pytest
import torch
from evaluations import results, run
from models import random_checkpoint

import sample
from checkpoints.load import load_model
from data import load_data
from evaluation import sample_quality
from evaluation.errors import mean_error
from evaluation.likelihood import nats_of
from flags import configure
from runs import fit
from samplers import generate

TASK = load_data("describe", 0)
FEW = ("--num_samples", 6, "--max_texts", 20, "--draws", 2, "--device", "cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run by sides of random weights."""
    where = tmp_path_factory.mktemp("runs") / "describe"
    return random_checkpoint(where, data="describe", block_size=23, sides="encoder", method="udlm")


def test_the_bound_stands_beside_the_entropy_of_the_same_answers(folder, capsys):
    found = results(capsys, "--out_dir", folder, *FEW)
    model, (x, frozen, _) = load_model(folder), TASK.example_windows("val", 20)
    nats, scored = nats_of(model.method, model.denoiser, x, 2, 64, frozen)  # (n,) each
    exact = TASK.answer_nats(x)  # (n,)
    assert (scored == TASK.target).all()
    for (what, error), values in ((("entropy", "entropy_error"), exact),
                                  (("gap", "gap_error"), nats - exact)):
        assert [found[what], found[error]] == pytest.approx(
            [*mean_error(values / TASK.target, True)]), what
    assert found["gap"] == pytest.approx(found["nats_per_token"] - found["entropy"])
    run("--out_dir", folder, *FEW)
    printed = capsys.readouterr().out
    assert "exact entropy" in printed and "network calls for each text" in printed
    assert printed.index("slots right") < printed.index("BLEU-4 with the reference")


def test_training_ends_with_the_bound_beside_the_exact_figure(tmp_path, capsys):
    fit(tmp_path / "run", data="sort", block_size=18, sides="encoder")
    printed = capsys.readouterr().out
    assert re.search(r"exact -log p of the answers +-?0\.000", printed)


def test_answers_belong_to_the_question_that_was_asked(folder, capsys, monkeypatch):
    """A model that answers with the references."""
    monkeypatch.setattr(sample_quality, "generate", lambda *of: of[-2])
    found = results(capsys, "--out_dir", folder, *FEW, "--answers", 3)
    rows = {what: pair for what, *pair in found["samples"]}
    assert found["num_samples"] == 6
    for what in ("solved", "exact match with the reference", "slots right",
                 "MBR-3 by equality: exact match with the reference"):
        assert rows[what] == [1, 0], what


def test_a_run_by_sides_writes_the_same_with_and_without_its_cache(folder, capsys, monkeypatch):
    texts = []
    for cache_source in (generate.cache_source, lambda denoiser, *more: denoiser):
        monkeypatch.setattr(generate, "cache_source", cache_source)
        config = configure(sample.Config, out_dir=str(folder), num_samples=3, steps=4, json=True,
                           prompt="name alto food thai", device="cpu")
        sample.main(config, [])
        texts.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    one, other = ([text["ids"] for text in found] for found in texts)
    assert one == other and texts[0][0]["network_calls"] == texts[1][0]["network_calls"] + 1
    for row in one:
        assert TASK.source_of(row) == "name alto food thai" and len(row) == TASK.length
    assert torch.tensor(one)[:, :TASK.source].unique(dim=0).shape[0] == 1
