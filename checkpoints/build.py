"""
From flags to the method and the network that they describe.
"""
from data import DATASETS
from data.tokenizer import end_of_text
from flags import load_row
from methods import make_method
from methods.recurrent import make_recurrent
from samplers.sides import divide


def build_method(config, encoding, state=None):
    """The method that the flags describe. state: the checkpoint that it belongs to, if any"""
    flags = vars(config)
    method = make_method(config.method, encoding.n_vocab, **flags)
    method.first_token = flags.get("first")  # only published networks have one
    if method.any_length:
        method.end_id = end_of_text(encoding)
    if state:
        method.load_extra_state(state)
    return method


def build_network(config, method, n_classes=0):
    """The network that the flags describe, with fresh weights."""
    conditioned = method.uses_time or n_classes or config.time_input != "auto"
    network = method.network(
        method.vocab_size, config.n_layer, config.n_head, config.n_embd,
        cond_dim=config.cond_dim if conditioned else 0, n_classes=n_classes,
        dropout=config.dropout, mask_mod=method.mask_mod, qk_norm=config.qk_norm,
        time_input=config.time_input, norm_bias=config.norm_bias,
        places=vars(config).get("learned_places", False) and config.block_size + 1)  # and a start
    if vars(config).get("recurrent"):
        make_recurrent(network, method, config)
    sides = vars(config).get("sides", "joined")
    if sides == "joined":
        return network
    return divide(network, method, load_row(DATASETS, config.data).source, sides)
