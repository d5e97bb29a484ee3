"""Runs of tree_diffusion: trained, resumed, evaluated, sampled and shown; what does not fit it."""
import json
import signal

import torch
from evaluations import results
from runs import assert_same, cache, complaint, elsewhere, fit, interrupt  # noqa: F401

import evaluate
import sample
import train
from checkpoints.load import load_model
from experiments import tree_edits
from flags import configure

RUN = dict(data="arithmetic", method="tree_diffusion", block_size=13, eval_interval=2)


def test_a_run_goes_on_bit_by_bit_and_is_sampled_evaluated_and_shown(monkeypatch, capsys):
    whole = fit("whole", **RUN, max_iters=4)
    with monkeypatch.context() as patch:
        interrupt(patch, 1, signal.SIGTERM)
        assert fit("parts", **RUN, max_iters=4)["step"] == 2
    assert_same(whole, fit("parts", init_from="resume"))
    method = load_model("whole").method
    assert method.vocab_size == 15 + 1 + 9 and method.task.width == 9
    capsys.readouterr()
    shown = configure(sample.Config, out_dir="whole", prompt="+24=", json=True, num_samples=2,
                      steps=3, device="cpu")
    sample.main(shown)
    texts = [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()]
    assert len(texts) == 2 and all(text.startswith("+24=") and len(text) == 13 for text in texts)
    found = results(capsys, "--out_dir", "whole", "--max_texts", 8, "--num_samples", 4, "--draws",
                    1, "--steps", 2, "--sampler", "tree-edits", "--edits", "random")
    assert found["nats_per_token"] > 0 and found["sampler"] == "tree-edits"
    assert dict((what, mean) for what, mean, _ in found["samples"])["solved"] in (0, .25, .5, .75,
                                                                                  1)
    sample.main(configure(sample.Config, out_dir="whole", html="page.html", num_samples=2, steps=3,
                          device="cpu"))
    assert "tree_diffusion" in open("page.html").read()


def test_what_is_no_tree_is_refused_in_one_line(capsys):
    said = complaint(train, "--data=toy", "--method=tree_diffusion", capsys=capsys)
    assert "edits trees, and the texts of toy are none: give --data arithmetic" in said
    said = complaint(train, "--data=toy", "--method=mdlm", "--sigma=3", capsys=capsys)
    assert "--sigma belongs to --method tree_diffusion" in said
    fit("run", **RUN, max_iters=1)
    for prompt, what in (("+24=+", "give the first 4 tokens, and no others"),
                         ("+2", "give the first 4 tokens, and no others")):
        said = complaint(sample, "--out_dir=run", f"--prompt={prompt}", "--device=cpu",
                         capsys=capsys)
        assert what in said
    said = complaint(sample, "--out_dir=run", "--prompt=+24=", "--length=20", "--device=cpu",
                     capsys=capsys)
    assert "texts of 13 tokens, not 20" in said
    said = complaint(evaluate, "--oracle=tree_diffusion", capsys=capsys)
    assert "tree_diffusion" in said
    said = complaint(sample, "--oracle=mdlm", "--sampler=tree-edits", capsys=capsys)
    assert "edits trees, which mdlm does not write" in said


def test_the_experiment_counts_what_is_solved_after_each_number_of_edits(capsys):
    tree_edits.main(configure(tree_edits.Config, minutes=0.002, questions=2, out_dir="out"))
    rows = json.load(open("out/tree_edits.json"))["rows"]
    assert len(rows) == 6 * 4 and all(0 <= row["solved"] <= 1 for row in rows)
    for way in {row["way"] for row in rows}:  # what is solved stays so
        shares = [row["solved"] for row in rows if row["way"] == way]
        assert shares == sorted(shares)
    assert "1 edits" in capsys.readouterr().out


def test_solved_counts_states_after_edits(monkeypatch):
    """The state before the first edit is none of them, and after the last one nothing changes."""
    states = [torch.tensor([n, 0]) for n in range(8)]  # text 0 is solved from the fifth on
    monkeypatch.setattr(tree_edits, "trajectory", lambda *call: iter(states))
    monkeypatch.setattr(tree_edits, "make_sampler", lambda *call, **flags: None)
    trainer = type("Trainer", (), dict(method=None, average=None))
    trainer.data = type("Data", (), dict(solved=staticmethod(lambda z: z >= 5)))
    found = tree_edits.solved_after(trainer, None, None)
    assert found.tolist() == [[0, 1, 1, 1], [0, 0, 0, 0]]
