"""Streak distillation, (18.15): the loss by sums in the world of 27 texts, and runs."""
import shutil
from types import SimpleNamespace

import pytest
import torch

import distill
import sample
from checkpoints.load import load_model, read_state
from flags import configure
from methods import make_method
from runs import assert_same, cache, complaint, elsewhere, fit  # noqa: F401
from runtime import teacher
from runtime.streak import Streak, kept_streaks
from world import L, LANGUAGE, N, P, TEXTS, oracle

MASKS, AR = make_method("mdlm", N), make_method("ar", N)
EXACT = oracle(MASKS.process)  # one step from all masks: the marginals


def rows(z, t, at, denoiser):
    """A denoiser at `at`, whatever the time. -> (n, N)"""
    return denoiser(z, torch.full((1, 1), 0.5))[at]


@pytest.fixture
def student():
    settings = SimpleNamespace(judge="ar", gamma=2, method="streak")
    made = Streak(MASKS, None, settings)
    judge = SimpleNamespace(method=AR, denoiser=torch.nn.Module())
    judge.denoiser.forward = lambda z, t, at: AR.oracle(LANGUAGE)(z, t)[at]
    made.on_start(lambda option, where: judge)
    return made


def test_the_loss_is_the_share_of_drafted_words_that_are_not_kept(student):
    """In the mean over texts and places, by a sum over both: words that follow a refused one are
    lost, too."""
    p = LANGUAGE.predict(TEXTS)  # (27, L, N) of the judge
    total, drafted = 0.0, 0
    for first in range(L):
        z = torch.where(torch.arange(L) >= first, MASKS.process.mask, TEXTS)  # (27, L)
        q, streak = EXACT(z, torch.full((1, 1), 0.5)).exp(), 1.0  # (27, L, N)
        for l in range(first, min(first + 2, L)):
            streak = streak * torch.minimum(p[:, l], q[:, l]).sum(-1)  # (27,)
            total, drafted = total + P @ (1 - streak), drafted + 1
    torch.manual_seed(0)
    x = TEXTS[torch.multinomial(P, 20_000, replacement=True)]  # (n, L)
    nats = student.loss(lambda z, t, at: rows(z, t, at, EXACT), x)  # (n, L)
    assert abs(nats.mean() - total / drafted) < 4 * nats.mean(-1).std() / len(x) ** 0.5
    assert total / drafted > 0.05


def test_the_first_word_counts_most_and_a_perfect_draft_costs_nothing():
    p = torch.tensor([[0.5, 0.5], [0.9, 0.1], [0.2, 0.8]]).double()  # (3, 2)
    q = torch.tensor([[0.2, 0.8], [0.5, 0.5], [0.2, 0.8]]).double().requires_grad_()  # (3, 2)
    at = torch.tensor([[False, True, True], [False, False, True]])  # texts of two words and of one
    kept = kept_streaks(p, q, at)  # (3,)
    torch.testing.assert_close(kept, torch.tensor([0.7, 0.7 * 0.6, 1.0]).double())
    kept.sum().backward()
    wanted = torch.tensor([[1 + 0.6, 0], [0.7, 0]]).double()  # (2, 2)
    torch.testing.assert_close(q.grad[:2], wanted)


def test_given_words_are_neither_drafted_nor_hidden(student):
    seen, x = [], TEXTS[:9]  # (9, L)
    given = (torch.arange(L) == 1).expand(9, -1)  # (9, L)

    def spy(z, t, at):
        seen.append((z, at))
        return rows(z, t, at, EXACT)
    assert (student.loss(spy, x, given)[given] == 0).all()
    (z, at), = seen
    assert (z[given] == x[given]).all() and not at[given].any() and at.any()
    nothing = student.loss(spy, x, torch.ones_like(given))  # (9, L)
    assert (nothing == 0).all() and nothing.requires_grad


# ---- runs

FLAGS = dict(method="streak", judge="ar", gamma=3, rounds=1, batch_size=4, num_samples=2,
             device="cpu", dtype="float32", warmup_iters=1)


@pytest.fixture(scope="module")
def tiny_runs(tmp_path_factory):
    """A folder with a tiny ar and a tiny mdlm."""
    root = tmp_path_factory.mktemp("streak")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("runtime.progress.print_summary", lambda trainer: None)
        for name in ("ar", "mdlm"):
            fit(root / name, method=name)
    return root


@pytest.fixture
def runs(tiny_runs, monkeypatch, tmp_path):
    """A copy of them here, and reports of hardly any text."""
    shutil.copytree(tiny_runs, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(teacher, "REPORT_STEPS", (2,))
    monkeypatch.setattr(teacher, "BOUND_TEXTS", 8)


def run(out_dir, given=(), **flags):
    config = configure(distill.Config, **{**FLAGS, "teacher": "mdlm", **flags, "out_dir": out_dir})
    distill.main(config, given)
    return read_state(out_dir)


def test_a_run_is_resumed_exactly_without_its_judge_and_drafts(runs, monkeypatch, capsys):
    whole = run("whole", iters_per_round=4)
    save = distill.Run.save

    def stop(self, done):
        save(self, done)
        self.stopping = True
    with monkeypatch.context() as patch:
        patch.setattr(distill.Run, "due", lambda self, step: step == 2)
        patch.setattr(distill.Run, "save", stop)
        run("half", iters_per_round=4)
    assert read_state("half")["step"] == 2
    judge = load_model("ar").denoiser.state_dict()
    assert all(torch.equal(a, judge[name]) for name, a in whole["judge"]["ema"].items())
    assert any((a != read_state("mdlm")["ema"][name]).any() for name, a in whole["ema"].items())
    shutil.move("ar", "elsewhere")
    distill.main(configure(distill.Config, out_dir="half", init_from="resume"),
                 ["out_dir", "init_from"])
    assert_same(read_state("half"), whole)
    sample.main(configure(sample.Config, out_dir="elsewhere", sampler="speculative", draft="whole",
                          num_samples=1, gamma=3))
    assert "tokens per call" in capsys.readouterr().err


@pytest.mark.parametrize("flags, says", [
    (dict(judge=""), "--method streak needs --judge FOLDER"),
    (dict(judge="mdlm"), "--judge mdlm is a run of mdlm: give one of ar"),
    (dict(method="sdtt"), "--judge counts for nothing with --method sdtt"),
    (dict(teacher="ar"), "ar is ar, which no --method of distill.py can distill")])
def test_what_does_not_fit_is_refused_in_one_line(flags, says, runs, capsys):
    flags = {**FLAGS, "teacher": "mdlm", "out_dir": "none", "iters_per_round": 1, **flags}
    flags = {name: value for name, value in flags.items() if value != "" and (
        name != "gamma" or flags["judge"])}
    argv = [word for name, value in flags.items() for word in (f"--{name}", value)]
    assert says in complaint(distill, *argv, capsys=capsys)
