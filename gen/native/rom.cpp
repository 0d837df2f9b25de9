// The structured ROM of rtl/memory/logic (forms.py, decode.py, netlist.py), gate for gate, for many banks: what those files say holds here.
// Plans of wide ORs and cells that fit are asked of Python, once for each question.

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <map>
#include <string>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

namespace {

using Signal = int32_t;
using Group = std::vector<Signal>;
constexpr Signal ONE = -1, NONE = -2, UNKNOWN = -3;
enum Form { OAI, AOI, OA, AO };
enum Style { INSIDE, SELECT, SEVERAL, NAND };

// Sizes of groups, or a negative number of them where there is no such cell.
using Fit = int (*)(int turned, int form, int count, const int *sizes, int *found);
// Area, and steps as numbers: form (-1: invert), polarity before, after, count of sizes, sizes ...
using Plan = double (*)(int turned, int count, int high, int result, int *numbers, int room);

struct Impossible {};

struct Kind {
    uint64_t code = 0;  // form in 2 bits, number of groups in 6, sizes in 4 each
    int form() const { return code & 3; }
    int groups() const { return code >> 2 & 63; }
    int size(int i) const { return code >> (8 + 4 * i) & 15; }
};

bool inverting(int form) { return form == OAI || form == AOI; }
bool sum_of_products(int form) { return form == AOI || form == AO; }

Kind canonical(int form, std::vector<int> sizes) {
    std::sort(sizes.rbegin(), sizes.rend());
    if (sum_of_products(form) && (sizes.size() == 1 || sizes[0] == 1)) {
        form = form == AOI ? OAI : OA;
        sizes = sizes[0] == 1 ? std::vector<int>{int(sizes.size())} : std::vector<int>(sizes[0], 1);
    }
    if (sizes.size() > 13 || sizes[0] > 15) throw Impossible();
    Kind kind{uint64_t(form) | uint64_t(sizes.size()) << 2};
    for (size_t i = 0; i < sizes.size(); i++) kind.code |= uint64_t(sizes[i]) << (8 + 4 * i);
    return kind;
}

Kind dual(Kind kind) {
    static const int other[] = {AOI, OAI, AO, OA};
    std::vector<int> sizes;
    for (int i = 0; i < kind.groups(); i++) sizes.push_back(kind.size(i));
    return canonical(other[kind.form()], sizes);
}

const uint64_t INV = canonical(OAI, {1}).code;

struct Step {
    int form, before, after;
    std::vector<int> sizes;
};
struct Planned {
    double area;
    std::vector<Step> steps;
};

struct View {  // the library, or its dual
    int turned;
    Fit ask_fit;
    Plan ask_plan;
    int both[4][2] = {};  // of n parts and the wanted polarity: form * 2 + polarity of the parts, or -1
    bool low_halves = false, high_halves = false;
    std::map<std::tuple<int, int, int>, Planned> plans;
    std::map<std::vector<int>, std::pair<bool, std::vector<int>>> fits;

    View(int dual, Fit fit, Plan plan) : turned(dual), ask_fit(fit), ask_plan(plan) {}

    const Planned &plan(int count, bool high, bool result) {
        auto key = std::make_tuple(count, int(high), int(result));
        auto found = plans.find(key);
        if (found != plans.end()) return found->second;
        std::vector<int> numbers(16 * count + 64);
        Planned planned;
        planned.area = ask_plan(turned, count, high, result, numbers.data(), int(numbers.size()));
        const int *at = numbers.data();
        for (int steps = *at++; steps > 0; steps--) {
            Step step{at[0], at[1], at[2], {at + 4, at + 4 + at[3]}};
            at += 4 + at[3];
            planned.steps.push_back(step);
        }
        return plans.emplace(key, planned).first->second;
    }
    double area(int count, bool high, bool result) { return plan(count, high, result).area; }
    bool cheapest(int count, bool result) { return area(count, true, result) <= area(count, false, result); }

