"""Last words and multiple choice, through the exact denoiser; and the files of questions."""
import gzip
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from models import random_checkpoint

from checkpoints.load import load_model
from data.chat import encoding_for
from data.tokenizer import byte_level, chars, decode
from data.toy import ToyCorpus
from evaluation.downstream import (
    fill_greedily,
    last_words,
    multiple_choice,
    prompt_and_ending,
    read_passages,
    read_questions,
)
from flags import UserError
from methods import METHODS, load_row, make_method
from oracle import exact

LANGUAGE = ToyCorpus(32).language
LANGUAGE_MODELS = [name for name in METHODS if not load_row(METHODS, name).classifies]


def model_of(encoding, method="mdlm", block_size=16, **options):
    """A model of which only the tokens and the length matter."""
    return SimpleNamespace(encoding=encoding,
                           config=SimpleNamespace(block_size=block_size, method=method),
                           method=make_method(method, encoding.n_vocab, **options))


# ---- a prompt and its ending

def spelled(model, prompt, ending, ends=False):
    """The text, with brackets around the tokens that are scored."""
    x, frozen = prompt_and_ending(model, prompt, ending, ends)
    return "".join(f"[{c}]" if scored else c for c, scored in
                   zip(decode(model.encoding, x[0].tolist()), (~frozen[0]).tolist()))


@pytest.mark.parametrize("prompt, ending, shown", [
    ("ab", "cd", "ab[ ][c][d]"), ("ab ", "cd", "ab[ ][c][d]"), ("ab", " cd", "ab[ ][c][d]"),
    ("ab\n", "c", "ab[\n][c]"), ("", "cd", "[c][d]"), ("abcd" * 9, "dd", "dabcdabcdabcd[ ][d][d]"),
])
def test_the_ending_is_scored_with_its_space_and_the_oldest_tokens_are_dropped(
        prompt, ending, shown):
    assert spelled(model_of(chars("abcd \n")), prompt, ending) == shown


def test_blocks_are_filled_and_ends_of_text_stand_on_both_sides_where_they_are_wanted():
    blocks = model_of(chars("abcd "), "bd3lm", diffusion_block=4)
    assert spelled(blocks, "abcdab", "c") == "abcdab[ ][c]"
    assert spelled(blocks, "abcdabc", "c") == "bcdabc[ ][c]"
    model = model_of(encoding_for("chars", 0, "abcd ", ""))
    x, frozen = prompt_and_ending(model, "ab", "c", ends=True)
    end = model.encoding.eot_token
    assert (x[0, 0], x[0, -1]) == (end, end)
    assert frozen.tolist() == [[True, True, True, False, False, True]]
    with pytest.raises(UserError, match="has 19 tokens, more than a text of 16 holds"):
        prompt_and_ending(model, "a", "abcd" * 4 + "ab")


# ---- through the exact denoiser

def texts_of(n, length=7, seed=3):
    x = LANGUAGE.sample(n, length, torch.Generator().manual_seed(seed))  # (n, length)
    return x, [" ".join(LANGUAGE.words[i] for i in row) for row in x.tolist()]


@pytest.mark.parametrize("method", ["ar", "mdlm", "udlm", "pgm"])
def test_last_words_have_their_exact_probability_and_the_likeliest_is_found(method):
    """One word is one token, where the bound of masks is exact. Under uniform noise it is a bound,
    and needs more draws: given tokens are clean where the network expects noise."""
    x, passages = texts_of(12)
    every = x[:, None].repeat(1, LANGUAGE.V, 1)  # (n, V, L)
    every[..., -1] = torch.arange(LANGUAGE.V)
    log_p = LANGUAGE.log_prob(every.flatten(0, 1)).view(len(x), -1).log_softmax(-1)  # (n, V)
    nats = -log_p.gather(-1, x[:, -1:])[:, 0]  # (n,)
    found = (log_p.argmax(-1) == x[:, -1]).double()  # (n,)
    is_bound = method == "udlm"
    result = last_words(exact(method), passages, 50 if is_bound else 2, 1, "cpu")
    assert result["accuracy"] == pytest.approx(found.mean().item()) and 0 < result["accuracy"] < 1
    exactly = pytest.approx(nats.mean().item(), rel=1e-5)
    assert (result["nats_per_word"] > nats.mean() if is_bound else
            result["nats_per_word"] == exactly)
    assert result["perplexity"] == pytest.approx(math.exp(result["nats_per_word"]))
    assert result["accuracy_error"] == pytest.approx(found.std().item() / 12 ** 0.5)
    assert result["passages"] == 12


