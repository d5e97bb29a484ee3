"""Classes: they reach the network in training, are in the checkpoint, and a share of texts goes
without."""
import pytest
import torch

import train
from checkpoints.build import build_method
from checkpoints.load import load_model
from data import load_data
from data.base import Dataset
from diffusion import Labeled
from flags import configure, load_row
from kinds import networks, scripts_differ
from methods import METHODS
from methods.latent import Latent
from runs import TINY, cache, complaint, elsewhere, fit  # noqa: F401
from runtime.trainer import Trainer

TOPICS = ["farm", "sea", "kitchen", "school"]
CPU = torch.device("cpu")


def make_trainer(data, **flags):
    config = configure(train.Config, **{**TINY, "labels": True, "muon_dtype": "float32", **flags})
    return Trainer(config, data, build_method(config, data.encoding), CPU)


class OneWord(Dataset):
    """Every text repeats the number of its class: given the class, nothing is left to predict."""
    classes, block_size, bytes_per_token = TOPICS, 4, 1.0
    encoding = load_data("toy", 4).encoding

    def examples(self, split, n, generator=None):
        label = torch.randint(4, (n,), generator=generator)  # (n,)
        return label[:, None].expand(-1, 4).contiguous(), None, label  # (n, 4), None, (n,)

    def example_windows(self, split="val", most=None):
        return self.examples(split, most, torch.Generator().manual_seed(3))


def test_a_network_learns_what_its_label_says():
    trainer = make_trainer(OneWord(), block_size=4, n_embd=32, cond_dim=16, ema=0.9, batch_size=32,
                           max_iters=60, label_dropout=0.0)
    for step in range(60):
        train.train_step(trainer, step)
    assert trainer.bound("val", 64)[0] < 0.05  # without labels at least log(4) / 4 = 0.35


@pytest.mark.parametrize("share, least, most", [(0.0, 0, 0), (0.1, 0.06, 0.14), (1.0, 1, 1)])
def test_a_share_of_the_texts_goes_without_its_label(share, least, most):
    trainer = make_trainer(load_data("toy", 8), label_dropout=share)
    label = torch.randint(4, (1000,))  # (1000,)
    given = trainer.denoiser_for(label).label  # (1000,)
    assert least <= (given == 4).double().mean() <= most
    assert (given[given != 4] == label[given != 4]).all()


@pytest.mark.parametrize("method", scripts_differ(METHODS, by=networks))
def test_a_checkpoint_remembers_its_classes_and_the_network_conditions_on_them(method):
    share = 0.0 if load_row(METHODS, method).classifies else 0.5
    fit("out", method=method, labels=True, label_dropout=share, batch_size=3, learning_rate=0.1,
        max_iters=4)
    model = load_model("out")
    assert model.classes == TOPICS and not model.denoiser.training
    x, _, label = load_data("toy", 8).examples("train", 3)  # (3, 8), None, (3,)
    draws = []
    for shift in (0, 0, 1):
        torch.manual_seed(0)
        draws.append(model.method.nelbo(Labeled(model.denoiser, (label + shift) % 4), x))
    assert draws[0].isfinite().all() and draws[0].shape == (3, 1 if model.method.classifies else 8)
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("method", scripts_differ(
    [name for name in METHODS if not issubclass(load_row(METHODS, name), Latent)], by=networks))
def test_labels_bring_no_time_to_networks_that_need_none(method):
    """The condition is there for the class; where masks show the time, it is not read."""
    needs = load_row(METHODS, method).uses_time
    config = fit("out", method=method, labels=True, max_iters=1)["config"]
    assert config["time_input"] == ("auto" if needs else "none")
    network = load_model("out").denoiser
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.3)
    x = torch.zeros(2, 8, dtype=torch.long)  # (2, 8)
    if "ddpm" in (load_row(METHODS, method).samplers or ()):  # rows of embeddings
        space = getattr(network, "space", None)
        width = space.D * (1 + space.feeds_back) if space else network.embed.shape[0]
        x = torch.ones(2, 8, width)  # (2, 8, D|2D)
    if "bfn" in (load_row(METHODS, method).samplers or ()):  # evidence, and the last prediction
        x = torch.ones(2, 8, 2 * network.embed.shape[0])  # (2, 8, 2 V)
    early, late = (network(x, torch.full((2, 1), t)) for t in (0.2, 0.8))  # (2, 8, V) each
    assert torch.equal(early, late) == (not needs)


def test_a_resumed_run_reads_what_it_read_of_the_time():
    for method in ("mdlm", "udlm"):
        config = fit(method, method=method, labels=True, max_iters=1)["config"]
        again = fit(method, init_from="resume", max_iters=2)["config"]
        assert again["time_input"] == config["time_input"]


def test_no_label_is_the_label_of_none():
    """A network with classes reads a call without one as class "none", which it was trained on."""
    fit("out", labels=True, label_dropout=1.0)
    net = load_model("out").denoiser
    z, t = torch.full((3, 8), net.vocab_size - 1), torch.ones(3, 1)  # (3, 8), (3, 1)
    none = net(z, t, label=torch.full((3,), 4))  # (3, 8, V)
    torch.testing.assert_close(net(z, t), none, rtol=0, atol=0)


@pytest.mark.parametrize("words", [["--labels"], ["--method", "classifier"]])
def test_labels_need_a_text_that_has_them(words, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("some text " * 1000)
    error = complaint(train, *words, "--data", "text.txt", "--out_dir", "out", capsys=capsys)
    assert "--labels needs texts with classes, such as --data toy: text.txt has none" in error
