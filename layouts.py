"""
The published layout of the networks, tensor by tensor; and the two files that tensors come in.

    ours                  SEDD, MDLM, UDLM, Duo, BD3-LM, SDTT, RADD, GIDD      PGM
    embed                 vocab_embed.embedding                                the same
    noise_mlp.            sigma_map.mlp.                                       the same
    blocks.0.qkv.weight   blocks.0.attn_qkv.weight, rows (three, head, hd)     encoder.blocks.0.attn_qkv.weight
    decoder.0.q.weight                                                         decoder.layers.0.attn_q.weight
    head.weight           output_layer.linear.weight                           the same

and so on, by the rules below: to read a published network is to rename its tensors. In front of a name may stand
backbone. (once or twice), _orig_mod. or module., left by what wrapped the network. Buffers that can be computed, and
the bounds that BD3-LM keeps beside its weights, are left out.

A network that is not told the time has no adaptive norms; a published one has them, and is always told 0. As a plain
block is an adaptive one that neither moves nor stretches, with open gates, it can be written so without any loss.
"""
import json
import math
import mmap
import pickle
import re
import zipfile

import torch

from data import BadInput

RULES = [                                                    # ours -> published
    (r"^embed$", "vocab_embed.embedding"), (r"^noise_mlp\.", "sigma_map.mlp."),
    (r"^label_embed\.", "cond_map.embedding_table."), (r"^norm\.", "output_layer.norm_final."),
    (r"^head\.", "output_layer.linear."), (r"^adaln\.", "output_layer.adaLN_modulation."),
    (r"^(blocks\.\d+|decoder\.\d+)\.(qkv|kv|q|out)\.", r"\1.attn_\2."),
    (r"^(blocks\.\d+|decoder\.\d+)\.adaln\.", r"\1.adaLN_modulation."),
]
PARTITION = [                                                # the same for pgm, before the others
    (r"^query$", "decoder.group_swap.base_embedding"), (r"^swap\.norm\.", "decoder.group_swap.pre_query_norm."),
    (r"^swap\.q\.", "decoder.group_swap.query_processor."),
    (r"^swap\.kv\.", "decoder.group_swap.hidden_to_key_value."),
    (r"^swap\.out\.", "decoder.group_swap.output_linear."),
    (r"^(decoder\.\d+)\.norm1\.", r"\1.q_norm1."), (r"^(decoder\.\d+)\.norm_kv\.", r"\1.kv_norm1."),
]
MOVED = [(r"^blocks\.", "encoder.blocks."), (r"^decoder\.(\d)", r"decoder.layers.\1")]                # after them
WRAPPED = re.compile(r"^(?:(?:backbone|_orig_mod|module)\.)+")
LEFT_OUT = re.compile(r"inv_freq$|(?:cos|sin)_cached$|pos_freqs$|^sampling_eps_(?:min|max)$|^noise\.")
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
          "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
          "BOOL": torch.bool}
LONGEST = 100_000_000                                        # bytes of a header, in the format's own words


# ---- names

def published(name, partition=False):
    """The published name of one of our tensors."""
    for pattern, new in [*PARTITION, *RULES, *MOVED] if partition else RULES:
        name = re.sub(pattern, new, name)
    return name


def bare(tensors):
    """Published names without what wrapped the network, and without what is left out. {name: tensor} -> the same"""
    named = {WRAPPED.sub("", name): tensor for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in named.items() if not LEFT_OUT.search(name)}


def to_ours(tensors, shapes, where, padded=False):
    """Published tensors, of `bare` names, under our names, in float32. BadInput names what is missing, or too much.

    shapes: the state that the network should have, on any device; where: the file, for what is said
    padded: rows of a vocabulary that was rounded up are cut off
    """
    partition = "swap.q.weight" in shapes
    theirs = {name: published(name, partition) for name in shapes if shapes[name].numel()}     # pgm's start is empty
    if missing := [name for name in theirs.values() if name not in tensors]:
        raise BadInput(f"{where} lacks the tensor {missing[0]}{others(missing)}: another model, or part of one")
    if extra := sorted(set(tensors) - set(theirs.values())):
        raise BadInput(f"{where} has a tensor {extra[0]} that the network has not{others(extra)}: another model")
    found = {name: tensors[theirs[name]] if name in theirs else torch.empty(a.shape) for name, a in shapes.items()}
    if padded:
        found.update({name: found[name][:len(shapes[name])] for name in ("embed", "head.weight", "head.bias")
                      if found[name].dim()})
    for name, tensor in found.items():
        if tensor.shape != shapes[name].shape:
            raise BadInput(f"{where} has {theirs[name]} of shape {tuple(tensor.shape)}, where the "
                           f"network needs {tuple(shapes[name].shape)}: another model, or another size of it")
    return {name: tensor.float() for name, tensor in found.items()}


def others(names):
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


# ---- a network without a condition, written as one that is always told 0

def adaptive(state, cond_dim=128):
    """Our state without adaptive norms -> with such as do nothing: gates 1, shifts and scales 0, whatever is told."""
    D, plain = state["embed"].shape[1], dict(state)
    zero = lambda *shape: torch.zeros(shape)
    for name, shape in {"0.weight": (cond_dim, 256), "0.bias": (cond_dim,), "2.weight": (cond_dim, cond_dim),
                        "2.bias": (cond_dim,)}.items():
        plain[f"noise_mlp.{name}"] = zero(*shape)
    for block in [name.removesuffix(".qkv.weight") for name in state if name.endswith(".qkv.weight")]:
        plain[f"{block}.adaln.weight"] = zero(6 * D, cond_dim)                                      # (6 D, C)
        plain[f"{block}.adaln.bias"] = torch.tensor([0.0, 0, 1, 0, 0, 1]).repeat_interleave(D)      # (6 D,)
    return plain | {"adaln.weight": zero(2 * D, cond_dim), "adaln.bias": zero(2 * D)}


