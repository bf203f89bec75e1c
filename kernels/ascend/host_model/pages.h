// Memory in whole pages, zero at first, as a device's allocator would align it.
#pragma once

#include <cstdint>
#include <new>

#include <sys/mman.h>

namespace ascend_model {

template <class T> class Pages {
  public:
    explicit Pages(uint64_t count)
        : bytes_((count + 1) * sizeof(T)),
          begin_(mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)) {
        if (begin_ == MAP_FAILED)
            throw std::bad_alloc();
    }
    ~Pages() { munmap(begin_, bytes_); }
    Pages(const Pages &) = delete;
    Pages &operator=(const Pages &) = delete;

    T *data() { return static_cast<T *>(begin_); }
    const T *data() const { return static_cast<const T *>(begin_); }

  private:
    uint64_t bytes_;
    void *begin_;
};

} // namespace ascend_model
