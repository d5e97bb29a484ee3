"""
What policy gradients add to a half-trained model, in the same CPU time (chapter 22).

    python -m experiments.rewards                            # three seeds, about four CPU minutes
    python -m experiments.rewards --estimators ddpo,agrpo,d1,coupled,elbo,spg --steps 4 --seeds 1

For each seed, `mdlm` learns puzzles by its likelihood for --start_iters steps. Each estimator goes
on from there for --seconds of CPU time, drawing answers included, as rl.py does. Along the way the
answers of the averaged network to held-out puzzles are rated, as they are drawn: by the sampler
`spread` in --steps, at temperature 1.

    likelihood   the other way to spend the time: one run by likelihood from the beginning, with its
                 learning rate, of as many steps as fit into both times
    gain         reward less that of the start, puzzle by puzzle
    KL           to the start, of trajectories, nats/text (22.8)

`+-` covers the choice of puzzles and the seeds (12.4).
"""
import time
from dataclasses import dataclass

import rl
import train
from evaluation.errors import mean_error, mean_over_seeds, with_error
from experiments.command import chosen_names, run_experiment
from experiments.reasoning import puzzle, steps_in, trainer_of
from experiments.timing import hardware
from experiments.training import save_results
from flags import configure, flag
from runtime.device import keep_memory
from runtime.policy import ESTIMATORS
from runtime.reinforce import check_groups, make_policy, rate_policy, run_config
from runtime.trainer import Trainer

SHARES = 1 / 4, 1 / 2, 1  # of the time, at which answers are rated


@dataclass
class Config:
    estimators: str = flag("ddpo", "with commas between; empty means all", each=str)
    data: str = flag("sudoku4-in-place", "puzzles")
    start_iters: int = flag(200, "steps by likelihood before", least=1)
    seconds: float = flag(30.0, "CPU seconds of each estimator", least=0.01)
    seeds: int = flag(3, "runs of each, with seeds 1, 2, ...", least=1)
    steps: int = flag(1, "of the sampler", least=1)
    group: int = flag(8, "answers to a question", least=2)
    batch_size: int = flag(256, "answers of an update, a multiple of --group", least=2)
    learning_rate: float = flag(0.001, "of adamw and muon", least=0)
    questions: int = flag(500, "held-out puzzles", least=2, most=500)
    out_dir: str = flag("out/rewards", "where the results are kept")


def start_of(config, data, seed, steps):
    """A network after so many steps by likelihood. -> Trainer"""
    trainer = trainer_of(config.data, data, "mdlm", "", seed, steps)
    for step in range(steps):
        train.train_step(trainer, step)
    return trainer


def policy_trainer(config, start, estimator):
    """The Trainer of rl.py, from the averaged network of the trainer `start`."""
    settings = configure(rl.Config, estimator=estimator, steps=config.steps, group=config.group,
                         batch_size=config.batch_size, learning_rate=config.learning_rate,
                         muon_lr=config.learning_rate, num_samples=config.questions,
                         seed=start.config.seed, device=start.config.device)
    state = start.state(start.config.max_iters)
    own = run_config(settings, train.Config, state, False)
    policy = make_policy(rl.Policy, settings, state, start.method, own, start.data, start.device)
    trainer = Trainer(own, start.data, start.method, start.device, policy)
    trainer.start_from(state["ema"])
    return trainer


def points_along(config, trainer):
    """Train for --seconds. -> [(seconds, updates, rewards (n,), KL (n,))] at 0 and at SHARES"""
    seconds, step, points = 0.0, 0, [(0.0, 0, *rate_policy(trainer))]
    for share in SHARES:
        while seconds < share * config.seconds:
            began = time.process_time()
            train.train_step(trainer, step)
            step, seconds = step + 1, seconds + time.process_time() - began
        points.append((seconds, step, *rate_policy(trainer)))
    return points


def by_likelihood(config, data, seed, policy):
    """The same of one run by likelihood, at its end. policy: what rates its answers"""
    make = lambda steps: trainer_of(config.data, data, "mdlm", "", seed, steps)
    steps = config.start_iters + steps_in(config.seconds, make)
    trainer = start_of(config, data, seed, steps)
    trainer.objective = policy
    return config.seconds, steps - config.start_iters, *rate_policy(trainer)


def run_of(config, data, names, seed):
    """All runs of a seed. -> {name: [(seconds, updates, rewards, KL)]}"""
    start, found = start_of(config, data, seed, config.start_iters), {}
    for name in names:
        keep_memory()
        trainer = policy_trainer(config, start, name)
        found[name] = points_along(config, trainer)
    return {**found, "likelihood": [by_likelihood(config, data, seed, trainer.objective)]}


def table_rows(runs):
    """runs [{name: points}] of all seeds -> [(name, seconds, updates, reward, gain, KL)], the last
    three as (mean, error)"""
    rows, over = [], lambda parts: mean_over_seeds(*zip(*(mean_error(a, True) for a in parts)))
    before = [next(iter(run.values()))[0][2] for run in runs]  # (n,) each
    for name, first in runs[0].items():
        for i in range(len(first)):
            seconds, updates, rewards, kl = zip(*(run[name][i] for run in runs))
            gains = [a - b for a, b in zip(rewards, before)]
            rows.append((name, sum(seconds) / len(runs), sum(updates) / len(runs), over(rewards),
                         over(gains), over(kl)))
    return rows


def main(config, given=()):
    names, data = chosen_names(config, "estimators", ESTIMATORS), puzzle(config.data)
    check_groups(config)
    print(f"{hardware()}; mdlm on {config.data}, {config.start_iters} steps by likelihood, then "
          f"answers in {config.steps} steps, {config.seeds} seeds\n{'estimator':<14}{'CPU s':>7}"
          f"{'updates':>9}{'reward':>18}{'gain':>18}{'KL':>18}", flush=True)
    runs = [run_of(config, data, names, seed) for seed in range(1, config.seeds + 1)]
    rows = table_rows(runs)
    for name, seconds, updates, *pairs in rows:
        print(f"{name:<14}{seconds:>7.1f}{updates:>9.0f}"
              + "".join(f"{with_error(*pair):>18}" for pair in pairs))
    keys = "estimator", "seconds", "updates", "reward", "gain", "kl"
    save_results(config, "rewards", [dict(zip(keys, row)) for row in rows])


if __name__ == "__main__":
    run_experiment(Config, main, first="estimators")
