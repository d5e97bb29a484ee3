"""A training step waits neither for the device nor for text; what else a Trainer keeps."""
import copy
import math
import threading

import pytest
import torch
import torch.nn.functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._python_dispatch import TorchDispatchMode

import train
from checkpoints.build import build_method
from data import load_data
from data.base import Dataset
from flags import UserError, configure
from methods.base import Method
from runs import TINY, cache, complaint, elsewhere, fit, tiny  # noqa: F401
from runtime import optim
from runtime.trainer import Prefetcher, Trainer

CPU = torch.device("cpu")


def make_trainer(data=None, **flags):
    data = data or load_data("toy", 8)
    flags = {**TINY, "n_layer": 2, "muon_dtype": "float32", **flags}
    config = configure(train.Config, **flags)
    return Trainer(config, data, build_method(config, data.encoding), CPU)


class Waits(TorchDispatchMode):
    """Notes what makes the host wait for a GPU: values that Python reads, shapes that depend on
    data."""
    names = "_local_scalar_dense", "nonzero", "masked_select", "equal"

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        indices = args[1] if "index" in str(func) and len(args) > 1 else ()
        indices = indices if isinstance(indices, (list, tuple)) else ()
        masked = any(torch.is_tensor(i) and i.dtype == torch.bool for i in indices)
        if masked or func.__name__.split(".")[0] in self.names:
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


class Dense(Method):
    """Predict every token of a noisy text: a loss that reads no values itself."""

    def loss(self, denoiser, x, frozen=None):
        z = torch.where(torch.rand(x.shape) < 0.5, 0, x)  # (B, L)
        logits = denoiser(z, torch.rand(len(x), 1))  # (B, L, V)
        return F.cross_entropy(logits.transpose(1, 2), x, reduction="none")  # (B, L)


@pytest.mark.parametrize("flags", [
    dict(), dict(optimizer="adamw", gradient_accumulation_steps=2, dropout=0.1),
    dict(recompute=True, dtype="bfloat16", labels=True)])
def test_a_step_never_waits_for_the_device(flags):
    trainer = make_trainer(method="udlm", **flags)
    trainer.objective = Dense(113)
    with Waits() as waits:
        torch.ones(1).item()
        torch.ones(2)[torch.ones(2) > 0]
        assert len(waits.seen) == 2  # it notes both kinds
        for step in range(2):
            train.train_step(trainer, step)
    assert len(waits.seen) == 2, waits.seen


# ---- batches are drawn ahead

class Slow(Dataset):
    """A data set that notes which thread draws, and makes threads other than the main one wait at
    a gate."""

    def __init__(self):
        self.toy, self.gate, self.drawn_by = load_data("toy", 8), threading.Event(), []
        self.fails, self.encoding, self.classes = False, self.toy.encoding, ()
        self.gate.set()

    def examples(self, split, n, generator):
        is_main = threading.current_thread() is threading.main_thread()
        self.drawn_by.append("main" if is_main else "another")
        assert is_main or self.gate.wait(60)
        if self.fails:
            raise UserError("the disk is gone")
        return self.toy.examples(split, n, generator)


def test_the_next_batch_is_drawn_in_a_thread_while_the_step_runs():
    trainer = make_trainer(data := Slow())
    data.gate.clear()
    train.train_step(trainer, 0)  # the whole step, before the next batch is drawn
    assert not trainer.prefetch.made.done()
    data.gate.set()
    for step in (1, 2, 3):
        train.train_step(trainer, step)
    trainer.prefetch.made.result()
    assert data.drawn_by == ["main"] + 4 * ["another"]  # nothing was drawn ahead of the first


def test_a_batch_depends_only_on_its_number():
    trainer = make_trainer()
    batches = [trainer.draw_batch(number)[0] for number in range(6)]
    assert len({tuple(x.flatten().tolist()) for x in batches}) == 6
    ahead = Prefetcher(trainer.draw_batch)
    for number, then in ((0, 1), (1, 2), (5, 0), (3, 4), (4, 5)):  # some are as announced
        torch.rand(3)
        assert torch.equal(ahead(number, then)[0], batches[number])
    other = make_trainer(method="udlm", dropout=0.3)  # other random draws in a step
    assert torch.equal(other.draw_batch(2)[0], batches[2])
    assert not torch.equal(make_trainer(seed=2).draw_batch(2)[0], batches[2])


