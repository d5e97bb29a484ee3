"""
What is said about samples: every measure by a case that is counted by hand, and the judge of `transformers` by a fake
module whose model's perplexity is known.
"""
import math
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from runs import cache, complaint, elsewhere, fit  # noqa: F401

import evaluate
from data.text import load
from data.toy import ToyCorpus
from judge import Pretrained
from quality import distinct, mauve_of, rated, self_bleu, unigram_entropy, variety

THREE = [text.split() for text in ("the cat sat", "the cat ran", "a dog")]


# ---- counted by hand

def test_the_entropy_of_a_text_is_that_of_its_counts():
    x = torch.tensor([[0, 0, 0, 0], [0, 1, 0, 1], [5, 6, 7, 5]])
    assert unigram_entropy(x).tolist() == pytest.approx([0, math.log(2), 1.5 * math.log(2)])


def test_distinct_n_counts_different_n_grams_among_all():
    """Words: the 2, cat 2, sat, ran, a, dog: 6 of 8. Pairs: the cat 2, cat sat, cat ran, a dog: 4 of 5."""
    assert distinct(THREE, 1)[0] == 6 / 8 and distinct(THREE, 2)[0] == 4 / 5 and distinct([["a"]] * 3, 2) == (0, 0)


def test_the_error_of_distinct_n_is_its_jackknife():
    without = [5 / 5, 5 / 5, 4 / 6]                          # each of the three texts left out
    mean = sum(without) / 3
    expected = math.sqrt(2 / 3 * sum((value - mean) ** 2 for value in without))
    assert distinct(THREE, 1)[1] == pytest.approx(expected)
    left_out = [distinct([words for words in THREE if words is not one], 1)[0] for one in THREE]
    assert left_out == pytest.approx(without)


def test_self_bleu_is_one_for_repeats_and_small_for_strangers():
    same = ["one two three four five".split()] * 3
    assert self_bleu(same).tolist() == pytest.approx([1, 1, 1])
    strangers = [f"{c}1 {c}2 {c}3 {c}4 {c}5".split() for c in "abc"]
    smoothed = math.prod(0.1 / m for m in (5, 4, 3, 2)) ** (1 / 4)
    assert self_bleu(strangers).tolist() == pytest.approx([smoothed] * 3)


def test_self_bleu_clips_counts_by_one_reference_and_punishes_brevity():
    """a a b c against "a b c d" and "a a x y z": a twice in the second, b, c once in the first, so 4 of 4 words; pairs
    ab, bc, aa: 3 of 3; triples abc in the first, aab in none: 1 of 2; the quadruple: 0 of 1. Nearest length: 4."""
    texts = [text.split() for text in ("a a b c", "a b c d", "a a x y z")]
    assert self_bleu(texts)[0].item() == pytest.approx((4 / 4 * 3 / 3 * 1 / 2 * 0.1 / 1) ** (1 / 4))
    short = [text.split() for text in ("a b", "a b c d")]
    assert self_bleu(short)[0].item() == pytest.approx((1 * 1 * 0.1 * 0.1) ** (1 / 4) * math.exp(1 - 4 / 2))
    assert self_bleu([[], ["a"], ["a"]])[0] == 0


def test_one_text_has_no_variety():
    corpus = ToyCorpus(8)
    assert variety(corpus.windows("val", 1), corpus) == [] and len(variety(corpus.windows("val", 2), corpus)) == 4


# ---- a judge of transformers

class Tokens:
    """Letters are their places in the alphabet, | is the end of text."""
    model_max_length, eos_token_id = 6, 0

    def __call__(self, text, truncation, max_length):
        ids = ["|abcdefgh".index(c) for c in text]
        return {"input_ids": ids[:max_length] if truncation else ids}


class Bigram(torch.nn.Module):
    """p(next | token) = softmax of a row of a table: a causal model by construction."""
    config = SimpleNamespace(max_position_embeddings=64)

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(9, 9, generator=torch.Generator().manual_seed(0)).bfloat16())

    def forward(self, input_ids, attention_mask, output_hidden_states=False):
        return SimpleNamespace(logits=self.table[input_ids], hidden_states=[None, self.table[input_ids]])


@pytest.fixture
def transformers(monkeypatch):
    fake, loaded = ModuleType("transformers"), []

    def load(name):
        if name != "tiny":
            raise OSError(f"{name} is not a local folder\nand not a name on the hub")
        loaded.append(Bigram())
        return loaded[-1]
    fake.AutoModelForCausalLM = SimpleNamespace(from_pretrained=load)
    fake.AutoTokenizer = SimpleNamespace(from_pretrained=lambda name: Tokens())
    monkeypatch.setitem(sys.modules, "transformers", fake)
    return loaded


def by_hand(judge, text, scored):
    """-log p of the tokens at the places `scored`, one by one."""
    ids = ["|abcdefgh".index(c) for c in text]
    law = judge.model.table.detach().log_softmax(-1)
    return -sum(law[ids[i - 1], ids[i]].item() for i in scored)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_generative_perplexity_reads_the_first_token_counts_one_end_and_cuts_to_the_context(transformers, batch_size):
    judge = Pretrained("tiny", "cpu")
    cases = {"abc": [1, 2], "ab|c|d": [1, 2, 3, 5], "|ab|c": [1, 2, 4], "a|b": [1, 2], "abcdefgh": [1, 2, 3, 4, 5],
             "a": [], "": []}
    nats, scored = judge.nats(None, list(cases), batch_size)
    assert scored.tolist() == [len(places) for places in cases.values()]
    assert nats.tolist() == pytest.approx([by_hand(judge, *case) for case in cases.items()], rel=1e-6)


