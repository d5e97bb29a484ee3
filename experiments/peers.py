"""
Chapter 23. Public code beside ours: the same characters, the same CPU seconds, one true bound.

    python -m experiments.speed peers --nanogpt PATH --nanodiff PATH --data input.txt --seconds 120

The code itself is not in this repository: PATH is a folder that holds it. It is copied, trained
there by its own script in a process of one thread, and its network is then read by an adapter:

    --nanogpt    karpathy/nanoGPT: train.py with config/train_shakespeare_char.py and the flags that
                 its README gives for CPUs; it leaves ckpt.pt
    --nanodiff   nathan-barry/tiny-diffusion: training.py and model.py, which leave
                 weights/diffusion_model.pt. Their sizes are constants, too large for a CPU. They
                 are set to those of nanoGPT's CPU flags, no character of a text is given, and
                 batches are made contiguous, without which it stops on a CPU

Ours are `mdlm` and `ar` with the defaults of train.py, in float32 as the others. How many steps fit
is measured for each: two short runs differ by the cost of their steps alone. With --seeds, each is
trained as often, public code from its own seed and from the ones behind it. All codes get the same
characters (others than ASCII become "?") and the same split, and are scored on all of it that is
held out, in windows of 64: the masked ones by (3.1), the others exactly. nanoGPT has no start of a
text, so it alone sees the character before each window.
"""
import contextlib
import importlib.util
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from checkpoints.load import load_model
from data import load_data
from data.files import write_file
from evaluation.errors import mean_over_seeds
from evaluation.likelihood import mean_error, nats_of
from experiments.timing import hardware
from flags import UserError
from methods import make_method
from model import select_rows

ROOT = Path(__file__).parent.parent
LENGTH, BATCH = 64, 12  # of nanoGPT's CPU flags
SHAPE = dict(n_layer=4, n_head=4, n_embd=128)
FEW = 10, 40  # steps of the runs that measure what a step costs
SEEDED = """
import runpy, sys, torch
first, after = torch.manual_seed, int(sys.argv.pop(1)) - 1
torch.manual_seed = lambda seed: first(seed + after)
runpy.run_path("train.py", run_name="__main__")
"""
DRIVER = """
import json, sys
import torch, training
shape, steps, batch, seed = json.loads(sys.argv[1])
torch.manual_seed(seed)
config, loop, loader = training.DiffusionConfig, training.train, training.get_data_loader
training.DiffusionConfig = lambda: config(**shape)
training.get_data_loader = lambda **given: (
    x.contiguous() for x in loader(**{**given, "batch_size": batch}))
training.train = lambda **given: loop(**{**given, "num_steps": steps, "sample_interval": 10 ** 9})
training.main()
"""


@dataclass
class Text:
    """Characters that all codes learn, and windows of those that none has seen."""
    path: Path  # a file of them
    data: object  # a data set

    @classmethod
    def make(cls, name, folder):
        """From a text file, or a data set of texts."""
        source = load_data(name, LENGTH, "chars")
        if not source.is_text:
            raise UserError(f"--data {name} has no characters: names, python, or a text file")
        text = "".join(source.encoding.decode([int(i) for i in ids])
                       for ids in (source.train, source.val))
        path = folder / "text.txt"
        write_file(path, text.encode("ascii", "replace").decode())
        return cls(path, load_data(str(path), LENGTH, "chars"))

    @property
    def symbols(self):
        """The characters by their ids."""
        encoding = self.data.encoding
        return [encoding.decode([i]) for i in range(encoding.n_vocab)]

    def windows(self):
        """All held-out windows (n, 64), and the id before each (n,)."""
        x, *_ = self.data.example_windows("val")  # (n, L)
        before = np.concatenate([self.data.train[-1:], self.data.val[LENGTH - 1::LENGTH]])[:len(x)]
        return x, torch.from_numpy(before.astype(np.int64))  # (n, L), (n,)


# ---- the codes: prepare(folder, text), command(steps, seed), network(folder), nats(network, text)

