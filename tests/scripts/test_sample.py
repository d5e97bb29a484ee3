"""
sample.py as its users meet it: every method with every sampler that fits it, every choice of every
flag, prompts and gaps, long texts, images; and whatever does not fit is one line.
"""
import json
import subprocess
from pathlib import Path

import pytest
import torch

import sample
from data.tokenizer import byte_level, end_of_text
from flags import UserError, configure, flags_of, load_row
from forks import forked
from kinds import each_once, fitting, in_place, networks, scripts_differ
from methods import METHODS, make_method
from models import random_checkpoint
from runs import cache, commanded, complaint, disk_of, elsewhere, script  # noqa: F401
from samplers import CORRECTORS, SAMPLERS

WRITERS = [name for name in METHODS if not load_row(METHODS, name).classifies]


@pytest.fixture(scope="module")
def random_runs(tmp_path_factory):
    """folder(method): a run of the method on the toy language, with random weights."""
    root = tmp_path_factory.mktemp("runs")
    return lambda name: (root / name if (root / name).exists() else
                         random_checkpoint(root / name, method=name))


def texts(capsys, **flags):
    """What sample.py --json prints, as dicts."""
    capsys.readouterr()
    flags = {**dict(num_samples=2, steps=2, json=True, device="cpu"), **flags}
    sample.main(configure(sample.Config, **flags), [])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


# ---- methods and samplers

MADE = {name: make_method(name, 8) for name in WRITERS}
FITTING = list(fitting(MADE))


@pytest.mark.parametrize("name, sampler, corrector", each_once(
    case for case in FITTING if (case[1] == "ancestral" or case[2] == "draw")
    and case[1] != "grammar"))  # which knows no text with "the cat" and "every red" at these places
def test_every_sampler_writes_the_text_of_every_method_that_it_fits(name, sampler, corrector,
                                                                    random_runs, capsys):
    """Given tokens survive wherever they stand, from an exact denoiser and from a network."""
    flags = dict(sampler=sampler, corrector=corrector, steps=3, prompt="_ the cat _ _ every red _")
    oracles = [dict(oracle=one) for one in in_place([name])]
    for source in (*oracles, dict(out_dir=str(random_runs(name)))):
        found = texts(capsys, **source, **flags)
        assert len(found) == 2 and all(len(text["ids"]) == 8 for text in found)
        for words in (text["text"].split() for text in found):
            assert len(words) == 8 and "_" not in words
            assert words[1:3] == ["the", "cat"] and words[5:7] == ["every", "red"]


@pytest.mark.parametrize("sampler, corrector", [*((name, "draw") for name in SAMPLERS),
                                                *(("ancestral", name) for name in CORRECTORS)])
def test_a_sampler_that_does_not_fit_a_method_is_refused_in_one_line(sampler, corrector, capsys):
    refused = [name for name in WRITERS if (name, sampler, corrector) not in FITTING]
    for name in refused[:1] + refused[-1:]:
        error = complaint(sample, "--oracle", name, "--sampler", sampler,
                          "--corrector", corrector, capsys=capsys)
        assert "--sampler" in error or "--corrector" in error


def test_the_texts_of_a_sampler_with_other_flags_are_other_texts(capsys):
    """Every flag reaches the sampler: from one seed, each combination writes other texts."""
    ways = [dict(sampler="psi", kappa=kappa, eta=0.2)
            for kappa in ("constant", "cap", "rescale", "loop")]
    ways += [dict(), dict(temperature=0.5), dict(top_p=0.5), dict(corrector="greedy")]
    ways += [dict(sampler="psi", eta=0.9), dict(sampler="psi", eta=0.9, corrector="greedy")]
    write = lambda flags: str([text["ids"] for text in
                               texts(capsys, oracle="udlm", steps=6, num_samples=9, **flags)])
    assert len(set(map(write, ways))) == len(ways) and write({}) == write({})


def choices_of(cls):
    """(flag, choice) for each choice of each flag of a class."""
    for name, f in flags_of(cls).items():
        choices = (True, False) if f.type is bool else f.metadata["choices"] or ()
        yield from ((name, choice) for choice in choices)


