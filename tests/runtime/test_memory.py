"""How many texts are sampled at once: what one text needs, and what is free."""
from types import SimpleNamespace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import sample
from flags import configure, load_row
from methods import METHODS, make_method
from model import Block, Transformer
from runtime import memory
from samplers.generate import generate

CPU = torch.device("cpu")


def test_free_memory_is_the_least_of_what_the_machine_has_and_the_container_may_use(tmp_path):
    (tmp_path / "proc").mkdir()
    lines = "MemTotal: 16000 kB\nMemFree: 10 kB\nMemAvailable: 8000 kB\n"
    (tmp_path / "proc/meminfo").write_text(lines)
    assert memory.free_memory(CPU, tmp_path) == 8000 << 10
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    assert memory.free_memory(CPU, tmp_path) == 8000 << 10
    (group / "memory.max").write_text("3000000\n")
    (group / "memory.current").write_text("1000000\n")
    assert memory.free_memory(CPU, tmp_path) == 2_000_000
    assert memory.free_memory(CPU, tmp_path / "nowhere") > 0


def test_free_memory_has_a_default_where_the_system_does_not_tell_it(tmp_path, monkeypatch):
    def unknown(name):
        raise ValueError("unrecognized configuration name")
    monkeypatch.setattr(memory.os, "sysconf", unknown)  # as on macOS
    assert memory.free_memory(CPU, tmp_path) == memory.UNKNOWN
    monkeypatch.delattr(memory.os, "sysconf")  # as on Windows
    assert memory.free_memory(CPU, tmp_path) == memory.UNKNOWN


def test_on_a_gpu_free_memory_counts_what_torch_keeps_for_itself(monkeypatch):
    cuda = SimpleNamespace(memory_reserved=lambda d: 70, memory_allocated=lambda d: 30,
                           mem_get_info=lambda d: (100, 200))
    monkeypatch.setattr(memory.torch, "cuda", cuda)
    assert memory.free_memory(torch.device("cuda")) == 140


def test_texts_at_once_follow_from_network_symbols_length_and_free_memory(monkeypatch):
    model = SimpleNamespace(denoiser=Transformer(500, 2, 2, 16), method=make_method("mdlm", 499))
    need = 4 * 10 * (24 + 2 * 2) * 16 + 28 * 10 * 500
    at_once = lambda **flags: memory.texts_at_once(
        configure(sample.Config, **{"num_samples": 1000, **flags}), model, 10, CPU)
    for texts, least in ((1, 0.2), (1, 1), (8, 9.1), (32, 40), (64, 10_000)):
        free = int(2 * least * need)  # half of it may be used
        monkeypatch.setattr(memory, "free_memory", lambda device: free)
        assert at_once() == texts
    assert at_once(num_samples=3) == 3 and at_once(num_samples=9, batch_size=5) == 5
    assert at_once(oracle="mdlm") == 64
    monkeypatch.setattr(memory, "free_memory", lambda device: 18 * need)
    assert at_once() == 8
    assert at_once(guidance=2.0) == 4  # each text is read twice
    assert at_once(classifier="x", candidates=8) == 1
    model.method = make_method("ar", 499)  # scores one position at a time: a fifth of the memory
    assert at_once() == 32


WRITERS = [name for name in METHODS if not load_row(METHODS, name).classifies]


@pytest.mark.parametrize("name", WRITERS)
def test_the_estimate_counts_all_blocks_of_the_network_of_every_method(name):
    method = make_method(name, 50)
    network = method.network(method.vocab_size, 4, 2, 16, cond_dim=0, mask_mod=method.mask_mod)
    head, layers = 28 * 10 * network.vocab_size, sum(isinstance(part, Block)
                                                     for part in network.modules())
    assert layers in (4, 8, 12, 16)  # of each expert; of encoder, decoder, denoiser, and the past
    assert memory.bytes_per_text(network, 10) == 4 * 10 * (24 + 2 * layers) * 16 + head


def test_a_step_holds_no_more_than_the_estimate():
    """All positions scored at once: what torch itself counts as allocated during a step."""
    method, network = make_method("mdlm", 3000), Transformer(3001, 2, 2, 64, cond_dim=0).eval()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as spy:
        generate(method, network, 4, 32, 1)
    held = peak = 0
    for event in sorted(spy.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    estimate = 4 * memory.bytes_per_text(network, 32)
    assert 0.3 * estimate < peak < estimate
