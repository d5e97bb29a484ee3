"""The likeliest path of edits, against all paths of a small world, and what width does."""
import math
from itertools import product
from types import SimpleNamespace

import pytest
import torch

from diffusion import probabilities
from flags import UserError
from methods import make_method
from samplers import make_sampler
from samplers.edit_beam import EditBeam, best_outcomes, log_chances

N, WIDE = 3, 1_000_000  # symbols: the pad, one letter, the end
TIMES = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
SOURCES = [[1], []]


def small(name="diffuser"):
    method = make_method(name, N)
    method.on_data(SimpleNamespace(source=1, target=2, name="world"))
    return method


def rough(ids, t, at):
    """Rates that depend on text and time, and that nobody learned. -> (N, 2 n + 1)"""
    scale = torch.tensor([1.0, 2.3, 0.7, 1.9], dtype=torch.float64)  # (S + M,)
    key = (ids * scale).sum(-1)  # (B,)
    place, action = torch.arange(ids.shape[1]), torch.arange(2 * N + 1)
    logits = torch.sin(key[:, None, None] + 1.7 * place[:, None] + 2.1 * action + 3 * t[:, :, None])
    return (2 * logits + 2)[at]


def outcomes(method, source, z, t, s):
    """All that a step may make of a text, by going through all choices. -> [(text, chance)]"""
    log_rate, at = method.rates(rough, [source], [z], t.expand(1, 1))
    own = [(q.tolist(), p.tolist()) for q, p in
           method.groups(log_rate, 1 - s / t, probabilities)]
    found = []
    for choices in product(*([None, *range(len(p[0]))] for _, p in own for _ in range(len(z) + 1))):
        chance, parts = 1.0, [choices[:len(z) + 1], choices[len(z) + 1:]]
        for (q, p), part in zip(own, parts):
            for place, choice in enumerate(part):
                chance *= 1 - q[place] if choice is None else q[place] * p[place][choice]
        if chance:
            found.append((tuple(method.edited(z, *parts)), chance))
    return found


@pytest.fixture(scope="module")
def best_paths():
    """The chance of the likeliest path to each text in two steps, by going through all paths."""
    method, found = small(), []
    for source in SOURCES:
        best = {}
        for middle, p in outcomes(method, source, source, *TIMES[:2]):
            best[middle] = max(p, best.get(middle, 0))
        last = {}
        for middle, p in best.items():
            for text, q in outcomes(method, source, [*middle], *TIMES[1:]):
                last[text] = max(p * q, last.get(text, 0))
        found.append(last)
    return found


def search(beam, edits):
    *_, queues = EditBeam(beam=beam, edits=edits).search(small(), rough, SOURCES, SOURCES, TIMES)
    return queues


def test_an_endless_beam_finds_the_likeliest_path_to_every_text(best_paths):
    for queue, wanted in zip(search(WIDE, WIDE), best_paths, strict=True):
        assert queue.keys() == wanted.keys() and len(queue) > 5
        for text, score in queue.items():
            assert score == pytest.approx(math.log(wanted[text]), abs=1e-9)


def test_a_wider_beam_finds_a_path_that_is_as_likely_or_likelier(best_paths):
    """And a narrow one does find less here: in both directions width is needed."""
    best = [math.log(max(wanted.values())) for wanted in best_paths]
    found = {widths: [max(queue.values()) for queue in search(*widths)]
             for widths in ((1, 1), (1, 8), (8, 1), (8, 8))}
    for scores in found.values():
        assert all(score <= most + 1e-9 for score, most in zip(scores, best))
    assert found[8, 8] == pytest.approx(best) and found[1, 1] != pytest.approx(best)
    assert all(a >= b - 1e-9 for a, b in zip(found[8, 8], found[1, 8]))


def test_outcomes_of_a_step_come_in_order_and_have_the_chances_of_its_coins():
    """All of them sum to 1, and the first k are the k likeliest of all."""
    method, z = small(), [1]
    log_rate, at = method.rates(rough, [z], [z], TIMES[:1, None])
    tables = [log_chances(*group) for group in method.groups(log_rate, 0.5, probabilities)]
    every = best_outcomes(tables, WIDE)
    chances = torch.tensor([score for score, _ in every]).double().exp()
    assert chances.sum().item() == pytest.approx(1, abs=1e-6)
    assert (chances.diff() <= 1e-9).all()
    all_chances = sorted((p for _, p in outcomes(method, z, z, *TIMES[:2])), reverse=True)
    for k in (1, 2, 7, 50):
        few = [score for score, _ in best_outcomes(tables, k)]
        assert len(few) == k
        assert torch.tensor(few).exp().tolist() == pytest.approx(all_chances[:k], rel=1e-4)


def test_it_writes_the_answer_of_the_likeliest_path():
    method = small()
    sampler = make_sampler("edit-beam", method, beam=8, edits=8)
    x = torch.tensor([[*y, *[0] * (1 - len(y)), 2, 2] for y in SOURCES])
    frozen = torch.arange(3).expand(2, -1) < 1
    times = torch.linspace(1, 0, 3).double().square()
    *_, queues = sampler.search(method, rough, SOURCES, SOURCES, times)
    *_, z = method.sample(rough, x, frozen, 2, sampler)
    for row, queue in zip(z.tolist(), queues):
        answer = max(queue, key=queue.get)[:2]
        assert tuple(row[1:]) == (*answer, *[2] * (2 - len(answer)))


def test_it_fits_edits_of_texts_only():
    with pytest.raises(UserError, match="edits the tokens of a source"):
        make_sampler("edit-beam", make_method("mdlm", 4))
