"""Files of published weights: safetensors, torch, Lightning, the hub's cache, and damaged ones."""
import json
import os
import sys
import types
from collections import defaultdict
from pathlib import Path

import pytest
import torch

from checkpoints import hub, tensor_layouts
from data.tokenizer import byte_level, to_json
from flags import UserError

TENSORS = {"backbone.blocks.0.norm1.weight": torch.arange(4.0),
           "backbone.vocab_embed.embedding": torch.randn(3, 4),
           "backbone.half": torch.randn(2, 1, 3).bfloat16(),
           "sampling_eps_min": torch.tensor(1e-3),
           "backbone.rotary_emb.inv_freq": torch.ones(2), "empty": torch.zeros(0, 4)}


def write(path, tensors):
    with open(path, "wb") as file:
        tensor_layouts.write_safetensors(file, tensors)
    return path


# ---- safetensors

def test_safetensors_are_read_back_bit_by_bit_and_equal_tensors_make_equal_bytes(tmp_path):
    path = write(tmp_path / "a.safetensors", TENSORS)
    back = tensor_layouts.read_safetensors(path)
    assert back.keys() == TENSORS.keys()
    assert all(torch.equal(back[name], a) for name, a in TENSORS.items())
    assert all(back[name].dtype == a.dtype for name, a in TENSORS.items())
    other = write(tmp_path / "b.safetensors", dict(reversed(TENSORS.items())))
    assert other.read_bytes() == path.read_bytes()


def test_safetensors_are_those_of_the_package(tmp_path):
    package = pytest.importorskip("safetensors.torch")
    theirs = tmp_path / "theirs.safetensors"
    package.save_file(TENSORS, theirs)
    ours = write(tmp_path / "ours.safetensors", TENSORS)
    for back in (tensor_layouts.read_safetensors(theirs), package.load_file(ours)):
        assert all(torch.equal(back[name], a) for name, a in TENSORS.items())
        assert back.keys() == TENSORS.keys()


def test_changing_the_tensors_in_memory_does_not_change_the_file(tmp_path):
    path = write(tmp_path / "a.safetensors", TENSORS)
    before = path.read_bytes()
    tensor_layouts.read_safetensors(path)["empty"].add_(1)
    tensor_layouts.read_safetensors(path)["sampling_eps_min"].add_(1)
    assert path.read_bytes() == before


def altered(raw, **changes):
    """The file with a changed entry of its header for the tensor `a`."""
    first = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:first])
    header["a"].update(changes)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + raw[first:]


