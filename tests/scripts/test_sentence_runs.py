"""Texts that end, through the scripts: trained, filled in, watched, evaluated per text and word.
"""
import json

import pytest
import torch

import evaluate
import sample
from data.sentences import SentenceCorpus
from evaluation.held_out import HeldOut, bound_figures
from flags import configure
from methods import make_method
from oracle import exact
from runs import cache, complaint, elsewhere, fit  # noqa: F401

SIZE = dict(data="sentences", block_size=20, batch_size=8)


def texts(capsys, **flags):
    capsys.readouterr()
    flags = {**dict(num_samples=3, steps=4, json=True, device="cpu", out_dir="out"), **flags}
    sample.main(configure(sample.Config, **flags), [])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("method", ["flexmdm", "ilm", "mdlm"])
def test_a_run_on_sentences_is_sampled_and_evaluated_per_text_and_per_word(method, capsys):
    fit("out", method=method, **SIZE)
    found = texts(capsys)
    if method != "mdlm":
        assert not any("endoftext" in text["text"] for text in found)
        for prompt in ("the ... dog ... .", "the _ dog __ ."):
            for words in (text["text"].split() for text in texts(capsys, prompt=prompt)):
                assert words[0] == "the" and words[-1] == "." and "dog" in words[1:-1]
        for words in (text["text"].split() for text in texts(capsys, prompt="the old dog")):
            assert words[:3] == ["the", "old", "dog"]
    capsys.readouterr()
    flags = dict(out_dir="out", max_texts=12, draws=1, num_samples=8, steps=3, device="cpu")
    evaluate.main(configure(evaluate.Config, **flags), [])
    shown = capsys.readouterr().out
    assert "nats/text" in shown and "total variation from the exact law of lengths" in shown
    evaluate.main(configure(evaluate.Config, json=True, **flags), [])
    r = json.loads(capsys.readouterr().out)
    assert r["nats_per_text"] == pytest.approx(r["nats_per_token"] * r["tokens"] / 12)
    assert r["entropy_per_text"] == pytest.approx(r["entropy"] * r["tokens"] / 12)


def test_nats_are_of_whole_texts_ends_included_and_rates_of_words():
    """mdlm and ar by their exact denoisers: ends are scored, or -log p of the length would be
    missing, but a rate counts words alone."""
    data = SentenceCorpus()
    x = data.windows("val", 50)
    method = make_method("ar", data.encoding.n_vocab)
    model = exact("flexmdm")
    model.method, model.denoiser = method, method.oracle(data.language)
    model.config.method = "ar"
    config = configure(evaluate.Config, draws=1)
    r = bound_figures(model, data, HeldOut(x, None, None, None), config)
    log_p = -data.language.log_prob(x)
    assert r["nats_per_text"] == pytest.approx(log_p.mean().item(), abs=1e-4)
    rate = (log_p.sum() / data.lengths(x).sum()).item()
    assert r["nats_per_token"] == pytest.approx(rate, abs=1e-5)
    assert abs(r["gap"]) < 1e-5 and r["tokens"] == int(data.lengths(x).sum())


def test_lengths_are_those_of_training(capsys):
    error = complaint(sample, "--oracle", "flexmdm", "--length", "30", capsys=capsys)
    assert "--length 30: these texts end by themselves, and have room for 20 tokens" in error
    error = complaint(sample, "--oracle", "flexmdm", "--prompt", "the " * 21, capsys=capsys)
    assert "the prompt has 21 tokens, more than the text's 20" in error


def test_the_terminal_shows_a_text_without_what_fills_it_up(capsys):
    flags = dict(oracle="flexmdm", steps=4, num_samples=1, watch=True, prompt="the ... dog .")
    sample.main(configure(sample.Config, **flags), [])
    shown = capsys.readouterr().out
    assert "step    4: 'the" in shown
    assert "endoftext" not in shown.split("step    1:")[1]


def test_guidance_mixes_expected_gaps_and_words_alike(capsys):
    """(11.1) of a label through the exact denoiser: gaps stay what they are, and are no words."""
    found = texts(capsys, oracle="flexmdm", out_dir="", label="sea", guidance=2.0, steps=8)
    assert len(found) == 3 and all("_" not in text["text"] for text in found)
    assert torch.tensor([len(text["ids"]) for text in found]).max() <= 20
