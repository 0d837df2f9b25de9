"""What a configuration of the decoder must fulfil; everything is checked when it is made, before long work starts."""

from intaglio.rtl.memory import ROM_FORMS

__all__ = ["ACTIVATIONS", "ADAPTED_OPERATIONS", "DOTS", "MOST_BANKS", "PACKINGS", "check", "check_packing"]

PACKINGS = ("2bit", "5trit", "pairs")
DOTS = ("planes", "adders", "tables")
ACTIVATIONS = ("relu2", "silu")
ADAPTED_OPERATIONS = (
    ("q", "k", "v"),
    ("o",),
    ("gate", "up"),
    ("down",),
)  # matrices that one linear operation computes together
MOST_BANKS = 128


def check_packing(packing):
    """Raise ``ValueError`` unless ``packing`` is one of :data:`PACKINGS`."""
    if packing not in PACKINGS:
        raise ValueError(f"packing must be one of {', '.join(PACKINGS)}, not {packing!r}")


def _need(ok, text):
    if not ok:
        raise ValueError(text)


def _power_of_2(value):
    return isinstance(value, int) and value > 0 and value & (value - 1) == 0


def check(c):
    """Raise ``ValueError`` where a :class:`~intaglio.rtl.config.decoder.DecoderConfig` is out of range, or a count does not fit its field
    of the layer program or its counter in a unit; the text says what must hold and what was given."""
    for name in (
        "hidden",
        "intermediate",
        "layers",
        "heads",
        "kv_heads",
        "vocab",
        "lanes",
        "lane_width",
        "top_k",
        "clock_hz",
    ):
        value = getattr(c, name)
        _need(isinstance(value, int) and value > 0, f"{name} must be a positive integer, not {value!r}")
    _need(
        _power_of_2(c.head_dim) and 4 <= c.head_dim <= 256,
        f"head_dim must be a power of 2 in 4..256, not {c.head_dim!r}",
    )
    _need(c.hidden == c.heads * c.head_dim, f"hidden must be heads * head_dim = {c.heads * c.head_dim}, not {c.hidden}")
    _need(c.activation in ACTIVATIONS, f"activation must be one of {', '.join(ACTIVATIONS)}, not {c.activation!r}")
    for name in ("sub_norms", "tied_head", "row_scales"):
        value = getattr(c, name)
        _need(type(value) is int and value in (0, 1), f"{name} must be 0 or 1, not {value!r}")
    _need(c.heads % c.kv_heads == 0, f"kv_heads must divide heads = {c.heads}, not {c.kv_heads}")
    _need(
        isinstance(c.context, int) and 2 <= c.context <= 65535, f"context must be in 2..65535 tokens, not {c.context!r}"
    )
    for name, most in (("sequences", 256), ("batch", 32)):
        value = getattr(c, name)
        _need(type(value) is int and 1 <= value <= most, f"{name} must be an integer in 1..{most}, not {value!r}")
        _need(not (c.rank and value > 1), f"{name} must be 1 where there are adapters, not {value}")
    _need(2 <= c.vocab < 1 << 20, f"vocab must be in 2..{(1 << 20) - 1}, not {c.vocab}")
    _need(
        c.context < 1 << c.position_bits,
        f"context must be at most {(1 << c.position_bits) - 1} tokens where tokens have "
        f"{c.token_bits} bits (they share a word of the result), not {c.context}",
    )
    check_packing(c.packing)
    _need(c.dot in DOTS, f"dot must be one of {', '.join(DOTS)}, not {c.dot!r}")
    _need(
        c.packing != "pairs" or c.dot == "tables",
        f"dot must be tables where packing is pairs, not {c.dot!r}; 2bit and 5trit go with every dot",
    )
    _need(c.rom in ROM_FORMS, f"rom must be one of {', '.join(ROM_FORMS)}, not {c.rom!r}")
    _need(c.lanes % 2 == 0, f"lanes must be even, not {c.lanes}")
    for name in ("hidden", "intermediate"):
        value = getattr(c, name)
        _need(value % c.lane_width == 0, f"lane_width must divide {name} = {value}, not {c.lane_width}")
        _need(value % c.lanes == 0, f"lanes must divide {name} = {value}, not {c.lanes}")
    _need(c.kv_dim * 2 % c.lanes == 0, f"lanes must divide 2 * kv_heads * head_dim = {2 * c.kv_dim}, not {c.lanes}")
    _need(
        _power_of_2(c.vector_width) and c.vector_width >= 2,
        f"vector_width must be a power of 2 and at least 2, not {c.vector_width!r}",
    )
    for name in ("head_dim", "lane_width", "intermediate"):
        value = getattr(c, name)
        _need(value % c.vector_width == 0, f"vector_width must divide {name} = {value}, not {c.vector_width}")
    _need(c.vector_width % c.lanes == 0, f"vector_width must be a multiple of lanes = {c.lanes}, not {c.vector_width}")
    _need(
        isinstance(c.attention_heads, int) and c.attention_heads > 0 and c.group % c.attention_heads == 0,
        f"attention_heads must divide heads / kv_heads = {c.group}, not {c.attention_heads!r}",
    )
    _need(c.top_k <= min(31, c.vocab), f"top_k must be in 1..31 and at most vocab = {c.vocab}, not {c.top_k}")
    _need(0 <= c.embed_shift <= 24, f"embed_shift must be in 0..24, not {c.embed_shift!r}")
    _check_adapters(c)
    widest = max(c.hidden, c.intermediate)
    for what, count, limit in (
        ("hidden (its cubed sums must fit 64 bits)", c.hidden, 16384),
        ("layers", c.layers, 1023),
        ("heads + 2 * kv_heads", c.heads + 2 * c.kv_heads, 256),
        ("max(hidden, intermediate) / vector_width", widest // c.vector_width, 1023),
        ("max(hidden, intermediate) / lane_width", widest // c.lane_width, 1023),
        ("max(qkv_rows, 2 * intermediate) / lanes", max(c.qkv_rows, 2 * c.intermediate) // c.lanes, 65535),
        (
            "words of norm gains, (layers * (3 * hidden + intermediate) + hidden) / vector_width"
            if c.sub_norms
            else "words of norm gains, ((2 * layers + 1) * hidden + max(hidden, intermediate)) / vector_width",
            c.gain_words,
            65536,
        ),
    ):
        _need(count <= limit, f"{what} must be at most {limit}, not {count}")
    _need(
        c.gate_words == 0 or _power_of_2(c.gate_words) and c.gate_words >= 2,
        f"gate_words must be 0 or a power of 2 from 2, not {c.gate_words!r}",
    )
    _need(
        type(c.gate_isolation) is int and c.gate_isolation in (0, 1),
        f"gate_isolation must be 0 or 1, not {c.gate_isolation!r}",
    )
    _need(
        type(c.gate_wake) is int and 0 <= c.gate_wake <= 254, f"gate_wake must be in 0..254 cycles, not {c.gate_wake!r}"
    )
    _need(not (c.rank and c.gate_words), f"rank must be 0 where weight banks are gated, not {c.rank}")
    if c.gate_words:
        _need(c.gate_wake < c.gate_words, f"gate_wake must be less than gate_words = {c.gate_words}, not {c.gate_wake}")
        _need(
            2 <= c.gate_banks <= MOST_BANKS,
            f"gate_words must make 2..{MOST_BANKS} banks of a lane's {c.weight_depth} words, not {c.gate_banks}",
        )


def _check_adapters(c):
    for name, low, high in (("rank", 0, c.lane_width // 2), ("adapters", 1, 16), ("adapter_trits", 1, 5)):
        value = getattr(c, name)
        _need(type(value) is int and low <= value <= high, f"{name} must be an integer in {low}..{high}, not {value!r}")
    known = [name for names in ADAPTED_OPERATIONS for name in names]
    targets = c.adapter_targets.split(",") if isinstance(c.adapter_targets, str) else None
    _need(
        targets and targets == [name for name in known if name in targets],
        f"adapter_targets must be some of {','.join(known)} in this order, not {c.adapter_targets!r}",
    )
    if c.rank:
        _need(
            c.rank % c.lanes == 0 and c.lane_width // 2 % c.rank == 0,
            f"rank must be a multiple of lanes = {c.lanes} and divide lane_width / 2 = {c.lane_width // 2}, not {c.rank}",
        )
        _need(
            c.kv_dim % c.lanes == 0,
            f"lanes must divide kv_heads * head_dim = {c.kv_dim} where there are adapters, not {c.lanes}",
        )
