// The queue of one model version: which worker takes which requests, and when.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "request.h"

namespace host {

class Queue;

// Number of images in decode, over all models. A worker of the next step waits for a larger batch only while there are
// some, because only then more are sure to come.
class Upstream {
 public:
  static Upstream& shared();
  void add(int64_t images);
  void remove(int64_t images);
  int64_t num_images() const { return images_.load(); }
  void took(uint64_t ns) { latest_ns_ = ns; }  // from the arrival of a batch's oldest request to its answer
  uint64_t latest_ns() const { return latest_ns_; }
  void listen(Queue* queue);
  void ignore(Queue* queue);

 private:
  std::atomic<int64_t> images_{0};
  std::atomic<uint64_t> latest_ns_{0};
  std::mutex mutex_;
  std::set<Queue*> listeners_;
};

// The part of a request that one worker computes.
struct Slice {
  std::shared_ptr<Request> request;
  int64_t start, count;
};

struct Batch {
  std::vector<Slice> slices;
  int64_t num_images = 0;
  bool takes_all_threads = false;  // few images are in flight, and this batch holds all that were ready
  uint64_t formed_at_ns = 0;
};

// How long a batch probably takes, by what the latest ones took. Each has a base that costs as much as one image.
class Pace {
 public:
  void learn(int64_t images, uint64_t took_ns, uint64_t now);
  // The most images that probably end within this time.
  int64_t images_within(uint64_t ns, uint64_t now) const;

 private:
  double image_ns_ = 0, deviation_ns_ = 0;
  uint64_t learnt_at_ns_ = 0;
};

// How batches are formed.
struct BatchPolicy {
  int64_t max_images;         // in one batch
  bool may_split;             // one request's images may be computed by several workers
  int64_t whole_below = 0;    // below so many images in flight, one batch at a time takes all threads
  int64_t enough_images = 0;  // a batch of this size does not wait for more
  uint64_t max_wait_ns = 0;   // 0 never waits
};

class Queue {
 public:
  Queue(const ModelSettings& settings, const BatchPolicy& policy, const std::string& model, const std::string& version);
  ~Queue();
  Queue(const Queue&) = delete;
  Queue& operator=(const Queue&) = delete;

  // Queues the request, or answers it at once if the queue is full; returns whether it was queued.
  bool push(std::shared_ptr<Request> request);
  // Blocks until there is work; returns false when the worker has to end.
  bool take(Batch* batch, const std::atomic<bool>& shall_end);
  void done(const Batch& batch);  // to be called after each batch
  void add_worker();
  void remove_worker();
  void wake_all();

  // Called for each request that was not computed, after it was answered.
  std::function<void(const Request&)> on_drop;

 private:
  using Requests = std::vector<std::shared_ptr<Request>>;
  void watch();  // the timer's thread
  void form(Batch* batch, Requests* expired, Requests* cancelled);
  int64_t images_under_way() const;  // in decode, waiting or computed; not those of other steps' queues
  bool one_computes_all() const;
  // Until when to wait for a larger batch; not after `now` if not at all.
  uint64_t waits_until(uint64_t now);
  // Callers in a closed loop send their next images soon after an answer: the next batch waits for all of them.
  void expect_callers(uint64_t now);
  int64_t images_in_time(const Request& request, uint64_t now) const;
  void drop(const Requests& expired, const Requests& cancelled);
  void changed();

  const ModelSettings& settings_;
  const BatchPolicy policy_;
  Pace pace_;
  std::mutex mutex_;
  std::condition_variable ready_, timer_;
  std::deque<std::shared_ptr<Request>> waiting_;
  int64_t images_waiting_ = 0, images_computing_ = 0, num_workers_ = 0, num_busy_ = 0;
  int64_t returning_ = 0;  // images that are expected soon, with those that wait; 0 expects none
  uint64_t returning_until_ns_ = 0;
  int batches_without_ = 0;
  uint64_t next_look_ns_ = UINT64_MAX;
  bool is_active_ = false, is_closed_ = false;
  Metric pending_, full_, rejected_, cancelled_;
  std::thread watcher_;
};

}  // namespace host
