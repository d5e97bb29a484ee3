"""
Exported checkpoints: read back they give the same network, bit for bit, and exported again the same
bytes.
"""
import functools
import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

import sample
import train
from checkpoints import export, hub
from checkpoints.build import build_method, build_network
from checkpoints.file import Folder
from checkpoints.load import load_model, read_state
from checkpoints.tensor_layouts import (
    LAYOUTS,
    bare_names,
    read_safetensors,
    to_ours,
    write_safetensors,
)
from data import load_data
from data.files import atomic_write
from data.tokenizer import from_json, to_json
from flags import UserError, configure, load_row, parse
from kinds import networks, scripts_differ
from methods import METHODS
from runs import TINY, cache, complaint, elsewhere, fit  # noqa: F401

FILES = ["model.safetensors", "config.json", "encoding.json"]
PUBLIC = dict(qk_norm=False)
SIGMA = dict(PUBLIC, time_input="sigma")
RUNS = {"mdlm": PUBLIC, "md4": PUBLIC, "bd3lm": PUBLIC, "gidd": PUBLIC,
        "radd": dict(PUBLIC, norm_bias=True), "udlm": dict(SIGMA, labels=True), "duo": SIGMA,
        "sedd": SIGMA}


@functools.cache
def toy():
    return load_data("toy", 8)


def checkpoint(**flags):
    """A checkpoint in run/ with random weights, of step 3; no training is needed for that."""
    config = configure(train.Config, **{**TINY, "out_dir": "run", **flags})
    classes = list(toy().classes) if config.labels else []
    network = build_network(config, build_method(config, toy().encoding), len(classes))
    weights = {name: 0.3 * torch.randn(a.shape) for name, a in network.state_dict().items()}
    Folder("run").save({"model": weights, "ema": weights, "optimizers": [], "step": 3,
                        "config": asdict(config), "encoding": to_json(toy().encoding),
                        "classes": classes})
    return read_state("run")


def exported(run, to):
    export.main(*parse(export.Config, ["--out_dir", str(run), "--to", str(to)]))
    return Path(to)


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def test_all_methods_with_a_layout_are_tested_here():
    assert export.exportable() == [name for name in METHODS if name in RUNS]


@pytest.mark.parametrize("method", RUNS)
def test_there_and_back_is_the_same_network_bit_for_bit(method):
    checkpoint(method=method, **RUNS[method])
    folder = exported("run", "public")
    ours, back = load_model("run"), load_model("public")
    weights = back.denoiser.state_dict()
    torch.testing.assert_close(weights, ours.denoiser.state_dict(), rtol=0, atol=0)
    assert vars(back.config) == vars(ours.config)
    assert (back.step, back.classes) == (3, ours.classes)
    again = exported("public", "again")
    assert all((again / name).read_bytes() == (folder / name).read_bytes() for name in FILES)


@pytest.mark.parametrize("method", ["mdlm", "bd3lm", "duo", "sedd"])
def test_the_names_and_sizes_are_those_of_the_public_code(method):
    checkpoint(method=method, **RUNS[method])
    folder, layout = exported("run", "public"), LAYOUTS[method]
    tensors, about = read_safetensors(folder / FILES[0]), config_of(folder)
    unprefixed = {name for name in tensors if not name.startswith(layout.prefix)}
    assert unprefixed == layout.buffers.keys()
    bare = {name.removeprefix(layout.prefix): tuple(a.shape) for name, a in tensors.items()}
    assert bare["vocab_embed.embedding"] == (about["vocab_size"], 16)
    assert bare["rotary_emb.inv_freq"] == (4,)
    C = about["cond_dim"]
    assert bare["sigma_map.mlp.0.weight"] == (C, 256)
    assert bare["blocks.0.adaLN_modulation.weight"] == (96, C)
    assert bare["output_layer.adaLN_modulation.bias"] == (32,)
    assert bare["blocks.0.attn_qkv.weight"] == (48, 16)
    sizes = [about[key] for key in ("hidden_dim", "n_blocks", "n_heads", "model_length")]
    assert about["model_type"] == method and sizes == [16, 1, 2, 8]
    assert about["time_conditioning"] == (method in ("duo", "sedd"))
    assert about.get("block_size") == (4 if method == "bd3lm" else None)


@pytest.mark.parametrize("method, time_input, reads", [
    ("mdlm", "auto", False), ("mdlm", "none", False), ("mdlm", "sigma", True),
    ("gidd", "auto", True)])
def test_config_json_says_whether_the_network_reads_the_time(method, time_input, reads):
    checkpoint(method=method, qk_norm=False, time_input=time_input)
    assert config_of(exported("run", "public"))["time_conditioning"] == reads


def test_a_network_that_does_not_read_the_time_is_written_as_one_that_may_be_given_any():
    """The public code always gives it 0, and the adaptive norms that are added change nothing."""
    checkpoint(**PUBLIC)
    folder, ours = exported("run", "public"), load_model("run")
    tensors = bare_names(read_safetensors(folder / FILES[0]))
    wider = type(ours.denoiser)(ours.method.vocab_size, 1, 2, 16, cond_dim=128).eval()
    wider.load_state_dict(to_ours(tensors, wider.state_dict(), "it"))
    z = torch.randint(ours.method.vocab_size, (2, 8))
    assert torch.equal(wider(z, torch.rand(2, 1)), ours.denoiser(z))


