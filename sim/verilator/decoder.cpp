// C interface to a Verilated decoder: two AXI4-Streams and an AXI4-Lite register bus.

#include <vector>

#include "bus.h"

namespace {

struct Device : intaglio::Model {
    std::vector<uint32_t> words;  // commands; those before head have been taken
    std::vector<uint8_t> lasts;
    size_t head = 0;
    uint32_t stall_in = 0, stall_out = 0;  // in 1/256: how often a word is not offered, or not taken
    bool offering = false, waiting = false;
    uint32_t waiting_data = 0;
    uint8_t waiting_last = 0;

    void tick() override { tick(false); }

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

    void restart(int64_t count) {
        words.clear(), lasts.clear(), head = 0;
        offering = waiting = false;
        reset(count);
    }
};

template <typename Action> int64_t guarded(void* handle, Action action) { return intaglio::guarded<Device>(handle, action); }

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

void* intaglio_create() { return intaglio::created<Device>(); }

int64_t intaglio_pending(void* handle) {
    const Device& d = static_cast<Device&>(*static_cast<intaglio::Model*>(handle));
    return d.words.size() - d.head;
}

int64_t intaglio_reset(void* handle, int64_t cycles) {
    return guarded(handle, [=](Device& d) { return d.restart(cycles), 0; });
}

// Random stalls from now on: a share of in/256 cycles offers no command, a share of out/256 takes no result.
void intaglio_stalls(void* handle, uint32_t seed, uint32_t in, uint32_t out) {
    Device& d = static_cast<Device&>(*static_cast<intaglio::Model*>(handle));
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

}  // extern "C"
