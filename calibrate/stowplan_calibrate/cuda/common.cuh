// What every program shares: its arguments, its samples, and one JSON line per point on standard output.
//
// A line is {"name", "parameters", "amounts", "seconds": [...]}; {"skip": reason} says that a part cannot be measured on
// this device, {"error": reason} ends the program with status 3.
#pragma once

#include <cuda_runtime.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

struct Arguments {
    int gpu = 0;
    double budget = 0.5;  // seconds for one point
    int most = 200;       // samples of one point
    std::string path;     // a file, where a program reads one
};

[[noreturn]] inline void fail(const std::string &reason) {
    std::printf("{\"error\":\"%s\"}\n", reason.c_str());
    std::exit(3);
}

inline void skip(const char *name, const std::string &reason) {
    std::printf("{\"skip\":\"%s\",\"name\":\"%s\"}\n", reason.c_str(), name);
    std::fflush(stdout);
}

inline void check(cudaError_t status, const char *what) {
    if (status != cudaSuccess) fail(std::string(what) + ": " + cudaGetErrorString(status));
}
#define CHECK(call) check((call), #call)

inline Arguments read_arguments(int count, char **words) {
    Arguments given;
    for (int i = 1; i + 1 < count; i += 2) {
        if (!std::strcmp(words[i], "--gpu")) given.gpu = std::atoi(words[i + 1]);
        else if (!std::strcmp(words[i], "--budget")) given.budget = std::atof(words[i + 1]);
        else if (!std::strcmp(words[i], "--most")) given.most = std::atoi(words[i + 1]);
        else if (!std::strcmp(words[i], "--path")) given.path = words[i + 1];
        else fail(std::string("unknown argument ") + words[i]);
    }
    CHECK(cudaSetDevice(given.gpu));
    return given;
}

inline double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Seconds between two events around `work` on `stream`.
template <typename Work>
double by_events(cudaStream_t stream, Work work) {
    static cudaEvent_t first = nullptr, last = nullptr;
    if (!first) {
        CHECK(cudaEventCreate(&first));
        CHECK(cudaEventCreate(&last));
    }
    CHECK(cudaEventRecord(first, stream));
    work();
    CHECK(cudaEventRecord(last, stream));
    CHECK(cudaEventSynchronize(last));
    CHECK(cudaGetLastError());
    float milliseconds = 0.0f;
    CHECK(cudaEventElapsedTime(&milliseconds, first, last));
    return 1e-3 * static_cast<double>(milliseconds);
}

// Seconds on the host's clock until the device has finished; for what a caller waits for.
template <typename Work>
double by_clock(Work work) {
    CHECK(cudaDeviceSynchronize());
    double began = now();
    work();
    CHECK(cudaDeviceSynchronize());
    return now() - began;
}

// Samples of `once` (which returns seconds) until the budget or the most samples are spent, after two runs to warm up.
template <typename Once>
std::vector<double> samples(const Arguments &given, Once once) {
    std::vector<double> seconds;
    once();
    once();
    double began = now();
    while (seconds.size() < 5 || (now() - began < given.budget && seconds.size() < static_cast<size_t>(given.most)))
        seconds.push_back(once());
    return seconds;
}

// One line; `parameters` and `amounts` are the inside of JSON objects.
inline void report(const Arguments &given, const char *name, const std::string &parameters, const std::string &amounts,
                   const std::vector<double> &seconds) {
    std::printf("{\"name\":\"%s\",\"parameters\":{\"gpu\":%d%s%s},\"amounts\":{%s},\"seconds\":[", name, given.gpu,
                parameters.empty() ? "" : ",", parameters.c_str(), amounts.c_str());
    for (size_t i = 0; i < seconds.size(); i++) std::printf("%s%.9g", i ? "," : "", seconds[i]);
    std::printf("]}\n");
    std::fflush(stdout);
}

inline std::string amount(const char *name, double value) {
    char text[96];
    std::snprintf(text, sizeof text, "\"%s\":%.17g", name, value);
    return text;
}

inline std::string text(const char *name, const char *value) {
    return std::string("\"") + name + "\":\"" + value + "\"";
}

// Blocks that fill the device several times over.
inline int full_grid() {
    int device = 0, units = 0;
    CHECK(cudaGetDevice(&device));
    CHECK(cudaDeviceGetAttribute(&units, cudaDevAttrMultiProcessorCount, device));
    return units * 16;
}
