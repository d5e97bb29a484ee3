"""Runs of rl.py: rewards, every estimator, exact resume; the result is an ordinary checkpoint."""
import signal
from types import SimpleNamespace

import pytest
import torch

import evaluate
import rl
import sample
import train
from checkpoints.load import load_model, read_state
from data import load_data
from diffusion import Absorbing
from evaluation.ngram import text_nats
from experiments import policy_gradients as sums
from flags import UserError, configure
from methods import make_method
from models import random_checkpoint
from runs import assert_same, cache, complaint, elsewhere, interrupt, metrics  # noqa: F401
from runtime import distributed, reinforce
from runtime.policy import ESTIMATORS
from runtime.rewards import event_kl, make_reward
from samplers import make_sampler
from world import by_state

TINY = dict(max_iters=2, batch_size=4, group=2, num_samples=4, device="cpu", dtype="float32",
            warmup_iters=1, reward="match:a", eval_interval=2)


@pytest.fixture(autouse=True)
def short_reports(monkeypatch):
    monkeypatch.setattr(reinforce, "BOUND_TEXTS", 8)


@pytest.fixture(scope="module")
def starts(tmp_path_factory):
    """folder(method): a model with random weights, of the toy language."""
    root = tmp_path_factory.mktemp("starts")
    return lambda name, **flags: (root / name if (root / name).exists() else
                                  random_checkpoint(root / name, method=name, **flags))


def run(start, out_dir="rl", given=None, **flags):
    """A tiny run in this process. -> its checkpoint"""
    flags = {**TINY, **flags}
    config = configure(rl.Config, **{**flags, "start": str(start), "out_dir": out_dir})
    rl.main(config, list(flags if given is None else given))
    return read_state(out_dir)


# ---- the gradient of a step

class Tabular(torch.nn.Module):
    """A network with a table of logits, and what Policy needs of a trainer."""

    def __init__(self, logits, questions):
        super().__init__()
        self.logits, self.model, self.questions = torch.nn.Parameter(logits), self, questions

    def forward(self, z, t, at=None):
        return sums.tabular(self.logits)(z, t, at)

    def seed(self, micro):
        return micro

    def draw_batch(self, micro):
        return self.questions, None, None

    def to_device(self, parts):
        return parts

    def autocast(self):
        return torch.enable_grad()

    def micro_batches(self, step):
        return [step]


def policy_of(network, reward, **flags):
    method = make_method("mdlm", 3)
    settings = configure(rl.Config, **flags)
    sampler = make_sampler(settings.sampler, method)
    return rl.Policy(method, network, settings, reward, sampler)


@pytest.mark.parametrize("flags", [
    {}, dict(advantage="mean"), dict(updates=2), dict(subset=1, estimator="agrpo")], ids=str)
def test_a_step_follows_the_policy_gradient(flags):
    """Of many drawn answers, against autograd through the law of the sampler."""
    logits, values = sums.random_world(1)
    exact = sums.exact_gradient(logits, values, 2)  # (64, L, N)
    network = Tabular(logits.detach(), torch.zeros(12_000, 3, dtype=torch.long))
    reward = lambda x: values[(x * torch.tensor([9, 3, 1])).sum(-1)]
    policy = policy_of(network, reward, sampler="ancestral", steps=2, group=4, **flags)
    policy.on_step(0, network)
    loss = train.loss_per_token(policy.loss(network, network.questions))  # ()
    cosine, norm = sums.compare(-torch.autograd.grad(loss, network.logits)[0], exact)
    assert cosine > 0.98, cosine
    assert abs(3 * norm / (0.75 if flags.get("advantage") == "mean" else 1) - 1) < 0.1


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_first_update_of_every_estimator_does_not_depend_on_ratios(name):
    """They are all 1 then, whether the old probabilities are kept or taken anew."""
    found = []
    for updates in (1, 2):
        logits, values = sums.random_world(1)
        network = Tabular(logits.detach(), torch.zeros(16, 3, dtype=torch.long))
        reward = lambda x: values[(x * torch.tensor([9, 3, 1])).sum(-1)]
        policy = policy_of(network, reward, group=4, updates=updates, estimator=name)
        policy.on_step(0, network)
        loss = policy.loss(network, network.questions).sum()  # ()
        found.append(torch.autograd.grad(loss, network.logits)[0])  # (64, L, N)
    assert torch.equal(*found) and found[0].any() and found[0].isfinite().all()


