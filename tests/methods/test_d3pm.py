"""D3PM: its four families of matrices, and chains of formulas against chains of matrices.

The bound is in test_d3pm_bound.py, sampling in test_d3pm_samples.py.
"""
import math

import pytest
import torch
import torch.nn.functional as F
from bounds import close
from chains import made, random_rows

from diffusion import Absorbing, Uniform
from flags import UserError
from methods.d3pm import (
    D3PM,
    MatrixChain,
    gaussian_matrices,
    kl_term,
    nearest_matrices,
    neighbor_rates,
)
from samplers.generate import CallCounter
from world import N


def any_chain(V, T, n_tokens=None, seed=0):
    """A chain of matrices without any symmetry, whose rows sum to 1."""
    g = torch.Generator().manual_seed(seed)
    Q = torch.rand(T, V, V, generator=g, dtype=torch.float64) + torch.eye(V)  # (T, V, V)
    return MatrixChain(Q / Q.sum(-1, keepdim=True), n_tokens)


def by_hand(process, T):
    """The matrices of a process of diffusion.py, (0.1) written out symbol by symbol."""
    v, Q = torch.arange(process.V), []  # (V,)
    for k in range(1, T + 1):
        s, t = torch.tensor([k - 1, k]).double() / T  # () each
        keep = process.alpha(t) / process.alpha(s)  # ()
        noise = process.b(t, v) - keep * process.b(s, v)  # (V,)
        Q.append(keep * torch.eye(process.V).double() + noise)
    return MatrixChain(torch.stack(Q), process.n_tokens)


# ---- chains

@pytest.mark.parametrize("process", [Absorbing(N), Uniform(N)], ids=["absorbing", "uniform"])
def test_a_chain_of_formulas_is_the_chain_of_its_matrices(process):
    """Likelihood, reverse step over one and over three steps, terms of the bound, and the end."""
    T, absorbing = 6, process.V > N
    ours, dense = made("absorbing" if absorbing else "uniform", T).chain, by_hand(process, T)
    x_theta, x, z, k = random_rows(ours, T)
    t, x_theta = k.double() / T, x_theta / x_theta.sum(-1, keepdim=True)  # (n,), (n, N)
    close(ours.likelihood(z, t), dense.likelihood(z, t))
    at = ours.changeable(z)  # (n,)
    assert (~at).any() == absorbing
    rows = x_theta[at], x[at], z[at], t[at] - 1 / T, t[at]
    close(kl_term(ours, *rows), kl_term(dense, *rows))
    rows = x_theta[~at], x[~at], z[~at], t[~at] - 1 / T, t[~at]
    close(kl_term(dense, *rows), torch.zeros(int((~at).sum())).double(), 1e-12)
    leap = k >= 3  # (n,)
    s, t = (torch.full_like(t[leap], i / T) for i in (1, 4))  # (.,) each
    rows = x_theta[leap], z[leap], s, t
    close(ours.reverse(*rows), dense.reverse(*rows))
    close(ours.prior_kl(x), dense.prior_kl(x))
    torch.manual_seed(0)
    assert torch.equal(dense.prior((9, 9), "cpu") == N, torch.full((9, 9), absorbing))


def test_the_reverse_step_is_bayes_rule_for_any_matrix():
    """(2.2) with x known, over several steps, against the sum over all paths of four matrices."""
    chain, T = any_chain(4, 5), 5
    Q, eye = chain.Q, torch.eye(4, dtype=torch.float64)  # (T, 4, 4), (4, 4)
    for x, z, j, k in ((0, 1, 0, 1), (2, 2, 1, 2), (1, 3, 1, 4), (3, 0, 2, 5)):
        ahead = torch.linalg.multi_dot([eye, eye, *Q[:j]])[x]  # (4,)
        back = torch.linalg.multi_dot([eye, *Q[j:k]])[:, z]  # (4,)
        joint = ahead * back  # (4,)
        s, t = torch.tensor([[j / T], [k / T]], dtype=torch.float64)  # (1,) each
        ours = chain.reverse(eye[[x]], torch.tensor([z]), s, t)[0]  # (4,)
        close(ours, joint / joint.sum())


