"""
What a model says of other text: perplexity and bits as papers count them, last words and choices by the exact
denoiser, and what stays in evaluation.json when something fails.
"""
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from runs import cache, complaint, disk_of, elsewhere, fit  # noqa: F401

import bounds
import evaluate
from bounds import bytes_per_character, ending, figures, last_words, multiple_choice, nats_of, perplexity, pooled
from data import BadInput, text
from data.chat import encoding_for
from data.tokenizer import bpe, byte_level, chars, decode
from data.toy import ToyCorpus
from methods import make_method
from oracle import exact

LANGUAGE = ToyCorpus(32).language


def model_of(encoding, method="mdlm", block_size=16, **options):
    """A model of which only the tokens and the length matter."""
    return SimpleNamespace(encoding=encoding, config=SimpleNamespace(block_size=block_size, method=method),
                           method=make_method(method, encoding.n_vocab, **options))


# ---- perplexity and bits

def test_perplexity_counts_tokens_not_texts_and_its_error_is_that_of_a_ratio():
    nats, scored = torch.tensor([10.0, 1.0, 4.0]), torch.tensor([4, 1, 3])
    rate, error = pooled(nats, scored)
    assert rate == 15 / 8
    left = [n - 15 / 8 * k for n, k in zip(nats.tolist(), scored.tolist())]      # sums to 0
    assert error == pytest.approx(math.sqrt(sum(a * a for a in left) / 2 / 3) / (8 / 3))
    assert perplexity(rate, error) == pytest.approx((math.exp(15 / 8), math.exp(15 / 8) * error))
    assert perplexity(1e6, 1.0)[0] < math.inf


def test_the_error_of_a_perplexity_is_the_spread_of_perplexities_of_other_texts():
    draw = torch.Generator().manual_seed(1)
    values = []
    for _ in range(400):
        scored = torch.randint(5, 60, (200,), generator=draw)
        nats = scored * (2 + 0.3 * torch.randn(200, generator=draw))
        values.append(perplexity(*pooled(nats, scored)))
    values = torch.tensor(values)
    assert values[:, 1].mean().item() == pytest.approx(values[:, 0].std().item(), rel=0.15)


def test_bits_per_character_and_per_byte_differ_by_the_bytes_of_a_character_and_special_tokens_spell_nothing():
    word = "Ä東🙂a"                                           # of 2, 3, 4 and 1 bytes
    for encoding in (chars(word), byte_level(), bpe(word * 9, 300, alphabet=word)):
        ids = torch.tensor(text.encode(encoding, word).astype(int))
        assert bytes_per_character(encoding, ids) == 10 / 4
    encoding = encoding_for("chars", 0, word, "")            # with marks
    ids = torch.tensor([*text.encode(encoding, word).astype(int), encoding.eot_token, encoding.eot_token])
    assert bytes_per_character(encoding, ids) == 10 / 4
    corpus = SimpleNamespace(encoding=encoding, bytes_per_token=2.5)
    result = figures(torch.tensor([8.0, 6.0]), torch.tensor([4, 4]), ids[None, :4].expand(2, -1), corpus)
    assert result["perplexity"] == pytest.approx(math.exp(14 / 8)) and result["tokens"] == 8
    assert result["bits_per_byte"] == pytest.approx(14 / 8 / math.log(2) / 2.5)
    assert result["bits_per_character"] == pytest.approx(14 / 8 / math.log(2))
    assert "bits_per_byte" not in figures(torch.ones(2), torch.ones(2), ids[None], ToyCorpus(8))


# ---- the end of a text

def spelled(model, prompt, rest, ends=False):
    x, frozen = ending(model, prompt, rest, ends)
    return "".join(f"[{c}]" if asked else c for c, asked in
                   zip(decode(model.encoding, x[0].tolist()), (~frozen[0]).tolist()))


@pytest.mark.parametrize("prompt, rest, shown", [
    ("ab", "cd", "ab[ ][c][d]"), ("ab ", "cd", "ab[ ][c][d]"), ("ab", " cd", "ab[ ][c][d]"),
    ("ab\n", "c", "ab[\n][c]"), ("", "cd", "[c][d]"), ("abcd" * 9, "dd", "dabcdabcdabcd[ ][d][d]"),
])
def test_the_end_of_a_text_is_asked_with_its_space_and_the_oldest_tokens_go(prompt, rest, shown):
    assert spelled(model_of(chars("abcd \n")), prompt, rest) == shown