    const std::pair<bool, std::vector<int>> &fit(int form, const std::vector<Group> &groups) {
        std::vector<int> key{form};
        for (auto &group : groups) key.push_back(int(group.size()));
        auto found = fits.find(key);
        if (found != fits.end()) return found->second;
        std::vector<int> sizes(groups.size());
        bool has = ask_fit(turned, form, int(groups.size()), key.data() + 1, sizes.data()) >= 0;
        return fits.emplace(key, std::make_pair(has, sizes)).first->second;
    }
};

struct Label {
    char type = 0;  // r, c, s
    bool high = true;
    int first = 0, second = 0;
};

struct Netlist {
    int inputs;
    bool turned;
    std::vector<Kind> kinds;
    std::vector<uint32_t> from{0};  // where the inputs of each gate begin
    std::vector<Signal> ins, outputs;
    std::vector<Label> labels;
    std::vector<uint64_t> keys;  // kinds before they are turned
    std::vector<int32_t> table = std::vector<int32_t>(1 << 12, -1);

    Netlist(int of, bool dual) : inputs(of), turned(dual) {}

    size_t gates() const { return kinds.size(); }

    size_t place(uint64_t key, const Signal *first, size_t count) const {
        uint64_t hash = key * 0x9E3779B97F4A7C15u;
        for (size_t i = 0; i < count; i++) hash = (hash ^ uint64_t(uint32_t(first[i]))) * 0xD6E8FEB86659FD93u, hash ^= hash >> 31;
        size_t at = (hash ^ hash >> 17) & (table.size() - 1);
        for (; table[at] >= 0; at = (at + 1) & (table.size() - 1)) {
            size_t gate = table[at];
            if (keys[gate] == key && from[gate + 1] - from[gate] == count &&
                !std::memcmp(&ins[from[gate]], first, count * sizeof(Signal)))
                break;
        }
        return at;
    }

    Signal gate(int form, std::vector<Group> groups) {
        std::vector<int> sizes;
        for (auto &group : groups) sizes.push_back(int(group.size())), std::sort(group.begin(), group.end());
        Kind kind = canonical(form, sizes);
        std::sort(groups.begin(), groups.end(), [](const Group &a, const Group &b) {
            return a.size() != b.size() ? a.size() > b.size() : a < b;
        });
        Group flat;
        for (auto &group : groups) flat.insert(flat.end(), group.begin(), group.end());
        size_t at = place(kind.code, flat.data(), flat.size());
        if (table[at] < 0) {
            table[at] = int32_t(gates());
            keys.push_back(kind.code);
            kinds.push_back(turned ? dual(kind) : kind);
            ins.insert(ins.end(), flat.begin(), flat.end());
            from.push_back(uint32_t(ins.size()));
            labels.emplace_back();
            if (2 * gates() > table.size()) grow();
            return inputs + Signal(gates()) - 1;
        }
        return inputs + table[at];
    }

    void grow() {
        table.assign(4 * table.size(), -1);
        for (size_t i = 0; i < gates(); i++) table[place(keys[i], &ins[from[i]], from[i + 1] - from[i])] = int32_t(i);
    }

    Signal invert(Signal signal) {
        if (signal >= inputs && kinds[signal - inputs].code == INV) return ins[from[signal - inputs]];
        return gate(OAI, {{signal}});
    }
    Signal literal(int bit, bool value) { return value ? bit : invert(bit); }

    Signal label(Signal signal, Label name) {
        if (signal >= inputs && !labels[signal - inputs].type) labels[signal - inputs] = name;
        return signal;
    }

    void sweep() {
        std::vector<char> used(inputs + gates(), 0);
        for (Signal signal : outputs)
            if (signal >= 0) used[signal] = 1;
        for (size_t i = gates(); i-- > 0;)
            if (used[inputs + i])
                for (uint32_t k = from[i]; k < from[i + 1]; k++) used[ins[k]] = 1;
        std::vector<Signal> renamed(inputs + gates(), 0);
        for (int i = 0; i < inputs; i++) renamed[i] = i;
        size_t kept = 0, end = 0;
        for (size_t i = 0; i < gates(); i++) {
            if (!used[inputs + i]) continue;
            uint32_t first = from[i], last = from[i + 1];
            renamed[inputs + i] = inputs + Signal(kept);
            kinds[kept] = kinds[i], labels[kept] = labels[i], from[kept] = uint32_t(end);
            for (uint32_t k = first; k < last; k++) ins[end++] = renamed[ins[k]];
            kept++;
        }
        from[kept] = uint32_t(end);
        kinds.resize(kept), labels.resize(kept), from.resize(kept + 1), ins.resize(end);
        for (Signal &signal : outputs)
            if (signal >= 0) signal = renamed[signal];
    }

