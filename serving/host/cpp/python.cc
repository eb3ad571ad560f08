#include "python.h"

#include <dlfcn.h>

#include <cstdlib>
#include <mutex>

#include "triton.h"

namespace host {

namespace {

void promote_libpython() {
  // Triton opened this library, and with it libpython, with local symbols. Extension modules of wheels are not linked
  // to libpython and look its symbols up globally.
  Dl_info info;
  if (dladdr(reinterpret_cast<void*>(&Py_IsInitialized), &info) == 0 ||
      dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD | RTLD_GLOBAL) == nullptr)
    throw Failure(std::string("libpython cannot be made global: ") + dlerror());
}

}  // namespace

void start_python() {
  static std::mutex mutex;
  std::lock_guard<std::mutex> lock(mutex);
  if (Py_IsInitialized()) return;
  promote_libpython();
  PyPreConfig before;
  PyPreConfig_InitPythonConfig(&before);
  before.parse_argv = 0;
  before.configure_locale = 0;  // Triton owns the process's locale
  before.utf8_mode = 1;
  PyStatus status = Py_PreInitialize(&before);
  PyConfig config;
  PyConfig_InitPythonConfig(&config);
  config.install_signal_handlers = 0;  // Triton handles SIGTERM
  config.parse_argv = 0;
  config.buffered_stdio = 0;
  // Python finds pyvenv.cfg, and with it the environment's packages, from the program's path.
  const char* program = getenv("FRUITSTAND_PYTHON");
  if (!PyStatus_Exception(status))
    status = PyConfig_SetBytesString(&config, &config.program_name, program ? program : "python3");
  if (!PyStatus_Exception(status)) status = Py_InitializeFromConfig(&config);
  PyConfig_Clear(&config);
  if (PyStatus_Exception(status))
    throw Failure(std::string("Python failed to start: ") + (status.err_msg ? status.err_msg : "no reason given"));
  PyEval_SaveThread();
}

Object checked(PyObject* object) {
  if (object == nullptr) throw Failure(take_python_error());
  return Object(object);
}

std::string take_python_error() {
  PyObject *type = nullptr, *value = nullptr, *trace = nullptr;
  PyErr_Fetch(&type, &value, &trace);
  PyErr_NormalizeException(&type, &value, &trace);
  Object owned_type(type), owned_value(value), owned_trace(trace);
  Object describe(PyImport_ImportModule("serving.host.models"));
  Object words;
  if (describe && value != nullptr) words = Object(PyObject_CallMethod(describe.get(), "describe_error", "O", value));
  if (!words && value != nullptr) {  // for example when that module cannot be imported
    PyErr_Clear();
    words = Object(PyObject_Str(value));
  }
  if (!words) {
    PyErr_Clear();
    return "Python failed without a message";
  }
  return as_text(words.get());
}

Object entry_point(const char* name) {
  Object module = checked(PyImport_ImportModule("serving.host.models"));
  return checked(PyObject_GetAttrString(module.get(), name));
}

std::string as_text(PyObject* object) {
  Py_ssize_t length = 0;
  const char* text = PyUnicode_AsUTF8AndSize(object, &length);
  if (text == nullptr) throw Failure(take_python_error());
  return std::string(text, static_cast<size_t>(length));
}

PyObject* view_of(const void* data, size_t size_bytes) {
  char* start = static_cast<char*>(const_cast<void*>(data));
  static char nothing = 0;  // an empty input may have a null address
  return PyMemoryView_FromMemory(start ? start : &nothing, static_cast<Py_ssize_t>(size_bytes), PyBUF_READ);
}

Object Object::attribute(const char* name) const { return checked(PyObject_GetAttrString(object_, name)); }

long Object::number(const char* name) const {
  long value = PyLong_AsLong(attribute(name).get());
  if (value == -1 && PyErr_Occurred()) throw Failure(take_python_error());
  return value;
}

std::string Object::text(const char* name) const { return as_text(attribute(name).get()); }

std::vector<Object> Object::list(const char* name) const {
  Object sequence = checked(PySequence_Fast(attribute(name).get(), "not a sequence"));
  std::vector<Object> items;
  for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(sequence.get()); ++i) {
    PyObject* item = PySequence_Fast_GET_ITEM(sequence.get(), i);
    Py_INCREF(item);
    items.emplace_back(item);
  }
  return items;
}

std::vector<std::string> Object::texts(const char* name) const {
  std::vector<std::string> found;
  for (const Object& item : list(name)) found.push_back(as_text(item.get()));
  return found;
}

std::vector<int64_t> Object::numbers(const char* name) const {
  std::vector<int64_t> found;
  for (const Object& item : list(name)) {
    found.push_back(PyLong_AsLongLong(item.get()));
    if (found.back() == -1 && PyErr_Occurred()) throw Failure(take_python_error());
  }
  return found;
}

Buffer::Buffer(PyObject* object) {
  if (PyObject_GetBuffer(object, &view_, PyBUF_C_CONTIGUOUS) != 0) {
    view_.obj = nullptr;
    throw Failure(take_python_error());
  }
}

}  // namespace host