ROWS = [(table, name, flag, choice)
        for table, rows in (("sampler", SAMPLERS), ("corrector", CORRECTORS))
        for name in rows for flag, choice in choices_of(load_row(rows, name))
        if (flag, choice) != ("eos_last", True)  # with chats alone: test_chat_runs.py
        and (flag, choice) != ("value", "class")  # with a classifier alone: test_search_runs.py
        and flag != "draft_order"  # with a draft that has masks: test_speculative.py
        and name != "tree-edits"  # of expressions alone: test_tree_diffusion_runs.py
        and (name, choice) not in (("2m", "argmax"), ("2m", True))]  # refused: below
ROWS += [("sampler", "psi", "eta", eta) for eta in (0.0, 0.3, 1.0)]


@pytest.mark.parametrize("table, name, flag, choice", ROWS)
def test_sampling_works_with_every_choice_of_every_flag_of_a_sampler(table, name, flag, choice,
                                                                     random_runs, capsys):
    methods = [method for method, *row in FITTING if name in row]
    method = "mdlm" if "mdlm" in methods else methods[0]
    found = texts(capsys, out_dir=str(random_runs(method)), steps=3, **{table: name, flag: choice})
    assert len(found) == 2 and found[0][flag] == choice


@pytest.mark.parametrize("flags, words", [(dict(last="argmax"), "leave out --last"),
                                          (dict(clamp=True), "leave out --clamp")])
def test_latents_have_no_rows_to_move_to(flags, words, random_runs, capsys):
    with pytest.raises(UserError, match=words):
        texts(capsys, out_dir=str(random_runs("ld4lg")), steps=3, sampler="2m", **flags)


GENERAL = [case for case in choices_of(sample.Config)
           if case[0] != "compile" and case != ("chat", True)]  # test_compile, test_chat_runs


@pytest.mark.parametrize("flag, choice", GENERAL)
@pytest.mark.parametrize("name", ["mdlm", "udlm", "ar"])
def test_sampling_works_with_every_choice_of_every_flag(name, flag, choice, random_runs, capsys):
    flags = dict(out_dir=str(random_runs(name)), steps=3, num_samples=2, device="cpu")
    sample.main(configure(sample.Config, **{**flags, flag: choice}), [])
    assert capsys.readouterr().out.count("\n") >= 2


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("flags", [dict(temperature=0.0), dict(top_p=0.9)], ids=str)
def test_every_method_sharpens_its_predictions(name, flags, random_runs, capsys):
    found = texts(capsys, out_dir=str(random_runs(name)), prompt="the _ cat _", **flags)
    assert all(text["text"].split()[:3:2] == ["the", "cat"] for text in found)


def test_the_precision_of_products_is_that_of_the_flag(capsys):
    for precision in ("medium", "high", "highest"):
        texts(capsys, oracle="mdlm", steps=1, matmul_precision=precision)
        assert torch.get_float32_matmul_precision() == precision


@pytest.mark.parametrize("name", [n for n in WRITERS if flags_of(load_row(METHODS, n))])
def test_the_flags_of_an_oracle_are_those_of_its_method(name, capsys):
    """And they are part of what --json says."""
    short = dict(length=8) if in_place([name]) else {}
    found = texts(capsys, oracle=name, num_samples=1, steps=2, **short)
    assert flags_of(load_row(METHODS, name)).keys() <= found[0].keys()


def test_an_oracle_takes_the_flags_of_its_method(capsys):
    ids = lambda **flags: texts(capsys, oracle="bd3lm", steps=4, **flags)[0]["ids"]
    assert ids(diffusion_block=8) != ids() == ids(diffusion_block=4)
    assert "--diffusion_block belongs to --oracle bd3lm" in complaint(
        sample, "--oracle", "mdlm", "--diffusion_block", "8", capsys=capsys)


# ---- prompts

def test_a_prompt_without_gaps_is_continued_and_one_with_gaps_keeps_its_length(random_runs, capsys):
    out_dir = str(random_runs("mdlm"))
    words = lambda **flags: texts(capsys, out_dir=out_dir, **flags)[0]["text"].split()
    assert len(words(prompt="the cat")) == 8 and words(prompt="the cat")[:2] == ["the", "cat"]
    assert len(words(prompt="the ? cat", gap="?")) == 3
    assert len(words(prompt="the _ cat", length=5)) == 5
    assert words(prompt="the cat", length=2) == ["the", "cat"]  # nothing left to do
    Path("prompt.txt").write_text("the _\ncat\n")
    assert words(prompt="FILE:prompt.txt")[::2] == ["the", "cat"]
    assert words(seed=1) == words(seed=1) != words(seed=2)


