#include "request.h"

#include <algorithm>
#include <cstring>

namespace host {

namespace {

InputTensor read_input(TRITONBACKEND_Request* handle, const TensorSpec& spec, std::vector<uint8_t>* joined) {
  TRITONBACKEND_Input* input = nullptr;
  const int64_t* shape = nullptr;
  uint32_t num_dims = 0, num_buffers = 0;
  uint64_t size_bytes = 0;
  check(TRITONBACKEND_RequestInput(handle, spec.name.c_str(), &input));
  check(TRITONBACKEND_InputProperties(input, nullptr, nullptr, &shape, &num_dims, &size_bytes, &num_buffers));
  InputTensor tensor{nullptr, size_bytes, {shape, shape + num_dims}};
  if (num_dims == 0) throw Failure("input " + spec.name + " has no batch axis", TRITONSERVER_ERROR_INVALID_ARG);
  uint64_t wanted = spec.item_size_bytes;
  for (int64_t dim : tensor.shape) wanted *= static_cast<uint64_t>(dim);
  if (wanted != size_bytes)
    throw Failure("input " + spec.name + " has " + std::to_string(size_bytes) + " bytes, its shape needs " +
                      std::to_string(wanted),
                  TRITONSERVER_ERROR_INVALID_ARG);
  if (num_buffers > 1) joined->reserve(size_bytes);
  for (uint32_t index = 0; index < num_buffers; ++index) {
    const void* buffer = nullptr;
    uint64_t length = 0;
    TRITONSERVER_MemoryType type = TRITONSERVER_MEMORY_CPU;
    int64_t type_id = 0;
    check(TRITONBACKEND_InputBuffer(input, index, &buffer, &length, &type, &type_id));
    if (type == TRITONSERVER_MEMORY_GPU) throw Failure("input " + spec.name + " is in GPU memory");
    auto bytes = static_cast<const uint8_t*>(buffer);
    if (num_buffers == 1)
      tensor.data = bytes;
    else
      joined->insert(joined->end(), bytes, bytes + length);
  }
  if (num_buffers > 1) tensor.data = joined->data();
  return tensor;
}

}  // namespace

Request::Request(TRITONBACKEND_Request* handle, const ModelSettings& settings)
    : handle_(handle), joined_(settings.inputs.size()), arrived_ns_(now_ns()) {
  for (size_t i = 0; i < settings.inputs.size(); ++i)
    inputs_.push_back(read_input(handle, settings.inputs[i], &joined_[i]));
  if (!inputs_.empty()) num_images_ = inputs_.front().shape.front();
  for (const InputTensor& input : inputs_)
    if (input.shape.front() != num_images_ || num_images_ < 1)
      throw Failure("inputs with different or empty batch axes", TRITONSERVER_ERROR_INVALID_ARG);
  // Like Triton's queue, takes the caller's timeout only if it is shorter.
  uint64_t timeout_us = settings.default_timeout_us, own_us = 0;
  if (settings.allow_timeout_override) check(TRITONBACKEND_InferenceRequestTimeoutMicroseconds(handle, &own_us));
  if (own_us != 0 && own_us < timeout_us) timeout_us = own_us;
  if (timeout_us != 0) deadline_ns_ = arrived_ns_ + timeout_us * 1000;
}

bool Request::is_cancelled() const {
  bool is_cancelled = false;
  ignore(TRITONBACKEND_RequestIsCancelled(handle_, &is_cancelled));
  return is_cancelled;
}

const char* Request::id() const {
  const char* id = nullptr;
  ignore(TRITONBACKEND_RequestId(handle_, &id));
  return id != nullptr ? id : "";
}

std::vector<std::string> Request::requested_outputs() const {
  uint32_t count = 0;
  check(TRITONBACKEND_RequestOutputCount(handle_, &count));
  std::vector<std::string> names;
  for (uint32_t index = 0; index < count; ++index) {
    const char* name = nullptr;
    check(TRITONBACKEND_RequestOutputName(handle_, index, &name));
    names.emplace_back(name);
  }
  return names;
}

bool Request::same_shapes(const Request& other) const {
  for (size_t i = 0; i < inputs_.size(); ++i) {
    const auto &mine = inputs_[i].shape, &theirs = other.inputs_[i].shape;
    if (!std::equal(mine.begin() + 1, mine.end(), theirs.begin() + 1, theirs.end())) return false;
  }
  return true;
}

void Request::started(uint64_t exec_start_ns, uint64_t compute_start_ns) {
  uint64_t unset = 0;
  if (exec_start_ns_.compare_exchange_strong(unset, exec_start_ns)) compute_start_ns_ = compute_start_ns;
}

void Request::respond(TRITONBACKEND_ModelInstance* instance, const std::vector<OutputTensor>& outputs,
                      uint64_t compute_end_ns) {
  TRITONBACKEND_Response* response = nullptr;
  TRITONSERVER_Error* error = TRITONBACKEND_ResponseNew(&response, handle_);
  if (error != nullptr) {  // there is no way to tell the caller
    ignore(error);
    return release();
  }
  for (const OutputTensor& output : outputs) {
    TRITONBACKEND_Output* target = nullptr;
    void* buffer = nullptr;
    uint64_t size_bytes = 0;
    for (auto& part : output.parts) size_bytes += part.second;
    TRITONSERVER_MemoryType type = TRITONSERVER_MEMORY_CPU;
    int64_t type_id = 0;
    error = TRITONBACKEND_ResponseOutput(response, &target, output.spec->name.c_str(), output.spec->type,
                                         output.shape.data(), static_cast<uint32_t>(output.shape.size()));
    if (error == nullptr) error = TRITONBACKEND_OutputBuffer(target, &buffer, size_bytes, &type, &type_id);
    if (error == nullptr && type == TRITONSERVER_MEMORY_GPU)
      error = TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_INTERNAL, "answers in GPU memory are not supported");
    if (error != nullptr) break;
    auto to = static_cast<uint8_t*>(buffer);
    for (auto& [from, length] : output.parts) {
      memcpy(to, from, length);
      to += length;
    }
  }
  // Before sending, so that a caller that has its answer finds it in the statistics.
  ignore(TRITONBACKEND_ModelInstanceReportStatistics(instance, handle_, error == nullptr, exec_start_ns_,
                                                     compute_start_ns_, compute_end_ns, now_ns()));
  ignore(TRITONBACKEND_ResponseSend(response, TRITONSERVER_RESPONSE_COMPLETE_FINAL, error));
  ignore(error);  // sending does not take ownership
  release();
}

