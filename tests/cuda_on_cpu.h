// As much of CUDA as the kernels of models/ops use, on one CPU thread: a block's threads are fibers, which run in turn
// from one barrier or shuffle to the next. Where not all threads that must meet do meet, the process ends.

#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#define __device__
#define __global__
#define __launch_bounds__(...)

using cudaError_t = int;
using cudaStream_t = void*;
inline cudaError_t cudaGetLastError() { return 0; }

struct uint4 {
  unsigned x, y, z, w;
};
struct Index {
  unsigned x;
};
static Index threadIdx, blockIdx, blockDim, gridDim;
alignas(16) static unsigned char shared[48 * 1024];

using std::floor;
using std::min;

template <typename T>
void atomicAdd(T* to, T term) {
  *to += term;
}

template <typename T>
void __stcs(T* to, T value) {
  *to = value;
}

namespace on_cpu {

enum Meeting { NONE, BLOCK, WARP, WARP_READ, END };

static ucontext_t scheduler;
static std::vector<ucontext_t> fibers;
static std::vector<std::vector<char>> stacks;
static std::vector<Meeting> meetings;  // where each thread waits
static std::vector<double> passed;     // by shuffles
static std::function<void()> kernel;

inline void meet(Meeting meeting) {
  const unsigned me = threadIdx.x;
  meetings[me] = meeting;
  swapcontext(&fibers[me], &scheduler);
  threadIdx.x = me;
}

inline void run() {
  kernel();
  meet(END);
}

inline void check(bool met) {
  if (met) return;
  std::fprintf(stderr, "threads that must meet do not\n");
  std::abort();
}

template <typename F>
void launch(int blocks, int threads, size_t shared_bytes, F body) {
  check(shared_bytes <= sizeof(shared) && threads % 32 == 0 && threads <= 1024);
  kernel = body;
  gridDim.x = blocks;
  blockDim.x = threads;
  stacks.resize(threads, std::vector<char>(64 * 1024));
  passed.resize(threads);
  for (int block = 0; block < blocks; ++block) {
    blockIdx.x = block;
    std::memset(shared, 0xff, sizeof(shared));  // nothing is there before it is written
    fibers.assign(threads, ucontext_t{});
    meetings.assign(threads, NONE);
    for (int t = 0; t < threads; ++t) {
      getcontext(&fibers[t]);
      fibers[t].uc_stack.ss_sp = stacks[t].data();
      fibers[t].uc_stack.ss_size = stacks[t].size();
      makecontext(&fibers[t], run, 0);
    }
    while (meetings[0] != END) {
      for (int t = 0; t < threads; ++t) {
        threadIdx.x = t;
        swapcontext(&scheduler, &fibers[t]);
        check(meetings[t] == meetings[t / 32 * 32]);
      }
      // Stricter than CUDA: warps go in step.
      for (int t = 0; t < threads; ++t) check(meetings[t] == meetings[0]);
    }
  }
}

}  // namespace on_cpu

inline void __syncthreads() { on_cpu::meet(on_cpu::BLOCK); }

template <typename T>
T __shfl_xor_sync(unsigned, T value, int distance) {
  on_cpu::passed[threadIdx.x] = static_cast<double>(value);
  on_cpu::meet(on_cpu::WARP);
  const T other = static_cast<T>(on_cpu::passed[threadIdx.x ^ distance]);
  on_cpu::meet(on_cpu::WARP_READ);
  return other;
}