    std::string name(Signal signal) const {
        if (signal < inputs) return "a[" + std::to_string(signal) + "]";
        const Label &label = labels[signal - inputs];
        if (!label.type) return "n" + std::to_string(signal);
        std::string text = label.type + std::to_string(label.first);
        if (label.type == 's') {
            char digits[16];
            snprintf(digits, sizeof digits, "_%x", label.second);
            text += digits;
        }
        return label.high ? text : text + "n";
    }
};

struct Builder {
    View &view;
    Netlist net;

    Builder(View &of, int inputs, bool turned) : view(of), net(inputs, turned) {}

    int rows = 0, columns = 0, low = 0, m = 0;
    bool filling = false;
    std::unordered_map<uint64_t, Signal> lines;  // of the decoder
    std::vector<std::pair<int, int>> groups;     // first row and number of rows
    std::vector<std::vector<int>> parts;
    std::vector<std::vector<Signal>> subsets;  // by group: pattern * 2 + high
    std::unordered_map<uint64_t, Signal> halves;
    std::map<std::pair<int, bool>, Signal> fills;

    Signal wide(std::vector<Signal> signals, bool high, bool result) {
        std::vector<Signal> unique;
        for (Signal signal : signals)
            if (std::find(unique.begin(), unique.end(), signal) == unique.end()) unique.push_back(signal);
        signals.swap(unique);
        for (const Step &step : view.plan(int(signals.size()), high, result).steps) {
            if (step.form < 0) {
                signals = {net.invert(signals[0])};
                continue;
            }
            size_t at = 0;
            std::vector<Signal> level;
            for (int size : step.sizes) {
                Group part(signals.begin() + at, signals.begin() + at + size);
                at += size;
                if (size == 1)
                    level.push_back(step.after == step.before ? part[0] : net.invert(part[0]));
                else if (step.before)
                    level.push_back(net.gate(step.form, {part}));
                else {
                    std::vector<Group> single;
                    for (Signal signal : part) single.push_back({signal});
                    level.push_back(net.gate(step.form, single));
                }
            }
            signals.swap(level);
        }
        return signals[0];
    }

    // The decoder. A key of a line: what it is, its place, its polarity.
    static uint64_t key(int what, int start, int stop, int value, bool high) {
        return uint64_t(what) << 60 | uint64_t(start) << 52 | uint64_t(stop) << 44 | uint64_t(value) << 1 | high;
    }

    template <typename Part>
    Signal joined(uint64_t name, int count, bool high, Part part) {
        if (count == 1) return part(0, high);
        auto found = lines.find(name);
        if (found != lines.end()) return found->second;
        if (count < 1 || view.both[count][high] < 0) throw Impossible();
        int form = view.both[count][high] >> 1;
        bool polarity = view.both[count][high] & 1;
        std::vector<Group> gates;
        Group one;
        for (int i = 0; i < count; i++) one.push_back(part(i, polarity));
        bool whole = (form == OAI) == high;  // oai of one group for a high line, oa of one group for a low one
        if (whole) gates = {one};
        else for (Signal signal : one) gates.push_back({signal});
        return lines[name] = net.gate(form, gates);
    }

    Signal field(int start, int stop, int value, bool high) {
        if (stop - start == 1) return net.literal(start, bool(value) == high);
        uint64_t name = key(0, start, stop, value, high);
        if (stop - start <= 3)
            return joined(name, stop - start, high, [=](int i, bool h) { return net.literal(start + i, bool(value >> i & 1) == h); });
        int middle = start + (stop - start + 1) / 2;
        return joined(name, 2, high, [=](int i, bool h) {
            return i == 0 ? field(start, middle, value & ((1 << (middle - start)) - 1), h)
                          : field(middle, stop, value >> (middle - start), h);
        });
    }

