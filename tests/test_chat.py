"""
Chats as texts, and the loss of fine-tuning on their answers.
"""
import hashlib
import json
from pathlib import Path

import pytest
import torch

import chat
import masked
from data import BadInput, text, village
from data.chat import MARKS, chats_of, ids_of, read
from data.tokenizer import decode, from_json, to_json
from diffusion import corrupt, stratified
from learner import per_token
from masked import MDLM, Absorbing
from methods import make_method


@pytest.fixture(scope="module")
def corpus():
    return text.load("chat", 48, vocab_size=8192, sft=True)


# ---- the texts

def test_the_village_is_the_same_on_every_machine():
    assert village.chats() == village.chats()
    raw = json.dumps(village.chats()).encode()
    assert hashlib.sha256(raw).hexdigest()[:12] == "d22363cb53e6"


def test_facts_do_not_contradict_each_other_and_no_question_has_two_answers():
    for fact, values in village.FACTS.items():
        assert len(values) == len(village.VILLAGERS) == 16 and len(set(values)) == (8 if fact == "colour" else 16)
    answers = {}
    for _, _, messages in village.chats():
        for n in range(2, len(messages) + 1, 2):
            assert answers.setdefault(tuple(messages[:n - 1]), messages[n - 1]) == messages[n - 1]
    assert not set(village.STRANGERS) & set(village.VILLAGERS) and len(set(village.STRANGERS)) == 64


def test_nothing_held_out_is_ever_trained_on(corpus):
    """Not as a prompt, not in another wording: the two halves of a held-out sum never meet in training."""
    parts = {split: {tuple(messages[:-1]) for _, messages in corpus.chats[split]} for split in ("train", "val")}
    assert len(parts["val"]) > 400 and len(parts["train"]) > 4000
    first = {split: {prompt[0] for prompt in prompts} for split, prompts in parts.items()}
    asked = {question for prompt in parts["train"] for question in prompt[::2]}              # first or later in a chat
    assert not asked & first["val"] and len(asked) > len(first["train"])
    key = {messages[0]: key for _, key, messages in village.chats()}
    assert not {key[question] for question in first["train"]} & {key[question] for question in first["val"]}
    sums = [question for question in first["val"] if " plus " in question and "?" in question]
    for question in sums:
        a, b = [word.strip("?") for word in question.split() if word.strip("?").isdigit()]
        assert not any(f"{x} {sign} {y}" in asked for x, y in ((a, b), (b, a)) for sign in ("plus", "+")
                       for asked in (f" {q}".replace("?", " ") + " " for q in first["train"])
                       if f" {x} {sign} {y} " in asked)
    assert sums and "Hello!" in first["train"] and "Who are you?" in first["train"]
    assert {kind for kind, _ in corpus.chats["val"]} == {kind for kind, _, _ in village.chats()}


def test_texts_come_back_as_the_messages_that_they_are_made_of(corpus):
    user, assistant, end = (corpus.encoding.encode_single_token(mark) for mark in MARKS)
    assert [user, assistant, end] == list(range(corpus.encoding.n_vocab - 3, corpus.encoding.n_vocab))
    for (_, messages), row, start in zip(corpus.chats["val"], corpus.texts["val"].tolist(), corpus.starts["val"]):
        said, *turns = decode(corpus.encoding, row[:row.index(end)]).split(MARKS[0])
        assert said == "" and [m for turn in turns for m in turn.split(MARKS[1])] == [f" {m}" for m in messages]
        assert set(row[row.index(end):]) == {end}
        assert chat.answer(torch.tensor(row), int(start), corpus.encoding) == messages[-1]
    assert to_json(from_json(to_json(corpus.encoding))) == to_json(corpus.encoding)


def test_a_word_is_the_same_token_wherever_it_stands_and_spaces_around_a_message_do_not_count(corpus):
    ids = ids_of(corpus.encoding, [" goat ", "red goat"])
    assert ids == ids_of(corpus.encoding, ["goat", "red goat"]) and ids[1] == ids[-1] and len(ids) == 5


def test_what_a_user_types_never_becomes_a_mark(corpus):
    ids = ids_of(corpus.encoding, ["say <|endoftext|><|assistant|>"])
    assert ids[0] == corpus.encoding.n_vocab - 3 and max(ids[1:-1]) < corpus.encoding.n_vocab - 3
    assert decode(corpus.encoding, ids[1:-1]) == " say <|endoftext|><|assistant|>"


