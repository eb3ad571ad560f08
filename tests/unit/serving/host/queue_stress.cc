// Drives serving/host/cpp/queue.cc from many threads, for the thread and address sanitizers: tritonserver itself
// cannot run under the first, because neither it nor Python is built for it. Triton's functions are replaced by
// counters. Prints one line: how many requests were made, computed, refused or expired, cancelled, and answered
// other than once.

#include <cstdio>
#include <random>

#include "queue.h"

using namespace host;

struct TRITONBACKEND_Request {
  uint64_t timeout_us = 0;
  int64_t shape[2] = {1, 4};
  std::vector<uint8_t> bytes;
  std::atomic<bool> is_cancelled{false};
  std::atomic<int> num_answers{0}, num_releases{0};
};
struct TRITONSERVER_Error {
  int code;
  std::string words;
};
struct TRITONBACKEND_Response {
  TRITONBACKEND_Request* request;
};

namespace {
std::atomic<long> computed{0}, unavailable{0}, cancelled{0};
constexpr int NUM_ROUNDS = 4, NUM_WORKERS = 3, NUM_CALLERS = 4, NUM_CALLS = 2000;
}  // namespace

extern "C" {
using Error = TRITONSERVER_Error*;
Error TRITONSERVER_ErrorNew(TRITONSERVER_Error_Code code, const char* words) {
  return new TRITONSERVER_Error{code, words};
}
void TRITONSERVER_ErrorDelete(Error error) { delete error; }
const char* TRITONSERVER_ErrorMessage(Error error) { return error->words.c_str(); }
Error TRITONSERVER_LogMessage(TRITONSERVER_LogLevel, const char*, int, const char*) { return nullptr; }
TRITONSERVER_Parameter* TRITONSERVER_ParameterNew(const char*, TRITONSERVER_ParameterType, const void*) {
  return nullptr;
}
void TRITONSERVER_ParameterDelete(TRITONSERVER_Parameter*) {}
Error TRITONSERVER_MetricFamilyNew(TRITONSERVER_MetricFamily**, TRITONSERVER_MetricKind, const char*, const char*) {
  return nullptr;
}
Error TRITONSERVER_MetricNew(TRITONSERVER_Metric**, TRITONSERVER_MetricFamily*, const TRITONSERVER_Parameter**,
                             uint64_t) {
  return nullptr;
}
Error TRITONSERVER_MetricDelete(TRITONSERVER_Metric*) { return nullptr; }
Error TRITONSERVER_MetricSet(TRITONSERVER_Metric*, double) { return nullptr; }
Error TRITONSERVER_MetricIncrement(TRITONSERVER_Metric*, double) { return nullptr; }
Error TRITONBACKEND_RequestId(TRITONBACKEND_Request*, const char** id) {
  *id = "";
  return nullptr;
}
Error TRITONBACKEND_RequestIsCancelled(TRITONBACKEND_Request* request, bool* is_cancelled) {
  *is_cancelled = request->is_cancelled;
  return nullptr;
}
Error TRITONBACKEND_InferenceRequestTimeoutMicroseconds(TRITONBACKEND_Request* request, uint64_t* timeout_us) {
  *timeout_us = request->timeout_us;
  return nullptr;
}
Error TRITONBACKEND_RequestInput(TRITONBACKEND_Request* request, const char*, TRITONBACKEND_Input** input) {
  *input = reinterpret_cast<TRITONBACKEND_Input*>(request);
  return nullptr;
}
Error TRITONBACKEND_RequestOutputCount(TRITONBACKEND_Request*, uint32_t* count) {
  *count = 0;
  return nullptr;
}
Error TRITONBACKEND_RequestOutputName(TRITONBACKEND_Request*, uint32_t, const char**) { return nullptr; }
Error TRITONBACKEND_RequestRelease(TRITONBACKEND_Request* request, uint32_t) {
  ++request->num_releases;
  return nullptr;
}
Error TRITONBACKEND_InputProperties(TRITONBACKEND_Input* input, const char**, TRITONSERVER_DataType*,
                                    const int64_t** shape, uint32_t* num_dims, uint64_t* size_bytes,
                                    uint32_t* num_buffers) {
  auto request = reinterpret_cast<TRITONBACKEND_Request*>(input);
  *shape = request->shape, *num_dims = 2, *size_bytes = request->bytes.size(), *num_buffers = 1;
  return nullptr;
}
Error TRITONBACKEND_InputBuffer(TRITONBACKEND_Input* input, uint32_t, const void** buffer, uint64_t* size_bytes,
                                TRITONSERVER_MemoryType*, int64_t*) {
  auto request = reinterpret_cast<TRITONBACKEND_Request*>(input);
  *buffer = request->bytes.data(), *size_bytes = request->bytes.size();
  return nullptr;
}
Error TRITONBACKEND_ResponseNew(TRITONBACKEND_Response** response, TRITONBACKEND_Request* request) {
  *response = new TRITONBACKEND_Response{request};
  return nullptr;
}
Error TRITONBACKEND_ResponseOutput(TRITONBACKEND_Response*, TRITONBACKEND_Output**, const char*, TRITONSERVER_DataType,
                                   const int64_t*, uint32_t) {
  return nullptr;
}
Error TRITONBACKEND_OutputBuffer(TRITONBACKEND_Output*, void**, uint64_t, TRITONSERVER_MemoryType*, int64_t*) {
  return nullptr;
}
Error TRITONBACKEND_ResponseSend(TRITONBACKEND_Response* response, uint32_t, Error error) {
  ++response->request->num_answers;
  ++(error == nullptr ? computed : error->code == TRITONSERVER_ERROR_UNAVAILABLE ? unavailable : cancelled);
  delete response;
  return nullptr;
}
Error TRITONBACKEND_ModelInstanceReportStatistics(TRITONBACKEND_ModelInstance*, TRITONBACKEND_Request*, bool, uint64_t,
                                                  uint64_t, uint64_t, uint64_t) {
  return nullptr;
}
}

