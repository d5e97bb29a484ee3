"""
D3PM: any matrix, finitely many steps. Exact sums on the world of tests/world.py; the chains of formulas against chains
of matrices; and what T to infinity must give, the bounds of the other chapters.
"""
import math

import pytest
import torch
import torch.nn.functional as F
import world
from test_theory import close, close_in_the_mean, exact_bound
from world import L, N, P, TEXTS, numbers

from d3pm import D3PM, Matrices, gaussian, kl, nearest, neighbors
from diffusion import posterior_x0
from masked import Absorbing
from uniform import Uniform

TRANSITIONS = ["absorbing", "uniform", "gaussian", "nearest"]
EMBEDDING = torch.randn(N, 4, generator=torch.Generator().manual_seed(0))
each_transition = pytest.mark.parametrize("transition", TRANSITIONS)
ENTROPY = -(P * P.log()).sum()


def made(transition, T, n=N, **options):
    return D3PM(n, T, transition, embedding=EMBEDDING if transition == "nearest" else None, **options)


def any_chain(V, T, n_tokens=None, seed=0):
    """A chain of matrices without any symmetry, rows that sum to 1."""
    Q = torch.rand(T, V, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + torch.eye(V)
    return Matrices(Q / Q.sum(-1, keepdim=True), n_tokens)


def by_hand(process, T):
    """The matrices of a process of the other chapters, (1) and (3) written out symbol by symbol."""
    v, Q = torch.arange(process.V), []
    for k in range(1, T + 1):
        s, t = torch.tensor([k - 1, k]).double() / T
        keep = process.alpha(t) / process.alpha(s)
        Q.append(keep * torch.eye(process.V).double() + process.b(t, v) - keep * process.b(s, v))
    return Matrices(torch.stack(Q), process.n_tokens)


def random_rows(chain, T, n=300, n_tokens=N, seed=1):
    """x_theta (n, N) and x, z, k (n,), where z can come from x."""
    g = torch.Generator().manual_seed(seed)
    x, k = torch.randint(n_tokens, (n,), generator=g), torch.randint(1, T + 1, (n,), generator=g)
    torch.manual_seed(seed)
    z = chain.corrupt(x[:, None], (k.double() / T)[:, None])[:, 0]
    return torch.rand(n, n_tokens, generator=g, dtype=torch.float64) + 0.01, x, z, k


# ---- the chains

@pytest.mark.parametrize("process", [Absorbing(N), Uniform(N)], ids=["absorbing", "uniform"])
def test_a_chain_of_formulas_is_the_chain_of_its_matrices(process):
    """Likelihood, reverse step over one and over several steps, terms of the bound, and the law at the end."""
    T = 6
    ours = made("absorbing" if process.V > N else "uniform", T).chain
    dense = by_hand(process, T)
    x_theta, x, z, k = random_rows(ours, T)
    t, x_theta = k.double() / T, x_theta / x_theta.sum(-1, keepdim=True)
    close(ours.likelihood(z, t), dense.likelihood(z, t))
    at = ours.open(z)
    rows = x_theta[at], x[at], z[at], t[at] - 1 / T, t[at]
    close(kl(ours, *rows), kl(dense, *rows))
    assert kl(dense, x_theta[~at], x[~at], z[~at], t[~at] - 1 / T, t[~at]).abs().max() < 1e-12 if (~at).any() else True
    leap = k >= 3
    close(ours.reverse(x_theta[leap], z[leap], t[leap] * 0 + 1 / T, t[leap] * 0 + 4 / T),
          dense.reverse(x_theta[leap], z[leap], t[leap] * 0 + 1 / T, t[leap] * 0 + 4 / T))
    close(ours.prior_kl(x), dense.prior_kl(x))
    torch.manual_seed(0)
    assert torch.equal(dense.prior((9, 9), "cpu") == N, torch.full((9, 9), process.V > N))


def test_the_reverse_step_is_bayes_rule_for_any_matrix():
    """(27) with x known, over several steps, against the sum over all paths of a chain of four matrices."""
    chain, T = any_chain(4, 5), 5
    Q = chain.Q
    for x, z, j, k in ((0, 1, 0, 1), (2, 2, 1, 2), (1, 3, 1, 4), (3, 0, 2, 5)):
        ahead = torch.linalg.multi_dot([torch.eye(4).double(), torch.eye(4).double(), *Q[:j]])[x]       # (4,)
        back = torch.linalg.multi_dot([torch.eye(4).double(), *Q[j:k]])[:, z]                           # (4,)
        joint = ahead * back
        row = lambda value: torch.tensor([value], dtype=torch.float64)
        ours = chain.reverse(F.one_hot(torch.tensor([x]), 4), torch.tensor([z]), row(j / T), row(k / T))[0]
        close(ours, joint / joint.sum())


def test_the_mixture_of_posteriors_is_the_leave_one_out_law_with_its_evidence():
    """sum_x q(z_j | z_k, x) p(x | z_k), p(x | z_k) from (4), is (27) of the leave-one-out law, for any matrix."""
    chain, T = any_chain(5, 4), 4
    x_theta, _, z, k = random_rows(chain, T, n_tokens=5)
    t = k.double() / T
    joint = x_theta * chain.likelihood(z, t)                                                            # (n, 5)
    posterior = joint / joint.sum(-1, keepdim=True)
    known = torch.stack([chain.reverse(torch.eye(5)[v].expand(len(z), -1), z, t - 1 / T, t) for v in range(5)], 1)
    close(torch.einsum("nx,nxv->nv", posterior, known), chain.reverse(x_theta, z, t - 1 / T, t))


def test_gaussian_matrices_are_those_of_the_paper():
    """Entry by entry, with beta from 0.0001 to 0.02 in 1,000 steps; rows and columns sum to 1."""
    V, T = 5, 1000
    Q = gaussian(V, T)
    for k in (0, 499, 999):
        beta = 1e-4 + (0.02 - 1e-4) * k / 999
        g = lambda n: math.exp(-4 * n ** 2 / ((V - 1) ** 2 * beta))
        total = sum(g(n) for n in range(1 - V, V))
        for v in range(V):
            for w in range(V):
                if v != w:
                    assert Q[k, v, w].item() == pytest.approx(g(v - w) / total, rel=1e-10, abs=1e-300)
    for T in (1, 3, 50):
        Q = gaussian(9, T)
        assert (Q >= 0).all()
        close(Q.sum(-1), torch.ones(T, 9).double())
        close(Q, Q.mT)
    g = lambda n: math.exp(-4 * n ** 2 / (64 * 10.05))        # one step has the noise of all 1,000: beta sums to 10.05
    assert gaussian(9, 1)[0, 2, 5].item() == pytest.approx(g(3) / sum(map(g, range(-8, 9))), rel=1e-10)
    assert Matrices(gaussian(17, 200)).left.max() < 0.01 < 1 < Matrices(gaussian(3, 1000)).left.max()


def test_neighbours_are_those_in_the_embedding_and_jumps_go_both_ways_equally():
    """Six points on a line, two apart from four: the two nearest of each, found by eye."""
    line = torch.tensor([0.0, 1, 2.1, 3.3, 50, 51.5])[:, None]
    near = {0: (1, 2), 1: (0, 2), 2: (1, 3), 3: (2, 1), 4: (5, 3), 5: (4, 3)}
    G = torch.zeros(6, 6, dtype=torch.float64)
    for v, others in near.items():
        G[v, list(others)] = 1
    R = neighbors(line, 2)
    off = ~torch.eye(6, dtype=torch.bool)
    close(R[off], (0.99 * (G + G.T) / 4 + 0.01 / 6)[off])
    close(R.sum(-1), torch.zeros(6).double())
    close(neighbors(line, 99)[off], torch.full((30,), 0.99 / 5 + 0.01 / 6).double(), 1e-7)  # all are near: uniform


def test_every_step_of_nearest_takes_an_equal_share_of_the_information():
    """Within a hundredth of log V; symmetric, and all exp(aR) of one R, so that they commute."""
    embedding = torch.randn(40, 5, generator=torch.Generator().manual_seed(1))
    chain = Matrices(nearest(embedding, 25))
    left = 1 - torch.special.entr(chain.cumulative).sum(-1).mean(-1) / math.log(40)                     # (26,)
    close(left, 1 - torch.arange(26).double() / 25, 0.01)
    close(chain.Q.sum(-1), torch.ones(25, 40).double())
    close(chain.Q, chain.Q.mT)
    close(chain.Q[3] @ chain.Q[9], chain.Q[9] @ chain.Q[3])
    R, first = neighbors(embedding), chain.Q[0]
    rate = (1 - first.diagonal()).sum() / -R.diagonal().sum()        # in so short a step, hardly two jumps
    close(first, torch.matrix_exp(R * rate), 0.02)
    assert chain.left.abs().max() < 1e-12 and (chain.Q > 0).all()


@pytest.mark.parametrize("transition", ["gaussian", "nearest"])
def test_noise_has_the_forward_law(transition):
    """Frequencies of every symbol within 5 standard errors of the row of Qbar_k; frozen tokens keep theirs."""
    torch.manual_seed(0)
    chain, n = made(transition, 7).chain, 40_000
    for k in (1, 4, 7):
        for x in range(N):
            z = chain.corrupt(torch.full((n, 1), x), torch.full((n, 1), k / 7, dtype=torch.float64))[:, 0]
            law = chain.cumulative[k, x]
            seen = torch.bincount(z, minlength=N) / n
            assert ((seen - law).abs() <= 5 * (law * (1 - law) / n).sqrt()).all()
    x, frozen = torch.arange(6).expand(50, -1) % N, torch.tensor([True, False] * 3).expand(50, -1)
    z = chain.corrupt(x, torch.ones(50, 1).double(), frozen)
    assert (z[frozen] == x[frozen]).all() and (z[~frozen] != x[~frozen]).any()


# ---- the bound

def states(method):
    return torch.cartesian_prod(*[torch.arange(method.vocab_size)] * L)                                 # (S, 3)


def evidence(method, z, t):
    """q(z_l | x_l) for every text of the world. -> (S, 27, L)"""
    e = method.likelihood(z, t)
    return torch.stack([e[:, l, TEXTS[:, l]] for l in range(L)], -1)


def oracle(method, leave_one_out=True):
    """The exact denoiser for any chain, as log-probabilities; or p(x | z)."""
    def denoiser(z, t, at=None):
        e, rows = evidence(method, z, t.double()), []
        for l in range(L):
            others = e[:, :, [m for m in range(L) if m != l or not leave_one_out]].prod(-1) * P         # (S, 27)
            rows.append(torch.stack([others[:, TEXTS[:, l] == v].sum(-1) for v in range(N)], -1))
        law = torch.stack(rows, 1)                                                                      # (S, L, N)
        log_p = (law / law.sum(-1, keepdim=True).clamp(min=1e-300)).clamp(min=1e-300).log()
        return log_p if at is None else log_p[at]
    return denoiser


def looked_up(method, denoiser):
    """The same denoiser on many texts at one time, each of the few there are computed once."""
    def again(z, t, at):
        return denoiser(states(method), t[:1].expand(method.vocab_size ** L, 1))[numbers(z, method.vocab_size)][at]
    return again


def enumerated(method, denoiser):
    """(28) of each of the 27 texts: summed over k and over z. -> (27,) nats"""
    z, T = states(method), method.T
    total = method.chain.prior_kl(TEXTS).sum(-1)
    for k in range(1, T + 1):
        t = torch.full((len(z), 1), k / T, dtype=torch.float64)
        q, x_theta = evidence(method, z, t).prod(-1), denoiser(z, t).double().exp()                     # (S, 27)
        row, place = method.chain.open(z).nonzero().T                                                   # (n,) each
        x = TEXTS[:, place].T.flatten()                                                                 # (27 n,)
        times, again = t[0].expand(len(x)), lambda a: a[row, place].repeat_interleave(27, 0)
        terms = kl(method.chain, again(x_theta), x, again(z), times - 1 / T, times).view(-1, 27)        # (n, 27)
        total += torch.where(q[row] > 0, q[row] * terms, 0.0).sum(0)
    return total


@each_transition
def test_with_the_exact_denoiser_the_bound_falls_to_the_entropy_as_one_over_T(transition):
    """In the mean over the 27 texts it is above the entropy, by an excess that halves with each doubling of T. (Text
    by text it is above -log of the law of the chain of T steps itself, which is not quite P.)"""
    excess = []
    for T in (2, 4, 8):
        found = enumerated(made(transition, T), oracle(made(transition, T)))
        excess.append(float((P * found).sum() - ENTROPY))
        assert excess[-1] > 0
    ratios = [b / a for a, b in zip(excess, excess[1:])]
    assert all(0.4 < r < 0.6 for r in ratios[1:]) if transition != "gaussian" else excess[-1] < excess[0] / 2


@each_transition
def test_who_knows_nothing_pays_log_N_for_every_text_in_any_number_of_steps(transition):
    """Its chain is the exact reverse of noise on uniform text: the bound is -log p of that text, with its end."""
    for T in (1, 5):
        flat = lambda z, t, at=None: torch.zeros(*z.shape, N).double().log_softmax(-1)
        close(enumerated(made(transition, T), flat), torch.full((27,), L * math.log(N), dtype=torch.float64))


@pytest.mark.parametrize("transition", ["absorbing", "uniform"])
def test_the_continuous_bounds_are_what_the_bound_tends_to(transition):
    """Also for a denoiser that is wrong and watches the clock: T = 16 and 32, continued to 1/T = 0, text by text."""
    limit = exact_bound({"absorbing": Absorbing(N), "uniform": Uniform(N)}[transition], world.vandal, nodes=40)
    few, more = (enumerated(made(transition, T), world.vandal) for T in (16, 32))
    assert ((more - limit).abs() < (few - limit).abs()).all()
    close(2 * more - few, limit, 3e-3)


@pytest.mark.parametrize("transition", ["uniform", "nearest"])
def test_the_posterior_in_place_of_the_leave_one_out_law_is_not_tight(transition):
    method = made(transition, 16)
    right, wrong = (enumerated(method, oracle(method, loo)) for loo in (True, False))
    assert (P * right).sum() < ENTROPY + 0.05 and (P * wrong).sum() > ENTROPY + 1


@each_transition
def test_any_other_denoiser_gives_more(transition):
    method = made(transition, 6)
    exact = oracle(method)
    best = (P * enumerated(method, exact)).sum()
    for wrong in (world.vandal, lambda z, t: 0.9 * exact(z, t), lambda z, t: exact(z, t).exp().add(0.05).log()):
        assert (P * enumerated(method, lambda z, t: wrong(z, t).log_softmax(-1))).sum() > best + 1e-3


@each_transition
def test_nelbo_is_an_unbiased_draw_of_the_bound(transition):
    """With a wrong denoiser. The term at the end is in every draw, in full: 0.6 nats where bells are too narrow."""
    method = made(transition, 64 if transition == "gaussian" else 5)
    exact = enumerated(method, world.vandal)
    torch.manual_seed(0)
    for i in (1, 14):
        x = TEXTS[i].expand(20_000, -1)
        close_in_the_mean(torch.cat([method.nelbo(world.vandal, x).sum(-1) for _ in range(3)]), exact[i])


@each_transition
@pytest.mark.parametrize("T", [1, 3])
def test_at_the_first_step_the_loss_and_its_gradient_are_finite(transition, T):
    """k = 1, where p and q are zero together, is drawn here in a third of the texts, or in all of them."""
    torch.manual_seed(0)
    method, weights = made(transition, T), torch.zeros(N + 1, requires_grad=True)
    denoiser = lambda z, t, at: (weights + 0.1 * torch.randn(*z.shape, N + 1))[at][:, :method.vocab_size]
    nats = method.loss(denoiser, torch.randint(N, (60, 5)))
    nats.sum().backward()
    assert nats.isfinite().all() and (nats >= -1e-12).all() and weights.grad.isfinite().all() and nats.sum() > 0


def test_at_the_first_step_the_term_is_minus_log_p_of_the_text():
    for transition in TRANSITIONS:
        method = made(transition, 4)
        x_theta, x, z, _ = random_rows(method.chain, 4)
        at = method.chain.open(z)
        t = torch.full(z.shape, 0.25, dtype=torch.float64)
        p = method.chain.reverse(x_theta, z, t - 0.25, t).gather(-1, x[:, None])[:, 0]                  # (n,)
        close(kl(method.chain, x_theta, x, z, t - 0.25, t)[at], -p.log()[at])


@each_transition
def test_the_auxiliary_loss_has_the_minimiser_of_the_bound(transition):
    """Its mean gradient at the exact denoiser is zero. That of the cross-entropy of x_theta itself, as published, is
    zero under masks alone."""
    method = made(transition, 4)
    exact, z, slope, published = oracle(method), states(method), 0.0, 0.0
    for k in range(1, 5):
        t = torch.full((len(z), 1), k / 4, dtype=torch.float64)
        at, joint = method.chain.open(z), evidence(method, z, t).prod(-1) * P                        # (S, L), (S, 27)
        x_theta = exact(z, t).exp()
        ours = x_theta * method.likelihood(z, t)
        ours = ours / ours.sum(-1, keepdim=True).clamp(min=1e-300)
        truth = torch.einsum("si,ilv->slv", joint, F.one_hot(TEXTS, N).double())                        # (S, 3, N)
        mass = joint.sum(-1)[:, None, None] * at[..., None]
        slope += (mass * ours - truth * at[..., None]).abs().sum()
        published += (mass * x_theta - truth * at[..., None]).abs().sum()
    assert slope < 1e-10 and (published < 1e-10 if transition == "absorbing" else published > 0.5)


def test_the_loss_is_the_bound_and_aux_times_the_cross_entropy_of_the_posterior():
    torch.manual_seed(0)
    x = torch.randint(N, (40, L))
    for transition in TRANSITIONS:
        def draw(aux, name):
            torch.manual_seed(1)
            return getattr(made(transition, 4, aux=aux), name)(world.vandal, x)
        bound, more = draw(0.0, "loss"), draw(3.0, "loss")
        close(bound, draw(3.0, "nelbo"))
        torch.manual_seed(1)
        _, ce = made(transition, 4).draw(world.vandal, x, None)
        close(more, bound + 3 * ce)
    method = made("uniform", 4)
    z = torch.randint(N, (40, L))
    method.chain.corrupt = lambda *a: z
    torch.manual_seed(1)
    k = ((torch.arange(40) + torch.rand(40)) / 40 * 4).ceil()[:, None]                    # (40, 1) as `stratified`
    torch.manual_seed(1)
    _, ce = method.draw(world.vandal, x, None)
    p = posterior_x0(method.process, world.vandal(z, (k / 4)).exp(), z, k.double() / 4)
    close(ce, -p.gather(-1, x[..., None])[..., 0].log(), 1e-6)


def test_frozen_tokens_are_not_scored_not_even_at_the_end():
    torch.manual_seed(0)
    frozen = torch.tensor([True, False, False]).expand(500, -1)
    for transition in TRANSITIONS:
        method = made(transition, 3)
        for score in (method.loss, method.nelbo):
            nats = score(world.vandal, TEXTS[5].expand(500, -1), frozen)
            assert (nats[:, 0] == 0).all() and (nats[:, 1:].sum(0) > 0).all()


def test_the_network_is_asked_at_masks_alone_and_told_k_over_T():
    """Every k from 1 to T comes up, in equal shares."""
    told = []
    def denoiser(z, t, at):
        told.append(t)
        assert torch.equal(at, z == N)
        return torch.zeros(int(at.sum()), N + 1)
    made("absorbing", 5).loss(denoiser, torch.randint(N, (50, 8)))
    assert (torch.cat(told) * 5).round().long().flatten().bincount().tolist() == [0, 10, 10, 10, 10, 10]
