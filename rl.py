"""
Chapter 22. Rewards: a trained masked model learns to write texts that a checker likes.

    python rl.py --start out/sudoku4-in-place-mdlm                      reward: whether it is solved
    python rl.py --start out/toy-mdlm --reward topic:farm --kl 0.1      stay near the start
    python rl.py --start out/toy-mdlm --reward match:whale --estimator coupled
    python sample.py --out_dir out/toy-mdlm-rl                          a usual checkpoint

A run draws questions, writes --group answers to each with the sampler of the flags, rates them, and
learns from them in --updates steps of (22.3), runtime/policy.py. With --kl, the reward is

    r - lambda [ log q_theta(path) - log q_start(path) ],                                     (22.8)

so that E r - lambda KL(q_theta || q_start) rises, the KL of trajectories. Both are printed at every
evaluation, for held-out questions. Of all laws under which an answer is right with probability m,
and not m_0, the nearest has

    KL = m log(m / m_0) + (1 - m) log((1 - m)/(1 - m_0))                                      (22.9)

to the start. What a run spends beyond this is what its reward did not ask for. (With questions of
different m_0 it is a lower bound of their mean.)
"""
from script import run_script  # isort: skip  (first: Ctrl-C while torch loads leaves quietly)

from dataclasses import asdict, dataclass
from functools import partial

import torch

import train
from flags import flag
from runtime.policy import (ESTIMATORS, EstimatorFlags, action_log_probs, advantages, clipped_loss,
                            make_estimator, pack_rollouts, unpack_rollouts, watch)
from runtime.reinforce import (PolicyFlags, make_policy, policy_flags, print_next_commands,
                               print_rewards, report_costs)
from runtime.run import Run
from runtime.start import plan_steps
from runtime.teacher import batch_mean
from samplers import SAMPLERS
from samplers.generate import prepend_bos


@dataclass
class Config(PolicyFlags, EstimatorFlags):
    start: str = flag("", "folder of the checkpoint to start from, or the file")
    reward: str = flag("", "topic:NAME, ngram, match:PATTERN, or another of samplers/rewards.py; "
                       "empty: the checker of the data", text=True)
    kl: float = flag(0.0, "lambda: the reward that a nat of KL to the start costs", least=0)
    estimator: str = flag("ddpo", "of the policy gradient", list(ESTIMATORS))
    group: int = flag(8, "answers to a question", least=2)
    advantage: str = flag("leave-one-out", "the baseline of a group",
                          ["mean", "std", "leave-one-out"])
    updates: int = flag(1, "steps that learn from the same answers", least=1)
    clip: float = flag(0.2, "ratios of probabilities count up to 1 +- this", least=0, most=100)
    sampler: str = flag("spread", "what writes the answers (ar: from left to right)",
                        table=SAMPLERS)
    steps: int = flag(0, "steps of the sampler; 0: as many as a text has tokens", least=0)
    temperature: float = flag(1.0, "of the distribution that is drawn from, and learned",
                              least=0.01, most=100)


class Policy:
    """The objective of a run, and the answers that it learns from. start: its first network"""

    def __init__(self, method, start, settings, reward, sampler):
        self.method, self.start, self.settings, self.sampler = method, start, settings, sampler
        self.reward, self.rollouts, self.update, self.before, self.seen = reward, [], 0, None, []
        name = settings.estimator if sampler else "agrpo"  # ar: a step is a token
        self.estimator = make_estimator(name, **vars(settings))

    def write(self, network, given, frozen):
        """Answers of a network, and its actions. -> x (B, L), Calls"""
        given, frozen = prepend_bos(self.method, given, frozen)  # (B, L) each
        steps = self.settings.steps or given.shape[1]
        return watch(self.method, network, given, frozen, steps, self.sampler,
                     self.settings.temperature)

    def log_probs(self, network, calls):
        return action_log_probs(network, calls, self.method.n_tokens, self.settings.temperature)

    def units(self, network, calls, advantage):
        return self.estimator.units(self.log_probs(network, calls), calls, advantage)  # (B, U)

    @torch.no_grad()
    def roll(self, trainer, micro):
        """Answers to new questions, their advantages, and what each update asks the network for."""
        settings, network = self.settings, trainer.model
        torch.manual_seed(trainer.seed(micro))
        x, frozen, _ = trainer.to_device(trainer.draw_batch(micro))
        frozen = torch.zeros_like(x, dtype=torch.bool) if frozen is None else frozen  # (B, L)
        n = len(x) // settings.group
        given, frozen = (a[:n].repeat_interleave(settings.group, 0) for a in (x, frozen))  # (B, L)
        x, path = self.write(network, given, frozen)
        reward = self.reward(x)  # (B,)
        alike = (reward.view(n, -1) == reward.view(n, -1)[:, :1]).all(-1).double().mean()  # ()
        self.seen.append((reward.mean().item(), alike.item()))
        if settings.kl:
            ratio = self.log_probs(network, path) - self.log_probs(self.start, path)  # (P, B, L)
            reward = reward - settings.kl * ratio.sum((0, 2))  # (B,)
        advantage = advantages(reward, settings.group, settings.advantage).float()  # (B,)
        updates = []
        for _ in range(settings.updates):
            calls = self.estimator.calls(self.method.process, x, frozen, path)
            old = self.units(network, calls, advantage) if settings.updates > 1 else None  # (B, U)
            updates.append((calls, old))
        return advantage, (~frozen).sum(-1).clamp(min=1), updates

    def on_step(self, step, trainer):
        """New answers, where those of before have been learned from."""
        self.update, self.turn = step % self.settings.updates, 0
        if self.update == 0 or not self.rollouts:
            with trainer.autocast():
                self.rollouts = [self.roll(trainer, m) for m in trainer.micro_batches(step)]

    def loss(self, denoiser, x, frozen=None):
        """(22.3) of a micro-batch; its loss_per_token is the mean per free token. -> (B, L)"""
        advantage, free, updates = self.rollouts[self.turn]
        calls, old = updates[self.update]
        self.turn += 1
        new = self.units(denoiser, calls, advantage)  # (B, U)
        old = new.detach() if old is None else old  # (B, U)
        loss = calls.scale * clipped_loss(new, old, advantage, self.settings.clip) / free  # (B,)
        first = torch.arange(x.shape[1], device=x.device).expand_as(x) == 0  # (B, L)
        return batch_mean(loss, first, frozen)  # (B, L)

    def extra_state(self):
        """Also the answers, so that a run that is stopped between two updates goes on with them."""
        kept = self.rollouts if self.settings.updates > 1 else []
        return {"start": self.start.state_dict(), "rewarded": asdict(self.settings),
                "before": self.before, "rollouts": pack_rollouts(kept)}

    def load_extra_state(self, state):
        self.start.load_state_dict(state["start"])
        self.before, self.seen = state["before"], []
        self.rollouts = unpack_rollouts(state["rollouts"])


def main(settings, given=()):
    settings, config, state, start = policy_flags(settings, given, train.Config)
    objective = partial(make_policy, Policy, settings, start)
    with Run(config, given, objective, state, start) as run:
        run.report, run.summary = print_rewards, print_next_commands
        plan_steps(run, train.train_step, report_costs)
        train.train(run)
    return run.exit_code


if __name__ == "__main__":
    run_script(Config, main)
