"""What is fast is also right: plain.py has the loss, the gradient and the law of the chapters. How speed is told."""
import copy
import json
from types import SimpleNamespace

import pytest
import torch
import world
from runs import cache, complaint, elsewhere  # noqa: F401

import bench
import claims.levers as levers
import measure
import plain
import speed
from data import BadInput
from diffusion import reverse
from methods import make_method
from model import Transformer

N_TOKENS, CPU = 30, torch.device("cpu")
KERNELS = 12                                             # rows of the fast forms: claims/kernels.py


def network(vocab_size, **options):
    torch.manual_seed(0)
    net = Transformer(vocab_size, n_layer=3, n_head=2, n_embd=16, **options)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return net


# ---- the plain reference computes the same

@pytest.mark.parametrize("cond_dim", [0, 8])
def test_the_plain_training_step_has_our_loss_and_our_gradient(cond_dim):
    """On the same noise, to 1e-6 of the largest gradient of each weight."""
    m, net = make_method("mdlm", N_TOKENS, weighting="bound"), network(N_TOKENS + 1, cond_dim=cond_dim)
    other, x = copy.deepcopy(net), torch.randint(N_TOKENS, (6, 12))
    torch.manual_seed(7)
    theirs = plain.loss(net, m.process, x)
    torch.manual_seed(7)
    ours = m.loss(other, x).mean()
    assert abs(theirs - ours) < 1e-6 * ours
    theirs.backward()
    ours.backward()
    for (name, p), q in zip(net.named_parameters(), other.parameters()):
        assert (p.grad - q.grad).abs().max() <= 1e-6 * max(1, p.grad.abs().max()), name
        assert p.grad.abs().max() > 0, name


def test_the_plain_training_step_learns():
    torch.manual_seed(0)
    net = network(6, cond_dim=0)
    trainer = plain.Trainer(net, make_method("mdlm", 5).process, learning_rate=0.01, ema=0.5)
    x = torch.full((8, 6), 3)
    losses = [trainer.step(x).item() for _ in range(30)]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    assert not torch.equal(trainer.ema[0], next(net.parameters()))


@pytest.mark.parametrize("name, step", [("mask", plain.masked_step), ("uniform", plain.uniform_step),
                                        ("mask", plain.lean_masked_step), ("uniform", plain.lean_uniform_step)])
def test_the_plain_samplers_draw_the_dense_posterior(name, step):
    """200,000 draws against (3): the law that the lazy step draws too, see test_samplers.py."""
    torch.manual_seed(1)
    process, n, s, t = world.PROCESSES[name], 200_000, 0.3, 0.6
    wide = lambda z, time: torch.nn.functional.pad(world.vandal(z, time.double()), (0, process.V - world.N))
    for z in ([0, 1, 2], [process.V - 1, 0, process.V - 1]):
        z = torch.tensor([z])
        at_s, at_t = (torch.tensor([[u]], dtype=torch.float64) for u in (s, t))
        x_theta = world.carried_over(process, world.vandal(z, at_t.float()).exp(), z)                    # (1, L, V)
        p = reverse(process, x_theta.double(), z, at_s, at_t)[0]                                         # (L, V)
        law = torch.einsum("i,j,k->ijk", *p).flatten()                                                   # (V^3,)
        new = step(process, wide, z.expand(n, -1), s, t)                                                 # (n, L)
        assert world.surprise(world.numbers(new, process.V), law) < 4.5


def test_the_plain_next_token_draws_what_the_network_says():
    torch.manual_seed(2)
    law = torch.tensor([0.1, 0.2, 0.3, 0.4])
    logits = torch.cat([law.log(), torch.tensor([5.0])])                     # the start symbol is never drawn
    new = plain.next_token(lambda z, t: logits.expand(*z.shape, 5), torch.zeros(50_000, 2, dtype=torch.long), 4)
    assert world.surprise(new, law) < 4.5


# ---- how it is measured