@pytest.mark.parametrize("data, tokenizer", [
    ("names", "auto"), ("names", "bytes"), ("poem.txt", "chars"), ("poem.txt", "bpe"),
    ("poems", "bytes")])
def test_text_of_every_tokenizer_continues_its_prompt(data, tokenizer, capsys):
    poem = "".join(f"{n} green bottles, hanging on the wall.\n" for n in range(200))
    Path("poem.txt").write_text(poem)
    Path("poems").mkdir()
    Path("poems/one.txt").write_text(poem)
    random_checkpoint("out", data=data, tokenizer=tokenizer, vocab_size=120)
    prompt = "HE" if data == "names" else "gre__"
    found = texts(capsys, out_dir="out", prompt=prompt)
    assert all(text["text"].startswith(prompt.strip("_")) for text in found)


def test_end_of_text_is_that_of_encodings_that_have_one():
    assert end_of_text(byte_level()) is None
    encoding = type("", (), dict(special_tokens_set={"<|endoftext|>"}, eot_token=7))
    assert end_of_text(encoding) == 7


# ---- long texts

@pytest.mark.parametrize("name, sampler", each_once(
    row[:2] for row in FITTING if row[2] == "draw" and row[1] != "grammar"))  # as above
def test_texts_of_any_length_come_without_a_warning_and_with_the_prompt_in_them(
        name, sampler, random_runs, capsys, recwarn):
    found = texts(capsys, out_dir=str(random_runs(name)), length=40, prompt="the cat _ the",
                  sampler=sampler)
    for text in found:
        words = text["text"].split()
        assert len(text["ids"]) == 40 and "_" not in words
        assert words[:2] == ["the", "cat"] and words[3] == "the"
    assert not recwarn.list


@pytest.mark.parametrize("name", ["ar", "bd3lm"])
def test_a_window_is_what_is_remembered(name, random_runs, capsys):
    """A longer window changes a long text; one that holds all of it changes nothing more."""
    ids = [texts(capsys, out_dir=str(random_runs(name)), length=64, window=window)[0]["ids"]
           for window in (0, 8, 32, 64, 128)]
    assert ids[0] == ids[1] != ids[3] == ids[4] and ids[0][:8] == ids[3][:8]


@pytest.mark.parametrize("flags", [
    dict(), dict(cache="prefix", threshold=0.2), dict(cache="dual", factor=1.0),
    dict(cache="dual", temperature=0.0)], ids=str)
def test_semi_autoregressive_decoding_takes_a_call_per_token_at_most(flags, random_runs, capsys):
    found = texts(capsys, out_dir=str(random_runs("mdlm")), prompt="the cat", sampler="semi-ar",
                  decode_block=4, **flags)[0]
    assert found["text"].split()[:2] == ["the", "cat"]
    assert len(found["ids"]) == 8 and found["network_calls"] <= 8


# ---- images

@pytest.mark.parametrize("name", scripts_differ(WRITERS, by=networks))
def test_images_are_written_to_one_file_after_all_texts(name, capsys):
    pytest.importorskip("sklearn")
    flags = dict(transition="absorbing") if name == "d3pm" else {}
    random_checkpoint("out", data="digits", block_size=64, method=name, labels=True, **flags)
    found = texts(capsys, out_dir="out", label="7", num_samples=3, png="grid.png")
    assert Path("grid.png").read_bytes()[:4] == b"\x89PNG"
    assert all([len(line) for line in text["text"].split("\n")] == [8] * 8 for text in found)
    for argv, length in ((["--length", 32], 32), (["--prompt", "_" * 9], 9)):
        error = complaint(sample, "--out_dir", "out", "--png", "no.png", *argv, capsys=capsys)
        assert f"--png draws 64 pixels, and this text has {length}: leave out" in error


