"""The loop of sample.py: how many texts at once, in which order they are printed, what stays when it is stopped."""
import json
import signal
import subprocess
import time
from types import SimpleNamespace

import pytest
import torch
from runs import cache, complaint, elsewhere, fit, script  # noqa: F401

import evaluate
import memory
import sample
from methods import make_method
from model import Transformer
from sampling import named

CPU = torch.device("cpu")


def lines(capsys, **flags):
    sample.main(sample.Config(json=True, device="cpu", **{**dict(oracle="mdlm", steps=3), **flags}))
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


# ---- how many at once

def test_free_memory_is_the_least_of_what_the_machine_has_and_what_the_container_may(tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 16000 kB\nMemFree: 10 kB\nMemAvailable: 8000 kB\n")
    assert memory.free(CPU, tmp_path) == 8000 << 10
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    assert memory.free(CPU, tmp_path) == 8000 << 10
    (group / "memory.max").write_text("3000000\n")
    (group / "memory.current").write_text("1000000\n")
    assert memory.free(CPU, tmp_path) == 2_000_000
    assert memory.free(CPU, tmp_path / "nowhere") > 0


def test_on_a_gpu_free_memory_counts_what_torch_keeps_for_itself(monkeypatch):
    cuda = SimpleNamespace(memory_reserved=lambda d: 70, memory_allocated=lambda d: 30,
                           mem_get_info=lambda d: (100, 200))
    monkeypatch.setattr(memory.torch, "cuda", cuda)
    assert memory.free(torch.device("cuda")) == 140


def test_texts_at_once_follow_from_network_symbols_length_and_free_memory(monkeypatch):
    model = SimpleNamespace(denoiser=Transformer(500, 2, 2, 16), method=make_method("mdlm", 499))
    per_text = 4 * 10 * (24 + 2 * 2) * 16 + 28 * 10 * 500
    config = sample.Config(num_samples=1000)
    for rooms, texts in ((0.2, 1), (1, 1), (9.1, 8), (40, 32), (10_000, 64)):
        monkeypatch.setattr(memory, "free", lambda device: int(2 * rooms * per_text))    # half of it may be used
        assert sample.texts_at_once(config, model, 10, CPU) == texts
    assert sample.texts_at_once(sample.Config(num_samples=3), model, 10, CPU) == 3
    assert sample.texts_at_once(sample.Config(num_samples=9, batch_size=5), model, 10, CPU) == 5
    monkeypatch.setattr(memory, "free", lambda device: 18 * per_text)
    assert sample.texts_at_once(config, model, 10, CPU) == 8
    model.method = make_method("ar", 499)                # scores one position at a time: a fifth of the memory
    assert sample.texts_at_once(config, model, 10, CPU) == 32


def test_a_step_holds_no_more_than_the_estimate():
    """All positions scored at once: what torch allocates while a text is sampled, by its own count."""
    from torch.profiler import ProfilerActivity, profile
    method = make_method("mdlm", 3000)
    network = Transformer(3001, 2, 2, 64, cond_dim=0).eval()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as spy:
        sample.generate(method, network, 4, 32, 1)
    held = peak = 0
    for event in sorted(spy.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    assert 0.3 * 4 * memory.per_text(network, 32) < peak < 4 * memory.per_text(network, 32)


# ---- batch after batch

def test_texts_come_by_number_in_batches_the_last_of_which_may_be_smaller(capsys):
    texts = lines(capsys, num_samples=5, batch_size=2)
    assert [text["number"] for text in texts] == [1, 2, 3, 4, 5] and {text["batch_size"] for text in texts} == {2}
    assert len({text["text"] for text in texts}) == 5 and all(text["network_calls"] <= 3 for text in texts)
    sample.main(sample.Config(oracle="mdlm", steps=3, num_samples=3, batch_size=2, device="cpu"))
    out, err = capsys.readouterr()
    assert out.splitlines()[::2] == [f"-------- text {n}" for n in (1, 2, 3)]
    assert "3 x 32 tokens, 2 at a time" in err


def test_a_seed_and_a_batch_size_fix_the_texts_whatever_their_number(capsys):
    ids = lambda **flags: [text["ids"] for text in lines(capsys, **flags)]
    assert ids(num_samples=6, batch_size=2) == ids(num_samples=8, batch_size=2)[:6]
    assert ids(num_samples=3, batch_size=1)[2:] == ids(num_samples=4, batch_size=1)[2:3]
    assert ids(num_samples=2, batch_size=2) != ids(num_samples=2, batch_size=2, seed=2)


# ---- texts leave as they finish

def rough(V):
    """A denoiser that knows nothing, of the network's shape."""
    return lambda z, t, at=None, **layout: torch.randn(int(at.sum()), V)


@pytest.mark.parametrize("method", ["ar", "bd3lm"])
def test_texts_that_drew_their_end_are_told_before_the_rest_and_as_they_will_be(method):
    torch.manual_seed(0)
    m = make_method(method, 6)
    m.stop = 5
    frozen = torch.zeros(40, 24, dtype=torch.bool)
    frozen[:5, -2] = True                                # these hold something given at the end: they go on to it
    given, states = torch.full((40, 24), 3), []

    def walk():
        for z in sample.trajectory(m, rough(m.vocab_size), given, frozen, 4):
            states.append(z)
            yield z

    told = [(i, row, len(states)) for i, row in sample.written(walk(), frozen, m)]
    assert sorted(i for i, *_ in told) == list(range(40))
    assert all(row == states[-1][i].tolist() for i, row, _ in told)
    early = [i for i, _, when in told if when < len(states)]
    assert len(early) >= 20 and min(early) >= 5
    assert [when for *_, when in told] == sorted(when for *_, when in told)


def test_what_ends_in_the_last_block_waits_for_the_samplers_that_take_words_back():
    m = make_method("bd3lm", 6, diffusion_block=4)
    m.stop = 5
    frozen = torch.zeros(3, 12, dtype=torch.bool)
    z = torch.tensor([[1] * 8 + [5] * 4, [1] * 7 + [5] * 5, [1] * 4 + [5] * 4 + [6] * 4])
    assert sample.ended(z, frozen, m).tolist() == [False, True, False]
    frozen[1, 8] = True
    assert not sample.ended(z, frozen, m).any()


def test_while_one_watches_the_texts_wait_for_the_end_of_their_batch():
    m, seen = make_method("ar", 6), []
    m.stop = 5
    frozen = torch.zeros(9, 8, dtype=torch.bool)
    walk = sample.trajectory(m, rough(7), torch.zeros(9, 8, dtype=torch.long), frozen, 1)
    told = [len(seen) for _ in sample.written(walk, frozen, m, lambda step, z: seen.append(step))]
    assert set(told) == {len(seen)} and len(seen) > 1


def test_ctrl_c_leaves_the_texts_that_are_written(tmp_path):
    """A thousand to a file, stopped after the third: whole lines, numbered from 1."""
    with open(tmp_path / "texts.jsonl", "w") as file:
        process = subprocess.Popen(**script("sample", "--oracle", "mdlm", "--num_samples", 100_000, "--batch_size", 1,
                                            "--steps", 2, "--json"), stdout=file, stderr=subprocess.PIPE)
        while (tmp_path / "texts.jsonl").read_text().count("\n") < 3 and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        said = process.communicate()[1]
    written = (tmp_path / "texts.jsonl").read_text()
    assert process.returncode == 130 and said == "sample.py: interrupted\n" and written.endswith("\n")
    assert [json.loads(line)["number"] for line in written.splitlines()] == [*range(1, written.count("\n") + 1)]


def test_matrix_products_may_be_in_bfloat16(capsys):
    fit("out")
    capsys.readouterr()
    other = lines(capsys, oracle="", out_dir="out", dtype="bfloat16", num_samples=2)
    assert len(other) == 2 and other[0]["dtype"] == "bfloat16"
    assert "is not one of" in complaint(sample, "--dtype", "float16", capsys=capsys)


def test_evaluation_takes_as_many_texts_as_fit_too(monkeypatch, capsys):
    fit("out")
    sizes = []
    nats = lambda method, denoiser, x, draws, batch_size, *a: sizes.append(batch_size) or (torch.ones(len(x)),) * 2
    monkeypatch.setattr(evaluate, "nats_of", nats)
    monkeypatch.setattr(memory, "free", lambda device: 0)
    for flags in (dict(out_dir="out"), dict(oracle="mdlm")):
        evaluate.main(evaluate.Config(**flags, batch_size=0, max_texts=4, num_samples=2, steps=2, device="cpu"))
    assert sizes == [1, 64]


def test_every_line_says_which_model_it_is_of(capsys):
    told = lines(capsys, num_samples=2, html="out.html", beside="udlm")
    assert [line["model"] for line in told] == ["oracle mdlm"] * 2 + ["oracle udlm"] * 2
    fit("out", method="udlm")
    capsys.readouterr()
    assert {line["model"] for line in lines(capsys, oracle="", out_dir="out")} == {"out"}
    assert named(sample.Config(init_from="s-sahoo/duo")) == "s-sahoo/duo"
