"""
One folder holds a run.

    out_dir/ckpt.pt         weights, their running average, the optimizers, the flags, the tokenizer
    out_dir/metrics.jsonl   one JSON object per logged loss and per evaluation, at full precision
    out_dir/evaluation.json what evaluate.py measured, by step and flags (evaluation/report.py)

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

from data.files import (
    atomic_write,
    check_writable,
    earlier_files,
    remove_parts,
    write_file,
)
from data.reading import parse_json
from flags import OLD_FLAGS, UserError
from script import CONTROL, spell

FORMAT = "palimpsest 1"
PARTS = {"model", "ema", "optimizers", "step", "config", "encoding"}

# Flags that older checkpoints lack, with the values that they were trained with. `first` is not a
# flag: it is the id that begins every text of some published networks.
NEW_FLAGS = {"qk_norm": False, "norm_bias": False, "time_input": "auto", "sft": False,
             "labels": False, "muon_dtype": "bfloat16", "sides": "joined", "learned_places": False,
             "recurrent": 0, "first": None}


PARTS_OF_A_RUN = "ckpt.pt", "metrics.jsonl", "evaluation.json", "tensorboard"


class Folder:
    """out_dir, locked by this process until it ends; UserError if another run has locked it, or if
    it cannot be written.

    ours     the checkpoint in it belongs to this run, which resumes it. A new run leaves the folder
             unchanged until its first save, and then renames what it finds to ckpt.previous.pt,
             metrics.previous.jsonl and so on; if these are there, to ckpt.previous-2.pt ...
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
        try:
            for path in (self.checkpoint, self.metrics):
                check_writable(path)
                if path.exists() and not path.is_file():
                    raise UserError(f"{path} is no ordinary file: choose another --out_dir")
                remove_parts(path)
        except UserError:
            self.leave()
            raise

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
            with atomic_write(self.checkpoint, follow=self.ours) as file:
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
        for path, kept in earlier_files(self.path, PARTS_OF_A_RUN).items():
            os.replace(path, kept)

    def print_earlier(self):
        """Say, before the run begins, that an earlier one is here and what becomes of it."""
        if kept := {} if self.ours else earlier_files(self.path, PARTS_OF_A_RUN):
            (first, name), *others = kept.items()
            likewise = ", and likewise " * bool(others) + ", ".join(path.name for path, _ in others)
            print(f"{self.path} holds an earlier run: {first.name} will be kept as {name.name}"
                  f"{likewise}; or stop now, and give another --out_dir", flush=True)

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
        def stays(line, whole=True):
            try:
                values = parse_json(line)
                return values["step"] < step or values["step"] == step and "loss" in values
            except (ValueError, KeyError, TypeError):
                return whole  # somebody's own line; else it was cut short when the run was killed

        text = self.metrics.read_bytes() if self.metrics.exists() else b""
        *lines, rest = text.split(b"\n")
        kept = [line for line in lines if stays(line)] + [rest] * stays(rest, whole=False)
        write_file(self.metrics, b"".join(line + b"\n" for line in kept))


def as_json(values, stream=None):
    """Strict JSON without control characters: null in place of NaN, which Python writes for the
    error of a single text.

    stream: where it is going to be printed; letters beyond ASCII are escaped if it lacks them
    """
    values = json.loads(json.dumps(values), parse_constant=lambda name: None)
    text = json.dumps(values, ensure_ascii=stream is None)
    with contextlib.suppress(UnicodeEncodeError):
        text.encode(stream.encoding if stream and stream.encoding else "utf-8")
        return CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    return json.dumps(values).replace("\x7f", "\\u007f")  # DEL


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
