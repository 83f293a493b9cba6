// Steering: each sequence of a batch by its own list of edits.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <sae.hpp>

#include "contexts.hpp"
#include "device.hpp"
#include "engine.hpp"
#include "themes.hpp"

// Steers the rows of a residual in place, each by the slot of its sequence; -1 leaves a sequence alone, and the first token of each,
// the attention's sink, is left alone unless it is wanted otherwise.
class BatchSteering {
  public:
    BatchSteering(const sae::Model &sae, const sae::Pool &pool, size_t max_rows, size_t slots, bool spare_sinks = true);

    void set(int32_t slot, const std::vector<sae_edit> &edits) { session_.set_edits(slot, edits); }
    void operator()(const Residual &residual, const std::vector<int32_t> &slot_of_sequence);
    bool on_device() const { return on_device_; }

  private:
    sae::Session session_;
    std::vector<int32_t> row_slot_;
    bool spare_sinks_, on_device_;
    std::unique_ptr<Beside> beside_;  // of residuals in a GPU's memory
};

// Tries the most telling themes, each clamped up in a sequence of its own, and returns the one whose words come out most; then shows it clamped
// up and ablated beside the unsteered text.
void show_steering(const Model &model, const sae::Model &sae, const sae::Pool &pool, int32_t layer, const std::vector<Window> &windows,
                   const Contexts &contexts, const Themes &themes);
