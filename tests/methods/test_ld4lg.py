"""
Latent diffusion: the equations against latent.npz, the exact worlds, the two stages, the walk.

latent.npz: keys with REF are of another program in float64, the others of public code (LD4LG,
STAR-LDM, PLANNER, LCM). What the four methods share is tested here.
"""
import math
from types import SimpleNamespace

import numpy
import pytest
import torch
from bounds import close
from networks import randomize
from references import Figures

from checkpoints.build import build_network
from diffusion import Labeled
from flags import UserError
from gaussian import DDPM, noise_nats, prior_nats, signal
from methods import make_method
from methods.gammas import Cosine
from methods.latent_space import from_velocity, to_velocity, velocity
from runtime.optim import make_optimizers
from runtime.trainer import EMA
from samplers import make_sampler
from samplers.ddim import DDIM, TwoM
from samplers.guidance import CFG, guide_by_label

figure = Figures("latent")
V, L = 7, 6
NETWORK = SimpleNamespace(n_layer=1, n_head=2, n_embd=16, cond_dim=8, dropout=0.0, qk_norm=True,
                          norm_bias=False, time_input="auto")
OPTIMIZER = SimpleNamespace(optimizer="muon", muon_lr=0.05, learning_rate=0.02, weight_decay=0.1,
                            beta1=0.9, beta2=0.99, muon_dtype="float32")
MOVERS = {"ancestral": DDPM(variance="large"), "posterior": DDPM(), "mixed": DDPM(variance="mixed"), "ddim": DDIM(),
          "2m": TwoM()}


def gamma_of(alpha2):
    return -torch.logit(alpha2.double())


def built(name="ld4lg", seed=0, n_classes=0, **flags):
    """A small method, and its network."""
    method = make_method(name, V, **dict(latents=2, dim=4) | flags)
    torch.manual_seed(seed)
    return method, build_network(NETWORK, method, n_classes)


def texts(n=64, seed=1):
    return torch.randint(V, (n, L), generator=torch.Generator().manual_seed(seed))


# ---- the equations

@pytest.mark.parametrize("scale", ["", "_scale.5"])
def test_the_cosine_is_that_of_the_public_code_and_its_inverse_is_one(scale):
    schedule = Cosine(0.5 if scale else 1.0, 15.0)
    t, alpha2 = figure("sched/t"), figure(f"sched/ld4lg_cosine{scale}_alpha2")
    ours = schedule(t.double())
    inside = ours.abs() < 14.5  # they clamp before the scale
    close(torch.sigmoid(-ours)[inside], alpha2.double()[inside], 1e-6)
    close(schedule.time(ours)[inside], t.double()[inside], 1e-6)
    assert ours.max() <= 15 and ours.min() >= -15


def test_v_h_and_eps_tell_each_other_as_in_the_public_code():
    h, eps, z, v = (figure(f"ld4lg/{key}").double() for key in ("x0", "eps", "z", "v"))
    gamma = Cosine()(figure("ld4lg/t").double())[:, None].expand(h.shape[:2])
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
    z, gamma = figure("ld4lg/z").double(), Cosine()(figure("ld4lg/t").double()[:, None])
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
        moved = DDPM(variance=variance).move(process, zero, SimpleNamespace(x_hat=zero), gamma.min()[None],
                                    gamma.max()[None], one)
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
    gamma = Cosine()(t)
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
    process.schedule, mover = Cosine(most=80.0), MOVERS[mover]
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


# ---- the network

def test_wanted_words_are_not_read_and_given_ones_are():
    """By the denoiser and by a decoder of all words at once; one in order reads to its left."""
    x, other = texts(8), texts(8, seed=2)
    at = torch.arange(L).expand(8, -1) >= 3  # the last three are wanted
    for name in ("ld4lg", "latent_planner", "dglm"):
        method, net = built(name)
        randomize(net)
        z, gamma = torch.randn(8, 2, 8), torch.zeros(8, 1)
        tail, head = torch.where(at, other, x), torch.where(at, x, other)
        call = lambda words: net(z, gamma, at=at, words=words)
        assert torch.equal(call(x), call(tail)) and not torch.allclose(call(x), call(head))
        read = lambda words: net(z[..., :4], None, at=at, words=words).view(8, 3, V)
        assert not torch.allclose(read(x), read(head))
        assert torch.allclose(read(x)[:, 0], read(tail)[:, 0], atol=1e-5)  # of the first one
        same = torch.allclose(read(x), read(tail), atol=1e-5)
        assert same != method.ordered
        encode = lambda words: net(words, None, at=at)
        assert torch.allclose(encode(x), encode(head), atol=1e-5) == method.hides_given


