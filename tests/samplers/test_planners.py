"""Planners: which words are probably wrong, and what is done about them."""
import pytest
import torch
import torch.nn.functional as F

import world
from diffusion import Absorbing, Sampler, Uniform
from flags import UserError
from methods import make_method
from samplers import make_sampler
from samplers.correctors import Informed, margins
from samplers.planners import noise_probability, open_confident, round_at_random
from world import PROCESSES, TEXTS, L, N, P, numbers, surprise

MASK = 5
MDLM = make_method("mdlm", MASK)
NOTHING = lambda z: torch.zeros_like(z, dtype=torch.bool)


def says(*rows):
    """A denoiser that answers log of these probabilities (L, 5) whatever it sees."""
    log_p = F.pad(torch.tensor(rows, dtype=torch.float64).log(), (0, 1))  # (L, 6)
    return lambda z, t, at: log_p.expand(len(z), -1, -1)[at]  # (N, 6)


def sure(word, p=0.96):
    return [p if v == word else (1 - p) / 4 for v in range(5)]


# ---- which words are noise

@pytest.mark.parametrize("name", ["uniform", "hybrid .1", "hybrid .7"])
@pytest.mark.parametrize("time", [0.2, 0.7])
def test_the_planner_is_the_exact_probability_that_noise_has_touched_a_word(name, time):
    """p(z_l was kept | z), as a sum over texts: what x_theta and Bayes' rule say."""
    process, t = PROCESSES[name], torch.tensor([[time]]).double()
    z = world.states(process)  # (V^3, L)
    e = world.evidence(process, z, t)  # (V^3, 27, L)
    total = (e.prod(-1) * P).sum(-1)  # (V^3,)
    x_theta = F.pad(world.oracle(process)(z, t).exp(), (0, process.V - N))  # (V^3, L, V)
    own = x_theta.gather(-1, z[..., None])[..., 0]  # (V^3, L)
    ours = noise_probability(process, own, z, t)  # (V^3, L)
    for l in range(L):
        others = e[..., [k for k in range(L) if k != l]].prod(-1)  # (V^3, 27)
        kept = (others * P * (TEXTS[:, l] == z[:, l, None])).sum(-1) * process.alpha(t)[0]  # (V^3,)
        torch.testing.assert_close(ours[:, l], 1 - kept / total, atol=1e-12, rtol=0)


def test_under_masks_the_planner_knows_what_everybody_sees():
    process, t = Absorbing(N), torch.tensor([[0.4]]).double()
    z = torch.tensor([[0, N, 2]])  # (1, L)
    own = torch.tensor([[0.3, 0.0, 0.9]]).double()  # (1, L)
    assert noise_probability(process, own, z, t).tolist() == [[0, 1, 0]]


# ---- ddpd

def test_whole_numbers_have_the_mean_that_they_are_drawn_for():
    torch.manual_seed(0)
    drawn = round_at_random(torch.full((40_000,), 2.3))  # (n,)
    assert drawn.unique().tolist() == [2, 3] and abs(drawn.mean() - 2.3) < 0.01


@pytest.mark.parametrize("greedy", [False, True])
def test_ddpd_changes_as_many_words_as_noise_leaves_and_the_likely_ones(greedy):
    """Of 6 words three are certainly wrong at t = 1/2. Two steps take half of that noise each."""
    right = [sure(0, 1.0 - 1e-12)] * 6
    z = torch.tensor([[0, 1, 0, 1, 0, 1]]).expand(2000, -1)  # (2000, 6)
    process, sampler = Uniform(5), make_sampler("ddpd", make_method("udlm", 5), greedy=greedy)
    log_p = torch.tensor(right).double().log()  # (6, 5)
    torch.manual_seed(0)
    walk = sampler(process, lambda z, t, at: log_p.expand(len(z), -1, -1)[at], z, NOTHING(z), 4)
    next(walk)
    *_, end = walk
    assert (end == 0).double().mean() > (0.99 if greedy else 0.9)
    frozen = torch.ones_like(z, dtype=torch.bool)
    frozen[:, 5] = False
    *_, kept = sampler(process, lambda z, t, at: log_p.expand(len(z), -1, -1)[at], z, frozen, 8)
    assert (kept[:, :5] == z[:, :5]).all()


def test_greedy_takes_the_likeliest_noise_and_else_it_is_drawn_in_proportion():
    """At t = 1/2 word 1 is noise for sure, word 0 with p = 2/3. So 5/3 words change on average; if
    it is one, it is word 1 with p = 3/5."""
    p = torch.tensor([[0.1, 0.9, 0, 0, 0], [1e-9, 1, 0, 0, 0]]).double()  # (2, 5)
    still = torch.eye(5)[[0, 0]].double()  # (2, 5) at t = 1
    denoiser = lambda z, t, at: (p if t[0] < 0.9 else still).log().expand(len(z), -1, -1)[at]
    z = torch.zeros(8000, 2, dtype=torch.long)  # (8000, 2)
    noise = noise_probability(Uniform(5), p[None, :, 0], z[:1], torch.tensor([[0.5]]).double())
    torch.testing.assert_close(noise[0], torch.tensor([2 / 3, 1]).double())
    for greedy, share in ((False, 2 / 3 + 1 / 3 * 3 / 5), (True, 1.0)):
        sampler = make_sampler("ddpd", make_method("udlm", 5), greedy=greedy)
        torch.manual_seed(0)
        *_, end = sampler(Uniform(5), denoiser, z, NOTHING(z), 2)
        assert abs((end[:, 1] != 0).double().mean() - share) < 0.016  # 4 errors


@pytest.mark.parametrize("name, says", [
    ("mdlm", "has none that noise made wrong"), ("ar", "does not work with ar"),
    ("gidd", "has masks too")])
