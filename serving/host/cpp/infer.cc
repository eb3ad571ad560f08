// The backend `onnxruntime`: one worker per thread of the instance, each with one engine thread, and a second session
// with all threads for small loads.

#include <algorithm>
#include <cstring>

#ifdef FRUITSTAND_GATE
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>
#endif

#include "engine.h"
#include "model.h"

namespace host {

namespace {

constexpr int64_t MIN_PART = 8, ENOUGH = 8;

#ifdef FRUITSTAND_GATE
// For tests: blocks while another process holds a lock on this file.
void wait_at_gate() {
  static const char* path = getenv("FRUITSTAND_GATE");
  if (path == nullptr) return;
  int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) return;
  flock(file, LOCK_SH);
  close(file);
}
#else
void wait_at_gate() {}
#endif

Entries read_entries(const Object& plan, const char* attribute) {
  Entries entries;
  for (const Object& pair : plan.list(attribute)) {
    const char *key = nullptr, *value = nullptr;
    if (!PyArg_ParseTuple(pair.get(), "ss", &key, &value)) throw Failure(take_python_error());
    entries.emplace_back(key, value);
  }
  return entries;
}

// Requires the GIL.
SessionOptions read_plan(const Object& plan) {
  return {plan.text("model_path"),
          static_cast<int>(plan.number("intra_op_threads")),
          plan.number("uses_openvino") != 0,
          read_entries(plan, "openvino_options")};
}

OnnxRuntime& open_runtime() {
  std::string path;
  {
    Gil gil;
    Object find = entry_point("onnxruntime_library");
    path = as_text(checked(PyObject_CallNoArgs(find.get())).get());
  }
  return OnnxRuntime::open(path);
}

// Returns [(name, ONNX type, [dim, ...]), ...]; requires the GIL.
Object as_list(const std::vector<FileTensor>& tensors) {
  Object list = checked(PyList_New(0));
  for (const FileTensor& tensor : tensors) {
    Object dims = checked(PyList_New(0));
    for (int64_t dim : tensor.dims)
      if (PyList_Append(dims.get(), checked(PyLong_FromLongLong(dim)).get()) != 0) throw Failure(take_python_error());
    Object one = checked(Py_BuildValue("(siN)", tensor.name.c_str(), tensor.onnx_type, dims.release()));
    if (PyList_Append(list.get(), one.get()) != 0) throw Failure(take_python_error());
  }
  return list;
}

Object as_list(const std::vector<std::string>& texts) {
  Object list = checked(PyList_New(0));
  for (const std::string& text : texts)
    if (PyList_Append(list.get(), checked(PyUnicode_FromString(text.c_str())).get()) != 0)
      throw Failure(take_python_error());
  return list;
}

// The number of workers, and whether they need their own session beside the one with all threads.
struct Workers {
  size_t count = 1;
  bool need_their_own = false;
};

// Decides which file to open and how. Python checks the configuration and the file.
SessionOptions plan_session(const OnnxRuntime& runtime, const std::string& directory, uint64_t version,
                            const std::string& config, bool for_workers, Workers* workers) {
  std::vector<std::string> providers = runtime.providers();
  Gil gil;
  Object plan_inference = entry_point("plan_inference");
  Object plan = checked(PyObject_CallFunction(plan_inference.get(), "sKsNi", directory.c_str(),
                                              static_cast<unsigned long long>(version), config.c_str(),
                                              as_list(providers).release(), static_cast<int>(for_workers)));
  if (workers != nullptr)
    *workers = {static_cast<size_t>(plan.number("num_workers")), plan.number("workers_need_their_own") != 0};
  return read_plan(plan);
}

// If OpenVINO cannot be opened, logs why and falls back to ONNX Runtime's own kernels, as the Python API does.
std::shared_ptr<Session> open_session(const OnnxRuntime& runtime, SessionOptions options) {
  if (options.uses_openvino) {
    try {
      return std::make_shared<Session>(runtime, options);
    } catch (const Failure& failure) {
      options.uses_openvino = false;
      auto session = std::make_shared<Session>(runtime, options);
      log(TRITONSERVER_LOG_WARN,
          std::string("OpenVINOExecutionProvider is not used, fell back to CPUExecutionProvider: ") + failure.what());
      return session;
    }
  }
  return std::make_shared<Session>(runtime, options);
}

class Inference final : public Instance {
 public:
  Inference(TRITONBACKEND_ModelInstance* handle, Model& model)
      : Instance(handle, model), settings_(model.settings()), runtime_(open_runtime()) {
    Workers workers;
    whole_ = open_file(false, &workers);
    parts_ = workers.need_their_own ? open_file(true, nullptr) : whole_;
    for (const TensorSpec& output : settings_.outputs) outputs_.push_back(output.name);
    part_ = std::min(settings_.max_part_images, settings_.max_batch_size);
    check_file();
    warm_up(*parts_, part_);
    int64_t whole_below = MIN_PART * static_cast<int64_t>(workers.count);
    if (workers.need_their_own) warm_up(*whole_, std::min(part_, whole_below - 1));
    open_sampler();
    joined_.resize(workers.count, std::vector<std::vector<uint8_t>>(settings_.inputs.size()));
    uint64_t wait_ns = settings_.max_queue_delay_us * 1000;
    start(model.queue({part_, /*may_split=*/true, whole_below, ENOUGH, wait_ns}), workers.count);
  }

