"""
Blocks that are checked from left to right: laws of the world of 27 texts, as products of matrices.

`metropolis` keeps p(x) = prod p(x_l | x_<l) whatever writes its changes, and reaches it; `arpc`
keeps nothing. Both draw by the laws that are computed here.
"""
from functools import cache
from itertools import product

import pytest
import torch
import world
from bounds import close
from world import TEXTS, L, N, P, numbers

from diffusion import probabilities
from methods import make_method
from samplers import make_sampler
from samplers.ar_informed import ARPC, Metropolis, log_choice, log_in_order
from samplers.base import highest

STATES = torch.tensor(list(product(range(N + 1), repeat=L)))  # (64, L)
SETS = torch.tensor(list(product([False, True], repeat=L)))  # (8, L) of words that change
METHOD = make_method("blockgen", N, diffusion_block=L)
EXACT = METHOD.oracle(world.LANGUAGE)
NOTHING = torch.zeros(1, L, dtype=torch.bool)


@cache
class Block:
    """The denoiser of a block of all, with both views, as tables."""

    def __init__(self, denoiser):
        seen, written = (METHOD.next_block(denoiser, z[:, :0], None) for z in (STATES, TEXTS))
        every = torch.ones_like(STATES, dtype=torch.bool)  # (64, L)
        self.diffusion = seen(STATES, None, every).view(64, L, -1)  # (64, L, N)
        self.order = written.in_order(TEXTS, every[:27]).view(27, L, -1)  # (27, L, N)

    def __call__(self, z, t, at):
        return self.diffusion[numbers(z, N + 1)][at]

    def in_order(self, x, at):
        return self.order[numbers(x, N)][at]


def wrong(z, t, at, positions=None, **layout):
    """In order it is the exact denoiser; by diffusion it is wrong."""
    if positions is not None:
        return EXACT(z, t, at, positions=positions)
    seen = 1.3 * z + 0.7 * z.roll(1, -1)  # (B, L)
    return torch.sin(seen[..., None].double() + 1.7 * torch.arange(N)).log_softmax(-1)[at]


def candidates(z):
    """Which texts agree with z (L,) where it has words. -> (27,) bool"""
    return ((z == TEXTS) | (z == N)).all(-1)


@cache
def change_matrix_of(denoiser, choose, remask):
    return change_matrix(denoiser, Metropolis(choose=choose, remask=remask))


def change_matrix(denoiser, metropolis, free=None):
    """(8.7): the probability of each text after a round, for each before it. -> (27, 27)"""
    free = torch.ones(L, dtype=torch.bool) if free is None else free
    log_p = log_in_order(Block(denoiser), TEXTS, N)  # (27, L)
    rates, every = metropolis.rates(log_p, free), torch.arange(27)  # (27, L)
    matrix = torch.zeros(27, 27, dtype=torch.float64)
    for x in range(27):
        for chosen in SETS[(SETS <= free).all(-1)]:
            if not chosen.any():
                continue
            at = chosen[None]  # (1, L)
            z = TEXTS[x:x + 1].masked_fill(at, N)  # (1, L)
            q = torch.zeros(L, N, dtype=torch.float64).index_put(
                (chosen,), probabilities(Block(denoiser)(z, None, at)[:, :N]))  # (L, N)
            fits = candidates(z[0])
            draw = torch.where(chosen, q[torch.arange(L), TEXTS[fits]], 1.0).prod(-1)  # (n,)
            back = torch.where(chosen, q[torch.arange(L), TEXTS[x]], 1.0).prod()
            c = [log_choice(r, at.expand(len(r), -1)).exp() for r in (rates[fits], rates[x:x + 1])]
            p = log_p.sum(-1).exp()
            a = p[fits] / p[x] * back / draw * c[0] / c[1]
            matrix[x, every[fits]] += c[1] * draw * a.clamp(max=1)
    return matrix + torch.diag(1 - matrix.sum(-1))


