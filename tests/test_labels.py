"""Class labels: they reach the network in training, are kept in the checkpoint, and a share of texts goes without."""
import pytest
import torch
from runs import cache, complaint, elsewhere, fit  # noqa: F401

import train
from checkpoint import restore
from data.text import load
from model import Told


def test_a_network_learns_what_its_label_tells(tmp_path):
    """One word per topic is all there is to learn: given the topic, nothing is left to guess."""
    class Topics:
        name, about, classes, block_size, bytes_per_token = "toy", "", ("farm", "sea", "kitchen", "school"), 4, 1.0

        def __init__(self, corpus):
            self.encoding = corpus.encoding

        def examples(self, split, n, generator=None):
            label = torch.randint(4, (n,), generator=generator)                                         # (n,)
            return label[:, None].expand(-1, 4).contiguous(), None, label

        def example_windows(self, split, most):
            return self.examples(split, most)

    config = train.Config(data="toy", labels=True, block_size=4, n_layer=1, n_embd=32, n_head=2, cond_dim=16, ema=0.9,
                          batch_size=32, max_iters=60, warmup_iters=0, label_dropout=0.0, dtype="float32")
    learner = train.Learner(config, Topics(load("toy", 4)), torch.device("cpu"))
    for step in range(60):
        learner.step(step)
    assert learner.bound("val", 64)[0] < 0.05                # without labels at least log(4) / 4 = 0.35


def test_every_text_goes_without_its_label_if_asked(tmp_path):
    config = train.Config(data="toy", labels=True, block_size=8, n_layer=1, n_embd=16, n_head=2, cond_dim=8)
    learner = train.Learner(config, load("toy", 8), torch.device("cpu"))
    label = torch.randint(4, (1000,))
    assert (learner.told(label, 1.0).label == 4).all() and (learner.told(label, 0.0).label == label).all()
    assert 0.06 < (learner.told(label, 0.1).label == 4).double().mean() < 0.14


@pytest.mark.parametrize("method", ["ar", "mdlm", "bd3lm", "pgm", "udlm", "gidd", "duo"])
def test_a_checkpoint_remembers_its_classes(method, tmp_path):
    fit(tmp_path / "out", method=method, labels=True, label_dropout=0.5)
    model = restore(tmp_path / "out")
    assert model.classes == ["farm", "sea", "kitchen", "school"]
    x, _, label = load("toy", 8).examples("train", 2)
    nats = model.method.nelbo(Told(model.denoiser, label), x)
    assert nats.shape == (2, 8) and nats.isfinite().all()


@pytest.mark.parametrize("method, told", [("mdlm", False), ("md4", False), ("pgm", False), ("udlm", True)])
def test_labels_bring_no_clock_to_networks_that_need_none(method, told, tmp_path):
    """The time of md4's schedule is not its share of masks, and pgm's two groups have two: they would be told both."""
    config = fit(tmp_path / "out", method=method, labels=True, max_iters=1)["config"]
    network = restore(tmp_path / "out").denoiser
    assert config["clock"] == ("auto" if told else "none")
    assert (network.clock(torch.tensor([0.3])) != 0) == told
    assert fit(tmp_path / "out", init_from="resume", max_iters=2)["config"]["clock"] == config["clock"]


def test_no_label_is_the_label_of_none(tmp_path):
    """A network that knows classes takes silence for its class "none", which it has seen in training."""
    fit(tmp_path / "out", labels=True, label_dropout=1.0)
    net = restore(tmp_path / "out").denoiser
    z = torch.full((3, 8), net.vocab_size - 1)
    t = torch.ones(3, 1)
    torch.testing.assert_close(net(z, t), net(z, t, label=torch.full((3,), 4)), rtol=0, atol=0)


def test_labels_need_a_text_that_has_them(capsys, tmp_path):
    (tmp_path / "text.txt").write_text("some text " * 1000)
    assert "has none" in complaint(train, "--labels", "--data", tmp_path / "text.txt", "--out_dir", tmp_path / "o",
                                   capsys=capsys)
