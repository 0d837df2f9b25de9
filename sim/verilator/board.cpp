// C interface to a Verilated board: a clock, a reset, and a UART whose other end is a terminal (a file descriptor).
//
// The model's class is Vtop, its ports are clk, rst, rx, tx. Bytes read from the terminal are sent to rx at the host's bit time, which
// need not be a whole number of cycles; tx is sampled at that bit time and the bytes are written to the terminal. Faults can be
// injected on the line. Functions return -1 (or nullptr) on a fault, which intaglio_board_error() tells. A board belongs to one thread at a time.

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>

#include <poll.h>
#include <unistd.h>

#include "Vtop.h"
#include "faults.h"
#include "verilated.h"

namespace {

constexpr uint8_t FLAG = 0x7E;
constexpr int AGAIN = 20;  // bytes that a host sends in an exchange only when it repeats something
enum Fault { NONE, FLIP, DROP, DOUBLE, STALL, GLITCH };  // as in board.py

struct Armed {  // one fault, on the byte after `skip` others
    int fault = NONE;
    int64_t skip = 0, detail = 0;  // FLIP, GLITCH: bit 0-9 of the byte on the line; STALL: cycles at most
};

struct Direction {
    Armed armed;
    uint32_t rate = 0;  // random faults: chance of each byte in 1/2^32
    int64_t bytes = 0, faults = 0;
};

struct Board {
    VerilatedContext context;
    std::unique_ptr<Vtop> top;
    int terminal;
    double bit_time;
    uint64_t cycles = 0, random = 88172645463325252ull;
    Direction in, out;  // to the device, from it
    std::string error;

    // To the device: levels of the byte on the line, bit by bit.
    uint8_t queue[4096];
    int head = 0, count = 0;
    int sending = 10, doubled = 0;  // bit of `frame` on the line; 10: none
    uint16_t frame = 0x3FF;
    double next_bit = 0;
    int64_t glitch = 0;  // cycle at which the line is inverted
    uint64_t stalled = 0;  // no byte starts before this cycle, or before the host has sent AGAIN more bytes than these:
    int waiting = 0;

    // From the device.
    int receiving = -1;  // bit expected next; -1: none
    double sample = 0;
    uint16_t bits = 0;
    Armed hit;  // the fault on the byte being received
    uint64_t withheld = 0;  // nothing is delivered before this cycle, or before AGAIN more bytes than these have come:
    int64_t heard = 0;
    uint8_t output[4096];
    int written = 0;

    explicit Board(int fd, double bit) : top(nullptr), terminal(fd), bit_time(bit) {
        top.reset(new Vtop(&context));
        top->rx = 1;
        top->rst = 1;
        for (int n = 0; n < 16; ++n) clock();
        top->rst = 0;
    }

    void clock() {
        top->clk = 0;
        top->eval();
        top->clk = 1;
        top->eval();
        ++cycles;
    }

    uint32_t draw() {
        random ^= random << 13, random ^= random >> 7, random ^= random << 17;
        return random >> 32;
    }

    // Whether and how the byte that begins now is hit. A lost or doubled flag would change no frame, so those wait for another byte.
    Armed strike(Direction& way, uint8_t byte, bool known) {
        ++way.bytes;
        Armed fault;
        if (way.armed.fault != NONE) {
            if (way.armed.skip > 0) return --way.armed.skip, fault;
            fault = way.armed;
            if (known && byte == FLAG && (fault.fault == DROP || fault.fault == DOUBLE)) return Armed();
            way.armed = Armed();
        } else if (way.rate && draw() < way.rate) {
            fault.fault = FLIP + draw() % 3;
            fault.detail = draw() % 10;
            if (byte == FLAG && fault.fault != FLIP) return Armed();
        }
        return fault;
    }

    bool to_device() {  // drives rx; whether a byte is on the line
        bool following = false;  // the bit before has ended just now
        if (sending < 10 && cycles >= next_bit) {
            following = ++sending == 10;
            next_bit += bit_time;
        }
        if (sending >= 10 && count && (cycles >= stalled || count >= waiting + AGAIN)) {
            stalled = 0;
            const uint8_t byte = queue[head];
            const Armed fault = doubled ? Armed() : strike(in, byte, true);
            if (fault.fault) ++in.faults;
            if (fault.fault == STALL) {
                stalled = cycles + fault.detail;
                waiting = count;
            } else {
                if (fault.fault == DOUBLE && !doubled) doubled = 2;
                if (doubled <= 1) head = (head + 1) % sizeof queue, --count;
                if (doubled) --doubled;
                if (fault.fault != DROP) {
                    frame = static_cast<uint16_t>(byte) << 1 | 0x200;
                    if (fault.fault == FLIP) frame ^= 1 << fault.detail;
                    glitch = fault.fault == GLITCH ? static_cast<int64_t>(cycles + (fault.detail + 0.5) * bit_time) : -1;
                    sending = 0;
                    if (!following) next_bit = cycles + bit_time;
                }
            }
        }
        const bool level = sending >= 10 || (frame >> sending & 1);
        top->rx = level ^ (static_cast<int64_t>(cycles) == glitch);
        return sending < 10 || count;
    }

    void deliver(uint8_t byte) { output[written++] = byte; }

