"""FlexMDM: with the exact denoiser the bound is -log p(x) of every text, length included."""
import math
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from any_length import TEXTS, FewTexts, fill_up, flexmdm
from data.sentences import SentenceCorpus
from methods import make_method
from methods.flexmdm import slack
from methods.insertion import action_nats, count_words, leave, spread_nats
from oracle import exact

REFERENCE = np.load(Path(__file__).parents[1] / "reference" / "any_length.npz")
P = torch.from_numpy(REFERENCE["flexworld/p"])  # (15,)
LANGUAGE, END = FewTexts(TEXTS, P, 3), 2
DATA = SentenceCorpus()


def array(name):
    return torch.from_numpy(REFERENCE[name])


# ---- the bound of the world of 15 texts, as integrals

@cache
def gauss_legendre(n):
    """Nodes and weights on (-1, 1). -> (n,) each"""
    return tuple(map(torch.from_numpy, np.polynomial.legendre.leggauss(n)))


def shares(process, t):
    """P(deleted), P(mask) and P(word) at times t (n,), from (21.3) by Gauss-Legendre. -> (n, 3)"""
    nodes, weights = gauss_legendre(100)
    D = process.deleted(t)  # (n,)
    u = D[:, None] + (1 - D[:, None]) * (nodes + 1) ** 3 / 8  # (n, 400) D(T_del), dense at D(t)
    weights = weights * 3 * (nodes + 1) ** 2 / 8 * (1 - D[:, None])  # (n, 400)
    masked = (weights * t[:, None] / process.time_of(u)).sum(-1)  # (n,)
    return torch.stack([D, masked, 1 - D - masked], -1)  # (n, 3)


def exact_bound(method, denoiser, x, n, nodes=40):
    """The mean of (21.5) of one text x (1, L) of n tokens, and of the published form: a sum over
    what happens to each token, an integral over v of (21.7). -> (2,)"""
    y, weights = gauss_legendre(nodes)
    v = ((y + 1) / 2)[:, None] ** 4  # (nodes, 1) dense at 0
    weights = weights * 2 * ((y + 1) / 2) ** 3  # (nodes,) d v
    t, total = v.square(), 0.0  # (nodes, 1)
    p = shares(method.process, t[:, 0])  # (nodes, 3)
    for fate in product(range(3), repeat=n):
        fate = torch.tensor([*fate, *[0] * (x.shape[1] - n)])[None]  # (1, L)
        left = leave(x, torch.tensor([[n]]), fate > 0, None, method.process.fill)
        masks = torch.nn.functional.pad(fate == 1, (0, 1)).gather(-1, left.of)  # (1, L + 1)
        masks = masks & (torch.arange(x.shape[1] + 1) < left.m)
        left = left._replace(z=left.z.masked_fill(masks, method.process.mask))
        many = type(left)(*(a.expand(nodes, -1) for a in left))
        opened, gaps = method.terms(denoiser, x.expand(nodes, -1), many, masks.expand(nodes, -1), t)
        theirs = gaps + torch.special.xlogy(many.missing, many.missing)
        w = method.process.hazard(t)  # (nodes, 1)
        nats = [(opened / t + w * a).sum(-1) for a in (gaps, theirs)]  # (nodes,) each
        total += torch.stack(nats) @ (2 * v[:, 0] * weights * p[:, fate[0, :n]].prod(-1))  # (2,)
    return total


@pytest.mark.parametrize("gone", ["linear", "sine"])
def test_the_bound_is_log_p_of_every_text_and_the_published_one_exceeds_it_by_the_slack(gone):
    """15 texts over {a, b} of 0 to 3 tokens, to 1e-7; (21.6): by S(n), a number of the length."""
    method = flexmdm(3, END, gone=gone)
    perfect, short = method.oracle(LANGUAGE), gone[:3]
    for i, text in enumerate(TEXTS):
        x, n = fill_up([text], 3, END), len(text)
        found, theirs = exact_bound(method, perfect, x, n)
        torch.testing.assert_close(found, -P[i].log(), atol=1e-7, rtol=0)
        torch.testing.assert_close(found, array(f"flexworld/REF_bound_{short}")[i], atol=1e-6,
                                   rtol=0)
        torch.testing.assert_close(theirs, array(f"flexworld/REF_published_{short}")[i], atol=1e-6,
                                   rtol=0)
        assert abs(theirs - found - slack(n)) < 1e-6


