#include "queue.h"

#include <algorithm>
#include <cmath>

namespace host {

namespace {

constexpr uint64_t LOOK_EVERY_NS = 20'000'000;  // how often to look for cancelled requests
constexpr uint64_t RETURN_WAITS = 2;            // how many times `max_wait_ns` answered callers may take to return
constexpr int BATCHES_WITHOUT = 16;             // batches that do not wait for callers after some did not return
constexpr const char* DROPPED = "fruitstand_dropped_requests_total";
constexpr const char* DROPPED_HELP = "Requests that were answered without being computed";

int64_t share_of(int64_t images, int64_t workers) { return (images + workers - 1) / std::max<int64_t>(1, workers); }

std::chrono::steady_clock::time_point time_of(uint64_t ns) {
  return std::chrono::steady_clock::time_point(std::chrono::nanoseconds(ns));
}

}  // namespace

void Pace::learn(int64_t images, uint64_t took_ns, uint64_t now) {
  double image_ns = static_cast<double>(took_ns) / static_cast<double>(images + 1), weight = 1;
  if (learnt_at_ns_ != 0) {
    image_ns = std::min(image_ns, 4 * image_ns_);  // a process that was stopped for a while is not slow afterwards
    weight = 0.25;
  }
  double error = image_ns - image_ns_;
  deviation_ns_ += 0.25 * (std::abs(error) - deviation_ns_);
  image_ns_ += weight * error;
  learnt_at_ns_ = now;
}

// With the deviation on top; half as much for each second without a batch, or an estimate that is once too long would
// refuse everything from then on.
int64_t Pace::images_within(uint64_t ns, uint64_t now) const {
  double age_s = 1e-9 * static_cast<double>(now - learnt_at_ns_);
  double image_ns = (image_ns_ + deviation_ns_) * std::exp2(-age_s);
  return static_cast<int64_t>(static_cast<double>(ns) / std::max(image_ns, 1e3)) - 1;
}

Upstream& Upstream::shared() {
  static Upstream upstream;
  return upstream;
}

void Upstream::add(int64_t images) { images_ += images; }

void Upstream::remove(int64_t images) {
  if ((images_ -= images) != 0) return;
  std::lock_guard<std::mutex> lock(mutex_);
  for (Queue* queue : listeners_) queue->wake_all();
}

void Upstream::listen(Queue* queue) {
  std::lock_guard<std::mutex> lock(mutex_);
  listeners_.insert(queue);
}

void Upstream::ignore(Queue* queue) {
  std::lock_guard<std::mutex> lock(mutex_);
  listeners_.erase(queue);
}

Queue::Queue(const ModelSettings& settings, const BatchPolicy& policy, const std::string& model,
             const std::string& version)
    : settings_(settings),
      policy_(policy),
      pending_("fruitstand_pending_requests", TRITONSERVER_METRIC_KIND_GAUGE,
               "Requests waiting in the embedded server's own queues", model, version),
      full_(DROPPED, TRITONSERVER_METRIC_KIND_COUNTER, DROPPED_HELP, model, version, "FULL"),
      rejected_(DROPPED, TRITONSERVER_METRIC_KIND_COUNTER, DROPPED_HELP, model, version, "REJECTED"),
      cancelled_(DROPPED, TRITONSERVER_METRIC_KIND_COUNTER, DROPPED_HELP, model, version, "CANCELED") {
  pending_.set(0);
  if (policy_.max_wait_ns > 0) Upstream::shared().listen(this);
  watcher_ = std::thread([this] { watch(); });
}

Queue::~Queue() {
  Upstream::shared().ignore(this);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    is_closed_ = true;
  }
  timer_.notify_all();
  watcher_.join();
  for (auto& request : waiting_) request->drop(Failure("the model is unloaded", TRITONSERVER_ERROR_UNAVAILABLE));
}

