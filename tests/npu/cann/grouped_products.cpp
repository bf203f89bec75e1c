// CANN's grouped products over the emulated NPU, in their two stages, as far as the library for torch calls them; for
// tests only. What is computed is what the emulated npu_grouped_matmul computes. Strict where CANN would have to copy
// first: rows, scales of rows and results lie without gaps.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>
#include <ATen/ops/from_blob.h>
#include <torch/library.h>

#include <atomic>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include <acl/acl.h>

#include "torch_npu/csrc/core/npu/NPUFormat.h"

#include "calls.h"
#include "emulated_npu.h"

struct aclTensor {
    std::vector<int64_t> sizes;
    std::vector<int64_t> strides;
    std::vector<int64_t> stored;
    int64_t offset;
    aclDataType type;
    aclFormat format;
    char *memory;
};
struct aclTensorList {
    std::vector<const aclTensor *> tensors;
};
struct aclOpExecutor {
    std::string name;
    std::vector<c10::IValue> arguments; // of npu_grouped_matmul; tensors of the host over memory of the device
    at::Tensor counts, out;
    std::vector<const void *> addresses;
    uint64_t bytes = 0;
};

namespace {

constexpr uint64_t workspace_bytes = 512;
constexpr aclError invalid = 161002; // ACLNN_ERR_PARAM_INVALID

std::atomic<bool> weights_are_laid_out = false;
std::atomic<int64_t> described = 0;

bool is_laid_out(const at::Tensor &tensor) { return weights_are_laid_out && tensor.dim() == 3; }

at::ScalarType scalar_type(aclDataType type) {
    switch (type) {
    case ACL_BF16:
        return at::kBFloat16;
    case ACL_FLOAT16:
        return at::kHalf;
    case ACL_FLOAT:
        return at::kFloat;
    case ACL_INT8:
        return at::kChar;
    case ACL_INT32:
        return at::kInt;
    default:
        return at::kLong;
    }
}

aclTensor *create_tensor(const int64_t *sizes, uint64_t dimensions, aclDataType type, const int64_t *strides,
                         int64_t offset, aclFormat format, const int64_t *stored, uint64_t stored_dimensions,
                         void *memory) {
    ++described;
    return new aclTensor{{sizes, sizes + dimensions},
                         {strides, strides + dimensions},
                         {stored, stored + stored_dimensions},
                         offset,
                         type,
                         format,
                         static_cast<char *>(memory)};
}
int destroy_tensor(const aclTensor *tensor) {
    --described;
    delete tensor;
    return 0;
}
aclTensorList *create_tensor_list(const aclTensor *const *tensors, uint64_t count) {
    return new aclTensorList{{tensors, tensors + count}};
}
int destroy_tensor_list(const aclTensorList *list) {
    for (const aclTensor *tensor : list->tensors)
        destroy_tensor(tensor);
    delete list;
    return 0;
}

// What the first stage has found wrong.
struct Invalid {
    std::string text;
};

void require(bool right, const std::string &text) {
    if (!right)
        throw Invalid{text};
}

class Described {
  public:
    explicit Described(aclOpExecutor &executor) : executor_(executor) {}

    // As the device computes with it. Elements before the first one are not touched.
    at::Tensor tensor(const aclTensor &one) {
        const at::ScalarType type = scalar_type(one.type);
        const auto element = static_cast<int64_t>(c10::elementSize(type));
        const char *address = one.memory + one.offset * element;
        auto *place = static_cast<char *>(emulated_npu_shadow(address));
        require(place != nullptr, "a tensor is no memory of the device");
        at::Tensor made = at::from_blob(place, one.sizes, one.strides, at::TensorOptions(type));
        executor_.addresses.push_back(address);
        executor_.bytes += made.nbytes();
        return made;
    }
    at::Tensor only(const aclTensorList *list) {
        require(list != nullptr && list->tensors.size() == 1, "a list has not one tensor");
        return tensor(*list->tensors.front());
    }
    c10::IValue optional(const aclTensorList *list) {
        return list == nullptr ? c10::IValue() : c10::IValue(std::vector<at::Tensor>{only(list)});
    }