    Signal blocks(int what, int index, int first, int last, int step, bool high) {
        uint64_t name = key(what, 0, 0, index, high);
        auto found = lines.find(name);
        if (found != lines.end()) return found->second;
        int count = 1 << (net.inputs - low);
        std::vector<int> indices;
        for (int i = first; i < std::min(last, count); i += step) indices.push_back(i);
        int n = int(indices.size());
        bool polarity = view.area(n, true, high) < view.area(n, false, high);
        std::vector<Signal> fields;
        for (int i : indices) fields.push_back(field(low, net.inputs, i, polarity));
        return lines[name] = wide(fields, polarity, high);
    }

    Signal row(int index, bool high) {
        int upper = index >> low, lower = index & ((1 << low) - 1), count = (low > 0) + (m > 1);
        Signal signal = joined(key(3, 0, 0, index, high), count, high, [=](int i, bool h) {
            return low && i == 0 ? field(0, low, lower, h) : blocks(2, upper, upper, 1 << (net.inputs - low), m, h);
        });
        return net.label(signal, {'r', high, index, 0});
    }

    Signal column(int index, bool high) {
        Signal signal = m == 1 ? field(low, net.inputs, index, high) : blocks(1, index, index * m, (index + 1) * m, 1, high);
        return net.label(signal, {'c', high, index, 0});
    }

    Signal inside(int part, bool high) {
        auto found = fills.find({part, high});
        if (found != fills.end()) return found->second;
        std::vector<int> members;
        for (int g : parts[part])
            for (int i = 0; i < groups[g].second; i++) members.push_back(groups[g].first + i);
        bool polarity = view.cheapest(int(members.size()), high);
        std::vector<Signal> of;
        for (int r : members) of.push_back(row(r, polarity));
        return fills[{part, high}] = wide(of, polarity, high);
    }

    int filled(int group) const {  // the part that begins with the group, if such a line is built into it
        if (filling && parts.size() > 1)
            for (size_t p = 0; p < parts.size(); p++)
                if (parts[p][0] == group) return int(p);
        return -1;
    }
    Signal fill(int part, bool high) { return parts.size() == 2 ? inside(1 - part, high) : inside(part, !high); }

    Signal half(int group, int first, int members, int part, bool high) {
        uint64_t name = uint64_t(group) << 40 | uint64_t(first > 0) << 39 | uint64_t(members) << 1 | high;
        auto found = halves.find(name);
        if (found != halves.end()) return found->second;
        int count = __builtin_popcount(members) + (part >= 0);
        bool polarity = view.cheapest(count, high);
        std::vector<Signal> of;
        for (int i = 0; members >> i; i++)
            if (members >> i & 1) of.push_back(row(groups[group].first + i, polarity));
        if (part >= 0) of.push_back(fill(part, polarity));
        return halves[name] = wide(of, polarity, high);
    }

    Signal subset(int group, int pattern, bool high) {
        Signal &known = subsets[group][2 * pattern + high];
        if (known != UNKNOWN) return known;
        int middle = (groups[group].second + 1) / 2, part = filled(group);
        int lower = pattern & ((1 << middle) - 1), upper = pattern & ~((1 << middle) - 1);
        bool has_lower = lower || part >= 0;
        bool polarity = has_lower && upper ? (high ? !view.low_halves : view.high_halves) : high;
        Group of;
        if (has_lower) of.push_back(half(group, 0, lower, part, polarity));
        if (upper) of.push_back(half(group, middle, upper, -1, polarity));
        Signal signal = NONE;
        if (of.size() == 1) signal = of[0];
        else if (polarity && of.size()) signal = net.gate(polarity != high ? OAI : OA, {of});
        else if (of.size()) signal = net.gate(polarity != high ? OAI : OA, {{of[0]}, {of[1]}});
        if (signal != NONE) net.label(signal, {'s', high, group, pattern});
        return subsets[group][2 * pattern + high] = signal;
    }

