#include "overhead.hpp"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <thread>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "capture.hpp"
#include "progress.hpp"
#include "random_sae.hpp"
#include "steer.hpp"

namespace {

constexpr int rounds = 8, prompt_tokens = 16, decoded_tokens = 24;  // per round

struct Variant {
    const char *name;
    Engine &engine;
    Engine::Hook hook;
    std::vector<double> ms{};  // per decoded token
};

double median(std::vector<double> v) {
    std::nth_element(v.begin(), v.begin() + std::ptrdiff_t(v.size() / 2), v.end());
    return v[v.size() / 2];
}

// A prompt, then tokens one by one, as one request is served.
void measure(const Model &model, Variant &variant) {
    variant.engine.on_residual(variant.hook);
    variant.engine.forget();
    std::vector<BatchRow> batch{{model.document_start(), 0, 0}};
    for (int32_t pos = 1; pos < prompt_tokens; pos++) batch.push_back({300 + 7 * pos, pos, 0, pos + 1 == prompt_tokens});
    variant.engine.decode(batch);
    for (int32_t i = 0; i < decoded_tokens; i++) {
        batch.assign(1, {500 + 11 * i, prompt_tokens + i, 0, true});
        const auto start = std::chrono::steady_clock::now();
        variant.engine.decode(batch);
        variant.ms.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
    }
    variant.engine.on_residual(nullptr);
}

}  // namespace

void show_overhead(const Model &model, const sae::Model &sae, const sae::Pool &pool, int32_t layer) {
    const sae_info info = sae.info();
    sae::Session small = make_session(sae, pool, prompt_tokens);
    sae::Session large = make_session(random_sae(info.d_in, 32768, info.k), pool, prompt_tokens);
    sae::Session large_bf16 = make_session(random_sae(info.d_in, 32768, info.k, sae::dtype_of<sae::bf16>()), pool, prompt_tokens);
    sae::Features features(prompt_tokens, info.k);
    BatchSteering add(sae, pool, prompt_tokens, 1), set(sae, pool, prompt_tokens, 1);
    add.set(0, {sae::add(0, 1)});
    set.set(0, {sae::set(0, 1)});

    const auto capture = [&](sae::Session &session) {
        return [&](const Residual &r) {
            session.encode({r.data, r.rows, r.d}, features.slice(0, r.rows));
            return Then::go_on;
        };
    };
    const auto steer = [](BatchSteering &steering) {
        return [&steering](const Residual &r) {
            steering(r, {0});
            return Then::go_on;
        };
    };
    EngineOptions options;
    options.layer = layer;
    Engine hooked(model, options);
    options.hooked = false;
    Engine bare(model, options);
    std::vector<Variant> variants = {
        {"the engine alone, without a callback", bare, nullptr},
        {"capture and steering switched off", hooked, nullptr},
        {"reading the residual, no SAE", hooked, [](const Residual &) { return Then::go_on; }},
        {"capture, n = 4608", hooked, capture(small)},
        {"capture, n = 32768", hooked, capture(large)},
        {"capture, n = 32768, weights in bf16", hooked, capture(large_bf16)},
        {"steering, add one feature", hooked, steer(add)},
        {"steering, clamp one feature (encodes)", hooked, steer(set)},
    };
    {
        Progress progress("measuring", rounds);
        for (int round = 0; round < rounds; round++) {  // by turns, so that what else the machine does falls on all alike
            for (size_t v = 0; v < variants.size(); v++) measure(model, variants[(v + size_t(round)) % variants.size()]);
            progress.show(round + 1);
        }
    }
    double load = 0;
    if (getloadavg(&load, 1) == 1 && load > 1.5 * std::thread::hardware_concurrency())
        std::printf("This machine has other work to do (load %.1f on %u cores): the numbers are not worth much.\n", load, std::thread::hardware_concurrency());
    const double alone = median(variants[0].ms);
    std::printf("Per decoded token of one sequence (medians of %d):\n", rounds * decoded_tokens);
    for (const Variant &variant : variants) {
        const double ms = median(variant.ms);
        std::printf("  %-40s %7.2f ms  %+6.2f ms  %+5.1f%%\n", variant.name, ms, ms - alone, 100 * (ms / alone - 1));
    }
}
