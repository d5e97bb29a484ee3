"""AUDM: uniform noise as masks that show a word. Sums over all states (z, m) of the small world,
ids of which are a word, or N + 1 + a word for noise that shows it."""
from itertools import product
from math import comb
from types import SimpleNamespace

import pytest
import torch
import world
from bounds import close, close_in_the_mean, quadrature
from world import TEXTS, L, N, P

from data.tokenizer import words
from diffusion import Uniform
from distill import SDTT, Config
from flags import configure
from methods import make_method
from methods.audm import ShowWords, TwoVectors
from samplers import make_sampler
from samplers.generate import generate
from samplers.reply import finished
from viewer.terminal import Terminal

METHOD = make_method("audm", N)
EXACT = METHOD.oracle(world.LANGUAGE)
IDS = [*range(N), *range(N + 1, 2 * N + 1)]
STATES = torch.tensor(list(product(IDS, repeat=L)))  # (216, L)
NOISE = STATES > N  # (216, L) m
WORDS = torch.where(NOISE, STATES - N - 1, STATES)  # (216, L) z
NUMBER = {tuple(z): i for i, z in enumerate(STATES.tolist())}  # of each state
PATTERNS = torch.tensor(list(product([False, True], repeat=L))[1:])  # (7, L) m, some noise
TIMES = [0.1, 0.5, 0.93]
each_time = pytest.mark.parametrize("t", TIMES)


def at_time(t, n=len(STATES)):
    return torch.full((n, 1), t, dtype=torch.float64)  # (n, 1)


def law(t):
    """q(z, m | x) of every state and text, (4.2) as it stands. t: a number -> (216, 27)"""
    text = (1 - t) * (STATES[:, None] == TEXTS).double()  # (216, 27, L)
    return (text + t / N * NOISE[:, None].double()).prod(-1)  # (216, 27)


def exact_bound(denoiser):
    """The mean of nelbo for every text: of all numbers of masks, patterns and words. -> (27,)"""
    total = torch.zeros(len(TEXTS), dtype=torch.float64)  # (27,)
    for m, u in product(PATTERNS, TEXTS):
        k = int(m.sum())
        log_p = denoiser(torch.where(m, N + 1 + u, TEXTS), None)  # (27, L, N)
        ce = -log_p.gather(-1, TEXTS[..., None])[..., 0]  # (27, L)
        total += (ce * m.double()).sum(-1) / (k * comb(L, k) * len(TEXTS))  # (27,)
    return total


def oracle(z, t=None, at=None):
    """The exact denoiser, which needs no time."""
    return EXACT(z, at_time(0.5, len(z)), at)


def nosy(z, t=None, at=None):
    """A wrong denoiser that depends on the words which noise shows, here and to the left."""
    p = oracle(z).clamp(min=-30) + 0.4 * ((z[..., None] - N - 1) == torch.arange(N))  # (B, L, N)
    log_p = (p + 0.3 * p.roll(1, 1)).log_softmax(-1)  # (B, L, N)
    return log_p if at is None else log_p[at]


# ---- what is udlm's

@each_time
def test_text_and_noisy_text_have_the_joint_distribution_of_udlm(t):
    """(x, z_t), at every t: the sum over m of (4.2), to 1e-12."""
    number = world.numbers(WORDS, N)  # (216,)
    ours = torch.zeros(27, 27, dtype=torch.float64).index_add(0, number, law(t))  # (27 z, 27 x)
    close(ours, world.q(Uniform(N), TEXTS, at_time(t, 27)), 1e-12)


@each_time
def test_the_likelihood_is_that_of_the_state_but_for_the_word_that_noise_shows(t):
    e = METHOD.likelihood(STATES, at_time(t))  # (216, L, N)
    ours = torch.stack([e[:, l, TEXTS[:, l]] for l in range(L)], -1)  # (216, 27, L)
    close(ours.prod(-1) / N ** NOISE.sum(-1, keepdim=True), law(t), 1e-12)


@each_time
def test_what_udlm_lacks_is_which_words_are_noise_and_the_network_knows_the_odds(t):
    """(4.4): P(m_l = 0 | z, other m) from x_theta(z_l), for every state and token."""
    joint = {tuple(z.tolist()): p for z, p in zip(STATES, law(t) @ P)}
    p = oracle(STATES).exp().gather(-1, WORDS[..., None])[..., 0]  # (216, L) x_theta(z_l)
    ours = (1 - t) * p / ((1 - t) * p + t / N)  # (216, L)
    for i, l in product(range(len(STATES)), range(L)):
        text, noise = STATES[i].tolist(), STATES[i].tolist()
        text[l], noise[l] = int(WORDS[i, l]), N + 1 + int(WORDS[i, l])
        if (both := joint[*text] + joint[*noise]) > 0:
            close(ours[i, l], joint[*text] / both, 1e-12)


