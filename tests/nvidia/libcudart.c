/* One device with memory of the host: what is copied to it can be read back. Kernels do nothing.

   STUB_CUDA_ERROR is the error of the first question, for the number of devices; with STUB_NO_CAPTURE no graph can be captured.
   stub_launches counts the launches of graphs. */
#include <stdlib.h>
#include <string.h>

static int any;
int stub_launches;

int cudaGetDeviceCount(int *count) { const char *error = getenv("STUB_CUDA_ERROR"); *count = 1; return error ? atoi(error) : 0; }
int cudaGetDevice(int *device) { *device = 0; return 0; }
int cudaSetDevice(int device) { const char *error = getenv("STUB_CUDA_ERROR"); return error ? atoi(error) : 0; }
int cudaDriverGetVersion(int *version) { *version = 13000; return 0; }
int cudaRuntimeGetVersion(int *version) { *version = 13000; return 0; }
int cudaMemGetInfo(size_t *free_bytes, size_t *total) { *free_bytes = 1ul << 33; *total = 1ul << 34; return 0; }
int cudaMalloc(void **address, size_t size) { *address = calloc(1, size); return 0; }
int cudaFree(void *address) { free(address); return 0; }
int cudaMallocHost(void **address, size_t size) { *address = calloc(1, size); return 0; }
int cudaHostAlloc(void **address, size_t size, unsigned flags) { *address = calloc(1, size); return 0; }
int cudaFreeHost(void *address) { free(address); return 0; }
int cudaMemcpy(void *to, const void *from, size_t size, int kind) { memcpy(to, from, size); return 0; }
int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) { memcpy(to, from, size); return 0; }
int cudaStreamEndCapture(void *stream, void **graph) { *graph = getenv("STUB_NO_CAPTURE") ? 0 : &any; return 0; }
int cudaGraphInstantiate(void **executable, void *graph, unsigned long flags) { *executable = &any; return 0; }
int cudaGraphLaunch(void *executable, void *stream) { stub_launches++; return 0; }
const char *cudaGetErrorString(int error) { return "an error of the stub"; }
const char *cudaGetErrorName(int error) { return "cudaErrorOfTheStub"; }