def test_blocks_are_filled_and_ends_of_text_stand_on_both_sides_where_they_are_wanted():
    assert spelled(model_of(chars("abcd "), "bd3lm", diffusion_block=4, block=4), "abcdab", "c") == "abcdab[ ][c]"
    assert spelled(model_of(chars("abcd "), "bd3lm", diffusion_block=4, block=4), "abcdabc", "c") == "bcdabc[ ][c]"
    model = model_of(encoding_for("chars", 0, "abcd ", ""))
    x, frozen = ending(model, "ab", "c", ends=True)
    end = model.encoding.eot_token
    assert (x[0, 0], x[0, -1]) == (end, end) and frozen.tolist() == [[True, True, True, False, False, True]]
    with pytest.raises(BadInput, match="has 19 tokens, and a text of 16 is to hold them"):
        ending(model, "a", "abcd" * 4 + "ab")


def texts_of(n, length=7, seed=3):
    x = LANGUAGE.sample(n, length, torch.Generator().manual_seed(seed))
    return x, [" ".join(LANGUAGE.words[i] for i in row) for row in x.tolist()]


@pytest.mark.parametrize("method", ["ar", "mdlm", "udlm", "pgm"])
def test_the_exact_denoiser_gives_last_words_their_exact_probability_and_finds_the_likeliest(method):
    """One word is one token, where the bound of masks is exact. Wrong words are worth more draws, and a bound: what is
    given stands clean where the network expects noise."""
    x, passages = texts_of(12)
    every = x[:, None].repeat(1, LANGUAGE.V, 1)                                                         # (n, V, L)
    every[..., -1] = torch.arange(LANGUAGE.V)
    law = LANGUAGE.log_prob(every.flatten(0, 1)).view(len(x), -1).log_softmax(-1)                       # (n, V)
    nats = -law.gather(-1, x[:, -1:])[:, 0]                                                             # (n,)
    found = (law.argmax(-1) == x[:, -1]).double()                                                       # (n,)
    result = last_words(exact(method), passages, 50 if method == "udlm" else 2, 1, "cpu")
    assert result["accuracy"] == pytest.approx(found.mean().item()) and 0 < result["accuracy"] < 1
    exactly = pytest.approx(nats.mean().item(), rel=1e-5)
    assert result["nats_per_word"] > nats.mean() if method == "udlm" else result["nats_per_word"] == exactly
    assert result["perplexity"] == pytest.approx(math.exp(result["nats_per_word"]))
    assert result["accuracy_error"] == pytest.approx(found.std().item() / 12 ** 0.5) and result["passages"] == 12


def test_the_exact_denoiser_chooses_what_is_likelier_and_per_byte_what_is_likelier_for_its_length():
    """Two words as they were drawn, against the one likeliest next word."""
    x, _ = texts_of(16)
    questions, plain, per_byte = [], 0, 0
    for row in x:
        next_words = torch.cat([row[:-2].expand(LANGUAGE.V, -1), torch.arange(LANGUAGE.V)[:, None]], 1)      # (V, L-1)
        ends = [row[-2:], LANGUAGE.log_prob(next_words).argmax()[None]]
        choices = [" ".join(LANGUAGE.words[j] for j in end.tolist()) for end in ends]
        nats = [-(LANGUAGE.log_prob(torch.cat([row[:-2], end])[None]) - LANGUAGE.log_prob(row[None, :-2])).item()
                for end in ends]
        plain += nats[0] < nats[1]
        per_byte += nats[0] / len(choices[0]) < nats[1] / len(choices[1])
        questions.append((" ".join(LANGUAGE.words[j] for j in row[:-2].tolist()), choices, 0))
    result = multiple_choice(exact("ar"), questions, 1, 1, "cpu")
    assert result["accuracy"] == plain / 16 and result["accuracy_per_byte"] == per_byte / 16 and plain != per_byte
    assert result["chance"] == 0.5 and result["questions"] == 16


@pytest.mark.parametrize("method, kind", [("sedd", "uniform"), ("d3pm", "uniform"), ("d3pm", "gaussian")])
def test_words_are_filled_in_by_ratios_or_matrices_under_masks_alone(method, kind):
    model = model_of(chars("abcd "), method, transition=kind)
    x, frozen = ending(model, "ab", "c")
    with pytest.raises(BadInput, match=f"which {method} does under masks alone: take --choices"):
        bounds.fill(model, x, frozen)


def test_a_published_sedd_fills_words_in_though_its_config_names_no_transition():
    model = model_of(chars("abcd "), "sedd")
    assert not hasattr(model.config, "transition")
    model.denoiser = lambda z, t, at=None: torch.zeros(int((torch.ones_like(z) if at is None else at).sum()), 6)
    x, frozen = ending(model, "ab", "c")
    z = bounds.fill(model, x, frozen)
    assert (z < 5).all() and (z == x)[frozen].all()


