"""Which learning rate serves a trainer best: rates a factor apart are tried until the best lies between two others."""

import math

FACTOR, MOST = 10**0.5, 7


def rounded(rate):
    """Two digits, as names of runs have it."""
    return float(f"{rate:.1e}")


def next_rate(losses, first):
    """The rate to try next, after these losses by rate; `None` once the best is known, or so many were tried."""
    if not losses:
        return first
    best = min(losses, key=losses.get)
    for rate in (best * FACTOR, best / FACTOR):
        if len(losses) < MOST and not any(math.isclose(rate, other, rel_tol=0.2) for other in losses):
            return rounded(rate)
    return None


def climb(tried, first, spec):
    """Specs of the rates to try, one by one, since each depends on what the last gave. `tried()` gives the losses that are there."""
    while rate := next_rate(losses := tried(), first):
        yield spec(rate)
        if len(tried()) == len(losses):  # it was not made now
            return


def best(losses, first):
    return min(losses, key=losses.get) if losses and next_rate(losses, first) is None else None
