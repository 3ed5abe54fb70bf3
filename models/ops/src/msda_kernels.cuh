// The CUDA kernels of multi-scale deformable attention: see ../functional.py for what it computes.
//
// An item is one head of one query. "size" neighbouring threads of a warp (a power of two) share an item as its group,
// and each thread reads 16 bytes of channels at once, a pack. A block handles some items at a time, in two phases: first
// its threads work out where the items' points fall (each point once, kept in shared memory), then they sample the
// values there.
//
// Acc is float, or double for double: sums, locations and weights are of this type whatever the values are.

#pragma once

#include <cstdint>

#include "msda_cuda.h"

namespace msda {

constexpr int MAX_THREADS = 256;  // of a block
constexpr int CHUNK = 16;         // points of an item that shared memory holds at a time
constexpr int ROW = CHUNK + 1;    // places an item has room for: rows of 16, 384 bytes, would all start in one bank
constexpr unsigned ALL = 0xffffffffu;

template <typename T>
struct alignas(16) Pack {
  static constexpr int SIZE = 16 / sizeof(T);
  T at[SIZE];
};

template <typename T>
__device__ inline Pack<T> load(const T* from) {
  return *reinterpret_cast<const Pack<T>*>(from);
}

// One store of 16 bytes, which the compiler would split otherwise; what is written is not read again here.
template <typename T>
__device__ inline void store(T* to, const Pack<T>& pack) {
  __stcs(reinterpret_cast<uint4*>(to), *reinterpret_cast<const uint4*>(&pack));
}

// Where a point falls: the four positions around it are first, first + 1, first + width, first + width + 1.
template <typename Acc>
struct Place {
  int first, width;
  unsigned inside;  // bit i: the i-th of the four lies in its level
  Acc right, down;  // the point's offset from the first, 0…1
  Acc weight;
};

template <typename Acc>
__device__ inline Place<Acc> locate(const Sizes& s, int level, const Acc* location, Acc weight) {
  const int height = s.height[level], width = s.width[level];
  const Acc x = location[0] * width - Acc(0.5), y = location[1] * height - Acc(0.5);
  Place<Acc> place{0, width, 0u, Acc(0), Acc(0), weight};
  // Written so that what is not a number is outside: the casts below stay defined.
  if (!(x > Acc(-1) && y > Acc(-1) && x < width && y < height)) return place;
  const Acc left = floor(x), top = floor(y);
  const int column = static_cast<int>(left), row = static_cast<int>(top);
  const bool columns[2] = {column >= 0, column + 1 < width}, rows[2] = {row >= 0, row + 1 < height};
  place.first = s.first[level] + row * width + column;
  place.right = x - left;
  place.down = y - top;
  for (int i = 0; i < 4; ++i) place.inside |= unsigned(rows[i / 2] && columns[i % 2]) << i;
  return place;
}

template <typename Acc>
__device__ inline int64_t corner(const Place<Acc>& place, int i) {
  return place.first + (i / 2) * place.width + i % 2;
}

template <typename Acc>
__device__ inline bool lies_inside(const Place<Acc>& place, int i) {
  return place.inside >> i & 1;
}

// A corner's share of the sample.
template <typename Acc>
__device__ inline Acc share(const Place<Acc>& place, int i) {
  return (i / 2 ? place.down : 1 - place.down) * (i % 2 ? place.right : 1 - place.right);
}

// All four reads are under way before the first is used; what is outside is zero.
template <typename T, typename Acc>
__device__ inline void load_corners(const Place<Acc>& place, const T* from, int64_t stride, Pack<T> (&read)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    read[i] = Pack<T>{};
    if (lies_inside(place, i)) read[i] = load(from + corner(place, i) * stride);
  }
}

// Phase one: points begin … begin + CHUNK - 1 of the block's items, from item first_item on, by all of its threads.
template <typename Acc>
__device__ inline void locate_points(
    const Sizes& s, const Acc* locations, const Acc* weights, int64_t first_item, int items, int begin,
    Place<Acc>* places) {
  const int samples = s.levels * s.points, count = min(CHUNK, samples - begin);
  for (int i = threadIdx.x; i < items * count; i += blockDim.x) {
    const int item = i / count, sample = begin + i % count;
    const int64_t at = (first_item + item) * samples + sample;
    places[item * ROW + i % count] = locate(s, sample / s.points, locations + at * 2, weights[at]);
  }
}

