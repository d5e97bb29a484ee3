"""What is said about samples: every measure by a case that is counted by hand."""
import math
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest
import torch

from data.toy import ToyCorpus
from evaluation import sample_quality
from evaluation.held_out import texts_of
from evaluation.sample_quality import (
    count_known_words,
    distinct_ngrams,
    has_words,
    jackknife,
    known_words,
    mauve_of,
    rate_diversity,
    rate_samples,
    sample_figures,
    self_bleu,
    unigram_entropy,
)

THREE = [text.split() for text in ("the cat sat", "the cat ran", "a dog")]


# ---- counted by hand

def test_the_entropy_of_a_text_is_that_of_its_counts():
    x = torch.tensor([[0, 0, 0, 0], [0, 1, 0, 1], [5, 6, 7, 5]])
    assert unigram_entropy(x).tolist() == pytest.approx([0, math.log(2), 1.5 * math.log(2)])


def test_distinct_n_counts_different_n_grams_among_all():
    """Words: the 2, cat 2, sat, ran, a, dog: 6 of 8. Pairs: the cat 2, cat sat, cat ran, a dog: 4
    of 5."""
    assert distinct_ngrams(THREE, 1) == 6 / 8 and distinct_ngrams(THREE, 2) == 4 / 5
    assert distinct_ngrams([["a"]] * 3, 2) == 0


def test_the_error_of_a_figure_of_a_set_is_its_jackknife():
    without = [5 / 5, 5 / 5, 4 / 6]                          # each of the three texts left out
    mean = sum(without) / 3
    expected = math.sqrt(2 / 3 * sum((value - mean) ** 2 for value in without))
    found = jackknife(lambda texts: distinct_ngrams(texts, 1), THREE)
    assert found == (6 / 8, pytest.approx(expected))
    groups = []
    jackknife(lambda texts: groups.append(texts) or 0.0, [*"abcdefg"], 3)
    assert list(map("".join, groups)) == ["cdefg", "abefg", "abcd", "abcdefg"]


@pytest.mark.parametrize("figure", [lambda texts: distinct_ngrams(texts, 2),
                                    lambda texts: self_bleu(texts).mean().item()],
                         ids=["distinct-2", "self-BLEU"])
def test_the_jackknife_is_the_spread_over_sets_of_other_texts(figure):
    """It errs on the side of too much, by up to a half; the spread of the texts by itself is a
    third too small for self-BLEU, since each text is also a reference of others."""
    data, found = ToyCorpus(16), []
    texts = [data.text(row).split() for row in data.windows("train", 12 * 50).tolist()]
    for i in range(50):
        found.append(jackknife(figure, texts[12 * i:12 * i + 12]))
    values, errors = torch.tensor(found).unbind(-1)
    assert 0.9 < errors.mean() / values.std() < 1.5  # 1.1 and 1.2


def test_self_bleu_is_one_for_repeats_and_small_for_strangers():
    same = ["one two three four five".split()] * 3
    assert self_bleu(same).tolist() == pytest.approx([1, 1, 1])
    strangers = [f"{c}1 {c}2 {c}3 {c}4 {c}5".split() for c in "abc"]
    smoothed = math.prod(0.1 / m for m in (5, 4, 3, 2)) ** (1 / 4)
    assert self_bleu(strangers).tolist() == pytest.approx([smoothed] * 3)


def test_self_bleu_clips_counts_by_one_reference_and_punishes_brevity():
    """a a b c against "a b c d" and "a a x y z": a twice in the second, b, c once in the first, so
    4 of 4 words; pairs ab, bc, aa: 3 of 3; triples abc in the first, aab in none: 1 of 2; the
    quadruple: 0 of 1. Nearest length: 4."""
    texts = [text.split() for text in ("a a b c", "a b c d", "a a x y z")]
    assert self_bleu(texts)[0].item() == pytest.approx((4 / 4 * 3 / 3 * 1 / 2 * 0.1 / 1) ** (1 / 4))
    short = [text.split() for text in ("a b", "a b c d")]
    brief = (1 * 1 * 0.1 * 0.1) ** (1 / 4) * math.exp(1 - 4 / 2)
    assert self_bleu(short)[0].item() == pytest.approx(brief)
    assert self_bleu([[], ["a"], ["a"]])[0] == 0


def test_one_text_has_no_variety():
    data = ToyCorpus(8)
    assert rate_diversity(data.windows("val", 1), data) == []
    assert len(rate_diversity(data.windows("val", 2), data)) == 4


# ---- beside held-out text

def test_words_are_known_if_they_occur_in_either_split_and_do_not_touch_an_edge():
    texts = {"train": " green bottles hang ", "val": " a wall of stone "}
    data = SimpleNamespace(ids=texts.get, text=lambda ids: ids, is_text=True, language=None)
    known, words = count_known_words(["bot green wall xyz wal", " stone green a of "],
                                     known_words(data))
    assert (known.tolist(), words.tolist()) == ([2, 2], [3, 2])  # green, wall, xyz; stone, green


def test_the_share_of_known_words_has_the_error_of_texts_since_words_cluster_in_them():
    """Whole texts of known or of unknown words: as if two words were drawn, not twenty."""
    good, bad = " one two" * 5 + " ", " eno owt" * 5 + " "
    spell = lambda row: row if isinstance(row, str) else (good, bad)[row[0] % 2]
    data = SimpleNamespace(ids=lambda split: " one two ", is_text=True, language=None, text=spell,
                           score=lambda x, label: [])
    x = torch.arange(4)[:, None]
    *_, (what, share, error) = rate_samples(x, data, None, 64)
    assert what == "words that stand in the corpus, of 40" and share == 0.5
    assert error == pytest.approx((0.5 ** 2 / 3) ** 0.5)  # of four texts; a binomial has .079


