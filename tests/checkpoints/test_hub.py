"""
Published models: the tiny networks of the public code give the same outputs here as there, and the
layouts of the full sizes fit.

tests/reference/hub_reference.npz was computed with the repositories of SEDD (commit 0605786), RADD
(60b772d) and Duo (7c9b498): tiny networks of random weights, under their own names, and their
outputs. The networks of MDLM and UDLM are in reference.npz, those of BD3-LM in block_reference.npz,
and those of PGM in partition_reference.npz.
"""
import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import torch

from checkpoints import hub
from checkpoints.load import load_model
from checkpoints.tensor_layouts import LAYOUTS, bare_names, published_name, write_safetensors
from data import wordpiece
from data.tokenizer import chars, decode, encode, from_json, load_encoding, to_json
from flags import UserError, load_row
from methods import METHODS
from model import TIME_INPUTS

REFERENCE = Path(__file__).parent.parent / "reference"
WITH, WITHOUT = chars("abcdefghijkl"), chars("abcdefghijk")  # 12 symbols; or 11, and a mask


def figures(file, prefix=""):
    arrays = numpy.load(REFERENCE / f"{file}.npz")
    return {name.removeprefix(prefix): torch.from_numpy(arrays[name]) for name in arrays
            if name.startswith(prefix)}


