"""
The published layouts of the networks, tensor by tensor, and the two file formats of tensors.

    ours             SEDD, MDLM, UDLM, Duo, BD3-LM, SDTT, RADD, GIDD   PGM
    embed            vocab_embed.embedding                             the same
    noise_mlp.       sigma_map.mlp.                                    the same
    blocks.0.qkv.    blocks.0.attn_qkv., rows (three, head, hd)        encoder.blocks.0.attn_qkv.
    decoder.0.q.                                                       decoder.layers.0.attn_q.
    head.            output_layer.linear.                              the same

and so on, by the rules below: reading a published network means renaming its tensors. A name may
start with backbone. (once or twice), _orig_mod. or module., which the modules around the network
added. Buffers that can be computed are left out, and so are the bounds that BD3-LM stores beside
its weights.

Our networks that do not read the time have no adaptive norms. The published ones have adaptive
norms and always read the time 0. A plain block equals an adaptive one with shifts and scales of 0
and gates of 1, so it can be written in that form without any loss.
"""
import json
import math
import mmap
import pickle
import re
import zipfile
from dataclasses import dataclass, field

import torch

from data.reading import parse_json
from flags import UserError

RULES = [  # ours -> published
    (r"^embed$", "vocab_embed.embedding"), (r"^noise_mlp\.", "sigma_map.mlp."),
    (r"^label_embed\.", "cond_map.embedding_table."), (r"^norm\.", "output_layer.norm_final."),
    (r"^head\.", "output_layer.linear."), (r"^adaln\.", "output_layer.adaLN_modulation."),
    (r"^(blocks\.\d+|decoder\.\d+)\.(qkv|kv|q|out)\.", r"\1.attn_\2."),
    (r"^(blocks\.\d+|decoder\.\d+)\.adaln\.", r"\1.adaLN_modulation."),
]
SWAP_RULES = [  # for two halves, before the others
    (r"^query$", "decoder.group_swap.base_embedding"),
    (r"^swap\.norm\.", "decoder.group_swap.pre_query_norm."),
    (r"^swap\.q\.", "decoder.group_swap.query_processor."),
    (r"^swap\.kv\.", "decoder.group_swap.hidden_to_key_value."),
    (r"^swap\.out\.", "decoder.group_swap.output_linear."),
    (r"^(decoder\.\d+)\.norm1\.", r"\1.q_norm1."), (r"^(decoder\.\d+)\.norm_kv\.", r"\1.kv_norm1."),
]
HALF_RULES = [  # and after them
    (r"^blocks\.", "encoder.blocks."), (r"^decoder\.(\d)", r"decoder.layers.\1"),
]
GPT2_RULES = [
    (r"^embed$", "wte.weight"), (r"^places$", "wpe.weight"), (r"^norm\.", "ln_f."),
    (r"^head\.", "lm_head."), (r"^blocks\.", "h."), (r"\.norm(\d)\.", r".ln_\1."),
    (r"\.qkv\.", ".attn.c_attn."), (r"\.out\.", ".attn.c_proj."), (r"\.mlp\.0\.", ".mlp.c_fc."),
    (r"\.mlp\.2\.", ".mlp.c_proj."),
]
OPEN_GATES = torch.tensor([0.0, 0, 1, 0, 0, 1])  # (6,) shift, scale, gate of both halves of a block
WRAPPED = re.compile(r"^(?:(?:backbone|_orig_mod|module)\.)+")
LEFT_OUT = re.compile(
    r"inv_freq$|(?:cos|sin)_cached$|pos_freqs$|^sampling_eps_(?:min|max)$|^noise\.")
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
          "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
          "U8": torch.uint8, "BOOL": torch.bool}
LONGEST = 100_000_000  # bytes of a header, by the format


def convert_gpt2(tensors):
    """GPT-2's tensors for methods/diffugpt.py: matrices are stored transposed, the head is the
    embedding, and two symbols come behind the words. The mask has the mean vector of all words, and
    start that of the last one, the end of text."""
    named = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    named = {name: tensor.T if re.search(r"\.c_\w+\.weight$", name) else tensor
             for name, tensor in named.items() if not re.search(r"\.attn\.(masked_)?bias$", name)}
    if "wte.weight" not in named:
        return named  # to_ours says what is missing
    words = named["wte.weight"].float()  # (n_tokens, D)
    rows = torch.cat([words, words.mean(0, keepdim=True), words[-1:]])  # (n_tokens + 2, D)
    return {**named, "wte.weight": rows, "lm_head.weight": rows,
            "lm_head.bias": torch.zeros(len(rows))}


@dataclass
class Layout:
    """How a public code stores its networks."""
    prefix: str = "backbone."  # of its names of tensors
    rules: list = field(default_factory=lambda: RULES)
    adaptive: bool = True  # it has adaptive norms in any case
    pads_vocabulary: bool = False  # to a round number of rows
    buffers: dict = field(default_factory=dict)  # numbers beside the weights
    about: dict = field(default_factory=dict)  # more entries of config.json
    biased: str = ""  # layout of networks with norm biases
    exports: bool = True  # it can read networks of train.py
    convert: object = dict  # {bare name: tensor}, as stored -> as our network has them


