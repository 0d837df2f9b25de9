// C interface to a Verilated device: registers (AXI4-Lite), a stream of results, and what else it has: a stream of commands, a memory
// behind an AXI4 read port, a monitor. faults.h, memory.h and this file are all that a kind of device needs.
//
// ports.h is generated from the manifest: CLOCK, RESET (active low) and, for each bus, a macro such as S_AXIL(x) that gives the name of
// the port with the suffix x: S_AXIL and M_AXIS; S_AXIS where there are commands; M_AXI and BEAT_BYTES where there is a memory; RESULT_BITS,
// and RESULT_USER where results have tuser; MONITOR. The model's class is Vtop. Functions return -1 (or nullptr) on a fault, which
// intaglio_error() tells. A device belongs to one thread at a time.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "Vtop.h"
#include "faults.h"
#include "memory.h"
#include "ports.h"
#include "verilated.h"
#if VM_TRACE_FST
#include "verilated_fst_c.h"
using TraceFile = VerilatedFstC;
#elif VM_TRACE_SAIF
#include "verilated_saif_c.h"
using TraceFile = VerilatedSaifC;
#elif VM_TRACE
#include "verilated_vcd_c.h"
using TraceFile = VerilatedVcdC;
#endif

namespace {

constexpr int64_t BUS_LIMIT = 10000;  // cycles that a register access may take
constexpr int DATA_WORDS = (RESULT_BITS + 31) / 32;
#ifdef RESULT_USER
constexpr int RESULT_WORDS = DATA_WORDS + 1;  // tuser is the last one
#else
constexpr int RESULT_WORDS = DATA_WORDS;
#endif

struct Result {
    uint32_t words[RESULT_WORDS] = {};
    bool last = false;

    bool operator!=(const Result& other) const { return last != other.last || std::memcmp(words, other.words, sizeof words); }
};

struct Device {
    VerilatedContext context;
    std::unique_ptr<Vtop> top;
#if VM_TRACE
    std::unique_ptr<TraceFile> trace;
#endif
    // What every cycle looks at, side by side.
    uint64_t cycles = 0;
    size_t head = 0;  // commands before it have been taken
    uint32_t random = 1, stall_in = 0, stall_out = 0;  // in 1/256: how often a command is not offered, or a result not taken
    int left = 0;  // words of `taken` that are still to be given
    bool offering = false, waiting = false, recording = false;
    std::vector<uint32_t> commands;
    std::vector<uint8_t> lasts;
    std::unique_ptr<intaglio::ReadSlave> memory;
    Result held, taken;  // what is on the result stream; the result that was taken last
    intaglio::Contents contents;
    std::vector<uint64_t> events;  // cycle << 16 | monitor, at each change
    uint32_t shown = ~0u;
    std::string error;

    Device() {
#if VM_TRACE
        context.traceEverOn(true);
#endif
        top.reset(new Vtop(&context));
    }

    bool chance(uint32_t limit) {  // xorshift32
        random ^= random << 13, random ^= random >> 17, random ^= random << 5;
        return (random >> 12 & 0xFF) < limit;
    }

    void dump(uint64_t half) {
#if VM_TRACE
        if (trace) trace->dump(2 * cycles + half);
#else
        (void)half;
#endif
    }

    size_t pending() const { return commands.size() - head; }

    // One clock cycle. Returns whether a result was taken, which is then in `taken`.
    bool tick(bool take) {
#ifdef S_AXIS  // a word that was offered stays offered until it is taken, whatever else happens
        if (!offering) offering = head < commands.size() && !(stall_in && chance(stall_in));
#endif
        if (stall_out && chance(stall_out)) take = false;
        top->CLOCK = 0;
        top->M_AXIS(tready) = take;
#ifdef S_AXIS
        top->S_AXIS(tvalid) = offering;
        top->S_AXIS(tdata) = offering ? commands[head] : 0;
        top->S_AXIS(tlast) = offering ? lasts[head] : 0;
#endif
#ifdef M_AXI
        top->M_AXI(arready) = memory && memory->arready();
        const bool rvalid = memory && memory->rvalid();
        top->M_AXI(rvalid) = rvalid;
        if (rvalid) {
            const auto& beat = memory->beat();
            std::memcpy(&top->M_AXI(rdata), beat.data.data(), BEAT_BYTES);  // bytes are little-endian, in ports of any width
            top->M_AXI(rid) = beat.id, top->M_AXI(rresp) = beat.response, top->M_AXI(rlast) = beat.last;
        }
#endif
        top->eval();
        dump(0);
#ifdef S_AXIS
        const bool sent = offering && top->S_AXIS(tready);
#endif
        const bool valid = top->M_AXIS(tvalid);
        const bool given = (valid || waiting) && top->RESET && result(valid, take);
#ifdef MONITOR
        if (recording && top->MONITOR != shown) shown = top->MONITOR, events.push_back(cycles << 16 | shown);
#endif
#ifdef M_AXI
        const bool arvalid = top->RESET && top->M_AXI(arvalid), rready = top->M_AXI(rready);
        const uint32_t id = top->M_AXI(arid), beats = top->M_AXI(arlen) + 1;
        const uint64_t address = top->M_AXI(araddr);
#endif
        top->CLOCK = 1;
        top->eval();
        dump(1);
        ++cycles;
#ifdef M_AXI
        if (memory) memory->edge(arvalid, id, address, beats, rready);
#endif
#ifdef S_AXIS
        if (sent) {
            offering = false;
            if (++head == commands.size()) commands.clear(), lasts.clear(), head = 0;
        }
#endif
        return given;
    }