    bool from_device() {
        if (receiving < 0) {
            if (top->tx) return false;
            receiving = 0, bits = 0, sample = cycles + bit_time / 2;
            hit = strike(out, 0, false);
        }
        if (cycles < sample) return true;
        sample += bit_time;
        bool level = top->tx;
        if (hit.fault == FLIP && hit.detail == receiving) level = !level;
        bits |= level << receiving;
        if (++receiving < 10) return true;
        receiving = -1;
        uint8_t byte = bits >> 1;
        if (!(bits & 0x200) || bits & 1) byte = 0;  // what a terminal makes of a broken byte
        const uint8_t sent = (hit.fault == FLIP ? bits ^ 1 << hit.detail : bits) >> 1;
        if (hit.fault == FLIP ? byte == sent : byte == FLAG && (hit.fault == DROP || hit.fault == DOUBLE)) {  // changes nothing: the next byte
            out.armed = hit, out.armed.skip = 0;
            hit = Armed();
        }
        if (hit.fault) ++out.faults;
        if (hit.fault == STALL) withheld = cycles + hit.detail, heard = in.bytes;
        if (hit.fault != DROP) deliver(byte);
        if (hit.fault == DOUBLE) deliver(byte);
        return true;
    }

    void fill() {  // bytes from the terminal
        while (count < static_cast<int>(sizeof queue)) {
            const int tail = (head + count) % sizeof queue;
            const int space = tail >= head ? sizeof queue - tail : head - tail;
            const ssize_t got = ::read(terminal, queue + tail, space);
            if (got <= 0) return;  // nothing there, or nobody at the other end
            count += got;
        }
    }

    void drain() {
        int done = 0;
        while (done < written && (cycles >= withheld || in.bytes >= heard + AGAIN)) {
            const ssize_t put = ::write(terminal, output + done, written - done);
            if (put <= 0) break;
            done += put;
        }
        written -= done;
        memmove(output, output + done, written);
    }

    // Run at most `limit` cycles, in which bytes are exchanged with the terminal every `slice`. Returns the cycles in which the line was not idle.
    int64_t run(int64_t limit, int64_t slice) {
        int64_t active = 0;
        for (int64_t n = 0; n < limit; n += slice) {
            fill();
            for (int64_t i = 0; i < slice && written < static_cast<int>(sizeof output) - 2; ++i) {
                const bool busy = to_device();
                clock();
                active += from_device() | busy;
            }
            drain();
        }
        return active;
    }
};

template <typename Action> int64_t guarded(void* handle, Action action) {
    Board& board = *static_cast<Board*>(handle);
    try {
        return action(board);
    } catch (const std::exception& fault) {
        board.error = fault.what();
        return -1;
    }
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

void* intaglio_board_create(int terminal, double bit_time) {
    try {
        return new Board(terminal, bit_time);
    } catch (const std::exception&) {
        return nullptr;
    }
}

void intaglio_board_destroy(void* handle) {
    guarded(handle, [](Board& b) { return b.top->final(), 0; });
    delete static_cast<Board*>(handle);
}

const char* intaglio_board_error(void* handle) { return static_cast<Board*>(handle)->error.c_str(); }
uint64_t intaglio_board_cycles(void* handle) { return static_cast<Board*>(handle)->cycles; }

int64_t intaglio_board_run(void* handle, int64_t limit, int64_t slice) {
    return guarded(handle, [=](Board& b) { return b.run(limit, slice); });
}

// Wait at most `milliseconds` for bytes from the terminal.
int64_t intaglio_board_wait(void* handle, int milliseconds) {
    pollfd watched = {static_cast<Board*>(handle)->terminal, POLLIN, 0};
    return ::poll(&watched, 1, milliseconds);
}

// Another terminal from now on; -1: none.
void intaglio_board_connect(void* handle, int terminal) { static_cast<Board*>(handle)->terminal = terminal; }

// Press the reset button for `count` cycles.
int64_t intaglio_board_reset(void* handle, int64_t count) {
    return guarded(handle, [=](Board& b) {
        b.top->rst = 1;
        for (int64_t n = 0; n < count; ++n) b.clock();
        b.top->rst = 0;
        return 0;
    });
}

// One fault on the byte after `skip` others; `way` 0: to the device, 1: from it.
void intaglio_board_arm(void* handle, int way, int fault, int64_t skip, int64_t detail) {
    Board& b = *static_cast<Board*>(handle);
    Armed armed;
    armed.fault = fault, armed.skip = skip, armed.detail = detail;
    (way ? b.out : b.in).armed = armed;
}

// Random flips, losses and repetitions: each byte with a chance of rate / 2^32.
void intaglio_board_noise(void* handle, uint64_t seed, uint32_t rate) {
    Board& b = *static_cast<Board*>(handle);
    b.random = seed * 2 + 1, b.in.rate = b.out.rate = rate;
}

int64_t intaglio_board_faults(void* handle, int way) { return (way ? static_cast<Board*>(handle)->out : static_cast<Board*>(handle)->in).faults; }
int64_t intaglio_board_bytes(void* handle, int way) { return (way ? static_cast<Board*>(handle)->out : static_cast<Board*>(handle)->in).bytes; }

}  // extern "C"
