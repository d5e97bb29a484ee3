"""
Training inside experiments: a Trainer without a folder, and models trained by train.py or reused.

Results are kept as JSON with the machine that they were measured on.
"""
import copy
import time
from pathlib import Path

import distill
import train
from checkpoints.build import build_method
from checkpoints.file import as_json
from checkpoints.load import load_model, read_state
from data.files import write_file
from experiments.timing import hardware
from flags import UserError, change, configure, load_row
from methods import METHODS
from methods.base import Method
from runtime.device import device_of, dtype_of
from runtime.trainer import Trainer

RATES = dict(learning_rate=0.01, muon_lr=0.01)
NANOGPT = dict(tokenizer="chars", block_size=64, n_layer=4, n_head=4, n_embd=128, **RATES)  # CPU
FIVE_MINUTES = dict(batch_size=24, max_iters=5000)  # on two cores of 2024
TWO_MINUTES = dict(batch_size=64, block_size=32, n_layer=4, max_iters=1800, **RATES)
TOY = dict(data="toy", **TWO_MINUTES)


def make_trainer(data, custom=None, /, **flags):
    """A Trainer for flags of train.py, without a folder. custom: a method in place of --method"""
    config = configure(train.Config, **flags)
    device = device_of(config.device)
    dtypes = {name: dtype_of(getattr(config, name), device) for name in ("dtype", "muon_dtype")}
    config = change(config, **dtypes)
    method = custom or build_method(config, data.encoding)
    method.on_data(data)
    return Trainer(config, data, method, device)


def train_model(out_dir, share=1.0, **flags):
    """Train a model by train.py, for a share of its steps. -> the model, wall and CPU minutes"""
    config = configure_run(out_dir, share, **flags)
    wall, cpu = time.time(), time.process_time()
    run_to_end(train, config)
    return load_model(out_dir), (time.time() - wall) / 60, (time.process_time() - cpu) / 60


def run_to_end(script, config):
    """Run train.py or distill.py to its end: one that is asked to stop ends normally."""
    if code := script.main(config):
        raise KeyboardInterrupt(code)


def configure_run(out_dir, share, **flags):
    config = configure(train.Config, **{"eval_interval": 10**6, **flags}, out_dir=str(out_dir))
    steps = config.max_iters or config.recipe_iters
    return change(config, max_iters=max(1, round(steps * share)))


def decayed_at(trainer, ends, share=0.2):
    """Train at a constant rate, and yield each of the steps `ends` (in order) after the rate has
    fallen to 0 over the last `share` of that many steps: one run serves all of them, since each
    decay is a branch that is undone (arXiv:2405.18392). The trainer's --lr_schedule is constant.

    A method that changes along a run as a share of it (`on_step`) has no common trunk: for each end
    it begins anew, and --max_iters is that end.
    """
    config, step, trunk = trainer.config, 0, type(trainer.method).on_step is Method.on_step
    start = weights_of(trainer)
    for end in ends:
        begin = end - max(1, round(share * end))
        if begin < config.warmup_iters:
            raise UserError(f"a run of {end} steps would decay within the warm-up of "
                            f"{config.warmup_iters}: ask for longer ones")
        if not trunk:
            restore_weights(trainer, start)
            step, trainer.config = 0, change(config, max_iters=end)
        for step in range(step, begin):
            train.train_step(trainer, step)
        kept, step = weights_of(trainer), begin
        trainer.config = change(config, lr_schedule="linear", warmup_iters=begin, max_iters=end)
        for last in range(begin, end):
            train.train_step(trainer, last)
        yield end
        trainer.config = config
        restore_weights(trainer, kept)


def weights_of(trainer):
    """A copy of the network, its average and the state of the optimizers."""
    parts = trainer.model, trainer.average, *trainer.optimizers
    return copy.deepcopy([part.state_dict() for part in parts])


def restore_weights(trainer, kept):
    for part, state in zip((trainer.model, trainer.average, *trainer.optimizers), kept):
        part.load_state_dict(copy.deepcopy(state))


def train_or_load(config, name, **flags):
    """The model in config.out_dir/name, trained there unless it has these flags and is complete."""
    out_dir = f"{config.out_dir}/{name}"
    wanted = configure_run(out_dir, config.share, **flags)
    if not is_trained(out_dir, {**flags, "max_iters": wanted.max_iters}):
        run_to_end(train, wanted)
    return load_model(out_dir)


def distill_or_load(config, name, **flags):
    """The same for distill.py."""
    out_dir = f"{config.out_dir}/{name}"
    wanted = configure(distill.Config, **flags, out_dir=out_dir)
    wanted.iters_per_round = max(1, round(wanted.recipe_iters * config.share))
    if not is_trained(out_dir, {"max_iters": wanted.rounds * wanted.iters_per_round}):
        run_to_end(distill, wanted)
    return load_model(out_dir)


def is_trained(out_dir, flags):
    """Whether out_dir holds a complete run with these flags, max_iters among them."""
    if not Path(out_dir, "ckpt.pt").exists():
        return False
    state = read_state(out_dir)
    same = all(state["config"].get(key) == value for key, value in flags.items())
    return same and state["step"] == flags["max_iters"]


def language_models():
    """The names of all methods that have -log p(x) of a text, or a bound on it."""
    rows = {name: load_row(METHODS, name) for name in METHODS}
    return [name for name, row in rows.items() if row.bounded and not row.classifies]


def method_names(config, default):
    """--methods as a list of names; UserError if one is unknown."""
    names = [name for name in config.methods.split(",") if name] or default
    for name in names:
        load_row(METHODS, name)
    return names


def save_results(config, name, rows):
    """The rows as out_dir/NAME.json, with the machine that they were measured on."""
    path = Path(config.out_dir, f"{name}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, as_json({"hardware": hardware(), "rows": rows}))
    print(f"saved in {path}")
