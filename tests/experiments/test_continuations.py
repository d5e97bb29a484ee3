"""Continuations of prompts: what is measured is the language's, and every model has its lines."""
import pytest
import torch

from data import load_data
from experiments import continuations
from flags import configure
from oracle import exact
from runs import TINY, cache, elsewhere  # noqa: F401

DATA = load_data("toy", continuations.LENGTH)


def test_true_continuations_are_in_the_grammar_and_cost_nothing_more():
    x = DATA.windows("val", 300)
    (nats, _), (fits, _) = continuations.quality(DATA.language, x, x, 8)
    assert nats == 0 and fits > 0.999


def test_a_word_in_the_wrong_place_is_out_of_the_grammar():
    """A slip has 1e-4 / V, so hardly a word of the grammar is as rare."""
    x = DATA.windows("val", 200)
    words = x.clone()
    words[:, 20] = x[:, 20].flip(0)
    fits = continuations.grammatical(DATA.language, words)  # (n, L)
    changed = words[:, 20] != x[:, 20]
    assert fits[:, :20].double().mean() > 0.999 and fits[changed, 20].double().mean() < 0.8
    (nats, error), _ = continuations.quality(DATA.language, words, x, 20)
    assert nats > 5 * error


def test_the_exact_bound_chooses_the_true_continuation_as_bayes_does():
    x = DATA.windows("val", 100)
    model = exact("ar")
    share, _ = continuations.chooses(model, x, 16)
    other = torch.cat([x[:, :16], x.roll(1, 0)[:, 16:]], 1)
    best = DATA.language.log_prob(x) > DATA.language.log_prob(other)
    assert share == best.double().mean() > 0.9


@pytest.mark.parametrize("flags", [dict(exact=True, methods="ar", prompts="24"),
                                   dict(prompts="30")])
def test_every_way_to_write_has_its_line(flags, capsys, monkeypatch):
    tiny = {key: value for key, value in TINY.items() if key != "block_size"}
    monkeypatch.setattr(continuations, "RECIPE", dict(tiny, block_size=continuations.LENGTH))
    continuations.main(configure(continuations.Config, texts=4, out_dir="out", **flags))
    lines = capsys.readouterr().out.split("right choice\n")[1].splitlines()
    prompts = flags["prompts"].split(",")
    each = 1 if flags.get("exact") else 1 + 6 + 3  # ar, mdlm in 1 .. 32 steps, bd3lm in 1 .. 4
    assert len(lines) == each * len(prompts)
    assert [line.split()[0] for line in lines] == [n for n in prompts for _ in range(each)]
    assert ("ar, cache" in lines[0]) and all("+-" in line for line in lines)
