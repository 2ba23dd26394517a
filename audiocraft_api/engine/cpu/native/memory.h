// Prefetching, and large zeroed buffers from the system, whose untouched pages use no memory.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <new>
#include <thread>
#include <utility>
#include <vector>

#include <sys/mman.h>

namespace native {

// Prefetch for sequential reads at `at`: one cache line near ahead into the inner cache and one far ahead into the
// outer. Measured 20 % faster than either alone; the hardware prefetcher stops at page boundaries. Always inlined: GCC
// considers a function that only prefetches to have no effect, and drops calls to it unless they are inlined early.
[[gnu::always_inline]] inline void prefetch_ahead(const void* at) {
    __builtin_prefetch(static_cast<const char*>(at) + 8192, 0, 2);
    __builtin_prefetch(static_cast<const char*>(at) + 1024, 0, 3);
}

// Where to prefetch during a short sequential read that is followed by a read at `next`: beyond the end of the first,
// the start of the second. A returned address is valid for the few cache lines that follow it, too.
class PrefetchPlan {
public:
    PrefetchPlan(const void* from, size_t bytes, const void* next)
        : end_(static_cast<const char*>(from) + bytes), next_(static_cast<const char*>(next)),
          far_(std::min(bytes, size_t(8192))), near_(std::min(bytes, size_t(1024))) {}

    const char* far(const void* at) const { return ahead(at, far_); }
    const char* near(const void* at) const { return ahead(at, near_); }

private:
    const char* ahead(const void* at, size_t distance) const {
        const char* to = static_cast<const char*>(at) + distance;
        return to < end_ ? to : next_ + (to - end_);
    }

    const char *end_, *next_;
    size_t far_, near_;
};

class Buffer {
public:
    Buffer() = default;
    explicit Buffer(size_t bytes) : bytes_((bytes + kPadding + kPage - 1) / kPage * kPage) {
        // Huge pages need an alignment to their size; mmap aligns to small pages only.
        void* mapped = mmap(nullptr, bytes_ + kHuge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (mapped == MAP_FAILED) throw std::bad_alloc();
        mapped_ = mapped;
        data_ = static_cast<char*>(mapped) + (kHuge - reinterpret_cast<size_t>(mapped) % kHuge) % kHuge;
#if defined(MADV_NOHUGEPAGE)
        madvise(data_, bytes_, MADV_NOHUGEPAGE);  // writing one byte would zero and use a whole huge page
#endif
    }
    Buffer(Buffer&& other) noexcept { swap(other); }
    Buffer& operator=(Buffer&& other) noexcept {
        swap(other);
        return *this;
    }
    ~Buffer() {
        if (mapped_) munmap(mapped_, bytes_ + kHuge);
    }

    template <class T>
    T* as() const {
        return reinterpret_cast<T*>(data_);
    }
    size_t bytes() const { return mapped_ ? bytes_ : 0; }

    // Move the contents to huge pages, until `stop`. Other threads may read at the same time. The rest after the last
    // whole huge page stays in small pages. Kernels before Linux 6.1 cannot do this on request; they may do it later.
    void use_huge_pages(const std::atomic<bool>& stop) const {
#if defined(MADV_HUGEPAGE)
        madvise(data_, bytes_ / kHuge * kHuge, MADV_HUGEPAGE);
        constexpr int kCollapse = 25;  // MADV_COLLAPSE, missing from older headers
        for (size_t at = 0; at + kHuge <= bytes_ && !stop; at += kHuge) madvise(data_ + at, kHuge, kCollapse);
#endif
    }

private:
    static constexpr size_t kHuge = size_t(2) << 20, kPage = 4096;
    static constexpr size_t kPadding = 64;  // vector loads may read past the last element

    void swap(Buffer& other) noexcept {
        std::swap(mapped_, other.mapped_);
        std::swap(data_, other.data_);
        std::swap(bytes_, other.bytes_);
    }

    void* mapped_ = nullptr;
    char* data_ = nullptr;
    size_t bytes_ = 0;
};

// Allocates many small blocks with one lifetime from large buffers, so that small matrices benefit from huge pages,
// too.
class Arena {
public:
    ~Arena() {
        stop_ = true;
        if (huge_pages_thread_.joinable()) huge_pages_thread_.join();
    }

    // Return zeroed bytes, aligned to a cache line.
    char* allocate(size_t bytes) {
        bytes = (bytes + 63) / 64 * 64;
        if (chunks_.empty() || used_ + bytes > chunks_.back().bytes()) {
            chunks_.emplace_back(std::max(bytes, kChunk));
            used_ = 0;
        }
        char* allocated = chunks_.back().as<char>() + used_;
        used_ += bytes;
        total_ += bytes;
        return allocated;
    }
    size_t bytes() const { return total_; }

    // Move everything allocated so far to huge pages in a background thread. Call once; allocating huge pages may be
    // slow.
    void use_huge_pages() {
        huge_pages_thread_ = std::thread([this] {
            for (const Buffer& chunk : chunks_) chunk.use_huge_pages(stop_);
        });
    }

private:
    static constexpr size_t kChunk = size_t(64) << 20;
    std::vector<Buffer> chunks_;
    size_t used_ = 0, total_ = 0;
    std::thread huge_pages_thread_;
    std::atomic<bool> stop_{false};
};

}  // namespace native