  private:
    aclOpExecutor &executor_;
};

struct Settings {
    int64_t split_item, group_type, group_list_type, act_type;
};

// Both first stages. `group`: of weights of 4 bits that are laid out for the matrix units.
int prepare(const char *name, aclFormat format, const aclTensorList *x, const aclTensorList *weight,
            const aclTensorList *bias, const aclTensorList *scale, const aclTensorList *per_token_scale,
            const aclTensor *group_list, const Settings &settings, const aclTensorList *out, uint64_t *bytes,
            aclOpExecutor **result) {
    auto executor = std::make_unique<aclOpExecutor>();
    try {
        Described tensors(*executor);
        require(settings.group_type == 0 && settings.group_list_type == 1 && settings.act_type == 0 &&
                    (settings.split_item == 2 || settings.split_item == 3),
                "rows are not divided by counts into one result");
        require(weight != nullptr && weight->tensors.front()->format == format, "the weights have another format");
        const size_t dimensions = weight->tensors.front()->stored.size();
        require(dimensions == (format == ACL_FORMAT_FRACTAL_NZ ? 5 : 1), "the weights have another storage");
        const at::Tensor rows = tensors.only(x);
        executor->name = name;
        executor->counts = tensors.tensor(*group_list);
        executor->out = tensors.only(out);
        const c10::IValue row_scales = tensors.optional(per_token_scale);
        require(rows.is_contiguous() && executor->out.is_contiguous(), "rows or results would be copied first");
        require(row_scales.isNone() || row_scales.toTensorVector().front().is_contiguous(),
                "scales of rows would be copied first");
        const int64_t type = static_cast<int64_t>(executor->out.scalar_type());
        const c10::IValue none;
        executor->arguments = {std::vector<at::Tensor>{rows},
                               std::vector<at::Tensor>{tensors.only(weight)},
                               tensors.optional(bias),
                               tensors.optional(scale),
                               none,
                               none,
                               none,
                               row_scales,
                               executor->counts,
                               none,
                               none,
                               none,
                               settings.split_item,
                               settings.group_type,
                               settings.group_list_type,
                               settings.act_type,
                               none,
                               type,
                               none,
                               none,
                               none,
                               none};
    } catch (const Invalid &found) {
        return cann_calls::refuse(invalid, std::string(name) + ": " + found.text);
    }
    *bytes = workspace_bytes;
    *result = executor.release();
    return 0;
}

int prepare_product(const aclTensorList *x, const aclTensorList *weight, const aclTensorList *bias,
                    const aclTensorList *scale, const aclTensorList *, const aclTensorList *, const aclTensorList *,
                    const aclTensorList *per_token_scale, const aclTensor *group_list, const aclTensorList *,
                    const aclTensorList *, const aclTensorList *, int64_t split_item, int64_t group_type,
                    int64_t group_list_type, int64_t act_type, void *, aclTensorList *out, aclTensorList *,
                    aclTensorList *, uint64_t *bytes, aclOpExecutor **executor) {
    return prepare("aclnnGroupedMatmulV5", ACL_FORMAT_ND, x, weight, bias, scale, per_token_scale, group_list,
                   {split_item, group_type, group_list_type, act_type}, out, bytes, executor);
}
int prepare_laid_out_product(const aclTensorList *x, const aclTensorList *weight, const aclTensorList *bias,
                             const aclTensorList *scale, const aclTensorList *, const aclTensorList *,
                             const aclTensorList *, const aclTensorList *per_token_scale, const aclTensor *group_list,
                             const aclTensorList *, const aclTensorList *, const aclTensorList *, int64_t split_item,
                             int64_t group_type, int64_t group_list_type, int64_t act_type, void *, int64_t group,
                             aclTensorList *out, aclTensorList *, aclTensorList *, uint64_t *bytes,
                             aclOpExecutor **executor) {
    const bool four_bits = weight != nullptr && weight->tensors.front()->type == ACL_INT32;
    if (group != (four_bits ? 256 : 0))
        return cann_calls::refuse(invalid, "aclnnGroupedMatmulWeightNz: groups of " + std::to_string(group));
    return prepare("aclnnGroupedMatmulWeightNz", ACL_FORMAT_FRACTAL_NZ, x, weight, bias, scale, per_token_scale,
                   group_list, {split_item, group_type, group_list_type, act_type}, out, bytes, executor);
}

void compute(const aclOpExecutor &executor) {
    static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("npu::npu_grouped_matmul", "");
    torch::jit::Stack stack(executor.arguments.begin(), executor.arguments.end());
    try {
        op.callBoxed(stack);
    } catch (const c10::Error &error) {
        throw std::runtime_error(error.what_without_backtrace());
    }
    const int64_t rows = executor.counts.sum().item<int64_t>();
    executor.out.narrow(0, 0, rows).copy_(stack.front().toTensorVector().front().narrow(0, 0, rows));
}

int launch(void *workspace, uint64_t bytes, aclOpExecutor *executor, aclrtStream stream) {
    const std::shared_ptr<const aclOpExecutor> owned(executor);
    if (bytes != workspace_bytes || emulated_npu_shadow(workspace) == nullptr)
        return cann_calls::refuse(invalid, owned->name + ": the workspace is not the one that was asked for");
    std::vector<const void *> addresses = owned->addresses;
    addresses.push_back(workspace);
    return cann_calls::put(stream, owned->name.c_str(), owned->bytes, [owned] { compute(*owned); }, addresses);
}

} // namespace

