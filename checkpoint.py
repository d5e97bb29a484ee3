"""
One folder holds a run.

    out_dir/ckpt.pt         weights, their running average, the optimizers, the flags, the tokenizer
    out_dir/metrics.jsonl   one JSON object per look at the loss and per evaluation, at full precision

A checkpoint holds tensors, dicts, lists, strings and numbers only, so that torch.load(weights_only=True) reads it: to
open somebody's checkpoint never runs their code. It is written beside its place, synced to disk and renamed: whenever
the power fails, one whole checkpoint is there. No random state is stored: train.py seeds every step from (seed, step),
so a resumed run repeats the rest exactly.
"""
import contextlib
import ctypes
import difflib
import json
import os
import pickle
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from data import BadInput, beside
from data.tokenizer import from_json, to_json
from methods import make_method
from model import Transformer

FORMAT = "palimpsest 1"
NETWORK = {"n_layer": 4, "n_head": 4, "n_embd": 128, "qk_norm": False, "clock": "auto", "norm_bias": False}
PARTS = {"model", "ema", "optimizers", "step", "config", "encoding"}


class Folder:
    """out_dir, held by this run alone until the process ends, however it ends. BadInput if another run has it.

    ours     the run in it goes on, see `rewind`. A new run leaves the folder as it is until it first saves, and then
             keeps what it finds as ckpt.previous.pt and metrics.previous.jsonl
    """

    def __init__(self, out_dir, ours=False):
        self.path, self.waiting, self.ours, self.board = Path(out_dir), [], ours, None
        self.made = [path for path in (self.path, *self.path.parents) if not path.exists()]
        self.checkpoint, self.metrics = self.path / "ckpt.pt", self.path / "metrics.jsonl"
        self.lock = FileLock(self.path / ".lock")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock.acquire(timeout=0)
        except Timeout:
            raise BadInput(f"another run is writing to {out_dir}: wait for it, or choose another --out_dir") from None
        except OSError as error:
            raise BadInput(f"cannot write to {out_dir} ({error.strerror}): choose another --out_dir") from None

    def leave(self):
        """Nothing came of it: a folder that was made for it goes again."""
        self.lock.release()
        with contextlib.suppress(OSError):                   # where something else is in it, it stays
            for path in self.made:
                (path / ".lock").unlink(missing_ok=True)
                path.rmdir()

    def save(self, state):
        """Replace ckpt.pt by `state`, or leave the old file as it is and raise."""
        try:
            with beside(self.checkpoint) as file:
                torch.save({"format": FORMAT, **state}, file)
                file.flush()
                os.fsync(file.fileno())
                if not self.ours:
                    self.set_aside()
        except (OSError, RuntimeError) as error:             # a full disk is a RuntimeError of torch's zip writer
            if isinstance(error, RuntimeError) and "inline_container" not in str(error):
                raise
            reason = getattr(error, "strerror", None) or "the disk took only part of it"
            rest = f": go on with --init_from resume --out_dir {self.path}" if self.ours else ""
            rest = "what was saved before is whole" + rest
            raise BadInput(f"cannot save to {self.checkpoint} ({reason}): free some space; {rest}") from None
        self.ours = True
        self.log()

    def set_aside(self):
        """A run before this one used the same folder: keep its result."""
        for path in filter(Path.exists, (self.checkpoint, self.metrics)):
            previous = path.with_suffix(".previous" + path.suffix)
            os.replace(path, previous)
            tqdm.write(f"{path} was there from an earlier run: kept as {previous.name}")     # beside train.py's bar

    def log(self, **values):
        """One more line in metrics.jsonl, once the folder is ours, and to `board`, if there is one; or BadInput."""
        self.waiting += [values] if values else []
        if not self.ours or not self.waiting:
            return
        size = self.metrics.stat().st_size if self.metrics.exists() else 0
        try:
            with open(self.metrics, "a", encoding="utf-8") as file:
                file.write("".join(as_json(values) + "\n" for values in self.waiting))
        except OSError as error:
            with contextlib.suppress(OSError):
                os.truncate(self.metrics, size)              # no half line
            raise BadInput(f"cannot write to {self.metrics} ({error.strerror}): free some space; {self.checkpoint} is "
                           f"whole: go on with --init_from resume --out_dir {self.path}") from None
        for values in self.waiting if self.board else []:
            self.board(**values)
        self.waiting = []

    def rewind(self, step):
        """Drop from metrics.jsonl what came after the checkpoint, and the evaluation of it: they come again."""
        def stays(line):
            try:
                values = json.loads(line)
                return values["step"] < step or values["step"] == step and "loss" in values
            except (ValueError, KeyError, TypeError):        # cut short when the run was killed
                return False

        lines = self.metrics.read_text("utf-8", "replace").splitlines() if self.metrics.exists() else []
        with beside(self.metrics) as file:
            file.write("".join(line + "\n" for line in lines if stays(line)).encode())