def test_the_mixture_of_posteriors_is_the_leave_one_out_distribution_with_its_evidence():
    """sum_x q(z_j | z_k, x) p(x | z_k), with p(x | z_k) from (0.4), is (2.2) of the leave-one-out
    distribution, for any matrix."""
    chain, T = any_chain(5, 4), 4
    x_theta, _, z, k = random_rows(chain, T, n_tokens=5)
    t = k.double() / T  # (n,)
    joint = x_theta * chain.likelihood(z, t)  # (n, 5)
    posterior = joint / joint.sum(-1, keepdim=True)  # (n, 5)
    clean = [torch.eye(5)[v].expand(len(z), -1) for v in range(5)]  # (n, 5) each
    known = torch.stack([chain.reverse(x, z, t - 1 / T, t) for x in clean], 1)  # (n, 5, 5)
    mixture = torch.einsum("nx,nxv->nv", posterior, known)  # (n, 5)
    close(mixture, chain.reverse(x_theta, z, t - 1 / T, t))


@pytest.mark.parametrize("transition", ["gaussian", "nearest"])
def test_noise_has_the_forward_distribution(transition):
    """Frequencies of every symbol are within 5 standard errors of the row of Qbar_k.

    Frozen tokens keep theirs.
    """
    torch.manual_seed(0)
    chain, n = made(transition, 7).chain, 40_000
    for k in (1, 4, 7):
        for x in range(N):
            t = torch.full((n, 1), k / 7, dtype=torch.float64)  # (n, 1)
            z = chain.corrupt(torch.full((n, 1), x), t)[:, 0]  # (n,)
            exact, seen = chain.cumulative[k, x], torch.bincount(z, minlength=N) / n  # (N,) each
            assert ((seen - exact).abs() <= 5 * (exact * (1 - exact) / n).sqrt()).all()
    x = torch.arange(6).expand(50, -1) % N  # (50, 6)
    frozen = torch.tensor([True, False] * 3).expand(50, -1)  # (50, 6)
    z = chain.corrupt(x, torch.ones(50, 1).double(), frozen)  # (50, 6)
    assert (z[frozen] == x[frozen]).all() and (z[~frozen] != x[~frozen]).any()


# ---- matrices

def test_gaussian_matrices_are_those_of_the_paper():
    """Entry by entry, with beta from 0.0001 to 0.02 in 1,000 steps. Rows and columns sum to 1."""
    V, T = 5, 1000
    Q = gaussian_matrices(V, T)  # (T, V, V)
    for k in (0, 499, 999):
        beta = 1e-4 + (0.02 - 1e-4) * k / 999
        g = lambda n: math.exp(-4 * n ** 2 / ((V - 1) ** 2 * beta))
        total = sum(g(n) for n in range(1 - V, V))
        for v in range(V):
            for w in range(V):
                if v != w:
                    exact = pytest.approx(g(v - w) / total, rel=1e-10, abs=1e-300)
                    assert Q[k, v, w].item() == exact
    for T in (1, 3, 50):
        Q = gaussian_matrices(9, T)  # (T, 9, 9)
        assert (Q >= 0).all()
        close(Q.sum(-1), torch.ones(T, 9).double())
        close(Q, Q.mT)


def test_fewer_gaussian_steps_have_the_noise_of_all_1000_together():
    """beta sums to 10.05. With few levels, or few steps, bells may be too narrow to reach it."""
    g = lambda n: math.exp(-4 * n ** 2 / (64 * 10.05))
    exact = g(3) / sum(map(g, range(-8, 9)))
    assert gaussian_matrices(9, 1)[0, 2, 5].item() == pytest.approx(exact, rel=1e-10)
    assert MatrixChain(gaussian_matrices(17, 200)).left.max() < 0.01
    assert MatrixChain(gaussian_matrices(3, 1000)).left.max() > 1