def written_at_once(denoiser):
    """The law of a block that is drawn in one step. -> (27,)"""
    masks = torch.full((1, L), N)
    p = Block(denoiser)(masks, None, ~NOTHING).softmax(-1).double()  # (L, N)
    return p[torch.arange(L), TEXTS].prod(-1)  # (27,)


def law_of_steps(denoiser, doubt, steps):
    """The law of arpc: a product over its steps, of all words that it may draw. -> (27,)"""
    sampler, p = ARPC(doubt=doubt), (STATES == N).all(-1).double()  # (64,)
    weights = (N + 1) ** torch.arange(L).flip(0)
    for left in range(steps - 1, -1, -1):
        after = torch.zeros(64, dtype=torch.float64)
        k = max(1, round(L * left / steps)) if left else 0
        for s in p.nonzero()[:, 0]:
            z, at = STATES[s], (STATES[s] == N)[None]  # (L,), (1, L)
            x = TEXTS[candidates(z)]  # (n, L)
            every = at.expand(len(x), -1)  # (n, L)
            logits = Block(denoiser)(z.expand(len(x), -1), None, every)  # (n m, N)
            q = logits.softmax(-1).double().gather(-1, x[every][:, None])[:, 0]  # (n m,)
            q = torch.ones(x.shape, dtype=torch.float64).masked_scatter(every, q).prod(-1)  # (n,)
            if doubt == "random" or not left:
                sets = SETS[SETS.sum(-1) == k]
                for chosen in sets:
                    to = (x.masked_fill(chosen, N) * weights).sum(-1)  # (n,)
                    after.index_add_(0, to, p[s] * q / len(sets))
                continue
            doubts = sampler.doubts(Block(denoiser), x, every, logits)  # (n, L)
            to = (x.masked_fill(highest(doubts, k), N) * weights).sum(-1)  # (n,)
            after.index_add_(0, to, p[s] * q)
        p = after
    return p[(TEXTS * weights).sum(-1)]


def far(p, q=P):
    """Total variation."""
    return ((p - q).abs().sum() / 2).item()


# ---- metropolis

@pytest.mark.parametrize("denoiser", [EXACT, wrong])
@pytest.mark.parametrize("choose, remask", [("doubtful", 0.5), ("random", 0.5), ("doubtful", 1.0)])
def test_the_law_in_order_stays_whatever_writes_the_changes(denoiser, choose, remask):
    matrix = change_matrix_of(denoiser, choose, remask)
    assert (matrix >= -1e-12).all()
    close(P @ matrix, P)
    flow = P[:, None] * matrix  # (27, 27) as much there as back
    close(flow, flow.T)
    after = written_at_once(denoiser) @ torch.linalg.matrix_power(matrix, 400)
    assert far(after) < 1e-3 < 0.1 < far(written_at_once(denoiser))


@pytest.mark.parametrize("denoiser, choose, found", [
    (EXACT, "doubtful", [0.3182, 0.1994, 0.0613, 0.0046]),
    (EXACT, "random", [0.3182, 0.1327, 0.0183, 0.0009]),
    (wrong, "random", [0.5689, 0.4146, 0.2486, 0.0956])])
def test_how_far_a_block_is_from_the_model_after_some_rounds(denoiser, choose, found):
    """The rows of the table, total variation: 0, 1, 4 and 16 rounds."""
    matrix, law = change_matrix_of(denoiser, choose, 0.5), written_at_once(denoiser)
    after = [far(law @ torch.linalg.matrix_power(matrix, n)) for n in (0, 1, 4, 16)]
    assert after == pytest.approx(found, abs=5e-5)


def test_words_before_given_ones_come_to_fit_them():
    """The last word is given: what stands before it follows p(x | the last word)."""
    given = torch.tensor([True, True, False])  # free
    matrix = change_matrix(EXACT, Metropolis(), given)
    for last in range(N):
        fits = TEXTS[:, -1] == last
        p = torch.where(fits, P, 0) / P[fits].sum()  # (27,)
        close(p @ matrix, p)


