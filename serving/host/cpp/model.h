// A model version and its instances, on which Triton's functions in backend.cc act.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "python.h"
#include "queue.h"

namespace host {

class Instance;

class Model {
 public:
  explicit Model(TRITONBACKEND_Model* handle);
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  // Opens an instance. A version on trial that cannot be opened loads, but refuses all requests: Triton 24.10 sometimes
  // crashes when one of several versions fails to load.
  std::unique_ptr<Instance> open_instance(TRITONBACKEND_ModelInstance* handle);
  void execute(TRITONBACKEND_Request* handle);

  // The queue that all instances share; the first instance creates it.
  Queue& queue(const BatchPolicy& policy);
  const ModelSettings& settings() const { return settings_; }
  const std::string& directory() const { return directory_; }
  const std::string& config() const { return config_; }
  uint64_t version() const { return version_; }

 private:
  void refuse(const Failure& failure);
  void execute_refused(TRITONBACKEND_Request* handle);

  std::string name_, directory_, backend_, config_;
  uint64_t version_ = 0;
  ModelSettings settings_;
  std::unique_ptr<Queue> queue_;
  std::unique_ptr<Failure> refused_;
  std::atomic<int64_t> warmups_left_{0};
};

// Threads that take batches from the model's queue.
class Instance {
 public:
  Instance(TRITONBACKEND_ModelInstance* handle, Model& model) : handle_(handle), model_(model) {}
  virtual ~Instance() = default;
  Instance(const Instance&) = delete;
  Instance& operator=(const Instance&) = delete;

 protected:
  // Derived classes call start at the end of the constructor, and stop at the start of the destructor.
  void start(Queue& queue, size_t num_workers);
  void stop();
  virtual void execute(size_t worker, Batch& batch) = 0;

  TRITONBACKEND_ModelInstance* handle_;
  Model& model_;

 private:
  void loop(size_t worker);

  Queue* queue_ = nullptr;
  std::atomic<bool> shall_end_{false};
  std::vector<std::thread> workers_;
};

std::unique_ptr<Instance> open_decoder(TRITONBACKEND_ModelInstance* handle, Model& model);
std::unique_ptr<Instance> open_inference(TRITONBACKEND_ModelInstance* handle, Model& model);

}  // namespace host
