"""
The Gaussian of latents against latent.npz, and the worlds in which all is known.

latent.npz: keys with REF are of another program in float64, the others of public code (LD4LG,
STAR-LDM, PLANNER, LCM).
"""
from types import SimpleNamespace

import numpy
import pytest
import torch
from bounds import close
from references import Figures
from test_ld4lg import V, built

from diffusion import Labeled
from gaussian import DDPM, noise_nats, prior_nats, signal
from methods import make_method
from methods.gammas import PlainCosine
from methods.latent_space import from_velocity, to_velocity, velocity
from samplers.ddim import DDIM, TwoM
from samplers.guidance import CFG

figure = Figures("latent")
MOVERS = {"ancestral": DDPM(variance="large"), "posterior": DDPM(), "ddim": DDIM(), "2m": TwoM()}


def gamma_of(alpha2):
    return -torch.logit(alpha2.double())


# ---- the equations

@pytest.mark.parametrize("scale", ["", "_scale.5"])
def test_the_cosine_is_that_of_the_public_code_and_its_inverse_is_one(scale):
    schedule = PlainCosine(0.5 if scale else 1.0, 15.0)
    t, alpha2 = figure("sched/t"), figure(f"sched/ld4lg_cosine{scale}_alpha2")
    ours = schedule(t.double())
    inside = ours.abs() < 14.5  # they clamp before the scale
    close(torch.sigmoid(-ours)[inside], alpha2.double()[inside], 1e-6)
    close(schedule.time(ours)[inside], t.double()[inside], 1e-6)
    assert ours.max() <= 15 and ours.min() >= -15


def test_v_h_and_eps_tell_each_other_as_in_the_public_code():
    h, eps, z, v = (figure(f"ld4lg/{key}").double() for key in ("x0", "eps", "z", "v"))
    gamma = PlainCosine()(figure("ld4lg/t").double())[:, None].expand(h.shape[:2])
    close(velocity(h, eps, gamma), v, 1e-5)
    close(from_velocity(z, v, gamma), figure("ld4lg/x_from_v").double(), 1e-5)
    close(to_velocity(z, h, gamma), v, 1e-5)
    alpha, sigma = (a[..., None] for a in signal(gamma))
    close(sigma * z + alpha * v, figure("ld4lg/eps_from_v").double(), 1e-5)
    other = h + 0.1
    error = (v - to_velocity(z, other, gamma)).square().sum(-1)
    method, _ = built()
    close(error, method.loss_weight(gamma) * (h - other).square().sum(-1), 1e-5)


def their_denoiser(z, gamma, at=None, label=None, words=None):
    """The toy network of the file: v from z, alpha^2, the last h', and the class."""
    of_class = torch.tensor([0.1, -0.1, 0.0], dtype=z.dtype)[label][:, None, None]
    v = z[..., :6] @ figure("ld4lg/W").to(z.dtype) + 0.3 * torch.sigmoid(-gamma)[..., None]
    return v - 0.2 * z[..., 6:] + of_class


class Doubles:
    """The method in float64, where the network would get float32."""

    def __init__(self, method):
        self.method = method

    def estimate(self, denoiser, z, t, fed):
        gamma = self.method.gamma(t)
        pair = torch.cat([z, torch.zeros_like(z) if fed is None else fed], -1)
        return from_velocity(z, denoiser(pair, gamma, label=figure("ld4lg/class_id")), gamma)


@pytest.mark.parametrize("mover, key", [
    ("ddim", "REF_ddim"), ("ancestral", "REF_ddpm_beta"), ("posterior", "REF_ddpm_posterior"),
    ("2m", "REF_dpmpp_2m")])
def test_eight_steps_are_those_of_another_program(mover, key):
    """The published 2M forgets its history and ends at a stale h': it is 1.3 away."""
    method, mover = make_method("ld4lg", V, dim=6), MOVERS[mover]
    z, fed, noise = figure("ld4lg/zT").double(), None, figure("ld4lg/ddpm_noise").double()
    times = torch.linspace(1, 0, 9, dtype=torch.float64)
    for i, (t, s) in enumerate(zip(times[:-1], times[1:])):
        t, s = t.expand(3, 1), s.expand(3, 1)
        fed = Doubles(method).estimate(their_denoiser, z, t, fed)
        found = SimpleNamespace(x_hat=fed)
        z = mover.move(method.process, z, found, s, t, noise[i]) if s[0, 0] > 0 else fed
    close(z, figure(f"ld4lg/{key}_8steps").double(), 2e-5)


def test_guidance_is_linear_and_that_of_the_public_code():
    """(15.9) at w = 2, on v' and so on h'; class 2 has no term of its own."""
    z, gamma = figure("ld4lg/z").double(), PlainCosine()(figure("ld4lg/t").double()[:, None])
    label, pair = figure("ld4lg/class_id"), torch.cat([z, torch.zeros_like(z)], -1)
    plain = Labeled(their_denoiser, label)(pair, gamma)
    more = CFG(their_denoiser, label, 2, 2.0, True)(pair, gamma) - plain
    theirs = lambda key: (figure(f"ld4lg/cfg2_{key}") - figure(f"ld4lg/plain_{key}")).double()
    close(more, theirs("pred_v"), 1e-6)
    close(from_velocity(z, plain + more, gamma) - from_velocity(z, plain, gamma),
          theirs("pred_x_start"), 1e-6)


