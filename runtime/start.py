"""
How a run gets its flags: they are checked, adopted from the model that it starts from, or taken
from the run to resume; and the number of steps is planned to fit the time.
"""
import copy
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from checkpoints.build import build_network
from checkpoints.hub import is_published
from checkpoints.load import assemble, is_path, read_state
from flags import UserError, change, flag, flags_of, load_row, restored
from methods import EVERY_METHOD
from model import NetworkFlags
from runtime import distributed
from runtime.progress import SUMMARY_DRAWS, SUMMARY_TEXTS, sample_text
from runtime.trainer import CUDA_GRAPHS
from script import spell

MARGIN = 0.93  # the share of --minutes that is planned, since other programs run, too
STARTUP = 6.0  # seconds before the run begins: Python, torch
COUNTING = 4e-6  # seconds per token to count n-grams


def method_class(config, name):
    """The class of a --method, from the table of this flag."""
    return load_row(flags_of(config)["method"].metadata["table"], name)


def check_flags(config):
    """UserError if flags do not fit each other."""
    method = method_class(config, config.method)
    check_heads(config.n_embd, config.n_head)
    if config.gradient_accumulation_steps % distributed.WORLD:
        raise UserError(f"--gradient_accumulation_steps {config.gradient_accumulation_steps} "
                        f"cannot be shared by {distributed.WORLD} processes: give a multiple of "
                        f"{distributed.WORLD}")
    if config.compile in CUDA_GRAPHS and not method.fixed_positions:
        raise UserError(f"--compile {config.compile} holds steps of one shape, and {config.method} "
                        "scores as many positions as are masked: take --compile, or leave it out")
    if config.shard and not method.shardable:
        raise UserError(f"--shard cannot spread {config.method}, which keeps weights outside of "
                        "the network: leave it out")
    if config.shard and distributed.WORLD == 1:
        raise UserError("--shard spreads the weights over processes, and there is one: start it "
                        "with torchrun, or continue with --no_shard")


def check_heads(n_embd, n_head):
    """UserError if a network cannot have this width and number of heads."""
    if n_embd % n_head or n_embd // n_head % 2:
        raise UserError(f"--n_embd {n_embd} must be --n_head {n_head} times an even number")


def run_folder(data="python", method="mdlm", sft=False, labels=False, out_dir="", **others):
    """--out_dir, or the usual folder of a run with these flags."""
    if out_dir:
        return out_dir
    row = load_row(EVERY_METHOD, method)
    conditioned = labels and not row.classifies  # which always has labels
    name = f"{Path(data).resolve().stem}-{method}"
    return f"out/{name}" + "-labels" * conditioned + "-sft" * sft


def rows_implied(given):
    """The method and the data of the run that flags resume, the method of the run that they start
    from; {} if there is none."""
    start = given.get("init_from", "scratch")
    if start == "scratch" or start != "resume" and is_published(start):
        return {}
    try:
        saved = read_state(run_folder(**given) if start == "resume" else start)["config"]
    except UserError:  # `resume_flags` or `adopt` says what is wrong
        return {}
    if saved.get("method") not in EVERY_METHOD:
        return {}
    if start != "resume":
        row = load_row(EVERY_METHOD, saved["method"])
        return {} if row.classifies else {"method": saved["method"]}
    return {name: saved[name] for name in ("method", "data", "noise_of") if name in saved}


def resume_flags(config, given):
    """The flags of the run in --out_dir, changed by those given now, and its state.

    UserError if the run cannot be resumed with them.
    """
    state = read_state(config.out_dir)
    if not state["optimizers"]:
        raise UserError(f"{config.out_dir} is an exported model, without what a run needs to "
                        f"continue: start from it with {spell({'init_from': config.out_dir})} and "
                        "another --out_dir")
    assemble(state, config.out_dir)  # UserError if its parts do not fit each other
    for name, script in {"distilled": "distill.py", "rewarded": "rl.py"}.items():
        if name in state:
            resume = spell({"init_from": "resume", "out_dir": config.out_dir})
            raise UserError(f"{config.out_dir} is a run of {script}: continue with {script} "
                            f"{resume}")
    old = restored(config.script, state["config"])
    if "minutes" in given:
        raise UserError(f"--minutes plans a new run, and this one has {old.max_iters:,} steps: "
                        "give --max_iters")
    fixed = {name for name, f in flags_of(config).items() if f.metadata["fixed"]}
    if state.get("text") and is_path(config.data):
        fixed -= {"data"}  # it may lie elsewhere: what it holds is compared
    refuse_changes(config, given, old, fixed)
    now = {name: getattr(config, name) for name in [*given, "out_dir", "init_from"]}
    return change(old, **now), state


def refuse_changes(config, given, old, fixed):
    """UserError if a fixed flag was given with another value than in the run to resume."""
    for name in given:
        if name in fixed and getattr(config, name) != getattr(old, name, None):
            raise UserError(f"--{name} {getattr(config, name)} does not fit the run in "
                            f"{config.out_dir}, which has {getattr(old, name, 'no such flag')}: "
                            "leave the flag out, or start anew with another --out_dir")


