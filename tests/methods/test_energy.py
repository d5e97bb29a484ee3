"""A trained energy: its loss and optimum in the world of 27 texts, its network, and its runs."""
import copy
from types import SimpleNamespace

import pytest
import torch
from networks import random_net, randomize

import evaluate
import world
from checkpoints.load import load_model
from evaluation.held_out import TIMES
from evaluations import results
from flags import UserError, configure
from methods import make_method
from methods.energy import EnergyNetwork, contrast
from runs import cache, elsewhere, fit  # noqa: F401
from samplers import make_sampler
from world import L, N, P, TEXTS, numbers

METHOD = make_method("energy", N)
MASKS = [torch.tensor(bits) for bits in world.product((False, True), repeat=L) if any(bits)]


def network(seed=0, **options):
    """Of the world, with a draft that is random, and energies that are 0."""
    torch.manual_seed(seed)
    net = EnergyNetwork(N + 1, 2, 2, 32, cond_dim=0, **options)
    draft = random_net(seed, N + 1, n_embd=32, cond_dim=0)
    net.proposals.load_state_dict(draft.state_dict())
    return net.eval()


def conditional(z, net):
    """Of all texts that fit the state z (3,): numbers, log x_theta and log p(x | z), (k,) each"""
    keep = ((z == N) | (TEXTS == z)).all(-1).nonzero()[:, 0]  # (k,)
    at = (z == N)[None]  # (1, 3)
    log_p = net(z[None], torch.ones(1, 1), at=at)[:, :N].double().log_softmax(-1)  # (m, N)
    log_x = log_p.gather(1, TEXTS[keep][:, at[0]].T).sum(0)  # (k,)
    return keep, log_x, P[keep].log() - P[keep].sum().log()


# ---- the loss

def test_the_loss_is_least_at_log_x_theta_minus_log_p():
    """As a sum over texts and draws: its slope is 0 there, and it is more anywhere else."""
    z, net = torch.tensor([N, 1, N]), network()
    _, log_x, log_p = conditional(z, net)  # (9,) each
    loss = lambda E: log_p.exp() @ contrast(E, torch.tensor(1e3).double()) + log_x.exp() @ contrast(
        torch.tensor(-1e3).double(), E)
    best = (log_x - log_p).requires_grad_()  # (9,)
    slope, = torch.autograd.grad(loss(best), best)
    assert slope.abs().max() < 1e-12
    torch.manual_seed(0)
    for _ in range(20):
        assert loss(best + 0.3 * torch.randn(9).double()) > loss(best)
    assert loss(-best) > loss(best) + .1  # the sign


def test_draws_come_from_the_frozen_network_and_keep_what_is_visible():
    net, z = network(), torch.tensor([[N, 1, N]]).expand(20_000, L)  # (n, 3)
    torch.manual_seed(0)
    x = METHOD.draw(world.by_state(lambda z, t, at=None: net(z, t, at=at)), z, torch.ones(1, 1))
    keep, log_x, _ = conditional(z[0], net)
    law = torch.zeros_like(P).index_put((keep,), log_x.exp())  # (27,)
    assert world.surprise(numbers(x, N), law) < 4


def test_its_loss_teaches_a_table_the_exact_energies_of_the_world():
    """In 200 steps x_theta exp(-E) is p, from a draft that is far."""
    net, table = network(1), torch.zeros(64, 27, requires_grad=True)

    def learner(z, t, at=None, text=None):
        if text is None:
            return world.by_state(net)(z, None, at=at)
        return table[numbers(z, N + 1), numbers(text, N)]  # (B,)
    optimizer = torch.optim.Adam([table], lr=0.1)
    torch.manual_seed(0)
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 0.2 * (1 - step / 200)
        x = TEXTS[torch.multinomial(P, 1000, replacement=True)]  # (1000, 3)
        optimizer.zero_grad()
        METHOD.loss(learner, x).mean().backward()
        optimizer.step()
    for z in (torch.tensor([N, N, N]), torch.tensor([0, N, N])):
        keep, log_x, log_p = conditional(z, net)  # (k,) each
        states = z.expand(len(keep), L)  # (k, 3)
        rate = METHOD.rate(learner, states, None, states == N)
        far, near = ((a - log_p.exp()).abs().sum() / 2 for a in (
            log_x.exp(), rate(TEXTS[keep]).softmax(0).detach()))
        assert near < 0.1 < 0.25 < far, (near, far)