def test_ways_take_turns_and_ratios_stay_within_their_round(monkeypatch):
    order, clock = [], iter(range(10_000))
    monkeypatch.setattr(measure.time, "process_time", lambda: next(clock))
    ways = {"a": (lambda: order.append("a"), 1), "b": (lambda: order.append("b"), 16)}
    seconds = measure.paired(ways, 3, CPU)
    assert order == ["a", "b"] * 4 and seconds == {"a": [1, 1, 1], "b": [16, 16, 16]}     # one round to warm up
    assert measure.ratio([4.0, 9.0, 10.0], [1.0, 3.0, 5.0]) == (3.0, 2.0, 4.0)


def test_no_time_is_told_where_nobody_knows_whose_it_is(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(measure, "processor", lambda: "")
    config = bench.Config(command="speed", tiny=True, only="kernels", out_dir=str(tmp_path))
    with pytest.raises(BadInput, match="--hardware 'maker, model'"):
        speed.cpu(config)
    assert capsys.readouterr().out == "" and not list(tmp_path.iterdir())
    config.hardware = "Acme 1"
    speed.cpu(config)
    assert "Acme 1, 1 threads" in capsys.readouterr().out
    assert "Acme 1" in json.loads((tmp_path / "speed.json").read_text())["hardware"]


def test_the_flops_of_a_step_are_those_of_its_matrix_products():
    """Counted by torch itself, attention included, for a network that scores every position."""
    from torch.utils.flop_counter import FlopCounterMode
    size = speed.Size(2, 2, 16, n_tokens=50, length=8, batch=3)
    net = Transformer(51, 2, 2, 16, cond_dim=0)
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        net(torch.randint(51, (3, 8)))
    assert speed.flops(size) == 3 * counter.get_total_flops()


def test_memory_is_that_of_a_process_that_does_nothing_else():
    small = speed.Size(1, 1, 8, n_tokens=20_000, length=32, batch=8)        # logits of 20 MB, weights of 1 MB
    assert 60e6 < speed.memory("plain", small) < 400e6
    with pytest.raises(BadInput, match="did not finish"):
        speed.memory("plain", speed.Size(1, 3, 8))


# ---- every table, in tiny

@pytest.fixture
def no_process(monkeypatch):
    monkeypatch.setattr(speed, "memory", lambda way, size: {"plain": 4e9, "ours": 1e9}.get(way, 2e9))


@pytest.fixture
def fake_gpu(monkeypatch):
    """torch.cuda as the benchmark asks for it, with a clock that says two milliseconds, and nothing to compile."""
    event = lambda enable_timing: SimpleNamespace(record=lambda: None, elapsed_time=lambda other: 2.0)
    held = iter(range(10**6, 10**9, 10**6))
    fakes = dict(Event=event, synchronize=lambda: None, memory_allocated=lambda: 0,
                 reset_peak_memory_stats=lambda: None, max_memory_allocated=lambda: next(held),
                 get_device_name=lambda device: "Acme G1")
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch, "compile", lambda net, **options: net)


def told(capsys, path):
    return capsys.readouterr().out, json.loads(path.read_text())["rows"]


def test_speed_tells_every_way_with_its_ratio_and_keeps_every_round(no_process, capsys, tmp_path):
    speed.cpu(bench.Config(command="speed", tiny=True, rounds=2, out_dir=str(tmp_path)))
    out, rows = told(capsys, tmp_path / "speed.json")
    assert "fewer than 7 rounds" in out and "TINY" in out and torch.__version__ in out
    ratios = {row["way"]: list(row["ratios"]) for row in rows if "ratios" in row}
    dense = {name: [f"{name}, plain", f"{name}, lean"] for name in ("mdlm, 4 steps", "udlm, 4 steps")}
    assert ratios == {"ours": ["plain"], "ours by default": ["plain"], "ar": ["ar, plain"], "pgm, 4 steps": ["ar"],
                      "bd3lm, blocks of 16 in 4 steps": ["ar"], **dense}
    assert all(len(row["seconds"]) == 2 for row in rows) and len(rows) == 5 * 3 + 10 + KERNELS
    assert {row["way"] for row in rows if row.get("extrapolated")} == {*sum(ratios.values(), [])} - {"plain", "ar"}
    seconds = {row["way"]: row["seconds"] for row in rows if row["table"] == "sampling"}
    for row in rows[5 * 3:-KERNELS]:
        for other, gain in row.get("ratios", {}).items():
            assert gain == pytest.approx(measure.ratio(seconds[other], row["seconds"]))
    assert "0.25 of plain's" in out and all(row["peak_bytes"] > 0 for row in rows if row["table"] == "training step")