def adopt(config, given):
    """The flags to start from another model: where they are not given, its network, its method
    with what is fixed there, and its length of texts; on the same text its tokens as well.

    A published model always brings network and tokens: UserError if others are given. In a run of
    ours, `initial_weights` sees whether what was given fits.
    """
    if config.init_from in ("scratch", "resume"):
        return config
    theirs, published = read_state(config.init_from)["config"], is_published(config.init_from)
    network = flags_of(NetworkFlags).keys() & theirs.keys() - {"dropout"}
    chosen = "method" in given or method_class(config, theirs["method"]).classifies
    method = config.method if chosen else theirs["method"]
    own = {name for name, f in flags_of(method_class(config, method)).items()
           if f.metadata["fixed"] and method == theirs["method"]}
    tokens = {"tokenizer", "vocab_size"} if config.data == theirs.get("data") else set()
    tokens = tokens if not tokens & {*given} else set()
    free = network | own | tokens | {"block_size"} | ({"labels"} if theirs.get("labels") else set())
    adopted = {name: theirs[name] for name in free - {*given} if name in theirs}
    if published:
        fixed = {name: theirs[name] for name in [*network, "tokenizer"]}
        for name in given:
            if name in fixed and getattr(config, name) not in (fixed[name], "auto", "model"):
                raise UserError(f"--{name} {getattr(config, name)} does not fit "
                                f"{config.init_from}, which has {fixed[name]}: leave the flag out")
        adopted |= {**fixed, "tokenizer": "model"}
    return change(config, **{**adopted, "method": method})


# ---- runs of distill.py and rl.py, which start from a run of train.py

@dataclass
class LaterRunFlags:
    """Run (runtime/start.py)."""
    init_from: str = flag("scratch", "start", ["scratch", "resume"])
    gradient_accumulation_steps: int = flag(1, "micro-batches per step, over all processes",
                                            least=1)
    learning_rate: float = flag(0.0005, "of adamw", least=0)
    muon_lr: float = flag(0.0005, "of muon, where the model was trained with it", least=0)
    device: str = flag("auto", "auto, cpu, cuda, cuda:1")
    dtype: str = flag("auto", "of products; auto: the faster", ["auto", "float32", "bfloat16"])
    log_interval: int = flag(10, "steps between lines of metrics.jsonl", least=1)
    seed: int = flag(1337, "of all random draws", least=0, most=10**9)


def folder_beside(where, ending):
    """The usual folder of a run that starts from the model in `where`."""
    path = Path(where)
    path = path if path.name.strip(".") else path.resolve()  # such as "."
    return f"{str(path).removesuffix('/ckpt.pt')}-{ending}"


def later_flags(settings, given, state, saved, free=()):
    """The settings of the run to resume, which its state has under the name `saved`. UserError if
    a given flag changes what is learned. free: flags that may change, beside those of every run"""
    old = {**state[saved], "dtype": state["config"]["dtype"]}  # what auto meant then
    old = restored(type(settings), old)
    free = {"out_dir", "init_from", "device", "log_interval", "num_samples", *free}
    refuse_changes(settings, given, old, flags_of(settings).keys() - free)
    return replace(old, **{name: getattr(settings, name) for name in [*given, "out_dir"]})


def frozen_network(config, method, state, device):
    """The averaged network of a checkpoint's state, which is read only: no dropout, no gradient."""
    network = build_network(config, method).to(device).eval().requires_grad_(False)
    network.load_state_dict(state["ema"])
    return network


# ---- how many steps fit the time

def plan_steps(run, step_of, costs=None):
    """Set --max_iters, if it is not given, to the steps that fit into --minutes.

    The time includes evaluations and the summary; at most --recipe_iters steps are planned.
    costs(trainer) -> seconds of an evaluation, and of the summary
    """
    config = run.config
    if config.max_iters:
        return
    n = config.recipe_iters
    if config.minutes:
        step, evaluation, summary = measure_costs(run.trainer, step_of, costs or report_seconds)
        rest = 60 * MARGIN * config.minutes - STARTUP - (time.time() - run.began)
        fits = int((rest - summary - evaluation) / (step + evaluation / config.eval_interval))
        n = distributed.broadcast(max(1, min(n, fits)))
        if run.folder:
            print(f"{step:.3f} s a step: {n:,} steps in --minutes {config.minutes:g}; the full "
                  f"recipe is --max_iters {config.recipe_iters}, "
                  f"{config.recipe_iters * step / 60:.1f} min", flush=True)
    run.change(max_iters=n, warmup_iters=min(config.warmup_iters, n // 4))


def measure_costs(trainer, step_of, costs, most=3.0):
    """Seconds of a step, an evaluation and the summary. The weights are restored afterwards."""
    networks, config = (trainer.model, trainer.average), trainer.config
    weights = [a for net in networks for a in (*net.parameters(), *net.buffers())]
    kept, extra = [a.detach().clone() for a in weights], copy.deepcopy(trainer.extra_state())
    trainer.config = replace(config, max_iters=config.recipe_iters)
    began, times, go_on = time.time(), [], True
    while go_on:  # the first process decides: all must take the same steps
        times.append(timed(lambda: step_of(trainer, 1 + len(times)).tolist()))
        soon = time.time() - began < most and len(times) < 20
        go_on = distributed.broadcast(len(times) < 3 or soon)
    found = statistics.median(times[1:]), *costs(trainer)
    with torch.no_grad():
        for a, before in zip(weights, kept):
            a.copy_(before)  # (...)
    for optimizer in trainer.optimizers:  # they had no state before the first step
        optimizer.state.clear()
    trainer.objective.load_extra_state(extra)
    trainer.config = config
    return found


def report_seconds(trainer):
    """Seconds of progress.print_evaluation, and of progress.print_summary."""
    config, few = trainer.config, 8
    sample = 0.0 if trainer.method.classifies else timed(lambda: sample_text(trainer, few))
    sample *= 1.0 if trainer.method.left_to_right else config.block_size / few
    batch = timed(lambda: trainer.bound("val", config.batch_size))
    counting = COUNTING * sum(len(trainer.data.ids(split)) for split in ("train", "val"))
    summary = SUMMARY_DRAWS * SUMMARY_TEXTS / config.batch_size * batch + counting
    return 2 * config.eval_iters * batch + sample, summary


def timed(do):
    """Seconds that a call of `do` takes."""
    began = time.time()
    do()
    return time.time() - began
