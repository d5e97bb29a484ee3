"""
A model that is ready to use: from a run of ours, from a published model, or for fine-tuning.

    load_model("out/python-mdlm"), load_model("s-sahoo/duo")
        .config       flags             .method     of methods/, whose equations use the denoiser
        .encoding     tokenizer         .denoiser   the network with the averaged weights
        .step         of training       .classes    names of the classes that it conditions on
        .text         fingerprint of the text that it was trained on, or None
"""
import difflib
import os
import sys
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F

from checkpoints import hub
from checkpoints.build import build_method, build_network
from checkpoints.file import read_checkpoint
from data import DATASETS, load_data
from data.tokenizer import from_json, to_json
from flags import UserError, flags_of, load_row
from methods import EVERY_METHOD, METHODS
from model import NetworkFlags
from oracle import exact, exact_classifier
from samplers.guidance import check_classifier_fits

# Flags that two networks of the same weights share; no shape shows the heads or the norms. cond_dim
# is left out: networks without a condition do not use it, and shapes show it in the others.
NETWORK = [name for name, f in flags_of(NetworkFlags).items()
           if f.metadata["fixed"] and name != "cond_dim"]

SHIPPED = Path(__file__).parent.parent / "weights"  # by experiments/weights.py


def read_state(where, device="cpu"):
    """The state of a run, by its folder or its file, or of a published model, by its name."""
    if hub.is_published(str(where)):
        return hub.read_published(str(where))
    path = Path(where)
    path = path if path.suffix == ".pt" and not path.is_dir() else path / "ckpt.pt"
    if not path.is_file():  # a pipe would be waited for
        near = difflib.get_close_matches(str(where), hub.PUBLISHED, 1, 0.75)
        default = path.parent == Path("out/python-mdlm")
        how = "" if default else ", with its --out_dir, --data and --method"
        raise UserError(f"there is no checkpoint {path}: train one first (python train.py{how})"
                        + (f"; or did you mean the published {near[0]}?" if near else ""))
    return relocate(read_checkpoint(path, device), path.parent)


def load_model(where, device="cpu"):
    """The trained model in a folder, or the published one of that name."""
    return assemble(read_state(where, device), where, device)


def flags_later(values):
    """The flags of the trained model that the flags `values` name which may change after training,
    {name: (field, its value in training)}; {} for an oracle, which has all of its flags."""
    if values["oracle"]:
        return {}
    try:
        where = values["init_from"] or find_shipped(values["out_dir"]) or values["out_dir"]
        saved = read_state(where)["config"]
        known = flags_of(load_row(EVERY_METHOD, saved.get("method")))
    except UserError:  # the script will say what is wrong
        return {}
    return {name: (f, saved.get(name, f.default)) for name, f in known.items()
            if f.metadata["later"]}


def load_chosen(config, device):
    """The model that the flags of sampling name: a run, a published model, or an oracle. Where the
    run is not there, and such a model ships, config.init_from becomes its folder. .beside(flag,
    name) is the model that a flag of its sampler names."""
    if config.oracle:
        model = exact(config.oracle, **vars(config))
    else:
        if not config.init_from and (shipped := find_shipped(config.out_dir)):
            config.init_from = shipped
            print(f"there is no run in {config.out_dir} yet, so this is {shipped}, which comes "
                  "with the project: train.py trains your own", file=sys.stderr)
        where = config.init_from or config.out_dir
        state = read_state(where, device)
        later = {name: vars(config)[name] for name in config.more if name in state["config"]}
        model = assemble({**state, "config": {**state["config"], **later}}, where, device)
        if later:
            model.method.check(model.config)
    model.beside = cache(partial(load_beside, encoding=model.encoding, device=device))
    return model


def find_shipped(out_dir):
    """The folder of the weights that come with the project for a run of the usual name, out/NAME,
    which is not there; "" if there is one, or no such weights."""
    path = Path(out_dir)
    ships = path.parent == Path("out") and (SHIPPED / path.name / "config.json").is_file()
    return os.path.relpath(SHIPPED / path.name) if ships and not path.exists() else ""


