"""
A run: where it starts, how it resumes, how it is stopped and saved. The loop itself is in train.py.

    with Run(config, given) as run:      # device, processes, folder, data, network; or resumed
        for step in run.steps(): ...     # until --max_iters, or until Ctrl-C and the like

A run is saved at every evaluation, at its end, and when it is stopped; --init_from resume continues
it bit for bit. If it fails in between, an error of one line says what is safe.
"""
import signal
import os
import time
from dataclasses import replace

import torch
from tqdm import tqdm

from checkpoints.build import build_method
from checkpoints.file import Folder
from checkpoints.load import (
    check_text,
    initial_weights,
    is_path,
    model_for,
    refuse_own_folder,
    require_text,
    tokens_of,
)
from data import load_data
from flags import UserError, load_row
from methods import EVERY_METHOD
from model import kernels
from runtime import distributed, progress
from runtime.device import device_of, dtype_of, keep_memory
from runtime.signals import GracefulStop, mean_finite_loss
from runtime.start import adopt, check_flags, resume_flags, run_folder
from runtime.trainer import Trainer
from script import comes_from_compiler, spell, tell


SLOW_STEP = 2.0  # seconds


class Run:
    """One run of train.py, or of a script with another objective.

    objective    (method, config, data, device) -> what gives the loss; None: the method itself
    state        of the run to resume; None: the flags say where the run starts
    teacher      the state of a model whose tokens are used, and from whose weights it starts
    """

    def __init__(self, config, given=(), objective=None, state=None, teacher=None):
        keep_memory()
        self.began = time.time()
        if distributed.RANK == 0:  # before anything slow, such as reading the text
            what = f"{config.method} on {config.data}"
            what = "resuming" if config.init_from == "resume" else what
            print(f"palimpsest: {what}", flush=True)
        if state is None:
            config, state = self.chosen(config, given)
        check_flags(config)
        self.config, self.objective, self.teacher = config, objective, teacher
        self.resumed, self.first = bool(state), state["step"] if state else 0
        device = device_of(distributed.device_name(config.device))
        torch.set_float32_matmul_precision(config.matmul_precision)
        if kernels:
            kernels.set_attention(config.attention, device)
        elif config.attention not in ("auto", "sdpa"):
            raise UserError(f"--attention {config.attention} needs the file kernels.py, which is "
                            "not here")
        self.folder = Folder(config.out_dir, self.resumed) if distributed.RANK == 0 else None
        try:
            if self.folder:
                self.folder.print_earlier()
            self.trainer = self.make_trainer(state, device)
            if self.folder and config.tensorboard:
                path = self.folder.path / "tensorboard"
                self.folder.board = progress.tensorboard_writer(path, self.first)
        except BaseException:
            if self.folder:
                self.folder.leave()
            raise
        self.report, self.summary = progress.print_evaluation, progress.print_summary

    # ---- start

    def chosen(self, config, given):
        """The flags that apply, and the state of the run to resume, or None."""
        config = adopt(config, given)
        config = replace(config, out_dir=run_folder(**vars(config)))
        if config.init_from == "resume":
            return resume_flags(config, given)
        if config.init_from != "scratch":
            refuse_own_folder(f"--init_from {config.init_from}", config.init_from, config.out_dir)
        if os.path.isabs(config.out_dir) and is_path(config.data):  # so that it is found from there
            config = replace(config, data=os.path.abspath(config.data))
        method = load_row(EVERY_METHOD, config.method)
        if config.labels and config.time_input == "auto" and not method.uses_time:
            # labels bring in the layers for the time, which this method does not need
            config = replace(config, time_input="none")
        return config, None

    def make_trainer(self, state, device):
        """The trainer with its text, the same in all processes."""
        config = self.config
        if state or self.teacher:
            require_text(config.data, config.out_dir, ", or name it with --data" * bool(state))
        data = load_data(config.data, config.block_size, tokens_of(config, state or self.teacher),
                         config.vocab_size, sft=config.sft)
        if self.resumed:
            check_text(data, config.data, state, config.out_dir,
                       ", name it with --data, or start anew with another --out_dir")
        method = build_method(config, data.encoding, state)
        if not state:
            method.on_data(data)
            method.on_start(lambda option, where: model_for(
                option, where, data.encoding, config.data, config.out_dir))
        method.check(config)
        if method.counts_padding and data.pads:
            raise UserError(f"{config.data} fills its texts up, and the loss of {config.method} "
                            "would count that: take another --method")
        distributed.init_processes(device)
        dtypes = dtype_of(config.dtype, device), dtype_of(config.muon_dtype, device)
        dtype, muon_dtype = distributed.broadcast(dtypes)
        # not auto in the checkpoint: a resumed run computes in the same precision
        self.config = config = replace(config, dtype=dtype, muon_dtype=muon_dtype)
        objective = self.objective(method, config, data, device) if self.objective else None
        trainer = Trainer(config, data, method, device, objective)
        if self.resumed:
            trainer.load(state)
        elif self.teacher:
            trainer.start_from(self.teacher["ema"])  # a student begins as its teacher
        elif config.init_from != "scratch":
            trainer.start_from(initial_weights(config.init_from, config, data.encoding,
                                               len(trainer.classes), device))
        return trainer

    def change(self, **values):
        """Change flags of the run, which its next checkpoint saves, too."""
        self.config = self.trainer.config = replace(self.config, **values)

    # ---- around the loop

    def __enter__(self):
        self.stop = GracefulStop(self.first).__enter__()
        if self.folder:
            size = sum(p.numel() for p in self.trainer.model.parameters())
            processes = f"{distributed.WORLD} process{'es' * (distributed.WORLD > 1)}"
            print(f"{self.trainer.data.about}\n{size:,} parameters, {self.trainer.device}, "
                  f"{self.config.dtype}, {processes}, to {self.config.out_dir}")
            if self.first:
                self.folder.rewind(self.first)  # all checks have passed
        self.losses, self.stopping, self.shown, self.exit_code = [], False, 0.0, 0
        self.evaluating, self.warned = 0.0, ""  # seconds; what was said about slow steps
        return self

    def steps(self):
        """The numbers of the steps to take, with a progress bar if stderr is a terminal."""
        config, self.loop_began = self.config, time.time()
        hidden = None if self.folder else True  # None: unless stderr is a terminal
        with tqdm(range(self.first, config.max_iters), initial=self.first,
                  total=config.max_iters, disable=hidden) as self.bar:
            for step in self.bar:
                self.stop.unsaved = True
                yield step
                if self.stopping:
                    return

    def due(self, step):
        """Whether an evaluation and a checkpoint are due at this step."""
        last = step == self.first or step == self.config.max_iters
        return self.stopping or last or step % self.config.eval_interval == 0

    def evaluate(self, step):
        """Print and log the bound of the averaged network, and a sample."""
        self.stop.unsaved = step > self.stop.saved  # if all is saved, Ctrl-C may stop at once
        began = time.time()
        self.trainer.gather_average()
        if self.folder:
            self.report(self.trainer, step, self.folder)
        self.evaluating += time.time() - began
        self.stop.unsaved = True

    def log(self, step, values):
        """Keep the loss and gradient norm (2,) of a step, and print and log them at intervals.

        They stay on the device until then, since reading them waits for it.
        """
        config, done = self.config, step + 1
        self.losses.append(values)
        self.stopping = self.stop.everywhere()
        if not (self.due(done) or step == self.first or done % config.log_interval == 0):
            return
        loss, self.losses = mean_finite_loss(self.losses, done, self.stop.saved, config), []
        seconds = time.time() - self.loop_began
        self.bar.set_postfix_str(f"loss {loss:.3f}")
        if self.folder:
            rate = self.trainer.learning_rate(step) * config.learning_rate
            self.folder.log(step=done, loss=loss, lr=rate, seconds=round(seconds, 3))
        if self.folder and self.bar.disable and time.time() - self.shown > 10:  # in place of a bar
            left = time_left(seconds, done - self.first, config.max_iters - done)
            print(f"step {done:>5} of {config.max_iters}  loss {loss:.3f}  {seconds:.0f} s{left}",
                  flush=True)
            self.shown = time.time()
        if self.folder and not self.warned and self.trainer.device.type == "cpu":
            self.warned = slow_steps(seconds - self.evaluating, done - self.first)
            if self.warned:
                tqdm.write(self.warned)

    def save(self, done):
        """Save a checkpoint after `done` steps."""
        state = self.trainer.state(done)
        if self.folder:
            self.folder.save(state)
        self.stop.saved, self.stop.unsaved = done, False

    def summarize(self):
        """Print the last evaluation and the summary, unless the run was stopped or had been
        finished before."""
        if self.resumed and self.first >= self.config.max_iters:
            if self.folder:
                more = "" if self.objective else "; --max_iters N goes on"
                print(f"finished at step {self.first}{more}")
            return
        self.trainer.gather_average()
        if self.folder and not self.stop.asked:
            self.report(self.trainer, self.stop.saved, self.folder)
            self.summary(self.trainer)

    def __exit__(self, kind, error, trace):
        self.stop.__exit__()
        if kind is KeyboardInterrupt and not self.stop.unsaved:
            self.stop.asked, kind = *(error.args or [128 + signal.SIGINT]), None
        if kind is not None and issubclass(kind, OSError) and not comes_from_compiler(error):
            raise UserError(failure_message(error, self.stop.saved, self.config.out_dir)) from None
        if kind is not None:
            return False
        distributed.end_processes()
        self.exit_code, saved = self.stop.asked, self.stop.saved
        hint = resume_hint(self.config.out_dir, saved) if saved else "nothing was saved yet"
        if self.folder and self.stop.asked and not self.stop.loss:
            tell(f"stopped: {hint}" if saved else "stopped before the first step: nothing to save")
        if self.folder:
            self.folder.lock.release()
        if self.stop.loss:
            raise UserError(f"{self.stop.loss}; {hint}")
        return True


def time_left(seconds, done, left):
    """The end of a line of progress: how long `left` steps take if `done` took `seconds`."""
    rest = seconds / done * left
    minutes = f"{rest / 60:.0f} min" if rest > 90 else f"{rest:.0f} s"
    return f", about {minutes} left" if left and done > 1 else ""  # the first step warms up


def slow_steps(seconds, done):
    """What to do about slow steps on a CPU, in one line; "" if they are fast, or few so far."""
    if done < 3 or seconds / done < SLOW_STEP:
        return ""
    n = torch.get_num_threads()
    return (f"a step takes {seconds / done:.1f} s on {n} thread{'s' * (n > 1)}: if other programs "
            "run, OMP_NUM_THREADS=1 may be faster; so are a smaller --batch_size, --n_layer and "
            "--n_embd")


def failure_message(error, saved, out_dir):
    """One line: what failed during a run, and which step is saved."""
    where = f": {error.filename}" if error.filename else ""
    rest = resume_hint(out_dir, saved) if saved else "nothing was saved yet"
    return f"{error.strerror or error}{where}; {rest}"


def resume_hint(out_dir, step):
    resume = spell({"init_from": "resume", "out_dir": out_dir})
    return f"step {step} is saved in {out_dir}, go on with {resume}"
