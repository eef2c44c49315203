// What run_engine.cpp uses of CUDA's runtime, on the memory of this process.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>

enum cudaError_t
{
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1
};
enum cudaMemcpyKind
{
    cudaMemcpyHostToDevice = 1,
    cudaMemcpyDeviceToHost = 2
};
using cudaStream_t = struct CUstream_st*;

inline char const* cudaGetErrorString(cudaError_t) { return "invalid argument"; }
inline cudaError_t cudaStreamCreate(cudaStream_t* stream)
{
    *stream = reinterpret_cast<cudaStream_t>(stream);
    return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return stream ? cudaSuccess : cudaErrorInvalidValue; }
inline cudaError_t cudaMalloc(void** address, std::size_t bytes)
{
    *address = std::malloc(bytes);
    return *address ? cudaSuccess : cudaErrorInvalidValue;
}
inline cudaError_t cudaMemcpyAsync(void* to, void const* from, std::size_t bytes, cudaMemcpyKind, cudaStream_t)
{
    std::memcpy(to, from, bytes);
    return cudaSuccess;
}
