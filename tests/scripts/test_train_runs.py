"""Whole runs of train.py: every method is resumed, sampled and evaluated; every kind of data; other
weights to start from; what is printed at the end.
"""
import json
import shutil
import signal
import re
from pathlib import Path

import pytest
import torch
from kinds import first_with, networks, scripts_differ
from models import random_checkpoint

import evaluate
import sample
import train
from checkpoints.load import load_model, read_state
from data import DATASETS, docstrings, texts
from flags import configure, flags_of, load_row
from methods import METHODS
from runs import (  # noqa: F401
    TINY,
    assert_same,
    cache,
    complaint,
    elsewhere,
    fit,
    interrupt,
    late_reports,
    metrics,
    terminal,
    tiny,
)

# Flags that give a method something to keep besides the weights.
STATEFUL = {"bd3lm": dict(clip_search=True, diffusion_block=4, eval_iters=4),
            "d3pm": dict(transition="nearest", embedding="other", diffusion_steps=6),
            "duo": dict(curriculum=0.8), "pgm": dict(n_layer=3, decoder_share=0.67)}
FEW = dict(device="cpu", steps=2, num_samples=2)


# ---- every method

def write_texts(capsys, **flags):
    """Texts of sample.py with two given words, which stay. -> their ids"""
    capsys.readouterr()
    flags = {**FEW, "prompt": "the _ cat _", **flags}
    sample.main(configure(sample.Config, json=True, **flags), [])
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for words in (text["text"].split() for text in found):
        assert len(words) == 4 and words[::2] == ["the", "cat"] and "_" not in words
    return [text["ids"] for text in found]


def results(capsys, out_dir, **flags):
    """What evaluate.py says about a run."""
    capsys.readouterr()
    flags = {**FEW, **dict(out_dir=out_dir, max_texts=8, draws=1, json=True), **flags}
    evaluate.main(configure(evaluate.Config, **flags), [])
    return json.loads(capsys.readouterr().out)


@pytest.mark.usefixtures("late_reports")
@pytest.mark.parametrize("method", METHODS)
def test_a_run_of_every_method_goes_on_bit_by_bit_is_sampled_and_evaluated(method, monkeypatch,
                                                                           capsys):
    """Stopped between two evaluations; what it had read from other folders may be gone by then."""
    flags = dict(method=method, max_iters=4, learning_rate=0.01, warmup_iters=2, eval_interval=2,
                 log_interval=1, dropout=0.1, **STATEFUL.get(method, {}))
    if "other" in flags.values():
        random_checkpoint("other")
    whole = fit("whole", **flags)
    with monkeypatch.context() as patch:
        interrupt(patch, 2, signal.SIGTERM)
        assert fit("parts", **flags)["step"] == 3
    shutil.rmtree("other", ignore_errors=True)
    resumed = fit("parts", init_from="resume")
    assert_same(whole, resumed)
    others = {name: a for name, a in whole.items() if torch.is_tensor(a)}  # such as a found clip
    assert all(torch.equal(resumed[name], a) for name, a in others.items())
    keeps = "ddpm" in (load_row(METHODS, method).samplers or ())  # how often each word occurs
    assert bool(others) == (
        keeps or method in ("bd3lm", "d3pm", "diffugpt", "diffusionbert"))
    assert metrics("whole") == metrics("parts") and len(metrics("parts")) == 4
    assert metrics("whole", "val_bound").items() <= metrics("parts", "val_bound").items()
    assert whole.keys() == resumed.keys()  # so texts and bounds of both are the same
    assert all(whole[key] == resumed[key] for key in ("encoding", "classes", "format"))
    if load_row(METHODS, method).classifies:
        assert len(results(capsys, "parts")) == 5
        return
    assert write_texts(capsys, out_dir="parts")
    found = results(capsys, "parts")
    assert found["method"] == method and found["step"] == 4
    bounded = load_row(METHODS, method).bounded
    assert found["nats_per_token" if bounded else "loss_per_token"] > 0
    assert len(found["samples"]) >= 2


