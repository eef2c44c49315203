/* A CUDA driver without a GPU. It writes down its calls, keeps "device memory" on this machine, and has CUDA's rules for captures:
   1. While a stream is captured, asynchronous work is recorded and not done.
   2. A call that waits or allocates is refused and ends the capture: its end then gives an error and no graph.
   Handles are above 4 GiB, so that one that was passed as 32 bits is another handle, which is refused. */

#ifdef WITH_CUDA_H
#include <cuda.h>
#else
#include <stddef.h>
typedef int CUresult;
typedef int CUdevice;
typedef unsigned long long CUdeviceptr;
typedef struct CUctx_st *CUcontext;
typedef struct CUstream_st *CUstream;
typedef struct CUevent_st *CUevent;
typedef struct CUgraph_st *CUgraph;
typedef struct CUgraphExec_st *CUgraphExec;
typedef int CUdevice_attribute;
typedef int CUstreamCaptureMode;
typedef struct { char bytes[16]; } CUuuid;
#define CUDAAPI
#define cuMemGetInfo cuMemGetInfo_v2
#define cuMemAlloc cuMemAlloc_v2
#define cuMemFree cuMemFree_v2
#define cuMemcpyHtoDAsync cuMemcpyHtoDAsync_v2
#define cuMemcpyDtoHAsync cuMemcpyDtoHAsync_v2
#define cuStreamDestroy cuStreamDestroy_v2
#define cuEventDestroy cuEventDestroy_v2
#define cuStreamBeginCapture cuStreamBeginCapture_v2
#define cuGraphInstantiate cuGraphInstantiateWithFlags
#endif
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HANDLE(type, number) ((type)0x7a000000000##number)
enum { FREE, CAPTURING, INVALID };
enum { INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_HANDLE = 400, UNSUPPORTED = 900, INVALIDATED = 901 };

static char calls[65536];
static int state = FREE, answer_of_init = 0, graphs = 0;
static struct { void *to; const void *from; size_t size; } node[64];
static int nodes = 0;

const char *fake_calls(void) { return calls; }
void fake_reset(int code) { calls[0] = 0; answer_of_init = code; }
int fake_graphs(void) { return graphs; }

static void note(const char *format, ...) {
    va_list values;
    size_t used = strlen(calls);
    va_start(values, format);
    vsnprintf(calls + used, sizeof calls - used, format, values);
    va_end(values);
    strncat(calls, "\n", sizeof calls - strlen(calls) - 1);
}

static int waits(void) {
    if (state == FREE) return 0;
    state = INVALID;
    return UNSUPPORTED;
}

static int work(void *to, const void *from, size_t size, CUstream stream) {
    if (stream != HANDLE(CUstream, 3)) return INVALID_HANDLE;
    if (state == INVALID) return INVALIDATED;
    if (state == CAPTURING) {
        node[nodes].to = to, node[nodes].from = from, node[nodes++].size = size;
    } else if (from) {
        memcpy(to, from, size);
    } else {
        memset(to, 0, size);
    }
    return 0;
}

CUresult CUDAAPI cuInit(unsigned int flags) { note("cuInit %u", flags); return (CUresult)answer_of_init; }
CUresult CUDAAPI cuDriverGetVersion(int *version) { *version = 12060; return 0; }
CUresult CUDAAPI cuGetErrorName(CUresult error, const char **text) {
    *text = (int)error == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_OF_TEST";
    return 0;
}
CUresult CUDAAPI cuGetErrorString(CUresult error, const char **text) { *text = (int)error == OUT_OF_MEMORY ? "out of memory" : "words"; return 0; }
CUresult CUDAAPI cuDeviceGet(CUdevice *device, int ordinal) { *device = 5 + ordinal; return 0; }
CUresult CUDAAPI cuDeviceGetName(char *name, int length, CUdevice device) { return (CUresult)(device == 5 ? (snprintf(name, (size_t)length, "Fake GPU"), 0) : INVALID_VALUE); }
CUresult CUDAAPI cuDeviceGetUuid(CUuuid *uuid, CUdevice device) {
    for (int index = 0; index < 16; ++index) uuid->bytes[index] = (char)(16 * index + device);
    return 0;
}
CUresult CUDAAPI cuDeviceGetAttribute(int *value, CUdevice_attribute kind, CUdevice device) {
    *value = kind == 75 ? 8 : kind == 76 ? 7 : kind == 38 ? 4 << 20 : kind == 16 ? 14 : -1;
    return (CUresult)(device == 5 ? 0 : INVALID_VALUE);
}
CUresult CUDAAPI cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) { *context = HANDLE(CUcontext, 2); note("retain %d", device); return 0; }
CUresult CUDAAPI cuCtxSetCurrent(CUcontext context) { note("current"); return (CUresult)(context == HANDLE(CUcontext, 2) ? 0 : INVALID_HANDLE); }
CUresult CUDAAPI cuMemGetInfo(size_t *free_bytes, size_t *total) { *free_bytes = (size_t)6 << 30; *total = (size_t)8 << 30; return 0; }
CUresult CUDAAPI cuMemAlloc(CUdeviceptr *address, size_t size) {
    int refused = waits();
    if (refused) return (CUresult)refused;
    note("allocate %zu", size);
    if (size > (size_t)8 << 30) return (CUresult)OUT_OF_MEMORY;
    *address = (CUdeviceptr)(size_t)malloc(size);
    return 0;
}
CUresult CUDAAPI cuMemFree(CUdeviceptr address) { note("free"); free((void *)(size_t)address); return 0; }
CUresult CUDAAPI cuMemsetD8Async(CUdeviceptr address, unsigned char value, size_t size, CUstream stream) {
    note("fill %d %zu", value, size);
    return (CUresult)work((void *)(size_t)address, 0, size, stream);
}
CUresult CUDAAPI cuMemcpyHtoDAsync(CUdeviceptr address, const void *array, size_t size, CUstream stream) {
    note("to device %zu", size);
    return (CUresult)work((void *)(size_t)address, array, size, stream);
}
CUresult CUDAAPI cuMemcpyDtoHAsync(void *array, CUdeviceptr address, size_t size, CUstream stream) {
    note("to host %zu", size);
    return (CUresult)work(array, (void *)(size_t)address, size, stream);
}
CUresult CUDAAPI cuStreamCreate(CUstream *stream, unsigned int flags) { *stream = HANDLE(CUstream, 3); note("stream %u", flags); return 0; }
CUresult CUDAAPI cuStreamSynchronize(CUstream stream) {
    int refused = waits();
    note("synchronize");
    return (CUresult)(stream == HANDLE(CUstream, 3) ? refused : INVALID_HANDLE);
}
CUresult CUDAAPI cuStreamDestroy(CUstream stream) { note("destroy stream"); return (CUresult)(stream == HANDLE(CUstream, 3) ? 0 : INVALID_HANDLE); }
CUresult CUDAAPI cuEventCreate(CUevent *event, unsigned int flags) {
    static size_t made = 0;
    *event = (CUevent)((char *)HANDLE(CUevent, 4) + 16 * (made++ % 2));
    note("event %u", flags);
    return 0;
}
static int number(CUevent event) { return event == HANDLE(CUevent, 4) ? 1 : event == (CUevent)((char *)HANDLE(CUevent, 4) + 16) ? 2 : 0; }
CUresult CUDAAPI cuEventRecord(CUevent event, CUstream stream) {
    note("record %d", number(event));
    return (CUresult)(stream == HANDLE(CUstream, 3) && number(event) ? 0 : INVALID_HANDLE);
}
CUresult CUDAAPI cuEventSynchronize(CUevent event) { note("wait %d", number(event)); return (CUresult)waits(); }
CUresult CUDAAPI cuEventElapsedTime(float *ms, CUevent start, CUevent end) {
    *ms = 1.5f;
    return (CUresult)(number(start) == 1 && number(end) == 2 ? 0 : INVALID_HANDLE);
}
CUresult CUDAAPI cuEventDestroy(CUevent event) { note("destroy event %d", number(event)); return 0; }
CUresult CUDAAPI cuStreamBeginCapture(CUstream stream, CUstreamCaptureMode mode) {
    note("begin capture %d", (int)mode);
    if (stream != HANDLE(CUstream, 3)) return (CUresult)INVALID_HANDLE;
    state = CAPTURING, nodes = 0;
    return 0;
}
CUresult CUDAAPI cuStreamEndCapture(CUstream stream, CUgraph *graph) {
    int invalid = state != CAPTURING;
    note("end capture");
    if (stream != HANDLE(CUstream, 3)) return (CUresult)INVALID_HANDLE;
    state = FREE;
    *graph = invalid ? 0 : HANDLE(CUgraph, 6);
    graphs += !invalid;
    return (CUresult)(invalid ? INVALIDATED : 0);
}
CUresult CUDAAPI cuGraphInstantiate(CUgraphExec *executable, CUgraph graph, unsigned long long flags) {
    note("instantiate %llu", flags);
    *executable = HANDLE(CUgraphExec, 7);
    return (CUresult)(graph == HANDLE(CUgraph, 6) ? 0 : INVALID_HANDLE);
}
CUresult CUDAAPI cuGraphDestroy(CUgraph graph) { note("destroy graph"); graphs -= graph == HANDLE(CUgraph, 6); return 0; }
CUresult CUDAAPI cuGraphLaunch(CUgraphExec executable, CUstream stream) {
    note("launch");
    if (executable != HANDLE(CUgraphExec, 7) || stream != HANDLE(CUstream, 3) || state != FREE) return (CUresult)INVALID_HANDLE;
    for (int index = 0; index < nodes; ++index) work(node[index].to, node[index].from, node[index].size, stream);
    return 0;
}
CUresult CUDAAPI cuGraphExecDestroy(CUgraphExec executable) { note("destroy launch"); return (CUresult)(executable == HANDLE(CUgraphExec, 7) ? 0 : INVALID_HANDLE); }
