"""
Published models by name, and folders and files of them, read as if they were our own checkpoints.

    sample.py --init_from kuleshov-group/mdlm-owt             downloaded once, by huggingface_hub
    sample.py --init_from jdeschena/sdtt@baselines_kld_step_70000     one revision of a repository
    sample.py --init_from kuleshov-group/mdlm-owt=mdlm.ckpt   a file or folder on this machine
    sample.py --init_from folder                              of export.py, or of save_pretrained

A file has weights. The table PUBLISHED has what else must be known about each model: its method,
its size, its tokens, the length of its texts, and what its network reads of the time:

    sigma   -log alpha: SEDD, UDLM, Duo
    none    always 0, through the same layers: MDLM, BD3-LM, SDTT, PGM
    auto    the time t where the method needs it: GIDD; and RADD, which has no layers for it

The tokens are the ids 0 .. n - 1, and a mask has the id n. The uniform noise of Duo, UDLM and GIDD
draws from all n, [PAD] included. SEDD's log(V - 1) is the log n of methods/sedd.py. The names of
the tensors are in tensor_layouts.py.
"""
import difflib
import math
import os
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import tiktoken
import torch

from checkpoints.build import build_method, build_network
from checkpoints.file import FORMAT, update_flags
from checkpoints.tensor_layouts import (
    LAYOUTS,
    OWN,
    OWN_LAYOUT,
    bare_names,
    read_safetensors,
    read_torch,
    to_ours,
    without_condition,
)
from data import wordpiece
from data.reading import parse_json
from data.tokenizer import from_json, load_encoding, to_json
from flags import UserError

SMALL, MEDIUM, LARGE = (12, 12, 768), (24, 16, 1024), (24, 24, 1536)  # layers, heads, width
WEIGHTS = ["model.safetensors", "pytorch_model.bin"]  # the second where there is no first
GPT2, PADDED, BERT = "gpt2", "gpt2 + [PAD]", wordpiece.NAME  # names of tokens
END = 50256  # GPT-2's end of text, also its start
FIRST = {"first": END}  # the first token is never noised


@dataclass
class Published:
    """What must be known about a model besides its weights."""
    method: str
    tokens: str = GPT2
    time_input: str = "none"  # of model.TIME_INPUTS
    size: tuple = SMALL
    length: int = 1024
    more: dict = field(default_factory=dict)  # flags of the method and the network
    revision: str = "main"
    sizes: dict = field(default_factory=dict)  # part of a revision's name: its size
    file: str = ""  # where a repository has several models
    mask_file: str = ""  # the file that has the id of the mask
    from_config: dict = field(default_factory=dict)  # flag: its name in config.json


