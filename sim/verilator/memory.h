// A memory behind an AXI4 read port, cycle by cycle: the same as ReadSlave of memory.py, which states the rules.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <iterator>
#include <map>
#include <vector>

namespace intaglio {

// Bytes by address. What was never written is outside.
class Contents {
  public:
    void write(uint64_t address, const uint8_t* bytes, size_t size) {
        if (!size) return;
        auto part = before(address);
        if (part == parts_.end() || part->first + part->second.size() < address) part = parts_.emplace(address, std::vector<uint8_t>()).first;
        const size_t offset = address - part->first;
        auto& kept = part->second;
        if (kept.size() < offset + size) kept.resize(offset + size);
        std::memcpy(kept.data() + offset, bytes, size);
        for (auto next = std::next(part); next != parts_.end() && next->first <= part->first + kept.size(); next = parts_.erase(next)) {
            const size_t known = part->first + kept.size() - next->first;  // of the next part, which this one has reached
            if (known < next->second.size()) kept.insert(kept.end(), next->second.begin() + known, next->second.end());
        }
    }

    // `size` bytes from `address` on, or nullptr if they are not all inside.
    const uint8_t* find(uint64_t address, size_t size) const {
        const auto part = before(address);
        if (part == parts_.end() || part->second.size() < size || address - part->first > part->second.size() - size) return nullptr;
        return part->second.data() + (address - part->first);
    }

    void read(uint64_t address, uint8_t* bytes, size_t size) const {  // what is outside reads as 0
        for (size_t n = 0; n < size; ++n) {
            const uint8_t* found = find(address + n, 1);
            bytes[n] = found ? *found : 0;
        }
    }

  private:
    using Parts = std::map<uint64_t, std::vector<uint8_t>>;  // by address, none reaches the next one
    template <typename Map> static auto at_most(Map& parts, uint64_t address) {
        auto next = parts.upper_bound(address);
        return next == parts.begin() ? parts.end() : std::prev(next);
    }
    Parts::iterator before(uint64_t address) { return at_most(parts_, address); }
    Parts::const_iterator before(uint64_t address) const { return at_most(parts_, address); }

    Parts parts_;
};

class ReadSlave {
  public:
    static constexpr uint64_t NEVER = UINT64_MAX;

    struct Beat {
        uint32_t id = 0;
        uint32_t response = 0;  // 0 OKAY, 2 SLVERR, 3 DECERR
        bool last = false;
        std::vector<uint8_t> data;
    };

    // The contents are not copied. The rate is earn / per bytes a cycle, both less than 2^31.
    // error_beat: this beat answers SLVERR; silent_burst: from this burst on none is answered; both from 0, or NEVER.
    ReadSlave(const Contents& contents, uint32_t beat_bytes, uint32_t latency, uint32_t earn, uint32_t per, uint32_t bursts,
              uint64_t error_beat = NEVER, uint64_t silent_burst = NEVER)
        : contents_(contents), beat_bytes_(beat_bytes), latency_(latency), limit_(bursts), earn_(earn), cost_(uint64_t{beat_bytes} * per),
          error_beat_(error_beat), silent_burst_(silent_burst) {
        beat_.data.resize(beat_bytes);
    }

    void restart() { bursts_.clear(), valid_ = false; }  // forget the bursts under way

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
        const uint8_t* inside = contents_.find(head.address, beat_bytes_);
        if (inside) std::memcpy(beat_.data.data(), inside, beat_bytes_);
        else std::fill(beat_.data.begin(), beat_.data.end(), uint8_t{0});
        beat_.id = head.id;
        beat_.response = beats_ == error_beat_ ? 2 : inside ? 0 : 3;
        beat_.last = head.left == 1;
        valid_ = true;
        ++beats_;
        head.address += beat_bytes_;
        if (--head.left == 0) bursts_.pop_front();
    }

    const Contents& contents_;
    uint32_t beat_bytes_, latency_, limit_;
    uint64_t earn_, cost_, error_beat_, silent_burst_;
    uint64_t credit_ = 0, cycle_ = 0, beats_ = 0, taken_ = 0;
    bool valid_ = false;
    Beat beat_;
    std::deque<Burst> bursts_;
};

}  // namespace intaglio
