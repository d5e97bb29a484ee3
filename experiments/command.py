"""
Command lines of the experiments: python -m experiments.NAME COMMAND --flag value ...

The first word may stand for the flag --command; all else is as in every script (script.py).
"""
from flags import UserError
from script import run_script


def run_experiment(cls, main, first="command"):
    """script.run_script for an experiment. first: the flag that the first word stands for"""
    run_script(cls, main, [first])


def choose_command(config, commands):
    """The function of --command; UserError if it is not given. commands {name: function}"""
    if not config.command:
        raise UserError(f"say what to measure: {', '.join(commands)}; --help lists the flags")
    return commands[config.command]