template <typename T, typename Acc>
__global__ void __launch_bounds__(MAX_THREADS) forward_kernel(
    const Sizes s, int size, const T* __restrict__ value, const Acc* __restrict__ locations,
    const Acc* __restrict__ weights, T* __restrict__ out) {
  extern __shared__ __align__(16) unsigned char shared[];
  Place<Acc>* places = reinterpret_cast<Place<Acc>*>(shared);
  const int lane = threadIdx.x % size, group = threadIdx.x / size, per_block = blockDim.x / size;
  const int samples = s.levels * s.points, packs = s.channels / Pack<T>::SIZE;
  const int64_t items = s.batch * s.queries * s.heads, stride = int64_t(s.heads) * s.channels;

  for (int64_t first = int64_t(blockIdx.x) * per_block; first < items; first += int64_t(gridDim.x) * per_block) {
    const int here = static_cast<int>(min(int64_t(per_block), items - first));
    const int64_t item = first + group;
    const int64_t n = item / s.heads / s.queries;
    const T* maps = value + n * s.positions * stride + item % s.heads * s.channels;
    for (int base = 0; base < packs; base += size) {  // once, but for heads wider than 32 packs
      const int channel = (base + lane) * Pack<T>::SIZE;
      const bool active = group < here && base + lane < packs;
      Acc sum[Pack<T>::SIZE] = {};
      for (int begin = 0; begin < samples; begin += CHUNK) {
        __syncthreads();  // the places are no longer read
        locate_points(s, locations, weights, first, here, begin, places);
        __syncthreads();
        if (!active) continue;
        const int count = min(CHUNK, samples - begin);
        for (int point = 0; point < count; ++point) {
          const Place<Acc> place = places[group * ROW + point];
          if (!place.inside) continue;
          Pack<T> read[4];
          load_corners(place, maps + channel, stride, read);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const Acc scale = place.weight * share(place, i);
#pragma unroll
            for (int c = 0; c < Pack<T>::SIZE; ++c) sum[c] += scale * static_cast<Acc>(read[i].at[c]);
          }
        }
      }
      if (active) {
        Pack<T> written;
#pragma unroll
        for (int c = 0; c < Pack<T>::SIZE; ++c) written.at[c] = static_cast<T>(sum[c]);
        store(out + item * s.channels + channel, written);
      }
    }
  }
}

// Adds SIZE neighbouring sums to memory that other threads add to as well.
template <int SIZE, typename Acc>
__device__ inline void add_shared(Acc* to, const Acc* sums) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if constexpr (sizeof(Acc) == sizeof(float)) {
#pragma unroll
    for (int c = 0; c < SIZE; c += 4) {
      atomicAdd(reinterpret_cast<float4*>(to + c), make_float4(sums[c], sums[c + 1], sums[c + 2], sums[c + 3]));
    }
  } else
#endif
  {
#pragma unroll
    for (int c = 0; c < SIZE; ++c) atomicAdd(to + c, sums[c]);
  }
}

