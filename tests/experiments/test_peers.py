"""Public code beside ours: it is trained by its own script, and scored by the same bound. Stand-ins
with the same layout take the place of the codes, which are not in this repository."""
import contextlib
import io
import json
import os
import runpy
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from experiments import peers, speed
from flags import UserError, configure
from methods import make_method
from runs import cache, complaint, elsewhere  # noqa: F401

GPT_MODEL = '''
from dataclasses import dataclass
import torch, torch.nn as nn, torch.nn.functional as F
@dataclass
class GPTConfig:
    vocab_size: int = 1
    block_size: int = 1
    n_layer: int = 1
class GPT(nn.Module):
    """The next character depends on the last one alone."""
    def __init__(self, config):
        super().__init__()
        print("number of parameters: some")
        self.config, self.lm_head = config, nn.Embedding(config.vocab_size, config.vocab_size)
    def forward(self, idx, targets=None):
        logits = self.lm_head(idx)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return logits, loss
'''
GPT_TRAIN = '''
import ast, pickle, sys, numpy as np, torch
import os
from model import GPT, GPTConfig
config_file, *words = sys.argv[1:]
exec(open(config_file).read())
given = dict(word[2:].split("=") for word in words)
data = np.fromfile(f"data/{given['dataset']}/train.bin", dtype=np.uint16).astype(np.int64)
meta = pickle.load(open(f"data/{given['dataset']}/meta.pkl", "rb"))
args = dict(vocab_size=meta["vocab_size"], block_size=int(given["block_size"]))
torch.manual_seed(1337)
network = GPT(GPTConfig(**args))
adam, x = torch.optim.Adam(network.parameters(), learning_rate), torch.from_numpy(data)
for step in range(int(given["max_iters"])):
    _, loss = network(x[None, :-1], x[None, 1:])
    adam.zero_grad(); loss.backward(); adam.step()
os.makedirs(given["out_dir"], exist_ok=True)
torch.save({"model": network.state_dict(), "model_args": args}, given["out_dir"] + "/ckpt.pt")
'''
MASKED_MODEL = '''
from dataclasses import dataclass
import torch, torch.nn as nn
@dataclass
class DiffusionConfig:
    sequence_len: int = 256
    vocab_size: int = 128
    n_layer: int = 6
    n_head: int = 6
    n_embd: int = 384
    diffusion_steps: int = 8
    context_len: int = 16
class DiffusionTransformer(nn.Module):
    """Each character by its frequency."""
    def __init__(self, config):
        super().__init__()
        self.config, self.bias = config, nn.Parameter(torch.zeros(config.vocab_size))
    def forward(self, x_t, t):
        assert x_t.max() < 128 and ((0 <= t) & (t < self.config.diffusion_steps)).all()
        return self.bias.expand(*x_t.shape, -1)
'''
MASKED_TRAIN = '''
import os, sys, torch, torch.nn.functional as F
from model import DiffusionConfig, DiffusionTransformer
def get_data_loader(data_path, batch_size, seq_len):
    ids = torch.tensor([ord(c) for c in open(data_path).read()])
    assert batch_size == 12 and seq_len == 64
    while True:
        yield ids[None]
def train(model, data_loader, num_steps=10000, sample_interval=500):
    adam = torch.optim.Adam(model.parameters(), 0.2)
    for _ in range(num_steps):
        x = next(data_loader)
        loss = F.cross_entropy(model(x, torch.zeros(1).long()).flatten(0, 1), x.flatten())
        adam.zero_grad(); loss.backward(); adam.step()
def main():
    config = DiffusionConfig()
    model = DiffusionTransformer(config)
    train(model=model, data_loader=get_data_loader(
        data_path="data/tiny_shakespeare.txt", batch_size=64, seq_len=config.sequence_len))
    os.makedirs("weights", exist_ok=True)
    torch.save(model.state_dict(), "weights/diffusion_model.pt")
if __name__ == "__main__":
    main()
'''


@pytest.fixture
def codes(tmp_path):
    """Folders laid out as those of nanoGPT and tiny-diffusion."""
    gpt, masked = tmp_path / "gpt", tmp_path / "masked"
    for folder, files in ((gpt, {"model.py": GPT_MODEL, "train.py": GPT_TRAIN,
                                 "config/train_shakespeare_char.py": "learning_rate = 0.2\n"}),
                          (masked, {"model.py": MASKED_MODEL, "training.py": MASKED_TRAIN,
                                    "sample.py": ""})):
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
    return str(gpt), str(masked)


@pytest.fixture
def here(monkeypatch):
    """Commands run in this process, which has loaded torch; a step costs a tenth of a second."""
    steps = []

    def run(words, folder):
        found = [word for word in words if "max_iters=" in word]
        after = words[words.index("--max_iters") + 1] if "--max_iters" in words else None
        n = int(found[0].split("=")[1]) if found else int(after or json.loads(words[-1])[1])
        steps.append(n)
        script = words[1]
        if after:  # train.py of ours: so few steps of so small a network take no second
            small = {"--n_layer": "1", "--n_embd": "16", "--n_head": "2", "--batch_size": "4"}
            words[words.index("--max_iters") + 1] = str(min(n, 8))
            words = [*words, *sum(small.items(), ())]
        with monkeypatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
            patch.chdir(folder)
            patch.setattr(torch, "manual_seed", torch.manual_seed)  # which one of them replaces
            patch.setattr(sys, "argv", words[1:])
            if not after:  # their modules in place of ours, which come back at the end
                patch.syspath_prepend(folder)
                for name in ("model", "training", "sample"):
                    patch.setitem(sys.modules, name, None)
                    del sys.modules[name]
            try:
                runpy.run_path(script if os.path.isabs(script) else str(folder / script),
                               run_name="__main__")
            except SystemExit as end:
                assert not end.code
        return 2.0 + 0.1 * n
    monkeypatch.setattr(peers, "cpu_seconds", run)
    return steps


