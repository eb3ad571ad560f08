// One request from Triton, from its arrival to its answer.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "triton.h"

namespace host {

// An input or output in a model's configuration; `serving.host.models` fills it in.
struct TensorSpec {
  std::string name;
  TRITONSERVER_DataType type;
  int onnx_type;
  size_t item_size_bytes;
  std::vector<int64_t> dims;  // without the batch axis; -1 is any
};

// The settings that every request of a model is checked against.
struct ModelSettings {
  std::vector<TensorSpec> inputs, outputs;
  int64_t max_batch_size;
  bool is_ragged;               // inputs of different lengths may share a batch
  size_t max_queue_size;        // requests; 0 is no limit
  uint64_t default_timeout_us;  // 0 is none
  bool allow_timeout_override;
  uint64_t max_queue_delay_us;
  int64_t max_part_images;  // images that one worker computes at a time
};

struct InputTensor {
  const uint8_t* data;
  size_t size_bytes;
  std::vector<int64_t> shape;  // with the batch axis
};

// One output of a request: bytes in one or several pieces.
struct OutputTensor {
  const TensorSpec* spec;
  std::vector<int64_t> shape;
  std::vector<std::pair<const void*, size_t>> parts;
};

class Request {
 public:
  // Reads the inputs in place; only inputs in several pieces are copied.
  Request(TRITONBACKEND_Request* handle, const ModelSettings& settings);
  Request(const Request&) = delete;
  Request& operator=(const Request&) = delete;

  const std::vector<InputTensor>& inputs() const { return inputs_; }
  int64_t num_images() const { return num_images_; }
  uint64_t arrived_ns() const { return arrived_ns_; }
  uint64_t deadline_ns() const { return deadline_ns_; }  // UINT64_MAX is none
  bool is_expired(uint64_t now) const { return now >= deadline_ns_; }
  bool is_cancelled() const;
  const char* id() const;
  std::vector<std::string> requested_outputs() const;
  bool same_shapes(const Request& other) const;

  // Called by the first of the workers that compute parts of the request.
  void started(uint64_t exec_start_ns, uint64_t compute_start_ns);

  // Exactly one of these answers the request; afterwards the handle is invalid.
  void respond(TRITONBACKEND_ModelInstance* instance, const std::vector<OutputTensor>& outputs,
               uint64_t compute_end_ns);
  void fail(TRITONBACKEND_ModelInstance* instance, const Failure& failure);
  void drop(const Failure& failure);  // does not count in the model's statistics

  // The answer of a request that several workers compute part by part.
  struct Assembly {
    std::mutex mutex;
    std::vector<std::vector<uint8_t>> bytes;  // one per output
    std::vector<std::vector<int64_t>> shapes;
    std::unique_ptr<Failure> failure;
    int64_t images_done = 0;
  };
  Assembly assembly;
  int64_t next_image = 0;  // first image that no worker has taken; guarded by the queue

 private:
  void send_error(const Failure& failure);
  void release();

  TRITONBACKEND_Request* handle_;
  std::vector<InputTensor> inputs_;
  std::vector<std::vector<uint8_t>> joined_;
  int64_t num_images_ = 1;
  uint64_t arrived_ns_, deadline_ns_ = UINT64_MAX;
  std::atomic<uint64_t> exec_start_ns_{0}, compute_start_ns_{0};
};

// Answers a request that could not be read.
void answer_error(TRITONBACKEND_Request* handle, const Failure& failure);

}  // namespace host