  ~Inference() override {
    stop();
    Gil gil;
    if (sampler_) {
      Object closed(PyObject_CallMethod(sampler_.get(), "close", nullptr));
      if (!closed) log(TRITONSERVER_LOG_ERROR, take_python_error());
    }
    sampler_ = Object();
  }

 private:
  std::shared_ptr<Session> open_file(bool for_workers, Workers* workers) {
    SessionOptions options =
        plan_session(runtime_, model_.directory(), model_.version(), model_.config(), for_workers, workers);
    try {
      return open_session(runtime_, options);
    } catch (const Failure& failure) {
      Gil gil;
      Object describe = entry_point("describe_load_failure");
      throw Failure(as_text(checked(PyObject_CallFunction(describe.get(), "sss", model_.config().c_str(),
                                                          options.model_path.c_str(), failure.what()))
                                .get()));
    }
  }

  void check_file() {
    std::vector<FileTensor> inputs = whole_->inputs(), outputs = whole_->outputs();
    for (const FileTensor& output : outputs) file_outputs_.push_back(output.name);
    Gil gil;
    Object check = entry_point("check_file");
    checked(PyObject_CallFunction(check.get(), "sNN", model_.config().c_str(), as_list(inputs).release(),
                                  as_list(outputs).release()));
  }

  void open_sampler() {
    Gil gil;
    Object open = entry_point("open_sampler");
    Object opened = checked(PyObject_CallFunction(open.get(), "sKN", model_.config().c_str(),
                                                  static_cast<unsigned long long>(model_.version()),
                                                  as_list(file_outputs_).release()));
    if (opened.get() == Py_None) return;
    sampled_outputs_ = opened.texts("outputs");
    sampler_ = std::move(opened);
    next_sample_ns_ = 0;
  }

  // The engine compiles for each batch size on first use. Small ones are frequent; between larger ones that costs less
  // than it costs the callers of other versions to compute them all at each load.
  void warm_up(const Session& session, int64_t most) {
    for (const TensorSpec& input : settings_.inputs)
      if (std::any_of(input.dims.begin(), input.dims.end(), [](int64_t dim) { return dim < 1; })) return;
    for (int64_t size = 1; size <= most; size = size < MIN_PART ? size + 1
                                                : size < most   ? std::min(2 * size, most)
                                                                : most + 1) {
      std::vector<std::vector<uint8_t>> zeros;
      std::vector<Value> values;
      for (const TensorSpec& input : settings_.inputs) {
        std::vector<int64_t> shape{size};
        size_t size_bytes = input.item_size_bytes * static_cast<size_t>(size);
        for (int64_t dim : input.dims) {
          shape.push_back(dim);
          size_bytes *= static_cast<size_t>(dim);
        }
        zeros.emplace_back(size_bytes, uint8_t{0});
        values.push_back(Value::over(runtime_, zeros.back().data(), size_bytes, shape, input.onnx_type));
      }
      session.run(settings_.inputs, values, outputs_);
    }
  }

