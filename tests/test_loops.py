"""A training step waits for nothing: no look at the device, text drawn ahead. And what the loop's flags trade."""
import copy
import math
import threading

import pytest
import torch
import torch.nn.functional as F
from runs import TINY, cache, complaint, elsewhere, fit, tiny  # noqa: F401
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._python_dispatch import TorchDispatchMode

import checkpoint
import optim
import train
from claims.recipe import Recipe
from data import BadInput
from data.text import load
from learner import Ahead, Learner
from masked import MDLM

CPU = torch.device("cpu")


def learner(corpus=None, **flags):
    return Learner(train.Config(**{**TINY, "n_layer": 2, **flags}), corpus or load("toy", 8), CPU)


class Looks(TorchDispatchMode):
    """Notes what a GPU must finish all its work for: numbers that Python asks for, shapes that hang on data."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        boolean = any(torch.is_tensor(i) and i.dtype == torch.bool for i in args[1] if i is not None) \
            if "index" in str(func) and len(args) > 1 and isinstance(args[1], (list, tuple)) else False
        if boolean or func.__name__.split(".")[0] in ("_local_scalar_dense", "nonzero", "masked_select", "equal"):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


class Dense:
    """Guess every token of a noisy text: a loss that looks at nothing itself."""

    def loss(self, denoiser, x, frozen=None):
        z = torch.where(torch.rand(x.shape) < 0.5, 0, x)                                                # (B, L)
        return F.cross_entropy(denoiser(z, torch.rand(len(x), 1)).transpose(1, 2), x, reduction="none")  # (B, L)


@pytest.mark.parametrize("flags", [dict(), dict(optimizer="adamw", gradient_accumulation_steps=2, dropout=0.1),
                                   dict(recompute=True, dtype="bfloat16", labels=True)])
def test_no_step_looks_at_a_number_on_the_device(flags):
    each = learner(method="udlm", **flags)
    each.objective = Dense()
    with Looks() as looks:
        torch.ones(1).item()
        torch.ones(2)[torch.ones(2) > 0]
        assert len(looks.seen) == 2                          # it sees both kinds
        for step in range(2):
            each.step(step)
    assert len(looks.seen) == 2, looks.seen


# ---- text, ahead of the step

class Slow:
    """A corpus that tells who draws, and lets other threads wait at a gate."""

    def __init__(self):
        self.corpus, self.gate, self.by, self.fails = load("toy", 8), threading.Event(), [], False
        self.encoding, self.classes = self.corpus.encoding, ()
        self.gate.set()

    def examples(self, split, n, generator):
        mine = threading.current_thread() is threading.main_thread()
        self.by.append("main" if mine else "another")
        assert mine or self.gate.wait(60)
        if self.fails:
            raise BadInput("the disk is gone")
        return self.corpus.examples(split, n, generator)


def test_the_text_of_the_next_step_is_drawn_in_a_thread_while_this_one_runs():
    each = learner(corpus := Slow())
    corpus.gate.clear()
    each.step(0)                                             # the whole step, while the next text is still to come
    assert not each.text.made.done()
    corpus.gate.set()
    for step in (1, 2, 3):
        each.step(step)
    each.text.made.result()
    assert corpus.by == ["main"] + 4 * ["another"]           # only the first had nobody to draw it ahead


def test_a_text_is_that_of_its_number_whoever_asks_in_whatever_order():
    each = learner()
    texts = [each.drawn(number)[0] for number in range(6)]
    assert len({tuple(x.flatten().tolist()) for x in texts}) == 6
    ahead = Ahead(each.drawn)
    for number, then in ((0, 1), (1, 2), (5, 0), (3, 4), (4, 5)):            # as guessed, and not
        torch.rand(3)
        assert torch.equal(ahead(number, then)[0], texts[number])
    other = learner(method="udlm", dropout=0.3)              # what else is drawn in a step is no matter of the text
    assert torch.equal(other.drawn(2)[0], texts[2])
    assert not torch.equal(learner(seed=2).drawn(2)[0], texts[2])


def test_what_goes_wrong_while_text_is_drawn_is_told_by_the_step_that_needs_it():
    each = learner(corpus := Slow())
    each.text(0, then=1)
    each.text.made.result()
    corpus.fails = True
    each.text(1, then=2)
    with pytest.raises(BadInput, match="the disk is gone"):
        each.step(2)


def test_text_for_a_gpu_is_pinned(monkeypatch):
    pinned, each = [], learner()
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda a: (pinned.append(a), a)[1])
    each.drawn(0)
    assert not pinned
    each.device = torch.device("cuda")
    assert all(any(a is b for b in pinned) for a in each.drawn(0) if a is not None) and pinned


# ---- memory for time

def gradients(each, x):
    """-> the gradients of one loss, and the bytes that autograd kept for them beside what goes into blocks"""
    kept = {}

    def pack(a):
        kept[a.untyped_storage().data_ptr()] = a.untyped_storage().nbytes()
        return a
    torch.manual_seed(5)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda a: a):
        loss = each.objective.loss(each.denoiser, x).mean()
    size = sum(kept.values())
    loss.backward()
    return [p.grad for p in each.model.parameters()], size


@pytest.mark.parametrize("method, dtype", [("mdlm", "float32"), ("udlm", "float32"), ("pgm", "float32")])
def test_what_is_computed_again_gives_the_same_gradient_from_a_fraction_of_the_memory(method, dtype):
    flags = dict(method=method, n_layer=6, n_embd=32, dropout=0.1, batch_size=8)
    plain, again = learner(**flags), learner(**flags, recompute=True)
    for each in (plain, again):
        for p in each.model.parameters():
            p.data += 0.1 * torch.linspace(-1, 1, p.numel()).view_as(p)      # gates open
    x, _, _ = plain.drawn(0)                                                                            # (B, L)
    (expected, much), (found, little) = gradients(plain, x), gradients(again, x)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    into_blocks = 6 * x.numel() * 32 * 4
    assert little + into_blocks < 0.35 * much


def test_recomputing_changes_nothing_else():
    one, two = fit("one", dropout=0.2, max_iters=3), fit("two", dropout=0.2, max_iters=3, recompute=True)
    torch.testing.assert_close(one["ema"], two["ema"], rtol=0, atol=0)


def test_the_precision_of_products_is_that_of_the_flag():
    fit("out", matmul_precision="medium")
    assert torch.get_float32_matmul_precision() == "medium"
    assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    fit("out", init_from="resume", max_iters=3, matmul_precision="highest")
    assert torch.get_float32_matmul_precision() == "highest"
    assert torch.backends.mkldnn.matmul.fp32_precision in ("none", "ieee")


# ---- what follows the gradient

def test_the_average_is_that_of_torch():
    each = learner(ema=0.6)
    theirs = AveragedModel(each.model)
    for step in range(14):
        each.step(step)
        theirs.multi_avg_fn = get_ema_multi_avg_fn(min(0.6, (1 + step) / (10 + step)))
        theirs.update_parameters(each.model)
    torch.testing.assert_close(each.average.state_dict(), theirs.module.state_dict(), rtol=0, atol=0)
    state = each.state(14)                                   # and it is what a checkpoint keeps as such
    torch.testing.assert_close(dict(state["ema"]), dict(theirs.module.state_dict()), rtol=0, atol=0)
    torch.testing.assert_close(dict(state["model"]), dict(each.model.state_dict()), rtol=0, atol=0)
    assert any(not torch.equal(state["ema"][name], a) for name, a in state["model"].items())


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has no Muon of its own")
@pytest.mark.parametrize("at_once", [1, 1 << 28])
def test_muon_is_that_of_torch(at_once, monkeypatch):
    monkeypatch.setattr(optim, "AT_ONCE", at_once)
    torch.manual_seed(0)
    shapes = (96, 32), (32, 32), (96, 32), (32, 128), (32, 32), (128, 32)
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = copy.deepcopy(ours)
    pair = optim.Muon(ours, lr=0.05, weight_decay=0.1), torch.optim.Muon(theirs, lr=0.05, weight_decay=0.1)
    for _ in range(5):
        for p, q in zip(ours, theirs):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        ours[1].grad = theirs[1].grad = None                 # one that took no part
        for optimizer in pair:
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    for p, q in zip(ours, theirs):
        torch.testing.assert_close(dict(pair[0].state[p]), dict(pair[1].state[q]), rtol=0, atol=0)


def test_the_move_of_muon_is_nearly_orthogonal_along_the_gradient():
    torch.manual_seed(0)
    x = torch.randn(3, 8, 20) @ torch.diag_embed(torch.logspace(-1, 1, 20))                             # (3, 8, 20)
    for a in (x, x.mT):
        u, s, v = torch.linalg.svd(a, full_matrices=False)
        mixed = u.mT @ optim.orthogonal(a).float() @ v.mT                                               # (3, 8, 8)
        values = mixed.diagonal(dim1=1, dim2=2)                                                         # (3, 8)
        assert 0.6 < values.min() and values.max() < 1.3
        assert (mixed - torch.diag_embed(values)).abs().max() < 0.06                                    # bfloat16
    assert math.isfinite(optim.orthogonal(torch.zeros(1, 4, 4)).sum())


# ---- the recipes of claims.recipe

@pytest.mark.parametrize("weighting, choices", [
    ("simple", dict(told=False, even=True, simple=True)), ("bound", dict(told=False, even=True))])
def test_the_recipes_at_both_ends_are_the_losses_of_mdlm(weighting, choices):
    each = learner(method="mdlm")
    x, losses = each.drawn(0)[0], []
    for method in (MDLM(each.method.n_tokens, weighting), Recipe(each.method.n_tokens, **choices)):
        torch.manual_seed(3)
        losses.append(method.loss(each.model, x))
    torch.testing.assert_close(*losses, rtol=0, atol=0)


def test_opposite_masks_cover_every_token_once(monkeypatch):
    each, seen = Recipe(5, pairs=True), []
    monkeypatch.setattr(each, "cross_entropy", lambda denoiser, x, z, t: (seen.append((z, t)), torch.ones(x.shape))[1])
    each.loss(None, torch.zeros(6, 40, dtype=torch.long))
    (z, t), masked = seen[0], seen[0][0] == each.process.mask                                           # (6, 40)
    assert (masked[:3] ^ masked[3:]).all() and torch.equal(t[:3], 1 - t[3:])
    assert 0 < masked[:3].float().mean() < 1 and z.shape == (6, 40)


def test_gradients_of_a_cuda_graph_are_copied_before_the_next_micro_batch_writes_over_them(monkeypatch):
    """A network stands for the compiled one whose gradients are gone as soon as it is called again."""
    flags = dict(gradient_accumulation_steps=3, max_iters=3)
    flags["compile"], calls, lent = "reduce-overhead", [], []
    monkeypatch.setattr(Learner, "bound", lambda *a, **options: (0.0, 0.0))
    monkeypatch.setattr(torch, "compile", lambda net, **options: net)
    expected = fit("plain", **flags)

    def graphed(net, **options):
        def hand_over(p):
            if len(calls) % 3 == 1:                          # the gradient is that of the graph, not a sum with it
                lent.append(p.grad)

        def forward(*a, **layout):
            if len(calls) % 3:                               # from step to step the optimizer had them all
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


@pytest.mark.parametrize("capability, dtype", [((7, 5), "float32"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")])
def test_gpus_that_only_emulate_bfloat16_take_float32(capability, dtype, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert checkpoint.dtype_of("auto", torch.device("cuda:1")) == dtype


def test_shards_need_processes_and_a_schedule_inside_the_network(capsys):
    assert "--shard spreads the weights over processes, and there is one" in complaint(
        train, *tiny(shard=True, out_dir="out"), capsys=capsys)
    assert "--shard cannot spread genmd4" in complaint(
        train, *tiny(shard=True, method="genmd4", out_dir="out"), capsys=capsys)
