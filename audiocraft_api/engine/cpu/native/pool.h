// A small pool of threads for many short parallel loops in a row.
//
// `run(count, body)` calls body(index, worker) for every index below count. Indices are claimed one by one from an
// atomic ticket, so a thread that the system has put aside holds up nobody, and a late one finds the ticket changed and
// takes nothing. Workers spin a moment for the next loop, then sleep: an idle pool costs nothing.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace native {

inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

class Pool {
public:
    explicit Pool(int threads) {
        for (int worker = 1; worker < threads; ++worker) threads_.emplace_back([this, worker] { work(worker); });
    }

    ~Pool() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            stop_.store(true);
        }
        wake_.notify_all();
        for (std::thread& thread : threads_) thread.join();
    }

    int size() const { return int(threads_.size()) + 1; }

    // Only one thread may call it at a time. `count` is below 65536.
    template <class Body>
    void run(int count, Body&& body) {
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
            { std::lock_guard<std::mutex> lock(mutex_); }
            wake_.notify_all();
        }
        claim(epoch_, 0);
        for (int spins = 0; done_.load(std::memory_order_acquire) < count; ++spins) {
            relax();
            if (spins > 4000) std::this_thread::yield();
        }
    }

    // The same in a few runs of indices for each thread, for bodies that stream through memory from one to the next.
    template <class Body>
    void run_in_order(int count, Body&& body) {
        const int runs = kRunsPerThread * size(), length = (count + runs - 1) / runs;
        if (!count) return;
        run((count + length - 1) / length, [&](int part, int worker) {
            for (int index = part * length; index < std::min(count, (part + 1) * length); ++index) body(index, worker);
        });
    }

private:
    static constexpr int kRunsPerThread = 4;  // enough to share out evenly, few enough to stream

    using Call = void (*)(void*, int, int);

    void claim(uint32_t epoch, int worker) {
        uint64_t ticket = ticket_.load(std::memory_order_acquire);
        for (;;) {
            const int index = ticket & 0xffff, count = ticket >> 16 & 0xffff;
            if (ticket >> 32 != epoch || index >= count) return;
            // Read before the claim: once it succeeds, these belong to this loop, which cannot end without us.
            const Call call = call_.load(std::memory_order_relaxed);
            void* context = context_.load(std::memory_order_relaxed);
            if (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel)) continue;
            call(context, index, worker);
            done_.fetch_add(1, std::memory_order_release);
            ticket = ticket_.load(std::memory_order_acquire);
        }
    }

    void work(int worker) {
        uint32_t seen = 0;
        while (!stop_.load(std::memory_order_relaxed)) {
            await(seen);
            seen = uint32_t(ticket_.load(std::memory_order_acquire) >> 32);
            claim(seen, worker);
        }
    }

    // Returns when the ticket has another epoch than `seen`, or the pool ends.
    void await(uint32_t seen) {
        const auto changed = [&] { return ticket_.load() >> 32 != seen || stop_.load(); };
        const auto patience = std::chrono::steady_clock::now() + std::chrono::microseconds(100);
        do {
            for (int spins = 0; spins < 64; ++spins) {
                if (ticket_.load(std::memory_order_acquire) >> 32 != seen) return;
                relax();
            }
        } while (std::chrono::steady_clock::now() < patience);
        std::unique_lock<std::mutex> lock(mutex_);
        sleepers_.fetch_add(1);
        wake_.wait(lock, changed);
        sleepers_.fetch_sub(1);
    }

    std::vector<std::thread> threads_;
    alignas(64) std::atomic<uint64_t> ticket_{0};  // epoch 32, count 16, next index 16 bits
    alignas(64) std::atomic<int> done_{0};
    alignas(64) std::atomic<Call> call_{nullptr};
    std::atomic<void*> context_{nullptr};
    std::atomic<int> sleepers_{0};
    std::atomic<bool> stop_{false};
    std::mutex mutex_;
    std::condition_variable wake_;
    uint32_t epoch_ = 0;
};

}  // namespace native
