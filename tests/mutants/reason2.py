"""Mutants of gains by rewards in equal time, and of counted n-grams as a reward."""

GAINS = [
    ("experiments/rewards.py", "copy.deepcopy(start.average), settings,",
     "start.average, settings,", "test_rewards_experiments",
     "the distance is to a start that is shared"),
    ("experiments/rewards.py", "trainer.start_from(start.average.state_dict())", "pass",
     "test_rewards_experiments", "a policy that has not been trained"),
    ("experiments/rewards.py", "gains = [a - b for a, b in zip(rewards, before)]",
     "gains = [a - before[0] for a in rewards]", "test_rewards_experiments",
     "all seeds are compared with the start of the first"),
    ("experiments/rewards.py", "while seconds < share * config.seconds:",
     "while seconds < config.seconds:", "test_rewards_experiments",
     "all points are the last one"),
    ("experiments/rewards.py", "steps = config.start_iters + steps_in", "steps = steps_in",
     "test_rewards_experiments", "likelihood has less time"),
    ("runtime/rewards.py", "return lambda x: -nats(x)", "return lambda x: nats(x)", "test_rl",
     "unlikely texts are liked"),
    ("runtime/rewards.py", "int(order or 3)", "3", "test_rl", "always trigrams"),
    ("evaluation/ngram.py", "at, -1)  # (m,)", "at, 0)  # (m,)", "test_ngram",
     "n-grams that never occurred count as the first one"),
    ("evaluation/ngram.py", "np.append(-1, hw[:-1])", "np.append(0, hw[:-1])", "test_ngram",
     "the first symbol of a text has the history of the first n-gram"),
]
