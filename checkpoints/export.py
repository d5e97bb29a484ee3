"""
Export a checkpoint: its averaged weights and all that is needed to read them, in three files,
model.safetensors, config.json and encoding.json.

    python -m checkpoints.export                          out/python-mdlm-export
    python sample.py --init_from out/python-mdlm-export   and back: the same network, bit for bit
    python train.py --method duo --no_qk_norm --time_input sigma --out_dir out/duo
    python -m checkpoints.export --out_dir out/duo --to exported    for the public code of Duo

If the public code of the method can read such a network, its names of tensors are used. For that,
the run must have been trained without normalized queries and keys (--no_qk_norm), and for sedd,
udlm and duo with a network that reads -log alpha (--time_input sigma). Our masked networks do not
read the time; they are written with adaptive norms that change nothing, see tensor_layouts.py.
config.json has the sizes under the names of the public code, and our flags under "palimpsest".
All other networks are written under our own names, which this project alone reads.
"""
import contextlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from checkpoints.load import assemble, read_state
from checkpoints.tensor_layouts import (
    LAYOUTS,
    OWN,
    add_adaptive_norms,
    published_name,
    write_safetensors,
)
from data.files import atomic_write, check_folder, check_writable, earlier_files
from data.folders import is_export
from data.tokenizer import from_json
from flags import UserError, flag, load_row
from methods import METHODS
from script import run_script, spell

FILES = ["config.json", "model.safetensors", "encoding.json"]  # the first is renamed last
MEASURED = re.compile(r"evaluation(\.previous(-\d+)?)?\.json")  # what evaluate.py puts beside them


@dataclass
class Config:
    out_dir: str = flag("out/python-mdlm", "folder or file of the checkpoint, or a published model")
    to: str = flag("", "the folder to write; empty means OUT_DIR-export")


def layout_name(config, method, where):
    """The row of LAYOUTS for this network; UserError says what to train with to have one."""
    name = method.public_layout
    if name is None or not LAYOUTS[name].exports:
        raise UserError(f"{where} was trained with --method {config['method']}, for which there is "
                        f"no public layout: only {', '.join(exportable())} have one")
    needed = {"qk_norm": False, **method.public_flags, "learned_places": False, "recurrent": 0}
    wrong = {key: config.get(key, value) for key, value in needed.items()  # hub.py has few
             if config.get(key, value) != value}
    if wrong:
        raise UserError(f"{where} was trained with {spell(wrong)}, and the public code of {name} "
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
    """The names of the methods whose networks the public code can read."""
    layouts = {name: load_row(METHODS, name).public_layout for name in METHODS}
    return [name for name, layout in layouts.items() if layout and LAYOUTS[layout].exports]


def own_tensors(state, method):
    """The averaged weights under our names, and what the method keeps besides."""
    return {**state["ema"], **{f"state.{name}": a for name, a in method.extra_state().items()}}


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
    config, classes = state["config"], state.get("classes", [])
    ours = {"format": state["format"], "config": config, "classes": classes, "step": state["step"],
            "text": state.get("text")}
    if name == OWN:
        about = {"model_type": OWN, "palimpsest": {**ours, "layout": OWN}}
        return json.dumps(about, indent=1, sort_keys=True) + "\n"
    conditions = [tensor for key, tensor in tensors.items() if key.endswith("sigma_map.mlp.2.bias")]
    about = {"model_type": name, "vocab_size": len(state["ema"]["embed"]),
             "model_length": config["block_size"], "hidden_dim": config["n_embd"],
             "cond_dim": len(conditions[0]) if conditions else 0, "n_blocks": config["n_layer"],
             "n_heads": config["n_head"], "dropout": config["dropout"], "causal": False,
             "time_conditioning": config["time_input"] == "sigma" or method.uses_time,
             "torch_dtype": "float32", **LAYOUTS[name].about}
    if method.block_length:
        about["block_size"] = method.block_length
    if classes:
        about |= {"cfg": True, "cfg_num_classes": len(classes)}
    return json.dumps(about | {"palimpsest": ours}, indent=1, sort_keys=True) + "\n"


# ---- the folder

def may_replace(folder):
    """Whether an export of ours is in the folder, or what a killed one has left."""
    if (folder / "config.json").exists():
        return is_export(folder)
    try:
        return bool(from_json((folder / "encoding.json").read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return False


def check_place(to):
    """UserError unless the folder can be written and is new, empty, or an export of ours: others
    may hold somebody's model."""
    if to.exists() and not to.is_dir():
        raise UserError(f"{to} is a file: name a folder with --to")
    found = sorted(path.name for path in to.glob("*") if not path.name.startswith("."))
    if "ckpt.pt" in found:
        raise UserError(f"{to} holds a checkpoint: choose another folder with --to")
    foreign = [name for name in found if name not in FILES and not MEASURED.fullmatch(name)]
    if foreign := foreign or ([] if may_replace(to) else found):
        raise UserError(f"{to} holds {foreign[0]}, which is not from an export of ours: choose "
                        f"another folder with --to")
    check_folder(to)
    for name in found:
        check_writable(to / name)


def write_export(state, method, to, where):
    """Write the three files, all or none. config.json comes last: without it a folder is no model.

    -> how many numbers were written; the row of LAYOUTS, or OWN; why it is no public one, or ""
    """
    try:
        name, why = layout_name(state["config"], method, where), ""
        tensors = public_tensors(state, LAYOUTS[name])
    except UserError as error:
        name, why, tensors = OWN, str(error), own_tensors(state, method)
    about = config_json(state, method, name, tensors)
    to.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        config, model, encoding = (stack.enter_context(atomic_write(to / file)) for file in FILES)
        write_safetensors(model, tensors)
        encoding.write(state["encoding"].encode())
        config.write(about.encode())
        for file in (config, model, encoding):  # a full disk must be known before anything changes
            file.flush()
        (to / "config.json").resolve().unlink(missing_ok=True)  # what a link leads to
        for path, kept in earlier_files(to, ["evaluation.json"]).items():
            path.replace(kept)  # it is about the model that was there
    return sum(tensor.numel() for tensor in tensors.values()), name, why


def main(config, given=()):
    to = Path(config.to or f"{config.out_dir.rstrip('/').removesuffix('/ckpt.pt')}-export")
    check_place(to)
    state = read_state(config.out_dir)
    model = assemble(state, config.out_dir)  # UserError if its parts do not fit
    n, name, why = write_export(state, model.method, to, config.out_dir)
    layout = "our own layout" if name == OWN else f"the layout of the public code of {name}"
    print(f"{to}: {n:,} numbers of {model.config.method}, step {model.step}, in {layout}; "
          f"sample.py and train.py read it with {spell({'init_from': to})}")
    if why:
        print(f"no public code can read it: {why}")


if __name__ == "__main__":
    run_script(Config, main)
