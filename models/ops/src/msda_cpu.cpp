// Multi-scale deformable attention on the CPU: see ../functional.py for what it computes.
//
// No two threads write to the same place, and each place gets its terms in a fixed order: results do not depend on
// the number of threads.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <tuple>
#include <vector>

namespace {

using at::Tensor;

constexpr int64_t ROWS_PER_TASK = 256;  // queries of one head: below this, a thread costs more than it gives

struct Level {
  int64_t first;  // the position of its corner (0, 0)
  int64_t height, width;
};

struct Sizes {
  int64_t batch, positions, heads, channels, queries, points;
  std::vector<Level> levels;

  Sizes(const Tensor& value, at::IntArrayRef shapes, const Tensor& locations)
      : batch(value.size(0)),
        positions(value.size(1)),
        heads(value.size(2)),
        channels(value.size(3)),
        queries(locations.size(1)),
        points(locations.size(4)) {
    int64_t first = 0;
    for (size_t i = 0; i + 1 < shapes.size(); i += 2) {
      levels.push_back({first, shapes[i], shapes[i + 1]});
      first += shapes[i] * shapes[i + 1];
    }
    TORCH_CHECK(first == positions, "the level shapes hold ", first, " positions and the value ", positions);
    TORCH_CHECK(locations.size(3) == static_cast<int64_t>(levels.size()), "one level shape per level is needed");
  }

  int64_t samples() const { return static_cast<int64_t>(levels.size()) * points; }  // of one query and head
};

// The four positions around a sampled place, in the order (y, x), (y, x + 1), (y + 1, x), (y + 1, x + 1).
template <typename T>
struct Corners {
  bool any;                         // false: the place is outside, and the rest is not filled
  std::array<int64_t, 4> position;  // -1 outside the level
  T right, down;                    // the place's offset from the first corner, 0…1

  Corners(const Level& level, const T* location) {
    const T x = location[0] * static_cast<T>(level.width) - T(0.5);
    const T y = location[1] * static_cast<T>(level.height) - T(0.5);
    // Written so that what is not a number is outside: the casts below stay defined.
    any = x > T(-1) && y > T(-1) && x < static_cast<T>(level.width) && y < static_cast<T>(level.height);
    if (!any) return;
    const T left = std::floor(x), top = std::floor(y);
    right = x - left;
    down = y - top;
    const int64_t column = static_cast<int64_t>(left), row = static_cast<int64_t>(top);
    const int64_t first = level.first + row * level.width + column;
    const bool columns[2] = {column >= 0, column + 1 < level.width};
    const bool rows[2] = {row >= 0, row + 1 < level.height};
    position = {
        rows[0] && columns[0] ? first : -1,
        rows[0] && columns[1] ? first + 1 : -1,
        rows[1] && columns[0] ? first + level.width : -1,
        rows[1] && columns[1] ? first + level.width + 1 : -1};
  }

