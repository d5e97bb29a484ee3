"""Speed: the dense reference computes the same as the chapters, and how speed is reported."""
import copy
import json
import subprocess
from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import world
from diffusion import reverse
from experiments import dense_reference, equal_law, levers, speed, timing, workloads
from flags import UserError, configure
from methods import make_method
from model import Transformer
from runs import cache, complaint, elsewhere  # noqa: F401

N_TOKENS, CPU = 30, torch.device("cpu")
KERNELS = 12  # rows of the fast forms: experiments/kernels.py


def network(vocab_size, **options):
    torch.manual_seed(0)
    net = Transformer(vocab_size, n_layer=3, n_head=2, n_embd=16, **options)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return net


# ---- the dense reference computes the same

@pytest.mark.parametrize("cond_dim", [0, 8])
def test_the_dense_training_step_has_our_loss_and_our_gradient(cond_dim):
    """On the same noise, to 1e-6 of the largest gradient of each weight."""
    method = make_method("mdlm", N_TOKENS, weighting="bound")
    net, x = network(N_TOKENS + 1, cond_dim=cond_dim), torch.randint(N_TOKENS, (6, 12))  # (B, L)
    other = copy.deepcopy(net)
    torch.manual_seed(7)
    dense = dense_reference.dense_loss(net, method.process, x)  # ()
    torch.manual_seed(7)
    ours = method.loss(other, x).mean()  # ()
    assert abs(dense - ours) < 1e-6 * ours
    dense.backward()
    ours.backward()
    for (name, p), q in zip(net.named_parameters(), other.parameters()):
        assert (p.grad - q.grad).abs().max() <= 1e-6 * max(1, p.grad.abs().max()), name
        assert p.grad.abs().max() > 0, name


def test_the_dense_training_step_learns():
    torch.manual_seed(0)
    net, process = network(6, cond_dim=0), make_method("mdlm", 5).process
    trainer = dense_reference.DenseTrainer(net, process, learning_rate=0.01, ema=0.5)
    x = torch.full((8, 6), 3)  # (B, L)
    losses = [trainer.step(x).item() for _ in range(30)]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    assert not torch.equal(trainer.ema[0], next(net.parameters()))


@pytest.mark.parametrize("process, step", [
    ("mask", dense_reference.masked_step), ("uniform", dense_reference.uniform_step),
    ("mask", dense_reference.lean_masked_step), ("uniform", dense_reference.lean_uniform_step)])
def test_the_dense_samplers_draw_from_the_reverse_step(process, step):
    """60,000 draws against (0.3), which the lazy step draws from too: see test_samplers.py."""
    torch.manual_seed(1)
    process, n, s, t = world.PROCESSES[process], 60_000, 0.3, 0.6

    def denoiser(z, time):
        return torch.nn.functional.pad(world.vandal(z, time.double()), (0, process.V - world.N))
    for z in ([0, 1, 2], [process.V - 1, 0, process.V - 1]):
        z = torch.tensor([z])  # (1, L)
        at_s, at_t = (torch.tensor([[u]], dtype=torch.float64) for u in (s, t))  # (1, 1) each
        x_theta = world.vandal(z, at_t.float()).exp()  # (1, L, N)
        x_theta = world.carried_over(process, x_theta, z).double()  # (1, L, V)
        p = reverse(process, x_theta, z, at_s, at_t)[0]  # (L, V)
        joint = torch.einsum("i,j,k->ijk", *p).flatten()  # (V^3,)
        new = step(process, denoiser, z.expand(n, -1), s, t)  # (n, L)
        assert world.surprise(world.numbers(new, process.V), joint) < 4.5


def test_the_uncached_next_token_is_drawn_from_the_network():
    torch.manual_seed(2)
    p = torch.tensor([0.1, 0.2, 0.3, 0.4])  # (N,)
    logits = torch.cat([p.log(), torch.tensor([5.0])])  # (V,) the start symbol is never drawn
    network, prefix = lambda z, t: logits.expand(*z.shape, 5), torch.zeros(50_000, 2).long()
    assert world.surprise(dense_reference.next_token(network, prefix, 4), p) < 4.5


# ---- how it is measured

def test_ways_take_turns_and_ratios_stay_within_their_round(monkeypatch):
    order, clock = [], iter(range(10_000))
    monkeypatch.setattr(timing.time, "process_time", lambda: next(clock))
    ways = {"a": (lambda: order.append("a"), 1), "b": (lambda: order.append("b"), 16)}
    seconds = timing.time_in_turns(ways, 3, CPU)
    assert order == ["a", "b"] * 4  # one round to warm up
    assert seconds == {"a": [1, 1, 1], "b": [16, 16, 16]}
    assert timing.paired_ratio([4.0, 9.0, 10.0], [1.0, 3.0, 5.0]) == (3.0, 2.0, 4.0)