def test_a_text_with_nothing_given_is_denoised_the_same_beside_one_that_has_words():
    _, net = built()
    randomize(net)
    z, gamma, x = torch.randn(2, 2, 8), torch.zeros(2, 1), texts(2)
    at = torch.tensor([[True] * L, [False] * L])
    close(net(z, gamma, at=at, words=x)[:1],
          net(z[:1], gamma[:1], at=at[:1], words=x[:1]), 1e-5)


def test_latents_have_mean_0_and_variance_1_for_each_coordinate():
    """Of the batch in training, and of the data, once the statistics are measured."""
    _, net = built()
    h = net(texts(200))
    close(h.mean(0), torch.zeros(2, 4), 1e-4)
    close(h.var(0, unbiased=False), torch.ones(2, 4), 1e-2)
    net.eval().set_statistics(net.encode(texts(500), torch.ones(500, L, dtype=torch.bool)))
    h = net(texts(500))
    close(h.mean(0), torch.zeros(2, 4), 1e-4)
    close(h.var(0, unbiased=False), torch.ones(2, 4), 1e-2)


# ---- two stages

def train(method, net, steps, first=0, last=None, batch=32):
    """Steps of a run of `last` steps, as train.py takes them. -> the running average"""
    last = last or steps
    data = SimpleNamespace(windows=lambda split, n: texts(n, 5))
    trainer = SimpleNamespace(model=net, config=SimpleNamespace(max_iters=last), data=data,
                              device="cpu", ema=EMA(net, 0.9))
    trainer.average, optimizers = trainer.ema.average, make_optimizers(net, OPTIMIZER)
    for step in range(first, first + steps):
        method.on_step(step, trainer)
        torch.manual_seed(step)
        method.loss(net, texts(batch, 10 + step)).mean().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        trainer.ema.update(net, step)
        yield trainer


@pytest.mark.parametrize("name", ["ld4lg", "dglm", "lcm"])
def test_stage_two_leaves_encoder_and_decoder_bit_identical(name):
    """Weight decay, momentum and the running average included; stage one leaves the denoiser."""
    method, net = built(name, autoencoder=0.5)
    fresh, kept = {key: p.clone() for key, p in net.named_parameters()}, None
    mine = ("denoiser", "places", "read_noisy", "past", "read_past")  # of stage two
    for step, trainer in enumerate(train(method, net, 8)):
        if step == 3:
            assert all(torch.equal(fresh[key], p) for key, p in net.named_parameters()
                       if key.startswith(mine))
            assert not torch.equal(fresh["embed"], net.embed)
        if step == 4:
            kept = {key: p.clone() for key, p in net.named_parameters()}
            assert method.settled and torch.equal(net.embed, trainer.average.embed)
    for network in (net, trainer.average):
        for key, p in network.named_parameters():
            assert key.startswith(mine) or torch.equal(kept[key], p), key
    assert not torch.equal(kept["denoiser.head.weight"], net.denoiser.head.weight)


def test_a_resumed_run_is_in_the_stage_that_it_was_in():
    method, net = built(autoencoder=0.5)
    list(train(method, net, 8))
    other, _ = built(autoencoder=0.5)
    other.load_extra_state(method.extra_state())
    other.on_step(7, SimpleNamespace(config=SimpleNamespace(max_iters=8)))  # it measures nothing
    assert other.settled and other.progress == 7 / 8


def test_the_decoder_finds_the_words_again_after_a_short_training():
    """Random words, so nothing but the vectors can tell: more than nine in ten, after chance."""
    method, net = built(latents=6, dim=6, decode_at=0.1, autoencoder=1.0)
    x = texts(100, 3)
    before = dict(method.measures(net, x))["reconstruction: tokens"].mean()
    for trainer in train(method, net, 100, last=1000):
        pass
    found = dict(method.measures(trainer.average, x))
    assert before < 0.4 and found["reconstruction: tokens"].mean() > 0.9