def test_adaptive_norms_that_were_trained_are_not_left_out():
    checkpoint(**PUBLIC)
    folder = exported("run", "public")
    tensors = read_safetensors(folder / FILES[0])
    tensors["backbone.blocks.0.adaLN_modulation.bias"][3] = 1
    with atomic_write(folder / FILES[0]) as file:  # a memory-mapped file must not be overwritten
        write_safetensors(file, tensors)
    with pytest.raises(UserError, match="blocks.0.adaLN_modulation.bias has changed"):
        load_model("public")


def test_a_published_model_is_exported_as_it_came(monkeypatch):
    state = checkpoint(method="duo", **SIGMA)
    monkeypatch.setattr(hub, "encoding_of", lambda tokens, source: from_json(state["encoding"]))
    folder = exported("run", "public")
    about = config_of(folder)
    about.pop("palimpsest")  # what is left are the public code's own keys
    (folder / "config.json").write_text(json.dumps({**about, "vocab_size": 50258}))
    again = exported("public", "again")
    assert (again / FILES[0]).read_bytes() == (folder / FILES[0]).read_bytes()
    assert load_model("public").config.time_input == "sigma"


def test_flags_that_a_published_model_lacks_have_their_published_values():
    state = checkpoint(method="sedd", **SIGMA)
    method = load_model("run").method
    assert export.layout_name(state["config"], method, "it") == "sedd"
    for name in ("transition", "noise_schedule"):
        del state["config"][name]
    assert export.layout_name(state["config"], method, "it") == "sedd"


@pytest.mark.parametrize("method", METHODS)
def test_the_flags_that_a_public_code_needs_are_flags(method):
    row = load_row(METHODS, method)
    needed = {"method": method, "labels": row.classifies, **row.public_flags}
    config = configure(train.Config, **needed)
    assert vars(config).items() >= needed.items()
    assert not row.public_flags or row.public_layout in LAYOUTS


def test_an_exported_model_is_sampled_from_and_trained_on(capsys):
    checkpoint(**PUBLIC)
    exported("run", "public")
    argv = ["--init_from=public", "--steps=2", "--num_samples=1", "--device=cpu"]
    sample.main(*parse(sample.Config, argv))
    assert "text 1" in capsys.readouterr().out
    defaults = {**TINY, "n_layer": 3, "n_embd": 32}  # they do not matter, since none is given
    config = configure(train.Config, **{**defaults, "init_from": "public", "out_dir": "tuned"})
    train.main(config, [])
    assert read_state("tuned")["step"] == 2
    assert "start from it with --init_from public and another --out_dir" in complaint(
        train, "--out_dir=public", "--init_from=resume", capsys=capsys)


@pytest.mark.parametrize("flags, says", [
    (dict(method="mdlm"), "train with --no_qk_norm"),
    (dict(method="ar", qk_norm=False), "no public layout"),
    (dict(method="pgm", qk_norm=False, n_layer=2), "no public layout"),
    (dict(method="duo", qk_norm=False), "train with --no_qk_norm --time_input sigma"),
    (dict(method="sedd", **SIGMA, transition="uniform"), "--transition absorbing"),
    (dict(method="sedd", **SIGMA, noise_schedule="geometric"), "--noise_schedule loglinear"),
    (dict(method="mdlm", qk_norm=False, labels=True), "--time_input sigma, or none"),
    (dict(method="udlm", **SIGMA, norm_bias=True), "--no_norm_bias"),
    (dict(method="mdlm", **SIGMA, norm_bias=True), "--no_norm_bias"),
    (dict(method="classifier", labels=True, qk_norm=False), "no public layout")])
def test_what_has_no_public_layout_is_exported_in_our_own_and_says_why(flags, says, capsys):
    checkpoint(**flags)
    folder = exported("run", "own")
    said = capsys.readouterr().out
    assert "in our own layout; sample.py and train.py read it with --init_from own\n" in said
    assert "no public code can read it: run " in said and says in said
    assert config_of(folder).keys() == {"model_type", "palimpsest"}


@pytest.mark.parametrize("method", scripts_differ(METHODS, by=networks))
def test_the_default_network_of_every_method_is_exported_and_comes_back_bit_for_bit(method):
    """Also what a method keeps beside the network: the neighbors of d3pm."""
    checkpoint(method="mdlm", qk_norm=False)
    Path("run").rename("other")
    more = {"d3pm": dict(transition="nearest", embedding="other", diffusion_steps=8),
            "pgm": dict(n_layer=2)}.get(method, {})
    fit("run", method=method, max_iters=1, **more)
    folder = exported("run", "own")
    ours, back = load_model("run"), load_model("own")
    torch.testing.assert_close(back.denoiser.state_dict(), ours.denoiser.state_dict(), rtol=0,
                               atol=0)
    torch.testing.assert_close(back.method.extra_state(), ours.method.extra_state(), rtol=0, atol=0)
    assert vars(back.config) == vars(ours.config) and back.classes == ours.classes
    again = exported("own", "again")
    assert all((again / name).read_bytes() == (folder / name).read_bytes() for name in FILES)


