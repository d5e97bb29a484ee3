"""Orders: which masks open at once, and what may be lost by it."""
import pytest
import torch

import world
from diffusion import Absorbing
from methods import make_method
from samplers import make_sampler
from samplers.generate import CallCounter, generate
from samplers.orders import (
    Spread,
    golden_order,
    prediction_entropy,
    prediction_margin,
    within_budget,
)
from samplers.sliding_window import slide_window
from world import TEXTS, L, N, P

MDLM = make_method("mdlm", 5)


def rough(z, t, at):
    """A denoiser of 5 symbols that knows nothing."""
    return torch.randn(*z.shape, 6, generator=torch.Generator().manual_seed(0))[at]  # (N, 6)


def turns(masked, steps, **options):
    return Spread(**options).turns(torch.as_tensor(masked), steps).tolist()


# ---- spread

def test_streams_run_side_by_side_from_left_to_right():
    assert turns([[True] * 8], 4) == [[0, 1, 2, 3, 0, 1, 2, 3]]
    assert turns([[True] * 7], 3) == [[0, 1, 2, 0, 1, 2, 0]]
    assert turns([[True] * 3], 9) == [[0, 1, 2]]  # more steps than masks: from left to right


def test_streams_count_the_masks_of_each_text_and_not_its_places():
    """Gaps and prompts: given words take no turn."""
    masked = [[False, True, True, False, True, True], [True, False, False, False, False, False],
              [False] * 6]
    assert turns(masked, 2) == [[-1, 0, 1, -1, 0, 1], [0, -1, -1, -1, -1, -1], [-1] * 6]


@pytest.mark.parametrize("order", ["streams", "golden"])
@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("steps", [1, 3, 4, 16, 40])
def test_every_mask_has_one_turn_and_turns_are_of_nearly_one_size(order, shift, steps):
    torch.manual_seed(0)
    masked = torch.rand(50, 16) < 0.7  # (50, 16)
    turn = Spread(order, shift).turns(masked, steps)  # (50, 16)
    assert ((turn >= 0) == masked).all()
    for row in turn:
        n = int((row >= 0).sum())
        sizes = torch.bincount(row[row >= 0], minlength=min(n, steps))
        assert len(sizes) == min(n, steps) and sizes.max() - sizes.min() <= 1


def test_the_golden_ratio_keeps_what_opens_at_once_apart():
    """Of 32 masks in 8 steps no two of a step are neighbors; and every order is a permutation."""
    order = golden_order(torch.tensor([[32], [5]]), 32, torch.zeros(2, 1))  # (2, 32)
    assert sorted(order[0].tolist()) == list(range(32))
    assert sorted(order[1, :5].tolist()) == list(range(5))
    turn = torch.tensor(turns([[True] * 32], 8, order="golden")[0])  # (32,)
    places = [(turn == step).nonzero()[:, 0] for step in range(8)]
    assert min(int(p.diff().min()) for p in places) >= 4


def test_shifted_texts_begin_anywhere_and_others_at_the_first_mask():
    torch.manual_seed(0)
    many = torch.ones(300, 6, dtype=torch.bool)  # (300, 6)
    first = Spread(shift=True).turns(many, 6).argmin(-1)  # (300,)
    assert torch.bincount(first, minlength=6).min() > 25
    assert (Spread().turns(many, 6).argmin(-1) == 0).all()


def test_a_text_that_is_longer_than_the_window_is_spread_in_each_window():
    z = torch.full((2, 20), 5)  # (2, 20)
    sampler, seen = make_sampler("spread", MDLM), []

    def spy(z, t, at):
        seen.append(at.clone())
        return rough(z, t, at)
    sample = lambda z, frozen: MDLM.sample(spy, z, frozen, 4, sampler)
    *_, z = slide_window(sample, z, torch.zeros_like(z, dtype=torch.bool), 8, 4)
    assert (z < 5).all() and [int(at[0].sum()) for at in seen] == [2] * 4 + [1] * 12


def test_each_mask_is_scored_once_by_spread_and_in_every_step_by_the_others():
    for name, positions in (("spread", 16), ("entropy", 16 + 12 + 8 + 4), ("margin", 40)):
        spy = CallCounter(rough)
        generate(MDLM, spy, 3, 16, 4, make_sampler(name, MDLM))
        assert (spy.calls, spy.positions) == (4, 3 * positions)


# ---- scores

