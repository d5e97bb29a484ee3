"""Words that are masked again: how often and which, with public figures of ReMDM (f830d65)."""
from functools import partial
from pathlib import Path

import numpy
import pytest
import torch

from diffusion import Absorbing, probabilities
from samplers.psi import kappa_of
from samplers.remasking import ReMDMConf, TopK, remask_probability
from world import N, psi_law

REFERENCE = Path(__file__).parents[1] / "reference"
FIGURES = numpy.load(REFERENCE / "masked_reference.npz")
INPUTS = numpy.load(REFERENCE / "reference.npz")
NOTHING = lambda z: torch.zeros_like(z, dtype=torch.bool)


def figure(name, figures=FIGURES):
    return torch.from_numpy(figures[name])


T, Z = figure("in/t", INPUTS)[:, None], figure("in/zt_abs", INPUTS)  # (B, 1), (B, L)
LOG_P = figure("in/logits", INPUTS)[..., :11].log_softmax(-1)  # (B, L, 11)


# ---- ReMDM's schedules, which are those of psi.py

def their_nucleus(p, most):
    """Without the word that crosses `most`, except the first: ReMDM's public code, not ours."""
    ranked, order = p.sort(-1, descending=True)  # (..., V) each
    kept = (ranked.cumsum(-1) <= most) | (torch.arange(p.shape[-1]) == 0)  # (..., V)
    p = p * torch.zeros_like(kept).scatter(-1, order, kept)  # (..., V)
    return p / p.sum(-1, keepdim=True)  # (..., V)


def schedule(name, t, dt=1 / 16, eta=0.1):
    """s, t, kappa of a step of 1/16 at time t, all (B, 1), in our time, where alpha = 1 - t."""
    s = t - dt
    if name == "remdm-loop":  # 0.9 of the text is there from t = .55 to .05: our PLATEAU
        squeeze = lambda t: torch.where(t > 0.55, 1 - 0.9 * (1 - t) / 0.45, 0.1)
        s, t = torch.where(t > 0.55, squeeze(s), 0.1), squeeze(t)  # (B, 1) each
        return s, t, torch.where(t > 0.1, 1.0, kappa_of("loop", eta, 1 - t, 1 - s))
    if name == "forward-backward":  # sigma = (alpha_s - alpha_t) / alpha_t
        return s, t, 1 - (t - s) / (1 - t) / s
    if name == "mdlm":
        return s, t, torch.ones_like(t)
    return s, t, kappa_of(name.removeprefix("remdm-"), eta, 1 - t, 1 - s)


@pytest.mark.parametrize("nucleus", ["1.0", "0.9"])
@pytest.mark.parametrize("name", ["mdlm", "forward-backward", "remdm-cap", "remdm-rescale",
                                  "remdm-loop"])
def test_a_psi_step_is_that_of_remdms_public_code(name, nucleus):
    """But for two things. Where eta exceeds 1 - alpha_s (cap, first text) ReMDM masks more than a
    coin of kappa can. And where nothing is corrected its rows for words are never used: words are
    copied."""
    masked, x_theta = (Z == 11)[..., None], LOG_P.exp()  # (B, L, 1|11)
    if nucleus == "0.9":
        x_theta = torch.where(masked, their_nucleus(x_theta, 0.9), x_theta)  # (B, L, 11)
    s, t, k = schedule(name, T)  # (B, 1) each
    p = psi_law(Absorbing(11), x_theta, Z, s, t, k[..., None])  # (B, L, 12)
    rows = figure(f"remdm/{name}_p{nucleus}_q")  # (B, L, 12)
    used = (Z == 11) | (k < 1)  # (B, L)
    used = used & (k > 0) if name == "remdm-cap" else used  # (B, L)
    theirs = (rows / rows.sum(-1, keepdim=True))[used]  # (n, 12)
    torch.testing.assert_close(p[used], theirs, atol=1e-6, rtol=1e-5)
    assert used.any(-1).sum() == (3 if name == "remdm-cap" else 4)


# ---- ReMDM's confidence

def test_a_doubted_word_is_masked_again_with_the_probability_of_remdms_public_code():
    """Confidence is stored there with the opposite sign."""
    process, dt = Absorbing(11), figure("remdm/dt")
    alpha_t, alpha_s = process.alpha(T), process.alpha(T - dt)  # (B, 1) each
    again = remask_probability(process, -figure("remdm/conf"), Z, T - dt, T)  # (B, L)
    rows, words = figure("remdm/remdm-conf_p1.0_q"), Z < 11  # (B, L, 12), (B, L)
    close = partial(torch.testing.assert_close, atol=1e-6, rtol=1e-6)
    close(again[words], rows[..., 11][words])
    stay = (1 - alpha_s).expand_as(again) / (1 - alpha_t)  # (B, L)
    close(stay[~words], (rows[..., 11] / rows.sum(-1))[~words])
    opened = ((alpha_s - alpha_t) / (1 - alpha_t))[..., None] * LOG_P.exp()  # (B, L, 11)
    close(opened[~words], (rows / rows.sum(-1, keepdim=True))[..., :11][~words])