  void execute(size_t worker, Batch& batch) override {
    uint64_t started = now_ns();
    bool is_sampled = takes_sample(started);
    wait_at_gate();
    std::unique_ptr<Failure> failure;
    std::vector<Value> inputs, results;
    uint64_t computing = started;
    try {
      inputs = gather(worker, batch, is_sampled);
      computing = now_ns();
      const Session& session = batch.takes_all_threads ? *whole_ : *parts_;
      results = session.run(settings_.inputs, inputs, is_sampled ? sampled_outputs_ : outputs_);
      for (const Value& result : results)
        if (result.shape().empty() || result.shape()[0] != batch.num_images)
          throw Failure("an output has another batch axis than the inputs");
    } catch (const std::exception& one) {
      log(TRITONSERVER_LOG_ERROR, one.what());
      failure = std::make_unique<Failure>("the model failed on this batch");
    }
    uint64_t computed = now_ns();
    ignore(TRITONBACKEND_ModelInstanceReportBatchStatistics(handle_, static_cast<uint64_t>(batch.num_images), started,
                                                            computing, computed, computed));
    int64_t row = 0;
    for (Slice& slice : batch.slices) {
      slice.request->started(started, computing);
      deliver(slice, results, row, batch.num_images, computed, failure.get());
      row += slice.count;
    }
    if (is_sampled && failure == nullptr) offer_sample(batch.num_images, inputs, results);
    if (is_sampled && failure != nullptr) next_sample_ns_ = computed;
  }

  // One tensor per input: the memory of a single request, else several joined in memory that the worker reuses. A
  // sampled batch is always copied, because a request's memory is gone once it is answered.
  std::vector<Value> gather(size_t worker, const Batch& batch, bool is_sampled) {
    std::vector<Value> values;
    for (size_t i = 0; i < settings_.inputs.size(); ++i) {
      const InputTensor& first = batch.slices[0].request->inputs()[i];
      size_t row_bytes = first.size_bytes / static_cast<size_t>(batch.slices[0].request->num_images());
      size_t size_bytes = row_bytes * static_cast<size_t>(batch.num_images);
      const uint8_t* data = first.data + row_bytes * static_cast<size_t>(batch.slices[0].start);
      if (batch.slices.size() > 1 || is_sampled) {
        std::vector<uint8_t>& joined = joined_[worker][i];
        if (joined.size() < size_bytes) joined.resize(size_bytes);
        uint8_t* to = joined.data();
        for (const Slice& slice : batch.slices) {
          const uint8_t* from = slice.request->inputs()[i].data + row_bytes * static_cast<size_t>(slice.start);
          memcpy(to, from, row_bytes * static_cast<size_t>(slice.count));
          to += row_bytes * static_cast<size_t>(slice.count);
        }
        data = joined.data();
      }
      std::vector<int64_t> shape = first.shape;
      shape[0] = batch.num_images;
      values.push_back(Value::over(runtime_, data, size_bytes, shape, settings_.inputs[i].onnx_type));
    }
    return values;
  }

  // Gives a request its rows. If several workers computed parts of it, the last one sends the answer.
  void deliver(Slice& slice, const std::vector<Value>& results, int64_t row, int64_t num_rows, uint64_t computed,
               const Failure* failure) {
    Request& request = *slice.request;
    std::vector<OutputTensor> rows;
    if (failure == nullptr) rows = rows_of(results, row, slice.count, num_rows);
    if (slice.count == request.num_images()) {
      if (failure != nullptr) return request.fail(handle_, *failure);
      return respond(request, std::move(rows), computed);
    }
    Request::Assembly& assembly = request.assembly;
    std::unique_lock<std::mutex> lock(assembly.mutex);
    if (failure != nullptr) assembly.failure = std::make_unique<Failure>(*failure);
    assembly.bytes.resize(settings_.outputs.size());
    for (size_t i = 0; i < rows.size(); ++i) {
      auto [from, length] = rows[i].parts[0];
      size_t row_bytes = length / static_cast<size_t>(slice.count);
      assembly.bytes[i].resize(row_bytes * static_cast<size_t>(request.num_images()));
      memcpy(assembly.bytes[i].data() + row_bytes * static_cast<size_t>(slice.start), from, length);
    }
    assembly.images_done += slice.count;
    if (assembly.images_done < request.num_images()) return;
    if (assembly.failure != nullptr) return request.fail(handle_, *assembly.failure);
    for (size_t i = 0; i < rows.size(); ++i) {
      rows[i].shape[0] = request.num_images();
      rows[i].parts = {{assembly.bytes[i].data(), assembly.bytes[i].size()}};
    }
    respond(request, std::move(rows), computed);
  }

