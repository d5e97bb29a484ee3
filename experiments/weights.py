"""
The two small models that come with the project, in weights/: trained here, stored in bfloat16.

    python -m experiments.weights             trains both, a few CPU minutes each
    python -m experiments.weights --only toy-mdlm

`python sample.py` reads weights/python-mdlm as long as there is no run in out/python-mdlm. Each
folder holds an export (checkpoints/export.py). Its config.json says under "made" by which command
the weights were made, on what, and the sha256 of model.safetensors; the seed is in the command. A
run that is complete in --out_dir is not trained again.
"""
import hashlib
import json
import platform
from dataclasses import dataclass
from pathlib import Path

import torch

from checkpoints.export import check_place, write_export
from checkpoints.load import SHIPPED, assemble, read_state
from data.files import write_file
from experiments.command import run_experiment
from experiments.timing import hardware
from experiments.training import train_or_load
from flags import flag
from script import spell

COMMON = dict(method="mdlm", device="cpu", dtype="float32", seed=1337)
RUNS = {
    "python-mdlm": dict(data="python", vocab_size=2048, n_layer=3, max_iters=2200, **COMMON),
    "toy-mdlm": dict(data="toy", muon_lr=0.02, warmup_iters=50, learned_places=True,
                     max_iters=2200, **COMMON),
}


@dataclass
class Config:
    only: str = flag("", "the runs to make, with commas between; empty means all", each=list(RUNS))
    out_dir: str = flag("out/weights", "where they are trained")
    to: str = flag(str(SHIPPED), "where they are stored")
    share: float = flag(1.0, "share of the steps, for a quick look", least=0.0001, most=1)


def store(name, folder, to):
    """Write the averaged weights of a run, rounded to bfloat16, and how they were made."""
    state = read_state(folder)
    state["config"] = {**state["config"], "out_dir": f"out/{name}"}  # no place of this machine
    state["ema"] = {key: a.bfloat16() for key, a in state["ema"].items()}
    check_place(to)
    method = assemble(state, folder).method
    write_export(state, method, to, folder)
    raw = (to / "model.safetensors").read_bytes()
    about = json.loads((to / "config.json").read_text("utf-8"))
    about["made"] = {"command": f"python train.py {spell(RUNS[name])}", "hardware": hardware(),
                     "torch": torch.__version__, "python": platform.python_version(),
                     "sha256": hashlib.sha256(raw).hexdigest()}
    write_file(to / "config.json", json.dumps(about, indent=1, sort_keys=True) + "\n")
    return len(raw)


def main(config, given=()):
    for name in config.only.split(",") if config.only else RUNS:
        train_or_load(config, name, **RUNS[name])
        to = Path(config.to, name)
        size = store(name, Path(config.out_dir, name), to)
        print(f"{to}: {size / 1e6:.2f} MB, {spell({'init_from': to})}")


if __name__ == "__main__":
    run_experiment(Config, main)
