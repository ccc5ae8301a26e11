// What one small kernel costs: in a stream, in a captured graph, and a wait for an empty device.
#include "common.cuh"

__global__ void nothing(int *sink) {
    if (sink && threadIdx.x == 0xffffffffu) *sink = 1;
}

int main(int count, char **words) {
    Arguments given = read_arguments(count, words);
    const int kernels = 512;
    cudaStream_t stream;
    CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    std::string amounts = amount("operations", kernels);
    auto launch = [&] {
        for (int i = 0; i < kernels; i++) nothing<<<1, 32, 0, stream>>>(nullptr);
    };
    report(given, "gpu.launch", text("mode", "stream"), amounts, samples(given, [&] { return by_clock(launch); }));
    cudaGraph_t graph;
    cudaGraphExec_t ready;
    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    launch();
    CHECK(cudaStreamEndCapture(stream, &graph));
    CHECK(cudaGraphInstantiate(&ready, graph, 0));
    report(given, "gpu.launch", text("mode", "graph"), amounts,
           samples(given, [&] { return by_clock([&] { CHECK(cudaGraphLaunch(ready, stream)); }); }));
    report(given, "gpu.launch", text("mode", "synchronous"), amount("operations", 1.0),
           samples(given, [&] { return by_clock([&] { nothing<<<1, 32, 0, stream>>>(nullptr); }); }));
    return 0;
}
