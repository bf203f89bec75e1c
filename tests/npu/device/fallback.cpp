// Every operator without an entry of its own. What it returns is known from its Meta implementation at once; its CPU
// implementation runs later, on the stream, over the memory of the device.
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <ATen/core/stack.h>
#include <ATen/ops/clone.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <mutex>

#include "counters.h"
#include "device.h"
#include "generators.h"
#include "graphs.h"
#include "operators.h"

namespace emulated_npu {
namespace {

using Arguments = torch::jit::Stack;

// A value with `map` of each tensor in it, and its devices replaced.
template <class Map> c10::IValue mapped(const c10::IValue &value, c10::DeviceType device, Map map) {
    if (value.isTensor())
        return map(value.toTensor());
    if (value.isTensorList()) {
        const c10::List<at::Tensor> given = value.toTensorList();
        c10::List<at::Tensor> tensors;
        for (size_t index = 0; index < given.size(); ++index)
            tensors.push_back(map(given.get(index)));
        return tensors;
    }
    if (value.isOptionalTensorList()) {
        const c10::List<std::optional<at::Tensor>> given = value.toOptionalTensorList();
        c10::List<std::optional<at::Tensor>> tensors;
        for (size_t index = 0; index < given.size(); ++index) {
            const std::optional<at::Tensor> tensor = given.get(index);
            tensors.push_back(tensor ? std::optional<at::Tensor>(map(*tensor)) : std::nullopt);
        }
        return tensors;
    }
    if (value.isDevice() && value.toDevice().type() == device_type)
        return c10::Device(device);
    return value;
}

template <class Visit> void each_tensor(const c10::IValue &value, Visit visit) {
    mapped(value, device_type, [&](const at::Tensor &tensor) {
        visit(tensor);
        return tensor;
    });
}

at::Tensor on_host(const at::Tensor &tensor) { return on_emulated_npu(tensor) ? Placed(tensor).on_host() : tensor; }

// Copies the values of results to where they were promised.
void keep_results(const c10::IValue &result, const c10::IValue &promised) {
    std::vector<at::Tensor> from;
    each_tensor(result, [&](const at::Tensor &tensor) { from.push_back(tensor); });
    size_t next = 0;
    each_tensor(promised, [&](const at::Tensor &tensor) {
        const at::Tensor &made = from.at(next++);
        if (!tensor.defined() || tensor.numel() == 0)
            return;
        TORCH_CHECK(made.sizes() == tensor.sizes() && made.scalar_type() == tensor.scalar_type(),
                    "its Meta implementation promises ", tensor.sizes(), " of ", tensor.scalar_type(),
                    ", its CPU implementation returns ", made.sizes(), " of ", made.scalar_type());
        Placed(tensor).on_host().copy_(made);
    });
}

bool is_generator(const c10::Argument &argument) {
    const c10::TypePtr &type = argument.type();
    if (const auto optional = type->cast<c10::OptionalType>())
        return optional->getElementType()->kind() == c10::TypeKind::GeneratorType;
    return type->kind() == c10::TypeKind::GeneratorType;
}

// A call, as it is put on a stream. Tensors of the device in it own nothing.
class OperatorWork final : public Work {
  public:
    OperatorWork(const c10::OperatorHandle &op, Arguments arguments, std::vector<c10::IValue> results)
        : op_(op), arguments_(std::move(arguments)), results_(std::move(results)) {
        name = toString(op.operator_name());
        const auto note = [this](const at::Tensor &tensor) {
            if (on_emulated_npu(tensor) && tensor.numel() > 0) {
                touches.push_back(tensor.const_data_ptr());
                bytes += tensor.nbytes();
            }
        };
        for (const c10::IValue &argument : arguments_)
            each_tensor(argument, note);
        for (const c10::IValue &result : results_)
            each_tensor(result, note);
        const auto &declared = op.schema().arguments();
        for (size_t index = 0; index < declared.size(); ++index)
            if (is_generator(declared[index])) {
                const c10::IValue &given = arguments_[index];
                draws_.emplace(index, Draws(given.isGenerator() ? given.toGenerator() : default_generator()));
            }
    }

    void run(uint64_t replay) override {
        const at::NoGradGuard no_gradients;
        const at::AutoDispatchBelowADInplaceOrView no_autograd;
        torch::jit::Stack stack;
        {
            const std::lock_guard lock(mutex_);
            stack = arguments_;
        }
        for (c10::IValue &value : stack)
            value = mapped(value, c10::DeviceType::CPU, on_host);
        for (const auto &[index, draws] : draws_)
            stack[index] = draws.of_replay(replay);
        try {
            op_.callBoxed(stack);
            for (size_t result = 0; result < results_.size(); ++result)
                if (!results_[result].isNone())
                    keep_results(stack[result], results_[result]);
        } catch (const c10::Error &error) {
            throw std::runtime_error(error.what_without_backtrace());
        }
    }

