// Copies between host and device: pinned and pageable by size, both directions at once, and while the device computes.
#include "common.cuh"

__global__ void compute(float *data, int rounds) {
    float value = data[blockIdx.x * blockDim.x + threadIdx.x];
    for (int i = 0; i < rounds; i++) value = value * 0.999f + 0.001f;
    data[blockIdx.x * blockDim.x + threadIdx.x] = value;
}

int main(int count, char **words) {
    Arguments given = read_arguments(count, words);
    const size_t largest = size_t{1} << 28;
    char *pinned = nullptr, *other = nullptr, *device = nullptr, *target = nullptr;
    CHECK(cudaMallocHost(&pinned, largest));
    CHECK(cudaMallocHost(&other, largest));
    CHECK(cudaMalloc(&device, largest));
    CHECK(cudaMalloc(&target, largest));
    char *pageable = static_cast<char *>(std::malloc(largest));
    if (!pageable) fail("no host memory for a pageable buffer");
    std::memset(pageable, 1, largest);
    std::memset(pinned, 1, largest);
    std::memset(other, 1, largest);
    for (size_t bytes = 4096; bytes <= largest; bytes *= 4) {
        std::string moved = amount("bytes", static_cast<double>(bytes));
        for (bool is_pinned : {true, false}) {
            char *host = is_pinned ? pinned : pageable;
            std::string at = moved + "," + text("memory", is_pinned ? "pinned" : "pageable");
            report(given, "pcie.h2d", at, moved, samples(given, [&] {
                       return by_clock([&] { CHECK(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, 0)); });
                   }));
            report(given, "pcie.d2h", at, moved, samples(given, [&] {
                       return by_clock([&] { CHECK(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, 0)); });
                   }));
        }
    }
    cudaStream_t up, down;
    CHECK(cudaStreamCreateWithFlags(&up, cudaStreamNonBlocking));
    CHECK(cudaStreamCreateWithFlags(&down, cudaStreamNonBlocking));
    double bytes = static_cast<double>(largest);
    report(given, "pcie.both", amount("bytes", bytes), amount("bytes", 2.0 * bytes), samples(given, [&] {
               return by_clock([&] {
                   CHECK(cudaMemcpyAsync(device, pinned, largest, cudaMemcpyHostToDevice, up));
                   CHECK(cudaMemcpyAsync(other, target, largest, cudaMemcpyDeviceToHost, down));
               });
           }));
    float *data = nullptr;
    int grid = full_grid();
    CHECK(cudaMalloc(&data, static_cast<size_t>(grid) * 256 * sizeof(float)));
    CHECK(cudaMemset(data, 0, static_cast<size_t>(grid) * 256 * sizeof(float)));
    int rounds = 1 << 12;
    while (rounds < (1 << 26) && by_clock([&] { compute<<<grid, 256, 0, down>>>(data, rounds); }) < 0.02) rounds *= 2;
    for (bool busy : {false, true}) {
        report(given, "pcie.h2d_while", amount("bytes", bytes) + "," + text("device", busy ? "computing" : "idle"),
               amount("bytes", bytes), samples(given, [&] {
                   CHECK(cudaDeviceSynchronize());
                   if (busy) compute<<<grid, 256, 0, down>>>(data, rounds);
                   return by_events(up, [&] { CHECK(cudaMemcpyAsync(device, pinned, largest, cudaMemcpyHostToDevice, up)); });
               }));
        report(given, "gpu.compute_while", text("link", busy ? "copying" : "idle"), amount("operations", rounds),
               samples(given, [&] {
                   CHECK(cudaDeviceSynchronize());
                   if (busy) CHECK(cudaMemcpyAsync(device, pinned, largest, cudaMemcpyHostToDevice, up));
                   return by_events(down, [&] { compute<<<grid, 256, 0, down>>>(data, rounds); });
               }));
    }
    return 0;
}