def test_a_variance_between_the_two_is_that_of_star_ldm():
    """l = 0.2 in (15.7), and for l = 1, 0 the two ends."""
    gamma = gamma_of(figure("star/alpha2_pair"))
    process, zero, one = make_method("ld4lg", V).process, torch.zeros(1, 1), torch.ones(1, 1)
    process.gamma_of = lambda t, words=None: t
    for variance in ("mixed", "large", "posterior"):
        moved = DDPM(variance=variance).move(
            process, zero, SimpleNamespace(x_hat=zero), gamma.min()[None], gamma.max()[None], one)
        a2 = torch.sigmoid(-gamma.max()) / torch.sigmoid(-gamma.min())
        small = (1 - a2) * torch.sigmoid(gamma.min()) / torch.sigmoid(gamma.max())
        l = {"mixed": 0.2, "large": 1.0, "posterior": 0.0}[variance]
        close(moved[0, 0].double() ** 2, (1 - a2) ** l * small ** (1 - l), 1e-6)
        if variance == "mixed":
            close(moved[0, 0].double() ** 2, figure("star/variance_lambda.2").double(), 1e-5)


# ---- a Gaussian world: everything is a matrix

def test_in_a_gaussian_world_the_parts_of_the_bound_are_exact():
    """And add up to the differential entropy: -SNR' has its sign and its 1/2."""
    m, C, t, z = (figure(f"gauss/{key}") for key in ("mean", "cov", "t", "z"))
    gamma = PlainCosine()(t)
    alpha, sigma = (a[:, None] for a in signal(gamma))
    eye = torch.eye(4, dtype=torch.float64)
    gain = lambda a, s: a * C @ torch.linalg.inv(a ** 2 * C + s ** 2 * eye)
    h = torch.stack([m + gain(a, s) @ (z_i - a * m) for a, s, z_i in zip(alpha, sigma, z)])
    close(h, figure("gauss/REF_x"), 1e-8)
    close(to_velocity(z, h, gamma), figure("gauss/REF_v"), 1e-8)
    mmse = lambda gamma: torch.linalg.inv(torch.linalg.inv(C) + (-gamma).exp() * eye).trace()
    close(torch.stack([mmse(g) for g in gamma]), figure("gauss/REF_mmse"), 1e-8)
    node, weight = (torch.from_numpy(a) for a in numpy.polynomial.legendre.leggauss(400))
    zero = torch.zeros(1, dtype=torch.float64)
    integral = 12 * sum(w * noise_nats(zero, mmse(12 * g).sqrt()[None], 12 * g)
                        for g, w in zip(node, weight))
    size = (C.trace() + m.square().sum()) / 4  # of a coordinate
    prior = prior_nats(size.sqrt().expand(4), torch.tensor(12.0, dtype=torch.float64))
    close(torch.stack([prior, integral]), figure("gauss/REF_bound_parts_logsnr12")[:2], 1e-5)
    last = figure("gauss/REF_bound_parts_logsnr12")[2]
    close(prior + integral + last, figure("gauss/REF_differential_entropy"), 2e-5)


@pytest.mark.parametrize("mover, key", [("ddim", "ddim"), ("ancestral", "beta"),
                                        ("posterior", "posterior")])
def test_the_variance_after_n_steps_is_that_of_a_product_of_matrices(mover, key):
    """With l = 1 variance 1 stays at every step but the last; l = 0 loses a fifth in ten."""
    c, process = figure("gauss/c"), make_method("ld4lg", V).process
    process.schedule, mover = PlainCosine(most=80.0), MOVERS[mover]
    for n, known in zip(figure("gauss/steps").tolist(), figure(f"gauss/REF_variance_{key}")):
        times, variance = torch.linspace(1, 0, n + 1, dtype=torch.float64), torch.ones(4).double()
        for t, s in zip(times[:-1], times[1:]):
            alpha2, sigma2 = (a ** 2 for a in signal(process.gamma(t)))
            gain = alpha2.sqrt() * c / (alpha2 * c + sigma2)  # h' = gain z
            at = lambda z, eps: mover.move(process, z[:, None], SimpleNamespace(
                x_hat=(gain * z)[:, None]), s.expand(4), t.expand(4), eps[:, None])[:, 0]
            one, zero = torch.ones(4).double(), torch.zeros(4).double()
            variance = (gain ** 2 * variance if s == 0 else
                        at(one, zero) ** 2 * variance + at(zero, one) ** 2)
        close(variance, known, 1e-8)


def test_the_bound_of_six_texts_on_a_line_is_minus_log_p_of_each():
    """(15.5) by quadrature, with the exact h' and the exact decoder: (15.6) without TC."""
    mu, p = figure("latent/mu"), figure("latent/p")
    node, weight = (torch.from_numpy(a) for a in numpy.polynomial.hermite_e.hermegauss(120))
    weight = weight / weight.sum()

    def posterior(gamma):
        alpha, sigma = signal(gamma)
        z = alpha * mu[:, None] + sigma * node  # (6, nodes)
        return (p.log() - (z[..., None] - alpha * mu).square() / (2 * sigma ** 2)).softmax(-1)

    def integrand(gamma):
        h = posterior(gamma) @ mu  # (6, nodes)
        return noise_nats(mu[:, None, None], h[..., None], gamma) @ weight  # (6,)
    at = figure("latent/integrand_log_snr")
    close(torch.stack([integrand(-a) for a in at]), figure("latent/REF_integrand"), 1e-4)
    low, high = figure("latent/log_snr_range")
    line, part = (torch.from_numpy(a) for a in numpy.polynomial.legendre.leggauss(200))
    half = (high - low) / 2
    diffusion = half * sum(w * integrand(-(low + half * (1 + a))) for a, w in zip(line, part))
    w = posterior(-high).diagonal(dim1=0, dim2=2).T  # (6, nodes) of the text itself
    bound = -(w.log() @ weight) + diffusion + prior_nats(mu[:, None], -low)
    close(bound, figure("latent/minus_log_p"), 1e-4)
    close(prior_nats(mu[:, None], -low), figure("latent/REF_parts")[:, 2], 1e-8)
