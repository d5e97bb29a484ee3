"""
How a run ends before its last step: after Ctrl-C or SIGTERM, when it is saved first, or at a
non-finite loss.
"""
import signal

import torch

from flags import UserError
from runtime import distributed


class GracefulStop:
    """On Ctrl-C or SIGTERM: finish the step, save, stop.

    A second signal stops the run at once, and so does the first if there is nothing new to save.
    saved: the step of the last checkpoint; unsaved: whether there are steps after it
    """

    def __init__(self, saved):
        self.saved, self.unsaved, self.asked = saved, False, False

    def __enter__(self):
        self.before = {number: signal.signal(number, self.ask)
                       for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def ask(self, number, frame):
        """The handler. Under torchrun, which repeats signals, no signal stops the run at once."""
        if distributed.WORLD == 1 and (self.asked or not self.unsaved):
            raise KeyboardInterrupt
        self.asked = True

    def everywhere(self):
        """Whether any process was asked to stop, so that all stop after the same step.

        They exchange this on the CPU. A signal that arrives during the sum is known to this process
        only: it sets `asked`, and the next sum tells the others.
        """
        asked = distributed.sum_over_processes(torch.tensor(int(self.asked)))  # ()
        self.asked = self.asked or bool(asked)
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
