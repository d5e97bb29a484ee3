"""Distillation: the coupling is the Gaussian's, targets are what the teacher believed, a run is exact and ordinary."""
import json
import os
import signal
from pathlib import Path

import numpy
import pytest
import torch
import world
from runs import assert_same, complaint, elsewhere, cache, metrics, trained  # noqa: F401  (fixtures)
from world import N

import checkpoint
import distill
import evaluate
import sample
import train
from diffusion import corrupt, stratified
from distill import DCD, SDTT, WIDE, coupled, divergence, sdtt_targets
from duo import GaussianUniform
from masked import Absorbing
from methods import make_method

FIGURES = numpy.load(Path(__file__).parent / "distill_reference.npz")


def figure(name):
    return torch.from_numpy(FIGURES[name])


def same(ours, name, tolerance=1e-5):
    torch.testing.assert_close(ours.double(), figure(name).double(), atol=tolerance, rtol=tolerance)


def settings(**flags):
    return distill.Config(**flags)


# ---- discrete consistency: the path

@pytest.mark.parametrize("times", [(0.1, 0.3), (0.4, 0.9), (0.5, 0.5)])
def test_the_shared_uniform_is_the_gaussian_path_in_law(times):
    """All 25 pairs (z_s, z_t) of five words: argmax(a x + s eps) with one eps, against (14), each drawn 400,000 times.

    The largest of 25 differences is within 4.5 standard errors; noise drawn anew for z_s would be hundreds away.
    """
    torch.manual_seed(0)
    process, n = GaussianUniform(5, **WIDE), 400_000
    s, t = (torch.full((1, 1), time, dtype=torch.float64) for time in times)
    x = torch.full((n, 1), 2)
    eps, one_hot = torch.randn(n, 5, dtype=torch.float64), torch.nn.functional.one_hot(x[:, 0], 5)       # (n, 5)
    path = [((-process.gamma(time)).sigmoid().sqrt() * one_hot + process.gamma(time).sigmoid().sqrt() * eps).argmax(-1)
            for time in (s, t)]
    pair = lambda z_s, z_t: torch.bincount(5 * z_s + z_t, minlength=25) / n                              # (25,)
    ours, gaussian = pair(*(z[:, 0] for z in coupled(process, x, s, t))), pair(*path)
    error = ((ours + gaussian) / n).sqrt().clamp(min=1 / n)                                              # (25,)
    assert ((ours - gaussian).abs() <= 4.5 * error).all()
    fresh = torch.outer(gaussian.view(5, 5).sum(1), gaussian.view(5, 5).sum(0)).flatten()                # (25,)
    assert ((fresh - gaussian).abs() > 20 * error).any()


def test_a_path_leaves_the_clean_word_once_and_for_good():
    torch.manual_seed(0)
    process, x = GaussianUniform(50, **WIDE), torch.randint(50, (200, 40))
    s, t = torch.full((200, 1), 0.3), torch.full((200, 1), 0.6)
    z_s, z_t = coupled(process, x, s, t)
    assert (z_s[z_t == x] == x[z_t == x]).all() and (z_t[z_s != x] == z_s[z_s != x]).all()
    assert ((z_s == x) & (z_t != x)).any()


def test_at_no_distance_student_and_teacher_see_the_same_and_the_loss_is_zero():
    torch.manual_seed(0)
    method, table = make_method("duo", 7), torch.randn(7, 7)
    network = lambda z, t: table[z] + 0.3 * t[..., None]
    objective = DCD(method, network, settings(method="dcd"))
    objective.dt, x = 0.0, torch.randint(7, (20, 8))
    assert objective.loss(network, x).abs().max() < 1e-6
    objective.dt = 0.25
    assert objective.loss(network, x).mean() > 1e-3


def test_the_losses_of_consistency_distillation_are_the_reference_figures():
    """Given log-probabilities; and the public code's whole loss from its inputs, its networks being tables."""
    student, teacher = figure("dcd/student_logp").double(), figure("dcd/teacher_logp").double()
    for name in ("kl-bwd", "kl-fwd"):
        same(divergence(name, student, teacher), f"dcd/REF_loss_{name.replace('-', '_')}")
        laws = []
        for side in ("student", "teacher"):
            P, sigma = figure(f"dcd/nll_{side}_table_P").double(), figure(f"dcd/nll_{side}_sigma")
            logits = figure(f"dcd/nll_{side}_table_W").double()[figure(f"dcd/nll_{side}_in")]            # (B, L, V)
            laws.append((logits + P * (1 + 0.1 * sigma[..., None])).log_softmax(-1))
        same(divergence(name, *laws), f"dcd/nll_{name}")


