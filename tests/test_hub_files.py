"""What published weights come in: safetensors, torch and Lightning files, the hub's cache; and what can be wrong."""
import json
import os
import sys
import types
from collections import defaultdict
from pathlib import Path

import pytest
import torch

import hub
import layouts
from data import BadInput
from data.tokenizer import byte_level, to_json

TENSORS = {"backbone.blocks.0.norm1.weight": torch.arange(4.0), "backbone.vocab_embed.embedding": torch.randn(3, 4),
           "backbone.half": torch.randn(2, 1, 3).bfloat16(), "sampling_eps_min": torch.tensor(1e-3),
           "backbone.rotary_emb.inv_freq": torch.ones(2), "empty": torch.zeros(0, 4)}


def written(path, tensors):
    with open(path, "wb") as file:
        layouts.write_safetensors(file, tensors)
    return path


# ---- safetensors

def test_safetensors_come_back_bit_by_bit_and_the_same_tensors_make_the_same_bytes(tmp_path):
    path = written(tmp_path / "a.safetensors", TENSORS)
    back = layouts.read_safetensors(path)
    assert back.keys() == TENSORS.keys()
    assert all(torch.equal(back[name], a) and back[name].dtype == a.dtype for name, a in TENSORS.items())
    other = written(tmp_path / "b.safetensors", dict(reversed(TENSORS.items())))
    assert other.read_bytes() == path.read_bytes()


def test_safetensors_are_those_of_the_package(tmp_path):
    package = pytest.importorskip("safetensors.torch")
    theirs = tmp_path / "theirs.safetensors"
    package.save_file(TENSORS, theirs)
    ours = written(tmp_path / "ours.safetensors", TENSORS)
    for back in (layouts.read_safetensors(theirs), package.load_file(ours)):
        assert all(torch.equal(back[name], a) for name, a in TENSORS.items()) and back.keys() == TENSORS.keys()


def test_what_a_program_does_to_the_tensors_does_not_reach_the_file(tmp_path):
    path = written(tmp_path / "a.safetensors", TENSORS)
    before = path.read_bytes()
    layouts.read_safetensors(path)["empty"].add_(1)
    layouts.read_safetensors(path)["sampling_eps_min"].add_(1)
    assert path.read_bytes() == before


def altered(raw, **changes):
    """The file with a changed entry of its header for the tensor `a`."""
    first = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:first])
    header["a"].update(changes)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + raw[first:]


@pytest.mark.parametrize("damage", [
    lambda raw: raw[:-1], lambda raw: raw + b"\0", lambda raw: raw[:20], lambda raw: raw[:5], lambda raw: b"",
    lambda raw: (1 << 62).to_bytes(8, "little") + raw[8:], lambda raw: raw[:8] + b"[" + raw[9:],
    lambda raw: (2).to_bytes(8, "little") + b"{}" + raw[8:],
    lambda raw: altered(raw, data_offsets=[4, 20]), lambda raw: altered(raw, data_offsets=[-4, 12]),
    lambda raw: altered(raw, shape=[5]), lambda raw: altered(raw, shape=[-2, -2]), lambda raw: altered(raw, shape="4"),
    lambda raw: altered(raw, dtype="F31"), lambda raw: altered(raw, dtype="F64"),
    lambda raw: altered(raw, shape=[1 << 70]), lambda raw: altered(raw, data_offsets=None)], ids=range(17))