@pytest.mark.parametrize("denoiser, choose", [(EXACT, "doubtful"), (wrong, "random")])
def test_rounds_have_the_law_of_their_matrix(denoiser, choose):
    """The number of texts after three rounds, from a block drawn at once: chi-square within 4.5
    standard deviations."""
    n = 8000
    sampler = make_sampler("ancestral", METHOD, "metropolis", rounds=3, choose=choose)
    torch.manual_seed(0)
    z = METHOD.prior((n, L))
    *_, z = METHOD.sample(world.by_state(denoiser) if denoiser is EXACT else denoiser, z,
                          NOTHING.expand(n, -1), 1, sampler)
    p = written_at_once(denoiser) @ torch.linalg.matrix_power(
        change_matrix_of(denoiser, choose, 0.5), 3)
    assert abs(world.surprise(numbers(z, N), p)) < 4.5


def test_a_law_without_mass_at_the_text_is_left_at_once_and_not_entered():
    """With top-p the text that diffusion wrote may be impossible in order."""
    cut = lambda logits: probabilities(logits, top_p=0.6)
    torch.manual_seed(0)
    inner, metropolis = Block(EXACT), Metropolis()
    log_p = log_in_order(inner, TEXTS, N, cut)  # (27, L)
    impossible = log_p.sum(-1) == -torch.inf  # (27,)
    assert impossible.any() and not impossible.all()
    for _ in range(5):
        after, _ = metropolis.change(METHOD.process, inner, TEXTS, NOTHING.expand(27, -1), cut,
                                     log_p)
        new = log_in_order(inner, after, N, cut).sum(-1)  # (27,)
        changed = (after != TEXTS).any(-1)
        assert (new[changed] > -torch.inf).all() and not new.isnan().any()


# ---- arpc

TABLE = {"surprise": [0.3182, 0.2143, 0.2325, 0.4630],  # of docs/08-mixed-blocks.md
         "divergence": [0.3182, 0.1720, 0.2068, 0.1823], "random": [0.3182, 0.1656, 0.0284, 0.0016]}
STEPS = 1, 2, 4, 16


@pytest.mark.parametrize("doubt", TABLE)
def test_how_far_words_that_are_checked_are_from_the_model(doubt):
    """The exact denoiser, total variation: words that are doubtful in order are drawn until they
    are likely, so more steps lead away from the model; random words do not."""
    found = [far(law_of_steps(EXACT, doubt, steps)) for steps in STEPS]
    assert found == pytest.approx(TABLE[doubt], abs=5e-5)


@pytest.mark.parametrize("doubt", TABLE)
def test_arpc_draws_by_this_law(doubt):
    n = 8000
    torch.manual_seed(1)
    *_, z = METHOD.sample(world.by_state(EXACT), METHOD.prior((n, L)), NOTHING.expand(n, -1), 4,
                          make_sampler("arpc", METHOD, doubt=doubt))
    assert abs(world.surprise(numbers(z, N), law_of_steps(EXACT, doubt, 4))) < 4.5


def test_each_step_masks_as_many_words_as_the_schedule_says_and_no_given_one():
    """(8.6): k of the words that are not given, at least one, and none in the last step."""
    frozen = torch.tensor([[False] * 8, [True] * 4 + [False] * 4, [True] * 8])  # (3, 8)
    method = make_method("blockgen", 5, diffusion_block=8)
    rough = lambda z, t, at=None, **layout: torch.randn(int(at.sum()), 6)
    z = torch.where(frozen, 1, method.prior(frozen.shape))
    states = list(method.sample(rough, z, frozen, 5, make_sampler("arpc", method)))
    masks = [(state == 5).sum(-1).tolist() for state in states]
    assert masks == [[6, 3, 0], [5, 2, 0], [3, 2, 0], [2, 1, 0], [0, 0, 0]]
    assert all((state == z)[frozen].all() for state in states)


def test_a_method_without_a_view_in_order_is_refused():
    for name in ("mdlm", "bd3lm"):
        with pytest.raises(ValueError, match="predictions from left to right, which"):
            make_sampler("arpc", make_method(name, N))
        with pytest.raises(ValueError, match=f"which {name} has not: leave it out$"):
            make_sampler("ancestral", make_method(name, N), "metropolis")
