"""
TESS: its coordinates, its schedule, self-conditioning, and the network that starts from an ar run.

simplex.npz, `tess/*` and `tess2/*`: the code of allenai/tess-diffusion (commit 63f039b) and
hamishivi/tess-2 (6e4ebff); `ssd/*`: xhan77/ssd-lm (c0b6761).
"""
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import world
from bounds import close
from references import Figures
from runs import cache, complaint, elsewhere, fit, tiny  # noqa: F401
from world import TEXTS, N

import train
from checkpoints.build import build_network
from checkpoints.load import load_model
from diffusion import probabilities
from methods import make_method
from methods.evidence import FIRST, Cosine, Evidence, Squared, draw_evidence
from model import causal
from samplers.evidence import Renoise, StraightEvidence

figure = Figures("simplex")
COSINE = Cosine(1e6)
NETWORK = SimpleNamespace(n_layer=1, n_head=2, n_embd=16, cond_dim=8, dropout=0.0, qk_norm=True,
                          norm_bias=False, time_input="auto")


def lam_of(level):
    """lam = 4a / (1 - a) of the published level of 20, for rows of texts. -> (.., 1, 1)"""
    a = COSINE.alpha_bar(torch.as_tensor(level, dtype=torch.float64) / 20)
    return (4 * a / (1 - a))[..., None, None]


def logits_of(y, lam):
    """w of (14.13) from evidence, k = 5, up to a constant."""
    return y * 10 / (lam * (4 + lam)).sqrt()


# ---- figures of public code

def test_the_schedule_is_that_of_tess_and_of_ssd_lm():
    close(COSINE.alpha_bar(torch.arange(20) / 20), figure("tess/T20_alpha_bar").double(), 1e-6)
    for at, exact in (("tess/T5000_alpha_bar_at", "tess/T5000_alpha_bar"),
                      ("ssd/t", "ssd/alpha_bar")):
        close(COSINE.alpha_bar(figure(at).double() / 5000), figure(exact).double(), 1e-6)


@pytest.mark.parametrize("schedule", [Cosine(25.0), Cosine(1e6), Squared(25.0)])
def test_evidence_grows_from_nothing_to_lam1_and_times_undo_it(schedule):
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    lam = schedule(t)
    assert (lam.diff() < 0).all() and lam[-1] < FIRST
    assert lam[0].item() == pytest.approx(schedule.lam1, rel=1e-6)
    close(schedule.time(lam), t, 1e-7)


def test_a_network_reads_what_that_of_tess_reads():
    """Noise, softmax(w), and the mean with the last prediction, 1/V if there is none."""
    x, level = figure("tess/x")[1:], figure("tess/t_index")[1:]  # level 0 has no noise
    lam = lam_of(level)  # (3, 1, 1)
    y = draw_evidence(x, lam[..., 0].expand(3, 6), figure("tess/noise")[1:].double() / 5)
    w = figure("tess/noisy")[1:].double()  # (3, 6, 9)
    close(logits_of(y, lam).log_softmax(-1), w.log_softmax(-1), 1e-5)
    t = Evidence(9, COSINE).time(lam[..., 0])  # (3, 1)
    read = lambda feeds_back, z: Evidence(9, COSINE, k=5.0, feeds_back=feeds_back).shown(z, t)
    close(read(False, y), figure("tess/input_probs")[1:].double(), 1e-5)
    last = figure("tess/previous_logits")[1:].double().softmax(-1)
    mixed = read(True, torch.cat([y, last], -1))
    close(mixed, figure("tess/mixed_probs_logits_mean")[1:].double(), 1e-5)
    alone = read(True, torch.cat([y, torch.full_like(y, 1 / 9)], -1))
    close(alone, (figure("tess/input_probs")[1:].double() + 1 / 9) / 2, 1e-5)


def test_steps_and_projections_are_the_published_ones():
    """Renoise at the lam of the next level; what is kept of a nucleus; DDIM of TESS 2."""
    hot, eps = F.one_hot(figure("tess/x"), 9), figure("tess/noise").double() / 5
    lam = lam_of(6)[0, 0]  # of the step from level 7
    y = Renoise().move(None, hot, lam, None, eps)
    close(logits_of(y, lam).log_softmax(-1), figure("tess/step_t7").double().log_softmax(-1), 1e-5)
    for p in (0.5, 0.9, 0.99):
        to_probs = lambda logits: probabilities(logits, top_p=p)
        kept = to_probs(figure("tess/logits")) > 0
        assert torch.equal(kept, figure(f"tess/kept_p{p}"))
        assert torch.equal(kept, figure(f"ssd/multihot_p{p}") > 0)
    for p in (0.5, 0.9, 0.99):  # w0 = k (2 e - 1), k = 5
        uneven = Renoise(projection="uneven").endpoint(
            figure("ssd/logits").log_softmax(-1).flatten(0, -2),
            partial(probabilities, top_p=p), 5.0)  # (N, V)
        close(10 * uneven - 5, figure(f"ssd/uneven_p{p}").flatten(0, -2).double(), 1e-5)
    likeliest = Renoise(projection="argmax").endpoint(figure("ssd/logits"), None)
    assert torch.equal(likeliest > 0, figure("ssd/multihot_p0.0") > 0)
    rows = figure("tess2/ddim_rows")
    level = figure("tess/t_index")[rows]
    lam_t, lam_s = lam_of(level), lam_of(level - 1)  # (3, 1, 1) each
    y = figure("tess/noisy")[rows].double() * (lam_t * (4 + lam_t)).sqrt() / 10
    y = y + lam_t / 2  # -k of all words is a constant of (14.13), which a step must know
    e_hat = figure("tess2/logits")[rows].double().softmax(-1)
    w = logits_of(StraightEvidence().move(y, e_hat, lam_s, lam_t, None), lam_s)
    close(w.log_softmax(-1), figure("tess2/ddim_prev").double().log_softmax(-1), 1e-4)


