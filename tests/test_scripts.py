"""
The three scripts as their users meet them: every choice of every flag runs, given tokens survive, --watch and --json.
Most runs are in this process, since loading torch costs seconds.
"""
import json
import os
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from runs import METHODS, cache, elsewhere, fit, terminal, tiny, trained  # noqa: F401

import evaluate
import sample
import train
from data import BadInput


APART = [("sft", True), ("chat", True), ("eos_last", True),                 # with chats alone: test_chat_runs.py
         ("ends", True), ("mauve", True), ("tensorboard", True),              # test_evaluate.py, _quality.py, _plot.py
         ("shard", True), ("attention", "flex"), ("attention", "triton")]         # _machines, _kernels_attention


def choices(module):
    every = [(f.name, choice) for f in fields(module.Config) for choice in f.metadata["choices"] or []
             if f.name != "compile"]                         # a minute each: see below
    return [case for case in every if case not in APART]


def booleans(module):
    every = [(f.name, value) for f in fields(module.Config) if f.type is bool for value in (True, False)]
    return [case for case in every if case not in APART]


@pytest.mark.parametrize("name, choice", [
    case for case in choices(train) + booleans(train) if case != ("init_from", "resume")])
def test_training_takes_two_steps_with_every_choice_of_every_flag(name, choice, tmp_path):
    state = fit(tmp_path / "out", **{name: choice})
    assert state["step"] == 2 and all(p.isfinite().all() for p in state["ema"].values())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("flags", [
    dict(weighting="bound", optimizer="adamw", dtype="bfloat16"),
    dict(dropout=0.5, grad_clip=0.0, gradient_accumulation_steps=3, ema=0.0, min_lr=0.1, weight_decay=0.0),
], ids=["choices", "numbers"])
def test_training_takes_two_steps_with_every_method_under_other_flags(method, flags, tmp_path):
    assert fit(tmp_path / "out", method=method, **flags)["step"] == 2


@pytest.mark.parametrize("flags", [
    dict(curriculum=0.0), dict(curriculum=1.0), dict(tau=0.0), dict(tau=0.1), dict(tau=0.0, top_k=0), dict(top_k=0),
    dict(top_k=1), dict(top_k=2), dict(top_k=3), dict(top_k=3, dtype="bfloat16"), dict(top_k=0, dtype="bfloat16"),
], ids=str)
def test_duo_takes_two_steps_with_every_way_to_relax_its_inputs(flags, tmp_path):
    state = fit(tmp_path / "out", **{**dict(method="duo", curriculum=1.0), **flags})
    assert state["step"] == 2 and all(p.isfinite().all() for p in state["ema"].values())