# ---- the walk ends where the decoder was trained

def one_text(h):
    """The exact denoiser of a world of one text, whose latents are h (K, d)."""
    seen = []

    def denoiser(z, gamma, at=None, label=None, words=None):
        if gamma is None:
            seen.append(z)
            return torch.zeros(int(at.sum()), V)
        return to_velocity(z[..., :4].double(), h.double(), gamma.double())
    denoiser.seen = seen
    return denoiser


@pytest.mark.parametrize("name", ["ancestral", "ddpm", "ddim", "2m"])
def test_the_decoder_reads_in_samples_what_it_read_in_training(name):
    """With one text each sampler ends at alpha_0 h + sigma_0 eps, mean and deviation: no stale and
    no clean estimate."""
    method, h = make_method("ld4lg", V, latents=2, dim=4), torch.randn(2, 4)
    denoiser, n = one_text(h), 4000
    z, nothing = method.prior((n, 2)), torch.zeros(n, 2, dtype=torch.bool)
    torch.manual_seed(0)
    assert len(list(method.sample(denoiser, z, nothing, 12, make_sampler(name, method)))) == 12
    read, (alpha, sigma) = denoiser.seen[-1], signal(method.ends()[0])
    assert (read.mean(0) - alpha * h).abs().max() < 5 * sigma / n ** 0.5
    assert (read.std(0) / sigma - 1).abs().max() < 5 / (2 * n) ** 0.5
    trained = method.for_decoder(h.expand(n, -1, -1))
    assert (trained.std(0) / sigma - 1).abs().max() < 5 / (2 * n) ** 0.5


def test_guidance_of_1_is_none_and_of_0_ignores_the_class():
    """Bit by bit, and of 2 is linear in h'."""
    method, net = built(n_classes=3)
    randomize(net)
    label, x, at = torch.tensor([1]), texts(4), torch.ones(4, L, dtype=torch.bool)
    y, t = torch.randn(4, 2, 4), torch.full((4, 1), 0.5)
    ancestral = make_sampler("ancestral", method)
    h = {w: method.estimate(guide_by_label(method, net, ancestral, label, 3, w)[0], y, t, at, x)
         for w in (0, 1, 2)}
    assert torch.equal(h[1], method.estimate(Labeled(net, label), y, t, at, x))
    assert torch.equal(h[0], method.estimate(net, y, t, at, x))
    close(h[2], h[0] + 2 * (h[1] - h[0]), 1e-4)


def test_self_conditioning_has_no_gradient_and_is_tossed_for_each_text():
    method, net = built(self_condition=0.3)
    randomize(net)
    x, at = texts(400), torch.ones(400, L, dtype=torch.bool)
    torch.manual_seed(0)
    fed = method.fed_back(net, torch.randn(400, 2, 4), torch.full((400, 1), 0.5), at, x)
    some = (fed != 0).any(-1).any(-1)
    assert not fed.requires_grad and abs(some.double().mean() - 0.3) < 0.1
    assert built(self_condition=0.0)[0].fed_back(net, None, None, None, None) is None


def test_without_noise_at_the_decoder_there_is_no_bound():
    """And the reason is one line; with noise it is a bound of the network, far above at first."""
    method, net = built(decode_at=0.0)
    assert not method.bounded and "\n" not in method.unbounded_reason
    x = texts(50)
    assert method.nelbo(net, x).isfinite().all()
    h = torch.randn(3, 2, 4)
    assert torch.equal(method.for_decoder(h), h) and built()[0].bounded
    nats = built()[0].nelbo(built()[1], x).sum(-1).mean()
    assert nats > L * math.log(V)


def test_what_has_no_meaning_for_latents_is_refused_in_one_line():
    method, _ = built()
    for flags in (dict(clamp=True), dict(last="argmax")):
        with pytest.raises(UserError, match="leave out --"):
            make_sampler("ddpm", method, **flags)
    usual = dict(time_input="auto", learned_places=False, sides="joined")
    method.check(SimpleNamespace(**usual))
    with pytest.raises(UserError, match="leave it out"):
        method.check(SimpleNamespace(**usual | dict(learned_places=True)))
