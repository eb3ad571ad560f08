// The functions that Triton calls. Each translates exceptions, because none may leave the library.

#include "model.h"

#define EXPORTED extern "C" __attribute__((visibility("default")))

using host::Failure;

namespace {

template <typename Action>
TRITONSERVER_Error* guarded(Action action) {
  try {
    action();
    return nullptr;
  } catch (const Failure& failure) {
    return TRITONSERVER_ErrorNew(failure.code(), failure.what());
  } catch (const std::exception& error) {
    return TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_INTERNAL, error.what());
  }
}

host::Model& model_of(TRITONBACKEND_ModelInstance* handle) {
  TRITONBACKEND_Model* model = nullptr;
  void* state = nullptr;
  host::check(TRITONBACKEND_ModelInstanceModel(handle, &model));
  host::check(TRITONBACKEND_ModelState(model, &state));
  return *static_cast<host::Model*>(state);
}

}  // namespace

EXPORTED TRITONSERVER_Error* TRITONBACKEND_Initialize(TRITONBACKEND_Backend*) {
  return guarded([] {
    uint32_t major = 0, minor = 0;
    host::check(TRITONBACKEND_ApiVersion(&major, &minor));
    if (major != TRITON_BACKEND_MAJOR || minor < TRITON_BACKEND_MINOR)
      throw Failure("this server has backend API " + std::to_string(major) + "." + std::to_string(minor) +
                    ", 1.19 is needed");
    host::start_python();
  });
}

EXPORTED TRITONSERVER_Error* TRITONBACKEND_ModelInitialize(TRITONBACKEND_Model* handle) {
  return guarded([&] {
    auto model = std::make_unique<host::Model>(handle);
    host::check(TRITONBACKEND_ModelSetState(handle, model.get()));
    model.release();
  });
}

EXPORTED TRITONSERVER_Error* TRITONBACKEND_ModelFinalize(TRITONBACKEND_Model* handle) {
  return guarded([&] {
    void* state = nullptr;
    host::check(TRITONBACKEND_ModelState(handle, &state));
    std::unique_ptr<host::Model> owned(static_cast<host::Model*>(state));
  });
}

EXPORTED TRITONSERVER_Error* TRITONBACKEND_ModelInstanceInitialize(TRITONBACKEND_ModelInstance* handle) {
  return guarded([&] {
    const char* name = nullptr;
    host::check(TRITONBACKEND_ModelInstanceName(handle, &name));
    host::log(TRITONSERVER_LOG_INFO, std::string("TRITONBACKEND_ModelInstanceInitialize: ") + name);
    std::unique_ptr<host::Instance> instance = model_of(handle).open_instance(handle);
    host::check(TRITONBACKEND_ModelInstanceSetState(handle, instance.get()));
    instance.release();
  });
}

EXPORTED TRITONSERVER_Error* TRITONBACKEND_ModelInstanceFinalize(TRITONBACKEND_ModelInstance* handle) {
  return guarded([&] {
    void* state = nullptr;
    host::check(TRITONBACKEND_ModelInstanceState(handle, &state));
    std::unique_ptr<host::Instance> owned(static_cast<host::Instance*>(state));
  });
}

// Only queues the requests, so that Triton's thread returns at once and forms no batches of its own.
EXPORTED TRITONSERVER_Error* TRITONBACKEND_ModelInstanceExecute(TRITONBACKEND_ModelInstance* handle,
                                                                TRITONBACKEND_Request** requests,
                                                                const uint32_t count) {
  return guarded([&] {
    host::Model& model = model_of(handle);
    for (uint32_t i = 0; i < count; ++i) model.execute(requests[i]);
  });
}