class NanoGPT:
    about, files = "nanoGPT, exact", ("train.py", "model.py", "config/train_shakespeare_char.py")

    def prepare(self, folder, text):
        """Its data: ids of 16 bits, and the number of symbols."""
        place = folder / "data" / "palimpsest"
        place.mkdir(parents=True, exist_ok=True)
        for split in ("train", "val"):
            text.data.ids(split).astype(np.uint16).tofile(place / f"{split}.bin")
        n_vocab = text.data.encoding.n_vocab
        (place / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": n_vocab}))
        (folder / "drive.py").write_text(SEEDED, "utf-8")

    def command(self, steps, seed):
        flags = dict(dataset="palimpsest", out_dir="out", device="cpu", compile=False, dropout=0.0,
                     block_size=LENGTH, batch_size=BATCH, max_iters=steps, lr_decay_iters=steps,
                     eval_interval=steps, eval_iters=2, always_save_checkpoint=True,
                     dtype="float32", **SHAPE)
        words = [f"--{name}={value}" for name, value in flags.items()]
        return [sys.executable, "drive.py", str(seed), self.files[2], *words]

    def network(self, folder):
        code = module_in(folder / "model.py")
        saved = torch.load(folder / "out" / "ckpt.pt", map_location="cpu", weights_only=True)
        with contextlib.redirect_stdout(io.StringIO()):  # it prints its size
            network = code.GPT(code.GPTConfig(**saved["model_args"]))
        network.load_state_dict(saved["model"])
        return network.eval()

    @torch.no_grad()
    def nats(self, network, text):
        """-log p of each held-out character but given the one before each window. -> (n,) nats"""
        x, before = text.windows()  # (n, L), (n,)
        past = torch.cat([before[:, None], x[:, :-1]], 1)  # (n, L)
        parts = [F.cross_entropy(network(z, y)[0].transpose(1, 2).double(), y, reduction="none")
                 for z, y in zip(past.split(64), x.split(64))]  # (b, L) each
        return torch.cat(parts).sum(-1)  # (n,)


class TinyDiffusion:
    about, files = "tiny-diffusion, bound", ("training.py", "model.py", "sample.py")
    shape = dict(SHAPE, sequence_len=LENGTH, context_len=0)

    def prepare(self, folder, text):
        """Its data: a text file, whose name is a constant."""
        place = folder / "data"
        place.mkdir(exist_ok=True)
        train = text.data.encoding.decode([int(i) for i in text.data.train])
        (place / "tiny_shakespeare.txt").write_text(train, "utf-8")
        (folder / "drive.py").write_text(DRIVER, "utf-8")

    def command(self, steps, seed):
        return [sys.executable, "drive.py", json.dumps([self.shape, steps, BATCH, seed])]

    def network(self, folder):
        code = module_in(folder / "model.py")
        network = code.DiffusionTransformer(code.DiffusionConfig(**self.shape))
        network.load_state_dict(torch.load(folder / "weights" / "diffusion_model.pt",
                                           map_location="cpu", weights_only=True))
        return network.eval()

    def nats(self, network, text):
        """(3.1) of our mdlm, by their predictions. -> (n,) nats"""
        return masked_nats(ascii_denoiser(network, text.symbols), text)


class Ours:
    def __init__(self, method):
        self.method, self.about = method, f"ours, {method}"

    def prepare(self, folder, text):
        folder.mkdir(parents=True, exist_ok=True)
        self.data = str(text.path.resolve())

    def command(self, steps, seed):
        flags = dict(data=self.data, tokenizer="chars", method=self.method, block_size=LENGTH,
                     max_iters=steps, eval_interval=steps, eval_iters=1, dtype="float32",
                     muon_dtype="float32", device="cpu", out_dir="out", seed=seed)
        words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        return [sys.executable, str(ROOT / "train.py"), *words]

    def network(self, folder):
        self.model = load_model(folder / "out")
        return self.model.denoiser

    def nats(self, network, text):
        x, _ = text.windows()  # (n, L)
        if self.method == "mdlm":
            return masked_nats(self.model.denoiser, text)  # (n,)
        with torch.no_grad():
            return nats_of(self.model.method, self.model.denoiser, x)[0]  # (n,)


CODES = {"nanogpt": NanoGPT, "nanodiff": TinyDiffusion}  # by the flag that gives the folder


@torch.no_grad()
def masked_nats(denoiser, text, draws=2):
    """(3.1) of every held-out window, with the same noise for each code. -> (n,) nats"""
    method = make_method("mdlm", text.data.encoding.n_vocab)
    return nats_of(method, denoiser, text.windows()[0], draws)[0]  # (n,)


def ascii_denoiser(network, symbols):
    """A network that reads ASCII, with 0 for masks, and the number of its time step."""
    theirs = torch.tensor([ord(c) for c in symbols] + [0])  # (V,)
    steps = network.config.diffusion_steps

    def denoiser(z, t, at=None, **layout):
        k = (t[:, 0] * steps).round().long() - 1  # (B,) step k masks a share (k + 1) / steps
        logits = network(theirs[z], k.clamp(0, steps - 1).expand(len(z)))  # (B, L, 128)
        return select_rows(logits[..., theirs[:-1]], at)  # (N, n_tokens)
    return denoiser


def module_in(path):
    """A Python file as a module of its own, whatever else is called so."""
    spec = importlib.util.spec_from_file_location(f"peer_{path.parent.name}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


# ---- the runs

def cpu_seconds(words, folder):
    """Run a command in a folder. -> the CPU seconds that it took; or UserError with its last line
    """
    before = os.times()
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise UserError(f"{words[1]} in {folder} ended with code {done.returncode}: "
                        f"{''.join(last)}")
    after = os.times()
    return (after.children_user + after.children_system
            - before.children_user - before.children_system)


def measure_code(code, folder, text, seconds, seeds=1):
    """Train it for so many CPU seconds, and score it, with each seed. -> a row of the report"""
    code.prepare(folder, text)
    short, longer = (cpu_seconds(code.command(steps, 1), folder) for steps in FEW)
    each = max((longer - short) / (FEW[1] - FEW[0]), 1e-4)  # seconds of a step
    steps, took, scores = max(1, round(seconds / each)), [], []
    for seed in range(1, seeds + 1):
        shutil.rmtree(folder / "out", ignore_errors=True)
        took.append(cpu_seconds(code.command(steps, seed), folder))
        network = code.network(folder)
        scores.append(mean_error(code.nats(network, text) / LENGTH))
    mean, error = mean_over_seeds(*zip(*scores))
    return {"code": code.about, "parameters": sum(p.numel() for p in network.parameters()),
            "steps": steps, "ms": 1000 * each, "cpu_seconds": sum(took) / seeds, "nats": mean,
            "error": error, "scores": scores}


def copied(name, path, out_dir):
    """A copy of a peer's folder; UserError if it is not laid out as CODES says."""
    missing = [file for file in CODES[name].files if not (Path(path) / file).is_file()]
    if missing:
        raise UserError(f"--{name} {path} has no {missing[0]}: give the folder of that code, see "
                        "experiments/peers.py")
    folder = out_dir / name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(path, folder, ignore=shutil.ignore_patterns(".git", "out*"))
    return folder


def compare_peers(config):
    """Every code that is given, and ours; a row of each as soon as it is scored."""
    out_dir = Path(config.out_dir).resolve() / "peers"
    given = {name: getattr(config, name) for name in CODES if getattr(config, name)}
    if not given:
        raise UserError("name public code to compare with: --nanogpt PATH, --nanodiff PATH")
    machine = hardware(name=config.hardware)
    codes = [(CODES[name](), copied(name, path, out_dir)) for name, path in given.items()]
    text = Text.make(config.data, out_dir)
    codes += [(Ours(method), out_dir / method) for method in ("ar", "mdlm")]
    print(f"{machine}\n{config.data}: {len(text.data.train):,} characters, "
          f"{text.data.encoding.n_vocab} symbols; {len(text.data.val):,} held out; "
          f"{config.seconds} CPU seconds of training each, seeds: {config.seeds}\n"
          f"{'':<24}{'parameters':>11}{'steps':>8}"
          f"{'ms/step':>9}{'CPU s':>8}   nats/char")
    rows = []
    for code, folder in codes:
        row = measure_code(code, folder, text, config.seconds, config.seeds)
        rows.append(row)
        print(f"{row['code']:<24}{row['parameters']:>11,}{row['steps']:>8,}{row['ms']:>9.1f}"
              f"{row['cpu_seconds']:>8.0f}   {row['nats']:.3f} +- {row['error']:.3f}", flush=True)
        said = {"hardware": machine, "data": config.data, "rows": rows}
        write_file(out_dir / "peers.json", json.dumps(said, indent=1))
