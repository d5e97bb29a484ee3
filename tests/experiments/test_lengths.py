"""The experiment on lengths: prompts, lines, and the masks that tau-leaping leaves."""
import math

import torch

from data.sentences import SentenceCorpus
from experiments import lengths
from flags import configure

DATA = SentenceCorpus()


def test_without_its_factor_tau_leaping_leaves_1_minus_1_over_e_of_all_tokens_masked():
    """At any number of steps; with it their number goes to 0."""
    for steps in (256, 1024):
        assert abs(lengths.left_masked(steps, False) - (1 - math.exp(-1))) < 0.003
    assert lengths.left_masked(1024, True) < 0.01 < lengths.left_masked(64, True)


def test_prompts_hold_the_first_the_middle_and_the_last_word():
    x = DATA.windows("val", 20)
    n = DATA.lengths(x)
    given, frozen = lengths.prompts_of(DATA, x)
    assert (given == x)[frozen].all() and torch.equal(frozen[:, :].sum(-1), 20 - n + 3)
    more, fixed = lengths.prompts_of(DATA, x, 1)
    assert torch.equal(fixed.sum(-1), 20 - (n + 2) + 3)
    opened, places = lengths.open_gaps(DATA, x)
    words = lambda given, frozen: [[w for w in row[f].tolist() if w != DATA.end]
                                   for row, f in zip(given, frozen)]
    assert words(given, frozen) == words(more, fixed) == words(opened, places)


def test_exact_denoisers_write_the_lines_of_the_tables(capsys, monkeypatch):
    monkeypatch.setattr(lengths, "GRIDS", (2, 4))
    for command, methods, lines in (("law", "ilm", 4), ("infill", "flexmdm", 4), ("tau", "", 5),
                                    ("grids", "", 6)):
        lengths.main(configure(lengths.Config, command=command, methods=methods, exact=True,
                               texts=12, steps=6))
        out = capsys.readouterr().out
        assert out.count("\n") == lines and "nan" not in out