def test_the_likelier_choice_is_taken_and_per_byte_the_likelier_for_its_length():
    """Two words as they were drawn, against the one likeliest next word."""
    x, _ = texts_of(16)
    questions, plain, per_byte = [], 0, 0
    for row in x:
        next_word = torch.arange(LANGUAGE.V)[:, None]  # (V, 1)
        next_words = torch.cat([row[:-2].expand(LANGUAGE.V, -1), next_word], 1)  # (V, L - 1)
        ends = [row[-2:], LANGUAGE.log_prob(next_words).argmax()[None]]
        choices = [" ".join(LANGUAGE.words[j] for j in end.tolist()) for end in ends]
        before = LANGUAGE.log_prob(row[None, :-2])
        nats = [(before - LANGUAGE.log_prob(torch.cat([row[:-2], end])[None])).item()
                for end in ends]
        plain += nats[0] < nats[1]
        per_byte += nats[0] / len(choices[0]) < nats[1] / len(choices[1])
        questions.append((" ".join(LANGUAGE.words[j] for j in row[:-2].tolist()), choices, 0))
    result = multiple_choice(exact("ar"), questions, 1, 1, "cpu")
    assert result["accuracy"] == plain / 16 and result["accuracy_per_byte"] == per_byte / 16
    assert result["chance"] == 0.5 and result["questions"] == 16 and plain != per_byte


def test_the_length_of_a_choice_is_in_bytes_not_in_characters():
    """Where all characters are equally likely: 4 of 6 bytes beat 5 of 4, 4 of 3 characters do not
    (the space in front is scored, too)."""
    model = model_of(chars("aä q"), "ar")
    model.denoiser = lambda z, t, at: torch.zeros(int(at.sum()), 5)
    result = multiple_choice(model, [("q", ["äää", "aaaa"], 0)] * 2, 1, 1, "cpu")
    assert result["accuracy"] == result["accuracy_per_byte"] == 1


# ---- greedy filling

@pytest.mark.parametrize("method", LANGUAGE_MODELS)
def test_every_method_fills_in_words_that_exist_and_leaves_what_is_given(method, tmp_path):
    """Or says in one line that it cannot."""
    model = load_model(random_checkpoint(tmp_path, method=method))
    x, frozen = prompt_and_ending(model, " ".join(LANGUAGE.words[:7]), LANGUAGE.words[7])
    try:
        z = fill_greedily(model, x, frozen)  # (1, L)
    except UserError as refusal:
        assert "use --choices" in str(refusal) and model.method.revises_text
        return
    assert (z < LANGUAGE.V).all() and (z == x)[frozen].all() and z.shape == x.shape


@pytest.mark.parametrize("method, kind", [("sedd", "uniform"), ("d3pm", "uniform"),
                                          ("d3pm", "gaussian")])
def test_steps_of_their_own_fill_in_words_under_masks_only(method, kind):
    model = model_of(chars("abcd "), method, transition=kind)
    x, frozen = prompt_and_ending(model, "ab", "c")
    says = f"which {method} does under masks only: use --choices"
    with pytest.raises(UserError, match=says):
        fill_greedily(model, x, frozen)


def test_a_published_sedd_fills_words_in_though_its_config_names_no_transition():
    model = model_of(chars("abcd "), "sedd")
    assert "transition" not in vars(model.config)
    model.denoiser = lambda z, t, at: torch.zeros(int(at.sum()), 6)
    x, frozen = prompt_and_ending(model, "ab", "c")
    z = fill_greedily(model, x, frozen)
    assert (z < 5).all() and (z == x)[frozen].all()


# ---- the files

GOOD = '{"text": "one two"}\n'
QUESTION = '{"prompt": "a", "choices": ["b", "c"], "answer": %s}\n'


def question(**other):
    """The second line of a file."""
    line = {"prompt": "a", "choices": ["b", "c"], "answer": 0} | other
    return QUESTION % 0 + json.dumps({key: value for key, value in line.items() if value != ()})


