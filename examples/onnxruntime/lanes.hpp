// A model, and sessions over it for as many runs as the graph has at once.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#define ORT_API_MANUAL_INIT
#include "onnxruntime_cxx_api.h"
#undef ORT_API_MANUAL_INIT
#include <sae.hpp>

namespace adapter {

// Nodes that name the same file share one model; it goes with the last of them.
inline std::shared_ptr<const sae::Model> model_of(const std::string &path, sae_device device) {
  static std::mutex mutex;
  static std::map<std::pair<std::string, std::int32_t>, std::weak_ptr<const sae::Model>> models;
  const std::lock_guard<std::mutex> lock(mutex);
  auto &known = models[{path, device.device_type == SAE_DEVICE_CPU ? -1 : device.device_id}];
  if (auto model = known.lock()) return model;
  sae_load_options options = SAE_LOAD_OPTIONS_INIT;
  options.device = device;
  auto model = std::make_shared<const sae::Model>(sae::Model::load(path, &options));
  known = model;
  return model;
}

// What the sessions of a node are made for.
struct Room {
  std::int64_t width = 0, slots = 1, edits_per_slot = 16;
};

// A session, run by the threads of whichever graph uses it.
class Lane {
 public:
  Lane(const sae::Model &model, std::int64_t max_tokens, const Room &room, std::int32_t threads, OrtKernelContext *context)
      : max_tokens_(max_tokens), context_(context), pool_(sae::Pool::from_host(threads, in_parallel, this)), session_(make(model, max_tokens, room, pool_)), edits_(static_cast<std::size_t>(room.slots)) {}

  Lane(const Lane &) = delete;
  Lane &operator=(const Lane &) = delete;

  [[nodiscard]] std::int64_t max_tokens() const { return max_tokens_; }
  [[nodiscard]] sae::Session &session() { return session_; }
  void run_by(OrtKernelContext *context) { context_ = context; }

  // Slots keep their edits from one run to the next: only what has changed is set anew.
  void set_edits(std::int32_t slot, std::vector<sae_edit> edits) {
    std::vector<sae_edit> &last = edits_.at(static_cast<std::size_t>(slot));
    if (last.size() == edits.size() && (edits.empty() || std::memcmp(last.data(), edits.data(), edits.size() * sizeof(sae_edit)) == 0)) return;
    session_.set_edits(slot, edits);
    last = std::move(edits);
  }

 private:
  static sae::Session make(const sae::Model &model, std::int64_t max_tokens, const Room &room, const sae::Pool &pool) {
    sae_session_options options = SAE_SESSION_OPTIONS_INIT;
    options.max_tokens = max_tokens;
    options.max_width = room.width;
    options.slots = room.slots;
    options.edits_per_slot = room.edits_per_slot;
    options.pool = pool.get();
    return sae::Session::create(model, &options);
  }

  // Nothing may be thrown into the library. The runtime refuses before it runs any of it, or not at all.
  static void in_parallel(void *self, std::size_t n, sae_task task, void *arg) {
    OrtStatus *refused = Ort::GetApi().KernelContext_ParallelFor(static_cast<Lane *>(self)->context_, task, n, 0, arg);
    if (refused == nullptr) return;
    Ort::GetApi().ReleaseStatus(refused);
    for (std::size_t i = 0; i < n; i++) task(arg, i);
  }

  std::int64_t max_tokens_;
  OrtKernelContext *context_ = nullptr;
  sae::Pool pool_;
  sae::Session session_;
  std::vector<std::vector<sae_edit>> edits_;
};

// The lanes of a node. A run takes one that is free; only when there is none for so many tokens is one made.
class Lanes {
 public:
  Lanes(std::shared_ptr<const sae::Model> model, const Room &room)
      : model_(std::move(model)), room_(room), threads_(std::max(1, static_cast<std::int32_t>(std::thread::hardware_concurrency()))) {}

  // A lane for one run, given back at its end.
  class Taken {
   public:
    Taken(Lanes &lanes, std::int64_t tokens, OrtKernelContext *context) : lanes_(lanes), lane_(lanes.take(tokens, context)) { lane_->run_by(context); }
    ~Taken() { lanes_.give_back(std::move(lane_)); }
    Taken(const Taken &) = delete;
    Taken &operator=(const Taken &) = delete;
    Lane *operator->() { return lane_.get(); }

   private:
    Lanes &lanes_;
    std::unique_ptr<Lane> lane_;
  };

  [[nodiscard]] const sae::Model &model() const { return *model_; }

 private:
  std::unique_ptr<Lane> take(std::int64_t tokens, OrtKernelContext *context) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      const auto fits = std::find_if(free_.begin(), free_.end(), [&](const auto &lane) { return lane->max_tokens() >= tokens; });
      if (fits != free_.end()) {
        std::unique_ptr<Lane> lane = std::move(*fits);
        free_.erase(fits);
        return lane;
      }
      if (!free_.empty()) free_.pop_back();  // too small a one makes room
    }
    std::int64_t room = 64;
    while (room < tokens) room *= 2;
    return std::make_unique<Lane>(*model_, room, room_, threads_, context);
  }

  void give_back(std::unique_ptr<Lane> lane) noexcept {
    const std::lock_guard<std::mutex> lock(mutex_);
    try {
      free_.push_back(std::move(lane));
    } catch (...) {  // no memory to remember it by: it goes, and the next run makes another
    }
  }

  std::shared_ptr<const sae::Model> model_;
  Room room_;
  std::int32_t threads_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Lane>> free_;
};

}  // namespace adapter
