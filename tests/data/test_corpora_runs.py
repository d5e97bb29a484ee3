"""Runs on the corpora of the papers: texts in order, padding that is not scored, one line per
error."""
import json

import numpy as np
import pytest
import torch
from publishers import make_lm1b, make_ptb, put

import evaluate
import train
from checkpoints.build import build_method
from checkpoints.load import read_state
from data import load_data, shard_dataset, shards, tokenize_workers
from evaluation import ngram
from evaluation.likelihood import estimate_bound
from evaluation.ngram import witten_bell
from flags import UserError, configure
from methods.base import Method
from runs import TINY, cache, complaint, elsewhere, fit, tiny  # noqa: F401
from runtime import distributed
from runtime.trainer import Prefetcher, Trainer

CPU = torch.device("cpu")
PTB = dict(data="ptb", tokenizer="bytes", block_size=16)


@pytest.fixture(autouse=True)
def corpora(elsewhere, tmp_path, monkeypatch):  # noqa: F811
    """Small shards, and a small PTB of different lines."""
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tokenize_workers, "count_cores", lambda: 1)
    monkeypatch.setattr(shards.write_shards, "__defaults__", (None, 5000, 2000))
    lines = "".join(f"{i * 7919 % 99991:05}\n" for i in range(300))
    put("ptb", tmp_path / "cache", monkeypatch, make_ptb(f"{lines}%.0s", 1))


@pytest.fixture
def sentences(tmp_path, monkeypatch):
    """LM1B in small: 60 sentences of 2 to 22 letters, in texts of 16 tokens."""
    lines = b"".join(b"%d %s\n" % (i, b"x" * (i % 20)) for i in range(60))
    put("lm1b", tmp_path / "cache", monkeypatch, make_lm1b(lines, lines))
    return load_data("lm1b", 16, "bytes")


def make_trainer(corpus, **flags):
    config = configure(train.Config, **{**TINY, "muon_dtype": "float32", **flags})
    return Trainer(config, corpus, build_method(config, corpus.encoding), CPU)


def test_a_run_on_a_corpus_takes_its_texts_in_order_and_continues_where_it_stopped(
        tmp_path, monkeypatch):
    seen, real = [], Prefetcher.__call__  # what is drawn ahead may never be asked for
    spy = lambda self, key, then: seen.append(key) or real(self, key, then)
    monkeypatch.setattr(Prefetcher, "__call__", spy)
    flags = dict(**PTB, gradient_accumulation_steps=2)
    whole = fit(tmp_path / "whole", **flags, max_iters=4)
    assert seen == list(range(8))
    fit(tmp_path / "part", **flags, max_iters=2)
    again = fit(tmp_path / "part", init_from="resume", max_iters=4)
    assert seen[8:] == list(range(8))
    assert again["config"]["data"] == "ptb" and whole["step"] == again["step"] == 4


def test_padding_is_noised_but_not_learned(sentences):
    given, trainer = [], make_trainer(sentences, data="lm1b", block_size=16, batch_size=8)

    class Known(Method):
        """Its nats are 1 where a token is scored, and a million where it is padding."""
        def loss(self, denoiser, x, frozen):
            given.append(frozen)
            zero = 0 * sum(p.sum() for p in trainer.model.parameters())  # ()
            return torch.where(sentences.padding(x), 1e6, 1.0) + zero  # (B, L)

    trainer.objective = Known(256)
    assert train.train_step(trainer, 0)[0] == 1.0
    assert given == [None]  # given tokens would stand clean in the noisy text


def test_genmd4_is_refused_where_texts_are_padded(sentences, capsys):
    """Its gradient counts whole texts."""
    words = tiny(data="lm1b", block_size=16, tokenizer="bytes", method="genmd4", out_dir="out")
    assert "another --method" in complaint(train, *words, capsys=capsys)


def test_the_bound_of_padded_texts_is_a_mean_over_tokens_with_the_error_of_a_ratio(sentences):
    x = sentences.windows("val")  # (60, 16)
    padding, nats = sentences.padding(x), torch.rand(60, 16, dtype=torch.float64)  # (60, 16) each

    class Known:
        def nelbo(self, denoiser, z, frozen):
            return nats[[x.tolist().index(text) for text in z.tolist()]]

    mean, error = estimate_bound(Known(), None, x, batch_size=7, padding=padding)
    assert mean == pytest.approx(nats[~padding].mean().item(), rel=1e-12)
    torch.manual_seed(0)
    rows = torch.randint(60, (4000, 60))  # (4000, 60) the error, by the bootstrap
    sums = nats.masked_fill(padding, 0).sum(-1)[rows].sum(-1)  # (4000,)
    sizes = (~padding).sum(-1)[rows].sum(-1)  # (4000,)
    assert error == pytest.approx((sums / sizes).std().item(), rel=0.06)


def test_evaluation_reads_a_corpus_in_the_tokens_of_the_model(tmp_path, capsys):
    fit(tmp_path / "run", **PTB)
    capsys.readouterr()
    evaluate.main(configure(evaluate.Config, out_dir=str(tmp_path / "run"), draws=1, max_texts=4,
                            num_samples=2, steps=2, device="cpu", data="ptb-plain", json=True), ())
    result = json.loads(capsys.readouterr().out)
    assert result["data"].startswith("ptb-plain: ") and result["texts"] == 4
    assert read_state(tmp_path / "run")["config"]["data"] == "ptb"


def test_processes_share_the_texts_of_a_step_without_overlap(monkeypatch):
    data, seen = load_data("ptb", 16, "bytes"), {}
    for rank, world in ((0, 1), (0, 2), (1, 2)):
        trainer = make_trainer(data, **PTB, gradient_accumulation_steps=2)
        with monkeypatch.context() as patch:
            patch.setattr(distributed, "RANK", rank)
            patch.setattr(distributed, "WORLD", world)
            seen[rank, world] = [trainer.batch(number)[0] for step in range(3)
                                 for number in trainer.micro_batches(step)]  # (B, L) each
    shared = [x for pair in zip(seen[0, 2], seen[1, 2]) for x in pair]
    assert len(shared) == len(seen[0, 1]) == 6
    assert all(torch.equal(a, b) for a, b in zip(shared, seen[0, 1]))
    assert len({str(row) for x in shared for row in x.tolist()}) == 6 * 2


def test_ngrams_are_counted_in_the_first_ids_of_a_corpus_in_shards(tmp_path, monkeypatch, capsys):
    data = load_data("ptb", 32, "bytes")
    monkeypatch.setattr(shard_dataset, "COUNTED_IDS", 400)
    read, asked = shards.Shards.__getitem__, []  # id by id, a large corpus would take forever
    spy = lambda self, where: asked.append(where) or read(self, where)
    monkeypatch.setattr(shards.Shards, "__getitem__", spy)
    capsys.readouterr()
    ngram.main(configure(ngram.Config, data="ptb", tokenizer="bytes"))
    about, head, *rows = capsys.readouterr().out.splitlines()
    assert len(asked) < 20 and about.startswith("ptb: ")
    assert "1.000 bytes/symbol; of the first 400 and 400 tok" in head
    nats = witten_bell(data.train[:400], data.val[:400], data.encoding.n_vocab)
    assert rows[2].split() == ["3", f"{nats[3]:.4f}", f"{nats[3] / np.log(2):.4f}"]
    put("lambada", tmp_path / "cache", monkeypatch,
        {"lambada_test.jsonl": b'{"text": "some words"}\n' * 9})
    with pytest.raises(UserError, match="no train split"):
        ngram.main(configure(ngram.Config, data="lambada", tokenizer="bytes"))
