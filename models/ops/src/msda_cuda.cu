// Launches of the CUDA kernels; see msda_cuda.h.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "msda_kernels.cuh"

namespace msda {
namespace {

constexpr int64_t MAX_BLOCKS = 0x7fffffff;
constexpr int MAX_ITEMS = 64;  // of a block, at a time

// How a kernel that gives each item a group of threads is launched.
template <typename T, typename Acc>
struct Plan {
  int group = 1;  // threads of an item: as many as it has packs, up to a power of two within a warp
  int threads, blocks;
  size_t shared;

  explicit Plan(const Sizes& s) {
    while (group < 32 && group * Pack<T>::SIZE < s.channels) group *= 2;
    const int items = std::min(MAX_ITEMS, MAX_THREADS / group);
    threads = items * group;
    const int64_t all = s.batch * s.queries * s.heads;
    blocks = static_cast<int>(std::min(MAX_BLOCKS, (all + items - 1) / items));
    shared = sizeof(Place<Acc>) * ROW * items;
  }
};

// Calls f with a value of the values' type and one of the type of sums.
template <typename F>
void with_type(Type type, const F& f) {
  switch (type) {
    case Type::float64: return f(double(), double());
    case Type::float32: return f(float(), float());
    case Type::float16: return f(__half(), float());
    case Type::bfloat16: return f(__nv_bfloat16(), float());
  }
}

}  // namespace

cudaError_t forward(
    Type type, const Sizes& sizes, const void* value, const void* locations, const void* weights, void* out,
    cudaStream_t stream) {
  with_type(type, [&](auto of_values, auto of_sums) {
    using T = decltype(of_values);
    using Acc = decltype(of_sums);
    const Plan<T, Acc> plan(sizes);
    forward_kernel<T, Acc><<<plan.blocks, plan.threads, plan.shared, stream>>>(
        sizes, plan.group, static_cast<const T*>(value), static_cast<const Acc*>(locations),
        static_cast<const Acc*>(weights), static_cast<T*>(out));
  });
  return cudaGetLastError();
}

cudaError_t backward(
    Type type, const Sizes& sizes, const void* grad, const void* value, const void* locations, const void* weights,
    void* grad_value, void* grad_locations, void* grad_weights, bool ordered, cudaStream_t stream) {
  with_type(type, [&](auto of_values, auto of_sums) {
    using T = decltype(of_values);
    using Acc = decltype(of_sums);
    const Plan<T, Acc> plan(sizes);
    backward_kernel<T, Acc><<<plan.blocks, plan.threads, plan.shared, stream>>>(
        sizes, plan.group, static_cast<const T*>(grad), static_cast<const T*>(value),
        static_cast<const Acc*>(locations), static_cast<const Acc*>(weights),
        ordered ? nullptr : static_cast<Acc*>(grad_value), static_cast<Acc*>(grad_locations),
        static_cast<Acc*>(grad_weights));
    if (ordered) {
      const int64_t tasks = sizes.batch * sizes.levels * sizes.heads * (sizes.channels / Pack<T>::SIZE);
      const int threads = 32;  // few and long tasks: they are spread over as many multiprocessors as can be
      const int blocks = static_cast<int>(std::min(MAX_BLOCKS, (tasks + threads - 1) / threads));
      ordered_value_kernel<T, Acc><<<blocks, threads, 0, stream>>>(
          sizes, static_cast<const T*>(grad), static_cast<const Acc*>(locations), static_cast<const Acc*>(weights),
          static_cast<Acc*>(grad_value));
    }
  });
  return cudaGetLastError();
}

}  // namespace msda
