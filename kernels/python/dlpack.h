// What is used of DLPack 1's C exchange interface, through which torch describes a tensor without a Python attribute
// being looked up (github.com/dmlc/dlpack, dlpack.h). The layout of these structs is that interface's promise.
#pragma once

#include <cstdint>

namespace dlpack {

constexpr uint32_t major_version = 1;
constexpr int32_t cpu = 1;

enum TypeCode : uint8_t { integer = 0, floating = 2, bfloat = 4 };

struct Tensor {
    void *data;
    int32_t device_type;
    int32_t device_id;
    int32_t dimensions;
    uint8_t code; // TypeCode
    uint8_t bits;
    uint16_t lanes;
    int64_t *shape;
    int64_t *strides; // in elements
    uint64_t byte_offset;
};

struct ExchangeApi {
    uint32_t major, minor;
    const ExchangeApi *older;
    void *allocate, *export_owned, *import_owned;
    // 0, or -1 with an exception of Python set. What it fills in lives as long as the tensor is not changed.
    int (*describe)(void *tensor, Tensor *description); // may be null
    void *current_stream;
};

} // namespace dlpack
