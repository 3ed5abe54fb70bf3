// The interface between the CUDA kernels (msda_cuda.cu, without PyTorch's headers) and msda_cuda_binding.cpp.

#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace msda {

constexpr int MAX_LEVELS = 32;

struct Sizes {
  int64_t batch, positions, queries;
  int heads, channels, levels, points;  // points per level
  int height[MAX_LEVELS], width[MAX_LEVELS];
  int first[MAX_LEVELS];  // the position of a level's corner (0, 0)
};

enum class Type { float64, float32, float16, bfloat16 };  // of values; all else is float32, or float64 with float64

// All pointers are aligned to 16 bytes and on the current device; the channels are a multiple of 8, no size is zero.
cudaError_t forward(
    Type type, const Sizes& sizes, const void* value, const void* locations, const void* weights, void* out,
    cudaStream_t stream);

// grad_value is of the type of locations, and filled with zeros. ordered: the same result in every run, but slower.
cudaError_t backward(
    Type type, const Sizes& sizes, const void* grad, const void* value, const void* locations, const void* weights,
    void* grad_value, void* grad_locations, void* grad_weights, bool ordered, cudaStream_t stream);

}  // namespace msda