def test_the_argmax_of_the_gaussian_is_the_reference_path():
    eps, x = figure("dcd/eps").double(), torch.nn.functional.one_hot(figure("dcd/x0"), 20)
    for point in "ts":
        gamma = figure(f"dcd/gamma_{point}").double()[:, None, None]
        w = (-gamma).sigmoid().sqrt() * x + gamma.sigmoid().sqrt() * eps                                 # (B, L, V)
        assert torch.equal(w.argmax(-1), figure(f"dcd/z_{point}"))


# ---- through time: the targets

def test_divergences_vanish_only_between_equal_laws_and_total_variation_is_at_most_one():
    torch.manual_seed(0)
    a, b = (torch.randn(50, 9, dtype=torch.float64).log_softmax(-1) for _ in range(2))
    for name in ("kl-bwd", "kl-fwd", "mse", "tvd"):
        assert divergence(name, a, a).abs().max() < 1e-12 and (divergence(name, a, b) > 1e-3).all()
    torch.testing.assert_close(divergence("kl-bwd", a, b), divergence("kl-fwd", b, a))
    assert divergence("tvd", a, b).max() < 1


@pytest.mark.parametrize("name", ["k1_dt0.05", "k2_dt0.05", "k4_dt0.05", "k2_dt0.25"])
def test_the_targets_are_the_reference_figures(name, monkeypatch):
    """On the states that the public code walked through: its times are not its paper's, but targets have no time."""
    base, E = figure("sdtt_teacher/base"), figure("sdtt_teacher/E")
    teacher = lambda z, t, at: (base + E[z].mean(1, keepdim=True))[at]
    k, dt = int(name[1]), float(name.split("dt")[1])
    walk = iter(figure(f"sdtt_targets/{name}/x_before_each_step")[1:])
    monkeypatch.setattr(distill, "step", lambda *args: next(walk))
    z = figure("sdtt_targets/xt")
    targets = sdtt_targets(Absorbing(9), teacher, z, figure("sdtt_targets/t")[:, None], dt, k)
    due = figure(f"sdtt_targets/{name}/log_targets")[z == 9][:, :9]                                      # (N, 9)
    torch.testing.assert_close(targets, due, atol=1e-5, rtol=1e-5)


def test_the_losses_through_time_are_the_reference_figures():
    """In the mean over masks. `mse` and `tvd` of the public code count the mask's column, or logarithms: not ours."""
    masked = figure("sdtt_targets/xt") == 9
    target = figure("sdtt_targets/k2_dt0.05/log_targets")[masked][:, :9]                                 # (N, 9)
    student = figure("sdtt_loss/student_log_probs")[masked][:, :9]                                       # (N, 9)
    for name in ("kl-bwd", "kl-fwd", "tvd"):
        key = {"tvd": "tvd_true_unused_helper"}.get(name, name.replace("-", "_"))
        same(divergence(name, student, target).mean(), f"sdtt_loss/{key}", 2e-5)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_targets_of_an_exact_teacher_are_its_own_law_in_the_mean(k):
    """What a walk of exact steps will believe is on average what is believed now, within 4.5 standard errors.

    A mask that opens to the wrong law, or a target that is taken too late, would move it.
    """
    torch.manual_seed(0)
    process, n = Absorbing(N), 40_000
    teacher = world.oracle(process)
    z, t = torch.tensor([[N, 1, N]]).expand(n, -1), torch.full((n, 1), 0.8, dtype=torch.float64)
    targets = sdtt_targets(process, teacher, z, t, 0.3, k).exp().view(n, 2, N)                           # (n, 2, N)
    now = teacher(z[:1], t[:1], at=z[:1] == N).exp()                                                     # (2, N)
    error = targets.std(0) / n ** 0.5                                                                    # (2, N)
    assert ((targets.mean(0) - now).abs() <= 4.5 * error + 1e-9).all()
    assert (error.max() > 1e-6) == (k > 1)               # one step shows the teacher as it is; more, what it will know


def test_a_mask_that_opens_keeps_the_belief_of_then_and_others_that_of_the_end():
    """Steps of 0.4 from t = 0.8: the first opens half of the masks, whose targets are then fixed."""
    torch.manual_seed(0)
    beliefs = iter([0.0, 5.0])

    def teacher(z, t, at):
        logits = torch.zeros(int(at.sum()), 4)
        logits[:, 0] = next(beliefs)
        return logits
    z, t = torch.full((400, 10), 4), torch.full((400, 1), 0.8)
    late = (sdtt_targets(Absorbing(4), teacher, z, t, 0.4, 2)[:, 0] > -0.1).double().mean()
    assert abs(late - 0.5) < 4.5 * (0.25 / 4000) ** 0.5


