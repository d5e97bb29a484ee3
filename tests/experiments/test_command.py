"""Command lines of experiments: what is wrong is told at once, not after an hour of measuring."""

import pytest

from experiments import bd3lm, d3pm, duo, guidance, kernels, learning, mdlm, pgm, recipe, speed
from runs import cache, complaint, elsewhere  # noqa: F401

NUMBERS = "must be whole numbers with commas between, such as 8,32"


@pytest.mark.parametrize("module, words, says", [
    (bd3lm, "", "say what to measure: shrink, clip, speed, cache"),
    (bd3lm, "--command=speed --n_embd=9", "--n_embd 9 must be --n_head 4 times an even number"),
    (bd3lm, "--command=shrink --data=nowhere", "there is no data 'nowhere'"),
    (d3pm, "--length=0", "must be at least 1"),
    (duo, "--command=variance --data=nowhere", "there is no data 'nowhere'"),
    (guidance, "--command=digits --methods=mdml", "'mdml', which is not one of"),
    (guidance, "--command=digits --steps=8;9", NUMBERS),
    (guidance, "--command=toy --strengths=1,-1", "has -1, which must be at least 0"),
    (kernels, "--command=head --n_embd=9", "--n_embd 9 must be a multiple of 2"),
    (learning, "--command=toy --methods=classifier", "'classifier', which is not one of"),
    (learning, "--command=train --data=nowhere", "there is no data 'nowhere'"),
    (mdlm, "--command=samplers --steps=x", NUMBERS),
    (pgm, "--lengths=x", NUMBERS), (pgm, "--n_embd=7", "--n_head 6 times an even number"),
    (pgm, "--pgm_embd=7", "--pgm_embd 7 must be a multiple of the 64 features"),
    (recipe, "--data=nowhere", "there is no data 'nowhere'"),
    (speed, "--command=cpu --lengths=x", NUMBERS), (speed, "--command=cpu --batches=8,", NUMBERS),
    (speed, "--command=cpu --methods=x", "'x', which is not one of mdlm, udlm, ar, pgm, bd3lm"),
    (speed, "--command=cpu --steps=8 --steps=9", "--steps is given twice, as '8' and '9'"),
])
def test_a_mistake_is_told_before_any_work(module, words, says, capsys, monkeypatch):
    assert says in complaint(module, *words.split(), capsys=capsys)


@pytest.mark.parametrize("module, command", [(duo, "steps"), (guidance, "toy")])
def test_a_figure_that_cannot_be_drawn_is_told_before_it_is_measured(module, command, capsys,
                                                                     monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    error = complaint(module, f"--command={command}", capsys=capsys)
    assert "needs matplotlib: pip install matplotlib" in error
