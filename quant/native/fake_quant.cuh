// What fake_quant.cu offers; every tensor is seen as [outer, channels, inner], row by row.
#pragma once

#include <cstdint>

#include <cuda_runtime.h>

namespace paddleqat {

struct Layout {
  int64_t outer = 1, channels = 1, inner = 1;
};

// largest[c] = max |x| of channel c.
void abs_max_cuda(const float* x, float* largest, Layout layout, cudaStream_t stream);

// y = clip(x * inverse, low, high), rounded half to even if `rounds`, * scale / high.
void fake_quant_cuda(const float* x, const float* scale, float* y, Layout layout, float low,
                     float high, bool rounds, cudaStream_t stream);

// dx = grad inside [-alpha, alpha], else 0; *dalpha = sum of grad above - sum of grad below.
void pact_backward_cuda(const float* x, const float* alpha, const float* grad, float* dx,
                        float* dalpha, int64_t n, cudaStream_t stream);

}  // namespace paddleqat
