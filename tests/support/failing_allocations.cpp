// Compiled into a native library by a test: lets the allocation after the next `count` fail, in whatever thread.
#include <atomic>
#include <cstdlib>
#include <new>

namespace {
std::atomic<long> remaining{-1};
}

// A negative count lets none fail.
extern "C" void test_fail_allocation_after(long count) { remaining.store(count); }

// Return whether the failure has happened.
extern "C" int test_allocation_failed() { return remaining.load() < 0; }

void* operator new(std::size_t bytes) {
    if (remaining.load() >= 0 && remaining.fetch_sub(1) == 0) throw std::bad_alloc();
    if (void* allocated = std::malloc(bytes ? bytes : 1)) return allocated;
    throw std::bad_alloc();
}

void operator delete(void* allocated) noexcept { std::free(allocated); }
void operator delete(void* allocated, std::size_t) noexcept { std::free(allocated); }