    // Looks at the result stream; whether a result is taken.
    bool result(bool valid, bool take) {
        Result now;
        std::memcpy(now.words, &top->M_AXIS(tdata), RESULT_BITS / 8);
#ifdef RESULT_USER
        now.words[DATA_WORDS] = top->M_AXIS(tuser);
#endif
        now.last = top->M_AXIS(tlast);
        if (waiting && (!valid || now != held))
            throw std::runtime_error("the result stream changed while a word waited, at cycle " + std::to_string(cycles));
        waiting = !take;
        held = now;
        if (take) taken = now;
        return take;
    }

    void settle() {
        top->CLOCK = 0;
        top->eval();
    }

    void reset(int64_t count) {
        commands.clear(), lasts.clear(), head = 0, left = 0;
        offering = waiting = false;
        if (memory) memory->restart();
        top->S_AXIL(awvalid) = top->S_AXIL(wvalid) = top->S_AXIL(bready) = top->S_AXIL(arvalid) = top->S_AXIL(rready) = 0;
        top->RESET = 0;
        while (count-- > 0) tick(false);
        top->RESET = 1;
        tick(false);
    }

    void late() { throw std::runtime_error("the register bus did not answer in " + std::to_string(BUS_LIMIT) + " cycles"); }

    void write(uint32_t address, uint32_t value) {
        top->S_AXIL(awaddr) = address;
        top->S_AXIL(wdata) = value;
        top->S_AXIL(wstrb) = 0xF;
        top->S_AXIL(awvalid) = top->S_AXIL(wvalid) = 1;
        top->S_AXIL(bready) = 0;
        for (int64_t n = 0; top->S_AXIL(awvalid) || top->S_AXIL(wvalid); ++n) {
            if (n == BUS_LIMIT) late();
            settle();
            const bool address_taken = top->S_AXIL(awvalid) && top->S_AXIL(awready);
            const bool data_taken = top->S_AXIL(wvalid) && top->S_AXIL(wready);
            tick(false);
            if (address_taken) top->S_AXIL(awvalid) = 0;
            if (data_taken) top->S_AXIL(wvalid) = 0;
        }
        top->S_AXIL(bready) = 1;
        for (int64_t n = 0;; ++n) {
            if (n == BUS_LIMIT) late();
            settle();
            const bool done = top->S_AXIL(bvalid);
            const int response = top->S_AXIL(bresp);
            tick(false);
            if (!done) continue;
            top->S_AXIL(bready) = 0;
            if (response) throw std::runtime_error("the register bus answered a write with error " + std::to_string(response));
            return;
        }
    }