@each_time
def test_the_mean_over_which_words_are_noise_is_the_leave_one_out_distribution_of_udlm(t):
    """(4.5), for every noisy text and token, to 1e-12. The token itself is noise."""
    weight, found = law(t) @ P, torch.zeros(27, L, N, dtype=torch.float64)  # (216,), (27, L, N)
    number, x_theta = world.numbers(WORDS, N), oracle(STATES).exp()  # (216,), (216, L, N)
    for l in range(L):
        rows = NOISE[:, l]  # (216,)
        found[:, l].index_add_(0, number[rows], weight[rows, None] * x_theta[rows, l])  # (27, N)
    found = found / found.sum(-1, keepdim=True)  # (27, L, N)
    close(found, world.oracle(Uniform(N))(TEXTS, at_time(t, 27)).exp(), 1e-12)


def test_of_two_times_the_distribution_is_that_of_udlm_only_if_words_of_noise_jump_on():
    """Of one token, whose noise shows one word for good (ours), or draws it again as (4.1) does."""
    s, t, one = 0.3, 0.7, torch.eye(N, dtype=torch.float64)  # (N, N)
    keep, flat = (1 - t) / (1 - s), torch.full((N, N), 1 / N, dtype=torch.float64)  # (N, N)
    jump = keep * one + (1 - keep) * flat  # (N z_s, N z_t) q(z_t | z_s)
    for x in range(N):
        clean = one[x][:, None]  # (N, 1) z_s = x
        udlm = ((1 - s) * clean + s / N) * jump  # (N, N)
        as_text = (1 - t) * clean * one[x] + (t - s) * clean / N  # (N, N) z_s is text
        close(as_text + s / N * jump, udlm, 1e-12)
        ours = as_text + s / N * one  # (N, N)
        close(ours.sum(0), udlm.sum(0), 1e-12)
        close(ours.sum(1), udlm.sum(1), 1e-12)
        assert (ours - udlm).abs().max() > 0.03


# ---- what is mdlm's

def test_the_exact_denoiser_is_that_of_masks_whatever_they_show():
    masks = make_method("mdlm", N).oracle(world.LANGUAGE)
    close(oracle(STATES).exp(), masks(STATES.clamp(max=N), at_time(0.5)).exp(), 1e-12)


def test_the_bound_of_the_oracle_is_the_exact_log_probability_of_every_text():
    close(exact_bound(oracle), -P.log(), 1e-10)


@pytest.mark.parametrize("wrong", [
    nosy, lambda z, t: (1.5 * oracle(z).clamp(min=-30)).log_softmax(-1),
    lambda z, t: (0.9 * oracle(z).exp() + 0.1 / N).log(),
    lambda z, t: world.vandal(z % (N + 1), 0.5)], ids=["nosy", "sharper", "forgets", "vandal"])
def test_any_other_denoiser_gives_more(wrong):
    assert (P * exact_bound(wrong)).sum() > -(P * P.log()).sum() + 0.005


def test_nelbo_draws_the_bound_of_a_denoiser_that_looks_at_the_words():
    """In the mean, within 4.5 standard errors below 1 %. Other words would give another mean."""
    torch.manual_seed(0)
    exact = exact_bound(nosy)  # (27,)
    for i in (1, 14, 25):
        x = TEXTS[i].expand(2000, -1)
        close_in_the_mean(lambda: METHOD.nelbo(nosy, x).sum(-1), exact[i])


def test_the_network_sees_text_and_noise_that_shows_uniform_words():
    """What the loss shows of one text at times of density 1, against the integral of (4.2)."""
    seen, x, (times, weights) = [], TEXTS[5].expand(60_000, -1), quadrature(20)
    torch.manual_seed(0)
    spy = lambda z, t, at: seen.append(z) or torch.zeros(int(at.sum()), N)
    make_method("audm", N, weighting="bound").loss(spy, x)
    p = sum(w * law(t)[:, 5] for t, w in zip(times, weights))  # (216,)
    draws = torch.tensor([NUMBER[tuple(z)] for z in seen[0].tolist()])  # (60_000,)
    assert world.surprise(draws, p / p.sum()) < 4.5


# ---- samples