def test_a_damaged_safetensors_file_is_refused_in_one_line(damage, tmp_path):
    path = written(tmp_path / "a.safetensors", {"a": torch.arange(4.0)})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BadInput, match="no whole safetensors file") as refused:
        layouts.read_safetensors(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("start", [0, 8, 20])
def test_tensors_that_overlap_or_leave_a_hole_are_refused(start, tmp_path):
    """Else one file could be read in two ways; and what lies in a hole would not be looked at."""
    about = {name: {"dtype": "F32", "shape": [4], "data_offsets": [begin, begin + 16]}
             for name, begin in (("a", 0), ("b", start))}
    text = json.dumps(about).encode()
    (tmp_path / "a.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(start + 16))
    with pytest.raises(BadInput, match="b does not lie where the header says"):
        layouts.read_safetensors(tmp_path / "a.safetensors")


# ---- torch and Lightning

class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def weights(scale=1.0):
    return {"backbone.vocab_embed.embedding": scale * torch.ones(3, 4), "backbone.rotary_emb.inv_freq": torch.ones(2),
            "backbone.blocks.0.norm1.weight": scale * torch.ones(4)}


def averages(scale, *more):
    return {"decay": 0.9999, "num_updates": 7,
            "shadow_params": [a for name, a in weights(scale).items() if "inv_freq" not in name] + list(more)}


@pytest.mark.parametrize("saved, scale", [
    (weights(), 1), ({"state_dict": weights(), "epoch": 3}, 1),
    ({"state_dict": weights(), "ema": averages(2.0)}, 2), ({"model": weights(), "ema": averages(2.0)}, 2),
    ({"model": weights(), "ema": averages(2.0, torch.tensor(0.0)), "step": 5}, 2)],
    ids=["plain", "lightning", "averaged", "sedd", "sedd's noise"])
def test_the_averaged_weights_are_taken_where_there_are_some(saved, scale, tmp_path):
    path = tmp_path / "a.ckpt"
    torch.save(saved, path)
    found = hub.tensors_in(path)
    assert {name: a.flatten()[0].item() for name, a in found.items()} == {
        "vocab_embed.embedding": scale, "blocks.0.norm1.weight": scale}


@pytest.mark.parametrize("saved, says", [
    ({"state_dict": weights(), "callbacks": Bomb()}, "asks for posix.mkdir to be run"),
    ({"state_dict": weights(), "ema": {"shadow_params": [torch.ones(4), torch.ones(3, 4)]}},
     r"average of shape \(4,\) where vocab_embed.embedding has \(3, 4\)"),
    ({"state_dict": weights(), "ema": {"shadow_params": [torch.ones(3, 4)]}}, "2 weights, but averages of 1"),
    ({"state_dict": weights(), "ema": averages(1.0, torch.ones(4))}, "2 weights, but averages of 3"),
    ({"epoch": 3}, "no weights by name"), ([torch.ones(2)], "no weights by name"), ({}, "no weights by name")])
def test_a_torch_file_that_is_unsafe_or_not_of_weights_is_refused_in_one_line(saved, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(saved, "a.ckpt")
    with pytest.raises(BadInput, match=says) as refused:
        layouts.read_torch(Path("a.ckpt"))
    assert "\n" not in str(refused.value) and not Path("exploded").exists()


@pytest.mark.parametrize("raw", [b"", b"PK\x05\x06" + bytes(18), b"no weights"])
def test_what_is_no_torch_file_is_refused(raw, tmp_path):
    (tmp_path / "a.pth").write_bytes(raw)
    with pytest.raises(BadInput, match="cannot be read"):
        layouts.read_torch(tmp_path / "a.pth")
    (tmp_path / "a.pth").unlink()
    with pytest.raises(BadInput, match="a.pth"):
        layouts.read_torch(tmp_path / "a.pth")


def test_settings_that_lightning_pickles_beside_the_weights_are_not_even_imported(tmp_path, monkeypatch):
    module = types.ModuleType("omegaconf.dictconfig")
    module.DictConfig = type("DictConfig", (), {"__module__": module.__name__,
                                                "__setstate__": lambda self, state: os.mkdir("exploded")})
    settings = module.DictConfig()
    settings.content = {"length": 1024}
    monkeypatch.chdir(tmp_path)
    for name in ("omegaconf", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    loops = defaultdict(list, steps=[1, 2])
    torch.save({"state_dict": weights(), "hyper_parameters": {"config": settings}, "loops": loops}, "a.ckpt")
    monkeypatch.setitem(sys.modules, module.__name__, None)              # to import it would fail
    assert hub.tensors_in(Path("a.ckpt")).keys() == {"vocab_embed.embedding", "blocks.0.norm1.weight"}
    assert not Path("exploded").exists()


# ---- the hub

@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A stand-in for huggingface_hub: .holds {file: an error to raise, or None}, .asked, the files asked for."""
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
        torch.save(weights(), path) if file.endswith(("bin", "ckpt")) else written(path, weights())
        return str(path)

    module, utils = types.ModuleType("huggingface_hub"), types.ModuleType("huggingface_hub.utils")
    module.holds, module.asked, module.hf_hub_download = {}, [], hf_hub_download
    utils.EntryNotFoundError = EntryNotFoundError
    utils.LocalEntryNotFoundError = type("LocalEntryNotFoundError", (EntryNotFoundError,), {})
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    monkeypatch.setitem(sys.modules, "huggingface_hub.utils", utils)
    module.nobody_answers = utils.LocalEntryNotFoundError("Cannot reach the hub\nand a long story")
    return module


def fetched(name):
    return hub.download(name, hub.find(name))


@pytest.mark.parametrize("file, asked", [("model.safetensors", 1), ("pytorch_model.bin", 2)])
def test_safetensors_are_asked_for_first_and_torch_files_where_there_are_none(file, asked, cache):
    cache.holds[file] = None
    assert len(hub.tensors_in(fetched("louaaron/sedd-small"))) == 2
    assert cache.asked == [("louaaron/sedd-small", "main", name) for name in hub.WEIGHTS[:asked]]


def test_a_revision_and_a_file_of_a_repository_are_asked_for_by_name(cache):
    cache.holds = {"model.safetensors": None, "pgm_8_8.ckpt": None}
    fetched("jdeschena/sdtt@teacher_1M_sm")
    assert len(hub.tensors_in(fetched("jdeschena/pgm@pgm_8_8"))) == 2
    fetched("dvruette/gidd-base-p_unif-0.0")                 # whose added_tokens.json may be missing
    assert cache.asked == [("jdeschena/sdtt", "teacher_1M_sm", "model.safetensors"),
                           ("jdeschena/pgm", "main", "pgm_8_8.ckpt"),
                           ("dvruette/gidd-base-p_unif-0.0", "main", "model.safetensors"),
                           ("dvruette/gidd-base-p_unif-0.0", "main", "added_tokens.json")]


def test_offline_and_not_in_the_cache_is_one_line(cache, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    cache.holds = dict.fromkeys(hub.WEIGHTS, cache.nobody_answers)
    with pytest.raises(BadInput, match="s-sahoo/duo is not in the-cache, and HF_HUB_OFFLINE forbids"):
        fetched("s-sahoo/duo")
    cache.holds = {"pytorch_model.bin": None}                # of which the first is not there, but the second is
    assert len(hub.tensors_in(fetched("s-sahoo/duo"))) == 2


@pytest.mark.parametrize("error, says", [
    (OSError("401 Client Error\nlong story"), r"\(401 Client Error\)"), (RuntimeError(), r"\(RuntimeError\)"),
    (OSError(28, "No space left on device"), "No space left"), ("nobody answers", r"\(Cannot reach the hub\)")])
def test_a_download_that_fails_says_what_and_that_no_half_file_is_left(error, says, cache):
    cache.holds["model.safetensors"] = cache.nobody_answers if error == "nobody answers" else error
    with pytest.raises(BadInput, match=f"cannot download s-sahoo/duo .*{says}.*no half file") as refused:
        fetched("s-sahoo/duo")
    assert "\n" not in str(refused.value) and len(cache.asked) == 1


def test_a_repository_without_weights_is_refused(cache):
    with pytest.raises(BadInput, match="no model.safetensors and no pytorch_model.bin in louaaron/sedd-small"):
        fetched("louaaron/sedd-small")


def test_an_interrupted_download_ends_the_script_and_says_what_is_safe(cache, capsys):
    cache.holds["model.safetensors"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        fetched("s-sahoo/duo")
    assert "no half file is left, what was whole stays in the-cache" in capsys.readouterr().err


def test_without_the_package_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(BadInput, match="pip install huggingface_hub; or give s-sahoo/duo=PATH"):
        fetched("s-sahoo/duo")


@pytest.mark.parametrize("where, says", [
    ("kuleshov-group/mdlm-own=a.ckpt", "did you mean kuleshov-group/mdlm-owt"), ("a.safetensors", "there is no a.s"),
    ("kuleshov-group/mdlm-owt=nowhere", "there are no weights in nowhere"), ("here", "does not say which model it is"),
    ("kuleshov-group/mdlm-owt=empty", "there are no weights in empty"), ("garbled", "config.json cannot be read"),
    ("ours", "config.json has changed"), ("here/a.safetensors", "does not say which model it is")])
def test_what_is_no_model_is_refused_with_what_to_give(where, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder, config in (("here", "{}"), ("garbled", "{"), ("empty", None), ("ours", '{"palimpsest": {"step": 1}}')):
        Path(folder).mkdir()
        (Path(folder) / "encoding.json").write_text(to_json(byte_level()))
        if config:
            (Path(folder) / "config.json").write_text(config)
    written(Path("here/a.safetensors"), TENSORS)
    assert hub.known(where)
    with pytest.raises(BadInput, match=says):
        hub.load(where)