def test_the_judge_computes_in_float32_whatever_the_precision_of_its_weights(transformers):
    judge = Pretrained("tiny", "cpu")
    assert judge.model.table.dtype == torch.float32 and not judge.model.training


def test_both_means_of_the_papers_are_given_with_their_errors(transformers):
    """exp of all nats over all tokens (MDLM); the mean over texts of each one's (SEDD)."""
    judge, texts = Pretrained("tiny", "cpu"), ["abcab", "gfe", "hh"]
    corpus = SimpleNamespace(text=lambda row: texts[row[0]])
    (_, rate, error), (_, pooled, pooled_error), (_, mean, _) = rated(judge, torch.arange(3)[:, None], corpus, 2)
    each = [(by_hand(judge, text, range(1, len(text))), len(text) - 1) for text in texts]
    assert rate == pytest.approx(sum(n for n, _ in each) / 7, rel=1e-6)
    assert pooled == pytest.approx(math.exp(rate)) and pooled_error == pytest.approx(pooled * error)
    assert mean == pytest.approx(sum(math.exp(n / k) for n, k in each) / 3, rel=1e-6)


def test_the_state_of_a_text_is_the_last_one_whatever_pads_it(transformers):
    judge = Pretrained("tiny", "cpu")
    states = judge.states(["abc", "d", "ef"], 3)
    torch.testing.assert_close(states, judge.model.table.detach()[[3, 4, 6]])


def test_a_run_is_judged_from_the_command_line_with_the_entropy_beside_it(transformers, capsys):
    Path("abc.txt").write_text("abcdefgh" * 200)
    fit("out", data="abc.txt", tokenizer="chars")
    evaluate.main(evaluate.Config(out_dir="out", judge="tiny", max_texts=4, num_samples=3, draws=1, device="cpu"))
    table = capsys.readouterr().out
    order = ["entropy of the tokens", "-log p by tiny", "perplexity by tiny", "mean over texts", "self-BLEU"]
    assert [table.index(what) for what in order] == sorted(table.index(what) for what in order)


@pytest.mark.parametrize("argv, says", [
    (["--judge", "gpt2-large"], "pip install transformers"),
    (["--mauve"], "--mauve needs a --judge of transformers"),
])
def test_what_is_not_installed_is_one_line(argv, says, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "transformers", None)   # as if it were not there
    fit("out")
    assert says in complaint(evaluate, "--out_dir", "out", *argv, capsys=capsys)
    assert not Path("out/evaluation.json").exists()


def test_a_judge_that_does_not_exist_is_one_line(transformers, capsys):
    fit("out")
    error = complaint(evaluate, "--out_dir", "out", "--judge", "gtp2", capsys=capsys)
    assert "there is no checkpoint gtp2/ckpt.pt, and transformers says: gtp2 is not a local folder\n" in error


def test_what_belongs_to_a_set_of_texts_is_compared_on_sets_of_one_size(monkeypatch):
    """Of more texts, fewer n-grams are different. Held-out ones are spread over all there are."""
    seen, held = [], torch.arange(50)[:, None]
    monkeypatch.setattr(evaluate, "quality", lambda *of: [])
    monkeypatch.setattr(evaluate, "variety", lambda x, corpus: seen.append(x[:, 0].tolist()) or [])
    for n in (7, 90):
        monkeypatch.setattr(evaluate, "draw", lambda *of: torch.arange(100, 100 + n)[:, None])
        evaluate.rate(SimpleNamespace(method=None), None, None, held, None, evaluate.Config(), "cpu")
    assert [*map(len, seen)] == [7, 7, 50, 50] and (seen[1][0], seen[1][-1]) == (0, 49) and seen[0][0] == 100


def test_samples_of_a_class_stand_beside_held_out_text_of_that_class_alone():
    corpus, model = load("toy", 16), SimpleNamespace(method=None, classes=("told", "of", "them"))
    x, frozen, label, told = evaluate.held_out(model, corpus, evaluate.Config(label="sea", max_texts=200), "cpu")
    every, _, labels = corpus.example_windows("val", 200)
    assert torch.equal(x, every[labels == label]) and 0 < len(x) < 200 and frozen is None
    assert corpus.classes[label] == "sea" and told.tolist() == label.tolist() * len(x)


def test_mauve_is_asked_for_samples_and_held_out_text_and_its_error_is_that_of_other_draws(monkeypatch):
    """A fake that counts: its value is the mean of p, so that the error is that of a mean, 1/sqrt(n)."""
    asked, fake = [], ModuleType("mauve")

    def compute_mauve(p_features, q_features, seed, verbose):
        asked.append((p_features, q_features, seed))
        return SimpleNamespace(mauve=p_features.mean())
    fake.compute_mauve, fake.__spec__ = compute_mauve, ModuleSpec("mauve", None)
    monkeypatch.setitem(sys.modules, "mauve", fake)
    p = torch.randn(400, 1, generator=torch.Generator().manual_seed(0))
    judge = SimpleNamespace(states=lambda texts, batch_size: p if texts == "ours" else p + 1)
    value, error = mauve_of(judge, "ours", "theirs", 8, seed=7, again=100)
    assert value == pytest.approx(p.mean().item()) and error == pytest.approx(1 / 20, rel=0.25)
    assert len(asked) == 101 and asked[-1][2] == 7 and (asked[-1][1] == asked[-1][0] + 1).all()
