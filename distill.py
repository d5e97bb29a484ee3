"""
Distil a trained model into one that needs fewer steps: SDTT for masks, Discrete Consistency Distillation for words.

    python distill.py --teacher out/toy-mdlm --method sdtt
    python distill.py --teacher out/toy-duo --method dcd
    python sample.py --out_dir out/toy-duo-dcd --steps 8 --tail greedy      the student is an ordinary checkpoint

In each round a student learns to do in one step what its teacher does in more; then it becomes the teacher, and the
step doubles. There is no text in the targets: D compares two guesses at the clean text, in nats.

    sdtt   (arXiv:2410.21035) mask x to time t. The teacher takes k steps of (3), each of length dt, from there; y_l is
           what it believed about mask l when it opened it, or in the end.
           loss = mean over masks of D(student(z_t), y)
    dcd    (arXiv:2506.10892, section 4.2) two points of one path of noise, t and s = t - dt:
           loss = mean over tokens of D(student(z_t), teacher(z_s))                                              (13)

The path is the Gaussian's, w = a x + s eps with eps fixed while the noise grows. Its argmax takes two values only: the
clean word, and from some moment on the wrong word with the largest eps. That moment needs no Gaussians: draw u and a
wrong word j once for each token; then z_t = x if u < alpha_t + (1 - alpha_t) / V, else j, at every t.         (14)
"""
from dataclasses import dataclass

from flags import flag, one_line_errors, parse


@dataclass
class Config:
    teacher: str = flag("", "folder of the checkpoint to distil, or the file")
    method: str = flag("sdtt", "sdtt for mdlm and pgm, dcd for udlm and duo", choices=["sdtt", "dcd"])
    out_dir: str = flag("", "where the student goes; empty means TEACHER-METHOD")
    init_from: str = flag("scratch", "start", choices=["scratch", "resume"])
    rounds: int = flag(4, "rounds; the step doubles after each", least=1, most=30)
    iters_per_round: int = flag(400, "training steps of a round", least=1)
    first_steps: int = flag(64, "the teacher's steps from noise to text in the first round, 1 / dt", least=1)
    substeps: int = flag(2, "sdtt: teacher's steps that the student does in one", least=1)
    divergence: str = flag("kl-bwd", "between student and teacher", choices=["kl-bwd", "kl-fwd", "mse", "tvd"])
    refresh: str = flag("raw", "the next teacher: the student's weights, or their average", ["raw", "ema"])
    batch_size: int = flag(64, "texts per micro-batch", least=1)
    gradient_accumulation_steps: int = flag(1, "micro-batches per step, over all processes", least=1)
    learning_rate: float = flag(0.0005, "of adamw", least=0)
    muon_lr: float = flag(0.0005, "of muon, where the teacher was trained with it", least=0)
    warmup_iters: int = flag(50, "steps of linear warm-up; constant from there", least=0)
    ema: float = flag(0.99, "decay of the averaged weights, which are the result", least=0, most=1)
    num_samples: int = flag(256, "samples per line of the report", least=2)
    device: str = flag("auto", "auto, cpu, cuda, cuda:1")
    dtype: str = flag("auto", "of matrix products; auto times which is faster", ["auto", "float32", "bfloat16"])
    compile: str = flag("", "torch.compile the network; reduce-overhead: CUDA graphs, for small batches", [
        "", "default", "reduce-overhead", "max-autotune"], alone="default")
    log_interval: int = flag(10, "steps between looks at the loss", least=1)
    seed: int = flag(1337, "of all draws", least=0, most=10**9)


CONFIG, GIVEN = parse(Config) if __name__ == "__main__" else (None, ())     # before torch, which takes seconds to load

import copy  # noqa: E402
import sys
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

import checkpoint
import train
from bounds import unit
from data import BadInput, tokenizer
from diffusion import corrupt, step, stratified
from duo import GaussianUniform
from learner import Learner
from quality import quality
from report import about
from sample import generate
from uniform import text_logits, unfrozen

TEACHERS = {"sdtt": ["mdlm", "pgm"], "dcd": ["udlm", "duo"]}
WIDE = dict(first=0.9987, last=0.0062)                       # dcd: alpha at both ends of the path


# ---- the idea

def divergence(name, student, teacher):
    """D of two laws, given as log-probabilities (N, V). kl-bwd seeks the teacher's modes. -> (N,), nats but for mse"""
    # exercise 20: two ways to differ, eq. (13), 4 lines
    if name == "kl-bwd":
        return (student.exp() * (student - teacher)).sum(-1)                                        # (N,)
    if name == "kl-fwd":
        return (teacher.exp() * (teacher - student)).sum(-1)                                        # (N,)
    # end
    if name == "mse":                                        # of logarithms; no column for the mask, which is no guess
        return (student - teacher).square().mean(-1)                                                # (N,)
    return (student.exp() - teacher.exp()).abs().sum(-1) / 2                                        # (N,)