def test_ddpd_is_for_noise_of_words_alone(name, says):
    with pytest.raises(UserError, match=says):
        make_sampler("ddpd", make_method(name, 5))


# ---- p2

def test_p2_without_trust_in_old_words_is_confidence_draw_for_draw():
    """--trust 0: a word's score is 0, the highest there is, so it is never masked again."""
    rough = lambda z, t, at: torch.randn(
        *z.shape, 6, generator=torch.Generator().manual_seed(0))[at]  # (N, 6)
    z, ends = torch.full((30, 12), MASK), []
    for name, flags in (("p2", dict(trust=0.0)), ("confidence", {})):
        torch.manual_seed(3)
        *_, end = MDLM.sample(rough, z, NOTHING(z), 4, make_sampler(name, MDLM, **flags))
        ends.append(end)
    assert torch.equal(*ends)


def test_p2_masks_a_word_again_that_the_others_call_wrong():
    """Word 3 stands at place 0, which all others say is wrong; places 2 and 3 are open next."""
    denoiser = says(sure(1), sure(2), sure(0), sure(4))
    z = torch.tensor([[3, 2, MASK, MASK]])  # (1, 4)
    first, *_, last = MDLM.sample(denoiser, z, NOTHING(z), 2, make_sampler("p2", MDLM))
    assert first[0, 0] == MASK and (first[0, 1:] < MASK).all() and (last < MASK).all()
    given = z == 3  # (1, 4)
    first, *_ = MDLM.sample(denoiser, z, given, 2, make_sampler("p2", MDLM))
    assert first[0, 0] == 3


# ---- edit, proseco

def test_masks_open_above_a_threshold_and_as_many_as_the_steps_ask():
    score = torch.tensor([[0.95, 0.2, -1.0, 0.91], [0.3, 0.2, 0.1, -1.0]])  # (2, 4)
    assert open_confident(score, 0.9, 4).tolist() == [[True, False, False, True],
                                                      [True, False, False, False]]
    assert open_confident(score, 0.9, 1).sum(-1).tolist() == [3, 3]


@pytest.mark.parametrize("again, after", [(False, 1), (True, MASK)])
def test_an_edit_needs_another_word_above_its_threshold(again, after):
    """Of the words that stand there, place 0 has a better one of 0.96, place 1 one of 0.6."""
    denoiser = says(sure(1), sure(2, 0.6), sure(0), sure(4))
    z = torch.tensor([[3, 3, MASK, MASK]])  # (1, 4)
    sampler = make_sampler("edit", MDLM, again=again, edit_above=0.9)
    first, *_ = MDLM.sample(denoiser, z, NOTHING(z), 3, sampler)
    assert first[0, :2].tolist() == [after, 3]
    for steps in (1, 2, 5):
        *_, last = MDLM.sample(denoiser, z, z == 3, steps, sampler)
        assert (last < MASK).all() and last[0, :2].tolist() == [3, 3]
        *_, last = MDLM.sample(denoiser, z, NOTHING(z), steps, sampler)
        assert (last < MASK).all()


def test_proseco_corrects_words_and_never_the_masks_that_stay():
    denoiser = says(*[sure(1, 1 - 1e-12)] * 6)
    z = torch.tensor([[3, 3, MASK, MASK, MASK, MASK]])  # (1, 6)
    for every, corrected in ((1, [0, 1, 2, 3]), (2, [1, 3]), (4, [3])):
        sampler, before = make_sampler("proseco", MDLM, every=every), z
        for step, after in enumerate(MDLM.sample(denoiser, z, NOTHING(z), 4, sampler)):
            assert int((after == MASK).sum()) == 3 - step
            assert (after[0, :2] == 1).all() == (step >= corrected[0])
            assert torch.equal(before[0, :2], after[0, :2]) or step == corrected[0]
            before = after


# ---- the informed corrector

class Still(Sampler):
    """A sampler that yields the text as it is."""

    def __call__(self, process, denoiser, z, frozen, steps, to_probs):
        yield z


def test_the_margin_is_to_the_best_other_word():
    p = torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]]).double()  # (2, 3)
    ours = margins(p.log(), torch.tensor([0, 2]))  # (2,)
    torch.testing.assert_close(ours, torch.tensor([0.5 / 0.3, 0.2 / 0.5]).double().log())


def test_the_informed_corrector_has_the_law_of_its_chain_which_is_not_the_models():
    """Its matrix over the 27 texts: draw again where the margin is least. Three rounds from P."""
    process = Uniform(N)
    exact = world.by_state(lambda z, t, at=None: world.oracle(process)(z, t.clamp(min=1e-7), at))
    every = torch.ones(27, L, dtype=torch.bool)  # (27, L)
    logits = exact(TEXTS, torch.zeros(27, 1), every)  # (27 L, N)
    place = margins(logits, TEXTS.flatten()).view(27, L).argmin(-1)  # (27,)
    chain = torch.zeros(27, 27, dtype=torch.float64)  # (27, 27)
    for i in range(27):
        for v, p in enumerate(logits.view(27, L, N)[i, place[i]].exp()):
            after = TEXTS[i].clone()
            after[place[i]] = v
            chain[i, numbers(after[None], N)[0]] += p
    law = P @ chain.matrix_power(3)  # (27,)
    assert (law - P).abs().sum() > 0.1
    torch.manual_seed(0)
    x = TEXTS[torch.multinomial(P, 8_000, replacement=True)]  # (n, L)
    *_, z = Informed(Still(), 3)(process, exact, x, NOTHING(x), 1)
    assert surprise(numbers(z, N), law) < 4.5 and surprise(numbers(z, N), P) > 10
