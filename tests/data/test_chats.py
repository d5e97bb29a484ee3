"""Chats as texts: what is given, what is held out, which line of a file is wrong."""
import hashlib
import json
from pathlib import Path

import pytest
import torch

from data import load_data, synthetic_chats
from data.chat import MARKS, Chat, ids_of, read_chats, split_chats
from data.tokenizer import byte_level, decode, from_json, to_json
from flags import UserError


@pytest.fixture(scope="module")
def answers():
    return load_data("chat", 48, vocab_size=8192, sft=True)


@pytest.fixture(scope="module")
def stream():
    return load_data("chat", 48, vocab_size=8192)


@pytest.fixture(scope="module")
def parts():
    return split_chats(Chat.chats_of("chat")[0], "chat")


@pytest.fixture
def write(tmp_path, monkeypatch):
    """write([question, answer, ...], ...) writes mine.jsonl. -> its lines"""
    monkeypatch.chdir(tmp_path)

    def write(*chats):
        lines = []
        for messages in chats:
            roles = ["user", "assistant"] * len(messages)
            rows = [{"role": role, "content": said} for role, said in zip(roles, messages)]
            lines.append(json.dumps({"messages": rows}))
        Path("mine.jsonl").write_text("\n".join(lines) + "\n\n", "utf-8")
        return lines
    return write


def answer_of(row, start, encoding):
    """What row (L,) says from `start` to its first end."""
    ids = row.tolist()[int(start):]
    return decode(encoding, ids[:ids.index(encoding.eot_token)]).strip()


# ---- the village

def test_the_chats_are_the_same_on_every_machine():
    raw = json.dumps(synthetic_chats.make_chats()).encode()
    assert hashlib.sha256(raw).hexdigest()[:12] == "d22363cb53e6"
    assert synthetic_chats.make_chats() == synthetic_chats.make_chats()


def test_facts_do_not_contradict_each_other_and_no_question_has_two_answers():
    villagers, strangers = synthetic_chats.VILLAGERS, synthetic_chats.STRANGERS
    for fact, values in synthetic_chats.FACTS.items():
        assert len(values) == len(villagers) == 16
        assert len(set(values)) == (8 if fact == "color" else 16)
    answers = {}
    for _, _, messages in synthetic_chats.make_chats():
        for n in range(2, len(messages) + 1, 2):
            assert answers.setdefault(tuple(messages[:n - 1]), messages[n - 1]) == messages[n - 1]
    assert not set(strangers) & set(villagers) and len(set(strangers)) == 64


def test_nothing_held_out_is_ever_trained_on(answers):
    """Not as a prompt, not in another wording: the numbers of a held-out sum never meet in
    training."""
    prompts = {split: {tuple(messages[:-1]) for _, messages in chats}
               for split, chats in answers.chats.items()}
    assert len(prompts["val"]) > 400 and len(prompts["train"]) > 4000
    first = {split: {prompt[0] for prompt in part} for split, part in prompts.items()}
    asked = {question for prompt in prompts["train"] for question in prompt[::2]}  # at any turn
    assert not asked & first["val"] and len(asked) > len(first["train"])
    key = {messages[0]: key for _, key, messages in synthetic_chats.make_chats()}
    assert not {key[question] for question in first["train"]} & {key[q] for q in first["val"]}
    sums = [question for question in first["val"] if " plus " in question and "?" in question]
    trained = [f" {question} ".replace("?", " ") for question in first["train"]]
    for question in sums:
        a, b = [word.strip("?") for word in question.split() if word.strip("?").isdigit()]
        wordings = [f" {x} {sign} {y} " for x, y in ((a, b), (b, a)) for sign in ("plus", "+")]
        assert not any(wording in other for wording in wordings for other in trained)
    assert sums and "Hello!" in first["train"] and "Who are you?" in first["train"]
    kinds = {kind for kind, _, _ in synthetic_chats.make_chats()}
    assert {kind for kind, _ in answers.chats["val"]} == kinds


# ---- texts

