"""evaluate.py: every method, every part of the report, and what stays if a part fails."""
import json
import math
import re
from functools import lru_cache, partial
from pathlib import Path

import pytest
import torch
from kinds import scripts_differ
from models import random_checkpoint

import evaluate
from checkpoints.load import load_model
from data.toy import Toy, ToyCorpus
from evaluations import results, run
from evaluation.held_out import data_of
from flags import UserError, flags_of, parse
from methods import METHODS, load_row, make_method
from runs import cache, commanded, complaint, disk_of, elsewhere, one_thread  # noqa: F401
from runtime import memory
from samplers import CORRECTORS, SAMPLERS

LANGUAGE_MODELS = [name for name in METHODS if not load_row(METHODS, name).classifies]
BOUNDED = [name for name in LANGUAGE_MODELS if load_row(METHODS, name).bounded]
DIFFERENT = scripts_differ(BOUNDED)
FEW = ["--max_texts", 4, "--draws", 1, "--num_samples", 0, "--device", "cpu"]
CLASSES = ["farm", "sea", "kitchen", "school"]
ENTROPY = lru_cache(partial(Toy.entropy, Toy()))  # of a length, computed once


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with checkpoints: on the toy language, and some on one text."""
    root = tmp_path_factory.mktemp("evaluated")
    with pytest.MonkeyPatch.context() as patch, one_thread():
        patch.chdir(root)
        patch.setenv("PALIMPSEST_CACHE", str(root / "cache"))
        for method in {*DIFFERENT, "mdlm", "udlm", "ar", "classifier"}:
            labels = load_row(METHODS, method).classifies
            random_checkpoint(root / method, method=method, labels=labels)
        for method in {*scripts_differ(LANGUAGE_MODELS), "mdlm"}:
            random_checkpoint(root / f"labeled-{method}", method=method, labels=True)
        Path("a.txt").write_text("a rose is a rose is a rose\n" * 99)
        Path("b.txt").write_text("is a rose a rose\n" * 99)
        for method in ("mdlm", "ar"):
            random_checkpoint(root / f"rose-{method}", method=method, data="a.txt",
                              tokenizer="chars")
    return root


@pytest.fixture(autouse=True)
def at_root(root, elsewhere, monkeypatch):  # noqa: F811
    monkeypatch.chdir(root)
    monkeypatch.setenv("PALIMPSEST_CACHE", str(root / "cache"))
    monkeypatch.setattr(Toy, "entropy", lambda self, length: ENTROPY(length))
    for path in root.glob("*/evaluation.json"):
        path.unlink()


def saved(folder="rose-mdlm"):
    return json.loads((Path(folder) / "evaluation.json").read_text())


# ---- every method

@pytest.mark.parametrize("method", DIFFERENT)
def test_every_method_has_its_bound_printed_and_its_samples_rated(method, capsys):
    sizes = ["--out_dir", method, "--max_texts", 20, "--num_samples", 4, "--draws", 2, "--steps", 4]
    run(*sizes)
    table = capsys.readouterr().out
    r = results(capsys, *sizes)
    assert r["step"] == 2 and r["texts"] == 20 and r["method"] == method
    assert r["exact"] == load_row(METHODS, method).exact == ("exact on" in table)
    assert f"{r['nats_per_token']:.3f} +- {r['standard_error']:.3f} nats/token" in table
    assert r["gap"] == pytest.approx(r["nats_per_token"] - r["entropy"])
    for rows in (r["samples"], r["held_out"]):
        assert [row[0] for row in rows][:2] == ["entropy of the tokens within a text, nats",
                                                "exact -log p, nats/token"]
        assert all(f"{mean:.3f} +- {error:.3f}" in table for _, mean, error in rows)
    assert saved(method) == {"step 2 --steps 4 --draws 2 --max_texts 20 --num_samples 4": r}


@pytest.mark.parametrize("method", DIFFERENT)
def test_through_the_oracle_the_bound_of_every_method_is_the_entropy(method, capsys):
    draws = 4 if load_row(METHODS, method).any_length else 2
    r = results(capsys, "--oracle", method, "--max_texts", 60, "--num_samples", 0, "--draws",
                draws)
    assert abs(r["gap"]) < 4.5 * r["gap_error"] < 1 and r["step"] == 0
    assert not Path("out").exists()  # an oracle has no folder to save in


@pytest.mark.parametrize("method", DIFFERENT)
def test_last_words_and_choices_work_with_every_method_or_are_refused(method, capsys):
    words = " ".join(ToyCorpus(8).language.words[:4])
    Path("last.jsonl").write_text(json.dumps({"text": words}) + "\n" + json.dumps({"text": words}))
    quiz = json.dumps({"prompt": words, "choices": ["dog", "old cat"], "answer": 0}) + "\n"
    Path("quiz.jsonl").write_text(quiz * 2)
    r = results(capsys, "--out_dir", method, *FEW, "--draws", 8, "--lambada", "last.jsonl",
                "--choices", "quiz.jsonl")
    assert r["last_words"]["passages"] == 2 and r["last_words"]["nats_per_word"] > 0
    assert r["choices"]["questions"] == 2 and r["choices"]["chance"] == 0.5


def test_a_classifier_is_evaluated_at_several_noise_levels_beside_the_exact_posterior(capsys):
    run("--out_dir", "classifier", "--max_texts", 40)
    table = capsys.readouterr().out
    rows = results(capsys, "--out_dir", "classifier", "--max_texts", 40)
    assert [row["t"] for row in rows] == [0.1, 0.3, 0.5, 0.7, 0.9]
    assert all(row["exact_nats"] < row["nats"] for row in rows[:3])
    assert all(f"{row['nats']:.3f} +- {row['nats_error']:.3f}" in table for row in rows)
    other = results(capsys, "--out_dir", "classifier", "--max_texts", 40, "--split", "test")
    assert other[0]["exact_nats"] != rows[0]["exact_nats"] and len(saved("classifier")) == 2


# ---- guidance

@pytest.mark.parametrize("method", scripts_differ(LANGUAGE_MODELS))
def test_guided_samples_of_every_method_are_rated_for_their_class(method, capsys):
    few = ["--max_texts", 40, "--num_samples", 2, "--draws", 1, "--steps", 2]
    for source in (["--oracle", method], ["--out_dir", f"labeled-{method}"]):
        r = results(capsys, *source, "--label", "sea", "--guidance", 2, *few)
        rows = {what: mean for what, mean, _ in r["samples"]}
        assert 0 <= rows["exact p(class | text)"] <= 1 and r["texts"] < 40
        assert "exact -log p given the class, nats/token" in rows


def test_a_labeled_network_or_a_classifier_guides(capsys):
    few = ["--label", "sea", "--max_texts", 40, "--num_samples", 2, "--draws", 1, "--steps", 2]
    labeled = results(capsys, "--out_dir", "labeled-mdlm", "--guidance", 1.5, *few)
    judged = results(capsys, "--out_dir", "mdlm", "--classifier", "classifier", *few)
    assert labeled["texts"] == judged["texts"] and len(labeled["samples"]) == len(judged["samples"])
    text = ToyCorpus(8).example_windows("val", 40)
    x = text[0][text[2] == CLASSES.index("sea")]
    log_p = ToyCorpus(8).language.log_prob
    given = -log_p(x, torch.tensor([1])).mean().item() / 8  # of the class, told to the network
    assert labeled["entropy"] == pytest.approx(given)
    assert judged["entropy"] == pytest.approx(-log_p(x).mean().item() / 8)


# ---- other text

def test_a_zero_shot_set_has_the_figures_that_it_has_as_data(capsys):
    both = results(capsys, "--out_dir", "rose-mdlm", *FEW, "--zero_shot", "a.txt, b.txt")
    zero = both["zero_shot"]
    own = results(capsys, "--out_dir", "rose-mdlm", *FEW, "--data", "b.txt")
    assert list(zero) == ["a.txt", "b.txt"]
    assert zero["b.txt"]["draws"] == 1 and zero["b.txt"]["texts"] == 4
    for name in ("perplexity", "perplexity_error", "bits_per_byte", "bits_per_character", "tokens"):
        assert zero["b.txt"][name] == pytest.approx(own[name])
    assert own["perplexity"] == pytest.approx(math.exp(own["nats_per_token"]))


def test_the_table_has_a_line_for_each_set_and_each_kind_of_question(capsys):
    Path("last.jsonl").write_text('{"text": "a rose is"}\n' * 2)
    quiz = '{"prompt": "a ro", "choices": ["se", "s"], "answer": 0}\n'
    Path("quiz.jsonl").write_text(quiz * 2)
    run("--out_dir", "rose-mdlm", *FEW, "--zero_shot", "b.txt", "--lambada", "last.jsonl",
        "--choices", "quiz.jsonl")
    table = capsys.readouterr().out
    assert "\nb.txt, val: perplexity at most " in table and "4 texts, 32 tokens, 1 draws" in table
    assert "\nlast words: " in table and "2 passages" in table
    assert "\nchoices: " in table and "2 questions" in table
    assert set(next(iter(saved().values()))) >= {"perplexity", "zero_shot", "last_words", "choices"}


@pytest.mark.parametrize("argv", [["--data", "toy"], ["--zero_shot", "toy"]], ids=str)
def test_text_that_has_tokens_of_its_own_is_refused(argv, capsys):
    error = complaint(evaluate, "--out_dir", "rose-mdlm", *FEW, *argv, capsys=capsys)
    assert "toy has tokens of its own" in error


def test_the_test_split_is_other_text_and_a_corpus_without_one_says_so(capsys):
    error = complaint(evaluate, "--out_dir", "rose-mdlm", *FEW, "--split", "test", capsys=capsys)
    assert "a.txt has no test split, only train and val" in error
    val, test = (ToyCorpus(8).windows(split, 5) for split in ("val", "test"))
    assert val.shape == test.shape and not torch.equal(val, test)


def test_an_exact_judge_rates_held_out_text_as_it_evaluates_itself(capsys):
    few = ["--max_texts", 9, "--num_samples", 5, "--steps", 3, "--draws", 2]
    judged = results(capsys, "--out_dir", "rose-mdlm", "--judge", "rose-ar", *few)
    (_, rated, _), = [row for row in judged["held_out"] if row[0].startswith("-log p by rose-ar")]
    own = results(capsys, "--out_dir", "rose-ar", *few)
    assert rated == pytest.approx(own["nats_per_token"], rel=1e-6)
    what = [row[0] for row in judged["samples"]]
    assert "generative perplexity by rose-ar" in what
    assert any(row.startswith("words that stand in the corpus") for row in what)


# ---- what stays

def test_what_is_measured_stays_when_a_later_set_fails_and_the_rest_is_measured(capsys):
    error = complaint(evaluate, "--out_dir", "rose-mdlm", *FEW, "--zero_shot", "nowhere,b.txt",
                      capsys=capsys)
    assert "nowhere: there is no data 'nowhere'" in error
    result, = saved().values()
    assert "perplexity" in result and list(result["zero_shot"]) == ["b.txt"]


def test_a_disk_that_fails_while_samples_are_drawn_costs_no_bound(monkeypatch, capsys):
    def fail(*args):
        raise OSError(5, "Input/output error")
    monkeypatch.setattr(evaluate, "answer_figures", fail)
    error = complaint(evaluate, "--out_dir", "rose-mdlm", *FEW[:4], "--num_samples", 2,
                      capsys=capsys)
    assert "samples: Input/output error" in error
    assert "perplexity" in next(iter(saved().values()))


def test_evaluations_are_saved_by_step_and_flags_and_the_same_one_replaces_itself():
    for argv in ([], ["--draws", 2], []):
        run("--out_dir", "rose-mdlm", *FEW, *argv)
    assert list(saved()) == [f"step 2 --draws {n} --max_texts 4 --num_samples 0" for n in (1, 2)]


def test_a_full_disk_or_a_file_of_another_kind_costs_no_evaluation_that_was_there(capsys):
    run("--out_dir", "rose-mdlm", *FEW)
    before, path = saved(), Path("rose-mdlm/evaluation.json")
    with disk_of(100):
        error = complaint(evaluate, "--out_dir", "rose-mdlm", *FEW, "--draws", 2, capsys=capsys)
    assert f"cannot add to {path} (File too large); what was in it stays" in error
    assert saved() == before and not list(Path("rose-mdlm").glob("*.tmp"))
    path.write_text("[not JSON")
    error = complaint(evaluate, "--out_dir", "rose-mdlm", *FEW, capsys=capsys)
    assert "move it away" in error and path.read_text() == "[not JSON"


# ---- flags

def test_batch_size_0_takes_as_many_texts_as_fit(monkeypatch, capsys):
    sizes = []
    monkeypatch.setattr(evaluate, "bound_figures",
                        lambda model, data, held, config, *others: sizes.append(config.batch_size)
                        or {})
    monkeypatch.setattr(memory, "free_memory", lambda device: 0)
    for source in (["--out_dir", "mdlm"], ["--oracle", "mdlm"]):
        run(*source, *FEW, "--batch_size", 0)
    assert sizes == [1, 64]


@pytest.mark.parametrize("argv, says", [
    (["--judge", "mdlm"], "must be an autoregressive checkpoint with the same tokens"),
    (["--judge", "rose-ar"], "must be an autoregressive checkpoint with the same tokens"),
    (["--judge", "nowhere"], "there is no checkpoint nowhere/ckpt.pt"),
    (["--data", "nowhere.txt"], "there is no data 'nowhere.txt'"),
    (["--oracle", "mdlm", "--data", "names"], "knows toy only: leave out --data names"),
    (["--oracle", "ddpm"], "is not one of ar, mdlm"),
    (["--oracle", "classifier"], "writes no text"),
    (["--out_dir", "nowhere"], "there is no checkpoint nowhere/ckpt.pt"),
    (["--max_texts", "1"], "at least 2"),
    (["--num_samples", "1"], "has no standard error: give 0, or at least 2"),
    (["--guidance", "2"], "--guidance requires --label, or the questions of --chat"),
    (["--label", "sea"], "this model has no classes"),
    (["--out_dir", "labeled-mdlm", "--label", "lake"], "there is no class 'lake'"),
    (["--classifier", "classifier"], "--classifier needs a --label"),
    (["--ends", "--lambada", "last.jsonl"], "have no end of text"),
    (["--mauve"], "--mauve needs a --judge of transformers"),
    (["--sampler", "first-hitting", "--oracle", "duo"], "--sampler first-hitting"),
    (["--corrector", "greedy"], "--corrector greedy"),
    (["--tail", "greedy"], "--corrector greedy"),
    (["--lambada", "nowhere.jsonl"], "cannot read nowhere.jsonl: No such file"),
    (["--compile", "--oracle", "mdlm"], "--compile needs a network"),
])
def test_what_cannot_be_evaluated_is_one_line_before_anything_is_measured(argv, says, capsys):
    model = [] if "--oracle" in argv else ["--out_dir", "mdlm"]
    assert says in complaint(evaluate, *model, *argv, capsys=capsys)
    assert not Path("mdlm/evaluation.json").exists()


TABLES = {"--sampler": SAMPLERS, "--corrector": CORRECTORS}


def choices():
    """A command line for each choice of each flag of evaluate.py: also each sampler and corrector.
    Choices of their flags reach them in the same way as in sample.py: test_sample.py."""
    left_out = {"oracle", "compile"}  # see above; the compiler takes a minute
    for f in flags_of(evaluate.Config).values():
        for choice in [*(f.metadata["choices"] or []), *(f.metadata["table"] or [])]:
            if f.name not in left_out and choice and not f.metadata["needs"]:
                yield [f"--{f.name}", choice]


def misfit(argv, method):
    """Why a row of a table does not fit a method, if it does not."""
    table = TABLES.get(argv[0], {})
    return argv[1] in table and load_row(table, argv[1])().fits(make_method(method, 8))


def tried():
    """Each choice with mdlm, and with udlm where one of the two refuses it."""
    for argv in choices():
        yield "mdlm", argv
        if misfit(argv, "mdlm") or misfit(argv, "udlm"):
            yield "udlm", argv


@pytest.mark.parametrize("method, argv", [*tried()], ids=str)
def test_every_choice_of_every_flag_works_or_does_not_fit_the_method(method, argv, monkeypatch,
                                                                     capsys):
    monkeypatch.setattr(evaluate, "bound_figures", lambda *args: {})
    reason = misfit(argv, method)
    few = ["--out_dir", method, "--max_texts", 4, "--num_samples", 2, "--steps", 2]
    if reason:
        assert reason in complaint(evaluate, *few, *argv, capsys=capsys)
    else:
        run(*few, *argv)
        assert "exact -log p, nats/token" in capsys.readouterr().out


def test_every_sampling_flag_reaches_the_sampler(monkeypatch, capsys):
    """Each of these gives other samples than all others, and one seed the same."""
    monkeypatch.setattr(evaluate, "bound_figures", lambda *args: {})
    few = ["--oracle", "udlm", "--max_texts", 2, "--draws", 1, "--num_samples", 9, "--steps", 6]
    ways = [["--sampler", "psi", "--kappa", kappa, "--eta", 0.2]
            for kappa in ("constant", "cap", "rescale", "loop")]
    ways += [[], ["--temperature", 0.5], ["--top_p", 0.5], ["--corrector", "greedy"]]
    ways += [["--sampler", "psi", "--eta", 0.9],
             ["--sampler", "psi", "--eta", 0.9, "--corrector", "greedy"], ["--seed", 3]]
    rated = [str(results(capsys, *few, *way)["samples"]) for way in ways]
    assert len(set(rated)) == len(ways)
    assert str(results(capsys, *few)["samples"]) == rated[4]


def test_the_precision_of_products_is_that_of_the_flag(monkeypatch):
    monkeypatch.setattr(evaluate, "bound_figures", lambda *args: {})
    for precision in ("medium", "high", "highest"):
        run("--oracle", "mdlm", *FEW, "--matmul_precision", precision)
        assert torch.get_float32_matmul_precision() == precision


def test_the_help_shows_the_flags_of_the_sampler_that_is_chosen(capsys):
    with pytest.raises(SystemExit) as end:
        parse(evaluate.Config, ["--sampler", "psi", "--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0 and "--kappa" in text and "--zero_shot" in text
    assert "--decode_block" not in text and re.search(r"--judge\b", text)


def test_a_published_model_without_data_says_what_to_give(monkeypatch):
    model = load_model("mdlm")
    model.config.data = ""
    with pytest.raises(UserError, match="give --data, what to evaluate it on"):
        data_of(model)
