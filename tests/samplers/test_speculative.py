"""
Drafts that an AR model checks: the law of the texts, exactly, in a world of 27 texts.

Every draw of a cycle is enumerated: a batch has a row for each possible outcome of all draws, and
its probability. Cycles are then steps of a chain over prefixes. Reference figures: those of the
verifier p and the draft's x_theta of tests/reference/speculative_reference.npz.
"""
from itertools import permutations, product
from types import SimpleNamespace

import pytest
import torch

import world
from diffusion import probabilities
from flags import UserError
from methods import make_method
from methods.left_to_right import end_texts
from model import Transformer
from references import Figures
from samplers import make_sampler, speculative
from samplers.drafts import draft_of
from samplers.generate import CallCounter
from samplers.guidance import guide_by_classifier
from world import L, N, TEXTS, next_token, numbers

FIGURES = Figures("speculative_reference")
P, X_THETA = FIGURES("spec/p"), FIGURES("spec/x_theta")  # (27,), (64, 3, 3)
AR, MASKS = make_method("ar", N), make_method("mdlm", N)


class AllOutcomes:
    """In place of toss and categorical: row i of a batch gets the i-th of all outcomes, whose
    probability is in `weight` (B,)."""

    def __init__(self, B, drafts):
        self.left, self.drafts = torch.arange(B), drafts  # (B,)
        self.weight = torch.ones(B, dtype=torch.float64) / B  # (B,)

    def digit(self, radix):
        digit, self.left = self.left % radix, self.left // radix  # (B,) each
        self.weight = self.weight * radix  # (B,)
        return digit

    def categorical(self, p):
        B = len(self.weight)
        of_draft = len(p) != B  # else of a refusal
        rows, words = p.view(self.drafts if of_draft else 1, B, -1, N), []  # (K, B, m, N)
        for k, m in product(range(rows.shape[0]), range(rows.shape[2])):
            words.append(self.digit(N))  # (B,)
            chance = rows[k, torch.arange(B), m]  # (B, N)
            chance = torch.where(chance.sum(-1, keepdim=True) > 0, chance, 1 / N)  # (B, N)
            chance = chance / chance.sum(-1, keepdim=True)  # (B, N)
            self.weight = self.weight * chance.gather(1, words[-1][:, None])[:, 0]  # (B,)
        return torch.stack(words).view(rows.shape[0], -1, B).transpose(1, 2).flatten()  # (K B m,)

    def toss(self, chance):
        heads, chance = self.digit(2) == 0, chance.clamp(max=1).nan_to_num(0.5)  # (B,) each
        self.weight = self.weight * torch.where(heads, chance, 1 - chance)  # (B,)
        return heads


def masked_draft(z, t, at=None, **layout):
    """x_theta of the reference."""
    return X_THETA[numbers(z, N + 1)].log()[at]


MODELS = {"masks": SimpleNamespace(method=MASKS, denoiser=masked_draft),
          "ar": SimpleNamespace(method=AR, denoiser=next_token(FIGURES("spec/p_diff"))),
          "ngram": None}


def sampler_of(draft="masks", **flags):
    made = make_sampler("speculative", AR, draft=draft, **{"gamma": L, **flags})
    made.model = MODELS[draft]
    made.writer = draft_of(draft, made.model)
    return made


def cycle(sampler, prefix, monkeypatch, scores=None):
    """All outcomes of a cycle after a prefix. -> texts (B, L), lengths, kept tokens, chances (B,)

    scores (g,): the random numbers by which an order chooses places, fixed here
    """
    K, g, free = sampler.drafts, sampler.gamma, min(sampler.gamma, L - len(prefix))
    again = free - free // 2 if sampler.draft_order == "confident" else 0  # draws in step 2
    B = N ** (K * free + again + min(g + 1, L - len(prefix))) * 2 ** (K * g)
    chance, found = AllOutcomes(B, K), []
    for name in ("toss", "categorical"):
        monkeypatch.setattr(speculative, name, getattr(chance, name))
    if scores is not None:
        monkeypatch.setattr(torch, "rand", lambda shape, **how: scores.expand(shape))
    z = torch.full((B, L), AR.start)  # (B, L)
    z[:, :len(prefix)] = torch.tensor(prefix, dtype=torch.long)
    nothing, place = torch.zeros_like(z, dtype=torch.bool), torch.full((B,), len(prefix))
    monkeypatch.setattr(sampler, "note", lambda p, tokens, n, best, kept, free: found.append(kept))
    z, n = sampler.cycle(AR, next_token(P), z, nothing, place, probabilities)
    monkeypatch.undo()
    assert torch.isclose(chance.weight.sum(), torch.tensor(1.0).double())
    return z, n, found[0].double(), chance.weight