void *GetOpApiFuncAddr(const char *name) {
    const std::string wanted = name;
    if (wanted == "aclCreateTensor")
        return reinterpret_cast<void *>(create_tensor);
    if (wanted == "aclCreateTensorList")
        return reinterpret_cast<void *>(create_tensor_list);
    if (wanted == "aclDestroyTensor")
        return reinterpret_cast<void *>(destroy_tensor);
    if (wanted == "aclDestroyTensorList")
        return reinterpret_cast<void *>(destroy_tensor_list);
    if (wanted == "aclnnGroupedMatmulV5GetWorkspaceSize")
        return reinterpret_cast<void *>(prepare_product);
    if (wanted == "aclnnGroupedMatmulWeightNzGetWorkspaceSize")
        return reinterpret_cast<void *>(prepare_laid_out_product);
    if (wanted == "aclnnGroupedMatmulV5" || wanted == "aclnnGroupedMatmulWeightNz")
        return reinterpret_cast<void *>(launch);
    return nullptr;
}

int64_t at_npu::native::get_npu_format(const at::Tensor &tensor) {
    return is_laid_out(tensor) ? ACL_FORMAT_FRACTAL_NZ : ACL_FORMAT_ND;
}

// Of [experts, from, to]: [experts, to / 16, from / 16, 16, 16] as they would lie; here they lie as they are.
std::vector<int64_t> at_npu::native::get_npu_storage_sizes(const at::Tensor &tensor) {
    if (!is_laid_out(tensor))
        return tensor.sizes().vec();
    constexpr int64_t block = 16;
    return {tensor.size(0), tensor.size(2) / block, tensor.size(1) / block, block, block};
}

extern "C" {
// Weights say from now on that they are laid out for the matrix units, or no longer.
[[gnu::visibility("default")]] void emulated_cann_lay_weights_out(int64_t laid_out) {
    weights_are_laid_out = laid_out != 0;
}
// Descriptions of tensors that have not been given back.
[[gnu::visibility("default")]] int64_t emulated_cann_described() { return described; }
}