bool Queue::push(std::shared_ptr<Request> request) {
  bool is_cancelled = request->is_cancelled(), is_full = false;
  if (!is_cancelled) {
    std::lock_guard<std::mutex> lock(mutex_);
    is_full = settings_.max_queue_size != 0 && waiting_.size() >= settings_.max_queue_size;
    if (!is_full) {
      images_waiting_ += request->num_images();
      uint64_t deadline_ns = request->deadline_ns();
      waiting_.push_back(std::move(request));
      changed();
      is_active_ = true;
      if (deadline_ns < next_look_ns_ || next_look_ns_ == UINT64_MAX) timer_.notify_one();
    }
  }
  if (is_cancelled) {
    drop({}, {request});
  } else if (is_full) {
    std::string id = *request->id() ? request->id() : "<id_unknown>";
    request->drop(Failure("[request id: " + id + "] Exceeds maximum queue size", TRITONSERVER_ERROR_UNAVAILABLE));
    full_.increment();
    if (on_drop) on_drop(*request);
  } else {
    ready_.notify_one();
  }
  return !is_cancelled && !is_full;
}

bool Queue::take(Batch* batch, const std::atomic<bool>& shall_end) {
  *batch = Batch();
  for (;;) {
    Requests expired, cancelled;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      ready_.wait(lock, [&] { return shall_end || !waiting_.empty(); });
      if (shall_end) return false;
      if (one_computes_all()) {
        ready_.wait(lock);  // until that batch is done or more images are under way
        continue;
      }
      uint64_t now = now_ns();
      if (uint64_t until_ns = waits_until(now); until_ns > now) {
        ready_.wait_until(lock, time_of(until_ns));
        continue;
      }
      form(batch, &expired, &cancelled);
      if (!batch->slices.empty()) ++num_busy_;
      changed();
      if (!waiting_.empty()) ready_.notify_one();
    }
    drop(expired, cancelled);
    if (!batch->slices.empty()) return true;
  }
}

int64_t Queue::images_under_way() const {
  return images_waiting_ + images_computing_ + Upstream::shared().num_images();
}

bool Queue::one_computes_all() const { return num_busy_ > 0 && images_under_way() < policy_.whole_below; }

uint64_t Queue::waits_until(uint64_t now) {
  if (policy_.max_wait_ns == 0) return 0;
  if (returning_ > 0 && num_busy_ == 0) {
    if (images_waiting_ < returning_ && now < returning_until_ns_) return returning_until_ns_;
    if (images_waiting_ < returning_) batches_without_ = BATCHES_WITHOUT;
    returning_ = 0;
  }
  if (images_waiting_ >= policy_.enough_images || Upstream::shared().num_images() == 0) return 0;
  return waiting_.front()->arrived_ns() + policy_.max_wait_ns;
}

void Queue::expect_callers(uint64_t now) {
  returning_ = 0;
  if (batches_without_ > 0) {
    --batches_without_;
  } else {
    returning_ = images_under_way();
    returning_until_ns_ = now + RETURN_WAITS * policy_.max_wait_ns;
  }
}

void Queue::form(Batch* batch, Requests* expired, Requests* cancelled) {
  int64_t idle = std::max<int64_t>(1, num_workers_ - num_busy_);  // includes the calling worker
  int64_t limit = policy_.max_images;
  batch->takes_all_threads = num_busy_ == 0 && images_under_way() < policy_.whole_below;
  if (batch->takes_all_threads) {
    limit = std::min(limit, images_waiting_);
  } else if (policy_.may_split) {
    // At most one worker's share of all images in flight, or later requests would wait behind a long batch.
    limit = std::min({limit, share_of(images_waiting_, idle), share_of(images_under_way(), num_workers_)});
  }
  uint64_t now = now_ns();
  while (!waiting_.empty() && batch->num_images < limit) {
    std::shared_ptr<Request> request = waiting_.front();
    int64_t in_time = images_in_time(*request, now);
    bool is_late = request->is_expired(now) || in_time < 1;
    if (request->next_image == 0 && (is_late || request->is_cancelled())) {
      (is_late ? expired : cancelled)->push_back(request);
      images_waiting_ -= request->num_images();
      waiting_.pop_front();
      continue;
    }
    limit = std::min(limit, std::max<int64_t>(1, in_time));
    if (batch->num_images >= limit) break;
    if (!batch->slices.empty() && !settings_.is_ragged && !request->same_shapes(*batch->slices[0].request)) break;
    int64_t start = request->next_image, count = request->num_images() - start;
    int64_t room = limit - batch->num_images;
    if (policy_.may_split)
      count = std::min(count, room);
    else if (!batch->slices.empty() && count > policy_.max_images - batch->num_images)
      break;
    request->next_image += count;
    images_waiting_ -= count;
    batch->num_images += count;
    if (request->next_image == request->num_images()) waiting_.pop_front();
    batch->slices.push_back({std::move(request), start, count});
  }
  images_computing_ += batch->num_images;
  batch->formed_at_ns = now;
}