def load_beside(option, name, encoding, device):
    """A second model, of a run or the oracle of a method; UserError if it has other tokens than the
    first. option: the flag that names it; encoding: of the first"""
    other = exact(name) if name in METHODS else load_model(name, device)
    if to_json(other.encoding) != to_json(encoding):
        raise UserError(f"{option} {name} has other tokens than the model: train both on one text, "
                        "with one --tokenizer")
    return other


def assemble(state, where, device="cpu"):
    """The model in a state. where: its folder or name, for messages"""
    try:
        config, encoding = SimpleNamespace(**state["config"]), from_json(state["encoding"])
        method, classes = build_method(config, encoding, state), state.get("classes", [])
        denoiser = build_network(config, method, len(classes)).to(device).eval()
        denoiser.load_state_dict(state["ema"])
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError,
            OverflowError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"the parts of the checkpoint {where} do not fit each other: {reason}") \
            from None
    return SimpleNamespace(config=config, encoding=encoding, method=method, denoiser=denoiser,
                           step=state["step"], classes=classes, text=state.get("text"))


# ---- the text of a run

def relocate(state, folder):
    """The state with the path of its text as seen from here. A run keeps that path, and its own, as
    seen from where it was started."""
    data, out_dir = state["config"].get("data"), state["config"].get("out_dir")
    if not (isinstance(data, str) and isinstance(out_dir, str) and is_path(data)):
        return state
    if data.startswith("~") or os.path.isabs(data) or os.path.isabs(out_dir):
        return state
    there = os.path.normpath(os.path.join(folder, os.path.relpath(data, out_dir)))
    known = there if os.path.exists(there) else data
    return {**state, "config": {**state["config"], "data": known}}


def is_path(data):
    """Whether --data is a path of the user's, and not a name."""
    return bool(data) and data not in DATASETS and load_row(DATASETS, data).is_path


def require_text(data, where, cure=""):
    """UserError if the text of a run is not where --data says. cure: what else to do"""
    if is_path(data) and not Path(data).expanduser().exists():
        raise UserError(f"the text of {where} is not at {data}: restore it there{cure}")


def check_text(data, name, state, where, cure=""):
    """UserError unless `data` is the text that a run was trained on, in its tokens.

    name: --data; where: the run; cure: what else to do, the end of the sentence
    """
    if state["encoding"] != to_json(data.encoding) or state.get("text") not in (
            None, data.fingerprint):
        raise UserError(f"{name} is not the text that {where} was trained on: restore the text (or "
                        f"the Python) of then{cure}")


def refuse_own_folder(option, where, out_dir):
    """UserError if a run would replace the model that it starts from."""
    path = Path(where) if os.path.exists(where) else Path(str(where).partition("=")[2] or where)
    folder = path.parent if path.is_file() else path
    if folder.exists() and os.path.exists(out_dir) and os.path.samefile(folder, out_dir):
        raise UserError(f"--out_dir {out_dir} holds the model of {option}, which the run would "
                        f"replace: give another --out_dir")


# ---- to start from another run

def tokens_of(config, state):
    """The tokenizer for the data: by the flags, or in fine-tuning that of the run to start from.

    state: of the run to start from or to resume, or None if it has not been read
    """
    if config.tokenizer != "model" and (
            not config.sft or not state and config.init_from == "scratch"):
        return config.tokenizer
    if not state and config.init_from == "scratch":
        raise UserError("--tokenizer model takes the tokens of the run to start from: name it with "
                        "--init_from")
    return from_json((state or read_state(config.init_from))["encoding"])


def model_for(option, where, encoding, data, out_dir):
    """The model of another run on the same tokens, for a run to out_dir. option, data: flags, for
    messages"""
    refuse_own_folder(option, where, out_dir)
    model = load_model(where)
    if to_json(model.encoding) != to_json(encoding):
        raise UserError(f"{option} {where} has other tokens than {data}: train it on that text")
    return model


