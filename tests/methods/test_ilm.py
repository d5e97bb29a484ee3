"""ILM: with the exact reverse the bound is -log p(x) of every text, and texts are drawn exactly."""
import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from any_length import TEXTS, FewTexts, any_length, fill_up, numbers_of, once_for_each
from data.sentences import SentenceCorpus
from methods import make_method
from methods.insertion import leave
from samplers.generate import CallCounter
from world import distance

REFERENCE = np.load(Path(__file__).parents[1] / "reference" / "any_length.npz")
P = torch.from_numpy(REFERENCE["flexworld/p"])  # (15,)
LENGTH = torch.tensor([len(text) for text in TEXTS])  # (15,)
LANGUAGE, END = FewTexts(TEXTS, P, 3), 2
TILTED = FewTexts(TEXTS, P / (LENGTH + 1) / (P / (LENGTH + 1)).sum(), 3)  # (21.14)


def array(name):
    return torch.from_numpy(REFERENCE[name])


def exact_loss(method, denoiser, text):
    """The mean of (21.10) of one text: a sum over all that may be left of it."""
    x, n = fill_up([text], 3, END), len(text)
    kept = torch.tensor([*product([False, True], repeat=n)]).bool().view(2**n, n)  # (2^n, n)
    kept = torch.nn.functional.pad(kept, (0, 3 - n))  # (2^n, 3)
    rows = x.expand(len(kept), -1)
    nats = sum(method.terms(denoiser, rows, torch.full((len(kept), 1), n), kept, None))  # (2^n,)
    ways = torch.tensor([math.comb(n, k) for k in kept.sum(-1).tolist()])  # (2^n,)
    return (nats / ways).sum() / (n + 1)


def test_the_bound_is_log_p_of_every_text():
    """(21.11) of 15 texts, to 1e-12."""
    method = any_length("ilm", 3, END)
    exact = method.oracle(LANGUAGE)
    for text, p in zip(TEXTS, P):
        n = len(text)
        found = (n + 1) * exact_loss(method, exact, text) - math.lgamma(n + 1)
        torch.testing.assert_close(found, -p.log(), atol=1e-12, rtol=0)


def test_the_published_loss_is_least_at_a_law_of_shorter_texts():
    """(21.14): the exact reverse of p/(n + 1) has less of it than that of p, and the probabilities
    of stopping are those of the reference, for both."""
    method = any_length("ilm", 3, END)
    of_p, of_q = (sum(p * exact_loss(method, method.oracle(language), text)
                      for text, p in zip(TEXTS, P)) for language in (LANGUAGE, TILTED))
    assert of_q < of_p - 0.01
    torch.testing.assert_close(TILTED.p, array("ilm/REF_law_of_published_loss"))
    z = torch.nn.functional.pad(fill_up(TEXTS, 3, 4), (0, 1), value=4)  # (15, 4)
    for language, name in ((LANGUAGE, "of_bound"), (TILTED, "published")):
        _, stop = language.next_word(z, LENGTH)
        torch.testing.assert_close(stop, array(f"ilm/REF_stop_{name}"))


def test_any_other_denoiser_gives_more():
    """Sharper or flatter, stops too early or too late: in the mean over all texts."""
    method = any_length("ilm", 3, END)
    exact = method.oracle(LANGUAGE)
    words, stop = torch.tensor([1.0, 1.0, 1.0, 0.0]), torch.tensor([0.0, 0.0, 0.0, 1.0])

    def mean(change):
        other = lambda *call, **layout: change(exact(*call, **layout).clamp(-30, 30))
        return sum((len(text) + 1) * p * exact_loss(method, other, text)
                   for text, p in zip(TEXTS, P))
    least, *more = map(mean, [lambda a: a, lambda a: a * (1 + words), lambda a: a * (1 - words / 2),
                              lambda a: a + stop, lambda a: a - stop])
    assert all(value > least + 0.02 for value in more)


def test_draws_have_the_mean_of_the_bound():
    """Also with given tokens, which are never deleted: of texts of one length the bound of the rest
    is exact as well."""
    method, n = any_length("ilm", 3, END), 1500
    x = fill_up(TEXTS, 3, END).repeat_interleave(n, 0)  # (15 n, 3)
    torch.manual_seed(0)
    nats = method.nelbo(method.oracle(LANGUAGE), x).sum(-1).view(15, n)
    error = nats.std(-1) / n ** 0.5  # (15,)
    assert ((nats.mean(-1) + P.log()).abs() < 4.5 * error + 1e-9).all()


