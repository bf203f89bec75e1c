// CANN's operators: their functions by name, where torch_npu finds them, in libopapi.so or one of those beside it.
// Their headers are CANN's own and are not needed to build.
#pragma once

#include <cstdint>

#include <acl/acl.h>
#include <c10/util/Exception.h>

// Of torch_npu. Null: CANN has no function of this name.
void *GetOpApiFuncAddr(const char *name);

extern "C" {
typedef struct aclTensor aclTensor;
typedef struct aclTensorList aclTensorList;
typedef struct aclIntArray aclIntArray;
typedef struct aclOpExecutor aclOpExecutor;
}

namespace ascend_torch {

using CreateTensor = aclTensor *(*)(const int64_t *sizes, uint64_t dimensions, aclDataType type, const int64_t *strides,
                                    int64_t offset, aclFormat format, const int64_t *stored_sizes,
                                    uint64_t stored_dimensions, void *memory);
using CreateTensorList = aclTensorList *(*)(const aclTensor *const *tensors, uint64_t count);
using DestroyTensor = int (*)(const aclTensor *);
using DestroyTensorList = int (*)(const aclTensorList *);

// aclnnGroupedMatmulV5GetWorkspaceSize
using PrepareProduct = int (*)(const aclTensorList *x, const aclTensorList *weight, const aclTensorList *bias,
                               const aclTensorList *scale, const aclTensorList *offset,
                               const aclTensorList *antiquant_scale, const aclTensorList *antiquant_offset,
                               const aclTensorList *per_token_scale, const aclTensor *group_list,
                               const aclTensorList *activation_input, const aclTensorList *activation_quant_scale,
                               const aclTensorList *activation_quant_offset, int64_t split_item, int64_t group_type,
                               int64_t group_list_type, int64_t act_type, aclIntArray *tuning_config,
                               aclTensorList *out, aclTensorList *activation_feature_out,
                               aclTensorList *dyn_quant_scale_out, uint64_t *workspace_bytes, aclOpExecutor **executor);
// aclnnGroupedMatmulWeightNzGetWorkspaceSize
using PrepareLaidOutProduct = int (*)(
    const aclTensorList *x, const aclTensorList *weight, const aclTensorList *bias, const aclTensorList *scale,
    const aclTensorList *offset, const aclTensorList *antiquant_scale, const aclTensorList *antiquant_offset,
    const aclTensorList *per_token_scale, const aclTensor *group_list, const aclTensorList *activation_input,
    const aclTensorList *activation_quant_scale, const aclTensorList *activation_quant_offset, int64_t split_item,
    int64_t group_type, int64_t group_list_type, int64_t act_type, aclIntArray *tuning_config, int64_t quant_group_size,
    aclTensorList *out, aclTensorList *activation_feature_out, aclTensorList *dyn_quant_scale_out,
    uint64_t *workspace_bytes, aclOpExecutor **executor);
// The second stage of either.
using LaunchOperator = int (*)(void *workspace, uint64_t workspace_bytes, aclOpExecutor *executor, aclrtStream stream);

template <class Function> Function operator_function(const char *name) {
    void *found = GetOpApiFuncAddr(name);
    TORCH_CHECK(found != nullptr, "CANN has no ", name, ": install the operators (ops) of CANN 9.1 or later");
    return reinterpret_cast<Function>(found);
}

} // namespace ascend_torch