def test_an_error_while_a_batch_is_drawn_is_raised_by_the_step_that_needs_it():
    trainer = make_trainer(data := Slow())
    trainer.prefetch(0, then=1)
    trainer.prefetch.made.result()
    data.fails = True
    trainer.prefetch(1, then=2)
    with pytest.raises(UserError, match="the disk is gone"):
        train.train_step(trainer, 2)


def test_batches_for_a_gpu_are_pinned(monkeypatch):
    pinned, trainer = [], make_trainer()
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda a: (pinned.append(a), a)[1])
    trainer.draw_batch(0)
    assert not pinned
    trainer.device = torch.device("cuda")
    batch = [a for a in trainer.draw_batch(0) if a is not None]
    assert pinned and all(any(a is b for b in pinned) for a in batch)


# ---- activation checkpointing

def gradients(trainer, x):
    """The gradients of one loss, and the bytes that autograd kept, inputs of blocks excluded."""
    kept = {}

    def pack(a):
        kept[a.untyped_storage().data_ptr()] = a.untyped_storage().nbytes()
        return a
    torch.manual_seed(5)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda a: a):
        loss = trainer.objective.loss(trainer.denoiser, x).mean()  # ()
    size = sum(kept.values())
    loss.backward()
    return [p.grad for p in trainer.model.parameters()], size


@pytest.mark.parametrize("method", ["mdlm", "udlm", "pgm"])
def test_recomputed_activations_give_the_same_gradient_with_a_fraction_of_the_memory(method):
    flags = dict(method=method, n_layer=6, n_embd=32, dropout=0.1, batch_size=8)
    plain, again = make_trainer(**flags), make_trainer(**flags, recompute=True)
    for trainer in (plain, again):
        for p in trainer.model.parameters():
            p.data += 0.1 * torch.linspace(-1, 1, p.numel()).view_as(p)  # (...) gates open
    x, _, _ = plain.draw_batch(0)  # (B, L)
    (expected, much), (found, little) = gradients(plain, x), gradients(again, x)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    into_blocks = 6 * x.numel() * 32 * 4
    assert little + into_blocks < 0.35 * much


def test_recomputing_changes_nothing_else():
    one, two = fit("one", dropout=0.2, max_iters=3), fit("two", dropout=0.2, max_iters=3,
                                                         recompute=True)
    torch.testing.assert_close(one["ema"], two["ema"], rtol=0, atol=0)


def test_the_precision_of_products_is_that_of_the_flag():
    fit("out", matmul_precision="medium")
    assert torch.get_float32_matmul_precision() == "medium"
    assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    fit("out", init_from="resume", max_iters=3, matmul_precision="highest")
    assert torch.get_float32_matmul_precision() == "highest"
    assert torch.backends.mkldnn.matmul.fp32_precision in ("none", "ieee")


# ---- what follows the gradient

def test_a_step_follows_the_mean_gradient_of_its_micro_batches(monkeypatch):
    """And its loss is the mean loss, whatever the optimizers make of the gradient afterwards."""
    trainer, kept = make_trainer(gradient_accumulation_steps=3, grad_clip=0.0, batch_size=4), []
    expected, losses = [torch.zeros_like(p) for p in trainer.model.parameters()], []
    for micro in trainer.micro_batches(2):
        x, _, _ = trainer.batch(micro)  # (B, L)
        torch.manual_seed(trainer.seed(micro))
        loss = trainer.method.loss(trainer.denoiser, x).mean()  # ()
        gradients = torch.autograd.grad(loss, [*trainer.model.parameters()])
        expected = [a + g / 3 for a, g in zip(expected, gradients)]
        losses.append(loss.item())
    monkeypatch.setattr(Trainer, "step_optimizers", lambda self, step: kept.extend(
        p.grad.to_dense().clone() for p in self.model.parameters()))
    loss, norm = train.train_step(trainer, 2).tolist()
    torch.testing.assert_close(kept, expected, rtol=1e-5, atol=1e-7)
    assert loss == pytest.approx(sum(losses) / 3, rel=1e-5)
    squares = sum(g.square().sum().item() for g in expected)
    assert norm == pytest.approx(math.sqrt(squares), rel=1e-4)


