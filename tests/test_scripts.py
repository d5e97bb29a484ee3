"""
The three scripts as their users meet them: every choice of every flag runs, a run survives whatever ends it, and a mistake
is one line. Most runs are in this process, since loading torch costs seconds; others where signals or terminals matter.
"""
import contextlib
import errno
import fcntl
import gc
import json
import os
import pty
import re
import resource
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

import checkpoint
import evaluate
import sample
import train
from data import BadInput, text
from data.tokenizer import to_json
from flags import one_line_errors, parse

ROOT = Path(__file__).parent.parent
METHODS = ["ar", "mdlm", "udlm", "gidd"]
TINY = dict(data="toy", block_size=8, n_layer=1, n_embd=16, n_head=2, cond_dim=8, batch_size=2, max_iters=2, eval_iters=1,
            warmup_iters=0, device="cpu")


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def elsewhere(cache, tmp_path, monkeypatch):
    """Every test in its own empty folder, on one thread, without the n-grams and the entropy at the end of a run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PALIMPSEST_CACHE", str(cache))
    monkeypatch.setattr(train, "final", lambda learner: None)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def fit(out_dir, given=(), **flags):
    """A tiny run in this process; with init_from="resume", `flags` are what the command line says. -> its checkpoint"""
    config = train.Config(**{**TINY, **flags}, out_dir=str(out_dir))
    train.main(config, [*given, *flags] if flags.get("init_from") == "resume" else list(flags))
    return checkpoint.load(out_dir)


def script(name, *argv, **env):
    """The command line and environment of a script that runs in a process of its own."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm", **env}
    return dict(args=[sys.executable, str(ROOT / f"{name}.py"), *map(str, argv)], env=env, text=True)


def tiny(**flags):
    return [f"--{name}={value}" for name, value in {**TINY, **flags}.items()]


def complaint(module, *argv, capsys):
    """What the script says on a bad command line: one line on stderr, exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end, one_line_errors():
        config, given = parse(module.Config, [str(word) for word in argv])
        module.main(config, given) if module is train else module.main(config)
    error = capsys.readouterr().err
    error = re.sub(r"\Apreparing .*, once ...\n", "", error)
    assert end.value.code == 2 and error.count("\n") == 1, error
    del end                                                  # and with its traceback the lock of the folder
    gc.collect()
    return error


def metrics(out_dir, key="loss"):
    return {line["step"]: line[key] for line in map(json.loads, open(Path(out_dir) / "metrics.jsonl")) if key in line}


def assert_same(a, b):
    """Two checkpoints, bit by bit."""
    assert a["step"] == b["step"]
    for part in ("model", "ema", "optimizers"):
        torch.testing.assert_close(a[part], b[part], rtol=0, atol=0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a checkpoint of each method on the toy language."""
    root = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(None):
        patch.setattr(train, "final", lambda learner: None)
        for method in METHODS:
            fit(root / method, method=method, learning_rate=0.01, max_iters=20)
    return root


# ---- every choice of every flag

def choices(module):
    return [(f.name, choice) for f in fields(module.Config) for choice in f.metadata["choices"] or []]


def booleans(module):
    return [(f.name, value) for f in fields(module.Config) if f.type is bool and f.name != "compile" for value in (True, False)]


@pytest.mark.parametrize("name, choice", [case for case in choices(train) if case != ("init_from", "resume")])
def test_training_takes_two_steps_with_every_choice_of_every_flag(name, choice, tmp_path):
    state = fit(tmp_path / "out", **{name: choice})
    assert state["step"] == 2 and all(p.isfinite().all() for p in state["ema"].values())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("flags", [
    dict(weighting="bound", optimizer="adamw", dtype="bfloat16"),
    dict(dropout=0.5, grad_clip=0.0, gradient_accumulation_steps=3, ema=0.0, min_lr=0.1, weight_decay=0.0, warmup_iters=5),
], ids=["choices", "numbers"])
def test_training_takes_two_steps_with_every_method_under_other_flags(method, flags, tmp_path):
    assert fit(tmp_path / "out", method=method, **flags)["step"] == 2


