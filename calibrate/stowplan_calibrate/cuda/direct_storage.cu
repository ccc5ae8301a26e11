// GPUDirect Storage: reads from a file into device memory without the host's memory between, where cuFile is installed.
#include "common.cuh"

#if __has_include(<cufile.h>) && defined(STOW_WITH_CUFILE)
#include <cufile.h>
#include <fcntl.h>
#include <unistd.h>

int main(int count, char **words) {
    Arguments given = read_arguments(count, words);
    int file = open(given.path.c_str(), O_RDONLY | O_DIRECT);
    if (file < 0) fail("the test file cannot be opened past the page cache");
    off_t size = lseek(file, 0, SEEK_END);
    if (cuFileDriverOpen().err != CU_FILE_SUCCESS) {
        skip("gpu.direct_read", "the GPUDirect Storage driver does not start");
        return 0;
    }
    CUfileDescr_t description = {};
    description.handle.fd = file;
    description.type = CU_FILE_HANDLE_TYPE_OPAQUE_FD;
    CUfileHandle_t handle;
    if (cuFileHandleRegister(&handle, &description).err != CU_FILE_SUCCESS) {
        skip("gpu.direct_read", "GPUDirect Storage refuses this file system");
        return 0;
    }
    const size_t largest = size_t{1} << 26;
    void *device = nullptr;
    CHECK(cudaMalloc(&device, largest));
    for (size_t bytes = size_t{1} << 16; bytes <= largest && static_cast<off_t>(bytes) <= size; bytes *= 4) {
        off_t at = 0;
        report(given, "gpu.direct_read", amount("bytes", static_cast<double>(bytes)),
               amount("bytes", static_cast<double>(bytes)), samples(given, [&] {
                   return by_clock([&] {
                       if (cuFileRead(handle, device, bytes, at, 0) != static_cast<ssize_t>(bytes)) fail("cuFileRead was cut short");
                       at = (at + static_cast<off_t>(bytes)) % (size - static_cast<off_t>(bytes) + 1) & ~off_t{4095};
                   });
               }));
    }
    cuFileHandleDeregister(handle);
    cuFileDriverClose();
    return 0;
}
#else
int main(int, char **) {
    skip("gpu.direct_read", "cuFile is not installed here");
    return 0;
}
#endif