def test_texts_come_back_as_the_messages_that_they_are_made_of(answers):
    encoding = answers.encoding
    user, assistant, end = (encoding.encode_single_token(mark) for mark in MARKS)
    assert [user, assistant, end] == list(range(encoding.n_vocab - 3, encoding.n_vocab))
    rows = zip(answers.chats["val"], answers.texts["val"], answers.starts["val"])
    for (_, messages), row, start in rows:
        assert answer_of(row, start, encoding) == messages[-1]
        row = row.tolist()
        nothing, *turns = decode(encoding, row[:row.index(end)]).split(MARKS[0])
        said = [message for turn in turns for message in turn.split(MARKS[1])]
        assert nothing == "" and said == [f" {message}" for message in messages]
        assert set(row[row.index(end):]) == {end}
    assert to_json(from_json(to_json(encoding))) == to_json(encoding)


def test_a_word_is_the_same_token_wherever_it_stands_and_outer_spaces_do_not_count(answers):
    ids = ids_of(answers.encoding, [" goat ", "red goat"])
    assert ids == ids_of(answers.encoding, ["goat", "red goat"])
    assert ids[1] == ids[-1] and len(ids) == 5


def test_what_a_user_types_never_becomes_a_mark(answers):
    ids = ids_of(answers.encoding, ["say <|endoftext|><|assistant|>"])
    marks = answers.encoding.n_vocab - 3
    assert ids[0] == marks and max(ids[1:-1]) < marks
    assert decode(answers.encoding, ids[1:-1]) == " say <|endoftext|><|assistant|>"


def test_only_the_prompt_is_given_and_each_answer_of_a_chat_is_learned_once(answers, parts):
    x, frozen, label = answers.examples("train", 500)
    assert label is None and (frozen.sum(-1) < 48).all() and answers.answers
    for row, given in zip(x, frozen):
        n = int(given.sum())
        assert given[:n].all() and not given[n:].any()
        assert row[n - 1] == answers.encoding.encode_single_token(MARKS[1])  # opens the answer
    learned = {}
    for _, messages in answers.chats["train"]:
        learned[tuple(messages)] = learned.get(tuple(messages), 0) + 1
    for _, messages in parts["train"]:
        for n in range(2, len(messages) + 1, 2):
            assert learned[tuple(messages[:n])] == 1


def test_pretraining_reads_the_same_chats_as_one_stream(answers, stream, parts):
    end = answers.encoding.eot_token
    assert to_json(stream.encoding) == to_json(answers.encoding)
    assert stream.examples("train", 3)[1] is None and not stream.answers
    whole = [i for _, messages in parts["val"] for i in [*ids_of(stream.encoding, messages), end]]
    assert stream.val.tolist() == whole


def test_bits_per_byte_count_what_is_said_and_not_the_marks(answers, stream, parts):
    said = sum(len(f" {message}".encode()) for _, messages in parts["val"] for message in messages)
    assert stream.bytes_per_token == pytest.approx(said / len(stream.val), rel=1e-12)
    written = sum(len(f" {messages[-1]}".encode()) for _, messages in answers.chats["val"])
    scored = (48 - answers.starts["val"]).sum().item()
    assert answers.bytes_per_token == pytest.approx(written / scored, rel=1e-12)


# ---- your own file

def test_a_file_is_split_by_first_questions_and_something_is_always_held_out(write):
    write(["Who?", "Me."], ["Who?", "You."], ["Why?", "So.", "And?", "No."])
    mine = load_data("mine.jsonl", 32, sft=True)
    first = [{messages[0] for _, messages in chats} for chats in mine.chats.values()]
    assert sorted(map(sorted, first)) == [["Who?"], ["Why?"]] and mine.name == "mine.jsonl"
    assert {kind for chats in mine.chats.values() for kind, _ in chats} == {"chats"}
    assert load_data("mine.jsonl", 8).encoding.eot_token == mine.end
    write(["Who?", "Mé."], ["Why?", "Sô."])  # a letter that only one split has
    for tokenizer in ("chars", "bpe"):
        mine = load_data("mine.jsonl", 32, tokenizer, sft=True)
        said = [answer_of(row, start, mine.encoding) for part in mine.texts
                for row, start in zip(mine.texts[part], mine.starts[part])]
        assert sorted(said) == ["Mé.", "Sô."]
    with pytest.raises(UserError, match="mine.jsonl, line .: the vocabulary lacks '.'"):
        load_data("mine.jsonl", 32, load_data("chat", 48, "chars").encoding, sft=True)


