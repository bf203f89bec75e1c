#include "generators.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Utils.h>
#include <c10/core/GeneratorImpl.h>
#include <c10/core/TensorImpl.h>

#include <cstring>

#include "device.h"

namespace emulated_npu {
namespace {

uint64_t mixed(uint64_t value) {
    value = (value ^ (value >> 33)) * 0xff51afd7ed558ccd;
    value = (value ^ (value >> 33)) * 0xc4ceb9fe1a85ec53;
    return value ^ (value >> 33);
}

class Generator final : public c10::GeneratorImpl {
  public:
    explicit Generator(c10::DeviceIndex device)
        : c10::GeneratorImpl({device_type, device}, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1)) {}

    void set_current_seed(uint64_t seed) override {
        seed_ = seed;
        offset_ = 0;
    }
    void set_offset(uint64_t offset) override { offset_ = offset; }
    uint64_t get_offset() const override { return offset_; }
    uint64_t current_seed() const override { return seed_; }
    uint64_t seed() override {
        set_current_seed(c10::detail::getNonDeterministicRandom());
        return seed_;
    }
    void set_state(const c10::TensorImpl &state) override {
        TORCH_CHECK(state.numel() == state_bytes && state.dtype() == caffe2::TypeMeta::Make<uint8_t>(),
                    "the state of a generator of the emulated NPU has ", state_bytes, " bytes");
        const auto *bytes = static_cast<const char *>(state.data());
        memcpy(&seed_, bytes, sizeof seed_);
        memcpy(&offset_, bytes + sizeof seed_, sizeof offset_);
    }
    c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
        at::Tensor state = at::detail::empty_cpu({state_bytes}, c10::ScalarType::Byte);
        auto *bytes = static_cast<char *>(state.mutable_data_ptr());
        memcpy(bytes, &seed_, sizeof seed_);
        memcpy(bytes + sizeof seed_, &offset_, sizeof offset_);
        return state.getIntrusivePtr();
    }

  private:
    static constexpr int64_t state_bytes = 2 * sizeof(uint64_t);

    Generator *clone_impl() const override {
        auto *clone = new Generator(device().index());
        clone->seed_ = seed_;
        clone->offset_ = offset_;
        return clone;
    }

    uint64_t seed_ = c10::default_rng_seed_val;
    uint64_t offset_ = 0;
};

} // namespace

const at::Generator &default_generator() {
    static auto *generator = new at::Generator(at::make_generator<Generator>(c10::DeviceIndex(0)));
    return *generator;
}

at::Generator new_generator(c10::DeviceIndex device) { return at::make_generator<Generator>(device); }

Draws::Draws(const at::Generator &generator) {
    TORCH_CHECK(generator.device().type() == device_type, "a generator of ", generator.device(),
                " with tensors of the emulated NPU");
    at::Generator used = generator;
    const std::lock_guard lock(used.mutex());
    seed_ = used.current_seed();
    offset_ = used.get_offset();
    used.set_offset(offset_ + 1);
}

at::Generator Draws::of_replay(uint64_t replay) const {
    return at::detail::createCPUGenerator(mixed(mixed(mixed(seed_ + 1) + offset_) + replay));
}

} // namespace emulated_npu
