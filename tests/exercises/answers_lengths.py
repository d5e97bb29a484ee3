"""Answers to exercises 31 and 32: see answers.py."""

LOOP = "S = [0.0, 0.0]\nfor k in range(2, n + 1):\n    S.append({})\nreturn S[n]"

RIGHT = {
    31: [LOOP.format("math.log(k) + 2 * sum(S) / k"),
         "return 0.0 if n < 2 else math.log(n) + 2 / n * sum(slack(k) for k in range(n))",
         "import numpy\nS = numpy.zeros(n + 2)\nfor k in range(2, n + 1):\n"
         "    S[k] = math.log(k) + 2 * S[:k].mean()\nreturn float(S[n])"],
    32: ["w = [law[n] / (1 + n) for n in range(len(law))]\nreturn [a / sum(w) for a in w]",
         "import torch\nq = torch.tensor(law) / torch.arange(1, len(law) + 1)\nreturn q / q.sum()",
         "import numpy\nq = numpy.array(law) / (numpy.arange(len(law)) + 1)\nreturn q / q.sum()"],
}

WRONG = {
    31: [(LOOP.format("math.log(k) + sum(S) / k"), "both gaps"),
         ("return math.lgamma(n + 1)", "as if all orders"),
         ("return math.log(n) if n else 0.0", "go on"), ("pass", "it returns None")],
    32: [("return law", "it is the law of the texts"),
         ("return [p / (n + 1) for n, p in enumerate(law)]", "do not sum to 1"),
         ("q = [p * (n + 1) for n, p in enumerate(law)]\nreturn [a / sum(q) for a in q]",
          "upside down"),
         ("q = [p / max(n, 1) for n, p in enumerate(law)]\nreturn [a / sum(q) for a in q]",
          "0 to n"), ("pass", "it returns None")],
}
