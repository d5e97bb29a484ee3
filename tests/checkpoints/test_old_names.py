"""
Checkpoints with old flag names: they load as the networks that they were.

Before methods had flags of their own, a checkpoint held the flags of all methods, --time_input was
called --clock, and still older ones lack the flags that came later.
"""
import json

import pytest
import torch

from checkpoints import hub
from checkpoints.export import write_export
from checkpoints.file import Folder, read_checkpoint, update_flags
from checkpoints.load import load_model, read_state
from data.tokenizer import chars, to_json
from flags import OLD_FLAGS, flags_of, load_row
from methods import METHODS
from model import NetworkFlags

ENCODING = chars("abcdefghijk")
SIZES = {"block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 16, "cond_dim": 8, "dropout": 0.0}
OLD = {  # the flags of train.py then; those of optimizers and machines are left out
    **SIZES, "data": "toy", "sft": False, "tokenizer": "auto", "vocab_size": 8192,
    "method": "mdlm", "weighting": "simple", "diffusion_block": 4, "clip": "", "clip_search": False,
    "mask_schedule": "cosine", "power": 2.0, "radd_objective": "k-dce", "p_uniform": 0.1,
    "decoder_share": 0.5, "curriculum": 0.5, "tau": 0.001, "top_k": 2, "transition": "absorbing",
    "diffusion_steps": 128, "embedding": "", "aux": 0.01, "noise_schedule": "loglinear",
    "labels": False, "label_dropout": 0.1, "noise_of": "mdlm", "qk_norm": True, "norm_bias": False,
    "clock": "auto", "optimizer": "muon", "seed": 1337,
}
LATER = ("qk_norm", "norm_bias", "clock", "sft", "labels")  # the oldest checkpoints lack these


def build(method_name, qk_norm=True, norm_bias=False, time_input="auto", n_classes=0, **flags):
    """The method and the network, built by their own constructors."""
    method = load_row(METHODS, method_name).build(ENCODING.n_vocab, flags)
    conditioned = method.uses_time or n_classes or time_input != "auto"
    network = method.network(method.vocab_size, 2, 2, 16, cond_dim=8 if conditioned else 0,
                             n_classes=n_classes, mask_mod=method.mask_mod, qk_norm=qk_norm,
                             norm_bias=norm_bias, time_input=time_input)
    torch.manual_seed(0)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return method, network.eval()


def save(folder, network, config, classes=()):
    average = network.state_dict()
    last = {name: torch.zeros_like(weight) for name, weight in average.items()}
    state = {"model": last, "ema": average, "optimizers": [], "step": 3, "config": config,
             "encoding": to_json(ENCODING), "classes": list(classes)}
    Folder(folder).save(state)
    return folder


def assert_same(model, network, size):
    """Equal logits, bit by bit, at two times."""
    z = torch.randint(size, (2, 8), generator=torch.Generator().manual_seed(1))
    for t in (0.2, 0.8):
        t = torch.full((2, 1), t)
        assert torch.equal(model.denoiser(z, t), network(z, t))


THEN = "ar mdlm md4 genmd4 radd pgm bd3lm udlm gidd duo sedd d3pm classifier".split()


@pytest.mark.parametrize("name", THEN)
def test_the_flags_of_all_methods_under_their_old_names(name, tmp_path):
    classes = ["a", "b"] if load_row(METHODS, name).classifies else []
    method, network = build(name, n_classes=len(classes), **OLD)
    config = {**OLD, "method": name, "labels": bool(classes)}
    model = load_model(save(tmp_path / "run", network, config, classes))
    assert_same(model, network, method.vocab_size)
    assert type(model.method) is type(method) and model.classes == classes
    own = flags_of(type(method)).keys() & OLD.keys()
    assert all(getattr(model.method, flag) == OLD[flag] for flag in own)
    assert model.method.first_token is None


@pytest.mark.parametrize("clock", ["auto", "sigma", "none"])
@pytest.mark.parametrize("name", ["mdlm", "udlm"])
def test_the_clock_is_the_time_input(name, clock, tmp_path):
    method, network = build(name, time_input=clock)
    config = {**OLD, "method": name, "clock": clock}
    model = load_model(save(tmp_path / "run", network, config))
    assert_same(model, network, method.vocab_size)
    assert model.config.time_input == clock and "clock" not in vars(model.config)


@pytest.mark.parametrize("name", ["mdlm", "udlm", "ar", "pgm"])
def test_a_checkpoint_from_before_a_flag_has_the_network_of_then(name, tmp_path):
    method, network = build(name, qk_norm=False, norm_bias=False, time_input="auto")
    config = {flag: value for flag, value in OLD.items() if flag not in LATER}
    config["method"] = name
    model = load_model(save(tmp_path / "run", network, config))
    assert_same(model, network, method.vocab_size)
    assert not model.config.qk_norm and not model.config.labels and not model.config.sft


def test_a_checkpoint_has_all_flags_of_the_network_and_none_by_an_old_name(tmp_path):
    method, network = build("mdlm", qk_norm=False)
    config = {flag: value for flag, value in OLD.items() if flag not in LATER}
    for flags in (config, OLD):
        path = save(tmp_path / "run", network, flags) / "ckpt.pt"
        read = read_checkpoint(path)["config"]
        assert flags_of(NetworkFlags).keys() <= read.keys() and not read.keys() & OLD_FLAGS.keys()
        assert update_flags(read) == read
        assert torch.load(path, weights_only=True)["config"] == flags  # the file stays as it was


def test_a_folder_that_was_exported_with_old_names_is_the_same_network(tmp_path):
    method, network = build("duo", qk_norm=False, time_input="sigma")
    config = {**OLD, "method": "duo", "qk_norm": False, "clock": "sigma"}
    state = read_state(save(tmp_path / "run", network, config))
    folder = tmp_path / "public"
    write_export(state, method, folder, "run")
    about = json.loads((folder / "config.json").read_text())
    for flag in ("muon_dtype", "first", "norm_bias"):
        del about["palimpsest"]["config"][flag]
    exported = about["palimpsest"]["config"]
    exported["clock"] = exported.pop("time_input")
    (folder / "config.json").write_text(json.dumps(about))
    assert hub.is_published(str(folder))
    model = load_model(folder)
    assert_same(model, network, method.vocab_size)
    assert model.config.time_input == "sigma" and model.method.first_token is None
