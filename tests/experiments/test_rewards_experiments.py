"""Policy gradients from a half-trained model: one start, equal time, gains puzzle by puzzle."""
import pytest
import torch

from data import load_data
from experiments import rewards
from experiments.rewards import Config, main, points_along, policy_trainer, start_of, table_rows
from runs import cache, complaint, elsewhere  # noqa: F401

QUICK = Config(start_iters=2, seconds=0.5, seeds=2, group=2, batch_size=4, questions=6)


@pytest.fixture(scope="module")
def start():
    return start_of(QUICK, load_data("sudoku4-in-place", 0), 1, 2)


def test_all_estimators_begin_as_the_average_of_the_start(start):
    before = start.average.state_dict()
    trainer = policy_trainer(QUICK, start, "coupled")
    for network in (trainer.model, trainer.average, trainer.objective.start):
        assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert trainer.objective.start is not start.average and trainer.config.seed == 1
    assert trainer.config.lr_schedule == "constant"
    assert all(group["full_lr"] == QUICK.learning_rate
               for optimizer in trainer.optimizers for group in optimizer.param_groups)
    rewards.train.train_step(trainer, 0)
    assert all(torch.equal(before[key], value)
               for key, value in trainer.objective.start.state_dict().items())


def test_answers_are_rated_after_equal_shares_of_the_time(start, monkeypatch):
    """The time of ratings does not count."""
    clock, steps = [0.0], []
    monkeypatch.setattr(rewards.time, "process_time", lambda: clock[0])

    def step_of(trainer, step):
        steps.append(step)
        clock[0] += 0.0625

    def rate(trainer):
        clock[0] += 8
        return torch.tensor([float(len(steps))]), torch.zeros(1)
    monkeypatch.setattr(rewards.train, "train_step", step_of)
    monkeypatch.setattr(rewards, "rate_policy", rate)
    points = points_along(QUICK, None)
    assert [updates for _, updates, *_ in points] == [0, 2, 4, 8] and steps == [*range(8)]
    assert [reward.item() for *_, reward, _ in points] == [0, 2, 4, 8]
    assert [seconds for seconds, *_ in points] == [0, 0.125, 0.25, 0.5]


def test_a_gain_is_that_of_each_puzzle_over_its_own_start():
    """Puzzles that are hard at both times add nothing to its error."""
    before, after = torch.tensor([0.0, 1, 0, 1]), torch.tensor([0.5, 1.5, 0.5, 1.5])  # (n,)
    far = torch.ones(4)  # (n,)
    run = {"ddpo": [(0.0, 0, before, 0 * far), (1.0, 3, after, far)]}
    other = {"ddpo": [(0.0, 0, after, 0 * far), (2.0, 5, after + 0.5, 2 * far)]}
    rows = table_rows([run, other])
    assert [row[:3] for row in rows] == [("ddpo", 0.0, 0.0), ("ddpo", 1.5, 4.0)]
    (reward, error), (gain, small), (kl, _) = rows[1][3:]
    assert (reward, gain, kl) == (1.25, 0.5, 1.5) and small < 1e-12 < 0.1 < error


def test_likelihood_spends_both_times_and_the_table_is_kept(monkeypatch, capsys):
    monkeypatch.setattr(rewards, "steps_in", lambda seconds, make: 3)
    main(Config(**{**vars(QUICK), "estimators": "d1", "seeds": 1, "seconds": 0.01}))
    _, head, *rows, saved = capsys.readouterr().out.splitlines()
    assert head.split() == ["estimator", "CPU", "s", "updates", "reward", "gain", "KL"]
    assert [row.split()[0] for row in rows] == ["d1", "d1", "d1", "d1", "likelihood"]
    assert rows[-1].split()[2] == "3" and "rewards.json" in saved


@pytest.mark.parametrize("words, message", [
    (["--estimators", "good"], "--estimators good is not one of ddpo"),
    (["--batch_size", "9"], "multiple"),
    (["--data", "toy"], "toy has no questions")], ids=str)
def test_bad_settings_get_one_line(words, message, capsys):
    assert message in complaint(rewards, *words, capsys=capsys)
