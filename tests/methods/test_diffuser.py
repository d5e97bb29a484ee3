"""Edits of texts: alignments of the public code, the bound and the law of samples by sums over a
world of 15 texts, steps that are certain, and runs.

edits.npz: alignments of dllm's Edit Flows and the edits that are left in a mixture of both texts
(insert 0, delete 1, substitute 2; place; token). flexworld_p: the probabilities of the 15 texts of
at most three letters a, b.
"""
import json
import math
from collections import defaultdict
from functools import lru_cache
from itertools import product
from types import SimpleNamespace

import numpy
import pytest
import torch
from references import FOLDER
from runs import cache, complaint, elsewhere, fit  # noqa: F401

import sample
import train
from evaluations import results
from flags import UserError, configure
from methods import make_method
from methods.diffuser import align, log_softplus, state_of
from world import distance

FIGURES = numpy.load(FOLDER / "edits.npz")
TEXTS = [text for n in range(4) for text in product((1, 2), repeat=n)]  # 15; a is 1, b is 2
P = FIGURES["flexworld_p"]  # (15,)
START = numpy.array([0.25 / 2 ** len(text) for text in TEXTS])  # (15,) a random length, then words
N, END = 4, 3  # the pad, a, b, the end
ROWS = torch.tensor([[0, *text, *[END] * (4 - len(text))] for text in TEXTS])  # (15, 5)


def row(key, i):
    return [v for v in FIGURES[f"editflow/{key}"][i].tolist() if v != -2]


# ---- alignments

@pytest.mark.parametrize("i", range(6))
def test_alignments_are_those_of_the_public_code_and_differ_as_often_as_the_edit_distance(i):
    columns = align(row("x0", i), row("x1", i))
    assert columns == [*zip(row("z0", i), row("z1", i))]
    differ = sum(a != b for a, b in columns)
    assert differ == FIGURES["editflow/REF_levenshtein"][i]
    assert differ == edit_distance(tuple(row("x0", i)), tuple(row("x1", i)))


@lru_cache(None)
def edit_distance(y, x):
    """By its definition, from the front."""
    if not y or not x:
        return len(y) + len(x)
    if y[0] == x[0]:
        return edit_distance(y[1:], x[1:])
    return 1 + min(edit_distance(y[1:], x[1:]), edit_distance(y[1:], x), edit_distance(y, x[1:]))


@pytest.mark.parametrize("i", range(6))
def test_what_is_pending_in_a_mixture_is_what_the_public_code_finds(i):
    """It counts an insertion by the token before the gap, we by the one behind it."""
    columns, mixed, n = align(row("x0", i), row("x1", i)), row("zt", i), 10
    z, pending = state_of(columns, [v == a for v, (a, _) in zip(mixed, columns)], n)
    assert z == [v for v in mixed if v != -1]
    wanted = []
    for kind, place, token in FIGURES["editflow/remaining"][i].tolist():
        if kind >= 0:
            wanted.append({0: (place + 1, n + token), 1: (place, 2 * n), 2: (place, token)}[kind])
    assert sorted(pending) == sorted(wanted)


def test_at_the_ends_of_time_the_state_is_one_of_the_two_texts():
    for y, x in product(TEXTS, TEXTS):
        columns = align(y, x)
        assert state_of(columns, [False] * len(columns), N) == ([*x], [])
        z, pending = state_of(columns, [True] * len(columns), N)
        assert z == [*y] and len(pending) == sum(a != b for a, b in columns)


# ---- a world of 15 texts

@lru_cache(None)
def events():
    """All ways to a state: (z, pending, columns that are noisy, that differ, p(x) p(y))."""
    found = []
    for (x, p), (y, q) in product(zip(TEXTS, P), zip(TEXTS, START)):
        columns = align(y, x)
        differ = [c for c, (a, b) in enumerate(columns) if a != b]
        for noisy in product((False, True), repeat=len(differ)):
            shows = [False] * len(columns)
            for c, on in zip(differ, noisy):
                shows[c] = on
            z, pending = state_of(columns, shows, N)
            found.append((tuple(z), pending, sum(noisy), len(differ), p * q))
    return found


def chances(t):
    return [w * t**k * (1 - t) ** (d - k) for _, _, k, d, w in events()]


def exact_rates(t):
    """lam* of (17.16). -> {z: {(place, action): lam}}"""
    mass, rates = defaultdict(float), defaultdict(lambda: defaultdict(float))
    for (z, pending, *_), p in zip(events(), chances(t)):
        mass[z] += p
        for action in pending:
            rates[z][action] += p
    return {z: {action: p / mass[z] for action, p in rates[z].items()} for z in mass}