def without_condition(tensors, where):
    """Published tensors -> without what `adaptive` added; BadInput where that has learnt something since."""
    added = {name: tensor for name, tensor in tensors.items() if "adaLN_modulation" in name or "sigma_map" in name}
    for name, tensor in added.items():
        still = tensor == 0
        if name.endswith("adaLN_modulation.bias") and name.startswith("blocks."):
            still = tensor.view(6, -1) == torch.tensor([0.0, 0, 1, 0, 0, 1])[:, None]               # (6, D)
        if not still.all():
            raise BadInput(f"{where} was exported from a network without a clock, but {name} has changed since: "
                           f"read it as a published model, NAME=PATH")
    return {name: tensor for name, tensor in tensors.items() if name not in added}


# ---- safetensors: 8 bytes that say how long the header is, the header in JSON, the numbers of all tensors

def read_safetensors(path):
    """{name: tensor}, memory-mapped: the disk is read where a tensor is used. BadInput if it is not whole."""
    try:
        with open(path, "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)      # private: what is written stays in memory
        first = 8 + int.from_bytes(data[:8], "little")
        if first > min(len(data), LONGEST):
            raise ValueError("the header is cut short")
        header, tensors, size = json.loads(data[8:first]), {}, 0
        header.pop("__metadata__", None)
        for name, about in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            dtype, shape, (begin, end) = DTYPES[about["dtype"]], about["shape"], about["data_offsets"]
            n = math.prod(shape)
            if begin != size or begin + n * dtype.itemsize != end or min(shape, default=0) < 0:
                raise ValueError(f"{name} does not lie where the header says")
            numbers = torch.frombuffer(data, dtype=dtype, count=n, offset=first + begin) if n else torch.empty(0)
            tensors[name], size = numbers.view(shape), end
        if first + size != len(data):
            raise ValueError("bytes are left over")
        return tensors
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, OverflowError) as error:
        raise BadInput(f"{path} is no whole safetensors file ({error}): fetch it again") from None


def write_safetensors(file, tensors):
    """The same bytes for the same tensors. file: open for writing in binary"""
    header, size = {"__metadata__": {"format": "pt"}}, 0
    codes = {dtype: code for code, dtype in DTYPES.items()}
    for name, tensor in sorted(tensors.items()):
        end = size + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": codes[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [size, end]}
        size = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)                          # numbers begin at a multiple of 8
    file.write(len(text).to_bytes(8, "little") + text)
    for _, tensor in sorted(tensors.items()):
        file.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


# ---- torch files, which are pickles: names of classes and functions that a reader should import and call

class Inert:
    """Stands in for a class of somebody else's settings or tokenizer that lies beside the weights: it does nothing."""

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass


def stand_in(name):
    """What is called in place of the class of that name."""
    return (lambda *args: {}) if name == "collections.defaultdict" else type("Inert", (Inert,), {})


HARMLESS = re.compile(r"(?:omegaconf|typing|transformers|tokenizers)\.[\w.]+|collections\.defaultdict|"
                      r"builtins\.(?:dict|list|set|tuple|int|float|str|bool|bytes)|pathlib\.(?:Pure)?(?:Posix)?Path")


def read_torch(path):
    """{name: tensor} of a torch or Lightning file: the averaged weights if it has them. Nothing in it is ever run.

    Settings pickled beside the weights, as Lightning does, are read into Inert: their classes are not even imported.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if not any(name.endswith("/data.pkl") for name in archive.namelist()):
                raise zipfile.BadZipFile
        strange = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        if unsafe := [name for name in strange if not HARMLESS.fullmatch(name)]:
            raise BadInput(f"{path} asks for {unsafe[0]} to be run: refused. If you trust it, save its tensors alone, "
                           f"{{name: tensor}}, with torch.save or as safetensors")
        with torch.serialization.safe_globals([(stand_in(name), name) for name in strange]):
            saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except BadInput:
        raise
    except pickle.UnpicklingError:
        raise BadInput(f"{path} holds more than tensors and plain values: refused, it could run code") from None
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from None
    except (zipfile.BadZipFile, RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError):
        raise BadInput(f"{path} cannot be read: cut short, or not written by torch.save; use another copy") from None
    return averaged(saved, path)


def averaged(saved, path):
    """The weights in what a torch file holds: {name: tensor}; or state_dict (Lightning) or model (SEDD), and in ema,
    if it is there, a list in the order of the parameters."""
    named = saved
    for part in ("state_dict", "model"):
        if isinstance(saved, dict) and isinstance(saved.get(part), dict):
            named = saved[part]
    if not isinstance(named, dict) or not named or not all(torch.is_tensor(tensor) for tensor in named.values()):
        raise BadInput(f"{path} holds no weights by name: give one with state_dict, with model, or with tensors alone")
    ema = saved.get("ema")
    shadow = ema.get("shadow_params") if isinstance(ema, dict) else None
    if shadow is None:
        return named
    parameters = bare(named)
    rest = shadow[len(parameters):] if isinstance(shadow, list) else shadow
    if not isinstance(shadow, list) or len(shadow) < len(parameters) or any(a.numel() > 1 for a in rest):
        raise BadInput(f"{path} has {len(parameters)} weights, but averages of {len(shadow)}: use another copy")
    for (name, raw), mean in zip(parameters.items(), shadow):
        if raw.shape != mean.shape:                          # the averages have no names
            raise BadInput(f"{path} has an average of shape {tuple(mean.shape)} where {name} has {tuple(raw.shape)}: "
                           f"their order is not that of the weights; use another copy")
    return dict(zip(parameters, shadow))