def test_an_exact_energy_turns_any_draft_into_the_data(monkeypatch):
    """Its weights are p(x | z) / q(x), also for a draft of another network or temperature."""
    net = network()

    def exact(z, t, at=None, text=None):
        if text is None:
            return net(z, t, at=at)
        rows = []
        for state, x in zip(z, text):
            keep, log_x, log_p = conditional(state, net)
            rows.append((log_x - log_p)[keep == numbers(x, N)].sum())
        return torch.stack(rows)  # (B,)
    made = make_sampler("energy", make_method("mdlm", N), energy="its folder")
    made.judge = SimpleNamespace(method=METHOD, denoiser=exact)
    for hidden in MASKS:
        z = torch.where(hidden, N, TEXTS[5])  # (3,)
        keep, _, log_p = conditional(z, net)
        states = z.expand(len(keep), L)  # (k, 3)
        log_w = made.rate(states, torch.ones(1, 1), states == N, None)(TEXTS[keep])  # (k,)
        torch.testing.assert_close(log_w.softmax(0), log_p.exp(), atol=1e-6, rtol=0)


# ---- the network

def test_energies_are_sums_over_masks_zero_without_and_at_first():
    net = network()
    z, x = torch.tensor([[N, 1, N], [0, 1, 2]]), torch.tensor([[2, 1, 0], [0, 1, 2]])  # (2, 3)
    assert (net(z, None, text=x) == 0).all()
    randomize(net)
    energy = net(z, None, text=x)  # (2,)
    assert energy[0] != 0 and energy[1] == 0
    assert net(z, None, text=x.flip(-1).where(z == N, z))[0] != energy[0]  # it reads the words,
    assert net(torch.where(z == N, N, N), None, text=x)[0] != energy[0]  # and where masks are


def test_the_frozen_network_is_neither_trained_nor_averaged():
    net = network()
    names = [name for name, _ in net.named_parameters()]
    assert not any(name.startswith("proposals") for name in names)
    assert any(name.startswith("proposals") for name in net.state_dict())
    before = copy.deepcopy(net.proposals.state_dict())
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    METHOD.loss(net, TEXTS).mean().backward()
    optimizer.step()
    assert all(torch.equal(a, before[name]) for name, a in net.proposals.state_dict().items())
    assert (net.head.weight != 0).any()


# ---- runs

def test_a_run_starts_from_a_masked_run_that_also_drafts_and_goes_on(capsys):
    fit("model", method="mdlm")
    state = fit("judge", method="energy", init_from="model", max_iters=3, eval_interval=2)
    printed = capsys.readouterr().out
    assert "1.386 +- 0.000 nats/text" in printed
    assert "bits" not in printed.partition("energy on toy")[2]
    draft, judge = load_model("model").denoiser, load_model("judge").denoiser
    z = torch.full((2, 8), judge.vocab_size - 1)  # (2, 8)
    assert torch.equal(draft(z, None), judge(z, None))
    assert state["step"] == 3 and not torch.equal(judge.embed, draft.embed)
    fit("judge", init_from="resume", max_iters=5)
    assert torch.equal(draft(z, None), load_model("judge").denoiser(z, None))
    rows = results(capsys, "--out_dir", "judge", "--max_texts", 20, "--device", "cpu")
    assert [row["t"] for row in rows] == list(TIMES)
    assert all(0 <= row["accuracy"] <= 1 and row["nats"] > 0 for row in rows)
    again = fit("again", method="energy", init_from="judge")
    assert again["ema"].keys() == state["ema"].keys()
    evaluate.main(configure(evaluate.Config, out_dir="judge", max_texts=8, device="cpu"))
    assert "exact" not in capsys.readouterr().out


@pytest.mark.parametrize("method", ["ar", "udlm", "bd3lm", "classifier"])
def test_what_cannot_draft_is_no_start(method):
    fit("model", method=method)
    with pytest.raises(UserError, match=f"a network of {method}, and energy needs another") as no:
        fit("judge", method="energy", init_from="model")
    assert "\n" not in str(no.value)
    with pytest.raises(UserError, match="and mdlm needs another"):
        fit("judge", method="energy")
        fit("back", method="mdlm", init_from="judge")


def test_at_any_noise_half_of_the_pairs_are_told_right_by_chance():
    nats, right = METHOD.pairs_at(network(), TEXTS, torch.full((27, 1), 0.5))  # (27,) each
    torch.testing.assert_close(nats, torch.full((27,), 2.0).log() * 2)
    assert (right == 0.5).all()
