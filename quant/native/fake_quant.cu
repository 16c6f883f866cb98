// The kernels of fake_quant.cc for the GPU: the same formulas, one pass over memory each.

#include "fake_quant.cuh"

namespace paddleqat {
namespace {

constexpr float kTiny = 1e-30f;
constexpr int kThreads = 256;

int blocks_for(int64_t n) {
  const int64_t blocks = (n + kThreads - 1) / kThreads;
  return static_cast<int>(blocks < 1 ? 1 : blocks > 4096 ? 4096 : blocks);
}

// |x| as an integer orders like |x|, NaN above all.
__device__ unsigned magnitude(float x) { return __float_as_uint(x) & 0x7fffffffu; }

__global__ void abs_max_kernel(const float* x, unsigned* largest, Layout layout) {
  __shared__ unsigned shared[kThreads];
  const int64_t c = blockIdx.y;
  const int64_t count = layout.outer * layout.inner;
  unsigned most = 0;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const int64_t o = i / layout.inner, j = i % layout.inner;
    most = max(most, magnitude(x[(o * layout.channels + c) * layout.inner + j]));
  }
  shared[threadIdx.x] = most;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) {
      shared[threadIdx.x] = max(shared[threadIdx.x], shared[threadIdx.x + half]);
    }
    __syncthreads();
  }
  if (threadIdx.x == 0) atomicMax(largest + c, shared[0]);
}

__global__ void fake_quant_kernel(const float* x, const float* scale, float* y, int64_t n,
                                  Layout layout, float low, float high, bool rounds) {
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < n;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const float s = scale[layout.channels == 1 ? 0 : (i / layout.inner) % layout.channels];
    const float inverse = s > kTiny ? __fmul_rn(high, __frcp_rn(s)) : 0.0f;
    float code = __fmul_rn(x[i], inverse);
    code = code < low ? low : code;
    code = code > high ? high : code;
    if (rounds) code = rintf(code);
    y[i] = __fdiv_rn(__fmul_rn(code, s), high);
  }
}

__global__ void pact_backward_kernel(const float* x, const float* alpha, const float* grad,
                                     float* dx, float* dalpha, int64_t n) {
  __shared__ float shared[kThreads];
  const float bound = alpha[0];
  float sum = 0.0f;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < n;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const bool above = x[i] > bound, below = x[i] < -bound;
    dx[i] = above || below ? 0.0f : grad[i];
    sum += above ? grad[i] : below ? -grad[i] : 0.0f;
  }
  shared[threadIdx.x] = sum;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
    __syncthreads();
  }
  if (threadIdx.x == 0) atomicAdd(dalpha, shared[0]);
}

}  // namespace

void abs_max_cuda(const float* x, float* largest, Layout layout, cudaStream_t stream) {
  cudaMemsetAsync(largest, 0, layout.channels * sizeof(float), stream);
  const dim3 blocks(blocks_for(layout.outer * layout.inner), layout.channels);
  abs_max_kernel<<<blocks, kThreads, 0, stream>>>(x, reinterpret_cast<unsigned*>(largest), layout);
}

void fake_quant_cuda(const float* x, const float* scale, float* y, Layout layout, float low,
                     float high, bool rounds, cudaStream_t stream) {
  const int64_t n = layout.outer * layout.channels * layout.inner;
  fake_quant_kernel<<<blocks_for(n), kThreads, 0, stream>>>(x, scale, y, n, layout, low, high,
                                                           rounds);
}

void pact_backward_cuda(const float* x, const float* alpha, const float* grad, float* dx,
                        float* dalpha, int64_t n, cudaStream_t stream) {
  cudaMemsetAsync(dalpha, 0, sizeof(float), stream);
  pact_backward_kernel<<<blocks_for(n), kThreads, 0, stream>>>(x, alpha, grad, dx, dalpha, n);
}

}  // namespace paddleqat