def test_given_is_the_prompt_and_nothing_else_and_each_answer_of_a_chat_is_learnt_once(corpus):
    x, frozen, label = corpus.examples("train", 500)
    assert label is None and (frozen.sum(-1) < 48).all()
    for row, given in zip(x, frozen):
        n = int(given.sum())
        assert given[:n].all() and not given[n:].any()
        assert row[n - 1] == corpus.encoding.encode_single_token(MARKS[1])       # the mark that opens the answer
    learnt = {}
    for _, messages in corpus.chats["train"]:
        learnt[tuple(messages)] = learnt.get(tuple(messages), 0) + 1
    for _, messages in chats_of("chat")["train"]:
        for n in range(2, len(messages) + 1, 2):
            assert learnt[tuple(messages[:n])] == 1


def test_pretraining_reads_the_same_chats_as_one_stream(corpus):
    stream = text.load("chat", 48, vocab_size=8192)
    end = corpus.encoding.eot_token
    assert to_json(stream.encoding) == to_json(corpus.encoding) and stream.examples("train", 3)[1] is None
    whole = [ids for _, messages in chats_of("chat")["val"] for ids in [*ids_of(stream.encoding, messages), end]]
    assert stream.val.tolist() == whole


def test_bits_per_byte_count_what_is_said_and_not_the_marks_that_say_who_speaks(corpus):
    said = sum(len(f" {message}".encode()) for _, messages in chats_of("chat")["val"] for message in messages)
    stream = text.load("chat", 48, vocab_size=8192)
    assert stream.bytes_per_token == pytest.approx(said / len(stream.val), rel=1e-12)
    answers = sum(len(f" {messages[-1]}".encode()) for _, messages in corpus.chats["val"])
    assert corpus.bytes_per_token == pytest.approx(answers / (48 - corpus.starts["val"]).sum().item(), rel=1e-12)


def write(*chats):
    lines = [json.dumps({"messages": [{"role": ("user", "assistant")[i % 2], "content": said}
                                      for i, said in enumerate(messages)]}) for messages in chats]
    Path("mine.jsonl").write_text("\n".join(lines) + "\n\n", "utf-8")
    return lines


def test_a_file_of_ones_own_is_split_by_first_questions_and_something_is_always_held_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(["Who?", "Me."], ["Who?", "You."], ["Why?", "So.", "And?", "No."])
    mine = text.load("mine.jsonl", 32, sft=True)
    first = {split: {messages[0] for _, messages in chats} for split, chats in mine.chats.items()}
    assert sorted(map(sorted, first.values())) == [["Who?"], ["Why?"]] and mine.name == "mine.jsonl"
    assert text.load("mine.jsonl", 8).encoding.eot_token == mine.end
    write(["Who?", "Mé."], ["Why?", "Sô."])                  # a letter that only one split has
    for tokenizer in ("chars", "bpe"):
        mine = text.load("mine.jsonl", 32, tokenizer, sft=True)
        assert [chat.answer(row, int(start), mine.encoding) for part in mine.texts for row, start in
                zip(mine.texts[part], mine.starts[part])] in (["Mé.", "Sô."], ["Sô.", "Mé."])
    with pytest.raises(BadInput, match="mine.jsonl, line .: the vocabulary lacks '.'"):
        text.load("mine.jsonl", 32, text.load("chat", 48, "chars").encoding, sft=True)


def test_a_chat_may_hold_any_separator_of_lines_but_a_line_feed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [line.replace("Me.", "M\u2028e\x85.") for line in write(["Who?", "Me."], ["Why?", "So."])]
    Path("mine.jsonl").write_text("\n".join(lines), "utf-8")
    assert [messages for _, _, messages in read("mine.jsonl")] == [["Who?", "M\u2028e\x85."], ["Why?", "So."]]


@pytest.mark.parametrize("line, says", [
    ("{", "line 2 is no chat"), ("[1]", "line 2 is no chat"), ('{"text": "a"}', "line 2 is no chat"),
    ('{"messages": []}', "roles are none"),
    ('{"messages": [{"role": "user", "content": "a"}]}', "the assistant last"),
    ('{"messages": [{"role": "system", "content": "a"}, {"role": "assistant", "content": "b"}]}', "roles are system"),
    ('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": 3}]}', "a text that is not"),
    ('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}]}', "a text that is not"),
    ('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "\\ud83d"}]}', "line 2.*ud83d"),
    (json.dumps({"messages": [{"role": "user", "content": "a " * 40}, {"role": "assistant", "content": "b"}]}),
     "line 2 has .* more than --block_size 32")])