void Request::fail(TRITONBACKEND_ModelInstance* instance, const Failure& failure) {
  uint64_t now = now_ns();
  started(now, now);
  // A bad image was computed and has its answer. Triton's Python backend counts that as a success too, and the rules in
  // monitoring/ take refused images from it.
  bool is_callers_fault = failure.code() == TRITONSERVER_ERROR_INVALID_ARG;
  ignore(TRITONBACKEND_ModelInstanceReportStatistics(instance, handle_, is_callers_fault, exec_start_ns_,
                                                     compute_start_ns_, now, now));
  send_error(failure);
}

void Request::drop(const Failure& failure) { send_error(failure); }

void Request::send_error(const Failure& failure) {
  answer_error(handle_, failure);
  handle_ = nullptr;
}

void Request::release() {
  ignore(TRITONBACKEND_RequestRelease(handle_, TRITONSERVER_REQUEST_RELEASE_ALL));
  handle_ = nullptr;
}

void answer_error(TRITONBACKEND_Request* handle, const Failure& failure) {
  TRITONBACKEND_Response* response = nullptr;
  TRITONSERVER_Error* error = TRITONBACKEND_ResponseNew(&response, handle);
  if (error == nullptr) {
    error = TRITONSERVER_ErrorNew(failure.code(), failure.what());
    ignore(TRITONBACKEND_ResponseSend(response, TRITONSERVER_RESPONSE_COMPLETE_FINAL, error));
  }
  ignore(error);
  ignore(TRITONBACKEND_RequestRelease(handle, TRITONSERVER_REQUEST_RELEASE_ALL));
}

}  // namespace host
