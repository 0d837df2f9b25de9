// C interface to the Verilated prefill unit: registers, a memory behind its AXI4 read port, its stream of results, its monitor.

#include <cstring>
#include <vector>

#include "bus.h"
#include "memory.h"

namespace {

// Ports of more than 64 bits are arrays of 32-bit words, the others numbers; bytes are little-endian either way.
template <typename Port> void put(Port& port, const uint8_t* bytes, size_t size) { std::memcpy(&port, bytes, size); }
template <typename Port> void get(const Port& port, uint8_t* bytes, size_t size) { std::memcpy(bytes, &port, size); }

struct Device : intaglio::Model {
    std::unique_ptr<intaglio::ReadSlave> memory;
    std::vector<uint8_t> image, zeros;
    std::vector<uint8_t> values;  // results taken, RESULT_BYTES each
    std::vector<uint32_t> users;  // their tuser, and tlast in bit 31
    std::vector<uint64_t> events;  // cycle << 16 | monitor, at each change
    uint32_t stall_out = 0, shown = ~0u;
    bool taking = false, recording = false, waiting = false;
    uint8_t waiting_data[RESULT_BYTES] = {};
    uint32_t waiting_user = 0;

    Device() : zeros(BEAT_BYTES) {}

    void tick() override {
        const bool take = taking && !(stall_out && chance(stall_out));
        top->CLOCK = 0;
        top->M_AXIS(tready) = take;
        const bool arready = memory && memory->arready();
        const bool rvalid = memory && memory->rvalid();
        top->M_AXI(arready) = arready;
        top->M_AXI(rvalid) = rvalid;
        if (rvalid) {
            const auto& beat = memory->beat();
            put(top->M_AXI(rdata), beat.data.data(), BEAT_BYTES);
            top->M_AXI(rid) = beat.id, top->M_AXI(rresp) = beat.response, top->M_AXI(rlast) = beat.last;
        }
        top->eval();
        dump(0);
        if (top->RESET) results(take);
        const uint32_t monitor = top->MONITOR;
        if (recording && monitor != shown) events.push_back(cycles << 16 | monitor), shown = monitor;
        const bool arvalid = top->RESET && top->M_AXI(arvalid);
        const uint32_t id = top->M_AXI(arid), beats = top->M_AXI(arlen) + 1;
        const uint64_t address = top->M_AXI(araddr);
        const bool rready = top->M_AXI(rready);
        top->CLOCK = 1;
        top->eval();
        dump(1);
        if (memory) memory->edge(arvalid, id, address, beats, rready);
        ++cycles;
    }

    void results(bool take) {
        const bool valid = top->M_AXIS(tvalid);
        uint8_t data[RESULT_BYTES];
        get(top->M_AXIS(tdata), data, RESULT_BYTES);
        const uint32_t user = top->M_AXIS(tuser) | uint32_t{top->M_AXIS(tlast)} << 31;
        if (waiting && !(valid && user == waiting_user && !std::memcmp(data, waiting_data, RESULT_BYTES)))
            throw std::runtime_error("the result stream changed while a beat waited, at cycle " + std::to_string(cycles));
        waiting = valid && !take;
        waiting_user = user;
        std::memcpy(waiting_data, data, RESULT_BYTES);
        if (valid && take) values.insert(values.end(), data, data + RESULT_BYTES), users.push_back(user);
    }
};

template <typename Action> int64_t guarded(void* handle, Action action) { return intaglio::guarded<Device>(handle, action); }

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

void* intaglio_create() { return intaglio::created<Device>(); }

int64_t intaglio_reset(void* handle, int64_t cycles) {
    return guarded(handle, [=](Device& d) {
        d.waiting = d.taking = false;
        d.values.clear(), d.users.clear();
        d.memory.reset();
        return d.reset(cycles), 0;
    });
}

// The memory from now on: a copy of `size` bytes at address `base`; see memory.py for the other arguments (-1: never).
int64_t intaglio_memory(void* handle, const uint8_t* image, uint64_t size, uint64_t base, uint32_t latency, uint32_t earn, uint32_t per,
                        uint32_t bursts, int64_t error_beat, int64_t silent_burst) {
    return guarded(handle, [=](Device& d) {
        d.image.assign(image, image + size);
        d.memory.reset(new intaglio::ReadSlave(d.image.data(), size, base, BEAT_BYTES, latency, earn, per, bursts,
                                               static_cast<uint64_t>(error_beat), static_cast<uint64_t>(silent_burst)));
        return 0;
    });
}

// A share of out/256 cycles takes no result.
int64_t intaglio_stalls(void* handle, uint32_t seed, uint32_t out) {
    return guarded(handle, [=](Device& d) { return d.random = seed ? seed : 1, d.stall_out = out, 0; });
}

// Run until `capacity` beats have been taken, or one with a bit of `stop` in tuser, or for `limit` cycles. Returns beats taken.
int64_t intaglio_run(void* handle, uint8_t* values, uint32_t* users, int64_t capacity, uint32_t stop, int64_t limit) {
    return guarded(handle, [=](Device& d) {
        d.taking = capacity > 0;
        size_t seen = 0;
        for (int64_t n = 0; n < limit; ++n) {
            bool stopped = false;
            for (; seen < d.users.size(); ++seen) stopped |= (d.users[seen] & stop) != 0;
            if (stopped || (capacity && d.users.size() >= static_cast<size_t>(capacity))) break;
            d.tick();
        }
        d.taking = false;
        const int64_t count = d.users.size();
        std::memcpy(values, d.values.data(), d.values.size());
        std::memcpy(users, d.users.data(), 4 * count);
        d.values.clear(), d.users.clear();
        return count;
    });
}

// Record the monitor's changes, from nothing on; or stop.
int64_t intaglio_record(void* handle, int on) {
    return guarded(handle, [=](Device& d) {
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

}  // extern "C"
