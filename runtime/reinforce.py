"""
A run of rl.py: its flags, the model that it starts from, and what is printed on the way.
"""
from dataclasses import dataclass, replace

import torch
from tqdm import tqdm

from checkpoints.load import assemble, check_text, read_state, refuse_own_folder
from evaluation.errors import mean_error, with_error
from evaluation.likelihood import bytes_per_scored, format_nats
from flags import UserError, flag, flags_of, load_row, restored
from runtime import distributed
from runtime.policy import kl_along, writes_masks
from runtime.progress import run_facts
from runtime.rewards import event_kl, make_reward
from runtime.start import LaterRunFlags, folder_beside, frozen_network, later_flags, timed
from samplers import SAMPLERS, make_sampler
from script import spell

BOUND_TEXTS = 512


@dataclass
class PolicyFlags(LaterRunFlags):
    """Rewards (runtime/reinforce.py)."""
    out_dir: str = flag("", "where the model goes; empty means START-rl")
    minutes: float = flag(5.0, "time of the whole run without --max_iters", least=0,
                          idle=["max_iters"])
    recipe_iters: int = flag(400, "optimizer steps of the full recipe", least=1)
    max_iters: int = flag(0, "optimizer steps; 0: as many as fit in --minutes", least=0)
    batch_size: int = flag(64, "answers per micro-batch, a multiple of --group", least=1)
    warmup_iters: int = flag(10, "steps of linear warm-up; constant from there", least=0)
    ema: float = flag(0.95, "decay of the averaged weights, which are the result", least=0, most=1)
    eval_interval: int = flag(50, "steps between evaluations and checkpoints", least=1)
    num_samples: int = flag(256, "answers of an evaluation", least=2)


# ---- flags

def policy_flags(settings, given, script):
    """The flags of rl.py that apply, those of the run, and the states of two checkpoints.

    script: the Config of train.py. -> settings, config, state of the run to resume or None, state
    of the start. UserError if flags do not fit.
    """
    if distributed.WORLD > 1:
        raise UserError("rl.py runs in one process: start it without torchrun")
    state, resumes = None, settings.init_from == "resume"
    if not (settings.start or resumes and settings.out_dir):
        raise UserError("name the run to continue: --out_dir out/toy-mdlm-rl" if resumes else
                        "name the model to start from: --start out/toy-mdlm")
    out_dir = settings.out_dir or folder_beside(settings.start, "rl")
    settings = replace(settings, out_dir=out_dir)
    if resumes:
        state = read_state(settings.out_dir)
        if "rewarded" not in state:
            raise UserError(f"{settings.out_dir} is no run of rl.py: continue with the script that "
                            "made it")
        settings = later_flags(settings, given, state, "rewarded", free=["max_iters"])
    else:
        refuse_own_folder("--start", settings.start, settings.out_dir)
    check_groups(settings)
    start = state or read_state(settings.start)
    assemble(start, settings.start or settings.out_dir)  # UserError if its parts do not fit
    if not start["config"]["data"]:
        raise UserError(f"{settings.start} is a published model, which has no text of its own: "
                        "first fine-tune it with train.py, and start from that run")
    return settings, run_config(settings, script, start, resumes), state, start


def check_groups(settings):
    """UserError if a batch is no whole number of groups."""
    if settings.batch_size % settings.group:
        raise UserError(f"--batch_size {settings.batch_size} must be a multiple of --group "
                        f"{settings.group}")


def run_config(settings, script, start, resumes):
    """The flags of the run: those of rl.py, and otherwise those of the model that it starts from.
    No dropout: a ratio of probabilities compares two networks, not two draws of one."""
    own = flags_of(settings).keys() & flags_of(script).keys() - {"init_from"}
    max_iters = settings.max_iters or (start["config"]["max_iters"] if resumes else 0)
    values = {name: getattr(settings, name) for name in own} | {"max_iters": max_iters}
    return restored(script, start["config"], **values, lr_schedule="constant", dropout=0.0,
                    init_from="resume" if resumes else "scratch", shard=False, compile="",
                    attention="auto", recompute=False)


