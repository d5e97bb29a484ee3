"""Whatever a user can get wrong is told in one line on stderr that says what to do, with exit code 2, no traceback."""
import os
import sys
from pathlib import Path

import pytest
import torch
from runs import TINY, cache, complaint, elsewhere, fit, tiny, trained  # noqa: F401

import checkpoint
import evaluate
import sample
import train
from data import BadInput, text
from data.tokenizer import to_json


class Bomb:
    """What a malicious checkpoint holds: loading it with pickle would run this."""
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def damaged(kind, good):
    """A checkpoint with something wrong, made from a good one."""
    path, state = Path("bad.pt"), checkpoint.load(good)
    if kind in ("truncated", "empty"):
        raw = (good / "ckpt.pt").read_bytes()
        path.write_bytes(raw[:len(raw) * 9 // 10] if kind == "truncated" else b"")
    elif kind == "text":
        path.write_text("no checkpoint at all\n")
    elif kind == "zip":
        path.write_bytes(b"PK\x05\x06" + bytes(18))         # an empty archive
    elif kind == "pickle":
        torch.save({**state, "step": Bomb()}, path)
    elif kind == "legacy":
        torch.save({**state, "step": Bomb()}, path, _use_new_zipfile_serialization=False)
    elif kind == "foreign":
        torch.save({"model": state["model"], "iter_num": 7}, path)
    elif kind == "list":
        torch.save([1, 2, 3], path)
    elif kind == "half":
        torch.save({name: state[name] for name in ("format", "step", "config")}, path)
    elif kind == "tokens":
        torch.save({**state, "encoding": to_json(text.byte_level())}, path)
    elif kind == "garbled tokens":
        torch.save({**state, "encoding": "[]"}, path)
    elif kind == "method":
        torch.save({**state, "config": {**state["config"], "method": "telepathy"}}, path)
    elif kind == "shape":
        torch.save({**state, "config": {**state["config"], "n_embd": "wide"}}, path)
    return path


@pytest.mark.parametrize("kind, says", [
    ("truncated", "cut short"), ("empty", "cut short"), ("text", "not written by torch.save"),
    ("zip", "cannot be read"), ("pickle", "could run code"), ("legacy", "cannot be read"),
    ("foreign", "not a checkpoint of this code"), ("list", "not a checkpoint of this code"),
    ("half", "not a checkpoint of this code"), ("tokens", "do not fit each other"),
    ("garbled tokens", "do not fit each other"), ("method", "telepathy"), ("shape", "do not fit each other")])
@pytest.mark.parametrize("module", [sample, evaluate, train], ids=["sample", "evaluate", "train"])
def test_a_bad_checkpoint_is_refused_in_one_line_and_its_code_never_runs(module, kind, says, trained, capsys):
    path = damaged(kind, trained / "mdlm")
    Path("out").mkdir()
    os.replace(path, "out/ckpt.pt")
    resume = ["--init_from=resume", "--max_iters=30"] if module is train else []
    error = complaint(module, "--out_dir", "out", *resume, capsys=capsys)
    assert says in error and "out" in error
    assert not Path("exploded").exists()


@pytest.mark.parametrize("argv, says", [
    (["--data", "nothing.txt"], "there is no data 'nothing.txt'"),
    (["--data", "tpy"], "did you mean 'toy'"),
    (["--data", "empty.txt"], "holds no text"),
    (["--data", "short.txt", "--tokenizer", "chars"], "not one block of 64"),
    (["--data", "latin1.txt"], "--tokenizer bytes"),
    (["--data", "poem.txt", "--tokenizer", "gpt-2"], "did you mean 'gpt2'"),
    (["--data", "poem.txt", "--vocab_size", "20"], "--vocab_size"),
    (["--data", "toy", "--tokenizer", "model"], "name it with --init_from"),
    (["--data", "toy", "--method", "pgm", "--clock", "sigma"], "no mask needs a clock"),
    (["--data", "toy", "--method", "md4", "--clock", "sigma"], "no mask needs a clock"),
    (["--shard"], "or go on with --no_shard"),
    (["--method", "sedd", "--compile", "reduce-overhead"], "holds steps of one shape"),
    (["--method", "mdml"], "did you mean mdlm?"),
    (["--batch_size=1.5"], "1.5"),
    (["--n_head", "3"], "--n_embd 128 must be --n_head 3 times an even number"),
    (["--p_uniform", "1"], "between"),
    (["--curriculum", "1.5"], "between"),
    (["--tau=-0.1"], "between"),
    (["--top_k=-1"], "at least 0"),
    (["--data", "toy", "--method", "duo", "--top_k", "113"], "--top_k 113 must be less than the 113 symbols"),
    (["--device", "cuda:99"], "there is no device 'cuda:99'"),
    (["--device", "gpu"], "--device cpu always works"),
    (["--init_from", "resume"], "there is no checkpoint out/python-mdlm/ckpt.pt: train one first"),
    (["--data", "toy", "--out_dir", "poem.txt"], "cannot write to poem.txt"),
    (["--data", "toy", "--out_dir", "/proc/nowhere"], "cannot write to /proc/nowhere"),
])
def test_what_cannot_be_trained_is_one_line_and_leaves_nothing(argv, says, capsys):
    Path("empty.txt").write_text("")
    Path("short.txt").write_text("To be, or not to be")
    Path("latin1.txt").write_bytes("Übermut tut selten gut. ".encode("latin-1") * 99)
    Path("poem.txt").write_text("a rose is a rose is a rose\n" * 99)
    assert says in complaint(train, *argv, capsys=capsys)
    assert not Path("out").exists()


@pytest.mark.parametrize("name, value", [("n_embd", 32), ("method", "ar"), ("data", "names"), ("seed", 3),
                                         ("block_size", 16), ("curriculum", 0.1), ("tau", 0.1), ("top_k", 3)])
def test_a_resumed_run_cannot_change_its_shape(name, value, trained, capsys):
    resume = ["--out_dir", trained / "mdlm", "--init_from", "resume"]
    error = complaint(train, *resume, f"--{name}={value}", capsys=capsys)
    assert f"--{name} {value} does not fit" in error and f"which has {getattr(train.Config(**TINY), name)}" in error


def test_a_text_that_has_changed_since_cannot_be_resumed(monkeypatch, capsys):
    Path("poem.txt").write_text("a rose is a rose is a rose\n" * 99)
    fit("out", data="poem.txt", tokenizer="chars")
    before, again = Path("out/metrics.jsonl").read_bytes(), ["--out_dir", "out", "--init_from", "resume"]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert "pip install tensorboard" in complaint(train, *again, "--tensorboard", capsys=capsys)
    Path("poem.txt").write_text("a tulip is a tulip\n" * 99)
    assert "other tokens now" in complaint(train, *again, capsys=capsys)
    assert Path("out/metrics.jsonl").read_bytes() == before  # what is refused takes nothing back


def test_two_runs_cannot_write_to_one_folder(tmp_path, capsys):
    held = checkpoint.Folder("out")
    error = complaint(train, *tiny(out_dir="out"), capsys=capsys)
    assert "another run is writing to out: wait for it, or choose another --out_dir" in error
    held.lock.release()
    fit("out")


@pytest.mark.parametrize("argv, says", [
    (["--prompt", "the hobbit sees"], "'hobbit'"),
    (["--prompt", "FILE:nowhere.txt"], "cannot read the prompt nowhere.txt"),
    (["--prompt", "FILE:latin1.txt"], "not UTF-8"),
    (["--prompt", "the cat " * 9], "the prompt has 18 tokens, more than the text's 8"),
    (["--prompt", "the _ cat", "--length", "2"], "raise --length"),
    (["--gap", "__"], "must be one character"),
    (["--sampler", "confidence", "--out_dir", "AR"], "ar has a walk of its own"),
    (["--sampler", "psi", "--out_dir", "AR"], "ar has a walk of its own"),
    (["--tail", "greedy", "--out_dir", "AR"], "no --tail or --grid"),
    (["--sampler", "first-hitting", "--out_dir", "UDLM"], "radd or bd3lm or pgm: udlm has"),
    (["--sampler", "confidence", "--oracle", "gidd"], "radd or bd3lm or pgm: gidd has"),
    (["--tail", "greedy"], "--tail greedy proofreads text, which masks leave alone"),
    (["--sampler", "confidences"], "did you mean confidence?"),
    (["--kappa", "caps"], "did you mean cap?"),
    (["--eta", "1.1"], "between"),
    (["--steps", "0"], "at least 1"),
    (["--top_p", "0"], "between"),
    (["--temperature=-1"], "between"),
    (["--out_dir", "nowhere"], "there is no checkpoint nowhere/ckpt.pt"),
    (["--out_dir", "nowhere.pt"], "there is no checkpoint nowhere.pt"),
    (["--device", "tpu"], "there is no device 'tpu'"),
])
def test_what_cannot_be_sampled_is_one_line(argv, says, trained, capsys):
    Path("latin1.txt").write_bytes("Übermut".encode("latin-1"))
    argv = [str(trained / word.lower()) if word in ("AR", "UDLM") else word for word in argv]
    assert says in complaint(sample, "--out_dir", trained / "mdlm", *argv, capsys=capsys)


@pytest.mark.parametrize("argv, says", [
    (["--judge", "MDLM"], "must be an ar checkpoint with the same tokens"),
    (["--judge", "names"], "must be an ar checkpoint with the same tokens"),
    (["--judge", "nowhere"], "there is no checkpoint nowhere/ckpt.pt"),
    (["--data", "nowhere.txt"], "there is no data 'nowhere.txt'"),
    (["--oracle", "mdlm", "--data", "names"], "knows the toy language alone"),
    (["--oracle", "ddpm"], "is not one of ar, mdlm"),
    (["--max_texts", "1"], "at least 2"),
    (["--num_samples", "1"], "two"),
    (["--sampler", "first-hitting", "--oracle", "duo"], "or pgm: duo has"),
    (["--tail", "greedy"], "proofreads"),
])
def test_what_cannot_be_evaluated_is_one_line(argv, says, trained, capsys):
    if "names" in argv and "--judge" in argv:
        fit("names", method="ar", data="names")
    argv = [str(trained / "mdlm") if word == "MDLM" else word for word in argv]
    assert says in complaint(evaluate, "--out_dir", trained / "mdlm", *argv, capsys=capsys)


def test_a_device_without_float64_is_refused_and_auto_never_takes_one(monkeypatch):
    zeros = torch.zeros

    def on_apples(*shape, dtype=None, device=None):
        if device == "mps" and dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return zeros(*shape, dtype=dtype)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "zeros", on_apples)
        patch.setattr(torch.backends.mps, "is_available", lambda: True)
        patch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(BadInput, match="mps has no float64, which exact draws need: --device cpu"):
            checkpoint.device_of("mps")
        assert checkpoint.device_of("auto").type == "cpu"