def initial_weights(where, config, encoding, n_classes=0, device="cpu"):
    """The averaged weights of another run, to start from; UserError if its network or its tokens
    are not those of the flags. Methods may differ if their networks have the same parts and predict
    the same (Method.predicts): mdlm and bd3lm do; ar has the same parts, but predicts the next
    token, so that each row would be one place off. Such weights are for methods that adapt them
    (Method.adapts).
    """
    other, refused = load_model(where, device), f"--init_from {where} does not fit: it has"
    method = build_method(config, encoding)
    needs = f"{refused} a network of {other.config.method}, and {config.method} needs another"
    ours = build_network(config, method, n_classes).state_dict()
    theirs = method.weights_from(other.method, other.denoiser.state_dict(), ours)
    if theirs is None:
        raise UserError(needs)
    for name in NETWORK:
        one, another = vars(other.config)[name], vars(config)[name]
        if one != another:
            raise UserError(f"{refused} --{name} {one}, not {another}")
    if to_json(other.encoding) != to_json(encoding):
        raise UserError(f"{refused} other tokens than {config.data}: --tokenizer model keeps its "
                        "own")
    if {name: a.shape for name, a in theirs.items()} != {name: a.shape for name, a in ours.items()}:
        raise UserError(needs)
    if other.method.predicts not in (method.predicts, *method.adapts):
        raise UserError(f"{refused} a network of {other.config.method}, which predicts "
                        f"{other.method.predicts}, and {config.method} predicts "
                        f"{method.predicts}: leave --init_from out{adapted_by(other.method)}")
    return theirs


def adapted_by(method):
    """Which methods adapt the weights of another kind of network, as the end of a sentence."""
    names = [name for name in METHODS if method.predicts in load_row(METHODS, name).adapts]
    return f", or take --method {' or '.join(names)}" if names else ""


# ---- a classifier that guides

def load_classifier(config, model, device):
    """That of --classifier, a folder or "exact". -> classifier(z, t), the names of its classes, and
    the length of its texts; UserError if it was trained on other noise than that of the model and
    does not read clean text."""
    where, soft = config.classifier, model.method.draw_evidence
    check_classifier_fits(model.method, config.gradient)
    process = model.method.classifier_process
    if where == "exact":
        if not load_row(DATASETS, model.config.data).has_language:
            raise UserError(f"--classifier exact knows the toy language alone: train one for "
                            f"{model.config.data}")
        data = load_data(model.config.data, model.config.block_size, model.encoding)
        judge = exact_classifier(data.language, None if soft else process)
        return judge, data.classes, data.block_size
    classifier = load_model(where, device)
    others, told = classifier.method, to_json(classifier.encoding) == to_json(model.encoding)
    if not (told and others.classifies) or others.pairs_at:
        raise UserError(f"--classifier {where} must be a run of train.py --method classifier with "
                        f"the same tokens")
    facts = classifier.classes, classifier.config.block_size
    if config.gradient == "clean":  # any noise will do: it reads words, and never a mask
        more = others.vocab_size - model.method.n_tokens
        return lambda p, t: classifier.denoiser(F.pad(p, (0, more)), t), *facts
    if not same_noise(others.process, process):
        raise UserError(f"--classifier {where} reads the noise of {classifier.config.noise_of}, "
                        f"which is not that of {model.config.method}: train one with another "
                        f"--noise_of, or the flags of that method"
                        + " and --noise_from its run" * bool(soft))
    return classifier.denoiser, *facts


def same_noise(one, other):
    """Whether two processes are alike: those of embeddings by table and schedule."""
    if type(one) is not type(other) or not isinstance(one, torch.nn.Module):
        own = lambda a: (type(a), vars(a)) if type(a).__module__.startswith("methods.") else a
        facts = [{key: own(a) for key, a in vars(p).items()} for p in (one, other)]
        return type(one) is type(other) and facts[0] == facts[1]
    t = torch.linspace(0, 1, 11)  # (11,)
    return (torch.equal(one.rows(), other.rows().to(one.rows()))
            and torch.equal(one.gamma(t), other.gamma(t)))
