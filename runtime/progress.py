"""
What a run prints and logs on the way and at its end: how good the model is, and what it writes.
"""
import math

import torch
from tqdm import tqdm

from diffusion import Labeled
from evaluation.held_out import classifier_rows, entropy_of
from evaluation.likelihood import format_nats
from evaluation.ngram import ngram_baselines
from evaluation.report import print_by_noise
from flags import UserError
from samplers.generate import generate

SUMMARY_TEXTS, SUMMARY_DRAWS = 1000, 4


def run_facts(trainer):
    """What a run is, for the first line of metrics.jsonl, which viewer/curves.py reads."""
    config, method = trainer.config, trainer.method
    facts = {name: getattr(config, name) for name in ("method", "data", "block_size", "labels")}
    return {**facts, "bytes_per_token": None if method.classifies else trainer.data.bytes_per_token}


def sample_text(trainer, steps):
    """One sample of the averaged network, of the first class if there are classes. -> text"""
    config, data = trainer.config, trainer.data
    label = torch.zeros(1, dtype=torch.long, device=trainer.device)  # (1,)
    denoiser = Labeled(trainer.gathered, label) if trainer.classes else trainer.gathered
    x, frozen, _ = trainer.to_device(data.example_windows("val", 1))  # (1, L), (1, L) or None
    torch.manual_seed(config.seed)
    x = generate(trainer.averaged_method, denoiser, 1, config.block_size, steps,
                 device=trainer.device, given=x, frozen=frozen)[0]  # (L,)
    return data.text(x.tolist())


def print_evaluation(trainer, step, folder):
    """Print and log one evaluation: the bound on train and held-out text, and a sample."""
    config, data, method = trainer.config, trainer.data, trainer.method

    def shown(nats, error):
        if method.classifies:
            return f"{nats:.3f} +- {error:.3f} nats/text"
        return format_nats(nats, error, data.bytes_per_token)

    if step == 0:
        folder.log(step=0, **run_facts(trainer))
    if step == 0 and config.init_from == "scratch":  # no need to measure: predictions are uniform
        n = len(trainer.classes) if method.classifies else data.encoding.n_vocab
        what = "classes" if method.classifies else "symbols"
        tqdm.write(f"step     0  all {n:,} {what} are equally likely: {shown(math.log(n), 0)}")
    else:
        n = config.eval_iters * config.batch_size
        train, val = (trainer.bound(split, n) for split in ("train", "val"))
        kind = "cross-entropy" if method.classifies else "exact" if method.exact else "bound"
        tqdm.write(f"step {step:>5}  {kind}  train {shown(*train)}   held-out {shown(*val)}")
        folder.log(step=step, train_bound=train[0], train_se=train[1],
                   val_bound=val[0], val_se=val[1])
    if not method.classifies:
        tqdm.write("    | " + sample_text(trainer, config.block_size).replace("\n", "\n    | "))


def print_summary(trainer):
    """Print the bound on the whole held-out text, next to what n-grams reach on it."""
    config, data, method = trainer.config, trainer.data, trainer.method
    if method.classifies:
        network, device = trainer.gathered, trainer.device
        print_by_noise(classifier_rows(method, network, data, SUMMARY_TEXTS, device))
        print(f"\npython sample.py --label {trainer.classes[0]} --classifier {config.out_dir} "
              "--out_dir ...")
        return
    nats, error = trainer.bound("val", SUMMARY_TEXTS, SUMMARY_DRAWS)
    bits = 1 / math.log(2) / data.bytes_per_token
    kind = "exact" if method.exact else "bound"
    rows = [(f"{config.method}, {kind}", nats, nats * bits), *ngram_baselines(data)]
    if data.language:
        entropy, _ = entropy_of(data, bool(trainer.classes))
        what = "exact entropy" + " given the class" * bool(trainer.classes)
        rows.append((what, entropy, entropy * bits))
    print(f"\nheld-out text, {SUMMARY_DRAWS} noise draws: "
          f"{format_nats(nats, error, data.bytes_per_token)}")
    print(f"{'':<32}{'nats/token':>12}{'bits/byte':>12}")
    for what, per_token, per_byte in sorted(rows, key=lambda row: -row[2]):
        print(f"{what:<32}{'' if per_token is None else f'{per_token:.3f}':>12}{per_byte:>12.3f}")
    print(f"\npython sample.py --out_dir {config.out_dir}\n"
          f"python evaluate.py --out_dir {config.out_dir}")


def tensorboard_writer(path, first):
    """For Folder.board: a function that also writes numbers of metrics.jsonl to TensorBoard files.

    The files lie below `path`, and are created at the first line. first: the step at which a
    resumed run starts; TensorBoard hides what the files hold beyond it.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("--tensorboard needs a package that is not here: pip install "
                        "tensorboard") from None
    writers = []

    def write(step, **values):
        if not writers:
            writers.append(SummaryWriter(path, purge_step=first + (first > 0)))
        for name, value in values.items():
            if step and isinstance(value, float):  # the line of step 0 holds the run's facts
                writers[0].add_scalar(name, value, step)
        writers[0].flush()
    return write