def test_a_bad_line_is_told_by_its_number(line, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good, other = write(["Who?", "Me."], ["Why?", "So."])
    Path("mine.jsonl").write_text("\n".join([good, line, other]))
    with pytest.raises(BadInput, match=says) as error:
        text.load("mine.jsonl", 32, "bytes", sft=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("data, options, says", [
    ("none.jsonl", {}, "there is no data 'none.jsonl'"), ("empty.jsonl", {}, "holds no chats"),
    ("one.jsonl", {}, "a single first question"), ("latin1.jsonl", {}, "not UTF-8"),
    ("names", {}, "--sft learns answers to questions"), ("chat", dict(block_size=20), "raise that"),
    ("chat", dict(tokenizer=text.byte_level()), "tokens with marks"), ("chta", {}, "did you mean 'chat'"),
    ("chat", dict(tokenizer="bert-base-uncased"), "takes none: use --tokenizer bpe")])
def test_chats_that_cannot_be_read_are_one_line(data, options, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line, = write(["Who?", "Me."])
    Path("empty.jsonl").write_text("\n")
    Path("one.jsonl").write_text(line)
    Path("latin1.jsonl").write_bytes("ä".encode("latin-1"))
    with pytest.raises(BadInput, match=says):
        text.load(data, **{"block_size": 48, "sft": data != "chta", **options})


# ---- the loss

def test_the_loss_of_fine_tuning_is_lladas(monkeypatch):
    """Sum over masked tokens of the answer, ends included, of (cross-entropy / p), over the tokens of the answer, the
    mean over texts. Their p = (1 - eps) t + eps is t here, eps = 0."""
    monkeypatch.setattr(masked, "stratified", lambda n, device: stratified(n).double())
    torch.manual_seed(0)
    B, length, V = 6, 16, 11
    x, logits = torch.randint(V, (B, length)), torch.randn(B, length, V + 1, dtype=torch.float64)
    frozen = torch.arange(length) < torch.tensor([3, 5, 2, 9, 12, 4])[:, None]
    torch.manual_seed(1)
    ours = per_token(MDLM(V, "bound").loss(lambda z, t, at: logits[at], x, frozen), frozen)
    torch.manual_seed(1)
    p = stratified(B).double()                                                                          # (B, 1)
    z, theirs = corrupt(Absorbing(V), x, p, frozen), 0.0
    for b in range(B):
        learnt = [l for l in range(length) if not frozen[b, l]]
        for l in learnt:
            if z[b, l] == V:
                nll = logits[b, l, :V].logsumexp(-1) - logits[b, l, x[b, l]]
                theirs += nll / p[b, 0] / len(learnt) / B
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=0)
    assert (z[frozen] == x[frozen]).all() and theirs > 0


@pytest.mark.parametrize("name", [
    "ar", "mdlm", "md4", "genmd4", "radd", "bd3lm", "pgm", "udlm", "gidd", "duo", "sedd", "d3pm"])
def test_a_prompt_is_never_noised_and_never_a_target(name):
    """Not by a hair: the gradient at every logit of a given token is zero, and no noise reaches one."""
    method, seen = make_method(name, 7, curriculum=0.0), []
    x = torch.randint(7, (16, 8), generator=torch.Generator().manual_seed(2))
    frozen = (torch.arange(8) < torch.arange(16)[:, None] % 6 + 1)                                      # (16, 8)
    logits = torch.zeros(16, 12, 9, requires_grad=True)

    def denoiser(z, t, at=None, **layout):
        seen.append(z)
        out = logits[:, :z.shape[1], :method.vocab_size]
        return out if at is None else out[at]
    for objective in (method.loss, method.nelbo):
        torch.manual_seed(0)
        logits.grad = None
        nats = objective(denoiser, x, frozen)
        assert (nats[frozen] == 0).all() and (nats[~frozen] != 0).any()
        nats.sum().backward()
        assert (logits.grad[:, :8][frozen] == 0).all() and (logits.grad[:, :8][~frozen] != 0).any()
    for z in seen if name != "ar" else []:
        assert (z[:, :8][frozen] == x[frozen]).all()


def test_a_block_of_an_answer_sees_its_prompt_clean():
    method, asked = make_method("bd3lm", 7, diffusion_block=4), []
    x, frozen = torch.arange(8).expand(4, 8) % 7, torch.arange(8).expand(4, 8) < 5
    method.nelbo(lambda z, t, at, **layout: asked.append(z) or torch.zeros(int(at.sum()), 8), x, frozen)
    assert (asked[0][:, :5] == x[:, :5]).all() and (asked[0][:, 8:] == x[:, :4]).all()
    assert (asked[0][:, 5:8] == 7).any()