// The gradients of locations and weights and, unless grad_value is null, that of the values by atomic additions. Here a
// thread goes through all its packs at each point, and the group's sums meet by shuffles.
template <typename T, typename Acc>
__global__ void __launch_bounds__(MAX_THREADS) backward_kernel(
    const Sizes s, int size, const T* __restrict__ grad, const T* __restrict__ value, const Acc* __restrict__ locations,
    const Acc* __restrict__ weights, Acc* __restrict__ grad_value, Acc* __restrict__ grad_locations,
    Acc* __restrict__ grad_weights) {
  constexpr int SIZE = Pack<T>::SIZE;
  extern __shared__ __align__(16) unsigned char shared[];
  Place<Acc>* places = reinterpret_cast<Place<Acc>*>(shared);
  const int lane = threadIdx.x % size, group = threadIdx.x / size, per_block = blockDim.x / size;
  const int samples = s.levels * s.points, packs = s.channels / SIZE;
  const int64_t items = s.batch * s.queries * s.heads, stride = int64_t(s.heads) * s.channels;

  for (int64_t first = int64_t(blockIdx.x) * per_block; first < items; first += int64_t(gridDim.x) * per_block) {
    const int here = static_cast<int>(min(int64_t(per_block), items - first));
    const bool active = group < here;
    const int64_t item = first + group;
    const int64_t n = item / s.heads / s.queries;
    const int64_t maps = n * s.positions * stride + item % s.heads * s.channels;
    for (int begin = 0; begin < samples; begin += CHUNK) {
      __syncthreads();
      locate_points(s, locations, weights, first, here, begin, places);
      __syncthreads();
      const int count = min(CHUNK, samples - begin);
      for (int point = 0; point < count; ++point) {  // all threads alike: the shuffles need whole warps
        Place<Acc> place{};
        if (active) place = places[group * ROW + point];
        Acc along[4] = {};  // the gradient along each corner's value
        for (int pack = lane; place.inside && pack < packs; pack += size) {
          const int channel = pack * SIZE;
          const Pack<T> up = load(grad + item * s.channels + channel);
          Pack<T> read[4];
          load_corners(place, value + maps + channel, stride, read);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const Acc scale = place.weight * share(place, i);
            Acc sums[SIZE];
#pragma unroll
            for (int c = 0; c < SIZE; ++c) {
              const Acc g = static_cast<Acc>(up.at[c]);
              along[i] += g * static_cast<Acc>(read[i].at[c]);
              sums[c] = scale * g;
            }
            if (grad_value && lies_inside(place, i)) {
              add_shared<SIZE>(grad_value + maps + channel + corner(place, i) * stride, sums);
            }
          }
        }
        Acc weight = 0;
#pragma unroll
        for (int i = 0; i < 4; ++i) weight += share(place, i) * along[i];
        Acc x = (1 - place.down) * (along[1] - along[0]) + place.down * (along[3] - along[2]);
        Acc y = (1 - place.right) * (along[2] - along[0]) + place.right * (along[3] - along[1]);
        for (int distance = size / 2; distance > 0; distance /= 2) {
          weight += __shfl_xor_sync(ALL, weight, distance);
          x += __shfl_xor_sync(ALL, x, distance);
          y += __shfl_xor_sync(ALL, y, distance);
        }
        if (active && lane == 0) {
          const int sample = begin + point, level = sample / s.points;
          const int64_t at = item * samples + sample;
          grad_weights[at] = weight;
          grad_locations[at * 2] = place.weight * s.width[level] * x;
          grad_locations[at * 2 + 1] = place.weight * s.height[level] * y;
        }
      }
    }
  }
}

// The gradient of the values in a fixed order, for deterministic runs: a thread owns one pack of channels of one level
// of one head, and goes through all queries.
template <typename T, typename Acc>
__global__ void __launch_bounds__(MAX_THREADS) ordered_value_kernel(
    const Sizes s, const T* __restrict__ grad, const Acc* __restrict__ locations, const Acc* __restrict__ weights,
    Acc* __restrict__ grad_value) {
  constexpr int SIZE = Pack<T>::SIZE;
  const int samples = s.levels * s.points, packs = s.channels / SIZE;
  const int64_t stride = int64_t(s.heads) * s.channels, tasks = s.batch * s.levels * s.heads * packs;
  for (int64_t task = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; task < tasks;
       task += int64_t(gridDim.x) * blockDim.x) {
    const int channel = static_cast<int>(task % packs) * SIZE, head = static_cast<int>(task / packs % s.heads);
    const int level = static_cast<int>(task / packs / s.heads % s.levels);
    const int64_t n = task / packs / s.heads / s.levels;
    Acc* maps = grad_value + n * s.positions * stride + int64_t(head) * s.channels + channel;
    for (int64_t query = 0; query < s.queries; ++query) {
      const int64_t item = (n * s.queries + query) * s.heads + head;
      const Pack<T> up = load(grad + item * s.channels + channel);
      for (int point = 0; point < s.points; ++point) {
        const int64_t at = item * samples + level * s.points + point;
        const Place<Acc> place = locate(s, level, locations + at * 2, weights[at]);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (!lies_inside(place, i)) continue;
          Acc* to = maps + corner(place, i) * stride;
          const Acc scale = place.weight * share(place, i);
#pragma unroll
          for (int c = 0; c < SIZE; ++c) to[c] += scale * static_cast<Acc>(up.at[c]);
        }
      }
    }
  }
}

}  // namespace msda
