"""
Chats and fine-tuning as their users meet them: every method, a pipe, a terminal, what goes wrong.
Most networks answer in the tokens of a file of their own, which is read faster than the village.
"""
import io
import json
import re
import signal
from pathlib import Path

import pytest

import chat
import evaluate
import sample
import train
from checkpoints.load import load_model
from data import load_data
from flags import load_row
from forks import forked
from kinds import scripts_differ
from methods import METHODS
from models import random_checkpoint
from runs import (  # noqa: F401
    assert_same,
    cache,
    commanded,
    complaint,
    elsewhere,
    fit,
    interrupt,
    script,
    subprocess,
    terminal,
)

MINE = [[f"What is {i}?", f"It is {i}."] for i in range(40)]
MINE += [[f"Is it {i}?", "Yes.", "So?", "It is."] for i in range(9)]
SIZE = dict(data="mine.jsonl", tokenizer="bytes", block_size=36)
DIFFERENT = scripts_differ([name for name in METHODS if not load_row(METHODS, name).classifies],
                           also=["pgm"])


def write(chats=MINE, path="mine.jsonl"):
    roles = ("user", "assistant")
    turns = lambda chat: [{"role": roles[i % 2], "content": words} for i, words in enumerate(chat)]
    lines = [{"messages": turns(chat)} for chat in chats]
    Path(path).write_text("\n".join(map(json.dumps, lines)))


def flags(module, *argv):
    return commanded(module, *argv)[0]


def talk(monkeypatch, capsys, out_dir, *argv, typed="", module=sample):
    """sample.py --chat, or chat.py, on what is typed. -> stdout, stderr"""
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    capsys.readouterr()
    module.main(*commanded(module, "--chat", "--out_dir", out_dir, "--device=cpu", "--seed=2",
                           *argv))
    return capsys.readouterr()


@pytest.fixture(scope="module")
def answering(tmp_path_factory):
    """A folder with a network of each of DIFFERENT, fine-tuned on answers, with random weights."""
    root = tmp_path_factory.mktemp("answering")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        write()
        for name in {*DIFFERENT, "mdlm", "udlm"}:
            random_checkpoint(root / name, method=name, sft=True, **SIZE)
    return root


# ---- what is said

@pytest.mark.parametrize("name", DIFFERENT)
def test_every_method_answers_by_a_sampler_that_fits_it(name, answering, monkeypatch, capsys):
    out, err = talk(monkeypatch, capsys, answering / name, "--steps=6",
                    typed="What is 3?\nAnd 4?\n")
    assert out.startswith("> What is 3?\n") and out.count("\n> And 4?\n") == 1
    own = {"pgm": "spread", "ar2diff": "unroll", "dot": "thoughts", "flexmdm": "insertion"}
    sampler = own.get(name, "ancestral")
    masks = ("mdlm", "md4", "radd", "audm", "planner", "diffugpt", "diffusion_llm", "rdm", "mgdm")
    sampler = "semi-ar" if name in masks else sampler
    assert re.search(rf"2 answers, {name}, {sampler}: \d+ network calls", err)


def test_chat_py_is_sample_py_with_chat(answering, monkeypatch, capsys):
    first, second = (talk(monkeypatch, capsys, answering / "mdlm", "--temperature=1", module=module,
                          typed="What is 3?\nAnd 4?\n") for module in (sample, chat))
    assert first.out == second.out


def test_a_conversation_is_remembered(answering, monkeypatch, capsys):
    seen, template = [], chat.chat_template
    monkeypatch.setattr(chat, "chat_template",
                        lambda messages, *rest: seen.append(messages) or template(messages, *rest))
    out, err = talk(monkeypatch, capsys, answering / "mdlm", "--json",
                    typed="Is it 3?\nSo?\n/quit\nnever read\n")
    first, second = map(json.loads, out.splitlines())
    assert seen == [["Is it 3?"], ["Is it 3?", first["text"], "So?"]] and second["prompt"] == "So?"
    total = int(re.search(r"(\d+) network calls", err)[1])
    assert first["network_calls"] + second["network_calls"] == total > 0


@pytest.mark.parametrize("typed, answers", [
    ("", 0), ("\nHi\n", 0), ("Hi\n\nHi\n", 1), ("/quit\n", 0), ("Hi", 1)])
