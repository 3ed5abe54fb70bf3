// Multi-scale deformable attention on CUDA devices: tensors in and out; the kernels are in msda_cuda.cu.

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <cstdint>
#include <limits>
#include <tuple>

#include "msda_cuda.h"

namespace {

using at::Tensor;

constexpr int64_t MAX_INT = std::numeric_limits<int>::max();

// The kernels read 16 bytes at once: a view that starts between such places is copied.
Tensor prepared(const Tensor& tensor) {
  const Tensor whole = tensor.contiguous();
  return reinterpret_cast<std::uintptr_t>(whole.const_data_ptr()) % 16 ? whole.clone() : whole;
}

int small(int64_t size) {
  TORCH_CHECK(size <= MAX_INT / 2, "the CUDA kernels take sizes up to 2^30, and one is ", size);
  return static_cast<int>(size);
}

msda::Sizes sizes_of(const Tensor& value, at::IntArrayRef shapes, const Tensor& locations) {
  msda::Sizes s{};
  s.batch = value.size(0);
  s.positions = small(value.size(1));
  s.heads = small(value.size(2));
  s.channels = small(value.size(3));
  s.queries = locations.size(1);
  s.levels = small(locations.size(3));
  s.points = small(locations.size(4));
  TORCH_CHECK(s.channels % 8 == 0, "the CUDA kernels take heads whose width is a multiple of 8, not ", s.channels);
  TORCH_CHECK(s.levels <= msda::MAX_LEVELS, "the CUDA kernels take up to ", msda::MAX_LEVELS, " levels");
  TORCH_CHECK(shapes.size() == 2 * static_cast<size_t>(s.levels), "one level shape per level is needed");
  int64_t first = 0;
  for (int level = 0; level < s.levels; ++level) {
    s.height[level] = small(shapes[2 * level]);
    s.width[level] = small(shapes[2 * level + 1]);
    s.first[level] = static_cast<int>(first);
    first += shapes[2 * level] * shapes[2 * level + 1];
  }
  TORCH_CHECK(first == s.positions, "the level shapes hold ", first, " positions and the value ", s.positions);
  return s;
}

msda::Type type_of(const Tensor& value) {
  switch (value.scalar_type()) {
    case at::kDouble: return msda::Type::float64;
    case at::kFloat: return msda::Type::float32;
    case at::kHalf: return msda::Type::float16;
    case at::kBFloat16: return msda::Type::bfloat16;
    default: TORCH_CHECK(false, "the CUDA kernels take float64, float32, float16 and bfloat16");
  }
}

Tensor forward(const Tensor& value_, at::IntArrayRef shapes, const Tensor& locations_, const Tensor& weights_) {
  const c10::cuda::CUDAGuard guard(value_.device());
  const msda::Sizes s = sizes_of(value_, shapes, locations_);
  const Tensor value = prepared(value_), locations = prepared(locations_), weights = prepared(weights_);
  Tensor out = at::empty({s.batch, s.queries, value.size(2) * value.size(3)}, value.options());
  if (out.numel() == 0) return out;
  C10_CUDA_CHECK(msda::forward(
      type_of(value), s, value.const_data_ptr(), locations.const_data_ptr(), weights.const_data_ptr(),
      out.mutable_data_ptr(), c10::cuda::getCurrentCUDAStream()));
  return out;
}

std::tuple<Tensor, Tensor, Tensor> backward(
    const Tensor& grad_, const Tensor& value_, at::IntArrayRef shapes, const Tensor& locations_,
    const Tensor& weights_, bool ordered) {
  const c10::cuda::CUDAGuard guard(value_.device());
  const msda::Sizes s = sizes_of(value_, shapes, locations_);
  const Tensor grad = prepared(grad_), value = prepared(value_);
  const Tensor locations = prepared(locations_), weights = prepared(weights_);
  Tensor grad_value = at::zeros(value.sizes(), locations.options());
  Tensor grad_locations = at::empty_like(locations), grad_weights = at::empty_like(weights);
  if (grad.numel() != 0) {
    C10_CUDA_CHECK(msda::backward(
        type_of(value), s, grad.const_data_ptr(), value.const_data_ptr(), locations.const_data_ptr(),
        weights.const_data_ptr(), grad_value.mutable_data_ptr(), grad_locations.mutable_data_ptr(),
        grad_weights.mutable_data_ptr(), ordered, c10::cuda::getCurrentCUDAStream()));
  }
  return {grad_value.to(value.scalar_type()), grad_locations, grad_weights};
}

}  // namespace

TORCH_LIBRARY(t2v_rvos_cuda, library) {
  library.def("forward(Tensor value, int[] shapes, Tensor locations, Tensor weights) -> Tensor");
  library.def(
      "backward(Tensor grad, Tensor value, int[] shapes, Tensor locations, Tensor weights, bool ordered)"
      " -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(t2v_rvos_cuda, CUDA, library) {
  library.impl("forward", &forward);
  library.impl("backward", &backward);
}
