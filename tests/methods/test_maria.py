"""
MARIA: two experts fill gaps, in the world of 27 texts by sums, and as networks.

Reference figures: the laws of the first two tokens given the third, of the exact experts of
tests/reference/maria_reference.npz. (18.13) is a sum over texts and masks there, without noise.
"""
import shutil
from itertools import combinations

import pytest
import torch

import sample
import train
from checkpoints.load import load_model
from flags import configure
from methods import make_method
from methods.maria import TwoExperts
from model import causal
from networks import random_net
from references import Figures
from runs import assert_same, cache, complaint, elsewhere, fit  # noqa: F401
from samplers.generate import CallCounter, generate
from world import L, N, TEXTS, Language

FIGURES = Figures("maria_reference")
P = FIGURES("maria/p")  # (27,)
METHOD = make_method("maria", N)
MASK = METHOD.mask


# ---- the exact experts of the world

def conditionals(seen):
    """p(x_l | seen), where MASK is not known. seen (B, L) -> (B, L, N)"""
    fits = (TEXTS == seen[:, None]) | (seen[:, None] == MASK)  # (B, 27, L)
    rows = []
    for l in range(L):
        others = fits[:, :, [k for k in range(L) if k != l]].all(-1) * P  # (B, 27)
        rows.append(torch.stack([others[:, TEXTS[:, l] == v].sum(-1) for v in range(N)], -1))
    p = torch.stack(rows, 1)  # (B, L, N)
    return p / p.sum(-1, keepdim=True)


def experts(both, known={}):
    """log p_AR and log p_MLM for the input of MARIA's network. (B, 2 L) -> (B, L, N) each"""
    if (key := both.numpy().tobytes()) in known:
        return known[key]
    z, x = both[:, :L], both[:, L:].roll(-1, 1)  # (B, L) each
    place = torch.arange(L)  # (L,)
    left = torch.stack([conditionals(torch.where(place < l, x, MASK))[:, l] for l in range(L)], 1)
    known[key] = left.log(), conditionals(z).log()  # (B, L, N) each
    return known[key]


def denoiser_of(mix):
    """mix(log p_AR, log p_MLM) in the place of a network."""
    def denoiser(both, t, at=None, **layout):
        one, of = both.unique(dim=0, return_inverse=True)  # (states, 2 L), (B,)
        return mix(*experts(one))[of][at[:, :L]]  # (n, N)
    return denoiser


class World(Language):
    """The world with the law of the reference."""

    def posterior(self, likelihood, leave_one_out=True, topic=None):
        seen = torch.where(likelihood.max(-1).values == likelihood.min(-1).values, MASK,
                           likelihood.argmax(-1))  # (B, L)
        return conditionals(seen)


MIXES = {"ar": lambda a, b: a, "mlm_one_step": lambda a, b: b, "poe": lambda a, b: (a + b) / 2}
DENOISERS = {**{name: denoiser_of(mix) for name, mix in MIXES.items()},
             "mlm_left_to_right": METHOD.oracle(World())}
DISTANCES = {"ar": (0.32, 0.30, 0.41), "mlm_one_step": (0.22, 0.29, 0.38),
             "poe": (0.22, 0.28, 0.34), "mlm_left_to_right": (0, 0, 0)}


@pytest.mark.parametrize("v", range(N))
@pytest.mark.parametrize("name", DENOISERS)
def test_the_law_of_two_gaps_is_that_of_the_reference(name, v):
    """-log of it is nelbo: the chain rule, for any denoiser."""
    ends = TEXTS[:, 2] == v  # (27,)
    given = (torch.arange(L) == 2).expand(int(ends.sum()), -1)  # (9, L)
    law = torch.zeros(27, dtype=P.dtype).masked_scatter(
        ends, (-METHOD.nelbo(DENOISERS[name], TEXTS[ends], given).sum(-1)).exp())  # (27,)
    torch.testing.assert_close(law, FIGURES(f"maria/{name}_{v}"), atol=1e-10, rtol=0)
    off = float((law - FIGURES(f"maria/exact_{v}")).abs().sum() / 2)
    assert abs(off - DISTANCES[name][v]) < 0.005


def per_mask(denoiser):
    """(18.13) as a sum: the mean over texts and masks of -log p of a masked token. -> ()"""
    total = 0.0
    for k in range(1, L + 1):
        patterns = list(combinations(range(L), k))
        for places in patterns:
            z = TEXTS.clone()
            z[:, list(places)] = MASK
            nats = METHOD.nats(denoiser, TEXTS, z).sum(-1) / k  # (27,)
            total = total + P @ nats / len(patterns) / L
    return total