def test_an_empty_line_quit_or_the_end_of_the_input_ends_a_chat(typed, answers, answering,
                                                                monkeypatch, capsys):
    _, err = talk(monkeypatch, capsys, answering / "mdlm", typed=typed)
    assert f"{answers} answer{'s' * (answers != 1)}, mdlm, semi-ar" in err


def test_a_question_that_cannot_be_encoded_gets_a_line_and_the_chat_goes_on(monkeypatch, capsys):
    write([["ab?", "ba"], ["ba?", "ab"]])
    random_checkpoint("out", data="mine.jsonl", tokenizer="chars", sft=True, block_size=24)
    _, err = talk(monkeypatch, capsys, "out", typed="aß?\n" + "ab " * 30 + "\nab?\n")
    assert "(the vocabulary lacks 'ß'" in err and "leave room for an answer: shorten it)" in err
    assert "1 answer, mdlm" in err


def test_a_mark_and_windows_line_ends_are_no_part_of_a_question(answering, monkeypatch, capsys):
    out, err = talk(monkeypatch, capsys, answering / "mdlm", "--json",
                    typed="\ufeffIs it 3?\r\n\r\nnever read\r\n")
    assert json.loads(out)["prompt"] == "Is it 3?" and "1 answer, mdlm" in err


def test_watching_shows_the_answer_alone(answering, monkeypatch, capsys):
    out, _ = talk(monkeypatch, capsys, answering / "mdlm", "--prompt", "Is it 3?", "--watch",
                  "--threshold", 0)
    assert out.startswith("step    1: ") and "Is it 3" not in out and "endoftext" not in out


def test_a_chat_in_a_terminal_prompts_answers_and_ends_on_ctrl_c(answering, terminal):  # noqa: F811
    interrupted = []

    def after(seen, process):
        if seen.count(b"> ") == 2 and not interrupted:  # it has answered and prompts again
            interrupted.append(process.send_signal(signal.SIGINT))

    command = ["sample", "--chat", "--watch", "--out_dir", answering / "mdlm"]
    seen, code = terminal(command, after, typed="Is it 3?\n")
    assert code == 130 and seen.endswith("interrupted\n")
    assert "Traceback" not in seen and "> Is it 3?" not in seen
    assert "\x1b[Jstep 1 " in seen
    assert seen.rindex("\x1b[0m") > max(seen.rfind("\x1b[2m"), seen.rfind("\x1b[32m"))


def test_a_chat_through_a_pipe_reads_as_a_conversation(answering):
    """And chat.py has the defaults of chats."""
    done = subprocess.run(**forked(script("chat", "--out_dir", answering / "mdlm")),
                          input="Is it 3?\n", capture_output=True)
    assert done.returncode == 0 and done.stdout.startswith("> Is it 3?\n")
    assert "1 answer, mdlm, semi-ar" in done.stderr


# ---- the flags

@pytest.mark.parametrize("how", [
    ["--sampler", "psi"], ["--factor", 1], ["--sampler", "remdm-conf", "--corrector", "gibbs"],
    ["--guidance", 1.5], ["--eos_last"], ["--cache=dual"], ["--dtype=bfloat16"]], ids=str)
def test_a_chat_takes_the_flags_of_sampling(how, answering, monkeypatch, capsys):
    _, err = talk(monkeypatch, capsys, answering / "mdlm", "--prompt", "Is it 3?", *how)
    assert "1 answer, mdlm" in err


def test_a_chat_takes_as_many_steps_as_are_asked_for(answering, monkeypatch, capsys):
    calls = []
    for steps in (2, 16):
        _, err = talk(monkeypatch, capsys, answering / "mdlm", "--prompt", "Is it 3?",
                      "--steps", steps)
        calls.append(int(re.search(r"(\d+) network calls", err)[1]))
    assert calls[0] <= 4 < calls[1]  # a block takes one step at least, and there are 4


@pytest.mark.parametrize("argv, threshold", [
    ([], 0.9), (["--sampler=semi-ar"], 0.9), (["--temperature=1"], 0.9), (["--steps=4"], 0),
    (["--factor=1"], 0), (["--steps=4", "--threshold=0.5"], 0.5)], ids=str)
def test_in_a_chat_the_default_threshold_gives_way_to_another_rule(argv, threshold):
    for module in (sample, chat, evaluate):
        assert flags(module, "--chat", *argv).threshold == threshold