@pytest.mark.skipif("PALIMPSEST_SLOW" not in os.environ, reason="the compiler takes a minute: set PALIMPSEST_SLOW=1")
@pytest.mark.parametrize("method", METHODS)
def test_a_compiled_run_is_the_same_but_for_rounding(method, tmp_path):
    compiled, plain = fit(tmp_path / "a", method=method, compile="default"), fit(tmp_path / "b", method=method)
    torch.testing.assert_close(compiled["model"], plain["model"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("data, tokenizer", [("names", "auto"), ("names", "bytes"), ("poem.txt", "chars"),
                                             ("poem.txt", "bpe"), ("poems", "bytes")])
def test_training_sampling_and_evaluation_work_on_text(data, tokenizer, tmp_path, capsys):
    poem = "".join(f"{n} green bottles, hanging on the wall.\n" for n in range(200))
    Path("poem.txt").write_text(poem)
    Path("poems").mkdir()
    Path("poems/one.txt").write_text(poem)
    fit("out", data=data, tokenizer=tokenizer, vocab_size=120)
    sample.main(sample.Config(out_dir="out", prompt="HE" if data == "names" else "gre__", device="cpu"))
    evaluate.main(evaluate.Config(out_dir="out", max_texts=4, num_samples=2, draws=2, device="cpu"))
    printed = capsys.readouterr().out
    assert "bits/byte" in printed and "words that stand in the corpus" in printed


OF_MASKS = ["first-hitting", "confidence", "semi-ar", "remdm-conf", "top-k"]
REFUSED = {**{("ar", choice): "walk of its own"
              for choice in (*OF_MASKS, "psi", "greedy", "gibbs", "self-correct", "cosine")},
           **{("udlm", sampler): "the masks of mdlm" for sampler in OF_MASKS},
           **{("mdlm", tail): "proofreads text" for tail in ("greedy", "self-correct")},
           **{(method, sampler): "walk of its own" if method == "ar" else "which sedd has"
              for method in ("mdlm", "udlm", "ar") for sampler in ("analytic", "euler")},
           **{(method, cache): "go with --sampler semi-ar"
              for method in ("udlm", "ar") for cache in ("prefix", "dual")}}
ETAS = [("eta", 0.0), ("eta", 0.3), ("eta", 1.0)]


def works_or_is_refused(module, method, name, choice, given):
    """kappa and eta mean something to --sampler psi alone, cache to semi-ar: there they go with it."""
    asks = "semi-ar" if name == "cache" and method == "mdlm" else "psi" if name in ("kappa", "eta") else "ancestral"
    given["sampler"] = asks if method != "ar" else "ancestral"
    config = module.Config(**{**given, name: choice})
    if (method, choice) not in REFUSED:
        return module.main(config)
    with pytest.raises(BadInput, match=REFUSED[method, choice]):
        module.main(config)


@pytest.mark.parametrize("name, choice", choices(sample) + booleans(sample) + ETAS)
@pytest.mark.parametrize("method", ["mdlm", "udlm", "ar"])
def test_sampling_works_with_every_choice_of_every_flag(method, name, choice, trained, capsys):
    given = dict(out_dir=str(trained / method), steps=3, num_samples=2, device="cpu")
    works_or_is_refused(sample, method, name, choice, given)
    assert capsys.readouterr().out.count("\n") >= 2 or (method, choice) in REFUSED


@pytest.mark.parametrize("name, choice", choices(evaluate) + booleans(evaluate) + ETAS)
@pytest.mark.parametrize("method", ["mdlm", "udlm"])
def test_evaluation_works_with_every_choice_of_every_flag(method, name, choice, trained, capsys):
    given = dict(out_dir=str(trained / method), steps=2, num_samples=2, draws=1, max_texts=4, device="cpu")
    works_or_is_refused(evaluate, method, name, choice, given)
    assert "bound" in capsys.readouterr().out or choice == "ar" or name == "json" or (method, choice) in REFUSED


@pytest.mark.parametrize("module, few", [(sample, {}), (evaluate, dict(draws=1, max_texts=2))])
def test_the_precision_of_products_is_that_of_the_flag(module, few):
    for precision in ("medium", "high", "highest"):
        module.main(module.Config(oracle="mdlm", steps=1, num_samples=2, matmul_precision=precision, **few))
        assert torch.get_float32_matmul_precision() == precision


@pytest.mark.parametrize("module", [sample, evaluate], ids=["sample", "evaluate"])
def test_every_flag_of_the_sampler_reaches_it(module, capsys):
    """From one seed, each makes other texts than all others do."""
    model = evaluate.exact("udlm")
    corpus = evaluate.corpus_of(model, "")

    def texts(**flags):
        config = module.Config(oracle="udlm", steps=6, num_samples=9, json=True, device="cpu", **flags)
        if module is evaluate:
            return str(evaluate.draw(model, corpus, config, "cpu"))
        sample.main(config)
        return str([json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()])

    ways = [dict(sampler="psi", kappa=kappa, eta=0.2) for kappa in ("constant", "cap", "rescale", "loop")]
    ways += [dict(), dict(temperature=0.5), dict(top_p=0.5), dict(tail="greedy")]
    ways += [dict(sampler="psi", eta=0.9), dict(sampler="psi", eta=0.9, tail="greedy")]
    assert len({texts(**flags) for flags in ways}) == len(ways) and texts() == texts()


@pytest.mark.parametrize("method", METHODS)
def test_each_method_is_evaluated_from_its_checkpoint_and_json_says_what_the_table_says(method, trained, capsys):
    sizes = dict(max_texts=20, num_samples=4, draws=2, steps=4)
    config = evaluate.Config(out_dir=str(trained / method), device="cpu", **sizes)
    evaluate.main(config)
    table = capsys.readouterr().out
    evaluate.main(replace(config, json=True))
    result = json.loads(capsys.readouterr().out)
    assert result["step"] == 20 and result["texts"] == 20 and result["exact"] == (method == "ar")
    assert f"{result['nats_per_token']:.3f} +- {result['standard_error']:.3f} nats/token" in table
    assert result["gap"] == pytest.approx(result["nats_per_token"] - result["entropy"])
    for rows in (result["samples"], result["held_out"]):
        assert all(f"{mean:.3f} +- {error:.3f}" in table for _, mean, error in rows)


def test_the_last_report_sets_the_model_beside_counting_and_the_entropy(tmp_path, monkeypatch, capsys):
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    fit("out", batch_size=64)
    printed = capsys.readouterr().out
    order = ["uniform over tokens", "mdlm, bound", "2-gram of tokens", "exact entropy", "python sample.py --out_dir"]
    assert [printed.index(what) for what in order] == sorted(printed.index(what) for what in order)


# ---- sampling

@pytest.mark.parametrize("method, flags", [
    *[(method, flags) for method in METHODS for flags in (dict(), dict(temperature=0.0), dict(top_p=0.9))],
    ("mdlm", dict(sampler="confidence")), ("mdlm", dict(sampler="first-hitting")),
    ("mdlm", dict(sampler="psi", eta=0.5)), ("udlm", dict(sampler="psi", kappa="loop")),
    ("duo", dict(sampler="psi", tail="greedy")),
    ("gidd", dict(sampler="psi", kappa="constant", eta=1.0, tail="greedy"))])
def test_given_tokens_survive_wherever_they_stand(method, flags, trained, capsys):
    for source in (trained / method, None):
        config = sample.Config(out_dir=str(source), oracle="" if source else method, json=True, steps=5, num_samples=5,
                               prompt="_ the cat _ _ every red _", device="cpu", **flags)
        sample.main(config)
        texts = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert len(texts) == 5
        for words in (text["text"].split() for text in texts):
            assert len(words) == 8 and "_" not in words
            assert words[1:3] == ["the", "cat"] and words[5:7] == ["every", "red"]


def test_a_prompt_without_gaps_is_continued_and_one_with_gaps_keeps_its_length(trained, capsys):
    def words(**flags):
        sample.main(sample.Config(out_dir=str(trained / "mdlm"), num_samples=1, json=True, device="cpu", **flags))
        return json.loads(capsys.readouterr().out)["text"].split()

    assert len(words(prompt="the cat")) == 8 and words(prompt="the cat")[:2] == ["the", "cat"]
    assert len(words(prompt="the ? cat", gap="?")) == 3
    assert len(words(prompt="the _ cat", length=5)) == 5
    assert words(prompt="the cat", length=2) == ["the", "cat"]                       # nothing left to do
    Path("prompt.txt").write_text("the _\ncat\n")
    assert words(prompt="FILE:prompt.txt")[::2] == ["the", "cat"]
    assert words(seed=1) == words(seed=1) != words(seed=2)


def test_a_longer_text_than_in_training_is_made_through_a_window(trained, capsys):
    sample.main(sample.Config(out_dir=str(trained / "udlm"), length=20, num_samples=1, json=True, device="cpu"))
    out, err = capsys.readouterr()
    assert len(json.loads(out)["ids"]) == 20 and not err


def test_the_judge_rates_samples_and_text_by_the_same_model(tmp_path, capsys):
    fit("judge", method="ar", data="names")
    fit("out", data="names")
    sizes = dict(max_texts=9, num_samples=5, steps=3)
    config = evaluate.Config(out_dir="out", judge="judge", device="cpu", json=True, **sizes)
    evaluate.main(config)
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    (_, rated, _), = [row for row in result["held_out"] if row[0].startswith("-log p by judge")]
    evaluate.main(replace(config, out_dir="judge", judge=""))
    assert rated == pytest.approx(json.loads(capsys.readouterr().out)["nats_per_token"], rel=1e-6)


def test_in_a_terminal_a_bar_shows_progress(terminal):
    seen, code = terminal(["train", *tiny(max_iters=50, out_dir="out")])
    assert code == 0 and "it/s" in seen and "loss " in seen and "step     1 of" not in seen
    assert "held-out" in seen and "5-gram of tokens" in seen