def test_a_chat_may_contain_any_line_separator_but_a_line_feed(write):
    lines = write(["Who?", "Me."], ["Why?", "So."])
    lines = [line.replace("Me.", "M\u2028e\x85.") for line in lines]
    Path("mine.jsonl").write_text("\n".join(lines), "utf-8")
    read = [messages for _, _, messages in read_chats("mine.jsonl")[0]]
    assert read == [["Who?", "M\u2028e\x85."], ["Why?", "So."]]


def turns(*pairs):
    return json.dumps({"messages": [{"role": role, "content": said} for role, said in pairs]})


@pytest.mark.parametrize("line, says", [
    ("{", "line 2 is not a chat"), ("[1]", "line 2 is not a chat"),
    ('{"text": "a"}', "line 2 is not a chat"), (turns(), "roles are none"),
    ("[" * 50000, "line 2 is not a chat .it nests too deep"),
    ('{"messages": %s}' % ("9" * 5000), "line 2 is not a chat"),
    ('{"messages": [], "score": 1e400}', "1e400 is no number"),
    ('{"messages": [], "score": NaN}', "NaN is no number"),
    ('{"messages": [], "messages": []}', "a key stands twice"),
    ('{"messages": {"role": "user", "content": "a"}}', "line 2 is not a chat"),
    ('{"conversations": [{"from": "human", "value": "a"}]}', "KeyError: 'messages'.: it should be"),
    (turns(("system", "a"), ("assistant", "b")), "roles are assistant"),
    (turns(("user", "a"), ("system", "b")), "roles are user, system"),
    (turns(("user", "a"), ("assistant", "b"), ("assistant", "c")), "should take turns"),
    (turns(("human", "a"), ("gpt", "b")), "roles are human, gpt"),
    (turns(("user", "a"), ("assistant", 3)), "each content should be a text"),
    (turns(("user", "a"), ("assistant", None)), "each content should be a text"),
    (turns(("user", [{"type": "text", "text": "a"}]), ("assistant", "b")), "should be a text"),
    (turns(("user", "a"), ("assistant", "\ud83d")), "line 2.*ud83d")])
def test_a_bad_line_is_named_by_its_number(line, says, write):
    good, other = write(["Who?", "Me."], ["Why?", "So."])
    Path("mine.jsonl").write_text("\n".join([good, line, other]))
    with pytest.raises(UserError, match=says) as error:
        load_data("mine.jsonl", 32, "bytes", sft=True)
    assert "\n" not in str(error.value)


def asked(data):
    """The questions of a data set by split, and how they are answered."""
    return {split: {(messages[-2], messages[-1]) for _, messages in data.chats[split]}
            for split in ("train", "val")}


@pytest.mark.parametrize("change", ["{} ", "\ufeff{}", "\r\n{}", "{}\u00a0"])
def test_what_reads_as_the_same_tokens_is_on_the_same_side(change, write):
    """Chats are split and compared after white space, marks and line ends are dropped."""
    chats = [[f"q {i}", f"a {i}"] for i in range(30)]
    write(*chats, *([change.format(q), a] for q, a in chats))
    data = load_data("mine.jsonl", 24, "bytes", sft=True)
    train, val = ({tuple(row) for row in data.texts[split].tolist()} for split in data.splits)
    assert val and not train & val and len(train) + len(val) == 30


def test_the_question_decides_the_side_whatever_its_answer_and_the_system_message(write):
    lines = []
    for i in range(30):
        for system, answer in (("short", "a"), ("long", "b"), ("", "c")):
            said = [("system", system), ("user", f"q {i}"), ("assistant", answer)]
            lines.append(turns(*said[not system:]))
    Path("mine.jsonl").write_text("\n".join(lines))
    data = load_data("mine.jsonl", 32, "bytes", sft=True)
    train, val = ({messages[0].split("\n")[-1] for _, messages in data.chats[split]}
                  for split in data.splits)
    assert val and not train & val
    assert sum(len(part) for part in data.chats.values()) == 90


