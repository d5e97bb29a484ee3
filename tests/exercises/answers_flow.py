"""Answers to exercise 27: see answers.py."""

RIGHT = {
    27: ["return 1 - 1 / n_words - math.log(n_words) / n_words",
         "keep = 1 / n_words\nreturn (1 - keep) * (1 + math.log(n_words)) - math.log(n_words)",
         "import torch\nn = torch.tensor(float(n_words))\nreturn (n - 1 - n.log()) / n"],
}

WRONG = {
    27: [("return 0", "there an exact network pays nothing"),
         ("return (1 - 1 / n_words) * (math.log(n_words) + 1)", "take off the entropy"),
         ("b = 1 - 1 / n_words\nreturn b * (math.log(n_words) + b / 2) - math.log(n_words)",
          "a token that is x cost nothing"), ("return 1.0", "one of n times it does"),
         ("pass", "return it")],
}
