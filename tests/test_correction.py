"""Words that are taken back: what leaves the exact law alone, what does not, and the public figures of ReMDM."""
from functools import partial
from pathlib import Path

import numpy
import pytest
import torch
import torch.nn.functional as F
import world
from test_reference import LOG_P, T, Z
from world import L, N, P, PROCESSES, TEXTS, numbers, psi_law, surprise

from correction import all_others, gibbs, remask, remdm_conf, self_correct, top_k
from data import BadInput
from diffusion import ancestral, probabilities
from masked import Absorbing
from methods import SAMPLERS, make_method, make_sampler
from psi import kappa
from sample import Counted
from sampling import Sampling

FIGURES = numpy.load(Path(__file__).parent / "masked_reference.npz")     # ReMDM: commit f830d65
NOTHING = lambda z: torch.zeros_like(z, dtype=torch.bool)


def figure(name):
    return torch.from_numpy(FIGURES[name])


def still(process, denoiser, z, frozen, steps, law):
    """A walk that is over."""
    yield z


def exact_texts(n):
    return TEXTS[torch.multinomial(P, n, replacement=True)]                                             # (n, L)


# ---- ReMDM's schedules, which are those of psi.py

def their_nucleus(p, most):
    """Without the word that crosses `most`, but for the first: public code of ReMDM, not ours."""
    ranked, order = p.sort(-1, descending=True)
    kept = (ranked.cumsum(-1) <= most) | (torch.arange(p.shape[-1]) == 0)
    p = p * torch.zeros_like(kept).scatter(-1, order, kept)
    return p / p.sum(-1, keepdim=True)


def schedule(name, t, dt=1 / 16, eta=0.1):
    """s, t, kappa of a step of 1/16 at time t, all (B, 1) on our clock, where alpha = 1 - t."""
    s = t - dt
    if name == "remdm-loop":                             # 0.9 of the text is there from t = .55 to .05: our PLATEAU
        squeeze = lambda t: torch.where(t > 0.55, 1 - 0.9 * (1 - t) / 0.45, 0.1)
        s, t = torch.where(t > 0.55, squeeze(s), 0.1), squeeze(t)
        return s, t, torch.where(t > 0.1, 1.0, kappa("loop", eta, 1 - t, 1 - s))
    if name == "forward-backward":                       # sigma = (alpha_s - alpha_t) / alpha_t
        return s, t, 1 - (t - s) / (1 - t) / s
    return s, t, torch.ones_like(t) if name == "mdlm" else kappa(name.removeprefix("remdm-"), eta, 1 - t, 1 - s)


@pytest.mark.parametrize("nucleus", ["1.0", "0.9"])
@pytest.mark.parametrize("name", ["mdlm", "forward-backward", "remdm-cap", "remdm-rescale", "remdm-loop"])
def test_a_psi_step_is_that_of_remdms_public_code(name, nucleus):
    """But for two things. Where eta exceeds 1 - alpha_s (cap, first text) ReMDM masks more than a coin of kappa can.
    And where nothing is corrected its rows for words are never used: words are copied."""
    masked, x_theta = (Z == 11)[..., None], LOG_P.exp()                                                 # (B, L, 1|11)
    x_theta = x_theta if nucleus == "1.0" else torch.where(masked, their_nucleus(x_theta, 0.9), x_theta)
    s, t, k = schedule(name, T)
    law = psi_law(Absorbing(11), x_theta, Z, s, t, k[..., None])                                        # (B, L, 12)
    rows = figure(f"remdm/{name}_p{nucleus}_q")
    used = (Z == 11) | (k < 1)                                                                          # (B, L)
    used = used & (k > 0) if name == "remdm-cap" else used
    torch.testing.assert_close(law[used], (rows / rows.sum(-1, keepdim=True))[used], atol=1e-6, rtol=1e-5)
    assert used.any(-1).sum() == (3 if name == "remdm-cap" else 4)


# ---- ReMDM's confidence

def test_a_doubted_word_is_masked_again_with_the_probability_of_remdms_public_code():
    """Belief is stored there with the sign of doubt."""
    process, conf, dt = Absorbing(11), -figure("remdm/conf"), figure("remdm/dt")
    alpha_t, alpha_s = process.alpha(T), process.alpha(T - dt)                                          # (B, 1) each
    again = remask(conf, Z, process, (1 - alpha_s) / alpha_t)                                           # (B, L)
    rows, words = figure("remdm/remdm-conf_p1.0_q"), Z < 11
    torch.testing.assert_close(again[words], rows[..., 11][words], atol=1e-6, rtol=1e-6)
    stay = (1 - alpha_s).expand_as(again) / (1 - alpha_t)                                               # (B, L)
    torch.testing.assert_close(stay[~words], (rows[..., 11] / rows.sum(-1))[~words], atol=1e-6, rtol=1e-6)
    opened = ((alpha_s - alpha_t) / (1 - alpha_t))[..., None] * LOG_P.exp()                             # (B, L, 11)
    torch.testing.assert_close(opened[~words], (rows / rows.sum(-1, keepdim=True))[..., :11][~words], atol=1e-6,
                               rtol=1e-6)


