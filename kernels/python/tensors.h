// Tensors of torch, as the kernels take them: rows in memory.
#pragma once

#include "objects.h"

#include <cstdint>

#include "dlpack.h"
#include "exchange.h"

namespace binding {

// The rows of a tensor of two dimensions.
struct Rows {
    void *begin;
    uint64_t stride; // bytes from row to row
    uint32_t rows;
    uint32_t element_bytes;

    // Asks the tensor itself, wherever it lies and whatever it holds; false with an exception set.
    bool ask(PyObject *tensor);
};

// A matrix in the memory of the host, described by torch without a Python attribute being looked up.
struct Matrix : dlpack::Tensor {
    // Whether `tensor` is one with `columns` columns and dense rows.
    bool of(PyObject *tensor, int64_t columns);
    bool has_type(dlpack::TypeCode wanted, uint8_t wanted_bits) const { return code == wanted && bits == wanted_bits; }
    bool holds_elements(uint32_t element) const {
        return element == EXCHANGE_BF16   ? has_type(dlpack::bfloat, 16)
               : element == EXCHANGE_FP16 ? has_type(dlpack::floating, 16)
                                          : has_type(dlpack::floating, 32);
    }
    bool is_contiguous() const { return strides[0] == shape[1] || shape[0] <= 1; }
    Rows as_rows() const {
        const uint32_t bytes = bits / 8;
        return {static_cast<uint8_t *>(data) + byte_offset, static_cast<uint64_t>(strides[0]) * bytes,
                static_cast<uint32_t>(shape[0]), bytes};
    }
};

// The address of what a tensor holds; null with an exception set.
void *address_of(PyObject *tensor);

// Finds out how torch describes tensors. Where it is too old for that, no tensor is a Matrix.
bool find_torch();

} // namespace binding