def test_the_compiled_step_is_told_where_it_is_asked_for(no_process, monkeypatch, capsys, tmp_path):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda net, **options: compiled.append(options) or net)
    speed.cpu(bench.Config(command="speed", tiny=True, only="training", compile=True, rounds=1, out_dir=str(tmp_path)))
    _, rows = told(capsys, tmp_path / "speed.json")
    assert len(rows) == 5 * 4 and len(compiled) == 5
    assert [list(row["ratios"]) for row in rows if row["way"].endswith("compiled")] == [["plain"]] * 5


def test_the_gpu_run_goes_through_on_a_cpu_in_tiny(no_process, fake_gpu, capsys, tmp_path):
    """With the GPU's clock and counters in place of the CPU's, and compiling: every line but the GPU's own work."""
    config = bench.Config(command="gpu", tiny=True, rounds=1, device="cpu", out_dir=str(tmp_path))
    speed.gpu(config)
    out, rows = told(capsys, tmp_path / "gpu.json")
    assert len(rows) == 2 + (6 + 4 + 10) + KERNELS and "bfloat16" in out
    report = speed.Report(config, SimpleNamespace(type="cuda"))
    size = speed.replace(speed.LARGE, device="cpu", **{**speed.TINY, "compile": True})
    speed.training(report, size, ("plain", "ours"))
    out = capsys.readouterr().out
    assert "Acme G1" in out and "compiled" in out and "0.002" in out
    assert [row["seconds"] for row in report.rows] == [[0.002]] * 2


@pytest.mark.parametrize("name, index", [("auto", 0), ("cuda", 0), ("cuda:1", 1)])
def test_the_current_gpu_is_the_one_that_is_asked_for(name, index, monkeypatch):
    chosen = []
    monkeypatch.setattr(speed, "device_of", torch.device)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(speed, "Report", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        speed.gpu(bench.Config(command="gpu", device=name))
    assert chosen == [index]


def test_without_a_gpu_the_gpu_run_ends_in_one_line(monkeypatch, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(BadInput, match="there is no device 'cuda' here"):
        speed.gpu(bench.Config(command="gpu"))
    assert capsys.readouterr().out == ""


def test_every_fast_form_is_timed_beside_its_plain_one(capsys, tmp_path):
    speed.cpu(bench.Config(command="speed", tiny=True, only="kernels", rounds=1, out_dir=str(tmp_path)))
    out, rows = told(capsys, tmp_path / "speed.json")
    tables = dict.fromkeys(row["table"] for row in rows)
    assert list(tables) == ["head and loss, there and back", "head, law and draw", "attention, full",
                            "attention, causal", "attention, block diffusion"]
    assert out.count("times that of the kernel") == len(rows) - len(tables) >= len(tables)


def test_what_cannot_be_measured_is_one_line(capsys):
    config = bench.Config(command="speed", only="sampling", lengths="many")
    with pytest.raises(BadInput, match="--lengths 'many' must be whole numbers"):
        speed.lists(config)


def test_the_levers_are_told_one_by_one(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch, "compile", lambda net, **options: net)
    levers.levers(levers.Config(tiny=True, rounds=1, compile=True, out_dir=str(tmp_path)))
    out, rows = told(capsys, tmp_path / "levers.json")
    assert len(rows) == 16 + 6 + 2 and sum("ratios" in row for row in rows) == 8 + 4 + 1
    assert torch.get_float32_matmul_precision() == "highest"
    what = lambda name: name.partition(",")[0]
    assert all(what(other) == what(row["way"]) for row in rows for other in row.get("ratios", ()))