def test_defaults_follow_from_the_flags_beside_them():
    tuned, read = flags(train, "--data", "chat", "--sft"), flags(train, "--data", "chat")
    assert (tuned.block_size, read.block_size) == (48, 48)
    assert tuned.learning_rate < read.learning_rate
    assert flags(train, "--sft", "--max_iters", 7).max_iters == 7
    assert flags(train, "--no_sft").learning_rate == flags(train).learning_rate
    assert flags(sample, "--chat").sampler == "semi-ar" and flags(sample).sampler == ""


@pytest.mark.parametrize("argv, says", [
    (["--chat", "--oracle", "mdlm"], "the tokenizer has no chat tokens"),
    (["--chat", "--out_dir", "nowhere"], "there is no checkpoint"),
    (["--chat", "--out_dir", "MDLM", "--prompt", "no " * 40], "shorten it"),
    (["--chat", "--out_dir", "UDLM", "--prompt", "Hi", "--guidance", "2"], "it is for mdlm"),
    (["--chat", "--out_dir", "MDLM", "--prompt", "Hi", "--guidance", "2", "--cache=dual"],
     "without --cache"),
    (["--out_dir", "MDLM", "--eos_last"], "--eos_last belongs to --sampler semi-ar"),
    (["--oracle", "mdlm", "--sampler", "semi-ar", "--eos_last"], "an end of text")])
def test_what_cannot_be_answered_is_one_line(argv, says, answering, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("Hi\n"))
    argv = [str(answering / word.lower()) if word in ("MDLM", "UDLM") else word for word in argv]
    assert says in complaint(sample, *argv, capsys=capsys)


# ---- fine-tuning

def test_fine_tuning_starts_from_pretraining_in_its_tokens_on_other_chats(monkeypatch, capsys):
    fit("pre", data="chat", block_size=48, vocab_size=200)
    write([["Hello!", "Hi, friend."], ["Who?", "Me, of course."]])
    own = dict(data="mine.jsonl", sft=True, block_size=32, init_from="pre")
    fit("own", **own)
    pre, tuned = load_model("pre"), load_model("own")
    assert tuned.encoding.n_vocab == pre.encoding.n_vocab
    assert (tuned.config.tokenizer, tuned.config.block_size) == ("auto", 32)
    assert_same(fit("whole", max_iters=4, **own), fit("whole", init_from="resume"))
    out, _ = talk(monkeypatch, capsys, "own", "--prompt", "Hello!")
    assert out.count("\n") == 1


def test_fine_tuning_that_is_stopped_goes_on_bit_by_bit(monkeypatch):
    write()
    given = dict(SIZE, sft=True, max_iters=6, learning_rate=0.01, eval_interval=4)
    whole = fit("whole", **given)
    with monkeypatch.context() as patch:
        interrupt(patch, 3, signal.SIGTERM)
        assert fit("parts", **given)["step"] == 4
    assert_same(whole, fit("parts", init_from="resume"))


def test_a_network_learns_the_answers_that_it_is_shown_and_stops(monkeypatch, capsys):
    """Two of these three questions: their answers come, and after them nothing but ends."""
    answers = {"Red?": "Yes.", "Blue?": "No no.", "Zzz?": "Oh."}
    write(answers.items())
    fit("out", data="mine.jsonl", tokenizer="bytes", sft=True, block_size=24, n_embd=64,
        max_iters=150, batch_size=16, learning_rate=0.01, ema=0.9, eval_interval=1000)
    trained = load_data("mine.jsonl", 24, "bytes", sft=True).chats["train"]
    assert len(trained) == 2
    for _, (question, words) in trained:
        for how in ([], ["--eos_last", "--decode_block", 99], ["--threshold", 0],
                    ["--guidance", 1.5]):
            out, _ = talk(monkeypatch, capsys, "out", "--prompt", question, *how)
            assert out == answers[question] + "\n"


def test_what_cannot_be_fine_tuned_is_one_line(capsys):
    assert "--sft learns answers" in complaint(train, "--data", "toy", "--sft", capsys=capsys)
    write()
    random_checkpoint("plain", data="names", tokenizer="bytes")
    start = ["--data", "mine.jsonl", "--sft", "--out_dir", "o", "--init_from"]
    error = complaint(train, *start, "plain", capsys=capsys)
    assert "start from a network that was trained on --data chat" in error
    fit("whole", **SIZE)
    error = complaint(train, "--sft", "--init_from", "resume", "--out_dir", "whole", capsys=capsys)
    assert "--sft True does not fit" in error
