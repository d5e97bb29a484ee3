"""Tiny checkpoints with random weights, made without training."""
from pathlib import Path

import torch

import train
from checkpoints.build import build_method, build_network
from checkpoints.file import FORMAT
from data import load_data
from data.tokenizer import to_json
from flags import configure

SMALL = dict(data="toy", block_size=8, n_layer=1, n_embd=16, n_head=2, cond_dim=8)
TURNS = dict(known=0.5)  # without which a network of udlm is refused by --sampler turns


def random_checkpoint(folder, step=2, **flags):
    """A checkpoint in `folder` as train.py writes it, whose averaged weights are random."""
    more = TURNS if flags.get("method") == "udlm" else {}
    config = configure(train.Config, **{**SMALL, **more, **flags}, out_dir=str(folder))
    data = load_data(config.data, config.block_size, config.tokenizer, config.vocab_size,
                     sft=config.sft)
    torch.manual_seed(0)
    method = build_method(config, data.encoding)
    classes = list(data.classes) if config.labels else []
    network = build_network(config, method, len(classes))
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.2)
    state = {"format": FORMAT, "model": network.state_dict(), "ema": network.state_dict(),
             "optimizers": [], "step": step, "config": vars(config), "classes": classes,
             "encoding": to_json(data.encoding), **method.extra_state()}
    Path(folder).mkdir(parents=True, exist_ok=True)
    torch.save(state, Path(folder) / "ckpt.pt")
    return Path(folder)