def test_a_full_disk_leaves_the_old_image_whole_and_all_texts(capsys):
    pytest.importorskip("sklearn")
    random_checkpoint("out", data="digits", block_size=64)
    Path("7.png").write_bytes(b"old")
    capsys.readouterr()
    with disk_of(10), pytest.raises(OSError) as failed:
        sample.main(configure(sample.Config, out_dir="out", steps=1, png="7.png", device="cpu"), [])
    assert failed.value.filename == "7.png" and capsys.readouterr().out.count("-------- text") == 3
    assert Path("7.png").read_bytes() == b"old" and not Path("7.tmp").exists()


# ---- what is wrong

@pytest.mark.parametrize("argv, says", [
    (["--prompt", "the hobbit sees"], "'hobbit'"),
    (["--prompt", "FILE:nowhere.txt"], "cannot read the prompt nowhere.txt"),
    (["--prompt", "FILE:latin1.txt"], "not UTF-8"),
    (["--prompt", "the cat " * 9], "the prompt has 18 tokens, more than the text's 8"),
    (["--prompt", "the _ cat", "--length", "2"], "raise --length"),
    (["--gap", "__", "--prompt", "the cat"], "must be one character"),
    (["--sampler", "confidences"], "did you mean confidence?"),
    (["--sampler", "psi", "--kappa", "caps"], "did you mean cap?"),
    (["--sampler", "psi", "--eta", "1.1"], "between"),
    (["--eta", "0.1"], "--eta belongs to --sampler psi"),
    (["--cache", "dual"], "--cache belongs to --sampler semi-ar"),
    (["--sampler", "semi-ar", "--threshold=0.5", "--factor=1"], "give one"),
    (["--steps=-1"], "at least 0"),
    (["--top_p", "0"], "between"),
    (["--temperature=-1"], "between"),
    (["--dtype", "float16"], "is not one of"),
    (["--out_dir", "nowhere"], "there is no checkpoint nowhere/ckpt.pt"),
    (["--out_dir", "nowhere.pt"], "there is no checkpoint nowhere.pt"),
    (["--device", "tpu"], "there is no device 'tpu'"),
    (["--oracle", "ddpm"], "is not one of ar, mdlm"),
    (["--oracle", "classifier"], "writes no text"),
    (["--out_dir", "CLASSIFIER"], "writes no text: use it as --label farm --classifier"),
    (["--guidance", "2"], "--guidance requires --label or --prompt"),
    (["--guidance", "2", "--prompt", "the cat", "--length", "40"], "not beyond the length"),
    (["--label", "sea"], "no classes"),
    (["--classifier", "exact"], "--classifier needs a --label"),
    (["--png", "a.png"], "--png is for images"),
    (["--stride", "9"], "--stride 9 must be at most 8"),
    (["--out_dir", "BD3LM", "--length", "10"], "10 tokens"),
    (["--out_dir", "BD3LM", "--prompt", "the _ cat"], "3 tokens"),
    (["--out_dir", "BD3LM", "--window", "2"], "must be a multiple of the block of 4 tokens"),
    (["--oracle", "mdlm", "--compile"], "exact denoiser")])
def test_what_cannot_be_sampled_is_one_line(argv, says, random_runs, capsys):
    Path("latin1.txt").write_bytes("Übermut".encode("latin-1"))
    argv = [str(random_runs(word.lower())) if word in ("CLASSIFIER", "BD3LM") else word
            for word in argv]
    model = [] if "--oracle" in argv else ["--out_dir", random_runs("mdlm")]
    assert says in complaint(sample, *model, *argv, capsys=capsys)


def test_old_names_of_flags_and_hyphens_go_on_working():
    config, given = commanded(sample, "--oracle", "udlm", "--tail", "greedy", "--num-samples=1")
    assert (config.corrector, config.num_samples) == ("greedy", 1)
    assert sorted(given) == ["corrector", "num_samples", "oracle"]


def test_the_help_of_a_sampler_or_an_oracle_lists_its_flags():
    said = subprocess.run(**forked(script("sample", "--sampler", "semi-ar", "--oracle", "bd3lm",
                                          "--help")), capture_output=True).stdout
    groups = "--sampler semi-ar (samplers/semi_ar.py)", "--oracle bd3lm (methods/bd3lm.py)"
    assert all(group in said for group in groups)
    assert "--decode_block" in said and "--diffusion_block" in said and "--kappa" not in said
