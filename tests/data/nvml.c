// As much of NVIDIA's management library as tierd asks, over one made-up GPU. Built by the test that needs it.

#include <string.h>

typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory_v2;
typedef struct { unsigned gpu, memory; } utilization;
typedef struct { unsigned pid; unsigned long long used; unsigned instance, compute; } process;

static const unsigned long long GIB = 1ull << 30;
static const char *const ERROR = "made up";

int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) { (void)code; return ERROR; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) { *device = (void *)(unsigned long)(index + 1); return 0; }
static unsigned number(void *device) { return (unsigned)(unsigned long)device - 1; }
int nvmlDeviceGetName(void *device, char *name, unsigned length) {
    (void)device;
    strncpy(name, "NVIDIA H100 80GB HBM3", length);
    return 0;
}
int nvmlDeviceGetUUID(void *device, char *uuid, unsigned length) {
    strncpy(uuid, number(device) ? "GPU-0001" : "GPU-0000", length);
    return 0;
}
int nvmlDeviceGetMemoryInfo_v2(void *device, memory_v2 *memory) {
    memory->total = 80 * GIB;
    memory->used = number(device) ? 3 * GIB : 61 * GIB;
    memory->reserved = GIB / 2;
    memory->free = memory->total - memory->used;
    return 0;
}
int nvmlDeviceGetUtilizationRates(void *device, utilization *rates) {
    rates->gpu = number(device) ? 0 : 87;
    rates->memory = 10;
    return 0;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, process *found) {
    (void)device, (void)found;
    *count = 0;
    return 0;
}
int nvmlDeviceGetGraphicsRunningProcesses_v3(void *device, unsigned *count, process *found) {
    return nvmlDeviceGetComputeRunningProcesses_v3(device, count, found);
}