def test_a_trained_head_is_better_than_the_product_and_than_either_expert_alone():
    """And no better than all that there is to know: the table of the chapter. At the exact law the
    two experts alone cost the same, H/n: both are chain rules, of one order and of all."""
    W = torch.cat([torch.eye(N), torch.eye(N)], 1).double().div(2).requires_grad_()  # (N, 2 N)
    b = torch.zeros(N, dtype=torch.float64, requires_grad=True)  # (N,)
    head = denoiser_of(lambda left, right: torch.cat([left, right], -1) @ W.T + b)
    optimizer = torch.optim.LBFGS([W, b], max_iter=20)

    def loss():
        optimizer.zero_grad()
        nats = per_mask(head)
        nats.backward()
        return nats
    at_first = optimizer.step(loss).item()
    found = {name: per_mask(denoiser).item() for name, denoiser in DENOISERS.items()}
    found["trained"] = per_mask(head).item()
    assert abs(at_first - found["poe"]) < 1e-12
    assert found["mlm_left_to_right"] < found["trained"] < min(
        found[name] for name in ("ar", "mlm_one_step", "poe")) - 0.01
    assert {name: round(value, 3) for name, value in found.items()} == {
        "ar": 0.912, "mlm_one_step": 0.912, "poe": 0.855, "mlm_left_to_right": 0.813,
        "trained": 0.842}


def test_draws_of_the_loss_have_its_mean():
    """With a token given, too: k of the others are masked."""
    torch.manual_seed(0)
    of = torch.multinomial(P, 30_000, replacement=True)  # (n,)
    nats = METHOD.loss(DENOISERS["poe"], TEXTS[of]).sum(-1) / L  # (n,)
    assert abs(nats.mean() - per_mask(DENOISERS["poe"])) < 4 * nats.std() / len(of) ** 0.5
    given = (torch.arange(L) == 0).expand(len(of), -1)  # (n, L)
    nats = METHOD.loss(DENOISERS["poe"], TEXTS[of], given)  # (n, L)
    scored = (nats > 0).sum(-1)  # (n,)
    assert (nats[:, 0] == 0).all() and abs((scored == 1).double().mean() - 0.5) < 0.01


# ---- the network

TEXT = torch.arange(24).view(3, 8) * 3 % 5  # (3, 8)
GIVEN = torch.tensor([[1, 1, 0, 0, 1, 0, 0, 1], [0] * 8, [1, 0, 1, 1, 1, 1, 0, 0]]).bool()  # (3, 8)


def networks():
    """A random ar and a random masked network of other sizes, for 5 symbols."""
    sizes = dict(vocab_size=6, cond_dim=0)
    nets = random_net(1, mask_mod=causal, **sizes), random_net(2, n_embd=8, n_layer=1, **sizes)
    return [net.requires_grad_(False) for net in nets]


def test_at_first_the_logits_are_the_mean_of_the_experts_where_they_stand():
    """ar reads the text before a gap, shifted, the other one the text with its gaps."""
    (ar, masked), method = networks(), make_method("maria", 5)
    z = torch.where(GIVEN, TEXT, method.mask)  # (3, 8)
    both = method.beside(lambda both, t, at: TwoExperts(ar, masked)(both, t, at), TEXT)
    shifted = torch.nn.functional.pad(TEXT, (1, 0), value=5)[:, :-1]  # (3, 8)
    mean = (ar(shifted) + masked(z)) / 2  # (3, 8, V)
    torch.testing.assert_close(both(z, None, ~GIVEN), mean[~GIVEN])
    numbers = (~GIVEN).flatten().nonzero()[:, 0]  # (n,)
    torch.testing.assert_close(both(z, None, numbers), mean[~GIVEN])


def test_the_head_alone_gets_a_gradient_the_same_with_a_fused_loss():
    method, found = make_method("maria", 5), []
    for fused in (False, True):
        network = TwoExperts(*networks())
        network.supports_fused_head = fused
        torch.manual_seed(0)
        method.loss(network, TEXT, GIVEN).sum(-1).div((~GIVEN).sum(-1)).mean().backward()
        assert {name for name, p in network.named_parameters() if p.grad is not None} == {
            "head.weight", "head.bias"}
        found.append(network.head.weight.grad)
    torch.testing.assert_close(*found)
    assert found[0].abs().max() > 0.01