def test_the_average_is_that_of_torch():
    trainer = make_trainer(ema=0.6)
    theirs = AveragedModel(trainer.model)
    for step in range(14):
        train.train_step(trainer, step)
        theirs.multi_avg_fn = get_ema_multi_avg_fn(min(0.6, (1 + step) / (10 + step)))
        theirs.update_parameters(trainer.model)
    same = lambda a, b: torch.testing.assert_close(dict(a), dict(b), rtol=0, atol=0)
    same(trainer.average.state_dict(), theirs.module.state_dict())
    state = trainer.state(14)
    same(state["ema"], theirs.module.state_dict())
    same(state["model"], trainer.model.state_dict())
    assert any(not torch.equal(state["ema"][name], a) for name, a in state["model"].items())


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
@pytest.mark.parametrize("at_once", [1, 1 << 28])
def test_muon_is_that_of_torch(at_once, monkeypatch):
    monkeypatch.setattr(optim, "AT_ONCE", at_once)
    torch.manual_seed(0)
    shapes = (96, 32), (32, 32), (96, 32), (32, 128), (32, 32), (128, 32)
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = copy.deepcopy(ours)
    pair = (optim.Muon(ours, lr=0.05, weight_decay=0.1, dtype=torch.bfloat16),
            torch.optim.Muon(theirs, lr=0.05, weight_decay=0.1))
    for _ in range(5):
        for p, q in zip(ours, theirs):
            p.grad = torch.randn_like(p)  # (A, B)
            q.grad = p.grad.clone()  # (A, B)
        ours[1].grad = theirs[1].grad = None  # one that took no part in the loss
        for optimizer in pair:
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    for p, q in zip(ours, theirs):
        a, b = dict(pair[0].state[p]), dict(pair[1].state[q])
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("dtype, error", [(torch.float32, 1e-5), (torch.bfloat16, 0.06)])
def test_muon_moves_along_a_nearly_orthogonal_matrix(dtype, error):
    torch.manual_seed(0)
    x = torch.randn(3, 8, 20) @ torch.diag_embed(torch.logspace(-1, 1, 20))  # (3, 8, 20)
    for a in (x, x.mT):
        u, s, v = torch.linalg.svd(a, full_matrices=False)
        mixed = u.mT @ optim.orthogonalize(a, dtype).float() @ v.mT  # (3, 8, 8)
        values = mixed.diagonal(dim1=1, dim2=2)  # (3, 8)
        assert 0.6 < values.min() and values.max() < 1.3
        assert (mixed - torch.diag_embed(values)).abs().max() < error
    assert math.isfinite(optim.orthogonalize(torch.zeros(1, 4, 4), dtype).sum())


# ---- machines

def test_gradients_of_a_cuda_graph_are_copied_before_the_next_micro_batch(monkeypatch):
    """A network stands in for a compiled one that overwrites its gradients when it is called."""
    flags = dict(gradient_accumulation_steps=3, max_iters=3)
    flags["compile"], calls, lent = "reduce-overhead", [], []
    monkeypatch.setattr(Trainer, "bound", lambda *a, **options: (0.0, 0.0))
    monkeypatch.setattr(torch, "compile", lambda net, **options: net)
    expected = fit("plain", **flags)

    def graphed(net, **options):
        def hand_over(p):
            if len(calls) % 3 == 1:  # the gradient of the graph itself, not a sum
                lent.append(p.grad)

        def forward(*a, **layout):
            if len(calls) % 3:  # after the last micro-batch the optimizer has used them
                for g in lent:
                    g.fill_(math.nan)
            calls.append(lent.clear())
            return net(*a, **layout)
        for p in net.parameters():
            p.register_post_accumulate_grad_hook(hand_over)
        return forward

    monkeypatch.setattr(torch, "compile", graphed)
    found = fit("graphs", **flags)
    assert len(calls) == 9
    torch.testing.assert_close(found["model"], expected["model"], rtol=0, atol=0)


def test_shards_need_processes_and_a_loss_inside_the_network(capsys):
    error = complaint(train, *tiny(shard=True, out_dir="out"), capsys=capsys)
    assert "--shard spreads the weights over processes, and there is one" in error
    error = complaint(train, *tiny(shard=True, method="genmd4", out_dir="out"), capsys=capsys)
    assert "--shard cannot spread genmd4" in error
