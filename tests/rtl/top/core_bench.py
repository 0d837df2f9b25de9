"""The decoder's core in Amaranth's simulator, with ROM images of a model: words in, packets out, cycles in which it is active."""

import numpy as np
from amaranth.sim import Simulator

from intaglio.gen.checkpoint.model import ModelConfig
from intaglio.gen.emit.images import images, program_words
from intaglio.rtl.memory.rom import Rom
from intaglio.rtl.top.decoder import DecoderCore

MODEL = ModelConfig(
    vocab_size=11,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
)


def fill(monkeypatch, model):
    """Give ROMs without contents those of a model."""
    roms, plain = images(model), Rom.elaborate

    def elaborate(rom, platform):
        if rom.init is None:
            rom.init = [int.from_bytes(word.tobytes(), "little") for word in np.ascontiguousarray(roms[rom.name])]
        return plain(rom, platform)

    monkeypatch.setattr(Rom, "elaborate", elaborate)


def answers(model, commands, count, *, stall=lambda cycle, found: False, most=20_000):
    """Packets that answer ``commands``, ``count`` of them, and ``active`` of every cycle until the core rests.

    ``stall(cycle, packets so far)`` says when no word is taken.
    """
    core = DecoderCore(model.config, len(program_words(model)), lane_instance=False)
    found, active = [], []

    async def bench(ctx):
        queue, cycle, packet = list(commands), 0, []
        while len(found) < count or queue or ctx.get(core.active):
            ctx.set(core.command_valid, bool(queue))
            ctx.set(core.command_data, queue[0] if queue else 0)
            ctx.set(core.result_ready, not stall(cycle, len(found)))
            if ctx.get(core.result_valid) and ctx.get(core.result_ready):
                packet.append(ctx.get(core.result_data))
                if ctx.get(core.result_last):
                    found.append(packet)
                    packet = []
            if queue and ctx.get(core.command_ready):
                queue.pop(0)
            active.append(ctx.get(core.active))
            await ctx.tick()
            cycle += 1
            assert cycle < most, "the core hangs"
        assert not packet

    simulator = Simulator(core)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    return found, active
