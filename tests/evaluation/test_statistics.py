"""Zipf, Heaps, repetition and their p-values: counted by hand, and right under the null."""
import json
import math
import re
from itertools import combinations
from types import SimpleNamespace

import pytest
import torch

import evaluate
from checkpoints.file import as_json
from data.toy import Toy, ToyCorpus
from evaluation import report, statistics
from evaluation.statistics import (
    compare_statistics,
    deal,
    distance_to_law,
    distances_of_heaps,
    distances_of_values,
    distances_of_words,
    heaps_fit,
    heaps_of,
    p_value,
    repetition,
    row_of_law,
    values_of_texts,
    zipf_exponent,
    zipf_of,
)
from evaluations import run
from flags import parse

DATA = ToyCorpus(32)


def texts_at(temperature, n, seed):
    """Texts of the toy language whose every next word is drawn at a temperature. -> (n, 12)"""
    language, draw = DATA.language, torch.Generator().manual_seed(seed)
    if temperature == 1:
        return language.sample(n, 12, draw)
    x = torch.zeros(n, 0, dtype=torch.long)
    for _ in range(12):
        p = language.predict(torch.cat([x, x.new_zeros(n, 1)], 1))[:, -1]  # (n, V)
        x = torch.cat([x, (p ** (1 / temperature)).multinomial(1, generator=draw)], 1)
    return x  # (n, 12)


# ---- counted by hand

@pytest.mark.parametrize("counts, s", [
    ([8, 4], 1.0), ([4, 8], 1.0), ([9, 3], math.log2(3)), ([5, 5, 5], 0.0), ([0, 7, 0, 7], 0.0)])
def test_two_words_tell_the_exponent_by_their_ratio_and_equal_ones_have_none(counts, s):
    assert zipf_exponent(torch.tensor([counts])).item() == pytest.approx(s, abs=1e-9)


def test_the_exponent_is_the_one_that_words_were_counted_by_and_the_likeliest():
    r = torch.arange(1, 51).double()
    counts = 1e6 * r ** -1.3  # (50,)
    assert zipf_exponent(counts[None]).item() == pytest.approx(1.3, abs=1e-9)
    counts = torch.tensor([40, 11, 9, 5, 1, 1]).double()
    s = zipf_exponent(counts[None]).item()
    r = torch.arange(1, 7).double()
    fit = lambda s: (counts * (-s * r.log() - (r ** -s).sum().log())).sum()  # () log-likelihood
    assert fit(s) > max(fit(s - 1e-3), fit(s + 1e-3))
    assert zipf_exponent(torch.tensor([[3, 0], [2, 1]])).isnan().tolist() == [True, False]
    assert zipf_of([["a", "b"], ["a", "c"], ["a", "a"]]) == pytest.approx(zipf_exponent(
        torch.tensor([[4, 1, 1]])).item()) and math.isnan(zipf_of([["a"]]))


def test_types_grow_as_the_power_that_they_were_written_by():
    new = torch.arange(64)
    assert heaps_fit(new) == pytest.approx((1, 1))  # every word is new: types = n
    assert heaps_fit(torch.zeros(64, dtype=torch.long)) == pytest.approx((1, 0))
    words = torch.zeros(32, dtype=torch.long)
    words[:3], words[8:11] = torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6])
    words[16:24] = torch.arange(7, 15)  # 4 types of 8 words, 7 of 16, 15 of 32
    b = math.log(15 / 4) / math.log(4)  # of three points at equal distances: the outer ones
    k = math.exp(math.log(4 * 7 * 15) / 3 - b * math.log(16))
    assert heaps_fit(words) == pytest.approx((k, b))
    assert all(map(math.isnan, heaps_fit(new[:15])))
    assert heaps_of([list("abcdefgh"), list("hijklmno")]) == pytest.approx(math.log2(15 / 8))


def test_repetition_and_the_other_numbers_of_a_text_are_counted_in_it_alone():
    words = "the cat . the cat sat .".split()
    assert repetition(words, 1) == pytest.approx(3 / 7) and repetition(words, 3) == 0
    assert repetition(words, 2) == pytest.approx(1 / 6) and repetition(words, 9) == 0
    found = values_of_texts([words, ["a"]], {"the", "cat"})
    assert found["words"].tolist() == [7, 1]
    assert found["words per sentence"].tolist() == pytest.approx([7 / 3, 1])
    assert found["share of the 2 most common words"].tolist() == pytest.approx([4 / 7, 0])
    assert found["share of symbols"].tolist() == pytest.approx([2 / 7, 0])


