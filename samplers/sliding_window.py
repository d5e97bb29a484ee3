"""
Chapter 3. Texts longer than those of training, written through a window that slides over them.

MDLM's semi-autoregression (arXiv:2406.07524): one window is sampled after the other. Each begins
`stride` tokens further on, and takes what is already written in it as given.
"""
import torch

from flags import UserError


def window_starts(length, window, stride):
    """Where the windows of a text begin; the last one ends with the text."""
    last = max(0, length - window)
    return [*range(0, last, stride), last]


def count_windows(length, window, stride):
    """How many windows a text of `length` tokens has."""
    return len(window_starts(length, window, stride))


def stride_of(stride, window):
    """New tokens per window, from --stride; 0 means half a window."""
    if stride > window:
        raise UserError(f"--stride {stride} must be at most {window}, the length of a text in "
                        "training: a longer one would leave gaps")
    return stride or max(1, window // 2)


def slide_window(sample, z, frozen, window, stride):
    """Write z (B, L) window after window; yields z after each step.

    sample(z, frozen) yields the states of one window. Given tokens to the right of a window are
    kept, but the network does not see them.
    """
    L, done = z.shape[1], 0
    for lo in window_starts(L, window, stride):
        hi = min(lo + window, L)
        written = torch.arange(lo, hi, device=z.device) < done  # (window,)
        for part in sample(z[:, lo:hi], frozen[:, lo:hi] | written):
            z = torch.cat([z[:, :lo], part, z[:, hi:]], 1)  # (B, L)
            yield z
        done = hi