def test_the_loss_is_a_mean_over_masks_and_only_over_them():
    method, x, sure = make_method("mdlm", 5), torch.randint(5, (30, 8)), torch.tensor([9.0, 0, 0, 0, 0, 0])
    objective = SDTT(method, lambda z, t, at: torch.zeros(int(at.sum()), 6), settings(substeps=1, divergence="kl-fwd"))
    torch.manual_seed(0)
    loss = objective.loss(lambda z, t, at: sure.expand(int(at.sum()), 6), x)
    one = divergence("kl-fwd", sure[None, :5].log_softmax(-1), torch.full((1, 5), 0.2).log())
    torch.testing.assert_close(loss.mean(), one[0])
    torch.manual_seed(0)
    assert torch.equal(loss == 0, corrupt(method.process, x, stratified(len(x))) != 5)


# ---- runs

def run(teacher, out_dir, given=None, **flags):
    """A tiny distillation in this process. -> its checkpoint"""
    flags = {**dict(rounds=2, iters_per_round=2, batch_size=4, first_steps=8, num_samples=4, device="cpu",
                    dtype="float32", warmup_iters=1), **flags}
    given = flags if given is None else given
    distill.main(distill.Config(**{**flags, "teacher": str(teacher), "out_dir": str(out_dir)}), list(given))
    return checkpoint.load(out_dir)


PAIRS = [("mdlm", "sdtt"), ("duo", "dcd"), ("udlm", "dcd")]


SETTINGS = [{}, {"divergence": "kl-fwd"}, {"refresh": "ema"}, {"first_steps": 1}, {"gradient_accumulation_steps": 2},
            {"divergence": "mse"}, {"divergence": "tvd"}, {"rounds": 1, "iters_per_round": 1}, {"substeps": 1},
            {"substeps": 4}]                                 # dcd has no substeps, and shares what is left with sdtt


@pytest.mark.parametrize("teacher, method, flags", [(*PAIRS[0], flags) for flags in SETTINGS] + [
    (*PAIRS[1], flags) for flags in SETTINGS[:5]], ids=str)
def test_every_setting_runs_and_changes_the_weights(teacher, method, flags, trained):  # noqa: F811
    before = checkpoint.load(trained / teacher)
    after = run(trained / teacher, "student", method=method, **flags)
    assert any(not torch.equal(before["ema"][key], after["model"][key]) for key in before["ema"])
    assert all(value.isfinite().all() for value in after["model"].values())


@pytest.mark.parametrize("teacher, method", PAIRS)
def test_the_student_is_an_ordinary_checkpoint(teacher, method, trained, capsys):  # noqa: F811
    run(trained / teacher, "student", method=method)
    sample.main(sample.Config(out_dir="student", num_samples=1, steps=2))
    evaluate.main(evaluate.Config(out_dir="student", draws=1, max_texts=4, num_samples=2, steps=2))
    assert checkpoint.restore("student").config.method == teacher
    assert "bound on held-out text" in capsys.readouterr().out
    assert set(metrics("student", "val_bound")) == {0, 2, 4}


@pytest.mark.parametrize("refresh", ["raw", "ema"])
def test_each_round_doubles_the_step_and_makes_the_student_the_teacher(refresh, trained, monkeypatch):  # noqa: F811
    seen = []
    loss = DCD.loss

    def spy(self, denoiser, x, frozen=None):
        assert not self.teacher.training and not any(p.requires_grad for p in self.teacher.parameters())
        seen.append((self.dt, self.teacher.embed.clone()))
        return loss(self, denoiser, x, frozen)
    monkeypatch.setattr(DCD, "loss", spy)
    first = run(trained / "duo", "one", method="dcd", rounds=1)["ema" if refresh == "ema" else "model"]["embed"]
    seen.clear()
    run(trained / "duo", "two", method="dcd", rounds=2, refresh=refresh)
    assert [dt for dt, _ in seen] == [1 / 8, 1 / 8, 1 / 4, 1 / 4]
    taught = checkpoint.load(trained / "duo")["ema"]["embed"]
    assert all(torch.equal(ours, due) for (_, ours), due in zip(seen, [taught, taught, first, first]))
    assert not torch.equal(taught, first)


