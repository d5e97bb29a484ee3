"""
Fine-tuning and chats as their users meet them: every method, resuming, a pipe, a terminal, and what goes wrong.
Most runs learn from a file of their own, which is read faster than the village.
"""
import io
import json
import re
import signal
from pathlib import Path

import pytest
from runs import METHODS, assert_same, cache, commanded, complaint, elsewhere, fit, interrupt  # noqa: F401
from runs import one_thread, script, subprocess, terminal  # noqa: F401

import evaluate
import sample
import train
from bounds import estimate
from checkpoint import restore

MINE = [[f"What is {i}?", f"It is {i}."] for i in range(40)]
MINE += [[f"Is it {i}?", "Yes.", "So?", "It is."] for i in range(9)]
SIZE = dict(data="mine.jsonl", tokenizer="bytes", block_size=36)


def write(chats=MINE, path="mine.jsonl"):
    roles = ("user", "assistant")
    lines = [{"messages": [{"role": roles[i % 2], "content": said} for i, said in enumerate(chat)]} for chat in chats]
    Path(path).write_text("\n".join(map(json.dumps, lines)))


def flags(module, *argv):
    return commanded(module, *argv)[0]


def chatting(monkeypatch, capsys, out_dir, *argv, typed=""):
    """sample.py --chat on what is typed. -> stdout, stderr"""
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    capsys.readouterr()
    sample.main(flags(sample, "--chat", "--out_dir", out_dir, "--device=cpu", "--seed=2", *argv))
    return capsys.readouterr()


@pytest.fixture(scope="module")
def answering(tmp_path_factory):
    """A folder with a network of each method, after two steps of fine-tuning on answers."""
    root = tmp_path_factory.mktemp("answering")
    with pytest.MonkeyPatch.context() as patch, one_thread():
        patch.chdir(root)
        patch.setattr(train, "final", lambda learner: None)
        write()
        for method in [*METHODS, "bd3lm", "pgm"]:
            fit(root / method, method=method, sft=True, **SIZE)
        write(path=root / "mine.jsonl")
    return root


@pytest.mark.parametrize("method", [*METHODS, "bd3lm", "pgm"])
def test_every_method_learns_answers_is_asked_and_examined(method, answering, monkeypatch, capsys):
    monkeypatch.chdir(answering)
    out, err = chatting(monkeypatch, capsys, method, typed="What is 3?\nAnd 4?\n")
    assert out.startswith("> What is 3?\n") and out.count("\n> And 4?\n") == 1
    assert re.search(rf"2 answers, {method}, {'semi-ar' if method == 'mdlm' else 'ancestral'}: \d+ network calls", err)
    evaluate.main(flags(evaluate, "--chat", "--out_dir", method, "--num_samples", 3, "--draws", 2, "--max_texts", 4))
    table = capsys.readouterr().out
    assert "answers, their prompts given" in table and "right choice of 4" in table and "\nall " in table


def test_the_bound_of_a_network_that_answers_is_that_of_its_answers_alone(answering, monkeypatch, capsys):
    monkeypatch.chdir(answering)
    evaluate.main(flags(evaluate, "--out_dir", "mdlm", "--num_samples", 0, "--draws", 4, "--json"))
    model = restore("mdlm")
    x, frozen, _ = evaluate.corpus_of(model, "").example_windows("val")
    mean, error = estimate(model.method, model.denoiser, x, 4, frozen=frozen)
    result = json.loads(capsys.readouterr().out)
    assert (result["nats_per_token"], result["standard_error"]) == pytest.approx((mean, error))
    wrong, _ = estimate(model.method, model.denoiser, x, 4)
    assert wrong != pytest.approx(mean, rel=0.01)


def test_fine_tuning_goes_on_from_pretraining_in_its_tokens_on_other_chats(monkeypatch, capsys):
    fit("pre", data="chat", block_size=48, vocab_size=200)
    write([["Hello!", "Hi, friend."], ["Who?", "Me, of course."]])
    fit("own", data="mine.jsonl", sft=True, block_size=32, init_from="pre")
    pre, own = restore("pre"), restore("own")
    assert own.encoding.n_vocab == pre.encoding.n_vocab and own.config.tokenizer == "auto"
    assert own.config.block_size == 32
    assert_same(fit("whole", max_iters=4, data="mine.jsonl", sft=True, block_size=32, init_from="pre"),
                fit("whole", init_from="resume"))
    out, _ = chatting(monkeypatch, capsys, "own", "--prompt", "Hello!")
    assert out.count("\n") == 1


