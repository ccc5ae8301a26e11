// Products with one row of activations, weights in blocks of 32 that share a scale (as q8_0 and q4_0), or in fp16.
#include <cuda_fp16.h>

#include <cstdint>

#include "common.cuh"

struct Q8 {
    __half scale;
    int8_t codes[32];
};
struct Q4 {
    __half scale;
    uint8_t codes[16];
};

__device__ float reduce(float sum) {
    for (int offset = 16; offset; offset >>= 1) sum += __shfl_down_sync(0xffffffffu, sum, offset);
    return sum;
}

// One warp computes one row; a lane takes every 32nd block.
__global__ void gemv_q8(const Q8 *__restrict__ w, const float *__restrict__ x, float *y, int rows, int blocks) {
    int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= rows) return;
    float sum = 0.0f;
    for (int b = threadIdx.x % 32; b < blocks; b += 32) {
        const Q8 &block = w[static_cast<size_t>(row) * blocks + b];
        float part = 0.0f;
#pragma unroll
        for (int j = 0; j < 32; j++) part += static_cast<float>(block.codes[j]) * x[b * 32 + j];
        sum += __half2float(block.scale) * part;
    }
    sum = reduce(sum);
    if (threadIdx.x % 32 == 0) y[row] = sum;
}

__global__ void gemv_q4(const Q4 *__restrict__ w, const float *__restrict__ x, float *y, int rows, int blocks) {
    int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= rows) return;
    float sum = 0.0f;
    for (int b = threadIdx.x % 32; b < blocks; b += 32) {
        const Q4 &block = w[static_cast<size_t>(row) * blocks + b];
        float part = 0.0f;
#pragma unroll
        for (int j = 0; j < 16; j++) {
            part += (static_cast<int>(block.codes[j] & 15) - 8) * x[b * 32 + j];
            part += (static_cast<int>(block.codes[j] >> 4) - 8) * x[b * 32 + 16 + j];
        }
        sum += __half2float(block.scale) * part;
    }
    sum = reduce(sum);
    if (threadIdx.x % 32 == 0) y[row] = sum;
}

__global__ void gemv_f16(const __half2 *__restrict__ w, const float *__restrict__ x, float *y, int rows, int pairs) {
    int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= rows) return;
    float sum = 0.0f;
    for (int i = threadIdx.x % 32; i < pairs; i += 32) {
        float2 value = __half22float2(w[static_cast<size_t>(row) * pairs + i]);
        sum += value.x * x[2 * i] + value.y * x[2 * i + 1];
    }
    sum = reduce(sum);
    if (threadIdx.x % 32 == 0) y[row] = sum;
}

int main(int count, char **words) {
    Arguments given = read_arguments(count, words);
    const int shapes[][2] = {{4096, 4096}, {14336, 4096}, {4096, 14336}, {28672, 8192}};
    size_t largest = static_cast<size_t>(28672) * 8192 * 2;
    void *weights = nullptr;
    float *x = nullptr, *y = nullptr;
    CHECK(cudaMalloc(&weights, largest));
    CHECK(cudaMemset(weights, 0x11, largest));
    CHECK(cudaMalloc(&x, 14336 * sizeof(float)));
    CHECK(cudaMemset(x, 0, 14336 * sizeof(float)));
    CHECK(cudaMalloc(&y, 28672 * sizeof(float)));
    for (const auto &shape : shapes) {
        int rows = shape[0], columns = shape[1], blocks = columns / 32, grid = (rows + 7) / 8;
        double elements = static_cast<double>(rows) * columns;
        std::string at = amount("rows", rows) + "," + amount("columns", columns) + ",";
        auto one = [&](const char *format, double bytes, auto launch) {
            report(given, "gpu.gemv", at + text("format", format),
                   amount("bytes", bytes) + "," + amount("flops", 2.0 * elements),
                   samples(given, [&] { return by_events(0, launch); }));
        };
        one("q8_0", elements / 32 * sizeof(Q8), [&] { gemv_q8<<<grid, 256>>>(static_cast<Q8 *>(weights), x, y, rows, blocks); });
        one("q4_0", elements / 32 * sizeof(Q4), [&] { gemv_q4<<<grid, 256>>>(static_cast<Q4 *>(weights), x, y, rows, blocks); });
        one("f16", elements * 2, [&] { gemv_f16<<<grid, 256>>>(static_cast<__half2 *>(weights), x, y, rows, columns / 2); });
    }
    return 0;
}
