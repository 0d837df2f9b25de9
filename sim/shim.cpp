// C interface to a Verilated device: two AXI4-Streams, an AXI4-Lite register bus, a clock and a reset.
//
// ports.h is generated from the manifest: CLOCK, RESET (active low), and S_AXIS(x), M_AXIS(x), S_AXIL(x), which give the name
// of the port with the suffix x. The model's class is Vtop. Functions return -1 (or nullptr) on a fault, which
// intaglio_error() tells. A device belongs to one thread at a time.

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "Vtop.h"
#include "ports.h"
#include "verilated.h"
#if VM_TRACE_FST
#include "verilated_fst_c.h"
using TraceFile = VerilatedFstC;
#elif VM_TRACE
#include "verilated_vcd_c.h"
using TraceFile = VerilatedVcdC;
#endif

// Verilator's run-time library would end the process; a fault of the design must reach the caller instead.
void vl_fatal(const char* file, int line, const char*, const char* message) {
    throw std::runtime_error(std::string(message) + " (" + file + ":" + std::to_string(line) + ")");
}
void vl_stop(const char* file, int line, const char* scope) { vl_fatal(file, line, scope, "the design stopped"); }
void vl_warn(const char* file, int line, const char* scope, const char* message) { vl_fatal(file, line, scope, message); }
void vl_finish(const char* file, int line, const char* scope) { vl_fatal(file, line, scope, "the design finished"); }

namespace {

constexpr int64_t BUS_LIMIT = 10000;  // cycles that a register access may take

struct Device {
    VerilatedContext context;
    std::unique_ptr<Vtop> top;
#if VM_TRACE
    std::unique_ptr<TraceFile> trace;
#endif
    std::vector<uint32_t> words;  // commands; those before head have been taken
    std::vector<uint8_t> lasts;
    size_t head = 0;
    uint64_t cycles = 0;
    uint32_t random = 0;
    uint32_t stall_in = 0, stall_out = 0;  // in 1/256: how often a word is not offered, or not taken
    bool offering = false, waiting = false;
    uint32_t waiting_data = 0;
    uint8_t waiting_last = 0;
    std::string error;

    Device() : top(nullptr) {
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

    // One clock cycle. Returns whether a result word was taken; it is then in waiting_data and waiting_last.
    bool tick(bool take) {
        // A word that was offered stays offered until it is taken, whatever else happens.
        if (!offering) offering = head < words.size() && !(stall_in && chance(stall_in));
        if (stall_out && chance(stall_out)) take = false;
        top->CLOCK = 0;
        top->S_AXIS(tvalid) = offering;
        top->S_AXIS(tdata) = offering ? words[head] : 0;
        top->S_AXIS(tlast) = offering ? lasts[head] : 0;
        top->M_AXIS(tready) = take;
        top->eval();
        dump(0);
        const bool sent = offering && top->S_AXIS(tready);
        const bool valid = top->M_AXIS(tvalid);
        if (top->RESET) {
            if (waiting && !(valid && top->M_AXIS(tdata) == waiting_data && top->M_AXIS(tlast) == waiting_last))
                throw std::runtime_error("the result stream changed while a word waited, at cycle " + std::to_string(cycles));
            waiting = valid && !take;
            waiting_data = top->M_AXIS(tdata);
            waiting_last = top->M_AXIS(tlast);
        }
        top->CLOCK = 1;
        top->eval();
        dump(1);
        ++cycles;
        if (sent) {
            offering = false;
            if (++head == words.size()) words.clear(), lasts.clear(), head = 0;
        }
        return valid && take;
    }

    void reset(int64_t count) {
        words.clear(), lasts.clear(), head = 0;
        offering = waiting = false;
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
            top->CLOCK = 0;
            top->eval();
            const bool address_taken = top->S_AXIL(awvalid) && top->S_AXIL(awready);
            const bool data_taken = top->S_AXIL(wvalid) && top->S_AXIL(wready);
            tick(false);
            if (address_taken) top->S_AXIL(awvalid) = 0;
            if (data_taken) top->S_AXIL(wvalid) = 0;
        }
        top->S_AXIL(bready) = 1;
        for (int64_t n = 0;; ++n) {
            if (n == BUS_LIMIT) late();
            top->CLOCK = 0;
            top->eval();
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
            top->CLOCK = 0;
            top->eval();
            const bool taken = top->S_AXIL(arvalid) && top->S_AXIL(arready);
            const bool done = top->S_AXIL(rvalid);
            const int response = top->S_AXIL(rresp);
            const uint32_t value = top->S_AXIL(rdata);
            tick(false);
            if (taken) top->S_AXIL(arvalid) = 0;
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
        d.top->final();
        return 0;
    });
    delete static_cast<Device*>(handle);
}

const char* intaglio_error(void* handle) { return static_cast<Device*>(handle)->error.c_str(); }
uint64_t intaglio_cycles(void* handle) { return static_cast<Device*>(handle)->cycles; }
int64_t intaglio_pending(void* handle) {
    const Device& d = *static_cast<Device*>(handle);
    return d.words.size() - d.head;
}

int64_t intaglio_reset(void* handle, int64_t cycles) {
    return guarded(handle, [=](Device& d) { return d.reset(cycles), 0; });
}

// Random stalls from now on: a share of in/256 cycles offers no command, a share of out/256 takes no result.
void intaglio_stalls(void* handle, uint32_t seed, uint32_t in, uint32_t out) {
    Device& d = *static_cast<Device*>(handle);
    d.random = seed ? seed : 1, d.stall_in = in, d.stall_out = out;
}

// Queue commands, which run() offers to the device.
int64_t intaglio_send(void* handle, const uint32_t* words, const uint8_t* lasts, int64_t count) {
    return guarded(handle, [=](Device& d) {
        d.words.insert(d.words.end(), words, words + count);
        d.lasts.insert(d.lasts.end(), lasts, lasts + count);
        return 0;
    });
}

// Run until `capacity` result words have been taken, or a packet has ended (if at_last), or, with capacity 0, until no
// command is left; at most `limit` cycles. Returns the result words taken.
int64_t intaglio_run(void* handle, uint32_t* words, uint8_t* lasts, int64_t capacity, int at_last, int64_t limit) {
    return guarded(handle, [=](Device& d) {
        int64_t count = 0;
        for (int64_t n = 0; n < limit; ++n) {
            if (capacity ? count == capacity : d.head == d.words.size()) break;
            if (!d.tick(count < capacity)) continue;
            words[count] = d.waiting_data;
            lasts[count++] = d.waiting_last;
            if (at_last && d.waiting_last) break;
        }
        return count;
    });
}

// Run a number of cycles without taking results.
int64_t intaglio_idle(void* handle, int64_t count) {
    return guarded(handle, [=](Device& d) {
        for (int64_t n = 0; n < count; ++n) d.tick(false);
        return 0;
    });
}

int64_t intaglio_write(void* handle, uint32_t address, uint32_t value) {
    return guarded(handle, [=](Device& d) { return d.write(address, value), 0; });
}

int64_t intaglio_read(void* handle, uint32_t address) {
    return guarded(handle, [=](Device& d) { return static_cast<int64_t>(d.read(address)); });
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