def test_a_run_of_fine_tuning_that_is_stopped_goes_on_bit_by_bit(monkeypatch):
    write()
    given = dict(SIZE, sft=True, max_iters=6, learning_rate=0.01, eval_interval=4)
    whole = fit("whole", **given)
    with monkeypatch.context() as patch:
        interrupt(patch, 3, signal.SIGTERM)
        assert fit("parts", **given)["step"] == 4
    assert_same(whole, fit("parts", init_from="resume"))


def test_a_network_learns_the_answers_that_it_is_shown_and_stops(monkeypatch, capsys):
    """Two of these three questions: their answers come, and after them nothing but ends, however they are decoded."""
    answers = {"Red?": "Yes.", "Blue?": "No no.", "Zzz?": "Oh."}
    write(answers.items())
    fit("out", data="mine.jsonl", tokenizer="bytes", sft=True, block_size=24, n_embd=64, max_iters=150, batch_size=16,
        learning_rate=0.01, ema=0.9, eval_interval=1000)
    trained = train.text.load("mine.jsonl", 24, "bytes", sft=True).chats["train"]
    assert len(trained) == 2
    for _, (question, words) in trained:
        for how in ([], ["--eos_last", "--decode_block", 99], ["--threshold", 0], ["--guidance", 1.5]):
            assert chatting(monkeypatch, capsys, "out", "--prompt", question, *how)[0] == answers[question] + "\n"


def test_what_is_said_is_remembered_and_an_answer_ends_the_decoding(answering, monkeypatch, capsys):
    monkeypatch.chdir(answering)
    asked = []
    template = sample.chat.template
    monkeypatch.setattr(sample.chat, "template", lambda said, *rest: asked.append(said) or template(said, *rest))
    out, err = chatting(monkeypatch, capsys, "mdlm", "--json", typed="Is it 3?\nSo?\n/quit\nnever read\n")
    first, second = map(json.loads, out.splitlines())
    assert asked == [["Is it 3?"], ["Is it 3?", first["text"], "So?"]] and second["prompt"] == "So?"
    total = int(re.search(r"(\d+) network calls", err)[1])
    assert first["network_calls"] + second["network_calls"] == total > 0


@pytest.mark.parametrize("typed, answers", [("", 0), ("\nHi\n", 0), ("Hi\n\nHi\n", 1), ("/quit\n", 0), ("Hi", 1)])
def test_an_empty_line_quit_or_the_end_of_the_input_ends_a_chat(typed, answers, answering, monkeypatch, capsys):
    _, err = chatting(monkeypatch, capsys, answering / "mdlm", typed=typed)
    assert f"{answers} answer{'s' * (answers != 1)}, mdlm, semi-ar" in err


def test_a_question_that_cannot_be_read_is_told_and_the_chat_goes_on(monkeypatch, capsys):
    write([["ab?", "ba"], ["ba?", "ab"]])
    fit("out", data="mine.jsonl", tokenizer="chars", sft=True, block_size=24)
    out, err = chatting(monkeypatch, capsys, "out", typed="aß?\n" + "ab " * 30 + "\nab?\n")
    assert "(the vocabulary lacks 'ß'" in err and "leave room for an answer: shorten it)" in err
    assert "1 answer, mdlm" in err


def test_watching_shows_the_answer_alone(answering, monkeypatch, capsys):
    out, _ = chatting(monkeypatch, capsys, answering / "mdlm", "--prompt", "Is it 3?", "--watch", "--threshold", 0)
    assert out.startswith("step    1: ") and "Is it 3" not in out and "endoftext" not in out


def test_a_chat_in_a_terminal_asks_answers_and_leaves_on_ctrl_c(answering, terminal):
    interrupted = []

    def after(seen, process):
        if seen.count(b"> ") == 2 and not interrupted:       # it has answered and asks again
            interrupted.append(process.send_signal(signal.SIGINT))

    seen, code = terminal(["sample", "--chat", "--watch", "--out_dir", answering / "mdlm"], after, typed="Is it 3?\n")
    assert code == 130 and seen.endswith("interrupted\n") and "Traceback" not in seen and "> Is it 3?" not in seen
    assert "\x1b[Jstep 1 " in seen and seen.rindex("\x1b[0m") > max(seen.rfind("\x1b[2m"), seen.rfind("\x1b[32m"))


