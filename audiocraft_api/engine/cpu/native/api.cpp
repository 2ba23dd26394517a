// The plain C interface that library.py calls. Errors come back as text; no exception leaves.
#include <cstdio>
#include <exception>
#include <mutex>

#include "decoder.h"

using native::Decoder;

namespace {

struct Handle {
    explicit Handle(const native::Shape& shape) : decoder(shape) {}
    std::mutex mutex;  // a decoder has one set of scratch rows
    Decoder decoder;
};

thread_local char last_error[256];

template <class Body>
int guarded(Body&& body) {
    try {
        body();
        return 0;
    } catch (const std::exception& error) {
        std::snprintf(last_error, sizeof last_error, "%s", error.what());
        return 1;
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

const char* native_error() { return last_error; }

// Which integer arithmetic this build uses.
const char* native_arithmetic() { return NATIVE_DOT4; }

Handle* native_create(const native::Shape* shape) {
    Handle* handle = nullptr;
    guarded([&] { handle = new Handle(*shape); });
    return handle;
}

void native_destroy(Handle* handle) { delete handle; }

size_t native_bytes(const Handle* handle) { return handle->decoder.bytes(); }

int native_set_layer(Handle* handle, int index, const native::LayerPointers* from) {
    return locked(handle, [&](Decoder& decoder) { decoder.set_layer(index, *from); });
}

int native_set_ends(Handle* handle, const float* heads, const float* norm_weight, const float* norm_bias,
                    const float* const* embeddings, const float* positions) {
    return locked(handle, [&](Decoder& decoder) {
        decoder.set_ends(heads, norm_weight, norm_bias, embeddings, positions);
    });
}

int native_begin(Handle* handle, int slot, const float* context, int length) {
    return locked(handle, [&](Decoder& decoder) { decoder.begin(slot, context, length); });
}

int native_release(Handle* handle, int slot) {
    return locked(handle, [&](Decoder& decoder) { decoder.release(slot); });
}

int native_run(Handle* handle, int rows, const int64_t* tokens, const float* inputs, const int32_t* slots,
               const int32_t* positions, int wanted, float* logits) {
    return locked(handle, [&](Decoder& decoder) {
        decoder.run(rows, tokens, inputs, slots, positions, wanted, logits);
    });
}

int native_sample(Handle* handle, int count, const native::Choice* choices, const float* logits, int64_t* tokens) {
    return locked(handle, [&](Decoder& decoder) { decoder.sample(choices, count, logits, tokens); });
}

}  // extern "C"
