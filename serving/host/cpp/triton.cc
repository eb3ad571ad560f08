#include "triton.h"

#include <map>
#include <mutex>
#include <vector>

namespace host {

void check(TRITONSERVER_Error* error) {
  if (error == nullptr) return;
  std::string words = TRITONSERVER_ErrorMessage(error);
  TRITONSERVER_ErrorDelete(error);
  throw Failure(words);
}

void ignore(TRITONSERVER_Error* error) {
  if (error != nullptr) TRITONSERVER_ErrorDelete(error);
}

void log(TRITONSERVER_LogLevel level, const std::string& text) {
  ignore(TRITONSERVER_LogMessage(level, __FILE__, __LINE__, text.c_str()));
}

std::string quoted(const char* text) {
  constexpr size_t most = 64;
  std::string result = "'";
  for (size_t i = 0; i < most && text[i] != '\0'; ++i) {
    bool is_plain = text[i] >= ' ' && text[i] <= '~' && text[i] != '\'' && text[i] != '\\';
    result += is_plain ? text[i] : '?';
  }
  return result + "'";
}

namespace {

// Metric families live as long as the process: Prometheus refuses a second family of the same name.
TRITONSERVER_MetricFamily* family(const char* name, TRITONSERVER_MetricKind kind, const char* help) {
  static std::mutex mutex;
  static std::map<std::string, TRITONSERVER_MetricFamily*> families;
  std::lock_guard<std::mutex> lock(mutex);
  auto found = families.find(name);
  if (found != families.end()) return found->second;
  TRITONSERVER_MetricFamily* made = nullptr;
  ignore(TRITONSERVER_MetricFamilyNew(&made, kind, name, help));
  return families[name] = made;
}

}  // namespace

Metric::Metric(const char* name, TRITONSERVER_MetricKind kind, const char* help, const std::string& model,
               const std::string& version, const char* reason) {
  TRITONSERVER_MetricFamily* owner = family(name, kind, help);
  if (owner == nullptr) return;
  std::vector<std::pair<const char*, const char*>> labels = {{"model", model.c_str()}, {"version", version.c_str()}};
  if (reason != nullptr) labels.emplace_back("reason", reason);
  using Parameter = std::unique_ptr<TRITONSERVER_Parameter, void (*)(TRITONSERVER_Parameter*)>;
  std::vector<Parameter> owned;
  std::vector<const TRITONSERVER_Parameter*> given;
  for (auto& [key, value] : labels) {
    owned.emplace_back(TRITONSERVER_ParameterNew(key, TRITONSERVER_PARAMETER_STRING, value),
                       TRITONSERVER_ParameterDelete);
    given.push_back(owned.back().get());
  }
  ignore(TRITONSERVER_MetricNew(&metric_, owner, given.data(), given.size()));
}

Metric::~Metric() {
  if (metric_ != nullptr) ignore(TRITONSERVER_MetricDelete(metric_));
}

void Metric::set(double value) {
  if (metric_ != nullptr) ignore(TRITONSERVER_MetricSet(metric_, value));
}

void Metric::increment() {
  if (metric_ != nullptr) ignore(TRITONSERVER_MetricIncrement(metric_, 1));
}

}  // namespace host
