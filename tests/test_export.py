"""A checkpoint as the public code names it: the same network there and back, bit for bit, and the same bytes again."""
import functools
import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from runs import TINY, cache, complaint, elsewhere  # noqa: F401

import checkpoint
import export
import hub
import layouts
import sample
import train
from data import BadInput, text
from data.tokenizer import to_json
from flags import parse

FILES = ["model.safetensors", "config.json", "encoding.json"]
PUBLIC = dict(qk_norm=False)
SIGMA = dict(PUBLIC, clock="sigma")
RUNS = {"mdlm": PUBLIC, "md4": PUBLIC, "bd3lm": PUBLIC, "gidd": PUBLIC, "radd": dict(PUBLIC, norm_bias=True),
        "udlm": dict(SIGMA, labels=True), "duo": SIGMA, "sedd": SIGMA}


@functools.cache
def toy():
    return text.load("toy", 8, "auto")


def made(**flags):
    """A checkpoint in run/ with random weights, of step 3; no training is needed for that."""
    config = train.Config(**{**TINY, "out_dir": "run", **flags})
    classes = checkpoint.classes_of(config, toy())
    net = checkpoint.network(config, checkpoint.method_of(config, toy().encoding), len(classes))
    weights = {name: 0.3 * torch.randn(a.shape) for name, a in net.state_dict().items()}
    state = {"model": weights, "ema": weights, "optimizers": [], "step": 3, "config": asdict(config),
             "encoding": to_json(toy().encoding), "classes": classes}
    checkpoint.Folder("run").save(state)
    return checkpoint.load("run")


def exported(run, to):
    export.main(parse(export.Config, ["--out_dir", str(run), "--to", str(to)])[0])
    return Path(to)


@pytest.mark.parametrize("method", RUNS)
def test_there_and_back_is_the_same_network_bit_for_bit(method):
    made(method=method, **RUNS[method])
    folder = exported("run", "public")
    ours, back = checkpoint.restore("run"), checkpoint.restore("public")
    torch.testing.assert_close(back.denoiser.state_dict(), ours.denoiser.state_dict(), rtol=0, atol=0)
    assert vars(back.config) == vars(ours.config) and (back.step, back.classes) == (3, ours.classes)
    again = exported("public", "again")
    assert all((again / name).read_bytes() == (folder / name).read_bytes() for name in FILES)


@pytest.mark.parametrize("method, prefix", [("mdlm", "backbone."), ("bd3lm", "backbone."), ("duo", "backbone."),
                                            ("sedd", "")])
def test_another_reads_the_names_and_sizes_that_its_own_code_writes(method, prefix):
    """As the published files have them; without what only we read."""
    made(method=method, **RUNS[method])
    folder = exported("run", "public")
    tensors, about = layouts.read_safetensors(folder / FILES[0]), json.loads((folder / "config.json").read_text())
    own = {"sampling_eps_min", "sampling_eps_max"}
    assert {name for name in tensors if not name.startswith(prefix)} == (own if method == "bd3lm" else set())
    bare = {name.removeprefix(prefix): tuple(a.shape) for name, a in tensors.items()}
    assert bare["vocab_embed.embedding"] == (about["vocab_size"], 16) and bare["rotary_emb.inv_freq"] == (4,)
    C = about["cond_dim"]
    assert bare["sigma_map.mlp.0.weight"] == (C, 256) and bare["blocks.0.adaLN_modulation.weight"] == (96, C)
    assert bare["output_layer.adaLN_modulation.bias"] == (32,) and bare["blocks.0.attn_qkv.weight"] == (48, 16)
    assert (about["model_type"], about["hidden_dim"], about["n_blocks"], about["n_heads"], about["model_length"]) == (
        method, 16, 1, 2, 8)
    assert about["time_conditioning"] == (method in ("duo", "sedd")) and about.get("block_size", 4) == 4


def test_a_network_without_a_clock_is_written_as_one_that_may_be_told_anything():
    """The public code always tells it 0, and the adaptive norms that it is given do nothing."""
    made(**PUBLIC)
    folder, ours = exported("run", "public"), checkpoint.restore("run")
    tensors = layouts.bare(layouts.read_safetensors(folder / FILES[0]))
    wider = type(ours.denoiser)(ours.method.vocab_size, 1, 2, 16, cond_dim=128).eval()
    wider.load_state_dict(layouts.to_ours(tensors, wider.state_dict(), "it"))
    z = torch.randint(ours.method.vocab_size, (2, 8))
    assert torch.equal(wider(z, torch.rand(2, 1)), ours.denoiser(z))