def test_a_price_on_kl_leads_back_to_the_start():
    """Without any other reward: the gradient is that of -lambda KL of trajectories."""
    ours, theirs = (sums.random_world(seed)[0] for seed in (1, 2))
    q, p = (sums.law(logits, 2) for logits in (ours, theirs))  # (B,)
    exact, = torch.autograd.grad(-(q @ (q / p.detach()).log()), ours)  # (64, L, N)
    network = Tabular(ours.detach(), torch.zeros(12_000, 3, dtype=torch.long))
    nothing = lambda x: torch.zeros(len(x), dtype=torch.float64)
    policy = policy_of(network, nothing, sampler="ancestral", steps=2, group=4, kl=0.5)
    policy.start = Tabular(theirs.detach(), None)
    policy.on_step(0, network)
    loss = train.loss_per_token(policy.loss(network, network.questions))  # ()
    cosine, norm = sums.compare(-torch.autograd.grad(loss, network.logits)[0], exact)
    assert cosine > 0.97 and abs(3 * norm / 0.5 - 1) < 0.15, (cosine, norm)


def test_answers_are_to_the_same_question():
    logits, _ = sums.random_world(1)
    questions = torch.arange(24).view(8, 3) // 3 % 3  # (B, L) 0 0 0, 1 1 1, ..
    network = Tabular(logits.detach(), questions)
    network.draw_batch = lambda micro: (questions, torch.arange(3).expand(8, 3) < 1, None)
    seen = []
    reward = lambda x: seen.append(x) or torch.arange(8).double()
    policy = policy_of(network, reward, group=4)
    policy.on_step(0, network)
    assert seen[0][:, 0].tolist() == [*4 * [questions[0, 0]], *4 * [questions[1, 0]]]
    advantage, free, _ = policy.rollouts[0]
    assert (free == 2).all() and policy.seen == [(3.5, 0.0)]
    assert abs(advantage[:4].sum()) < 1e-6
    policy.on_step(1, network)  # new answers after each of its --updates
    assert len(seen) == 2


# ---- runs

@pytest.mark.parametrize("flags", [
    {"sampler": "confidence", "advantage": "std", "estimator": "spg"},
    {"kl": 0.1, "temperature": 0.7, "gradient_accumulation_steps": 2, "reward": "topic:farm",
     "subset": 1}], ids=str)
def test_settings_run_and_change_the_weights(flags, starts):
    before, after = read_state(starts("mdlm")), run(starts("mdlm"), max_iters=1, **flags)
    assert any(not torch.equal(before["ema"][key], after["model"][key]) for key in before["ema"])
    assert all(value.isfinite().all() for value in after["model"].values())


@pytest.mark.parametrize("method", ["mdlm", "ar"])
def test_the_result_is_an_ordinary_checkpoint(method, starts, capsys):
    run(starts(method))
    sample.main(configure(sample.Config, out_dir="rl", num_samples=1, steps=2))
    evaluate.main(configure(evaluate.Config, out_dir="rl", draws=1, max_texts=4, num_samples=2,
                            steps=2))
    assert load_model("rl").config.method == method
    assert "bound on held-out" in capsys.readouterr().out or method == "ar"
    assert set(metrics("rl", "reward")) == set(metrics("rl", "kl")) == {0, 2}
    assert metrics("rl", "kl")[0] == 0 < metrics("rl", "kl")[2]


def test_it_begins_as_its_start():
    start = read_state(random_checkpoint("drops", method="mdlm", dropout=0.5))
    state = run("drops", learning_rate=0.0, muon_lr=0.0, max_iters=1)
    assert state["config"]["dropout"] == 0  # ratios compare networks, not draws of one
    for part in ("model", "ema", "start"):
        torch.testing.assert_close(state[part], start["ema"], rtol=0, atol=0)


def test_puzzles_are_rated_by_their_checker(starts, capsys):
    start = random_checkpoint("puzzles", method="mdlm", data="sudoku4-in-place", block_size=16)
    run(start, reward="", max_iters=1)
    assert 0 <= metrics("rl", "reward")[1] <= 1 and "groups alike" in capsys.readouterr().out


@pytest.mark.parametrize("stop", [1, 2])
def test_a_resumed_run_is_the_same_to_the_bit(stop, starts, monkeypatch):
    """Interrupted between two updates from the same answers, and after them."""
    flags = dict(max_iters=4, updates=2, kl=0.1)
    whole = run(starts("mdlm"), "whole", **flags)
    with monkeypatch.context() as patch:
        interrupt(patch, stop - 1, signal.SIGINT)
        assert run(starts("mdlm"), "parts", **flags)["step"] == stop
    resumed = run("", "parts", given=[], init_from="resume")
    assert_same(whole, resumed)
    assert whole["before"] == resumed["before"]


# ---- rewards

def test_rewards_of_the_toy_language():
    data = load_data("toy", 8)
    x, _, topic = data.examples("val", 64, torch.Generator().manual_seed(0))  # (n, L), (n,)
    farm = make_reward(f"topic:{data.classes[1]}", data, None)(x)  # (n,)
    assert farm[topic == 1].mean() > 0.6 > 0.2 > farm[topic != 1].mean()
    model = SimpleNamespace(encoding=data.encoding)
    word = data.text(x[0].tolist()).split()[0]
    found = make_reward(f"match:{word}", data, model)(x)  # (n,)
    assert found.tolist() == [float(word in data.text(row.tolist())) for row in x]


