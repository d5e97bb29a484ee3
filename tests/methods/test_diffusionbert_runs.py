"""Runs of diffusionbert: what it counts in the training text, and what is said without a bound."""
import numpy
import pytest
import torch
from evaluations import results, run
from runs import cache, elsewhere, fit  # noqa: F401

from checkpoints.load import load_model
from data import load_data
from flags import UserError
from runtime import progress
from runtime.progress import print_summary

SHORT = "--out_dir", "out", "--max_texts", 8, "--num_samples", 2, "--draws", 1, "--steps", 2


def test_counts_come_from_the_training_text_and_stay_with_the_checkpoint(capsys):
    state = fit("out", method="diffusionbert", spindle=-0.2)
    data = load_data("toy", 8)
    counts = numpy.bincount(data.ids("train"), minlength=data.encoding.n_vocab)
    assert state["counts"].tolist() == counts.tolist()
    method = load_model("out").method
    assert torch.equal(method.counts, state["counts"]) and method.spindle == -0.2
    found = results(capsys, *SHORT)
    assert "gap" in found and found["method"] == "diffusionbert"


def test_without_a_bound_scripts_print_the_loss_and_say_why(capsys, monkeypatch):
    monkeypatch.setattr(progress, "print_summary", print_summary)
    monkeypatch.setattr(progress, "SUMMARY_TEXTS", 8)
    fit("out", method="diffusionbert", rank_by="text")
    said = capsys.readouterr().out
    assert "loss, no bound  train " in said and "equally likely" not in said
    assert "\nno bound on -log p: the schedule of a token depends on" in said
    assert not [word for word in ("perplexity", "exact entropy", "bits/") if word in said]
    run(*SHORT)
    said = capsys.readouterr().out
    assert "diffusionbert, step 2: loss on held-out text" in said and "at most" not in said
    assert "no bound on -log p: the schedule" in said and "exact entropy" not in said
    found = results(capsys, *SHORT)
    assert "loss_per_token" in found and not {"nats_per_token", "perplexity", "gap"} & found.keys()
    for option in ("--against", "--zero_shot", "--lambada", "--choices"):
        with pytest.raises(UserError, match=f"^{option} compares likelihoods, and diffusionbert"):
            run(*SHORT, option, "out")
    with pytest.raises(UserError, match="has no exact denoiser: the schedule of a token"):
        run("--oracle", "diffusionbert", "--rank_by", "text")