def exact_bound(change=lambda lam: lam):
    """(17.15) in the mean over texts, by Gauss's rule. change: other rates"""
    nodes, weights = numpy.polynomial.legendre.leggauss(24)
    total = 0.0
    for node, weight in zip(nodes, weights):
        t, weight = (node + 1) ** 2 / 4, weight * (node + 1)  # t = v^2, as 1/t times log t is steep
        rates = exact_rates(t)
        sums = {z: sum(map(change, own.values())) for z, own in rates.items()}
        for (z, pending, *_), p in zip(events(), chances(t)):
            logs = sum(1 + math.log(change(rates[z][action])) for action in pending)
            total += weight / 2 / t * p * (sums[z] - logs)
    return total


def test_the_bound_holds_and_is_not_tight_and_no_other_rates_give_less():
    entropy, least = -(P * numpy.log(P)).sum(), exact_bound()
    assert round(entropy, 3) == 2.219 and round(least, 3) == 3.051
    assert min(exact_bound(lambda lam: 1.2 * lam), exact_bound(lambda lam: lam**1.1),
               exact_bound(lambda lam: 0.8 * lam)) > least + 0.01


@lru_cache(None)
def world_method(**flags):
    method = make_method("diffuser", N, start="random")
    method.on_data(SimpleNamespace(source=1, target=4, name="world"))
    return method


def as_logits(rates, method):
    """What the network must output for these rates: softplus, undone."""
    return torch.expm1(rates).log() + method.offset


def exact(ids, t, at):
    """The exact rates as a denoiser, at one time."""
    rates, tables, found = exact_rates(min(max(t[0].item(), 1e-4), 1 - 1e-4)), {}, []
    for row, here in zip(ids[:, 1:].tolist(), at[:, 1:].sum(-1).tolist()):
        z = tuple(v for v in row if v != N)
        assert here == len(z) + 1
        if z not in tables:
            tables[z] = numpy.full((here, 2 * N + 1), 1e-12)
            for (place, action), lam in rates.get(z, {}).items():
                tables[z][place, action] = lam
        found.append(tables[z])
    return as_logits(torch.from_numpy(numpy.concatenate(found)), world_method())  # (N, A)


@pytest.mark.parametrize("t", [0.05, 0.6])
def test_the_mean_of_the_loss_over_all_states_is_that_of_the_formula(t, monkeypatch):
    method, states = world_method(), events()
    z, pending = [[*z] for z, *_ in states], [pending for _, pending, *_ in states]
    monkeypatch.setattr(method, "noised", lambda x, t: ([[]] * len(z), z, pending))
    time, x = torch.full((len(z), 1), t, dtype=torch.float64), torch.zeros(len(z), 5).long()
    frozen = torch.arange(5).expand(x.shape) < 1  # (n, 5)
    nats = method.nats_at(exact, x, frozen, time, torch.ones_like(time))  # (n, 5)
    assert (nats[:, 0] == 0).all()
    rates = exact_rates(t)
    wanted = sum(p * -sum(math.log(rates[z][action]) for action in pending)
                 for (z, pending, *_), p in zip(states, chances(t)))  # the sums of lam cancel
    assert (nats.sum(-1) @ torch.tensor(chances(t))).item() == pytest.approx(wanted, abs=1e-8)


def test_draws_of_the_bound_are_at_times_that_its_weights_pay_for(monkeypatch):
    """t = v^2 with the weight 2 v / t, and 2 v dv = dt; `simple` has 3, at density 2 (1 - t)."""
    method, seen = world_method(), []
    monkeypatch.setattr(method, "nats_at", lambda *call: seen.append(call[3:]) or torch.zeros(1))
    x = torch.zeros(1000, 5)
    method.nelbo(exact, x)
    method.loss(exact, x)
    (t, weight), (simple, three) = seen
    torch.testing.assert_close(weight * t, 2 * t.sqrt())
    assert abs(t.mean() - 1 / 3) < 1e-3 and abs(simple.mean() - 1 / 3) < 1e-3 and (three == 3).all()


def test_noise_mixes_columns_by_their_own_coins():
    """For the start ab and the text ba: each place is pending with probability t by itself."""
    method = make_method("diffuser", N)
    method.on_data(SimpleNamespace(source=2, target=3, name="task"))
    x, t = torch.tensor([[1, 2, 2, 1, 3]] * 1500), torch.full((1500, 1), 0.3)
    torch.manual_seed(0)
    sources, texts, pending = method.noised(x, t)
    assert sources[0] == [1, 2]
    for z, p in (([1, 2], 0.09), ([1, 1], 0.21), ([2, 2], 0.21), ([2, 1], 0.49)):
        left = [(place, 2 - place) for place in (0, 1) if z[place] == 1 + place]
        assert all(found == left for text, found in zip(texts, pending) if text == z)
        assert abs(texts.count(z) / 1500 - p) < 4.5 * (p * (1 - p) / 1500) ** 0.5