    Signal fitted(int form, std::vector<Group> of) {
        if (sum_of_products(form) && of.size() == 1) {
            std::vector<Group> single;
            for (Signal signal : of[0]) single.push_back({signal});
            of.swap(single);
            form = form == AOI ? OAI : OA;
        }
        const std::pair<bool, std::vector<int>> *sizes = &view.fit(form, of);
        for (int i = 0; i < 2 && !sizes->first; i++) {
            of.push_back(Group(of.back()));
            sizes = &view.fit(form, of);
        }
        if (!sizes->first) throw Impossible();
        for (size_t i = 0; i < of.size(); i++) of[i].resize(sizes->second[i], of[i][0]);
        return net.gate(form, of);
    }

    template <typename Pattern>
    Group leaves(const std::vector<int> &part, int column, bool high, Pattern pattern) {
        Group found;
        for (int g : part) {
            Signal signal = subset(g, pattern(g, column), high);
            if (signal != NONE) found.push_back(signal);
        }
        return found;
    }

    template <typename Pattern>
    Signal output(int style, int gate, int merge, Pattern pattern) {
        std::vector<Signal> terms;
        std::vector<Group> ready;
        for (int c = 0; c < columns; c++) {
            std::vector<Group> of;
            bool all = true;
            if (style == NAND) {
                Group found;
                for (auto &part : parts) {
                    Group some = leaves(part, c, false, pattern);
                    if (some.size()) found.push_back(wide(some, false, true));
                }
                if (found.empty()) continue;
                Signal line = column(c, true);
                if (merge == 1) terms.push_back(fitted(gate, {found, {line}}));
                else ready.push_back({found[0], line});
                continue;
            }
            for (auto &part : parts) {
                of.push_back(leaves(part, c, true, pattern));
                all = all && of.back().size();
            }
            if (style == SEVERAL) {
                of[0].push_back(column(c, false));
                ready.push_back(of[0]);
            } else if (all && style == SELECT) {
                Signal first = fitted(OAI, of);
                ready.push_back({first, column(c, false)});
            } else if (all) {
                of.push_back({column(c, true)});
                terms.push_back(fitted(gate, of));
            }
        }
        int form = style == NAND ? (gate == OAI ? AOI : AO) : gate;
        if (style == SELECT || style == SEVERAL || (style == NAND && merge > 1))
            for (size_t i = 0; i < ready.size(); i += merge)
                terms.push_back(fitted(form, {ready.begin() + i, ready.begin() + std::min(ready.size(), i + merge)}));
        if (terms.empty()) throw Impossible();
        bool high = style == INSIDE || style == NAND ? !inverting(gate) : inverting(gate);
        return wide(terms, high, style != SEVERAL);
    }
};

unsigned field_of(const uint8_t *bits, int64_t at, int count) {
    uint32_t word;
    std::memcpy(&word, bits + (at >> 3), 4);
    return word >> (at & 7) & ((1u << count) - 1);
}

std::vector<std::pair<int, int>> bounds(int rows, int count) {
    std::vector<std::pair<int, int>> found;
    for (int g = 0; g < count; g++) found.push_back({rows * g / count, rows * (g + 1) / count - rows * g / count});
    return found;
}

struct Library {
    View views[2];
};

struct Text {
    std::string text;
};

}  // namespace

