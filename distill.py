"""
Chapter 10. Distillation: a student that needs fewer steps. SDTT for masks, DCD for words.

    python distill.py --teacher out/toy-mdlm --method sdtt
    python distill.py --teacher out/toy-duo --method dcd
    python distill.py --teacher out/toy-mdlm --method streak --judge out/toy-ar --rounds 1
    python sample.py --out_dir out/toy-duo-dcd --steps 8 --corrector greedy    a usual checkpoint

In each round the student learns to do in one step what its teacher does in more; then it becomes
the teacher, and the step doubles. D compares two predictions of the clean text, in nats.

    sdtt   (arXiv:2410.21035) mask x to time t. The teacher takes k steps of (0.3) from there, each
           of length dt; y_l is what it predicted for mask l when it opened it, or at the end.
           loss = mean over masks of D(student(z_t), y)
    dcd    (arXiv:2506.10892, section 4.2) two points of one path of noise, t and s = t - dt:
           loss = mean over tokens of D(student(z_t), teacher(z_s))                           (10.1)

    streak (arXiv:2511.00606) no fewer steps: a draft for --sampler speculative, runtime/streak.py

All are means over the tokens of a batch, so a long answer counts for more than a short one.

The path is the Gaussian's, w = a x + s eps with a fixed eps. Its argmax is the clean word, and from
some moment on the wrong word with the largest eps. Drawn without Gaussians: u and a wrong word j,
once for each token; then z_t = x if u < alpha_t + (1 - alpha_t) / V, else j, at every t.
(10.2)
"""
from script import run_script  # isort: skip  (first: Ctrl-C while torch loads leaves quietly)

from dataclasses import dataclass
from functools import partial

import torch

import train
from diffusion import corrupt, reverse_step, stratified
from flags import flag
from methods.base import to_float32
from methods.uniform_gaussian import GaussianUniform
from runtime.run import Run
from runtime.streak import Streak
from runtime.teacher import (Student, StudentFlags, batch_mean, make_student, plan_rounds,
                             print_commands, print_round, student_flags)


@dataclass
class Config(StudentFlags):
    teacher: str = flag("", "folder of the checkpoint to distill, or the file")
    method: str = flag("sdtt", "fewer steps for masks (sdtt) or random words (dcd), or a draft "
                       "for an autoregressive model (streak)", ["sdtt", "dcd", "streak"])
    first_steps: int = flag(64, "the teacher's steps from noise to text in round 1", least=1)
    substeps: int = flag(2, "sdtt: teacher's steps that the student does in one", least=1)
    divergence: str = flag("kl-bwd", "of student and teacher", ["kl-bwd", "kl-fwd", "mse", "tvd"])
    judge: str = flag("", "streak: the autoregressive model that will check drafts")
    gamma: int = flag(8, "streak: tokens that a draft has", least=1, needs=["judge"])


def divergence(name, student, teacher):
    """D of two log-probabilities (N, V). kl-bwd seeks modes. -> (N,), nats but for mse"""
    # exercise 20: two ways to differ, (10.1), 4 lines
    if name == "kl-bwd":
        return (student.exp() * (student - teacher)).sum(-1)  # (N,)
    if name == "kl-fwd":
        return (teacher.exp() * (teacher - student)).sum(-1)  # (N,)
    # end
    if name == "mse":  # of logarithms
        return (student - teacher).square().mean(-1)  # (N,)
    return (student.exp() - teacher.exp()).abs().sum(-1) / 2  # (N,)


def log_probs(logits, n_tokens):
    return to_float32(logits[..., :n_tokens]).log_softmax(-1)  # (..., n_tokens)


def exp_float64(log_p):
    return log_p.double().exp()  # (N, n_tokens)