def test_each_code_is_trained_as_long_and_scored_on_the_same_characters(
        codes, here, tmp_path, capsys, monkeypatch):
    """The stand-ins learn p(next | last) and p(character), whose exact nats are known."""
    monkeypatch.setattr(peers, "FEW", (1, 3))
    text = "abacabab\u00e9 " * 1500
    (tmp_path / "text.txt").write_text(text, "utf-8")
    config = configure(speed.Config, command="peers", nanogpt=codes[0], nanodiff=codes[1],
                       data=str(tmp_path / "text.txt"), seconds=5, seeds=2,
                       out_dir=str(tmp_path / "out"))
    speed.main(config)
    out = capsys.readouterr().out
    said = json.loads((tmp_path / "out" / "peers" / "peers.json").read_text())
    rows = {row["code"]: row for row in said["rows"]}
    assert list(rows) == ["nanoGPT, exact", "tiny-diffusion, bound", "ours, ar", "ours, mdlm"]
    assert here == [1, 3, 50, 50] * 4 and all(row["steps"] == 50 for row in rows.values())
    for code in ("nanoGPT, exact", "ours, ar", "ours, mdlm"):  # the masked stand-in begins with 0
        (first, _), (second, _) = rows[code]["scores"]
        assert first != second and rows[code]["nats"] == (first + second) / 2
    assert all(row["cpu_seconds"] == pytest.approx(7) for row in rows.values())
    plain = text.encode("ascii", "replace").decode()
    pairs = {a + b: plain.count(a + b) for a in "abc? " for b in "abc? "}
    total = sum(pairs.values())
    bigram = -sum(n / total * np.log(n / sum(m for p, m in pairs.items() if p[0] == pair[0]))
                  for pair, n in pairs.items() if n)
    share = np.array([plain.count(c) / len(plain) for c in "abc? "])
    assert rows["nanoGPT, exact"]["nats"] == pytest.approx(bigram, abs=0.03)
    masked = rows["tiny-diffusion, bound"]
    assert masked["error"] < 0.02
    assert abs(masked["nats"] + (share * np.log(share)).sum()) < 4 * masked["error"]
    assert "5 CPU seconds of training each, seeds: 2" in out and "number of parameters" not in out
    assert 0 < rows["ours, mdlm"]["nats"] < 3 and rows["ours, ar"]["parameters"] > 0


def test_their_predictions_are_read_by_our_symbols_and_at_their_time():
    """z of our ids is given as ASCII with 0 for masks; a share of masks of (k + 1)/T is step k."""
    seen = []

    def network(x, t):
        seen.append((x.tolist(), t.tolist()))
        return torch.arange(128.0).expand(*x.shape, -1)  # (B, L, 128)
    network.config = SimpleNamespace(diffusion_steps=4)
    denoiser = peers.ascii_denoiser(network, ["a", "b"])
    z, at = torch.tensor([[0, 2], [1, 2]]), torch.tensor([[False, True], [True, True]])  # (B, L)
    logits = denoiser(z, torch.tensor([[0.5], [1.0]]), at)  # (N, 2)
    assert logits.tolist() == [[97.0, 98.0]] * 3
    assert seen == [([[97, 0], [98, 0]], [1, 3])]
    nats = peers.masked_nats(denoiser, SimpleNamespace(
        windows=lambda: (torch.ones(5, 64).long(), None),
        data=SimpleNamespace(encoding=SimpleNamespace(n_vocab=2))))  # (n,)
    assert torch.allclose(nats, torch.full_like(nats, 64 * np.log1p(np.exp(-1))), rtol=1e-6)
    assert make_method("mdlm", 2).process.mask == 2


def test_a_path_without_that_code_or_no_path_is_one_line(codes, tmp_path, capsys,
                                                         monkeypatch):
    said = complaint(speed, "--command", "peers", "--nanogpt", str(tmp_path), capsys=capsys)
    assert f"--nanogpt {tmp_path} has no train.py" in said
    said = complaint(speed, "--command", "peers", "--nanodiff", codes[0], capsys=capsys)
    assert "has no training.py" in said
    assert "--nanogpt PATH" in complaint(speed, "--command", "peers", capsys=capsys)
    monkeypatch.setattr(peers, "load_data", lambda *given: SimpleNamespace(is_text=False))
    said = complaint(speed, "--command", "peers", "--nanogpt", codes[0], "--data", "sudoku",
                     capsys=capsys)
    assert "--data sudoku has no characters" in said


def test_a_script_that_fails_is_one_line(tmp_path):
    (tmp_path / "train.py").write_text("raise ValueError('no such flag')")
    with pytest.raises(UserError, match="train.py in .* ended with code 1: ValueError: no such f"):
        peers.cpu_seconds([sys.executable, "train.py"], tmp_path)
    (tmp_path / "train.py").write_text("sum(range(3_000_000))")
    assert 0.01 < peers.cpu_seconds([sys.executable, "train.py"], tmp_path) < 5