SWAP = {**FIRST, "n_start": 0, "decoder_share": 0.5}
WITH_PLACES = {"norm_bias": True, "positions": 1024}
SDTT = dict(revision="baselines_kld_step_70000", sizes={"_md_": MEDIUM, "_large_": LARGE})
PUBLISHED = {
    "kuleshov-group/mdlm-owt": Published("mdlm"),
    "kuleshov-group/mdlm-no_flashattn-fp32-owt": Published("mdlm"),
    "jdeschena/sdtt": Published("mdlm", **SDTT),
    "louaaron/sedd-small": Published("sedd", time_input="sigma"),
    "louaaron/sedd-medium": Published("sedd", time_input="sigma", size=MEDIUM),
    "kuleshov-group/udlm-lm1b": Published("udlm", BERT, "sigma", length=128),
    "s-sahoo/duo": Published("duo", PADDED, "sigma"),
    "s-sahoo/duo-distilled": Published("duo", PADDED, "sigma"),
    **{f"kuleshov-group/bd3lm-owt-block_size{n}":
       Published("bd3lm", more={**FIRST, "diffusion_block": n}) for n in (4, 8, 16)},
    "kuleshov-group/bd3lm-owt-block_size1024-pretrain":
        Published("bd3lm", more={**FIRST, "diffusion_block": 1024}),
    **{f"JingyangOu/radd-{form}":
       Published("radd", time_input="auto", more={"norm_bias": True, "radd_objective": form})
       for form in ("lambda-dce", "t-dce")},
    **{f"dvruette/gidd-{name}-p_unif-{share}":
       Published("gidd", PADDED, "auto", size, 512, {"p_uniform": max(share, math.exp(-20))},
                 mask_file="added_tokens.json")
       for name, size in (("small", SMALL), ("base", MEDIUM)) for share in (0.0, 0.1, 0.2)},
    **{f"jdeschena/pgm@{file}": Published("mdlm", file=f"{file}.ckpt")
       for file in ("mdlm", "mdlm_sdtt_50k")},
    **{f"jdeschena/pgm@{file}{end}":
       Published("pgm", size=size, more=SWAP, file=f"{file}{end}.ckpt")
       for file, size in (("pgm_8_8", (16, 12, 768)), ("pgm_6_6_dim1024", (12, 16, 1024)))
       for end in ("", "_sdtt_fp32_50k")},
    **{f"openai-community/gpt2{name}":  # not yet a diffusion model: for train.py
       Published("diffugpt", time_input="auto", size=size, length=1023, more=WITH_PLACES)
       for name, size in (("", SMALL), ("-medium", MEDIUM), ("-large", (36, 20, 1280)),
                          ("-xl", (48, 25, 1600)))},
}
KINDS = {  # model_type, vocab_size in config.json
    ("mdlm", 50258): Published("mdlm"),
    ("bd3lm", 50258): Published("bd3lm", more=FIRST, from_config={"diffusion_block": "block_size"}),
    ("duo", 50258): Published("duo", PADDED, "sigma"),
    ("udlm", 30522): Published("udlm", BERT, "sigma"),
    ("duo", 30522): Published("duo", BERT, "sigma"),
}


# ---- which model is meant

def find_row(name):
    """The row of PUBLISHED for a name that may end in @REVISION; None if there is none."""
    repository, _, revision = name.partition("@")
    if name in PUBLISHED or not revision or repository not in PUBLISHED:
        return PUBLISHED.get(name)
    row = PUBLISHED[repository]
    size = next((size for part, size in row.sizes.items() if part in revision), row.size)
    return replace(row, revision=revision, size=size)


def is_published(where):
    """Whether this is a published model, or a file or folder of one: not the folder of a run."""
    name, _, path = where.partition("=")
    if find_row(name) or path and "/" in name and not Path(where).exists():
        return True
    path = Path(where)
    return path.suffix in (".safetensors", ".ckpt", ".pth", ".bin") or (
        (path / "config.json").exists() and not (path / "ckpt.pt").exists())


def read_published(where):
    """The state of a published model, in the form of a checkpoint; UserError if it is damaged."""
    name, _, path = where.partition("=")
    model = find_row(name)
    if model is None or not path and Path(name).exists():
        return read_local(where)
    source = Path(path).expanduser() if path else download_weights(name, model)
    tensors = tensors_in(source)
    if model.mask_file:
        model = replace(model, tokens=tokens_by_mask(tensors, sibling(source, model.mask_file)))
    return as_checkpoint(config_of(model), encoding_of(model.tokens, source), tensors, where)


