"""
Published models by their names, and folders and files of them: read as if they were checkpoints of our own.

    python sample.py --init_from kuleshov-group/mdlm-owt                 downloaded once, by huggingface_hub
    python sample.py --init_from jdeschena/sdtt@baselines_kld_step_70000 one revision of a repository
    python sample.py --init_from kuleshov-group/mdlm-owt=mdlm.ckpt       a file, or a folder, that is already there
    python sample.py --init_from folder                                  of export.py, or of another's save_pretrained

A file has weights; what else must be known is in TABLE, a row for each model: which of our methods it is, its size,
its tokens, the length of its texts, and what it is told of the time:

    sigma   -log alpha: SEDD, UDLM, Duo          none   always 0, through the same layers: MDLM, BD3-LM, SDTT, PGM
    auto    the time t where the method needs it: GIDD; and RADD, which has no layers for it

The tokens are the ids 0 .. n - 1, and a mask has the id n. The uniform noise of duo, udlm and gidd draws from all n,
[PAD] among them. SEDD's log(V - 1) is the log n of score.py. How the tensors are called is in layouts.py.
"""
import difflib
import json
import math
import os
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import tiktoken
import torch

import checkpoint
from data import BadInput, wordpiece
from data.tokenizer import from_json, named, to_json
from layouts import bare, read_safetensors, read_torch, to_ours, without_condition

SMALL, MEDIUM, LARGE = (12, 12, 768), (24, 16, 1024), (24, 24, 1536)     # layers, heads, width
WEIGHTS = ["model.safetensors", "pytorch_model.bin"]         # the second where there is no first
END = 50256                                                  # gpt2's end of a text, which also begins the next


@dataclass
class Published:
    method: str
    tokens: str = "gpt2"                                     # of 50,257; or gpt2 + [PAD], or bert-base-uncased
    clock: str = "none"                                      # of model.CLOCKS
    size: tuple = SMALL
    length: int = 1024
    more: dict = field(default_factory=dict)                 # flags of the method, and of the network
    revision: str = "main"
    file: str = ""                                           # where a repository holds several models


BLOCKS = {"first": END}                                      # the first token is never noise
PARTITION = {"first": END, "n_start": 0, "decoder_share": 0.5}
TABLE = {
    "kuleshov-group/mdlm-owt": Published("mdlm"),
    "kuleshov-group/mdlm-no_flashattn-fp32-owt": Published("mdlm"),
    "jdeschena/sdtt": Published("mdlm", revision="baselines_kld_step_70000"),
    "louaaron/sedd-small": Published("sedd", clock="sigma"),
    "louaaron/sedd-medium": Published("sedd", clock="sigma", size=MEDIUM),
    "kuleshov-group/udlm-lm1b": Published("udlm", "bert-base-uncased", "sigma", length=128),
    "s-sahoo/duo": Published("duo", "gpt2 + [PAD]", "sigma"),
    "s-sahoo/duo-distilled": Published("duo", "gpt2 + [PAD]", "sigma"),
    **{f"kuleshov-group/bd3lm-owt-block_size{n}": Published("bd3lm", more={**BLOCKS, "diffusion_block": n})
       for n in (4, 8, 16)},
    "kuleshov-group/bd3lm-owt-block_size1024-pretrain": Published("bd3lm", more={**BLOCKS, "diffusion_block": 1024}),
    **{f"JingyangOu/radd-{form}": Published("radd", clock="auto", more={"norm_bias": True, "radd_objective": form})
       for form in ("lambda-dce", "t-dce")},
    **{f"dvruette/gidd-{name}-p_unif-{share}": Published("gidd", "gpt2 + [PAD]", "auto", size, 512,
                                                         {"p_uniform": max(share, math.exp(-20))})
       for name, size in (("small", SMALL), ("base", MEDIUM)) for share in (0.0, 0.1, 0.2)},
    **{f"jdeschena/pgm@{file}": Published("mdlm", file=f"{file}.ckpt") for file in ("mdlm", "mdlm_sdtt_50k")},
    **{f"jdeschena/pgm@{file}{end}": Published("pgm", size=size, more=PARTITION, file=f"{file}{end}.ckpt")
       for file, size in (("pgm_8_8", (16, 12, 768)), ("pgm_6_6_dim1024", (12, 16, 1024)))
       for end in ("", "_sdtt_fp32_50k")},
}


# ---- what is meant

