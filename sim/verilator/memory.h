// A memory behind an AXI4 read port, cycle by cycle: the same as ReadSlave of memory.py, which states the rules.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <vector>

namespace intaglio {

class ReadSlave {
  public:
    static constexpr uint64_t NEVER = UINT64_MAX;

    struct Beat {
        uint32_t id = 0;
        uint32_t response = 0;  // 0 OKAY, 2 SLVERR, 3 DECERR
        bool last = false;
        std::vector<uint8_t> data;
    };

    // The image is not copied: `size` bytes from address `base`. The rate is earn / per bytes a cycle, both less than 2^31.
    // error_beat: this beat answers SLVERR; silent_burst: from this burst on none is answered; both from 0, or NEVER.
    ReadSlave(const uint8_t* image, uint64_t size, uint64_t base, uint32_t beat_bytes, uint32_t latency, uint32_t earn, uint32_t per,
              uint32_t bursts, uint64_t error_beat = NEVER, uint64_t silent_burst = NEVER)
        : image_(image), size_(size), base_(base), beat_bytes_(beat_bytes), latency_(latency), limit_(bursts), earn_(earn),
          cost_(uint64_t{beat_bytes} * per), error_beat_(error_beat), silent_burst_(silent_burst) {
        beat_.data.resize(beat_bytes);
    }

    bool arready() const { return bursts_.size() < limit_; }
    bool rvalid() const { return valid_; }
    const Beat& beat() const { return beat_; }  // while rvalid()

    // Pass a clock edge; `beats` is arlen + 1.
    void edge(bool arvalid, uint32_t id, uint64_t address, uint32_t beats, bool rready) {
        const bool ready = arready();
        if (rready) valid_ = false;
        if (arvalid && ready) {
            if (taken_ < silent_burst_) bursts_.push_back({cycle_ + latency_, id, address, beats});
            ++taken_;
        }
        ++cycle_;
        credit_ = std::min(credit_ + earn_, cost_ + earn_);
        if (!valid_ && !bursts_.empty() && bursts_.front().due <= cycle_ && credit_ >= cost_) {
            credit_ -= cost_;
            next();
        }
    }

  private:
    struct Burst {
        uint64_t due;
        uint32_t id;
        uint64_t address;
        uint32_t left;
    };

    void next() {
        Burst& head = bursts_.front();
        const bool inside = head.address >= base_ && size_ >= beat_bytes_ && head.address - base_ <= size_ - beat_bytes_;
        if (inside) std::memcpy(beat_.data.data(), image_ + (head.address - base_), beat_bytes_);
        else std::fill(beat_.data.begin(), beat_.data.end(), uint8_t{0});
        beat_.id = head.id;
        beat_.response = beats_ == error_beat_ ? 2 : inside ? 0 : 3;
        beat_.last = head.left == 1;
        valid_ = true;
        ++beats_;
        head.address += beat_bytes_;
        if (--head.left == 0) bursts_.pop_front();
    }

    const uint8_t* image_;
    uint64_t size_, base_;
    uint32_t beat_bytes_, latency_, limit_;
    uint64_t earn_, cost_, error_beat_, silent_burst_;
    uint64_t credit_ = 0, cycle_ = 0, beats_ = 0, taken_ = 0;
    bool valid_ = false;
    Beat beat_;
    std::deque<Burst> bursts_;
};

}  // namespace intaglio
