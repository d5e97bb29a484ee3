"""
Standard errors: how far chance moves a figure, printed behind `+-`.

v_1 .. v_n are the figures of n texts, v their mean, and d_i = v_i - v.

    independent texts    se^2 = sum_i d_i^2 / (n (n - 1))                                    (12.1)
    texts in order       se^2 = ( 2 sum_{k < K} (c_2k + c_2k+1) - c_0 ) / (n - 1),           (12.2)
                         c_k = sum_i d_i d_{i+k} / n, the covariance with the k-th next text
    r = sum a / sum b    the error of the mean of v_i = (a_i - r b_i) / (sum b / n)          (12.3)
    S seeds, same texts  se^2 = (mean error of a run)^2 + (spread over seeds)^2 / S          (12.4)

Windows that are cut one behind the other from a stream tell of the same subject: a hard one comes
before a hard one, and (12.1) is too small by half on docstrings. (12.2) adds the covariances; it
stops at the first pair whose sum is not positive, from which on they are noise (Geyer's initial
positive sequence, Statistical Science 7, 1992), and is never below (12.1). Of independent texts it
makes 4 to 10 % more than (12.1).

Two models on the same texts are compared by the differences, text by text: the mean of those has a
far smaller error than the two means. An error from fewer than about 20 texts, or 5 seeds, is itself
uncertain: two of them hold the truth less often than 19 times in 20 (Student's t).
"""
import math
import statistics

import torch


def mean_error(values, independent=False):
    """The mean of values (n,) and its standard error: (12.1) or, for texts in order, (12.2).

    It is nan for a single value. independent: whether the texts are; if in doubt they are not.
    """
    n, values = len(values), values.cpu().double()  # (n,)
    mean = values.mean()  # ()
    if n < 2:
        return mean.item(), math.nan
    d = values - mean  # (n,)
    total = d.square().sum() / n  # () c_0
    if not independent:
        c = torch.fft.irfft(torch.fft.rfft(d, 2 * n).abs().square(), 2 * n)[:n] / n  # (n,)
        pairs = c[:n // 2 * 2].view(-1, 2).sum(-1)  # (n // 2,) c_2k + c_2k+1
        positive = (pairs > 0).long().cumprod(0)  # (n // 2,) 1 up to the first that is not
        total = torch.maximum(total, 2 * (pairs * positive).sum() - c[0])  # ()
    return mean.item(), (total / (n - 1)).sqrt().item()


def pooled_rate(nats, scored, independent=False):
    """sum nats / sum scored of texts (n,), and its standard error (12.3)."""
    nats, scored = nats.double(), scored.double()  # (n,) each
    rate = nats.sum() / scored.sum()  # ()
    return rate.item(), mean_error((nats - rate * scored) / scored.mean(), independent)[1]


def mean_over_seeds(values, errors):
    """The mean over runs with S seeds on the same texts, and its standard error (12.4).

    values, errors: a number for each run; the errors are those of single runs
    """
    spread = statistics.variance(values) / len(values) if len(values) > 1 else 0.0
    return statistics.mean(values), math.hypot(statistics.mean(errors), math.sqrt(spread))


def with_error(value, error, form=".3f"):
    """'1.234 +- 0.005', or what there is: a single text has no error, no text no value."""
    if value is None or math.isnan(value):
        return "none"
    if error is None or math.isnan(error):
        return f"{value:{form}} (no error: one text)"
    return f"{value:{form}} +- {error:{form.lstrip('+')}}"