@pytest.mark.parametrize("teacher, method", PAIRS[:2])
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_resumed_distillation_is_the_same_to_the_bit(teacher, method, stop, trained, monkeypatch):  # noqa: F811
    """Interrupted in the first round, at its end, and in the second: dt and the teacher are those of the round."""
    whole = run(trained / teacher, "whole", method=method)
    step = distill.Student.step

    def stopping(self, n):
        result = step(self, n)
        if n + 1 == stop:
            os.kill(os.getpid(), signal.SIGINT)
        return result
    monkeypatch.setattr(distill.Student, "step", stopping)
    assert run(trained / teacher, "parts", method=method)["step"] == stop
    monkeypatch.setattr(distill.Student, "step", step)
    resumed = run("", "parts", given=[], init_from="resume")
    assert_same(whole, resumed)
    torch.testing.assert_close(whole["teacher"], resumed["teacher"], rtol=0, atol=0)


def altered(teacher, **flags):
    """A copy of a checkpoint in teacher/, with other flags."""
    state = checkpoint.load(teacher)
    checkpoint.Folder("teacher").save({**state, "config": {**state["config"], **flags}})
    return "teacher"


def test_a_distillation_goes_on_in_its_usual_folder_and_in_the_dtype_of_then(trained, monkeypatch):  # noqa: F811
    """And the first line of its metrics says what it is, for plot.py."""
    chosen = iter(["float32", "bfloat16"])
    monkeypatch.setattr(checkpoint, "dtype_of", lambda name, device: next(chosen) if name == "auto" else name)
    teacher = altered(trained / "duo", attention="triton")   # which this CPU has not: the student takes what there is
    run(teacher, "teacher-dcd", method="dcd", rounds=1, dtype="auto")
    words = ["--init_from", "resume", "--teacher", teacher, "--method", "dcd"]
    student, folder, first = distill.prepare(*distill.parse(distill.Config, words))
    folder.lock.release()
    assert (first, student.config.dtype, student.config.attention) == (2, "float32", "auto")
    first = json.loads(Path("teacher-dcd/metrics.jsonl").read_text().splitlines()[0])
    assert (first["step"], first["method"], first["data"]) == (0, "duo", "toy") and first["bytes_per_token"] > 1


def test_a_student_reads_with_the_tokens_of_its_teacher(trained):  # noqa: F811
    """Wherever that one got them: a run that was resumed says so in its own --init_from."""
    assert run(altered(trained / "mdlm", tokenizer="model", init_from="resume"), "student", rounds=1)["step"] == 2


def test_a_teacher_without_text_and_a_step_that_cannot_be_shared(trained, capsys, monkeypatch):  # noqa: F811
    assert "fine-tune it with train.py" in complaint(distill, "--teacher", altered(trained / "mdlm", data=""),
                                                     capsys=capsys)
    monkeypatch.setattr("parallel.WORLD", 2)
    assert "--gradient_accumulation_steps 3 cannot be shared by 2 processes" in complaint(
        distill, "--teacher", trained / "mdlm", "--gradient_accumulation_steps", 3, "--out_dir", "student",
        capsys=capsys)


@pytest.mark.parametrize("words, message", [
    ([], "name the model to distil"),
    (["--init_from", "resume"], "name the run to go on with: --out_dir"),
    (["--teacher", "nowhere"], "there is no checkpoint"),
    (["--teacher", "MDLM", "--method", "dcd"], "--method dcd distils udlm and duo"),
    (["--teacher", "DUO", "--method", "sdtt"], "--method sdtt distils mdlm"),
    (["--teacher", "AR"], "--method sdtt distils mdlm"),
    (["--init_from", "resume", "--out_dir", "MDLM"], "is no run of distill.py"),
    (["--divergence", "kl"], "is not one of kl-bwd"),
    (["--rounds", "0"], "must lie between 1 and 30")], ids=str)
def test_bad_settings_get_one_line(words, message, trained, capsys):  # noqa: F811
    words = [str(trained / word.lower()) if word.isupper() else word for word in words]
    assert message in complaint(distill, *words, capsys=capsys)


def test_other_tokens_and_a_resume_with_other_settings_get_one_line(trained, capsys, monkeypatch):  # noqa: F811
    run(trained / "duo", "student", method="dcd")
    assert "which has 8" in complaint(distill, "--init_from", "resume", "--out_dir", "student", "--first_steps", "16",
                                      capsys=capsys)
    assert "is a run of distill.py" in complaint(train, "--init_from", "resume", "--out_dir", "student", capsys=capsys)
    state = checkpoint.load(trained / "duo")
    state["encoding"] = {**state["encoding"], "name": "other"} if isinstance(state["encoding"], dict) else "other"
    monkeypatch.setattr(checkpoint, "load", lambda *a: state)
    monkeypatch.setattr(checkpoint, "assemble", lambda *a: checkpoint.SimpleNamespace(
        config=checkpoint.SimpleNamespace(**state["config"])))
    words = ["--teacher", trained / "duo", "--method", "dcd"]
    assert "gives other tokens now" in complaint(distill, *words, capsys=capsys)