# ---- distances

def test_the_distance_of_numbers_is_that_of_two_samples_ties_included():
    values = torch.randint(6, (40,), generator=torch.Generator().manual_seed(0)).double()
    order = deal(20, 30, torch.Generator().manual_seed(1))  # (31, 40)
    assert torch.equal(order[0], torch.arange(40)) and len({*map(tuple, order.tolist())}) == 31
    found = distances_of_values(values, order)  # (31,)
    for d, row in zip(found, order):
        one, two = values[row[:20]], values[row[20:]]  # (20,) each
        expected = max(abs((one <= v).double().mean() - (two <= v).double().mean()) for v in values)
        assert d.item() == pytest.approx(expected.item())


def test_the_distances_of_words_are_those_of_the_sets_that_a_permutation_makes(monkeypatch):
    monkeypatch.setattr(statistics, "AT_ONCE", 9)  # a few permutations at a time
    texts = [list("abca"), list("aab"), list("abcdddd"), list("ce")]
    number = {letter: i for i, letter in enumerate("abcde")}
    numbered = [torch.tensor([number[letter] for letter in words]) for words in texts]
    whose = torch.arange(4).repeat_interleave(torch.tensor([*map(len, texts)]))
    order = torch.tensor([[0, 1, 2, 3], [3, 0, 1, 2], [2, 1, 3, 0], [0, 2, 1, 3]])
    of_words, of_s = distances_of_words(torch.cat(numbered), whose, order)
    of_b = distances_of_heaps([a.repeat(8) for a in numbered], order)
    assert of_words[0].item() == pytest.approx(4 / 7 - 1 / 9)  # of the most frequent, a
    for i, row in enumerate(order.tolist()):
        one, two = ([c for j in half for c in texts[j]] for half in (row[:2], row[2:]))
        assert of_s[i].item() == pytest.approx(abs(zipf_of([one]) - zipf_of([two])))
        one, two = ([8 * texts[j] for j in half] for half in (row[:2], row[2:]))
        assert of_b[i].item() == pytest.approx(abs(heaps_of(one) - heaps_of(two)), abs=1e-9)


def test_the_distance_to_a_law_is_the_largest_of_its_sums():
    law = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)  # (V,)
    assert distance_to_law(torch.tensor([[2, 5, 3], [5, 5, 0], [0, 0, 4]]), law).tolist() == (
        pytest.approx([0, 0.3, 0.5]))  # sums in the order .5, .3, .2


# ---- p-values

def test_all_dealings_of_four_texts_have_the_p_value_of_their_rank():
    """Of values 1, 2, 3, 4 two against two: D is 1 for 12|34 and 34|12, else 1/2."""
    rows = [[*first, *({0, 1, 2, 3} - {*first})] for first in combinations(range(4), 2)]
    d = distances_of_values(torch.arange(4).double(), torch.tensor(rows))
    assert d.tolist() == [1, .5, .5, .5, .5, 1]
    assert p_value(d) == pytest.approx(2 / 6) and p_value(d[1:]) == 1
    assert p_value(torch.tensor([9.0, 1, 2, 3])) == 1 / 4  # never 0
    assert p_value(torch.tensor([math.nan, 1, 2])) == p_value(torch.tensor([3, math.nan, 5])) == 1


def p_values(ours, theirs, m, seed):
    """The p-values of a word law, s, b, and repetition; ours, theirs (n, L)."""
    n, x = len(ours), torch.cat([ours, theirs])
    order = deal(n, m, torch.Generator().manual_seed(seed))
    whose = torch.arange(2 * n).repeat_interleave(x.shape[1])
    value = torch.tensor([repetition(row, 1) for row in x.tolist()])
    d = *distances_of_words(x.flatten(), whose, order), distances_of_heaps([*x], order)
    return [*map(p_value, d), p_value(distances_of_values(value, order))]


def test_p_values_of_texts_of_one_law_are_uniform():
    """P(p <= a) is a; with ties it is less. 60 pairs of sets, 19 permutations: steps of 0.05."""
    pool = DATA.language.sample(60 * 16, 12, torch.Generator().manual_seed(7)).view(60, 2, 8, 12)
    p = torch.tensor([p_values(*pair, 19, i) for i, pair in enumerate(pool)])  # (60, 4)
    for a in (0.05, 0.25, 0.5, 0.75):
        share, error = (p <= a + 1e-6).double().mean(0), (a * (1 - a) / 60) ** 0.5  # (4,)
        assert (share < a + 3.5 * error).all(), a
        assert (share[1:3] > a - 3.5 * error).all(), a  # s and b have hardly any ties


