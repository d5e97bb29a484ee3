"""
Duo and Duo++ against their public code (s-sahoo/duo, commit 7c9b498), number by number.

duo_reference.npz: B = 4 texts of L = 8 tokens; V12 and V20 have that many symbols, all text. Names
with REF were computed apart from that code, and are used where it is wrong. It has its softmax and
its alpha in float32, so its float64 numbers are good to 1e-6, and its float32 ones to 1e-5.
"""
import pytest
import torch
import torch.nn.functional as F
from references import Figures

from diffusion import Sampler, Uniform, corrupt, posterior_x0, probabilities, reverse
from methods import duo
from methods.duo import dense_relaxation, sparse_relaxation, top_weights
from methods.udlm import mixture_bound
from methods.uniform_gaussian import Operator
from samplers.correctors import Greedy
from samplers.psi import kappa_of
from world import psi_law

figure = Figures("duo_reference")
each_vocabulary = pytest.mark.parametrize("V", [12, 20])
each_k = pytest.mark.parametrize("k", [2, 5])


def same(ours, name, tolerance=1e-6):
    torch.testing.assert_close(ours, figure(name).to(ours.dtype), atol=tolerance, rtol=tolerance)


class Linear(Uniform):
    """Uniform noise of the public code: a thousandth of the signal remains at t = 1."""

    def alpha(self, t):
        return 1 - 0.999 * t

    def dalpha(self, t):
        return torch.full_like(t, -0.999)

    def b(self, t, v):
        return 0.999 * t / self.V * torch.ones_like(v)

    def time(self, alpha):
        return (1 - alpha.double()) / 0.999


class AtGamma:
    """What a relaxation needs of a process: V, and gamma whatever the time. gamma (B,)"""

    def __init__(self, V, gamma):
        self.V, self.level = V, gamma.double()[:, None]  # (B, 1)

    def gamma(self, t):
        return self.level


def case(V):
    """-> process, x, z, t (B, 1), s of the two steps by name, log x_theta (B, L, V)"""
    process, part = Linear(V), lambda name: figure(f"duo_V{V}/{name}")
    times = {dt: process.time(part(f"alpha_s_dt{dt}")) for dt in ("0.05", "0.3")}
    t, log_p = part("t").double()[:, None], part("logits").double().log_softmax(-1)
    return process, part("x0"), part("xt"), t, times, log_p


def table_logits(V, z, alpha):
    """The network of the file: a row per id, and one per position that grows with the noise.

    -> (B, L, V)
    """
    rows, places = figure(f"duo_V{V}/table_W").double(), figure(f"duo_V{V}/table_P").double()
    return rows[z] + places * (1 - 0.1 * alpha.log())[..., None]  # (B, L, V)


@pytest.mark.parametrize("V", [30, 1000, 30522, 50257])
def test_the_operator_and_its_derivative(V):
    operator, gamma = Operator(V), figure("dto/gamma")
    same(operator.alpha(gamma), f"dto/V{V}_REF_alpha", 1e-9)
    same(operator.dalpha(gamma), f"dto/V{V}_REF_dalpha_dgamma", 1e-9)


def test_the_operator_over_the_released_range_of_gamma():
    """The public code reads alpha from a table, 2e-5 off, and alpha' from its differences, 0.2 %
    off. REF is exact, but for the slope 1.7 = 3.55 - 1.85, which it rounds to float32."""
    operator, gamma = Operator(50257), figure("dto/train_gpt2_gamma").double()
    same(operator.alpha(gamma), "dto/train_gpt2_REF_alpha", 1e-9)
    same(operator.dalpha(gamma) * (gamma[-1] - gamma[0]), "dto/train_gpt2_REF_dalpha_dt", 1e-7)


def test_corrupt(monkeypatch):
    """The same coins and noise give the same tokens; below u the public code moves, and ours
    keeps."""
    monkeypatch.setattr(torch, "rand", lambda *_, **flags: 1 - figure("duo_fwd/u"))
    monkeypatch.setattr(torch, "randint_like", lambda *_, **flags: figure("duo_fwd/uniform_tokens"))
    z = corrupt(Linear(12), figure("duo_V12/x0"), figure("duo_V12/t").double()[:, None])
    assert torch.equal(z, figure("duo_fwd/xt"))


@each_vocabulary
def test_the_bound_and_its_gradient(V):
    """3e-6 apart, relative to figures of up to 100."""
    process, x, z, t, _, _ = case(V)
    logits = figure(f"duo_V{V}/logits").double().requires_grad_()
    nats = mixture_bound(process, logits.log_softmax(-1), x, z, t)
    same(nats, f"duo_V{V}/nll_fp64")
    same(nats, f"duo_V{V}/REF_udlm_eq49")
    nats.mean().backward()
    same(logits.grad, f"duo_V{V}/grad_logits_of_loss_mean", 1e-7)