def test_the_rows_of_the_toy_language_are_exact_and_with_a_label_of_its_class():
    data = ToyCorpus(8)
    x, _, labels = data.example_windows("val", 40)
    x, label = x[labels == 1], torch.tensor([1])
    rows = {what: mean for what, mean, _ in rate_samples(x, data, None, 64, label)}
    language = data.language
    assert rows["exact -log p, nats/token"] == pytest.approx(-language.log_prob(x).mean() / 8)
    given = -language.log_prob(x, label).mean() / 8
    assert rows["exact -log p given the class, nats/token"] == pytest.approx(given)
    posterior = language.topic_posterior(x)[:, 1].mean()
    assert rows["exact p(class | text)"] == pytest.approx(posterior) and len(rows) == 4
    assert len(rate_samples(x, data, None, 64)) == 2


def test_what_belongs_to_a_set_of_texts_is_compared_on_sets_of_one_size(monkeypatch):
    """Of more texts, fewer n-grams are distinct. Held-out ones are spread over all there are."""
    seen, held = [], torch.arange(50)[:, None]
    monkeypatch.setattr(sample_quality, "rate_samples", lambda *of: [])
    monkeypatch.setattr(sample_quality, "rate_diversity",
                        lambda x, data: seen.append(x[:, 0].tolist()) or [])
    data = SimpleNamespace(is_text=False, independent_texts=False, score_set=lambda x: [])
    config = SimpleNamespace(batch_size=64, mauve=False)
    for n in (7, 90):
        samples = torch.arange(100, 100 + n)[:, None]
        assert sample_figures(samples, held, data, None, None, config)["num_samples"] == n
    assert [*map(len, seen)] == [7, 7, 50, 50]
    assert (seen[1][0], seen[1][-1]) == (0, 49) and seen[0][0] == 100


def test_samples_of_a_class_are_compared_with_held_out_text_of_that_class_only():
    data = ToyCorpus(16)
    model = SimpleNamespace(method=SimpleNamespace(first_token=None), classes=("a", "b", "c", "d"))
    config = SimpleNamespace(label="sea", max_texts=200, split="val", classifier="")
    x, frozen, label, condition = texts_of(model, data, config, "cpu")
    every, _, labels = data.example_windows("val", 200)
    assert torch.equal(x, every[labels == label]) and 0 < len(x) < 200 and frozen is None
    assert data.classes[label] == "sea" and condition.tolist() == label.tolist() * len(x)


def test_mauve_compares_samples_and_held_out_text_and_its_error_is_that_of_other_draws(monkeypatch):
    """A fake that counts: its value is the mean of p, so the error is that of a mean, 1/sqrt(n)."""
    asked, fake = [], ModuleType("mauve")

    def compute_mauve(p_features, q_features, seed, verbose):
        asked.append((p_features, q_features, seed))
        return SimpleNamespace(mauve=p_features.mean())
    fake.compute_mauve, fake.__spec__ = compute_mauve, ModuleSpec("mauve", None)
    monkeypatch.setitem(sys.modules, "mauve", fake)
    p = torch.randn(400, 1, generator=torch.Generator().manual_seed(0))
    judge = SimpleNamespace(states=lambda texts, batch_size: p if texts == "ours" else p + 1)
    value, error = mauve_of(judge, "ours", "theirs", 8, seed=7, again=100)
    assert value == pytest.approx(p.mean().item()) and error == pytest.approx(1 / 20, rel=0.25)
    assert len(asked) == 101 and asked[-1][2] == 7 and (asked[-1][1] == asked[-1][0] + 1).all()


# ---- text without spaces

PROTEIN = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEKAVQVKVKALPDAQFEVVHSLAKWKRQTLGQ"


@pytest.mark.parametrize("text, spaced", [
    ("a rose is a rose, said Gertrude.\n", True), ("Größe über alles, süße Mädchen.\n", True),
    ("Роза это роза, сказала она.\n", True), ("emma\nolivia\nava\n", True),
    ("12 7 9 31 5\n", True), (PROTEIN + "\n", False), ("床前明月光，\n疑是地上霜。\n", False),
    ("これは薔薇の花です。\n", False), ("กุหลาบก็คือกุหลาบ\n", False), ("314159265358979323846", False)],
    ids=["English", "German", "Russian", "names", "numbers", "proteins", "Chinese", "Japanese",
         "Thai", "digits"])
def test_words_are_counted_where_spaces_stand_between_them_and_characters_elsewhere(text, spaced):
    data = SimpleNamespace(ids=lambda split: 20 * text, text=lambda row: "".join(map(str, row)),
                           is_text=True, language=None)
    assert has_words(data) == spaced
    assert bool(known_words(data)) == (spaced and "1" not in text)  # numbers have no letters
    x = type("Rows", (), {"tolist": lambda self: [[text], [text]], "__len__": lambda self: 2})()
    rows = dict((what, value) for what, value, _ in rate_diversity(x, data))
    of = "" if spaced else " of characters"
    assert list(rows) == [*(f"distinct-{n}{of}, of 2 texts" for n in (1, 2, 3)),
                          f"self-BLEU{of} of 2 texts"]
    units = text.split() if spaced else [c for c in text if not c.isspace()]
    assert rows[f"distinct-1{of}, of 2 texts"] == len(set(units)) / len(units) / 2


def test_words_are_letters_of_any_script():
    texts = {"train": " Größe über Роза ", "val": " und "}
    data = SimpleNamespace(ids=texts.get, text=lambda ids: ids, is_text=True, language=None)
    assert known_words(data) == {"Größe", "über", "Роза", "und"}
