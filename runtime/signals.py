"""
How a run ends before its last step: after a signal, or when nobody reads its output, it is saved
first; at a non-finite loss it ends at once.
"""
import errno
import signal

import torch

from flags import UserError
from runtime import distributed
from script import is_ignored, on_loss

STOPS = [signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP")
         if name in signal.Signals.__members__]  # Windows has no SIGHUP


class GracefulStop:
    """On Ctrl-C, SIGTERM or SIGHUP, or when the output is lost: finish the step, save, stop.

    A second Ctrl-C stops the run at once, and so does the first signal if there is nothing new to
    save. Other signals often come twice: a terminal that closes sends two SIGHUPs. Signals that are
    ignored when the run starts stay so: nohup ignores SIGHUP, shells Ctrl-C in the background.

    saved: the step of the last checkpoint; unsaved: whether there are steps after it
    asked: the exit code of a run that is stopped, or 0
    loss: the OutputLost that the user should know about: a full disk, not a reader who left
    """

    def __init__(self, saved):
        self.saved, self.unsaved, self.asked, self.loss = saved, False, 0, None

    def __enter__(self):
        self.before = {number: signal.signal(number, self.ask) for number in STOPS
                       if not is_ignored(number)}
        on_loss.append(self.lose)
        return self

    def __exit__(self, *error):
        on_loss.remove(self.lose)
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def ask(self, number, frame):
        """The handler. Under torchrun, which repeats signals, no signal stops the run at once."""
        again = self.asked and number == signal.SIGINT
        if distributed.WORLD == 1 and (again or not self.unsaved):
            raise KeyboardInterrupt(128 + number)
        self.asked = self.asked or 128 + number

    def lose(self, loss):
        """Stop after the next step, even at the start of a run: what it has prepared is saved.

        A run that goes on without its terminal was told to: SIGHUP did not stop it.
        """
        if loss.error.errno != errno.EIO:
            self.asked = self.asked or loss.code
            self.loss = self.loss or (loss if loss.code == 2 else None)

    def everywhere(self):
        """Whether any process was asked to stop, so that all stop after the same step.

        They exchange this on the CPU. A signal that arrives meanwhile is known to this process
        only: it sets `asked`, and the next exchange tells the others.
        """
        asked = int(distributed.max_over_processes(torch.tensor(self.asked)))
        self.asked = self.asked or asked
        return bool(asked)


def mean_finite_loss(losses, step, saved, config):
    """The mean loss of the last k steps; UserError if one is not finite.

    losses: for each step, loss and gradient norm (2,)
    """
    losses = distributed.sum_over_processes(torch.stack(losses))  # (k, 2)
    bad = ~losses.isfinite().all(-1)  # (k,)
    if bad.any():
        first = step - len(losses) + 1 + int(bad.nonzero()[0])
        rest = f"the checkpoint of step {saved} is whole" if saved else "nothing was saved yet"
        raise UserError(f"the loss or its gradient is not finite at step {first} (seed "
                        f"{config.seed}): {rest}; try a lower --learning_rate and --muon_lr, a "
                        "longer --warmup_iters, or --dtype float32")
    return losses[:, 0].mean().item() / distributed.WORLD
