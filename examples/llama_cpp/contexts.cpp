#include "contexts.hpp"

#include <algorithm>

void Contexts::add(int32_t feature, const Context &context) {
    Seen &seen = seen_[size_t(feature)];
    seen.fired++;
    std::vector<Context> &best = seen.best;
    const auto same = std::find_if(best.begin(), best.end(), [&](const Context &c) { return c.window == context.window; });
    if (same != best.end()) {
        if (same->value >= context.value) return;
        best.erase(same);
    }
    const auto place = std::upper_bound(best.begin(), best.end(), context, [](const Context &a, const Context &b) { return a.value > b.value; });
    best.insert(place, context);
    if (best.size() > kept) best.pop_back();
}