def test_many_steps_by_the_exact_rates_lead_to_the_law_of_the_texts():
    """Of 1,000 texts hardly one is none of the 15; the others have the law P, but for what 50 steps
    cost. One step costs more."""
    method, frozen, far = world_method(), torch.arange(5).expand(1000, -1) < 1, []
    number = {tuple(row): i for i, row in enumerate(ROWS.tolist())}
    torch.manual_seed(0)
    for steps in (50, 1):
        z = torch.zeros(1000, 5, dtype=torch.long)
        *_, z = method.sample(exact, z, frozen, steps)
        drawn = [number[tuple(row)] for row in z.tolist() if tuple(row) in number]
        far.append((*distance(torch.tensor(drawn), torch.from_numpy(P)), len(drawn)))
    (close, error, n), (once, _, _) = far
    assert n > 990 and close < 0.003 + 4 * error and once > 0.1


# ---- steps

def test_certain_edits_are_all_made_at_once_each_at_its_place():
    method = make_method("diffuser", 6)
    method.on_data(SimpleNamespace(source=4, target=5, name="task"))

    def certain(ids, t, at):
        logits = torch.full((int(at.sum()), 13), -30.0)
        logits[0, 12] = logits[1, 3] = logits[2, 6 + 4] = logits[3, 6 + 2] = 30.0
        return logits  # delete, replace by 3, insert 4 before the third, and 2 behind the text
    x = torch.tensor([[1, 2, 1, 0, 5, 5, 5, 5, 5]])
    frozen = torch.arange(9)[None] < 4
    assert [z.tolist() for z in method.sample(certain, x, frozen, 1)] == [
        [[1, 2, 1, 0, 3, 4, 1, 2, 5]]]


def test_a_token_is_not_deleted_and_replaced_in_one_step_and_chances_are_those_of_the_rates():
    """lam of a deletion 0.3 and of a replacement 0.2: over half of the way each is half as likely.
    """
    method, n = make_method("diffuser", 6), 4000
    method.on_data(SimpleNamespace(source=4, target=5, name="task"))
    rates = torch.full((2 * n, 13), 1e-12)
    rates[::2, 12], rates[::2, 3] = 0.3, 0.2
    torch.manual_seed(0)
    logits = as_logits(rates, method)
    half, one = torch.tensor([0.5, 1.0], dtype=torch.float64)
    found = method.step(lambda ids, t, at: logits, [[1]] * n, [[1]] * n, half, one,
                        lambda logits: logits.double().softmax(-1))
    for text, p in (([], 0.15), ([3], 0.10), ([1], 0.75)):
        assert abs(found.count(text) / n - p) < 4.5 * (p * (1 - p) / n) ** 0.5
    assert found.count([]) + found.count([3]) + found.count([1]) == n


def test_starts_are_the_source_or_random_words():
    method = make_method("diffuser", 6)
    method.on_data(SimpleNamespace(source=4, target=5, name="task"))
    x = torch.tensor([[1, 2, 0, 0, 3, 5, 5, 5, 5]])
    assert method.parts(x) == ([[1, 2]], [[3]]) and method.starts([[1, 2]]) == [[1, 2]]
    method.start = "random"
    texts = method.starts([[1, 2]] * 500)
    assert {len(text) for text in texts} == {0, 1, 2, 3, 4}
    assert {v for text in texts for v in text} == {1, 2, 3, 4}
    with pytest.raises(UserError, match="edits a source: give its 4 tokens, and no others"):
        next(method.sample(None, x, x > 0, 1))


# ---- runs

@pytest.mark.parametrize("flags", [{}, dict(start="random", weighting="bound")])
def test_runs_are_trained_resumed_sampled_and_evaluated(flags, capsys):
    run = dict(data="sort", method="diffuser", block_size=18, **flags)
    fit("run", **run)
    state = fit("run", init_from="resume", max_iters=4)
    assert state["step"] == 4
    capsys.readouterr()
    sample.main(configure(sample.Config, out_dir="run", prompt="31415", json=True, num_samples=2,
                          steps=3, device="cpu"))
    texts = [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()]
    assert len(texts) == 2 and all(text.startswith("31415") for text in texts)
    found = results(capsys, "--out_dir", "run", "--max_texts", 8, "--num_samples", 4, "--draws", 1,
                    "--steps", 2)
    assert found["nats_per_token"] > 0 and found["method"] == "diffuser"


def test_data_without_a_source_are_refused_in_one_line(capsys):
    said = complaint(train, "--data=toy", "--method=diffuser", capsys=capsys)
    assert "edits a source, and the texts of toy have none: give --data repair" in said


def test_rates_are_softplus_and_do_not_overflow():
    x = torch.tensor([-200.0, -20.0, -14.9, 0.0, 5.0, 300.0], requires_grad=True)
    found = log_softplus(x)
    found.exp().sum().backward()
    wanted = torch.nn.functional.softplus(x.detach().double()).log()
    torch.testing.assert_close(found[1:].double(), wanted[1:], atol=1e-5, rtol=1e-5)
    assert found[0] == -200 and x.grad.isfinite().all() and x.grad[-1] > 0.99