def test_entropy_and_margin_open_what_they_say_first():
    """Symbol 1 has the probability p, symbol 2 the rest, or the rest is spread over all others."""
    p = torch.tensor([[0.5, 0.5, 0, 0, 0], [0.6, 0.1, 0.1, 0.1, 0.1]]).double()  # (2, 5)
    assert prediction_entropy(p.log())[0] < prediction_entropy(p.log())[1]
    assert prediction_margin(p.log()).tolist() == pytest.approx([0.0, 0.5])

    def denoiser(z, t, at):
        return torch.nn.functional.pad(p.log(), (0, 1)).expand(len(z), 2, 6)[at]  # (N, 6)
    z, nothing = torch.full((4, 2), 5), torch.zeros(4, 2, dtype=torch.bool)  # (4, 2) each
    for name, place in (("entropy", 0), ("margin", 1)):
        first = next(make_sampler(name, MDLM)(Absorbing(5), denoiser, z, nothing, 2))
        assert (first[:, place] < 5).all() and (first[:, 1 - place] == 5).all()


# ---- budgets

def test_a_budget_opens_the_longest_prefix_whose_bound_fits():
    entropy = torch.tensor([[0.2, 1.0, 0.3, 0.4], [2.0, 3.0, 9.0, 9.0]])  # (2, 4)
    rank = torch.tensor([[0.0, 1, 2, 3], [1.0, 0, 3, 2]])  # (2, 4)
    opened = lambda budget: within_budget(entropy, rank, budget).int().tolist()
    assert opened(0.0) == [[1, 0, 0, 0], [0, 1, 0, 0]]
    assert opened(0.5) == [[1, 1, 1, 0], [0, 1, 0, 0]]  # 0.2 + 0.3, but for the largest, 1.0
    assert opened(2.0) == [[1, 1, 1, 1], [1, 1, 0, 0]]


def test_text_takes_no_part_in_a_budget():
    inf = torch.inf
    entropy = torch.tensor([[inf, 0.5, inf], [inf] * 3])  # (2, 3)
    rank = torch.tensor([[inf, 1, inf], [inf] * 3])  # (2, 3)
    assert within_budget(entropy, rank, 9.0).tolist() == [[False, True, False], [False] * 3]


def total_correlation(given, opened):
    """sum of H(x_l | given) less H(x_opened | given), for words given as {place: word}."""
    p = P.clone()
    for l, word in given.items():
        p = p * (TEXTS[:, l] == word)
    p = p / p.sum()  # (27,)


    def entropy(places):
        texts = TEXTS[:, places].unique(dim=0)  # (n, k)
        same = (TEXTS[None, :, places] == texts[:, None]).all(-1)  # (n, 27)
        return torch.special.entr((same * p).sum(-1)).sum()
    return float(sum(entropy([l]) for l in opened) - entropy(opened))


@pytest.mark.parametrize("first", ["golden", "left", "least"])
@pytest.mark.parametrize("budget", [0.2, 0.8, 1.1, 5.0])
def test_a_step_never_opens_more_total_correlation_than_its_budget(first, budget):
    """For every state of the world, by enumeration. It does open more than one mask."""
    method = make_method("mdlm", N)
    sampler = make_sampler("entropy-budget", method, budget=budget, first=first)
    denoiser, sizes = method.oracle(world.LANGUAGE), set()
    for known in [(), (0,), (1,), (2,)]:
        for word in range(N) if known else [0]:
            z = torch.full((1, L), N)  # (1, L)
            z[0, list(known)] = word
            after = next(sampler(method.process, denoiser, z, z < N, 1))  # (1, L)
            opened = ((z == N) & (after < N))[0].nonzero()[:, 0].tolist()
            assert total_correlation({l: word for l in known}, opened) <= budget + 1e-12
            sizes.add(len(opened))
    assert (1 in sizes) == (budget < 1) and (max(sizes) > 1) == (budget > 0.2)


# ---- klass

def test_klass_opens_besides_the_most_confident_mask_what_is_sure_and_has_settled():
    """Places 0 to 3 are sure and still; 4 is as sure, but changes its mind in the third call, and 5
    in all of them; 6 is still but unsure."""
    logit, call = torch.tensor([10.0, 9.5, 9.0, 8.5, 8.0, 8.2, 2.0]), 0  # (7,)

    def denoiser(z, t, at):
        nonlocal call
        word = torch.tensor([1, 1, 1, 1, 1 + (call > 1), call % 2, 1])  # (7,)
        call += 1
        return (logit[:, None] * torch.nn.functional.one_hot(word, 6))[None][at]  # (N, 6)
    sampler = make_sampler("klass", MDLM, patience=2, drift=0.01, certainty=0.9)
    z, nothing, opened = torch.full((1, 7), 5), torch.zeros(1, 7, dtype=torch.bool), []
    for after in sampler(Absorbing(5), denoiser, z, nothing, 7):
        opened.append(((z == 5) & (after < 5))[0].nonzero()[:, 0].tolist())
        z = after
    assert opened == [[0], [1], [2, 3], [5], [4], [6]]
