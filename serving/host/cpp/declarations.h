// The parts of Triton's and ONNX Runtime's C APIs that this backend calls, declared by hand: wheels have no headers.
//
// Triton: server API 1.34 and backend API 1.19 of release 24.10, the one in nvidia-pytriton 0.7.0. The symbols stay
// undefined in the library; tritonserver supplies them at load time.
// ONNX Runtime: its API is a table of function pointers that only grows, so that indexes never change.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

struct TRITONSERVER_Error;
struct TRITONSERVER_Message;
struct TRITONSERVER_Parameter;
struct TRITONSERVER_Metric;
struct TRITONSERVER_MetricFamily;
struct TRITONBACKEND_Backend;
struct TRITONBACKEND_Model;
struct TRITONBACKEND_ModelInstance;
struct TRITONBACKEND_Request;
struct TRITONBACKEND_Input;
struct TRITONBACKEND_Response;
struct TRITONBACKEND_Output;

enum TRITONSERVER_DataType : int { TRITONSERVER_TYPE_INVALID = 0 };
enum TRITONSERVER_MemoryType : int { TRITONSERVER_MEMORY_CPU, TRITONSERVER_MEMORY_CPU_PINNED, TRITONSERVER_MEMORY_GPU };
enum TRITONSERVER_InstanceGroupKind : int {
  TRITONSERVER_INSTANCEGROUPKIND_AUTO,
  TRITONSERVER_INSTANCEGROUPKIND_CPU,
  TRITONSERVER_INSTANCEGROUPKIND_GPU
};
enum TRITONSERVER_LogLevel : int { TRITONSERVER_LOG_INFO, TRITONSERVER_LOG_WARN, TRITONSERVER_LOG_ERROR };
enum TRITONSERVER_ParameterType : int { TRITONSERVER_PARAMETER_STRING };
enum TRITONSERVER_MetricKind : int { TRITONSERVER_METRIC_KIND_COUNTER, TRITONSERVER_METRIC_KIND_GAUGE };
enum TRITONBACKEND_ArtifactType : int { TRITONBACKEND_ARTIFACT_FILESYSTEM };
enum TRITONSERVER_Error_Code : int {
  TRITONSERVER_ERROR_UNKNOWN,
  TRITONSERVER_ERROR_INTERNAL,
  TRITONSERVER_ERROR_NOT_FOUND,
  TRITONSERVER_ERROR_INVALID_ARG,
  TRITONSERVER_ERROR_UNAVAILABLE,
  TRITONSERVER_ERROR_UNSUPPORTED,
  TRITONSERVER_ERROR_ALREADY_EXISTS,
  TRITONSERVER_ERROR_CANCELLED
};

constexpr uint32_t TRITONSERVER_REQUEST_RELEASE_ALL = 1;
constexpr uint32_t TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1;
constexpr uint32_t TRITON_BACKEND_MAJOR = 1, TRITON_BACKEND_MINOR = 19;

// Errors
TRITONSERVER_Error* TRITONSERVER_ErrorNew(TRITONSERVER_Error_Code code, const char* message);
void TRITONSERVER_ErrorDelete(TRITONSERVER_Error* error);
const char* TRITONSERVER_ErrorMessage(TRITONSERVER_Error* error);

// Log, messages, types, metrics
TRITONSERVER_Error* TRITONSERVER_LogMessage(TRITONSERVER_LogLevel level, const char* file, int line, const char* text);
TRITONSERVER_Error* TRITONSERVER_MessageSerializeToJson(TRITONSERVER_Message* message, const char** base,
                                                        size_t* size_bytes);
TRITONSERVER_Error* TRITONSERVER_MessageDelete(TRITONSERVER_Message* message);
TRITONSERVER_Parameter* TRITONSERVER_ParameterNew(const char* name, TRITONSERVER_ParameterType type, const void* value);
void TRITONSERVER_ParameterDelete(TRITONSERVER_Parameter* parameter);
TRITONSERVER_Error* TRITONSERVER_MetricFamilyNew(TRITONSERVER_MetricFamily** family, TRITONSERVER_MetricKind kind,
                                                 const char* name, const char* description);
TRITONSERVER_Error* TRITONSERVER_MetricNew(TRITONSERVER_Metric** metric, TRITONSERVER_MetricFamily* family,
                                           const TRITONSERVER_Parameter** labels, uint64_t num_labels);
TRITONSERVER_Error* TRITONSERVER_MetricDelete(TRITONSERVER_Metric* metric);
TRITONSERVER_Error* TRITONSERVER_MetricIncrement(TRITONSERVER_Metric* metric, double value);
TRITONSERVER_Error* TRITONSERVER_MetricSet(TRITONSERVER_Metric* metric, double value);

