"""evaluate.py in this process, for the tests that read what it says."""
import json

import evaluate
from flags import parse


def run(*argv):
    evaluate.main(*parse(evaluate.Config, [str(word) for word in argv]))


def results(capsys, *argv):
    """What evaluate.py --json says."""
    capsys.readouterr()
    run(*argv, "--json")
    return json.loads(capsys.readouterr().out)
