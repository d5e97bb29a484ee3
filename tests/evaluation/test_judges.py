"""Judges: transformers by a fake module whose model's perplexity is known; and what they need."""
import math
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from evaluation.judges import TransformersJudge, load_judge
from evaluation.report import print_samples
from evaluation.sample_quality import judge_rows, sample_figures
from flags import UserError

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
        table = torch.randn(9, 9, generator=torch.Generator().manual_seed(0))  # (9, 9)
        self.table = torch.nn.Parameter(table.bfloat16())

    def forward(self, input_ids, attention_mask, output_hidden_states=False):
        rows = self.table[input_ids]  # (b, n, 9)
        return SimpleNamespace(logits=rows, hidden_states=[None, rows])


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
    to_probs = judge.model.table.detach().log_softmax(-1)
    return -sum(to_probs[ids[i - 1], ids[i]].item() for i in scored)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_the_first_token_is_read_one_end_counts_and_texts_are_cut_to_the_context(
        transformers, batch_size):
    judge = TransformersJudge("tiny", "cpu")
    cases = {"abc": [1, 2], "ab|c|d": [1, 2, 3, 5], "|ab|c": [1, 2, 4], "a|b": [1, 2],
             "abcdefgh": [1, 2, 3, 4, 5], "a": [], "": []}
    nats, scored = judge.nats(None, list(cases), batch_size)
    assert scored.tolist() == [len(places) for places in cases.values()]
    expected = [by_hand(judge, *case) for case in cases.items()]
    assert nats.tolist() == pytest.approx(expected, rel=1e-6)


def test_the_judge_computes_in_float32_whatever_the_precision_of_its_weights(transformers):
    judge = TransformersJudge("tiny", "cpu")
    assert judge.model.table.dtype == torch.float32 and not judge.model.training


def test_both_means_of_the_papers_are_given_with_their_errors(transformers):
    """exp of all nats over all tokens (MDLM); the mean over texts of each one's (SEDD)."""
    judge, texts = TransformersJudge("tiny", "cpu"), ["abcab", "gfe", "hh"]
    corpus = SimpleNamespace(text=lambda row: texts[row[0]])
    rows = judge_rows(judge, torch.arange(3)[:, None], corpus, 2)
    (_, rate, error), (_, pooled, pooled_error), (_, mean, _) = rows
    each = [(by_hand(judge, text, range(1, len(text))), len(text) - 1) for text in texts]
    assert rate == pytest.approx(sum(n for n, _ in each) / 7, rel=1e-6)
    assert pooled == pytest.approx(math.exp(rate)) and pooled_error == pytest.approx(pooled * error)
    assert mean == pytest.approx(sum(math.exp(n / k) for n, k in each) / 3, rel=1e-6)


def test_the_state_of_a_text_is_the_last_one_whatever_pads_it(transformers):
    judge = TransformersJudge("tiny", "cpu")
    states = judge.states(["abc", "d", "ef"], 3)
    torch.testing.assert_close(states, judge.model.table.detach()[[3, 4, 6]])


def test_samples_are_judged_with_the_entropy_beside_them(transformers, capsys):
    letters = SimpleNamespace(text=lambda row: "".join("|abcdefgh"[i] for i in row), is_text=True,
                              language=None, score=lambda x, label: [], ids=lambda split: [1, 2],
                              independent_texts=True, score_set=lambda x: [])
    x = torch.randint(1, 9, (6, 5), generator=torch.Generator().manual_seed(0))
    config = SimpleNamespace(batch_size=4, mauve=False)
    figures = sample_figures(x[:3], x, letters, load_judge("tiny", None, "cpu"), None, config)
    print_samples({**figures, "sampler": "ancestral", "steps": 3})
    table = capsys.readouterr().out
    order = ["entropy of the tokens", "-log p by tiny", "perplexity by tiny", "mean over texts",
             "self-BLEU"]
    assert [table.index(what) for what in order] == sorted(table.index(what) for what in order)


def test_no_name_is_no_judge_and_mauve_needs_one_that_reads_texts(monkeypatch):
    assert load_judge("", None, "cpu") is None
    with pytest.raises(UserError, match="--mauve needs a --judge of transformers"):
        load_judge("", None, "cpu", mauve=True)
    monkeypatch.setattr("evaluation.judges.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install mauve-text"):
        load_judge("tiny", None, "cpu", mauve=True)


def test_without_transformers_a_judge_of_them_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)  # as if it were not there
    with pytest.raises(UserError, match="pip install transformers"):
        load_judge("gpt2-large", None, "cpu")


def test_a_judge_that_does_not_exist_is_one_line(transformers):
    with pytest.raises(UserError) as error:
        load_judge("gtp2", None, "cpu")
    says = "there is no checkpoint gtp2/ckpt.pt, and transformers says: gtp2 is not a local folder"
    assert str(error.value).endswith(says)
