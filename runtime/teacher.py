"""
A student: a run whose loss is a divergence from a teacher, which changes after every round.

The student starts as a copy of a trained model. In each round it learns to do in one step what its
teacher does in more; then it becomes the teacher, and the step doubles. The losses are in
distill.py.
"""
from dataclasses import asdict, dataclass, replace

import torch
from tqdm import tqdm

from checkpoints.load import assemble, check_text, model_for, read_state, refuse_own_folder
from evaluation.errors import with_error
from evaluation.likelihood import bytes_per_scored, format_nats
from evaluation.sample_quality import rate_samples
from flags import UserError, flag, flags_of, restored
from runtime.progress import run_facts
from runtime.start import (
    LaterRunFlags,
    folder_beside,
    frozen_network,
    later_flags,
    plan_steps,
    timed,
)
from samplers.generate import generate
from script import spell

MODES = ["", "default", "reduce-overhead", "max-autotune"]  # of torch.compile
BOUND_TEXTS, REPORT_STEPS = 512, (4, 8, 16)


@dataclass
class StudentFlags(LaterRunFlags):
    """Student (runtime/teacher.py)."""
    out_dir: str = flag("", "where the student goes; empty means TEACHER-METHOD")
    rounds: int = flag(4, "rounds; the step doubles after each", least=1, most=30)
    minutes: float = flag(5.0, "time of the whole run without --iters_per_round", least=0,
                          idle=["iters_per_round"])
    recipe_iters: int = flag(400, "training steps of a round of the full recipe", least=1)
    iters_per_round: int = flag(0, "steps of a round; 0: as many as fit in --minutes", least=0)
    refresh: str = flag("raw", "the next teacher: raw weights, or averages", ["raw", "ema"])
    batch_size: int = flag(64, "texts per micro-batch", least=1)
    warmup_iters: int = flag(50, "steps of linear warm-up; constant from there", least=0)
    ema: float = flag(0.99, "decay of the averaged weights, which are the result", least=0, most=1)
    num_samples: int = flag(256, "samples per line of the report", least=2)
    compile: str = flag("", "torch.compile the network", MODES, alone="default")


class Student:
    """The objective of a run: what the losses of distill.py have in common.

    teacher: a network; settings: the flags of distill.py; dt: the step that the student learns
    """

    def __init__(self, method, teacher, settings):
        self.process, self.teacher, self.settings, self.dt = method.process, teacher, settings, 1.0

    def on_start(self, read_model):
        """Before a new run, as in methods/base.py."""
        if self.settings.judge:
            raise UserError(f"--judge counts for nothing with --method {self.settings.method}: "
                            "leave it out")

    def loss(self, denoiser, x, frozen=None):
        raise NotImplementedError

    def on_step(self, step, trainer):
        """Set dt for this round; at the start of a later round, the student becomes the teacher."""
        r, since = divmod(step, iters_of(self.settings))
        self.dt = min(1.0, 2**r / self.settings.first_steps)
        if since == 0 and r > 0:
            source = trainer.average if self.settings.refresh == "ema" else trainer.model
            self.teacher.load_state_dict(source.state_dict())

    def extra_state(self):
        return {"teacher": self.teacher.state_dict(), "distilled": asdict(self.settings)}

    def load_extra_state(self, state):
        self.teacher.load_state_dict(state["teacher"])


def batch_mean(d, at, frozen=None):
    """d (N,) of the tokens `at` (B, L), scaled so that train.loss_per_token of the result is their
    mean. -> (B, L)

    loss_per_token divides each text by its own number of tokens that are not given.
    """
    free = torch.ones_like(at) if frozen is None else ~frozen  # (B, L)
    scale = len(at) * free.sum(-1, keepdim=True) / max(1, len(d))  # (B, 1)
    return scale * d.new_zeros(at.shape).masked_scatter(at, d)  # (B, L)


def make_student(cls, settings, state, method, config, data, device):
    """The objective of class `cls`; its first teacher is the model of a checkpoint's state."""
    check_text(data, config.data, state, settings.teacher)
    if config.labels:
        raise UserError(f"{settings.teacher} is conditioned on classes, and students are not: "
                        "take another teacher")
    student = cls(method, frozen_network(config, method, state, device), settings)
    if settings.init_from == "scratch":
        student.on_start(lambda option, where: model_for(option, where, data.encoding, config.data,
                                                         settings.out_dir))
    return student


# ---- flags

