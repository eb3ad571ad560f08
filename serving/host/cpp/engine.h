// ONNX Runtime through its C API, without Python, so that a load does not block answers through the GIL.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "request.h"

namespace host {

using Entries = std::vector<std::pair<std::string, std::string>>;

// The options of one session, chosen by `serving.engine.session_plan`.
struct SessionOptions {
  std::string model_path;
  int intra_op_threads;
  bool uses_openvino;
  Entries openvino;
};

// One input or output of the ONNX file.
struct FileTensor {
  std::string name;
  int onnx_type;  // 0 means not a tensor
  std::vector<int64_t> dims;
};

// The library in the wheel `onnxruntime`, opened once per process and never closed.
class OnnxRuntime {
 public:
  static OnnxRuntime& open(const std::string& library_path);
  std::vector<std::string> providers() const;

  template <typename Entry>
  typename Entry::type function() const {
    return reinterpret_cast<typename Entry::type>(const_cast<void*>(table_[Entry::place]));
  }
  // Throws the error that a call of the table returned, if any.
  void check(OrtStatus* status) const;
  OrtEnv* environment() const { return environment_; }
  OrtMemoryInfo* memory() const { return memory_; }

 private:
  explicit OnnxRuntime(const std::string& library_path);
  const void* const* table_ = nullptr;
  OrtEnv* environment_ = nullptr;
  OrtMemoryInfo* memory_ = nullptr;
};

// A tensor of ONNX Runtime.
class Value {
 public:
  explicit Value(const OnnxRuntime& runtime, OrtValue* owned = nullptr) : runtime_(&runtime), value_(owned) {}
  Value(Value&& other) noexcept : runtime_(other.runtime_), value_(other.value_) { other.value_ = nullptr; }
  ~Value() {
    if (value_ != nullptr) runtime_->function<ort::ReleaseValue>()(value_);
  }
  Value(const Value&) = delete;
  Value& operator=(const Value&) = delete;
  // A value over memory that has to outlive it.
  static Value over(const OnnxRuntime& runtime, const void* data, size_t size_bytes, const std::vector<int64_t>& shape,
                    int onnx_type);
  OrtValue* get() const { return value_; }
  const uint8_t* data() const;
  std::vector<int64_t> shape() const;

 private:
  const OnnxRuntime* runtime_;
  OrtValue* value_;
};

// An opened model; several threads may run it.
class Session {
 public:
  Session(const OnnxRuntime& runtime, const SessionOptions& options);
  std::vector<Value> run(const std::vector<TensorSpec>& inputs, const std::vector<Value>& values,
                         const std::vector<std::string>& outputs) const;
  std::vector<FileTensor> inputs() const { return tensors(true); }
  std::vector<FileTensor> outputs() const { return tensors(false); }
  const OnnxRuntime& runtime() const { return runtime_; }

 private:
  std::vector<FileTensor> tensors(bool are_inputs) const;

  const OnnxRuntime& runtime_;
  std::unique_ptr<OrtSession, ort::ReleaseSession::type> session_;
};

}  // namespace host