@each_vocabulary
def test_the_posteriors(V):
    """Plugged in, with x known, and down to t = 0. Of the second, t < 0.3 leaves s = 0."""
    process, x, z, t, times, log_p = case(V)
    for dt, s in times.items():
        same(reverse(process, log_p.exp(), z, s, t), f"duo_V{V}/posterior_dt{dt}")
    known = reverse(process, F.one_hot(x, V).double(), z, t - 0.05, t)
    same(known, f"duo_V{V}/true_posterior_dt0.05")
    same(posterior_x0(process, log_p.exp(), z, t), f"duo_V{V}/posterior_final")
    same(reverse(process, log_p.exp(), z, torch.zeros_like(t), t), f"duo_V{V}/posterior_final")


@each_vocabulary
def test_a_psi_step_and_its_nucleus(V):
    process, _, z, _, _, _ = case(V)
    t = figure(f"duo_V{V}/psi_t").double()  # (B, 1)
    s, logits = t - 0.1, table_logits(V, z, process.alpha(t))  # (B, L, V)
    x_theta, nucleus = logits.softmax(-1), probabilities(logits, top_p=0.8)  # (B, L, V)
    same(x_theta, f"duo_V{V}/psi_p_x0")
    for share in ("1.0", "0.5", "0.05", "0.0"):
        same(psi_law(process, x_theta, z, s, t, float(share)), f"duo_V{V}/psi_probs_kappa{share}")
    same(psi_law(process, x_theta, z, s, t, 1.0), f"duo_V{V}/ancestral_probs")
    same(posterior_x0(process, x_theta, z, t), f"duo_V{V}/ancestral_final_probs")
    same(nucleus, f"duo_V{V}/nucleus0.8_p_x0")
    same(reverse(process, nucleus, z, s, t), f"duo_V{V}/nucleus0.8_ancestral_probs")


class Still(Sampler):
    """Yields what it gets."""

    def __call__(self, process, denoiser, z, frozen, steps, to_probs):
        yield z


@each_vocabulary
def test_the_greedy_corrector_takes_the_argmax_of_x_theta(V):
    """As in the public code. The paper has the argmax of p(x | z), which is z itself,
    everywhere."""
    process, _, z, _, _, _ = case(V)
    t = torch.full((4, 1), 1e-5, dtype=torch.float64)
    nothing = torch.zeros_like(z, dtype=torch.bool)
    logits = table_logits(V, z, process.alpha(t))  # (B, L, V)
    greedy = Greedy(sampler=Still())
    *_, last = greedy(process, lambda z, time, at: logits[at], z, nothing, 2)
    assert torch.equal(last, figure(f"duo_V{V}/greedy_tail_tokens"))
    assert (last != z).double().mean() > 0.8
    kept = posterior_x0(process, logits.softmax(-1), z, t).argmax(-1)  # (B, L)
    assert torch.equal(kept, figure(f"duo_V{V}/REF_argmax_of_posterior_at_t0"))
    assert torch.equal(kept, z)


def test_the_dense_relaxation(monkeypatch):
    """Two temperatures from one draw of eps, through the network's embedding, to 1e-5 as in
    float32.

    At tau = 0.001 that rounds w itself by 6e-8, times 1 / tau. At tau = 1 the weights give w back,
    up to a constant.
    """
    monkeypatch.setattr(torch, "randn", lambda *_, **flags: figure("curriculum/eps"))
    x, embedding = figure("curriculum/x0"), figure("curriculum/embedding")
    process, t = AtGamma(20, figure("curriculum/gamma")), torch.zeros(4, 1)
    z, soft = dense_relaxation(process, x, t, 1.0)  # (B, L, V)
    assert torch.equal(z, figure("curriculum/z_t_argmax"))
    w = figure("curriculum/w_t").double()  # (B, L, V)
    torch.testing.assert_close(soft.double(), w.softmax(-1), atol=1e-6, rtol=1e-5)
    for tau, name, tolerance in ((0.1, "0p1", 1e-5), (0.001, "0p001", 6e-5)):
        _, soft = dense_relaxation(process, x, t, tau)  # (B, L, V)
        same(soft.float() @ embedding, f"curriculum/soft_embed_tau{name}", tolerance)
    same(dense_relaxation(process, x, t, 0)[1].float() @ embedding, "curriculum/hard_embed", 1e-7)


def same_but_where_x_is_the_last_shown(ours, part, name, tolerance):
    """Coordinates that are not drawn are below those that are. Where x is the last of these, the
    public code lets them be as large as the one before, and shows a little less: once in 64."""
    last = part("extra_in_topk") & (part("extra") < part("topk_values")[..., -2])  # (B, L)
    theirs = part(f"weights_tau{name}")  # (B, L, k)
    torch.testing.assert_close(ours[~last], theirs[~last], atol=tolerance, rtol=tolerance)
    assert last.sum() <= 1 and (ours[last] > theirs[last]).all()


