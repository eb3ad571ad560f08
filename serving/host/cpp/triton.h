// Small C++ wrappers around Triton's C interface: errors as exceptions, log lines, clock, metrics.
#pragma once

#include <chrono>
#include <memory>
#include <stdexcept>
#include <string>

#include "declarations.h"

namespace host {

inline uint64_t now_ns() {  // Triton's statistics use the same clock
  auto since = std::chrono::steady_clock::now().time_since_epoch();
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(since).count());
}

// An error that ends a call or a load, with the code that the caller sees.
class Failure : public std::runtime_error {
 public:
  explicit Failure(const std::string& words, TRITONSERVER_Error_Code code = TRITONSERVER_ERROR_INTERNAL)
      : std::runtime_error(words), code_(code) {}
  TRITONSERVER_Error_Code code() const { return code_; }

 private:
  TRITONSERVER_Error_Code code_;
};

// Throws Triton's error, if it returned one.
void check(TRITONSERVER_Error* error);
// For calls whose errors cannot be handled.
void ignore(TRITONSERVER_Error* error);
void log(TRITONSERVER_LogLevel level, const std::string& text);
// Quotes a caller's text for the log: shortened, and without characters that could forge a line.
std::string quoted(const char* text);

// One time series of a model version. Metrics are optional in Triton; without them this does nothing.
class Metric {
 public:
  Metric(const char* family, TRITONSERVER_MetricKind kind, const char* help, const std::string& model,
         const std::string& version, const char* reason = nullptr);
  ~Metric();
  Metric(const Metric&) = delete;
  Metric& operator=(const Metric&) = delete;
  void set(double value);
  void increment();

 private:
  TRITONSERVER_Metric* metric_ = nullptr;
};

}  // namespace host
