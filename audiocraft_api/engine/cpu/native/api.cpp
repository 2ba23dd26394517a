// The C interface that library.py calls. No exception crosses it: functions return a status, and native_last_error()
// the message of this thread's last error.
#include <cstdio>
#include <exception>
#include <mutex>
#include <stdexcept>

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

struct LstmHandle {
    LstmHandle(int layers, int size, const float* const* weights, int threads) : lstm(layers, size, weights, threads) {}
    std::mutex mutex;
    native::Lstm lstm;
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

}  // namespace

extern "C" {

const char* native_last_error() { return last_error; }

// The instructions that multiply integers in this process.
const char* native_integer_kernel() { return native::amx_available() ? "amx" : NATIVE_INTEGER_KERNEL; }

// Return null on failure.
Handle* native_create(const native::DecoderSpec* spec) {
    Handle* handle = nullptr;
    guarded([&] { handle = new Handle(*spec); });
    return handle;
}

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

// Return null on failure.
LstmHandle* native_lstm_create(int layers, int size, const float* const* weights, int threads) {
    LstmHandle* handle = nullptr;
    guarded([&] { handle = new LstmHandle(layers, size, weights, threads); });
    return handle;
}

void native_lstm_destroy(LstmHandle* handle) { delete handle; }

int native_lstm_advance(LstmHandle* handle, int layer, const native::LstmSequence* sequences, int count) {
    return guarded([&] {
        std::lock_guard<std::mutex> lock(handle->mutex);
        handle->lstm.advance(layer, sequences, count);
    });
}

}  // extern "C"
