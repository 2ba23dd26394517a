// Large zeroed memory straight from the system, of which untouched pages cost nothing.
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

// Ask for the line that a stream of reads comes to soon, and for one further on: first into the outer cache, then into
// the inner. Measured a fifth faster than either alone; the processor's own guesses end at each page. Always inlined: GCC
// takes a function that only asks for lines for one without effects, and drops its calls where it inlines late.
[[gnu::always_inline]] inline void stream(const void* at) {
    __builtin_prefetch(static_cast<const char*>(at) + 8192, 0, 2);
    __builtin_prefetch(static_cast<const char*>(at) + 1024, 0, 3);
}

// The same for a short stream, after which the next one is read: behind its end the next one's start is asked for. The
// answer for an address holds for the few lines from there.
class ShortStream {
public:
    ShortStream(const void* from, size_t bytes, const void* next)
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
        // Huge pages need their alignment; mmap gives small pages' only.
        void* mapped = mmap(nullptr, bytes_ + kHuge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (mapped == MAP_FAILED) throw std::bad_alloc();
        mapped_ = mapped;
        data_ = reinterpret_cast<char*>((reinterpret_cast<size_t>(mapped) + kHuge - 1) / kHuge * kHuge);
#if defined(MADV_NOHUGEPAGE)
        madvise(data_, bytes_, MADV_NOHUGEPAGE);  // each would be zeroed whole at the first byte
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

    // Have the system gather pages into huge ones, until `stop`; the rest behind the last whole one stays small. Others
    // may read meanwhile. Where it cannot do that at once (Linux before 6.1), it does when it comes to it, or never.
    void gather(const std::atomic<bool>& stop) const {
#if defined(MADV_HUGEPAGE)
        madvise(data_, bytes_ / kHuge * kHuge, MADV_HUGEPAGE);
        constexpr int kCollapse = 25;  // MADV_COLLAPSE, which older headers lack
        for (size_t at = 0; at + kHuge <= bytes_ && !stop; at += kHuge) madvise(data_ + at, kHuge, kCollapse);
#endif
    }

private:
    static constexpr size_t kHuge = size_t(2) << 20, kPage = 4096;
    static constexpr size_t kPadding = 64;  // vector loads may read past the last element

    void swap(Buffer& other) {
        std::swap(mapped_, other.mapped_);
        std::swap(data_, other.data_);
        std::swap(bytes_, other.bytes_);
    }

    void* mapped_ = nullptr;
    char* data_ = nullptr;
    size_t bytes_ = 0;
};

// Memory of many small parts that live equally long, in large buffers: huge pages serve small matrices too.
class Arena {
public:
    ~Arena() {
        stop_ = true;
        if (gathering_.joinable()) gathering_.join();
    }

    // Zeroed bytes that start at a cache line.
    char* take(size_t bytes) {
        bytes = (bytes + 63) / 64 * 64;
        if (chunks_.empty() || used_ + bytes > chunks_.back().bytes()) {
            chunks_.emplace_back(std::max(bytes, kChunk));
            used_ = 0;
        }
        char* taken = chunks_.back().as<char>() + used_;
        used_ += bytes;
        total_ += bytes;
        return taken;
    }
    size_t bytes() const { return total_; }

    // Begin to gather all that was taken into huge pages, once, in a thread: to get them takes longer than to fill them.
    void gather() {
        gathering_ = std::thread([this] {
            for (const Buffer& chunk : chunks_) chunk.gather(stop_);
        });
    }

private:
    static constexpr size_t kChunk = size_t(64) << 20;
    std::vector<Buffer> chunks_;
    size_t used_ = 0, total_ = 0;
    std::thread gathering_;
    std::atomic<bool> stop_{false};
};

}  // namespace native
