"""
Command lines of the experiments: python -m experiments.NAME COMMAND --flag value ...

The first word may stand for the flag --command; all else is as in every script (script.py).
"""
from data.files import check_folder, check_writable
from flags import UserError
from script import run_script


def run_experiment(cls, main, first="command"):
    """script.run_script for an experiment. first: the flag that the first word stands for"""
    def checked(config, given):
        check_places(config)
        return main(config, given)
    run_script(cls, checked, [first])


def check_places(config):
    """UserError, before anything is measured, if what is measured cannot be saved."""
    places = vars(config)
    for folder in filter(None, (places.get("out_dir"), places.get("folder"))):
        check_folder(folder)
    if places.get("figure"):
        check_writable(places["figure"], makes_folder=True)


def choose_command(config, commands):
    """The function of --command; UserError if it is not given. commands {name: function}"""
    if not config.command:
        raise UserError(f"say what to measure: {', '.join(commands)}; --help lists the flags")
    return commands[config.command]


def chosen_names(config, option, known, between=","):
    """The names that a flag lists, all that are known if it is empty; UserError if one is not."""
    names = [name for name in getattr(config, option).split(between) if name]
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"--{option} {unknown[0]} is not one of {f'{between} '.join(known)}")
    return names or [*known]
