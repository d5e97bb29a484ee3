"""
One file holds a run: out_dir/ckpt.pt, with weights, their running average, the optimizers, the flags and the tokenizer.

It holds tensors, dicts, lists, strings and numbers only, so that torch.load(weights_only=True) reads it: opening somebody's
checkpoint never runs their code. It is written beside its place, synced to disk, then renamed: whenever the power fails, one whole
checkpoint is there. No random state is stored: train.py seeds every step from (seed, step), so a resumed run repeats the rest exactly.
"""
import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import torch
from filelock import FileLock, Timeout

from data import BadInput
from data.tokenizer import from_json
from methods import make_method
from model import Transformer

FORMAT = "palimpsest 1"


def save(out_dir, state):
    """Replace out_dir/ckpt.pt by `state`, or leave the old file as it is and raise."""
    path = Path(out_dir) / "ckpt.pt"
    temporary = path.with_suffix(".tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:             # torch reports a full disk as a RuntimeError of its zip writer
        temporary.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or "the disk took only part of it"
        raise BadInput(f"cannot save to {path} ({reason}): the last checkpoint there is whole; free some space, then "
                       f"continue with --init_from resume") from None


def load(out_dir, device="cpu"):
    """The state in out_dir/ckpt.pt (or in the file given); BadInput says what is wrong with it."""
    path = Path(out_dir)
    path = path / "ckpt.pt" if path.is_dir() or path.suffix != ".pt" else path
    if not path.exists():
        raise BadInput(f"there is no checkpoint {path}: train one first (python train.py --out_dir {path.parent})")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError:
        raise BadInput(f"{path} holds more than tensors and plain values, so opening it could run code: refused") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError):
        raise BadInput(f"{path} cannot be read: cut short, or not written by torch.save; use another copy") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise BadInput(f"{path} is not a checkpoint of this code ({FORMAT}): train one with train.py")
    return state


def device_of(name):
    """auto takes a GPU where there is one. -> torch.device"""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError):
        raise BadInput(f"there is no device {name!r} here: --device cpu always works") from None
    return torch.device(name)


def network(config, method, n_classes=0):
    """The transformer that these flags describe, with fresh weights. config has n_layer, n_head, n_embd, cond_dim, dropout."""
    return Transformer(method.vocab_size, config.n_layer, config.n_head, config.n_embd,
                       cond_dim=config.cond_dim if method.uses_time else 0, n_classes=n_classes,
                       dropout=config.dropout, mask_mod=method.mask_mod)


def method_of(config, n_tokens):
    return make_method(config.method, n_tokens, weighting=config.weighting, p_uniform=config.p_uniform)


def restore(out_dir, device="cpu"):
    """A trained model, ready to use: .config (flags), .encoding, .method, .denoiser (averaged weights, eval mode), .step"""
    state = load(out_dir, device)
    config, encoding = SimpleNamespace(**state["config"]), from_json(state["encoding"])
    method = method_of(config, encoding.n_vocab)
    denoiser = network(config, method).to(device).eval()
    try:
        denoiser.load_state_dict(state["ema"])
    except RuntimeError as error:
        raise BadInput(f"the weights in {out_dir} do not fit its own flags or tokenizer: {str(error).splitlines()[-1].strip()}") from None
    return SimpleNamespace(config=config, encoding=encoding, method=method, denoiser=denoiser, step=state["step"])


def claim(out_dir):
    """Hold out_dir for this run alone, until the process ends, however it ends; BadInput if another run has it."""
    Path(out_dir).mkdir(parents=True, exist_ok=True)
    lock = FileLock(Path(out_dir) / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise BadInput(f"another run is writing to {out_dir}: wait for it, or choose another --out_dir") from None
    return lock
