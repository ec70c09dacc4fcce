/* A libcuda for a machine without a GPU: what Triton asks of a driver, answered as for an H200.
 * Kernels do not run. A launch is recorded, or refused for the reasons a driver has.
 *
 *   gcc -shared -fPIC -I .../triton/backends/nvidia/include stub_libcuda.c -o libcuda.so.1
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda.h"

enum { DEFAULT_SHARED = 48 << 10, MAX_SHARED = 227 << 10, MAX_THREADS = 1024, MAX_GRID_YZ = 65535 };

struct function {
  char name[128];
  unsigned max_shared;  /* dynamic, of a block: more must be asked for */
};

/* stub_driver.Record */
struct record {
  unsigned grid[3], block[3], shared;
  const struct function *function;
};

static struct record *records;
static size_t count, room;

size_t stub_count(void) { return count; }

const struct record *stub_record(size_t at) { return at < count ? records + at : NULL; }

void stub_forget(void) { count = 0; }

/* Torch is to see no GPU. */
CUresult cuInit(unsigned flags) { return CUDA_ERROR_NO_DEVICE; }

CUresult cuLaunchKernelEx(
    const CUlaunchConfig *config, CUfunction handle, void **parameters, void **extra) {
  const struct function *function = (const struct function *)handle;
  const unsigned grid[] = {config->gridDimX, config->gridDimY, config->gridDimZ};
  const unsigned block[] = {config->blockDimX, config->blockDimY, config->blockDimZ};
  unsigned long threads = 1;
  for (int axis = 0; axis < 3; ++axis) {
    if (!grid[axis] || !block[axis] || block[axis] > MAX_THREADS) return CUDA_ERROR_INVALID_VALUE;
    if (grid[axis] > (axis ? MAX_GRID_YZ : 0x7fffffffu)) return CUDA_ERROR_INVALID_VALUE;
    threads *= block[axis];
  }
  if (threads > MAX_THREADS || !function) return CUDA_ERROR_INVALID_VALUE;
  if (config->sharedMemBytes > function->max_shared) return CUDA_ERROR_INVALID_VALUE;
  if (count == room) {
    struct record *more = realloc(records, (room = room ? 2 * room : 256) * sizeof *records);
    if (!more) return CUDA_ERROR_OUT_OF_MEMORY;
    records = more;
  }
  struct record *record = &records[count++];
  memcpy(record->grid, grid, sizeof grid);
  memcpy(record->block, block, sizeof block);
  record->shared = config->sharedMemBytes;
  record->function = function;
  return CUDA_SUCCESS;
}

/* An image is not looked into; its functions are what is asked for. */
CUresult cuModuleLoadData(CUmodule *module, const void *image) {
  *module = (CUmodule)image;
  return memcmp(image, "\177ELF", 4) ? CUDA_ERROR_INVALID_IMAGE : CUDA_SUCCESS;
}

CUresult cuModuleUnload(CUmodule module) { return CUDA_SUCCESS; }

CUresult cuModuleGetFunction(CUfunction *handle, CUmodule module, const char *name) {
  struct function *function = malloc(sizeof *function);
  if (!function) return CUDA_ERROR_OUT_OF_MEMORY;
  snprintf(function->name, sizeof function->name, "%s", name);
  function->max_shared = DEFAULT_SHARED;
  *handle = (CUfunction)function;
  return CUDA_SUCCESS;
}

CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction handle) {
  *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? MAX_THREADS : 0;
  return CUDA_SUCCESS;
}

CUresult cuFuncSetAttribute(CUfunction handle, CUfunction_attribute attribute, int value) {
  if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) return CUDA_ERROR_INVALID_VALUE;
  if (value < 0 || value > MAX_SHARED) return CUDA_ERROR_INVALID_VALUE;
  ((struct function *)handle)->max_shared = value;
  return CUDA_SUCCESS;
}

CUresult cuFuncSetCacheConfig(CUfunction handle, CUfunc_cache config) { return CUDA_SUCCESS; }

CUresult cuDeviceGet(CUdevice *device, int ordinal) {
  *device = ordinal;
  return ordinal ? CUDA_ERROR_INVALID_DEVICE : CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
  switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = 9; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = 0; break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = 132; break;
    case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE: *value = 60 << 20; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = MAX_SHARED; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: *value = 228 << 10; break;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: *value = 65536; break;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *value = 32; break;
    case CU_DEVICE_ATTRIBUTE_CLOCK_RATE: *value = 1980000; break;
    case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE: *value = 3201000; break;
    case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH: *value = 6144; break;
    default: return CUDA_ERROR_INVALID_VALUE;
  }
  return CUDA_SUCCESS;
}

/* One context, always current; any address is one of the device. */
static int context;

CUresult cuCtxGetCurrent(CUcontext *current) {
  *current = (CUcontext)&context;
  return CUDA_SUCCESS;
}

CUresult cuCtxSetCurrent(CUcontext current) { return CUDA_SUCCESS; }

CUresult cuCtxGetDevice(CUdevice *device) { return cuDeviceGet(device, 0); }

CUresult cuDevicePrimaryCtxRetain(CUcontext *retained, CUdevice device) {
  return cuCtxGetCurrent(retained);
}

CUresult cuPointerGetAttribute(void *data, CUpointer_attribute attribute, CUdeviceptr pointer) {
  if (attribute != CU_POINTER_ATTRIBUTE_DEVICE_POINTER) return CUDA_ERROR_INVALID_VALUE;
  memcpy(data, &pointer, sizeof pointer);
  return CUDA_SUCCESS;
}

/* Linked to by Triton, not called in a launch. */
CUresult cuCtxGetLimit(size_t *value, CUlimit limit) { return CUDA_ERROR_NOT_SUPPORTED; }

CUresult cuCtxSetLimit(CUlimit limit, size_t value) { return CUDA_ERROR_NOT_SUPPORTED; }

CUresult cuDriverGetVersion(int *version) { return CUDA_ERROR_NOT_SUPPORTED; }

CUresult cuGetErrorString(CUresult error, const char **text) {
  switch (error) {
    case CUDA_ERROR_INVALID_VALUE: *text = "invalid argument"; break;
    case CUDA_ERROR_OUT_OF_MEMORY: *text = "out of memory"; break;
    case CUDA_ERROR_INVALID_IMAGE: *text = "device kernel image is invalid"; break;
    default: *text = "error of the stub driver"; break;
  }
  return CUDA_SUCCESS;
}