def log_law(logits, n_tokens):
    logits = logits[..., :n_tokens]
    return (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)            # (..., n_tokens)


@torch.no_grad()
def sdtt_targets(process, teacher, z, t, dt, k):
    """What the teacher believes about each mask of z when it opens it, walking k steps of dt from time t.

    z (B, L), t (B, 1) -> log-probabilities (N, n_tokens), a row for each mask of z in reading order
    """
    at, nothing, targets = z == process.mask, torch.zeros_like(z, dtype=torch.bool), None           # (B, L)
    for j in range(k):
        masked, t_j, s_j = z == process.mask, (t - j * dt).clamp(min=0), (t - (j + 1) * dt).clamp(min=0)
        belief = log_law(teacher(z, t_j.float(), at=masked), process.n_tokens)                      # (M, n_tokens)
        targets = belief.clone() if targets is None else targets                                    # (N, n_tokens)
        targets[masked[at]] = belief                         # the others were open before: what they have, stays
        if j + 1 < k:
            known = lambda z, t, at: belief[at[masked]]      # the network is not asked twice
            z = step(process, known, z, nothing, s_j.double(), t_j.double().clamp(min=1e-9), log_as_law)
    return targets


def log_as_law(log_p):
    return log_p.double().exp()                                                                     # (N, n_tokens)


def coupled(process, x, s, t):
    """Two points of one path, eq. (14), s <= t (B, 1). -> z_s (B, L), z_t (B, L)"""
    # exercise 19: two points of one path, eq. (14), 4 lines
    u = torch.rand(x.shape, dtype=torch.float64, device=x.device)                                   # (B, L)
    wrong = (x + torch.randint_like(x, 1, process.V)) % process.V                                   # (B, L) never x
    right = lambda t: u < process.alpha(t.double()) + process.b(t.double(), x)                      # (B, L)
    return torch.where(right(s), x, wrong), torch.where(right(t), x, wrong)
    # end


class SDTT:
    def __init__(self, method, teacher, config):
        self.process, self.teacher, self.config, self.dt = method.process, teacher, config, 1.0

    def loss(self, denoiser, x, frozen=None):
        """The mean over masks; (B, L) with that mean over all free positions, as train.py takes it."""
        t = stratified(len(x), x.device)                                                            # (B, 1)
        z = corrupt(self.process, x, t, frozen)                                                     # (B, L)
        at = z == self.process.mask                                                                 # (B, L)
        target = sdtt_targets(self.process, self.teacher, z, t, self.dt, self.config.substeps)      # (N, n_tokens)
        guess = log_law(denoiser(z, t, at=at), self.process.n_tokens)                               # (N, n_tokens)
        d = divergence(self.config.divergence, guess, target)                                       # (N,)
        free = x.numel() if frozen is None else (~frozen).sum()
        return torch.zeros(x.shape, device=x.device).masked_scatter(at, d * free / max(1, len(d)))  # (B, L)


class DCD:
    def __init__(self, method, teacher, config):
        self.process, self.teacher = GaussianUniform(method.n_tokens, **WIDE), teacher
        self.config, self.dt = config, 1.0

    def loss(self, denoiser, x, frozen=None):
        """(13) -> (B, L)"""
        t = (stratified(len(x), x.device) + self.dt).clamp(max=1)                                   # (B, 1)
        s, n = (t - self.dt).clamp(min=0), self.process.n_tokens                                    # (B, 1)
        z_s, z_t = coupled(self.process, x, s, t)                                                   # (B, L) each
        z_s, z_t = (z if frozen is None else torch.where(frozen, x, z) for z in (z_s, z_t))         # (B, L) each
        guess = text_logits(denoiser, z_t, 1 - self.process.alpha(t), n)                            # (B, L, V)
        with torch.no_grad():
            target = text_logits(self.teacher, z_s, 1 - self.process.alpha(s), n)                   # (B, L, V)
        return unfrozen(divergence(self.config.divergence, guess, target), frozen)                  # (B, L)


# ---- the run: train.py's loop, with a teacher that changes

class Student(Learner):
    """train.py's learner, whose text comes with a teacher's guess at it in place of a bound."""

    def __init__(self, config, corpus, device, settings, teacher):
        if teacher["encoding"] != tokenizer.to_json(corpus.encoding):
            raise BadInput(f"{config.data} gives other tokens now than when {settings.teacher} was trained: restore "
                           f"the text (or the Python) of then")
        if config.labels:
            raise BadInput(f"{settings.teacher} is told classes, and students are not: take another teacher")
        super().__init__(config, corpus, device)
        self.settings, weights = settings, teacher["ema"]
        self.start_from(weights)
        self.teacher = copy.deepcopy(self.model).eval().requires_grad_(False)    # eval: a teacher has no dropout
        self.objective = {"sdtt": SDTT, "dcd": DCD}[settings.method](self.method, self.teacher, settings)

    def step(self, step):
        r, since = divmod(step, self.settings.iters_per_round)
        self.objective.dt = min(1.0, 2 ** r / self.settings.first_steps)         # of the step alone: resumes exactly
        if since == 0 and r > 0:
            source = self.average if self.settings.refresh == "ema" else self.model
            self.teacher.load_state_dict(source.state_dict())
        return super().step(step)

    def state(self, step):
        return {**super().state(step), "teacher": self.teacher.state_dict(), "distilled": asdict(self.settings)}

    def load(self, state):
        super().load(state)
        self.teacher.load_state_dict(state["teacher"])


