/* What run_engine.py uses of CUDA's driver, on the memory of this process. A context has to be current, as on a GPU. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static int ready, current;

int cuInit(unsigned flags) { return ready = 1, (int)flags; }
int cuDevicePrimaryCtxRetain(void** context, int device) { return *context = &ready, ready && device == 0 ? 0 : 3; }
int cuCtxSetCurrent(void* context) { return current = context == &ready, current ? 0 : 201; }
int cuStreamCreate(void** stream, unsigned flags) { return *stream = &current, current && flags <= 1 ? 0 : 201; }
int cuStreamSynchronize(void* stream) { return stream == &current ? 0 : 400; }
int cuMemAlloc_v2(uint64_t* address, size_t bytes) { return *address = (uint64_t)(uintptr_t)malloc(bytes), bytes ? 0 : 1; }
int cuMemcpyHtoD_v2(uint64_t to, const void* from, size_t bytes) { return memcpy((void*)(uintptr_t)to, from, bytes), 0; }
int cuMemcpyDtoH_v2(void* to, uint64_t from, size_t bytes) { return memcpy(to, (const void*)(uintptr_t)from, bytes), 0; }