def read_local(where):
    """The state in a folder whose config.json describes it, as those of export.py and of the public
    code of MDLM, UDLM, BD3-LM and Duo do."""
    path = Path(where)
    near = difflib.get_close_matches(where.partition("=")[0], PUBLISHED, 1)
    if not path.exists():
        raise UserError(f"there is no {where}{f' (did you mean {near[0]}?)' if near else ''}: "
                        f"docs/checkpoints.md lists the published models")
    about = read_json(sibling(path, "config.json"))
    if "palimpsest" in about:
        encoding = sibling(path, "encoding.json")
        if not encoding.exists():
            raise UserError(f"{where} has lost its encoding.json: export the model again")
        encoding = from_json(encoding.read_text("utf-8", "replace"))
        try:
            ours = about["palimpsest"]
            config, classes, step = ours["config"], ours["classes"], ours["step"]
            layout = ours.get("layout", "")
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{sibling(path, 'config.json')} has changed ({error}): export the "
                            f"model again") from None
        tensors = tensors_in(path)
        return {**as_checkpoint(config, encoding, tensors, where, classes, step, layout),
                "text": ours.get("text")}
    model = row_of_config(about, where)
    config = {**config_of(model), "cond_dim": about["cond_dim"]}
    return as_checkpoint(config, encoding_of(model.tokens, path), tensors_in(path), where)


def sibling(source, name):
    """The file of that name in a folder, or beside a file."""
    return (source if source.is_dir() else source.parent) / name


def read_json(file):
    """The object in a JSON file; {} if there is none."""
    try:
        about = parse_json(file.read_text("utf-8-sig")) if file.is_file() else {}
        return about if isinstance(about, dict) else {}
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}): use another copy") from None


def row_of_config(about, where):
    """The config.json of a public code as a row."""
    row = KINDS.get((str(about.get("model_type")).lower(), about.get("vocab_size")))
    if row is None or not {"n_blocks", "n_heads", "hidden_dim", "cond_dim",
                           "model_length"} <= about.keys():
        raise UserError(f"{where} does not say which model it is: give NAME={where}, with a name "
                        f"of docs/checkpoints.md")
    reads_time = about.get("time_conditioning", row.time_input == "sigma")
    more = row.more | {flag: about.get(name) for flag, name in row.from_config.items()}
    return replace(row, time_input="sigma" if reads_time else "none", more=more,
                   size=(about["n_blocks"], about["n_heads"], about["hidden_dim"]),
                   length=about["model_length"])


# ---- from weights to a checkpoint

def config_of(model):
    """The flags with which train.py would have made the model of a row."""
    layers, heads, width = model.size
    return {"data": "", "sft": False, "tokenizer": model.tokens, "vocab_size": 0,
            "method": model.method, "block_size": model.length, "n_layer": layers, "n_head": heads,
            "n_embd": width, "cond_dim": 128, "qk_norm": False, "norm_bias": False,
            "sides": "joined", "learned_places": False, "recurrent": 0,
            "time_input": model.time_input, "dropout": 0.0, "labels": False, **model.more}


def as_checkpoint(config, encoding, tensors, where, classes=(), step=0, layout=""):
    """Published tensors as the state of a checkpoint without optimizers: a run can start from it,
    but not resume it. layout: OWN, or "" for that of the method"""
    extra = {name.removeprefix("state."): tensor for name, tensor in tensors.items()
             if layout == OWN and name.startswith("state.")}  # of the method
    tensors = {name: tensor for name, tensor in tensors.items()
               if name.removeprefix("state.") not in extra}
    try:
        config = update_flags(config)
        settings = SimpleNamespace(**config)
        method = build_method(settings, encoding, extra)
        layout = OWN_LAYOUT if layout == OWN else LAYOUTS[method.public_layout]
        with torch.device("meta"):  # names and shapes alone
            shapes = build_network(settings, method, len(classes)).state_dict()
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError,
            OverflowError) as error:
        raise UserError(f"{where} describes no network of ours: {error}") from None
    if "noise_mlp.0.weight" not in shapes:
        tensors = without_condition(tensors, where)
    weights = to_ours(layout.convert(tensors), shapes, where, layout)
    return {"format": FORMAT, "model": weights, "ema": weights, "optimizers": [], "step": step,
            "config": config, "encoding": to_json(encoding), "classes": list(classes), **extra}