def law(sampler, monkeypatch, mixture=(None,), once=False):
    """The law of the texts (27,), and how many tokens of a first draft are kept on average.

    mixture: all equally likely scores of an order; once: after one cycle, the AR model goes on
    """
    reached, first = {(): 1.0}, 0.0
    for prefix in ((), *product(range(N)), *product(range(N), repeat=2)):
        if prefix not in reached or once and prefix:
            continue
        weight = reached.pop(prefix)
        for scores in mixture:
            z, n, kept, chance = cycle(sampler, prefix, monkeypatch, scores)
            first += 0 if prefix else float(kept @ chance) / len(mixture)
            for length in n.unique().tolist():
                at, place = n == length, N ** torch.arange(length)
                sums = torch.zeros(N ** length, dtype=P.dtype).index_add(
                    0, (z[at, :length] * place).sum(-1), chance[at])  # (N^length,)
                for number in sums.nonzero()[:, 0].tolist():
                    text = tuple(number // N ** i % N for i in range(length))
                    more = weight * float(sums[number]) / len(mixture)
                    reached[text] = reached.get(text, 0) + more
    end = torch.zeros_like(P)  # (27,)
    for prefix, weight in reached.items():
        begins = (TEXTS[:, :len(prefix)] == torch.tensor(prefix, dtype=torch.long)).all(-1)  # (27,)
        end += weight * P * begins / (P * begins).sum()  # (27,)
    return end, first


def off(a, b=P):
    return float((a - b).abs().sum() / 2)


# ---- the law of the texts, exactly

LOSSLESS = {
    "one_step": {}, "left_first": dict(draft_groups=2), "left_to_right": dict(draft_groups=3),
    "an ar": dict(draft="ar"), "n-grams": dict(draft="ngram"), "multi_K2": dict(drafts=2, gamma=2),
    "two in groups": dict(drafts=2, gamma=2, draft_groups=2), "multi_K3": dict(drafts=3, gamma=1)}
PLACES = [torch.tensor(place, dtype=P.dtype) for place in permutations(range(L))]  # (3,) each
COINS = [torch.tensor(coin, dtype=P.dtype) for coin in product((0, 0.9), repeat=L)]  # (3,) each
OTHERS = {  # order: its name in the reference, its printed distance and kept tokens, scores
    "coins": ("2_steps_of_eq_3", 0.020, 2.19, COINS),
    "random": ("random_order", 0.041, 2.10, PLACES),
    "right": ("right_first", 0.063, 1.84, (None,)),
    "confident": ("confidence_2_steps", 0.126, 2.12, (None,))}


@pytest.mark.parametrize("name", LOSSLESS)
def test_drafts_from_left_to_right_leave_the_law_of_the_ar_model_as_it_is(name, monkeypatch):
    exact, kept = law(sampler_of(**LOSSLESS[name]), monkeypatch)
    assert off(exact) < 1e-12
    if f"spec/law_{name}" in FIGURES.arrays:
        assert off(exact, FIGURES(f"spec/law_{name}")) < 1e-12
    if f"spec/accepted_{name}" in FIGURES.arrays:
        assert abs(kept - float(FIGURES(f"spec/accepted_{name}"))) < 1e-12
        printed = {"one_step": 2.28, "left_first": 2.53, "left_to_right": 2.57}[name]
        assert round(kept, 2) == printed


@pytest.mark.parametrize("order", OTHERS)
def test_any_other_order_changes_the_law_by_as_much_as_the_reference_says_and_as_it_tells(
        order, monkeypatch):
    """The reference lets the AR model go on after one draft; the sampler drafts again."""
    name, distance, accepted, scores = OTHERS[order]
    steps, told = speculative.NOT_LOSSLESS[order]
    sampler = sampler_of(draft_order=order, draft_groups=steps)
    once, kept = law(sampler, monkeypatch, scores, once=True)
    assert off(once, FIGURES(f"spec/law_{name}")) < 1e-12 and round(off(once), 3) == distance
    assert abs(kept - float(FIGURES(f"spec/accepted_{name}"))) < 1e-12
    assert round(kept, 2) == accepted and not sampler.draws_from_model
    assert round(off(law(sampler, monkeypatch, scores)[0]), 3) == told


def test_the_share_of_accepted_tokens_is_the_overlap_of_the_two_laws(monkeypatch):
    """At the first place, and at the next given the text so far."""
    overlap = FIGURES("spec/acceptance_one_step")  # (27, 3)
    _, _, kept, chance = cycle(sampler_of(), (), monkeypatch)
    first, second = (float(chance[kept >= n].sum()) for n in (1, 2))
    x_theta, begins = X_THETA[63], P.view(3, 9).sum(-1)  # (3, 3), (3,)
    both = torch.minimum(begins, x_theta[0])  # (3,)
    assert abs(first - float(overlap[0, 0])) < 1e-12
    assert abs(second - float(both @ overlap.view(3, 9, 3)[:, 0, 1])) < 1e-12


# ---- the sampler itself, by draws

def drawn(sampler, n=20_000, **law):
    torch.manual_seed(0)
    z = AR.prior((n, L))  # (n, L)
    nothing = torch.zeros_like(z, dtype=torch.bool)  # (n, L)
    *_, z = AR.sample(world.by_state(next_token(P)), z, nothing, 1, sampler,
                      lambda logits: probabilities(logits, **law))
    return z


@pytest.mark.parametrize("flags", [dict(draft_groups=2), dict(drafts=3, gamma=2),
                                   dict(draft="ar", gamma=1), dict(draft="ngram", drafts=2)])
def test_texts_follow_the_ar_model(flags):
    assert world.surprise(numbers(drawn(sampler_of(**flags)), N), P) < 4


@pytest.mark.parametrize("order", ["right", "confident"])
def test_texts_of_another_order_do_not_and_nats_off_sees_it(order):
    sampler = sampler_of(draft_order=order, draft_groups=2)
    z = drawn(sampler)
    costs = sampler.costs(whole=True)
    assert world.surprise(numbers(z, N), P) > 10
    assert abs(costs["nats_off"]) > 5 * costs["nats_off_error"]


def test_nats_off_is_zero_for_an_order_that_cannot_matter():
    """Each token of this draft is drawn without a look at the others."""
    sampler = sampler_of(draft_order="right", draft_groups=2)
    blind = lambda z, t, at: torch.zeros(int(at.sum()), N, dtype=torch.float64)
    sampler.model = SimpleNamespace(method=MASKS, denoiser=blind)
    z = drawn(sampler)
    costs = sampler.costs(whole=True)
    assert world.surprise(numbers(z, N), P) < 4
    assert abs(costs["nats_off"]) < 4 * costs["nats_off_error"] < 0.05


@pytest.mark.parametrize("rule", [dict(temperature=0.0), dict(top_p=0.5), dict(temperature=0.5)])
def test_temperature_and_top_p_hold_for_the_ar_model(rule):
    z = drawn(sampler_of(draft_groups=2, drafts=2, gamma=2), 4000, **rule)
    plain = drawn(make_sampler("ancestral", AR), 4000, **rule)
    laws = [torch.bincount(numbers(a, N), minlength=27) / len(a) for a in (z, plain)]  # (27,) each
    assert torch.equal(laws[0] > 0, laws[1] > 0) or rule == dict(temperature=0.5)
    assert off(*laws) < 0.04


# ---- what it costs

def test_a_draft_that_knows_the_law_is_always_kept_and_one_call_writes_gamma_and_one():
    sampler, calls = sampler_of(gamma=1), CallCounter(next_token(P))
    sampler.model = SimpleNamespace(method=AR, denoiser=next_token(P))
    z = AR.prior((50, L))  # (50, L)
    states = list(AR.sample(calls, z, torch.zeros_like(z, dtype=torch.bool), 1, sampler))
    assert len(states) == calls.calls == 2
    assert sampler.costs() == {"draft_calls": 2, "tokens_per_call": 1.5, "accepted_per_call": 1.0}
    list(AR.sample(calls, z[:1], torch.zeros(1, L, dtype=torch.bool), 1, sampler))
    assert sampler.costs()["draft_calls"] == 2 and sampler.costs(whole=True)["draft_calls"] == 4


# ---- given tokens, ends, caches

def test_a_draft_with_masks_sees_what_is_given_further_right_and_the_ar_model_does_not():
    seen, sampler = [], sampler_of()
    spy = lambda z, t, at: seen.append((z[0].tolist(), float(t[0]))) or masked_draft(z, t, at)
    sampler.model = SimpleNamespace(method=MASKS, denoiser=spy)
    frozen = torch.tensor([[False, False, True]]).expand(20_000, L)  # (n, L)
    z = torch.where(frozen, 1, AR.prior(frozen.shape))  # (n, L)
    torch.manual_seed(0)
    *_, z = AR.sample(world.by_state(next_token(P)), z, frozen, 1, sampler)
    assert seen[0][0] == [3, 3, 1] and abs(seen[0][1] - 2 / 3) < 1e-6 and (z[:, 2] == 1).all()
    begins = P.view(3, 3, 3).sum(-1)  # (3, 3)
    assert world.surprise(z[:, 0] * 3 + z[:, 1], begins.flatten()) < 4


def test_an_end_before_given_text_ends_nothing_and_a_later_one_in_the_same_draft_does():
    z = torch.tensor([[2, 0, 2, 1, 1], [2, 0, 1, 1, 1]])  # (2, 5)
    frozen = torch.tensor([[False, True, False, False, False]]).expand(2, 5)  # (2, 5)
    z, going = end_texts(z, frozen, 0, 4, 2, torch.arange(2), None)
    assert z.tolist() == [[2, 0, 2, 2, 2], [2, 0, 1, 1, 1]] and going.tolist() == [1]


@pytest.mark.parametrize("K", [1, 2])
def test_a_cache_changes_no_text_and_reads_each_token_about_once(K):
    """Texts of a batch are at different places, end early, and have prompts of several lengths."""
    torch.manual_seed(1)
    ar, masks = make_method("ar", 5), make_method("mdlm", 5)
    nets = [Transformer(6, 2, 2, 16, 0, mask_mod=method.mask_mod).eval() for method in (ar, masks)]
    for a in (a for net in nets for a in net.parameters()):
        torch.nn.init.normal_(a, std=0.5)
    frozen = torch.arange(12) < torch.tensor([0, 5, 2, 1])[:, None]  # (4, 12)
    frozen[2, 7] = True
    read, z = [], torch.where(frozen, 3, ar.prior(frozen.shape))  # (4, 12)

    def write(cached, sampler, rows=slice(None), seed=0):
        call = lambda z, t, **layout: read.append(z.shape[1]) or nets[0](z, t, **layout)
        call.supports_cache = cached
        torch.manual_seed(seed)
        *_, end = ar.sample(call, z[rows], frozen[rows], 1, sampler, end=4)
        return end
    sampler = make_sampler("speculative", ar, gamma=3, drafts=K, draft="mdlm")
    sampler.model = SimpleNamespace(method=masks, denoiser=nets[1])
    plain = write(False, sampler)
    assert set(read) == {12} and (plain == 4).any()
    read.clear()
    assert torch.equal(plain, write(True, sampler)) and max(read[1:]) < 12
    for seed in range(12):  # alone, a text keeps all that was accepted, and of the right draft
        alone = [write(cached, sampler, slice(2, 3), seed) for cached in (False, True)]
        assert torch.equal(*alone)
    greedy = lambda logits: probabilities(logits, temperature=0)
    for window in (None, 4):  # beyond what the model sees, too
        ends = [list(ar.sample(nets[0], z, frozen, 1, one, greedy, window, end=4))[-1]
                for one in (sampler, make_sampler("ancestral", ar))]
        assert torch.equal(*ends)


# ---- refusals

def model_with(method="ar", name="mdlm", block_size=8, **flags):
    """What prepare sees: a model of 8 tokens, and beside it a draft."""
    other = SimpleNamespace(method=make_method(name, 5), config=SimpleNamespace(
        block_size=block_size))
    return SimpleNamespace(method=make_method(method, 5), beside=lambda flag, name: other,
                           config=SimpleNamespace(block_size=8))


@pytest.mark.parametrize("flags, other, says", [
    (dict(draft="x"), dict(name="udlm"), "of udlm, which can draft nothing: give a run of mdlm"),
    (dict(draft="x"), dict(name="sedd"), "run of sedd, which can draft nothing"),
    (dict(draft="x"), dict(name="bd3lm"), "run of bd3lm, which can draft nothing"),
    (dict(draft="x"), dict(block_size=4), "knows texts of 4 tokens, and the model writes 8"),
    (dict(draft="x", draft_groups=2), dict(name="ar"), "one token after the other: leave out"),
    (dict(draft_groups=2), {}, "--draft ngram writes one token after the other: leave out"),
    (dict(draft="x", gamma=2, draft_groups=3), {}, "more than the --gamma 2 tokens"),
    (dict(draft="x", draft_order="right"), {}, "counts for nothing in one step: give")])
def test_what_cannot_draft_is_refused_in_one_line(flags, other, says):
    with pytest.raises(UserError, match=says) as refused:
        make_sampler("speculative", make_method("ar", 5), **flags).prepare(model_with(**other))
    assert "\n" not in str(refused.value)


def test_an_order_that_is_not_lossless_says_by_how_much(capsys):
    made = make_sampler("speculative", AR, draft="x", draft_order="confident", draft_groups=2)
    made.prepare(model_with())
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "not lossless" in said and "0.128 from that of ar" in said
    make_sampler("speculative", AR, draft="x", draft_groups=2).prepare(model_with())
    assert capsys.readouterr().err == ""


def test_a_classifier_is_refused():
    with pytest.raises(UserError, match="rates one next token at a time"):
        guide_by_classifier(AR, next_token(P), sampler_of(), torch.tensor([0]), 1, None, "first", L)