LAYOUTS = {  # by Method.public_layout
    "mdlm": Layout(biased="radd"),
    "radd": Layout(prefix="", adaptive=False),
    "bd3lm": Layout(buffers={"sampling_eps_min": 1e-3, "sampling_eps_max": 1.0},
                    about={"cross_attn": True, "adaln": True, "var_min": True}),
    "udlm": Layout(),
    "duo": Layout(),
    "sedd": Layout(prefix=""),
    "gidd": Layout(prefix="", pads_vocabulary=True),
    "gpt2": Layout(prefix="", rules=GPT2_RULES, adaptive=False, exports=False,
                   convert=convert_gpt2),
    "pgm": Layout(rules=SWAP_RULES + RULES + HALF_RULES, exports=False),
}
OWN = "palimpsest"  # the name of the layout of networks that no public code reads
OWN_LAYOUT = Layout(prefix="", rules=[], adaptive=False)  # the tensors have our own names


# ---- names

def published_name(name, rules=RULES):
    """The published name of one of our tensors."""
    for pattern, new in rules:
        name = re.sub(pattern, new, name)
    return name


def bare_names(tensors):
    """{name: tensor} without the prefixes of modules around the network, and without buffers."""
    named = {WRAPPED.sub("", name): tensor for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in named.items() if not LEFT_OUT.search(name)}


def to_ours(tensors, shapes, where, layout=LAYOUTS["mdlm"]):
    """Published tensors, {bare name: tensor}, under our names, in float32. UserError names those
    that are missing, superfluous or of another shape.

    shapes: the state dict of our network, on any device; where: the file, for messages
    """
    theirs = {name: published_name(name, layout.rules) for name, a in shapes.items() if a.numel()}
    if missing := [name for name in theirs.values() if name not in tensors]:
        raise UserError(f"{where} lacks the tensor {missing[0]}{and_more(missing)}: another model, "
                        f"or part of one")
    if extra := sorted(set(tensors) - set(theirs.values())):
        raise UserError(f"{where} has a tensor {extra[0]} that the network has not{and_more(extra)}"
                        f": another model")
    found = {name: tensors[theirs[name]] if name in theirs else torch.empty(a.shape)
             for name, a in shapes.items()}
    if layout.pads_vocabulary:
        found.update({name: found[name][:len(shapes[name])]
                      for name in ("embed", "head.weight", "head.bias") if found[name].dim()})
    for name, tensor in found.items():
        if tensor.shape != shapes[name].shape:
            raise UserError(f"{where} has {theirs[name]} of shape {tuple(tensor.shape)}, where the "
                            f"network needs {tuple(shapes[name].shape)}: another model, or another "
                            f"size of it")
    return {name: tensor.float() for name, tensor in found.items()}


def and_more(names):
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


# ---- networks that do not read the time, in the form of those that do

def add_adaptive_norms(state, cond_dim=128):
    """Our state dict with adaptive norms that change nothing: gates 1, shifts and scales 0."""
    D, adaptive, zeros = state["embed"].shape[1], dict(state), torch.zeros
    adaptive |= {"noise_mlp.0.weight": zeros(cond_dim, 256), "noise_mlp.0.bias": zeros(cond_dim),
                 "noise_mlp.2.weight": zeros(cond_dim, cond_dim),
                 "noise_mlp.2.bias": zeros(cond_dim)}
    for name in state:
        if name.endswith(".qkv.weight"):
            block = name.removesuffix(".qkv.weight")
            adaptive[f"{block}.adaln.weight"] = zeros(6 * D, cond_dim)  # (6 D, C)
            adaptive[f"{block}.adaln.bias"] = OPEN_GATES.repeat_interleave(D)  # (6 D,)
    return adaptive | {"adaln.weight": zeros(2 * D, cond_dim), "adaln.bias": zeros(2 * D)}


def without_condition(tensors, where):
    """Published tensors without those of `add_adaptive_norms`; UserError if one was trained."""
    added = {name: tensor for name, tensor in tensors.items()
             if "adaLN_modulation" in name or "sigma_map" in name}
    for name, tensor in added.items():
        unchanged = tensor == 0
        if name.endswith("adaLN_modulation.bias") and name.startswith("blocks."):
            unchanged = tensor.view(6, -1) == OPEN_GATES[:, None]  # (6, D)
        if not unchanged.all():
            raise UserError(f"{where} was exported from a network that does not read the time, but "
                            f"{name} has changed since: read it as a published model, NAME=PATH")
    return {name: tensor for name, tensor in tensors.items() if name not in added}


# ---- safetensors: the length of the header in 8 bytes, the header in JSON, then all numbers

