"""The tables of experiments/variants.py, for tiny networks and few steps."""
import math
import re

import pytest

from experiments import training, variants
from flags import UserError, configure
from runs import cache, elsewhere  # noqa: F401
from runtime import progress


@pytest.mark.parametrize("command, rows", [
    ("ggm", ["words ", "bits "]),
    ("dfm", ["udlm ", "posterior ", "posterior with bound reversal ",
             "others with bound reversal "])])
def test_each_value_has_a_row_and_a_difference_on_the_same_texts(command, rows, monkeypatch,
                                                                 capsys):
    tiny = dict(n_layer=1, n_embd=8, n_head=1, dtype="float32", eval_iters=1, warmup_iters=0,
                batch_size=2, max_iters=10)
    monkeypatch.setattr(training, "TWO_MINUTES", tiny)
    monkeypatch.setattr(progress, "print_evaluation", lambda *args: None)
    variants.main(configure(variants.Config, command=command, share=0.1, texts=8, length=8,
                              out_dir="runs"))
    said = capsys.readouterr().out
    table, differences = said.split("on the same texts", 1)
    assert all(f"\n{row}" in table for row in rows)
    first, *others = (row.strip() for row in rows)
    assert all(f"{row} less {first}: " in differences for row in others)


def test_runs_are_chosen_and_train_for_a_time(monkeypatch, capsys):
    tiny = dict(n_head=4, dtype="float32", eval_iters=1, batch_size=2, max_iters=10)
    monkeypatch.setattr(training, "TWO_MINUTES", tiny)
    monkeypatch.setattr(progress, "print_evaluation", lambda *args: None)
    steps = []
    monkeypatch.setattr(variants, "steps_in", lambda seconds, **flags: steps.append(seconds) or 21)
    variants.main(configure(variants.Config, command="embeddings", runs="mdlm,one call", texts=8,
                            length=8, seconds=3, num_samples=4, out_dir="runs"))
    said = capsys.readouterr().out
    assert "mdlm: 21 steps" in said and "less mdlm: " in said and steps == [3, 3]
    mdlm, other = (float(re.search(rf"\n{name} +(\d.\d+) \+-", said)[1])
                   for name in ("mdlm", "one call"))
    ratio = float(re.search(r"one call: (\d.\d+) \+- .* times as far as mdlm", said)[1])
    assert ratio == pytest.approx(other / mdlm, abs=0.01)
    wrong = float(re.search(r"\nsamples of one call +(\d.\d+) \+-", said)[1])
    assert 4 < wrong < 12  # words at random
    assert mdlm < math.log(113) - 1  # less the exact -log p, about 2.2 nats a word
    with pytest.raises(UserError, match="--runs rosw is not one of mdlm, ar"):
        variants.main(configure(variants.Config, command="embeddings", runs="rosw"))