def make_policy(cls, settings, state, method, config, data, device):
    """The objective of class `cls`, which starts from the model of a checkpoint's state."""
    check_text(data, config.data, state, settings.start)
    if config.labels:
        raise UserError(f"{settings.start} is conditioned on classes: start from another model")
    start = frozen_network(config, method, state, device)
    model = assemble(state, settings.start, device)
    reward = make_reward(settings.reward, data, model)
    return cls(method, start, settings, reward, choose_policy_sampler(settings, method, model))


def choose_policy_sampler(settings, method, model):
    """The sampler of the flags; UserError if (22.1) is not its gradient. None for exact methods,
    which write in order."""
    if method.exact and method.left_to_right:
        if settings.estimator != "ddpo":
            raise UserError(f"{method.name} knows its likelihood: leave out --estimator "
                            f"{settings.estimator}")
        return None
    name = settings.sampler
    options = {key: getattr(settings, key) for key in flags_of(load_row(SAMPLERS, name))}
    sampler = make_sampler(name, method, **options)
    if reason := writes_masks(method, sampler):
        raise UserError(f"--sampler {name} has no policy gradient here: {reason}")
    sampler.prepare(model)
    return sampler


# ---- reports

def rate_policy(trainer):
    """Answers of the averaged network to held-out questions: rewards (n,), KL to the start (n,)."""
    policy, data, n = trainer.objective, trainer.data, trainer.config.batch_size
    torch.manual_seed(trainer.config.seed)
    x, frozen, _ = trainer.to_device(data.example_windows("val", policy.settings.num_samples))
    frozen = torch.zeros_like(x, dtype=torch.bool) if frozen is None else frozen  # (n, L)
    rewards, costs = [], []
    for given, frozen in zip(x.split(n), frozen.split(n)):
        with torch.no_grad(), trainer.autocast():
            x, path = policy.write(trainer.gathered, given, frozen)
            costs.append(kl_along(trainer.gathered, policy.start, path, policy.method.n_tokens,
                                  policy.settings.temperature))  # (b,)
        rewards.append(policy.reward(x))  # (b,)
    return torch.cat(rewards), torch.cat(costs)  # (n,) each


def print_rewards(trainer, step, folder):
    """Print and log reward and distance, the least distance for a reward of 0 or 1, the bound, and
    the rewards in training since the last evaluation."""
    policy = trainer.objective
    if step == 0:
        folder.log(step=0, **run_facts(trainer))
    reward, kl = rate_policy(trainer)  # (n,) each
    (mean, se), (far, far_se) = mean_error(reward, True), mean_error(kl, True)
    policy.before = mean if policy.before is None else policy.before
    events = bool(((reward == 0) | (reward == 1)).all())
    least = f" (least {event_kl(mean, policy.before):.3f})" if events else ""
    line = (f"step {step:>5}  reward {with_error(mean, se)}  KL to the start "
            f"{with_error(far, far_se)} nats/text{least}")
    values = {"reward": mean, "reward_se": se, "kl": far, "kl_se": far_se}
    if trainer.method.bounded:
        bound, error = trainer.bound("val", BOUND_TEXTS)
        line += f"  bound {format_nats(bound, error, bytes_per_scored(trainer.data))}"
        values |= {"val_bound": bound, "val_se": error}
    if policy.seen:
        rewards, silent = torch.tensor(policy.seen).mean(0).tolist()
        line += f"  in training {rewards:.3f}, {100 * silent:.0f} % of groups alike"
        values |= {"train_reward": rewards, "groups_alike": silent}
        policy.seen.clear()
    tqdm.write(line)
    folder.log(step=step, **values)


def report_costs(trainer):
    """Seconds of print_rewards, and of the summary, which takes none."""
    batch = timed(lambda: trainer.bound("val", trainer.config.batch_size))
    bound = BOUND_TEXTS / trainer.config.batch_size * batch if trainer.method.bounded else 0.0
    return timed(lambda: rate_policy(trainer)) + bound, 0.0


def print_next_commands(trainer):
    """Print the commands that sample from the result and evaluate it."""
    model = spell({"out_dir": trainer.config.out_dir})
    print(f"\npython sample.py {model}\npython evaluate.py {model}")
