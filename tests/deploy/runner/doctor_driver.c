/* The driver of fake_driver.c with what a doctor asks besides, and one GPU. */
#include "fake_driver.c"

CUresult cuDeviceGetCount(int *count) { *count = 1; return 0; }
CUresult cuDeviceTotalMem_v2(size_t *size, CUdevice device) { *size = (size_t)8 << 30; return (CUresult)(device == 5 ? 0 : INVALID_VALUE); }
CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) { note("release %d", device); return 0; }
