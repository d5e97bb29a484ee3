"""Which methods are sampled alike: tests of samplers try all of them with one method of each kind,
and the other methods with the samplers that they are used with."""


def one_of_each(methods):
    """The names of methods, {name: method}, that differ in what sampling depends on. Methods that
    share it differ in training."""
    def kind(method):
        return type(method.process), method.samplers, method.block_length
    return list({kind(method): name for name, method in reversed(methods.items())}.values())


def enough(cases, methods):
    """Those of the cases (name, sampler, ...) that show something new."""
    different = one_of_each(methods)
    return [case for case in cases if case[0] in different
            or case[1] in ("ancestral", methods[case[0]].first_choice)]