def test_neighbors_are_those_in_the_embedding_and_jumps_go_both_ways_equally():
    """Six points on a line, two apart from four: the two nearest of each, found by eye."""
    line = torch.tensor([0.0, 1, 2.1, 3.3, 50, 51.5])[:, None]  # (6, 1)
    near = {0: (1, 2), 1: (0, 2), 2: (1, 3), 3: (2, 1), 4: (5, 3), 5: (4, 3)}
    G = torch.zeros(6, 6, dtype=torch.float64)  # (6, 6)
    for v, others in near.items():
        G[v, list(others)] = 1
    R = neighbor_rates(line, 2)  # (6, 6)
    off = ~torch.eye(6, dtype=torch.bool)  # (6, 6)
    close(R[off], (0.99 * (G + G.T) / 4 + 0.01 / 6)[off])
    close(R.sum(-1), torch.zeros(6).double())
    uniform = torch.full((30,), 0.99 / 5 + 0.01 / 6, dtype=torch.float64)  # (30,) all are near
    close(neighbor_rates(line, 99)[off], uniform, 1e-7)


def test_every_step_of_nearest_takes_an_equal_share_of_the_information():
    """Within a hundredth of log V. Matrices are symmetric, and all exp(aR) of one R, so that they
    commute."""
    embedding = torch.randn(40, 5, generator=torch.Generator().manual_seed(1))  # (40, 5)
    chain = MatrixChain(nearest_matrices(embedding, 25))
    left = 1 - torch.special.entr(chain.cumulative).sum(-1).mean(-1) / math.log(40)  # (26,)
    close(left, 1 - torch.arange(26).double() / 25, 0.01)
    close(chain.Q.sum(-1), torch.ones(25, 40).double())
    close(chain.Q, chain.Q.mT)
    close(chain.Q[3] @ chain.Q[9], chain.Q[9] @ chain.Q[3])
    R, first = neighbor_rates(embedding), chain.Q[0]  # (40, 40) each
    rate = (1 - first.diagonal()).sum() / -R.diagonal().sum()  # () a step has hardly two jumps
    close(first, torch.matrix_exp(R * rate), 0.02)
    assert chain.left.abs().max() < 1e-12 and (chain.Q > 0).all()


# ---- what is refused

@pytest.mark.parametrize("transition", ["gaussian", "nearest"])
def test_matrices_that_do_not_fit_into_memory_are_refused_before_they_are_made(transition):
    """Before an embedding is there, nearest has nothing to make."""
    with pytest.raises(UserError, match="keeps 128 matrices of 8,192 x 8,192"):
        D3PM(8192, transition, 128).load_extra_state({"embedding": torch.zeros(8192, 2)})


def test_nearest_needs_an_embedding():
    with pytest.raises(UserError, match="needs --embedding FOLDER"):
        D3PM(9, "nearest", 4).on_start(lambda flag, folder: None)


def test_formulas_take_any_number_of_symbols_and_steps():
    assert D3PM(50_257, "uniform", 1000).vocab_size == 50_257
    spy = CallCounter(lambda z, t, at: torch.zeros(int(at.sum()), 50_258))
    D3PM(50_257, diffusion_steps=100_000).loss(spy, torch.zeros(2, 4, dtype=torch.long))
    assert spy.calls == 1


def test_a_prediction_that_z_rules_out_is_left_out_and_not_a_division_by_zero():
    """Temperature 0 and a bell of one level: the network is sure of 0 where z is 50."""
    torch.manual_seed(0)
    method = D3PM(64, matrices=gaussian_matrices(64, 200)[:3])
    assert method.max_steps == 3 and method.chain.cumulative[3, 0, 50] == 0
    zeros = lambda n: torch.zeros(n, dtype=torch.long)
    sure = lambda z, t, at: F.one_hot(zeros(int(at.sum())), 64).double() * 9
    cold = lambda logits: F.one_hot(logits.argmax(-1), 64).double()
    z, nothing = torch.full((50, 4), 50), torch.zeros(50, 4).bool()  # (50, 4) each
    for z in method.sample(sure, z, nothing, 3, to_probs=cold):
        assert (z > 40).all() and (z < 60).all()