def rated(learner, denoiser, steps):
    """-> [(what, mean, standard error)] of samples in so many steps: exact -log p on the toy language, and entropy"""
    torch.manual_seed(learner.config.seed)
    x = generate(learner.method, denoiser, learner.settings.num_samples, learner.config.block_size, steps,
                 device=learner.device)                                                             # (n, L)
    return quality(x, learner.corpus, None, learner.config.batch_size)


def report(learner, step, folder):
    """After each round: the bound, which distilling loosens, and samples in few steps."""
    settings, denoiser = learner.settings, learner.gathered
    if step == 0:
        folder.log(step=0, **about(learner))
    bound, error = learner.bound("val", 512)
    rows = {n: rated(learner, denoiser, n) for n in (4, 8, 16)}
    tqdm.write(f"round {step // settings.iters_per_round} of {settings.rounds}, step {step}: held-out bound "
               f"{unit(bound, error, learner.corpus.bytes_per_token)}")
    for n, values in rows.items():
        tqdm.write(f"    {n:>3} steps  " + ",  ".join(f"{mean:.3f} +- {se:.3f} {what}" for what, mean, se in values))
    folder.log(step=step, val_bound=bound, val_se=error, samples={str(n): values for n, values in rows.items()})


def final(learner):
    print(f"\npython sample.py --out_dir {learner.config.out_dir} --steps 8    "
          f"python evaluate.py --out_dir {learner.config.out_dir} --steps 8")


def prepare(settings, given):
    """-> the student, its folder, and the step to go on from; BadInput if the teacher does not fit."""
    state, resumes = None, settings.init_from == "resume"
    if not settings.teacher and not (resumes and settings.out_dir):
        raise BadInput("name the run to go on with: --out_dir out/toy-duo-dcd" if resumes else
                       "name the model to distil: --teacher out/toy-duo")
    folder = f"{str(Path(settings.teacher)).removesuffix('/ckpt.pt')}-{settings.method}"
    settings = replace(settings, out_dir=settings.out_dir or folder)
    if resumes:
        state = checkpoint.load(settings.out_dir)
        if "distilled" not in state:
            raise BadInput(f"{settings.out_dir} is no run of distill.py: go on with train.py --init_from resume "
                           f"--out_dir {settings.out_dir}")
        settings = resumed(settings, given, state)
    teacher = state or checkpoint.load(settings.teacher)
    if not teacher["config"]["data"]:
        raise BadInput(f"{settings.teacher} is a published model, which has no text of its own: first fine-tune it "
                       f"with train.py --init_from {settings.teacher} --data TEXT, and distil that run")
    method = checkpoint.assemble(teacher, settings.teacher).config.method
    if method not in TEACHERS[settings.method]:
        raise BadInput(f"--method {settings.method} distils {' and '.join(TEACHERS[settings.method])}: "
                       f"{settings.teacher} is {method}")
    own = {f.name for f in fields(train.Config)} & {f.name for f in fields(Config)} - {"method", "init_from"}
    known = {f.name: teacher["config"].get(f.name, f.default) for f in fields(train.Config)}
    config = train.Config(**{**known, **{name: getattr(settings, name) for name in own},
                             "max_iters": settings.rounds * settings.iters_per_round, "lr_schedule": "constant",
                             "eval_interval": settings.iters_per_round, "shard": False, "attention": "auto"})
    return train.equip(config, state, partial(Student, settings=settings, teacher=teacher), teacher)


def resumed(settings, given, state):
    """The settings of the run to resume. What the student learns must not change on the way."""
    old = {**state["distilled"], "dtype": state["config"]["dtype"]}      # the one that --dtype auto chose then
    free = {"out_dir", "init_from", "device", "compile", "log_interval", "num_samples"}
    for name in given:
        if name not in free and getattr(settings, name) != old[name]:
            raise BadInput(f"--{name} {getattr(settings, name)} does not fit the run in {settings.out_dir}, which has "
                           f"{old[name]}: leave the flag out, or start anew with another --out_dir")
    return Config(**{**old, **{name: getattr(settings, name) for name in [*given, "out_dir"]}})


def main(settings, given=()):
    checkpoint.keep_memory()
    train.run(*prepare(settings, given), report, final)


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)
    with one_line_errors():
        main(CONFIG, GIVEN)
