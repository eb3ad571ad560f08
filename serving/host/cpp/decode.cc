// The backend `dali` calls DALI's Python API from one thread per instance. DALI releases the GIL while it computes.

#include <algorithm>

#include "model.h"

namespace host {

namespace {

// Python's result for one request; the buffers keep DALI's memory alive until it is copied.
struct Decoded {
  std::unique_ptr<Failure> failure;
  std::vector<OutputTensor> outputs;
  std::vector<Buffer> buffers;
};

class Decoder final : public Instance {
 public:
  Decoder(TRITONBACKEND_ModelInstance* handle, Model& model) : Instance(handle, model) {
    {
      Gil gil;
      Object open = entry_point("open_decoder");
      decoder_ =
          checked(PyObject_CallFunction(open.get(), "sKs", model.directory().c_str(),
                                        static_cast<unsigned long long>(model.version()), model.config().c_str()));
      decode_ = decoder_.attribute("decode");
    }
    for (const TensorSpec& output : model.settings().outputs) outputs_.push_back(output.name);
    std::sort(outputs_.begin(), outputs_.end());
    start(model.queue({model.settings().max_batch_size, /*may_split=*/false}), 1);
  }

  ~Decoder() override {
    stop();
    Gil gil;
    Object closed(PyObject_CallMethod(decoder_.get(), "close", nullptr));
    if (!closed) log(TRITONSERVER_LOG_ERROR, take_python_error());
    decode_ = Object();
    decoder_ = Object();
  }

 private:
  void execute(size_t, Batch& batch) override {
    uint64_t started = now_ns();
    int64_t num_images = batch.num_images;
    std::vector<std::shared_ptr<Request>> requests;
    for (Slice& slice : batch.slices) {
      slice.request->started(started, started);
      std::vector<std::string> wanted = slice.request->requested_outputs();
      std::sort(wanted.begin(), wanted.end());
      if (wanted == outputs_)
        requests.push_back(std::move(slice.request));
      else
        slice.request->fail(handle_, Failure("all outputs have to be requested", TRITONSERVER_ERROR_INVALID_ARG));
    }
    if (!requests.empty()) decode(requests, started, num_images);
    // After the answers: until its last image is answered, a batch counts as on its way to the next step.
    Upstream::shared().remove(num_images);
  }

  void decode(const std::vector<std::shared_ptr<Request>>& requests, uint64_t started, int64_t num_images) {
    Gil gil;
    Object results;
    std::vector<Decoded> decoded(requests.size());
    try {
      results = call(requests);
      for (size_t i = 0; i < requests.size(); ++i)
        read(PyList_GetItem(results.get(), static_cast<Py_ssize_t>(i)), &decoded[i]);
    } catch (const std::exception& failure) {
      log(TRITONSERVER_LOG_ERROR, failure.what());
      for (Decoded& one : decoded) one.failure = std::make_unique<Failure>("the decode step failed");
    }
    Py_BEGIN_ALLOW_THREADS;
    uint64_t computed = now_ns();
    ignore(TRITONBACKEND_ModelInstanceReportBatchStatistics(handle_, static_cast<uint64_t>(num_images), started,
                                                            started, computed, computed));
    Upstream::shared().took(computed - requests.front()->arrived_ns());
    for (size_t i = 0; i < requests.size(); ++i) answer(*requests[i], decoded[i], computed);
    Py_END_ALLOW_THREADS;
  }

  // Returns a list with one item per request: an error text, or the outputs as (shape, [array, ...]).
  Object call(const std::vector<std::shared_ptr<Request>>& requests) {
    Object list = checked(PyList_New(static_cast<Py_ssize_t>(requests.size())));
    for (size_t i = 0; i < requests.size(); ++i) {
      const auto& inputs = requests[i]->inputs();
      Object given = checked(PyTuple_New(static_cast<Py_ssize_t>(inputs.size())));
      for (size_t input = 0; input < inputs.size(); ++input) {
        const InputTensor& tensor = inputs[input];
        Object shape = checked(PyTuple_New(static_cast<Py_ssize_t>(tensor.shape.size())));
        for (size_t axis = 0; axis < tensor.shape.size(); ++axis)
          PyTuple_SET_ITEM(shape.get(), static_cast<Py_ssize_t>(axis), PyLong_FromLongLong(tensor.shape[axis]));
        Object pair = checked(Py_BuildValue("(NN)", view_of(tensor.data, tensor.size_bytes), shape.release()));
        PyTuple_SET_ITEM(given.get(), static_cast<Py_ssize_t>(input), pair.release());
      }
      PyList_SET_ITEM(list.get(), static_cast<Py_ssize_t>(i), given.release());
    }
    Object results = checked(PyObject_CallFunctionObjArgs(decode_.get(), list.get(), nullptr));
    if (!PyList_Check(results.get()) || PyList_GET_SIZE(results.get()) != static_cast<Py_ssize_t>(requests.size()))
      throw Failure("decode returned another number of results");
    return results;
  }

  void read(PyObject* result, Decoded* decoded) {
    if (PyUnicode_Check(result)) {
      decoded->failure = std::make_unique<Failure>(as_text(result), TRITONSERVER_ERROR_INVALID_ARG);
      return;
    }
    const std::vector<TensorSpec>& specs = model_.settings().outputs;
    for (size_t output = 0; output < specs.size(); ++output) {
      PyObject *shape = nullptr, *arrays = nullptr;
      PyObject* pair = PyList_GetItem(result, static_cast<Py_ssize_t>(output));
      if (pair == nullptr || !PyArg_ParseTuple(pair, "O!O!", &PyTuple_Type, &shape, &PyList_Type, &arrays))
        throw Failure(take_python_error());
      OutputTensor tensor{&specs[output], {}, {}};
      for (Py_ssize_t axis = 0; axis < PyTuple_GET_SIZE(shape); ++axis)
        tensor.shape.push_back(PyLong_AsLongLong(PyTuple_GET_ITEM(shape, axis)));
      for (Py_ssize_t i = 0; i < PyList_GET_SIZE(arrays); ++i) {
        decoded->buffers.emplace_back(PyList_GET_ITEM(arrays, i));
        tensor.parts.emplace_back(decoded->buffers.back().data(), decoded->buffers.back().size_bytes());
      }
      decoded->outputs.push_back(std::move(tensor));
    }
  }

  void answer(Request& request, const Decoded& decoded, uint64_t computed) {
    if (decoded.failure == nullptr) return request.respond(handle_, decoded.outputs, computed);
    log(TRITONSERVER_LOG_INFO, "request " + quoted(request.id()) + ": " + decoded.failure->what());
    request.fail(handle_, *decoded.failure);
  }

  Object decoder_, decode_;
  std::vector<std::string> outputs_;
};

}  // namespace

std::unique_ptr<Instance> open_decoder(TRITONBACKEND_ModelInstance* handle, Model& model) {
  return std::make_unique<Decoder>(handle, model);
}

}  // namespace host