def test_any_other_denoiser_gives_more_by_words_and_by_gaps():
    """On the same noise, by five standard errors: sharper or flatter words, more or fewer tokens
    that are missing."""
    method = flexmdm(3, END)
    exact = method.oracle(LANGUAGE)
    words, gap = torch.tensor([1.0, 1.0, 1.0, 0.0]), torch.tensor([0.0, 0.0, 0.0, 1.0])
    changes = [lambda a: a, lambda a: a * (1 + words), lambda a: a * (1 - 0.7 * words),
               lambda a: a + 0.5 * gap, lambda a: a - 0.5 * gap]

    torch.manual_seed(0)
    x = fill_up(TEXTS, 3, END)[torch.multinomial(P, 20_000, replacement=True)]  # (n, 3)

    def draw(change):
        torch.manual_seed(0)
        other = lambda *call, **layout: change(exact(*call, **layout).clamp(min=-30))
        return method.nelbo(other, x).sum(-1)  # (n,)
    least, *more = map(draw, changes)
    for nats in more:
        print((nats-least).mean()/(nats - least).std() * 20_000 ** 0.5)
        assert (nats - least).mean() > max(5 * (nats - least).std() / 20_000 ** 0.5, 0.01)


@pytest.mark.parametrize("gone", ["linear", "sine"])
def test_draws_have_the_mean_of_the_bound_and_an_error_that_shrinks(gone):
    """Of each text within 4.5 standard errors, drawn at (21.7): of 1/t the error would not
    shrink."""
    method, n = flexmdm(3, END, gone=gone), 1500
    x = fill_up(TEXTS, 3, END).repeat_interleave(n, 0)  # (15 n, 3)
    torch.manual_seed(0)
    rows = torch.randperm(len(x))  # or a text would meet some times only
    nats = torch.zeros(len(x), dtype=torch.double)
    nats[rows] = method.nelbo(method.oracle(LANGUAGE), x[rows]).sum(-1)
    nats = nats.view(15, n)
    error = nats.std(-1) / n ** 0.5  # (15,)
    assert ((nats.mean(-1) + P.log()).abs() < 4.5 * error + 1e-6).all()
    quarter = nats[:, :n // 4].std(-1) / (n // 4) ** 0.5  # (15,)
    assert 1.6 < (quarter / error).median() < 2.5


def test_what_is_given_bounds_the_conditional():
    """With the first token given, a gap before it is closed: -log p(x | it is the first)."""
    method, n = flexmdm(3, END), 10_000
    text = (1, 0, 0)
    i = TEXTS.index(text)
    x = fill_up([text], 3, END).expand(n, -1)  # (n, 3)
    frozen = torch.tensor([True, False, False]).expand(n, -1)
    torch.manual_seed(0)
    nats = method.nelbo(method.oracle(LANGUAGE), x, frozen)  # (n, 3)
    first = sum(p for other, p in zip(TEXTS, P) if other[:1] == (1,))
    assert (nats[:, 0] == 0).all()
    total, exact = nats.sum(-1), -(P[i] / first).log()
    assert abs(total.mean() - exact) < 4 * total.std() / n ** 0.5 < 0.3


def test_the_slack_is_the_entropy_of_a_random_binary_search_tree():
    """(21.6): 6.69 nats of 8 tokens, 1.2035 for each of many."""
    found = torch.tensor([slack(n) for n in [*range(65), 1024]], dtype=torch.double)  # (66,)
    torch.testing.assert_close(found, array("flex/REF_slack"), rtol=1e-9, atol=1e-9)
    assert abs(found[8] - 6.69) < 0.005 and abs((found[65] - found[64]) / 960 - 1.2035) < 0.003


# ---- the public code

def public_state():
    """What (21.3) leaves at the times of the reference. -> x (5, 8), Left, masks (5, 9)"""
    x, n, s = array("flex/x1"), array("flex/length")[:, None], array("flex/t")[:, None]
    there, known = array("flex/insert_time") <= s, array("flex/unmask_time") <= s  # (5, 8) each
    left = leave(x, n, there, None, 7)
    masks = torch.nn.functional.pad(~known, (0, 1)).gather(-1, left.of.clamp(max=8))
    masks = masks & (torch.arange(9) < left.m)
    return x, left._replace(z=left.z.masked_fill(masks, 6)), masks


def test_what_is_left_is_that_of_the_public_code():
    x, left, _ = public_state()
    assert torch.equal(left.z[:, :8], array("flex/xt")) and (left.z[:, 8] == 7).all()
    assert torch.equal(left.m[:, 0], array("flex/xt_length"))
    assert torch.equal(left.missing[left.open], array("flex/gaps")[array("flex/gaps_mask")])
    there = torch.arange(9) < left.m
    assert torch.equal(left.of[there], array("flex/st")[there[:, :8]])


def test_the_terms_are_those_of_the_public_code_without_k_log_k():
    x, left, masks = public_state()
    method, t = make_method("flexmdm", 6, gone="sine"), 1 - array("flex/t")[:, None].double()
    logits = torch.zeros(5, 9, 8)
    logits[:, :8, :6] = array("flex/token_logits")
    logits[..., 6] = array("flex/expected_gaps").log()
    opened, gaps = method.terms(lambda z, t, at: logits[at], x, left, masks, t)
    w = method.process.hazard(t)  # (5, 1)
    close = lambda a, name: torch.testing.assert_close(a.float(), array(f"flex/{name}").float(),
                                                       rtol=2e-5, atol=1e-5)
    close(w[:, 0], "insert_weight")
    close((opened / t).sum(-1), "unmask_loss_per_text")
    close((w * gaps).sum(-1), "REF_insert_loss_per_text_tight")
    published = gaps + torch.special.xlogy(left.missing, left.missing)
    close((w * published).sum(-1), "insert_loss_per_text_published")


def test_the_sine_schedule_is_that_of_the_public_code():
    """And D^-1 undoes D."""
    process, u = make_method("flexmdm", 6, gone="sine").process, array("flex/schedule_u").double()
    s = array("flex/t").double()
    there = 1 - process.deleted(1 - s)  # A(s)
    torch.testing.assert_close(there.float(), array("flex/schedule_sin_at"), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close((1 - process.time_of(1 - u)).float(),
                               array("flex/schedule_sin_inv"), rtol=1e-5, atol=1e-6)


def test_gaps_and_words_of_the_world_are_those_of_the_reference():
    """For 10 states at 3 times; the gap behind the last token is one of them."""
    ids = {"M": 3, "a": 0, "b": 1}
    states = REFERENCE["flexworld/state"]
    z = torch.tensor([[ids[c] for c in state] + [4] * (4 - len(state)) for state in states])
    m, exact = (z != 4).sum(-1), flexmdm(3, END).oracle(LANGUAGE)
    for i, s in enumerate(REFERENCE["flexworld/time"]):
        out = exact(z, torch.full((len(z), 1), 1 - float(s), dtype=torch.double)).exp()
        there = torch.arange(4) <= m[:, None]
        torch.testing.assert_close(out[..., 3][there], array("flexworld/REF_gap")[i][there],
                                   rtol=0, atol=1e-8)
        torch.testing.assert_close(out[z == 3][:, :2], array("flexworld/REF_token")[i][
            (z == 3)[:, :3]], rtol=0, atol=1e-8)


# ---- sentences

@pytest.mark.parametrize("gone", ["linear", "sine"])
def test_sentences_cost_their_exact_log_p_within_four_standard_errors(gone):
    method = make_method("flexmdm", DATA.encoding.n_vocab, gone=gone)
    method.on_data(DATA)
    x, exact = DATA.windows("val", 600), method.oracle(DATA.language)
    torch.manual_seed(1)
    more = method.nelbo(exact, x).sum(-1) + DATA.language.log_prob(x)  # (n,)
    assert abs(more.mean()) < 4 * more.std() / 600 ** 0.5 < 8


# ---- texts and their ends

def test_ends_fill_up_a_text_and_inside_of_it_they_are_words():
    x = torch.tensor([[1, 9, 2, 9, 9], [9, 9, 9, 9, 9], [1, 2, 3, 4, 5]])
    assert count_words(x, 9)[:, 0].tolist() == [3, 0, 5]
    assert count_words(x, None)[:, 0].tolist() == [5, 5, 5]


def test_nats_of_a_text_are_shared_by_its_words_and_none_is_lost():
    x = torch.tensor([[1, 2, 9, 9], [9, 9, 9, 9], [1, 2, 9, 9]])
    frozen = torch.tensor([[1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]]).bool()
    found = spread_nats(torch.tensor([3.0, 5.0, 7.0]), x, count_words(x, 9), frozen)
    assert found.tolist() == [[0, 3, 0, 0], [5, 0, 0, 0], [0, 0, 7, 0]]


def test_an_action_costs_least_at_the_number_of_its_pending_events():
    """(21.2), and 0 nats at a rate of 0 where nothing is pending."""
    k = torch.tensor([0.0, 1.0, 3.0], dtype=torch.double)
    log_rate = k.clamp(min=1e-9).log().requires_grad_()
    action_nats(log_rate, k).sum().backward()
    assert log_rate.grad.abs().max() < 1e-8
    assert action_nats(torch.tensor(-math.inf), torch.tensor(0.0)) == 0


def test_an_oracle_of_sentences_writes_texts_that_end_and_others_have_one_length():
    model = exact("flexmdm")
    assert model.config.data == "sentences" and model.method.end_id == DATA.end
    assert model.config.block_size == 20 and model.classes == list(DATA.classes)
    fixed = make_method("flexmdm", 3)
    assert fixed.end_id is None and (fixed.prior((2, 4)) == 3).all()
