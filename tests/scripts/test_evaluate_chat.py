"""evaluate.py --chat: how many questions a network answers right."""
import json
from pathlib import Path

import pytest
from kinds import scripts_differ
from models import random_checkpoint

import evaluate
from checkpoints.load import load_model
from evaluations import results, run
from evaluation.held_out import data_of
from evaluation.likelihood import estimate_bound, nats_of
from methods import METHODS, load_row
from runs import cache, commanded, complaint, elsewhere  # noqa: F401

LANGUAGE_MODELS = [name for name in METHODS if not load_row(METHODS, name).classifies]
MINE = [[f"What is {i}?", f"It is {i}."] for i in range(40)]


def write_chats():
    roles = "user", "assistant"
    lines = [json.dumps({"messages": [{"role": role, "content": text}
                                      for role, text in zip(roles, chat)]}) for chat in MINE]
    Path("mine.jsonl").write_text("\n".join(lines))


@pytest.mark.parametrize("method", scripts_differ(LANGUAGE_MODELS, also=["pgm"]))
def test_every_method_answers_held_out_questions(method, capsys):
    write_chats()
    folder = f"answers-{method}"
    random_checkpoint(folder, method=method, data="mine.jsonl", tokenizer="bytes", sft=True,
                      block_size=28)
    few = ["--chat", "--out_dir", folder, "--max_texts", 4, "--draws", 2, "--steps", 3]
    r = results(capsys, *few, "--num_samples", 3)
    assert [row[0] for row in r["answers"]] == ["chats", "all"] and r["network_calls"] > 0
    is_default = load_row(METHODS, method).bidirectional and load_row(METHODS, method).opens_masks
    own = {"pgm": "spread", "ar2diff": "unroll", "dot": "thoughts", "flexmdm": "insertion"}
    assert r["sampler"] == own.get(method, "semi-ar" if is_default else "ancestral")
    run(*few, "--num_samples", 2)
    table = capsys.readouterr().out
    assert "answers, their prompts given" in table and "right choice of 4" in table
    assert "\nall " in table and "network calls, 64 questions at a time" in table


def test_the_bound_of_a_network_that_answers_is_that_of_its_answers_alone(capsys):
    write_chats()
    random_checkpoint("answers", data="mine.jsonl", tokenizer="bytes", sft=True, block_size=28)
    r = results(capsys, "--out_dir", "answers", "--num_samples", 0, "--draws", 4)
    model = load_model("answers")
    x, frozen, _ = data_of(model).example_windows("val")
    mean, error = estimate_bound(model.method, model.denoiser, x, 4, frozen=frozen,
                                 independent=True)
    assert (r["nats_per_token"], r["standard_error"]) == pytest.approx((mean, error))
    wrong, _ = estimate_bound(model.method, model.denoiser, x, 4)
    assert wrong != pytest.approx(mean, rel=0.01)


def test_answers_have_nats_per_answer_and_no_bits_per_byte(capsys):
    """They are scored with the ends that fill them up, which are no text."""
    write_chats()
    random_checkpoint("answers", data="mine.jsonl", tokenizer="bytes", sft=True, block_size=28)
    few = ["--out_dir", "answers", "--num_samples", 0, "--draws", 4]
    r = results(capsys, *few)
    assert not [key for key in r if "bits" in key]
    run(*few)
    table = capsys.readouterr().out
    assert "bits" not in table and " nats/answer with its ends" in table
    model = load_model("answers")
    x, frozen, _ = data_of(model).example_windows("val")
    nats, _ = nats_of(model.method, model.denoiser, x, 4, frozen=frozen)
    assert r["nats_per_answer"] == pytest.approx(nats.mean().item())
    assert r["nats_per_answer_error"] == pytest.approx((nats.std() / len(x) ** 0.5).item())


@pytest.mark.parametrize("argv, threshold", [
    ([], 0.9), (["--sampler=semi-ar"], 0.9), (["--temperature=1"], 0.9), (["--steps=4"], 0),
    (["--factor=1"], 0), (["--steps=4", "--threshold=0.5"], 0.5)], ids=str)
def test_in_a_chat_the_default_threshold_gives_way_to_another_rule_that_is_given(argv, threshold):
    assert commanded(evaluate, "--chat", *argv)[0].threshold == threshold


def test_guidance_by_the_prompt_is_refused_before_anything_is_measured(capsys):
    write_chats()
    random_checkpoint("answers", method="udlm", data="mine.jsonl", tokenizer="bytes", sft=True,
                      block_size=28)
    error = complaint(evaluate, "--chat", "--out_dir", "answers", "--guidance", 2, capsys=capsys)
    assert "it is for mdlm" in error and not Path("answers/evaluation.json").exists()


def test_a_judge_that_would_rate_nothing_is_refused_before_it_is_loaded(capsys):
    write_chats()
    random_checkpoint("answers", data="mine.jsonl", tokenizer="bytes", sft=True, block_size=28)
    for words in (["--judge", "gpt2-large"], ["--judge", "gpt2-large", "--num_samples", 0]):
        error = complaint(evaluate, "--out_dir", "answers", *words, capsys=capsys)
        assert "--judge rates samples" in error and "leave it out" in error