def tiny(tmp_path, command="cpu", **flags):
    return configure(speed.Config, command=command, tiny=True, out_dir=str(tmp_path), **flags)


def test_no_time_is_reported_without_the_name_of_the_machine(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(timing, "processor_name", lambda: "")
    config = tiny(tmp_path, only="kernels")
    with pytest.raises(UserError, match="--hardware 'maker, model'"):
        speed.main(config)
    assert capsys.readouterr().out == "" and not list(tmp_path.iterdir())
    config.hardware = "Acme 1"
    speed.main(config)
    assert "Acme 1, 1 thread," in capsys.readouterr().out
    assert "Acme 1" in json.loads((tmp_path / "cpu.json").read_text())["hardware"]


def test_the_flops_of_a_step_are_those_of_its_matrix_products():
    """Counted by torch, attention included, for a network that scores every position."""
    size = workloads.Size(2, 2, 16, n_tokens=50, length=8, batch=3)
    net = Transformer(51, 2, 2, 16, cond_dim=0)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        net(torch.randint(51, (3, 8)))
    assert workloads.count_flops(size) == 3 * counter.get_total_flops()


def test_the_flops_of_muon_are_those_of_its_products():
    """Of D x D, D x 3D and two D x 4D matrices a block: 5 rounds on x, or on squares if wide."""
    on_x, on_squares = 5 * (2 + 1), lambda b: b + 3 + 3 * 4 + 2 + b  # products of D x D matrices
    products = on_x + on_squares(3) + 2 * on_squares(4)
    assert workloads.count_muon_flops(workloads.SMALL) == 6 * products * 2 * 384 ** 3
    half = speed.replace(workloads.SMALL, dtype="bfloat16")
    assert workloads.count_muon_flops(half) == 6 * 5 * (3 + 7 + 9 + 9) * 2 * 384 ** 3


def test_memory_is_that_of_a_process_that_does_nothing_else():
    small = workloads.Size(1, 1, 8, n_tokens=20_000, length=32, batch=8)
    memory = workloads.measure_memory("plain", small)  # logits of 20 MB, weights of 1 MB
    assert 60e6 < memory < 400e6


def test_a_process_that_fails_is_one_line(monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "Traceback\nValueError: n_embd must be even\n")
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: failed)
    with pytest.raises(UserError, match="did not finish: .'ValueError: n_embd must be even'"):
        workloads.measure_memory("plain", workloads.Size(1, 3, 8))


# ---- every table, with tiny networks

@pytest.fixture
def no_process(monkeypatch):
    memory = {"plain": 4e9, "ours": 1e9}
    monkeypatch.setattr(workloads, "measure_memory", lambda way, size: memory.get(way, 2e9))


@pytest.fixture
def fake_gpu(monkeypatch):
    """torch.cuda as the benchmark uses it, where all takes two milliseconds; and no compiler."""
    event = lambda enable_timing: SimpleNamespace(record=lambda: None,
                                                  elapsed_time=lambda other: 2.0)
    held = iter(range(10**6, 10**9, 10**6))
    fakes = dict(Event=event, synchronize=lambda: None, memory_allocated=lambda: 0,
                 reset_peak_memory_stats=lambda: None, max_memory_allocated=lambda: next(held),
                 get_device_name=lambda device: "Acme G1")
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch, "compile", lambda net, **options: net)


def report_of(capsys, path):
    return capsys.readouterr().out, json.loads(path.read_text())["rows"]


