"""
Which methods are alike for a test, so that nothing is proved twice.

Every method is proved once, end to end, whatever it shares with others: trained, stopped, resumed,
sampled and evaluated, in tests/scripts/test_train_runs.py. Its flags, gradients and given tokens
have their own tests in tests/theory/test_methods.py. Other tests repeat only what differs:

    one_of_each      samplers: one method for each process, list of samplers and length of blocks
    enough           samplers: these, and others that write by code of their own
    each_once        scripts: of what fits, each name, sampler and corrector once
    scripts_differ   scripts: a method for every fact that a script can see. General code names no
                     method, so what it does depends on the facts and hooks of methods/base.py only
    fitting          samplers: all that fit each other, without the words of a refusal
    first_with       flags: the first method that has a flag from the class that defines it
    noises_differ    the toy language: one method for each kind of noise
    bounds_differ    bounds: one method for each process, nelbo, oracle and likelihood. Methods that
                     inherit all of them differ in training
"""
from flags import load_row
from methods import METHODS, make_method
from methods.base import Method
from samplers import CORRECTORS, samplers_for

HOOKS = ("check on_start on_data on_step extra_state weights_from with_network usage measures "
         "prior sample count_states").split()
FACTS = ("process mask_mod uses_time bidirectional shardable exact bounded classifies "
         "fixed_positions counts_padding samplers takes_steps opens_masks plans scores_ratios "
         "reads_in_order uniform_at_first one_by_one block_length max_steps revises_text").split()


def in_place(names):
    """Methods whose words keep their places. What inserts words has the toy language's sentences as
    its language, and tests/any_length.py and the tests beside it."""
    return [name for name in names if not load_row(METHODS, name).any_length]


def own(method, name):
    """Which function a method has: another one, or that of the methods it inherits from."""
    function = getattr(type(method), name)
    return getattr(function, "__func__", function)


def fitting(methods):
    """All (name, sampler, corrector) that fit each other. methods {name: method}"""
    correctors = {name: load_row(CORRECTORS, name)() for name in CORRECTORS}
    for name, method in methods.items():
        last = [key for key, corrector in correctors.items() if not corrector.fits(method)]
        yield from ((name, sampler, key) for sampler in samplers_for(method) for key in last)


def one_of_each(methods):
    """The names of methods, {name: method}, that differ in what sampling depends on. Methods that
    share it differ in training."""
    return list({kind(method): name for name, method in reversed(methods.items())}.values())


def kind(method):
    return type(method.process), method.samplers, method.block_length


def enough(cases, methods):
    """Those of the cases (name, sampler, ...) that show something new."""
    def writes(name):
        """What writes the text, whatever the sampler is."""
        method = methods[name]
        code = [own(method, function) for function in ("sample", "prior", "likelihood")]
        return kind(method), *code, method.network, method.plans
    different, there = one_of_each(methods), set(cases)
    known = {writes(name) for name in different}
    return [case for case in cases if case[0] in different
            or case[1] in ("ancestral", methods[case[0]].first_choice)
            and writes(case[0]) not in known
            or not any((name, *case[1:]) in there for name in different)]


def each_once(cases):
    """The cases (name, sampler, ...) that are the first with one of their parts: scripts only hand
    one to the other, and tests/samplers tries all pairs."""
    there, chosen = set(), []
    for case in cases:
        parts = {*enumerate(case)}
        if not parts <= there:
            there |= parts
            chosen.append(case)
    return chosen


def seen(name):
    """What scripts can see of a method: facts, yes or no, and hooks of its own. -> set of pairs"""
    method = make_method(name, 8)
    facts = {(fact, bool(getattr(method, fact))) for fact in FACTS}
    hooks = {(hook, own(method, hook) is not own(Method(8), hook)) for hook in HOOKS}
    many = {("heads", method.heads > 1), ("first_choice", method.first_choice)}
    return facts | hooks | many


def networks(name):
    """The class, or the function, that makes the network."""
    return {load_row(METHODS, name).network}


def scripts_differ(names, also=(), by=seen):
    """Names of methods that together have all that a script can see of any of `names`.

    also: those that a test has flags for; by: what else it depends on, as `networks`
    """
    left, chosen = {name: seen(name) | by(name) for name in names}, []
    missing = set().union(*left.values())
    for name in [*also, *left]:
        most = max(left, key=lambda other: len(left[other] & missing))
        name = name if name in also else most
        if name not in chosen and (name in also or left[name] & missing):
            chosen.append(name)
            missing -= left[name]
    return [name for name in left if name in chosen]


def bounds_differ(names):
    """The first method of `names` for each bound: its process, and the functions that make it."""
    def parts(name):
        method = make_method(name, 8)
        called = own(method, "nelbo").__code__.co_names  # also helpers that are another's
        functions = {name: own(method, name) for name in ("nelbo", "oracle", "likelihood", *called)
                     if callable(getattr(type(method), name, None))}
        return type(method.process), *functions.items()
    return list({parts(name): name for name in reversed(names)}.values())[::-1]


def noises_differ(names):
    """The first method of `names` for each kind of noise: by the class from which its process has
    all others as variants, in schedule or in state."""
    def root(name):
        process = make_method(name, 8).process
        return process and type(process).__mro__[-2]
    return list({root(name): name for name in reversed(names)}.values())[::-1]


def first_with(method, flag):
    """The first method whose flag this is: it defines it, or inherits it from the same class."""
    def owner(name):
        return next((cls for cls in load_row(METHODS, name).__mro__
                     if flag in vars(cls).get("__annotations__", {})), None)
    return next(name for name in METHODS if owner(name) is owner(method))