def find(name):
    """The row of TABLE, for a name that may end in @REVISION; None if there is none."""
    repository, _, revision = name.partition("@")
    if name in TABLE or not revision or repository not in TABLE:
        return TABLE.get(name)
    size = MEDIUM if "_md_" in revision else LARGE if "_large_" in revision else SMALL       # so SDTT calls its own
    return replace(TABLE[repository], revision=revision, **({"size": size} if "sdtt" in repository else {}))


def known(where):
    """Is it a published model, or a file or folder of one? Otherwise it is for checkpoint.py."""
    name, _, path = where.partition("=")
    if find(name) or path and "/" in name and not Path(where).exists():
        return True
    path = Path(where)
    return path.suffix in (".safetensors", ".ckpt", ".pth", ".bin") or (
        (path / "config.json").exists() and not (path / "ckpt.pt").exists())


def load(where):
    """-> a state as checkpoint.load gives it, of a model that is `known`. BadInput says what is wrong with it."""
    name, _, path = where.partition("=")
    model = find(name)
    if model is None or not path and Path(name).exists():
        return local(where)
    source = Path(path).expanduser() if path else download(name, model)
    tensors = tensors_in(source)
    if model.method == "gidd":
        model = replace(model, tokens=tokens_of_gidd(tensors, source))
    return state_of(config_of(model), encoding_of(model.tokens, source), tensors, where)


def local(where):
    """A folder that says in config.json what it holds: of export.py, or of the code of MDLM, UDLM, BD3-LM, Duo."""
    path = Path(where)
    near = difflib.get_close_matches(where.partition("=")[0], TABLE, 1)
    if not path.exists():
        raise BadInput(f"there is no {where}{f' (did you mean {near[0]}?)' if near else ''}: docs/checkpoints.md "
                       f"lists the published models")
    about = described(beside(path, "config.json"))
    if "palimpsest" in about:
        encoding = beside(path, "encoding.json")
        if not encoding.exists():
            raise BadInput(f"{where} has lost its encoding.json: export the model again")
        encoding = from_json(encoding.read_text("utf-8", "replace"))
        try:
            config, classes, step = (about["palimpsest"][part] for part in ("config", "classes", "step"))
        except (KeyError, TypeError) as error:
            raise BadInput(f"{beside(path, 'config.json')} has changed ({error}): export the model again") from None
        return state_of(config, encoding, tensors_in(path), where, classes, step)
    model = foreign(about, where)
    return state_of({**config_of(model), "cond_dim": about["cond_dim"]}, encoding_of(model.tokens, path),
                    tensors_in(path), where)


def beside(source, name):
    """The file of that name in a folder, or in the folder of a file."""
    return (source if source.is_dir() else source.parent) / name


def described(file):
    """What a JSON file says; {} if there is none."""
    try:
        about = json.loads(file.read_text("utf-8")) if file.is_file() else {}
        return about if isinstance(about, dict) else {}
    except (OSError, ValueError) as error:
        raise BadInput(f"{file} cannot be read ({error}): use another copy") from None


def foreign(about, where):
    """What the config.json of a public code says, as a row of TABLE."""
    method, vocabulary = str(about.get("model_type")).lower(), about.get("vocab_size")
    tokens = {("mdlm", 50258): "gpt2", ("bd3lm", 50258): "gpt2", ("duo", 50258): "gpt2 + [PAD]",
              ("udlm", 30522): "bert-base-uncased", ("duo", 30522): "bert-base-uncased"}.get((method, vocabulary))
    if tokens is None or not {"n_blocks", "n_heads", "hidden_dim", "cond_dim", "model_length"} <= about.keys():
        raise BadInput(f"{where} does not say which model it is: give NAME={where}, with a name of "
                       f"docs/checkpoints.md")
    clock = "sigma" if about.get("time_conditioning", method in ("udlm", "duo")) else "none"
    more = {**BLOCKS, "diffusion_block": about.get("block_size")} if method == "bd3lm" else {}
    return Published(method, tokens, clock, (about["n_blocks"], about["n_heads"], about["hidden_dim"]),
                     about["model_length"], more)


# ---- from what is there to a state

def config_of(model):
    """A row of TABLE as flags: those that a run of train.py would have had, had it made this model."""
    layers, heads, width = model.size
    return {"data": "", "sft": False, "tokenizer": model.tokens, "vocab_size": 0, "method": model.method,
            "block_size": model.length, "n_layer": layers, "n_head": heads, "n_embd": width, "cond_dim": 128,
            "qk_norm": False, "norm_bias": False, "clock": model.clock, "dropout": 0.0, "labels": False, **model.more}


