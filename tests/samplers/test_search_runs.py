"""Rewards, what searches cost and refuse, and searches in the scripts."""
from types import SimpleNamespace

import pytest
import torch
from models import random_checkpoint

import sample
from checkpoints.load import load_beside
from data import load_data
from data.tokenizer import decode
from evaluations import results, run
from flags import UserError, parse
from methods import make_method
from oracle import exact
from runs import cache, elsewhere  # noqa: F401
from samplers import make_sampler
from samplers.rewards import default_reward, read_reward


@pytest.fixture(scope="module")
def toy():
    model = exact("mdlm")
    model.beside = lambda flag, name: load_beside(flag, name, model.encoding, "cpu")
    return model


def model_of(data, block_size=0):
    """What a reward sees of a model."""
    made = load_data(data, block_size)
    return SimpleNamespace(config=SimpleNamespace(data=data, block_size=made.block_size),
                           encoding=made.encoding)


# ---- rewards

def test_the_reward_of_a_pattern_is_whether_it_is_found(toy):
    words = toy.encoding
    text = torch.tensor([[3, 4, 5], [5, 4, 4]])  # (2, 3)
    pattern = decode(words, [5]) + r"\b.*" + decode(words, [4])
    assert read_reward(f"match:{pattern}", toy)(text).tolist() == [0.0, 1.0]


def test_the_reward_of_the_grammar_is_whether_a_text_parses(toy):
    x = load_data("toy", 32).windows("val", 50)  # (50, 32)
    score = read_reward("grammatical", toy)
    assert score(x).mean() > 0.9 and score(x.flip(-1)).sum() == 0
    assert set(score(torch.cat([x, x.flip(-1)])).tolist()) == {0.0, 1.0}


def test_the_reward_of_an_ar_model_is_the_log_probability_of_the_text(toy):
    data = load_data("toy", 32)
    x = data.windows("val", 20)  # (20, 32)
    torch.testing.assert_close(read_reward("log_p:ar", toy)(x), data.language.log_prob(x))


def test_the_reward_of_a_puzzle_is_that_of_its_checker():
    data, model = load_data("sudoku4-in-place", 0), model_of("sudoku4-in-place")
    x, frozen, _ = data.example_windows("val", 30)  # (30, 16) each
    score, wrong = read_reward("solved", model), x.clone()
    wrong[:, 3] = wrong[:, 2]
    assert (score(x) == 1).all() and (score(wrong) == 0).all()


def test_the_reward_of_a_class_is_its_log_probability_and_lam_divides_it(toy):
    data = load_data("toy", 32)
    judge = lambda z, t: data.language.topic_posterior(z).log()  # (n, K)
    made = make_sampler("smc", toy.method, lam=0.5)
    made.prepare(toy)
    config = SimpleNamespace(label="sea", guidance=1.0)
    made.aim((judge, data.classes, 32), config, "cpu")
    x, sea = data.windows("val", 20), data.classes.index("sea")  # (20, 32)
    exactly = data.language.topic_posterior(x)[:, sea].log()  # (20,)
    torch.testing.assert_close(made.rate(x), exactly)
    torch.testing.assert_close(made.log_value(None, None, x, x, None, 1, 4, None), 2 * exactly)
    assert made.costs() == {"texts_rated": 40} and not made.draws_from_model


@pytest.mark.parametrize("reward, says", [
    ("beauty", "is not one of class, solved"), ("solve", "mean solved|is not one of class"),
    ("match", "takes a regular expression, as in match:"), ("match:(", "is no regular expression"),
    ("solved:x", "takes nothing after it: leave out :x"), ("solved", "toy has no answers to check"),
    ("log_p:mdlm", "run of mdlm, which has a bound and no probabilities")])
def test_a_reward_that_is_none_is_refused_in_one_line(reward, says, toy):
    with pytest.raises(UserError, match=says) as refused:
        read_reward(reward, toy)
    assert "\n" not in str(refused.value)


def test_where_none_is_given_the_data_check(toy):
    assert default_reward(toy) == "grammatical"
    assert default_reward(model_of("sudoku4")) == "solved"
    with pytest.raises(UserError, match="say what to look for: chat has no checker and no"):
        default_reward(model_of("chat", 64))


def test_what_does_not_fit_is_refused_in_one_line(toy):
    with pytest.raises(UserError, match="rates whole texts, and bd3lm does not write them at once"):
        make_sampler("smc", make_method("bd3lm", 5))
    with pytest.raises(UserError, match="draws whole texts, and bd3lm"):
        make_sampler("grammar", make_method("bd3lm", 5))
    with pytest.raises(UserError, match="--value class is for --reward class"):
        make_sampler("smc", toy.method, reward="grammatical", value="class").prepare(toy)
    with pytest.raises(UserError, match="sudoku4 has no grammar that is known"):
        read_reward("grammatical", model_of("sudoku4"))


# ---- the scripts

TINY = ["--oracle", "mdlm", "--steps", "2", "--num_samples", "2", "--device", "cpu"]
RUNS = {"best-of": ["--texts", "2", "--lam", "1"], "path-integral": [], "local": ["--changes", "2"],
        "smc": ["--particles", "2", "--value", "class"],
        "particle-gibbs": ["--particles", "2", "--iterations", "1"]}


@pytest.mark.parametrize("name", RUNS)
def test_a_search_writes_by_the_class_of_a_classifier_and_counts_what_it_rates(name, capsys):
    config, given = parse(sample.Config, [*TINY, "--sampler", name, *RUNS[name], "--json",
                                          "--classifier", "exact", "--label", "sea"])
    sample.main(config, given)
    assert '"texts_rated": ' in capsys.readouterr().out


@pytest.mark.parametrize("words, says", [
    (["--reward", "class"], "log p(class | text): give --classifier and --label, or another"),
    (["--classifier", "exact", "--label", "sea", "--guidance", "2"], "divide --lam by it"),
    (["--classifier", "exact"], "needs a --label"),
    (["--value", "class"], "--value class is for --reward class, not for grammatical"),
    (["--corrector", "gibbs", "--reward", "class"], "--reward class is log p(class | text)"),
    (["--classifier", "exact", "--label", "sea", "--corrector", "gibbs"],
     "leave out --sampler and --corrector"),
    (["--reward", "match:sea", "--classifier", "exact", "--label", "sea"],
     "guidance has a step of its own")])
def test_a_class_without_a_classifier_is_refused_before_anything_is_written(words, says):
    config, given = parse(sample.Config, [*TINY, "--sampler", "smc", *words])
    with pytest.raises(UserError) as refused:
        sample.main(config, given)
    assert says in str(refused.value) and "\n" not in str(refused.value)


def test_evaluate_says_whose_law_the_texts_have(capsys):
    few = ["--oracle", "mdlm", "--max_texts", 4, "--num_samples", 2, "--draws", 1, "--steps", 2]
    law = results(capsys, *few, "--sampler", "best-of", "--reward", "grammatical")["law"]
    assert law["says"].endswith("they are chosen by --reward grammatical")
    run(*few, "--sampler", "grammar")
    assert "each step draws them given that they parse" in capsys.readouterr().out


def test_a_trained_classifier_rates_the_texts_of_a_trained_run(capsys):
    random_checkpoint("mdlm", method="mdlm")
    random_checkpoint("judge", method="classifier")
    config, given = parse(sample.Config, [
        "--out_dir", "mdlm", "--sampler", "smc", "--value", "class", "--classifier", "judge",
        "--label", "0", "--steps", "2", "--num_samples", "2", "--device", "cpu"])
    sample.main(config, given)
    assert "text 2" in capsys.readouterr().out