def noises():
    """(method, flags) for each choice of a flag that decides what is sampled, by the method that
    has it first; the defaults once."""
    for method in METHODS:
        first, flags = None, flags_of(load_row(METHODS, method))
        for name, f in flags.items():
            own = f.metadata["fixed"] and first_with(method, name) == method
            for value in f.metadata["choices"] or [] if own else []:
                if value != f.default or first in (None, name):
                    yield method, {name: value}
                first = first or name
    yield "d3pm", dict(diffusion_steps=1)
    yield "sedd", dict(transition="uniform", noise_schedule="geometric")


@pytest.mark.parametrize("method, flags", list(noises()), ids=str)
def test_every_kind_of_noise_is_sampled_and_evaluated(method, flags, capsys):
    """In few steps and in many, also without randomness, by all samplers with rates if it has
    them."""
    random_checkpoint("other")
    beside = STATEFUL[method] if flags.get("transition") == "nearest" else {}
    if flags.get("table") == "glyphs":  # of characters
        Path("all.txt").write_text("the quick brown fox jumps over the lazy dog . " * 100)
        beside = dict(data="all.txt", tokenizer="chars")
    fit("out", method=method, max_iters=1, **{**beside, **flags})
    ways = [dict(), dict(temperature=0.0, steps=10)]
    if "euler" in (load_row(METHODS, method).samplers or ()):
        ways += [dict(sampler=sampler, top_p=0.9) for sampler in ("analytic", "euler")]
    for way in ways:
        write_texts(capsys, out_dir="out", **way)
    model = load_model("out").method
    found = results(capsys, "out", steps=10)
    assert found["steps"] == min(10, model.max_steps or 10) and found["exact"] == model.exact


# ---- every kind of data

def use_small_python(folder, monkeypatch):
    """The standard library is one package."""
    shutil.copytree(Path(json.__file__).parent, folder / "json")
    monkeypatch.setattr(docstrings.sysconfig, "get_path", lambda name: str(folder / "json"))


def write_chats(path, questions=40):
    chats = [[f"What is {i}?", f"It is {i}."] for i in range(questions)]
    roles = "user", "assistant"
    turns = lambda chat: [{"role": role, "content": said} for role, said in zip(roles, chat)]
    path.write_text("\n".join(json.dumps({"messages": turns(chat)}) for chat in chats))


@pytest.fixture
def own_texts(tmp_path, monkeypatch):
    """Texts of one's own, a small Python, and a small Shakespeare in place of the download."""
    poem = "".join(f"{n} green bottles, hanging on the wall.\n" for n in range(200))
    Path("poem.txt").write_text(poem)
    Path("poems").mkdir()
    Path("poems/one.txt").write_text(poem)
    write_chats(Path("mine.jsonl"))
    use_small_python(tmp_path, monkeypatch)
    monkeypatch.setattr(texts, "fetch_all", lambda name, files, folder: [Path("poem.txt")])
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path / "cache"))


CHATS = dict(tokenizer="bytes", block_size=36)
KINDS = [("toy", "toy", {}), ("digits", "digits", dict(block_size=64)),
         ("chat", "chat", dict(vocab_size=300)), ("names", "names", dict(tokenizer="chars")),
         ("names", "names", dict(tokenizer="bytes")), ("shakespeare", "shakespeare", {}),
         ("python", "python", dict(vocab_size=300)), ("*", "poem.txt", dict(tokenizer="chars")),
         ("*", "poem.txt", dict(tokenizer="bpe", vocab_size=110)),
         ("*", "poems", dict(tokenizer="bytes")), ("*.jsonl", "mine.jsonl", CHATS),
         ("sudoku4", "sudoku4-in-place", dict(block_size=16)),
         ("countdown3", "countdown3", dict(block_size=22)),
         ("planning2", "planning2", dict(block_size=18, learned_places=True)),
         ("sat5", "sat5", dict(block_size=68)), ("boolean", "boolean", dict(block_size=31)),
         ("sentences", "sentences", dict(block_size=20)),
         ("arithmetic", "arithmetic", dict(block_size=13)),
         ("repair", "repair", dict(block_size=16)),
         ("multiplication", "multiplication-thoughts", dict(block_size=20)),
         ("add", "add", dict(block_size=13)), ("describe", "describe", dict(block_size=23)),
         ("describe-spans", "describe-spans", dict(block_size=28)),
         ("*.jsonl", "mine.jsonl", dict(CHATS, sft=True))]