GOOD = '{"text": "one two"}\n'
QUESTION = '{"prompt": "a", "choices": ["b", "c"], "answer": %s}\n'


@pytest.mark.parametrize("flag, content, says", [
    ("lambada", GOOD + "[]\n", 'line 2: it should be {"text": "two words or more"}'),
    ("lambada", GOOD + '\n{"text": "one"}\n', "line 3"), ("lambada", GOOD + '{"text"', "line 2"),
    ("lambada", GOOD, "a standard error needs two"), ("lambada", None, "cannot read asked.jsonl: No such file"),
    ("choices", QUESTION % 0 + QUESTION % 2, "line 2"), ("choices", QUESTION % '"b"', "line 1"),
    ("choices", QUESTION.replace('["b", "c"]', '["b", " "]') % 0, "line 1"),
])
def test_a_line_that_is_not_as_it_should_be_is_named(flag, content, says, capsys):
    if content:
        Path("asked.jsonl").write_text(content)
    assert says in complaint(evaluate, "--oracle", "mdlm", f"--{flag}", "asked.jsonl", capsys=capsys)


def test_a_line_ends_at_a_line_feed_and_at_no_other_separator():
    Path("asked.jsonl").write_text('{"text": "one\u2028two\x85three"}\n' * 2, "utf-8")
    assert bounds.passages_of("asked.jsonl") == ["one\u2028two\x85three"] * 2


# ---- the script

QUICK = ["--max_texts", 4, "--draws", 1, "--num_samples", 0, "--device", "cpu"]


@pytest.fixture(scope="module")
def poems(tmp_path_factory):
    """A folder with a run on one text, and two others."""
    root = tmp_path_factory.mktemp("poems")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("PALIMPSEST_CACHE", str(root / "cache"))
        patch.setattr("train.final", lambda learner: None)
        Path("a.txt").write_text("a rose is a rose is a rose\n" * 99)
        Path("b.txt").write_text("is a rose a rose\n" * 99)
        fit("out", data="a.txt", tokenizer="chars")
    return root


def evaluated(*argv):
    from flags import parse
    evaluate.main(parse(evaluate.Config, [str(word) for word in ["--out_dir", "out", *QUICK, *argv]])[0])


def kept():
    return json.loads(Path("out/evaluation.json").read_text())


@pytest.fixture
def at_poems(poems, monkeypatch):
    monkeypatch.chdir(poems)
    Path("out/evaluation.json").unlink(missing_ok=True)


def test_a_zero_shot_set_has_the_figures_that_it_has_as_data(at_poems, capsys):
    evaluated("--json", "--zero_shot", "a.txt,b.txt")
    zero = json.loads(capsys.readouterr().out)["zero_shot"]
    evaluated("--json", "--data", "b.txt")
    own = json.loads(capsys.readouterr().out)
    assert list(zero) == ["a.txt", "b.txt"] and zero["b.txt"]["draws"] == 1 and zero["b.txt"]["texts"] == 4
    for name in ("perplexity", "perplexity_error", "bits_per_byte", "bits_per_character", "tokens"):
        assert zero["b.txt"][name] == pytest.approx(own[name])
    assert own["perplexity"] == pytest.approx(math.exp(own["nats_per_token"]))


def test_the_table_has_a_line_for_each_set_and_each_kind_of_question(at_poems, capsys):
    Path("last.jsonl").write_text('{"text": "a rose is a rose"}\n' * 2)
    Path("quiz.jsonl").write_text('{"prompt": "a rose is", "choices": ["a rose", "rose"], "answer": 0}\n' * 2)
    evaluated("--zero_shot", "b.txt", "--lambada", "last.jsonl", "--choices", "quiz.jsonl")
    table = capsys.readouterr().out
    assert "\nb.txt, val: perplexity at most " in table and "4 texts, 32 tokens, 1 draws" in table
    assert "\nlast words: " in table and "2 passages" in table and "\nchoices: " in table and "2 questions" in table
    assert set(next(iter(kept().values()))) >= {"perplexity", "zero_shot", "last_words", "choices"}


def test_what_is_measured_stays_when_a_later_set_fails_and_the_rest_is_measured(at_poems, capsys):
    error = complaint(evaluate, "--out_dir", "out", *QUICK, "--zero_shot", "nowhere,b.txt", capsys=capsys)
    assert error.startswith("pytest: nowhere: there is no data 'nowhere'") or "nowhere: there is no data" in error
    result, = kept().values()
    assert "perplexity" in result and list(result["zero_shot"]) == ["b.txt"]