extern "C" {

// tables: for each view low_halves, high_halves, both[2][0], both[2][1], both[3][0], both[3][1]
void *rom_library(Fit fit, Plan plan, const int *tables) {
    auto *library = new Library{{View(0, fit, plan), View(1, fit, plan)}};
    for (int turned = 0; turned < 2; turned++, tables += 6) {
        View &view = library->views[turned];
        view.low_halves = tables[0], view.high_halves = tables[1];
        for (int i = 0; i < 4; i++) view.both[2 + i / 2][i % 2] = tables[2 + i];
    }
    return library;
}
void rom_library_free(void *library) { delete static_cast<Library *>(library); }

// Used subsets of all groups. Bits: a column of `stride` bytes for each output, four bytes of room at the end.
int64_t rom_distinct(const uint8_t *bits, int64_t stride, int width, int depth, int rows, int count) {
    int64_t total = 0;
    int columns = (depth + rows - 1) / rows;
    for (auto [first, length] : bounds(rows, count)) {
        std::vector<char> seen(size_t(1) << length, 0);
        for (int o = 0; o < width; o++)
            for (int c = 0; c < columns; c++) {
                int64_t at = int64_t(c) * rows + first;
                if (at < depth) seen[field_of(bits + o * stride, at, length)] = 1;
            }
        total += std::count(seen.begin() + 1, seen.end(), 1);
    }
    return total;
}

// constant: of each output 0, 1, or 2 for neither. Null if the library has no cell for the form.
void *rom_build(void *library, int turned, int inputs, int rows, int style, int gate, int merge, const int *parts, int count,
                const uint8_t *bits, int64_t stride, int width, const uint8_t *constant) {
    Builder build(static_cast<Library *>(library)->views[turned], inputs, turned);
    build.rows = rows;
    build.filling = style == INSIDE || style == SELECT;
    build.low = std::min(__builtin_ctz(unsigned(rows)), inputs);
    build.m = std::max(1, rows >> build.low);
    build.columns = ((1 << inputs) + rows - 1) / rows;
    int total = 0;
    for (int p = 0; p < count; p++) {
        build.parts.emplace_back();
        for (int i = 0; i < parts[p]; i++) build.parts.back().push_back(total++);
    }
    build.groups = bounds(rows, total);
    for (auto [first, length] : build.groups) build.subsets.emplace_back(size_t(2) << length, UNKNOWN);
    try {
        for (int o = 0; o < width; o++) {
            const uint8_t *of = bits + o * stride;
            auto pattern = [&](int g, int c) { return int(field_of(of, int64_t(c) * rows + build.groups[g].first, build.groups[g].second)); };
            build.net.outputs.push_back(constant[o] == 2 ? build.output(style, gate, merge, pattern) : constant[o] ? ONE : NONE);
        }
    } catch (Impossible &) {
        return nullptr;
    }
    build.net.sweep();
    return new Netlist(std::move(build.net));
}
void rom_free(void *netlist) { delete static_cast<Netlist *>(netlist); }

int64_t rom_gates(void *netlist) { return int64_t(static_cast<Netlist *>(netlist)->gates()); }
int64_t rom_pins(void *netlist) { return int64_t(static_cast<Netlist *>(netlist)->ins.size()); }

// All of it: codes of kinds, ends of their inputs, inputs, outputs, and four numbers for each label.
void rom_export(void *netlist, uint64_t *kinds, uint32_t *ends, int32_t *ins, int32_t *outputs, int32_t *labels) {
    auto &net = *static_cast<Netlist *>(netlist);
    for (size_t i = 0; i < net.gates(); i++) {
        kinds[i] = net.kinds[i].code, ends[i] = net.from[i + 1];
        const Label &label = net.labels[i];
        for (int value : {int(label.type), int(label.high), label.first, label.second}) *labels++ = value;
    }
    std::copy(net.ins.begin(), net.ins.end(), ins);
    std::copy(net.outputs.begin(), net.outputs.end(), outputs);
}

// Whether the outputs are the bits at every address below depth; columns as for rom_distinct, zeros beyond depth.
int rom_holds(void *netlist, const uint8_t *bits, int64_t stride, int depth) {
    auto &net = *static_cast<Netlist *>(netlist);
    constexpr int WORDS = 16;
    using Block = uint64_t[WORDS];
    std::vector<uint64_t> values((net.inputs + net.gates()) * WORDS);
    auto value = [&](Signal signal) { return &values[size_t(signal) * WORDS]; };
    static const uint64_t low[] = {0xAAAAAAAAAAAAAAAA, 0xCCCCCCCCCCCCCCCC, 0xF0F0F0F0F0F0F0F0,
                                   0xFF00FF00FF00FF00, 0xFFFF0000FFFF0000, 0xFFFFFFFF00000000};
    for (int64_t start = 0; start < depth; start += 64 * WORDS) {
        for (int bit = 0; bit < net.inputs; bit++)
            for (int w = 0; w < WORDS; w++)
                value(bit)[w] = bit < 6 ? low[bit] : (start + 64 * w) >> bit & 1 ? ~uint64_t(0) : 0;
        for (size_t i = 0; i < net.gates(); i++) {
            Kind kind = net.kinds[i];
            const Signal *in = &net.ins[net.from[i]];
            uint64_t *out = value(net.inputs + Signal(i));
            bool sums = !sum_of_products(kind.form());
            for (int g = 0; g < kind.groups(); g++) {
                Block inner;
                std::memcpy(inner, value(*in++), sizeof inner);
                for (int k = 1; k < kind.size(g); k++) {
                    const uint64_t *other = value(*in++);
                    if (sums) for (int w = 0; w < WORDS; w++) inner[w] |= other[w];
                    else for (int w = 0; w < WORDS; w++) inner[w] &= other[w];
                }
                if (!g) std::memcpy(out, inner, sizeof inner);
                else if (sums) for (int w = 0; w < WORDS; w++) out[w] &= inner[w];
                else for (int w = 0; w < WORDS; w++) out[w] |= inner[w];
            }
            if (inverting(kind.form())) for (int w = 0; w < WORDS; w++) out[w] = ~out[w];
        }
        for (size_t o = 0; o < net.outputs.size(); o++)
            for (int w = 0; w < WORDS && start + 64 * w < depth; w++) {
                int64_t left = depth - start - 64 * w, bytes = std::min<int64_t>(8, (left + 7) / 8);
                uint64_t want = 0, mask = left >= 64 ? ~uint64_t(0) : (uint64_t(1) << left) - 1;
                std::memcpy(&want, bits + o * stride + (start + 64 * w) / 8, bytes);
                Signal signal = net.outputs[o];
                uint64_t is = signal == ONE ? ~uint64_t(0) : signal == NONE ? 0 : value(signal)[w];
                if ((is ^ want) & mask) return 0;
            }
    }
    return 1;
}

// The lines of the module's body.
void *rom_body(void *netlist) {
    auto &net = *static_cast<Netlist *>(netlist);
    auto *out = new Text;
    std::vector<std::string> names;
    for (Signal i = 0; i < net.inputs + Signal(net.gates()); i++) names.push_back(net.name(i));
    std::string &text = out->text;
    for (size_t i = 0; i < net.gates(); i++) {
        Kind kind = net.kinds[i];
        const Signal *in = &net.ins[net.from[i]];
        bool sums = !sum_of_products(kind.form()), several = kind.groups() > 1, invert = inverting(kind.form());
        bool around = invert && net.from[i + 1] - net.from[i] > 1;
        text += "    wire " + names[net.inputs + i] + " = " + (around ? "~(" : invert ? "~" : "");
        for (int g = 0; g < kind.groups(); g++) {
            if (g) text += sums ? " & " : " | ";
            bool braces = kind.size(g) > 1 && several;
            if (braces) text += "(";
            for (int k = 0; k < kind.size(g); k++) {
                if (k) text += sums ? " | " : " & ";
                text += names[*in++];
            }
            if (braces) text += ")";
        }
        text += around ? ");\n" : ";\n";
    }
    text += "    assign data = {";
    for (size_t o = net.outputs.size(); o-- > 0;) {
        Signal signal = net.outputs[o];
        text += signal == ONE ? "1'b1" : signal == NONE ? "1'b0" : names[signal];
        text += o ? ", " : "};";
    }
    return out;
}
const char *rom_body_data(void *text) { return static_cast<Text *>(text)->text.data(); }
int64_t rom_body_size(void *text) { return int64_t(static_cast<Text *>(text)->text.size()); }
void rom_body_free(void *text) { delete static_cast<Text *>(text); }

}  // extern "C"
