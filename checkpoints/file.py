"""
One folder holds a run.

    out_dir/ckpt.pt         weights, their running average, the optimizers, the flags, the tokenizer
    out_dir/metrics.jsonl   one JSON object per logged loss and per evaluation, at full precision

A checkpoint holds tensors, dicts, lists, strings and numbers only, so that
torch.load(weights_only=True) reads it: opening somebody else's checkpoint never runs their code. It
is written to a temporary file, synced to disk and renamed, so one whole checkpoint is there
whenever the power fails. No random state is stored: train.py seeds every step from (seed, step), so
a resumed run repeats the rest exactly.
"""
import contextlib
import json
import os
import pickle
import zipfile
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from data.base import atomic_write
from flags import OLD_FLAGS, UserError
from script import spell

FORMAT = "palimpsest 1"
PARTS = {"model", "ema", "optimizers", "step", "config", "encoding"}

# Flags that older checkpoints lack, with the values that they were trained with. `first` is not a
# flag: it is the id that begins every text of some published networks.
NEW_FLAGS = {"qk_norm": False, "norm_bias": False, "time_input": "auto", "sft": False,
             "labels": False, "muon_dtype": "bfloat16", "first": None}


class Folder:
    """out_dir, locked by this process until it ends; UserError if another run has locked it.

    ours     the checkpoint in it belongs to this run, which resumes it. A new run leaves the folder
             unchanged until its first save, and then renames what it finds to ckpt.previous.pt and
             metrics.previous.jsonl
    board    called with the values of each line of metrics, if set
    """

    def __init__(self, out_dir, ours=False):
        self.path, self.unwritten, self.ours, self.board = Path(out_dir), [], ours, None
        self.created = [path for path in (self.path, *self.path.parents) if not path.exists()]
        self.checkpoint, self.metrics = self.path / "ckpt.pt", self.path / "metrics.jsonl"
        self.resume = spell({"init_from": "resume", "out_dir": out_dir})  # for messages
        self.lock = FileLock(self.path / ".lock")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock.acquire(timeout=0)
        except Timeout:
            raise UserError(f"another run is writing to {out_dir}: wait for it, or choose another "
                            f"--out_dir") from None
        except OSError as error:
            raise UserError(f"cannot write to {out_dir} ({error.strerror}): choose another "
                            f"--out_dir") from None

    def leave(self):
        """Unlock the folder, and remove it if this run created it and it is empty."""
        self.lock.release()
        with contextlib.suppress(OSError):  # rmdir refuses one with files in it
            for path in self.created:
                (path / ".lock").unlink(missing_ok=True)
                path.rmdir()

    def save(self, state):
        """Replace ckpt.pt by `state`. If that fails, the old file stays, and UserError says why."""
        try:
            with atomic_write(self.checkpoint) as file:
                torch.save({"format": FORMAT, **state}, file)
                file.flush()
                os.fsync(file.fileno())
                if not self.ours:
                    self.set_aside()
        except (OSError, RuntimeError) as error:  # torch's zip writer raises the second
            if isinstance(error, RuntimeError) and "inline_container" not in str(error):
                raise
            reason = getattr(error, "strerror", None) or "the disk took only part of it"
            resume = f": go on with {self.resume}" if self.ours else ""
            raise UserError(f"cannot save to {self.checkpoint} ({reason}): free some space; what "
                            f"was saved before is whole{resume}") from None
        self.ours = True
        self.log()

    def set_aside(self):
        """Keep the result of an earlier run in the same folder under other names."""
        for path in filter(Path.exists, (self.checkpoint, self.metrics)):
            previous = path.with_suffix(".previous" + path.suffix)
            os.replace(path, previous)
            tqdm.write(f"{path} was there from an earlier run: kept as {previous.name}")

    def log(self, **values):
        """Append a line to metrics.jsonl, or keep it until the first save makes the folder ours."""
        self.unwritten += [values] if values else []
        if not self.ours or not self.unwritten:
            return
        size = self.metrics.stat().st_size if self.metrics.exists() else 0
        try:
            with open(self.metrics, "a", encoding="utf-8") as file:
                file.write("".join(as_json(values) + "\n" for values in self.unwritten))
        except OSError as error:
            with contextlib.suppress(OSError):
                os.truncate(self.metrics, size)  # remove a line that was cut short
            raise UserError(f"cannot write to {self.metrics} ({error.strerror}): free some space; "
                            f"{self.checkpoint} is whole: go on with {self.resume}") from None
        for values in self.unwritten if self.board else []:
            self.board(**values)
        self.unwritten = []

    def rewind(self, step):
        """Remove the lines of metrics.jsonl that a run writes again when it resumes at `step`: the
        later ones, and the evaluation at `step` itself."""
        def stays(line):
            try:
                values = json.loads(line)
                return values["step"] < step or values["step"] == step and "loss" in values
            except (ValueError, KeyError, TypeError):  # cut short when the run was killed
                return False

        text = self.metrics.read_text("utf-8", "replace") if self.metrics.exists() else ""
        with atomic_write(self.metrics) as file:
            file.write("".join(line + "\n" for line in text.splitlines() if stays(line)).encode())


def as_json(values):
    """Strict JSON, in ASCII without control characters: null in place of NaN, which Python writes
    for the error of a single text."""
    strict = json.loads(json.dumps(values), parse_constant=lambda name: None)
    return json.dumps(strict).replace("\x7f", "\\u007f")  # DEL


def read_checkpoint(path, device="cpu"):
    """The state in a file ckpt.pt, with its flags updated; UserError says what is wrong with it."""
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load would unpickle other files
            if not any(name.endswith("/data.pkl") for name in archive.namelist()):
                raise zipfile.BadZipFile
        state = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(f"{path} holds more than tensors and plain values: refused, it could run "
                        f"code") from None
    except (zipfile.BadZipFile, RuntimeError, EOFError, OSError, ValueError, KeyError,
            AttributeError):
        raise UserError(f"{path} cannot be read: cut short, or not written by torch.save; use "
                        f"another copy") from None
    if (not isinstance(state, dict) or state.get("format") != FORMAT or PARTS - state.keys()
            or not isinstance(state["config"], dict)):
        raise UserError(f"{path} is not a checkpoint of this code ({FORMAT}): train one with "
                        f"train.py")
    return {**state, "config": update_flags(state["config"])}


def update_flags(config):
    """The flags of a checkpoint, a dict: under their present names, those that it lacks added."""
    return NEW_FLAGS | {OLD_FLAGS.get(name, name): value for name, value in config.items()}
