"""Runs on the corpora of the papers: texts in turn, what fills them up is not scored, and one line for every fault."""
import json
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from runs import TINY, cache, complaint, elsewhere, fit, tiny       # noqa: F401
from test_corpora import FILES, by_hand, own_cache, tarred         # noqa: F401

import bounds
import checkpoint
import evaluate
import learner
import parallel
import train
from data import BadInput, ngram, sharded
from data.text import load
from learner import Learner


def ptb(tmp_path, monkeypatch):
    lines = "".join(f"{i * 7919 % 99991:05}\n" for i in range(300)).encode()
    by_hand("ptb", tmp_path, monkeypatch, {f"ptb.{split}.txt": lines for split in FILES})
    return dict(data="ptb", tokenizer="bytes", block_size=16)


def test_a_run_on_a_corpus_takes_its_texts_in_turn_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    flags, seen = ptb(tmp_path, monkeypatch), []
    asked = learner.Ahead.__call__                           # what is drawn ahead may never be asked for
    monkeypatch.setattr(learner.Ahead, "__call__", lambda self, key, then: seen.append(key) or asked(self, key, then))
    whole = fit(tmp_path / "whole", **flags, max_iters=4, gradient_accumulation_steps=2)
    assert seen == list(range(8))
    fit(tmp_path / "part", **flags, max_iters=2, gradient_accumulation_steps=2)
    again = fit(tmp_path / "part", init_from="resume", max_iters=4)
    assert seen[8:] == list(range(8))
    assert again["config"]["data"] == "ptb" and whole["step"] == again["step"] == 4


@pytest.fixture
def sentences(tmp_path, monkeypatch):
    """LM1B in small: 60 sentences of 2 to 40 letters, in texts of 16 tokens."""
    top = "1-billion-word-language-modeling-benchmark-r13output"
    lines = b"".join(b"%d %s\n" % (i, b"x" * (i % 20)) for i in range(60))
    by_hand("lm1b", tmp_path, monkeypatch, {f"{top}.tar.gz": tarred({
        f"{top}/{part}-monolingual.tokenized.shuffled/news": lines for part in ("training", "heldout")}, "w:gz")})
    return load("lm1b", 16, "bytes")


def test_what_fills_a_text_up_is_noised_but_not_learnt(sentences):
    given, config = [], train.Config(**{**TINY, "data": "lm1b", "block_size": 16, "batch_size": 8})
    made = Learner(config, sentences, torch.device("cpu"))

    class Known:
        """Its nats are 1 where a token counts, and a million where it does not."""
        def loss(self, denoiser, x, frozen):
            given.append(frozen)
            return torch.where(sentences.scored(x), 1.0, 1e6) + 0 * sum(p.sum() for p in made.model.parameters())

    made.objective = Known()
    assert made.step(0)[0] == 1.0 and given == [None]     # given tokens would stand clean in the noisy text


def test_genmd4_is_refused_where_texts_are_filled_up(sentences, capsys):
    """Its gradient (44) counts whole texts."""
    words = tiny(data="lm1b", block_size=16, tokenizer="bytes", method="genmd4", out_dir="out")
    assert "take --method md4" in complaint(train, *words, capsys=capsys)


def test_the_bound_of_texts_that_are_filled_up_is_a_mean_over_tokens_with_the_error_of_a_ratio(sentences):
    x = sentences.windows("val")                             # (60, 16)
    counts, nats = sentences.scored(x), torch.rand(60, 16, dtype=torch.float64)

    class Known:
        def nelbo(self, denoiser, z, frozen):
            return nats[[x.tolist().index(text) for text in z.tolist()]]

    mean, error = bounds.estimate(Known(), None, x, batch_size=7, counted=counts)
    assert mean == pytest.approx(nats[counts].mean().item(), rel=1e-12)
    torch.manual_seed(0)
    rows = torch.randint(60, (4000, 60))                     # the error, by the bootstrap
    sums, sizes = (nats * counts).sum(-1)[rows].sum(-1), counts.sum(-1)[rows].sum(-1)
    assert error == pytest.approx((sums / sizes).std().item(), rel=0.06)


def test_evaluation_reads_them_in_the_tokens_of_the_model(tmp_path, monkeypatch, capsys):
    flags = ptb(tmp_path, monkeypatch)
    fit(tmp_path / "run", **flags)
    capsys.readouterr()
    evaluate.main(evaluate.Config(out_dir=str(tmp_path / "run"), draws=1, max_texts=4, num_samples=2, steps=2,
                                  device="cpu", data="ptb-plain", json=True))
    told = json.loads(capsys.readouterr().out)
    assert told["data"].startswith("ptb-plain: ") and told["texts"] == 4
    assert checkpoint.load(tmp_path / "run")["config"]["data"] == "ptb"


def test_processes_share_the_texts_of_a_step_without_overlap(tmp_path, monkeypatch):
    flags, seen = ptb(tmp_path, monkeypatch), {}
    corpus, config = load("ptb", 16, "bytes"), train.Config(**{**TINY, **flags, "gradient_accumulation_steps": 2})
    for rank, world in ((0, 1), (0, 2), (1, 2)):
        made, texts = Learner(config, corpus, torch.device("cpu")), []
        seen[rank, world], text = texts, made.text
        made.text = lambda *args, **more: texts.append(text(*args, **more)) or texts[-1]
        with monkeypatch.context() as patch:
            patch.setattr(parallel, "RANK", rank)
            patch.setattr(parallel, "WORLD", world)
            patch.setattr(parallel, "last", lambda shared, is_last: nullcontext())
            for step in range(3):
                made.step(step)
    shared = [parts[0] for pair in zip(seen[0, 2], seen[1, 2]) for parts in pair]
    assert all(torch.equal(a, b[0]) for a, b in zip(shared, seen[0, 1])) and len(shared) == len(seen[0, 1]) == 6
    assert len({str(row) for x in shared for row in x.tolist()}) == 6 * 2


def test_ngrams_are_counted_in_the_beginning_of_a_corpus_in_shards(tmp_path, monkeypatch, capsys):
    ptb(tmp_path, monkeypatch)
    corpus = load("ptb", 32, "bytes")
    monkeypatch.setattr(sharded.Sharded.beginning, "__defaults__", (400,))
    read, asked = sharded.Shards.__getitem__, []             # id by id, a large corpus would take for ever
    monkeypatch.setattr(sharded.Shards, "__getitem__", lambda self, where: asked.append(where) or read(self, where))
    capsys.readouterr()
    ngram.main(["ptb", "bytes"])
    about, head, *rows = capsys.readouterr().out.splitlines()
    assert len(asked) < 20 and about.startswith("ptb: ") and "1.000 bytes/symbol; of the first 400 and 400 tok" in head
    nats = ngram.witten_bell(corpus.train[:400], corpus.val[:400], corpus.encoding.n_vocab)
    assert rows[2].split() == ["3", f"{nats[3]:.4f}", f"{nats[3] / np.log(2):.4f}"]
    by_hand("lambada", tmp_path, monkeypatch, {"lambada_test.jsonl": b'{"text": "some words"}\n' * 9})
    with pytest.raises(BadInput, match="no train split"):
        ngram.main(["lambada", "bytes"])
