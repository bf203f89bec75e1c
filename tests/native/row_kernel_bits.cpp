// Prints a checksum of what row kernels make of many rows: the same with every instruction set and on every processor.
//
//   row_kernel_bits KERNELS
//
// Rows hold every pattern of their element, NaNs with each payload included; NaNs that arithmetic makes are counted as
// one, because IEEE 754 leaves their bits to the machine.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "row_kernels.h"

using namespace ascend_moe;

namespace {

uint64_t state = 1;

uint32_t random_bits() {
    state = state * 6364136223846793005 + 1442695040888963407;
    return static_cast<uint32_t>(state >> 32);
}

class Checksum {
  public:
    void add(uint64_t value) { value_ = (value_ ^ value) * 0x9e3779b97f4a7c15; }
    void add_bytes(const void *bytes, uint64_t size) {
        for (uint64_t i = 0; i < size; ++i)
            add(static_cast<const uint8_t *>(bytes)[i]);
    }
    uint64_t value() const { return value_; }

  private:
    uint64_t value_ = 0;
};

constexpr uint32_t element_bytes[] = {2, 2, 4};

bool is_nan(uint32_t element, const uint8_t *value) {
    uint16_t half;
    float single;
    memcpy(&half, value, 2);
    switch (element) {
    case EXCHANGE_BF16:
        return (half & 0x7fff) > 0x7f80;
    case EXCHANGE_FP16:
        return (half & 0x7fff) > 0x7c00;
    default:
        memcpy(&single, value, 4);
        return std::isnan(single);
    }
}

void add_values(Checksum &sum, uint32_t element, const std::vector<uint8_t> &row) {
    for (uint64_t i = 0; i < row.size(); i += element_bytes[element])
        if (is_nan(element, row.data() + i))
            sum.add(~uint64_t{0});
        else
            sum.add_bytes(row.data() + i, element_bytes[element]);
}

// Ordinary magnitudes in all rows, any bits at all in every third.
std::vector<uint8_t> random_row(uint32_t element, uint32_t hidden, uint32_t number) {
    std::vector<uint8_t> row(hidden * element_bytes[element]);
    for (uint32_t i = 0; i < hidden; ++i) {
        uint32_t bits = random_bits();
        if (element == EXCHANGE_FP32 && number % 3 != 0)
            bits = (bits & 0x807fffff) | 0x3f000000;
        if (element == EXCHANGE_BF16 && number % 3 != 0)
            bits = (bits & 0x80ff) | 0x3f00;
        if (element == EXCHANGE_FP16 && number % 3 != 0)
            bits = (bits & 0x87ff) | 0x3800;
        memcpy(row.data() + i * element_bytes[element], &bits, element_bytes[element]);
    }
    return row;
}

[[noreturn]] void fail(const char *kernel) {
    fprintf(stderr, "%s of %s wrote something else\n", kernel, exchange_selected_kernels());
    exit(1);
}

// Places on lines of their own, as streaming stores want them.
class PlacesInMemory {
  public:
    PlacesInMemory(uint64_t count, uint64_t bytes) : bytes_(bytes), memory_((count + 1) * stride()) {
        const uint64_t begin = 64 - reinterpret_cast<uintptr_t>(memory_.data()) % 64;
        for (uint64_t i = 0; i < count; ++i)
            places_.push_back(memory_.data() + begin + i * stride());
    }
    Places places() const { return places_; }
    void expect(const void *row, const char *kernel) const {
        for (const uint8_t *place : places_)
            if (memcmp(place, row, bytes_) != 0)
                fail(kernel);
    }

  private:
    uint64_t stride() const { return (bytes_ + 63) / 64 * 64; }

    const uint64_t bytes_;
    std::vector<uint8_t> memory_;
    std::vector<uint8_t *> places_;
};

void add_kernels(Checksum &sum, uint32_t element, uint32_t hidden) {
    constexpr uint32_t topk = 5;
    const RowKernels &kernels = row_kernels();
    std::vector<std::vector<uint8_t>> rows;
    std::vector<Term> terms;
    for (uint32_t k = 0; k < topk; ++k)
        rows.push_back(random_row(element, hidden, random_bits()));
    for (const auto &row : rows)
        terms.push_back({row.data(), static_cast<float>(static_cast<int32_t>(random_bits())) * 0x1p-31f});

    std::vector<uint8_t> out(rows[0].size());
    kernels.reduce[element](terms, hidden, out.data(), terms);
    add_values(sum, element, out);

    // Of rows with any bits few are finite.
    for (uint32_t k = 0; k < topk; ++k) {
        rows.push_back(rows[k]);
        for (uint64_t i = element_bytes[element] - 1; i < rows[k].size(); i += element_bytes[element])
            rows.back()[i] &= 0xbf;
    }
    std::vector<int8_t> values(hidden);
    for (const auto &row : rows) {
        const float scale = kernels.quantise[element](row.data(), hidden, values.data());
        if (std::isnan(scale))
            sum.add(~uint64_t{0});
        else
            sum.add_bytes(&scale, sizeof scale);
        sum.add_bytes(values.data(), values.size());
    }

    for (const auto scatter : {kernels.scatter, kernels.scatter_streaming}) {
        const PlacesInMemory memory(topk, out.size());
        scatter(memory.places(), rows[0].data(), out.size(), memory.places());
        kernels.drain();
        memory.expect(rows[0].data(), "scatter");
    }

    const PlacesInMemory memory(topk, hidden);
    uint32_t greatest = kernels.greatest[element](rows[0].data(), hidden);
    std::vector<int8_t> expected(hidden);
    for (uint64_t i = 0; i < rows.size(); ++i) {
        const void *next = i + 1 < rows.size() ? rows[i + 1].data() : nullptr;
        const float scale = kernels.scatter_quantised[element](memory.places(), rows[i].data(), hidden, greatest,
                                                               values.data(), memory.places(), next);
        const float expected_scale = kernels.quantise[element](rows[i].data(), hidden, expected.data());
        memory.expect(expected.data(), "scatter_quantised");
        if (memcmp(&scale, &expected_scale, sizeof scale) != 0 || values != expected)
            fail("scatter_quantised");
    }
}

} // namespace

int main(int argc, char **argv) {
    if (argc != 2 || exchange_select_kernels(argv[1]) != 0) {
        fprintf(stderr, "usage: row_kernel_bits KERNELS (of this processor)\n");
        return 2;
    }
    Checksum sum;
    for (uint32_t element = 0; element < 3; ++element)
        for (const uint32_t hidden : {16u, 48u, 80u, 512u, 1040u})
            for (uint32_t repetition = 0; repetition < 20; ++repetition)
                add_kernels(sum, element, hidden);
    printf("%016llx\n", static_cast<unsigned long long>(sum.value()));
}