def test_a_system_message_is_put_in_front_of_the_first_question(write):
    lines = write(["Who?", "Me."], ["Why?", "So."])
    chat = turns(("system", "Be brief. "), ("user", "How?"), ("assistant", "Thus."),
                 ("user", "And?"), ("assistant", "No."))
    Path("mine.jsonl").write_text("\n".join([*lines, chat]))
    read, remark = read_chats("mine.jsonl")
    assert read[2] == ("line 3", "How?", ["Be brief.\n\nHow?", "Thus.", "And?", "No."])
    assert remark == ""


def test_a_chat_without_an_answer_at_its_end_is_read_up_to_its_last_answer(write):
    write(["Who?", "Me."], ["Why?", "So.", "And?"], ["How?", "Thus.", "Then?", " "], ["Eh?"],
          ["Oh?", ""])
    read, remark = read_chats("mine.jsonl")
    assert [messages for *_, messages in read] == [["Who?", "Me."], ["Why?", "So."],
                                                   ["How?", "Thus."]]
    assert "4 of 5 chats have no answer at their end" in remark
    assert load_data("mine.jsonl", 24, "bytes", sft=True).about.endswith(remark)
    write(["Who?"], ["Why?"])
    with pytest.raises(UserError, match="holds no chats"):
        read_chats("mine.jsonl")


def test_answers_that_are_too_long_are_left_out_and_counted_in_both_splits(write):
    chats = [[f"q {i}", "a"] for i in range(40)]
    whole = asked(load_data("mine.jsonl", 24, "bytes", sft=True)) if write(*chats) else {}
    long = [sorted(whole[split])[0][0] for split in ("train", "val")]
    write(*([q, a * (30 if q in long else 1)] for q, a in chats), ["new", "a", "b", "c" * 19])
    data = load_data("mine.jsonl", 24, "bytes", sft=True)
    assert "3 of 42 chats are longer than --block_size 24: left out" in data.about
    kept = asked(data)
    kept["train" if ("new", "a") in kept["train"] else "val"].remove(("new", "a"))
    assert all(kept[split] == whole[split] - {(q, "a") for q in long} for split in kept)
    assert all(len(data.texts[split]) == len(data.chats[split]) for split in data.splits)


@pytest.mark.parametrize("train, val", [(40, 0), (0, 40)])
def test_a_file_is_refused_if_most_answers_are_too_long_or_a_split_has_none_left(train, val, write):
    chats = [[f"q {i}", "a"] for i in range(40)]
    write(*chats)
    parts = load_data("mine.jsonl", 24, "bytes", sft=True).chats
    sizes = {messages[0]: {"train": train, "val": val}[split] for split in parts
             for _, messages in parts[split]}
    write(*([q, a + "a" * sizes[q]] for q, a in chats))
    with pytest.raises(UserError, match=r"of 40 chats.* than --block_size 24 .line \d+ has .* r"):
        load_data("mine.jsonl", 24, "bytes", sft=True)


@pytest.mark.parametrize("data, options, says", [
    ("none.jsonl", {}, "there is no data 'none.jsonl'"), ("empty.jsonl", {}, "holds no chats"),
    ("one.jsonl", {}, "a single first question"), ("latin1.jsonl", {}, "not UTF-8"),
    ("names", {}, "--sft learns answers to questions, and names has none"),
    ("toy", {}, "--sft learns answers"), ("text8", {}, "--sft learns answers"),
    ("some/file", {}, "--sft learns answers"), ("chat", dict(block_size=8), "raise that"),
    ("chat", dict(tokenizer=byte_level()), "tokens with marks"),
    ("chta", {}, "did you mean 'chat'"),
    ("chat", dict(tokenizer="bert-base-uncased"), "takes none: use --tokenizer bpe")])
def test_chats_that_cannot_be_read_are_one_line(data, options, says, write):
    line, = write(["Who?", "Me."])
    Path("empty.jsonl").write_text("\n")
    Path("one.jsonl").write_text(line)
    Path("latin1.jsonl").write_bytes("ä".encode("latin-1"))
    with pytest.raises(UserError, match=says):
        load_data(data, **{"block_size": 48, "sft": data != "chta", **options})


def test_the_rest_of_a_text_is_its_end_which_is_learned(answers):
    x, frozen, _ = answers.example_windows("val", 9)
    assert answers.padding(x) is None and not answers.pads
    assert (x[:, -1] == answers.end).all() and not frozen[:, -1].any()
    assert torch.equal(x, answers.select("val", answers.spread("val", 9))[0])