def tensors_in(source):
    """All tensors of a file, or of the files in a folder, by their bare names."""
    files = [source]
    if source.is_dir():
        patterns = "*.safetensors", "*.bin", "*.ckpt", "*.pth"
        files = next(filter(None, (sorted(source.glob(pattern)) for pattern in patterns)), [])
    if not files or not source.exists():
        raise UserError(f"there are no weights in {source}: give a safetensors or torch file, or "
                        f"the folder of one")
    tensors = {}
    for file in files:
        tensors |= read_safetensors(file) if file.suffix == ".safetensors" else read_torch(file)
    return bare_names(tensors)


def encoding_of(tokens, source):
    """The encoding by its name in PUBLISHED; special ids come after the vocabulary. For BERT, a
    vocab.txt beside the weights in `source` is preferred to the one of the hub."""
    if tokens == BERT:
        file = sibling(source, "vocab.txt")
        if not file.is_file():
            file = fetch_from_hub("google-bert/bert-base-uncased", "main", ["vocab.txt"], tokens)
        words = file.read_text("utf-8", "replace").removesuffix("\n").split("\n")
        return wordpiece.WordPiece(words)
    gpt2 = load_encoding(GPT2)
    if tokens == GPT2:
        return gpt2
    return tiktoken.Encoding(PADDED, pat_str=gpt2._pat_str, mergeable_ranks=gpt2._mergeable_ranks,
                             special_tokens={**gpt2._special_tokens, "[PAD]": gpt2.n_vocab})


def tokens_by_mask(tensors, mask_file):
    """GPT2 or PADDED, by the id of the mask. Some repositories have a [PAD] before the mask, others
    do not, and the vocabulary may be rounded up. Without the file that has the id, one row more
    than GPT-2 has tokens means a mask alone, and more rows mean a [PAD] besides."""
    rows = len(tensors.get("vocab_embed.embedding", ()))
    mask = read_json(mask_file).get("[MASK]", END + 2 if rows > END + 2 else END + 1)
    return GPT2 if mask == END + 1 else PADDED


# ---- download

def download_weights(name, model):
    """The file of the weights in the hub's cache."""
    repository = name.partition("@")[0]
    file = fetch_from_hub(repository, model.revision, [model.file] if model.file else WEIGHTS, name)
    if model.mask_file:
        fetch_from_hub(repository, model.revision, [model.mask_file], name, needed=False)
    return file


def fetch_from_hub(repository, revision, files, name, needed=True):
    """The first of the files that the repository has, in the hub's cache. HF_HOME is the folder of
    the cache; with HF_HUB_OFFLINE nothing is downloaded. None if no file exists and none is needed,
    otherwise UserError says what to do."""
    try:  # an optional package, slow to import
        from huggingface_hub import hf_hub_download
        from huggingface_hub.utils import EntryNotFoundError, LocalEntryNotFoundError
    except ImportError:
        raise UserError(f"to download {name}: pip install huggingface_hub; or give {name}=PATH, "
                        f"files on this machine") from None
    home = os.environ.get("HF_HOME", "~/.cache/huggingface")
    offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "on", "yes", "true")
    reason = f"there is no {' and no '.join(files)} in {repository}"
    try:
        for file in files:
            try:
                return Path(hf_hub_download(repository, file, revision=revision))
            except EntryNotFoundError as error:
                if isinstance(error, LocalEntryNotFoundError) and not offline:  # no network
                    raise
        if not needed:
            return None
    except KeyboardInterrupt:
        print(f"\n{name}: no partial file is left, complete files stay in {home}", file=sys.stderr)
        raise
    except Exception as error:  # the library has many kinds of its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if offline:
        raise UserError(f"{name} is not in {home}, and HF_HUB_OFFLINE forbids downloading it: "
                        f"unset that, or give {name}=PATH")
    raise UserError(f"cannot download {name} ({reason}): no partial file is left, complete files "
                    f"stay in {home}; try again, or give {name}=PATH")
