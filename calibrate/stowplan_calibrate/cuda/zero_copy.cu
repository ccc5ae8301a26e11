// Kernels that read host memory over the link, without a copy.
#include "common.cuh"

__global__ void read_all(const float4 *__restrict__ from, size_t count, float *sink) {
    float sum = 0.0f;
    size_t stride = static_cast<size_t>(gridDim.x) * blockDim.x;
    for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
        float4 value = from[i];
        sum += value.x + value.y + value.z + value.w;
    }
    if (sum == -1.0f) *sink = sum;
}

int main(int count, char **words) {
    Arguments given = read_arguments(count, words);
    int mapped = 0;
    CHECK(cudaDeviceGetAttribute(&mapped, cudaDevAttrCanMapHostMemory, given.gpu));
    if (!mapped) {
        skip("gpu.zero_copy", "the device cannot map host memory");
        return 0;
    }
    const size_t largest = size_t{1} << 28;
    void *host = nullptr, *seen = nullptr;
    float *sink = nullptr;
    CHECK(cudaHostAlloc(&host, largest, cudaHostAllocMapped));
    std::memset(host, 0, largest);
    CHECK(cudaHostGetDevicePointer(&seen, host, 0));
    CHECK(cudaMalloc(&sink, sizeof(float)));
    for (size_t bytes = size_t{1} << 20; bytes <= largest; bytes *= 4) {
        std::string moved = amount("bytes", static_cast<double>(bytes));
        report(given, "gpu.zero_copy", moved, moved, samples(given, [&] {
                   return by_events(0, [&] {
                       read_all<<<full_grid(), 256>>>(static_cast<const float4 *>(seen), bytes / sizeof(float4), sink);
                   });
               }));
    }
    return 0;
}