@pytest.mark.parametrize("damage", [
    lambda raw: raw[:-1], lambda raw: raw + b"\0", lambda raw: raw[:20], lambda raw: raw[:5],
    lambda raw: b"", lambda raw: (1 << 62).to_bytes(8, "little") + raw[8:],
    lambda raw: raw[:8] + b"[" + raw[9:], lambda raw: (2).to_bytes(8, "little") + b"{}" + raw[8:],
    lambda raw: altered(raw, data_offsets=[4, 20]),
    lambda raw: altered(raw, data_offsets=[-4, 12]), lambda raw: altered(raw, shape=[5]),
    lambda raw: altered(raw, shape=[-2, -2]), lambda raw: altered(raw, shape="4"),
    lambda raw: altered(raw, dtype="F31"), lambda raw: altered(raw, dtype="F64"),
    lambda raw: altered(raw, shape=[1 << 70]), lambda raw: altered(raw, data_offsets=None),
], ids=range(17))
def test_a_damaged_safetensors_file_is_refused_in_one_line(damage, tmp_path):
    path = write(tmp_path / "a.safetensors", {"a": torch.arange(4.0)})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match="no whole safetensors file") as refused:
        tensor_layouts.read_safetensors(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("start", [0, 8, 20])
def test_tensors_that_overlap_or_leave_a_hole_are_refused(start, tmp_path):
    """Otherwise one file could be read in two ways, and bytes in a hole would not be checked."""
    about = {name: {"dtype": "F32", "shape": [4], "data_offsets": [begin, begin + 16]}
             for name, begin in (("a", 0), ("b", start))}
    text = json.dumps(about).encode()
    raw = len(text).to_bytes(8, "little") + text + bytes(start + 16)
    (tmp_path / "a.safetensors").write_bytes(raw)
    with pytest.raises(UserError, match="b does not lie where the header says"):
        tensor_layouts.read_safetensors(tmp_path / "a.safetensors")


# ---- torch and Lightning

class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def weights(scale=1.0):
    return {"backbone.vocab_embed.embedding": scale * torch.ones(3, 4),
            "backbone.rotary_emb.inv_freq": torch.ones(2),
            "backbone.blocks.0.norm1.weight": scale * torch.ones(4)}


def averages(scale, *more):
    shadow = [a for name, a in weights(scale).items() if "inv_freq" not in name]
    return {"decay": 0.9999, "num_updates": 7, "shadow_params": [*shadow, *more]}


@pytest.mark.parametrize("saved, scale", [
    (weights(), 1), ({"state_dict": weights(), "epoch": 3}, 1),
    ({"state_dict": weights(), "ema": averages(2.0)}, 2),
    ({"model": weights(), "ema": averages(2.0)}, 2),
    ({"model": weights(), "ema": averages(2.0, torch.tensor(0.0)), "step": 5}, 2)],
    ids=["plain", "lightning", "averaged", "sedd", "sedd's noise"])
def test_the_averaged_weights_are_used_if_there_are_any(saved, scale, tmp_path):
    path = tmp_path / "a.ckpt"
    torch.save(saved, path)
    found = hub.tensors_in(path)
    assert {name: a.flatten()[0].item() for name, a in found.items()} == {
        "vocab_embed.embedding": scale, "blocks.0.norm1.weight": scale}


@pytest.mark.parametrize("saved, says", [
    ({"state_dict": weights(), "callbacks": Bomb()}, "asks for posix.mkdir to be run"),
    ({"state_dict": weights(), "ema": {"shadow_params": [torch.ones(4), torch.ones(3, 4)]}},
     r"average of shape \(4,\) where vocab_embed.embedding has \(3, 4\)"),
    ({"state_dict": weights(), "ema": {"shadow_params": [torch.ones(3, 4)]}},
     "2 weights, but averages of 1"),
    ({"state_dict": weights(), "ema": averages(1.0, torch.ones(4))},
     "2 weights, but averages of 3"),
    ({"epoch": 3}, "no weights by name"), ([torch.ones(2)], "no weights by name"),
    ({}, "no weights by name")])
def test_a_torch_file_that_is_unsafe_or_has_no_weights_is_refused_in_one_line(
        saved, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(saved, "a.ckpt")
    with pytest.raises(UserError, match=says) as refused:
        tensor_layouts.read_torch(Path("a.ckpt"))
    assert "\n" not in str(refused.value) and not Path("exploded").exists()


@pytest.mark.parametrize("raw", [b"", b"PK\x05\x06" + bytes(18), b"no weights"])
def test_other_files_than_those_of_torch_are_refused(raw, tmp_path):
    (tmp_path / "a.pth").write_bytes(raw)
    with pytest.raises(UserError, match="cannot be read"):
        tensor_layouts.read_torch(tmp_path / "a.pth")
    (tmp_path / "a.pth").unlink()
    with pytest.raises(UserError, match="a.pth"):
        tensor_layouts.read_torch(tmp_path / "a.pth")


def test_settings_that_lightning_pickles_beside_the_weights_are_not_even_imported(
        tmp_path, monkeypatch):
    module = types.ModuleType("omegaconf.dictconfig")
    explode = lambda self, state: os.mkdir("exploded")
    module.DictConfig = type("DictConfig", (), {"__module__": module.__name__,
                                                "__setstate__": explode})
    settings = module.DictConfig()
    settings.content = {"length": 1024}
    monkeypatch.chdir(tmp_path)
    for name in ("omegaconf", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    loops = defaultdict(list, steps=[1, 2])
    saved = {"state_dict": weights(), "hyper_parameters": {"config": settings}, "loops": loops}
    torch.save(saved, "a.ckpt")
    monkeypatch.setitem(sys.modules, module.__name__, None)  # importing it would fail
    names = {"vocab_embed.embedding", "blocks.0.norm1.weight"}
    assert hub.tensors_in(Path("a.ckpt")).keys() == names
    assert not Path("exploded").exists()


# ---- the hub

@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A stand-in for huggingface_hub: .holds {file: an error to raise, or None}, and .asked, the
    files that were requested."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_HOME", "the-cache")

    class EntryNotFoundError(OSError):
        pass

    def hf_hub_download(repository, file, revision):
        module.asked.append((repository, revision, file))
        if file not in module.holds:
            raise EntryNotFoundError(f"404 Client Error for {file}")
        if module.holds[file]:
            raise module.holds[file]
        path = tmp_path / file
        if file.endswith(("bin", "ckpt")):
            torch.save(weights(), path)
        else:
            write(path, weights())
        return str(path)

    module, utils = types.ModuleType("huggingface_hub"), types.ModuleType("huggingface_hub.utils")
    module.holds, module.asked, module.hf_hub_download = {}, [], hf_hub_download
    utils.EntryNotFoundError = EntryNotFoundError
    utils.LocalEntryNotFoundError = type("LocalEntryNotFoundError", (EntryNotFoundError,), {})
    module.no_network = utils.LocalEntryNotFoundError("Cannot reach the hub\nand a long story")
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    monkeypatch.setitem(sys.modules, "huggingface_hub.utils", utils)
    return module


def fetch(name):
    return hub.download_weights(name, hub.find_row(name))


@pytest.mark.parametrize("file, asked", [("model.safetensors", 1), ("pytorch_model.bin", 2)])
def test_safetensors_are_requested_first_and_torch_files_otherwise(file, asked, cache):
    cache.holds[file] = None
    assert len(hub.tensors_in(fetch("louaaron/sedd-small"))) == 2
    assert cache.asked == [("louaaron/sedd-small", "main", name) for name in hub.WEIGHTS[:asked]]


def test_a_revision_and_a_file_of_a_repository_are_requested_by_name(cache):
    cache.holds = {"model.safetensors": None, "pgm_8_8.ckpt": None}
    fetch("jdeschena/sdtt@teacher_1M_sm")
    assert len(hub.tensors_in(fetch("jdeschena/pgm@pgm_8_8"))) == 2
    fetch("dvruette/gidd-base-p_unif-0.0")  # whose added_tokens.json may be missing
    assert cache.asked == [("jdeschena/sdtt", "teacher_1M_sm", "model.safetensors"),
                           ("jdeschena/pgm", "main", "pgm_8_8.ckpt"),
                           ("dvruette/gidd-base-p_unif-0.0", "main", "model.safetensors"),
                           ("dvruette/gidd-base-p_unif-0.0", "main", "added_tokens.json")]


def test_offline_and_not_in_the_cache_is_one_line(cache, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    cache.holds = dict.fromkeys(hub.WEIGHTS, cache.no_network)
    says = "s-sahoo/duo is not in the-cache, and HF_HUB_OFFLINE forbids"
    with pytest.raises(UserError, match=says):
        fetch("s-sahoo/duo")
    cache.holds = {"pytorch_model.bin": None}  # the second file is in the cache, the first is not
    assert len(hub.tensors_in(fetch("s-sahoo/duo"))) == 2


@pytest.mark.parametrize("error, says", [
    (OSError("401 Client Error\nlong story"), r"\(401 Client Error\)"),
    (RuntimeError(), r"\(RuntimeError\)"),
    (OSError(28, "No space left on device"), "No space left"),
    ("no network", r"\(Cannot reach the hub\)")])
def test_a_failed_download_says_why_and_that_no_partial_file_is_left(error, says, cache):
    cache.holds["model.safetensors"] = cache.no_network if error == "no network" else error
    says = f"cannot download s-sahoo/duo .*{says}.*no partial file"
    with pytest.raises(UserError, match=says) as refused:
        fetch("s-sahoo/duo")
    assert "\n" not in str(refused.value) and len(cache.asked) == 1


def test_a_repository_without_weights_is_refused(cache):
    says = "no model.safetensors and no pytorch_model.bin in louaaron/sedd-small"
    with pytest.raises(UserError, match=says):
        fetch("louaaron/sedd-small")


def test_an_interrupted_download_ends_the_script_and_says_what_is_safe(cache, capsys):
    cache.holds["model.safetensors"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        fetch("s-sahoo/duo")
    assert "no partial file is left, complete files stay in the-cache" in capsys.readouterr().err


def test_without_the_package_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    says = "pip install huggingface_hub; or give s-sahoo/duo=PATH"
    with pytest.raises(UserError, match=says):
        fetch("s-sahoo/duo")


@pytest.mark.parametrize("where, says", [
    ("kuleshov-group/mdlm-own=a.ckpt", "did you mean kuleshov-group/mdlm-owt"),
    ("a.safetensors", "there is no a.s"),
    ("kuleshov-group/mdlm-owt=nowhere", "there are no weights in nowhere"),
    ("here", "does not say which model it is"), ("garbled", "config.json cannot be read"),
    ("kuleshov-group/mdlm-owt=empty", "there are no weights in empty"),
    ("ours", "config.json has changed"), ("list", "describes no network of ours"),
    ("here/a.safetensors", "does not say which model it is")])
def test_other_files_are_refused_with_what_to_give(where, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    no_flags = {"palimpsest": {"config": ["mdlm"], "classes": [], "step": 1}}
    for folder, config in (("here", "{}"), ("garbled", "{"), ("empty", None),
                           ("ours", '{"palimpsest": {"step": 1}}'), ("list", json.dumps(no_flags))):
        Path(folder).mkdir()
        (Path(folder) / "encoding.json").write_text(to_json(byte_level()))
        if config:
            (Path(folder) / "config.json").write_text(config)
    for folder in ("here", "list"):
        write(Path(folder) / "a.safetensors", TENSORS)
    assert hub.is_published(where)
    with pytest.raises(UserError, match=says):
        hub.read_published(where)