def as_json(values):
    """JSON that every reader takes: without NaN, which Python writes for the standard error of a single text."""
    return json.dumps(json.loads(json.dumps(values), parse_constant=lambda name: None))


def load(out_dir, device="cpu"):
    """The state in out_dir/ckpt.pt (or in the file given), or that of a published model, by its name; BadInput says
    what is wrong with it."""
    import hub                                               # which reads such models into states of this file

    if hub.known(str(out_dir)):
        return hub.load(str(out_dir))
    path = Path(out_dir)
    path = path if path.suffix == ".pt" and not path.is_dir() else path / "ckpt.pt"
    if not path.exists():
        near = difflib.get_close_matches(str(out_dir), hub.TABLE, 1, 0.75)
        how = "" if path.parent == Path("out/python-mdlm") else ", with its --out_dir, --data and --method"
        raise BadInput(f"there is no checkpoint {path}: train one first (python train.py{how})"
                       + (f"; or did you mean the published {near[0]}?" if near else ""))
    try:
        with zipfile.ZipFile(path) as archive:               # torch.save writes zips; the rest torch would unpickle
            if not any(name.endswith("/data.pkl") for name in archive.namelist()):
                raise zipfile.BadZipFile
        state = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError:
        raise BadInput(f"{path} holds more than tensors and plain values: refused, it could run code") from None
    except (zipfile.BadZipFile, RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError):
        raise BadInput(f"{path} cannot be read: cut short, or not written by torch.save; use another copy") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT or PARTS - state.keys():
        raise BadInput(f"{path} is not a checkpoint of this code ({FORMAT}): train one with train.py")
    return state


def device_of(name):
    """auto takes a GPU where there is one. -> torch.device. Exact draws need float64, which Apple's mps has not."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, dtype=torch.float64, device=name).item()
    except TypeError:
        raise BadInput(f"{name} has no float64, which exact draws need: --device cpu always works") from None
    except (RuntimeError, AssertionError, ImportError):
        raise BadInput(f"there is no device {name!r} here: --device cpu always works") from None
    return torch.device(name)


def keep_memory():
    """Tell glibc to keep the memory it has: it would give big blocks back after every step and fetch them again page
    by page, a fifth of a training step on a CPU. Elsewhere than on Linux nothing happens.
    """
    trim_threshold, mmap_threshold = -1, -3              # names of <malloc.h>
    with contextlib.suppress(OSError, AttributeError, TypeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_threshold, 32 << 20)
        libc.mallopt(trim_threshold, 2 ** 31 - 1)


def dtype_of(name, device):
    """auto is bfloat16 where the device multiplies faster in it: GPUs since 2020, and CPUs with AMX or AVX512-BF16,
    which are timed, for a few milliseconds. -> "float32" or "bfloat16"
    """
    def seconds(dtype):
        a, best = torch.ones(512, 512, dtype=dtype, device=device), 1.0
        for _ in range(5):
            began = time.perf_counter()
            a @ a
            best = min(best, time.perf_counter() - began)
        return best

    if name != "auto":
        return name
    if device.type == "cpu":
        return "bfloat16" if seconds(torch.bfloat16) < 0.7 * seconds(torch.float32) else "float32"
    since_2020 = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8      # no emulation
    return "bfloat16" if since_2020 else "float32"


def network(config, method, n_classes=0):
    """The network that these flags describe, of model.py or the method's own, with fresh weights."""
    build, clock = getattr(method, "network", Transformer), getattr(config, "clock", "auto")
    told = method.uses_time or n_classes or clock != "auto"
    return build(method.vocab_size, config.n_layer, config.n_head, config.n_embd,
                 cond_dim=config.cond_dim if told else 0, n_classes=n_classes,
                 dropout=config.dropout, mask_mod=method.mask_mod, qk_norm=config.qk_norm,
                 clock=clock, norm_bias=getattr(config, "norm_bias", False))


