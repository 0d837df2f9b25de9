"""Projection of a decoder: tokens a second from the closed form of the cycles, area and power from the costs of its parts."""

from collections.abc import Mapping
from dataclasses import dataclass

from intaglio.gen.banks.execution import matrix_shapes
from intaglio.gen.estimate.costs import Cost
from intaglio.gen.estimate.machine import Machine

__all__ = ["DecoderEstimate", "estimate_decoder"]

BITS, EMBEDDING_BITS, KV_BITS, SCALE_BITS = 2, 8, 8, 26
TOM_TOKENS_PER_SECOND = 3306  # arXiv 2602.20662, without LM head


@dataclass(frozen=True, kw_only=True)
class DecoderEstimate:
    """Members
    -------
    phases : dict of int
        Cycles of one token at the end of the context, head included, by phase.
    cycles, cycles_without_head : int
    tokens_per_second, tokens_per_second_without_head, tokens_per_second_arrays : float
        With the head; without; if the ternary units alone counted and no row or input had to be filled up.
    storage : dict of int
        Bits of ``weights``, ``embedding``, ``kv_cache``.
    area_mm2, watts : dict of float
        By part; ``die`` is area over utilisation, ``total`` power at full speed.
    assumptions : tuple of str
    """

    phases: dict
    cycles: int
    cycles_without_head: int
    tokens_per_second: float
    tokens_per_second_without_head: float
    tokens_per_second_arrays: float
    storage: dict
    area_mm2: dict
    watts: dict
    assumptions: tuple


def estimate_decoder(machine: Machine, costs: Mapping[str, Cost]) -> DecoderEstimate:
    """Project one token at the end of ``machine.context``.

    Parameters
    ----------
    machine : Machine
    costs : dict of Cost

    Returns
    -------
    DecoderEstimate
    """
    program = machine.program()
    position = machine.context - 1
    whole = machine.token_cycles(position, program=program)
    without = machine.token_cycles(position, want=False, program=program)
    clock = machine.clock_hz
    storage = _storage(machine)
    area = _area(machine, costs, storage)
    return DecoderEstimate(
        phases=dict(whole.phases),
        cycles=whole.total,
        cycles_without_head=without.total,
        tokens_per_second=clock / whole.total,
        tokens_per_second_without_head=clock / without.total,
        tokens_per_second_arrays=clock * machine.lanes * machine.lane_width / (machine.layers * machine.layer_weights),
        storage=storage,
        area_mm2=area,
        watts=_watts(machine, costs, storage, area, whole.total),
        assumptions=_assumptions(machine),
    )


def _words(machine):
    """Words of weights that the ternary units read for a token: rows and inputs filled up."""
    shapes = matrix_shapes(machine.model).values()
    return (
        machine.layers
        * machine.lanes
        * sum(-(-rows // machine.lanes) * -(-inputs // machine.lane_width) for rows, inputs in shapes)
    )


def _storage(m):
    scales = 2 * m.kv_heads * SCALE_BITS
    return {
        "weights": _words(m) * m.lane_width * BITS,
        "embedding": m.vocab * m.hidden * EMBEDDING_BITS * (1 if m.model.tie_word_embeddings else 2),  # and the head
        "kv_cache": m.context * m.layers * (2 * m.kv_dim * KV_BITS + scales),
    }


def _area(m, costs, storage):
    c = {name: cost.value for name, cost in costs.items()}
    area = {
        "weights": storage["weights"] * c["weight_um2"],
        "embedding": storage["embedding"] * c["embedding_um2"],
        "ternary units": m.lanes * m.lane_width * c["lane_um2"],
        "multipliers": m.multipliers * c["multiplier_um2"],
        "kv cache": storage["kv_cache"] * c["sram_um2"],
    }
    area = {name: value / 1e6 for name, value in area.items()}
    return area | {"die": sum(area.values()) / c["utilisation"]}


def _watts(m, costs, storage, area, cycles):
    """At full speed, one token after the other."""
    c = {name: cost.value for name, cost in costs.items()}
    rate = m.clock_hz / cycles
    joule = 1e-15 * c["volt"] ** 2 * c["wires"] * c["activity"]  # for each fF of pins in use
    macs = m.vocab * m.hidden + 2 * m.layers * m.hidden * m.context
    height = 1024  # words of the bank that the capacitances were measured on: all of them may move when one is read
    read = 2 * m.layers * m.kv_dim * KV_BITS * m.context
    um2 = 1e6
    awake = {
        "weights": 1 / m.layers,
        "embedding": 0.0,
    }  # of the ROM; the rest is off. The head's banks are awake for its share of the time
    rom_leak = sum(
        area[part] * um2 * 1e-6 * c["rom_leakage"] * (share + (1 - share) * c["gated_leakage"])
        for part, share in awake.items()
    )
    logic = (area["ternary units"] + area["multipliers"]) * um2 * 1e-6 * c["logic_leakage"]
    watts = {
        "weights, reading": rate * storage["weights"] * height * c["weight_ff"] * joule,
        "embedding, reading": rate * storage["embedding"] * height * c["embedding_ff"] * joule,
        "ternary units": rate * _words(m) * m.lane_width * c["lane_ff"] * joule,
        "multipliers": rate * macs * c["multiplier_ff"] * joule,
        "kv cache": rate * read * c["sram_pj"] * 1e-12,
        "leakage, ROM gated": rom_leak,
        "leakage, logic": logic,
        "leakage, kv cache": storage["kv_cache"] * c["sram_leakage"] * 1e-6,
    }
    ungated = (area["weights"] + area["embedding"]) * um2 * 1e-6 * c["rom_leakage"]
    total = sum(watts.values())
    return watts | {"total": total, "total without gating": total - rom_leak + ungated}


def _assumptions(m):
    head = -(-m.vocab * m.head_groups // m.attention_tokens)
    return (
        f"One token after the other, at position {m.context - 1:,} (the last of the context); prompts are not sped up.",
        (
            f"Ternary matrices: {m.lanes} rows at once, {m.lane_width} inputs a cycle each; rows and inputs are filled up with zeros, a "
            "weight takes 2 bits."
        ),
        (
            "Pipelines are as deep as the RTL's whatever the widths; the result buffer takes all rows at once (the RTL wants their number "
            "to divide the vector width)."
        ),
        f"{m.reach} further cycles for each operation of the ternary units or the attention units, for wires across the die.",
        (
            f"Attention: INT8 cache; {m.attention_units} units of {m.attention_heads} query heads by {m.attention_tokens} tokens of "
            f"{m.head_dim} elements, {m.multipliers:,} multipliers of 16 x 8 bits, each of which gets its operands every cycle."
        ),
        (
            f"LM head: the embedding as INT8 ROM, {m.vocab:,} x {m.hidden:,} products on the attention units' multipliers ({head:,} "
            "cycles); the paper leaves it out."
        ),
        (
            f"Vector unit: {m.vector_width} elements a cycle. Norms, rotation, attention and matrices follow each other; only scalars "
            "overlap with a matrix, as in the RTL."
        ),
        "Area: ROM, units, multipliers and cache by the costs below; vector unit, sequencer, adapters, clock tree and IO are not counted.",
        (
            "Power: a use moves the share `activity` of the pins of the bank or unit used. ROM banks of one layer are on, the others off; "
            "waking costs no cycle. The embedding is on for the head only, its leakage then is not counted."
        ),
    )