def state_of(config, encoding, tensors, where, classes=(), step=0):
    """Published tensors as the state of a checkpoint without optimizers: one can start from it, not resume it."""
    try:
        settings = SimpleNamespace(**config)
        method = checkpoint.method_of(settings, encoding)
        with torch.device("meta"):                           # names and shapes alone
            shapes = checkpoint.network(settings, method, len(classes)).state_dict()
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{where} describes no network of ours: {error}") from None
    if "noise_mlp.0.weight" not in shapes:
        tensors = without_condition(tensors, where)
    weights = to_ours(tensors, shapes, where, padded=config["method"] == "gidd")
    return {"format": checkpoint.FORMAT, "model": weights, "ema": weights, "optimizers": [], "step": step,
            "config": config, "encoding": to_json(encoding), "classes": list(classes)}


def tensors_in(source):
    """All tensors of a file, or of the files in a folder, under `bare` names."""
    files = [source]
    if source.is_dir():
        kinds = (sorted(source.glob(pattern)) for pattern in ("*.safetensors", "*.bin", "*.ckpt", "*.pth"))
        files = next(filter(None, kinds), [])
    if not files or not source.exists():
        raise BadInput(f"there are no weights in {source}: give a safetensors or torch file, or the folder of one")
    tensors = {}
    for file in files:
        tensors |= read_safetensors(file) if file.suffix == ".safetensors" else read_torch(file)
    return bare(tensors)


def encoding_of(tokens, source):
    """The encoding by the name that TABLE gives it; special ids come after the vocabulary. source: where the weights
    are; for bert-base-uncased a vocab.txt beside them is taken before that of the hub."""
    if tokens == wordpiece.NAME:
        file = beside(source, "vocab.txt")
        file = file if file.is_file() else fetch("google-bert/bert-base-uncased", "main", ["vocab.txt"], tokens)
        return wordpiece.WordPiece(file.read_text("utf-8", "replace").removesuffix("\n").split("\n"))
    gpt2 = named("gpt2")
    if tokens == "gpt2":
        return gpt2
    return tiktoken.Encoding("gpt2 + [PAD]", pat_str=gpt2._pat_str, mergeable_ranks=gpt2._mergeable_ranks,
                             special_tokens={**gpt2._special_tokens, "[PAD]": gpt2.n_vocab})


def tokens_of_gidd(tensors, source):
    """Some of its repositories have a [PAD] before the mask, some have not, and the vocabulary may be rounded up: the
    file beside the weights says which id the mask has; without it, rows that are one more than gpt2's tokens do."""
    rows = len(tensors.get("vocab_embed.embedding", ()))
    mask = described(beside(source, "added_tokens.json")).get("[MASK]", END + 2 if rows > END + 2 else END + 1)
    return "gpt2" if mask == END + 1 else "gpt2 + [PAD]"


# ---- download

def download(name, model):
    """The file of weights in the hub's cache."""
    repository = name.partition("@")[0]
    file = fetch(repository, model.revision, [model.file] if model.file else WEIGHTS, name)
    if model.method == "gidd":
        fetch(repository, model.revision, ["added_tokens.json"], name, needed=False)
    return file


def fetch(repository, revision, files, name, needed=True):
    """The first of the files that the repository has, in the hub's cache: HF_HOME says where that is, HF_HUB_OFFLINE
    that it must be there. None if there is none of them and none is needed; BadInput says what to do."""
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.utils import EntryNotFoundError, LocalEntryNotFoundError
    except ImportError:
        raise BadInput(f"to download {name}: pip install huggingface_hub; or give {name}=PATH, files that are here") \
            from None
    home = os.environ.get("HF_HOME", "~/.cache/huggingface")
    offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "on", "yes", "true")
    reason = f"there is no {' and no '.join(files)} in {repository}"
    try:
        for file in files:
            try:
                return Path(hf_hub_download(repository, file, revision=revision))
            except EntryNotFoundError as error:
                if isinstance(error, LocalEntryNotFoundError) and not offline:       # nobody answers
                    raise
        if not needed:
            return None
    except KeyboardInterrupt:
        print(f"\n{name}: no half file is left, what was whole stays in {home}", file=sys.stderr)
        raise
    except Exception as error:                               # of the library's own kinds, and of those that it uses
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if offline:
        raise BadInput(f"{name} is not in {home}, and HF_HUB_OFFLINE forbids to fetch it: unset that, or give "
                       f"{name}=PATH")
    raise BadInput(f"cannot download {name} ({reason}): no half file is left, what was whole stays in {home}; "
                   f"try again, or give {name}=PATH")
