"""
What a run prints and logs on the way and at its end: how good the model is, and what it writes.
"""
import math

import torch
from tqdm import tqdm

from diffusion import Labeled
from evaluation.held_out import classifier_rows, entropy_of
from evaluation.errors import mean_error, with_error
from evaluation.likelihood import bytes_per_scored, format_nats, mean_nats
from evaluation.ngram import ngram_baselines, text_nats
from evaluation.report import print_by_noise
from flags import UserError
from samplers import make_sampler
from samplers.generate import generate
from script import spell

SUMMARY_TEXTS, SUMMARY_DRAWS = 1000, 4
MEASURED = 256  # texts for what only one method can tell


def run_facts(trainer):
    """What a run is, for the first line of metrics.jsonl, which viewer/curves.py reads."""
    config, method = trainer.config, trainer.method
    facts = {name: getattr(config, name) for name in ("method", "data", "block_size", "labels")}
    size = None if method.classifies else bytes_per_scored(trainer.data)
    return {**facts, "bytes_per_token": size}


def sample_text(trainer, steps):
    """One sample of the averaged network, of the first class if there are classes. -> text"""
    config, data = trainer.config, trainer.data
    label = torch.zeros(1, dtype=torch.long, device=trainer.device)  # (1,)
    denoiser = Labeled(trainer.gathered, label) if trainer.classes else trainer.gathered
    x, frozen, _ = trainer.to_device(data.example_windows("val", 1))  # (1, L), (1, L) or None
    method = trainer.averaged_method
    sampler = make_sampler("ancestral" if method.takes_steps else method.first_choice, method)
    torch.manual_seed(config.seed)
    x = generate(method, denoiser, 1, config.block_size, steps, sampler, device=trainer.device,
                 given=x, frozen=frozen)[0]  # (L,)
    return data.text(x.tolist())


def print_evaluation(trainer, step, folder):
    """Print and log one evaluation: the bound on train and held-out text, and a sample."""
    config, data, method = trainer.config, trainer.data, trainer.method

    def shown(nats, error):
        if method.classifies:
            return f"{with_error(nats, error)} nats/text"
        if not method.bounded:  # no bits, which would be those of a code
            return f"{with_error(nats, error)} nats/token"
        return format_nats(nats, error, bytes_per_scored(data))

    if step == 0:
        folder.log(step=0, **run_facts(trainer))
    known = config.init_from == "scratch" and method.bounded and method.uniform_at_first
    known = known and not method.pairs_at
    if step == 0 and known:  # no need to measure: predictions are uniform
        n = len(trainer.classes) if method.classifies else data.encoding.n_vocab
        what = "classes" if method.classifies else "symbols"
        tqdm.write(f"step     0  all {n:,} {what} are equally likely: {shown(math.log(n), 0)}")
    else:
        n = config.eval_iters * config.batch_size
        train, val = (trainer.bound(split, n) for split in ("train", "val"))
        kind = "cross-entropy" if method.classifies else "exact" if method.exact else "bound"
        kind = kind if method.bounded else "loss, no bound"
        tqdm.write(f"step {step:>5}  {kind}  train {shown(*train)}   held-out {shown(*val)}")
        name = "bound" if method.bounded else "loss"
        folder.log(step=step, **{f"train_{name}": train[0], "train_se": train[1],
                                 f"val_{name}": val[0], "val_se": val[1]})
        x, frozen, _ = trainer.to_device(data.example_windows("val", MEASURED))  # (n, L) each
        found = trainer.averaged_method.measures(trainer.gathered, x, frozen, data.lengths(x))
        for what, values in found:
            tqdm.write(f"            {what}  {with_error(*mean_error(values, True))}")
    if not method.classifies:
        tqdm.write("    | " + sample_text(trainer, config.block_size).replace("\n", "\n    | "))


def print_summary(trainer):
    """Print the bound on the whole held-out text, next to what n-grams reach on it."""
    config, data, method = trainer.config, trainer.data, trainer.method
    if method.classifies:
        network, device = trainer.gathered, trainer.device
        print_by_noise(classifier_rows(method, network, data, SUMMARY_TEXTS, device))
        use = spell(method.usage(config.out_dir, trainer.classes))
        print(f"\npython sample.py {use} --out_dir ...")
        return
    x, nats, scored = trainer.nats("val", SUMMARY_TEXTS, SUMMARY_DRAWS)  # (n, L), (n,), (n,)
    mean, error = mean_nats(nats, scored, data.unequal(x), data.independent_texts)
    model = spell({"out_dir": config.out_dir})
    commands = f"\npython sample.py {model}\npython evaluate.py {model}"
    if not method.bounded:
        print(f"\nheld-out text, {SUMMARY_DRAWS} noise draws: loss {with_error(mean, error)} "
              f"nats/token\nno bound on -log p: {method.unbounded_reason}\n{commands}")
        return
    size, kind = bytes_per_scored(data), "exact" if method.exact else "bound"
    bits = lambda nats: nats / math.log(2) / size if size else None
    rows = [(f"{config.method}, {kind}", mean, bits(mean)), *ngram_baselines(data)]
    if data.language:
        entropy, _ = entropy_of(data, bool(trainer.classes))
        what = "exact entropy" + " given the class" * bool(trainer.classes)
        rows.append((what, entropy, bits(entropy)))
    if (exact := data.answer_nats(x)) is not None:
        known = (exact / scored.cpu()).mean().item()
        rows.append(("exact -log p of the answers", known, bits(known)))
    less = compare_with_ngrams(data, x, nats / scored)
    print(f"\nheld-out text, {SUMMARY_DRAWS} noise draws: {format_nats(mean, error, size)}")
    print(f"{'':<32}{'nats/token':>12}" + f"{'bits/byte':>12}" * bool(size)
          + f"{'the model less it':>22}" * bool(less))
    cell = lambda value: "" if value is None else f"{value:.3f}"
    for what, per_token, per_byte in sorted(rows, key=lambda row: -row[2 if size else 1]):
        print(f"{what:<32}{cell(per_token):>12}" + f"{cell(per_byte):>12}" * bool(size)
              + f"  {less.get(what.split(',')[0], ''):>20}".rstrip())
    print(commands)


def compare_with_ngrams(data, x, nats):
    """How far a model is above each n-gram on the same texts x (n, L), nats (n,) per token.

    The n-grams have nothing before a text either. -> {name: the mean difference with its error}
    """
    if not data.counts_words or data.pads:
        return {}
    found = text_nats(data.ids("train"), x.cpu().numpy(), data.encoding.n_vocab)  # {n: (n,)}
    return {f"{n}-gram of tokens": with_error(*mean_error(
        nats.cpu() - torch.from_numpy(theirs), data.independent_texts), "+.3f")
        for n, theirs in found.items()}


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
