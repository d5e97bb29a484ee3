"""Which texts a model is scored on, and in whose tokens."""
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from models import random_checkpoint

import evaluate
from checkpoints.load import load_model
from data import load_data
from data.tokenizer import to_json
from data.toy import ToyCorpus
from evaluation.held_out import bound_figures, classifier_rows, data_of, texts_of, zero_shot_figures
from flags import UserError, configure
from oracle import exact
from runs import cache, elsewhere  # noqa: F401


def flags(**others):
    known = dict(max_texts=20, draws=1, batch_size=8, seed=1)
    return configure(evaluate.Config, **{**known, **others})


def model_without(first_token=None, classes=()):
    return SimpleNamespace(method=SimpleNamespace(first_token=first_token), classes=classes)


def test_a_model_reads_a_file_in_its_own_tokens_even_if_the_file_has_changed():
    Path("a.txt").write_text("a rose is a rose\n" * 99)
    model = load_model(random_checkpoint("out", data="a.txt", tokenizer="chars"))
    assert data_of(model).about == load_data("a.txt", 8, "chars").about
    Path("a.txt").write_text("a rose\n" * 99)  # without i
    data = data_of(model)
    assert to_json(data.encoding) == to_json(model.encoding)
    assert data.encoding.n_vocab == 8 and load_data("a.txt", 8, "chars").encoding.n_vocab == 7
    Path("b.txt").write_text("rose rose\n" * 99)
    assert data_of(model, "b.txt").name == "b.txt"
    with pytest.raises(UserError, match="toy has tokens of its own"):
        data_of(model, "toy")


def test_a_first_token_that_every_text_has_is_given_and_not_scored():
    data = ToyCorpus(8)
    held = texts_of(model_without(first_token=3), data, flags(), "cpu")
    assert held.frozen[:, 0].all() and not held.frozen[:, 1:].any() and len(held.x) == 20
    assert torch.equal(held.x, data.windows("val", 20)) and held.label is held.condition is None
    assert texts_of(model_without(), data, flags(), "cpu").frozen is None


def test_texts_of_a_class_are_those_of_that_label_and_a_labeled_model_is_told():
    data = ToyCorpus(8)
    x, _, labels = data.example_windows("val", 60)
    for classes, classifier, is_told in (((), "", False), (data.classes, "", True),
                                         (data.classes, "judge", False)):
        held = texts_of(model_without(classes=classes), data,
                        flags(label="sea", max_texts=60, classifier=classifier), "cpu")
        assert torch.equal(held.x, x[labels == 1]) and held.label.tolist() == [1]
        assert (held.condition is not None) == is_told
    with pytest.raises(UserError, match="fewer than two are school: raise --max_texts"):
        texts_of(model_without(), data, flags(label="school", max_texts=2), "cpu")
    with pytest.raises(UserError, match="there is no class 'lake'"):
        texts_of(model_without(), data, flags(label="lake"), "cpu")
    with pytest.raises(UserError, match="toy has no train-ish split"):
        texts_of(model_without(), data, flags(split="train-ish"), "cpu")


def test_a_class_is_asked_of_data_with_classes_only():
    Path("a.txt").write_text("a rose is a rose\n" * 99)
    with pytest.raises(UserError, match="a.txt has no classes"):
        texts_of(model_without(), load_data("a.txt", 8, "chars"), flags(label="sea"), "cpu")


def test_the_gap_is_to_the_entropy_of_the_language_or_of_the_texts_of_a_class():
    """Through the exact next-word distribution, whose gap is 0 for the very texts of a class."""
    model, data = exact("ar"), ToyCorpus(32)
    held = texts_of(model, data, flags(label="sea", max_texts=60), "cpu")
    figures = bound_figures(model, data, held, flags())
    assert figures["gap"] == pytest.approx(0, abs=1e-5) and figures["exact"] is True
    assert figures["gap_error"] < 1e-5 < figures["standard_error"]  # of differences, text by text
    held = texts_of(model, data, flags(max_texts=60), "cpu")
    figures = bound_figures(model, data, held, flags())
    assert figures["entropy"] == data.language.entropy(32)[0]
    assert abs(figures["gap"]) < 4.5 * figures["gap_error"]


def test_other_data_are_scored_as_unlabeled_text():
    Path("a.txt").write_text("a rose is a rose\n" * 99)
    model = load_model(random_checkpoint("out", data="a.txt", tokenizer="chars"))
    zero, labeled = (zero_shot_figures(model, "a.txt", flags(label=label), "cpu")
                     for label in ("", "sea"))
    assert zero == labeled and zero["texts"] == 20


@pytest.mark.parametrize("noise", ["mdlm", "md4", "udlm", "gidd"])
def test_the_exact_posterior_stands_beside_a_classifier_of_any_noise(noise):
    model = load_model(random_checkpoint("judge", method="classifier", noise_of=noise, labels=True))
    rows = classifier_rows(model.method, model.denoiser, ToyCorpus(8), 200, "cpu")
    assert [row["t"] for row in rows] == [0.1, 0.3, 0.5, 0.7, 0.9]
    exactly = [row["exact_nats"] for row in rows]
    assert exactly == sorted(exactly) and all(row["exact_nats"] < row["nats"] for row in rows)
    assert rows[0]["exact_accuracy"] > rows[-1]["exact_accuracy"]
    with pytest.raises(UserError, match="has no other split"):
        classifier_rows(model.method, model.denoiser, ToyCorpus(8), 20, "cpu", split="other")
