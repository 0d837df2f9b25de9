"""Power intent (UPF, IEEE 1801-2015) of a decoder whose weight banks are gated: what a real flow needs beside the Verilog.

A domain, a switch and an isolation strategy for each column of banks; everything else is always on. Control signals are those of
:class:`~intaglio.rtl.ternary.gate.BankGate`, so that the flow does what the simulation did.
"""

from intaglio.rtl.config.decoder import DecoderConfig

__all__ = ["power_intent"]

LINEAR = "core/linear"  # instance, from the top


def power_intent(config: DecoderConfig, top: str) -> str:
    """UPF of ``top`` as text."""
    lines = [
        f"# Power intent of {top}: {config.gate_banks} columns of {config.lanes} banks of {config.gate_words} words.",
        f"# A bank is read only after {config.gate_wake} cycles of power: the switches must settle within them.",
        "upf_version 2.1",
        f"set_design_top {top}",
        "set_scope .",
        "",
        "create_supply_port VDD -direction in",
        "create_supply_port VSS -direction in",
        "create_supply_net VDD",
        "create_supply_net VSS",
        "connect_supply_net VDD -ports {VDD}",
        "connect_supply_net VSS -ports {VSS}",
        "create_supply_set SS_ON -function {power VDD} -function {ground VSS}",
        "create_power_domain PD_TOP -elements {.} -supply {primary SS_ON}",
        "add_power_state -supply SS_ON -state {ON -supply_expr {power == FULL_ON && ground == FULL_ON}}",
    ]
    if config.gate_isolation:
        lines += [
            "",
            "# The Verilog clamps the banks' outputs by the same signals: a flow may merge its isolation cells with these gates.",
        ]
    for bank in range(config.gate_banks):
        lines += ["", *_column(config, bank)]
    return "\n".join(lines) + "\n"


def _column(config, b):
    elements = " ".join(f"{LINEAR}/rom_{lane}/bank_{b}" for lane in range(config.lanes))
    isolation = (
        f"-applies_to outputs -clamp_value 0 -isolation_signal {{{LINEAR}/gate/awake[{b}]}} -isolation_sense low "
        "-isolation_supply SS_ON -location parent"
        if config.gate_isolation
        else "-applies_to outputs -no_isolation"
    )
    switch = (
        f"-input_supply_port {{in VDD}} -output_supply_port {{out VDD_BANK_{b}}} -control_port {{on {LINEAR}/gate/power[{b}]}} "
        "-on_state {closed in {on}} -off_state {open {!on}}"
    )
    states = "-state {ON -supply_expr {power == FULL_ON && ground == FULL_ON}} -state {OFF -supply_expr {power == OFF}}"
    return [
        f"create_supply_net VDD_BANK_{b}",
        f"create_supply_set SS_BANK_{b} -function {{power VDD_BANK_{b}}} -function {{ground VSS}}",
        f"create_power_domain PD_BANK_{b} -elements {{{elements}}} -supply {{primary SS_BANK_{b}}}",
        f"create_power_switch SW_BANK_{b} -domain PD_TOP {switch}",
        f"set_isolation ISO_BANK_{b} -domain PD_BANK_{b} {isolation}",
        f"add_power_state -supply SS_BANK_{b} {states}",
    ]