def test_a_chat_through_a_pipe_reads_as_a_conversation(answering):
    done = subprocess.run(**script("sample", "--chat", "--sampler", "psi", "--out_dir", answering / "mdlm"),
                          input="Is it 3?\n", capture_output=True)
    assert done.returncode == 0 and done.stdout.startswith("> Is it 3?\n") and "1 answer, mdlm, psi" in done.stderr


@pytest.mark.parametrize("argv, says", [
    (["--chat", "--oracle", "mdlm"], "knows no marks of who speaks"),
    (["--chat", "--out_dir", "nowhere"], "there is no checkpoint"),
    (["--chat", "--out_dir", "MDLM", "--prompt", "no " * 40], "shorten it"),
    (["--chat", "--out_dir", "UDLM", "--prompt", "Hi", "--guidance", "2"], "it is for mdlm"),
    (["--chat", "--out_dir", "MDLM", "--prompt", "Hi", "--guidance", "2", "--cache=dual"], "without --cache"),
    (["--out_dir", "MDLM", "--eos_last"], "goes with --sampler semi-ar"),
    (["--oracle", "mdlm", "--sampler", "semi-ar", "--eos_last"], "tokens that have an end")])
def test_what_cannot_be_asked_is_one_line(argv, says, answering, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("Hi\n"))
    argv = [str(answering / word.lower()) if word in ("MDLM", "UDLM") else word for word in argv]
    assert says in complaint(sample, *argv, capsys=capsys)


def test_what_cannot_be_fine_tuned_is_one_line(answering, capsys):
    assert "--sft learns answers" in complaint(train, "--data", "toy", "--sft", capsys=capsys)
    write()
    fit("plain", data="names", tokenizer="bytes")
    error = complaint(train, "--data", "mine.jsonl", "--sft", "--init_from", "plain", "--out_dir", "o", capsys=capsys)
    assert "start from a network that was trained on --data chat" in error
    fit("whole", **SIZE)
    error = complaint(train, "--sft", "--init_from", "resume", "--out_dir", "whole", capsys=capsys)
    assert "--sft True does not fit" in error


def test_defaults_follow_from_the_flags_beside_them():
    tuned, read = flags(train, "--data", "chat", "--sft"), flags(train, "--data", "chat")
    assert (tuned.block_size, read.block_size, flags(train).block_size) == (48, 48, 64)
    assert tuned.max_iters < read.max_iters and tuned.learning_rate < read.learning_rate
    assert flags(train, "--sft", "--max_iters", 7).max_iters == 7 and flags(train, "--no_sft").learning_rate == 0.01
    assert flags(sample, "--chat").sampler == "semi-ar" and flags(sample).sampler == "ancestral"


@pytest.mark.parametrize("argv, threshold", [
    ([], 0.9), (["--sampler=semi-ar"], 0.9), (["--temperature=1"], 0.9), (["--steps=4"], 0), (["--factor=1"], 0),
    (["--sampler=psi"], 0), (["--steps=4", "--threshold=0.5"], 0.5)], ids=str)
def test_in_a_chat_the_default_threshold_gives_way_to_another_rule_that_is_given(argv, threshold):
    for module in (sample, evaluate):
        assert flags(module, "--chat", *argv).threshold == threshold
        assert flags(module, *argv).threshold == (0.5 if threshold == 0.5 else 0)


def test_a_chat_is_held_with_any_sampler_of_masks_and_in_as_many_steps_as_asked(answering, monkeypatch, capsys):
    for how in (["--sampler", "psi"], ["--factor", 1], ["--sampler", "remdm-conf", "--tail", "gibbs"]):
        _, err = chatting(monkeypatch, capsys, answering / "mdlm", "--prompt", "Is it 3?", *how)
        assert "1 answer, mdlm" in err
    calls = []
    for steps in (2, 16):
        _, err = chatting(monkeypatch, capsys, answering / "mdlm", "--prompt", "Is it 3?", "--steps", steps)
        calls.append(int(re.search(r"(\d+) network calls", err)[1]))
    assert calls[0] <= 2 < calls[1]