def close(ours, theirs, tolerance=1e-5):
    torch.testing.assert_close(ours, theirs.to(ours.dtype), atol=tolerance, rtol=tolerance)


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Reads tiny tensors as the published model of a name, from a file."""
    def load(name, tensors, size, encoding, prefix="backbone.", **more):
        row = hub.find_row(name)
        row = replace(row, size=size, more={**row.more, **more})
        monkeypatch.setitem(hub.PUBLISHED, name, row)
        monkeypatch.setattr(hub, "encoding_of", lambda tokens, source: encoding)
        file = tmp_path / "model.safetensors"
        with open(file, "wb") as out:
            write_safetensors(out, {prefix + key: tensor for key, tensor in tensors.items()})
        return load_model(f"{name}={file}")
    return load


def at_sigma(sigma):
    """The time at which -log alpha is sigma (B,). -> (B, 1)"""
    return -torch.expm1(-sigma.double())[:, None]  # (B, 1)


CORE = {name: figures("reference", "net/")[name] for name in ("idx", "sigma")}
EVERYWHERE = torch.ones(2, 5, dtype=torch.bool)


# ---- the tiny networks

def test_sedd_gives_the_published_scores_scaled_by_sigma_and_by_the_number_of_words(read):
    tensors = figures("hub_reference", "net/sedd/w/")
    model = read("louaaron/sedd-small", tensors, (2, 2, 16), WITHOUT, "", cond_dim=6)
    t = at_sigma(CORE["sigma"])  # (2, 1)
    ours = model.method.log_score(model.denoiser, CORE["idx"], t, EVERYWHERE)  # (10, 12)
    close(ours.view(2, 5, 12), figures("hub_reference")["net/sedd/out_scale1"])


def test_udlm_reads_sigma(read):
    tensors = figures("reference", "net/mdlm/w/")
    model = read("kuleshov-group/udlm-lm1b", tensors, (2, 2, 16), WITH, cond_dim=6)
    ours = model.denoiser(CORE["idx"], at_sigma(CORE["sigma"]))
    close(ours, figures("reference")["net/mdlm/out"])
    assert (model.method.n_tokens, model.config.block_size) == (12, 128)


@pytest.mark.parametrize("name", ["s-sahoo/duo", "s-sahoo/duo-distilled"])
def test_duo_reads_sigma(name, read):
    figure = figures("hub_reference", "dit/")
    model = read(name, figures("hub_reference", "dit/sd/"), (2, 2, 16), WITH, cond_dim=8)
    close(model.denoiser(figure["ids"], at_sigma(figure["sigma"])), figure["out_ids"])


def test_sigma_ends_where_the_published_alpha_does():
    sigma = TIME_INPUTS["sigma"](torch.tensor([0.0, 0.5, 0.999, 0.99999, 1.0]))
    close(sigma, torch.tensor([0.0, 0.6931472, 6.9077554, 6.9077554, 6.9077554]))


def test_gidd_reads_the_time_and_a_rounded_vocabulary_is_cut(read):
    tensors = figures("reference", "net/mdlm/w/")
    for name in ("vocab_embed.embedding", "output_layer.linear.weight", "output_layer.linear.bias"):
        tensors[name] = torch.cat([tensors[name], torch.randn(4, *tensors[name].shape[1:])])
    tensors |= {f"rotary.{name}_cached": torch.zeros(1, 512, 3, 1, 8) for name in ("cos", "sin")}
    name = "dvruette/gidd-small-p_unif-0.2"
    model = read(name, tensors, (2, 2, 16), WITHOUT, "", cond_dim=6)
    ours = model.denoiser(CORE["idx"], CORE["sigma"][:, None])
    close(ours, figures("reference")["net/mdlm/out"])
    assert model.config.p_uniform == 0.2 and model.config.block_size == 512
    assert model.method.process.mask == 11


@pytest.mark.parametrize("name", ["JingyangOu/radd-lambda-dce", "JingyangOu/radd-t-dce"])
def test_radd_does_not_read_the_time_and_has_norms_with_biases(name, read):
    model = read(name, figures("hub_reference", "net/radd/w/"), (2, 2, 16), WITHOUT, "")
    ours = model.denoiser(CORE["idx"], torch.rand(2, 1))
    close(ours, figures("hub_reference")["net/radd/logits"])
    assert f"radd-{model.method.radd_objective}" in name


@pytest.mark.parametrize("name, prefix", [
    ("kuleshov-group/mdlm-owt", "backbone."), ("jdeschena/sdtt", "backbone."),
    ("jdeschena/sdtt", "backbone.backbone."), ("jdeschena/pgm@mdlm", "backbone._orig_mod.")])
def test_mdlm_reads_0_at_every_time_and_a_bd3lm_of_one_block_is_one(name, prefix, read):
    figure = figures("block_reference", "bd3_dit/")
    tensors = figures("block_reference", "bd3_dit/w/")
    model = read(name, tensors, (2, 4, 32), WITHOUT, prefix, cond_dim=8)
    for t in (None, torch.tensor([[0.9]])):
        close(model.denoiser(figure["xt"][:, :4], t), figure["sample_logits_block1"])


def test_bd3lm_reads_blocks_after_clean_text(read):
    figure, name = figures("block_reference", "bd3_dit/"), "kuleshov-group/bd3lm-owt-block_size4"
    tensors = figures("block_reference", "bd3_dit/w/") | {"sampling_eps_min": torch.tensor(1e-3)}
    model = read(name, tensors, (2, 4, 32), WITHOUT, cond_dim=8, first=10)
    denoiser = model.method.given_before(model.denoiser, figure["x0"])
    everywhere = torch.ones(1, 8, dtype=torch.bool)
    ours = denoiser(figure["xt"], torch.tensor([[0.7]]), everywhere)
    close(ours, figure["train_logits"][0])
    assert model.method.block_length == 4 and model.method.first_token == 10


def test_pgm_is_read_with_its_two_halves(read):
    figure = figures("partition_reference", "pgm_dit/")
    tensors, name = figures("partition_reference", "pgm_dit/w/"), "jdeschena/pgm@pgm_8_8"
    denoiser = read(name, tensors, (4, 4, 32), WITHOUT, cond_dim=8).denoiser.double()
    t = torch.tensor([[0.3]], dtype=torch.float64)
    ours = denoiser(figure["x"], t, group=figure["group_idxs"].bool())
    close(ours, figure["train_logits"])


# ---- the full sizes, without memory: a tensor of one number, repeated

def layout(V, d, n, cond=128, biases=False):
    """The published layout of a DiT, in full: {name: shape}."""
    shapes = {"vocab_embed.embedding": (V, d), "rotary_emb.inv_freq": (32,)}

    def norm(name):
        return {f"{name}.weight": (d,), **({f"{name}.bias": (d,)} if biases else {})}

    def linear(name, rows, columns):
        return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}

    if cond:
        shapes |= linear("sigma_map.mlp.0", cond, 256) | linear("sigma_map.mlp.2", cond, cond)
        shapes |= linear("output_layer.adaLN_modulation", 2 * d, cond)
    for i in range(n):
        block = f"blocks.{i}"
        shapes |= norm(f"{block}.norm1") | norm(f"{block}.norm2")
        shapes |= {f"{block}.attn_qkv.weight": (3 * d, d), f"{block}.attn_out.weight": (d, d)}
        shapes |= linear(f"{block}.mlp.0", 4 * d, d) | linear(f"{block}.mlp.2", d, 4 * d)
        shapes |= linear(f"{block}.adaLN_modulation", 6 * d, cond) if cond else {}
    return shapes | norm("output_layer.norm_final") | linear("output_layer.linear", V, d)


def halves(V, d, n):
    """The same for PGM, of n encoder and n decoder blocks."""
    whole = layout(V, d, n)
    shapes = {f"encoder.{name}" if name.startswith("blocks.") else name: shape
              for name, shape in whole.items()}
    swap = "decoder.group_swap."
    shapes |= {f"{swap}base_embedding": (1, d), f"{swap}pre_query_norm.weight": (d,)}
    shapes |= {f"{swap}pre_query_norm.bias": (d,)}
    for name, rows in (("query_processor", d), ("hidden_to_key_value", 2 * d),
                       ("output_linear", d)):
        shapes |= {f"{swap}{name}.weight": (rows, d), f"{swap}{name}.bias": (rows,)}
    for i in range(n):
        at, block = f"decoder.layers.{i}.", f"blocks.{i}."
        shapes |= {at + f"{name}.weight": (d,) for name in ("q_norm1", "kv_norm1", "norm2")}
        shapes |= {at + "attn_q.weight": (d, d), at + "attn_kv.weight": (2 * d, d)}
        shapes |= {at + "attn_out.weight": (d, d)}
        shapes |= {at + name.removeprefix(block): shape for name, shape in whole.items()
                   if name.startswith((f"{block}mlp", f"{block}adaLN"))}
    return shapes


SMALL = layout(50258, 768, 12), 169_627_218  # with the number of parameters, as published
MEDIUM = layout(50258, 1024, 24), 424_477_010
FULL = {
    "kuleshov-group/mdlm-owt": SMALL, "louaaron/sedd-small": SMALL, "louaaron/sedd-medium": MEDIUM,
    "s-sahoo/duo": SMALL, "s-sahoo/duo-distilled": SMALL,
    "kuleshov-group/bd3lm-owt-block_size8": SMALL,
    "kuleshov-group/bd3lm-owt-block_size1024-pretrain": SMALL, "jdeschena/sdtt": SMALL,
    "jdeschena/sdtt@teacher_400k_md_step_400000": MEDIUM,
    "jdeschena/sdtt@scaling_400k_large_step_10000": (layout(50258, 1536, 24), 863_158_098),
    "kuleshov-group/udlm-lm1b": (layout(30522, 768, 12), 139_292_986),
    "JingyangOu/radd-t-dce": (layout(50258, 768, 12, 0, True), 162_265_682),
    "dvruette/gidd-small-p_unif-0.0": SMALL, "dvruette/gidd-base-p_unif-0.1": MEDIUM,
    "jdeschena/pgm@pgm_8_8": (halves(50258, 768, 8), 202_708_818),
    "jdeschena/pgm@pgm_6_6_dim1024": (halves(50258, 1024, 6), 268_092_754),
}


def full(shapes):
    """Tensors of these shapes, each of one number."""
    torch.manual_seed(0)
    return {name: torch.randn(1).expand(shape) for name, shape in shapes.items()}


@pytest.fixture
def no_tokenizer(monkeypatch):
    """Stand-ins with as many symbols as the real tokenizers, which take long to build."""
    sizes = {hub.GPT2: 50257, hub.PADDED: 50258, hub.BERT: 30522}
    stand_in = lambda tokens, source: SimpleNamespace(n_vocab=sizes[tokens])
    monkeypatch.setattr(hub, "encoding_of", stand_in)
    monkeypatch.setattr(hub, "to_json", str)


@pytest.mark.parametrize("name", FULL)
def test_the_full_layout_fits_name_by_name(name, no_tokenizer, monkeypatch):
    shapes, parameters = FULL[name]
    tensors = full(shapes)
    there = {f"backbone.{key}": tensor for key, tensor in tensors.items()}
    monkeypatch.setattr(hub, "tensors_in", lambda source: bare_names(there))
    ours = hub.read_published(f"{name}=anywhere")["ema"]
    assert sum(a.numel() for a in ours.values()) == parameters
    assert sorted(a.shape for a in ours.values() if len(a)) == sorted(
        a.shape for key, a in tensors.items() if "inv_freq" not in key)
    rules = LAYOUTS[load_row(METHODS, hub.find_row(name).method).public_layout].rules
    assert all(torch.equal(a, tensors[published_name(key, rules)])
               for key, a in ours.items() if len(a))


def test_every_method_with_a_public_layout_is_published():
    layouts = {load_row(METHODS, name).public_layout for name in METHODS} - {None}
    biased = {LAYOUTS[name].biased for name in layouts} - {""}
    assert layouts | biased == LAYOUTS.keys()
    published = {load_row(METHODS, row.method).public_layout for row in hub.PUBLISHED.values()}
    assert layouts == published


def extra(**tensors):
    return lambda a: a.update({f"backbone.{name}": tensor for name, tensor in tensors.items()})


@pytest.mark.parametrize("change, says", [
    (lambda a: a.pop("backbone.blocks.3.attn_out.weight"),
     "lacks the tensor blocks.3.attn_out.weight"),
    (lambda a: [a.pop(f"backbone.blocks.{i}.norm1.weight") for i in (4, 5)],
     "blocks.4.norm1.weight and 1 more"),
    (extra(**{"blocks.12.norm1.weight": torch.ones(768)}),
     "has a tensor blocks.12.norm1.weight"),
    (extra(**{"vocab_embed.embedding": torch.ones(1, 1).expand(50304, 768)}),
     r"vocab_embed.embedding of shape \(50304, 768\), where the network needs \(50258, 768\)"),
    (extra(**{"blocks.0.norm1.bias": torch.ones(768)}), "blocks.0.norm1.bias"),
    (lambda a: a.clear(), "lacks the tensor vocab_embed.embedding and 129 more")])
def test_a_missing_extra_or_misshapen_tensor_is_named(change, says, no_tokenizer, monkeypatch):
    tensors = {f"backbone.{name}": tensor for name, tensor in full(SMALL[0]).items()}
    change(tensors)
    monkeypatch.setattr(hub, "tensors_in", lambda source: bare_names(tensors))
    with pytest.raises(UserError, match=says):
        hub.read_published("kuleshov-group/mdlm-owt=anywhere")


# ---- tokens

@pytest.mark.skipif("TIKTOKEN_CACHE_DIR" not in os.environ,
                    reason="TIKTOKEN_CACHE_DIR (gpt2) is not set")
def test_special_ids_come_after_the_vocabulary():
    plain, padded = (hub.encoding_of(tokens, Path()) for tokens in (hub.GPT2, hub.PADDED))
    assert (plain.n_vocab, padded.n_vocab) == (50257, 50258)
    assert decode(padded, [15496, 50257]) == "Hello[PAD]"
    assert from_json(to_json(padded)).n_vocab == 50258
    assert encode(padded, "Hello[PAD]").max() < 50257  # typed by a user, it is ordinary text


@pytest.mark.parametrize("rows, mask, tokens", [
    (50258, None, hub.GPT2), (50259, None, hub.PADDED), (50304, None, hub.PADDED),
    (50304, 50257, hub.GPT2), (50304, 50258, hub.PADDED)])
def test_the_mask_is_where_its_repository_says(rows, mask, tokens, tmp_path):
    file = tmp_path / "added_tokens.json"
    if mask:
        file.write_text(json.dumps({"[MASK]": mask}))
    tensors = {"vocab_embed.embedding": torch.zeros(1, 1).expand(rows, 768)}
    assert hub.tokens_by_mask(tensors, file) == tokens


def test_words_of_bert():
    """As the package `tokenizers` reads them, with this vocabulary."""
    pieces = "[PAD] [UNK] [CLS] the un ##aff ##able cafe , ! ## $ 5 ##5 ##s 中 ##ing".split()
    words = wordpiece.WordPiece(pieces)
    ids = encode(words, "The  unaffable Café,\n$55s中 zebra!\x00 thes")
    assert [pieces[i] for i in ids] == (
        "the un ##aff ##able cafe , $ 5 ##5 ##s 中 [UNK] ! the ##s".split())
    assert decode(words, ids) == "the unaffable cafe , $ 55s 中 [UNK] ! thes"
    again = from_json(to_json(words))
    assert encode(again, "unaffable the").tolist() == [4, 5, 6, 3]
    assert again.n_vocab == len(pieces)
    with pytest.raises(UserError, match="repeats a piece"):
        wordpiece.WordPiece(["[UNK]", "a", "a"])


def test_the_words_of_bert_come_by_name_and_are_checked(tmp_path, monkeypatch):
    folder = tmp_path / "downloads" / wordpiece.NAME
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\nthe\n")
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="vocab.txt"):  # not the file that was published
        load_encoding(wordpiece.NAME)
    unchecked = replace(wordpiece.VOCABULARY, size=None, sha256=None)
    monkeypatch.setattr(wordpiece, "VOCABULARY", unchecked)
    assert load_encoding(wordpiece.NAME).n_vocab == 3
    with pytest.raises(UserError, match="did you mean 'bert-base-uncased'"):
        load_encoding("bert-base-cased")


def test_a_vocabulary_beside_the_weights_is_used_for_bert(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\nthe\n")
    assert hub.encoding_of(hub.BERT, tmp_path).n_vocab == 3
