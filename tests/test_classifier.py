"""The noise-aware classifier: it learns, is told apart from language models, and guides them; every flag."""
import contextlib
import json

import pytest
import torch
import torch.nn.functional as F
from runs import cache, complaint, elsewhere, fit, one_thread  # noqa: F401

import checkpoint
import evaluate
import report
import sample
import train
from checkpoint import restore
from classifier import Classifier
from data.text import load
from diffusion import likelihood
from masked import Absorbing
from md4 import Scheduled
from guidance import ClassifierFree
from methods import METHODS, make_method
from model import Cache, Told, new_cache
from uniform import Hybrid, Uniform


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A folder with a labelled checkpoint of each method, two unlabelled ones, and a classifier of masks."""
    root = tmp_path_factory.mktemp("labelled")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(None), one_thread():
        for name in ("report", "final"):
            patch.setattr(train, name, lambda *args: None)
        for method in METHODS:
            fit(root / method, method=method, labels=True, max_iters=20, learning_rate=0.02)
        fit(root / "judge", method="classifier")
        for method in ("mdlm", "udlm"):
            fit(root / f"plain-{method}", method=method)
    return root


def config(**flags):
    return train.Config(**{**dict(data="toy", method="classifier", labels=True, label_dropout=0.0, block_size=4,
                                  n_layer=1, n_embd=32, n_head=2, cond_dim=16, ema=0.9, batch_size=64, max_iters=110,
                                  eval_iters=2, warmup_iters=0, dtype="float32", device="cpu"), **flags})


class Topics:
    """Every word of a text is the number of its class: the only chance is the noise."""
    name, about, classes, block_size = "four", "", ("a", "b", "c", "d"), 4

    def __init__(self):
        self.encoding = load("toy", 4).encoding

    def examples(self, split, n, generator=None):
        label = torch.randint(4, (n,), generator=generator)                                             # (n,)
        return label[:, None].expand(-1, 4).contiguous(), None, label

    def example_windows(self, split, most):
        torch.manual_seed(3)
        return self.examples(split, most)


@pytest.mark.parametrize("noise", ["mdlm", "udlm", "gidd"])
def test_it_learns_the_exact_posterior_where_that_is_known(noise):
    """p(y | z) ~ prod_l q(z_l | y) of a text whose words all name the class."""
    learner = train.Learner(config(noise_of=noise), Topics(), torch.device("cpu"))
    for step in range(110):
        learner.step(step)

    def exact(z, t):
        e = likelihood(learner.method.process, z, t.double().clamp(1e-6, 1 - 1e-6))                     # (B, L, N)
        return (e.clamp(min=1e-30).log().sum(1)[:, :4])                                                 # (B, 4)
    ours, best = (evaluate.examine(learner.method.process, [judge], *Topics().example_windows("val", 1000)[::2],
                                   evaluate.TIMES) for judge in (learner.average, exact))
    for t in evaluate.TIMES:
        (nats, right), (least, most) = ours[t][0], best[t][0]
        sure = least < 0.5                                   # elsewhere classes tie, and who is right is luck
        assert nats.mean() < least.mean() + 0.1 and (-nats).exp().mean() > (-least).exp().mean() - 0.04
        assert sure.any() and right[sure].double().mean() > most[sure].double().mean() - 0.04
    nats, error = learner.bound("val", 1000)
    assert nats == pytest.approx(sum(float(best[t][0][0].mean()) for t in evaluate.TIMES) / 5, abs=0.15)


def test_its_logits_are_the_mean_over_the_text_of_what_its_head_says():
    net = checkpoint.network(config(), make_method("classifier", 11), 3)
    z, t = torch.randint(12, (5, 8)), torch.rand(5, 1)
    assert (net(z, t) == 0).all()                            # as the report of step 0 says: all are equally likely
    for layer in (net.adaln, net.head):
        torch.nn.init.normal_(layer.weight)
    net.head.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    seen = []
    logits = net(z, t)
    assert logits.shape == (5, 3)
    torch.testing.assert_close(logits, net.head(seen[0].mean(1)))
    torch.testing.assert_close(net(F.one_hot(z, 12).float(), t), logits)                # weights over symbols
    late = torch.cat([t, torch.zeros(5, 7)], 1)
    assert torch.equal(net(z, late), logits) and not torch.equal(net(z, t * 0.5), logits)


def test_the_loss_is_the_cross_entropy_of_the_class_at_times_one_in_each_stratum():
    method, times = Classifier(Absorbing(5)), []

    def spy(z, t):
        times.append(t)
        assert abs((z == 5).double().mean() - 0.5) < 0.05
        return torch.tensor([1.0, 2.0]).expand(len(z), -1)
    x = torch.randint(5, (400, 16))
    nats = method.loss(Told(spy, torch.ones(400, dtype=torch.long)), x)
    assert nats.shape == (400, 1) and float(nats[0]) == pytest.approx(float(torch.tensor([1.0, 2.0]).logsumexp(0) - 2))
    assert (times[0].flatten().sort().values * 400).floor().tolist() == list(range(400))


@pytest.mark.parametrize("noise, process", [("mdlm", Absorbing), ("md4", Scheduled), ("udlm", Uniform),
                                            ("gidd", Hybrid)])
def test_a_classifier_is_trained_examined_and_guides(noise, process, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(train, "final", report.final if noise == "mdlm" else lambda learner: None)
        state = fit("judge", method="classifier", noise_of=noise, p_uniform=0.3, max_iters=3, eval_interval=2)
    printed = capsys.readouterr().out
    assert "all 4 classes are equally likely to it: 1.386" in printed and "nats/text" in printed
    assert "bits" not in printed and (noise != "mdlm" or "exact" in printed and printed.count("+-") > 20)
    assert state["classes"] == ["farm", "sea", "kitchen", "school"] and state["config"]["label_dropout"] == 0
    assert isinstance(restore("judge").method.process, process)
    evaluate.main(evaluate.Config(out_dir="judge", max_texts=40, json=True))
    rows = json.loads(capsys.readouterr().out)
    assert [row["t"] for row in rows] == list(evaluate.TIMES) and rows[0]["exact_nats"] < rows[0]["nats"]
    fit("model", method=noise, p_uniform=0.3)
    flags = dict(out_dir="model", label="sea", guidance=2.0, classifier="judge", steps=2, device="cpu")
    for order in ("first", "exact"):
        sample.main(sample.Config(**flags, classifier_order=order, num_samples=2))
    evaluate.main(evaluate.Config(**flags, max_texts=60, num_samples=2, draws=1))
    assert "exact p(class | text)" in capsys.readouterr().out
    fit("judge", method="classifier", noise_of=noise, p_uniform=0.3, init_from="resume", max_iters=5)
    assert restore("judge").step == 5


def test_a_classifier_is_examined_on_the_split_that_is_asked_for(capsys):
    fit("judge", method="classifier")
    nats = []
    for split in ("val", "test"):
        evaluate.main(evaluate.Config(out_dir="judge", max_texts=20, split=split, json=True))
        nats.append(json.loads(capsys.readouterr().out.splitlines()[-1])[0]["exact_nats"])
    assert nats[0] != nats[1]


@pytest.mark.parametrize("method", ["radd", "pgm", "ar"])
def test_a_classifier_of_masks_guides_what_has_masks_or_a_beginning(method, labelled, capsys):
    for extra in (dict(), dict(candidates=3)):
        sample.main(sample.Config(out_dir=labelled / method, label="2", guidance=2.0, classifier=labelled / "judge",
                                  steps=2, **extra))
    assert len(capsys.readouterr().out) > 100


@pytest.mark.parametrize("method", METHODS)
def test_labelled_networks_of_every_method_are_sampled_and_evaluated_at_every_strength(method, labelled, capsys):
    out = labelled / method
    for gamma in (0.0, 2.0):
        sample.main(sample.Config(out_dir=out, label="kitchen", guidance=gamma, steps=2, json=True, num_samples=1))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith('{"text')]
    assert [line["guidance"] for line in lines] == [0, 2] and lines[0]["label"] == "kitchen"
    evaluate.main(evaluate.Config(out_dir=out, label="sea", guidance=2.0, max_texts=30, num_samples=2, draws=1,
                                  steps=2))
    printed = capsys.readouterr().out
    assert "given the class" in printed and "the model is" in printed


@pytest.mark.parametrize("method, sampler", [("mdlm", "first-hitting"), ("mdlm", "confidence"), ("mdlm", "psi"),
                                             ("mdlm", "semi-ar"), ("pgm", "first-hitting"), ("bd3lm", "confidence"),
                                             ("mdlm", "remdm-conf"), ("mdlm", "top-k"), ("md4", "ancestral")])
def test_every_sampler_of_masks_can_be_guided(method, sampler, labelled, capsys):
    cached = dict(cache="dual", decode_block=4) if sampler == "semi-ar" else {}
    sample.main(sample.Config(out_dir=labelled / method, label="1", guidance=3.0, sampler=sampler, steps=4, **cached))
    assert capsys.readouterr().out.count("text") >= 3


@pytest.mark.parametrize("method", ["ar", "bd3lm"])
@pytest.mark.parametrize("stop", [None, 7])
def test_two_rows_of_a_cache_for_each_text_are_the_text_read_anew(method, stop, labelled):
    """Guided samples with keys and values kept, and without, to the bit; also when texts end and leave the batch."""
    model = restore(labelled / method)
    model.method.stop = stop
    samples = []
    for keeps in (True, False):
        guided = ClassifierFree(model.denoiser, torch.tensor([1]), 4, 2.0)
        guided.caches = guided.caches * keeps
        assert new_cache(guided, 8, 1) is None or new_cache(guided, 8, 1).copies == 2
        torch.manual_seed(0)
        z = model.method.prior((200, 8))
        *_, z = model.method.sample(guided, z, torch.zeros_like(z, dtype=torch.bool), 4)
        samples.append(z)
    assert torch.equal(*samples) and (stop is None or (samples[0][:, -1] == stop).any())


def test_a_cache_lets_both_rows_of_a_text_go():
    cache = Cache(2)
    cache.copies = 2
    cache.write(0, *torch.arange(6.0).view(1, 6, 1, 1, 1).expand(2, -1, 1, 1, 2))
    cache.select(torch.tensor([0, 2]))
    assert cache.k[0][:, 0, 0, 0].tolist() == [0, 2, 3, 5]


@pytest.mark.parametrize("argv, says", [
    (["--label", "farm"], "the model knows no classes; train it with --labels, or give a --classifier"),
    (["--label", "frm", "--oracle", "mdlm"], "there is no class 'frm' (did you mean farm?): give one of farm, sea"),
    (["--label", "4", "--oracle", "mdlm"], "or its number, 0 to 3"),
    (["--guidance", "2", "--oracle", "mdlm"], "something to lean on: a --label"),
    (["--classifier", "exact"], "needs a --label"),
    (["--guidance=-1"], "between"),
    (["--label", "farm", "--classifier", "nowhere"], "there is no checkpoint nowhere/ckpt.pt"),
    (["--label", "farm", "--classifier", "MDLM"], "must be a run of train.py --method classifier"),
    (["--label", "farm", "--classifier", "judge", "--out_dir", "UDLM"], "reads the noise of mdlm, which is not that"),
    (["--label", "farm", "--classifier", "exact", "--sampler", "psi"], "a step of its own here"),
    (["--label", "farm", "--guidance", "2", "--oracle", "udlm", "--sampler", "psi"], "leave out --sampler and --tail"),
    (["--label", "farm", "--guidance", "2", "--oracle", "udlm", "--tail", "greedy"], "leave out --sampler and --tail"),
    (["--label", "farm", "--classifier", "exact", "--oracle", "bd3lm"], "train them with --labels"),
    (["--label", "farm", "--classifier", "exact", "--oracle", "genmd4"], "train them with --labels"),
    (["--out_dir", "judge"], "judge is a classifier, which writes no text: give it to --classifier"),
])
def test_what_cannot_be_guided_is_one_line(argv, says, labelled, capsys):
    known = {"judge": labelled / "judge", "MDLM": labelled / "plain-mdlm", "UDLM": labelled / "plain-udlm"}
    argv = [str(known.get(word, word)) for word in argv]
    for module in (sample, evaluate):
        if module is evaluate and "writes no text" in says:  # it examines classifiers
            continue
        assert says in complaint(module, "--out_dir", known["MDLM"], *argv, capsys=capsys)


def test_a_classifier_is_no_start_and_needs_classes(labelled, tmp_path, capsys):
    judge = labelled / "judge"
    assert "needs another" in complaint(train, "--data", "toy", "--init_from", judge, "--n_layer", 1, "--n_embd", 16,
                                        "--n_head", 2, "--block_size", 8, "--cond_dim", 8, capsys=capsys)
    (tmp_path / "text.txt").write_text("some text " * 1000)
    assert "has none" in complaint(train, "--method", "classifier", "--data", tmp_path / "text.txt", capsys=capsys)
    assert "--noise_of udlm does not fit" in complaint(train, "--out_dir", judge, "--init_from", "resume",
                                                       "--noise_of", "udlm", capsys=capsys)