@each_k
@pytest.mark.parametrize("tau, name, tolerance", [(0.1, "0p1", 1e-6), (0.001, "0p001", 1e-4)])
def test_the_sparse_relaxation(k, tau, name, tolerance, monkeypatch):
    """From the same draws. z is REF: the public code takes x if it is among the k largest, which is
    wrong six times in 64.

    Its a and s are float32, and a^2 + s^2 = 1 but for 1e-7: divided by tau, that is the tolerance.
    """
    part = lambda what: figure(f"topk_V1000_k{k}/{what}")
    monkeypatch.setattr(torch, "rand", lambda *_, **flags: part("draws_U"))
    eps = part("draws_extra_eps").double()[..., None]
    monkeypatch.setattr(torch, "randn", lambda *_, **flags: eps)
    monkeypatch.setattr(duo, "distinct", lambda *_: part("draws_floyd_j"))  # distinct, by luck
    process = AtGamma(1000, 2 * (part("sigma_gauss").double() / part("alpha_gauss").double()).log())
    z, (ids, weights) = sparse_relaxation(process, part("x0"), torch.zeros(4, 1), tau, k)
    assert torch.equal(ids, part("indices"))
    assert torch.equal(z, part("REF_z_t_true_argmax")) and not torch.equal(z, part("z_t"))
    same_but_where_x_is_the_last_shown(weights.double(), part, name, tolerance)


@each_k
@pytest.mark.parametrize("tau, name", [(0.1, "0p1"), (0.001, "0p001")])
def test_the_weights_of_the_largest_coordinates(k, tau, name):
    """top_weights alone, on the coordinates of the public code: all digits."""
    part = lambda what: figure(f"topk_V1000_k{k}/{what}")
    s, clean = part("sigma_gauss").double()[:, None, None], part("extra")[..., None]
    among = part("extra_in_topk")
    ours = top_weights(part("topk_values"), clean, among[..., None], s, tau, 1000)  # (B, L, k)
    same_but_where_x_is_the_last_shown(ours, part, name, 1e-12)


def test_the_share_of_clean_words_is_the_operators():
    """P(z = x) of 50,257 words: .0383 at gamma = -1.75, where the public top-k code keeps .0571."""
    alpha = Operator(50257).alpha(figure("topk_bias/gamma").double())  # (4,)
    same((50256 * alpha + 1) / 50257, "topk_bias/REF_p_argmax_exact", 1e-9)


def alphas(case):
    """Of the public schedules for 20 steps. -> alpha_t, alpha_s, kappa, (20,) each"""
    t = figure(f"kappa/{case}_t").double()  # (21,)
    cosine = 1 - torch.cos(torch.pi / 2 * (1 - 0.999 * t))  # (21,)
    alpha = cosine if case.startswith("cosine") else 1 - 0.999 * t  # (21,)
    return alpha[:-1], alpha[1:], figure(f"kappa/{case}_kappa")[:-1].double()


def test_kappa_cap():
    """To 1e-6. Near t = 1e-5, where float32 loses the digits of 1 - alpha, both always correct."""
    alpha_t, alpha_s, theirs = alphas("linear_max-capped-0.01")
    torch.testing.assert_close(kappa_of("cap", 0.01, alpha_t, alpha_s), theirs, atol=1e-6, rtol=0)


def test_kappa_rescale():
    """The public code multiplies by eta twice. So it has eta times our `cap`, except in the last
    two steps, where that is cut to a probability, and corrects 20 times less than ReMDM's
    `rescale`. In the last step there is no room for either, and both agree (2e-3: theirs has 1 -
    1e-5 in float32). """
    alpha_t, alpha_s, theirs = alphas("linear_max-rescale-0.05")
    ours, cap = kappa_of("rescale", 0.05, alpha_t, alpha_s), kappa_of("cap", 0.05, alpha_t, alpha_s)
    torch.testing.assert_close((1 - 0.05 * (1 - cap))[:18], theirs[:18], atol=1e-6, rtol=0)
    ample = 1 - alpha_s >= alpha_t  # (20,)
    torch.testing.assert_close(1 - ours[ample], 20 * (1 - theirs[ample]), atol=2e-5, rtol=0)
    torch.testing.assert_close(ours[-1], theirs[-1], atol=2e-3, rtol=0)


@pytest.mark.parametrize("case", ["loop_constant-remdm-0.01", "cosine_loop_constant-remdm-0.01"])
def test_kappa_loop(case):
    """The plateau is as high as ours, with 9 steps to our 10: it repeats a point at each end."""
    alpha_t, alpha_s, theirs = alphas(case)
    plateau = (alpha_t == alpha_s) & (theirs < 1)  # (20,)
    assert plateau.sum() == 9
    ours = kappa_of("loop", 0.01, alpha_t, alpha_s)
    torch.testing.assert_close(ours[plateau], theirs[plateau], atol=1e-6, rtol=0)


def test_kappa_constant():
    """The public code gives kappa where we give eta, and corrects on part of the way only."""
    alpha_t, alpha_s, theirs = alphas("cosine_constant-0.95")
    on = theirs < 1  # (20,)
    ours = kappa_of("constant", 0.05, alpha_t, alpha_s)
    torch.testing.assert_close(ours[on], theirs[on], atol=1e-6, rtol=0)