def test_a_cache_changes_no_text_and_each_expert_reads_a_token_once():
    network, method, reads = TwoExperts(*networks()), make_method("maria", 5), []
    for name in ("ar", "masked"):
        getattr(network, name).register_forward_pre_hook(
            lambda part, call, name=name: reads.append((name, call[0].shape[1])))
    ends = []
    for cached in (False, True):
        counter = CallCounter(network)
        counter.supports_cache = cached
        reads.clear()
        torch.manual_seed(3)
        ends.append(generate(method, counter, 3, 8, 1, given=TEXT, frozen=GIVEN))
        assert counter.calls == 8 and counter.positions == int((~GIVEN).sum())
    assert torch.equal(*ends) and (ends[0] == TEXT)[GIVEN].all() and (ends[0] < 5).all()
    assert [n for name, n in reads if name == "masked"] == [8]
    assert sum(n for name, n in reads if name == "ar") == 8


# ---- runs

@pytest.fixture(scope="module")
def experts_of_runs(tmp_path_factory):
    """Folders of two tiny runs on the toy language, of different sizes."""
    root = tmp_path_factory.mktemp("experts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("runtime.progress.print_summary", lambda trainer: None)
        fit(root / "ar", method="ar", block_size=10)
        fit(root / "mdlm", method="mdlm", n_embd=24)
        fit(root / "udlm", method="udlm")
    return root


SIZES = dict(n_layer=2, n_embd=128, n_head=4, cond_dim=128)  # the defaults of train.py


def test_a_run_trains_the_head_resumes_exactly_and_needs_no_other_folder(
        experts_of_runs, tmp_path, capsys):
    for name in ("ar", "mdlm"):
        shutil.copytree(experts_of_runs / name, tmp_path / name)
    flags = dict(SIZES, method="maria", ar="ar", masked="mdlm", lr_schedule="constant")
    whole, _ = fit("whole", max_iters=4, **flags), fit("half", **flags)
    theirs = {name: load_model(name).denoiser for name in ("ar", "mdlm")}
    network = load_model("whole").denoiser
    for part, name in ((network.ar, "ar"), (network.masked, "mdlm")):
        assert all(torch.equal(a, theirs[name].state_dict()[key])
                   for key, a in part.state_dict().items())
    product = TwoExperts(theirs["ar"], theirs["mdlm"]).head.weight
    assert not torch.equal(network.head.weight, product)
    for name in ("ar", "mdlm"):
        shutil.rmtree(tmp_path / name)
    half = fit("half", init_from="resume", max_iters=4)
    assert_same(half, whole)
    capsys.readouterr()
    sample.main(configure(sample.Config, out_dir="half", prompt="the dog _ _ cat _ .",
                          num_samples=2))
    out = capsys.readouterr()
    assert out.out.count("the dog ") == 2 and "maria, ancestral: 3 network calls" in out.err


@pytest.mark.parametrize("flags, says", [
    (dict(ar="mdlm"), "--ar mdlm is a run of mdlm: give one of ar, with one head"),
    (dict(masked="ar"), "--masked ar is a run of ar: give one of mdlm, md4 or radd"),
    (dict(masked="udlm"), "--masked udlm is a run of udlm: give one of mdlm"),
    (dict(ar="nowhere"), "there is no checkpoint nowhere"),
    (dict(data="names"), "--ar ar has other tokens than names"),
    (dict(n_layer=3), "--n_layer counts for nothing with maria"),
    (dict(block_size=9), "the experts know texts of 8 tokens, give at most that"),
    (dict(init_from="ar"), "--init_from ar: maria starts from --ar and --masked"),
    (dict(labels=True), "called without classes"),
    (dict(out_dir="ar"), "--out_dir ar holds the model of --ar")])
def test_what_does_not_fit_is_refused_in_one_line(flags, says, experts_of_runs, monkeypatch,
                                                  capsys):
    monkeypatch.chdir(experts_of_runs)
    flags = dict(data="toy", block_size=8, method="maria", ar="ar", masked="mdlm", max_iters=1,
                 out_dir="none") | flags
    argv = [word for name, value in flags.items() for word in (f"--{name}", value)]
    assert says in complaint(train, *argv, capsys=capsys)
    assert not (experts_of_runs / "none").exists()