# ---- one bound for all

def test_the_bound_of_tess_is_that_of_bfn_at_equal_evidence_and_predictions():
    """To 1e-9, for right and wrong predictions, of infinitely many steps and of 5. k drops out."""
    vague = lambda z, t, at: (0.5 * z.double()[at] + torch.arange(N)).log_softmax(-1)
    for steps in (0, 5):
        nats = []
        for name, flags in (("bfn", {}), ("tess", dict(self_condition=0.0)),
                            ("tess", dict(self_condition=0.0, k=1.0))):
            method = make_method(name, N, lam1=20.0, skip=False, bound_steps=steps, **flags)
            exact = method.oracle(world.LANGUAGE)
            torch.manual_seed(0)
            nats.append(torch.stack([method.nelbo(f, TEXTS) for f in (exact, vague)]))
        close(nats[1], nats[0], 1e-9)
        close(nats[2], nats[0], 1e-9)


def test_predictions_are_fed_back_from_the_same_evidence():
    """Training: a first call for some texts; the bound: for all; without gradients."""
    method, calls, x = make_method("tess", 7, self_condition=0.5), [], torch.randint(7, (4, 5))
    out = torch.randn(4, 5, 7, requires_grad=True)

    def denoiser(z, t, at):
        calls.append(z)
        return out[at]
    chosen, at = torch.tensor([True, False, True, False]), torch.ones(4, 5, dtype=torch.bool)
    y, t = method.process.noisy(x, torch.full((4, 1), 2.0))
    log_p = method.predict(denoiser, y, t, at, chosen).view(4, 5, 7)
    (first, second), uniform = calls, torch.full((4, 5, 7), 1 / 7)
    close(first[..., 7:], uniform)
    assert torch.equal(first[..., :7], y) and torch.equal(second[..., :7], y)
    close(second[chosen, :, 7:], log_p[chosen].exp().detach())
    close(second[~chosen, :, 7:], uniform[~chosen])
    assert not second.requires_grad and log_p.requires_grad
    calls.clear()
    method.nelbo(denoiser, x)
    assert len(calls) == 4 and (calls[1][..., 7:] != 1 / 7).any(-1).all()


def test_a_walk_feeds_back_the_last_prediction():
    method, calls, out = make_method("tess", 7), [], torch.randn(3, 5, 7)

    def denoiser(z, t, at):
        calls.append((z, t))
        return out[at]
    z = method.prior((3, 5))
    list(method.sample(denoiser, z, z != z, 3))
    (first, t), (second, _), _ = calls
    close(first[..., 7:], torch.full((3, 5, 7), 1 / 7))
    close(second[..., 7:], out.softmax(-1), 1e-6)
    assert (t == 1).all() and (first[..., :7] != 0).all()  # softmax(w) has noise at once


# ---- TESS 2: from an ar run

def test_shifted_rows_are_read_one_place_on():
    """A network whose logits at row l are its input at l says at l + 1 what stands at l."""
    method = make_method("tess", 7, shifted=True, self_condition=0.0)
    network = build_network(NETWORK, method)
    with torch.no_grad():
        network.embed.copy_(torch.eye(8, 16))
        network.head.weight.copy_(torch.eye(8, 16))
    x = torch.randint(7, (4, 6))
    logits = network(method.process.given(x), torch.zeros(4, 1))  # (4, 6, 8)
    assert torch.equal(logits[:, 1:].argmax(-1), x[:, :-1]) and (logits[:, 0].argmax(-1) == 7).all()
    at = torch.rand(4, 6) < 0.5
    close(network(method.process.given(x), torch.zeros(4, 1), at=at), logits[at], 1e-6)


def test_an_ar_run_goes_on_as_tess_and_begins_as_what_it_was(capsys):
    """Under causal attention, on given words, the logits are those of ar; and a run that is not
    shifted is refused."""
    fit("ar", method="ar", max_iters=8, learning_rate=0.01)
    fit("new", method="tess", init_from="ar", shifted=True, max_iters=1, learning_rate=0.0,
        muon_lr=0.0)
    ar, new = load_model("ar"), load_model("new")
    x = torch.randint(100, (5, 8))
    z = new.method.process.given(x)
    with torch.no_grad():
        ours = new.denoiser(torch.cat([z, z], -1), torch.zeros(5, 1), mask_mod=causal)
        close(ours, ar.denoiser(ar.method.shift(x), None), 1e-5)
    said = complaint(train, *tiny(init_from="ar", method="tess", out_dir="o"), capsys=capsys)
    assert "a network of ar predicts the token behind each row: give --shifted" in said
