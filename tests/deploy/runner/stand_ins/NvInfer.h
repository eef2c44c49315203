// What run_engine.cpp uses of TensorRT, declared as TensorRT 10 and 11 do. The engine takes x[2, 3] and gives y, twice as large plus one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "cuda_runtime_api.h"

namespace nvinfer1
{
enum class DataType : int32_t
{
    kFLOAT = 0,
    kHALF = 1,
    kINT8 = 2,
    kINT32 = 3,
    kBOOL = 4,
    kUINT8 = 5,
    kFP8 = 6,
    kBF16 = 7,
    kINT64 = 8,
    kINT4 = 9
};
enum class TensorIOMode : int32_t
{
    kNONE = 0,
    kINPUT = 1,
    kOUTPUT = 2
};
struct Dims64
{
    static constexpr int32_t MAX_DIMS{8};
    int32_t nbDims;
    int64_t d[MAX_DIMS];
};
using Dims = Dims64;

class ILogger
{
public:
    enum class Severity : int32_t
    {
        kINTERNAL_ERROR = 0,
        kERROR = 1,
        kWARNING = 2,
        kINFO = 3,
        kVERBOSE = 4
    };
    virtual void log(Severity severity, char const* msg) noexcept = 0;
    virtual ~ILogger() = default;
};

enum class ExecutionContextAllocationStrategy : int32_t
{
    kSTATIC = 0,
    kON_PROFILE_CHANGE = 1,
    kUSER_MANAGED = 2,
};

class IExecutionContext
{
public:
    explicit IExecutionContext(ExecutionContextAllocationStrategy strategy)
        : mHasMemory(strategy == ExecutionContextAllocationStrategy::kSTATIC)
    {
    }
    void setDeviceMemoryV2(void* memory, int64_t size) noexcept { mHasMemory = memory != nullptr && size == 64; }
    bool setInputShape(char const* name, Dims const&) noexcept { return std::string(name) == "x"; }
    Dims getTensorShape(char const*) const noexcept { return {2, {2, 3}}; }
    bool setTensorAddress(char const* name, void* data) noexcept
    {
        (std::string(name) == "x" ? mX : mY) = static_cast<float*>(data);
        return true;
    }
    bool enqueueV3(cudaStream_t stream) noexcept
    {
        for (int index = 0; index < 6 && stream != nullptr; ++index)
            mY[index] = 2 * mX[index] + 1;
        return stream != nullptr && mHasMemory;
    }

private:
    bool mHasMemory;
    float *mX{}, *mY{};
};

class ICudaEngine
{
public:
    IExecutionContext* createExecutionContext(
        ExecutionContextAllocationStrategy strategy = ExecutionContextAllocationStrategy::kSTATIC) noexcept
    {
        return new IExecutionContext(strategy);
    }
    int64_t getDeviceMemorySizeV2() const noexcept { return 64; }
    int32_t getNbIOTensors() const noexcept { return 2; }
    char const* getIOTensorName(int32_t index) const noexcept { return index == 0 ? "x" : "y"; }
    TensorIOMode getTensorIOMode(char const* name) const noexcept
    {
        return std::string(name) == "x" ? TensorIOMode::kINPUT : TensorIOMode::kOUTPUT;
    }
    DataType getTensorDataType(char const*) const noexcept { return DataType::kFLOAT; }
    Dims getTensorShape(char const*) const noexcept { return {2, {-1, 3}}; }
};

class IRuntime
{
public:
    ICudaEngine* deserializeCudaEngine(void const* blob, std::size_t size) noexcept
    {
        return std::string(static_cast<char const*>(blob), size) == "plan" ? new ICudaEngine : nullptr;
    }
};

inline IRuntime* createInferRuntime(ILogger&) noexcept { return new IRuntime; }
} // namespace nvinfer1
