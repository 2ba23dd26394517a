// A small thread pool for many short parallel loops in a row.
//
// `parallel_for(count, body)` calls body(index, worker) for every index below count. Threads claim indices one at a
// time from an atomic ticket, so a thread that the system has preempted delays no other; when it resumes after the loop
// has ended, it sees a new epoch in the ticket and claims nothing. Workers spin briefly for the next loop, then sleep:
// an idle pool uses no processor time.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace native {

inline void cpu_pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

class Pool {
public:
    static constexpr int kMaxCount = 0xffff;  // the ticket has 16 bits for the count

    // `threads` includes the calling thread.
    explicit Pool(int threads) {
        try {
            for (int worker = 1; worker < threads; ++worker) threads_.emplace_back([this, worker] { work(worker); });
        } catch (...) {
            stop();  // destroying a thread that runs would end the process
            throw;
        }
    }

    ~Pool() { stop(); }

    int size() const { return int(threads_.size()) + 1; }

    // Return when body(index, worker) has run for every index below `count`, in no particular order. Only one thread
    // may call this at a time. Throws std::length_error above kMaxCount. If bodies throw, throws one of their
    // exceptions when all have ended.
    template <class Body>
    void parallel_for(int count, Body&& body) {
        if (count > kMaxCount)
            throw std::length_error("a parallel loop of " + std::to_string(count) +
                                    " iterations exceeds the limit of " + std::to_string(kMaxCount));
        if (count <= 1 || threads_.empty()) {
            for (int index = 0; index < count; ++index) body(index, 0);
            return;
        }
        call_.store([](void* context, int index, int worker) { (*static_cast<Body*>(context))(index, worker); },
                    std::memory_order_relaxed);
        context_.store(&body, std::memory_order_relaxed);
        done_.store(0, std::memory_order_relaxed);
        ticket_.store(uint64_t(++epoch_) << 32 | uint64_t(count) << 16);
        if (sleepers_.load() > 0) {
            {
                std::lock_guard<std::mutex> lock(mutex_);
            }
            wake_.notify_all();
        }
        run_claimed(epoch_, 0);
        for (int spins = 0; done_.load(std::memory_order_acquire) < count; ++spins) {
            cpu_pause();
            if (spins > 4000) std::this_thread::yield();
        }
        if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
    }

    // The same with a few contiguous chunks of indices per thread, for bodies that read memory sequentially.
    template <class Body>
    void parallel_for_chunked(int count, Body&& body) {
        const int chunks = kChunksPerThread * size(), length = (count + chunks - 1) / chunks;
        if (!count) return;
        parallel_for((count + length - 1) / length, [&](int chunk, int worker) {
            const int end = std::min(count, (chunk + 1) * length);
            for (int index = chunk * length; index < end; ++index) body(index, worker);
        });
    }

private:
    static constexpr int kChunksPerThread = 4;  // enough to balance the load, few enough for long sequential reads

    using Call = void (*)(void*, int, int);

    // Claim and run indices of the loop `epoch` until none is left.
    void run_claimed(uint32_t epoch, int worker) {
        uint64_t ticket = ticket_.load(std::memory_order_acquire);
        for (;;) {
            const int index = ticket & 0xffff, count = ticket >> 16 & 0xffff;
            if (ticket >> 32 != epoch || index >= count) return;
            // Read before the claim: if the claim succeeds, they belong to this loop, which cannot end before this
            // index.
            const Call call = call_.load(std::memory_order_relaxed);
            void* context = context_.load(std::memory_order_relaxed);
            if (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel)) continue;
            try {
                call(context, index, worker);
            } catch (...) {
                std::lock_guard<std::mutex> lock(mutex_);
                error_ = std::current_exception();
            }
            done_.fetch_add(1, std::memory_order_release);
            ticket = ticket_.load(std::memory_order_acquire);
        }
    }

    void stop() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            stop_.store(true);
        }
        wake_.notify_all();
        for (std::thread& thread : threads_) thread.join();
    }

    void work(int worker) {
        uint32_t seen = 0;
        while (!stop_.load(std::memory_order_relaxed)) {
            wait_for_loop(seen);
            seen = uint32_t(ticket_.load(std::memory_order_acquire) >> 32);
            run_claimed(seen, worker);
        }
    }

    // Return when the ticket's epoch differs from `seen` or the pool stops.
    void wait_for_loop(uint32_t seen) {
        const auto changed = [&] { return ticket_.load() >> 32 != seen || stop_.load(); };
        const auto spin_until = std::chrono::steady_clock::now() + std::chrono::microseconds(100);
        do {
            for (int spins = 0; spins < 64; ++spins) {
                if (ticket_.load(std::memory_order_acquire) >> 32 != seen) return;
                cpu_pause();
            }
        } while (std::chrono::steady_clock::now() < spin_until);
        std::unique_lock<std::mutex> lock(mutex_);
        sleepers_.fetch_add(1);
        wake_.wait(lock, changed);
        sleepers_.fetch_sub(1);
    }

    std::vector<std::thread> threads_;
    alignas(64) std::atomic<uint64_t> ticket_{0};  // epoch (32 bits), count (16), next index (16)
    alignas(64) std::atomic<int> done_{0};
    alignas(64) std::atomic<Call> call_{nullptr};
    std::atomic<void*> context_{nullptr};
    std::atomic<int> sleepers_{0};
    std::atomic<bool> stop_{false};
    std::mutex mutex_;
    std::exception_ptr error_;  // of the current loop; the mutex guards it until the loop has ended
    std::condition_variable wake_;
    uint32_t epoch_ = 0;
};

}  // namespace native