def test_published_cross_entropies_are_those_of_the_public_code():
    """The first token is given, a gap lies behind each token."""
    ids, drop, n = array("ilm/input_ids"), array("ilm/drop"), array("ilm/n")
    method = make_method("ilm", 9)
    frozen = torch.arange(10).expand(4, -1) == 0
    kept = ~drop & array("ilm/attention_mask")
    size = (n + 1)[:, None]
    left = leave(ids, size, kept, frozen, method.process.fill)
    logits = torch.zeros(4, 11, 11)
    places = left.of[:, :10].clamp(max=9)  # the gap behind a kept token is the next one here
    logits[:, 1:, :9] = array("ilm/logits").gather(1, places[..., None].expand(-1, -1, 9))
    _, nats = method.terms(lambda z, t, at: logits[at], ids, size, kept, frozen)
    assert torch.equal(left.missing.sum(-1), array("ilm/n_drops"))
    torch.testing.assert_close(nats.float(), array("ilm/ce"), rtol=1e-5, atol=1e-6)
    assert torch.equal((n + 1), array("ilm/REF_bound_weight"))


def test_texts_are_drawn_exactly_in_a_call_for_each_word_and_one_for_the_end():
    method, n = any_length("ilm", 3, END), 8000
    counter = CallCounter(once_for_each(method.oracle(LANGUAGE)))
    counter.reads_frozen = True
    torch.manual_seed(0)
    states = [*method.sample(counter, method.prior((n, 4)), torch.zeros(n, 4).bool(), 1)]
    chi, error = distance(numbers_of(states[-1], END), P)
    assert abs(chi) < 4 * error and len(states) == counter.calls == 4
    assert counter.texts == sum(((states[-1] != END).sum(-1) >= k).sum() for k in range(4))


def test_stopping_where_it_is_likelier_than_not_writes_another_law():
    """The public sampler stops where stop(y) is 0.9 and does not draw: no text of one token."""
    method = any_length("ilm", 3, END)
    exact = once_for_each(method.oracle(LANGUAGE))

    def threshold(z, t, at, **layout):
        logits = exact(z, t, at, **layout)
        odds = torch.where(logits[:, 3:] > math.log(9), 700.0, -700.0)
        return torch.cat([logits[:, :3], odds], 1)
    threshold.reads_frozen = True
    torch.manual_seed(0)
    *_, x = method.sample(threshold, method.prior((2000, 4)), torch.zeros(2000, 4).bool(), 1)
    law = torch.bincount((x != END).sum(-1), minlength=5) / 2000
    assert law[:3].sum() < 0.02 < sum(P[LENGTH < 3])


def test_from_a_prompt_texts_are_too_short():
    """(21.15): "a ... a" and the text goes on; the chain takes given tokens for its own."""
    method, n = any_length("ilm", 3, END), 4000
    z = torch.tensor([[0, END, END, END]]).expand(n, -1)
    frozen = torch.tensor([[True, False, False, False]]).expand(n, -1)
    torch.manual_seed(0)
    *_, x = method.sample(once_for_each(method.oracle(LANGUAGE)), z, frozen, 1)
    starts = torch.tensor([float(text[:1] == (0,)) for text in TEXTS])
    exact, tilted = P * starts, P * starts / LENGTH.clamp(min=1)
    seen = torch.bincount(numbers_of(x, END), minlength=15) / n
    assert (seen - tilted / tilted.sum()).abs().max() < 0.03
    assert (seen - exact / exact.sum()).abs().max() > 0.05


@pytest.mark.parametrize("weighting", ["bound", "published"])
def test_what_trains_is_the_bound_or_the_mean_of_texts(weighting):
    method = any_length("ilm", 3, END, weighting=weighting)
    x = fill_up(TEXTS[7:], 3, END)  # all of three tokens
    rough = lambda z, t, at: torch.zeros(int(at.sum()), 5)
    torch.manual_seed(0)
    loss = method.loss(rough, x).sum(-1).mean()
    torch.manual_seed(0)
    bound = method.nelbo(rough, x).sum(-1).mean()
    mean = (bound + math.lgamma(4)) / 4
    torch.testing.assert_close(loss.double(), bound if weighting == "bound" else mean)


def test_sentences_cost_their_exact_log_p_and_are_drawn_exactly():
    """Within 4 standard errors; all of 24 drawn sentences parse, since no step is approximated."""
    data = SentenceCorpus()
    method = make_method("ilm", data.encoding.n_vocab)
    method.on_data(data)
    exact, x = method.oracle(data.language), data.windows("val", 40)
    torch.manual_seed(0)
    more = method.nelbo(exact, x).sum(-1) + data.language.log_prob(x)  # (n,)
    assert abs(more.mean()) < 4 * more.std() / 40 ** 0.5 < 14
    *_, x = method.sample(exact, method.prior((24, 20)), torch.zeros(24, 20).bool(), 1)
    assert data.language.is_grammatical(x).double().mean() > 0.9
    n = data.language.lengths(x).double()
    assert abs(n.mean() - data.mean_length) < 4 * n.std() / 24 ** 0.5