def test_one_step_of_conf_opens_and_masks_as_often_as_it_should():
    """40,000 texts in the middle of a walk of four steps: belief is what each word had when it was drawn."""
    law = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    one, n = lambda z, t, at: law.log().expand(int(at.sum()), -1), 40_000
    torch.manual_seed(0)
    process = Absorbing(N)
    states = list(remdm_conf(process, one, torch.full((n, 2), N), torch.zeros(n, 2, dtype=torch.bool), 4))
    before, after = states[1], states[2]                 # t = 1/2 -> s = 1/4
    both = (before < N).all(-1)                          # two words: they share sigma by their doubts
    doubt = (-law[before[both]]).softmax(-1)                                                            # (m, 2)
    room = (1 - 0.75) / 0.5
    masked = (after[both] == N).double()                                                                # (m, 2)
    z_score = (masked - room * doubt).sum(0) / (room * doubt * (1 - room * doubt)).sum(0).sqrt()        # (2,)
    assert (z_score.abs() < 4).all() and int(both.sum()) > 2000
    none = (before == N).all(-1)
    opens = (after[none] < N).double().mean(0)
    assert (opens - 0.5).abs().max() < 4 * 0.5 / int(none.sum()) ** 0.5
    assert (states[3] < N).all()


def test_the_words_that_conf_masks_again_are_those_the_network_doubts_whatever_the_law():
    """At temperature 0: all words are likeliest words, and one is believed with 0.99, the other with 0.4."""
    sure = torch.tensor([0.99, 0.4], dtype=torch.float64)                                               # (2,)
    rows = torch.stack([(1 - sure) / 2, sure, (1 - sure) / 2], -1).log()                                # (2, N)
    surer = lambda z, t, at: rows.expand(len(z), 2, N)[at]
    torch.manual_seed(0)
    z, n = torch.full((20_000, 2), N), torch.zeros(2)
    states = [z, *remdm_conf(Absorbing(N), surer, z, NOTHING(z), 4, partial(probabilities, temperature=0))]
    for before, after in zip(states, states[1:]):
        n += ((before < N).all(-1, keepdim=True) & (after == N)).sum(0)                                 # (2,)
    share = (-sure).softmax(-1)                                                                         # (2,)
    assert ((n / n.sum() - share).abs() < 4 * (share.prod() / n.sum()).sqrt()).all() and n.sum() > 1500


# ---- top-k

def test_top_k_keeps_the_surest_of_all_words_and_takes_back_what_it_doubts():
    """One word stays after the first step, the surest; two after the second, and the first is not among them."""
    beliefs = iter([[0.9, 0.8, 0.7, 0.6], [0.99, 0.98, 0.97], [0.5, 0.5], [0.5]])
    denoiser = lambda z, t, at: torch.tensor([[p, 1 - p] for p in next(beliefs)]).log()
    likeliest = lambda logits: logits.double().exp() * (logits == logits.amax(-1, keepdim=True))
    unsharpened = lambda logits: logits.double().exp() if len(logits) < 3 else likeliest(logits)
    z = torch.full((1, 4), 2)
    shown = [(state != 2).tolist()[0] for state in top_k(Absorbing(2), denoiser, z, NOTHING(z), 4, unsharpened)]
    assert shown[:2] == [[True, False, False, False], [False, True, True, False]]
    assert [sum(words) for words in shown] == [1, 2, 3, 4]


@pytest.mark.parametrize("sampler", ["top-k", "remdm-conf"])
def test_given_words_are_never_taken_back(sampler):
    torch.manual_seed(0)
    given, frozen = torch.randint(5, (50, 12)), torch.rand(50, 12) < 0.4
    rough = lambda z, t, at: torch.randn(int(at.sum()), 6)
    for steps in (1, 3, 40):
        z = torch.where(frozen, given, 5)
        for z in SAMPLERS[sampler](Absorbing(5), rough, z, frozen, steps):
            assert (z == given)[frozen].all()
        assert (z < 5).all()


# ---- the whole text: Gibbs, and the climb

@pytest.mark.parametrize("name", PROCESSES)
def test_gibbs_leaves_the_exact_law_alone_and_from_anywhere_finds_it(name):
    """8,000 exact texts, 8 words of each redrawn: still exact. And texts of one word repeated become so."""
    process, n = PROCESSES[name], 8_000
    clean = lambda z, t, at: world.oracle(process)(z, t.clamp(min=1e-7), at)
    torch.manual_seed(0)
    for start, rounds in ((exact_texts(n), 8), (torch.zeros(n, L, dtype=torch.long), 30)):
        *_, z = gibbs(process, clean, start, NOTHING(start), 1, walk=still, rounds=rounds)
        assert (z != start).any() and surprise(numbers(z, N), P) < 4.5


