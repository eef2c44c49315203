"""Two programs that load and run the plan beside them, as text: they are written into a product's directory."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import dedent

from deploy.runner.trt_log import TRT_RUNTIMES

EXAMPLE_PROGRAMS = ("run_engine.py", "run_engine.cpp")

_PYTHON = dedent("""\
    # Run engine.plan once on zeros and print its outputs: python3 run_engine.py
    # Needs numpy and the Python module of the runtime, on the GPU that engine.json names. Put your own data in place of the zeros.
    import ctypes
    import json
    from pathlib import Path

    import numpy as np
    import @MODULE@ as trt

    here = Path(__file__).resolve().parent
    about = json.loads((here / "engine.json").read_text())
    cuda = ctypes.CDLL("libcuda.so.1")  # the driver: no package for CUDA is needed


    def call(function, *arguments):
        code = getattr(cuda, function)(*arguments)
        if code:
            raise SystemExit(f"error: {function} failed with CUDA's error {code}")


    cuda_context, stream = ctypes.c_void_p(), ctypes.c_void_p()
    call("cuInit", 0)
    call("cuDevicePrimaryCtxRetain", ctypes.byref(cuda_context), 0)
    call("cuCtxSetCurrent", cuda_context)
    call("cuStreamCreate", ctypes.byref(stream), 1)

    runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
    engine = runtime.deserialize_cuda_engine((here / "engine.plan").read_bytes())
    if engine is None:
        raise SystemExit(f"error: the plan is for {about['gpu']} and {about['runtime']} {about['version']}")
    context = engine.create_execution_context()
    arrays, addresses = {}, {}
    for tensor in [*about["inputs"], *about["outputs"]]:
        name = tensor["name"]
        arrays[name] = np.zeros([max(1, size) for size in tensor["shape"]], tensor["dtype"])  # a free dimension is 1
        addresses[name] = ctypes.c_uint64()
        call("cuMemAlloc_v2", ctypes.byref(addresses[name]), ctypes.c_size_t(arrays[name].nbytes))
        context.set_tensor_address(name, addresses[name].value)
    for name in [tensor["name"] for tensor in about["inputs"]]:
        context.set_input_shape(name, arrays[name].shape)
        call("cuMemcpyHtoD_v2", addresses[name], ctypes.c_void_p(arrays[name].ctypes.data), ctypes.c_size_t(arrays[name].nbytes))
    if not context.execute_async_v3(stream.value):
        raise SystemExit("error: the engine does not run")
    call("cuStreamSynchronize", stream)
    for name in [tensor["name"] for tensor in about["outputs"]]:
        call("cuMemcpyDtoH_v2", ctypes.c_void_p(arrays[name].ctypes.data), addresses[name], ctypes.c_size_t(arrays[name].nbytes))
        print(name, arrays[name].dtype, arrays[name].shape, arrays[name].ravel()[:8])
    """)  # noqa: E501 - a program is written as it stands

_CPP = dedent("""\
    // Run engine.plan once on zeros and print its outputs. Build and run it beside engine.plan, on the GPU that engine.json names:
    //   g++ -std=c++17 run_engine.cpp -o run_engine -I/usr/local/cuda/include -L/usr/local/cuda/lib64 -l@LIBRARY@ -lcudart
    //   ./run_engine
    // Put your own data in place of the zeros.
    #include <NvInfer.h>
    #include <cuda_runtime_api.h>

    #include <cstdint>
    #include <cstdio>
    #include <cstdlib>
    #include <fstream>
    #include <iterator>
    #include <memory>
    #include <string>
    #include <vector>

    class Logger : public nvinfer1::ILogger
    {
        void log(Severity severity, char const* message) noexcept override
        {
            if (severity <= Severity::kWARNING)
                std::fprintf(stderr, "%s\\n", message);
        }
    };

    void check(bool works, std::string const& what)
    {
        if (works)
            return;
        std::fprintf(stderr, "error: %s\\n", what.c_str());
        std::exit(1);
    }

    void check(cudaError_t error)
    {
        check(error == cudaSuccess, cudaGetErrorString(error));
    }

    std::size_t bytesOf(nvinfer1::DataType type)
    {
        switch (type)
        {
        case nvinfer1::DataType::kINT64: return 8;
        case nvinfer1::DataType::kFLOAT:
        case nvinfer1::DataType::kINT32: return 4;
        case nvinfer1::DataType::kHALF:
        case nvinfer1::DataType::kBF16: return 2;
        default: return 1;
        }
    }

    struct Buffer
    {
        std::string name;
        bool isInput;
        nvinfer1::DataType type;
        std::vector<char> host;
        void* device;
    };

    int main(int argc, char** argv)
    {
        std::ifstream file(argc > 1 ? argv[1] : "engine.plan", std::ios::binary);
        std::vector<char> const plan((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
        check(!plan.empty(), "there is no engine.plan here");

        Logger logger;
        std::unique_ptr<nvinfer1::IRuntime> runtime(nvinfer1::createInferRuntime(logger));
        check(runtime != nullptr, "the runtime does not start");
        std::unique_ptr<nvinfer1::ICudaEngine> engine(runtime->deserializeCudaEngine(plan.data(), plan.size()));
        check(engine != nullptr, "the plan is for another GPU or version: see engine.json");
        std::unique_ptr<nvinfer1::IExecutionContext> context(engine->createExecutionContext());
        check(context != nullptr, "there is not enough memory to run it");
        cudaStream_t stream;
        check(cudaStreamCreate(&stream));

        std::vector<Buffer> buffers;
        for (std::int32_t index = 0; index < engine->getNbIOTensors(); ++index)
        {
            char const* name = engine->getIOTensorName(index);
            bool const isInput = engine->getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT;
            buffers.push_back({name, isInput, engine->getTensorDataType(name), {}, nullptr});
            nvinfer1::Dims shape = engine->getTensorShape(name);
            for (std::int32_t axis = 0; axis < shape.nbDims; ++axis)
                shape.d[axis] = shape.d[axis] < 0 ? 1 : shape.d[axis]; // a free dimension is 1
            check(!isInput || context->setInputShape(name, shape), std::string("the engine does not take the shape of ") + name);
        }
        for (Buffer& buffer : buffers)
        {
            nvinfer1::Dims const shape = context->getTensorShape(buffer.name.c_str());
            std::size_t bytes = bytesOf(buffer.type);
            for (std::int32_t axis = 0; axis < shape.nbDims; ++axis)
                bytes *= static_cast<std::size_t>(shape.d[axis]);
            buffer.host.assign(bytes, 0);
            check(cudaMalloc(&buffer.device, bytes));
            check(context->setTensorAddress(buffer.name.c_str(), buffer.device), "the engine does not take a buffer");
            if (buffer.isInput)
                check(cudaMemcpyAsync(buffer.device, buffer.host.data(), bytes, cudaMemcpyHostToDevice, stream));
        }
        check(context->enqueueV3(stream), "the engine does not run");
        for (Buffer& buffer : buffers)
            if (!buffer.isInput)
                check(cudaMemcpyAsync(buffer.host.data(), buffer.device, buffer.host.size(), cudaMemcpyDeviceToHost, stream));
        check(cudaStreamSynchronize(stream));

        for (Buffer const& buffer : buffers)
        {
            if (buffer.isInput)
                continue;
            std::printf("%s: %zu bytes", buffer.name.c_str(), buffer.host.size());
            auto const* values = reinterpret_cast<float const*>(buffer.host.data());
            bool const isFloat = buffer.type == nvinfer1::DataType::kFLOAT;
            for (std::size_t index = 0; isFloat && index < 8 && 4 * index < buffer.host.size(); ++index)
                std::printf(" %g", values[index]);
            std::printf("\\n");
        }
        return 0;
    }
    """)  # noqa: E501 - a program is written as it stands


_PYTHON_LENDS = {
    "create_execution_context()": "create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)",
    "if not context.execute_async_v3": """\
memory, size = ctypes.c_uint64(), max(1, engine.device_memory_size_v2)  # what the plan works in: it allocates none
call("cuMemAlloc_v2", ctypes.byref(memory), ctypes.c_size_t(size))
context.set_device_memory(memory.value, size)
if not context.execute_async_v3""",
}
_CPP_LENDS = {
    "createExecutionContext()": ("createExecutionContext(nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED)"),
    "    check(context->enqueueV3": """\
    void* memory = nullptr; // what the plan works in: it allocates none
    std::int64_t const size = engine->getDeviceMemorySizeV2() > 0 ? engine->getDeviceMemorySizeV2() : 1;
    check(cudaMalloc(&memory, static_cast<std::size_t>(size)));
    context->setDeviceMemoryV2(memory, size);
    check(context->enqueueV3""",
}
"""What stands in place of a part of the programs where plans are given the memory that they work in."""


def _replaced(text: str, pairs: Mapping[str, str]) -> str:
    for old, new in pairs.items():
        text = text.replace(old, new)
    return text


def example_programs(runtime: str) -> dict[str, str]:
    """Return the text of `run_engine.py` and `run_engine.cpp` for plans of a runtime."""
    known = TRT_RUNTIMES[runtime]
    python, cpp = _PYTHON.replace("@MODULE@", known.module), _CPP.replace("@LIBRARY@", known.library)
    if known.lends_memory:
        python, cpp = (_replaced(text, pairs) for text, pairs in ((python, _PYTHON_LENDS), (cpp, _CPP_LENDS)))
    texts = (python, cpp)
    return dict(zip(EXAMPLE_PROGRAMS, texts, strict=True))