def test_every_way_is_reported_with_its_ratio_and_every_round_is_saved(
        no_process, capsys, tmp_path):
    speed.main(tiny(tmp_path, rounds=2))
    out, rows = report_of(capsys, tmp_path / "cpu.json")
    assert "fewer than 7" in out and "TINY" in out and torch.__version__ in out
    law, sentences = ([row for row in rows if row["table"] == f"{what} at equal law"]
                      for what in ("sampling", "sentences"))
    rows = [row for row in rows if row not in law + sentences]
    ratios = {row["way"]: list(row["ratios"]) for row in rows if "ratios" in row}
    dense = {name: [f"{name}, plain", f"{name}, lean"]
             for name in ("mdlm, 4 steps", "udlm, 4 steps")}
    assert ratios == {"ours": ["plain"], "ours by default": ["plain"], "ar": ["ar, plain"],
                      "pgm, 4 steps": ["ar"], "bd3lm, blocks of 16 in 4 steps": ["ar"], **dense}
    assert all(len(row["seconds"]) == 2 for row in rows) and len(rows) == 5 * 3 + 10 + KERNELS
    extrapolated = {row["way"] for row in rows if row.get("extrapolated")}
    assert extrapolated == {*sum(ratios.values(), [])} - {"plain", "ar"}
    seconds = {row["way"]: row["seconds"] for row in rows if row["table"] == "sampling"}
    for row in rows[5 * 3:-KERNELS]:
        for other, gain in row.get("ratios", {}).items():
            assert gain == pytest.approx(timing.paired_ratio(seconds[other], row["seconds"]))
    assert {row["way"]: list(row["ratios"]) for row in law if "ratios" in row} == {
        "mdlm, 4 steps": ["mdlm, 4 steps, plain"], "udlm, 4 steps": ["udlm, 4 steps, plain"],
        "ar": ["ar, plain"], "mdlm, spread in 8": ["mdlm, 4 steps, plain"],
        **{f"udlm, turns in {n}": ["udlm, 4 steps, plain"] for n in (8, 16)},
        **{name: ["mdlm, 4 steps, plain", "ar"] for name in (
            "pgm, spread in 8", "bd3lm, blocks of 16, 8 steps", "eso_lm, half in 64")}}
    assert {row["way"]: list(row.get("ratios", {})) for row in sentences} == {
        "mdlm, 4 steps, plain": [], "mdlm, 4 steps": ["mdlm, 4 steps, plain"],
        "flexmdm in 80": ["mdlm, 4 steps, plain"]}
    assert "0.25 of plain's" in out and out.count("% with Muon's products)") == 5
    assert all(row["peak_bytes"] > 0 for row in rows if row["table"] == "training step")


def test_the_compiled_step_is_reported_if_it_is_asked_for(
        no_process, monkeypatch, capsys, tmp_path):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda net, **options: compiled.append(options) or net)
    speed.main(tiny(tmp_path, only="training", compile=True, rounds=1))
    _, rows = report_of(capsys, tmp_path / "cpu.json")
    assert len(rows) == 5 * 4 and len(compiled) == 5
    ratios = [list(row["ratios"]) for row in rows if row["way"].endswith("compiled")]
    assert ratios == [["plain"]] * 5


def test_the_gpu_run_works_on_a_cpu_in_tiny(no_process, fake_gpu, capsys, tmp_path):
    """With the GPU's clock and counters in place of the CPU's, and compiling: all but the work."""
    config = tiny(tmp_path, command="gpu", rounds=1, device="cpu")
    speed.main(config)
    out, rows = report_of(capsys, tmp_path / "gpu.json")
    assert len(rows) == 2 + (6 + 4 + 10) + KERNELS and "bfloat16" in out
    report = speed.Report(config, SimpleNamespace(type="cuda"))
    size = speed.replace(speed.LARGE, device="cpu", **{**speed.TINY, "compile": True})
    speed.time_training(report, size, ("plain", "ours"))
    out = capsys.readouterr().out
    assert "Acme G1" in out and "compiled" in out and "0.002" in out
    assert [row["seconds"] for row in report.rows] == [[0.002]] * 2


def test_no_table_begins_and_no_round_after_the_first_when_the_time_is_over(
        no_process, fake_gpu, monkeypatch, capsys, tmp_path):
    """So that one call ends in time, and tells what it left out."""
    config = tiny(tmp_path, command="gpu", rounds=3, device="cpu", minutes=9.0)
    report = speed.Report(config, SimpleNamespace(type="cuda"))
    clock = iter([0.0, 1e9])  # a table begins in time, and its first round ends too late
    monkeypatch.setattr(speed.time, "monotonic", lambda: next(clock, 1e9))
    size = speed.replace(speed.LARGE, device="cpu", **{**speed.TINY, "compile": False})
    report.until = 540.0
    report.add_table("first", size, {"a": (lambda: None, 1)}, {})
    report.add_table("second", size, {"a": (lambda: None, 1)}, {})
    speed.time_training(report, size, ("plain", "ours"))
    report.device = CPU
    speed.time_kernels(report)
    out, rows = report_of(capsys, tmp_path / "gpu.json")
    assert [row["seconds"] for row in rows] == [[0.002]] and rows[0]["table"] == "first"
    assert out.count("left out, since 9 minutes are over: --minutes or --only") == 2 + 5
    assert speed.Report(config, torch.device("cpu")).has_time("a CPU has all the time")


# ---- equal law