@pytest.mark.parametrize("name, order", [("ngram", 3), ("ngram:1", 1)])
def test_the_reward_of_ngrams_is_their_log_probability(name, order):
    """Word order counts in it, but for single words."""
    data = load_data("toy", 8)
    x = data.windows("val", 16)  # (n, L)
    mixed = x.flip(1)  # (n, L)
    reward = make_reward(name, data, None)
    found, V = reward(x), data.encoding.n_vocab  # (n,)
    nats = text_nats(data.ids("train"), x.numpy(), V, [order])[order]  # (n,)
    torch.testing.assert_close(found, -torch.from_numpy(nats), rtol=1e-12, atol=0)
    assert ((found - reward(mixed)).mean() > 1) == (order > 1)
    with pytest.raises(UserError, match="ngram counts words, and sudoku4 has none"):
        make_reward(name, load_data("sudoku4", 0), None)


def test_the_least_kl_is_that_of_a_tilted_law():
    """Among laws of 27 texts with the same probability of an event."""
    p = sums.text_law(sums.random_world(1)[0], 1).detach()  # (27,)
    event = torch.arange(27) % 3 == 0  # (27,)
    tilted = p * torch.where(event, 2.5, 1.0)
    tilted = tilted / tilted.sum()  # (27,)
    kl = lambda q: (q @ (q / p).log()).item()
    least = event_kl(tilted[event].sum().item(), p[event].sum().item())
    assert abs(least - kl(tilted)) < 1e-12
    torch.manual_seed(0)
    other = p * torch.rand(27).double()  # (27,)
    other[event] *= tilted[event].sum() / (1 - tilted[event].sum()) * (
        other[~event].sum() / other[event].sum())
    assert kl(other / other.sum()) > least
    assert event_kl(0.0, 0.0) == 0 and event_kl(0.5, 0.0) == float("inf")


@pytest.mark.parametrize("words, message", [
    ([], "name the model to start from"),
    (["--init_from", "resume"], "name the run to continue"),
    (["--start", "nowhere"], "there is no checkpoint"),
    (["--start", "MDLM"], "toy has no checker: give --reward topic:farm or match:PATTERN"),
    (["--start", "MDLM", "--reward", "good"], "is not one of class, solved"),
    (["--start", "MDLM", "--reward", "class"], "--reward class is for a search"),
    (["--start", "MDLM", "--reward", "topic:moon"], "is no topic of toy: its topics are farm"),
    (["--start", "MDLM", "--reward", "ngram:12"], "ngram:12 is not ngram:1 .. ngram:6"),
    (["--start", "MDLM", "--batch_size", "12"], "must be a multiple of --group 8"),
    (["--start", "MDLM", "--reward", "match:a", "--sampler", "remdm-conf"],
     "has no policy gradient here: its steps depend on more than the words"),
    (["--start", "UDLM", "--reward", "match:a"], "--sampler spread chooses among masks"),
    (["--start", "UDLM", "--reward", "match:a", "--sampler", "ancestral"],
     "udlm does not open masks"),
    (["--start", "AR", "--reward", "match:a", "--estimator", "d1"], "knows its likelihood"),
    (["--init_from", "resume", "--out_dir", "MDLM"], "is no run of rl.py"),
    (["--estimator", "ppo"], "is not one of ddpo"),
    (["--group", "1"], "at least 2"),
    (["--start", "MDLM", "--out_dir", "MDLM"], "which the run would replace"),
], ids=str)
def test_bad_settings_get_one_line(words, message, starts, capsys):
    words = [str(starts(word.lower())) if word.isupper() else word for word in words]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reinforce, "BOUND_TEXTS", 8)
        assert message in complaint(rl, *words, capsys=capsys)


def test_a_resume_with_other_settings_and_other_scripts_get_one_line(starts, capsys, monkeypatch):
    run(starts("mdlm"), max_iters=1)
    resume = ["--init_from", "resume", "--out_dir", "rl"]
    assert "which has 2" in complaint(rl, *resume, "--group", 4, capsys=capsys)
    assert "is a run of rl.py: continue with rl.py" in complaint(train, *resume, capsys=capsys)
    monkeypatch.setattr(distributed, "WORLD", 2)
    assert "runs in one process" in complaint(rl, "--start", starts("mdlm"), capsys=capsys)


def test_what_cannot_start(starts, capsys):
    state = read_state(starts("mdlm"))
    for key, value, message in (("data", "", "fine-tune it with train.py"),
                                ("labels", True, "conditioned on classes")):
        start = random_checkpoint(f"no-{key}", method="mdlm", **{key: value} if value else {})
        if not value:
            torch.save({**state, "config": {**state["config"], key: value}}, start / "ckpt.pt")
        assert message in complaint(rl, "--start", start, "--reward", "match:a", capsys=capsys)