@pytest.mark.parametrize("row, data, flags", KINDS, ids=str)
def test_every_kind_of_data_is_learned_sampled_and_evaluated(row, data, flags, own_texts, capsys):
    if data == "digits":
        pytest.importorskip("sklearn")
    state = fit("out", data=data, **flags)
    assert state["step"] == 2 and state["config"]["data"] == data
    sample.main(configure(sample.Config, out_dir="out", **FEW), [])
    capsys.readouterr()
    evaluate.main(configure(evaluate.Config, out_dir="out", max_texts=4, draws=2, **FEW), [])
    printed = capsys.readouterr().out
    puzzle = load_row(DATASETS, data).prompted
    assert ("right choice of 4" if flags.get("sft") else "bits/byte") in printed or puzzle
    assert not puzzle or "nats/token (" in printed
    corpus = data not in ("toy", "digits", "sentences") and not flags.get("sft") and not puzzle
    assert ("words that stand in the corpus" in printed) == corpus
    assert ("\nsolved " in printed) == puzzle


def test_these_are_all_kinds():
    """But for corpora that are downloaded: tests/data/test_corpora_runs.py. Tasks of one file are
    of one kind."""
    published = {name for name, row in DATASETS.items() if row.endswith("PublishedCorpus")}
    kind = lambda name: (DATASETS[name].split(":")[0] if load_row(DATASETS, name).source
                         else re.sub(r"\d*(-in-place|-unique|-thoughts)?$", "", name))
    of_any_size = lambda names: {*map(kind, names)}
    assert of_any_size({*DATASETS} - published) == of_any_size({row for row, _, _ in KINDS})


@pytest.mark.parametrize("method", scripts_differ(
    [m for m in METHODS if not load_row(METHODS, m).classifies], by=networks))
def test_every_method_is_fine_tuned_on_answers(method):
    write_chats(Path("mine.jsonl"))
    state = fit("out", method=method, data="mine.jsonl", sft=True, tokenizer="bytes", block_size=36)
    assert state["step"] == 2 and all(a.isfinite().all() for a in state["ema"].values())


# ---- from the weights of another run

def test_a_run_starts_at_step_0_from_the_averaged_weights_of_another(monkeypatch):
    first, seen, step_of = fit("mdlm", max_iters=3, learning_rate=0.01)["ema"], [], train.train_step

    def spy(trainer, n):
        seen.append((n, {name: a.clone() for name, a in trainer.model.state_dict().items()}))
        return step_of(trainer, n)
    monkeypatch.setattr(train.train, "__defaults__", (spy,))
    state = fit("tuned", method="bd3lm", diffusion_block=4, init_from="mdlm")
    assert [n for n, _ in seen] == [0, 1] and state["step"] == 2
    torch.testing.assert_close(seen[0][1], dict(first), rtol=0, atol=0)
    resumed = fit("tuned", init_from="resume", max_iters=3)  # with its own weights
    assert resumed["step"] == 3 and resumed["config"]["init_from"] == "resume"
    torch.testing.assert_close(seen[2][1], dict(state["model"]), rtol=0, atol=0)


@pytest.mark.parametrize("words, says", [
    (["--n_head", "1"], "it has --n_head 2, not 1"),
    (["--qk_norm", "False"], "it has --qk_norm True, not False"),
    (["--n_embd", "32"], "it has --n_embd 16, not 32"),
    (["--time_input", "sigma"], "it has --time_input auto, not sigma"),
    (["--data", "names"], "other tokens than names"),
    (["--method", "udlm"], "a network of mdlm, and udlm needs another"),
    (["--labels"], "--init_from mdlm does not fit"),
    (["--method", "classifier"], "a network of mdlm, and classifier needs another"),
    (["--init_from", "nowhere"], "no checkpoint")])