@torch.no_grad()
def sdtt_targets(process, teacher, z, t, dt, k):
    """What the teacher predicts for each mask of z when it opens it, in k steps of dt from time t.

    z (B, L), t (B, 1) -> log-probabilities (N, n_tokens), a row for each mask of z in reading order
    """
    at, frozen, targets = z == process.mask, torch.zeros_like(z, dtype=torch.bool), None  # (B, L)
    for j in range(k):
        masked = z == process.mask  # (B, L)
        t_j, s_j = (t - j * dt).clamp(min=0), (t - (j + 1) * dt).clamp(min=0)  # (B, 1) each
        guess = log_probs(teacher(z, t_j.float(), at=masked), process.n_tokens)  # (M, n_tokens)
        targets = guess.clone() if targets is None else targets  # (N, n_tokens)
        targets[masked[at]] = guess  # the others have opened before
        if j + 1 < k:
            known = lambda z, t, at: guess[at[masked]]  # the network is not called twice
            s, t_now = s_j.double(), t_j.double().clamp(min=1e-9)  # (B, 1) each
            z = reverse_step(process, known, z, frozen, s, t_now, exp_float64)  # (B, L)
    return targets


def coupled(process, x, s, t):
    """Two points of one path, eq. (10.2), s <= t (B, 1). -> z_s (B, L), z_t (B, L)"""
    # exercise 19: two points of one path, (10.2), 4 lines
    u = torch.rand(x.shape, dtype=torch.float64, device=x.device)  # (B, L)
    wrong = (x + torch.randint_like(x, 1, process.V)) % process.V  # (B, L) never x
    right = lambda t: u < process.alpha(t.double()) + process.b(t.double(), x)  # (B, L)
    return torch.where(right(s), x, wrong), torch.where(right(t), x, wrong)
    # end


class SDTT(Student):
    def loss(self, denoiser, x, frozen=None):
        """Its loss_per_token is the mean over masks. -> (B, L)"""
        t = stratified(len(x), x.device)  # (B, 1)
        z = corrupt(self.process, x, t, frozen)  # (B, L)
        at, k = z == self.process.mask, self.settings.substeps  # (B, L)
        target = sdtt_targets(self.process, self.teacher, z, t, self.dt, k)  # (N, n_tokens)
        guess = log_probs(denoiser(z, t, at=at), self.process.n_tokens)  # (N, n_tokens)
        return batch_mean(divergence(self.settings.divergence, guess, target), at, frozen)  # (B, L)


class DCD(Student):
    def __init__(self, method, teacher, settings):
        super().__init__(method, teacher, settings)
        self.process = GaussianUniform(method.n_tokens, first=0.9987, last=0.0062)

    def loss(self, denoiser, x, frozen=None):
        """Its loss_per_token is (10.1). -> (B, L)"""
        t = (stratified(len(x), x.device) + self.dt).clamp(max=1)  # (B, 1)
        s, n = (t - self.dt).clamp(min=0), self.process.n_tokens  # (B, 1)
        z_s, z_t = coupled(self.process, x, s, t)  # (B, L) each
        if frozen is not None:
            z_s, z_t = torch.where(frozen, x, z_s), torch.where(frozen, x, z_t)  # (B, L) each
        guess = log_probs(denoiser(z_t, 1 - self.process.alpha(t)), n)  # (B, L, V)
        with torch.no_grad():
            target = log_probs(self.teacher(z_s, 1 - self.process.alpha(s)), n)  # (B, L, V)
        d = divergence(self.settings.divergence, guess, target)  # (B, L)
        return d if frozen is None else batch_mean(d[~frozen], ~frozen, frozen)  # (B, L)


def main(settings, given=()):
    settings, config, state, teacher = student_flags(settings, given, train.Config)
    objective = {"sdtt": SDTT, "dcd": DCD, "streak": Streak}[settings.method]
    objective = partial(make_student, objective, settings, teacher)
    with Run(config, given, objective, state, teacher) as run:
        run.report, run.summary = print_round, print_commands
        plan_rounds(run, settings, train.train_step)
        train.train(run)
    return run.exit_code


if __name__ == "__main__":
    run_script(Config, main)
