"""
Write a checkpoint as the public code of its method stores and names it: model.safetensors, config.json, encoding.json.

    python train.py --method duo --no_qk_norm --clock sigma --out_dir out/duo
    python export.py --out_dir out/duo --to exported
    python sample.py --init_from exported                    and back: the same network, bit for bit

The weights are the averaged ones. Where the public networks differ from ours by a choice of training, that choice has
to be theirs: queries and keys as they are (--no_qk_norm), and, for sedd, udlm and duo, a network that is told -log
alpha (--clock sigma). A masked model of ours has no clock at all; it is written with one that changes nothing, see
layouts.py. config.json says the sizes in the words of the public code, and under "palimpsest" our flags.
"""
from dataclasses import dataclass

from flags import flag, one_line_errors, parse


@dataclass
class Config:
    out_dir: str = flag("out/python-mdlm", "folder of the checkpoint, or the file; or a published model, see hub.py")
    to: str = flag("", "the folder to write; empty means OUT_DIR-export")


CONFIG, GIVEN = parse(Config) if __name__ == "__main__" else (None, ())     # before torch, which takes seconds to load

import json  # noqa: E402
from pathlib import Path

import torch

import checkpoint
from data import BadInput
from layouts import adaptive, published, write_safetensors

CODE = {"mdlm": "mdlm", "md4": "mdlm", "radd": "mdlm", "bd3lm": "bd3lm", "udlm": "udlm", "duo": "duo", "sedd": "sedd",
        "gidd": "gidd"}                                      # our method -> whose code can read its network
UNWRAPPED = ("sedd", "gidd", "radd")                         # published without a prefix


def family(config, where):
    """Whose layout this network has. BadInput says what to train with to have one."""
    method, clock = config["method"], config.get("clock", "auto")
    if method not in CODE or config.get("n_start") == 0:
        raise BadInput(f"{where} is a run of --method {method}, for which there is no public layout: those of "
                       f"{', '.join(CODE)} can be exported")
    if config["qk_norm"]:
        raise BadInput(f"{where} normalises queries and keys, which public networks do not: train with --no_qk_norm")
    if method in ("sedd", "udlm", "duo") and clock != "sigma":
        raise BadInput(f"{where} is told the time, where the public code of {method} tells -log alpha: train with "
                       f"--clock sigma")
    kind = config.get("transition", "absorbing"), config.get("noise_schedule", "loglinear")      # hub.py says neither
    if method == "sedd" and kind != ("absorbing", "loglinear"):
        raise BadInput(f"{where} is not the published kind of sedd: train with --transition absorbing "
                       f"--noise_schedule loglinear")
    if config["labels"] and (method != "udlm" and clock == "auto"):
        raise BadInput(f"{where} is told the time besides the class: train with --clock sigma, or none")
    if config.get("norm_bias"):
        if method in ("sedd", "udlm", "duo", "bd3lm", "gidd") or clock != "auto":
            raise BadInput(f"{where} has biases in its layer norms, as radd alone: train with --no_norm_bias")
        return "radd"
    return CODE[method]


def tensors_of(state, code):
    """The averaged weights under their published names, with the buffers that the public classes keep beside them."""
    weights = state["ema"]
    if "noise_mlp.0.weight" not in weights and code != "radd":
        weights = adaptive(weights)
    prefix = "" if code in UNWRAPPED else "backbone."
    size = state["config"]["n_embd"] // state["config"]["n_head"]
    buffers = {prefix + "rotary_emb.inv_freq": 10000.0 ** (-torch.arange(0, size, 2) / size)}       # (hd/2,)
    if code == "bd3lm":
        buffers |= {"sampling_eps_min": torch.tensor(1e-3), "sampling_eps_max": torch.tensor(1.0)}
    return {prefix + published(name): tensor for name, tensor in weights.items()} | buffers


def described(state, code, tensors):
    """config.json: the sizes in the words of the public code; and our flags, which nobody else reads."""
    config, n_classes, clock = state["config"], len(state.get("classes", [])), state["config"].get("clock", "auto")
    conditions = [tensor for name, tensor in tensors.items() if name.endswith("sigma_map.mlp.2.bias")]
    about = {"model_type": code, "vocab_size": len(state["ema"]["embed"]), "model_length": config["block_size"],
             "hidden_dim": config["n_embd"], "cond_dim": len(conditions[0]) if conditions else 0,
             "n_blocks": config["n_layer"], "n_heads": config["n_head"], "dropout": config["dropout"],
             "time_conditioning": clock == "sigma" or code == "gidd", "causal": False, "torch_dtype": "float32"}
    if code == "bd3lm":
        about |= {"block_size": config["diffusion_block"], "cross_attn": True, "adaln": True, "var_min": True}
    if n_classes:
        about |= {"cfg": True, "cfg_num_classes": n_classes}
    ours = {"format": state["format"], "config": config, "classes": state.get("classes", []), "step": state["step"]}
    return json.dumps(about | {"palimpsest": ours}, indent=1, sort_keys=True) + "\n"


def write(state, to, where):
    """The three files, config.json last: without it the folder is no model, so that none is ever half there."""
    code, to = family(state["config"], where), Path(to)
    if (to / "ckpt.pt").exists():
        raise BadInput(f"{to} holds a checkpoint: choose another folder with --to")
    tensors = tensors_of(state, code)
    to.mkdir(parents=True, exist_ok=True)
    (to / "config.json").unlink(missing_ok=True)
    with checkpoint.beside(to / "model.safetensors") as file:
        write_safetensors(file, tensors)
    for name, text in (("encoding.json", state["encoding"]), ("config.json", described(state, code, tensors))):
        with checkpoint.beside(to / name) as file:
            file.write(text.encode())
    return sum(tensor.numel() for tensor in tensors.values())


def main(config):
    state = checkpoint.load(config.out_dir)
    checkpoint.assemble(state, config.out_dir)               # or BadInput, if its parts do not fit each other
    to = config.to or f"{config.out_dir.rstrip('/')}-export"
    n = write(state, to, config.out_dir)
    print(f"{to}: {n:,} numbers of {state['config']['method']}, step {state['step']}, as the public code names them")


if __name__ == "__main__":
    with one_line_errors():
        main(CONFIG)
