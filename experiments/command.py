"""
Command lines of the experiments: python -m experiments.NAME COMMAND --flag value ...

The first word may stand for the flag --command; all else is as in every script (flags.py).
"""
import sys

from flags import UserError, run_script


def run_experiment(cls, main, first="command"):
    """flags.run_script for an experiment. first: the flag that the first word stands for"""
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        sys.argv.insert(1, f"--{first}")
    run_script(cls, main)


def choose_command(config, commands):
    """The function of --command; UserError if it is not given. commands {name: function}"""
    if not config.command:
        raise UserError(f"say what to measure: {', '.join(commands)}; --help lists the flags")
    return commands[config.command]