def test_the_sampler_is_exact_if_it_opens_one_mask_a_call():
    """Each state has the distribution of (4.2) with so many words of noise, and the last one is
    text of the language: surprise below 4.5, total variation below 0.02."""
    n, nothing = 30_000, torch.zeros(30_000, L, dtype=torch.bool)
    torch.manual_seed(0)
    z = METHOD.prior((n, L))  # (n, L)
    states = list(METHOD.sample(world.by_state(EXACT), z, nothing, L,
                                make_sampler("first-hitting", METHOD)))
    for k, state in zip((2, 1, 0), states, strict=True):
        assert ((state > N).sum(-1) == k).all() and (state == z)[state > N].all()
        p = law(0.5) @ P * (NOISE.sum(-1) == k)  # (216,) any time: given k it cancels
        draws = torch.tensor([NUMBER[tuple(row)] for row in state.tolist()])  # (n,)
        assert world.surprise(draws, p / p.sum()) < 4.5
    seen = torch.bincount(world.numbers(states[-1], N), minlength=27) / n  # (27,)
    assert (seen - P).abs().sum() / 2 < 0.02


def test_words_of_noise_stay_and_text_is_carried_over():
    torch.manual_seed(0)
    given, frozen = torch.randint(N, (50, 8)), torch.rand(50, 8) < 0.3  # (50, 8) each
    noise = METHOD.prior(given.shape)  # (50, 8)
    rough = lambda z, t, at: torch.zeros(int(at.sum()), N)
    last = torch.where(frozen, given, noise)  # (50, 8)
    for z in METHOD.sample(rough, last, frozen, 6):
        assert (z == torch.where(z > N, noise, z)).all() and (z == last)[last <= N].all()
        assert (z == given)[frozen].all()
        last = z
    assert (last < N).all()


# ---- the network, and those who call it

def tiny():
    torch.manual_seed(0)
    network = TwoVectors(2 * 5 + 1, n_layer=1, n_head=1, n_embd=8, cond_dim=0)
    torch.nn.init.normal_(network.head.weight)
    return network.eval()


def test_the_network_has_two_vectors_for_a_word_and_predicts_text_only():
    network, z = tiny(), torch.tensor([[0, 4, 6, 10]])
    assert network.embed.shape == (10, 8) and network(z).shape == (1, 4, 5)
    rows = network.embedding(torch.tensor([[4, 10]]))[0]  # (2, D) word 4 as text, as noise
    assert torch.equal(rows, network.embed[[4, 9]]) and not torch.equal(*rows)


def test_a_mask_without_a_word_shows_the_network_a_random_one():
    """So that whoever makes masks of his own may call it: distillation, guidance by the prompt."""
    network, z = tiny(), torch.full((400, 1), 5)
    found = (network.embedding(z)[:, 0, None] == network.embed).all(-1)  # (400, 10)
    assert found[:, :5].sum() == 0 and (found[:, 5:].sum(0) > 40).all()
    method, x = make_method("audm", 5), torch.randint(5, (6, 4))
    student = SDTT(method, network, configure(Config, divergence="kl-fwd"))
    assert "sdtt" in method.distilled_by and student.loss(tiny(), x).isfinite().all()


def test_words_are_shown_at_their_places_in_a_cache_too():
    u, seen = torch.arange(8)[None], []  # (1, 8)
    shown = ShowWords(lambda z, t, at, **layout: seen.append(z), 9, u)
    shown(torch.tensor([[9, 3, 9]]), None, cache=SimpleNamespace(start=4))
    shown(torch.tensor([[3, 9]]), None)
    assert [z.tolist() for z in seen] == [[[14, 3, 16]], [[3, 11]]]
    method, network = make_method("audm", 5), tiny()
    sampler = make_sampler("semi-ar", method, decode_block=2, cache="dual")
    assert (generate(method, network, 3, 8, 8, sampler) < 5).all()


def test_noise_that_shows_a_word_is_no_answer_yet():
    z, frozen = torch.tensor([[1, 2, 4, 0], [1, 2, 0, 4]]), torch.zeros(2, 4, dtype=torch.bool)
    assert finished(z, frozen, N, 0).tolist() == [False, True]


@pytest.mark.parametrize("live, seen", [(True, "old \x1b[2megg\x1b[0m"), (False, "'old egg _'")])
def test_noise_is_printed_as_the_word_that_it_shows_and_dim_if_the_terminal_can(live, seen, capsys):
    terminal = Terminal(words(["old", "dog", "egg"]), torch.zeros(3, dtype=torch.bool), 4)
    terminal.live = live
    terminal.show(0, torch.tensor([[0, 6, 3]]))
    assert seen in capsys.readouterr().out