def classes_of(config, corpus):
    """The names of the classes that the network is told, [] for none."""
    if config.labels and not corpus.classes:
        raise BadInput(f"--labels needs texts with classes, such as --data toy: {config.data} has none")
    return list(corpus.classes) if config.labels else []


def method_of(config, encoding, kept=None):
    """The method that the flags describe. kept: what a checkpoint holds for it besides, of d3pm the embedding."""
    options = {k: v for k, v in vars(config).items() if k not in ("n_tokens", "embedding")}
    if config.method == "d3pm" and config.transition == "nearest" and config.embedding:
        options["embedding"] = kept["embedding"] if kept else embedding(config, encoding)
    return make_method(config.method, encoding.n_vocab, **options)


def embedding(config, encoding):
    """The input embeddings that --embedding points at, or that a run which goes on began with. -> (n_tokens, D)"""
    state = load(config.out_dir if config.init_from == "resume" else config.embedding)
    if state["encoding"] != to_json(encoding):
        raise BadInput(f"--embedding {config.embedding} has other tokens than {config.data}: train it on that text")
    if config.init_from != "resume":
        return state["ema"]["embed"][:encoding.n_vocab]                                                 # (n_tokens, D)
    if config.embedding != state["config"]["embedding"]:
        raise BadInput(f"--embedding {config.embedding} does not fit the run in {config.out_dir}, which has "
                       f"{state['config']['embedding']}: leave the flag out, or start anew with another --out_dir")
    return state["embedding"]


def restore(out_dir, device="cpu"):
    """A trained model, ready to use: .config (flags), .encoding, .method, .denoiser (averaged weights), .step, and
    .classes, the names of those that it can be told"""
    return assemble(load(out_dir, device), out_dir, device)


def tokens_of(config, state):
    """What to read the text with: what the flags say, or in fine-tuning the tokens of the run that it goes on from.
    state: of that run, or None if it is not loaded yet"""
    if config.tokenizer != "model" and (not config.sft or not state and config.init_from == "scratch"):
        return config.tokenizer
    if not state and config.init_from == "scratch":
        raise BadInput("--tokenizer model takes the tokens of the run to start from: name it with --init_from")
    return from_json((state or load(config.init_from))["encoding"])


def weights(out_dir, config, encoding, n_classes=0, device="cpu"):
    """The averaged weights of another run, to start from; BadInput if its network or its tokens are not those wanted.

    Methods may differ where their networks do not: mdlm, bd3lm and ar have the same parts.
    """
    other, refused = restore(out_dir, device), f"--init_from {out_dir} does not fit: it has"
    for name, default in NETWORK.items():                    # heads, norms, clocks: no shape of a weight tells them
        if getattr(other.config, name, default) != getattr(config, name):
            raise BadInput(f"{refused} --{name} {getattr(other.config, name, default)}, not {getattr(config, name)}")
    if to_json(other.encoding) != to_json(encoding):
        raise BadInput(f"{refused} other tokens than {config.data}")
    ours = network(config, method_of(config, encoding), n_classes).state_dict()
    theirs = other.denoiser.state_dict()
    if {name: a.shape for name, a in theirs.items()} != {name: a.shape for name, a in ours.items()}:
        raise BadInput(f"{refused} a network of {other.config.method}, and {config.method} needs another")
    return theirs


def assemble(state, out_dir, device="cpu"):
    """`restore`, from a state that is loaded."""
    try:
        config, encoding = SimpleNamespace(**state["config"]), from_json(state["encoding"])
        method, classes = method_of(config, encoding, state), state.get("classes", [])
        method.first = getattr(config, "first", None)        # of published networks: the token that begins a text
        denoiser = network(config, method, len(classes)).to(device).eval()
        denoiser.load_state_dict(state["ema"])
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise BadInput(f"the parts of the checkpoint {out_dir} do not fit each other: {reason}") from None
    return SimpleNamespace(config=config, encoding=encoding, method=method, denoiser=denoiser, step=state["step"],
                           classes=classes)
