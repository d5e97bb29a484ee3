"""The noise-aware classifier: its network and its loss, and that it learns the exact posterior."""
import pytest
import torch
import torch.nn.functional as F

import train
import world
from checkpoints.build import build_method, build_network
from data import load_data
from data.base import Dataset
from diffusion import Labeled, likelihood
from evaluation.held_out import TIMES, classifier_by_noise
from flags import UserError, configure, load_row
from methods import METHODS, make_method
from oracle import exact_classifier
from runs import TINY
from runtime.trainer import Trainer


def config_of(**flags):
    return configure(train.Config, **{**TINY, "method": "classifier", "muon_dtype": "float32",
                                      **flags})


class OneWord(Dataset):
    """Every text repeats the number of its class: the only chance is the noise."""
    classes, block_size = ("a", "b", "c", "d"), 4
    encoding = load_data("toy", 4).encoding

    def examples(self, split, n, generator=None):
        label = torch.randint(4, (n,), generator=generator)  # (n,)
        return label[:, None].expand(-1, 4).contiguous(), None, label

    def example_windows(self, split="val", most=None):
        return self.examples(split, most, torch.Generator().manual_seed(3))


@pytest.mark.parametrize("noise", ["mdlm", "udlm", "gidd"])
def test_it_learns_the_exact_posterior_where_that_is_known(noise):
    """p(y | z) ~ prod_l q(z_l | y) of a text whose words are all the number of the class."""
    config = config_of(noise_of=noise, block_size=4, n_embd=32, cond_dim=16, ema=0.9,
                       batch_size=64, max_iters=110)
    method = build_method(config, OneWord.encoding)
    trainer = Trainer(config, OneWord(), method, torch.device("cpu"))
    for step in range(110):
        train.train_step(trainer, step)

    def exact(z, t):
        e = likelihood(method.process, z, t.double().clamp(1e-6, 1 - 1e-6))  # (B, L, N)
        return e.clamp(min=1e-30).log().sum(1)[:, :4]  # (B, 4)
    x, _, label = OneWord().example_windows("val", 1000)
    rows = classifier_by_noise(method.noisy, [trainer.average, exact], x, label, TIMES)
    for t, ((nats, right), (least, most)) in rows.items():
        sure = least < 0.5  # elsewhere classes tie, and who is right is chance
        assert nats.mean() < least.mean() + 0.1
        assert (-nats).exp().mean() > (-least).exp().mean() - 0.04
        assert sure.any()
        assert right[sure].double().mean() > most[sure].double().mean() - 0.04
    mean = sum(float(rows[t][1][0].mean()) for t in TIMES) / 5
    assert trainer.bound("val", 1000)[0] == pytest.approx(mean, abs=0.15)


def test_its_logits_are_the_mean_over_the_text_of_those_of_its_head():
    net = build_network(config_of(), make_method("classifier", 11), 3)
    z, t = torch.randint(12, (5, 8)), torch.rand(5, 1)
    assert (net(z, t) == 0).all()  # as the report of step 0 says: all classes are equally likely
    for layer in (net.adaln, net.head):
        torch.nn.init.normal_(layer.weight)
    seen = []
    net.head.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    logits = net(z, t)
    assert logits.shape == (5, 3)
    torch.testing.assert_close(logits, net.head(seen[0].mean(1)))
    torch.testing.assert_close(net(F.one_hot(z, 12).float(), t), logits)  # weights over symbols
    late = torch.cat([t, torch.zeros(5, 7)], 1)  # of times per token the latest counts
    assert torch.equal(net(z, late), logits) and not torch.equal(net(z, t * 0.5), logits)


def test_the_loss_is_the_cross_entropy_of_the_class_at_one_time_in_each_stratum():
    method, times = make_method("classifier", 5), []

    def spy(z, t):
        times.append(t)
        assert abs((z == 5).double().mean() - 0.5) < 0.05
        return torch.tensor([1.0, 2.0]).expand(len(z), -1)
    x = torch.randint(5, (400, 16))
    nats = method.loss(Labeled(spy, torch.ones(400, dtype=torch.long)), x)
    assert nats.shape == (400, 1)
    torch.testing.assert_close(nats[0], torch.tensor([1.0, 2.0]).logsumexp(0)[None] - 2)
    strata = (times[0].flatten().sort().values * 400).floor()
    assert strata.tolist() == list(range(400))


@pytest.mark.parametrize("noise", METHODS)
def test_it_reads_the_noise_of_any_method_that_a_classifier_can_guide(noise):
    """With that method's flags. The others are refused in one line."""
    row = load_row(METHODS, noise)
    if row.classifies or make_method(noise, 5).classifier_process is None:
        if not row.classifies:
            with pytest.raises(UserError, match=f"no classifier can guide {noise}: give another"):
                make_method("classifier", 5, noise_of=noise)
        return
    method = make_method("classifier", 5, noise_of=noise, p_uniform=0.3)
    theirs = make_method(noise, 5, p_uniform=0.3)
    assert type(method.process) is type(theirs.classifier_process)
    assert method.vocab_size == method.process.V
    assert vars(method.process).get("scale") == vars(theirs.classifier_process).get("scale")


@pytest.mark.parametrize("name", world.PROCESSES)
def test_the_exact_classifier_of_a_language_is_bayes_rule(name):
    """On the world of 27 texts, for ids, and for weights over symbols that are certain."""
    process = world.PROCESSES[name]
    z, t = world.states(process), torch.full((process.V ** 3, 1), 0.4, dtype=torch.float64)
    judge = exact_classifier(world.LANGUAGE, process)
    exact = world.classifier(process)(z, t)
    torch.testing.assert_close(judge(z, t), exact, atol=1e-8, rtol=1e-8)
    one_hot = F.one_hot(z, process.V).double()
    torch.testing.assert_close(judge(one_hot, t), exact, atol=1e-8, rtol=1e-8)