@pytest.mark.skipif("PALIMPSEST_SLOW" not in os.environ, reason="the compiler takes a minute: set PALIMPSEST_SLOW=1")
@pytest.mark.parametrize("method", METHODS)
def test_a_compiled_run_is_the_same_but_for_rounding(method, tmp_path):
    compiled, plain = fit(tmp_path / "a", method=method, compile=True), fit(tmp_path / "b", method=method)
    torch.testing.assert_close(compiled["model"], plain["model"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("data, tokenizer", [("names", "auto"), ("names", "bytes"), ("poem.txt", "chars"), ("poem.txt", "bpe"),
                                             ("poems", "bytes")])
def test_training_sampling_and_evaluation_work_on_text(data, tokenizer, tmp_path, capsys):
    poem = "".join(f"{n} green bottles, hanging on the wall.\n" for n in range(200))
    Path("poem.txt").write_text(poem)
    Path("poems").mkdir()
    Path("poems/one.txt").write_text(poem)
    fit("out", data=data, tokenizer=tokenizer, vocab_size=120)
    sample.main(sample.Config(out_dir="out", prompt="HE" if data == "names" else "gre__", device="cpu"))
    evaluate.main(evaluate.Config(out_dir="out", max_texts=4, num_samples=2, draws=2, device="cpu"))
    printed = capsys.readouterr().out
    assert "bits/byte" in printed and "words that stand in the corpus" in printed


@pytest.mark.parametrize("name, choice", choices(sample) + booleans(sample))
@pytest.mark.parametrize("method", ["mdlm", "ar"])
def test_sampling_works_with_every_choice_of_every_flag(method, name, choice, trained, capsys):
    given = {"out_dir": str(trained / method), "steps": 3, "num_samples": 2, "device": "cpu", name: choice}
    if name == "sampler" and choice != "ancestral" and method == "ar":
        with pytest.raises(BadInput, match="ar has the sampler ancestral alone"):
            sample.main(sample.Config(**given))
        return
    sample.main(sample.Config(**given))
    assert capsys.readouterr().out.count("\n") >= 2


@pytest.mark.parametrize("name, choice", choices(evaluate) + booleans(evaluate))
def test_evaluation_works_with_every_choice_of_every_flag(name, choice, trained, capsys):
    given = {"out_dir": str(trained / "mdlm"), "steps": 2, "num_samples": 2, "draws": 1, "max_texts": 4, "device": "cpu"}
    evaluate.main(evaluate.Config(**{**given, name: choice}))
    assert "bound" in capsys.readouterr().out or choice == "ar" or name == "json"


@pytest.mark.parametrize("method", METHODS)
def test_each_method_is_evaluated_from_its_checkpoint_and_json_says_what_the_table_says(method, trained, capsys):
    config = evaluate.Config(out_dir=str(trained / method), max_texts=20, num_samples=4, draws=2, steps=4, device="cpu")
    evaluate.main(config)
    table = capsys.readouterr().out
    evaluate.main(replace(config, json=True))
    result = json.loads(capsys.readouterr().out)
    assert result["step"] == 20 and result["texts"] == 20 and result["exact"] == (method == "ar")
    assert f"{result['nats_per_token']:.3f} +- {result['standard_error']:.3f} nats/token" in table
    assert result["gap"] == pytest.approx(result["nats_per_token"] - result["entropy"])
    for rows in (result["samples"], result["held_out"]):
        assert all(f"{mean:.3f} +- {error:.3f}" in table for _, mean, error in rows)


def test_the_last_report_sets_the_model_beside_counting_and_the_entropy(tmp_path, monkeypatch, capsys):
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    fit("out", batch_size=64)
    printed = capsys.readouterr().out
    order = ["uniform over tokens", "mdlm, bound", "2-gram of tokens", "exact entropy", "python sample.py --out_dir out"]
    assert [printed.index(what) for what in order] == sorted(printed.index(what) for what in order)


# ---- sampling

@pytest.mark.parametrize("method, flags", [
    *[(method, flags) for method in METHODS for flags in (dict(), dict(temperature=0.0), dict(top_p=0.9))],
    ("mdlm", dict(sampler="confidence")), ("mdlm", dict(sampler="first-hitting"))])
def test_given_tokens_survive_wherever_they_stand(method, flags, trained, capsys):
    for source in (trained / method, None):
        config = sample.Config(out_dir=str(source), oracle="" if source else method, json=True, steps=5, num_samples=5,
                               prompt="_ the cat _ _ every red _", device="cpu", **flags)
        sample.main(config)
        texts = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert len(texts) == 5
        for words in (text["text"].split() for text in texts):
            assert len(words) == 8 and words[1:3] == ["the", "cat"] and words[5:7] == ["every", "red"] and "_" not in words


def test_a_prompt_without_gaps_is_continued_and_one_with_gaps_keeps_its_length(trained, capsys):
    def words(**flags):
        sample.main(sample.Config(out_dir=str(trained / "mdlm"), num_samples=1, json=True, device="cpu", **flags))
        return json.loads(capsys.readouterr().out)["text"].split()

    assert len(words(prompt="the cat")) == 8 and words(prompt="the cat")[:2] == ["the", "cat"]
    assert len(words(prompt="the ? cat", gap="?")) == 3
    assert len(words(prompt="the _ cat", length=5)) == 5
    assert words(prompt="the cat", length=2) == ["the", "cat"]                       # nothing left to do
    Path("prompt.txt").write_text("the _\ncat\n")
    assert words(prompt="FILE:prompt.txt")[::2] == ["the", "cat"]
    assert words(seed=1) == words(seed=1) != words(seed=2)


def test_a_longer_text_than_in_training_is_made_with_a_warning(trained, capsys):
    sample.main(sample.Config(out_dir=str(trained / "udlm"), length=20, num_samples=1, json=True, device="cpu"))
    out, err = capsys.readouterr()
    assert len(json.loads(out)["ids"]) == 20 and "trained on texts of 8 tokens" in err


def test_the_judge_rates_samples_and_text_by_the_same_model(tmp_path, capsys):
    fit("judge", method="ar", data="names")
    fit("out", data="names")
    config = evaluate.Config(out_dir="out", judge="judge", num_samples=5, max_texts=9, steps=3, device="cpu", json=True)
    evaluate.main(config)
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    (_, rated, _), = [row for row in result["held_out"] if row[0].startswith("-log p by judge")]
    evaluate.main(replace(config, out_dir="judge", judge=""))
    assert rated == pytest.approx(json.loads(capsys.readouterr().out)["nats_per_token"], rel=1e-6)


@pytest.fixture
def terminal(tmp_path):
    """Runs a script in a terminal of 24 lines and 40 columns; -> what the terminal got, exit code."""
    def run(words, after=lambda seen, process: None, **env):
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
        process = subprocess.Popen(**{**script(*words, **env), "text": False}, stdin=slave, stdout=slave, stderr=slave)
        os.close(slave)
        seen = b""
        try:
            while select.select([master], [], [], 60)[0] and (part := os.read(master, 1 << 16)):
                seen += part
                after(seen, process)
        except OSError:                                      # the other side is closed: the script has ended
            pass
        finally:
            os.close(master)
            process.kill()
        return seen.decode().replace("\r\n", "\n"), process.wait()
    return run


def frames(seen):
    """The frames of --watch, and by how many lines the cursor went up before each."""
    parts = re.split(r"(?:\x1b\[(\d+)F)?\x1b\[J", seen)
    return parts[2::2], [int(up or 0) for up in parts[1::2]]


def test_watching_redraws_each_frame_in_place_and_leaves_the_terminal_clean(terminal):
    seen, code = terminal(["sample", "--oracle", "mdlm", "--watch", "--steps", 6, "--prompt", "the _ _ _"])
    drawn, up = frames(seen)
    assert code == 0 and len(drawn) == 7 and up[0] == 0
    for frame, rise in zip(drawn, up[1:]):
        assert frame.count("\n") == rise and "\x1b[1mt\x1b[0m" in frame              # what was given is bold
        assert all(len(re.sub(r"\x1b\[\d*m", "", line)) < 40 for line in frame.splitlines())
    assert "\x1b[2m_\x1b[0m" in drawn[0] and "\x1b[2m" not in drawn[6].split("--------")[0]      # noise is dim
    assert seen.rindex("\x1b[0m") > max(seen.rfind(f"\x1b[{style}m") for style in (1, 2, 32)) and "\x1b[?25l" not in seen


def test_ctrl_c_while_watching_leaves_no_colour_and_no_traceback(terminal):
    interrupted = []

    def after(seen, process):
        if seen.count(b"\x1b[J") > 5 and not interrupted:
            interrupted.append(process.send_signal(signal.SIGINT))

    seen, code = terminal(["sample", "--oracle", "udlm", "--watch", "--steps", 100_000], after)
    assert code == 130 and seen.endswith("interrupted\n") and "Traceback" not in seen
    assert seen.rindex("\x1b[0m") > max(seen.rfind(f"\x1b[{style}m") for style in (1, 2, 32))


def test_watching_prints_plain_lines_where_there_is_no_terminal_or_no_colour_is_wanted(terminal, capsys):
    sample.main(sample.Config(oracle="mdlm", watch=True, steps=6, prompt="the _ _ _", device="cpu"))
    out = capsys.readouterr().out
    assert "\x1b" not in out and out.startswith("step    0: 'the _ _ _'\n") and out.count("\nstep") == 6
    seen, code = terminal(["sample", "--oracle", "mdlm", "--watch", "--steps", 6], NO_COLOR="1")
    assert code == 0 and "\x1b" not in seen and seen.count("step ") == 7


def test_a_tall_text_is_cut_to_the_screen_and_odd_characters_do_not_garble_it(monkeypatch, capsys):
    monkeypatch.setattr(sample.sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setenv("LINES", "10")
    encoding = sample.exact("mdlm").encoding
    screen = sample.Screen(2)
    z = torch.zeros(300, dtype=torch.long)
    for step in range(3):
        screen.show(step, z, z.bool(), encoding)
    drawn, up = frames(capsys.readouterr().out)
    assert all(frame.count("\n") <= 9 for frame in drawn) and up[1:] == [9, 9]
    assert sample.Screen.wrap([("\x1b", ""), ("\t", ""), ("界", ""), ("界", "")], 4) == ["  界", "界"]


# ---- a run goes on exactly

def interrupt(monkeypatch, at, number):
    """A signal arrives in the middle of step `at`."""
    step = train.Learner.step

    def interrupted(self, n):
        if n == at:
            os.kill(os.getpid(), number)
        return step(self, n)
    monkeypatch.setattr(train.Learner, "step", interrupted)


@pytest.mark.parametrize("method, number, flags", [
    ("mdlm", signal.SIGTERM, dict()),
    ("ar", signal.SIGINT, dict(dropout=0.2)),
    ("udlm", signal.SIGTERM, dict(optimizer="adamw")),
    ("gidd", signal.SIGINT, dict(gradient_accumulation_steps=2, lr_schedule="linear", dtype="bfloat16")),
])
def test_a_run_that_is_asked_to_stop_saves_and_goes_on_bit_by_bit(method, number, flags, monkeypatch, capsys):
    flags = dict(flags, method=method, max_iters=9, learning_rate=0.01, warmup_iters=3, log_interval=2, eval_interval=4)
    whole = fit("whole", **flags)
    with monkeypatch.context() as patch:
        interrupt(patch, 5, number)
        stopped = fit("parts", **flags)
    assert stopped["step"] == 6 and "step 6 is saved in parts, go on with --init_from resume" in capsys.readouterr().out
    assert_same(whole, fit("parts", init_from="resume"))
    assert metrics("parts", "val_bound").items() >= metrics("whole", "val_bound").items()
    assert list(metrics("parts")) == [1, 2, 4, 6, 7, 8, 9] and metrics("parts")[8] != metrics("parts")[9]


def test_after_a_stop_the_handlers_of_the_signals_are_those_of_before(monkeypatch):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    interrupt(monkeypatch, 1, signal.SIGTERM)
    fit("out")
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_second_ctrl_c_leaves_at_once_and_one_in_a_report_loses_nothing(monkeypatch, capsys):
    with monkeypatch.context() as patch:
        interrupt(patch, 3, signal.SIGINT)
        interrupt(patch, 3, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            fit("twice", max_iters=6, eval_interval=2)
    assert checkpoint.load("twice")["step"] == 2
    report = train.report
    monkeypatch.setattr(train, "report", lambda learner, step, folder: os.kill(os.getpid(), signal.SIGINT) if step == 4 else
                        report(learner, step, folder))
    assert fit("report", max_iters=6, eval_interval=2)["step"] == 4
    assert "stopped: step 4 is saved" in capsys.readouterr().out


ZYGOTE = """
import json, os, random, signal, sys, time
root, first, kills = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
sys.path.insert(0, root)
import torch, train, checkpoint
torch.set_num_threads(1)
train.report = train.final = lambda *args: None
train.Learner(train.Config(**first), train.text.load("toy", 8), torch.device("cpu"))     # what is slow once, before forking
random.seed(0)
written = lambda: os.path.exists("killed/ckpt.pt") and os.stat("killed/ckpt.pt").st_mtime_ns
while True:
    there = written()
    there and checkpoint.load("killed")                                  # whole after every kill
    child = os.fork()
    if child == 0:
        sys.stdout = sys.stderr = open(os.devnull, "w")
        train.main(train.Config(**first, out_dir="killed", init_from="resume" if there else "scratch"), list(first))
        os._exit(0)
    if kills == 0:
        break
    while written() == there and os.waitpid(child, os.WNOHANG) == (0, 0):        # until it has saved once
        time.sleep(0.001)
    time.sleep(random.uniform(0, 0.05))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    kills -= 1
sys.exit(os.waitpid(child, 0)[1])
"""


def test_a_run_that_is_killed_at_any_moment_goes_on_bit_by_bit(tmp_path):
    """Saving after every step, so that kills fall into saving too. The children are forks of one process that has torch."""
    flags = dict(TINY, max_iters=150, eval_interval=1, log_interval=1, learning_rate=0.01)
    whole = fit("whole", **dict(flags, eval_interval=50))
    done = subprocess.run([sys.executable, "-c", ZYGOTE, ROOT, json.dumps(flags), "20"], text=True, capture_output=True,
                          timeout=100, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert_same(whole, checkpoint.load("killed"))
    assert metrics("killed") == metrics("whole")             # the same text and noise: no step is lost, none comes twice
    assert len(open("killed/metrics.jsonl").readlines()) == 150
    assert sorted(os.listdir("killed")) == [".lock", "ckpt.pt", "metrics.jsonl"]


def test_a_second_run_from_scratch_keeps_the_first_result_once_it_saves_itself(monkeypatch, capsys):
    first = fit("out", max_iters=4)
    rows = metrics("out")
    with monkeypatch.context() as patch:                     # one that fails before it has saved leaves all as it is
        patch.setattr(train.Learner, "step", lambda self, step: torch.full((2,), torch.nan))
        with pytest.raises(BadInput):
            fit("out", seed=2)
    assert_same(first, checkpoint.load("out"))
    assert metrics("out") == rows and not Path("out/ckpt.previous.pt").exists()
    capsys.readouterr()
    second = fit("out", seed=2)
    assert_same(first, checkpoint.load("out/ckpt.previous.pt"))
    assert_same(second, checkpoint.load("out"))
    assert list(metrics("out")) == [1, 2] and open("out/metrics.previous.jsonl").read().count('"loss"') == len(rows)
    assert "ckpt.pt was there from an earlier run: kept as ckpt.previous.pt\n" in capsys.readouterr().out


def test_a_finished_run_just_reports_when_resumed_and_goes_on_with_more_steps(capsys):
    flags = dict(lr_schedule="constant", log_interval=1)
    finished = fit("out", max_iters=3, **flags)
    capsys.readouterr()
    assert_same(finished, fit("out", init_from="resume"))
    assert "step     3  bound" in capsys.readouterr().out
    assert_same(finished, fit("out", init_from="resume", max_iters=2))       # fewer: nothing to do, nothing undone
    assert_same(fit("long", max_iters=7, **flags), fit("out", init_from="resume", max_iters=7))
    assert metrics("out") == metrics("long") and list(metrics("out", "val_bound")) == [3, 7]


def test_flags_given_with_resume_hold_from_there_on_and_the_others_are_remembered():
    fit("out", learning_rate=0.01, lr_schedule="constant", weight_decay=0.3, max_iters=3)
    state = fit("out", init_from="resume", learning_rate=0.5, max_iters=4)
    assert state["config"]["learning_rate"] == 0.5 and state["config"]["weight_decay"] == 0.3
    assert state["optimizers"][0]["param_groups"][0]["lr"] == 0.5 and metrics("out", "lr")[4] == 0.5
    Path("out").rename("moved")
    fit("moved", init_from="resume", max_iters=5)
    assert checkpoint.load("moved")["step"] == 5 and not Path("out").exists()


def test_the_network_that_is_restored_is_the_average_of_the_weights(tmp_path):
    state = fit("out", max_iters=3, learning_rate=0.1)
    model = checkpoint.restore("out")
    for name, weight in model.denoiser.state_dict().items():
        torch.testing.assert_close(weight, state["ema"][name], rtol=0, atol=0)
    assert not model.denoiser.training and any((state["ema"][name] != state["model"][name]).any() for name in state["ema"])


# ---- several processes

def torchrun(*argv):
    words = script("train", *argv)
    words["args"] = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *words["args"][1:]]
    return dict(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_two_processes_learn_what_one_does_and_sigterm_stops_both(monkeypatch):
    """Also the proof that a stop is agreed upon: both must leave after the same step, or the other would hang."""
    flags = dict(method="udlm", gradient_accumulation_steps=2, max_iters=100_000, learning_rate=1e-3, muon_lr=1e-3,
                 log_interval=1, eval_interval=20)
    process = subprocess.Popen(**torchrun(*tiny(**flags), "--out_dir", "two"))
    deadline = time.time() + 60
    while not (Path("two/ckpt.pt").exists() and Path("two/metrics.jsonl").exists()) and time.time() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    two = checkpoint.load("two")
    assert f"stopped: step {two['step']} is saved in two" in out, err
    interrupt(monkeypatch, two["step"] - 1, signal.SIGTERM)
    one = fit("one", **flags)
    assert one["step"] == two["step"]
    first = range(1, 21)                                     # later, rounding has had time to grow
    assert [metrics("two")[n] for n in first] == pytest.approx([metrics("one")[n] for n in first], abs=1e-5)
    torch.testing.assert_close(two["ema"], one["ema"], rtol=0, atol=1e-3)


def test_a_process_that_fails_alone_does_not_leave_the_other_hanging():
    """Only the first process writes: an out_dir in use is its fault alone, found while the other waits for it."""
    held = checkpoint.Folder("out")
    done = subprocess.run(**torchrun(*tiny(gradient_accumulation_steps=2), "--out_dir", "out"), timeout=60)
    held.lock.release()
    assert done.returncode == 1 and done.stderr.count("another run is writing to out") == 1
    assert 'train.py", line' not in done.stderr


# ---- a run that cannot go on

def test_an_infinite_loss_stops_the_run_and_leaves_the_last_good_checkpoint(monkeypatch):
    step = train.Learner.step

    def explode(self, n):
        scale = torch.tensor([torch.inf, 1.0]) if n == 5 else 1.0
        return step(self, n) * scale
    monkeypatch.setattr(train.Learner, "step", explode)
    with pytest.raises(BadInput, match=r"not finite at step 6 \(seed 7\): the checkpoint of step 4 is whole; try a lower"):
        fit("out", max_iters=9, eval_interval=4, log_interval=100, seed=7)
    assert checkpoint.load("out")["step"] == 4


def test_a_gradient_that_is_not_finite_stops_it_too_before_it_is_saved(monkeypatch):
    """The loss of the step that ruins the weights may still be a number."""
    def square_root_at_zero(self, denoiser, x):
        loss = denoiser(x, None)
        return loss + (loss * 0).sqrt()                      # 0, but its slope is infinite
    monkeypatch.setattr(train.checkpoint.make_method("mdlm", 2).__class__, "loss", square_root_at_zero)
    with pytest.raises(BadInput, match="not finite at step 1 .*: nothing was saved yet"):
        fit("out", eval_interval=1)
    assert not Path("out/ckpt.pt").exists()


def test_a_learning_rate_out_of_all_bounds_is_one_line_and_exit_code_2(capsys):
    error = complaint(train, *tiny(learning_rate=1e30, max_iters=20, out_dir="out"), capsys=capsys)
    assert re.search(r"not finite at step \d+ \(seed 1337\)", error)


@contextlib.contextmanager
def disk_of(size):
    """No file may grow beyond `size` bytes: the next best thing to a disk that is full, and it needs no root."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 100, 5_000, 50_000])
def test_a_disk_that_takes_only_part_of_a_checkpoint_is_one_line_and_costs_nothing(size, capsys):
    whole = fit("out", eval_interval=2)
    with disk_of(size):
        error = complaint(train, "--out_dir", "out", "--init_from", "resume", "--max_iters", 3, capsys=capsys)
    assert "out/" in error or "File too large" in error
    assert_same(whole, checkpoint.load("out"))
    assert not list(Path("out").glob("*.tmp"))
    fit("out", init_from="resume", max_iters=3)
    assert list(metrics("out")) == [1, 2, 3]


def test_no_space_left_is_told_with_what_to_do(monkeypatch, capsys):
    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    error = complaint(train, *tiny(out_dir="out"), capsys=capsys)
    assert "cannot save to out/ckpt.pt (No space left on device): free some space" in error
    assert os.listdir("out") == [".lock"]


# ---- bad input

class Bomb:
    """What a malicious checkpoint holds: loading it with pickle would run this."""
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def damaged(kind, good):
    """A checkpoint with something wrong, made from a good one."""
    path, state = Path("bad.pt"), checkpoint.load(good)
    if kind in ("truncated", "empty"):
        raw = (good / "ckpt.pt").read_bytes()
        path.write_bytes(raw[:len(raw) * 9 // 10] if kind == "truncated" else b"")
    elif kind == "text":
        path.write_text("no checkpoint at all\n")
    elif kind == "zip":
        path.write_bytes(b"PK\x05\x06" + bytes(18))         # an empty archive
    elif kind == "pickle":
        torch.save({**state, "step": Bomb()}, path)
    elif kind == "legacy":
        torch.save({**state, "step": Bomb()}, path, _use_new_zipfile_serialization=False)
    elif kind == "foreign":
        torch.save({"model": state["model"], "iter_num": 7}, path)
    elif kind == "list":
        torch.save([1, 2, 3], path)
    elif kind == "half":
        torch.save({name: state[name] for name in ("format", "step", "config")}, path)
    elif kind == "tokens":
        torch.save({**state, "encoding": to_json(text.byte_level())}, path)
    elif kind == "garbled tokens":
        torch.save({**state, "encoding": "[]"}, path)
    elif kind == "method":
        torch.save({**state, "config": {**state["config"], "method": "telepathy"}}, path)
    elif kind == "shape":
        torch.save({**state, "config": {**state["config"], "n_embd": "wide"}}, path)
    return path


@pytest.mark.parametrize("kind, says", [
    ("truncated", "cut short"), ("empty", "cut short"), ("text", "not written by torch.save"), ("zip", "cannot be read"),
    ("pickle", "could run code"), ("legacy", "cannot be read"), ("foreign", "not a checkpoint of this code"),
    ("list", "not a checkpoint of this code"), ("half", "not a checkpoint of this code"), ("tokens", "do not fit each other"),
    ("garbled tokens", "do not fit each other"), ("method", "telepathy"), ("shape", "do not fit each other")])
@pytest.mark.parametrize("module", [sample, evaluate, train], ids=["sample", "evaluate", "train"])
def test_a_bad_checkpoint_is_refused_in_one_line_and_its_code_never_runs(module, kind, says, trained, capsys):
    path = damaged(kind, trained / "mdlm")
    Path("out").mkdir()
    os.replace(path, "out/ckpt.pt")
    resume = ["--init_from=resume", "--max_iters=30"] if module is train else []
    error = complaint(module, "--out_dir", "out", *resume, capsys=capsys)
    assert says in error and "out" in error
    assert not Path("exploded").exists()


@pytest.mark.parametrize("argv, says", [
    (["--data", "nothing.txt"], "there is no data 'nothing.txt'"),
    (["--data", "tpy"], "did you mean 'toy'"),
    (["--data", "empty.txt"], "holds no text"),
    (["--data", "short.txt", "--tokenizer", "chars"], "not one block of 128"),
    (["--data", "latin1.txt"], "--tokenizer bytes"),
    (["--data", "poem.txt", "--tokenizer", "gpt-2"], "did you mean 'gpt2'"),
    (["--data", "poem.txt", "--vocab_size", "20"], "--vocab_size"),
    (["--method", "mdml"], "did you mean mdlm?"),
    (["--batch_size=1.5"], "1.5"),
    (["--n_head", "3"], "--n_embd 128 must be --n_head 3 times an even number"),
    (["--p_uniform", "1"], "between"),
    (["--device", "cuda:99"], "there is no device 'cuda:99'"),
    (["--device", "gpu"], "--device cpu always works"),
    (["--init_from", "resume"], "there is no checkpoint out/python-mdlm/ckpt.pt: train one first"),
    (["--data", "toy", "--out_dir", "poem.txt"], "cannot write to poem.txt"),
    (["--data", "toy", "--out_dir", "/proc/nowhere"], "cannot write to /proc/nowhere"),
])
def test_what_cannot_be_trained_is_one_line_and_leaves_nothing(argv, says, capsys):
    Path("empty.txt").write_text("")
    Path("short.txt").write_text("To be, or not to be")
    Path("latin1.txt").write_bytes("Übermut tut selten gut. ".encode("latin-1") * 99)
    Path("poem.txt").write_text("a rose is a rose is a rose\n" * 99)
    assert says in complaint(train, *argv, capsys=capsys)
    assert not list(Path("out").glob("*/*.pt"))


@pytest.mark.parametrize("flags", [dict(n_embd=32), dict(method="ar"), dict(data="names"), dict(seed=3), dict(block_size=16)],
                         ids=lambda flags: list(flags)[0])
def test_a_resumed_run_cannot_change_its_shape(flags, trained, capsys):
    (name, value), = flags.items()
    error = complaint(train, "--out_dir", trained / "mdlm", "--init_from", "resume", f"--{name}={value}", capsys=capsys)
    assert f"--{name} {value} does not fit" in error and f"which has {getattr(train.Config(**TINY), name)}" in error


def test_a_text_that_has_changed_since_cannot_be_resumed(capsys):
    Path("poem.txt").write_text("a rose is a rose is a rose\n" * 99)
    fit("out", data="poem.txt", tokenizer="chars")
    Path("poem.txt").write_text("a tulip is a tulip\n" * 99)
    assert "other tokens now" in complaint(train, "--out_dir", "out", "--init_from", "resume", capsys=capsys)


def test_two_runs_cannot_write_to_one_folder(tmp_path, capsys):
    held = checkpoint.Folder("out")
    error = complaint(train, *tiny(out_dir="out"), capsys=capsys)
    assert "another run is writing to out: wait for it, or choose another --out_dir" in error
    held.lock.release()
    fit("out")


@pytest.mark.parametrize("argv, says", [
    (["--prompt", "the hobbit sees"], "'hobbit'"),
    (["--prompt", "FILE:nowhere.txt"], "cannot read the prompt nowhere.txt"),
    (["--prompt", "FILE:latin1.txt"], "not UTF-8"),
    (["--prompt", "the cat " * 9], "the prompt has 18 tokens, more than the text's 8"),
    (["--prompt", "the _ cat", "--length", "2"], "raise --length"),
    (["--gap", "__"], "must be one character"),
    (["--sampler", "confidence", "--out_dir", "AR"], "ar has the sampler ancestral alone"),
    (["--sampler", "confidences"], "did you mean confidence?"),
    (["--steps", "0"], "at least 1"),
    (["--top_p", "0"], "between"),
    (["--temperature=-1"], "between"),
    (["--out_dir", "nowhere"], "there is no checkpoint nowhere/ckpt.pt"),
    (["--out_dir", "nowhere.pt"], "there is no checkpoint nowhere.pt"),
    (["--device", "tpu"], "there is no device 'tpu'"),
])
def test_what_cannot_be_sampled_is_one_line(argv, says, trained, capsys):
    Path("latin1.txt").write_bytes("Übermut".encode("latin-1"))
    argv = [str(trained / "ar") if word == "AR" else word for word in argv]
    assert says in complaint(sample, "--out_dir", trained / "mdlm", *argv, capsys=capsys)


@pytest.mark.parametrize("argv, says", [
    (["--judge", "MDLM"], "must be an ar checkpoint with the same tokens"),
    (["--judge", "names"], "must be an ar checkpoint with the same tokens"),
    (["--judge", "nowhere"], "there is no checkpoint nowhere/ckpt.pt"),
    (["--data", "nowhere.txt"], "there is no data 'nowhere.txt'"),
    (["--oracle", "mdlm", "--data", "names"], "knows the toy language alone"),
    (["--oracle", "ddpm"], "is not one of ar, mdlm"),
    (["--max_texts", "1"], "at least 2"),
    (["--num_samples", "1"], "two"),
])
def test_what_cannot_be_evaluated_is_one_line(argv, says, trained, capsys):
    if "names" in argv and "--judge" in argv:
        fit("names", method="ar", data="names")
    argv = [str(trained / "mdlm") if word == "MDLM" else word for word in argv]
    assert says in complaint(evaluate, "--out_dir", trained / "mdlm", *argv, capsys=capsys)


# ---- as processes: the first line, progress, Ctrl-C

def test_a_run_without_a_terminal_shows_progress_at_once_and_ctrl_c_saves_it():
    began = time.time()
    process = subprocess.Popen(**script("train", *tiny(max_iters=100_000, out_dir="out")), stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    assert process.stdout.readline() == "palimpsest: mdlm on toy\n" and time.time() - began < 2
    while "step     1 of 100000  loss" not in (line := process.stdout.readline()):
        assert line                                          # else it has ended
    assert time.time() - began < 15
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    step = checkpoint.load("out")["step"]
    assert process.returncode == 0 and err == ""
    assert f"stopped: step {step} is saved in out, go on with --init_from resume\n" in out


def test_ctrl_c_while_torch_loads_leaves_without_a_traceback():
    process = subprocess.Popen(**script("train", *tiny(out_dir="out")), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30) == ("", "") and process.returncode == -signal.SIGINT


def test_in_a_terminal_a_bar_shows_progress(terminal):
    seen, code = terminal(["train", *tiny(max_iters=50, out_dir="out")])
    assert code == 0 and "it/s" in seen and "loss " in seen and "step     1 of" not in seen
    assert "held-out" in seen and "5-gram of tokens" in seen
