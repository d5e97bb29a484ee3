"""Answers to exercise 24: see answers.py."""

RIGHT = {
    24: ["return (1 if steps - 1 <= hops else 1 / arms), 1",
         "left = 1 / arms\nif hops + 1 >= steps: left = 1\nreturn [left, 1.0]",
         "import torch\nreturn torch.tensor([1.0 if hops > steps - 2 else 1 / arms, 1.0])"],
}

WRONG = {
    24: [("return 1 / arms, 1.0", "also where the goal is in reach"),
         ("return 1.0, 1.0", "that is 3 edges away"),
         ("return arms ** -steps, 1.0", "every letter were a guess"),
         ("return 1 / (arms * steps + 1), 1.0", "all letters were equally likely"),
         ("return (1.0 if hops >= steps - 1 else 1 / arms,) * 2", "it began at the start"),
         ("return 1 / arms", "return two numbers"), ("pass", "it returns None")],
}