  std::array<T, 4> shares() const {
    return {(1 - down) * (1 - right), (1 - down) * right, down * (1 - right), down * right};
  }
};

// WIDTH is the number of channels where it is known to the compiler, else 0.
template <typename T, int WIDTH>
void forward_rows(const Sizes& s, const T* value, const T* locations, const T* weights, T* out) {
  const int64_t channels = WIDTH ? WIDTH : s.channels, stride = s.heads * channels, samples = s.samples();
  const std::vector<T> nothing(channels, T(0));  // what is read outside a level
  at::parallel_for(0, s.batch * s.heads * s.queries, ROWS_PER_TASK, [&](int64_t begin, int64_t end) {
    std::vector<T> sum_of_any_width(WIDTH ? 0 : channels);
    for (int64_t task = begin; task < end; ++task) {
      // One head of one frame after the other: its values stay in the cache.
      const int64_t query = task % s.queries, head = task / s.queries % s.heads, n = task / s.queries / s.heads;
      const int64_t row = (n * s.queries + query) * s.heads + head;
      const T* maps = value + (n * s.positions * s.heads + head) * channels;
      const T* location = locations + row * samples * 2;
      const T* weight = weights + row * samples;
      T sum_of_width[WIDTH ? WIDTH : 1];
      T* sum = WIDTH ? sum_of_width : sum_of_any_width.data();
      std::fill(sum, sum + channels, T(0));
      for (const Level& level : s.levels) {
        for (int64_t point = 0; point < s.points; ++point, location += 2, ++weight) {
          const Corners<T> corners(level, location);
          if (!corners.any) continue;
          const std::array<T, 4> share = corners.shares();
          const auto read = [&](int i) {
            return corners.position[i] < 0 ? nothing.data() : maps + corners.position[i] * stride;
          };
          const T *v0 = read(0), *v1 = read(1), *v2 = read(2), *v3 = read(3);
          const T k0 = *weight * share[0], k1 = *weight * share[1], k2 = *weight * share[2], k3 = *weight * share[3];
#pragma omp simd
          for (int64_t c = 0; c < channels; ++c) {
            sum[c] += k0 * v0[c] + k1 * v1[c] + k2 * v2[c] + k3 * v3[c];
          }
        }
      }
      std::copy(sum, sum + channels, out + row * channels);
    }
  });
}

template <typename T, int WIDTH>
void backward_levels(
    const Sizes& s, const T* grad, const T* value, const T* locations, const T* weights,
    T* grad_value, T* grad_locations, T* grad_weights) {
  const int64_t channels = WIDTH ? WIDTH : s.channels, stride = s.heads * channels, samples = s.samples();
  const int64_t num_levels = static_cast<int64_t>(s.levels.size());
  const std::vector<T> nothing(channels, T(0));
  // A task owns one level of one head of one frame, and so all gradients that it writes.
  at::parallel_for(0, s.batch * s.heads * num_levels, 1, [&](int64_t begin, int64_t end) {
    std::vector<T> nowhere(channels);  // takes what falls outside
    for (int64_t task = begin; task < end; ++task) {
      const int64_t l = task % num_levels, head = task / num_levels % s.heads, n = task / num_levels / s.heads;
      const Level& level = s.levels[l];
      const int64_t first_map = (n * s.positions * s.heads + head) * channels;
      for (int64_t query = 0; query < s.queries; ++query) {
        const int64_t row = (n * s.queries + query) * s.heads + head;
        const T* g = grad + row * channels;
        for (int64_t point = 0; point < s.points; ++point) {
          const int64_t sample = row * samples + l * s.points + point;
          const Corners<T> corners(level, locations + sample * 2);
          if (!corners.any) {
            grad_weights[sample] = grad_locations[sample * 2] = grad_locations[sample * 2 + 1] = T(0);
            continue;
          }
          const std::array<T, 4> share = corners.shares();
          const T weight = weights[sample];
          const auto place = [&](int i) { return first_map + corners.position[i] * stride; };
          const auto read = [&](int i) { return corners.position[i] < 0 ? nothing.data() : value + place(i); };
          const auto write = [&](int i) { return corners.position[i] < 0 ? nowhere.data() : grad_value + place(i); };
          const T *v0 = read(0), *v1 = read(1), *v2 = read(2), *v3 = read(3);
          T *g0 = write(0), *g1 = write(1), *g2 = write(2), *g3 = write(3);
          const T k0 = weight * share[0], k1 = weight * share[1], k2 = weight * share[2], k3 = weight * share[3];
          T d0 = 0, d1 = 0, d2 = 0, d3 = 0;  // the gradient along each corner's value
#pragma omp simd reduction(+ : d0, d1, d2, d3)
          for (int64_t c = 0; c < channels; ++c) {
            const T along = g[c];
            d0 += along * v0[c];
            d1 += along * v1[c];
            d2 += along * v2[c];
            d3 += along * v3[c];
            g0[c] += k0 * along;
            g1[c] += k1 * along;
            g2[c] += k2 * along;
            g3[c] += k3 * along;
          }
          grad_weights[sample] = share[0] * d0 + share[1] * d1 + share[2] * d2 + share[3] * d3;
          const T across = (1 - corners.down) * (d1 - d0) + corners.down * (d3 - d2);
          const T down = (1 - corners.right) * (d2 - d0) + corners.right * (d3 - d1);
          grad_locations[sample * 2] = weight * static_cast<T>(level.width) * across;
          grad_locations[sample * 2 + 1] = weight * static_cast<T>(level.height) * down;
        }
      }
    }
  });
}

// Calls f with the number of channels as a constant, where it is one of the usual ones.
template <typename F>
void with_width(int64_t channels, const F& f) {
  switch (channels) {
    case 8: return f(std::integral_constant<int, 8>());
    case 16: return f(std::integral_constant<int, 16>());
    case 32: return f(std::integral_constant<int, 32>());
    case 64: return f(std::integral_constant<int, 64>());
    default: return f(std::integral_constant<int, 0>());
  }
}

template <typename F>
void with_type(const Tensor& value, const F& f) {
  if (value.scalar_type() == at::kDouble) return f(double());
  TORCH_CHECK(value.scalar_type() == at::kFloat, "the CPU kernel takes float32 and float64");
  return f(float());
}

Tensor forward(const Tensor& value_, at::IntArrayRef shapes, const Tensor& locations_, const Tensor& weights_) {
  const Sizes s(value_, shapes, locations_);
  const Tensor value = value_.contiguous(), locations = locations_.contiguous(), weights = weights_.contiguous();
  Tensor out = at::empty({s.batch, s.queries, s.heads * s.channels}, value.options());
  with_type(value, [&](auto type) {
    using T = decltype(type);
    with_width(s.channels, [&](auto width) {
      forward_rows<T, decltype(width)::value>(
          s, value.const_data_ptr<T>(), locations.const_data_ptr<T>(), weights.const_data_ptr<T>(),
          out.mutable_data_ptr<T>());
    });
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> backward(
    const Tensor& grad_, const Tensor& value_, at::IntArrayRef shapes, const Tensor& locations_,
    const Tensor& weights_) {
  const Sizes s(value_, shapes, locations_);
  const Tensor grad = grad_.contiguous(), value = value_.contiguous();
  const Tensor locations = locations_.contiguous(), weights = weights_.contiguous();
  Tensor grad_value = at::zeros_like(value);
  Tensor grad_locations = at::empty_like(locations), grad_weights = at::empty_like(weights);
  with_type(value, [&](auto type) {
    using T = decltype(type);
    with_width(s.channels, [&](auto width) {
      backward_levels<T, decltype(width)::value>(
          s, grad.const_data_ptr<T>(), value.const_data_ptr<T>(), locations.const_data_ptr<T>(),
          weights.const_data_ptr<T>(), grad_value.mutable_data_ptr<T>(), grad_locations.mutable_data_ptr<T>(),
          grad_weights.mutable_data_ptr<T>());
    });
  });
  return {grad_value, grad_locations, grad_weights};
}

}  // namespace

TORCH_LIBRARY(t2v_rvos_cpp, library) {
  library.def("forward(Tensor value, int[] shapes, Tensor locations, Tensor weights) -> Tensor");
  library.def(
      "backward(Tensor grad, Tensor value, int[] shapes, Tensor locations, Tensor weights)"
      " -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(t2v_rvos_cpp, CPU, library) {
  library.impl("forward", &forward);
  library.impl("backward", &backward);
}
