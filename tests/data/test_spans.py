"""GENIE's pre-training: spans as its code removes them, exact probabilities, and no leaks."""
import random

import pytest
import torch
from references import Figures

from checkpoints.load import load_model
from data import load_data
from data.spans import count_spans, is_held_out, remove_spans, whole_texts
from data.wording import all_tables, descriptions
from runs import cache, elsewhere, fit  # noqa: F401

figure = Figures("recipes")
TASK = load_data("describe-spans", 0)


def test_spans_are_those_of_genie():
    """40 tokens, spans of 8, of which two places are drawn; some of them inside the other span."""
    text = figure("genie/text").tolist()
    assert count_spans(40, 8) == figure("genie/starts").shape[1]
    for places, source in zip(figure("genie/starts").tolist(), figure("genie/source").tolist()):
        left = remove_spans(text, places, 8, 99)
        assert left + [0] * (40 - len(left)) == source


def test_the_probabilities_of_whole_texts_are_those_of_what_is_drawn():
    """-log p of what is drawn has the mean of the entropies, within 4 standard errors; and each
    row of the table sums to 1."""
    x, frozen, _ = TASK.examples("train", 800, torch.Generator().manual_seed(0))
    more = TASK.answer_nats(x) - TASK.answer_entropy(x)  # (n,)
    assert abs(more.mean()) < 4 * more.std() / 800 ** 0.5 < 0.2
    assert TASK.answer_entropy(x).mean() > 0.5 and TASK.solved(x).all()
    table = whole_texts(TASK.pad, TASK.width)
    assert len(table) > 1000
    for answers in random.Random(0).sample([*table.values()], 50):
        assert sum(answers.values()) == pytest.approx(1)
    assert sum(all_tables().values()) == pytest.approx(1)


def test_what_describe_holds_out_is_never_seen():
    held = [table for table in all_tables() if is_held_out(table)]
    assert 0.1 < len(held) / len(all_tables()) < 0.3
    texts = {text for answers in whole_texts(TASK.pad, TASK.width).values() for text in answers}
    assert not {text for table in held for text in descriptions(table)} & texts
    plain = load_data("describe", 0)
    learned = {plain.target_of(row) for row in plain.examples("train", 300)[0].tolist()}
    assert learned <= texts


def test_a_run_on_spans_is_where_describe_starts_from():
    """Its tokens are those of describe, so the weights fit."""
    assert TASK.symbols == load_data("describe", 0).symbols
    fit("spans", data="describe-spans", method="diffusion_lm", dim=4, block_size=28, max_iters=2)
    flags = dict(data="describe", method="diffusion_lm", dim=4, block_size=23, max_iters=1)
    fit("tuned", init_from="spans", learning_rate=1e-12, muon_lr=1e-12, **flags)
    ours, theirs = (load_model(name).denoiser.state_dict() for name in ("tuned", "spans"))
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in theirs)
