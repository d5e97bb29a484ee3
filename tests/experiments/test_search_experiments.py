"""Search at equal cost: what is counted, and that every line of the table is a search."""
from data import load_data
from diffusion import ancestral
from experiments.search import LENGTH, count_texts, searches, write
from oracle import exact
from samplers import make_sampler
from samplers.generate import CallCounter


def test_a_cost_is_the_number_of_texts_that_the_network_reads_for_one_that_is_written():
    model = exact("mdlm")
    x, read, rated = write(model, ancestral, 3, 2)
    assert x.shape == (3, LENGTH) and (read, rated) == (2, 0)
    made = make_sampler("best-of", model.method, texts=3)
    made.score = lambda x: x.double().mean(-1)  # (n,)
    _, read, rated = write(model, made, 2, 2)
    assert (read, rated) == (6, 3)
    spy = CallCounter(lambda z, t: None)
    count_texts(spy, x, None)
    assert spy.texts == 3 and spy.calls == 0


def test_every_line_of_the_table_is_a_search_with_flags_of_its_own():
    method, lines = exact("mdlm").method, list(searches())
    assert {name for _, name, _ in lines} == {"best-of", "smc", "particle-gibbs", "path-integral",
                                              "local"}
    for line, name, flags in lines:
        assert all(getattr(make_sampler(name, method, **flags), key) == value
                   for key, value in flags.items()), line
    assert len({line for line, *_ in lines}) == len(lines)
    assert load_data("toy", LENGTH).automaton is not None