// Backend, model, instance
TRITONSERVER_Error* TRITONBACKEND_ApiVersion(uint32_t* major, uint32_t* minor);
TRITONSERVER_Error* TRITONBACKEND_BackendName(TRITONBACKEND_Backend* backend, const char** name);
TRITONSERVER_Error* TRITONBACKEND_ModelName(TRITONBACKEND_Model* model, const char** name);
TRITONSERVER_Error* TRITONBACKEND_ModelVersion(TRITONBACKEND_Model* model, uint64_t* version);
TRITONSERVER_Error* TRITONBACKEND_ModelRepository(TRITONBACKEND_Model* model, TRITONBACKEND_ArtifactType* type,
                                                  const char** location);
TRITONSERVER_Error* TRITONBACKEND_ModelConfig(TRITONBACKEND_Model* model, uint32_t config_version,
                                              TRITONSERVER_Message** config);
TRITONSERVER_Error* TRITONBACKEND_ModelBackend(TRITONBACKEND_Model* model, TRITONBACKEND_Backend** backend);
TRITONSERVER_Error* TRITONBACKEND_ModelState(TRITONBACKEND_Model* model, void** state);
TRITONSERVER_Error* TRITONBACKEND_ModelSetState(TRITONBACKEND_Model* model, void* state);
TRITONSERVER_Error* TRITONBACKEND_ModelInstanceModel(TRITONBACKEND_ModelInstance* instance,
                                                     TRITONBACKEND_Model** model);
TRITONSERVER_Error* TRITONBACKEND_ModelInstanceName(TRITONBACKEND_ModelInstance* instance, const char** name);
TRITONSERVER_Error* TRITONBACKEND_ModelInstanceKind(TRITONBACKEND_ModelInstance* instance,
                                                    TRITONSERVER_InstanceGroupKind* kind);
TRITONSERVER_Error* TRITONBACKEND_ModelInstanceState(TRITONBACKEND_ModelInstance* instance, void** state);
TRITONSERVER_Error* TRITONBACKEND_ModelInstanceSetState(TRITONBACKEND_ModelInstance* instance, void* state);
TRITONSERVER_Error* TRITONBACKEND_ModelInstanceReportStatistics(TRITONBACKEND_ModelInstance* instance,
                                                                TRITONBACKEND_Request* request, bool is_success,
                                                                uint64_t exec_start_ns, uint64_t compute_start_ns,
                                                                uint64_t compute_end_ns, uint64_t exec_end_ns);
TRITONSERVER_Error* TRITONBACKEND_ModelInstanceReportBatchStatistics(TRITONBACKEND_ModelInstance* instance,
                                                                     uint64_t batch_size, uint64_t exec_start_ns,
                                                                     uint64_t compute_start_ns, uint64_t compute_end_ns,
                                                                     uint64_t exec_end_ns);

// Requests and responses
TRITONSERVER_Error* TRITONBACKEND_RequestId(TRITONBACKEND_Request* request, const char** id);
TRITONSERVER_Error* TRITONBACKEND_RequestIsCancelled(TRITONBACKEND_Request* request, bool* is_cancelled);
TRITONSERVER_Error* TRITONBACKEND_InferenceRequestTimeoutMicroseconds(TRITONBACKEND_Request* request,
                                                                      uint64_t* timeout_us);
TRITONSERVER_Error* TRITONBACKEND_RequestInput(TRITONBACKEND_Request* request, const char* name,
                                               TRITONBACKEND_Input** input);
TRITONSERVER_Error* TRITONBACKEND_RequestOutputCount(TRITONBACKEND_Request* request, uint32_t* count);
TRITONSERVER_Error* TRITONBACKEND_RequestOutputName(TRITONBACKEND_Request* request, uint32_t index, const char** name);
TRITONSERVER_Error* TRITONBACKEND_RequestRelease(TRITONBACKEND_Request* request, uint32_t flags);
TRITONSERVER_Error* TRITONBACKEND_InputProperties(TRITONBACKEND_Input* input, const char** name,
                                                  TRITONSERVER_DataType* type, const int64_t** shape,
                                                  uint32_t* num_dims, uint64_t* size_bytes, uint32_t* num_buffers);
TRITONSERVER_Error* TRITONBACKEND_InputBuffer(TRITONBACKEND_Input* input, uint32_t index, const void** buffer,
                                              uint64_t* size_bytes, TRITONSERVER_MemoryType* memory_type,
                                              int64_t* memory_type_id);
TRITONSERVER_Error* TRITONBACKEND_ResponseNew(TRITONBACKEND_Response** response, TRITONBACKEND_Request* request);
TRITONSERVER_Error* TRITONBACKEND_ResponseOutput(TRITONBACKEND_Response* response, TRITONBACKEND_Output** output,
                                                 const char* name, TRITONSERVER_DataType type, const int64_t* shape,
                                                 uint32_t num_dims);
TRITONSERVER_Error* TRITONBACKEND_OutputBuffer(TRITONBACKEND_Output* output, void** buffer, uint64_t size_bytes,
                                               TRITONSERVER_MemoryType* memory_type, int64_t* memory_type_id);
TRITONSERVER_Error* TRITONBACKEND_ResponseSend(TRITONBACKEND_Response* response, uint32_t flags,
                                               TRITONSERVER_Error* error);