def student_flags(settings, given, script):
    """The flags of distill.py that apply, those of the run, and the states of two checkpoints.

    script: the Config of train.py. -> settings, config, state of the run to resume or None, state
    of the teacher. UserError if flags do not fit.
    """
    state, resumes = None, settings.init_from == "resume"
    if resumes and not (settings.teacher or settings.out_dir):
        raise UserError("name the run to continue: --out_dir out/toy-duo-dcd")
    if not settings.teacher and not resumes:
        raise UserError("name the model to distill: --teacher out/toy-duo")
    out_dir = settings.out_dir or folder_beside(settings.teacher, settings.method)
    settings = replace(settings, out_dir=out_dir)
    if not resumes:
        refuse_own_folder("--teacher", settings.teacher, settings.out_dir)
    if resumes:
        state = read_state(settings.out_dir)
        if "distilled" not in state:
            resume = spell({"init_from": "resume", "out_dir": settings.out_dir})
            raise UserError(f"{settings.out_dir} is no run of distill.py: continue with train.py "
                            f"{resume}")
        settings = later_flags(settings, given, state, "distilled", free=["compile"])
    teacher = state or read_state(settings.teacher)
    check_teacher(settings, teacher)
    return settings, run_flags(settings, script, teacher, resumes), state, teacher


def check_teacher(settings, state):
    """UserError if a model cannot be distilled, or not by this --method."""
    if not state["config"]["data"]:
        start = spell({"init_from": settings.teacher})
        raise UserError(f"{settings.teacher} is a published model, which has no text of its own: "
                        f"first fine-tune it with train.py {start} --data TEXT, and distill that "
                        "run")
    fitting = assemble(state, settings.teacher).method.distilled_by
    if settings.method not in fitting:
        by = f"--method {' or '.join(fitting)}" if fitting else "no --method of distill.py"
        raise UserError(f"{settings.teacher} is {state['config']['method']}, which {by} can "
                        f"distill")


def run_flags(settings, script, teacher, resumes):
    """The flags of a student's run: those of distill.py, and otherwise the teacher's."""
    apart = {"method", "init_from", "recipe_iters"}
    own = flags_of(settings).keys() & flags_of(script).keys() - apart
    iters, rounds = settings.iters_per_round, settings.rounds
    return restored(script, teacher["config"], **{name: getattr(settings, name) for name in own},
                    init_from="resume" if resumes else "scratch", max_iters=rounds * iters,
                    recipe_iters=rounds * settings.recipe_iters, lr_schedule="constant",
                    eval_interval=iters_of(settings), shard=False, attention="auto")


def iters_of(settings):
    """The number of steps of a round."""
    return settings.iters_per_round or settings.recipe_iters


def plan_rounds(run, settings, step_of):
    """Set --iters_per_round, if it is not given: rounds of equal length that fit in --minutes."""
    if settings.iters_per_round:
        return
    plan_steps(run, step_of, round_seconds)
    settings.iters_per_round = max(1, run.config.max_iters // settings.rounds)
    n = settings.iters_per_round
    run.change(max_iters=settings.rounds * n, eval_interval=n)


# ---- reports

def sample_rows(trainer, steps):
    """Figures of samples in `steps` steps: exact -log p on the toy language, and entropy.

    -> [(what, mean, standard error)]
    """
    settings = trainer.objective.settings
    torch.manual_seed(trainer.config.seed)
    x = generate(trainer.method, trainer.gathered, settings.num_samples,
                 trainer.config.block_size, steps, device=trainer.device)  # (n, L)
    return rate_samples(x, trainer.data, None, trainer.config.batch_size)


def print_round(trainer, step, folder):
    """Print and log after each round: the bound, which loosens, and samples in few steps."""
    settings = trainer.objective.settings
    if step == 0:
        folder.log(step=0, **run_facts(trainer))
    bound, error = trainer.bound("val", BOUND_TEXTS)
    rows = {n: sample_rows(trainer, n) for n in REPORT_STEPS}
    tqdm.write(f"round {step // iters_of(settings)} of {settings.rounds}, step {step}: held-out "
               f"bound {format_nats(bound, error, bytes_per_scored(trainer.data))}")
    for n, values in rows.items():
        figures = ",  ".join(f"{with_error(mean, se)} {what}" for what, mean, se in values)
        tqdm.write(f"    {n:>3} steps  {figures}")
    samples = {str(n): values for n, values in rows.items()}
    folder.log(step=step, val_bound=bound, val_se=error, samples=samples)


def round_seconds(trainer):
    """Seconds of print_round, and of the summary, which takes none."""
    batch_size = trainer.config.batch_size
    batch = timed(lambda: trainer.bound("val", batch_size))
    four = timed(lambda: sample_rows(trainer, 4))  # seconds of samples in four steps
    return BOUND_TEXTS / batch_size * batch + sum(REPORT_STEPS) / 4 * four, 0.0


def print_commands(trainer):
    """Print the commands that sample from the student and evaluate it."""
    model = spell({"out_dir": trainer.config.out_dir, "steps": 8})
    print(f"\npython sample.py {model}\npython evaluate.py {model}")