def test_the_orders_of_other_methods_are_orders_of_masks():
    """Blocks open one after the other, a mask at a time in each; eso_lm opens the groups that it
    has drawn. The text is led to other words on the way, as (24.5) needs it."""
    process, frozen = make_method("mdlm", 5).process, torch.zeros(2, 12, dtype=torch.bool)  # (B, L)
    z, seen = torch.full((2, 12), 5), []  # (B, L)
    denoiser = lambda z, t, at: seen.append(z.clone()) or torch.zeros(int(at.sum()), 6)
    sampler = equal_law.InBlocks(equal_law.make_sampler("spread", make_method("mdlm", 5)), 4)
    for step, z in enumerate(sampler(process, denoiser, z, frozen, 2), 1):
        assert ((z != 5).sum(-1) == 2 * step).all() and (z[:, 4 * -(-step // 2):] == 5).all()
        z[z != 5] = 3
    assert step == 6 and all(((a == 5) | (a == 3)).all() for a in seen)
    torch.manual_seed(3)
    method = make_method("eso_lm", 5)
    wanted = method.group(*method.draw(frozen), frozen, 3)  # (B, L)
    torch.manual_seed(3)
    found = equal_law.EsoTurns(method=method).turns(~frozen, 3)  # (B, L)
    assert torch.equal(found, wanted) and found.min() == 0


def test_kl_at_equal_law_is_exact_for_one_word_at_a_time(capsys, tmp_path, monkeypatch):
    """8 words in 8 steps, in blocks as well, lose nothing; all at once they lose much."""
    spread = equal_law.make_sampler("spread", make_method("mdlm", 2))
    monkeypatch.setattr(equal_law, "orders", lambda: {
        "spread": (spread, [8, 1], False),
        "blocks": (equal_law.InBlocks(spread, 4), [4, 1], False),
        "eso": (equal_law.EsoTurns(method=make_method("eso_lm", 2)), [10**4, 1], True)})
    rows = equal_law.print_laws(equal_law.measure_laws(16, 8))
    kl = [row["kl"] for row in rows]
    assert abs(kl[0]) < 1e-9 and abs(kl[2]) < 1e-9 and abs(kl[4]) < 1e-3
    assert min(kl[1], kl[3]) > 0.2 and kl[5] > 0.02 and len(rows) == 7
    assert capsys.readouterr().out.count("<") == 3
    monkeypatch.setattr(speed, "measure_laws", lambda texts, length: iter(rows))
    monkeypatch.setattr(equal_law, "SENTENCE_WAYS", [
        ("mdlm", "ancestral", [2]), ("mdlm", "spread", [20]), ("flexmdm", "insertion", [2, 8])])
    speed.main(tiny(tmp_path, command="law"))
    rows = json.loads((tmp_path / "law.json").read_text())["rows"]
    assert len(rows) == 7 + 4 and capsys.readouterr().out.count("nats/sentence") == 1
    one, several = ([row[key][0] for row in rows[7:]] for key in ("one", "several"))
    assert abs(one[1]) < 1e-9 and min(one[0], one[2], one[3]) > 0.3 and one[2] > one[3]
    assert all(a <= b + 1e-9 for a, b in zip(several, one)) and several[2] < one[2]


@pytest.mark.parametrize("name, index", [("auto", 0), ("cuda", 0), ("cuda:1", 1)])
def test_the_current_gpu_is_the_one_that_is_asked_for(name, index, monkeypatch):
    chosen = []
    monkeypatch.setattr(speed, "device_of", torch.device)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(speed, "Report", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        speed.main(configure(speed.Config, command="gpu", device=name))
    assert chosen == [index]


def test_without_a_gpu_the_gpu_run_ends_in_one_line(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(UserError, match="there is no device 'cuda' here"):
        speed.main(configure(speed.Config, command="gpu"))
    assert capsys.readouterr().out == ""


def test_every_fast_form_is_timed_beside_its_plain_one(capsys, tmp_path):
    speed.main(tiny(tmp_path, only="kernels", rounds=1))
    out, rows = report_of(capsys, tmp_path / "cpu.json")
    tables = dict.fromkeys(row["table"] for row in rows)
    assert list(tables) == [
        "head and loss, forward and backward", "head, softmax and draw", "attention, full",
        "attention, causal", "attention, block diffusion"]
    assert out.count("times that of the kernel") == len(rows) - len(tables) >= len(tables)


def test_a_command_line_that_cannot_be_measured_is_one_line(capsys):
    argv = "--command", "cpu", "--only", "sampling", "--lengths", "many"
    said = complaint(speed, *argv, capsys=capsys)
    assert "--lengths 'many' must be whole numbers" in said
    assert "say what to measure: cpu, gpu, law, peers" in complaint(speed, capsys=capsys)


def test_the_levers_are_reported_one_by_one(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch, "compile", lambda net, **options: net)
    levers.main(configure(levers.Config, tiny=True, rounds=1, compile=True, out_dir=str(tmp_path)))
    out, rows = report_of(capsys, tmp_path / "levers.json")
    assert len(rows) == 16 + 6 + 2 and sum("ratios" in row for row in rows) == 8 + 4 + 1
    assert torch.get_float32_matmul_precision() == "highest"
    what = lambda name: name.partition(",")[0]
    assert all(what(other) == what(row["way"]) for row in rows for other in row.get("ratios", ()))
