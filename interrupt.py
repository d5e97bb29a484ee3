"""
How a run ends before its last step: Ctrl-C or SIGTERM, after which it saves and leaves; or a loss that is no number.
"""
import signal

import torch

import parallel
from data import BadInput


class Stop:
    """Ctrl-C or SIGTERM: finish the step, save, leave. At once if asked twice, or if there is nothing new to save."""

    def __init__(self, saved):
        self.saved, self.unsaved, self.asked = saved, False, False       # step of the checkpoint, any since?

    def __enter__(self):
        self.before = {number: signal.signal(number, self.ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def ask(self, number, frame):
        if parallel.WORLD == 1 and (self.asked or not self.unsaved):     # torchrun repeats its signals: twice is once
            raise KeyboardInterrupt
        self.asked = True

    def everywhere(self):
        """One process that was asked to stop stops them all, after the same step. They agree on the CPU."""
        asked = parallel.total(torch.tensor(int(self.asked)))                                           # ()
        self.asked = self.asked or bool(asked)               # subtle: it may have become True during the sum, and then
        return bool(asked)                                   # only this process knows: the next sum tells the others


def look(losses, step, saved, config):
    """The mean of the losses since the last look; one that is no number ends the run. losses: k of (2,) -> float"""
    losses = parallel.total(torch.stack(losses))                                                        # (k, 2)
    bad = ~losses.isfinite().all(-1)                                                                    # (k,)
    if bad.any():
        first = step - len(losses) + 1 + int(bad.nonzero()[0])
        rest = f"the checkpoint of step {saved} is whole" if saved else "nothing was saved yet"
        raise BadInput(f"the loss or its gradient is not finite at step {first} (seed {config.seed}): {rest}; try a "
                       f"lower --learning_rate and --muon_lr, a longer --warmup_iters, or --dtype float32")
    return losses[:, 0].mean().item() / parallel.WORLD