// ONNX Runtime
struct OrtStatus;
struct OrtEnv;
struct OrtSession;
struct OrtSessionOptions;
struct OrtRunOptions;
struct OrtMemoryInfo;
struct OrtValue;
struct OrtTypeInfo;
struct OrtTensorTypeAndShapeInfo;
struct OrtAllocator;

struct OrtApiBase {
  const void* const* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};
}

// The oldest table that has all functions below; newer libraries provide it too.
constexpr uint32_t ORT_TABLE_VERSION = 17;
constexpr int ORT_LOG_ERROR = 3, ORT_ARENA_ALLOCATOR = 1, ORT_DEFAULT_MEMORY = 0;

// A function of the table: its index and its type.
template <size_t Place, typename Function>
struct OrtFunction {
  static constexpr size_t place = Place;
  using type = Function*;
};

namespace ort {
using GetErrorMessage = OrtFunction<2, const char*(const OrtStatus*)>;
using CreateEnv = OrtFunction<3, OrtStatus*(int log_level, const char* id, OrtEnv**)>;
using CreateSession =
    OrtFunction<7, OrtStatus*(const OrtEnv*, const char* path, const OrtSessionOptions*, OrtSession**)>;
using Run = OrtFunction<9, OrtStatus*(OrtSession*, const OrtRunOptions*, const char* const* input_names,
                                      const OrtValue* const* inputs, size_t num_inputs, const char* const* output_names,
                                      size_t num_outputs, OrtValue** outputs)>;
using CreateSessionOptions = OrtFunction<10, OrtStatus*(OrtSessionOptions**)>;
using SetSessionLogSeverityLevel = OrtFunction<22, OrtStatus*(OrtSessionOptions*, int level)>;
using SetIntraOpNumThreads = OrtFunction<24, OrtStatus*(OrtSessionOptions*, int num_threads)>;
using SessionGetInputCount = OrtFunction<30, OrtStatus*(const OrtSession*, size_t*)>;
using SessionGetOutputCount = OrtFunction<31, OrtStatus*(const OrtSession*, size_t*)>;
using SessionGetInputTypeInfo = OrtFunction<33, OrtStatus*(const OrtSession*, size_t index, OrtTypeInfo**)>;
using SessionGetOutputTypeInfo = OrtFunction<34, OrtStatus*(const OrtSession*, size_t index, OrtTypeInfo**)>;
using SessionGetInputName = OrtFunction<36, OrtStatus*(const OrtSession*, size_t index, OrtAllocator*, char**)>;
using SessionGetOutputName = OrtFunction<37, OrtStatus*(const OrtSession*, size_t index, OrtAllocator*, char**)>;
using CreateTensorWithDataAsOrtValue =
    OrtFunction<49, OrtStatus*(const OrtMemoryInfo*, void* data, size_t size_bytes, const int64_t* shape,
                               size_t num_dims, int element_type, OrtValue**)>;
using GetTensorMutableData = OrtFunction<51, OrtStatus*(OrtValue*, void**)>;
using CastTypeInfoToTensorInfo = OrtFunction<55, OrtStatus*(const OrtTypeInfo*, const OrtTensorTypeAndShapeInfo**)>;
using GetTensorElementType = OrtFunction<60, OrtStatus*(const OrtTensorTypeAndShapeInfo*, int*)>;
using GetDimensionsCount = OrtFunction<61, OrtStatus*(const OrtTensorTypeAndShapeInfo*, size_t*)>;
using GetDimensions = OrtFunction<62, OrtStatus*(const OrtTensorTypeAndShapeInfo*, int64_t*, size_t num_dims)>;
using GetTensorTypeAndShape = OrtFunction<65, OrtStatus*(const OrtValue*, OrtTensorTypeAndShapeInfo**)>;
using CreateCpuMemoryInfo = OrtFunction<69, OrtStatus*(int allocator_type, int memory_type, OrtMemoryInfo**)>;
using AllocatorFree = OrtFunction<76, OrtStatus*(OrtAllocator*, void*)>;
using GetAllocatorWithDefaultOptions = OrtFunction<78, OrtStatus*(OrtAllocator**)>;
using ReleaseStatus = OrtFunction<93, void(OrtStatus*)>;
using ReleaseMemoryInfo = OrtFunction<94, void(OrtMemoryInfo*)>;
using ReleaseSession = OrtFunction<95, void(OrtSession*)>;
using ReleaseValue = OrtFunction<96, void(OrtValue*)>;
using ReleaseTypeInfo = OrtFunction<98, void(OrtTypeInfo*)>;
using ReleaseTensorTypeAndShapeInfo = OrtFunction<99, void(OrtTensorTypeAndShapeInfo*)>;
using ReleaseSessionOptions = OrtFunction<100, void(OrtSessionOptions*)>;
using GetAvailableProviders = OrtFunction<125, OrtStatus*(char***, int* count)>;
using ReleaseAvailableProviders = OrtFunction<126, OrtStatus*(char**, int count)>;
using AppendOpenVino =
    OrtFunction<275, OrtStatus*(OrtSessionOptions*, const char* const* keys, const char* const* values, size_t count)>;
}  // namespace ort
