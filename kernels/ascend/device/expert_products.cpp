// The product of rows by the weights of their experts, its result where the caller says. No NPU has run it.
//
// torch_npu's npu_grouped_matmul makes a tensor for its result; the functions of CANN that it calls are given one. They
// are called here as op-plugin does it (GroupedMatmulKernelNpuOpApi.cpp of torch_npu 2.14): a first one looks at the
// tensors and says how much memory the second needs, which is launched in torch's order. Declarations:
// aclnnGroupedMatmulV5 and aclnnGroupedMatmulWeightNz of CANN's ops-transformer, and op_api_common_base.h of torch_npu.
#include <memory>
#include <optional>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include "torch_npu/csrc/core/npu/NPUFormat.h"
#include "torch_npu/csrc/core/npu/NPUStream.h"
#include "torch_npu/csrc/framework/OpCommand.h"

#include "operator_functions.h"

namespace ascend_torch {
namespace {

// Rows of a group of weights of 4 bits that have a scale of their own, as op-plugin gives it.
constexpr int64_t four_bit_group = 256;
// One result for all groups, which divide the rows by their counts.
constexpr int64_t one_result = 2, divided_rows = 0, by_counts = 1, no_activation = 0;

aclDataType type_of(const at::Tensor &tensor) {
    switch (tensor.scalar_type()) {
    case at::kBFloat16:
        return ACL_BF16;
    case at::kHalf:
        return ACL_FLOAT16;
    case at::kFloat:
        return ACL_FLOAT;
    case at::kChar:
        return ACL_INT8;
    case at::kInt:
        return ACL_INT32;
    case at::kLong:
        return ACL_INT64;
    default:
        TORCH_CHECK(false, "a product of experts takes no tensor of ", tensor.scalar_type());
    }
}

bool is_laid_out_for_matrix_units(const at::Tensor &tensor) {
    return at_npu::native::get_npu_format(tensor) == ACL_FORMAT_FRACTAL_NZ;
}

// CANN's descriptions of the tensors of one call, until it has been launched.
class Described {
  public:
    Described() = default;
    ~Described() {
        static const auto destroy = operator_function<DestroyTensor>("aclDestroyTensor");
        static const auto destroy_list = operator_function<DestroyTensorList>("aclDestroyTensorList");
        for (const aclTensor *tensor : tensors_)
            destroy(tensor);
        for (const aclTensorList *list : lists_)
            destroy_list(list);
    }
    Described(const Described &) = delete;
    Described &operator=(const Described &) = delete;

    const aclTensor *alone(const at::Tensor &tensor) { return tensors_.emplace_back(describe(tensor)); }
    // A list owns what is in it; null without a tensor.
    aclTensorList *in_list(const std::optional<at::Tensor> &tensor) {
        static const auto create = operator_function<CreateTensorList>("aclCreateTensorList");
        if (!tensor.has_value())
            return nullptr;
        const aclTensor *described = describe(*tensor);
        return lists_.emplace_back(create(&described, 1));
    }

  private:
    static aclTensor *describe(const at::Tensor &tensor) {
        static const auto create = operator_function<CreateTensor>("aclCreateTensor");
        const bool laid_out = is_laid_out_for_matrix_units(tensor);
        std::vector<int64_t> stored = {static_cast<int64_t>(tensor.storage().nbytes() / tensor.itemsize())};
        if (laid_out)
            stored = at_npu::native::get_npu_storage_sizes(tensor);
        return create(tensor.sizes().data(), tensor.sizes().size(), type_of(tensor), tensor.strides().data(),
                      tensor.storage_offset(), laid_out ? ACL_FORMAT_FRACTAL_NZ : ACL_FORMAT_ND, stored.data(),
                      stored.size(), const_cast<void *>(tensor.storage().data()));
    }

    std::vector<aclTensor *> tensors_;
    std::vector<aclTensorList *> lists_;
};

void check(int result, const char *name) {
    TORCH_CHECK(result == 0, name, " returned ", result, ": ", aclGetRecentErrMsg());
}

// rows [rows, from], weight [experts, from, to] in any order of memory, counts [experts] int64 of the rows of each
// expert; bias, scale (of channels) and row_scale as npu_grouped_matmul takes them. out [rows, to]: rows past the
// counts keep what they hold.
void grouped_product(const at::Tensor &rows, const at::Tensor &weight, const std::optional<at::Tensor> &bias,
                     const std::optional<at::Tensor> &scale, const std::optional<at::Tensor> &row_scale,
                     const at::Tensor &counts, const at::Tensor &out) {
    const auto stream = c10_npu::getCurrentNPUStream(rows.device().index()).stream(false);
    auto described = std::make_shared<Described>();
    aclTensorList *x = described->in_list(rows), *weights = described->in_list(weight),
                  *biases = described->in_list(bias), *scales = described->in_list(scale),
                  *row_scales = described->in_list(row_scale), *results = described->in_list(out);
    const aclTensor *groups = described->alone(counts);
    uint64_t bytes = 0;
    aclOpExecutor *executor = nullptr;
    const bool laid_out = is_laid_out_for_matrix_units(weight);
    const char *name = laid_out ? "aclnnGroupedMatmulWeightNz" : "aclnnGroupedMatmulV5";
    if (laid_out) {
        static const auto prepare =
            operator_function<PrepareLaidOutProduct>("aclnnGroupedMatmulWeightNzGetWorkspaceSize");
        const bool four_bits = rows.scalar_type() == at::kChar && weight.scalar_type() == at::kInt;
        check(prepare(x, weights, biases, scales, nullptr, nullptr, nullptr, row_scales, groups, nullptr, nullptr,
                      nullptr, one_result, divided_rows, by_counts, no_activation, nullptr,
                      four_bits ? four_bit_group : 0, results, nullptr, nullptr, &bytes, &executor),
              name);
    } else {
        static const auto prepare = operator_function<PrepareProduct>("aclnnGroupedMatmulV5GetWorkspaceSize");
        check(prepare(x, weights, biases, scales, nullptr, nullptr, nullptr, row_scales, groups, nullptr, nullptr,
                      nullptr, one_result, divided_rows, by_counts, no_activation, nullptr, results, nullptr, nullptr,
                      &bytes, &executor),
              name);
    }
    const auto launch = operator_function<LaunchOperator>(name);
    // Given back at once: what torch puts on this stream later gets it after the product.
    const at::Tensor workspace = at::empty({static_cast<int64_t>(bytes)}, rows.options().dtype(at::kByte));
    at_npu::native::OpCommand::RunOpApiV2(name,
                                          [described, launch, memory = workspace.data_ptr(), bytes, executor,
                                           stream]() -> int { return launch(memory, bytes, executor, stream); });
}

} // namespace
} // namespace ascend_torch

TORCH_LIBRARY_FRAGMENT(sglang_ascend_moe, library) {
    library.def("grouped_product(Tensor rows, Tensor weight, Tensor? bias, Tensor? scale, Tensor? row_scale, "
                "Tensor counts, Tensor(a!) out) -> ()");
}

TORCH_LIBRARY_IMPL(sglang_ascend_moe, PrivateUse1, library) {
    library.impl("grouped_product", TORCH_FN(ascend_torch::grouped_product));
}