namespace {

using Requests = std::vector<std::unique_ptr<TRITONBACKEND_Request>>;

// Computes nothing, but takes its time, and answers a request when its last image is done.
void work(Queue& queue, const std::atomic<bool>& shall_end) {
  Batch batch;
  while (queue.take(&batch, shall_end)) {
    uint64_t now = now_ns();
    std::this_thread::sleep_for(std::chrono::microseconds(300));
    for (Slice& slice : batch.slices) {
      slice.request->started(now, now);
      bool is_last;
      {
        std::lock_guard<std::mutex> lock(slice.request->assembly.mutex);
        slice.request->assembly.images_done += slice.count;
        is_last = slice.request->assembly.images_done == slice.request->num_images();
      }
      if (!is_last) continue;
      slice.request->respond(nullptr, {}, now_ns());
      Upstream::shared().remove(slice.request->num_images());
    }
    queue.done(batch);
  }
}

// One request in ten has several images, one in four a short deadline, one in twenty is cancelled.
void call(Queue& queue, const ModelSettings& settings, Requests& made, unsigned seed) {
  std::mt19937 dice(seed);
  for (auto& handle : made) {
    handle = std::make_unique<TRITONBACKEND_Request>();
    handle->shape[0] = dice() % 10 == 0 ? 1 + dice() % 40 : 1;
    handle->timeout_us = dice() % 4 == 0 ? 1 + dice() % 3000 : 0;
    handle->bytes.resize(static_cast<size_t>(handle->shape[0]) * 4);
    auto request = std::make_shared<Request>(handle.get(), settings);
    Upstream::shared().add(request->num_images());
    queue.push(std::move(request));
    if (dice() % 20 == 0) handle->is_cancelled = true;
    if (dice() % 8 == 0) std::this_thread::sleep_for(std::chrono::microseconds(dice() % 2000));
  }
}

// A batch takes 300 ms. Then of two requests that wait, the one whose caller is gone in 300 ms is refused at once.
bool late_one_is_refused(ModelSettings settings) {
  settings.default_timeout_us = 60'000'000;
  Queue queue(settings, {16, /*may_split=*/true}, "model", "1");
  queue.add_worker();
  Requests made;
  auto push = [&](uint64_t timeout_us) {
    made.push_back(std::make_unique<TRITONBACKEND_Request>());
    made.back()->timeout_us = timeout_us;
    made.back()->bytes.resize(4);
    queue.push(std::make_shared<Request>(made.back().get(), settings));
  };
  auto compute = [&](int ms) {
    Batch batch;
    queue.take(&batch, false);
    std::this_thread::sleep_for(std::chrono::milliseconds(ms));
    for (Slice& slice : batch.slices) slice.request->respond(nullptr, {}, now_ns());
    queue.done(batch);
  };
  long before = unavailable;
  push(0);
  compute(300);
  push(150'000);
  push(0);
  compute(0);
  return unavailable == before + 1 && made[1]->num_answers == 1;
}

// Four callers in a closed loop, the last one back 5 ms after the others: each batch holds all four. When one does not
// come back, the others are computed after a wait, and the next batch does not wait for it.
bool callers_are_awaited(ModelSettings settings) {
  settings.default_timeout_us = 60'000'000;
  constexpr uint64_t WAIT_NS = 200'000'000;
  Queue queue(settings, {16, /*may_split=*/true, 16, 8, WAIT_NS}, "model", "1");
  queue.add_worker();
  Requests made;
  auto push = [&](int count) {
    for (int i = 0; i < count; ++i) {
      made.push_back(std::make_unique<TRITONBACKEND_Request>());
      made.back()->bytes.resize(4);
      queue.push(std::make_shared<Request>(made.back().get(), settings));
    }
  };
  auto compute = [&] {
    Batch batch;
    queue.take(&batch, false);
    for (Slice& slice : batch.slices) slice.request->respond(nullptr, {}, now_ns());
    queue.done(batch);
    return batch.num_images;
  };
  push(4);
  bool is_whole = compute() == 4;
  for (int i = 0; i < 3; ++i) {
    push(3);
    std::thread late([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
      push(1);
    });
    is_whole &= compute() == 4;
    late.join();
  }
  push(3);
  uint64_t started = now_ns();
  is_whole &= compute() == 3 && now_ns() - started > WAIT_NS;
  push(2);
  started = now_ns();
  return is_whole && compute() == 2 && now_ns() - started < WAIT_NS;
}

}  // namespace

int main() {
  ModelSettings settings{{{"INPUT", TRITONSERVER_DataType(2), 2, 1, {4}}}, {}, 64, true, 40, 500'000, true, 4000, 16};
  long num_wrong = 0;
  for (int round = 0; round < NUM_ROUNDS; ++round) {
    Queue queue(settings, {16, /*may_split=*/round % 2 == 0, 16, 8, 4'000'000}, "model", "1");
    queue.on_drop = [](const Request& request) { Upstream::shared().remove(request.num_images()); };
    std::atomic<bool> shall_end{false};
    std::vector<std::thread> workers, callers;
    for (int i = 0; i < NUM_WORKERS; ++i) {
      queue.add_worker();
      workers.emplace_back([&] { work(queue, shall_end); });
    }
    std::vector<Requests> made(NUM_CALLERS);
    for (int i = 0; i < NUM_CALLERS; ++i) {
      made[i].resize(NUM_CALLS);
      callers.emplace_back([&, i] { call(queue, settings, made[i], static_cast<unsigned>(round * NUM_CALLERS + i)); });
    }
    for (auto& caller : callers) caller.join();
    auto is_unanswered = [](auto& one) { return one->num_answers == 0; };
    for (auto& requests : made)
      for (auto& one : requests)
        while (is_unanswered(one)) std::this_thread::yield();
    shall_end = true;
    queue.wake_all();
    for (auto& worker : workers) worker.join();
    for (auto& requests : made)
      for (auto& one : requests) num_wrong += one->num_answers != 1 || one->num_releases != 1;
  }
  num_wrong += !late_one_is_refused(settings);
  num_wrong += !callers_are_awaited(settings);
  printf("%d %ld %ld %ld %ld\n", NUM_ROUNDS * NUM_CALLERS * NUM_CALLS + 3 + 21, computed.load(), unavailable.load(),
         cancelled.load(), num_wrong);
  return num_wrong == 0 && Upstream::shared().num_images() == 0 ? 0 : 1;
}
