"""Runs on the corpora of the papers: texts in turn, what fills them up is not scored, and one line for every fault."""
import json
import os
import subprocess

import pytest
import torch

import checkpoint
import evaluate
import train
from data import prepare
from data.text import load
from learner import Learner
from test_corpora import by_hand, own_cache, tarred         # noqa: F401
from runs import TINY, cache, elsewhere, fit, metrics, script, tiny         # noqa: F401


def ptb(tmp_path, monkeypatch):
    by_hand("ptb", tmp_path, monkeypatch, {f"ptb.{split}.txt": f"the dogs of {split} see N cats\n".encode() * 100
                                           for split in ("train", "valid", "test")})
    return dict(data="ptb", tokenizer="bytes")


def test_a_run_on_a_corpus_takes_its_texts_in_turn_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    flags, seen = ptb(tmp_path, monkeypatch), []
    turn = prepare.Sharded.turn
    monkeypatch.setattr(prepare.Sharded, "turn", lambda self, number, n, seed: seen.append(number) or turn(
        self, number, n, seed))
    whole = fit(tmp_path / "whole", **flags, max_iters=4, gradient_accumulation_steps=2)
    assert seen == list(range(8))
    fit(tmp_path / "part", **flags, max_iters=2, gradient_accumulation_steps=2)
    again = fit(tmp_path / "part", init_from="resume", max_iters=4)
    assert seen[8:] == list(range(8))
    assert again["config"]["data"] == "ptb" and whole["step"] == again["step"] == 4
    monkeypatch.undo()


@pytest.fixture
def sentences(tmp_path, monkeypatch):
    """LM1B in small: 60 sentences of 2 to 40 letters, in texts of 16 tokens."""
    top = "1-billion-word-language-modeling-benchmark-r13output"
    lines = b"".join(b"%d %s\n" % (i, b"x" * (i % 20)) for i in range(60))
    by_hand("lm1b", tmp_path, monkeypatch, {f"{top}.tar.gz": tarred({
        f"{top}/{part}-monolingual.tokenized.shuffled/news": lines for part in ("training", "heldout")}, "w:gz")})
    return load("lm1b", 16, "bytes")


def test_what_fills_a_text_up_is_noised_but_not_learnt(sentences):
    learner, given = Learner(train.Config(**{**TINY, "data": "lm1b", "block_size": 16, "batch_size": 8}), sentences,
                             torch.device("cpu")), []

    class Known:
        """Its nats are 1 where a token counts, and a million where it does not."""
        def loss(self, denoiser, x, frozen):
            given.append(frozen)
            return torch.where(sentences.scored(x), 1.0, 1e6) + 0 * sum(p.sum() for p in learner.model.parameters())

    learner.objective = Known()
    assert learner.step(0)[0] == 1.0 and given == [None]     # given tokens would stand clean in the noisy text


def test_the_bound_of_texts_that_are_filled_up_is_a_mean_over_tokens_with_the_error_of_a_ratio(sentences):
    x = sentences.windows("val")                             # (60, 16)
    counts, nats = sentences.scored(x), torch.rand(60, 16, dtype=torch.float64)

    class Known:
        def nelbo(self, denoiser, z, frozen):
            return nats[[x.tolist().index(text) for text in z.tolist()]]

    mean, error = evaluate.estimate(Known(), None, x, batch_size=7, counted=counts)
    assert mean == pytest.approx(nats[counts].mean().item(), rel=1e-12)
    torch.manual_seed(0)
    rows = torch.randint(60, (4000, 60))                     # the error, by the bootstrap
    sums, sizes = (nats * counts).sum(-1)[rows].sum(-1), counts.sum(-1)[rows].sum(-1)
    assert error == pytest.approx((sums / sizes).std().item(), rel=0.06)


def test_evaluation_reads_them_in_the_tokens_of_the_model(tmp_path, monkeypatch, capsys):
    flags = ptb(tmp_path, monkeypatch)
    fit(tmp_path / "run", **flags)
    capsys.readouterr()
    evaluate.main(evaluate.Config(out_dir=str(tmp_path / "run"), draws=1, max_texts=4, num_samples=2, steps=2, device="cpu",
                                  data="ptb-plain", json=True))
    told = json.loads(capsys.readouterr().out)
    assert told["data"].startswith("ptb-plain: ") and told["texts"] == 4
    assert checkpoint.load(tmp_path / "run")["config"]["data"] == "ptb"


def test_two_processes_learn_what_one_learns(tmp_path, monkeypatch):
    """The texts of a step do not depend on who reads them: two processes of one micro-batch each, or one of two."""
    flags = ptb(tmp_path, monkeypatch)
    load("ptb", 8, "bytes")
    common = tiny(**flags, gradient_accumulation_steps=2, max_iters=3, log_interval=1)
    # the files here are not the published ones: only what was prepared above is read
    one = fit(tmp_path / "one", **flags, gradient_accumulation_steps=2, max_iters=3, log_interval=1)
    env = dict(MASTER_ADDR="127.0.0.1", MASTER_PORT="29541", WORLD_SIZE="2")
    both = [subprocess.Popen(**script("train", *common, f"--out_dir={tmp_path / 'two'}", **env, RANK=str(r),
                                      LOCAL_RANK=str(r)), cwd=tmp_path, stdout=subprocess.DEVNULL) for r in (0, 1)]
    assert [process.wait(120) for process in both] == [0, 0]
    two = checkpoint.load(tmp_path / "two")
    for name, weight in one["model"].items():
        torch.testing.assert_close(two["model"][name], weight, rtol=1e-4, atol=1e-6)
    assert metrics(tmp_path / "one")[1] > 0
