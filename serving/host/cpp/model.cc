#include "model.h"

#include <pthread.h>

#include <cmath>
#include <limits>

namespace host {

namespace {

std::string config_of(TRITONBACKEND_Model* handle) {
  TRITONSERVER_Message* message = nullptr;
  const char* base = nullptr;
  size_t size_bytes = 0;
  check(TRITONBACKEND_ModelConfig(handle, 1, &message));
  std::unique_ptr<TRITONSERVER_Message, void (*)(TRITONSERVER_Message*)> owned(
      message, [](TRITONSERVER_Message* one) { ignore(TRITONSERVER_MessageDelete(one)); });
  check(TRITONSERVER_MessageSerializeToJson(message, &base, &size_bytes));
  return std::string(base, size_bytes);
}

std::vector<TensorSpec> read_tensors(const Object& settings, const char* attribute) {
  std::vector<TensorSpec> tensors;
  for (const Object& one : settings.list(attribute))
    tensors.push_back({one.text("name"), static_cast<TRITONSERVER_DataType>(one.number("triton_type")),
                       static_cast<int>(one.number("onnx_type")), static_cast<size_t>(one.number("item_size_bytes")),
                       one.numbers("dims")});
  return tensors;
}

}  // namespace

Model::Model(TRITONBACKEND_Model* handle) {
  const char *name = nullptr, *directory = nullptr, *backend_name = nullptr;
  TRITONBACKEND_ArtifactType type;
  TRITONBACKEND_Backend* backend = nullptr;
  check(TRITONBACKEND_ModelName(handle, &name));
  check(TRITONBACKEND_ModelVersion(handle, &version_));
  check(TRITONBACKEND_ModelRepository(handle, &type, &directory));
  check(TRITONBACKEND_ModelBackend(handle, &backend));
  check(TRITONBACKEND_BackendName(backend, &backend_name));
  name_ = name, directory_ = directory, backend_ = backend_name;
  config_ = config_of(handle);
  Gil gil;
  Object read = entry_point("read_settings");
  Object settings = checked(PyObject_CallFunction(read.get(), "s", config_.c_str()));
  settings_.inputs = read_tensors(settings, "inputs");
  settings_.outputs = read_tensors(settings, "outputs");
  settings_.max_batch_size = settings.number("max_batch_size");
  settings_.is_ragged = settings.number("is_ragged") != 0;
  settings_.max_queue_size = static_cast<size_t>(settings.number("max_queue_size"));
  settings_.default_timeout_us = static_cast<uint64_t>(settings.number("default_timeout_us"));
  settings_.allow_timeout_override = settings.number("allow_timeout_override") != 0;
  settings_.max_part_images = settings.number("max_part_images");
  settings_.max_queue_delay_us = static_cast<uint64_t>(settings.number("max_queue_delay_us"));
  warmups_left_ = settings.number("num_warmup_requests");
}

Queue& Model::queue(const BatchPolicy& policy) {
  if (queue_ == nullptr) {
    queue_ = std::make_unique<Queue>(settings_, policy, name_, std::to_string(version_));
    if (backend_ == "dali")
      queue_->on_drop = [](const Request& request) { Upstream::shared().remove(request.num_images()); };
  }
  return *queue_;
}

std::unique_ptr<Instance> Model::open_instance(TRITONBACKEND_ModelInstance* handle) {
  try {
    TRITONSERVER_InstanceGroupKind kind;
    check(TRITONBACKEND_ModelInstanceKind(handle, &kind));
    if (kind != TRITONSERVER_INSTANCEGROUPKIND_CPU)
      throw Failure(name_ + ": the embedded server's own backend runs on CPUs only; set KIND_CPU");
    return backend_ == "dali" ? open_decoder(handle, *this) : open_inference(handle, *this);
  } catch (const Failure& failure) {
    refuse(failure);
    return nullptr;
  }
}

void Model::refuse(const Failure& failure) {
  std::string reason;
  {
    Gil gil;
    Object refusal = entry_point("refusal");
    Object words = checked(PyObject_CallFunction(refusal.get(), "sKs", directory_.c_str(),
                                                 static_cast<unsigned long long>(version_), failure.what()));
    if (words.get() == Py_None) throw failure;
    reason = as_text(words.get());
  }
  refused_ = std::make_unique<Failure>(reason);
  log(TRITONSERVER_LOG_ERROR, "version " + std::to_string(version_) + " is refused: " + failure.what());
}

void Model::execute(TRITONBACKEND_Request* handle) {
  if (refused_ != nullptr) return execute_refused(handle);
  std::shared_ptr<Request> request;
  try {
    request = std::make_shared<Request>(handle, settings_);
  } catch (const Failure& failure) {
    return answer_error(handle, failure);
  }
  if (backend_ == "dali") Upstream::shared().add(request->num_images());
  queue_->push(std::move(request));
}

void Model::execute_refused(TRITONBACKEND_Request* handle) {
  // The load fails if a warm-up request fails, so warm-up requests get NaN answers, which nobody reads.
  if (warmups_left_.fetch_sub(1) <= 0) return answer_error(handle, *refused_);
  TRITONBACKEND_Response* response = nullptr;
  TRITONSERVER_Error* error = TRITONBACKEND_ResponseNew(&response, handle);
  for (const TensorSpec& spec : settings_.outputs) {
    if (error != nullptr) break;
    std::vector<int64_t> shape{1};
    size_t size_bytes = spec.item_size_bytes;
    for (int64_t dim : spec.dims) {
      shape.push_back(std::max<int64_t>(dim, 1));
      size_bytes *= static_cast<size_t>(shape.back());
    }
    TRITONBACKEND_Output* output = nullptr;
    void* buffer = nullptr;
    TRITONSERVER_MemoryType type = TRITONSERVER_MEMORY_CPU;
    int64_t type_id = 0;
    error = TRITONBACKEND_ResponseOutput(response, &output, spec.name.c_str(), spec.type, shape.data(),
                                         static_cast<uint32_t>(shape.size()));
    if (error == nullptr) error = TRITONBACKEND_OutputBuffer(output, &buffer, size_bytes, &type, &type_id);
    if (error == nullptr && type != TRITONSERVER_MEMORY_GPU)
      std::fill_n(static_cast<uint8_t*>(buffer), size_bytes, uint8_t{0xff});  // NaN in every float type
  }
  if (response != nullptr) {
    ignore(TRITONBACKEND_ResponseSend(response, TRITONSERVER_RESPONSE_COMPLETE_FINAL, error));
  }
  ignore(error);
  ignore(TRITONBACKEND_RequestRelease(handle, TRITONSERVER_REQUEST_RELEASE_ALL));
}

void Instance::start(Queue& queue, size_t num_workers) {
  queue_ = &queue;
  for (size_t worker = 0; worker < num_workers; ++worker) {
    queue.add_worker();
    workers_.emplace_back([this, worker] { loop(worker); });
  }
}

void Instance::stop() {
  if (queue_ == nullptr) return;
  shall_end_ = true;
  queue_->wake_all();
  for (auto& worker : workers_) {
    worker.join();
    queue_->remove_worker();
  }
  workers_.clear();
}

void Instance::loop(size_t worker) {
  pthread_setname_np(pthread_self(), "worker");
  PythonThread keeps_its_thread_state;
  Batch batch;
  while (queue_->take(&batch, shall_end_)) {
    execute(worker, batch);
    queue_->done(batch);
  }
}

}  // namespace host
