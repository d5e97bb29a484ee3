"""
What train.py prints on the way and in the end: how good is it, and what does it write? And TensorBoard's part.
"""
import math

import torch
from tqdm import tqdm

from bounds import league, unit
from data import BadInput
from evaluate import by_noise, entropy_of
from model import Told
from sample import generate
from tables import show_by_noise


def about(learner):
    """What a run is, for the first line of metrics.jsonl, which plot.py reads."""
    config = learner.config
    return {**{name: getattr(config, name) for name in ("method", "data", "block_size", "labels")},
            "bytes_per_token": None if config.method == "classifier" else learner.corpus.bytes_per_token}


def report(learner, step, folder):
    """One evaluation, printed: the bound on train and held-out text, and a sample."""
    config, corpus, average = learner.config, learner.corpus, learner.gathered
    classifies = config.method == "classifier"
    told = lambda nats, error: f"{nats:.3f} +- {error:.3f} nats/text" if classifies else unit(
        nats, error, corpus.bytes_per_token)
    if step == 0:
        folder.log(step=0, **about(learner))
    if step == 0 and config.init_from == "scratch":          # no need to measure: the first guess is uniform
        n, what = (len(learner.classes), "classes") if classifies else (corpus.encoding.n_vocab, "symbols")
        tqdm.write(f"step     0  all {n:,} {what} are equally likely to it: {told(math.log(n), 0)}")
    else:
        train, val = (learner.bound(split, config.eval_iters * config.batch_size) for split in ("train", "val"))
        kind = "cross-entropy" if classifies else "exact" if config.method == "ar" else "bound"
        tqdm.write(f"step {step:>5}  {kind}  train {told(*train)}   held-out {told(*val)}")
        folder.log(step=step, train_bound=train[0], train_se=train[1], val_bound=val[0], val_se=val[1])
    if classifies:
        return
    torch.manual_seed(config.seed)
    L, label = config.block_size, torch.zeros(1, dtype=torch.long, device=learner.device)               # (1,)
    writer = Told(average, label) if learner.classes else average      # a text of the first class
    x, frozen, _ = learner.on_device(corpus.example_windows("val", 1))                                  # (1, L)
    x = generate(learner.settled, writer, 1, L, L, device=learner.device, given=x, frozen=frozen)[0]     # (L,)
    tqdm.write("    | " + corpus.text(x.tolist()).replace("\n", "\n    | "))


def final(learner):
    """The whole held-out text, beside what counting alone reaches on it: how much was learnt?"""
    config, corpus, draws = learner.config, learner.corpus, 4
    if config.method == "classifier":
        show_by_noise(by_noise(learner.method, learner.gathered, corpus, 1000, learner.device))
        return print(f"\npython sample.py --label {learner.classes[0]} --classifier {config.out_dir} --out_dir ...")
    nats, error = learner.bound("val", 1000, draws)
    bits = 1 / math.log(2) / corpus.bytes_per_token
    rows = [(f"{config.method}, {'exact' if config.method == 'ar' else 'bound'}", nats, nats * bits), *league(corpus)]
    if corpus.name == "toy":
        entropy, _ = entropy_of(corpus, bool(learner.classes))
        rows.append(("exact entropy" + " given the class" * bool(learner.classes), entropy, entropy * bits))
    print(f"\nheld-out text, {draws} noise draws: {unit(nats, error, corpus.bytes_per_token)}")
    print(f"{'':<32}{'nats/token':>12}{'bits/byte':>12}")
    for what, per_token, per_byte in sorted(rows, key=lambda row: -row[2]):
        print(f"{what:<32}{'' if per_token is None else f'{per_token:.3f}':>12}{per_byte:>12.3f}")
    print(f"\npython sample.py --out_dir {config.out_dir}    python evaluate.py --out_dir {config.out_dir}")


def scalars(path, first):
    """For Folder.board: what is a number in a line of metrics goes to TensorBoard's files below `path`, too. What they
    hold beyond step `first`, of a run that is done again, is hidden. Nothing is written before the first line."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise BadInput("--tensorboard needs a package that is not here: pip install tensorboard") from None
    writers = []

    def write(step, **values):
        if not writers:
            writers.append(SummaryWriter(path, purge_step=first + (first > 0)))
        for name, value in values.items():
            if step and isinstance(value, float):        # the line of step 0 says what the run is
                writers[0].add_scalar(name, value, step)
        writers[0].flush()
    return write
