"""Records: the gap is that to the entropy, recipes are flags of train.py, the page has them all."""
import re

import pytest
import torch

import train
from data import load_data
from experiments import record
from experiments.record import RECIPES, gap_of, train_recipe
from flags import configure
from methods import make_method
from runs import cache, elsewhere  # noqa: F401
from script import spell
from tree import ROOT

PAGE = (ROOT / "docs" / "records.md").read_text("utf-8")


@pytest.fixture(scope="module")
def data():
    return load_data("toy", record.WORDS)


@pytest.mark.parametrize("name", ["mdlm", "ar"])
def test_the_gap_of_the_exact_denoiser_is_zero_and_that_of_another_its_excess(data, name):
    """Of exact ar on each text; of a bound in the mean. Twice the temperature is worse."""
    method, x = make_method(name, data.language.V), data.windows("val", 60)  # (n, L)
    exact = method.oracle(data.language)
    gap = gap_of(method, exact, x, data.language)  # (n,)
    error = gap.std() / len(gap) ** 0.5
    assert gap.abs().max() < 1e-9 if method.exact else gap.mean().abs() < 4 * error < 0.4
    flat = lambda z, t, at=None, **layout: (0.5 * exact(z, t, at, **layout)).log_softmax(-1)
    assert gap_of(method, flat, x, data.language).mean() > gap.mean() + 0.05


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_flags_of_train_and_stands_in_the_page(name):
    config = configure(train.Config, **record.COMMON, **RECIPES[name], method=name)
    assert config.block_size == record.WORDS and config.max_iters == RECIPES[name]["max_iters"]
    row, = re.findall(rf"^\| `{name}` \|.*$", PAGE, re.M)
    flags = {key: value for key, value in RECIPES[name].items() if key != "max_iters"}
    assert f"`{spell(flags)}`" in row and f"| {RECIPES[name]['max_iters']:,} |" in row


def test_the_goal_of_the_page_is_that_of_the_code():
    assert f"{record.GOAL} nats above the entropy" in PAGE.splitlines()[0]
    assert f"texts of {record.WORDS} words" in PAGE


def test_training_takes_the_steps_of_the_recipe_and_its_seed(data):
    tiny = dict(n_layer=1, n_embd=16, n_head=2, batch_size=2, warmup_iters=0, max_iters=4)
    (one, minutes), (other, _) = (train_recipe(tiny, "mdlm", data, 0.5, seed) for seed in (1, 2))
    assert one.config.max_iters == 2 and one.config.seed == 1 and 0 < minutes < 1
    assert not torch.equal(one.average.embed, other.average.embed)


def test_it_prints_each_seed_and_whether_the_goal_is_reached(monkeypatch, capsys):
    tiny = dict(n_layer=1, n_embd=16, n_head=2, batch_size=2, warmup_iters=0, max_iters=2)
    monkeypatch.setitem(RECIPES, "ar", tiny)
    for goal, says in ((0.05, "missed"), (9.0, "reached")):
        monkeypatch.setattr(record, "GOAL", goal)
        record.main(configure(record.Config, methods="ar", seeds=2, texts=20))
        said = capsys.readouterr().out.splitlines()
        assert [line.split(":")[0] for line in said[1:]] == ["ar, seed 1", "ar, seed 2", "ar"]
        assert said[-1].endswith(f"CPU min: {says}") and f"goal: {goal}" in said[0]