# ---- the folder

def content(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def test_an_export_over_an_earlier_one_is_all_or_nothing(monkeypatch):
    checkpoint(**PUBLIC)
    earlier = content(exported("run", "public"))
    checkpoint(**PUBLIC)

    def full(file, tensors):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(export, "write_safetensors", full)
        with pytest.raises(OSError):
            exported("run", "public")
    assert content("public") == earlier and load_model("public").step == 3
    later = content(exported("run", "public"))
    assert later.keys() == earlier.keys() and later["model.safetensors"] != earlier[FILES[0]]


def test_an_export_that_was_killed_while_it_replaced_the_files_is_no_model_and_is_done_again():
    checkpoint(**PUBLIC)
    folder = exported("run", "public")
    (folder / "config.json").unlink()  # it goes first and comes last
    assert not hub.is_published("public")
    (folder / ".model.safetensors.0123456789abcdef.part").write_bytes(b"half")
    exported("run", "public")
    assert load_model("public").step == 3


@pytest.mark.parametrize("theirs, names", [
    (["config.json", "model.safetensors"], "config.json"), (["model.safetensors"], "model.safe"),
    (["notes.txt"], "notes.txt"), (["pytorch_model.bin"], "pytorch_model.bin"),
    (["encoding.json"], "encoding.json"), (["ckpt.pt"], "a checkpoint"),
    (["sub/config.json"], "sub")])
@pytest.mark.parametrize("beside_ours", [False, True])
def test_a_folder_with_other_files_is_refused_by_the_name_of_one(theirs, names, beside_ours):
    """Of our names, too, but an export of ours is known by config.json: that is replaced."""
    checkpoint(**PUBLIC)
    if beside_ours:
        exported("run", "theirs")
        theirs = [name for name in theirs if name not in FILES] or ["more.txt"]
        names = names if theirs != ["more.txt"] else "more.txt"
    for name in theirs:
        Path("theirs", name).parent.mkdir(parents=True, exist_ok=True)
        Path("theirs", name).write_text("{}")
    before = {path: path.read_bytes() for path in Path("theirs").rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=f"theirs holds {names}.*: choose another folder"):
        exported("run", "theirs")
    assert before == {p: p.read_bytes() for p in Path("theirs").rglob("*") if p.is_file()}


def test_a_new_an_empty_and_a_linked_folder_are_written_and_what_is_hidden_stays():
    checkpoint(**PUBLIC)
    Path("empty/.git").mkdir(parents=True)
    os.symlink("empty", "linked")
    for to in ("new/deep", "empty", "linked"):
        exported("run", to)
        assert load_model(to).step == 3 and hub.is_published(to)
    assert os.path.islink("linked") and Path("empty/.git").is_dir()


def test_what_was_measured_of_an_earlier_export_is_kept_but_not_beside_the_next_one():
    checkpoint(**PUBLIC)
    for n in range(3):
        folder = exported("run", "public")
        (folder / "evaluation.json").write_text(str(n))
    assert {path.name: path.read_text() for path in folder.glob("eval*")} == {
        "evaluation.previous.json": "0", "evaluation.previous-2.json": "1", "evaluation.json": "2"}


def test_the_usual_folder_stands_beside_the_run_also_where_its_file_was_named():
    checkpoint(**PUBLIC)
    for name in ("run", "run/", "run/ckpt.pt"):
        export.main(*parse(export.Config, ["--out_dir", name]))
    assert sorted(path.name for path in Path().iterdir()) == ["run", "run-export"]


def test_a_file_is_no_folder():
    checkpoint(**PUBLIC)
    Path("file").touch()
    with pytest.raises(UserError, match="file is a file: name a folder with --to"):
        exported("run", "file")


def change(folder, **flags):
    about = config_of(folder)
    about["palimpsest"]["config"].update(flags)
    (folder / "config.json").write_text(json.dumps(about))


@pytest.mark.parametrize("damage, says", [
    (lambda folder: (folder / "encoding.json").unlink(), "lost its encoding.json"),
    (lambda folder: (folder / "encoding.json").write_text("{}"), "not a tokenizer of palimpsest"),
    (lambda folder: (folder / "model.safetensors").unlink(), "there are no weights"),
    (lambda folder: change(folder, n_embd=24), "another size"),
    (lambda folder: change(folder, method="telepathy"), "telepathy"),
    (lambda folder: change(folder, n_head=None), "describes no network")])
def test_a_damaged_export_is_refused_in_one_line(damage, says):
    checkpoint(**PUBLIC)
    damage(exported("run", "public"))
    with pytest.raises(UserError, match=says) as refused:
        load_model("public")
    assert "\n" not in str(refused.value)