@pytest.mark.parametrize("read, content, says", [
    (read_passages, GOOD + "[]\n", "line 2 is not a passage"),
    (read_passages, GOOD + '\n{"text": "one"}\n', "line 3 is not a passage (there is no text of"),
    (read_passages, GOOD + '{"text"', 'it should be {"text": "two words or more"}'),
    (read_passages, GOOD + '{"text": ["a b"]}', "line 2"),
    (read_passages, GOOD + '{"passage": "a b"}', "line 2"),
    (read_passages, GOOD + '"a b"', "line 2"), (read_passages, GOOD + "a b,1", "line 2"),
    (read_passages, "[\n" + GOOD + "]", "line 1"), (read_passages, GOOD + "[" * 50000, "too deep"),
    (read_passages, GOOD + '{"text": "a b", "n": %s}' % ("9" * 5000), "line 2"),
    (read_passages, GOOD + '{"text": "a b", "n": 1e999}', "1e999 is no number"),
    (read_passages, GOOD + '{"text": "a b", "text": "a c"}', "a key stands twice"),
    (read_passages, GOOD + r'{"text": "a \ud83d b"}', r"line 2: '\ud83d' is half of a character"),
    (read_passages, GOOD + '{"text": "a %s"}' % ("b" * 40), "line 2: 'bbbb"),
    (read_passages, GOOD + '{"text": "a ß"}', "line 2: the vocabulary lacks 'ß'"),
    (read_passages, GOOD, "a standard error needs two"),
    (read_passages, None, "cannot read questions.jsonl: No such file"),
    (read_passages, GOOD.encode("utf-16"), "in UTF-16"),
    (read_passages, gzip.compress(GOOD.encode(), mtime=0), "packed by gzip"),
    (read_questions, QUESTION % 0 + QUESTION % 2, "line 2"),
    (read_questions, QUESTION % '"b"', "line 1"),
    (read_questions, question(choices={"text": ["b", "c"], "label": ["A", "B"]}),
     "line 2 is not a question (the choices are no list of texts): it should be"),
    (read_questions, question(choices=["b", " "]), "the choices are no list of texts"),
    (read_questions, question(choices=["b", ["c"]]), "the choices are no list of texts"),
    (read_questions, question(choices=["b", None]), "the choices are no list of texts"),
    (read_questions, question(choices="bc"), "the choices are no list of texts"),
    (read_questions, question(choices=[]), "two or more different"),
    (read_questions, question(choices=["b"]), "two or more different"),
    (read_questions, question(choices=["b", "b "]), "two or more different"),
    (read_questions, question(prompt=()), "there is no prompt"),
    (read_questions, question(prompt=None), "there is no prompt"),
    (read_questions, question(answer="A"), "the answer is none of the numbers 0 to 1"),
    (read_questions, question(answer=-1), "the answer is none"),
    (read_questions, question(answer=1.0), "the answer is none"),
    (read_questions, question(answer=True), "the answer is none"),
    (read_questions, question(answer=()), "the answer is none"),
    (read_questions, question(choices=["b", "\udce9"]), "line 2: the byte 0xe9 is no UTF-8"),
])
def test_a_line_that_is_not_as_it_should_be_is_named(read, content, says, tmp_path, monkeypatch):
    """Before anything is measured: what the model cannot read, too."""
    monkeypatch.chdir(tmp_path)
    if content:
        content = content if isinstance(content, bytes) else content.encode()
        Path("questions.jsonl").write_bytes(content)
    with pytest.raises(UserError) as error:
        read("questions.jsonl", model_of(chars("onetwabc ")))
    assert says in str(error.value) and "\n" not in str(error.value)


def test_a_line_ends_at_a_line_feed_and_at_no_other_separator(tmp_path):
    path, passage = tmp_path / "passages.jsonl", "one\u2028two\x85three"
    path.write_bytes(f'\ufeff{{"text": "{passage}"}}\r\n'.encode() * 1 + GOOD.encode())
    assert read_passages(path, model_of(chars(passage + " w"))) == [passage, "one two"]


def test_bytes_rate_what_no_text_can_be(tmp_path):
    """\\udce9 is how Python writes the byte 0xe9 that is no UTF-8; half a character is no byte."""
    path, model = tmp_path / "quiz.jsonl", model_of(byte_level())
    path.write_text(question(choices=["caf\udce9", "tea"]))
    assert read_questions(path, model)[1] == ("a", ["caf\udce9", "tea"], 0)
    path.write_text(question(choices=["caf\ud83d", "tea"]))
    with pytest.raises(UserError, match="line 2: .* is half of a character"):
        read_questions(path, model)
