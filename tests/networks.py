"""Tiny networks whose weights are all random, also those that are zero at first."""
import torch

from model import Transformer


def randomize(network, seed=0, std=0.3):
    """So that no closed gate hides a difference. -> the network, for evaluation"""
    torch.manual_seed(seed)
    for p in network.parameters():
        torch.nn.init.normal_(p, std=std)
    return network.eval()


def random_net(seed=0, vocab_size=11, **options):
    torch.manual_seed(seed)
    options = {"n_layer": 2, "n_head": 2, "n_embd": 16, "cond_dim": 8, **options}
    net = Transformer(vocab_size, **options).eval()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return net
