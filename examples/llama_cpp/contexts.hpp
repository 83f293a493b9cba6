// What was seen of each feature: how often it fired, how strongly at most, and the windows where it fired most.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

struct Context {
    float value;
    uint32_t window, pos;  // which window, and where in it the feature was at its strongest
};

class Contexts {
  public:
    static constexpr size_t kept = 24;

    explicit Contexts(size_t n_latents) : seen_(n_latents) {}

    void count_token() { tokens_++; }
    void add(int32_t feature, const Context &context);

    const std::vector<Context> &best(int32_t feature) const { return at(feature).best; }  // strongest first, one per window
    float max(int32_t feature) const { return best(feature).empty() ? 0.0f : best(feature).front().value; }
    double density(int32_t feature) const { return tokens_ ? double(at(feature).fired) / double(tokens_) : 0.0; }
    size_t n_latents() const { return seen_.size(); }
    size_t tokens() const { return tokens_; }

  private:
    struct Seen {
        std::vector<Context> best;
        uint64_t fired = 0;
    };
    const Seen &at(int32_t feature) const { return seen_[size_t(feature)]; }

    std::vector<Seen> seen_;
    uint64_t tokens_ = 0;
};
