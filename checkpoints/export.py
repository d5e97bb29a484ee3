"""
Export a checkpoint in the form of the public code of its method, which stores three files:
model.safetensors, config.json and encoding.json.

    python train.py --method duo --no_qk_norm --time_input sigma --out_dir out/duo
    python -m checkpoints.export --out_dir out/duo --to exported
    python sample.py --init_from exported                    and back: the same network, bit for bit

The averaged weights are exported. Where the public networks differ from ours, the run must have
been trained as they were: without normalized queries and keys (--no_qk_norm), and for sedd, udlm
and duo with a network that reads -log alpha (--time_input sigma). Our masked networks do not read
the time; they are written with adaptive norms that change nothing, see tensor_layouts.py.
config.json has the sizes under the names of the public code, and our flags under "palimpsest".
"""
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from checkpoints.load import assemble, read_state
from checkpoints.tensor_layouts import (
    LAYOUTS,
    add_adaptive_norms,
    published_name,
    write_safetensors,
)
from data.base import atomic_write
from flags import UserError, flag, load_row, run_script
from methods import METHODS


@dataclass
class Config:
    out_dir: str = flag("out/python-mdlm", "folder or file of the checkpoint, or a published model")
    to: str = flag("", "the folder to write; empty means OUT_DIR-export")


def layout_name(config, method, where):
    """The row of LAYOUTS for this network; UserError says what to train with to have one."""
    name = method.public_layout
    if name is None or not LAYOUTS[name].exports:
        raise UserError(f"{where} is a run of --method {config['method']}, for which there is no "
                        f"public layout: those of {', '.join(exportable())} can be exported")
    needed = {"qk_norm": False, **method.public_flags}
    theirs = {key: config.get(key, value) for key, value in needed.items()}  # hub.py has few
    if theirs != needed:
        raise UserError(f"{where} was trained with {spell(theirs)}, and the public code of {name} "
                        f"reads other networks: train with {spell(needed)}")
    if config["labels"] and config["time_input"] == "auto":
        raise UserError(f"{where} reads the time besides the class, which no public network does: "
                        f"train with --time_input sigma, or none")
    if not config["norm_bias"]:
        return name
    if not LAYOUTS[name].biased or config["time_input"] != "auto":
        raise UserError(f"{where} has biases in its layer norms, which the public code of {name} "
                        f"does not read: train with --no_norm_bias")
    return LAYOUTS[name].biased


def exportable():
    """The names of the methods whose networks can be exported."""
    layouts = {name: load_row(METHODS, name).public_layout for name in METHODS}
    return [name for name, layout in layouts.items() if layout and LAYOUTS[layout].exports]


def spell(flags):
    """Flags as words of a command line."""
    return " ".join(f"--{'' if value else 'no_'}{name}" if type(value) is bool else
                    f"--{name} {value}" for name, value in flags.items())


def public_tensors(state, layout):
    """The averaged weights under their published names, and the buffers that the public code stores
    beside them."""
    weights, config = state["ema"], state["config"]
    if layout.adaptive and "noise_mlp.0.weight" not in weights:
        weights = add_adaptive_norms(weights)
    size = config["n_embd"] // config["n_head"]
    frequencies = 10000.0 ** (-torch.arange(0, size, 2) / size)  # (hd/2,)
    return {layout.prefix + published_name(name): tensor for name, tensor in weights.items()} | {
        layout.prefix + "rotary_emb.inv_freq": frequencies} | {
        name: torch.tensor(number) for name, number in layout.buffers.items()}


def config_json(state, method, name, tensors):
    """config.json: the sizes under the names of the public code, and our flags."""
    config, layout, classes = state["config"], LAYOUTS[name], state.get("classes", [])
    conditions = [tensor for key, tensor in tensors.items() if key.endswith("sigma_map.mlp.2.bias")]
    about = {"model_type": name, "vocab_size": len(state["ema"]["embed"]),
             "model_length": config["block_size"], "hidden_dim": config["n_embd"],
             "cond_dim": len(conditions[0]) if conditions else 0, "n_blocks": config["n_layer"],
             "n_heads": config["n_head"], "dropout": config["dropout"], "causal": False,
             "time_conditioning": config["time_input"] == "sigma" or method.uses_time,
             "torch_dtype": "float32", **layout.about}
    if method.block_length:
        about["block_size"] = method.block_length
    if classes:
        about |= {"cfg": True, "cfg_num_classes": len(classes)}
    ours = {"format": state["format"], "config": config, "classes": classes, "step": state["step"],
            "text": state.get("text")}
    return json.dumps(about | {"palimpsest": ours}, indent=1, sort_keys=True) + "\n"


def write_export(state, method, to, where):
    """Write the three files. config.json comes last: without it the folder is no model, so a
    failure leaves no part of one. -> how many numbers were written"""
    name, to = layout_name(state["config"], method, where), Path(to)
    if (to / "ckpt.pt").exists():
        raise UserError(f"{to} holds a checkpoint: choose another folder with --to")
    tensors = public_tensors(state, LAYOUTS[name])
    about = config_json(state, method, name, tensors)
    to.mkdir(parents=True, exist_ok=True)
    (to / "config.json").unlink(missing_ok=True)
    with atomic_write(to / "model.safetensors") as file:
        write_safetensors(file, tensors)
    for file_name, text in (("encoding.json", state["encoding"]), ("config.json", about)):
        with atomic_write(to / file_name) as file:
            file.write(text.encode())
    return sum(tensor.numel() for tensor in tensors.values())


def main(config, given=()):
    state = read_state(config.out_dir)
    model = assemble(state, config.out_dir)  # UserError if its parts do not fit
    to = config.to or f"{config.out_dir.rstrip('/')}-export"
    n = write_export(state, model.method, to, config.out_dir)
    print(f"{to}: {n:,} numbers of {model.config.method}, step {model.step}, in the layout of its "
          f"public code")


if __name__ == "__main__":
    run_script(Config, main)