  std::vector<OutputTensor> rows_of(const std::vector<Value>& results, int64_t row, int64_t count, int64_t num_rows) {
    std::vector<OutputTensor> rows;
    for (size_t i = 0; i < settings_.outputs.size(); ++i) {
      std::vector<int64_t> shape = results[i].shape();
      size_t size_bytes = settings_.outputs[i].item_size_bytes;
      for (int64_t dim : shape) size_bytes *= static_cast<size_t>(dim);
      size_t row_bytes = size_bytes / static_cast<size_t>(num_rows);
      shape[0] = count;
      rows.push_back(
          {&settings_.outputs[i],
           shape,
           {{results[i].data() + row_bytes * static_cast<size_t>(row), row_bytes * static_cast<size_t>(count)}}});
    }
    return rows;
  }

  void respond(Request& request, std::vector<OutputTensor> rows, uint64_t computed) {
    std::vector<std::string> wanted = request.requested_outputs();
    auto is_unwanted = [&](const OutputTensor& one) {
      return std::find(wanted.begin(), wanted.end(), one.spec->name) == wanted.end();
    };
    rows.erase(std::remove_if(rows.begin(), rows.end(), is_unwanted), rows.end());
    request.respond(handle_, rows, computed);
  }

  // Whether to offer this batch to the drift sampler; one worker at a time.
  bool takes_sample(uint64_t now) {
    uint64_t due = next_sample_ns_;
    return due <= now && next_sample_ns_.compare_exchange_strong(due, UINT64_MAX);
  }

  // Called after the answers are sent, so that it delays none.
  void offer_sample(int64_t num_images, const std::vector<Value>& inputs, const std::vector<Value>& results) {
    Gil gil;
    try {
      Object views = checked(PyList_New(0));
      auto append = [&](const Value& value, size_t item_size_bytes) {
        size_t size_bytes = item_size_bytes;
        for (int64_t dim : value.shape()) size_bytes *= static_cast<size_t>(dim);
        Object view = checked(view_of(value.data(), size_bytes));
        if (PyList_Append(views.get(), view.get()) != 0) throw Failure(take_python_error());
      };
      append(inputs[0], settings_.inputs[0].item_size_bytes);
      for (const Value& result : results) append(result, sizeof(float));
      Object wait_ns =
          checked(PyObject_CallMethod(sampler_.get(), "offer", "LO", static_cast<long long>(num_images), views.get()));
      next_sample_ns_ = now_ns() + PyLong_AsUnsignedLongLong(wait_ns.get());
    } catch (const Failure& failure) {  // sampling ends, but no request fails
      log(TRITONSERVER_LOG_WARN, std::string("sampling for drift ends: ") + failure.what());
    }
  }

  const ModelSettings& settings_;
  const OnnxRuntime& runtime_;
  std::shared_ptr<Session> whole_, parts_;
  std::vector<std::string> outputs_, file_outputs_, sampled_outputs_;
  std::vector<std::vector<std::vector<uint8_t>>> joined_;  // by worker and input
  int64_t part_ = 1;
  Object sampler_;
  std::atomic<uint64_t> next_sample_ns_{UINT64_MAX};
};

}  // namespace

std::unique_ptr<Instance> open_inference(TRITONBACKEND_ModelInstance* handle, Model& model) {
  return std::make_unique<Inference>(handle, model);
}

}  // namespace host
