/* A management library with two GPUs, of which CUDA takes the second one first. It writes nothing down and knows old or new names. */

#include <stddef.h>
#include <stdio.h>

typedef struct Gpu *Device;
typedef struct { unsigned long long reference_us, violation_ns; } Violation;
#define GPU(index) ((Device)(0x7a0000000000 + 16 * (size_t)(index)))
enum { INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6 };

static unsigned int gpus = 2;
static unsigned long long reasons = 1;

void fake_gpus(unsigned int count) { gpus = count; }
void fake_reasons(unsigned long long bits) { reasons = bits; }

static int number(Device gpu) { return gpu == GPU(0) ? 0 : gpu == GPU(1) ? 1 : -1; }
static int told(Device gpu, unsigned int *to, unsigned int value) {
    *to = value + (unsigned int)number(gpu);
    return number(gpu) < 0 ? INVALID_ARGUMENT : 0;
}

int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned int *count) { *count = gpus; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, Device *gpu) { *gpu = GPU(index); return index < gpus ? 0 : NOT_FOUND; }
int nvmlDeviceGetHandleByUUID(const char *uuid, Device *gpu) { *gpu = GPU(1); return uuid[4] == '0' && uuid[5] == '5' ? 0 : NOT_FOUND; }
int nvmlDeviceGetName(Device gpu, char *text, unsigned int length) {
    snprintf(text, length, "GPU number %d", number(gpu));
    return 0;
}
int nvmlDeviceGetUUID(Device gpu, char *text, unsigned int length) {
    snprintf(text, length, "GPU-0%d", number(gpu));
    return 0;
}
int nvmlDeviceGetClockInfo(Device gpu, int clock, unsigned int *mhz) { return clock == 1 ? told(gpu, mhz, 1500) : NOT_SUPPORTED; }
int nvmlDeviceGetMaxClockInfo(Device gpu, int clock, unsigned int *mhz) { return clock == 1 ? told(gpu, mhz, 1980) : NOT_SUPPORTED; }
int nvmlDeviceGetTemperature(Device gpu, int sensor, unsigned int *celsius) { return sensor == 0 ? told(gpu, celsius, 60) : NOT_SUPPORTED; }
#ifdef OLD
int nvmlDeviceGetCurrentClocksThrottleReasons(Device gpu, unsigned long long *bits) { (void)gpu; *bits = reasons; return 0; }
#else
int nvmlDeviceGetCurrentClocksEventReasons(Device gpu, unsigned long long *bits) { (void)gpu; *bits = reasons; return 0; }
int nvmlDeviceGetViolationStatus(Device gpu, int policy, Violation *found) {
    found->reference_us = 1, found->violation_ns = 5000000000ULL;
    return number(gpu) >= 0 && policy == 1 ? 0 : NOT_SUPPORTED;
}
#endif