def test_one_step_of_conf_opens_and_masks_as_often_as_it_should():
    """40,000 texts in the middle of four steps: confidence is what each word had when it was
    drawn."""
    p, n = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64), 40_000  # (N,)
    denoiser = lambda z, t, at: p.log().expand(int(at.sum()), -1)
    torch.manual_seed(0)
    z = torch.full((n, 2), N)  # (n, 2)
    states = list(ReMDMConf()(Absorbing(N), denoiser, z, NOTHING(z), 4))
    before, after = states[1], states[2]  # (n, 2) each, t = 1/2 -> s = 1/4
    both = (before < N).all(-1)  # (n,) two words: they share sigma by their doubts
    due = (1 - 0.75) / 0.5 * (-p[before[both]]).softmax(-1)  # (m, 2)
    masked = (after[both] == N).double()  # (m, 2)
    z_score = (masked - due).sum(0) / (due * (1 - due)).sum(0).sqrt()  # (2,)
    assert (z_score.abs() < 4).all() and int(both.sum()) > 2000
    none = (before == N).all(-1)  # (n,)
    opens = (after[none] < N).double().mean(0)  # (2,)
    assert (opens - 0.5).abs().max() < 4 * 0.5 / int(none.sum()) ** 0.5
    assert (states[3] < N).all()


def test_the_words_that_conf_masks_again_are_those_the_network_doubts_at_any_temperature():
    """At temperature 0: all words are likeliest words, one with confidence 0.99, the other 0.4."""
    confidence = torch.tensor([0.99, 0.4], dtype=torch.float64)  # (2,)
    rest = (1 - confidence) / 2  # (2,)
    rows = torch.stack([rest, confidence, rest], -1).log()  # (2, N)
    denoiser = lambda z, t, at: rows.expand(len(z), 2, N)[at]
    torch.manual_seed(0)
    z, n, greedy = torch.full((20_000, 2), N), torch.zeros(2), partial(probabilities, temperature=0)
    states = [z, *ReMDMConf()(Absorbing(N), denoiser, z, NOTHING(z), 4, greedy)]
    for before, after in zip(states, states[1:]):
        n += ((before < N).all(-1, keepdim=True) & (after == N)).sum(0)  # (2,)
    share = (-confidence).softmax(-1)  # (2,)
    assert ((n / n.sum() - share).abs() < 4 * (share.prod() / n.sum()).sqrt()).all()
    assert n.sum() > 1500


# ---- top-k

def test_top_k_keeps_the_surest_of_all_words_and_takes_back_what_it_doubts():
    """One word stays after the first step, the surest; two after the second, and the first is not
    among them."""
    calls = iter([[0.9, 0.8, 0.7, 0.6], [0.99, 0.98, 0.97], [0.5, 0.5], [0.5]])
    denoiser = lambda z, t, at: torch.tensor([[p, 1 - p] for p in next(calls)]).log()
    likeliest = lambda logits: logits.double().exp() * (logits == logits.amax(-1, keepdim=True))
    to_probs = lambda logits: logits.double().exp() if len(logits) < 3 else likeliest(logits)
    z = torch.full((1, 4), 2)  # (1, 4)
    states = TopK()(Absorbing(2), denoiser, z, NOTHING(z), 4, to_probs)
    shown = [(state != 2).tolist()[0] for state in states]
    assert shown[:2] == [[True, False, False, False], [False, True, True, False]]
    assert [sum(words) for words in shown] == [1, 2, 3, 4]


def test_with_rescore_top_k_is_rdms_rule_and_without_it_a_word_keeps_its_confidence():
    """Three words at temperature 0, three steps. Word 0 is drawn with .9; in the second step, which
    sees it, the network has .55 there, for another word. RDM masks the place again, since that is
    the lowest score of all; here it keeps .9 and its word. What RDM does not mask stays as it is.
    """
    first, second = [[0.9, 0.8, 0.6]], [[0.55, 0.95, 0.7]]  # of the word that is likeliest

    def denoiser(z, t, at):
        fresh = (z == 2).all(-1, keepdim=True)  # (1, 1)
        p = torch.where(fresh, torch.tensor(first), torch.tensor(second))  # (1, 3)
        rows = torch.stack([1 - p, p], -1)  # (1, 3, 2)
        return torch.where(fresh[..., None], rows, rows.flip(-1)).log()[at]  # (n, 2) then word 0
    z, shown = torch.full((1, 3), 2), {}  # (1, 3)
    for rescore in (False, True):
        states = TopK(rescore=rescore)(Absorbing(2), denoiser, z, NOTHING(z), 3,
                                       partial(probabilities, temperature=0))
        shown[rescore] = [state[0].tolist() for state in states]
    assert shown[False] == [[1, 2, 2], [1, 0, 2], [1, 0, 0]]
    assert shown[True] == [[1, 2, 2], [2, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("sampler", [TopK(), TopK(rescore=True), ReMDMConf()],
                         ids=["top-k", "rescore", "remdm-conf"])
def test_given_words_are_never_taken_back(sampler):
    torch.manual_seed(0)
    given, frozen = torch.randint(5, (50, 12)), torch.rand(50, 12) < 0.4  # (50, 12) each
    rough = lambda z, t, at: torch.randn(int(at.sum()), 6)
    for steps in (1, 3, 40):
        z = torch.where(frozen, given, 5)  # (50, 12)
        for z in sampler(Absorbing(5), rough, z, frozen, steps):
            assert (z == given)[frozen].all()
        assert (z < 5).all()