    // The next runs have these arguments.
    void update(const c10::OperatorHandle &op, Arguments arguments) {
        if (op.operator_name() != op_.operator_name())
            throw Refused("an update calls " + toString(op.operator_name()) + " where the captured group has " + name);
        const std::lock_guard lock(mutex_);
        arguments_ = std::move(arguments);
    }
    const std::vector<c10::IValue> &results() const { return results_; }

  private:
    const c10::OperatorHandle op_;
    std::mutex mutex_;
    Arguments arguments_;
    const std::vector<c10::IValue> results_; // None where the operator returns an argument
    std::map<size_t, Draws> draws_;
};

// The argument that a result is, if the operator writes into one and returns it.
std::optional<size_t> returned_argument(const c10::FunctionSchema &schema, size_t result) {
    const c10::AliasInfo *alias = schema.returns()[result].alias_info();
    if (alias == nullptr || !alias->isWrite())
        return std::nullopt;
    for (size_t index = 0; index < schema.arguments().size(); ++index) {
        const c10::AliasInfo *written = schema.arguments()[index].alias_info();
        if (written != nullptr && written->beforeSets() == alias->beforeSets())
            return index;
    }
    return std::nullopt;
}

// The argument that a result is though the schema does not say so: the Meta implementation returns what it was given.
std::optional<c10::IValue> returned_as_given(const c10::IValue &result, const Arguments &meta,
                                             const Arguments &arguments) {
    if (!result.isTensor() || !result.toTensor().defined())
        return std::nullopt;
    for (size_t index = 0; index < meta.size(); ++index) {
        std::vector<at::Tensor> given;
        each_tensor(arguments[index], [&](const at::Tensor &tensor) { given.push_back(tensor); });
        size_t next = 0;
        std::optional<c10::IValue> found;
        each_tensor(meta[index], [&](const at::Tensor &tensor) {
            if (result.toTensor().is_same(tensor))
                found = given[next];
            ++next;
        });
        if (found)
            return found;
    }
    return std::nullopt;
}

bool returns_view(const c10::FunctionSchema &schema) {
    for (const c10::Argument &result : schema.returns())
        if (result.alias_info() != nullptr && !result.alias_info()->isWrite())
            return true;
    return false;
}

bool writes(const c10::Argument &argument) {
    return argument.alias_info() != nullptr && argument.alias_info()->isWrite();
}

// Whether what it returns depends on values. Indices that are masks have become positions before.
bool depends_on_values(const c10::OperatorHandle &op) {
    if (op.operator_name().name == "aten::index")
        return false;
    return op.hasTag(at::Tag::dynamic_output_shape) || op.hasTag(at::Tag::data_dependent_output);
}

// An `out` that the operator is to give its size.
bool unsized_out(const c10::FunctionSchema &schema, const Arguments &arguments) {
    for (size_t index = 0; index < arguments.size(); ++index)
        if (schema.arguments()[index].kwarg_only() && writes(schema.arguments()[index]) &&
            arguments[index].isTensor() && arguments[index].toTensor().defined() &&
            arguments[index].toTensor().numel() == 0)
            return true;
    return false;
}

// Calls the Meta implementation; `arguments` are replaced by those it was called with.
torch::jit::Stack call_meta(const c10::OperatorHandle &op, Arguments &arguments) {
    TORCH_CHECK_NOT_IMPLEMENTED(op.hasComputedKernelForDispatchKey(c10::DispatchKey::Meta), "emulated NPU: operator ",
                                op.operator_name(), " has no Meta implementation, which is to say what it returns");
    const bool torchs_own = op.operator_name().name.starts_with("aten::");
    for (size_t index = 0; index < arguments.size(); ++index) {
        arguments[index] = mapped(arguments[index], c10::DeviceType::Meta, [&](const at::Tensor &tensor) {
            const bool host_values = tensor.defined() && tensor.is_cpu() && (!torchs_own || tensor.dim() == 0);
            return tensor.defined() && !host_values ? without_memory(tensor) : tensor;
        });
        if (is_generator(op.schema().arguments()[index]))
            arguments[index] = c10::IValue();
    }
    const at::AutoDispatchBelowADInplaceOrView no_autograd;
    torch::jit::Stack stack = arguments;
    op.callBoxed(stack);
    return stack;
}

void resize_outs(const Arguments &arguments, const Arguments &meta) {
    for (size_t index = 0; index < arguments.size(); ++index) {
        if (!arguments[index].isTensor() || !on_emulated_npu(arguments[index].toTensor()))
            continue;
        const at::Tensor &tensor = arguments[index].toTensor(), &sized = meta[index].toTensor();
        if (tensor.sizes() == sized.sizes())
            continue;
        tensor.resize_(sized.sizes());
        tensor.unsafeGetTensorImpl()->set_sizes_and_strides(sized.sizes(), sized.strides());
    }
}

// A tensor over the memory of another one, lying as `meta` does.
at::Tensor view_of(const at::Tensor &tensor, const at::Tensor &meta) {
    at::Tensor view = at::detail::make_tensor<at::TensorImpl>(c10::TensorImpl::VIEW, c10::Storage(tensor.storage()),
                                                              tensor.key_set(), meta.dtype());
    const int64_t begin = tensor.storage_offset() * static_cast<int64_t>(tensor.itemsize());
    view.unsafeGetTensorImpl()->set_storage_offset(begin / static_cast<int64_t>(meta.itemsize()) +
                                                   meta.storage_offset());
    view.unsafeGetTensorImpl()->set_sizes_and_strides(meta.sizes(), meta.strides());
    return view;
}

torch::jit::Stack make_views(const c10::OperatorHandle &op, const Arguments &arguments) {
    Arguments meta = arguments;
    torch::jit::Stack results = call_meta(op, meta);
    const at::Tensor &viewed = arguments.front().toTensor();
    for (c10::IValue &result : results)
        result = mapped(result, device_type, [&](const at::Tensor &tensor) { return view_of(viewed, tensor); });
    return results;
}

at::Tensor promise(const at::Tensor &meta) {
    return meta.defined() ? empty_on_device(meta.sizes(), meta.strides(), meta.scalar_type()) : meta;
}

// Waits for the stream and runs the operator at once.
torch::jit::Stack run_now(const c10::OperatorHandle &op, const Arguments &arguments) {
    const std::string name = toString(op.operator_name());
    refuse_in_capture(name + ", whose result depends on values,");
    current_stream().wait();
    count(name);
    torch::jit::Stack stack;
    for (const c10::IValue &argument : arguments)
        stack.push_back(mapped(argument, c10::DeviceType::CPU, on_host));
    op.callBoxed(stack);
    for (size_t result = 0; result < stack.size(); ++result) {
        if (const auto argument = returned_argument(op.schema(), result)) {
            stack[result] = arguments[*argument];
            continue;
        }
        const c10::IValue made = stack[result];
        stack[result] = mapped(made, device_type, promise);
        keep_results(made, stack[result]);
    }
    return stack;
}

// What work may keep: no memory of the device, and host values as they are now.
Arguments for_later(const c10::OperatorHandle &op, const Arguments &arguments) {
    const std::string &name = op.operator_name().name;
    const bool takes_host_tensors = !name.starts_with("aten::") || name.starts_with("aten::index") ||
                                    name.starts_with("aten::_index") || name.starts_with("aten::_unsafe_index");
    Arguments kept;
    for (const c10::IValue &argument : arguments)
        kept.push_back(mapped(argument, c10::DeviceType::CPU, [&](const at::Tensor &tensor) {
            if (!tensor.defined())
                return tensor;
            if (on_emulated_npu(tensor))
                return Placed(tensor).on_device();
            TORCH_CHECK(tensor.dim() == 0 || takes_host_tensors,
                        "Expected all tensors to be on the same device: ", op.operator_name(),
                        " got one of the emulated NPU and one of ", tensor.device());
            return tensor.unsafeGetTensorImpl()->is_wrapped_number() ? tensor : tensor.clone();
        }));
    return kept;
}

torch::jit::Stack put_on_stream(const c10::OperatorHandle &op, const Arguments &arguments) {
    const c10::FunctionSchema &schema = op.schema();
    std::vector<std::optional<c10::IValue>> returned;
    bool makes_tensors = false;
    for (size_t result = 0; result < schema.returns().size(); ++result) {
        const std::optional<size_t> argument = returned_argument(schema, result);
        returned.push_back(argument ? std::optional(arguments[*argument]) : std::nullopt);
        makes_tensors |= !argument;
    }
    const auto with_arguments = [&](torch::jit::Stack results) {
        for (size_t result = 0; result < returned.size(); ++result)
            if (returned[result])
                results[result] = *returned[result];
        return results;
    };
    if (const auto updated = next_updated_work()) {
        const auto work = std::dynamic_pointer_cast<OperatorWork>(updated);
        if (!work)
            throw Refused("an update calls " + toString(op.operator_name()) + " where the captured group has " +
                          updated->name);
        work->update(op, for_later(op, arguments));
        return with_arguments(work->results());
    }
    torch::jit::Stack results(returned.size());
    if (makes_tensors || unsized_out(schema, arguments)) {
        Arguments meta = arguments;
        results = call_meta(op, meta);
        resize_outs(arguments, meta);
        for (size_t result = 0; result < results.size(); ++result) {
            if (!returned[result])
                returned[result] = returned_as_given(results[result], meta, arguments);
            results[result] = returned[result] ? c10::IValue() : mapped(results[result], device_type, promise);
        }
    }
    std::vector<c10::IValue> promised;
    for (const c10::IValue &result : results)
        promised.push_back(mapped(result, device_type, [](const at::Tensor &tensor) {
            return tensor.defined() ? Placed(tensor).on_device() : tensor;
        }));
    current_stream().put(std::make_shared<OperatorWork>(op, for_later(op, arguments), std::move(promised)));
    return with_arguments(std::move(results));
}

std::optional<c10::Device> device_of(const Arguments &arguments) {
    std::optional<c10::Device> device;
    for (const c10::IValue &argument : arguments) {
        if (argument.isDevice() && !device)
            device = argument.toDevice();
        each_tensor(argument, [&](const at::Tensor &tensor) {
            if (on_emulated_npu(tensor) && !device)
                device = tensor.device();
        });
    }
    return device;
}

// Matrix units take factors of two dtypes, in that of both; the CPU does not.
void promote_factors(const c10::OperatorHandle &op, Arguments &arguments) {
    if (op.operator_name().name != "aten::mm")
        return;
    const at::Tensor &left = arguments[0].toTensor(), &right = arguments[1].toTensor();
    const at::ScalarType both = c10::promoteTypes(left.scalar_type(), right.scalar_type());
    arguments[0] = left.to(both);
    arguments[1] = right.to(both);
}

void fall_back(const c10::OperatorHandle &op, torch::jit::Stack *stack) {
    TORCH_CHECK_NOT_IMPLEMENTED(op.hasComputedKernelForDispatchKey(c10::DispatchKey::CPU), "emulated NPU: operator ",
                                op.operator_name(), " is missing");
    const size_t count = op.schema().arguments().size();
    Arguments arguments(stack->end() - static_cast<std::ptrdiff_t>(count), stack->end());
    torch::jit::drop(*stack, count);
    const c10::OptionalDeviceGuard guard(device_of(arguments));
    promote_factors(op, arguments);
    torch::jit::Stack results;
    if (returns_view(op.schema()))
        results = make_views(op, arguments);
    else if (depends_on_values(op))
        results = run_now(op, arguments);
    else
        results = put_on_stream(op, arguments);
    stack->insert(stack->end(), results.begin(), results.end());
}

at::Tensor from_address(int64_t address, at::IntArrayRef sizes, at::IntArrayRef strides, at::ScalarType type) {
    TORCH_CHECK(shadow(reinterpret_cast<const void *>(address)) != nullptr,
                "not memory of the emulated NPU: ", address);
    return at_address(reinterpret_cast<void *>(address), sizes, strides, type);
}

at::Tensor weak_reference(const at::Tensor &tensor) { return Placed(tensor).on_device(); }

} // namespace
} // namespace emulated_npu

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) {
    library.fallback(torch::CppFunction::makeFromBoxedFunction<&emulated_npu::fall_back>());
}

// Torch has forms of them for devices that lack them; those do not return the bits of the CPU.
TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
    for (const char *name : {"convolution", "native_group_norm", "native_layer_norm"})
        library.impl(name, torch::CppFunction::makeFromBoxedFunction<&emulated_npu::fall_back>());
}

TORCH_LIBRARY(emulated_npu, library) {
    library.def("from_address(int address, int[] sizes, int[] strides, ScalarType dtype) -> Tensor");
    library.def("weak_reference(Tensor tensor) -> Tensor");
    library.impl("from_address", c10::DispatchKey::CompositeExplicitAutograd, TORCH_FN(emulated_npu::from_address));
    library.impl("weak_reference", c10::DispatchKey::PrivateUse1, TORCH_FN(emulated_npu::weak_reference));
}
