// Runs many loops on the native decoder's thread pool, for ThreadSanitizer. Exits with 1 if an index or an exception is
// missed.
#include "pool.h"

#include <cstdio>
#include <new>
#include <numeric>

// Every loop reads what the previous one has written, without a lock: the pool alone orders them.
static bool run_loops(native::Pool& pool, int loops) {
    std::vector<long> values(300, 0), before(300, 0);
    for (int loop = 0; loop < loops; ++loop) {
        const int count = 1 + loop * 37 % int(values.size());
        before = values;
        pool.parallel_for(count, [&](int index, int worker) { values[index] = before[index] + 1 + 0 * worker; });
        pool.parallel_for_chunked(count, [&](int index, int) { before[index] = values[count - 1 - index]; });
        for (int index = 0; index < count; ++index)
            if (before[count - 1 - index] != values[index]) return false;
        // Now and then longer than the workers spin, so that they sleep and are woken.
        if (loop % 50 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return std::accumulate(values.begin(), values.end(), 0L) > 0;
}

// Some bodies throw, in whatever thread runs them. The loop ends with an exception, and the pool works on.
static bool reports_exceptions(native::Pool& pool) {
    for (int loop = 0; loop < 200; ++loop) {
        std::vector<int> calls(50, 0);
        bool has_thrown = false;
        try {
            pool.parallel_for(int(calls.size()), [&](int index, int) {
                ++calls[index];
                if (index % 7 == loop % 7) throw std::bad_alloc();
            });
        } catch (const std::bad_alloc&) {
            has_thrown = true;
        }
        if (!has_thrown) return false;
        calls.assign(calls.size(), 0);
        pool.parallel_for(int(calls.size()), [&](int index, int) { ++calls[index]; });
        if (std::accumulate(calls.begin(), calls.end(), 0) != int(calls.size())) return false;
    }
    return true;
}

int main() {
    for (int threads = 1; threads <= 5; ++threads) {
        native::Pool pool(threads);
        if (!run_loops(pool, 2000)) {
            std::printf("a pool of %d threads missed an index\n", threads);
            return 1;
        }
        if (!reports_exceptions(pool)) {
            std::printf("a pool of %d threads lost an exception\n", threads);
            return 1;
        }
    }
    return 0;
}