// A caller gives its time to each of the two steps' queues, and has about as much as both together. What the first step
// took is gone; in the rest a batch has to end, or its answer comes too late.
int64_t Queue::images_in_time(const Request& request, uint64_t now) const {
  if (request.deadline_ns() == UINT64_MAX) return INT64_MAX;
  uint64_t timeout_ns = request.deadline_ns() - request.arrived_ns();
  uint64_t end_ns = request.deadline_ns() + timeout_ns - std::min(timeout_ns, Upstream::shared().latest_ns());
  return pace_.images_within(end_ns - std::min(end_ns, now), now);
}

void Queue::done(const Batch& batch) {
  std::lock_guard<std::mutex> lock(mutex_);
  uint64_t now = now_ns();
  pace_.learn(batch.num_images, now - batch.formed_at_ns, now);
  if (batch.takes_all_threads) expect_callers(now);
  images_computing_ -= batch.num_images;
  --num_busy_;
  if (!waiting_.empty()) ready_.notify_one();
}

void Queue::add_worker() {
  std::lock_guard<std::mutex> lock(mutex_);
  ++num_workers_;
}

void Queue::remove_worker() {
  std::lock_guard<std::mutex> lock(mutex_);
  --num_workers_;
}

void Queue::wake_all() {
  // With the lock held: a worker between its check and its wait would miss the notification.
  std::lock_guard<std::mutex> lock(mutex_);
  ready_.notify_all();
}

void Queue::changed() { pending_.set(static_cast<double>(waiting_.size())); }

void Queue::watch() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (!is_closed_) {
    Requests expired, cancelled;
    uint64_t now = now_ns(), soonest = UINT64_MAX;
    std::deque<std::shared_ptr<Request>> kept;
    for (auto& request : waiting_) {
      bool is_untouched = request->next_image == 0;
      Requests* leaves = is_untouched && request->is_expired(now)  ? &expired
                         : is_untouched && request->is_cancelled() ? &cancelled
                                                                   : nullptr;
      if (leaves != nullptr) {
        images_waiting_ -= request->num_images();
        leaves->push_back(request);
        continue;
      }
      if (is_untouched) soonest = std::min(soonest, request->deadline_ns());
      kept.push_back(std::move(request));
    }
    waiting_.swap(kept);
    if (!expired.empty() || !cancelled.empty()) {
      changed();
      lock.unlock();
      drop(expired, cancelled);
      lock.lock();
      continue;
    }
    // The timer stops only after a while without requests, because waking it adds latency to a request.
    next_look_ns_ = std::min(soonest, is_active_ || !waiting_.empty() ? now + LOOK_EVERY_NS : UINT64_MAX);
    is_active_ = false;
    if (next_look_ns_ == UINT64_MAX)
      timer_.wait(lock);
    else
      timer_.wait_until(lock, time_of(next_look_ns_));
  }
}

void Queue::drop(const Requests& expired, const Requests& cancelled) {
  for (auto& request : expired) {
    request->drop(Failure("Request timeout expired", TRITONSERVER_ERROR_UNAVAILABLE));
    rejected_.increment();
  }
  for (auto& request : cancelled) {
    request->drop(Failure("", TRITONSERVER_ERROR_CANCELLED));
    cancelled_.increment();
  }
  if (!on_drop) return;
  for (auto& request : expired) on_drop(*request);
  for (auto& request : cancelled) on_drop(*request);
}

}  // namespace host
