"""
torch.compile for training and for sampling, by --compile.

A compiled network is compiled again for each new shape. In training, losses select a fixed number
of positions (methods/base.py), so one shape is enough. Samplers ask for the logits of any number of
positions: CompiledDenoiser pads it to a power of two.
"""
import torch
import torch.nn.functional as F

from flags import UserError
from model import Transformer


def compile_network(network, mode):
    """The network through torch.compile in the mode of --compile, or as it is."""
    if not mode:
        return network
    try:
        return torch.compile(network, mode=None if mode in (True, "default") else mode)
    except RuntimeError as error:  # not on this version of Python
        raise UserError(f"--compile does not work here ({error}): leave it out") from None


def compile_for_sampling(config, model):
    """The denoiser of a checkpoint, compiled if --compile says so; UserError if it cannot be."""
    if not config.compile:
        return model.denoiser
    if not isinstance(model.denoiser, torch.nn.Module):
        raise UserError("--compile needs a network, and an exact denoiser is none: leave it out")
    if type(model.denoiser) is not Transformer or model.method.left_to_right:
        raise UserError(f"--compile is for networks that read whole texts, and that of "
                        f"{model.config.method} does not: leave it out")
    return CompiledDenoiser(model.denoiser, config.compile)


class CompiledDenoiser:
    """A compiled network for samplers. It supports neither a cache nor a fused head.

    The number of selected positions is padded to the next power of two, so that few shapes occur,
    each compiled once, and less than half of the rows are wasted. Calls without `at`, or with a
    layout other than a label, go to the network as it is.
    """

    def __init__(self, network, mode):
        self.denoiser, self.compiled = network, compile_network(network, mode)
        self.has_graphs = mode == "reduce-overhead"

    def __call__(self, z, t, at=None, **layout):
        if at is None or layout.keys() - {"label"}:
            return self.denoiser(z, t, at=at, **layout)  # (B, L, V) or (N, V)
        numbers = at.flatten().nonzero()[:, 0]  # (N,)
        N = len(numbers)
        K = min(at.numel(), 1 << max(0, N - 1).bit_length())
        if self.has_graphs:
            torch.compiler.cudagraph_mark_step_begin()  # the logits of the last call may be freed
        return self.compiled(z, t, at=F.pad(numbers, (0, K - N)), **layout)[:N]  # (N, V)
