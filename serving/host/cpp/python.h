// The Python interpreter inside tritonserver. Both backends share it; it is never finalised.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <string>
#include <vector>

namespace host {

// Starts the interpreter of the environment that runs `fruitstand serve`; later calls do nothing.
void start_python();

// Holds the GIL.
class Gil {
 public:
  Gil() : state_(PyGILState_Ensure()) {}
  ~Gil() { PyGILState_Release(state_); }
  Gil(const Gil&) = delete;
  Gil& operator=(const Gil&) = delete;

 private:
  PyGILState_STATE state_;
};

// Keeps a Python thread state for a thread that calls Python repeatedly; does not hold the GIL.
class PythonThread {
 public:
  PythonThread() : state_(PyEval_SaveThread()) {}
  ~PythonThread() { PyEval_RestoreThread(state_); }
  PythonThread(const PythonThread&) = delete;
  PythonThread& operator=(const PythonThread&) = delete;

 private:
  Gil gil_;
  PyThreadState* state_;
};

// Owns one reference. Destruction, moves and `bool` do not require the GIL; everything else does.
class Object {
 public:
  Object() = default;
  explicit Object(PyObject* owned) : object_(owned) {}
  Object(Object&& other) noexcept : object_(other.object_) { other.object_ = nullptr; }
  Object& operator=(Object&& other) noexcept {
    std::swap(object_, other.object_);
    return *this;
  }
  ~Object() {
    if (object_ == nullptr) return;
    Gil gil;  // an exception may destroy the owner on a thread without the GIL
    Py_DECREF(object_);
  }
  Object(const Object&) = delete;
  Object& operator=(const Object&) = delete;

  PyObject* get() const { return object_; }
  PyObject* release() {
    PyObject* object = object_;
    object_ = nullptr;
    return object;
  }
  explicit operator bool() const { return object_ != nullptr; }

  Object attribute(const char* name) const;
  long number(const char* name) const;
  std::string text(const char* name) const;
  std::vector<Object> list(const char* name) const;
  std::vector<std::string> texts(const char* name) const;
  std::vector<int64_t> numbers(const char* name) const;

 private:
  PyObject* object_ = nullptr;
};

// The bytes of an object with the buffer protocol.
class Buffer {
 public:
  explicit Buffer(PyObject* object);
  Buffer(Buffer&& other) noexcept : view_(other.view_) { other.view_.obj = nullptr; }
  ~Buffer() {
    if (view_.obj != nullptr) PyBuffer_Release(&view_);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  const void* data() const { return view_.buf; }
  size_t size_bytes() const { return static_cast<size_t>(view_.len); }

 private:
  Py_buffer view_{};
};

// Takes ownership of `object`; if it is null, throws the pending Python exception as a Failure.
Object checked(PyObject* object);
// The pending exception's message on one line, without a stack trace: callers may see it.
std::string take_python_error();
// A function of `serving.host.models`.
Object entry_point(const char* name);
std::string as_text(PyObject* object);
// A read-only view of memory that outlives the call it is given to.
PyObject* view_of(const void* data, size_t size_bytes);

}  // namespace host
