#include "engine.h"

#include <dlfcn.h>

#include <mutex>

namespace host {

OnnxRuntime& OnnxRuntime::open(const std::string& library_path) {
  static std::mutex mutex;
  static std::unique_ptr<OnnxRuntime> runtime;
  std::lock_guard<std::mutex> lock(mutex);
  if (runtime == nullptr) runtime.reset(new OnnxRuntime(library_path));
  return *runtime;
}

OnnxRuntime::OnnxRuntime(const std::string& library_path) {
  void* library = dlopen(library_path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) throw Failure(std::string("ONNX Runtime cannot be opened: ") + dlerror());
  auto base = reinterpret_cast<const OrtApiBase* (*)()>(dlsym(library, "OrtGetApiBase"));
  if (base == nullptr) throw Failure("ONNX Runtime's library has no OrtGetApiBase");
  table_ = base()->GetApi(ORT_TABLE_VERSION);
  if (table_ == nullptr)
    throw Failure(std::string("ONNX Runtime ") + base()->GetVersionString() + " is too old, 1.17 is needed");
  check(function<ort::CreateEnv>()(ORT_LOG_ERROR, "fruitstand", &environment_));
  check(function<ort::CreateCpuMemoryInfo>()(ORT_ARENA_ALLOCATOR, ORT_DEFAULT_MEMORY, &memory_));
}

std::vector<std::string> OnnxRuntime::providers() const {
  char** names = nullptr;
  int count = 0;
  check(function<ort::GetAvailableProviders>()(&names, &count));
  std::vector<std::string> found(names, names + count);
  check(function<ort::ReleaseAvailableProviders>()(names, count));
  return found;
}

void OnnxRuntime::check(OrtStatus* status) const {
  if (status == nullptr) return;
  std::string words = function<ort::GetErrorMessage>()(status);
  function<ort::ReleaseStatus>()(status);
  throw Failure(words);
}

Value Value::over(const OnnxRuntime& runtime, const void* data, size_t size_bytes, const std::vector<int64_t>& shape,
                  int onnx_type) {
  OrtValue* made = nullptr;
  runtime.check(runtime.function<ort::CreateTensorWithDataAsOrtValue>()(
      runtime.memory(), const_cast<void*>(data), size_bytes, shape.data(), shape.size(), onnx_type, &made));
  return Value(runtime, made);
}

const uint8_t* Value::data() const {
  void* data = nullptr;
  runtime_->check(runtime_->function<ort::GetTensorMutableData>()(value_, &data));
  return static_cast<const uint8_t*>(data);
}

namespace {

std::vector<int64_t> dims_of(const OnnxRuntime& runtime, const OrtTensorTypeAndShapeInfo* info) {
  size_t count = 0;
  runtime.check(runtime.function<ort::GetDimensionsCount>()(info, &count));
  std::vector<int64_t> dims(count);
  runtime.check(runtime.function<ort::GetDimensions>()(info, dims.data(), count));
  return dims;
}

}  // namespace

std::vector<int64_t> Value::shape() const {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  runtime_->check(runtime_->function<ort::GetTensorTypeAndShape>()(value_, &info));
  std::unique_ptr<OrtTensorTypeAndShapeInfo, ort::ReleaseTensorTypeAndShapeInfo::type> owned(
      info, runtime_->function<ort::ReleaseTensorTypeAndShapeInfo>());
  return dims_of(*runtime_, info);
}

Session::Session(const OnnxRuntime& runtime, const SessionOptions& options)
    : runtime_(runtime), session_(nullptr, runtime.function<ort::ReleaseSession>()) {
  const OnnxRuntime& api = runtime_;
  OrtSessionOptions* made = nullptr;
  api.check(api.function<ort::CreateSessionOptions>()(&made));
  std::unique_ptr<OrtSessionOptions, ort::ReleaseSessionOptions::type> owned(
      made, api.function<ort::ReleaseSessionOptions>());
  api.check(api.function<ort::SetSessionLogSeverityLevel>()(made, ORT_LOG_ERROR));
  api.check(api.function<ort::SetIntraOpNumThreads>()(made, options.intra_op_threads));
  if (options.uses_openvino) {
    std::vector<const char*> keys, values;
    for (auto& [key, value] : options.openvino) {
      keys.push_back(key.c_str());
      values.push_back(value.c_str());
    }
    api.check(api.function<ort::AppendOpenVino>()(made, keys.data(), values.data(), keys.size()));
  }
  OrtSession* session = nullptr;
  api.check(api.function<ort::CreateSession>()(api.environment(), options.model_path.c_str(), made, &session));
  session_.reset(session);
}

std::vector<Value> Session::run(const std::vector<TensorSpec>& inputs, const std::vector<Value>& values,
                                const std::vector<std::string>& outputs) const {
  std::vector<const char*> input_names, output_names;
  std::vector<const OrtValue*> given;
  std::vector<OrtValue*> results(outputs.size(), nullptr);
  for (size_t i = 0; i < inputs.size(); ++i) {
    input_names.push_back(inputs[i].name.c_str());
    given.push_back(values[i].get());
  }
  for (auto& name : outputs) output_names.push_back(name.c_str());
  OrtStatus* status =
      runtime_.function<ort::Run>()(session_.get(), nullptr, input_names.data(), given.data(), given.size(),
                                    output_names.data(), output_names.size(), results.data());
  std::vector<Value> owned;
  for (OrtValue* one : results) owned.emplace_back(runtime_, one);
  runtime_.check(status);
  return owned;
}

std::vector<FileTensor> Session::tensors(bool are_inputs) const {
  const OnnxRuntime& api = runtime_;
  OrtAllocator* allocator = nullptr;
  api.check(api.function<ort::GetAllocatorWithDefaultOptions>()(&allocator));
  size_t count = 0;
  api.check(are_inputs ? api.function<ort::SessionGetInputCount>()(session_.get(), &count)
                       : api.function<ort::SessionGetOutputCount>()(session_.get(), &count));
  std::vector<FileTensor> found;
  for (size_t index = 0; index < count; ++index) {
    char* name = nullptr;
    OrtTypeInfo* type = nullptr;
    api.check(are_inputs ? api.function<ort::SessionGetInputName>()(session_.get(), index, allocator, &name)
                         : api.function<ort::SessionGetOutputName>()(session_.get(), index, allocator, &name));
    FileTensor tensor{name, 0, {}};
    api.check(api.function<ort::AllocatorFree>()(allocator, name));
    api.check(are_inputs ? api.function<ort::SessionGetInputTypeInfo>()(session_.get(), index, &type)
                         : api.function<ort::SessionGetOutputTypeInfo>()(session_.get(), index, &type));
    std::unique_ptr<OrtTypeInfo, ort::ReleaseTypeInfo::type> owned(type, api.function<ort::ReleaseTypeInfo>());
    const OrtTensorTypeAndShapeInfo* info = nullptr;
    api.check(api.function<ort::CastTypeInfoToTensorInfo>()(type, &info));
    if (info != nullptr) {
      api.check(api.function<ort::GetTensorElementType>()(info, &tensor.onnx_type));
      tensor.dims = dims_of(api, info);
    }
    found.push_back(std::move(tensor));
  }
  return found;
}

}  // namespace host