def test_a_clock_that_has_learnt_something_is_not_left_out():
    made(**PUBLIC)
    folder = exported("run", "public")
    tensors = layouts.read_safetensors(folder / FILES[0])
    tensors["backbone.blocks.0.adaLN_modulation.bias"][3] = 1
    with checkpoint.beside(folder / FILES[0]) as file:       # what is memory-mapped must not be written over
        layouts.write_safetensors(file, tensors)
    with pytest.raises(BadInput, match="blocks.0.adaLN_modulation.bias has changed"):
        checkpoint.restore("public")


def test_a_published_model_is_exported_as_it_came(monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "encoding_of", lambda tokens, source: hub.from_json(state["encoding"]))
    state = made(method="duo", **SIGMA)
    folder = exported("run", "public")
    about = json.loads((folder / "config.json").read_text())
    about.pop("palimpsest")
    (folder / "config.json").write_text(json.dumps({**about, "vocab_size": 50258}))      # the public code's own keys
    again = exported("public", "again")
    assert (again / FILES[0]).read_bytes() == (folder / FILES[0]).read_bytes()
    assert checkpoint.restore("public").config.clock == "sigma"


def test_published_sedd_says_neither_transition_nor_schedule_and_is_exported_as_what_it_is():
    state = made(method="sedd", **SIGMA)
    for name in ("transition", "noise_schedule"):
        del state["config"][name]
    assert export.family(state["config"], "it") == export.family(made(method="sedd", **SIGMA)["config"], "it")


def test_an_exported_model_is_sampled_from_and_trained_on(capsys):
    made(**PUBLIC)
    exported("run", "public")
    sample.main(parse(sample.Config, ["--init_from=public", "--steps=2", "--num_samples=1", "--device=cpu"])[0])
    assert "text 1" in capsys.readouterr().out
    small = {**TINY, "n_layer": 3, "n_embd": 32}             # defaults, not given: they do not matter
    train.main(train.Config(**{**small, "init_from": "public", "out_dir": "tuned", "max_iters": 2}), [])
    assert checkpoint.load("tuned")["step"] == 2
    assert "start from it with --init_from public and another --out_dir" in complaint(
        train, "--out_dir=public", "--init_from=resume", capsys=capsys)


@pytest.mark.parametrize("flags, says", [
    (dict(method="mdlm"), "train with --no_qk_norm"), (dict(method="ar", qk_norm=False), "no public layout"),
    (dict(method="pgm", qk_norm=False, n_layer=2), "no public layout"),
    (dict(method="duo", qk_norm=False), "--clock sigma"),
    (dict(method="sedd", **SIGMA, transition="uniform"), "absorbing"),
    (dict(method="mdlm", qk_norm=False, labels=True), "--clock sigma, or none"),
    (dict(method="udlm", **SIGMA, norm_bias=True), "--no_norm_bias"),
    (dict(method="classifier", labels=True, qk_norm=False), "no public layout")])
def test_what_has_no_public_layout_is_refused_and_nothing_is_written(flags, says):
    made(**flags)
    with pytest.raises(BadInput, match=says):
        exported("run", "public")
    assert not Path("public").exists()


def test_a_failed_export_leaves_no_model(monkeypatch):
    """A folder without config.json is none; and one with a checkpoint in it is not written to at all."""
    made(**PUBLIC)
    exported("run", "public")

    def full(file, tensors):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "write_safetensors", full)
    with pytest.raises(OSError):
        exported("run", "public")
    assert not hub.known("public") and not list(Path("public").glob("*.tmp"))
    with pytest.raises(BadInput, match="choose another folder"):
        exported("run", "run")


@pytest.mark.parametrize("damage, says", [
    (lambda folder: (folder / "encoding.json").unlink(), "lost its encoding.json"),
    (lambda folder: (folder / "encoding.json").write_text("{}"), "no tokenizer of ours"),
    (lambda folder: (folder / "model.safetensors").unlink(), "there are no weights"),
    (lambda folder: change(folder, n_embd=24), "another size"),
    (lambda folder: change(folder, method="telepathy"), "telepathy"),
    (lambda folder: change(folder, n_head=None), "describes no network")])
def test_a_damaged_export_is_refused_in_one_line(damage, says):
    made(**PUBLIC)
    damage(exported("run", "public"))
    with pytest.raises(BadInput, match=says) as refused:
        checkpoint.restore("public")
    assert "\n" not in str(refused.value)


def change(folder, **flags):
    about = json.loads((folder / "config.json").read_text())
    about["palimpsest"]["config"].update(flags)
    (folder / "config.json").write_text(json.dumps(about))
