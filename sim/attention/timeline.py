"""Time line of a simulated run as a Chrome trace (chrome://tracing, ui.perfetto.dev)."""

import numpy as np

__all__ = ["chrome_trace", "intervals"]

SAMPLES = 400  # of the utilisation over a run
GAP = 8  # cycles: shorter pauses of a unit are not shown


def intervals(cycles, on, end, gap=0):
    """(begin, end) of the times when ``on`` holds; ``on[i]`` holds from ``cycles[i]`` to the next. Pauses up to ``gap`` are closed."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], on.astype(np.int8), [0]])))
    stops = np.append(cycles, end).astype(np.int64)
    spans = stops[edges].reshape(-1, 2)
    spans = spans[spans[:, 1] > spans[:, 0]]
    if not len(spans):
        return []
    apart = np.flatnonzero(spans[1:, 0] - spans[:-1, 1] > gap) + 1
    return [(int(part[0, 0]), int(part[-1, 1])) for part in np.split(spans, apart)]


def chrome_trace(runs, monitor, clock_hz):
    """The trace as a dict for JSON.

    Parameters
    ----------
    runs : list of (title, cycles uint64 [n], values uint64 [n])
        Recorded changes of the monitor, see :meth:`~intaglio.sim.verilator.library.Simulation.events`; a process each.
    monitor : dict
        Of the manifest: ``phases`` and ``bits``.
    clock_hz : int
        The stated clock: a microsecond of the trace is one of the hardware.
    """
    micro = 1e6 / clock_hz
    events = []
    for process, (title, cycles, values) in enumerate(runs):
        values = values.astype(np.int64)
        cycles = cycles.astype(np.int64)
        phase = values & 7
        busy = np.flatnonzero(phase)
        if not len(busy):
            continue
        first, last = int(cycles[busy[0]]), int(cycles[min(busy[-1] + 1, len(cycles) - 1)])
        bit = {name: values >> place & 1 == 1 for name, place in monitor["bits"].items()}
        matrix = (bit["keys"] | bit["values"]) & (phase != 0)
        tracks = [
            ("phase", [(name, phase == number, 0) for number, name in enumerate(monitor["phases"]) if number]),
            ("matrix unit", [("rows", matrix, GAP)]),
            ("results", [("results", bit["draining"], GAP)]),
            ("memory", [("blocks", bit["fetching"], GAP)]),
            (
                "waiting",
                [("for keys and values", bit["stalled"], 0), ("for queries or accumulators", bit["waiting"], 0)],
            ),
        ]
        events.append({"ph": "M", "name": "process_name", "pid": process, "args": {"name": title}})
        for thread, (track, kinds) in enumerate(tracks):
            events.append({"ph": "M", "name": "thread_name", "pid": process, "tid": thread, "args": {"name": track}})
            for name, on, gap in kinds:
                events += [
                    {
                        "ph": "X",
                        "name": name,
                        "pid": process,
                        "tid": thread,
                        "ts": (begin - first) * micro,
                        "dur": (end - begin) * micro,
                        "args": {"cycles": end - begin},
                    }
                    for begin, end in intervals(cycles, on, last, gap)
                ]
        spans = np.array(intervals(cycles, matrix, last) or [(first, first)])
        edges = np.linspace(first, last, SAMPLES + 1)
        done = np.concatenate([[0], np.cumsum(spans[:, 1] - spans[:, 0])])
        whole = np.searchsorted(spans[:, 1], edges, side="right")
        part = np.clip(edges - np.append(spans[:, 0], last)[whole], 0, None)
        used = np.diff(done[whole] + part) / np.diff(edges)
        events += [
            {
                "ph": "C",
                "name": "utilisation",
                "pid": process,
                "ts": (edge - first) * micro,
                "args": {"share": round(float(x), 4)},
            }
            for edge, x in zip(edges[:-1], used, strict=True)
        ]
    return {"traceEvents": events, "displayTimeUnit": "ns", "otherData": {"clock_hz": clock_hz, "class": "simulated"}}