def read_safetensors(path):
    """{name: tensor}, memory-mapped, so that only what is used is read. UserError if damaged."""
    try:
        with open(path, "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # writes stay in memory
        first = 8 + int.from_bytes(data[:8], "little")
        if first > min(len(data), LONGEST):
            raise ValueError("the header is cut short")
        header, tensors, size = parse_json(data[8:first]), {}, 0
        header.pop("__metadata__", None)
        for name, about in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            dtype, shape = DTYPES[about["dtype"]], about["shape"]
            (begin, end), n = about["data_offsets"], math.prod(shape)
            if begin != size or begin + n * dtype.itemsize != end or min(shape, default=0) < 0:
                raise ValueError(f"{name} does not lie where the header says")
            numbers = (torch.frombuffer(data, dtype=dtype, count=n, offset=first + begin) if n else
                       torch.empty(0))
            tensors[name], size = numbers.view(shape), end
        if first + size != len(data):
            raise ValueError("bytes are left over")
        return tensors
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError,
            OverflowError) as error:
        raise UserError(f"{path} is no whole safetensors file ({error}): fetch it again") from None


def write_safetensors(file, tensors):
    """Equal tensors give equal bytes. file: open for writing in binary"""
    header, size = {"__metadata__": {"format": "pt"}}, 0
    codes = {dtype: code for code, dtype in DTYPES.items()}
    for name, tensor in sorted(tensors.items()):
        end = size + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": codes[tensor.dtype], "shape": list(tensor.shape),
                        "data_offsets": [size, end]}
        size = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # numbers begin at a multiple of 8
    file.write(len(text).to_bytes(8, "little") + text)
    for _, tensor in sorted(tensors.items()):
        file.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


# ---- torch files are pickles: they name classes and functions that a reader imports and calls

class Inert:
    """Takes the place of a foreign class, such as settings that lie beside the weights."""

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass


def stand_in(name):
    """What is called in place of the class of that name."""
    if name == "collections.defaultdict":
        return lambda *args: {}
    return type("Inert", (Inert,), {})


HARMLESS = re.compile(
    r"(?:omegaconf|typing|transformers|tokenizers)\.[\w.]+|collections\.defaultdict|"
    r"builtins\.(?:dict|list|set|tuple|int|float|str|bool|bytes)|pathlib\.(?:Pure)?(?:Posix)?Path")


def read_torch(path):
    """{name: tensor} of a torch or Lightning file: the averaged weights if it has them. No code in
    the file is run: settings that Lightning pickles beside the weights become Inert, and the
    modules of their classes are not imported.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if not any(name.endswith("/data.pkl") for name in archive.namelist()):
                raise zipfile.BadZipFile
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        if unsafe := [name for name in foreign if not HARMLESS.fullmatch(name)]:
            raise UserError(f"{path} asks for {unsafe[0]} to be run: refused. If you trust it, "
                            f"save its tensors alone, {{name: tensor}}, with torch.save or as "
                            f"safetensors")
        with torch.serialization.safe_globals([(stand_in(name), name) for name in foreign]):
            saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UserError:
        raise
    except pickle.UnpicklingError:
        raise UserError(f"{path} holds more than tensors and plain values: refused, it could run "
                        f"code") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (zipfile.BadZipFile, RuntimeError, EOFError, ValueError, KeyError, AttributeError,
            TypeError):
        raise UserError(f"{path} cannot be read: cut short, or not written by torch.save; use "
                        f"another copy") from None
    return averaged_weights(saved, path)


def averaged_weights(saved, path):
    """{name: tensor} of what a torch file contains: all of it, or its state_dict (Lightning), or
    its model (SEDD). Averages, if any, are a list under ema, in the order of the weights.
    """
    named = saved
    for part in ("state_dict", "model"):
        if isinstance(saved, dict) and isinstance(saved.get(part), dict):
            named = saved[part]
    if (not isinstance(named, dict) or not named
            or not all(torch.is_tensor(tensor) for tensor in named.values())):
        raise UserError(f"{path} holds no weights by name: give one with state_dict, with model, "
                        f"or with tensors alone")
    ema = saved.get("ema")
    shadow = ema.get("shadow_params") if isinstance(ema, dict) else None
    if shadow is None:
        return named
    weights = bare_names(named)
    rest = shadow[len(weights):] if isinstance(shadow, list) else shadow
    if (not isinstance(shadow, list) or len(shadow) < len(weights)
            or any(a.numel() > 1 for a in rest)):
        raise UserError(f"{path} has {len(weights)} weights, but averages of {len(shadow)}: use "
                        f"another copy")
    for (name, weight), average in zip(weights.items(), shadow):
        if weight.shape != average.shape:  # averages have no names
            raise UserError(f"{path} has an average of shape {tuple(average.shape)} where {name} "
                            f"has {tuple(weight.shape)}: their order is not that of the weights; "
                            f"use another copy")
    return dict(zip(weights, shadow))