    uint32_t read(uint32_t address) {
        top->S_AXIL(araddr) = address;
        top->S_AXIL(arvalid) = 1;
        top->S_AXIL(rready) = 1;
        for (int64_t n = 0;; ++n) {
            if (n == BUS_LIMIT) late();
            settle();
            const bool address_taken = top->S_AXIL(arvalid) && top->S_AXIL(arready);
            const bool done = top->S_AXIL(rvalid);
            const int response = top->S_AXIL(rresp);
            const uint32_t value = top->S_AXIL(rdata);
            tick(false);
            if (address_taken) top->S_AXIL(arvalid) = 0;
            if (!done) continue;
            top->S_AXIL(rready) = 0;
            if (response) throw std::runtime_error("the register bus answered a read with error " + std::to_string(response));
            return value;
        }
    }
};

template <typename Action> int64_t guarded(void* handle, Action action) {
    Device& device = *static_cast<Device*>(handle);
    try {
        return action(device);
    } catch (const std::exception& fault) {
        device.error = fault.what();
        return -1;
    }
}

[[noreturn]] void lacks(const char* what) { throw std::runtime_error(std::string("the device must have ") + what + " for this, and has none"); }

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

void* intaglio_create() {
    try {
        return new Device;
    } catch (const std::exception&) {
        return nullptr;
    }
}

void intaglio_destroy(void* handle) {
    guarded(handle, [](Device& d) {
#if VM_TRACE
        if (d.trace) d.trace->close();
#endif
        return d.top->final(), 0;
    });
    delete static_cast<Device*>(handle);
}

const char* intaglio_error(void* handle) { return static_cast<Device*>(handle)->error.c_str(); }
uint64_t intaglio_cycles(void* handle) { return static_cast<Device*>(handle)->cycles; }
int64_t intaglio_pending(void* handle) { return static_cast<Device*>(handle)->pending(); }

int64_t intaglio_reset(void* handle, int64_t cycles) {
    return guarded(handle, [=](Device& d) { return d.reset(cycles), 0; });
}

int64_t intaglio_write(void* handle, uint32_t address, uint32_t value) {
    return guarded(handle, [=](Device& d) { return d.write(address, value), 0; });
}

int64_t intaglio_read(void* handle, uint32_t address) {
    return guarded(handle, [=](Device& d) { return static_cast<int64_t>(d.read(address)); });
}

// Random stalls from now on: a share of in/256 cycles offers no command, a share of out/256 takes no result.
int64_t intaglio_stalls(void* handle, uint32_t seed, uint32_t in, uint32_t out) {
    return guarded(handle, [=](Device& d) { return d.random = seed ? seed : 1, d.stall_in = in, d.stall_out = out, 0; });
}

// Queue commands, which run() offers to the device.
int64_t intaglio_send(void* handle, const uint32_t* words, const uint8_t* lasts, int64_t count) {
    return guarded(handle, [=](Device& d) {
#ifndef S_AXIS
        lacks("a command stream");
#endif
        d.commands.insert(d.commands.end(), words, words + count);
        d.lasts.insert(d.lasts.end(), lasts, lasts + count);
        return 0;
    });
}

// Run until `capacity` words of results have been given, or a packet has ended (if at_last), or, with capacity 0, until no command is
// left; at most `limit` cycles. Returns the words given; further ones of a wide result are given by the next call.
int64_t intaglio_run(void* handle, uint32_t* words, uint8_t* lasts, int64_t capacity, int at_last, int64_t limit) {
    return guarded(handle, [=](Device& d) {
        int64_t count = 0;
        for (int64_t n = 0;; ++n) {
            while (d.left && count < capacity) {
                words[count] = d.taken.words[RESULT_WORDS - d.left--];
                lasts[count] = !d.left && d.taken.last;
                if (lasts[count++] && at_last) return count;
            }
            if (n == limit || (capacity ? count == capacity : !d.pending())) return count;
            if (d.tick(count < capacity)) d.left = RESULT_WORDS;
        }
    });
}

// Run a number of cycles without taking results.
int64_t intaglio_idle(void* handle, int64_t count) {
    return guarded(handle, [=](Device& d) {
        for (int64_t n = 0; n < count; ++n) d.tick(false);
        return 0;
    });
}

// An empty memory from now on; see memory.py for the arguments (-1: never).
int64_t intaglio_memory(void* handle, uint32_t latency, uint32_t earn, uint32_t per, uint32_t bursts, int64_t error_beat, int64_t silent_burst) {
    return guarded(handle, [=](Device& d) {
#ifdef M_AXI
        d.contents = intaglio::Contents();
        d.memory.reset(new intaglio::ReadSlave(d.contents, BEAT_BYTES, latency, earn, per, bursts, static_cast<uint64_t>(error_beat),
                                               static_cast<uint64_t>(silent_burst)));
#else
        lacks("a memory");
#endif
        return 0;
    });
}

int64_t intaglio_write_memory(void* handle, uint64_t address, const uint8_t* bytes, uint64_t size) {
    return guarded(handle, [=](Device& d) { return d.contents.write(address, bytes, size), 0; });
}

// What was never written is 0.
int64_t intaglio_read_memory(void* handle, uint64_t address, uint8_t* bytes, uint64_t size) {
    return guarded(handle, [=](Device& d) { return d.contents.read(address, bytes, size), 0; });
}

// Record the monitor's changes, from nothing on; or stop.
int64_t intaglio_record(void* handle, int on) {
    return guarded(handle, [=](Device& d) {
#ifndef MONITOR
        lacks("a monitor");
#endif
        if (on) d.events.clear(), d.shown = ~0u;
        return d.recording = on, 0;
    });
}

// Copy up to `capacity` events (cycle << 16 | monitor); returns how many there are.
int64_t intaglio_events(void* handle, uint64_t* events, int64_t capacity) {
    return guarded(handle, [=](Device& d) {
        const int64_t count = d.events.size();
        std::memcpy(events, d.events.data(), 8 * std::min(count, capacity));
        return count;
    });
}

int64_t intaglio_trace_open(void* handle, const char* path) {
    return guarded(handle, [=](Device& d) {
#if VM_TRACE
        d.trace.reset(new TraceFile);
        d.top->trace(d.trace.get(), 99);
        d.trace->open(path);
        if (!d.trace->isOpen()) throw std::runtime_error(std::string("the trace file cannot be written: ") + path);
        return 0;
#else
        (void)d, (void)path;
        throw std::runtime_error("this build has no trace support");
        return 0;
#endif
    });
}

int64_t intaglio_trace_close(void* handle) {
    return guarded(handle, [](Device& d) {
#if VM_TRACE
        if (d.trace) d.trace->close();
        d.trace.reset();
#else
        (void)d;
#endif
        return 0;
    });
}

}  // extern "C"
#pragma GCC visibility pop
