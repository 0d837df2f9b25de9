"""Signatures of AXI4, AXI4-Lite and AXI4-Stream, each from the side that asks or sends, and their names as ports of a top."""

from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

__all__ = ["axi4_lite", "axi4_read", "axi4_stream", "axi4_write", "instance_ports", "port_map"]


def axi4_lite(address_bits):
    """AXI4-Lite of 32 bits without protection bits."""
    return wiring.Signature(
        {
            "awaddr": Out(address_bits),
            "awvalid": Out(1),
            "awready": In(1),
            "wdata": Out(32),
            "wstrb": Out(4),
            "wvalid": Out(1),
            "wready": In(1),
            "bresp": In(2),
            "bvalid": In(1),
            "bready": Out(1),
            "araddr": Out(address_bits),
            "arvalid": Out(1),
            "arready": In(1),
            "rdata": In(32),
            "rresp": In(2),
            "rvalid": In(1),
            "rready": Out(1),
        }
    )


def axi4_read(address_bits, data_bits, *, id_bits=0):
    """The two channels of AXI4 reads; without ids where ``id_bits`` is 0."""
    return wiring.Signature(
        {
            **({"arid": Out(id_bits)} if id_bits else {}),
            "araddr": Out(address_bits),
            "arlen": Out(8),
            "arsize": Out(3),
            "arburst": Out(2),
            "arvalid": Out(1),
            "arready": In(1),
            **({"rid": In(id_bits)} if id_bits else {}),
            "rdata": In(data_bits),
            "rresp": In(2),
            "rlast": In(1),
            "rvalid": In(1),
            "rready": Out(1),
        }
    )


def axi4_write(address_bits, data_bits):
    """The three channels of AXI4 writes without ids."""
    return wiring.Signature(
        {
            "awaddr": Out(address_bits),
            "awlen": Out(8),
            "awsize": Out(3),
            "awburst": Out(2),
            "awvalid": Out(1),
            "awready": In(1),
            "wdata": Out(data_bits),
            "wstrb": Out(data_bits // 8),
            "wlast": Out(1),
            "wvalid": Out(1),
            "wready": In(1),
            "bresp": In(2),
            "bvalid": In(1),
            "bready": Out(1),
        }
    )


def axi4_stream(data_bits, *, user_bits=0):
    """AXI4-Stream with the end of packets."""
    return wiring.Signature(
        {
            "tdata": Out(data_bits),
            **({"tuser": Out(user_bits)} if user_bits else {}),
            "tvalid": Out(1),
            "tready": In(1),
            "tlast": Out(1),
        }
    )


def port_map(top):
    """Ports of a component for conversion, by the exact names of AXI tools: member ``awaddr`` of ``s_axil`` is ``s_axil_awaddr``."""
    return {"_".join(map(str, path)): (value, None) for path, _, value in top.signature.flatten(top)}


def instance_ports(prefix, bus):
    """Ports of an :class:`~amaranth.hdl.Instance` for the other end of ``bus``, by the names that it has there."""
    return {
        f"{'i' if member.flow is Out else 'o'}_{prefix}_{name}": getattr(bus, name)
        for name, member in bus.signature.members.items()
    }
