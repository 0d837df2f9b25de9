// What every C interface to a Verilated top shares: faults as text, the clock, a waveform, the AXI4-Lite register bus.
//
// ports.h is generated from the manifest: CLOCK, RESET (active low) and, for each bus, a macro such as S_AXIL(x) that gives the name of
// the port with the suffix x. The model's class is Vtop. Functions return -1 (or nullptr) on a fault, which intaglio_error() tells.
// A model belongs to one thread at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>

#include "Vtop.h"
#include "faults.h"
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

namespace intaglio {

constexpr int64_t BUS_LIMIT = 10000;  // cycles that a register access may take

// A model with a register bus; tick() passes one clock cycle without taking results.
struct Model {
    VerilatedContext context;
    std::unique_ptr<Vtop> top;
#if VM_TRACE
    std::unique_ptr<TraceFile> trace;
#endif
    uint64_t cycles = 0;
    uint32_t random = 1;
    std::string error;

    Model() {
#if VM_TRACE
        context.traceEverOn(true);
#endif
        top.reset(new Vtop(&context));
    }
    virtual ~Model() = default;
    virtual void tick() = 0;

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

    void settle() {
        top->CLOCK = 0;
        top->eval();
    }

    void reset(int64_t count) {
        top->S_AXIL(awvalid) = top->S_AXIL(wvalid) = top->S_AXIL(bready) = top->S_AXIL(arvalid) = top->S_AXIL(rready) = 0;
        top->RESET = 0;
        while (count-- > 0) tick();
        top->RESET = 1;
        tick();
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
            tick();
            if (address_taken) top->S_AXIL(awvalid) = 0;
            if (data_taken) top->S_AXIL(wvalid) = 0;
        }
        top->S_AXIL(bready) = 1;
        for (int64_t n = 0;; ++n) {
            if (n == BUS_LIMIT) late();
            settle();
            const bool done = top->S_AXIL(bvalid);
            const int response = top->S_AXIL(bresp);
            tick();
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
            const bool taken = top->S_AXIL(arvalid) && top->S_AXIL(arready);
            const bool done = top->S_AXIL(rvalid);
            const int response = top->S_AXIL(rresp);
            const uint32_t value = top->S_AXIL(rdata);
            tick();
            if (taken) top->S_AXIL(arvalid) = 0;
            if (!done) continue;
            top->S_AXIL(rready) = 0;
            if (response) throw std::runtime_error("the register bus answered a read with error " + std::to_string(response));
            return value;
        }
    }
};

// A handle is a Model*, whatever the kind of device.
template <typename Device, typename Action> int64_t guarded(void* handle, Action action) {
    Device& device = static_cast<Device&>(*static_cast<Model*>(handle));
    try {
        return action(device);
    } catch (const std::exception& fault) {
        device.error = fault.what();
        return -1;
    }
}

template <typename Device> void* created() {
    try {
        return static_cast<Model*>(new Device);
    } catch (const std::exception&) {
        return nullptr;
    }
}

}  // namespace intaglio

#pragma GCC visibility push(default)
extern "C" {

void intaglio_destroy(void* handle) {
    intaglio::guarded<intaglio::Model>(handle, [](intaglio::Model& d) {
#if VM_TRACE
        if (d.trace) d.trace->close();
#endif
        d.top->final();
        return 0;
    });
    delete static_cast<intaglio::Model*>(handle);
}

const char* intaglio_error(void* handle) { return static_cast<intaglio::Model*>(handle)->error.c_str(); }
uint64_t intaglio_cycles(void* handle) { return static_cast<intaglio::Model*>(handle)->cycles; }

int64_t intaglio_write(void* handle, uint32_t address, uint32_t value) {
    return intaglio::guarded<intaglio::Model>(handle, [=](intaglio::Model& d) { return d.write(address, value), 0; });
}

int64_t intaglio_read(void* handle, uint32_t address) {
    return intaglio::guarded<intaglio::Model>(handle, [=](intaglio::Model& d) { return static_cast<int64_t>(d.read(address)); });
}

int64_t intaglio_trace_open(void* handle, const char* path) {
    return intaglio::guarded<intaglio::Model>(handle, [=](intaglio::Model& d) {
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
    return intaglio::guarded<intaglio::Model>(handle, [](intaglio::Model& d) {
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