def test_a_changed_temperature_is_detected():
    """64 texts of 12 words at temperature 0.7."""
    p = p_values(texts_at(0.7, 64, 1), texts_at(1, 64, 2), 99, 0)
    assert p[0] == p[1] == 0.01 and p[3] <= 0.02, p  # b needs more text


def test_the_known_law_of_the_words_is_that_of_the_language_and_of_a_topic():
    draw = torch.Generator().manual_seed(0)
    x = DATA.language.sample(64, 12, draw)
    what, d, _, held, _, _, p = row_of_law(x, x, DATA.language, None, 99, draw)
    assert d == held and p > 0.02
    school, texts = torch.tensor([3]), DATA.language.sample(64, 12, draw, topic=3)
    own, of_all = (row_of_law(texts, x, DATA.language, k, 99, draw) for k in (school, None))
    assert own[-1] > 0.02 and of_all[-1] == 0.01 and own[1] < of_all[1]


# ---- rows

def test_the_rows_compare_as_many_held_out_texts_and_leave_out_what_never_differs():
    config = SimpleNamespace(permutations=19, seed=0)
    samples, x = texts_at(0.7, 40, 1), DATA.language.sample(90, 12)
    found = compare_statistics(samples, x, DATA, None, config)
    rows = {row[0]: row[1:] for row in found["statistics"]}
    assert found["statistics_texts"] == 40 and "words" not in rows  # always 12
    assert rows["Zipf's exponent s"][0] == pytest.approx(zipf_of(samples.tolist()))
    assert rows["Zipf's exponent s"][2] == pytest.approx(zipf_of(
        x[torch.linspace(0, 89, 40).round().long()].tolist()))
    assert rows["Heaps' exponent b"][0] == pytest.approx(heaps_of(samples.tolist()))
    for what in ("words, by rank", "words against their known law", "repetition, rep-1"):
        assert 0.05 <= rows[what][-1] <= 1
    assert all(row[1] > 0 and row[3] > 0 for what, row in rows.items() if "exponent" in what)
    config.permutations = 0
    assert compare_statistics(samples, x, DATA, None, config) == {}


def test_images_have_tokens_in_place_of_words():
    x = torch.randint(17, (12, 64), generator=torch.Generator().manual_seed(0))  # (n, 64)
    data = SimpleNamespace(is_text=False, language=None, ids=lambda split: x.flatten().numpy())
    found = compare_statistics(x[:6], x, data, None, SimpleNamespace(permutations=9, seed=0))
    rows = {row[0]: row[1:] for row in found["statistics"]}
    assert rows["Zipf's exponent s"][0] == pytest.approx(zipf_of(x[:6].tolist()))
    assert rows["repetition, rep-1"][0] > 0.5 and "words per sentence" not in rows


def test_evaluate_prints_the_rows_and_refuses_them_without_samples(capsys, monkeypatch):
    """The rows are those of evaluation.json, too: Report.add prints what it keeps."""
    monkeypatch.setattr(Toy, "entropy", lambda self, length: (2.1, 0.0))
    kept = {}
    monkeypatch.setattr(report, "save_evaluation", lambda config, step, figures:
                        kept.update(json.loads(as_json(figures))))
    run("--oracle", "ar", "--max_texts", 8, "--num_samples", 8, "--draws", 1, "--permutations", 9,
        "--device", "cpu")
    table = capsys.readouterr().out.split("8 texts of each, 9 permutations")[1]
    assert kept["permutations"] == 9 and kept["statistics_texts"] == 8
    for what, mean, error, other, _, distance, p in kept["statistics"]:
        line, = re.findall(f"^{re.escape(what)} .*", table, re.M)
        assert line.endswith(f"{distance:>11.3f}{p:>9.4f}") and 0.1 <= p <= 1
        assert mean is None or f"{mean:.3f}" in line and f"{other:.3f}" in line
        assert error is None or f"{mean:.3f} +- {error:.3f}" in line
    for line in ("--num_samples 0", "--chat"):
        with pytest.raises(SystemExit):
            parse(evaluate.Config, [*line.split(), "--permutations", "9"])
        assert "--permutations counts for nothing" in capsys.readouterr().err
