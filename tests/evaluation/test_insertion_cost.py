"""The law of the sampler of (21.8), by (21.16), in a world of 15 texts and on sentences."""
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from any_length import TEXTS, FewTexts, fill_up, flexmdm, numbers_of, once_for_each
from data.sentences import SentenceCorpus
from evaluation.insertion_cost import draw_path, path_nats
from methods import make_method
from samplers import make_sampler

REFERENCE = np.load(Path(__file__).parents[1] / "reference" / "any_length.npz")
P = torch.from_numpy(REFERENCE["flexworld/p"])  # (15,)
LANGUAGE, END, L = FewTexts(TEXTS, P, 3), 2, 5


def world(gone="linear", **flags):
    """-> a method, its sampler, its exact denoiser"""
    method = flexmdm(3, END, gone=gone)
    return (method, make_sampler("insertion", method, **flags),
            once_for_each(method.oracle(LANGUAGE)))


def law_by_paths(model, steps, n):
    """q of each text as the mean of (21.16) over n paths. -> (15,) and its error (15,)"""
    method, sampler, denoiser = model
    torch.manual_seed(1)
    x = fill_up(TEXTS, L, END).repeat_interleave(n, 0)  # (15 n, L)
    q = (-path_nats(method, denoiser, x, steps, sampler)).exp().view(15, n)  # (15, n)
    return q.mean(-1), q.std(-1) / n ** 0.5


@pytest.mark.parametrize("gone, spacing, steps", [
    ("linear", "quadratic", 1), ("linear", "equal", 4), ("sine", "quadratic", 3)])
def test_the_mean_over_paths_is_how_often_the_sampler_writes_each_text(gone, spacing, steps):
    """With errors of both, and texts that are too long, which the sampler writes too."""
    model = method, sampler, denoiser = world(gone, spacing=spacing)
    q, error = law_by_paths(model, steps, 1500)
    torch.manual_seed(0)
    n, nothing = 20_000, torch.zeros(20_000, L, dtype=torch.bool)  # (n, L)
    *_, x = method.sample(denoiser, method.prior((n, L)), nothing, steps, sampler)
    found = torch.bincount(numbers_of(x, END) + 1, minlength=16)[1:] / n  # (15,)
    z = (q - found) / (error ** 2 + found * (1 - found) / n).sqrt()  # (15,)
    assert z.abs().max() < 4 and 0.7 < found.sum() < 0.97, z
    assert (found - P).abs().sum() / 2 > 0.1  # so few steps have another law


def test_in_many_steps_the_bound_is_that_of_continuous_time():
    """-log q on average over paths comes down to -log p: KL(p || q) is halved by twice the steps.
    """
    model = method, sampler, denoiser = world()
    x = fill_up([TEXTS[i] for i in torch.multinomial(P, 1000, True)], L, END)  # (n, L)
    log_p = P[numbers_of(x, END)].log()  # (n,)
    torch.manual_seed(0)
    kl = [(log_p + path_nats(method, denoiser, x, steps, sampler)).mean().item()
          for steps in (8, 16, 64)]
    assert kl[0] > 1.5 * kl[1] > 0.1 and -0.05 < kl[2] < kl[1] / 2, kl


def test_a_path_opens_masks_after_it_has_inserted_them_with_the_chances_of_the_coins():
    """Inserted in step i with D(t_i) - D(t_i+1); then open in step j with (t_j - t_j+1)/t_i+1."""
    method, sampler, _ = world()
    times = sampler.times(3)  # (4,)
    inserted, opens = draw_path(method, torch.zeros(50_000, 1).long(), times)  # (B, 1) each
    assert times.tolist() == pytest.approx([1, 4 / 9, 1 / 9, 0])
    share = lambda i, j: ((inserted == i) & (opens == j)).double().mean().item()
    assert [share(0, 1), share(0, 2), share(1, 2), share(2, 3)] == pytest.approx(
        [5 / 9 * 3 / 4, 5 / 9 / 4, 3 / 9, 1 / 9], abs=0.01)
    assert bool((opens > inserted).all())


def test_sentences_lose_less_in_more_steps():
    data = SentenceCorpus()
    method = make_method("flexmdm", data.encoding.n_vocab)
    method.on_data(data)
    sampler, x = make_sampler("insertion", method), data.windows("val", 40)  # (n, L)
    torch.manual_seed(0)
    nats = [path_nats(method, method.oracle(data.language), x, steps, sampler)
            for steps in (4, 32)]  # (n,) each
    few, more = (a + data.language.log_prob(x) for a in nats)  # (n,) nats above -log p
    assert few.mean() > 3 > 1.5 > more.mean() > 0.2


def test_a_text_without_room_costs_no_more_insertions():
    """4 words in 4 places, and a network that says 0 everywhere: g = 1. If all are inserted in the
    first of two steps, lam = 3/4 there, and the gaps of the second step are closed."""
    method, sampler, _ = world()
    x = torch.randint(2, (100, 4))  # (n, L)
    torch.manual_seed(3)
    inserted, _ = draw_path(method, x, sampler.times(2))  # (n, L)
    torch.manual_seed(3)
    nats = path_nats(method, lambda z, t, at: torch.zeros(int(at.sum()), 5), x, 2, sampler)  # (n,)
    at_once = (inserted == 0).all(-1)  # (n,)
    assert 10 < at_once.sum() < 60
    torch.testing.assert_close(nats[at_once], torch.full_like(
        nats[at_once], 0.75 + math.log(24) + 4 * math.log(2)))
    assert nats.isfinite().all()


def test_other_laws_than_that_of_the_equation_are_refused():
    method, _, denoiser = world()
    surest = make_sampler("insertion", method, opens="surest")
    x = torch.zeros(2, 3).long()  # (n, L)
    for end, sampler in ((END, surest), (None, world()[1])):
        method.end_id = end
        with pytest.raises(ValueError, match="texts that end, whose masks open in random order"):
            path_nats(method, denoiser, x, 2, sampler)
