"""Times of functions that take turns, so that whatever else the machine does falls on all of them alike."""

import random
import statistics
import time

PAUSE = 2e-3  # before each turn, so that one's idle threads have stopped spinning when the next begins


def by_turns(contestants, seconds, least, warm=False):
    """For each of `contestants` (functions by name), how long its calls took. Each runs once before, unmeasured, then once a
    round, in an order drawn anew (from a fixed seed), `least` rounds and until `seconds` are over: who runs after whom decides
    what is still in caches, so nobody may always follow the same one, nor itself. With `warm`, each call follows one unmeasured of its own.
    """
    times = {name: [] for name in contestants}
    for function in contestants.values():
        function()
    names, order = list(contestants), random.Random(0)
    rounds, end = 0, time.perf_counter() + seconds
    while rounds < least or time.perf_counter() < end:
        last = names[-1]
        order.shuffle(names)
        if names[0] == last:  # nobody follows itself
            names.reverse()
        for name in names:
            time.sleep(PAUSE)
            if warm:
                contestants[name]()
            start = time.perf_counter()
            contestants[name]()
            times[name].append(time.perf_counter() - start)
        rounds += 1
    return times


def summary(times):
    """Median and quartiles in milliseconds, and the number of calls."""
    quartiles = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
    return {"ms": round(quartiles[1] * 1e3, 5), "quartiles": [round(q * 1e3, 5) for q in quartiles[::2]], "calls": len(times)}
