// Device memory: reading, copying and triads over arrays far larger than the caches.
#include "common.cuh"

__global__ void read_all(const float4 *__restrict__ from, size_t count, float *sink) {
    float sum = 0.0f;
    size_t stride = static_cast<size_t>(gridDim.x) * blockDim.x;
    for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
        float4 value = from[i];
        sum += value.x + value.y + value.z + value.w;
    }
    if (sum == -1.0f) *sink = sum;  // never: keeps the loads
}

__global__ void copy_all(const float4 *__restrict__ from, float4 *__restrict__ to, size_t count) {
    size_t stride = static_cast<size_t>(gridDim.x) * blockDim.x;
    for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) to[i] = from[i];
}

__global__ void triad_all(const float4 *__restrict__ b, const float4 *__restrict__ c, float4 *__restrict__ a, size_t count) {
    size_t stride = static_cast<size_t>(gridDim.x) * blockDim.x;
    for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
        float4 x = b[i], y = c[i];
        a[i] = make_float4(x.x + 3.0f * y.x, x.y + 3.0f * y.y, x.z + 3.0f * y.z, x.w + 3.0f * y.w);
    }
}

int main(int count, char **words) {
    Arguments given = read_arguments(count, words);
    size_t free_bytes = 0, total = 0;
    CHECK(cudaMemGetInfo(&free_bytes, &total));
    size_t largest = size_t{1} << 30;
    while (largest > (size_t{1} << 24) && 3 * largest > free_bytes / 2) largest >>= 1;
    float4 *a = nullptr, *b = nullptr, *c = nullptr;
    float *sink = nullptr;
    CHECK(cudaMalloc(&a, largest));
    CHECK(cudaMalloc(&b, largest));
    CHECK(cudaMalloc(&c, largest));
    CHECK(cudaMalloc(&sink, sizeof(float)));
    CHECK(cudaMemset(b, 0, largest));
    CHECK(cudaMemset(c, 0, largest));
    int grid = full_grid();
    for (size_t bytes = largest / 64; bytes <= largest; bytes *= 4) {
        size_t items = bytes / sizeof(float4);
        std::string size = amount("bytes", static_cast<double>(bytes));
        report(given, "gpu.read", size, amount("bytes", static_cast<double>(bytes)),
               samples(given, [&] { return by_events(0, [&] { read_all<<<grid, 256>>>(b, items, sink); }); }));
        report(given, "gpu.copy", size, amount("bytes", 2.0 * static_cast<double>(bytes)),
               samples(given, [&] { return by_events(0, [&] { copy_all<<<grid, 256>>>(b, a, items); }); }));
        report(given, "gpu.triad", size, amount("bytes", 3.0 * static_cast<double>(bytes)),
               samples(given, [&] { return by_events(0, [&] { triad_all<<<grid, 256>>>(b, c, a, items); }); }));
    }
    return 0;
}
