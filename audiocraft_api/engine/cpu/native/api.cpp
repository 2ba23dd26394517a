// The C interface that library.py calls. No exception crosses it: functions return a status, and native_last_error()
// the message of this thread's last error.
#include <cstdio>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <utility>

#include "convolution.h"
#include "decoder.h"
#include "lstm.h"
#include "tiles.h"

using native::Decoder;

namespace {

struct Handle {
    explicit Handle(const native::DecoderSpec& spec) : decoder(spec) {}
    std::mutex mutex;  // the decoder's scratch buffers serve one call at a time
    Decoder decoder;
};

// The threads of layers that are used one after the other.
struct Workers {
    explicit Workers(int threads) : pool(threads) {}
    std::mutex mutex;  // a pool serves one call at a time
    native::Pool pool;
};

enum Status { kOk = 0, kOutOfMemory = 1, kFailed = 2 };  // library.py declares kOutOfMemory, too

thread_local char last_error[256];

int fail(Status status, const std::exception& error) {
    std::snprintf(last_error, sizeof last_error, "%s", error.what());
    return status;
}

template <class Body>
int guarded(Body&& body) {
    try {
        body();
        return kOk;
    } catch (const std::logic_error& error) {
        return fail(kFailed, error);
    } catch (const std::exception& error) {  // memory or threads that the system does not provide
        return fail(kOutOfMemory, error);
    }
}

template <class Body>
int locked(Handle* handle, Body&& body) {
    return guarded([&] {
        std::lock_guard<std::mutex> lock(handle->mutex);
        body(handle->decoder);
    });
}

template <class Body>
int locked(Workers* workers, Body&& body) {
    return guarded([&] {
        std::lock_guard<std::mutex> lock(workers->mutex);
        body(workers->pool);
    });
}

// Return null on failure.
template <class T, class... Arguments>
T* created(Arguments&&... arguments) {
    T* made = nullptr;
    guarded([&] { made = new T(std::forward<Arguments>(arguments)...); });
    return made;
}

}  // namespace

extern "C" {

const char* native_last_error() { return last_error; }

// The instructions that multiply integers in this process.
const char* native_integer_kernel() { return native::amx_available() ? "amx" : NATIVE_INTEGER_KERNEL; }

// This and the other functions that create an object return null on failure.
Handle* native_create(const native::DecoderSpec* spec) { return created<Handle>(*spec); }

void native_destroy(Handle* handle) { delete handle; }

size_t native_bytes(const Handle* handle) { return handle->decoder.bytes(); }

int native_set_layer(Handle* handle, int index, const native::LayerPointers* from) {
    return locked(handle, [&](Decoder& decoder) { decoder.set_layer(index, *from); });
}

int native_set_embeddings_and_heads(Handle* handle, const float* heads, const float* norm_weight,
                                    const float* norm_bias, const float* const* embeddings, const float* positions) {
    return locked(handle, [&](Decoder& decoder) {
        decoder.set_embeddings_and_heads(heads, norm_weight, norm_bias, embeddings, positions);
    });
}

int native_set_context(Handle* handle, int slot, int number, const float* context, int length) {
    return locked(handle, [&](Decoder& decoder) { decoder.set_context(slot, number, context, length); });
}

int native_set_parts(Handle* handle, int slot, int count, const int32_t* numbers, const float* weights) {
    return locked(handle, [&](Decoder& decoder) { decoder.set_parts(slot, count, numbers, weights); });
}

int native_clear_slot(Handle* handle, int slot) {
    return locked(handle, [&](Decoder& decoder) { decoder.clear_slot(slot); });
}

int native_forward(Handle* handle, int rows, const int64_t* tokens, const float* inputs, const int32_t* slots,
                   const int32_t* positions, int num_logit_rows, float* logits) {
    return locked(handle, [&](Decoder& decoder) {
        decoder.forward(rows, tokens, inputs, slots, positions, num_logit_rows, logits);
    });
}

int native_sample(Handle* handle, int count, const native::SamplingParams* params, const float* logits,
                  int64_t* tokens) {
    return locked(handle, [&](Decoder& decoder) { decoder.sample(params, count, logits, tokens); });
}

Workers* native_workers_create(int threads) { return created<Workers>(threads); }

void native_workers_destroy(Workers* workers) { delete workers; }

native::Lstm* native_lstm_create(Workers* workers, int layers, int size, const float* const* weights) {
    native::Lstm* lstm = nullptr;
    locked(workers, [&](native::Pool& pool) { lstm = new native::Lstm(pool, layers, size, weights); });
    return lstm;
}

void native_lstm_destroy(native::Lstm* lstm) { delete lstm; }

int native_lstm_advance(Workers* workers, native::Lstm* lstm, int layer, const native::LstmSequence* sequences,
                        int count) {
    return locked(workers, [&](native::Pool& pool) { lstm->advance(pool, layer, sequences, count); });
}

native::Convolution* native_convolution_create(const native::ConvolutionSpec* spec) {
    return created<native::Convolution>(*spec);
}

void native_convolution_destroy(native::Convolution* convolution) { delete convolution; }

int native_convolution_apply(Workers* workers, const native::Convolution* convolution, const float* x, int64_t length,
                             float* y) {
    return locked(workers, [&](native::Pool& pool) { convolution->apply(pool, x, length, y); });
}

void native_elu(const float* x, int64_t count, float* y) { native::elu(x, count, y); }

}  // extern "C"