@pytest.mark.parametrize("name", ["mask", "hybrid .1"])
def test_the_word_itself_is_not_asked_about_itself(name):
    process, z = PROCESSES[name], torch.tensor([[0, 1, 2], [2, 1, 2]])
    at = torch.tensor([[True, False, False], [True, False, False]])

    def seen(z, t, at):
        assert (z[at] == process.mask).all() and (z[~at] < N).all()      # a masked network copies what it can see
        return world.oracle(process)(z, t + 1e-7, at)
    all_others(process, seen, z, at)
    laws = all_others(process, lambda z, t, at: world.oracle(process)(z, t + 1e-7, at), z, at)          # (2, N)
    torch.testing.assert_close(laws[0], laws[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["uniform", "hybrid .1", "hybrid .7"])
def test_self_correction_climbs_and_so_does_not_keep_the_law(name):
    process, n = PROCESSES[name], 4000
    torch.manual_seed(0)
    x, given = exact_texts(n), torch.rand(n, L) < 0.2
    *_, z = self_correct(process, world.oracle(process), x, given, 1, walk=still, rounds=40)
    score = lambda z: P[numbers(z, N)].log()
    assert (z == x)[given].all() and score(z).mean() > score(x).mean() + 0.1
    assert surprise(numbers(z, N), P) > 10


def test_self_correction_changes_one_word_a_round_and_stops_when_nothing_gets_better():
    process, right = PROCESSES["uniform"], torch.tensor([0, 1, 2, 0, 1, 2])
    told = lambda z, t, at: (50.0 * F.one_hot(right, N)).expand(len(z), -1, -1)[at]
    z = torch.tensor([[0, 1, 2, 0, 1, 2], [1, 2, 0, 0, 1, 2]])
    spy = Counted(told)
    states = list(self_correct(process, spy, z, NOTHING(z), 1, walk=still, rounds=128))
    changes = torch.stack([(a != b).sum(-1) for a, b in zip(states, states[1:])])                       # (rounds, 2)
    assert changes.max() == 1 and changes[:, 0].sum() == 0 and changes[:, 1].sum() == 3
    assert (states[-1] == right).all() and spy.calls < 40


@pytest.mark.parametrize("tail, rounds, walks", [("gibbs", 0, 32), ("self-correct", 0, 128), ("gibbs", 40, 40),
                                                 ("self-correct", 40, 40)])
def test_no_number_of_rounds_is_each_tails_own(tail, rounds, walks):
    walk = make_sampler("ancestral", "udlm", tail=tail, rounds=rounds)
    assert walk.keywords["rounds"] == walks and Sampling().rounds == 0


@pytest.mark.parametrize("method, tail", [("mdlm", "gibbs"), ("bd3lm", "gibbs"), ("pgm", "gibbs"), ("udlm", "gibbs"),
                                          ("udlm", "self-correct"), ("gidd", "self-correct"), ("duo", "gibbs")])
def test_tails_redraw_as_many_words_as_asked_and_keep_what_is_given(method, tail):
    m = make_method(method, 5)
    torch.manual_seed(0)
    given, frozen = torch.randint(5, (6, 8)), torch.rand(6, 8) < 0.3
    def rough(z, t, at=None, **layout):
        logits = torch.randn(*z.shape, 6)
        return logits if at is None else logits[at]
    z = torch.where(frozen, given, m.prior(given.shape))
    states = list(m.sample(rough, z, frozen, 4, make_sampler("ancestral", method, tail=tail, rounds=5)))
    assert (states[-1] == given)[frozen].all() and (states[-1] < 5).all()
    assert len(states) in (9, 18)                        # bd3lm: in each of its two blocks
    assert all((a != b).sum(-1).max() <= 1 for a, b in zip(states[-5:], states[-4:]))


@pytest.mark.parametrize("name, method, options, says", [
    ("top-k", "udlm", {}, "chooses among the masks"), ("remdm-conf", "gidd", {}, "chooses among the masks"),
    ("ancestral", "mdlm", dict(tail="self-correct"), "try --tail gibbs"),
    ("ancestral", "ar", dict(tail="gibbs"), "walk of its own"), ("psi", "genmd4", {}, "walk of its own"),
    ("psi", "mdlm", dict(grid="cosine"), "--grid goes with"), ("first-hitting", "genmd4", {}, "walk of its own")])
def test_what_does_not_fit_is_refused_in_words(name, method, options, says):
    with pytest.raises(BadInput, match=says):
        make_sampler(name, method, **options)


def test_a_walk_may_end_before_its_tail_begins():
    z = torch.full((4, L), N)
    *_, text = gibbs(Absorbing(N), world.oracle(Absorbing(N)), z, NOTHING(z), 3, walk=ancestral, rounds=2)
    assert (text < N).all()