def test_weights_that_do_not_fit_are_refused_in_one_line(words, says, capsys):
    random_checkpoint("mdlm")
    data = dict(data=words[1]) if words[0] == "--data" else {}  # which must not be given twice
    flags = tiny(init_from="mdlm", out_dir="out", **data)
    assert says in complaint(train, *flags, *words, capsys=capsys)
    assert not Path("out").exists()


@pytest.mark.parametrize("source, method", [("ar", "mdlm"), ("mdlm", "ar"), ("ar", "bd3lm"),
                                            ("bd3lm", "ar"), ("ar", "radd")])
def test_next_token_networks_and_others_do_not_start_from_each_other(source, method, capsys):
    """They have the same parts, but each row would be one place off, and the id of `start` is that
    of the mask."""
    random_checkpoint(source, method=source)
    words = tiny(init_from=source, method=method, out_dir="out")
    said = complaint(train, *words, capsys=capsys)
    assert f"a network of {source}, which predicts" in said and f"and {method} predicts" in said
    assert "the next token" in said and "leave --init_from out" in said
    assert not Path("out").exists()


def test_ratios_and_distributions_do_not_start_from_each_other(capsys):
    random_checkpoint("udlm", method="udlm")
    words = tiny(init_from="udlm", method="sedd", out_dir="out")
    assert "ratios of probabilities" in complaint(train, *words, "--transition", "uniform",
                                                  capsys=capsys)


@pytest.mark.parametrize("method", ["mdlm", "bd3lm"])
def test_masks_in_blocks_and_in_whole_texts_start_from_each_other(method):
    source = "bd3lm" if method == "mdlm" else "mdlm"
    random_checkpoint(source, method=source)
    before = read_state(source)["ema"]["embed"]
    state = fit("out", method=method, init_from=source, max_iters=1, learning_rate=0.0, muon_lr=0.0)
    torch.testing.assert_close(state["model"]["embed"], before, rtol=0, atol=0)


def test_nearest_neighbors_stay_those_of_the_run_that_they_came_from():
    """Its embedding is in the checkpoint, so that run may be trained on, or deleted."""
    random_checkpoint("other")
    state = fit("out", method="d3pm", **STATEFUL["d3pm"])
    assert torch.equal(state["embedding"], read_state("other")["ema"]["embed"][:113])
    before = load_model("out").method.chain.Q  # (T, V, V)
    random_checkpoint("other", n_embd=8)
    assert torch.equal(load_model("out").method.chain.Q, before)
    assert "embedding" not in fit("mdlm")


# ---- what a run shows

def test_the_summary_sets_the_model_beside_counting_and_the_entropy(tmp_path, monkeypatch, capsys):
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    fit("out", batch_size=64)
    printed = capsys.readouterr().out
    order = ["uniform over tokens", "mdlm, bound", "2-gram of tokens", "exact entropy",
             "python sample.py --out_dir"]
    assert [printed.index(what) for what in order] == sorted(map(printed.index, order))


def test_in_a_terminal_a_bar_shows_progress(terminal):  # noqa: F811
    seen, code = terminal(["train", *tiny(max_iters=50, batch_size=64, out_dir="out")])
    assert code == 0 and "it/s" in seen and "loss " in seen and "step     1 of" not in seen
    assert "held-out" in seen and "5-gram of tokens" in seen


def test_the_first_line_of_metrics_says_what_the_run_is():
    fit("out", labels=True, max_iters=1)
    first = json.loads(Path("out/metrics.jsonl").read_text().splitlines()[0])
    assert first == {"step": 0, "method": "mdlm", "data": "toy", "labels": True,
                     "block_size": TINY["block_size"], "bytes_per_token": first["bytes_per_token"]}