def test_a_disk_that_fails_while_samples_are_drawn_costs_no_bound(at_poems, monkeypatch, capsys):
    def fail(*args):
        raise OSError(5, "Input/output error")
    monkeypatch.setattr(evaluate, "rate", fail)
    error = complaint(evaluate, "--out_dir", "out", *QUICK[:4], "--num_samples", 2, capsys=capsys)
    assert "samples: Input/output error" in error and "perplexity" in next(iter(kept().values()))


def test_evaluations_are_kept_by_step_and_flags_and_the_same_one_replaces_itself(at_poems):
    for argv in ([], ["--draws", 2], []):
        evaluated(*argv)
    assert list(kept()) == [f"step 2 --draws {n} --max_texts 4 --num_samples 0" for n in (1, 2)]


def test_a_full_disk_or_a_file_of_another_kind_costs_no_evaluation_that_was_there(at_poems, capsys):
    evaluated()
    before = kept()
    with disk_of(100):
        error = complaint(evaluate, "--out_dir", "out", *QUICK, "--draws", 2, capsys=capsys)
    assert "cannot add to out/evaluation.json (File too large); what was in it stays" in error
    assert kept() == before and not list(Path("out").glob("*.tmp"))
    Path("out/evaluation.json").write_text("[not JSON")
    assert "move it away" in complaint(evaluate, "--out_dir", "out", *QUICK, capsys=capsys)
    assert Path("out/evaluation.json").read_text() == "[not JSON"


@pytest.mark.parametrize("argv", [["--data", "toy"], ["--zero_shot", "toy"]], ids=str)
def test_text_that_has_tokens_of_its_own_is_refused(argv, at_poems, capsys):
    assert "toy has tokens of its own" in complaint(evaluate, "--out_dir", "out", *QUICK, *argv, capsys=capsys)


def test_the_test_split_is_other_text_and_a_corpus_without_one_says_so(at_poems, capsys):
    error = complaint(evaluate, "--out_dir", "out", *QUICK, "--split", "test", capsys=capsys)
    assert "a.txt has no test split, only train and val" in error
    val, test = (ToyCorpus(8).windows(split, 5) for split in ("val", "test"))
    assert val.shape == test.shape and not torch.equal(val, test)


def test_texts_of_many_tokens_count_more_in_a_perplexity():
    """By the exact denoiser, where prompts of different lengths are given."""
    x = LANGUAGE.sample(6, 8, torch.Generator().manual_seed(0))
    frozen = torch.arange(8) < torch.tensor([[0], [2], [4], [6], [7], [7]])
    nats, scored = nats_of(make_method("ar", LANGUAGE.V), exact("ar").denoiser, x, frozen=frozen)
    assert scored.tolist() == [8, 6, 4, 2, 1, 1] and pooled(nats, scored)[0] == pytest.approx(nats.sum().item() / 22)
    assert bounds.estimate(make_method("ar", LANGUAGE.V), exact("ar").denoiser, x, frozen=frozen)[0] == pytest.approx(
        (nats / scored).mean().item())


def test_what_fills_a_text_up_is_noised_and_not_scored_and_all_other_tokens_count_alike():
    """Five words to a text of eight: by the exact next-word law the first five words cost what they cost alone."""
    x = LANGUAGE.sample(6, 8, torch.Generator().manual_seed(0))
    counted = torch.arange(8) < torch.tensor([[5], [5], [5], [8], [8], [1]])
    corpus = SimpleNamespace(encoding=ToyCorpus(8).encoding, scored=lambda x: counted)
    given = make_method("ar", LANGUAGE.V), exact("ar").denoiser, x
    nats, scored = nats_of(*given, counted=bounds.counted_in(corpus, x))
    exactly = [-LANGUAGE.log_prob(row[None, :n]).item() for row, n in zip(x, counted.sum(-1).tolist())]
    assert nats.tolist() == pytest.approx(exactly) and scored.tolist() == [5, 5, 5, 8, 8, 1]
    mean, error = bounds.estimate(*given, counted=counted)
    assert mean == pytest.approx(sum(exactly) / 32) and error == pytest.approx(pooled(nats, scored)[1])
    assert figures(nats, scored, x, corpus, counted=counted)["perplexity"] == pytest.approx(math.exp(mean))
    assert bounds.counted_in(ToyCorpus(8), x) is None
    given = torch.arange(8).expand(6, -1) == 0               # of a given first token nothing is scored either
    assert bounds.scored_in(x, given, counted).sum(-1).tolist() == [4, 4, 4, 7, 7, 0]
