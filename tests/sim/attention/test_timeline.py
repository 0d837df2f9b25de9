"""Time line of a run: intervals, tracks and utilisation from recorded changes."""

import json

import numpy as np

from intaglio.sim.attention.timeline import SAMPLES, chrome_trace, intervals

MONITOR = {
    "phases": ["idle", "load", "attend"],
    "bits": {"keys": 4, "values": 5, "draining": 6, "fetching": 7, "stalled": 8, "waiting": 9},
}


def test_intervals():
    cycles = np.array([0, 10, 14, 20, 30], np.int64)
    on = np.array([False, True, False, True, True])
    assert intervals(cycles, on, 35) == [(10, 14), (20, 35)]
    assert intervals(cycles, on, 35, gap=6) == [(10, 35)]
    assert intervals(cycles, on & False, 35) == []


def test_trace():
    keys, values = 1 << 4, 1 << 5
    cycles = np.array([100, 200, 300, 400, 500, 600], np.uint64)
    changes = np.array([0, 1, 2 | keys, 2 | values, 2, 0], np.uint64)
    trace = chrome_trace([("layer 0", cycles, changes)], MONITOR, 100_000_000)
    assert json.loads(json.dumps(trace)) == trace
    events = trace["traceEvents"]
    spans = {(event["name"], event["ts"], event["dur"]) for event in events if event["ph"] == "X"}
    assert spans == {("load", 0.0, 1.0), ("attend", 1.0, 3.0), ("rows", 1.0, 2.0)}
    shares = [event["args"]["share"] for event in events if event["ph"] == "C"]
    assert len(shares) == SAMPLES and abs(sum(shares) / SAMPLES - 0.5) < 0.01  # 200 of 400 cycles
    assert shares[SAMPLES // 8] == 0 and shares[SAMPLES // 2] == 1


def test_nothing_recorded():
    assert chrome_trace([("idle", np.array([5], np.uint64), np.array([0], np.uint64))], MONITOR, 1)["traceEvents"] == []
